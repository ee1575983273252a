//! A run that was interrupted and gone on with is the run that was not, bit for bit.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_lab::state::STATE_FILE;
use blkpilot_lab::train::{Event, SUMMARY_FILE, Summary, resume};
use tempfile::TempDir;

use common::{assert_same, config, trained};

/// Hosts of several sizes with devices that decide; episodes end within rollouts.
const HOSTS: &str = r#"
    version = 1
    [environment]
    kind = "sim_host"
    [environment.generator]
    disks = [1, 3]
    channels = [1, 3]
    steps = 7
    schedulers = true
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
    normalise_reward = true
    learning_rate = 1e-3
    learning_rate_schedule = "linear_to_zero"
    clip = 0.2
    entropy = 0.01
    checkpoint_every = 40
    [evaluation]
    episodes = 2
"#;

const CARTPOLE: &str = r#"
    version = 1
    [environment]
    kind = "cartpole"
    [network]
    hidden = 8
    [training]
    env_steps = 1024
    envs = 4
    steps = 32
    epochs = 2
    minibatch = 32
    gamma = 0.98
    gae_lambda = 0.8
    learning_rate = 1e-3
    clip = 0.2
    checkpoint_every = 256
    [evaluation]
    episodes = 2
"#;

/// A replay that has gone round by its end, with priorities, over several steps, whose oldest host-steps wait for what
/// follows when a policy is saved.
const DQN: &str = r#"
    version = 1
    [environment]
    kind = "sim_host"
    [environment.generator]
    disks = [1, 3]
    channels = [1, 3]
    steps = 7
    [network]
    hidden = 8
    channel_hidden = 4
    [training]
    algorithm = "dqn"
    env_steps = 1536
    envs = 4
    train_frequency = 64
    gradient_steps = 3
    learning_starts = 128
    minibatch = 16
    replay_capacity = 700
    priority_alpha = 0.6
    n_steps = 3
    gamma = 0.8
    target_update_interval = 200
    exploration_fraction = 0.5
    exploration_final = 0.1
    learning_rate = 1e-3
    learning_rate_schedule = "linear_to_zero"
    checkpoint_every = 512
    [evaluation]
    episodes = 2
"#;

const DQN_CARTPOLE: &str = r#"
    version = 1
    [environment]
    kind = "cartpole"
    [network]
    hidden = 8
    [training]
    algorithm = "dqn"
    env_steps = 1100
    envs = 1
    train_frequency = 4
    gradient_steps = 1
    learning_starts = 100
    minibatch = 16
    replay_capacity = 5000
    gamma = 0.99
    tau = 0.01
    exploration_fraction = 0.2
    exploration_final = 0.04
    learning_rate = 1e-3
    [evaluation]
    episodes = 2
"#;

const DISTIL: &str = r#"
    version = 1
    [environment]
    kind = "sim_host"
    [environment.generator]
    disks = [1, 2]
    channels = [1, 2]
    steps = 7
    [network]
    hidden = 8
    channel_hidden = 4
    [training]
    algorithm = "distil"
    env_steps = 96
    envs = 4
    steps = 4
    epochs = 2
    minibatch = 16
    threads = 2
    learning_rate = 1e-3
    learning_rate_schedule = "linear_to_zero"
    checkpoint_every = 32
    [evaluation]
    episodes = 2
"#;

const SCENARIO: &str = include_str!("../../env/scenarios/capped_device.toml");

fn resumed(out: &Path) -> Summary {
    resume(out, &AtomicBool::new(false), &mut |_| ()).unwrap()
}

#[test]
fn a_run_that_is_interrupted_at_any_update_and_gone_on_with_is_the_same() {
    let dir = TempDir::new().unwrap();
    let all = [
        ("hosts", HOSTS),
        ("cartpole", CARTPOLE),
        ("dqn", DQN),
        ("dqn-cartpole", DQN_CARTPOLE),
        ("distil", DISTIL),
    ];
    for (name, text) in all {
        let config = config(dir.path(), text);
        let whole = dir.path().join(format!("{name}-whole"));
        let mut updates = 0;
        let straight = trained(&config, &whole, |update| {
            updates = update;
            false
        });
        for at in BTreeSet::from([1, 2, updates / 2, updates - 1]) {
            let out = dir.path().join(format!("{name}-{at}"));
            let cut = trained(&config, &out, |update| update == at);
            assert!(cut.interrupted);
            assert!(cut.env_steps < straight.env_steps && cut.updates < straight.updates);
            let summary = resumed(&out);
            assert_same((&straight, &whole), (&summary, &out));
        }
    }
}

