//! What can be set on a host, as a flat list of knobs. Which settings are the same is in `symmetry`,
//! all that differ come from `enumeration`.

mod enumeration;
mod renaming;
mod symmetry;

use blkpilot_env::observation::head_slice;
use blkpilot_env::sim::Scenario;
use blkpilot_env::{EnvSpec, HeadScope, JointAction, Level, MaskReason, Observation};

use symmetry::Classes;

/// One level per knob, in the order of [`Knobs::list`].
pub type Setting = Box<[Level]>;

/// One free choice: a head of a disk, of the disks that share an IOThread, or of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knob {
    /// Where its level stands in a joint action.
    pub place: Place,
    /// Levels that may be chosen, at least two.
    pub levels: Vec<Level>,
    /// Disks that it affects, in ascending order.
    pub disks: Vec<usize>,
    /// Whether its levels are channels.
    pub is_channel: bool,
}

/// Where a knob's level stands in a joint action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Column of the disk heads; the rows are the knob's disks.
    Disks {
        /// Index into `EnvSpec::disk_heads`.
        head: usize,
    },
    /// A cell of the device heads.
    Device {
        /// Index into `EnvSpec::device_heads`.
        head: usize,
        /// Row of the device.
        device: usize,
    },
}

/// The knobs of a host.
#[derive(Debug, Clone)]
pub struct Knobs {
    list: Vec<Knob>,
    default: JointAction,
    default_setting: Setting,
    /// Channels that are the same by symmetry.
    classes: Classes,
}

impl Knobs {
    /// The knobs that the masks of `obs`, an observation of `scenario`, leave free.
    #[must_use]
    pub fn new(spec: &EnvSpec, obs: &Observation, scenario: &Scenario) -> Self {
        let mut list = Vec::new();
        for head in 0..spec.disk_heads.len() {
            for disks in tied(spec.disk_heads[head].scope, obs) {
                list.extend(disk_knob(spec, obs, head, disks));
            }
        }
        for head in 0..spec.device_heads.len() {
            list.extend((0..obs.device_count()).filter_map(|d| device_knob(spec, obs, head, d)));
        }
        let classes = Classes::of(&list, obs.channel_count(), scenario);
        let mut knobs = Self {
            list,
            default: obs.default.clone(),
            default_setting: Box::default(),
            classes,
        };
        knobs.default_setting = knobs.read(&obs.default);
        knobs
    }

    /// The knobs, in the order of a [`Setting`].
    #[must_use]
    pub fn list(&self) -> &[Knob] {
        &self.list
    }

    /// The setting of keep-default.
    #[must_use]
    pub fn default_setting(&self) -> &Setting {
        &self.default_setting
    }

    /// The setting that stands in a joint action.
    #[must_use]
    pub fn read(&self, action: &JointAction) -> Setting {
        self.list
            .iter()
            .map(|knob| match knob.place {
                Place::Disks { head } => action.disks[[knob.disks[0], head]],
                Place::Device { head, device } => action.devices[[device, head]],
            })
            .collect()
    }

    /// The joint action of a setting; what is not free keeps its default.
    #[must_use]
    pub fn write(&self, setting: &[Level]) -> JointAction {
        let mut action = self.default.clone();
        for (knob, level) in self.list.iter().zip(setting) {
            match knob.place {
                Place::Disks { head } => {
                    for disk in &knob.disks {
                        action.disks[[*disk, head]] = *level;
                    }
                }
                Place::Device { head, device } => action.devices[[device, head]] = *level,
            }
        }
        action
    }
}

/// The sets of disks that share one choice of a head.
fn tied(scope: HeadScope, obs: &Observation) -> Vec<Vec<usize>> {
    let mut sets: Vec<Vec<usize>> = Vec::new();
    for disk in 0..obs.disk_count() {
        let group = obs.disk_group[disk];
        let shared = sets.iter_mut().find(|set| {
            scope == HeadScope::IoThread && group.is_some() && obs.disk_group[set[0]] == group
        });
        match shared {
            Some(set) => set.push(disk),
            None => sets.push(vec![disk]),
        }
    }
    sets
}

fn disk_knob(spec: &EnvSpec, obs: &Observation, head: usize, disks: Vec<usize>) -> Option<Knob> {
    let channels = obs.channel_count();
    let mask = |disk: usize| {
        let row = obs.masks.disks.row(disk).to_slice()?;
        Some(head_slice(&spec.disk_heads, channels, row, head).to_vec())
    };
    let masks: Vec<Vec<MaskReason>> = disks.iter().filter_map(|disk| mask(*disk)).collect();
    let levels = free_levels(&masks)?;
    Some(Knob {
        place: Place::Disks { head },
        levels,
        disks,
        is_channel: spec.disk_heads[head].is_pointer(),
    })
}

fn device_knob(spec: &EnvSpec, obs: &Observation, head: usize, device: usize) -> Option<Knob> {
    let row = obs.masks.devices.row(device);
    let mask = head_slice(
        &spec.device_heads,
        obs.channel_count(),
        row.to_slice()?,
        head,
    );
    let levels = free_levels(&[mask.to_vec()])?;
    let disks = (0..obs.disk_count()).filter(|disk| obs.disk_device[*disk] == device);
    Some(Knob {
        place: Place::Device { head, device },
        levels,
        disks: disks.collect(),
        is_channel: false,
    })
}

/// The levels that all masks allow, if there is a choice.
fn free_levels(masks: &[Vec<MaskReason>]) -> Option<Vec<Level>> {
    let count = masks.first()?.len();
    let is_free = |level: &usize| masks.iter().all(|mask| mask[*level].is_allowed());
    let levels: Vec<Level> = (0..count).filter(is_free).map(|l| l as Level).collect();
    (levels.len() > 1).then_some(levels)
}

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, ResetOptions, Rng};
    use rand::SeedableRng as _;

    use super::*;
    use crate::oracle::search::random_setting;

    pub(super) fn knobs_of(scenario: &Scenario) -> Knobs {
        let mut host = SimHost::fixed(scenario.clone()).unwrap();
        let obs = host.reset(Some(1), &ResetOptions::new()).unwrap();
        Knobs::new(host.spec(), &obs, scenario)
    }

    #[test]
    fn a_setting_survives_the_way_through_a_joint_action() {
        let mut scenario = presets::noisy_neighbour();
        scenario.disks[1].iothread = scenario.disks[0].iothread;
        let knobs = knobs_of(&scenario);
        // One IOThread: channel and polling tied, cache for each; one scheduler.
        assert_eq!(knobs.list().len(), 1 + 2 + 1 + 1);
        let mut rng = Rng::seed_from_u64(1);
        for _ in 0..50 {
            let setting = random_setting(&knobs, &mut rng);
            assert_eq!(knobs.read(&knobs.write(&setting)), setting);
        }
    }

    #[test]
    fn a_disk_without_an_iothread_has_only_its_cache() {
        let mut scenario = presets::identical_disks(1, 2);
        scenario.disks[0].iothread = None;
        assert_eq!(knobs_of(&scenario).list().len(), 1);
    }
}
