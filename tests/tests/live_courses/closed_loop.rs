//! `scripts/loop.sh` from end to end on a simulated host. On a guest it is `make loop`, and the proof `loop` of
//! `make verify`.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// Long enough for the ten blocks of 5 s without which no verdict is believed.
const EXPLORE_S: &str = "58";

#[test]
fn what_is_explored_is_learnt_promoted_harmed_undone_and_rolled_back() {
    let dir = TempDir::new().unwrap();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for (binary, name) in [
        (env!("CARGO_BIN_EXE_blkpilot-under-test"), "blkpilot"),
        (
            env!("CARGO_BIN_EXE_blkpilot-lab-under-test"),
            "blkpilot-lab",
        ),
    ] {
        symlink(binary, bin.join(name)).unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = Command::new(root.join("scripts/loop.sh"))
        .args(["--simulated", "--explore", EXPLORE_S, "--out"])
        .arg(dir.path().join("out"))
        .env("BLKPILOT_BIN", &bin)
        .output()
        .unwrap();
    let (said, errors) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(out.status.success(), "{said}\n{errors}");
    for evidence in [
        "0 wrong",                                     // the decision log
        "learned is better than the behaviour",        // the evaluation
        "policies/harmful/versions/1 is not promoted", // the gate
        "3 changes were undone by the guard",
        "the guard put back 3 of its changes", // why it was rolled back
        "The loop is closed.",
    ] {
        assert!(said.contains(evidence), "{evidence}: {said}\n{errors}");
    }
}
