//! Settings of the host's block devices: each change is a trial over all disks of the device.
//!
//! The disks are judged by their latency as in [`super::trial`], with the disks of other devices as
//! controls. A disk that waits longer for the same requests has fewer of them per second by Little's law,
//! so that IOPS tell nothing more, and one of which less is asked is not harmed.

use std::collections::BTreeMap;

use super::Harm;
use super::objective::ObjectiveWatch;
use super::stall::StallWatch;
use super::trial::{Levels, TrialConfig, TrialWatch};
use crate::window::HostWindow;

/// A device of which a setting must go back.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceIntervention {
    /// Its kernel name.
    pub device: String,
    /// The disk that got worse, `guest/target`.
    pub disk: String,
    /// How.
    pub harm: Harm,
}

/// The trials of one host's devices.
#[derive(Debug)]
pub struct DeviceWatch {
    trials: TrialWatch,
    stalls: StallWatch,
    no_objective: ObjectiveWatch,
    /// Device of each disk, as the last window showed it.
    device_of: BTreeMap<String, String>,
    /// The disks that are judged, by device.
    on_trial: BTreeMap<String, Vec<String>>,
}

impl DeviceWatch {
    /// Nothing seen yet. An objective is the business of the trials of disks.
    #[must_use]
    pub fn new(config: TrialConfig, stall_windows: u32) -> Self {
        Self {
            stalls: StallWatch::new(stall_windows),
            trials: TrialWatch::new(TrialConfig {
                p99_objective_us: None,
                ..config
            }),
            no_objective: ObjectiveWatch::new(None),
            device_of: BTreeMap::new(),
            on_trial: BTreeMap::new(),
        }
    }

    /// What is known stays; from now on it is judged by this.
    pub(super) fn set_config(&mut self, config: TrialConfig, stall_windows: u32) {
        self.stalls.set(stall_windows);
        self.trials.set_config(TrialConfig {
            p99_objective_us: None,
            ..config
        });
    }

    /// Whether a setting of a device is still being judged.
    #[must_use]
    pub fn is_on_trial(&self, device: &str) -> bool {
        self.on_trial.contains_key(device)
    }

    /// Whether one of the device that a disk lies on is.
    #[must_use]
    pub fn is_judged_by(&self, disk: &str) -> bool {
        let mut disks = self.on_trial.values().flatten();
        disks.any(|judged| judged == disk)
    }

    /// The disks of a device, as the last window showed them.
    pub fn disks_of(&self, device: &str) -> impl Iterator<Item = &String> {
        let of = self.device_of.iter();
        of.filter(move |(_, on)| *on == device)
            .map(|(disk, _)| disk)
    }

    /// A setting of a device has been changed. One that no disk lies on is not judged.
    pub fn begin(&mut self, device: &str) {
        let disks: Vec<String> = self.disks_of(device).cloned().collect();
        for disk in &disks {
            self.trials.begin(disk, no_levels(), false);
        }
        if !disks.is_empty() {
            self.on_trial.insert(device.to_owned(), disks);
        }
    }

    /// A setting has gone back, or stays whatever it brings.
    pub fn end(&mut self, device: &str) {
        for disk in self.on_trial.remove(device).into_iter().flatten() {
            self.trials.end(&disk, &[], &self.no_objective);
        }
    }

    /// The settings of a disk were changed: what it was like before is no measure of its device.
    pub fn disk_changed(&mut self, disk: &str) {
        self.trials.forget_windows(disk);
    }

    /// Takes a window, and names the devices of which a disk got worse.
    pub fn observe(&mut self, window: &HostWindow) -> Vec<DeviceIntervention> {
        let named = window.disks.iter().filter_map(|row| {
            let device = window.devices.get(row.device)?;
            Some((row.id.clone(), device.id.clone()))
        });
        self.device_of = named.collect();
        let harmed = self.trials.observe(window, &self.no_objective);
        let harmed = harmed.into_iter().map(|named| (named.disk, named.harm));
        let stalled = self.stalls.observe(window).into_iter();
        let stalled = stalled.map(|(disk, windows)| (disk, Harm::Stall { windows }));
        let harmed: Vec<(String, Harm)> = harmed.chain(stalled).collect();
        let trials = &self.trials;
        self.on_trial.retain(|_, disks| {
            disks.retain(|disk| trials.is_on_trial(disk));
            !disks.is_empty()
        });
        let of = |device: &String, disks: &[String]| {
            let (disk, harm) = harmed.iter().find(|(disk, _)| disks.contains(disk))?;
            Some(DeviceIntervention {
                device: device.clone(),
                disk: disk.clone(),
                harm: harm.clone(),
            })
        };
        let devices = self.on_trial.iter();
        devices
            .filter_map(|(device, disks)| of(device, disks))
            .collect()
    }
}

/// A trial of a device changes no level of a disk.
fn no_levels() -> Levels {
    Levels {
        before: vec![],
        now: vec![],
        default: vec![],
    }
}
