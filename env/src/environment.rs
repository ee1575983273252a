//! Reset and step, with Gymnasium's semantics.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2};
use thiserror::Error;

use crate::decision::{ActionError, JointAction};
use crate::observation::Observation;
use crate::spec::EnvSpec;

/// Options of `reset`, by name; an environment refuses names it does not know.
pub type ResetOptions = BTreeMap<String, String>;

/// The reward of one step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rewards {
    /// Training reward per disk: (1 − β)·own + β·mean of own over the host; `[N]`.
    pub total: Array1<f32>,
    /// Own part per disk: the sum of its terms; `[N]`.
    pub own: Array1<f32>,
    /// Named terms per disk, in the order of `EnvSpec::reward_terms`; `[N, terms]`.
    pub terms: Array2<f32>,
    /// Whether the disk counts in this step; an idle disk does not, and has reward 0; `[N]`.
    pub counted: Vec<bool>,
}

impl Rewards {
    /// Nothing earned, and no disk that counts.
    pub(crate) fn clear(&mut self) {
        self.total.fill(0.0);
        self.own.fill(0.0);
        self.terms.fill(0.0);
        self.counted.fill(false);
    }

    /// Mean of the own parts over the disks that count: the headline figure. `None` if none counts.
    #[must_use]
    pub fn host_mean(&self) -> Option<f32> {
        let own = self.own.iter().zip(&self.counted);
        let (disks, sum) = own
            .filter(|(_, counted)| **counted)
            .fold((0_u32, 0.0), |(disks, sum), (own, _)| {
                (disks + 1, sum + own)
            });
        (disks > 0).then(|| sum / disks as f32)
    }
}

/// What one step returns.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What is seen after the step (after the reset, under `Autoreset::SameStep`).
    pub observation: Observation,
    /// Reward per disk. Its rows are the disks of the observation the action was chosen on.
    pub rewards: Rewards,
    /// The action that took effect; it can differ from the one requested on a live host.
    pub executed: JointAction,
    /// The episode reached a terminal state: the value of what follows is 0.
    pub terminated: bool,
    /// The episode was cut: the value of what follows is not 0.
    pub truncated: bool,
    /// Last observation of the episode, where `observation` is already the next one's first.
    pub final_observation: Option<Box<Observation>>,
}

impl Step {
    /// Whether the episode ended in this step.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.terminated || self.truncated
    }
}

/// Why an environment refused or failed.
#[derive(Debug, Error)]
pub enum EnvError {
    /// `step` came first.
    #[error("step was called before reset: call reset first")]
    StepBeforeReset,
    /// The episode has ended and autoreset is disabled.
    #[error("the episode has ended: call reset before the next step")]
    EpisodeOver,
    /// The action does not fit the observation.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// An option of `reset` that is not known or not valid.
    #[error("reset option `{name}` = `{value}`: {problem}")]
    Option {
        /// Name of the option.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A configuration that cannot be built.
    #[error("{0}")]
    Config(#[from] crate::sim::ScenarioErrors),
    /// The host behind the environment failed; nothing was left half-changed unless the text says so.
    #[error("{message}")]
    Host {
        /// What failed, where, and the way out.
        message: String,
        /// The cause.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// What a reset of many environments does to one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// It goes on as it is.
    Leave,
    /// An episode begins; its random numbers go on.
    GoOn,
    /// An episode begins; its random numbers restart from a seed.
    Seeded(u64),
}

/// Why many environments were not reset or stepped together; none of them was.
#[derive(Debug, Error)]
pub enum BatchError {
    /// One of them refused.
    #[error("environment {environment}: {source}")]
    Environment {
        /// Its number.
        environment: usize,
        /// Why.
        source: EnvError,
    },
    /// The actions are not as many levels as the environments have heads.
    #[error("the packed actions are {got} levels, the environments need {want}")]
    Length {
        /// Levels given.
        got: usize,
        /// Levels needed.
        want: usize,
    },
    /// Not one entry per environment.
    #[error("{got} environments are named, there are {want}")]
    Count {
        /// Entries given.
        got: usize,
        /// Environments there are.
        want: usize,
    },
    /// An option that is not known or not valid.
    #[error(transparent)]
    Option(EnvError),
}

/// An environment that draws from random numbers of its own, and from nothing else: whoever sets them and does the
/// same again sees the same.
pub trait Repeatable: Environment {
    /// The numbers as they stand.
    fn rng(&self) -> &crate::Rng;

    /// Goes on with these; an episode must be begun before the next step.
    fn set_rng(&mut self, rng: crate::Rng);
}

/// A host, or anything else an agent can act on.
pub trait Environment {
    /// What can be seen and done here.
    fn spec(&self) -> &EnvSpec;

    /// Starts an episode. With a seed, everything random that is ours restarts from it; without
    /// one it goes on.
    ///
    /// # Errors
    /// `Option` for an option that is unknown or wrong, `Host` if the host fails.
    fn reset(&mut self, seed: Option<u64>, options: &ResetOptions)
    -> Result<Observation, EnvError>;

    /// Applies an action for one interval.
    ///
    /// # Errors
    /// `StepBeforeReset`, `EpisodeOver`, `Action` if the action does not fit the last observation
    /// (nothing is changed then), `Host` if the host fails.
    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError>;
}
