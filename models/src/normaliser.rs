//! How features are brought to one scale, and what of them was seen in training.

use std::fmt;

use blkpilot_env::{EnvSpec, Feature, Scale, Turn, TurnView};
use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};

/// Normalised values are clipped to ± this.
pub const CLIP: f32 = 10.0;

/// A column whose deviation in training was smaller than this counts as constant: it says nothing,
/// and what served observations hold there must not reach weights that were never trained.
const LEAST_STD: f64 = 1e-4;
/// Deviation that stands for "constant": whatever is divided by it is 0 to a network.
const CONSTANT_STD: f64 = 1e30;

/// How far outside the range seen in training a value may lie before it is called novel, as a share
/// of that range; and for columns that never varied, absolutely.
const NOVELTY_MARGIN: f32 = 0.1;
const NOVELTY_FLOOR: f32 = 1e-3;

/// A table of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableName {
    /// Disks, [N, F].
    Disk,
    /// Channels, [K, C].
    Channel,
    /// Disk × channel, [N, K, P].
    Pair,
    /// Backing devices, [D, E].
    Device,
    /// The host, [1, H].
    Host,
}

impl TableName {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Disk,
        Self::Channel,
        Self::Pair,
        Self::Device,
        Self::Host,
    ];

    /// The columns of this table.
    #[must_use]
    pub fn features(self, spec: &EnvSpec) -> &[Feature] {
        match self {
            Self::Disk => &spec.disk_features,
            Self::Channel => &spec.channel_features,
            Self::Pair => &spec.pair_features,
            Self::Device => &spec.device_features,
            Self::Host => &spec.host_features,
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Channel => "channel",
            Self::Pair => "pair",
            Self::Device => "device",
            Self::Host => "host",
        })
    }
}

/// One thing per table.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerTable<T> {
    /// Of the disk table.
    pub disk: T,
    /// Of the channel table.
    pub channel: T,
    /// Of the disk × channel table.
    pub pair: T,
    /// Of the device table.
    pub device: T,
    /// Of the host table.
    pub host: T,
}

impl<T> PerTable<T> {
    /// One thing per table, made from the table's columns.
    pub fn build(spec: &EnvSpec, mut make: impl FnMut(TableName, &[Feature]) -> T) -> Self {
        let mut of = |table: TableName| make(table, table.features(spec));
        Self {
            disk: of(TableName::Disk),
            channel: of(TableName::Channel),
            pair: of(TableName::Pair),
            device: of(TableName::Device),
            host: of(TableName::Host),
        }
    }

    /// The thing of one table.
    #[must_use]
    pub fn get(&self, table: TableName) -> &T {
        match table {
            TableName::Disk => &self.disk,
            TableName::Channel => &self.channel,
            TableName::Pair => &self.pair,
            TableName::Device => &self.device,
            TableName::Host => &self.host,
        }
    }

    fn get_mut(&mut self, table: TableName) -> &mut T {
        match table {
            TableName::Disk => &mut self.disk,
            TableName::Channel => &mut self.channel,
            TableName::Pair => &mut self.pair,
            TableName::Device => &mut self.device,
            TableName::Host => &mut self.host,
        }
    }
}

/// Mean and deviation per column of one table, of the values after `Feature::scale`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normaliser {
    /// Mean per column.
    pub mean: Vec<f32>,
    /// Deviation per column, > 0.
    pub std: Vec<f32>,
}

impl Normaliser {
    /// Changes nothing but the scale.
    #[must_use]
    pub fn identity(columns: usize) -> Self {
        Self {
            mean: vec![0.0; columns],
            std: vec![1.0; columns],
        }
    }

    /// A row as the network sees it: clip((scale(x) − mean) / std, ±[`CLIP`]) per column.
    /// `features`, `row` and `out` have one entry per column.
    pub fn apply(&self, features: &[Feature], row: &ArrayView1<'_, f32>, out: &mut [f32]) {
        let columns = features
            .iter()
            .zip(row)
            .zip(self.mean.iter().zip(&self.std));
        for (out, ((feature, &value), (&mean, &std))) in out.iter_mut().zip(columns) {
            *out = normalise(feature.scale, value, mean, std);
        }
    }
}

