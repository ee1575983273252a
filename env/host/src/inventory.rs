//! The guests that run on this host now, with what is needed to read and change them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::device::{Device, Devices};
use crate::error::{HostError, HostResult};
use crate::guest::{Guest, GuestOverride, TuningMode};
use crate::hypervisor::Hypervisor;
use crate::journal::{DeviceLife, GuestLife, Life};
use crate::knob::{KnobIo, Purpose};
use crate::process::{QemuProcess, find_qemus};
use crate::qmp::NodeOptions;
use crate::stats::GuestStats;

/// A running guest.
#[derive(Debug, Clone)]
pub struct RunningGuest {
    /// What its XML says.
    pub guest: Guest,
    /// Its QEMU; `None` when no process names its UUID, and then nothing of it is changed.
    pub process: Option<QemuProcess>,
    /// Which life of it this is; `None` like `process`.
    pub life: Option<GuestLife>,
    /// Its block nodes as QEMU was started with.
    pub nodes: NodeOptions,
    /// Whether this life goes on with what was saved of another: see [`QemuProcess::is_resumed`].
    pub is_resumed: bool,
    /// Whether its monitor does not answer now: then nothing of it is changed, since the call might
    /// never return.
    pub hangs: bool,
}

/// What the service's configuration says of the guests.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestRules {
    /// Mode of guests that opted in without one.
    pub default_mode: TuningMode,
    /// What is said of single guests, by name.
    pub guests: BTreeMap<String, GuestOverride>,
}

impl Default for GuestRules {
    fn default() -> Self {
        Self {
            default_mode: TuningMode::Advise,
            guests: BTreeMap::new(),
        }
    }
}

/// All running guests by UUID.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// The kernel's boot id.
    pub boot_id: String,
    /// The guests.
    pub guests: BTreeMap<String, RunningGuest>,
    /// Guests that cannot be told apart or whose XML could not be understood, with the reason: they
    /// are left alone.
    pub unreadable: BTreeMap<String, String>,
    /// UUID and start of every QEMU process that was found, in clock ticks since boot.
    pub qemus: BTreeSet<(String, u64)>,
    /// The block devices of the host.
    pub devices: Devices,
    /// Target and image of each guest's disks, as the statistics had them.
    pub(crate) disks: BTreeMap<String, Vec<(String, Option<String>)>>,
}

