//! Settings of guests' disks that are no heads, and limits that the guard has set.

use std::fs;

use blkpilot_host::disk_setting::{DiskSetting, DiskState};
use blkpilot_host::tuner::Settlement;
use serde_json::{Value, json};

use super::{LibvirtHost, unavailable};
use crate::backend::{BackendError, DiskAction, DiskName, GuardLimits, Planned};
use crate::durable;
use blkpilot_host::HostError;
use blkpilot_host::guest::KnobKind;
use blkpilot_host::journal::{Life, Record, RecordState};
use blkpilot_host::knob::Knob as HostKnob;

/// The limits that a guard has set, in a file: whoever opens the host next lifts them, since nobody
/// watches any more whether they are needed.
#[derive(Debug)]
pub(super) struct GuardFile {
    path: std::path::PathBuf,
    limits: Vec<GuardLimit>,
    /// Those of a guard before this one, to be lifted.
    left: Vec<GuardLimit>,
}

#[derive(Debug, Clone, PartialEq)]
struct GuardLimit {
    disk: DiskName,
    reason: String,
}

impl GuardFile {
    /// The file in this data directory; what stands in it is of a guard before this one.
    pub(super) fn open(data_dir: &std::path::Path) -> Self {
        let path = data_dir.join("guard-limits.json");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let listed: Value = serde_json::from_str(&text).unwrap_or_default();
        let limit = |entry: &Value| {
            let field = |key: &str| Some(entry.get(key)?.as_str()?.to_owned());
            Some(GuardLimit {
                disk: DiskName {
                    guest: field("guest")?,
                    target: field("target")?,
                },
                reason: field("reason").unwrap_or_default(),
            })
        };
        let listed = listed.as_array().map_or(&[][..], Vec::as_slice);
        Self {
            path,
            limits: vec![],
            left: listed.iter().filter_map(limit).collect(),
        }
    }

    /// On stable storage before the limit is set.
    fn note(&mut self, disk: &DiskName, reason: &str) -> Result<(), BackendError> {
        self.limits.retain(|known| known.disk != *disk);
        self.limits.push(GuardLimit {
            disk: disk.clone(),
            reason: reason.to_owned(),
        });
        self.write()
    }

    /// Somebody else's from now on, or lifted. That it stands in the file still does no harm: a limit that
    /// is not in the journal is not lifted.
    fn forget(&mut self, disk: &DiskName) {
        self.limits.retain(|known| known.disk != *disk);
        self.left.retain(|known| known.disk != *disk);
        if let Err(error) = self.write() {
            tracing::warn!(%error, "the guard's limits are not noted");
        }
    }

    fn write(&self) -> Result<(), BackendError> {
        let entry = |limit: &GuardLimit| {
            json!({
                "guest": limit.disk.guest,
                "target": limit.disk.target,
                "reason": limit.reason,
            })
        };
        let entries: Vec<Value> = self.limits.iter().chain(&self.left).map(entry).collect();
        let written = durable::replace(&self.path, json!(entries).to_string().as_bytes());
        written.map_err(|error| {
            let path = self.path.display();
            BackendError::Unavailable(format!(
                "{path}: {error}; without it no neighbour is limited"
            ))
        })
    }
}

impl LibvirtHost {
    pub(super) fn disk_states(&self) -> Result<Vec<DiskState>, BackendError> {
        self.host.disks().map_err(|e| unavailable(&e))
    }

    pub(super) fn change_disk_settings(
        &mut self,
        disk: &DiskName,
        action: &DiskAction,
    ) -> Result<Vec<Planned>, BackendError> {
        let DiskName { guest, target } = disk;
        match action {
            DiskAction::Check(changes) => {
                let check = |change: &blkpilot_host::DiskChange| {
                    let (_, value) = self.host.check_disk(guest, target, change)?;
                    let setting = change.setting;
                    Ok(Planned { setting, value })
                };
                let planned = changes.iter().map(check);
                planned
                    .collect::<Result<_, HostError>>()
                    .map_err(|e| unavailable(&e))
            }
            DiskAction::Set(changes) => {
                for change in changes {
                    let applied = self.host.apply_to_disk(guest, target, change);
                    applied.map_err(|e| unavailable(&e))?;
                    if change.setting == DiskSetting::Throttle {
                        self.guard.forget(disk);
                    }
                }
                Ok(vec![])
            }
            DiskAction::Limit { change, reason } => {
                self.guard.note(disk, reason)?;
                let applied = self.host.apply_to_disk(guest, target, change);
                applied.map_err(|e| unavailable(&e))?;
                Ok(vec![])
            }
            DiskAction::Lift => self.lift(disk).map(|()| vec![]),
            DiskAction::PutBack => {
                let outcomes = self.host.rollback_disk(guest, target);
                let outcomes = outcomes.map_err(|e| unavailable(&e))?;
                match self.failures(&outcomes) {
                    left if left.is_empty() => {
                        self.guard.forget(disk);
                        Ok(vec![])
                    }
                    left => Err(BackendError::Unavailable(left.join("; "))),
                }
            }
        }
    }

