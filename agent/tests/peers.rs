//! Clients that are not ours: grpcio and Gymnasium, at the binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const BLKPILOT: &str = env!("CARGO_BIN_EXE_blkpilot");

/// `scripts/setup.sh` has installed what it wants; without it the script does, and says so.
#[test]
fn grpcio_calls_every_method_by_stubs_and_reflection_and_gymnasium_takes_the_environments() {
    let out = TempDir::new().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/python-clients.sh");
    let ran = Command::new(script)
        .arg(out.path().join("clients"))
        .env("BLKPILOT_BIN", Path::new(BLKPILOT).parent().unwrap())
        .output()
        .unwrap();
    let (said, complaint) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(ran.status.success(), "{said}{complaint}");
    println!("{said}");
    for shown in [
        "reflection v1:",
        "reflection v1alpha:",
        "health: Check and Watch",
        "errors: ",
        "CartPole: passes gymnasium.utils.env_checker",
        "mixed: passes gymnasium.utils.env_checker",
    ] {
        assert!(said.contains(shown), "no `{shown}` in {said}");
    }
}
