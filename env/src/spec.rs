//! What an environment shows and what it lets an agent do, as data.
//!
//! A spec names features and heads but no row counts: the number of disks (N), channels (K) and
//! devices (D) belongs to each observation, because guests come and go.

use std::fmt;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A level of a head. For a channel head level 0 is `float` and level k is channel k − 1.
pub type Level = u16;

/// The unit in which a feature is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share of one, usually in [0, 1].
    Share,
    /// 0 or 1.
    Flag,
    /// A number of things.
    Count,
    /// Things per second.
    PerSecond,
    /// Mebibytes per second.
    MebibytesPerSecond,
    /// Microseconds.
    Microseconds,
    /// Kibibytes.
    Kibibytes,
    /// Gibibytes.
    Gibibytes,
    /// CPU seconds per second.
    Cores,
    /// Decision intervals.
    Intervals,
    /// A ratio of two quantities of one unit.
    Ratio,
    /// Metres.
    Metres,
    /// Metres per second.
    MetresPerSecond,
    /// Radians.
    Radians,
    /// Radians per second.
    RadiansPerSecond,
}

/// How a feature is spread before normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// As it is.
    Linear,
    /// ln(1 + x): for non-negative quantities that span decades.
    Log,
}

impl Scale {
    /// The value as a policy network sees it before its mean and deviation are taken out.
    #[must_use]
    pub fn apply(self, value: f32) -> f32 {
        match self {
            Self::Linear => value,
            Self::Log => libm::log1pf(value.max(0.0)),
        }
    }
}

/// One column of an observation table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Name, unique within its table.
    pub name: String,
    /// Unit of the value.
    pub unit: Unit,
    /// Least value that is ever shown.
    pub low: f32,
    /// Greatest value that is ever shown; larger ones are clipped.
    pub high: f32,
    /// How to spread it before normalisation.
    pub scale: Scale,
    /// What it is, in a sentence.
    pub doc: String,
}

/// What a head chooses from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Levels {
    /// A fixed list of names.
    Named(Vec<String>),
    /// K + 1 levels: level 0 is "bound to none" and bears this name, level k is channel k − 1.
    Channels {
        /// Name of level 0.
        zero: String,
    },
}

/// Who shares one choice of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadScope {
    /// Each disk has its own.
    Disk,
    /// Disks that share an IOThread share one tied choice.
    IoThread,
    /// Each backing device has its own.
    Device,
}

/// One dimension of the MultiDiscrete action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Name, unique within the spec.
    pub name: String,
    /// What it chooses from.
    pub levels: Levels,
    /// Who shares one choice.
    pub scope: HeadScope,
}

impl Head {
    /// Number of levels with `channels` channels present.
    #[must_use]
    pub fn len(&self, channels: usize) -> usize {
        match &self.levels {
            Levels::Named(names) => names.len(),
            Levels::Channels { .. } => channels + 1,
        }
    }

    /// The name of a level; channels are called by number, from 0.
    #[must_use]
    pub fn level_name(&self, level: Level) -> String {
        let level = usize::from(level);
        match &self.levels {
            Levels::Named(names) => names
                .get(level)
                .cloned()
                .unwrap_or_else(|| format!("level-{level}")),
            Levels::Channels { zero } if level == 0 => zero.clone(),
            Levels::Channels { .. } => format!("channel-{}", level - 1),
        }
    }

    /// Whether this head points at channels.
    #[must_use]
    pub fn is_pointer(&self) -> bool {
        matches!(self.levels, Levels::Channels { .. })
    }
}

/// What happens when `step` is called on an episode that has ended (Gymnasium's `AutoresetMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Autoreset {
    /// `step` is refused until `reset` is called.
    Disabled,
    /// The next `step` ignores its action and resets instead, with reward 0.
    NextStep,
    /// The same `step` resets; the last observation is in `Step::final_observation`.
    SameStep,
}

/// How a feature of a channel or device follows the choices already made within one joint
/// decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Channel feature = number of disks bound to the channel.
    ChannelCount {
        /// Column of the channel table.
        feature: usize,
    },
    /// Channel feature = sum of a disk feature over the disks bound to the channel.
    ChannelSum {
        /// Column of the channel table.
        feature: usize,
        /// Column of the disk table.
        disk_feature: usize,
    },
    /// Device feature = number of its disks whose head stands at a level.
    DeviceCount {
        /// Column of the device table.
        feature: usize,
        /// Index into `disk_heads`.
        head: usize,
        /// The level that counts.
        level: Level,
    },
}

/// Everything an agent has to know about an environment before it sees an observation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvSpec {
    /// Name of the environment's kind, such as `kvm_host`.
    pub name: String,
    /// Columns of the disk table `[N, F]`.
    pub disk_features: Vec<Feature>,
    /// Columns of the channel table `[K, C]`.
    pub channel_features: Vec<Feature>,
    /// Columns of the disk × channel table `[N, K, P]`.
    pub pair_features: Vec<Feature>,
    /// Columns of the device table `[D, E]`.
    pub device_features: Vec<Feature>,
    /// Columns of the host table `[1, H]`.
    pub host_features: Vec<Feature>,
    /// Heads each disk decides, in order.
    pub disk_heads: Vec<Head>,
    /// Heads each backing device decides, in order; empty where none is enabled.
    pub device_heads: Vec<Head>,
    /// Features that follow earlier choices of the same joint decision.
    pub projections: Vec<Projection>,
    /// Names of the reward's terms, in the order of `Rewards::terms`.
    pub reward_terms: Vec<String>,
    /// Least and greatest reward of one disk in one step.
    pub reward_range: (f32, f32),
    /// What `step` does after the end of an episode.
    pub autoreset: Autoreset,
}

