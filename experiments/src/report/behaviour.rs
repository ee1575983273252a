//! What a policy does where: per head, how often each level is chosen, by what the disk looks like.

use blkpilot_env::{EnvSpec, Feature, Head, Observation, Turn};
use blkpilot_models::policy::Decision;

use crate::statistics::quantile;

/// Features that tell most of a disk on a host, and of its device; where the environment has none of them, the first
/// few of a disk.
const DISK_FEATURES: [&str; 5] = [
    "queue_depth",
    "cpu_load",
    "hit_rate",
    "read_share",
    "request_kib",
];
const DEVICE_FEATURES: [&str; 2] = ["is_rotational", "reference_us"];
const FEW: usize = 4;

/// Choices of all episodes.
#[derive(Debug)]
pub struct Recorded {
    disk_columns: Vec<usize>,
    device_columns: Vec<usize>,
    features: Vec<Feature>,
    heads: Vec<RecordedHead>,
}

#[derive(Debug)]
struct RecordedHead {
    head: Head,
    is_of_devices: bool,
    levels: Vec<String>,
    /// Features of the one that chose, and the level.
    choices: Vec<(Vec<f32>, usize)>,
}

/// How often what was chosen, for one head.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadBehaviour {
    /// Name of the head.
    pub head: String,
    /// Names of the levels.
    pub levels: Vec<String>,
    /// Choices that were free.
    pub choices: usize,
    /// Share of each level among all of them.
    pub shares: Vec<f64>,
    /// The same by feature.
    pub features: Vec<FeatureBehaviour>,
}

/// How often what was chosen, by a feature.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureBehaviour {
    /// Name of the feature.
    pub feature: String,
    /// What it is.
    pub doc: String,
    /// By range of the feature.
    pub bins: Vec<Bin>,
}

/// Choices where a feature is in a range.
#[derive(Debug, Clone, PartialEq)]
pub struct Bin {
    /// Least and greatest value in it.
    pub range: [f32; 2],
    /// Number of choices.
    pub choices: usize,
    /// Share of each level.
    pub shares: Vec<f64>,
}

/// Of all heads that ever had a choice.
pub type Behaviour = Vec<HeadBehaviour>;

impl Recorded {
    /// Nothing yet.
    #[must_use]
    pub fn new(spec: &EnvSpec) -> Self {
        let columns = |features: &[Feature], names: &[&str]| -> Vec<usize> {
            let place = |name: &&str| features.iter().position(|own| own.name == **name);
            names.iter().filter_map(place).collect()
        };
        let mut disk_columns = columns(&spec.disk_features, &DISK_FEATURES);
        if disk_columns.is_empty() {
            disk_columns = (0..spec.disk_features.len().min(FEW)).collect();
        }
        let device_columns = columns(&spec.device_features, &DEVICE_FEATURES);
        let disk = disk_columns
            .iter()
            .map(|column| &spec.disk_features[*column]);
        let device = device_columns
            .iter()
            .map(|column| &spec.device_features[*column]);
        let features = disk.chain(device).cloned().collect();
        let heads = |heads: &[Head], is_of_devices| -> Vec<RecordedHead> {
            let recorded = heads.iter().map(|head| RecordedHead {
                head: head.clone(),
                is_of_devices,
                levels: level_names(head),
                choices: vec![],
            });
            recorded.collect()
        };
        let mut recorded = heads(&spec.disk_heads, false);
        recorded.extend(heads(&spec.device_heads, true));
        Self {
            disk_columns,
            device_columns,
            features,
            heads: recorded,
        }
    }

    /// Remembers the choices of one joint decision that were free.
    pub fn take(&mut self, seen: &Observation, decision: &Decision) {
        for made in &decision.choices {
            let (features, current, is_of_device) = match made.turn {
                Turn::Disk(disk) => (
                    self.of_disk(seen, disk),
                    seen.current.disks.row(disk),
                    false,
                ),
                Turn::Device(device) => (
                    self.of_device(seen, device),
                    seen.current.devices.row(device),
                    true,
                ),
            };
            let own = self
                .heads
                .iter_mut()
                .filter(|own| own.is_of_devices == is_of_device);
            for (number, own) in own.enumerate().filter(|(number, _)| !made.forced[*number]) {
                let level = made.choice.levels[number];
                let shown = shown_level(&own.head, level, current[number]);
                own.choices.push((features.clone(), shown));
            }
        }
    }

    fn of_disk(&self, seen: &Observation, disk: usize) -> Vec<f32> {
        let row = seen.disks.row(disk);
        let mut values: Vec<f32> = self
            .disk_columns
            .iter()
            .map(|column| row[*column])
            .collect();
        if let Some(device) = seen.disk_device.get(disk) {
            let row = seen.devices.row(*device);
            values.extend(self.device_columns.iter().map(|column| row[*column]));
        }
        values
    }

    /// A device has no features of a disk.
    fn of_device(&self, seen: &Observation, device: usize) -> Vec<f32> {
        let row = seen.devices.row(device);
        let nothing = self.disk_columns.iter().map(|_| f32::NAN);
        let own = self.device_columns.iter().map(|column| row[*column]);
        nothing.chain(own).collect()
    }

