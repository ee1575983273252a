//! The blkpilot service: serves a policy over gRPC and retunes running guests.
//!
//! Reading order: [`config`], [`backend`] (what a host must do, live or simulated), [`admission`]
//! (what may be changed: pure), [`decision`] and [`history`] (what is decided and recorded),
//! [`owner`] (the one thread that touches a host) and [`handle`] (how to ask it), [`environments`]
//! and [`hosted`], the services over them, [`training`] (runs of processes that train), [`access`] (who may call them), [`server`] (all of it together). [`remote`] and [`client`]
//! are the other end of the wire; [`cli`] is the binary.

pub mod accept;
pub mod access;
pub mod actor;
pub mod admission;
pub mod backend;
pub mod chain;
pub mod cli;
pub mod client;
mod compaction;
pub mod config;
pub mod database;
pub mod decision;
pub mod deployment;
pub mod doctor;
pub mod durable;
pub mod environment_service;
mod environment_wire;
pub mod environments;
pub mod evaluation_service;
mod evaluation_wire;
pub mod evaluations;
mod feed;
mod filter;
pub mod gate;
pub mod handle;
pub mod history;
pub mod hosted;
pub mod judging;
pub mod last_good;
pub mod learner;
pub mod listen;
pub mod mode;
pub mod names;
mod new_version;
mod observing;
pub mod operation_service;
pub mod operations;
pub mod owner;
mod packed;
pub mod paging;
mod panel;
pub mod policy;
pub mod policy_service;
pub mod policy_store;
mod policy_upload;
mod policy_wire;
pub mod pulse;
pub mod reload;
pub mod remote;
mod repeat;
pub mod requests;
mod rollout;
pub mod server;
mod span;
pub mod status;
pub mod supervisor;
pub mod sweep;
mod toml_reader;
pub mod training;
pub mod training_service;
pub mod trial;
pub mod tuner_service;
mod tuner_wire;
mod watchers;
mod wire;