impl Inventory {
    /// Reads the inventory. `proc_root` is `/proc`; `devices` are the block devices of the host.
    ///
    /// # Errors
    /// `Disconnected`; `Io` when the boot id cannot be read.
    pub fn read(
        hypervisor: &dyn Hypervisor,
        proc_root: &Path,
        stats: &[GuestStats],
        rules: &GuestRules,
        devices: &Devices,
    ) -> HostResult<Self> {
        let boot_id_path = proc_root.join("sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(&boot_id_path)
            .map_err(HostError::io(&boot_id_path))?
            .trim()
            .to_owned();
        let processes = find_qemus(proc_root)?;
        let started = processes.iter().flat_map(|(uuid, all)| {
            let start = |process: &QemuProcess| (uuid.clone(), process.started_ticks);
            all.iter().map(start)
        });
        let mut inventory = Self {
            boot_id,
            qemus: started.collect(),
            devices: devices.clone(),
            disks: stats.iter().map(disks_of).collect(),
            ..Self::default()
        };
        for GuestStats { uuid, .. } in stats {
            let process = match processes.get(uuid).map(Vec::as_slice) {
                Some([process]) => Some(process),
                None | Some([]) => None,
                Some(several) => {
                    let pids: Vec<_> = several.iter().map(|p| p.pid.to_string()).collect();
                    let problem = format!("processes {} all name this UUID", pids.join(", "));
                    inventory.unreadable.insert(uuid.clone(), problem);
                    continue;
                }
            };
            match hypervisor
                .guest_xml(uuid)
                .and_then(|xml| Guest::from_xml(&xml))
            {
                Ok(guest) => inventory.add(guest, process, rules),
                Err(HostError::GuestGone { .. }) => {}
                Err(error @ HostError::Disconnected { .. }) => return Err(error),
                Err(error) => {
                    inventory.unreadable.insert(uuid.clone(), error.to_string());
                }
            }
        }
        Ok(inventory)
    }

    fn add(&mut self, mut guest: Guest, process: Option<&QemuProcess>, rules: &GuestRules) {
        let said = rules.guests.get(&guest.name).cloned().unwrap_or_default();
        guest.opt_in = said.settle(guest.opt_in.as_ref(), rules.default_mode);
        let life = process.map(|process| GuestLife {
            boot_id: self.boot_id.clone(),
            uuid: guest.uuid.clone(),
            qemu_started_ticks: process.started_ticks,
        });
        let nodes = process
            .and_then(|process| process.node_options().ok())
            .unwrap_or_default();
        let is_resumed = process.is_some_and(|process| process.is_resumed().unwrap_or(false));
        self.guests.insert(
            guest.uuid.clone(),
            RunningGuest {
                guest,
                process: process.cloned(),
                life,
                nodes,
                is_resumed,
                hangs: false,
            },
        );
    }

    /// The life of a block device: it lasts until the next boot.
    #[must_use]
    pub fn life_of(&self, device: &Device) -> Life {
        Life::Device(DeviceLife {
            boot_id: self.boot_id.clone(),
            id: device.id.clone(),
        })
    }

    /// Whether a life of a guest is surely over: the host has booted since, or its QEMU was looked
    /// for and not found, though one of its UUID would have been if libvirt says that one runs.
    #[must_use]
    pub fn has_ended(&self, life: &GuestLife) -> bool {
        if life.boot_id != self.boot_id {
            return true;
        }
        let mut starts = self.qemus.iter().filter(|(uuid, _)| *uuid == life.uuid);
        let is_listed =
            self.guests.contains_key(&life.uuid) || self.unreadable.contains_key(&life.uuid);
        let is_hidden = is_listed && starts.clone().next().is_none();
        !is_hidden && starts.all(|(_, start)| *start != life.qemu_started_ticks)
    }

    /// Whether the inventory is still that of these guests: same UUIDs, same QEMUs, same disks with the
    /// same images, which a snapshot or a finished job changes.
    #[must_use]
    pub fn is_current(&self, stats: &[GuestStats]) -> bool {
        let now: BTreeSet<&str> = stats.iter().map(|stats| stats.uuid.as_str()).collect();
        let known = self
            .guests
            .keys()
            .chain(self.unreadable.keys())
            .map(String::as_str)
            .collect();
        let alive =
            |guest: &RunningGuest| guest.process.as_ref().is_some_and(QemuProcess::is_alive);
        let same_disks = |stats: &GuestStats| {
            let (uuid, disks) = disks_of(stats);
            let known = self.disks.get(&uuid).filter(|known| !known.is_empty());
            // None are told of a guest that is busy.
            disks.is_empty() || known.is_none_or(|known| *known == disks)
        };
        now == known && self.guests.values().all(alive) && stats.iter().all(same_disks)
    }

    /// The guest of this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&RunningGuest> {
        self.guests
            .values()
            .find(|running| running.guest.name == name)
    }
}

fn disks_of(stats: &GuestStats) -> (String, Vec<(String, Option<String>)>) {
    let disks = stats.disks.iter();
    let disks = disks.map(|disk| (disk.target.clone(), disk.source.clone()));
    (stats.uuid.clone(), disks.collect())
}

impl RunningGuest {
    /// Access to its knobs, as far as it has opted in.
    #[must_use]
    pub fn knobs<'a>(&'a self, hypervisor: &'a dyn Hypervisor) -> KnobIo<'a> {
        self.knobs_to(Purpose::Tune, hypervisor)
    }

    /// Access to its knobs, to tune it or to put back what is journalled as ours.
    pub(crate) fn knobs_to<'a>(
        &'a self,
        purpose: Purpose,
        hypervisor: &'a dyn Hypervisor,
    ) -> KnobIo<'a> {
        KnobIo {
            hypervisor,
            guest: &self.guest,
            nodes: &self.nodes,
            purpose,
        }
    }
}
