//! Features of a row for the model of rewards: `φ(x, a)`, linear in what was chosen.
//!
//! Of every row: 1; of a disk: its own features and the host's; of a device: another 1. Per head that has a
//! choice: of a list of levels, whether it is this one, alone and times the disk's features; of channels,
//! whether none was taken, and the features of the one that was, as they stood in the turn, with those of its
//! relation to the disk; and whether anything changes. Being linear in the choice of each head, what is expected
//! of a policy is the sum over levels of probability times features, head by head: nothing is summed over joint
//! levels.

use blkpilot_env::{EnvSpec, Feature, Head, Levels};

use crate::step::{HostStep, Part, Row};

/// Levels up to which a head's levels are crossed with the disk's features.
const MOST_CROSSED_LEVELS: usize = 4;
/// Standardised values are clipped to ± this.
const CLIP: f64 = 5.0;

/// Where the feature stands that is 1 in each row.
pub(crate) const INTERCEPT: usize = 0;

/// Mean and deviation of the columns of one table.
#[derive(Debug, Clone, Default)]
struct Columns {
    is_log: Vec<bool>,
    n: f64,
    sum: Vec<f64>,
    squares: Vec<f64>,
    mean: Vec<f64>,
    inverse_std: Vec<f64>,
}

impl Columns {
    fn new(features: &[Feature]) -> Self {
        let zeros = vec![0.0; features.len()];
        Self {
            is_log: features
                .iter()
                .map(|feature| feature.scale == blkpilot_env::Scale::Log)
                .collect(),
            n: 0.0,
            sum: zeros.clone(),
            squares: zeros.clone(),
            mean: zeros.clone(),
            inverse_std: zeros,
        }
    }

    fn scaled(&self, column: usize, value: f32) -> f64 {
        let value = f64::from(value);
        if self.is_log[column] {
            libm::log1p(value.max(0.0))
        } else {
            value
        }
    }

    fn note(&mut self, values: &[f32]) {
        let width = self.sum.len();
        if width == 0 {
            return;
        }
        for row in values.chunks_exact(width) {
            self.n += 1.0;
            for (column, value) in row.iter().enumerate() {
                let value = self.scaled(column, *value);
                if value.is_finite() {
                    self.sum[column] += value;
                    self.squares[column] += value * value;
                }
            }
        }
    }

    fn settle(&mut self) {
        for column in 0..self.sum.len() {
            let mean = self.sum[column] / self.n.max(1.0);
            let variance = self.squares[column] / self.n.max(1.0) - mean * mean;
            self.mean[column] = mean;
            // A column that does not vary says nothing.
            self.inverse_std[column] = if variance > 1e-12 * (1.0 + mean * mean) {
                1.0 / variance.sqrt()
            } else {
                0.0
            };
        }
    }

    /// Puts the mean in the place of what is not finite, in the feature's unit.
    fn fill(&self, values: &mut [f32]) {
        let width = self.sum.len().max(1);
        for (i, value) in values.iter_mut().enumerate() {
            let column = i % width;
            if !value.is_finite() {
                let mean = self.mean[column];
                let mean = if self.is_log[column] {
                    libm::expm1(mean)
                } else {
                    mean
                };
                *value = mean as f32;
            }
        }
    }

