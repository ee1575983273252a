//! Policies of a service: those that its configuration names, the versions it keeps, how a version comes to decide and what
//! it is judged by.

pub mod deployment;
pub mod evaluations;
pub mod judging;
pub mod loading;
pub mod store;
