//! All settings of a host that differ by more than a symmetry.

use super::{Knobs, Setting};

impl Knobs {
    /// All canonical settings with the given active knobs, or none if there are more than `most`.
    #[must_use]
    pub fn enumerate(&self, is_active: &[bool], most: usize) -> Option<Vec<Setting>> {
        let mut walk = Walk {
            knobs: self,
            is_active,
            most,
            at: self.default_setting.clone(),
            used: vec![0; self.classes.members.len()],
            found: Vec::new(),
        };
        walk.from(0).then_some(walk.found)
    }
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
            let class = self.knobs.classes.of_level(level);
            let fresh = match class.filter(|_| knob.is_channel) {
                None => None,
                Some(class) => {
                    let members = &self.knobs.classes.members[class];
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

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::presets;

    use super::super::tests::knobs_of;

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
}
