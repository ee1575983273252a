//! What the process that trains a run says of it: an event a line, as JSON, on its standard output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An event of a run. A figure that is not finite is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It begins or goes on.
    Started {
        /// Environment steps played before.
        env_steps: u64,
    },
    /// An update was made.
    Update {
        /// Environment steps played.
        env_steps: u64,
        /// Environment steps that the config asks for.
        planned: u64,
        /// Mean return of recent episodes; `None` before the first has ended.
        episodic_return: Option<f64>,
        /// Environment steps per second since the run's start.
        steps_per_s: f64,
        /// Figures by the tags of their curves.
        figures: BTreeMap<String, f64>,
    },
    /// The policy was saved, with where the run stands.
    Saved {
        /// Environment steps played.
        env_steps: u64,
    },
    /// The comparison with the baselines plays this many episodes.
    Comparing {
        /// Episodes of all policies together.
        episodes: u32,
    },
    /// One of them has ended.
    Compared,
    /// Something that whoever watches should know.
    Note {
        /// It.
        text: String,
    },
    /// The run has ended, or was ended.
    Ended(Figures),
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Whether it was ended before its end.
    pub interrupted: bool,
    /// SHA-256 of the policy's tensors, in hex.
    pub tensors_sha256: String,
    /// Seconds spent on training, without the comparison.
    pub wall_s: f64,
    /// Environment steps per second of training.
    pub steps_per_s: f64,
    /// Mean return of the last episodes of training; `None` if none has ended.
    pub episodic_return: Option<f64>,
    /// Policies on the evaluation episodes, the trained one first.
    pub policies: Vec<PolicyFigures>,
}

/// Figures of one policy on the evaluation episodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyFigures {
    /// Its name.
    pub policy: String,
    /// Mean over the episodes, in reward.
    pub reward_mean: f64,
    /// Its 95 % interval.
    pub reward_ci95: [f64; 2],
    /// Mean relative performance loss; `None` where the environment has none.
    pub loss_mean: Option<f64>,
}
