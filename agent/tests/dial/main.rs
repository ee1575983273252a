//! The dial on a simulated host: shadow, canary and auto beside each other, exploration and its budget,
//! and what stands in for a policy that fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod candidate;
mod exploration;
mod fallback;
mod setup;
mod succession;
