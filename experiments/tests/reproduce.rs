//! A run made again from its directory alone.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_lab::Config;
use blkpilot_lab::train::{Event, Existing, Run, train};
use blkpilot_models::Checkpoint;
use serde_json::Value;

const HOST: &str = r#"
    version = 1
    [environment]
    kind = "sim_host"
    scenario = "mine.toml"
    [network]
    hidden = 8
    channel_hidden = 4
    [training]
    env_steps = 160
    envs = 4
    steps = 5
    epochs = 2
    minibatch = 16
    gamma = 0.8
    gae_lambda = 0.9
    learning_rate = 1e-3
    clip = 0.2
    [evaluation]
    episodes = 2
"#;

/// A run, the only thing that is left of where it was made.
fn run(dir: &Path, most_updates: u64) -> PathBuf {
    let made = dir.join("made");
    fs::create_dir(&made).unwrap();
    fs::write(made.join("own.toml"), HOST).unwrap();
    let scenario = include_str!("../../env/scenarios/capped_device.toml");
    fs::write(made.join("mine.toml"), scenario).unwrap();
    let out = dir.join("run");
    let config = Config::load(&made.join("own.toml")).unwrap();
    let run = Run {
        config: &config,
        seed: 7,
        out: &out,
        existing: Existing::Refuse,
    };
    let (stop, mut updates) = (AtomicBool::new(false), 0);
    train(&run, &stop, &mut |event| {
        updates += u64::from(matches!(event, Event::Update { .. }));
        stop.fetch_or(updates >= most_updates, Ordering::Relaxed);
    })
    .unwrap();
    fs::remove_dir_all(&made).unwrap();
    out
}

fn reproduce(run: &Path, more: &[&str]) -> (Option<i32>, Value, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_blkpilot-lab"))
        .args(["reproduce", run.to_str().unwrap(), "--json"])
        .args(more)
        .env("BLKPILOT_RUNS", run.with_extension("db"))
        .output()
        .unwrap();
    let found = serde_json::from_slice(&stdout).unwrap_or_default();
    let said = String::from_utf8(stderr).unwrap();
    (status.code(), found, said)
}

#[test]
fn a_run_is_made_again_bit_for_bit_from_its_directory_alone() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), u64::MAX);
    let (code, found, said) = reproduce(&run, &[]);
    assert_eq!(
        (code, &found["equal"]),
        (Some(0), &true.into()),
        "{found}{said}"
    );
    assert_eq!(found["env_steps"], 160);
    assert!(found["values"].as_u64().unwrap() > 1000);
    let again = dir.path().join("run-again");
    let tensors = |run: &Path| Checkpoint::load(&run.join("policy")).unwrap().tensors;
    assert_eq!(tensors(&again), tensors(&run));
    // What was made again is a run like any other.
    assert_eq!(reproduce(&again, &[]).0, Some(0));
    let (code, _, said) = reproduce(&run, &[]);
    assert_eq!(code, Some(2), "what stands there is not overwritten");
    assert!(said.contains("run-again"), "{said}");
}

#[test]
fn a_run_that_was_interrupted_is_made_again_as_far_as_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), 3);
    let (code, found, said) = reproduce(&run, &[]);
    assert_eq!(
        (code, &found["equal"]),
        (Some(0), &true.into()),
        "{found}{said}"
    );
    let steps = Checkpoint::load(&run.join("policy"))
        .unwrap()
        .manifest
        .env_steps;
    assert_eq!(found["env_steps"], steps);
}

#[test]
fn what_differs_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), u64::MAX);
    // The state names its policy by the hash, so both are another one's.
    let mut checkpoint = Checkpoint::load(&run.join("policy")).unwrap();
    let hash = checkpoint.manifest.tensors_sha256.clone();
    let name = checkpoint.tensors.keys().next().unwrap().clone();
    checkpoint.tensors.get_mut(&name).unwrap().data[0] += 0.5;
    checkpoint.replace(&run.join("policy")).unwrap();
    let state = run.join("state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(
        &state,
        text.replace(&hash, &checkpoint.manifest.tensors_sha256),
    )
    .unwrap();
    let summary = run.join("summary.json");
    let mut said: Value = serde_json::from_slice(&fs::read(&summary).unwrap()).unwrap();
    said["policies"]["trained"]["reward_mean"] = 17.into();
    fs::write(&summary, said.to_string()).unwrap();
    let (code, found, said) = reproduce(&run, &[]);
    assert_eq!((code, &found["equal"]), (Some(1), &false.into()), "{said}");
    let differences = found["differences"].to_string();
    for wanted in [
        format!("tensor {name} differs in 1 of"),
        "policies.trained.reward_mean was 17".to_owned(),
    ] {
        assert!(
            differences.contains(&wanted),
            "no `{wanted}` in {differences}"
        );
    }
}

#[test]
fn a_run_of_other_code_is_refused_and_forced_it_is_told_beside() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(dir.path(), 3);
    let state = run.join("state.json");
    let mut known: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    known["code_versions"] = serde_json::json!(["0.0.1+feedbeef"]);
    fs::write(&state, known.to_string()).unwrap();
    let (code, _, said) = reproduce(&run, &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("was trained by 0.0.1+feedbeef"), "{said}");
    let (code, found, said) = reproduce(&run, &["--force"]);
    assert_eq!(
        (code, &found["equal"]),
        (Some(0), &true.into()),
        "{found}{said}"
    );
    assert_eq!(found["trained_by"][0], "0.0.1+feedbeef");
}

#[test]
fn what_is_no_run_cannot_be_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, said) = reproduce(dir.path(), &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("state.json"), "{said}");
}
