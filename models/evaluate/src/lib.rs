//! What a policy would have brought, from a decision log: estimates, a verdict, and the gate of promotion.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//! use blkpilot_evaluate::{NetworkTarget, Options, VerdictRule, evaluate, verdict};
//! use blkpilot_models::{Checkpoint, Selection};
//!
//! let checkpoint = Checkpoint::load(Path::new("out/policy"))?;
//! let policy = NetworkTarget::new("policy", &checkpoint, Selection::Sample, 0.0)?;
//! let evaluation = evaluate(Path::new("out/log"), &policy, None, &Options::default())?;
//! println!("{}", verdict(&evaluation, &VerdictRule::default()).text);
//! # Ok(()) }
//! ```
//!
//! A [`TargetPolicy`] is given what was logged of each joint decision and says with which probability it would
//! have taken each level; [`evaluate()`] reads the log in three passes over batches of columns and holds sums per
//! block of host and time, not rows; [`verdict()`] and [`gate()`] are pure functions of what came out. Whoever has a
//! model of values of its own adds it as a [`ValueModel`]: it is given a [`Sample`] of the log's windows. Whoever learns from
//! a log is given its [`History`], all of it.
//!
//! **Nothing is dropped in silence**: a row that cannot be evaluated ends the evaluation, with segment and line;
//! what is left out or cut by intention is counted in [`LogFacts`]. **No number is NaN**: what is undefined is
//! absent, with the reason.

mod blocks;
mod calibration;
mod cells;
mod diagnostics;
mod error;
mod estimate;
mod evaluation;
mod facts;
mod features;
mod fit;
mod gate;
mod history;
mod html;
mod options;
pub mod page;
mod read;
mod replay;
mod sample;
mod step;
mod target;
mod trajectory;
mod value_model;
mod verdict;
mod weigh;
mod windows;

pub use calibration::{CalibrationBin, HeadCalibration};
pub use diagnostics::{Diagnostics, Histogram};
pub use error::{EvaluateError, MOST_PROBLEMS, Problem, Problems};
pub use estimate::{Estimate, Estimator, Value};
pub use evaluation::{
    Evaluation, Extras, FORMAT, PolicyLabel, Progress, WindowFacts, evaluate, evaluate_with,
};
pub use facts::{Behaviour, Counted, LogFacts};
pub use gate::{Admission, Force, GateRule, Needs, gate};
pub use history::{History, HistoryRow, HistoryStep, MOST_HISTORY_ROWS, RowOutcome};
pub use html::html;
pub use options::{Block, Exposure, Mixed, Options};
pub use sample::{MOST_HELD_ROWS, Sample, SampleStep, Then};
pub use target::{LoggedTurn, NetworkTarget, TargetPolicy, UniformTarget};
pub use value_model::{Fit, ModelEstimate, ValueModel};
pub use verdict::{Reason, Verdict, VerdictRule, Word, verdict};
