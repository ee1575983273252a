//! From an action to changes of knobs.

use super::*;
use crate::guest::GuestDisk;

pub(super) struct Planned {
    pub(super) uuid: String,
    pub(super) change: Change,
    pub(super) head: usize,
    pub(super) level: Level,
    /// Rows of the observation that it changes.
    pub(super) rows: Vec<usize>,
}

impl LiveHost {
    /// The changes that an action asks for, one per IOThread for the knobs of an IOThread.
    pub(super) fn plan(&self, observation: &Observation, action: &JointAction) -> Vec<Planned> {
        let mut plan = Vec::new();
        let mut seen = BTreeSet::new();
        for (row, id) in observation.disk_ids.iter().enumerate() {
            let Some((running, target)) = self.find(id).filter(|(running, _)| !running.hangs)
            else {
                continue;
            };
            for head in 0..action.disks.ncols() {
                let level = action.disks[[row, head]];
                if level == observation.current.disks[[row, head]] {
                    continue;
                }
                let Some(change) = self.change(running, target, head, level) else {
                    continue;
                };
                let (knob, _) = change.knob_and_value();
                let ids = disks_of(running, &knob);
                if seen.insert((running.guest.uuid.clone(), knob)) {
                    let shares = |other: &usize| ids.contains(&observation.disk_ids[*other]);
                    let rows = (0..observation.disk_ids.len()).filter(shares).collect();
                    plan.push(Planned {
                        uuid: running.guest.uuid.clone(),
                        change,
                        head,
                        level,
                        rows,
                    });
                }
            }
        }
        plan
    }

    /// Disks that an action would change but whose guest hangs: it is not even asked.
    pub(super) fn hanging(
        &self,
        observation: &Observation,
        action: &JointAction,
    ) -> Vec<(Vec<String>, HostError)> {
        let is_changed = |row: usize| action.disks.row(row) != observation.current.disks.row(row);
        let rows = observation.disk_ids.iter().enumerate();
        let changed = rows.filter(|(row, _)| is_changed(*row));
        let late = changed.filter_map(|(_, id)| {
            let (running, _) = self.find(id).filter(|(running, _)| running.hangs)?;
            let what = format!("guest {}: its monitor", running.guest.name);
            Some((vec![id.clone()], HostError::Late { what }))
        });
        late.collect()
    }

    fn find<'a>(&self, id: &'a str) -> Option<(&RunningGuest, &'a str)> {
        // A guest's name may contain a slash, a target never does.
        let (guest, target) = id.rsplit_once('/')?;
        Some((self.inventory.by_name(guest)?, target))
    }

    /// The change that a level of a head stands for; `None` where there is no such knob.
    fn change(
        &self,
        running: &RunningGuest,
        target: &str,
        head: usize,
        level: Level,
    ) -> Option<Change> {
        let disk = running.guest.disk(target)?;
        let mut levels = [0; 3];
        *levels.get_mut(head)? = level;
        let wanted = DiskSettings::from_levels(levels)?;
        let original = |knob: &Knob| {
            let recorded = self
                .tuner
                .original(running.life.as_ref()?, knob)
                .ok()
                .flatten();
            recorded.or_else(|| running.knobs(&*self.hypervisor).read(knob).ok())
        };
        match head {
            0 => {
                let iothread = disk.iothread?;
                let original = original(&Knob::Channel { iothread })?.parse().ok()?;
                Some(Change::Channel {
                    iothread,
                    cpus: self.channels.cpus_of(level, &original)?,
                })
            }
            1 => Some(Change::Cache {
                target: target.to_owned(),
                cache: wanted.cache,
            }),
            _ => {
                let iothread = disk.iothread?;
                let original = original(&Knob::Polling { iothread })?.parse().unwrap_or(0);
                let adaptive = if original == 0 {
                    ADAPTIVE_POLL_MAX_NS
                } else {
                    original
                };
                let poll_max_ns = if wanted.polling == Polling::Off {
                    0
                } else {
                    adaptive
                };
                Some(Change::Polling {
                    iothread,
                    poll_max_ns,
                })
            }
        }
    }
}

/// Ids of the disks that a knob is about.
pub(super) fn disks_of(running: &RunningGuest, knob: &Knob) -> Vec<String> {
    let concerns = |disk: &&GuestDisk| match knob {
        Knob::Channel { iothread } | Knob::Polling { iothread } => disk.iothread == Some(*iothread),
        Knob::Cache { target } | Knob::Disk { target, .. } => disk.target == *target,
        Knob::Histogram { .. } | Knob::Device(_) => false,
    };
    running
        .guest
        .disks
        .iter()
        .filter(concerns)
        .map(|disk| disk_id(running, &disk.target))
        .collect()
}
