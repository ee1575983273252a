//! A guest as the rules see it: what its next boot will be like, and what was measured of it now.

use std::collections::{BTreeMap, BTreeSet};

use super::edit::{iothreads_of, users};
use super::facts::{HostFacts, Storage, Version};
use super::pins::Pins;
use crate::backing_device::BackingDevice;
use crate::element::Element;
use crate::error::{HostError, HostResult};
use crate::guest::{Guest, GuestDisk};
use crate::stats::{DiskCounters, GuestStats};

/// A guest that may get advice.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// What libvirt will start: the parsed inactive XML.
    pub guest: Guest,
    /// The inactive XML, as libvirt writes it.
    pub xml: String,
    /// Whether it runs now.
    pub is_running: bool,
    /// Its QEMU; `None` when it does not run or was not looked for.
    pub qemu_pid: Option<i32>,
    /// Whether libvirt places its vCPUs, as numad advises, when it starts: `<vcpu placement='auto'>`.
    pub has_automatic_placement: bool,
    /// Whether libvirt keeps its definition; else whoever starts it does.
    pub is_persistent: bool,
    /// Snapshots that libvirt knows of.
    pub snapshots: usize,
    /// Machine type, such as `pc-q35-7.2`.
    pub machine: String,
    /// Memory it may have, KiB.
    pub memory_kib: u64,
    /// Whether it is to get all of it, so that no balloon gives any back.
    pub has_all_memory: bool,
    /// Whether its memory is to be huge pages.
    pub wants_huge_pages: bool,
    /// Whether its memory is huge pages now; also false when it does not run.
    pub has_huge_pages: bool,
    /// Whether its memory is shared with other processes.
    pub has_shared_memory: bool,
    /// Where its threads may run.
    pub pins: Pins,
    /// Where they may run now; `None` when it does not.
    pub live_pins: Option<Pins>,
    /// How many devices each IOThread serves.
    pub iothread_users: BTreeMap<u32, usize>,
    /// Its disks, in the order of the XML.
    pub disks: Vec<SubjectDisk>,
}

/// A disk of such a guest.
#[derive(Debug, Clone, PartialEq)]
pub struct SubjectDisk {
    /// What its XML says.
    pub disk: GuestDisk,
    /// Whether it is virtio-blk on PCI or CCW: what has queues and IOThreads.
    pub is_virtio_blk: bool,
    /// `queues=`.
    pub queues: Option<u32>,
    /// IOThreads that serve it.
    pub iothreads: BTreeSet<u32>,
    /// Whether its notifications go without eventfd, which an IOThread cannot do.
    pub lacks_ioeventfd: bool,
    /// Whether several guests may open it.
    pub is_shareable: bool,
    /// Whether other images lie below it: it is an overlay.
    pub has_backing_chain: bool,
    /// Who may use its image.
    pub storage: Storage,
    /// Whether its image has holes; `None` where that cannot be told.
    pub has_holes: Option<bool>,
    /// What it lies on; `None` where that is no local device.
    pub device: Option<BackingDevice>,
    /// Whether it runs now with the driver that it is defined with: otherwise what is measured now says
    /// nothing of its next boot.
    pub runs_as_defined: bool,
    /// Size as the guest sees it, bytes; `None` like `measured`.
    pub capacity_bytes: Option<u64>,
    /// What it did; `None` when it does not run as it is defined, or could not be asked.
    pub measured: Option<Measured>,
}

/// What a disk did in a window, and since its QEMU started.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Read since QEMU started, bytes.
    pub read_bytes_total: u64,
    /// Reads per second.
    pub reads_per_sec: f64,
    /// Writes per second.
    pub writes_per_sec: f64,
    /// Read, bytes per second.
    pub read_bytes_per_sec: f64,
    /// Written, bytes per second.
    pub write_bytes_per_sec: f64,
    /// Mean number of requests in flight, by Little's law.
    pub in_flight: f64,
    /// Mean latency of reads and writes, microseconds; `None` without any.
    pub latency_us: Option<f64>,
}

/// A guest's definition as libvirt gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// The XML that its next boot will have.
    pub xml: String,
    /// The XML it runs with; `None` when it does not.
    pub live_xml: Option<String>,
    /// Whether libvirt keeps the definition.
    pub is_persistent: bool,
    /// Snapshots that libvirt knows of.
    pub snapshots: usize,
}

