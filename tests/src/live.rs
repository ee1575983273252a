//! Live tests: how they get a fixture, and how they say that they were skipped.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::fixture::{Fixture, FixtureConfig, FixtureError, GuestSpec, check_host};

/// A fixture with these guests, or `None` after saying loudly that the test is skipped.
///
/// ```no_run
/// # use blkpilot_tests::{fixture::preset, live};
/// let Some(fixture) = live::fixture("pins_follow", vec![preset("poor-binding").unwrap()]) else { return };
/// ```
///
/// # Panics
/// When the fixture fails on a machine that has what it needs, and when live tests are required
/// (`BLKPILOT_REQUIRE_LIVE=1`) and cannot run.
#[must_use]
pub fn fixture(test: &str, guests: Vec<GuestSpec>) -> Option<Fixture> {
    match Fixture::start(FixtureConfig { guests }) {
        Ok(fixture) => Some(fixture),
        Err(FixtureError::Unavailable(unavailable)) => {
            skip(test, &unavailable.reason);
            None
        }
        Err(broken) => panic!("live test {test}: the fixture is broken: {broken}"),
    }
}

/// Whether this machine has what live tests need; otherwise it has been said loudly that the test is
/// skipped.
///
/// # Panics
/// When live tests are required (`BLKPILOT_REQUIRE_LIVE=1`) and cannot run.
#[must_use]
pub fn is_possible(test: &str) -> bool {
    match check_host() {
        Ok(()) => true,
        Err(unavailable) => {
            skip(test, &unavailable.reason);
            false
        }
    }
}

/// Says that a live test is skipped: on standard error past cargo's capture, and to
/// `scripts/test.sh` by a file in the directory `BLKPILOT_SKIP_DIR`.
///
/// # Panics
/// When live tests are required (`BLKPILOT_REQUIRE_LIVE=1`).
pub fn skip(test: &str, reason: &str) {
    let required = std::env::var_os("BLKPILOT_REQUIRE_LIVE")
        .is_some_and(|value| value != "0" && !value.is_empty());
    assert!(
        !required,
        "live test {test} cannot run, and BLKPILOT_REQUIRE_LIVE is set: {reason}"
    );
    let line = format!("SKIPPED live test {test}: {reason}\n");
    // Not eprintln!: cargo captures that of a test that passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(dir) = std::env::var_os("BLKPILOT_SKIP_DIR") {
        // When this fails the test is counted as passed, but the line above has been printed.
        let _ = fs::write(Path::new(&dir).join(test.replace(['/', ':'], "_")), line);
    }
}
