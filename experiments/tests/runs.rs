//! What the database of runs knows of runs that end well, badly, or without a word.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blkpilot_lab::Config;
use blkpilot_lab::runs::Recorder;
use blkpilot_lab::train::{Event, Existing, Run, train};
use serde_json::Value;

const CARTPOLE: &str = r#"
    version = 1
    [environment]
    kind = "cartpole"
    [network]
    hidden = 8
    [training]
    env_steps = 512
    envs = 4
    steps = 16
    epochs = 1
    minibatch = 32
    gamma = 0.98
    gae_lambda = 0.8
    learning_rate = 1e-3
    clip = 0.2
    checkpoint_every = 128
    [evaluation]
    episodes = 2
"#;

/// A directory of its own, as a user has one.
struct Place(tempfile::TempDir);

impl Place {
    fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cart.toml"), config).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blkpilot-lab"));
        command.args(args).current_dir(self.0.path());
        command.env_remove("BLKPILOT_RUNS");
        command
    }

    fn lab(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn runs(&self, args: &[&str]) -> Value {
        let output = self.lab(&[&["runs", "--json"], args].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Of the only run.
    fn status(&self) -> String {
        self.runs(&[])[0]["status"].as_str().unwrap().to_owned()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_run_is_recorded_where_it_was_started_with_what_it_came_to() {
    let place = Place::new(CARTPOLE);
    let nothing = place.lab(&["runs"]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(stderr(&nothing).contains("out/runs.db: no runs are recorded there"));
    let trained = place.lab(&["train", "cart.toml", "--seed", "4", "--json"]);
    assert!(trained.status.success(), "{trained:?}");
    assert!(trained.stderr.is_empty(), "{}", stderr(&trained));
    let summary: Value = serde_json::from_slice(&trained.stdout).unwrap();
    let run = &place.runs(&[])[0];
    let wanted = [
        ("config_name", "cart"),
        ("algorithm", "ppo"),
        ("status", "done"),
    ];
    for (key, value) in wanted {
        assert_eq!(run[key], value);
    }
    assert_eq!((&run["id"], &run["seed"]), (&1.into(), &4.into()));
    assert_eq!(run["steps_done"], run["steps_planned"]);
    assert_eq!(run["code_version"], summary["code_versions"][0]);
    let figures = &run["figures"];
    let of_summary = &summary["policies"]["trained"]["reward_mean"];
    assert_eq!(&figures["reward_mean"], of_summary);
    assert_eq!(figures["differences"], summary["differences"]);
    assert_eq!(run["config"]["training"]["checkpoint_every"], 128);
    let shown = place.lab(&["runs", "show", "1"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    for part in [
        "run 1: cart, ppo, seed 4",
        "status: done",
        "checkpoint_every = 128",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    assert_eq!(place.runs(&["--status", "failed"]), Value::Array(vec![]));
    let table = String::from_utf8(place.lab(&["runs", "--status", "done"]).stdout).unwrap();
    assert!(table.contains("out/cart/seed-4"), "{table}");
    let no_such = place.lab(&["runs", "show", "7"]);
    assert_eq!(no_such.status.code(), Some(2));
    // Another place for the list, by the command line or by the environment.
    let elsewhere = ["train", "cart.toml", "--out", "b", "--runs", "other.db"];
    assert!(place.lab(&elsewhere).status.success());
    let mut listed = place.command(&["runs", "--json"]);
    let listed = listed.env("BLKPILOT_RUNS", "other.db").output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(place.runs(&[]).as_array().unwrap().len(), 1);
}

#[test]
fn a_run_under_way_says_so_and_nobody_else_trains_there() {
    let place = Place::new(CARTPOLE);
    let config = Config::load(&place.path("cart.toml")).unwrap();
    let out = place.path("out/run");
    let mut recorder = Recorder::new(place.path("out/runs.db"));
    let stop = AtomicBool::new(false);
    let run = Run {
        config: &config,
        seed: 1,
        out: &out,
        existing: Existing::Refuse,
    };
    let mut updates = 0;
    let summary = train(&run, &stop, &mut |event| {
        assert_eq!(recorder.see(&event), None);
        if matches!(event, Event::Update { .. }) {
            updates += 1;
        }
        if updates == 3 {
            updates += 1;
            assert_eq!(place.status(), "running");
            for args in [
                &["train", "cart.toml", "--out", "out/run", "--overwrite"][..],
                &["resume", "out/run"],
            ] {
                let refused = place.lab(args);
                assert_eq!(refused.status.code(), Some(2), "{refused:?}");
                let text = stderr(&refused);
                assert!(text.contains("another process is training there"), "{text}");
            }
            stop.store(true, Ordering::Relaxed);
        }
    })
    .unwrap();
    assert!(summary.interrupted);
    let run = &place.runs(&[])[0];
    assert_eq!(run["status"], "interrupted");
    assert_eq!(run["steps_done"], summary.env_steps);
    assert!(place.lab(&["resume", "out/run"]).status.success());
    let runs = place.runs(&[]);
    assert_eq!(runs.as_array().unwrap().len(), 1, "it is the same run");
    assert_eq!(runs[0]["status"], "done");
}

#[test]
fn a_run_that_is_killed_is_lost_until_it_is_gone_on_with() {
    let long = CARTPOLE.replace("env_steps = 512", "env_steps = 100_000_000");
    let place = Place::new(&long);
    let train = ["train", "cart.toml", "--out", "out/run"];
    let mut child = place.command(&train).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !place.path("out/run/state.json").exists() {
        assert!(Instant::now() < deadline, "no checkpoint after two minutes");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(place.status(), "running");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.status(), "lost");
    let shown = place.lab(&["runs", "show", "1"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("go on: blkpilot-lab resume"), "{text}");
    // One that takes its place is another run, and the old one stays in the list.
    std::fs::write(place.path("cart.toml"), CARTPOLE).unwrap();
    assert!(
        place
            .lab(&[&train[..], &["--overwrite"]].concat())
            .status
            .success()
    );
    let runs = place.runs(&[]);
    assert_eq!(
        (&runs[0]["status"], &runs[0]["replaced_by"]),
        (&"lost".into(), &2.into())
    );
    assert_eq!(
        (&runs[1]["status"], &runs[1]["replaced_by"]),
        (&"done".into(), &Value::Null)
    );
}

#[test]
fn a_run_that_fails_is_recorded_with_its_error() {
    let place = Place::new(CARTPOLE);
    // A file where the policy's directory must go.
    let out = place.path("out/run");
    std::fs::create_dir_all(&out).unwrap();
    let config = Config::load(&place.path("cart.toml")).unwrap();
    let run = Run {
        config: &config,
        seed: 1,
        out: &out,
        existing: Existing::Refuse,
    };
    let mut recorder = Recorder::new(place.path("out/runs.db"));
    let failed = train(&run, &AtomicBool::new(false), &mut |event| {
        if let Event::Started { dir, .. } = &event {
            std::fs::write(dir.join("policy.previous"), "in the way").unwrap();
        }
        assert_eq!(recorder.see(&event), None);
    });
    let error = failed.unwrap_err();
    assert_eq!(recorder.fail(&error), None);
    let run = &place.runs(&[])[0];
    assert_eq!(run["status"], "failed");
    let text = run["error"].as_str().unwrap();
    assert!(
        text.contains("the run cannot be saved") && text.contains("policy.previous"),
        "{text}"
    );
}

#[test]
fn a_list_that_cannot_be_written_is_a_warning_and_the_run_goes_on() {
    let place = Place::new(CARTPOLE);
    let trained = place.lab(&["train", "cart.toml", "--runs", "cart.toml/runs.db"]);
    assert!(trained.status.success(), "{trained:?}");
    let text = stderr(&trained);
    assert_eq!(text.matches("warning: ").count(), 1, "{text}");
    assert!(
        text.contains("cart.toml") && text.contains("the run goes on"),
        "{text}"
    );
    let text_file = place.lab(&["train", "cart.toml", "--out", "b", "--runs", "cart.toml"]);
    assert!(text_file.status.success(), "{text_file:?}");
    assert!(stderr(&text_file).contains("not a database"));
    assert!(Path::new(&place.path("b/summary.json")).exists());
}