    /// How often what was chosen where.
    #[must_use]
    pub fn summary(&self) -> Behaviour {
        let chose = self.heads.iter().filter(|own| !own.choices.is_empty());
        chose.map(|own| self.head(own)).collect()
    }

    fn head(&self, own: &RecordedHead) -> HeadBehaviour {
        let of = |number: usize, feature: &Feature| {
            let values = own.choices.iter();
            let values =
                values.filter_map(|(features, level)| Some((*features.get(number)?, *level)));
            let values: Vec<(f32, usize)> = values.filter(|(value, _)| value.is_finite()).collect();
            let bins = bins(&values, own.levels.len());
            (bins.len() > 1).then(|| FeatureBehaviour {
                feature: feature.name.clone(),
                doc: feature.doc.clone(),
                bins,
            })
        };
        let levels = own.choices.iter().map(|(_, level)| *level);
        let features = self.features.iter().enumerate();
        HeadBehaviour {
            head: own.head.name.clone(),
            levels: own.levels.clone(),
            choices: own.choices.len(),
            shares: shares(levels, own.levels.len()),
            features: features
                .filter_map(|(number, feature)| of(number, feature))
                .collect(),
        }
    }
}

/// Channels have other numbers on every host, so what is told of them is whether a disk floats, stays or moves.
fn level_names(head: &Head) -> Vec<String> {
    match &head.levels {
        blkpilot_env::Levels::Named(names) => names.clone(),
        blkpilot_env::Levels::Channels { zero } => vec![
            zero.clone(),
            "stay on its channel".to_owned(),
            "go to another channel".to_owned(),
        ],
    }
}

fn shown_level(head: &Head, level: blkpilot_env::Level, current: blkpilot_env::Level) -> usize {
    match (head.is_pointer(), level) {
        (false, level) => usize::from(level),
        (true, 0) => 0,
        (true, level) if level == current => 1,
        (true, _) => 2,
    }
}

/// Thirds of what a feature was; its values for themselves where it has only two. Equal values are never parted.
fn bins(values: &[(f32, usize)], levels: usize) -> Vec<Bin> {
    let mut distinct: Vec<f32> = values.iter().map(|(value, _)| *value).collect();
    distinct.sort_by(f32::total_cmp);
    let all: Vec<f64> = distinct.iter().map(|value| f64::from(*value)).collect();
    distinct.dedup();
    let uppers: Vec<f32> = match distinct[..] {
        [] | [_] => return vec![],
        [low, high] => vec![low, high],
        [.., high] => {
            let third = |share| quantile(&all, share).map(|value| value as f32);
            let mut uppers: Vec<f32> = [third(1.0 / 3.0), third(2.0 / 3.0), Some(high)]
                .into_iter()
                .flatten()
                .collect();
            uppers.dedup();
            uppers
        }
    };
    let mut lower = f32::NEG_INFINITY;
    let mut bins = vec![];
    for upper in uppers {
        let own = values
            .iter()
            .filter(|(value, _)| *value > lower && *value <= upper);
        let (low, high) = own
            .clone()
            .fold((f32::MAX, f32::MIN), |(low, high), (value, _)| {
                (low.min(*value), high.max(*value))
            });
        let choices = own.clone().count();
        if choices > 0 {
            bins.push(Bin {
                range: [low, high],
                choices,
                shares: shares(own.map(|(_, level)| *level), levels),
            });
        }
        lower = upper;
    }
    bins
}

fn shares(chosen: impl Iterator<Item = usize>, levels: usize) -> Vec<f64> {
    let mut counts = vec![0_usize; levels];
    for level in chosen {
        counts[level] += 1;
    }
    let all = counts.iter().sum::<usize>().max(1) as f64;
    counts.iter().map(|count| *count as f64 / all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirds_hold_all_choices_and_shares_are_of_each_third() {
        let values: Vec<(f32, usize)> = (0..9).map(|i| (i as f32, usize::from(i >= 6))).collect();
        let bins = bins(&values, 2);
        let counts: Vec<usize> = bins.iter().map(|bin| bin.choices).collect();
        assert_eq!(counts, [3, 3, 3]);
        assert_eq!(bins[0].range, [0.0, 2.0]);
        assert_eq!(bins[1].shares, [1.0, 0.0]);
        assert_eq!(bins[2].shares, [0.0, 1.0]);
    }

    #[test]
    fn a_flag_has_a_bin_per_value_and_equal_values_are_not_parted() {
        let flag: Vec<(f32, usize)> = (0..10).map(|i| (f32::from(u8::from(i < 9)), 0)).collect();
        let ranges: Vec<[f32; 2]> = bins(&flag, 1).iter().map(|bin| bin.range).collect();
        assert_eq!(ranges, [[0.0, 0.0], [1.0, 1.0]]);
        // Most values are 0: there is no first third.
        let skewed: Vec<(f32, usize)> = (0..10).map(|i| ((i as f32 - 7.0).max(0.0), 0)).collect();
        let bins = bins(&skewed, 1);
        assert_eq!(bins.iter().map(|bin| bin.choices).sum::<usize>(), 10);
        assert_eq!(bins[0].range, [0.0, 0.0]);
        assert!(super::bins(&[(1.0, 0)], 1).is_empty());
    }
}
