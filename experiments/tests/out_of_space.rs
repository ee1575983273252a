//! A disk that fills up while a checkpoint is written: the one before stands, the run says so, and goes on from it when
//! there is room.
//!
//! The limit is the kernel's on the size of a file, which a shell sets for the process: what is written beyond it fails
//! half way, as on a full disk.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_lab::Config;
use blkpilot_lab::train::{Event, Existing, Run, resume, train};
use blkpilot_models::Checkpoint;

const CARTPOLE: &str = r#"
    version = 1
    [environment]
    kind = "cartpole"
    [network]
    hidden = 32
    [training]
    env_steps = 640
    envs = 4
    steps = 16
    epochs = 1
    minibatch = 32
    gamma = 0.98
    gae_lambda = 0.8
    learning_rate = 1e-3
    clip = 0.2
    checkpoint_every = 64
    [evaluation]
    episodes = 2
"#;

#[test]
fn a_full_disk_leaves_the_last_checkpoint_and_the_run_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cart.toml");
    fs::write(&file, CARTPOLE).unwrap();
    let config = Config::load(&file).unwrap();
    let whole = dir.path().join("whole");
    trained(&config, &whole, u64::MAX);
    for (name, most_kib) in [("policy", 8), ("state", 64)] {
        let out = dir.path().join(name);
        trained(&config, &out, 3);
        let before = Checkpoint::load(&out.join("policy")).unwrap();
        if name == "state" {
            // The policy fits and where the run stands does not: between the two of them it must still go on.
            make_state_large(&out);
        }
        let full = limited(&out, most_kib);
        let text = String::from_utf8_lossy(&full.stderr);
        assert_eq!(full.status.code(), Some(1), "{text}");
        let steps = before.manifest.env_steps;
        let wanted = format!("its checkpoint of {steps} steps stands: make room");
        assert!(text.contains(&wanted), "{text}");
        assert!(text.contains("File too large"), "{text}");
        let is_of_the_state = text.contains("state.json: cannot write it");
        assert_eq!(is_of_the_state, name == "state", "{text}");
        let left: Vec<String> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("new"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let summary = resume(&out, &AtomicBool::new(false), &mut |_| ()).unwrap();
        assert!(!summary.interrupted);
        let tensors = |out: &Path| Checkpoint::load(&out.join("policy")).unwrap().tensors;
        assert_eq!(tensors(&out), tensors(&whole), "{name}");
    }
}

fn trained(config: &Config, out: &Path, most_updates: u64) {
    let run = Run {
        config,
        seed: 3,
        out,
        existing: Existing::Refuse,
    };
    let (stop, mut updates) = (AtomicBool::new(false), 0);
    train(&run, &stop, &mut |event| {
        updates += u64::from(matches!(event, Event::Update { .. }));
        stop.fetch_or(updates >= most_updates, Ordering::Relaxed);
    })
    .unwrap();
}

/// Spaces say nothing in JSON, but what is written next is no smaller for the returns of many episodes.
fn make_state_large(out: &Path) {
    let file = out.join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let points = state["points"].as_array_mut().unwrap();
    let first = points
        .first()
        .cloned()
        .unwrap_or(serde_json::json!([64, 1.0]));
    points.splice(0..0, std::iter::repeat_n(first, 4000));
    fs::write(&file, state.to_string()).unwrap();
}

/// Goes on with a run in a process whose files may have at most so many KiB.
fn limited(out: &Path, most_kib: u32) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {most_kib}; exec \"$@\"");
    Command::new("bash")
        .args(["-c", &script, "bash"])
        .arg(env!("CARGO_BIN_EXE_blkpilot-lab"))
        .arg("resume")
        .arg(out)
        .env("BLKPILOT_RUNS", out.with_extension("db"))
        .output()
        .unwrap()
}
