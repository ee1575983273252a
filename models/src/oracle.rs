//! How good a decision could have been: the oracle and what others lose against it.
//!
//! Definitions, over one scenario with disks whose phases change by Markov chains:
//! - the **value** r(φ, a) of a joint setting a in a phase vector φ is the noise-free steady mean host
//!   reward of holding a in φ, with a warm page cache ([`steady`], cached by [`values`]);
//! - the **oracle** knows the phase vector of the interval to come and takes the joint setting that
//!   maximises r(φ, a) − (cost of changing from what is in force to a) / (expected intervals that φ still
//!   lasts) ([`planner`], [`policies`]);
//! - the **lagged oracle** follows the same rule, but sees the phase vector of the interval before, as a
//!   policy does;
//! - the **best static** setting maximises the mean of r(φ, a) over the stationary distribution of the
//!   phases ([`phases`]) and is held from the first interval on ([`best_static`]);
//! - **regret** is in [`study`], **assignment accuracy** in [`Accuracy`], what the best setting depends
//!   on in [`dependence`].
//!
//! A table of a phase vector is exhaustive if all its settings that differ by more than an exact
//! symmetry fit the budget. Else it comes from a search, and [`bound`] says how much better the optimum
//! could be at most.
//!
//! Reading order: [`knobs`], [`phases`], [`steady`], [`values`], [`search`], [`bound`], [`planner`],
//! [`best_static`], [`policies`], [`study`], [`dependence`].

mod accuracy;
pub mod best_static;
pub mod bound;
pub mod dependence;
pub mod knobs;
pub mod phases;
pub mod planner;
pub mod policies;
mod pooled;
mod record;
mod regret;
pub mod search;
pub mod steady;
pub mod study;
pub mod values;

use blkpilot_env::EnvError;
use blkpilot_env::sim::ScenarioErrors;
use thiserror::Error;

use crate::episode::PlayError;

pub use accuracy::Accuracy;
pub use best_static::BestStatic;
pub use knobs::{Knob, Knobs, Setting};
pub use planner::{LevelCost, Limits, Moment, Planner};
pub use policies::{OraclePolicy, Sight, StaticPolicy};
pub use pooled::{PooledFigures, Resampled, pooled};
pub use regret::Estimate;
pub use study::{Study, StudyError, StudyOptions, study};

/// Why an oracle has no answer.
#[derive(Debug, Error)]
pub enum OracleError {
    /// The scenario does not hold together.
    #[error(transparent)]
    Scenario(#[from] ScenarioErrors),
    /// The simulated host refused a setting.
    #[error("the simulated host refused a setting")]
    Environment(#[from] EnvError),
    /// Whoever watched said stop.
    #[error("interrupted")]
    Interrupted,
    /// A policy failed, or an episode.
    #[error(transparent)]
    Play(#[from] PlayError),
}
