//! A hypervisor for tests: one guest with one IOThread and one disk, in memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::cpuset::CpuSet;
use crate::error::{HostError, HostResult};
use crate::guest::Guest;
use crate::hypervisor::{Hypervisor, Ring, TunedByOthers};
use crate::inventory::{Inventory, RunningGuest};
use crate::journal::GuestLife;
use crate::qmp::node_options;
use crate::stats::{DiskCounters, DiskStats, GuestStats};
use crate::throttle::Throttle;

pub(crate) const UUID: &str = "ee81b14e-982c-47f4-ac22-70486068cb15";

const XML: &str = r#"<domain type='kvm'><name>web</name><uuid>ee81b14e-982c-47f4-ac22-70486068cb15</uuid>
<metadata><b:tuning xmlns:b="https://blkpilot.dev/xmlns/1" mode="auto"/></metadata>
<vcpu>2</vcpu><iothreads>1</iothreads><devices><disk type='file' device='disk'>
<driver name='qemu' type='qcow2' cache='none' io='io_uring' iothread='1'/><source file='/i.img'/>
<target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk></devices></domain>"#;

/// What goes wrong with the next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It is refused, and nothing changes.
    Refused,
    /// It is accepted, and nothing changes.
    Ignored,
    /// It is applied, and then the connection breaks.
    AppliedThenLost,
    /// It is applied, and then somebody else binds the IOThread to CPU 3.
    AppliedThenTaken,
}

/// A value that tests look at and change.
#[derive(Debug, Default)]
pub(crate) struct Slot<T>(Mutex<T>);

impl<T> Slot<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn borrow(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn borrow_mut(&self) -> MutexGuard<'_, T> {
        self.borrow()
    }

    pub(crate) fn get(&self) -> T
    where
        T: Copy,
    {
        *self.borrow()
    }

    pub(crate) fn set(&self, value: T) {
        *self.borrow() = value;
    }

    pub(crate) fn replace(&self, value: T) -> T {
        std::mem::replace(&mut *self.borrow(), value)
    }
}

pub(crate) struct FakeHypervisor {
    pub(crate) xml: String,
    pub(crate) cpus: Slot<CpuSet>,
    pub(crate) poll_max_ns: Slot<u64>,
    pub(crate) direct: Slot<bool>,
    pub(crate) histogram: Slot<Option<Vec<u64>>>,
    pub(crate) fault: Slot<Fault>,
    pub(crate) job: Slot<bool>,
    pub(crate) migration: Slot<bool>,
    pub(crate) failed_writes: Slot<u64>,
    pub(crate) is_paused_on_error: Slot<bool>,
    pub(crate) is_resumed: Slot<bool>,
    /// Whether a snapshot has put an overlay above the image, opened with O_DIRECT.
    pub(crate) overlay: Slot<bool>,
    pub(crate) overlay_direct: Slot<bool>,
    /// Before how many more monitor commands that snapshot is taken.
    pub(crate) overlaid_after_commands: Slot<Option<u32>>,
    pub(crate) lost: Slot<bool>,
    pub(crate) monitor_commands: Slot<Vec<String>>,
    pub(crate) tuned_by_others: Slot<Vec<TunedByOthers>>,
    pub(crate) throttle: Slot<Throttle>,
    /// Caches that the format node was opened with last: QEMU keeps that to itself.
    pub(crate) qcow2_cache: Slot<Value>,
    /// After how many more readings of its binding somebody else binds the IOThread, and to which CPU.
    pub(crate) binds_after_reads: Slot<Option<(u32, u32)>>,
    /// Before how many more readings of its block nodes somebody else makes the image direct.
    pub(crate) goes_direct_after_reads: Slot<Option<u32>>,
    /// Whoever holds it keeps the statistics from answering.
    stats: Mutex<()>,
    /// Whoever holds it keeps the monitor from answering.
    monitor: Mutex<()>,
}

impl Default for FakeHypervisor {
    fn default() -> Self {
        Self {
            xml: XML.to_owned(),
            cpus: Slot::new("0-3".parse().expect("a CPU list")),
            poll_max_ns: Slot::new(32_768),
            direct: Slot::new(true),
            histogram: Slot::new(None),
            fault: Slot::new(Fault::None),
            job: Slot::new(false),
            migration: Slot::new(false),
            failed_writes: Slot::new(0),
            is_paused_on_error: Slot::new(false),
            is_resumed: Slot::new(false),
            overlay: Slot::new(false),
            overlay_direct: Slot::new(true),
            overlaid_after_commands: Slot::new(None),
            lost: Slot::new(false),
            monitor_commands: Slot::default(),
            tuned_by_others: Slot::default(),
            throttle: Slot::default(),
            qcow2_cache: Slot::new(json!({})),
            binds_after_reads: Slot::new(None),
            goes_direct_after_reads: Slot::new(None),
            stats: Mutex::default(),
            monitor: Mutex::default(),
        }
    }
}

impl FakeHypervisor {
    pub(crate) fn without_opt_in() -> Self {
        let mut host = Self::default();
        host.opt_out();
        host
    }

