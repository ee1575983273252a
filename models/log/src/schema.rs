//! The rows.
//!
//! A number that is not finite is stored as `null` and read back as NaN. Fields may be added with a
//! default; removing or changing one makes a new format.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use blkpilot_env::{Level, MaskReason, Validity};
use blkpilot_models::TableName;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One event of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Somebody decided.
    Decision(Box<DecisionRow>),
    /// What came of a decision.
    Outcome(OutcomeRow),
}

/// What one disk or device decided in its turn of a joint decision. What all rows of one joint decision
/// have in common they share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// Identity of this row.
    pub id: DecisionId,
    /// The joint decision that it is part of: all rows of one host and one instant.
    pub host_step_id: HostStepId,
    /// The episode: rows between two resets, or two starts of the service.
    pub episode_id: EpisodeId,
    /// When, in microseconds since 1970 UTC.
    pub at_us: i64,
    /// Name of the host.
    pub host: Arc<str>,
    /// Who decided.
    pub subject: Subject,
    /// Position in the order of the joint decision, from 0. Features and propensities are given the
    /// choices of the rows before it.
    pub order: u32,
    /// Where it comes from.
    pub source: Source,
    /// Which stage of the fallback chain chose.
    #[serde(default, skip_serializing_if = "Stage::is_policy")]
    pub stage: Stage,
    /// Probability with which a head that has a choice was drawn from all that is allowed instead of
    /// by the policy. The heads' propensities are those of the mixture.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epsilon: f64,
    /// Why it was made, where the guard made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name of the policy that chose: of another stage, that of what stood in.
    pub policy: Arc<str>,
    /// Its version.
    pub policy_version: Arc<str>,
    /// `EnvSpec::hash` of the spec by which features and heads are numbered.
    pub spec_hash: Arc<str>,
    /// What the policy saw.
    pub seen: Seen,
    /// The heads, in the order of the spec.
    pub heads: Vec<HeadRow>,
    /// Features far outside what the policy was trained on, as `table.feature`.
    pub novel: Vec<String>,
    /// Weights of the reward in force, by name; β is one of them.
    pub reward_weights: Arc<BTreeMap<String, f64>>,
}

/// One head of a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadRow {
    /// Its name.
    pub head: String,
    /// The level in force before.
    pub previous: Level,
    /// The level that the policy chose.
    pub requested: Level,
    /// The level in force afterwards.
    pub executed: Level,
    /// Probability, in (0, 1], with which the policy took `requested` given what it saw and `mask`;
    /// with exploration, that of the mixture; 1 where forced.
    #[serde(deserialize_with = "nullable_f64")]
    pub propensity: f64,
    /// It was drawn from all that is allowed: see [`DecisionRow::epsilon`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub explored: bool,
    /// There was no choice: the mask, or a disk on the same IOThread, left one level.
    pub forced: bool,
    /// Why `executed` is not `requested`: what the guard or the host objected. `None` if it is.
    pub altered: Option<String>,
    /// What could be chosen, level by level.
    pub mask: Vec<MaskReason>,
}

/// The rows of the observation as they stood in the turn.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Seen {
    /// The disk's features, `[F]`; empty in a device's turn.
    #[serde(deserialize_with = "nullable_f32s")]
    pub disk: Vec<f32>,
    /// The (backing) device's features, `[E]`; empty where there is none.
    #[serde(deserialize_with = "nullable_f32s")]
    pub device: Vec<f32>,
    /// The host's features, `[H]`.
    #[serde(deserialize_with = "nullable_f32s")]
    pub host: Vec<f32>,
    /// Number of channels (K).
    pub channel_count: usize,
    /// The channels' features after the choices made before, [K, C], row by row.
    #[serde(deserialize_with = "nullable_f32s")]
    pub channels: Vec<f32>,
    /// The disk's relation to each channel, [K, P], row by row; empty in a device's turn.
    #[serde(deserialize_with = "nullable_f32s")]
    pub pairs: Vec<f32>,
    /// The values that are not `Valid`.
    pub flaws: Vec<Flaw>,
}

/// A value that was not measured in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flaw {
    /// The table.
    pub table: TableName,
    /// The channel, in the channel table; else 0.
    pub row: u32,
    /// The column.
    pub column: u32,
    /// What the value is instead.
    pub validity: Validity,
}

