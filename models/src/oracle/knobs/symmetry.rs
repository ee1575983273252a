//! Settings that are the same because channels are.

use blkpilot_env::Level;
use blkpilot_env::sim::Scenario;

use super::renaming::Renaming;
use super::{Knob, Knobs, Setting};

/// Classes of interchangeable channels.
#[derive(Debug, Clone)]
pub(super) struct Classes {
    /// Per class, its channels as levels of the channel head.
    pub(super) members: Vec<Vec<Level>>,
    /// Index into `members` by level of the channel head; none for `float`.
    of_level: Vec<Option<usize>>,
}

impl Classes {
    /// The classes of a host with this many channels and these knobs.
    pub(super) fn of(knobs: &[Knob], channels: usize, scenario: &Scenario) -> Self {
        // A knob that may not point everywhere tells channels apart.
        let all = channels + 1;
        let is_free = knobs.iter().all(|k| !k.is_channel || k.levels.len() == all);
        let members = if is_free {
            interchangeable(scenario)
        } else {
            (1..all).map(|level| vec![level as Level]).collect()
        };
        let mut of_level = vec![None; all];
        for (index, class) in members.iter().enumerate() {
            for level in class {
                of_level[usize::from(*level)] = Some(index);
            }
        }
        Self { members, of_level }
    }

    /// The class of a level of the channel head; none for `float`.
    pub(super) fn of_level(&self, level: Level) -> Option<usize> {
        self.of_level.get(usize::from(level)).copied().flatten()
    }
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

impl Knobs {
    /// The other levels of the channel head that are the same as `level` by symmetry, and itself.
    #[must_use]
    pub fn equals_of(&self, level: Level) -> Vec<Level> {
        match self.classes.of_level(level) {
            Some(class) => self.classes.members[class].clone(),
            None => vec![level],
        }
    }

    /// The setting that stands for `setting` and all that have the same value by symmetry: knobs of
    /// idle disks stand at their default, and the channels of each class are numbered in the order in
    /// which they are first used.
    #[must_use]
    pub fn canonical(&self, setting: &[Level], is_active: &[bool]) -> Setting {
        let mut names: Vec<Option<Level>> = vec![None; self.classes.of_level.len()];
        let mut used = vec![0; self.classes.members.len()];
        let mut level_of = |k: usize| {
            if !is_active[k] {
                return self.default_setting[k];
            }
            let level = setting[k];
            let class = self.classes.of_level(level);
            let (true, Some(class)) = (self.list[k].is_channel, class) else {
                return level;
            };
            *names[usize::from(level)].get_or_insert_with(|| {
                used[class] += 1;
                self.classes.members[class][used[class] - 1]
            })
        };
        (0..setting.len()).map(&mut level_of).collect()
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
        for class in self.classes.members.iter().filter(|class| class.len() > 1) {
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

#[cfg(test)]
mod tests {
    use blkpilot_env::Rng;
    use blkpilot_env::sim::presets;
    use rand::{RngExt as _, SeedableRng as _};

    use super::super::tests::knobs_of;
    use super::*;
    use crate::oracle::search::random_setting;

    #[test]
    fn a_channel_with_pinned_vcpus_is_like_no_other() {
        let knobs = knobs_of(&presets::poor_binding());
        assert_eq!(knobs.equals_of(1), [1]);
        assert_eq!(knobs.equals_of(3), [3, 4]);
        assert_eq!(knobs.equals_of(0), [0]);
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