    /// The guest called so, with this UUID.
    pub(crate) fn named(name: &str, uuid: &str) -> Self {
        let named = format!(">{name}<");
        Self {
            xml: XML.replace(UUID, uuid).replace(">web<", &named),
            ..Self::default()
        }
    }

    pub(crate) fn opt_out(&mut self) {
        self.xml = self.xml.replace("mode=\"auto\"", "mode=\"off\"");
    }

    pub(crate) fn opt_in(&mut self) {
        self.xml = self.xml.replace("mode=\"off\"", "mode=\"auto\"");
    }

    /// The guest in the life that began at `started`.
    pub(crate) fn running(&self, started: u64) -> RunningGuest {
        let guest = Guest::from_xml(&self.xml).expect("the XML above is valid");
        let life = GuestLife {
            boot_id: "boot".into(),
            uuid: guest.uuid.clone(),
            qemu_started_ticks: started,
        };
        let image = self.image();
        let nodes = format!(
            "-blockdev\0{{\"driver\":\"file\",\"node-name\":\"p\",\"filename\":\"{image}\",\"aio\":\"io_uring\"}}\0-blockdev\0{{\"driver\":\"qcow2\",\"node-name\":\"f\",\"file\":\"p\"}}\0"
        );
        let nodes = node_options(nodes.as_bytes());
        RunningGuest {
            guest,
            process: None,
            is_resumed: self.is_resumed.get(),
            hangs: false,
            life: Some(life),
            nodes,
        }
    }

    /// The image that QEMU was started with.
    fn image(&self) -> String {
        let guest = Guest::from_xml(&self.xml).expect("the XML above is valid");
        let source = guest.disks[0].source.as_ref();
        source.map_or_else(String::new, |path| path.display().to_string())
    }

    pub(crate) fn inventory(&self, started: u64) -> Inventory {
        let guests = BTreeMap::from([(UUID.to_owned(), self.running(started))]);
        Inventory {
            boot_id: "boot".into(),
            guests,
            qemus: [(UUID.to_owned(), started)].into(),
            ..Inventory::default()
        }
    }

    /// Keeps the statistics from answering until the result is dropped.
    pub(crate) fn hang_stats(&self) -> MutexGuard<'_, ()> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the monitor from answering until the result is dropped.
    pub(crate) fn hang(&self) -> MutexGuard<'_, ()> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> HostResult<()> {
        if self.lost.get() {
            return Err(HostError::Disconnected {
                uri: "fake".into(),
                message: "lost".into(),
            });
        }
        Ok(())
    }

    fn write(&self, apply: impl FnOnce()) -> HostResult<()> {
        self.check()?;
        match self.fault.replace(Fault::None) {
            Fault::None => apply(),
            Fault::Ignored => {}
            Fault::Refused => {
                return Err(HostError::Libvirt {
                    action: "a write".into(),
                    message: "refused".into(),
                });
            }
            Fault::AppliedThenTaken => {
                apply();
                *self.cpus.borrow_mut() = [3].into_iter().collect();
            }
            Fault::AppliedThenLost => {
                apply();
                self.lost.set(true);
                self.check()?;
            }
        }
        Ok(())
    }

    fn nodes(&self) -> Value {
        if let Some(readings) = self.goes_direct_after_reads.get() {
            self.goes_direct_after_reads.set(readings.checked_sub(1));
            if readings == 0 {
                self.direct.set(true);
            }
        }
        let node = |name: &str, drv: &str, file: &str, direct: bool| {
            let cache = json!({ "direct": direct, "no-flush": false });
            json!({ "node-name": name, "drv": drv, "file": file, "cache": cache })
        };
        let mut format = node("f", "qcow2", "/i.img", true);
        format["backing_file_depth"] = 0.into();
        // A table of 1 MiB.
        format["image"] = json!({ "virtual-size": 8_u64 << 30, "cluster-size": 65_536 });
        let mut nodes = vec![format, node("p", "file", "/i.img", self.direct.get())];
        if self.overlay.get() {
            nodes.push(node("f2", "qcow2", "/overlay", true));
            nodes.push(node("p2", "file", "/overlay", self.overlay_direct.get()));
        }
        nodes.into()
    }

    fn reply(&self, command: &str, arguments: &Value) -> HostResult<Value> {
        if let Some(commands) = self.overlaid_after_commands.get() {
            self.overlaid_after_commands.set(commands.checked_sub(1));
            if commands == 0 {
                self.overlay.set(true);
            }
        }
        Ok(match command {
            "query-block" => json!([{
                "qdev": "/machine/peripheral/virtio-disk0/virtio-backend",
                "inserted": { "node-name": if self.overlay.get() { "f2" } else { "f" } },
            }]),
            "query-named-block-nodes" => self.nodes(),
            "blockdev-reopen" if arguments["options"][0]["node-name"] == "f" => {
                let mut options = arguments["options"][0].clone();
                assert_eq!(options["file"], "p", "a reopen repeats all options");
                options
                    .as_object_mut()
                    .expect("options")
                    .retain(|key, _| key.contains("cache"));
                self.write(|| *self.qcow2_cache.borrow_mut() = options)?;
                json!({})
            }
            "blockdev-reopen" => {
                let options = &arguments["options"][0];
                assert_eq!(options["aio"], "io_uring", "a reopen repeats all options");
                let (node, file) = match options["node-name"].as_str() {
                    Some("p2") => (&self.overlay_direct, "/overlay"),
                    _ => (&self.direct, &*self.image()),
                };
                assert_eq!(options["filename"], file);
                let direct = options["cache"]["direct"]
                    .as_bool()
                    .expect("direct is given");
                self.write(|| node.set(direct))?;
                json!({})
            }
            "query-blockstats" => {
                let histogram = self.histogram.borrow();
                let histogram = histogram.as_ref().map(|boundaries| {
                    json!({ "boundaries": boundaries, "bins": vec![0; boundaries.len() + 1] })
                });
                json!([{
                    "qdev": "/machine/peripheral/virtio-disk0/virtio-backend",
                    "stats": {
                        "rd_latency_histogram": histogram, "wr_latency_histogram": histogram,
                        "failed_wr_operations": self.failed_writes.get(),
                    }
                }])
            }
            "block-latency-histogram-set" => {
                let boundaries = arguments["boundaries"].as_array();
                let boundaries =
                    boundaries.map(|list| list.iter().filter_map(Value::as_u64).collect());
                self.write(|| *self.histogram.borrow_mut() = boundaries)?;
                json!({})
            }
            _ => return Err(HostError::parse("fake monitor", command)),
        })
    }
}