impl EnvSpec {
    /// Index of a disk head by name.
    #[must_use]
    pub fn disk_head(&self, name: &str) -> Option<usize> {
        self.disk_heads.iter().position(|head| head.name == name)
    }

    /// Sum of the level counts of the disk heads: the width of a disk's mask row.
    #[must_use]
    pub fn disk_levels(&self, channels: usize) -> usize {
        total_levels(&self.disk_heads, channels)
    }

    /// Sum of the level counts of the device heads: the width of a device's mask row.
    #[must_use]
    pub fn device_levels(&self, channels: usize) -> usize {
        total_levels(&self.device_heads, channels)
    }

    /// SHA-256, in hex, of everything a policy depends on: features with unit and scale, heads with
    /// levels and scope, projections. Ranges, docs, rewards and autoreset are not part of it.
    #[must_use]
    pub fn hash(&self) -> String {
        let mut hex = String::new();
        for byte in Sha256::digest(self.policy_view().join("\n")) {
            write!(hex, "{byte:02x}").expect("writing to a String never fails");
        }
        hex
    }

    /// The first difference that matters to a policy, in words; `None` if a policy made for `self`
    /// fits `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (mine, theirs) = (self.policy_view(), other.policy_view());
        let missing = mine.iter().find(|line| !theirs.contains(line));
        let added = theirs.iter().find(|line| !mine.contains(line));
        match (missing, added) {
            (None, None) if mine == theirs => None,
            (None, None) => Some("the same entries stand in another order".to_owned()),
            (Some(missing), None) => Some(format!("`{missing}` is missing")),
            (None, Some(added)) => Some(format!("`{added}` is new")),
            (Some(missing), Some(added)) => {
                Some(format!("`{missing}` is missing, `{added}` is new"))
            }
        }
    }

    fn policy_view(&self) -> Vec<String> {
        let tables = [
            ("disk", &self.disk_features),
            ("channel", &self.channel_features),
            ("pair", &self.pair_features),
            ("device", &self.device_features),
            ("host", &self.host_features),
        ];
        let mut lines = Vec::new();
        for (table, features) in tables {
            lines.extend(features.iter().map(|f| {
                format!(
                    "{table} feature {} in {:?}, scale {:?}",
                    f.name, f.unit, f.scale
                )
            }));
        }
        for (table, heads) in [("disk", &self.disk_heads), ("device", &self.device_heads)] {
            lines.extend(heads.iter().map(|h| format!("{table} head {h}")));
        }
        lines.extend(self.projections.iter().map(|p| format!("projection {p:?}")));
        lines
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.levels {
            Levels::Named(names) => write!(
                f,
                "{} ({}) per {:?}",
                self.name,
                names.join(", "),
                self.scope
            ),
            Levels::Channels { zero } => {
                write!(
                    f,
                    "{} ({zero} or a channel) per {:?}",
                    self.name, self.scope
                )
            }
        }
    }
}

fn total_levels(heads: &[Head], channels: usize) -> usize {
    heads.iter().map(|head| head.len(channels)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cartpole::CartPole;
    use crate::features::kvm_host_spec;

    #[test]
    fn hash_changes_with_a_unit_but_not_with_a_doc_text() {
        let spec = CartPole::default_spec();
        let mut other = spec.clone();
        other.disk_features[0].doc.push('!');
        assert_eq!(spec.hash(), other.hash());
        other.disk_features[0].unit = Unit::Count;
        assert_ne!(spec.hash(), other.hash());
    }

    #[test]
    fn difference_names_the_feature_or_the_head() {
        let spec = kvm_host_spec(&[]);
        assert_eq!(spec.difference(&spec), None);
        let mut other = spec.clone();
        other.disk_features.remove(2);
        let text = spec.difference(&other).unwrap();
        assert!(
            text.contains("hit_rate") && text.contains("missing"),
            "{text}"
        );
        let with_scheduler = kvm_host_spec(&["none".into(), "bfq".into()]);
        let text = spec.difference(&with_scheduler).unwrap();
        assert!(text.contains("scheduler") && text.contains("new"), "{text}");
    }

    #[test]
    fn channel_heads_grow_with_the_channels() {
        let spec = kvm_host_spec(&[]);
        let head = &spec.disk_heads[spec.disk_head("channel").unwrap()];
        assert_eq!(head.len(4), 5);
        assert_eq!(head.level_name(0), "float");
        assert_eq!(head.level_name(3), "channel-2");
        assert_eq!(spec.disk_levels(4), 5 + 2 + 2);
    }
}
