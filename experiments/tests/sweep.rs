//! Sweeps from end to end: what is refused, what fails, what is killed and gone on with.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    checkpoint_every = 64
    [evaluation]
    episodes = 2
"#;

const GRID: &str = r#"
    version = 1
    config = "cart.toml"
    seeds = [3, 5]
    [parameters]
    training.clip = { values = [0.1, 0.2] }
"#;

struct Place(tempfile::TempDir);

impl Place {
    fn new(config: &str, sweep: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("cart.toml"), config).unwrap();
        fs::write(place.path("grid.toml"), sweep).unwrap();
        place
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

    fn sweep(&self, args: &[&str]) -> Output {
        let fixed = ["sweep", "grid.toml", "--json", "--jobs", "2"];
        self.command(&[&fixed[..], args].concat()).output().unwrap()
    }

    fn summary(&self, run: &str) -> Value {
        let file = self.path("out/grid").join(run).join("summary.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    fn written(&self, run: &str) -> SystemTime {
        let file = self.path("out/grid").join(run).join("summary.json");
        fs::metadata(file).unwrap().modified().unwrap()
    }
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const RUNS: [&str; 4] = [
    "clip=0.1/seed-3",
    "clip=0.1/seed-5",
    "clip=0.2/seed-3",
    "clip=0.2/seed-5",
];

#[test]
fn a_sweep_runs_each_configuration_on_each_seed_and_ranks_them() {
    let place = Place::new(CARTPOLE, GRID);
    let output = place.sweep(&[]);
    assert!(output.status.success(), "{output:?}");
    let report = report(&output);
    let ranked = report["configurations"].as_array().unwrap();
    assert_eq!(ranked.len(), 2);
    for own in ranked {
        let label = own["label"].as_str().unwrap();
        assert_eq!(
            format!("clip={}", own["parameters"]["training.clip"]),
            label
        );
        let rewards = own["rewards"].as_object().unwrap();
        for (seed, reward) in rewards {
            let summary = place.summary(&format!("{label}/seed-{seed}"));
            assert_eq!(*reward, summary["policies"]["trained"]["reward_mean"]);
        }
        let sum: f64 = rewards.values().map(|own| own.as_f64().unwrap()).sum();
        assert_eq!(
            (own["median"].as_f64(), rewards.len()),
            (Some(sum / 2.0), 2)
        );
    }
    let medians: Vec<f64> = ranked
        .iter()
        .map(|own| own["median"].as_f64().unwrap())
        .collect();
    assert!(medians[0] >= medians[1], "{medians:?}");
    let file = fs::read(place.path("out/grid/sweep.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&file).unwrap(), report);
    // The same run by hand, from the config that the sweep wrote.
    let by_hand = [
        "train",
        "out/grid/clip=0.1/cart.toml",
        "--seed",
        "5",
        "--out",
        "hand",
        "--json",
    ];
    let by_hand: Value =
        serde_json::from_slice(&place.command(&by_hand).output().unwrap().stdout).unwrap();
    assert_eq!(
        by_hand["policy_sha256"],
        place.summary(RUNS[1])["policy_sha256"]
    );
    // What is done is skipped, and the ranking is the same.
    let before = RUNS.map(|run| place.written(run));
    let again = place.sweep(&[]);
    assert_eq!(self::report(&again), report);
    assert_eq!(RUNS.map(|run| place.written(run)), before);
    let listed = place
        .command(&["runs", "--status", "done", "--json"])
        .output()
        .unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 5);
    // With other seeds the runs that there are stay.
    let more = GRID.replace("[3, 5]", "[3, 5, 8]");
    fs::write(place.path("grid.toml"), more).unwrap();
    assert!(place.sweep(&[]).status.success());
    assert_eq!(RUNS.map(|run| place.written(run)), before);
    // Not with another config.
    fs::write(
        place.path("cart.toml"),
        CARTPOLE.replace("epochs = 1", "epochs = 2"),
    )
    .unwrap();
    let refused = place.sweep(&[]);
    assert_eq!(refused.status.code(), Some(2));
    let text = stderr(&refused);
    assert!(text.contains("training.epochs was 1 and is 2"), "{text}");
}

#[test]
fn all_that_is_wrong_with_any_configuration_is_said_before_anything_starts() {
    let sweep = GRID.replace("[0.1, 0.2]", "[0.1, -0.2, -0.3]")
        + "training.colour = { values = [1] }\n    training.gamma = { values = [0.9, 2.0] }\n";
    let place = Place::new(CARTPOLE, &sweep);
    let refused = place.sweep(&[]);
    assert_eq!(refused.status.code(), Some(2));
    let text = stderr(&refused);
    for wanted in [
        "training.clip = -0.2 must be > 0 (2 configurations, such as clip=-0.2",
        "training.clip = -0.3 must be > 0 (2 configurations",
        "training.gamma = 2 must be in [0, 1] (3 configurations",
        "training.colour is unknown",
    ] {
        assert!(text.contains(wanted), "no `{wanted}` in {text}");
    }
    assert!(!place.path("out").exists());
}

#[test]
fn a_run_that_fails_stops_no_other_and_is_tried_again_only_when_asked() {
    let place = Place::new(CARTPOLE, GRID);
    // A directory where the curve must go.
    let broken = place.path("out/grid/clip=0.2/seed-3");
    fs::create_dir_all(broken.join("curve.svg")).unwrap();
    let output = place.sweep(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let failed = &report(&output)["failed"];
    assert_eq!(failed.as_array().unwrap().len(), 1, "{failed}");
    assert_eq!(
        (&failed[0]["label"], &failed[0]["seed"]),
        (&"clip=0.2".into(), &3.into())
    );
    let error = failed[0]["error"].as_str().unwrap();
    assert!(error.contains("curve.svg"), "{error}");
    for run in [RUNS[0], RUNS[1], RUNS[3]] {
        assert_eq!(place.summary(run)["interrupted"], false);
    }
    fs::remove_dir(broken.join("curve.svg")).unwrap();
    let again = place.sweep(&[]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(report(&again)["failed"], *failed);
    assert!(!broken.join("summary.json").exists());
    let retried = place.sweep(&["--retry-failed"]);
    assert!(retried.status.success(), "{retried:?}");
    assert_eq!(report(&retried)["failed"], Value::Array(vec![]));
    assert_eq!(place.summary(RUNS[2])["interrupted"], false);
}

#[test]
fn a_sweep_that_is_ended_saves_and_goes_on_to_the_same_policies() {
    let long = CARTPOLE
        .replace("env_steps = 512", "env_steps = 12_000")
        .replace("checkpoint_every = 64", "checkpoint_every = 640");
    let one = GRID
        .replace("[0.1, 0.2]", "[0.1]")
        .replace("[3, 5]", "[3, 5, 6]");
    let runs = ["clip=0.1/seed-3", "clip=0.1/seed-5", "clip=0.1/seed-6"];
    let (whole, cut) = (Place::new(&long, &one), Place::new(&long, &one));
    assert!(whole.sweep(&[]).status.success());
    let begun =
        |place: &Place, run: &str| place.path("out/grid").join(run).join("state.json").exists();
    let mut start = cut.command(&["sweep", "grid.toml", "--jobs", "2"]);
    let start = start.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = start.spawn().unwrap();
    wait_until(|| begun(&cut, runs[0]) && begun(&cut, runs[1]));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!begun(&cut, runs[2]), "nothing is begun after Ctrl-C");
    for run in &runs[..2] {
        assert_eq!(cut.summary(run)["interrupted"], true, "it was told to save");
    }
    // The sweep itself is killed: its runs go on for themselves, and nobody takes them for lost.
    let mut child = start.spawn().unwrap();
    wait_until(|| begun(&cut, runs[2]));
    child.kill().unwrap();
    child.wait().unwrap();
    let busy = cut.sweep(&[]);
    if busy.status.code() == Some(1) {
        let failed = report(&busy)["failed"].to_string();
        assert!(
            failed.contains("another process is training there"),
            "{failed}"
        );
    }
    wait_until(|| cut.sweep(&[]).status.success());
    for run in runs {
        assert_eq!(
            cut.summary(run)["policy_sha256"],
            whole.summary(run)["policy_sha256"],
            "{run}"
        );
    }
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(240);
    while !is_so() {
        assert!(Instant::now() < deadline, "it does not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}