/// One value as the network sees it.
pub(crate) fn normalise(scale: Scale, value: f32, mean: f32, std: f32) -> f32 {
    ((scale.apply(value) - mean) / std).clamp(-CLIP, CLIP)
}

/// Least and greatest value per column of one table, after `Feature::scale`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Least value per column.
    pub min: Vec<f32>,
    /// Greatest value per column.
    pub max: Vec<f32>,
}

impl Range {
    /// A range in which nothing is novel, for networks that were not trained.
    #[must_use]
    pub fn unbounded(columns: usize) -> Self {
        Self {
            min: vec![f32::MIN; columns],
            max: vec![f32::MAX; columns],
        }
    }
}

/// A value far outside the range seen in training.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlier {
    /// The table.
    pub table: TableName,
    /// Name of the feature.
    pub feature: String,
    /// The value, in the feature's unit.
    pub value: f32,
    /// How far it lies beyond the range seen in training, as a share of that range, after `Feature::scale`: 1 is as
    /// far beyond as the range is wide. A column that never varied has a range of 0.001; a value that is not a number
    /// is infinitely far.
    pub beyond: f32,
}

/// Tells what lies far outside the range seen in training.
#[derive(Debug, Clone, PartialEq)]
pub struct Novelty {
    columns: PerTable<Vec<Known>>,
}

impl Novelty {
    /// `ranges` have one entry per column of the spec.
    #[must_use]
    pub fn new(spec: &EnvSpec, ranges: &PerTable<Range>) -> Self {
        let columns = PerTable::build(spec, |table, features| {
            let range = ranges.get(table);
            let bounds = range.min.iter().zip(&range.max);
            features
                .iter()
                .zip(bounds)
                .map(|(feature, (&min, &max))| Known::new(feature, min, max))
                .collect()
        });
        Self { columns }
    }

    /// The features of a view that lie outside the range seen in training by more than a tenth of
    /// it (after `Feature::scale`), each named once, with the value of the row that lies farthest beyond.
    #[must_use]
    pub fn outliers(&self, view: &TurnView<'_>) -> Vec<Outlier> {
        let mut outliers: Vec<Outlier> = Vec::new();
        for_each_row(view, |table, row| {
            for (column, &value) in self.columns.get(table).iter().zip(row) {
                if column.is_known(value) {
                    continue;
                }
                let found = column.outlier(table, value);
                let same = |o: &&mut Outlier| o.table == table && o.feature == column.name;
                match outliers.iter_mut().find(same) {
                    Some(earlier) if earlier.beyond < found.beyond => *earlier = found,
                    Some(_) => {}
                    None => outliers.push(found),
                }
            }
        });
        outliers
    }
}

/// What is known of a column.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    name: String,
    scale: Scale,
    /// The range seen in training, after the scale.
    min: f32,
    max: f32,
    /// The values that count as known, in the feature's unit.
    low: f32,
    high: f32,
}

impl Known {
    /// Scales are monotone, so that the bounds can be brought back into the feature's unit.
    fn new(feature: &Feature, min: f32, max: f32) -> Self {
        let margin = NOVELTY_MARGIN * (max - min) + NOVELTY_FLOOR;
        let (low, high) = (min - margin, max + margin);
        let (low, high) = match feature.scale {
            Scale::Linear => (low, high),
            Scale::Log if low <= 0.0 => (f32::NEG_INFINITY, libm::expm1f(high)),
            Scale::Log => (libm::expm1f(low), libm::expm1f(high)),
        };
        Self {
            name: feature.name.clone(),
            scale: feature.scale,
            min,
            max,
            low,
            high,
        }
    }