impl Hypervisor for FakeHypervisor {
    fn guest_stats(&self) -> HostResult<Vec<GuestStats>> {
        let _answering = self.hang_stats();
        self.check()?;
        Ok(vec![GuestStats {
            uuid: UUID.into(),
            name: "web".into(),
            state: if self.is_paused_on_error.get() { 3 } else { 1 },
            state_reason: if self.is_paused_on_error.get() { 5 } else { 0 },
            disks: vec![DiskStats {
                target: "vda".into(),
                source: Some("/i.img".into()),
                counters: Some(DiskCounters::default()),
            }],
            poll_max_ns: BTreeMap::from([(1, self.poll_max_ns.get())]),
            vcpu_time_ns: BTreeMap::new(),
        }])
    }

    fn guest_xml(&self, _uuid: &str) -> HostResult<String> {
        self.check()?;
        Ok(self.xml.clone())
    }

    fn iothread_cpus(&self, _uuid: &str) -> HostResult<Vec<(u32, CpuSet)>> {
        self.check()?;
        let read = self.cpus.borrow().clone();
        if let Some((readings, cpu)) = self.binds_after_reads.get() {
            let is_now = readings == 1;
            self.binds_after_reads
                .set((!is_now).then_some((readings - 1, cpu)));
            if is_now {
                *self.cpus.borrow_mut() = [cpu].into_iter().collect();
            }
        }
        Ok(vec![(1, read)])
    }

    fn pin_iothread(&self, _uuid: &str, _iothread: u32, cpus: &CpuSet) -> HostResult<()> {
        self.write(|| *self.cpus.borrow_mut() = cpus.clone())
    }

    fn poll_max_ns(&self, _uuid: &str, iothread: u32) -> HostResult<Option<u64>> {
        self.check()?;
        Ok((iothread == 1).then(|| self.poll_max_ns.get()))
    }

    fn set_poll_max_ns(&self, _uuid: &str, _iothread: u32, poll_max_ns: u64) -> HostResult<()> {
        self.write(|| self.poll_max_ns.set(poll_max_ns))
    }

    fn throttle(&self, _uuid: &str, _target: &str) -> HostResult<Throttle> {
        self.check()?;
        Ok(self.throttle.borrow().clone())
    }

    fn set_throttle(&self, _uuid: &str, _target: &str, throttle: &Throttle) -> HostResult<()> {
        self.write(|| *self.throttle.borrow_mut() = throttle.clone())
    }

    fn monitor(&self, _uuid: &str, command: &str) -> HostResult<String> {
        let _answering = self.hang();
        self.check()?;
        let request: Value = serde_json::from_str(command).expect("a monitor command is JSON");
        let name = request["execute"].as_str().unwrap_or_default();
        self.monitor_commands.borrow_mut().push(name.to_owned());
        self.reply(name, &request["arguments"])
            .map(|value| json!({ "return": value }).to_string())
    }

    fn job_runs(&self, _uuid: &str, _target: &str) -> HostResult<bool> {
        self.check()?;
        Ok(self.job.get() || self.migration.get())
    }

    fn migrates(&self, _uuid: &str) -> HostResult<bool> {
        self.check()?;
        Ok(self.migration.get())
    }

    fn tuned_by_others(&self) -> Vec<TunedByOthers> {
        std::mem::take(&mut self.tuned_by_others.borrow_mut())
    }

    /// Nothing happens here by itself.
    fn watch_guests(&self, _ring: &Ring) {}
}
