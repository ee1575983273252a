//! Policies in pure Rust: the network, baselines, checkpoints, and the oracle they are judged by.
//!
//! Reading order: [`policy`] (the trait, and how a joint decision is driven), [`baseline`],
//! [`categorical`] (what a masked distribution is), [`normaliser`], [`architecture`] (names and
//! shapes of the tensors), [`checkpoint`], [`network`], [`network_policy`], [`bandit`] (what learns while it serves). Other learners live elsewhere: they write
//! checkpoints, this crate reads and serves them without libtorch. Then how policies are judged:
//! [`episode`], [`bootstrap`], [`oracle`], and from logs [`ope`]; and [`scenario_file`], the one way from a name to a
//! scenario.

pub mod architecture;
pub mod bandit;
pub mod baseline;
pub mod bootstrap;
pub mod categorical;
pub mod checkpoint;
pub mod episode;
pub mod explore;
#[cfg(test)]
mod fixture;
mod linear;
pub mod network;
pub mod network_policy;
pub mod normaliser;
pub mod ope;
pub mod oracle;
pub mod policy;
pub mod scenario_file;

pub use architecture::Architecture;
pub use checkpoint::{Checkpoint, CheckpointBytes, CheckpointError, Manifest, Tensor};
pub use network::{ActorCritic, Forward, Scratch};
pub use network_policy::{NetworkPolicy, Selection};
pub use normaliser::{Normaliser, Novelty, Outlier, PerTable, Range, Statistics, TableName};
pub use policy::{Choice, Decision, Policy, PolicyError, TurnChoice, decide, decide_with};
pub use scenario_file::ScenarioFileError;