/// Who decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A disk of a guest.
    Disk {
        /// Name of the guest; empty in environments that have none.
        guest: String,
        /// Name of the disk within it.
        target: String,
    },
    /// A backing device.
    Device {
        /// Its name.
        name: String,
    },
}

/// Where a decision comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A simulated host.
    Simulator,
    /// Advice that was not applied.
    Proposal,
    /// A candidate that runs beside the policy in force; not applied.
    Shadow,
    /// A candidate on guests chosen for it.
    Canary,
    /// The policy in force.
    Auto,
    /// Levels that a person or an orchestrator gave.
    Explicit,
    /// The levels from before were restored.
    Rollback,
    /// The guard put back a change that did harm.
    Guard,
}

/// Which stage of the fallback chain chose.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The policy that should.
    #[default]
    Policy,
    /// The last policy known to be good: the production policy for a candidate, the version before it
    /// for the production policy.
    LastGood,
    /// The heuristic, `least_loaded`.
    Heuristic,
    /// None: what was in force stayed.
    Keep,
}

impl Stage {
    fn is_policy(&self) -> bool {
        *self == Self::Policy
    }
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// What came of a decision, an interval later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomeRow {
    /// The decision.
    pub decision_id: DecisionId,
    /// When the interval ended, in microseconds since 1970 UTC.
    pub at_us: i64,
    /// Length of the interval in seconds.
    #[serde(deserialize_with = "nullable_f64")]
    pub interval_s: f64,
    /// Training reward: (1 − β)·own + β·mean of own over the host.
    #[serde(deserialize_with = "nullable_f32")]
    pub reward_total: f32,
    /// Own part: the sum of the terms.
    #[serde(deserialize_with = "nullable_f32")]
    pub reward_own: f32,
    /// The terms, by name.
    #[serde(deserialize_with = "nullable_f32_map")]
    pub reward_terms: BTreeMap<String, f32>,
    /// Whether the row counts: an idle disk does not, and has reward 0.
    pub counted: bool,
    /// Whether the reward can be relied on, and if not, why.
    pub validity: Validity,
    /// The episode ended here in a terminal state.
    pub terminated: bool,
    /// The episode was cut here.
    pub truncated: bool,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 128 bits, written as a UUID.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                parse_uuid(text).map(Self).ok_or_else(|| NotAnId(text.to_owned()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

id!(
    /// Identity of one row of a joint decision.
    DecisionId
);
id!(
    /// Identity of a joint decision.
    HostStepId
);
id!(
    /// Identity of an episode.
    EpisodeId
);

/// A text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id: it must be a UUID, like 6ba7b810-9dad-41d1-80b4-00c04fd430c8")]
pub struct NotAnId(String);

fn write_uuid(id: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let hex = format!("{id:032x}");
    write!(
        f,
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn parse_uuid(text: &str) -> Option<u128> {
    let parts: Vec<&str> = text.split('-').collect();
    let is_hex = text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    if !is_hex || lengths != [8, 4, 4, 4, 12] {
        return None;
    }
    u128::from_str_radix(&parts.concat(), 16).ok()
}

fn nullable_f64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn nullable_f32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f32::NAN))
}

fn nullable_f32s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
    let values = Vec::<Option<f32>>::deserialize(deserializer)?;
    Ok(values
        .into_iter()
        .map(|value| value.unwrap_or(f32::NAN))
        .collect())
}

fn nullable_f32_map<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, f32>, D::Error> {
    let values = BTreeMap::<String, Option<f32>>::deserialize(deserializer)?;
    Ok(values
        .into_iter()
        .map(|(name, value)| (name, value.unwrap_or(f32::NAN)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_uuids_and_read_back() {
        let id = DecisionId(0x6ba7_b810_9dad_41d1_80b4_00c0_4fd4_30c8);
        assert_eq!(id.to_string(), "6ba7b810-9dad-41d1-80b4-00c04fd430c8");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(
            serde_json::to_string(&DecisionId(1)).unwrap(),
            "\"00000000-0000-0000-0000-000000000001\""
        );
        for wrong in [
            "",
            "6ba7b8109dad41d180b400c04fd430c8",
            "+ba7b810-9dad-41d1-80b4-00c04fd430c8",
            "é",
        ] {
            let error = wrong.parse::<DecisionId>().unwrap_err().to_string();
            assert!(error.contains("must be a UUID"), "{error}");
        }
    }
}
