//! What can be set on a host, as a flat list of knobs, and which settings are the same by symmetry.

use blkpilot_env::observation::head_slice;
use blkpilot_env::sim::Scenario;
use blkpilot_env::{EnvSpec, HeadScope, JointAction, Level, MaskReason, Observation};

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
    /// Classes of interchangeable channels, as levels of the channel head.
    classes: Vec<Vec<Level>>,
    /// Index into `classes` by level of the channel head; none for `float`.
    class_of: Vec<Option<usize>>,
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
        // A knob that may not point everywhere tells channels apart.
        let all = obs.channel_count() + 1;
        let is_free = list.iter().all(|k| !k.is_channel || k.levels.len() == all);
        let classes = if is_free {
            interchangeable(scenario)
        } else {
            (1..all).map(|level| vec![level as Level]).collect()
        };
        let mut class_of = vec![None; all];
        for (index, class) in classes.iter().enumerate() {
            for level in class {
                class_of[usize::from(*level)] = Some(index);
            }
        }
        let mut knobs = Self {
            list,
            default: obs.default.clone(),
            default_setting: Box::default(),
            classes,
            class_of,
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

    /// The other levels of the channel head that are the same as `level` by symmetry, and itself.
    #[must_use]
    pub fn equals_of(&self, level: Level) -> Vec<Level> {
        match self.class_of.get(usize::from(level)) {
            Some(Some(class)) => self.classes[*class].clone(),
            _ => vec![level],
        }
    }

    /// The setting that stands for `setting` and all that have the same value by symmetry: knobs of
    /// idle disks stand at their default, and the channels of each class are numbered in the order in
    /// which they are first used.
    #[must_use]
    pub fn canonical(&self, setting: &[Level], is_active: &[bool]) -> Setting {
        let mut names: Vec<Option<Level>> = vec![None; self.class_of.len()];
        let mut used = vec![0; self.classes.len()];
        let mut level_of = |k: usize| {
            if !is_active[k] {
                return self.default_setting[k];
            }
            let level = setting[k];
            let class = self.class_of.get(usize::from(level)).copied().flatten();
            let (true, Some(class)) = (self.list[k].is_channel, class) else {
                return level;
            };
            *names[usize::from(level)].get_or_insert_with(|| {
                used[class] += 1;
                self.classes[class][used[class] - 1]
            })
        };
        (0..setting.len()).map(&mut level_of).collect()
    }

    /// All canonical settings with the given active knobs, or none if there are more than `most`.
    #[must_use]
    pub fn enumerate(&self, is_active: &[bool], most: usize) -> Option<Vec<Setting>> {
        let mut walk = Walk {
            knobs: self,
            is_active,
            most,
            at: self.default_setting.clone(),
            used: vec![0; self.classes.len()],
            found: Vec::new(),
        };
        walk.from(0).then_some(walk.found)
    }

    /// Of all settings that equal `setting` by a permutation of interchangeable channels, the one that
    /// agrees most with `current`, each knob counted with its weight. Knobs of weight 0 keep what
    /// `current` says.
    #[must_use]
    pub fn nearest_image(&self, setting: &[Level], current: &[Level], weights: &[f64]) -> Setting {
        let mut image: Setting = (0..setting.len())
            .map(|k| {
                if weights[k] > 0.0 {
                    setting[k]
                } else {
                    current[k]
                }
            })
            .collect();
        for class in self.classes.iter().filter(|class| class.len() > 1) {
            let channels = (0..setting.len()).filter(|k| {
                self.list[*k].is_channel && weights[*k] > 0.0 && class.contains(&setting[*k])
            });
            let channels: Vec<usize> = channels.collect();
            let renamed = Renaming::best(class, |from, to| {
                let agreeing = channels
                    .iter()
                    .filter(|k| setting[**k] == from && current[**k] == to);
                agreeing.map(|k| weights[*k]).sum()
            });
            for k in channels {
                image[k] = renamed.apply(setting[k]);
            }
        }
        image
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

/// Channels that nothing tells apart: equal models, and no guest's vCPUs pinned to them.
fn interchangeable(scenario: &Scenario) -> Vec<Vec<Level>> {
    let is_pinned = |k: usize| scenario.disks.iter().any(|d| d.vcpu_channel == Some(k));
    let mut classes: Vec<Vec<usize>> = Vec::new();
    for (k, channel) in scenario.channels.iter().enumerate() {
        let same = classes.iter_mut().find(|class| {
            !is_pinned(k) && !is_pinned(class[0]) && scenario.channels[class[0]] == *channel
        });
        match same {
            Some(class) => class.push(k),
            None => classes.push(vec![k]),
        }
    }
    let to_levels = |class: Vec<usize>| class.into_iter().map(|k| k as Level + 1).collect();
    classes.into_iter().map(to_levels).collect()
}

/// Depth-first enumeration of canonical settings.
struct Walk<'a> {
    knobs: &'a Knobs,
    is_active: &'a [bool],
    most: usize,
    at: Setting,
    used: Vec<usize>,
    found: Vec<Setting>,
}

impl Walk<'_> {
    /// Goes on from knob `k`; false once there are too many.
    fn from(&mut self, k: usize) -> bool {
        let Some(knob) = self.knobs.list.get(k) else {
            self.found.push(self.at.clone());
            return self.found.len() <= self.most;
        };
        if !self.is_active[k] {
            return self.from(k + 1);
        }
        for &level in &knob.levels {
            let class = self
                .knobs
                .class_of
                .get(usize::from(level))
                .copied()
                .flatten();
            let fresh = match class.filter(|_| knob.is_channel) {
                None => None,
                Some(class) => {
                    let members = &self.knobs.classes[class];
                    match members.iter().position(|m| *m == level) {
                        Some(index) if index < self.used[class] => None,
                        Some(index) if index == self.used[class] => Some(class),
                        _ => continue,
                    }
                }
            };
            self.at[k] = level;
            if let Some(class) = fresh {
                self.used[class] += 1;
            }
            let goes_on = self.from(k + 1);
            if let Some(class) = fresh {
                self.used[class] -= 1;
            }
            if !goes_on {
                return false;
            }
        }
        true
    }
}

