//! The blkpilot service: serves a policy over gRPC and retunes running guests.
//!
//! Reading order: [`config`], [`backend`] (what a host must do, live or simulated), [`admission`] (what may be changed: pure),
//! [`decision`] (what is decided, and recorded), [`owner`] (the one thread that touches a host, and how to ask it),
//! [`environments`], [`policies`], [`training`] (runs of processes that train), [`operations`] (work that outlasts a call),
//! [`api`] (the services over them) in the words of [`wire`], [`access`] (who may call them), [`server`] (all of it
//! together). [`client`] is the other end of the wire; [`cli`] is the binary.

pub mod access;
pub mod admission;
pub mod api;
pub mod backend;
pub mod cli;
pub mod client;
pub mod config;
pub mod database;
pub mod decision;
pub mod doctor;
pub mod durable;
pub mod environments;
pub mod operations;
pub mod owner;
pub mod policies;
pub mod requests;
pub mod server;
pub mod sweep;
pub mod training;
pub mod trial;
pub mod wire;
