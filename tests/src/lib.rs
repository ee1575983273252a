//! System tests and the live guest fixture.

pub mod auto;
pub mod checked;
pub mod fixture;
pub mod live;
pub mod reading;
pub mod service;