impl Subject {
    /// Reads a definition. What only the host can tell of the images is left unknown, and nothing is
    /// measured yet.
    ///
    /// # Errors
    /// `Parse`.
    pub fn from_definition(definition: &Definition) -> HostResult<Self> {
        let root = Element::parse(&definition.xml)?;
        let live = definition.live_xml.as_deref().map(Element::parse);
        let live = live.transpose()?;
        let guest = Guest::from_xml(&definition.xml)?;
        let memory_kib = memory_kib_of(&root, "memory")
            .ok_or_else(|| HostError::parse("domain XML (memory)", &definition.xml))?;
        let current_kib = memory_kib_of(&root, "currentMemory").unwrap_or(memory_kib);
        let backing = |name: &str| root.at(&["memoryBacking", name]);
        let has_huge_pages = |root: &Element| root.at(&["memoryBacking", "hugepages"]).is_some();
        let machine = root
            .at(&["os", "type"])
            .and_then(|os| os.attribute("machine"));
        Ok(Self {
            disks: disks(&guest, &root, live.as_ref()),
            pins: Pins::of(&guest, &root)?,
            guest,
            xml: definition.xml.clone(),
            is_running: live.is_some(),
            qemu_pid: None,
            has_automatic_placement: root
                .child("vcpu")
                .and_then(|vcpu| vcpu.attribute("placement"))
                == Some("auto"),
            is_persistent: definition.is_persistent,
            snapshots: definition.snapshots,
            machine: machine.unwrap_or_default().to_owned(),
            memory_kib,
            has_all_memory: current_kib == memory_kib,
            wants_huge_pages: has_huge_pages(&root),
            has_huge_pages: live.as_ref().is_some_and(has_huge_pages),
            has_shared_memory: backing("access").and_then(|a| a.attribute("mode"))
                == Some("shared"),
            live_pins: live_pins(definition, live.as_ref())?,
            iothread_users: users(&root),
        })
    }

    /// Notes what two statistics of the running guest, `span_s` seconds apart, say of its disks.
    pub fn measure(&mut self, before: &GuestStats, after: &GuestStats, span_s: f64) {
        let counters = |stats: &GuestStats, target: &str| {
            let disk = stats.disks.iter().find(|disk| disk.target == target);
            disk.and_then(|disk| disk.counters)
        };
        for disk in &mut self.disks {
            let target = &disk.disk.target;
            if let (Some(first), Some(last)) = (counters(before, target), counters(after, target)) {
                disk.capacity_bytes = Some(last.capacity_bytes);
                let measured = Measured::between(&first, &last, span_s);
                disk.measured = measured.filter(|_| disk.runs_as_defined);
            }
        }
    }

    /// Version of QEMU that the machine type stands for; `None` for a name that does not say.
    #[must_use]
    pub fn machine_version(&self) -> Option<Version> {
        let version = self.machine.rsplit('-').next()?;
        version
            .starts_with(|c: char| c.is_ascii_digit())
            .then(|| Version::from_text(version))
    }

    /// Whether an IOThread of the disk has to wait for a CPU now, so that its latency says nothing of its
    /// device.
    #[must_use]
    pub fn is_crowded(&self, disk: &SubjectDisk) -> bool {
        let mut live = self.live_pins.iter();
        live.any(|pins| disk.iothreads.iter().any(|id| pins.crowd(*id).is_some()))
    }
}

impl SubjectDisk {
    /// Whether its image is a file or a block device of this host.
    #[must_use]
    pub fn is_image(&self) -> bool {
        self.disk.source.is_some()
    }

    /// Who else may use its image, in words, if somebody may.
    #[must_use]
    pub fn shared_with(&self, host: &HostFacts) -> Option<String> {
        let leaves = self.device.iter().flat_map(|device| &device.leaves);
        let mut known = leaves.filter_map(|leaf| host.devices.get(leaf));
        match self.storage {
            _ if self.is_shareable => Some("other guests: it is marked shareable".to_owned()),
            Storage::Shared(what) => Some(format!("other hosts: it lies on {what}")),
            _ if known.any(|device| device.is_remote) => {
                Some("other hosts: its device is reached over a network".to_owned())
            }
            Storage::Local | Storage::Memory | Storage::Unknown => None,
        }
    }