#[test]
fn a_run_may_be_interrupted_again_and_again() {
    for text in [HOSTS, DQN] {
        interrupt_again_and_again(text);
    }
}

fn interrupt_again_and_again(text: &str) {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), text);
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    let straight = trained(&config, &whole, |_| false);
    trained(&config, &out, |update| update == 2);
    let summary = loop {
        // Each time for one update.
        let stop = AtomicBool::new(false);
        let summary = resume(&out, &stop, &mut |event| {
            stop.fetch_or(matches!(event, Event::Update { .. }), Ordering::Relaxed);
        })
        .unwrap();
        if summary.env_steps >= summary.env_steps_planned {
            break summary;
        }
    };
    assert!(summary.interrupted, "it was stopped at its last update");
    assert_same((&straight, &whole), (&resumed(&out), &out));
}

/// What a kill leaves is what stood there when the policy was last saved, between two renames at worst.
#[test]
fn a_run_that_is_killed_goes_on_from_its_last_checkpoint() {
    for text in [HOSTS, DQN] {
        kill(text);
    }
}

/// The state of a run and what its learner remembers, which are there until the next state is.
fn state_files(dir: &Path) -> Vec<(OsString, Vec<u8>)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name == STATE_FILE || name.starts_with("memory-")
    });
    named
        .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
        .collect()
}

fn kill(text: &str) {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), text);
    let (whole, killed, torn) = (
        dir.path().join("whole"),
        dir.path().join("killed"),
        dir.path().join("torn"),
    );
    let copy = |to: &Path| {
        let copied = Command::new("cp").arg("-r").arg(&whole).arg(to).status();
        assert!(copied.unwrap().success());
    };
    let mut before = vec![];
    let straight = trained(&config, &whole, |update| {
        // It is told of before it is saved, so the last checkpoint is that of an update before this one, and there is
        // one before that.
        if update == 5 {
            copy(&killed);
            copy(&torn);
            // As if the state's own rename had not been reached.
            assert_ne!(before, state_files(&whole));
            for (name, bytes) in &before {
                fs::write(torn.join(name), bytes).unwrap();
            }
        } else if before.is_empty() {
            before = state_files(&whole);
        }
        false
    });
    for out in [&killed, &torn] {
        assert!(!out.join(SUMMARY_FILE).exists());
        assert_same((&straight, &whole), (&resumed(out), out));
    }
}

#[test]
fn what_a_learner_remembers_is_kept_while_it_is_needed_and_no_longer() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), DQN);
    let out = dir.path().join("out");
    let memories = || state_files(&out).len() - 1;
    let mut seen = vec![];
    trained(&config, &out, |update| {
        if update > 2 {
            seen.push(memories());
        }
        update == 5
    });
    assert_eq!((seen, memories()), (vec![1, 1, 1], 1));
    let name = state_files(&out).into_iter().map(|(name, _)| name);
    let name = name.into_iter().find(|name| name != STATE_FILE).unwrap();
    let kept = fs::read(out.join(&name)).unwrap();
    fs::remove_file(out.join(&name)).unwrap();
    let refused = lab(&["resume", out.to_str().unwrap()]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains(name.to_str().unwrap()), "{text}");
    fs::write(out.join(&name), kept).unwrap();
    resumed(&out);
    assert_eq!(memories(), 0);
}

