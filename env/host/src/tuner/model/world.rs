//! A host with several guests on which everything can go wrong, and what a bystander knows of it.

use blkpilot_env::sample::Cache;

use super::daemon::Lifeline;
use super::*;
use crate::cpuset::CpuSet;
use crate::disk_setting::DiskSetting;
use crate::fake::{FakeHypervisor, Fault, Slot};
use crate::hypervisor::{Ring, TunedByOthers};
use crate::knob::{BUFFERED, DIRECT, FOREIGN};
use crate::stats::GuestStats;
use crate::throttle::Throttle;

pub(super) const GUESTS: usize = 2;
pub(super) const KNOBS: usize = 5;
const NAMES: [&str; GUESTS] = ["web", "db"];
pub(super) const UUIDS: [&str; GUESTS] = [
    "ee81b14e-982c-47f4-ac22-70486068cb15",
    "0c6dbd4c-1f0a-4d0c-8d3a-5c1f4f2b7a11",
];
/// Boundaries of a histogram that is not ours.
const FOREIGN_BOUNDARIES: [u64; 2] = [1, 2];

/// How a guest is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    Seen,
    Hangs,
    /// Its QEMU runs, but libvirt does not list it.
    Unlisted,
    Off,
}

/// A write that reached a guest, and the values in force around it.
#[derive(Debug, Clone)]
pub(super) struct Write {
    pub(super) guest: usize,
    pub(super) knob: Knob,
    pub(super) before: String,
    pub(super) after: String,
}

pub(super) struct World {
    pub(super) guests: [FakeHypervisor; GUESTS],
    pub(super) sights: [Sight; GUESTS],
    starts: [u64; GUESTS],
    boot: u32,
    lifeline: Lifeline,
    writes: Slot<Vec<Write>>,
}

pub(super) fn knobs() -> [Knob; KNOBS] {
    let target = || "vda".to_owned();
    [
        Knob::Channel { iothread: 1 },
        Knob::Polling { iothread: 1 },
        Knob::Cache { target: target() },
        Knob::Histogram { target: target() },
        Knob::Disk {
            target: target(),
            setting: DiskSetting::Throttle,
        },
    ]
}

/// A guest that has opted in to all of them.
fn guest(guest: usize) -> FakeHypervisor {
    let mut host = FakeHypervisor::named(NAMES[guest], UUIDS[guest]);
    let opted_in = "mode=\"auto\" knobs=\"channel cache polling throttle\"";
    host.xml = host.xml.replace("mode=\"auto\"", opted_in);
    host
}

/// The change that sets a knob to a value in its canonical form.
pub(super) fn change(knob: &Knob, value: &str) -> Change {
    match knob {
        Knob::Channel { iothread } => Change::Channel {
            iothread: *iothread,
            cpus: value.parse().unwrap(),
        },
        Knob::Polling { iothread } => Change::Polling {
            iothread: *iothread,
            poll_max_ns: value.parse().unwrap(),
        },
        Knob::Cache { target } => Change::Cache {
            target: target.clone(),
            cache: if value == BUFFERED {
                Cache::Buffered
            } else {
                Cache::Direct
            },
        },
        Knob::Histogram { target } => Change::Histogram {
            target: target.clone(),
        },
        Knob::Disk { target, setting } => Change::Disk {
            target: target.clone(),
            setting: *setting,
            value: value.to_owned(),
        },
        Knob::Device(_) => unreachable!("{knob} is not a guest's"),
    }
}

impl World {
    /// `lifeline`: of the process that tunes the guests.
    pub(super) fn new(lifeline: Lifeline) -> Self {
        Self {
            guests: [0, 1].map(guest),
            sights: [Sight::Seen; GUESTS],
            starts: [1; GUESTS],
            boot: 0,
            lifeline,
            writes: Slot::default(),
        }
    }

    /// A guest that runs.
    pub(super) fn running(&self, guest: usize) -> RunningGuest {
        let mut running = self.guests[guest].running(self.starts[guest]);
        running.hangs = self.sights[guest] == Sight::Hangs;
        running.life = Some(self.life(guest));
        running
    }

    pub(super) fn life(&self, guest: usize) -> GuestLife {
        GuestLife {
            boot_id: format!("boot-{}", self.boot),
            uuid: UUIDS[guest].to_owned(),
            qemu_started_ticks: self.starts[guest],
        }
    }

