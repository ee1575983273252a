//! Many runs of one config: over seeds, over a grid of parameters, or over draws of them.
//!
//! [`file`] is what a sweep file says, [`parameters`] makes configurations of it, [`plan`] checks all of them before
//! anything is started, [`processes`] runs them, each as a process of its own, [`ranking`] is what they came to. A
//! sweep keeps no state but the directories of its runs: called again, it goes on with what it finds there.

pub mod file;
pub mod parameters;
pub mod plan;
pub mod processes;
pub mod ranking;

pub use plan::Plan;
pub use processes::{Options, Progress, sweep};
pub use ranking::SweepReport;

/// File of the ranking within the directory of a sweep.
pub const SWEEP_FILE: &str = "sweep.json";
