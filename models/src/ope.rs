//! Offline evaluation: what a policy would have brought, from a log of another one's decisions.
//!
//! Reading order: [`scores`] (what every estimator hands to intervals and resampling), [`bandit`] (single
//! decisions, of one or more heads), [`sequential`] (trajectories), [`interval`], [`resample`],
//! [`cressie_read`], then what says whether to believe it: [`weights`], [`pareto`], and [`selection`] over
//! candidates. [`scaled`] are numbers beyond the exponent of f64: a weight of ten thousand steps is one.
//!
//! **Nothing is dropped in silence.** A log is checked once, when it is taken in: the first row that cannot
//! be evaluated is an [`OpeError`] that names row and field. What is undefined or beyond f64 is an error too,
//! never NaN or infinity.
//!
//! Conventions: `w` is the importance weight (evaluation probability over propensity), `V` what a model q̂
//! expects of the evaluation policy, `e` the reward less what it expects of the logged action. After
//! termination a weight stays at its last value, and reward, q̂ and V are 0, so that every trajectory counts
//! at every step.

pub mod bandit;
pub mod cressie_read;
mod distribution;
pub mod error;
pub mod interval;
mod least_squares;
pub mod matrix;
pub mod moments;
pub mod pareto;
pub mod quantile;
pub mod resample;
pub mod scaled;
pub mod scores;
pub mod selection;
pub mod sequential;
pub mod simplex;
pub mod weights;

pub use error::{OpeError, Place};
pub use matrix::Matrix;
pub use resample::Bootstrap;
pub use scores::{Kind, Scores, Summary, Terms};
pub use selection::Selection;
pub use weights::WeightDiagnostics;

/// How far probabilities may sum from 1, and a propensity be from what the behaviour policy gives.
pub const SUM_TOLERANCE: f64 = 1e-6;