    pub(super) fn inventory(&self) -> Inventory {
        let mut inventory = Inventory {
            boot_id: format!("boot-{}", self.boot),
            ..Inventory::default()
        };
        for (guest, uuid) in UUIDS.into_iter().enumerate() {
            let uuid = uuid.to_owned();
            match self.sights[guest] {
                Sight::Off => continue,
                Sight::Unlisted => {}
                Sight::Seen | Sight::Hangs => {
                    inventory.guests.insert(uuid.clone(), self.running(guest));
                }
            }
            inventory.qemus.insert((uuid, self.starts[guest]));
        }
        inventory
    }

    /// A guest starts, with what its XML says in force.
    pub(super) fn boot_guest(&mut self, guest: usize) {
        self.starts[guest] += 1;
        self.sights[guest] = Sight::Seen;
        self.guests[guest] = self::guest(guest);
    }

    /// A guest goes on where it was saved: libvirt has set bindings, polling and limits again, and QEMU has
    /// opened the images as the XML says.
    pub(super) fn restore_guest(&mut self, guest: usize) {
        let saved = &self.guests[guest];
        let (cpus, poll_max_ns) = (saved.cpus.borrow().clone(), saved.poll_max_ns.get());
        let throttle = saved.throttle.borrow().clone();
        self.boot_guest(guest);
        let restored = &self.guests[guest];
        restored.is_resumed.set(true);
        *restored.cpus.borrow_mut() = cpus;
        restored.poll_max_ns.set(poll_max_ns);
        *restored.throttle.borrow_mut() = throttle;
    }

    /// libvirt tells of somebody else's change.
    pub(super) fn tell(&self, guest: usize, knob: &Knob, value: &str) {
        let told = TunedByOthers {
            uuid: UUIDS[guest].to_owned(),
            knob: knob.clone(),
            value: value.to_owned(),
        };
        self.guests[guest].tuned_by_others.borrow_mut().push(told);
    }

    /// The host starts, and its guests with the same start ticks as the first time.
    pub(super) fn boot_host(&mut self) {
        self.boot += 1;
        self.starts = [0; GUESTS];
        for guest in 0..GUESTS {
            self.boot_guest(guest);
        }
    }

    pub(super) fn value(&self, guest: usize, knob: &Knob) -> String {
        let host = &self.guests[guest];
        match knob {
            Knob::Channel { .. } => host.cpus.borrow().to_string(),
            Knob::Polling { .. } => host.poll_max_ns.get().to_string(),
            Knob::Cache { .. } => if host.direct.get() { DIRECT } else { BUFFERED }.to_owned(),
            Knob::Histogram { .. } => match &*host.histogram.borrow() {
                None => "absent".to_owned(),
                Some(boundaries) if *boundaries == FOREIGN_BOUNDARIES => FOREIGN.to_owned(),
                Some(_) => "counting".to_owned(),
            },
            Knob::Disk { .. } => host.throttle.borrow().to_string(),
            Knob::Device(_) => unreachable!("{knob} is not a guest's"),
        }
    }

    /// Somebody sets a knob past us.
    pub(super) fn set(&self, guest: usize, knob: &Knob, value: &str) {
        let host = &self.guests[guest];
        match knob {
            Knob::Channel { .. } => *host.cpus.borrow_mut() = value.parse().unwrap(),
            Knob::Polling { .. } => host.poll_max_ns.set(value.parse().unwrap()),
            Knob::Cache { .. } => host.direct.set(value == DIRECT),
            Knob::Histogram { .. } => {
                let boundaries = (value == FOREIGN).then(|| FOREIGN_BOUNDARIES.to_vec());
                *host.histogram.borrow_mut() = boundaries;
            }
            Knob::Disk { .. } => *host.throttle.borrow_mut() = value.parse().unwrap(),
            Knob::Device(_) => unreachable!("{knob} is not a guest's"),
        }
    }

    pub(super) fn take_writes(&self) -> Vec<Write> {
        std::mem::take(&mut *self.writes.borrow_mut())
    }

    /// Nothing goes wrong any more: whatever a guest was told, it answers.
    pub(super) fn calm(&mut self) {
        for guest in 0..GUESTS {
            let host = &self.guests[guest];
            host.fault.set(Fault::None);
            host.lost.set(false);
            host.job.set(false);
            if matches!(self.sights[guest], Sight::Hangs | Sight::Unlisted) {
                self.sights[guest] = Sight::Seen;
            }
        }
    }