    /// Whether an IOThread other than that of any other device serves it.
    #[must_use]
    pub fn has_own_iothread(&self, users: &BTreeMap<u32, usize>) -> bool {
        !self.iothreads.is_empty() && self.iothreads.iter().all(|id| users.get(id) == Some(&1))
    }
}

impl Measured {
    /// What happened between two readings; `None` if they are not of one life of the guest.
    fn between(first: &DiskCounters, last: &DiskCounters, span_s: f64) -> Option<Self> {
        let reads = last.reads.requests.checked_sub(first.reads.requests)? as f64;
        let writes = last.writes.requests.checked_sub(first.writes.requests)? as f64;
        let read_bytes = last.reads.bytes.checked_sub(first.reads.bytes)? as f64;
        let write_bytes = last.writes.bytes.checked_sub(first.writes.bytes)? as f64;
        let read_ns = last.reads.time_ns.checked_sub(first.reads.time_ns)? as f64;
        let write_ns = last.writes.time_ns.checked_sub(first.writes.time_ns)? as f64;
        let (ns, requests) = (read_ns + write_ns, reads + writes);
        Some(Self {
            read_bytes_total: last.reads.bytes,
            reads_per_sec: reads / span_s,
            writes_per_sec: writes / span_s,
            read_bytes_per_sec: read_bytes / span_s,
            write_bytes_per_sec: write_bytes / span_s,
            in_flight: ns / 1e9 / span_s,
            latency_us: (requests > 0.0).then(|| ns / requests / 1e3),
        })
    }

    /// Bytes moved per second.
    #[must_use]
    pub fn bytes_per_sec(&self) -> f64 {
        self.read_bytes_per_sec + self.write_bytes_per_sec
    }
}

fn disks(guest: &Guest, root: &Element, live: Option<&Element>) -> Vec<SubjectDisk> {
    let disk = |disk: &GuestDisk| {
        let element = disk_element(root, &disk.target)?;
        // QEMU's disks have one; what has none is no disk of QEMU, and there is nothing to set.
        let driver = element.child("driver")?;
        let live = live.and_then(|live| disk_element(live, &disk.target));
        Some(subject_disk(disk.clone(), element, driver, live))
    };
    guest.disks.iter().filter_map(disk).collect()
}

fn disk_element<'a>(root: &'a Element, target: &str) -> Option<&'a Element> {
    let mut disks = root.child("devices")?.children("disk");
    disks.find(|disk| disk.child("target").and_then(|t| t.attribute("dev")) == Some(target))
}

fn subject_disk(
    disk: GuestDisk,
    element: &Element,
    driver: &Element,
    live: Option<&Element>,
) -> SubjectDisk {
    let bus = element
        .child("target")
        .and_then(|target| target.attribute("bus"));
    let address = element.child("address").and_then(|a| a.attribute("type"));
    let is_block_storage = matches!(element.attribute("type"), Some("file" | "block"));
    // What libvirt found below the running disk, or what somebody wrote down; an empty element ends it.
    let has_layer = |disk: &Element| {
        let below = disk.child("backingStore");
        below.is_some_and(|below| below.child("source").is_some())
    };
    SubjectDisk {
        is_virtio_blk: bus == Some("virtio")
            && is_block_storage
            && matches!(address, None | Some("pci" | "ccw")),
        queues: driver
            .attribute("queues")
            .and_then(|queues| queues.parse().ok()),
        iothreads: iothreads_of(driver),
        lacks_ioeventfd: driver.attribute("ioeventfd") == Some("off"),
        is_shareable: element.child("shareable").is_some(),
        has_backing_chain: has_layer(element) || live.is_some_and(has_layer),
        storage: Storage::Unknown,
        has_holes: None,
        device: None,
        runs_as_defined: live
            .and_then(|live| live.child("driver"))
            .is_some_and(|running| is_same(running, driver)),
        capacity_bytes: None,
        measured: None,
        disk,
    }
}

fn is_same(a: &Element, b: &Element) -> bool {
    a.attributes() == b.attributes() && iothreads_of(a) == iothreads_of(b)
}

fn live_pins(definition: &Definition, live: Option<&Element>) -> HostResult<Option<Pins>> {
    let (Some(xml), Some(root)) = (&definition.live_xml, live) else {
        return Ok(None);
    };
    Pins::of(&Guest::from_xml(xml)?, root).map(Some)
}