#[test]
fn a_run_whose_scenario_has_changed_is_refused_with_the_difference() {
    let dir = TempDir::new().unwrap();
    let scenario = dir.path().join("mine.toml");
    fs::write(&scenario, SCENARIO).unwrap();
    let text = HOSTS
        .split("[environment.generator]")
        .next()
        .unwrap()
        .to_owned()
        + "scenario = \"mine.toml\"\n[network]"
        + HOSTS.split("[network]").nth(1).unwrap();
    let config = config(dir.path(), &text);
    let out = dir.path().join("out");
    trained(&config, &out, |update| update == 2);
    let changed = SCENARIO.replacen("memory_gib = 32.0", "memory_gib = 31.0", 1);
    assert_ne!(changed, SCENARIO);
    fs::write(&scenario, changed).unwrap();
    let refused = lab(&["resume", out.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(
        text.contains("environment.scenario.memory_gib was 32.0 and is 31.0"),
        "{text}"
    );
    fs::write(&scenario, SCENARIO).unwrap();
    let done = lab(&["resume", out.to_str().unwrap(), "--json"]);
    assert!(done.status.success());
    let summary: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(summary["interrupted"], false);
}

/// Config and scenario were copied into the directory of the run: that is what --force goes on with, to the same end.
#[test]
fn a_run_whose_config_was_edited_is_refused_and_forced_it_goes_on_as_it_was() {
    let dir = TempDir::new().unwrap();
    let scenario = dir.path().join("mine.toml");
    fs::write(&scenario, SCENARIO).unwrap();
    let (before, after) = (
        HOSTS.split("[environment.generator]").next(),
        HOSTS.split("[network]").nth(1),
    );
    let text = format!(
        "{}scenario = \"mine.toml\"\n[network]{}",
        before.unwrap(),
        after.unwrap()
    );
    let config = config(dir.path(), &text);
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    let straight = trained(&config, &whole, |_| false);
    trained(&config, &out, |update| update == 2);
    let refused = |wanted: &str| {
        let refused = lab(&["resume", out.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(2));
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains(wanted) && text.contains("--force"), "{text}");
    };
    fs::write(
        dir.path().join("own.toml"),
        text.replace("clip = 0.2", "clip = 0.3"),
    )
    .unwrap();
    refused("training.clip was 0.2 and is 0.3");
    fs::write(dir.path().join("own.toml"), "this is no TOML").unwrap();
    refused("it is no TOML now");
    fs::remove_file(dir.path().join("own.toml")).unwrap();
    fs::write(&scenario, "name = 3").unwrap();
    refused("mine.toml");
    // Its own copy must still be the one it was trained on.
    let copy = out.join("scenario.toml");
    let own = fs::read_to_string(&copy).unwrap();
    fs::write(&copy, own.replace("memory_gib = 32.0", "memory_gib = 31.0")).unwrap();
    let forced = lab(&["resume", out.to_str().unwrap(), "--force"]);
    assert_eq!(forced.status.code(), Some(2), "{forced:?}");
    fs::write(&copy, own).unwrap();
    let forced = lab(&["resume", out.to_str().unwrap(), "--force"]);
    assert!(forced.status.success(), "{forced:?}");
    assert_same(
        (&straight, &whole),
        (&resumed_where_nothing_is_left(&out, &scenario), &out),
    );
}

/// A file that is gone says nothing else than it said.
fn resumed_where_nothing_is_left(out: &Path, scenario: &Path) -> Summary {
    fs::remove_file(scenario).unwrap();
    resumed(out)
}

#[test]
fn a_run_of_other_code_is_refused_unless_forced_and_says_so_ever_after() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), HOSTS);
    let out = dir.path().join("out");
    let this = trained(&config, &out, |update| update == 2).code_versions;
    assert_eq!(this.len(), 1);
    let state = out.join(STATE_FILE);
    let text = fs::read_to_string(&state).unwrap();
    assert!(text.contains(&this[0]));
    fs::write(&state, text.replace(&this[0], "0.0.1+feedbeef")).unwrap();
    let refused = lab(&["resume", out.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(
        text.contains("0.0.1+feedbeef") && text.contains(&this[0]),
        "{text}"
    );
    let forced = lab(&["resume", out.to_str().unwrap(), "--force", "--json"]);
    assert!(forced.status.success(), "{forced:?}");
    let summary: serde_json::Value = serde_json::from_slice(&forced.stdout).unwrap();
    assert_eq!(
        summary["code_versions"],
        serde_json::json!(["0.0.1+feedbeef", this[0]])
    );
}

#[test]
fn what_cannot_be_gone_on_with_is_refused_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let refusal = |out: &Path| {
        let refused = lab(&["resume", out.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(2));
        String::from_utf8(refused.stderr).unwrap()
    };
    let nothing = refusal(&dir.path().join("nothing"));
    assert!(nothing.contains("state.json"), "{nothing}");
    let config = config(dir.path(), HOSTS);
    let out = dir.path().join("out");
    trained(&config, &out, |update| update == 2);
    let state = out.join(STATE_FILE);
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, &text[..text.len() / 2]).unwrap();
    let torn = refusal(&out);
    assert!(torn.contains("cannot go on with this run"), "{torn}");
    fs::write(&state, &text).unwrap();
    fs::remove_dir_all(out.join("policy")).unwrap();
    let lost = refusal(&out);
    assert!(
        lost.contains("the policy of its state is missing"),
        "{lost}"
    );
}

fn lab(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blkpilot-lab"))
        .args(args)
        .env(
            "BLKPILOT_RUNS",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/resume.db"),
        )
        .output()
        .unwrap()
}