    fn at(&self, uuid: &str) -> HostResult<usize> {
        let guest = UUIDS.iter().position(|known| *known == uuid);
        let guest = guest.filter(|guest| self.sights[*guest] != Sight::Off);
        guest.ok_or_else(|| HostError::GuestGone { guest: uuid.into() })
    }

    fn answer<T>(&self, ask: impl FnOnce() -> HostResult<T>) -> HostResult<T> {
        if self.lifeline.is_dead() {
            return Err(dead());
        }
        ask()
    }

    fn write<T>(
        &self,
        guest: usize,
        knob: &Knob,
        act: impl FnOnce() -> HostResult<T>,
    ) -> HostResult<T> {
        if !self.lifeline.spend() {
            return Err(dead());
        }
        let before = self.value(guest, knob);
        let done = act();
        let (knob, after) = (knob.clone(), self.value(guest, knob));
        let write = Write {
            guest,
            knob,
            before,
            after,
        };
        self.writes.borrow_mut().push(write);
        done
    }
}

fn dead() -> HostError {
    HostError::Disconnected {
        uri: "fake".into(),
        message: "the process is dead".into(),
    }
}

impl Hypervisor for World {
    fn guest_stats(&self) -> HostResult<Vec<GuestStats>> {
        let stats = self.guests.iter().map(FakeHypervisor::guest_stats);
        let stats: Vec<Vec<GuestStats>> = stats.collect::<Result<_, _>>()?;
        Ok(stats.into_iter().flatten().collect())
    }

    fn guest_xml(&self, uuid: &str) -> HostResult<String> {
        self.answer(|| self.guests[self.at(uuid)?].guest_xml(uuid))
    }

    fn iothread_cpus(&self, uuid: &str) -> HostResult<Vec<(u32, CpuSet)>> {
        self.answer(|| self.guests[self.at(uuid)?].iothread_cpus(uuid))
    }

    fn pin_iothread(&self, uuid: &str, iothread: u32, cpus: &CpuSet) -> HostResult<()> {
        let guest = self.at(uuid)?;
        let knob = Knob::Channel { iothread };
        self.write(guest, &knob, || {
            self.guests[guest].pin_iothread(uuid, iothread, cpus)
        })
    }

    fn poll_max_ns(&self, uuid: &str, iothread: u32) -> HostResult<Option<u64>> {
        self.answer(|| self.guests[self.at(uuid)?].poll_max_ns(uuid, iothread))
    }

    fn set_poll_max_ns(&self, uuid: &str, iothread: u32, poll_max_ns: u64) -> HostResult<()> {
        let guest = self.at(uuid)?;
        let knob = Knob::Polling { iothread };
        self.write(guest, &knob, || {
            self.guests[guest].set_poll_max_ns(uuid, iothread, poll_max_ns)
        })
    }

    fn throttle(&self, uuid: &str, target: &str) -> HostResult<Throttle> {
        self.answer(|| self.guests[self.at(uuid)?].throttle(uuid, target))
    }

    fn set_throttle(&self, uuid: &str, target: &str, throttle: &Throttle) -> HostResult<()> {
        let guest = self.at(uuid)?;
        let [.., knob] = knobs();
        self.write(guest, &knob, || {
            self.guests[guest].set_throttle(uuid, target, throttle)
        })
    }

    fn monitor(&self, uuid: &str, command: &str) -> HostResult<String> {
        let guest = self.at(uuid)?;
        let [_, _, cache, histogram, _] = knobs();
        let ask = || self.guests[guest].monitor(uuid, command);
        if command.contains("blockdev-reopen") {
            self.write(guest, &cache, ask)
        } else if command.contains("block-latency-histogram-set") {
            self.write(guest, &histogram, ask)
        } else {
            self.answer(ask)
        }
    }

    fn migrates(&self, _uuid: &str) -> HostResult<bool> {
        Ok(false)
    }

    fn job_runs(&self, uuid: &str, target: &str) -> HostResult<bool> {
        self.answer(|| self.guests[self.at(uuid)?].job_runs(uuid, target))
    }

    fn tuned_by_others(&self) -> Vec<TunedByOthers> {
        let told = self.guests.iter();
        told.flat_map(FakeHypervisor::tuned_by_others).collect()
    }

    fn watch_guests(&self, _ring: &Ring) {}
}