/// An injective renaming of the channels of one class.
struct Renaming<'a> {
    class: &'a [Level],
    /// New place in the class by old place.
    to: Vec<usize>,
}

impl<'a> Renaming<'a> {
    /// The renaming with the greatest sum of `gain(from, to)`: branch and bound, exact.
    fn best(class: &'a [Level], gain: impl Fn(Level, Level) -> f64) -> Self {
        let gains: Vec<Vec<f64>> = class
            .iter()
            .map(|from| class.iter().map(|to| gain(*from, *to)).collect())
            .collect();
        let most = |row: &Vec<f64>| row.iter().copied().fold(0.0, f64::max);
        let mut hopes: Vec<f64> = gains.iter().map(most).collect();
        for i in (1..hopes.len()).rev() {
            hopes[i - 1] += hopes[i];
        }
        hopes.push(0.0);
        let mut search = Assignment {
            gains: &gains,
            hopes: &hopes,
            taken: vec![None; class.len()],
            best: vec![None; class.len()],
            best_gain: -1.0,
        };
        search.from(0, 0.0);
        let to = complete(&search.best);
        Self { class, to }
    }

    fn apply(&self, level: Level) -> Level {
        let place = self.class.iter().position(|member| *member == level);
        place.map_or(level, |i| self.class[self.to[i]])
    }
}

struct Assignment<'a> {
    gains: &'a [Vec<f64>],
    /// Most that rows from i on can still gain.
    hopes: &'a [f64],
    taken: Vec<Option<usize>>,
    best: Vec<Option<usize>>,
    best_gain: f64,
}

impl Assignment<'_> {
    fn from(&mut self, row: usize, gain: f64) {
        if gain + self.hopes[row] <= self.best_gain {
            return;
        }
        if row == self.gains.len() {
            self.best_gain = gain;
            self.best.clone_from(&self.taken);
            return;
        }
        let mut columns: Vec<usize> = (0..self.gains.len())
            .filter(|c| self.gains[row][*c] > 0.0 && !self.taken[..row].contains(&Some(*c)))
            .collect();
        columns.sort_by(|a, b| self.gains[row][*b].total_cmp(&self.gains[row][*a]));
        for column in columns {
            self.taken[row] = Some(column);
            self.from(row + 1, gain + self.gains[row][column]);
        }
        self.taken[row] = None;
        self.from(row + 1, gain);
    }
}

