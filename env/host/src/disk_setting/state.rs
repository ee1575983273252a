//! How the disks stand of which some setting may be changed, or is.

use super::{DiskBounds, DiskSetting};
use crate::error::HostResult;
use crate::hypervisor::Hypervisor;
use crate::inventory::{Inventory, RunningGuest};
use crate::journal::Record;
use crate::knob::{Knob, Purpose};
use crate::settable::Settable as _;
use crate::tuner::Tuner;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskState {
    /// Name of the guest.
    pub guest: String,
    /// Target, such as `vda`.
    pub target: String,
    /// Its settings; those that its guest has not opted in to are left out unless they are changed.
    pub settings: Vec<DiskSettingState>,
}

/// One setting of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSettingState {
    /// Which.
    pub setting: DiskSetting,
    /// What is in force, or why that is not known.
    pub current: Result<String, String>,
    /// Whether it may be changed.
    pub is_enabled: bool,
    /// What it may be set to, in words.
    pub values: String,
    /// What is journalled of it; `None` where we have not changed it.
    pub record: Option<Record>,
}

/// What the states are read from.
pub(crate) struct Sources<'a> {
    pub(crate) hypervisor: &'a dyn Hypervisor,
    pub(crate) inventory: &'a Inventory,
    pub(crate) tuner: &'a Tuner,
    pub(crate) bounds: &'a DiskBounds,
}

impl Sources<'_> {
    /// Reads them; a guest that does not answer is not asked.
    ///
    /// # Errors
    /// `Journal`.
    pub(crate) fn read(&self) -> HostResult<Vec<DiskState>> {
        let mut disks = Vec::new();
        for running in self.inventory.guests.values() {
            for disk in &running.guest.disks {
                let settings = DiskSetting::ALL.into_iter();
                let settings = settings
                    .filter_map(|setting| self.setting(running, &disk.target, setting).transpose())
                    .collect::<HostResult<Vec<_>>>()?;
                if !settings.is_empty() {
                    disks.push(DiskState {
                        guest: running.guest.name.clone(),
                        target: disk.target.clone(),
                        settings,
                    });
                }
            }
        }
        disks.sort_by(|a, b| (&a.guest, &a.target).cmp(&(&b.guest, &b.target)));
        Ok(disks)
    }

    fn setting(
        &self,
        running: &RunningGuest,
        target: &str,
        setting: DiskSetting,
    ) -> HostResult<Option<DiskSettingState>> {
        let knob = Knob::Disk {
            target: target.to_owned(),
            setting,
        };
        let life = running.life.clone().map(crate::journal::Life::Guest);
        let record = match &life {
            Some(life) => self.tuner.record(life, &knob)?,
            None => None,
        };
        let is_enabled = running.guest.allows(setting.kind()) && life.is_some();
        if !is_enabled && record.is_none() {
            return Ok(None);
        }
        let io = running.knobs_to(Purpose::Restore, self.hypervisor);
        let current = if running.hangs {
            Err("its monitor does not answer".to_owned())
        } else {
            match &record {
                Some(record) if !knob.is_reported() => Ok(record.value.clone()),
                _ => io.read(&knob).map_err(|error| error.to_string()),
            }
        };
        if current.is_err() && record.is_none() && !running.hangs {
            // A raw image has no such caches.
            return Ok(None);
        }
        let values = match setting {
            DiskSetting::Throttle => self.bounds.throttle.to_string(),
            DiskSetting::Qcow2Cache => {
                let node = (!running.hangs)
                    .then(|| io.format_node(target).ok())
                    .flatten();
                node.map_or_else(String::new, |node| {
                    self.bounds.qcow2_cache.within(&node.tables)
                })
            }
        };
        Ok(Some(DiskSettingState {
            setting,
            current,
            is_enabled,
            values,
            record,
        }))
    }
}