    fn is_known(&self, value: f32) -> bool {
        (self.low..=self.high).contains(&value)
    }

    fn outlier(&self, table: TableName, value: f32) -> Outlier {
        let scaled = self.scale.apply(value);
        let excess = (scaled - self.max).max(self.min - scaled);
        let beyond = excess / (self.max - self.min).max(NOVELTY_FLOOR);
        Outlier {
            table,
            feature: self.name.clone(),
            value,
            beyond: if value.is_nan() {
                f32::INFINITY
            } else {
                beyond
            },
        }
    }
}

/// Running mean, deviation and range per column of all tables, over the rows a network was shown.
/// Part of a learner's state: serialise it to resume exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    scales: PerTable<Vec<Scale>>,
    columns: PerTable<Vec<Moments>>,
}

impl Statistics {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(spec: &EnvSpec) -> Self {
        Self {
            scales: PerTable::build(spec, |_, features| {
                features.iter().map(|f| f.scale).collect()
            }),
            columns: PerTable::build(spec, |_, features| vec![Moments::default(); features.len()]),
        }
    }

    /// Adds the rows that a network looks at in this turn.
    pub fn observe(&mut self, view: &TurnView<'_>) {
        for_each_row(view, |table, row| {
            let columns = self
                .columns
                .get_mut(table)
                .iter_mut()
                .zip(self.scales.get(table));
            for ((moments, scale), &value) in columns.zip(row) {
                moments.add(f64::from(scale.apply(value)));
            }
        });
    }

    /// Adds what another one has seen, of the same spec.
    pub fn merge(&mut self, other: &Self) {
        for table in TableName::ALL {
            for (mine, theirs) in self
                .columns
                .get_mut(table)
                .iter_mut()
                .zip(other.columns.get(table))
            {
                mine.merge(theirs);
            }
        }
    }

    /// Mean and deviation per column; columns that were constant, or not seen, are not divided.
    #[must_use]
    pub fn normalisers(&self) -> PerTable<Normaliser> {
        self.map(|columns| Normaliser {
            mean: columns.iter().map(|m| m.mean as f32).collect(),
            std: columns.iter().map(|m| m.std() as f32).collect(),
        })
    }

    /// Range per column; a column that was not seen has the range 0 to 0.
    #[must_use]
    pub fn ranges(&self) -> PerTable<Range> {
        self.map(|columns| Range {
            min: columns.iter().map(|m| m.min as f32).collect(),
            max: columns.iter().map(|m| m.max as f32).collect(),
        })
    }

    /// `ranges`, widened to what was seen here; one entry per column of the same spec.
    #[must_use]
    pub fn widened(&self, ranges: &PerTable<Range>) -> PerTable<Range> {
        let mut widened = ranges.clone();
        for table in TableName::ALL {
            let Range { min, max } = widened.get_mut(table);
            let bounds = min.iter_mut().zip(max);
            let seen = self.columns.get(table).iter();
            for ((min, max), seen) in bounds.zip(seen).filter(|(_, seen)| seen.count > 0) {
                *min = min.min(seen.min as f32);
                *max = max.max(seen.max as f32);
            }
        }
        widened
    }

    fn map<T>(&self, mut of: impl FnMut(&[Moments]) -> T) -> PerTable<T> {
        PerTable {
            disk: of(&self.columns.disk),
            channel: of(&self.columns.channel),
            pair: of(&self.columns.pair),
            device: of(&self.columns.device),
            host: of(&self.columns.host),
        }
    }
}