    /// Adds `weight` times the standardised values.
    fn add(&self, values: &[f32], weight: f64, out: &mut [f64]) {
        for (column, (value, out)) in values.iter().zip(out).enumerate() {
            let value = self.scaled(column, *value);
            if value.is_finite() {
                let z = (value - self.mean[column]) * self.inverse_std[column];
                *out += weight * z.clamp(-CLIP, CLIP);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct HeadSlots {
    start: usize,
    is_pointer: bool,
    /// Slots per level of a list.
    per_level: usize,
    /// Where, from `start`, it stands whether anything changes.
    change: usize,
}

/// Where which feature stands.
#[derive(Debug, Clone)]
pub(crate) struct Features {
    disk: Columns,
    /// No feature of the linear model: for [`Features::fill`].
    device: Columns,
    host: Columns,
    channel: Columns,
    pair: Columns,
    disk_heads: Vec<HeadSlots>,
    device_start: usize,
    device_heads: Vec<HeadSlots>,
    width: usize,
}

/// What a row chose.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Chosen<'a> {
    /// What was drawn.
    Logged,
    /// A policy's probabilities, in the order of [`HostStep::masks`].
    Expected(&'a [f64]),
}

impl Features {
    pub(crate) fn new(spec: &EnvSpec) -> Self {
        let columns = |features: &[Feature]| Columns::new(features);
        let mut features = Self {
            disk: columns(&spec.disk_features),
            device: columns(&spec.device_features),
            host: columns(&spec.host_features),
            channel: columns(&spec.channel_features),
            pair: columns(&spec.pair_features),
            disk_heads: vec![],
            device_start: 0,
            device_heads: vec![],
            width: 1 + spec.disk_features.len() + spec.host_features.len(),
        };
        let crossed = 1 + spec.disk_features.len();
        features.disk_heads = features.place(&spec.disk_heads, crossed);
        features.device_start = features.width;
        features.width += usize::from(!spec.device_heads.is_empty());
        features.device_heads = features.place(&spec.device_heads, 1);
        features
    }

    fn place(&mut self, heads: &[Head], crossed: usize) -> Vec<HeadSlots> {
        let mut slots = Vec::with_capacity(heads.len());
        for head in heads {
            let (is_pointer, per_level, own) = match &head.levels {
                Levels::Channels { .. } => {
                    (true, 0, 1 + self.channel.sum.len() + self.pair.sum.len())
                }
                Levels::Named(names) if names.len() <= MOST_CROSSED_LEVELS => {
                    (false, crossed, (names.len().max(1) - 1) * crossed)
                }
                Levels::Named(names) => (false, 1, names.len() - 1),
            };
            slots.push(HeadSlots {
                start: self.width,
                is_pointer,
                per_level,
                change: own,
            });
            self.width += own + 1;
        }
        slots
    }

    /// Number of features.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Takes a row into means and deviations.
    pub(crate) fn note(&mut self, step: &HostStep, row: &Row) {
        self.disk.note(step.values_of(row.disk));
        self.device.note(step.values_of(row.device));
        self.host.note(step.values_of(row.host));
        self.channel.note(step.values_of(row.channels));
        self.pair.note(step.values_of(row.pairs));
    }

    /// All rows have been noted.
    pub(crate) fn settle(&mut self) {
        for columns in [
            &mut self.disk,
            &mut self.device,
            &mut self.host,
            &mut self.channel,
            &mut self.pair,
        ] {
            columns.settle();
        }
    }

    /// Puts the column's mean in the place of each value that is not finite.
    pub(crate) fn fill(&self, step: &mut HostStep) {
        for row in &step.rows {
            for (columns, part) in [
                (&self.disk, row.disk),
                (&self.device, row.device),
                (&self.host, row.host),
                (&self.channel, row.channels),
                (&self.pair, row.pairs),
            ] {
                columns.fill(&mut step.values[part.range()]);
            }
        }
    }

    /// Adds `weight` times a row's features to `out`, `[width]`.
    pub(crate) fn add(
        &self,
        step: &HostStep,
        row: &Row,
        chosen: Chosen<'_>,
        weight: f64,
        out: &mut [f64],
    ) {
        out[INTERCEPT] += weight;
        let slots = if row.is_disk {
            let (disk, host) = (self.disk.sum.len(), self.host.sum.len());
            self.disk
                .add(step.values_of(row.disk), weight, &mut out[1..=disk]);
            let host_slots = &mut out[1 + disk..1 + disk + host];
            self.host.add(step.values_of(row.host), weight, host_slots);
            &self.disk_heads
        } else {
            out[self.device_start] += weight;
            &self.device_heads
        };
        let cells = step
            .heads_of(row)
            .iter()
            .zip(&step.previous[row.heads.range()]);
        for (slots, (cell, previous)) in slots.iter().zip(cells) {
            if !cell.is_free {
                continue;
            }
            let previous = usize::from(*previous);
            match chosen {
                Chosen::Logged => {
                    let level = usize::from(cell.requested);
                    self.add_level(step, row, slots, (level, previous), weight, out);
                }
                Chosen::Expected(probabilities) => {
                    self.add_levels(
                        step,
                        row,
                        slots,
                        previous,
                        cell.mask,
                        probabilities,
                        weight,
                        out,
                    );
                }
            }
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "a leaf of `add`, which has them all at hand"
    )]
    fn add_levels(
        &self,
        step: &HostStep,
        row: &Row,
        slots: &HeadSlots,
        previous: usize,
        mask: Part,
        probabilities: &[f64],
        weight: f64,
        out: &mut [f64],
    ) {
        for (level, p) in probabilities[mask.range()].iter().enumerate() {
            if *p > 0.0 {
                self.add_level(step, row, slots, (level, previous), weight * p, out);
            }
        }
    }

    fn add_level(
        &self,
        step: &HostStep,
        row: &Row,
        slots: &HeadSlots,
        (level, previous): (usize, usize),
        weight: f64,
        out: &mut [f64],
    ) {
        let out = &mut out[slots.start..];
        out[slots.change] += if level == previous { 0.0 } else { weight };
        if slots.is_pointer {
            let (channels, pairs) = (self.channel.sum.len(), self.pair.sum.len());
            if level == 0 {
                out[0] += weight;
            } else {
                let of = |part: Part, width: usize| {
                    let values = step.values_of(part);
                    &values[(level - 1) * width..level * width]
                };
                let channel = of(row.channels, channels);
                self.channel.add(channel, weight, &mut out[1..=channels]);
                let pair = of(row.pairs, pairs);
                let pair_slots = &mut out[1 + channels..1 + channels + pairs];
                self.pair.add(pair, weight, pair_slots);
            }
            return;
        }
        let levels = slots.per_level;
        if level > 0 {
            let own = &mut out[(level - 1) * levels..level * levels];
            own[0] += weight;
            if levels > 1 {
                self.disk
                    .add(step.values_of(row.disk), weight, &mut own[1..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::MaskReason;
    use blkpilot_env::features::kvm_host_spec;

    use super::*;
    use crate::step::HeadCell;

    /// One disk that sees two channels and chooses these levels of its three heads.
    fn step(spec: &EnvSpec, levels: [u16; 3]) -> HostStep {
        let mut step = HostStep::default();
        let mut part = |len: usize, from: f32| {
            let start = step.values.len();
            step.values.extend((0..len).map(|i| from + i as f32));
            Part::new(start, start + len)
        };
        let (disk, host) = (
            part(spec.disk_features.len(), 1.0),
            part(spec.host_features.len(), 3.0),
        );
        let device = part(spec.device_features.len(), 0.0);
        let channels = part(2 * spec.channel_features.len(), 5.0);
        let pairs = part(2 * spec.pair_features.len(), 0.0);
        for (head, requested) in spec.disk_heads.iter().zip(levels) {
            let start = step.masks.len();
            step.masks.resize(start + head.len(2), MaskReason::Allowed);
            step.heads.push(HeadCell {
                requested,
                propensity: 0.5,
                explored: false,
                is_free: true,
                mask: Part::new(start, step.masks.len()),
            });
            step.previous.push(1);
        }
        step.rows.push(Row {
            place: (1, 0),
            id: 1,
            subject: 0,
            is_disk: true,
            order: 0,
            epsilon: 0.0,
            heads: Part::new(0, 3),
            mask: Part::new(0, step.masks.len()),
            disk,
            device,
            host,
            channel_count: 2,
            channels,
            pairs,
            outcome: None,
        });
        step
    }

    fn of(features: &Features, step: &HostStep, chosen: Chosen<'_>) -> Vec<f64> {
        let mut out = vec![0.0; features.width()];
        features.add(step, &step.rows[0], chosen, 1.0, &mut out);
        out
    }

    #[test]
    fn what_is_expected_is_the_mean_over_what_could_be_chosen() {
        let spec = kvm_host_spec(&[]);
        let mut features = Features::new(&spec);
        for from in [[0, 0, 0], [1, 1, 1]] {
            let mut step = step(&spec, from);
            step.values
                .iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x *= (1 + i % 3) as f32 + f32::from(from[0]));
            features.note(&step, &step.rows[0]);
        }
        features.settle();
        // Probabilities of channel (float, 0, 1), cache and polling.
        let p = [0.2, 0.5, 0.3, 0.6, 0.4, 0.1, 0.9];
        let step_of = |levels| step(&spec, levels);
        let expected = of(&features, &step_of([0, 0, 0]), Chosen::Expected(&p));
        let mut mean = vec![0.0; features.width()];
        for channel in 0..3_u16 {
            for cache in 0..2_u16 {
                for polling in 0..2_u16 {
                    let weight = p[usize::from(channel)]
                        * p[3 + usize::from(cache)]
                        * p[5 + usize::from(polling)];
                    let own = of(
                        &features,
                        &step_of([channel, cache, polling]),
                        Chosen::Logged,
                    );
                    mean.iter_mut()
                        .zip(own)
                        .for_each(|(sum, x)| *sum += weight * x);
                }
            }
        }
        for (i, (a, b)) in expected.iter().zip(&mean).enumerate() {
            assert!((a - b).abs() < 1e-12, "{i}: {a} {b}");
        }
        let [a, b] =
            [[0, 1, 1], [2, 1, 1]].map(|levels| of(&features, &step_of(levels), Chosen::Logged));
        assert_ne!(a, b);
    }
}
