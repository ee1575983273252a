//! What a head's model of rewards looks at.
//!
//! Of every row: 1, the disk's features and the host's, without the weights of the reward: they are the same for all
//! levels and hardly ever others, and would only be more of the constant, in which optimism is soon lost. Of the level: whether it is another than the one in force,
//! and, of a list of levels, for each but the first, whether it is this one, alone and times the disk's features; of
//! channels, whether none was taken, and the features of the one that was, as they stand in the turn, with those of its
//! relation to the disk. All are brought to about [−1, 1] by the range in the spec, so nothing has to be known before
//! the first decision.

use blkpilot_env::features::REWARD_WEIGHTS;
use blkpilot_env::{EnvSpec, Feature, Head, Level, Levels, TurnView};

/// Beyond its range in the spec a feature counts at most as this.
const CLIP: f64 = 2.0;

/// How a column is brought to [−1, 1]: its feature, the middle and half of its range after scaling.
#[derive(Debug, Clone, PartialEq)]
struct Column {
    feature: Feature,
    middle: f64,
    half: f64,
}

impl Column {
    fn new(feature: &Feature) -> Self {
        let [low, high] = [feature.low, feature.high].map(|x| f64::from(feature.scale.apply(x)));
        Self {
            feature: feature.clone(),
            middle: (low + high) / 2.0,
            half: (high - low) / 2.0,
        }
    }

    /// 0 for what is no number, and for a column whose range is a point or has no bound.
    fn apply(&self, value: f32) -> f64 {
        let value = (f64::from(self.feature.scale.apply(value)) - self.middle) / self.half;
        if value.is_finite() {
            value.clamp(-CLIP, CLIP)
        } else {
            0.0
        }
    }
}

fn columns(features: &[Feature]) -> Vec<Column> {
    features.iter().map(Column::new).collect()
}

fn extend<'a>(out: &mut Vec<f64>, columns: &[Column], values: impl IntoIterator<Item = &'a f32>) {
    out.extend(
        columns
            .iter()
            .zip(values)
            .map(|(column, value)| column.apply(*value)),
    );
}

/// Where which feature of one head's model stands.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    /// Of the disk, or of the device where that decides.
    own: Vec<Column>,
    /// Of the host, each with its place in the table.
    host: Vec<(usize, Column)>,
    choice: Chosen,
}

#[derive(Debug, Clone)]
enum Chosen {
    /// A channel.
    Channel {
        channel: Vec<Column>,
        pair: Vec<Column>,
    },
    /// One of so many levels.
    Listed(usize),
}

/// The slots of each head.
pub(super) fn place(spec: &EnvSpec, heads: &[Head], is_disk: bool) -> Vec<Slots> {
    let own = if is_disk {
        &spec.disk_features
    } else {
        &spec.device_features
    };
    let seen = |(_, feature): &(usize, &Feature)| !REWARD_WEIGHTS.contains(&&feature.name[..]);
    let host = spec.host_features.iter().enumerate().filter(seen);
    let host: Vec<_> = host.map(|(place, own)| (place, Column::new(own))).collect();
    let slots = |head: &Head| Slots {
        own: columns(own),
        host: host.clone(),
        choice: match &head.levels {
            Levels::Channels { .. } => Chosen::Channel {
                channel: columns(&spec.channel_features),
                pair: columns(&spec.pair_features),
            },
            Levels::Named(names) => Chosen::Listed(names.len()),
        },
    };
    heads.iter().map(slots).collect()
}

impl Slots {
    /// Number of features.
    pub(super) fn width(&self) -> usize {
        let level = match &self.choice {
            Chosen::Channel { channel, pair } => 1 + channel.len() + pair.len(),
            Chosen::Listed(levels) => (levels.max(&1) - 1) * (1 + self.own.len()),
        };
        2 + self.own.len() + self.host.len() + level
    }

    /// ψ(x, a), `[width]`.
    pub(super) fn features(&self, view: &TurnView<'_>, head: usize, level: Level) -> Vec<f64> {
        let mut out = Vec::with_capacity(self.width());
        let changes = level != view.current[head];
        out.extend([1.0, f64::from(u8::from(changes))]);
        let own = view.disk.or(view.device);
        let start = out.len();
        extend(&mut out, &self.own, own.iter().flatten());
        out.resize(start + self.own.len(), 0.0);
        let own = out[start..].to_vec();
        let host = self.host.iter();
        out.extend(host.map(|(place, column)| column.apply(view.host[*place])));
        match &self.choice {
            Chosen::Channel { channel, pair } => {
                self.add_channel(view, level, (channel, pair), &mut out);
            }
            Chosen::Listed(levels) => {
                for other in 1..*levels {
                    let is_taken = f64::from(u8::from(other == usize::from(level)));
                    out.push(is_taken);
                    out.extend(own.iter().map(|x| is_taken * x));
                }
            }
        }
        out
    }

    fn add_channel(
        &self,
        view: &TurnView<'_>,
        level: Level,
        (channel, pair): (&[Column], &[Column]),
        out: &mut Vec<f64>,
    ) {
        let end = self.width();
        match usize::from(level).checked_sub(1) {
            None => out.push(1.0),
            Some(taken) => {
                out.push(0.0);
                extend(out, channel, view.channels.row(taken));
                if let Some(pairs) = &view.pairs {
                    extend(out, pair, pairs.row(taken));
                }
            }
        }
        out.resize(end, 0.0);
    }
}