/// Welford's running moments of one column, and its range.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Moments {
    count: u64,
    mean: f64,
    /// Sum of squared deviations from the mean.
    squares: f64,
    min: f64,
    max: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.merge(&Self {
            count: 1,
            mean: value,
            squares: 0.0,
            min: value,
            max: value,
        });
    }

    /// Chan, Golub and LeVeque 1979.
    fn merge(&mut self, other: &Self) {
        if self.count == 0 || other.count == 0 {
            if self.count == 0 {
                *self = *other;
            }
            return;
        }
        let (mine, theirs) = (self.count as f64, other.count as f64);
        let (all, delta) = (mine + theirs, other.mean - self.mean);
        self.mean += delta * theirs / all;
        self.squares += other.squares + delta * delta * mine * theirs / all;
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    fn std(&self) -> f64 {
        let std = (self.squares / self.count.max(1) as f64).sqrt();
        if std < LEAST_STD { CONSTANT_STD } else { std }
    }
}

/// The rows of a view that a network looks at.
fn for_each_row(view: &TurnView<'_>, mut of: impl FnMut(TableName, ArrayView1<'_, f32>)) {
    if let Some(disk) = view.disk {
        of(TableName::Disk, disk);
    }
    if let Turn::Disk(_) = view.turn {
        view.channels
            .rows()
            .into_iter()
            .for_each(|row| of(TableName::Channel, row));
        view.pairs
            .iter()
            .flat_map(|p| p.rows())
            .for_each(|row| of(TableName::Pair, row));
    }
    if let Some(device) = view.device {
        of(TableName::Device, device);
    }
    of(TableName::Host, view.host);
}

#[cfg(test)]
mod tests {
    use blkpilot_env::{JointDecision, Observation, Rng};
    use proptest::prelude::*;
    use rand::SeedableRng as _;

    use super::*;
    use crate::fixture::Sizes;

    /// Shows `statistics` the first turn of an observation.
    fn show(spec: &EnvSpec, obs: &Observation, statistics: &mut Statistics) {
        let joint = JointDecision::in_random_order(spec, obs, &mut Rng::seed_from_u64(0));
        statistics.observe(&joint.view().unwrap());
    }

    fn one_disk(value: f32) -> (EnvSpec, Observation) {
        let sizes = Sizes {
            disks: 1,
            devices: 0,
            ..Sizes::default()
        };
        let mut obs = sizes.observation(0.0, &mut Rng::seed_from_u64(1));
        obs.disks.values.fill(value);
        (sizes.spec(), obs)
    }

    fn seen(values: &[f32]) -> (EnvSpec, Statistics) {
        let (spec, _) = one_disk(0.0);
        let mut statistics = Statistics::new(&spec);
        for value in values {
            show(&spec, &one_disk(*value).1, &mut statistics);
        }
        (spec, statistics)
    }

