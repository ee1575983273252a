//! The blkpilot service: serves a policy over gRPC and retunes running guests.
//!
//! Reading order: [`config`], [`backend`] (what a host must do, live or simulated), [`admission`]
//! (what may be changed: pure), [`decision`] and [`history`] (what is decided and recorded),
//! [`owner`] (the one thread that touches a host) and [`handle`] (how to ask it), [`environments`]
//! and [`hosted`], [`policy_store`] and [`deployment`], [`training`] (runs of processes that train), [`api`] (the
//! services over them), [`access`] (who may call them), [`server`] (all of it together). [`remote`] and [`client`]
//! are the other end of the wire; [`cli`] is the binary.

pub mod accept;
pub mod access;
pub mod actor;
pub mod admission;
pub mod api;
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
pub mod environments;
pub mod evaluations;
mod feed;
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
pub mod operations;
pub mod owner;
mod packed;
mod panel;
pub mod policy;
pub mod policy_store;
pub mod pulse;
pub mod reload;
pub mod remote;
mod repeat;
pub mod requests;
pub mod server;
pub mod status;
pub mod supervisor;
pub mod sweep;
mod toml_reader;
pub mod training;
pub mod trial;
mod wire;
