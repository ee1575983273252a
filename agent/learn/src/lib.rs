//! Learners on libtorch: networks, PPO, learners from logs, and fitted Q evaluation with a network.
//!
//! The only crate that names `tch`. Reading order: [`gae`], [`adam`], [`turns`] (what a network is
//! shown, as padded batches), [`network`] (the actor-critic of `blkpilot_models::architecture`, here
//! with gradients), [`categorical`] (log-probabilities and entropies under masks), [`collector`]
//! (playing many environments together), [`rollout`] (what it was worth), [`ppo`]; [`distil`], learning from a
//! planner; [`q`], what a value learner reads from the same network; [`offline`], learners from decision logs; and [`fqe`], what a
//! policy is worth from logged decisions of another.
//!
//! What is learnt leaves as a [`blkpilot_models::Checkpoint`] and is served without libtorch.
//!
//! **All randomness comes from `blkpilot_env::Rng`; libtorch's generator is never used.**

pub mod adam;
pub mod categorical;
pub mod collector;
pub mod distil;
pub mod dqn;
pub mod fqe;
pub mod gae;
mod initial;
mod loss;
pub mod network;
pub mod offline;
pub mod ppo;
pub mod q;
mod reward_scale;
pub mod rollout;
mod seen;
mod stored;
pub mod turns;

use std::sync::Once;

use blkpilot_env::{ActionError, EnvError};
use thiserror::Error;

pub use collector::{Collector, CollectorState, Continued, Resumable};
pub use distil::{Distil, DistilConfig, DistilReport, Planned};
pub use dqn::{Dqn, DqnConfig};
pub use gae::Discount;
pub use network::Network;
pub use offline::{Offline, OfflineConfig, OfflineReport};
pub use ppo::{Ppo, PpoConfig, Schedule, UpdateReport};
pub use rollout::{EpisodeEnd, Rollout};

/// Why learning could not go on.
#[derive(Debug, Error)]
pub enum LearnError {
    /// libtorch refused or failed.
    #[error("libtorch failed")]
    Torch(#[from] tch::TchError),
    /// An environment refused or failed.
    #[error("environment {index} failed")]
    Environment {
        /// Which of the environments, from 0.
        index: usize,
        /// The cause.
        #[source]
        source: EnvError,
    },
    /// An environment was given a joint decision that does not fit: a defect of ours or its own.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// The environments do not fit each other or the learner.
    #[error("environment {index} cannot be trained on: {problem}")]
    Unfit {
        /// Which of the environments, from 0.
        index: usize,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// The loss is no longer a number.
    #[error(
        "training diverged in update {update}: {quantity} is {value}; lower the learning rate or max_grad_norm, and train anew"
    )]
    Diverged {
        /// The update, from 0.
        update: u64,
        /// What is not finite.
        quantity: &'static str,
        /// Its value.
        value: f64,
    },
    /// A log that nothing can be learnt from.
    #[error("nothing can be learnt from this log: {problem}")]
    NoLessons {
        /// What is missing, and the way out.
        problem: String,
    },
    /// Transitions that no early stop can be made of.
    #[error(
        "the network cannot be fitted: {groups} blocks with transitions are left to fit to, and at least 2 are needed, one of them for the early stop; log for longer, or shorten the blocks"
    )]
    TooFewGroups {
        /// Groups that are not held out.
        groups: usize,
    },
    /// A fit to logged transitions ran away.
    #[error(
        "the network diverged with {steps_to_go} steps to go: {quantity} is {value}; shorten the horizon, or log with more exploration"
    )]
    FitDiverged {
        /// Steps to go of the sweep, from 1.
        steps_to_go: usize,
        /// What is not finite, or beyond what rewards can add up to.
        quantity: &'static str,
        /// Its value.
        value: f64,
    },
    /// A checkpoint that training cannot go on from.
    #[error("training cannot go on from this checkpoint: {problem}")]
    NoState {
        /// What is missing or does not fit.
        problem: String,
    },
    /// The policy cannot play what an environment shows.
    #[error("the policy could not play")]
    Policy(#[from] blkpilot_models::PolicyError),
    /// The planner that is distilled had no answer.
    #[error("the planner had no answer")]
    Planning(#[source] blkpilot_models::oracle::OracleError),
    /// A checkpoint that does not fit.
    #[error(transparent)]
    Checkpoint(#[from] blkpilot_models::CheckpointError),
}

/// Tells libtorch to use one thread: results are then repeatable, and the host's CPUs are left to
/// its guests. Takes effect once per process; every learner calls it.
pub fn use_one_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tch::set_num_threads(1);
        tch::set_num_interop_threads(1);
    });
}
