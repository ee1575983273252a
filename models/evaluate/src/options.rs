//! How a log is evaluated.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::EvaluateError;

/// Who is exposed to whose choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exposure {
    /// Each disk to the choices of all disks and devices of its host: the weight is that of the whole host.
    #[default]
    Host,
    /// Each disk to its own choices alone. An assumption, not a fact: disks of one host share devices,
    /// channels and the page cache.
    Disk,
}

impl Exposure {
    /// What is assumed, in words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Host => {
                "host: a disk's reward may depend on every choice of its host; hosts do not affect each other"
            }
            Self::Disk => {
                "disk (an assumption): a disk's reward depends on no other disk's choice, now or before"
            }
        }
    }
}

/// What is resampled: all windows of one host that begin within the same block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Of one host within so many seconds.
    Seconds(f64),
    /// Of one host within one episode.
    Episode,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(seconds) => write!(f, "host x {seconds} s"),
            Self::Episode => f.write_str("host x episode"),
        }
    }
}

/// Whether several policies, or several weightings of the reward, may have written one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixed {
    /// They may not.
    #[default]
    Refused,
    /// They may, since each row has its own propensity; the difference to the behaviour is one to their mixture.
    Admitted,
}

/// How a log is evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Discount per step, in [0, 1].
    pub gamma: f64,
    /// Steps of a window (H), 1 to 1000.
    pub horizon: usize,
    /// Who is exposed to whose choice.
    pub exposure: Exposure,
    /// What is resampled.
    pub block: Block,
    /// Several policies in one log.
    pub mixed: Mixed,
    /// Confidence of the intervals, in (0.5, 1); both sides share what is left.
    pub confidence: f64,
    /// Replicates of the bootstrap, at least 100.
    pub replicates: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Only rows decided from then on, in microseconds since 1970 UTC.
    pub from_us: Option<i64>,
    /// Only rows decided before then.
    pub until_us: Option<i64>,
    /// Only rows of this host.
    pub host: Option<String>,
    /// The time, in microseconds since 1970 UTC, of a log that is being written; `None` where nothing will
    /// come any more.
    pub now_us: Option<i64>,
}

impl Default for Options {
    /// γ 0.9, windows of 10 steps, exposure host, blocks of 10 minutes, 95 %, 2000 replicates, all rows.
    fn default() -> Self {
        Self {
            gamma: 0.9,
            horizon: 10,
            exposure: Exposure::Host,
            block: Block::Seconds(600.0),
            mixed: Mixed::Refused,
            confidence: 0.95,
            replicates: 2000,
            seed: 0,
            from_us: None,
            until_us: None,
            host: None,
            now_us: None,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), EvaluateError> {
        let refuse = |what, value, rule| Err(EvaluateError::Option { what, value, rule });
        if !(0.0..=1.0).contains(&self.gamma) {
            return refuse("gamma", self.gamma, "must be in [0, 1]");
        }
        if !(1..=1000).contains(&self.horizon) {
            return refuse("horizon", self.horizon as f64, "must be 1 to 1000 steps");
        }
        if !(self.confidence > 0.5 && self.confidence < 1.0) {
            return refuse(
                "confidence",
                self.confidence,
                "must be above 0.5 and below 1",
            );
        }
        if !(100..=100_000).contains(&self.replicates) {
            return refuse(
                "replicates",
                self.replicates as f64,
                "must be 100 to 100000",
            );
        }
        match self.block {
            Block::Seconds(seconds) if !(0.001..=1e9).contains(&seconds) => {
                refuse("block", seconds, "must be 0.001 to 1e9 seconds")
            }
            _ => Ok(()),
        }
    }

    /// `γ^t` for each step of a window.
    pub(crate) fn discounts(&self) -> Vec<f64> {
        std::iter::successors(Some(1.0), |discount| Some(discount * self.gamma))
            .take(self.horizon)
            .collect()
    }
}
