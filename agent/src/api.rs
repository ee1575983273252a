//! The gRPC API: a handler for each service, and the domain's types as messages and back.
//!
//! A handler checks a request, asks whoever owns what it is about, and puts the answer into a message. What it keeps is
//! about calls alone: answers to those that may be repeated, and how many are under way.

pub mod environment_service;
pub(crate) mod environment_wire;
pub mod evaluation_service;
pub(crate) mod evaluation_wire;
pub(crate) mod filter;
pub mod gate;
pub(crate) mod new_version;
pub(crate) mod observing;
pub mod operation_service;
pub mod paging;
pub mod policy_service;
pub(crate) mod policy_upload;
pub(crate) mod policy_wire;
pub(crate) mod rollout;
pub(crate) mod span;
pub mod training_service;
pub mod tuner_service;
pub(crate) mod tuner_wire;
pub(crate) mod watchers;
