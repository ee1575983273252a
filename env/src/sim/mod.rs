//! The simulated host: an approximate mean-value analysis of the I/O path.
//!
//! [`scenario`] says what a host is made of, [`costs`] what the path beside the device costs,
//! [`network`] solves the closed queueing network of one interval, [`page_cache`] gives hit rates,
//! [`host`] is the environment that runs intervals and keeps the counters, [`batch`] steps many hosts
//! together.

pub mod batch;
mod boot;
mod check;
pub mod costs;
mod counters;
mod device_state;
mod disk_state;
mod episode;
pub mod generator;
pub mod host;
pub mod network;
pub mod page_cache;
pub mod presets;
mod report;
pub mod scenario;

mod simulation;
mod write_back;

pub use batch::SimBatch;
pub use costs::Costs;
pub use generator::Generator;
pub use host::SimHost;
pub use scenario::{Scenario, ScenarioErrors};
