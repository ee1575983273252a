//! The whole product for minutes, on a guest and on a simulated host. Most of that is waiting, and neither is hurt by what
//! the other does to the machine: in one binary they run beside each other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod closed_loop;
mod shift;