    #[test]
    fn mean_deviation_and_range_are_those_of_the_scaled_values() {
        let (_, statistics) = seen(&[1.0, 2.0, 6.0]);
        let (normalisers, ranges) = (statistics.normalisers(), statistics.ranges());
        // Column 0 is linear: mean 3, variance (4 + 1 + 9) / 3.
        assert!((normalisers.disk.mean[0] - 3.0).abs() < 1e-6);
        assert!((normalisers.disk.std[0] - (14.0_f32 / 3.0).sqrt()).abs() < 1e-6);
        assert_eq!((ranges.disk.min[0], ranges.disk.max[0]), (1.0, 6.0));
        // Column 1 is logarithmic.
        assert!((normalisers.disk.mean[1] - (2.0_f32 * 3.0 * 7.0).ln() / 3.0).abs() < 1e-6);
        assert!((ranges.disk.max[1] - 7.0_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_range_is_widened_by_what_was_seen_and_by_nothing_else() {
        let (spec, statistics) = seen(&[1.0, 6.0]);
        let mut before = Statistics::new(&spec).ranges();
        (before.disk.min[0], before.disk.max[0]) = (2.0, 9.0);
        (before.device.min[0], before.device.max[0]) = (5.0, 7.0);
        let after = statistics.widened(&before);
        assert_eq!((after.disk.min[0], after.disk.max[0]), (1.0, 9.0));
        // The host of the observations has no device.
        assert_eq!((after.device.min[0], after.device.max[0]), (5.0, 7.0));
    }

    #[test]
    fn a_constant_column_says_nothing_whatever_it_holds_later() {
        let (_, statistics) = seen(&[4.0, 4.0]);
        let normaliser = statistics.normalisers().disk;
        assert_eq!(normaliser.mean[0], 4.0);
        let later = normalise(Scale::Linear, 400.0, normaliser.mean[0], normaliser.std[0]);
        assert!(later.abs() < 1e-20, "{later}");
    }

    #[test]
    fn values_are_clipped_after_normalisation() {
        let normaliser = Normaliser {
            mean: vec![1.0],
            std: vec![0.5],
        };
        let (spec, _) = one_disk(0.0);
        let mut out = [0.0];
        for (value, want) in [(2.0, 2.0), (1e9, CLIP), (-1e9, -CLIP)] {
            normaliser.apply(
                &spec.disk_features[..1],
                &ndarray::aview1(&[value]),
                &mut out,
            );
            assert_eq!(out, [want]);
        }
    }

    #[test]
    fn novelty_names_each_feature_outside_its_range_once_with_its_value() {
        let (spec, statistics) = seen(&[1.0, 2.0]);
        let novelty = Novelty::new(&spec, &statistics.ranges());
        let outliers = |obs: &Observation| {
            let joint = JointDecision::in_random_order(&spec, obs, &mut Rng::seed_from_u64(0));
            novelty.outliers(&joint.view().unwrap())
        };
        let (_, inside) = one_disk(1.5);
        assert_eq!(outliers(&inside), []);
        let mut obs = inside.clone();
        obs.disks.values[[0, 1]] = 2.05;
        assert_eq!(outliers(&obs), [], "within a tenth of the range");
        obs.disks.values[[0, 1]] = 7.5;
        obs.channels.values.column_mut(0).fill(-3.0);
        let found = outliers(&obs);
        let names: Vec<_> = found
            .iter()
            .map(|o| (o.table, o.feature.as_str(), o.value))
            .collect();
        assert_eq!(
            names,
            [
                (TableName::Disk, "disk_1", 7.5),
                (TableName::Channel, "channel_0", -3.0)
            ]
        );
        // disk_1 is logarithmic, seen from 1 to 2: (ln 8.5 − ln 3) / (ln 3 − ln 2).
        assert!(
            (found[0].beyond - 2.568_6).abs() < 1e-3,
            "{}",
            found[0].beyond
        );
        obs.disks.values[[0, 1]] = f32::NAN;
        assert_eq!(
            outliers(&obs).len(),
            2,
            "what is not a number was never seen"
        );
    }

    #[test]
    fn nothing_is_novel_to_a_network_that_was_not_trained() {
        let (spec, mut obs) = one_disk(1e30);
        obs.host.values.fill(-1e30);
        let ranges = PerTable::build(&spec, |_, features| Range::unbounded(features.len()));
        let joint = JointDecision::in_random_order(&spec, &obs, &mut Rng::seed_from_u64(0));
        assert_eq!(
            Novelty::new(&spec, &ranges).outliers(&joint.view().unwrap()),
            []
        );
    }

    proptest! {
        #[test]
        fn statistics_merged_equal_statistics_of_all(
            values in prop::collection::vec(0.0_f32..1e4, 2..40),
            cut in 0.0..1.0,
        ) {
            let cut = (values.len() as f64 * cut) as usize;
            let (_, all) = seen(&values);
            let (_, mut merged) = seen(&values[..cut]);
            merged.merge(&seen(&values[cut..]).1);
            prop_assert_eq!(merged.ranges(), all.ranges());
            let (merged, all) = (merged.normalisers(), all.normalisers());
            let pairs = merged.disk.std.iter().zip(&all.disk.std);
            for (merged, all) in pairs.chain(merged.disk.mean.iter().zip(&all.disk.mean)) {
                prop_assert!((merged - all).abs() <= 1e-5 * (1.0 + all.abs()), "{} {}", merged, all);
            }
        }
    }
}