/// Gives each row without a column one that is free, its own if it can.
fn complete(assigned: &[Option<usize>]) -> Vec<usize> {
    let mut free: Vec<usize> = (0..assigned.len())
        .filter(|column| !assigned.contains(&Some(*column)))
        .collect();
    let mut to = Vec::with_capacity(assigned.len());
    for (row, column) in assigned.iter().enumerate() {
        to.push(column.unwrap_or_else(|| {
            let own = free.iter().position(|c| *c == row).unwrap_or(0);
            free.remove(own)
        }));
    }
    to
}

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, ResetOptions, Rng};
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::oracle::search::random_setting;

    fn knobs_of(scenario: &Scenario) -> Knobs {
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

    /// Four disks on float or four equal channels: Σ C(4,k)·B(k) = 1 + 4 + 12 + 20 + 15 = 52 placements
    /// (B the Bell numbers), times 2⁸ for cache and polling.
    #[test]
    fn equal_channels_are_counted_once() {
        let knobs = knobs_of(&presets::identical_disks(4, 4));
        let all = knobs.enumerate(&[true; 12], 100_000).unwrap();
        assert_eq!(all.len(), 52 * 256);
        assert!(
            all.iter()
                .all(|setting| knobs.canonical(setting, &[true; 12]) == *setting)
        );
        assert_eq!(knobs.enumerate(&[true; 12], 52 * 256 - 1), None);
    }

    #[test]
    fn a_channel_with_pinned_vcpus_is_like_no_other() {
        let knobs = knobs_of(&presets::poor_binding());
        assert_eq!(knobs.equals_of(1), [1]);
        assert_eq!(knobs.equals_of(3), [3, 4]);
        assert_eq!(knobs.equals_of(0), [0]);
    }

    #[test]
    fn idle_disks_are_not_enumerated_and_keep_their_default() {
        let knobs = knobs_of(&presets::identical_disks(2, 3));
        let is_active: Vec<bool> = knobs.list().iter().map(|k| k.disks == [1]).collect();
        let all = knobs.enumerate(&is_active, 1000).unwrap();
        assert_eq!(all.len(), 2 * 2 * 2);
        let default = knobs.default_setting();
        assert!(
            all.iter()
                .all(|s| (0..6).all(|k| is_active[k] || s[k] == default[k]))
        );
    }

    /// Against all 24 permutations of four equal channels.
    #[test]
    fn the_nearest_image_is_the_best_permutation() {
        let knobs = knobs_of(&presets::identical_disks(5, 4));
        let permutations = permutations(4);
        let mut rng = Rng::seed_from_u64(2);
        for _ in 0..300 {
            let (setting, current) = (
                random_setting(&knobs, &mut rng),
                random_setting(&knobs, &mut rng),
            );
            let weights: Vec<f64> = (0..setting.len())
                .map(|_| f64::from(rng.random_range(1..4_u8)))
                .collect();
            let agreement = |other: &[Level]| -> f64 {
                let same = (0..setting.len()).filter(|k| other[*k] == current[*k]);
                same.map(|k| weights[k]).sum()
            };
            let image = knobs.nearest_image(&setting, &current, &weights);
            let all = [true; 15];
            assert_eq!(
                knobs.canonical(&image, &all),
                knobs.canonical(&setting, &all)
            );
            let permuted = permutations.iter().map(|to| {
                let level = |k: usize| match setting[k] {
                    level if level > 0 && knobs.list()[k].is_channel => to[usize::from(level) - 1],
                    level => level,
                };
                agreement(&(0..setting.len()).map(level).collect::<Vec<_>>())
            });
            let best = permuted.fold(0.0, f64::max);
            assert_eq!(agreement(&image), best, "{setting:?} from {current:?}");
        }
    }

    fn permutations(n: Level) -> Vec<Vec<Level>> {
        if n == 0 {
            return vec![vec![]];
        }
        let insert = |rest: &Vec<Level>| -> Vec<Vec<Level>> {
            let at = |i: usize| {
                let mut next = rest.clone();
                next.insert(i, n);
                next
            };
            (0..=rest.len()).map(at).collect()
        };
        permutations(n - 1).iter().flat_map(insert).collect()
    }
}