/// libvirt always writes KiB.
fn memory_kib_of(root: &Element, name: &str) -> Option<u64> {
    let element = root.child(name)?;
    (element.attribute("unit") == Some("KiB")).then(|| element.text.parse().ok())?
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::stats::{DiskStats, IoCounters};

    pub(crate) const UUID: &str = "ee81b14e-982c-47f4-ac22-70486068cb15";

    /// A guest of 4 vCPUs and 1 GiB with the disk vda, its driver as given; `extra` stands after its
    /// vCPUs.
    pub(crate) fn xml(driver: &str, extra: &str) -> String {
        format!(
            "<domain type='kvm'>
  <name>web</name>
  <uuid>{UUID}</uuid>
  <memory unit='KiB'>1048576</memory>
  <currentMemory unit='KiB'>1048576</currentMemory>
  <vcpu placement='static'>4</vcpu>{extra}
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'{driver}/>
      <source file='/images/web.img'/>
      <target dev='vda' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
  </devices>
</domain>
"
        )
    }

    pub(crate) fn subject_of(xml: &str) -> Subject {
        let definition = Definition {
            xml: xml.to_owned(),
            live_xml: Some(xml.to_owned()),
            is_persistent: true,
            snapshots: 0,
        };
        let mut subject = Subject::from_definition(&definition).unwrap();
        for disk in &mut subject.disks {
            disk.storage = Storage::Local;
            disk.has_holes = Some(false);
        }
        subject
    }

    #[test]
    fn a_definition_is_read() {
        let pins = "
  <iothreads>2</iothreads>
  <cputune><iothreadpin iothread='1' cpuset='0'/></cputune>";
        let subject = subject_of(&xml(
            " cache='none' io='native' iothread='1' queues='2'",
            pins,
        ));
        let disk = &subject.disks[0];
        assert!(disk.is_virtio_blk && disk.has_own_iothread(&subject.iothread_users));
        assert_eq!((disk.queues, disk.has_backing_chain), (Some(2), false));
        assert_eq!(subject.machine_version(), Some(Version(7, 2, 0)));
        assert!(subject.has_all_memory && !subject.wants_huge_pages);
    }

    #[test]
    fn a_disk_without_a_driver_gets_no_advice() {
        let driver = "<driver name='qemu' type='raw'/>";
        let subject = subject_of(&xml("", "").replace(driver, ""));
        assert_eq!(subject.disks, []);
    }

    #[test]
    fn a_layer_below_a_running_disk_is_seen() {
        let inactive = xml("", "");
        let below = "<backingStore type='file'><source file='/base.img'/><backingStore/></backingStore><target";
        let definition = Definition {
            live_xml: Some(inactive.replace("<target", below)),
            xml: inactive,
            is_persistent: true,
            snapshots: 0,
        };
        let subject = Subject::from_definition(&definition).unwrap();
        assert!(subject.disks[0].has_backing_chain);
    }

    #[test]
    fn rates_come_from_two_readings_of_one_life() {
        let stats = |requests: u64, time_ns: u64| GuestStats {
            disks: vec![DiskStats {
                target: "vda".into(),
                source: None,
                counters: Some(DiskCounters {
                    reads: IoCounters {
                        requests,
                        bytes: requests * 4096,
                        time_ns,
                    },
                    capacity_bytes: 1 << 20,
                    ..DiskCounters::default()
                }),
            }],
            ..GuestStats::default()
        };
        let mut subject = subject_of(&xml("", ""));
        subject.measure(&stats(100, 0), &stats(300, 1_000_000_000), 2.0);
        let measured = subject.disks[0].measured.unwrap();
        assert_eq!((measured.reads_per_sec, measured.in_flight), (100.0, 0.5));
        assert_eq!(measured.latency_us, Some(5_000.0));
        assert_eq!(measured.read_bytes_total, 300 * 4096);
        subject.measure(&stats(300, 0), &stats(100, 0), 2.0);
        assert_eq!(subject.disks[0].measured, None, "QEMU was started again");
        subject.disks[0].runs_as_defined = false;
        subject.measure(&stats(100, 0), &stats(300, 0), 2.0);
        assert_eq!(
            subject.disks[0].measured, None,
            "the next boot will be another"
        );
        assert_eq!(subject.disks[0].capacity_bytes, Some(1 << 20));
    }
}