    fn lift(&mut self, disk: &DiskName) -> Result<(), BackendError> {
        let outcomes = self
            .host
            .rollback_disk_setting(&disk.guest, &disk.target, DiskSetting::Throttle)
            .map_err(|e| unavailable(&e))?;
        let failed = outcomes.iter().any(|outcome| {
            // What somebody else has set since is theirs.
            matches!(outcome.result, Settlement::Failed { .. })
        });
        if failed {
            return Err(BackendError::Unavailable(
                self.failures(&outcomes).join("; "),
            ));
        }
        self.guard.forget(disk);
        Ok(())
    }

    /// Lifts what a guard before this one has limited. What cannot be lifted now is tried again.
    pub(super) fn lift_what_was_left(&mut self) {
        for GuardLimit { disk, reason } in self.guard.left.clone() {
            if self.host.inventory().by_name(&disk.guest).is_none() {
                // One that is saved comes back with its limits, and its records wait for it.
                if !self.is_journalled(&disk) {
                    self.guard.forget(&disk);
                }
                continue;
            }
            match self.lift(&disk) {
                Ok(()) => {
                    tracing::info!(%disk, reason, "lifted: nobody has watched this limit since the service stopped");
                }
                Err(error) => {
                    tracing::warn!(%disk, %error, "limited by a guard that has ended, and not lifted");
                }
            }
        }
    }

    fn is_journalled(&self, disk: &DiskName) -> bool {
        let records = self.host.records().unwrap_or_default();
        records
            .iter()
            .any(|record| record.name == disk.guest && is_throttle(&record.knob, &disk.target))
    }

    pub(super) fn guard_limits(&self) -> GuardLimits {
        let records = self.host.records().unwrap_or_default();
        let mut limits = GuardLimits::default();
        for running in self.host.inventory().guests.values() {
            let life = running.life.clone().map(Life::Guest);
            for disk in &running.guest.disks {
                let name = DiskName {
                    guest: running.guest.name.clone(),
                    target: disk.target.clone(),
                };
                let known = self.guard.limits.iter().find(|limit| limit.disk == name);
                let is_its = |record: &&Record| {
                    is_throttle(&record.knob, &disk.target) && Some(&record.life) == life.as_ref()
                };
                let record = records.iter().find(is_its);
                let is_ours = record
                    .is_some_and(|record| record.state != RecordState::Frozen)
                    .then_some(known)
                    .flatten();
                let is_free = record.is_none() && disk.throttle.is_none();
                let is_willing = running.guest.allows(KnobKind::Throttle);
                if is_willing && life.is_some() && !running.hangs && (is_free || is_ours.is_some())
                {
                    limits.may_limit.insert(name.to_string());
                }
                if let Some(limit) = is_ours {
                    limits
                        .limited
                        .insert(name.to_string(), limit.reason.clone());
                }
            }
        }
        limits
    }
}

fn is_throttle(knob: &HostKnob, of: &str) -> bool {
    matches!(knob, HostKnob::Disk { target, setting: DiskSetting::Throttle } if target == of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(guest: &str) -> DiskName {
        let (guest, target) = (guest.to_owned(), "vda".to_owned());
        DiskName { guest, target }
    }

    #[test]
    fn what_a_guard_has_limited_is_known_to_the_next_until_it_is_lifted() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = GuardFile::open(dir.path());
        assert_eq!(first.left, []);
        first.note(&disk("web"), "p99 of db/vda").unwrap();
        first.note(&disk("a/b"), "the same").unwrap();
        first.note(&disk("web"), "again").unwrap();
        let mut second = GuardFile::open(dir.path());
        let names: Vec<String> = second.left.iter().map(|l| l.disk.to_string()).collect();
        assert_eq!(names, ["a/b/vda", "web/vda"]);
        assert_eq!(second.left[1].reason, "again");
        second.forget(&disk("web"));
        second.note(&disk("new"), "another").unwrap();
        let third = GuardFile::open(dir.path());
        let names: Vec<String> = third.left.iter().map(|l| l.disk.to_string()).collect();
        assert_eq!(names, ["new/vda", "a/b/vda"]);
    }

    #[test]
    fn a_file_that_cannot_be_written_lets_nothing_be_limited() {
        let dir = tempfile::tempdir().unwrap();
        let mut guard = GuardFile::open(&dir.path().join("missing"));
        let refused = guard.note(&disk("web"), "why").unwrap_err().to_string();
        assert!(refused.contains("no neighbour is limited"), "{refused}");
    }
}
