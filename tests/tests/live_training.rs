//! Training on a real guest, through the service that manages it: the lab is interrupted, goes on, is killed, and
//! whatever it did is put back.
//!
//! With `BLKPILOT_TRAINING_POLICY`, the directory of a policy that was trained in simulation, the lab's own configs are
//! trained at full size besides, and the figures printed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_log::schema::Source;
use blkpilot_log::{DecisionId, DecisionRow, Event, Reader};
use blkpilot_tests::fixture::{Fixture, preset};
use blkpilot_tests::live;
use blkpilot_tests::reading::Reading;
use blkpilot_tests::service::Blkpilot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Direct reads on a device limited to 2,000 requests per second, of what fits in the page cache.
const GUEST: &str = "poor-cache";
const INTERVAL: &str = "interval = \"250ms\"";
/// Room to learn in minutes: see docs/operations.md, Training on a live host.
const TABLES: &str = "[policy]
baseline = \"keep_default\"
[guard]
dwell = \"250ms\"
changes_per_minute = 600
trial_windows = 1
doubt_windows = 1
tolerated_ratio = 3
retry_undone = \"8s\"
longest_retry = \"30s\"
breaker_failures = 1000";
const PATIENCE: Duration = Duration::from_secs(180);
/// What a lab that is told to end may take: a step, two windows, an update and some writing.
const SOON: Duration = Duration::from_secs(90);
/// The lease of a client that is killed, and what puts everything back then.
const LEASE: Duration = Duration::from_secs(60 + 30);

/// Few steps, but several updates and episodes.
const SMALL: &str = r#"
version = 1
[environment]
kind = "remote"
address = "ADDRESS"
host = "hosts/local"
episode_steps = 12
[network]
hidden = 16
channel_hidden = 8
[training]
env_steps = 60
envs = 1
steps = 10
epochs = 2
minibatch = 16
gamma = 0.8
gae_lambda = 0.9
learning_rate = 1e-3
clip = 0.2
checkpoint_every = 10
[evaluation]
episodes = 0
"#;

/// The service of a fixture, and the lab that trains there.
struct Bench {
    fixture: Fixture,
    blkpilot: Blkpilot,
    original: Reading,
}

impl Bench {
    fn start() -> Option<Self> {
        let fixture = live::fixture("live_training", vec![preset(GUEST).unwrap()])?;
        let original = Reading::of(&fixture, GUEST).unwrap();
        let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
        let mut blkpilot = Blkpilot::new(binary, &fixture, INTERVAL, TABLES);
        blkpilot.serve();
        Some(Self {
            fixture,
            blkpilot,
            original,
        })
    }

    fn address(&self) -> String {
        let socket = self.blkpilot.dir().join("blkpilot.sock");
        format!("unix:{}", socket.display())
    }

    fn out(&self, name: &str) -> PathBuf {
        self.blkpilot.dir().join(name)
    }

    fn lab(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blkpilot-lab-under-test"));
        command.args(args).current_dir(self.blkpilot.dir());
        command
    }

    /// Begins to train, with what it says in files.
    fn begin(&self, name: &str, config: &Path, more: &[&str]) -> Child {
        let out = self.out(name);
        let paths = [config.to_str().unwrap(), "--out", out.to_str().unwrap()];
        let args = [&["train"], &paths[..], more].concat();
        let said = fs::File::create(self.out(&format!("{name}.err"))).unwrap();
        let mut command = self.lab(&args);
        command.stdout(Stdio::null()).stderr(said).spawn().unwrap()
    }

    fn small(&self) -> PathBuf {
        let file = self.out("small.toml");
        fs::write(&file, SMALL.replace("ADDRESS", &self.address())).unwrap();
        file
    }

    fn is_original(&self) -> bool {
        Reading::of(&self.fixture, GUEST).unwrap() == self.original
    }

    /// What is changed by what the journal says, but for histograms, which change nothing.
    fn journalled(&self) -> Vec<Value> {
        let output = self
            .blkpilot
            .run(&["journal", "--data-dir", "data", "--json"]);
        let journal: Value = serde_json::from_slice(&output.stdout).unwrap();
        let records = journal["records"].as_array().unwrap().iter();
        let is_setting = |record: &&Value| !record["knob"].as_str().unwrap().contains("histogram");
        records.filter(is_setting).cloned().collect()
    }

    fn assert_put_back(&self, when: &str) {
        assert_eq!(
            Reading::of(&self.fixture, GUEST).unwrap(),
            self.original,
            "{when}"
        );
        assert_eq!(self.journalled(), Vec::<Value>::new(), "{when}");
    }

    /// Waits until something of the guest is changed, by other means than the service's.
    fn wait_for_change(&self, name: &str, lab: &mut Child) {
        let begun = Instant::now();
        while self.is_original() {
            let said = || fs::read_to_string(self.out(&format!("{name}.err"))).unwrap();
            assert!(lab.try_wait().unwrap().is_none(), "it ended: {}", said());
            assert!(
                begun.elapsed() < PATIENCE,
                "nothing was changed: {}",
                said()
            );
            sleep(Duration::from_millis(50));
        }
    }

    fn summary(&self, name: &str) -> Value {
        let text = fs::read_to_string(self.out(name).join("summary.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Host-steps of an environment since this moment, in order: the decision and what came of it.
    fn steps(&self, since_us: i64) -> Vec<(DecisionRow, f64)> {
        let mut steps: Vec<(DecisionRow, Option<f64>)> = vec![];
        let at = |steps: &[(DecisionRow, Option<f64>)], id: DecisionId| {
            steps.iter().rposition(|(row, _)| row.id == id)
        };
        for event in self.events() {
            match event {
                Event::Decision(row) if row.source == Source::Explicit && row.at_us >= since_us => {
                    steps.push((*row, None));
                }
                Event::Outcome(row) => {
                    if let Some(index) = at(&steps, row.decision_id) {
                        steps[index].1 = row.counted.then(|| f64::from(row.reward_own));
                    }
                }
                Event::Decision(_) => {}
            }
        }
        let known = steps
            .into_iter()
            .filter_map(|(row, reward)| Some((row, reward?)));
        known.collect()
    }

    /// Joint decisions of a source since this moment that changed something.
    fn changing(&self, source: Source, since_us: i64) -> usize {
        let events = self.events().into_iter();
        let rows = events.filter_map(|event| match event {
            Event::Decision(row) if row.source == source && row.at_us >= since_us => Some(*row),
            _ => None,
        });
        rows.filter(is_change).count()
    }

    fn events(&self) -> Vec<Event> {
        let log = self.blkpilot.dir().join("data/decisions");
        let entries = Reader::open(&log).unwrap();
        entries.map(|entry| entry.unwrap().event).collect()
    }
}

fn is_change(row: &DecisionRow) -> bool {
    row.heads.iter().any(|head| head.executed != head.previous)
}

fn signal(lab: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(lab.id()).unwrap());
    kill(pid, signal).unwrap();
}

/// The exit code of a lab that was told to end.
fn ended(lab: &mut Child) -> Option<i32> {
    let told = Instant::now();
    loop {
        if let Some(status) = lab.try_wait().unwrap() {
            return status.code();
        }
        assert!(told.elapsed() < SOON, "it was told to end, and goes on");
        sleep(Duration::from_millis(50));
    }
}

fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_micros()).unwrap()
}

#[test]
fn what_trains_on_a_real_guest_leaves_it_as_it_was_however_it_ends() {
    let Some(bench) = Bench::start() else { return };
    interrupted_and_gone_on_with(&bench);
    if let Some(policy) = std::env::var_os("BLKPILOT_TRAINING_POLICY") {
        let policy = PathBuf::from(policy).canonicalize().unwrap();
        let none: &[&str] = &[];
        let fifths = train_at_full_size(&bench, "live", none);
        assert!(fifths[4] > fifths[0], "nothing was learnt: {fifths:?}");
        let start = ["--start-from", policy.to_str().unwrap()];
        train_at_full_size(&bench, "live_finetune", &start);
        killed(&bench);
    }
}

/// In its first updates, amid a rollout; the guest is back when the process has ended, and not some time later.
fn interrupted_and_gone_on_with(bench: &Bench) {
    let mut lab = bench.begin("small", &bench.small(), &[]);
    bench.wait_for_change("small", &mut lab);
    let policy = bench.out("small").join("policy");
    let begun = Instant::now();
    while !policy.exists() {
        assert!(begun.elapsed() < PATIENCE, "nothing was learnt");
        sleep(Duration::from_millis(50));
    }
    signal(&lab, Signal::SIGINT);
    let told = Instant::now();
    let code = ended(&mut lab);
    println!(
        "interrupted: ended, and everything put back, after {:.1} s",
        told.elapsed().as_secs_f64()
    );
    bench.assert_put_back("after SIGINT");
    let said = fs::read_to_string(bench.out("small.err")).unwrap();
    assert_eq!(code, Some(130), "{said}");
    let summary = bench.summary("small");
    assert_eq!(summary["interrupted"], true);
    assert_eq!(summary["remote"]["put_back"], true);
    let played = summary["env_steps"].as_u64().unwrap();
    assert!((20..60).contains(&played), "{played} steps");

    let resumed = bench.lab(&["resume", "small", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&resumed.stderr).into_owned();
    assert!(resumed.status.success(), "{said}");
    assert!(said.contains("a new episode begins"), "{said}");
    let summary: Value = serde_json::from_slice(&resumed.stdout).unwrap();
    assert_eq!(
        (&summary["interrupted"], &summary["env_steps"]),
        (&false.into(), &60.into())
    );
    assert_eq!(summary["remote"]["steps"], 60 - played);
    assert!(
        summary["remote"]["changes"].as_u64().unwrap() > 0,
        "{summary}"
    );
    bench.assert_put_back("at the end");
    // Every step is a decision on record, and something was changed.
    let steps = bench.steps(0);
    assert!(steps.len() >= 45, "{} steps in the log", steps.len());
    assert!(steps.iter().any(|(row, _)| is_change(row)));
}

/// The mean reward of each fifth of its steps.
fn train_at_full_size(bench: &Bench, name: &str, more: &[&str]) -> Vec<f64> {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments/configs");
    let config = configs.join(format!("{name}.toml")).canonicalize().unwrap();
    let (since_us, begun) = (now_us(), Instant::now());
    let address = bench.address();
    let mut lab = bench.begin(name, &config, &[&["--server", &address], more].concat());
    let status = lab.wait().unwrap();
    let said = fs::read_to_string(bench.out(&format!("{name}.err"))).unwrap();
    assert!(status.success(), "{said}");
    bench.assert_put_back(name);
    let summary = bench.summary(name);
    let remote = &summary["remote"];
    assert_eq!(remote["put_back"], true);
    let played = remote["steps"].as_u64().unwrap();
    assert!(played >= 500, "{played} steps");
    // What follows them in the log is the comparison.
    let mut steps = bench.steps(since_us);
    steps.truncate(usize::try_from(played).unwrap());
    assert!(
        steps.len() * 100 >= usize::try_from(played).unwrap() * 95,
        "{} of {played} steps earned",
        steps.len()
    );
    let fifths: Vec<f64> = steps.chunks(steps.len().div_ceil(5)).map(mean).collect();
    println!(
        "\n{name}: {played} steps in {} episodes, {} updates, {:.0} s with the comparison",
        remote["episodes"],
        summary["updates"],
        begun.elapsed().as_secs_f64()
    );
    if let Some(start) = summary["start"].as_object() {
        println!(
            "begun from a policy of {} host-steps of {} in simulation, {}",
            start["env_steps"], start["algorithm"], start["policy_sha256"]
        );
    }
    let fifths_text: Vec<String> = fifths.iter().map(|mean| format!("{mean:+.3}")).collect();
    println!(
        "own reward per interval, by fifths of the steps: {}",
        fifths_text.join(" ")
    );
    println!(
        "levels changed {}, asked for and not done {}, no longer in force at the end of the window {}",
        remote["changes"], remote["not_carried_out"], remote["changed_back"]
    );
    println!(
        "joint decisions that changed something, the comparison included: {} of the lab, {} of the guard (undone), {} \
         ways back at the end of an episode; at the end everything is as it was",
        bench.changing(Source::Explicit, since_us),
        bench.changing(Source::Guard, since_us),
        bench.changing(Source::Rollback, since_us),
    );
    for policy in ["trained", "keep_default"] {
        let figures = &summary["policies"][policy];
        println!(
            "{policy}: {:+.3} per interval, 95 % {:+.3} to {:+.3}",
            figures["reward_mean"].as_f64().unwrap(),
            figures["reward_ci95"][0].as_f64().unwrap(),
            figures["reward_ci95"][1].as_f64().unwrap()
        );
    }
    let difference = &summary["differences"]["keep_default"];
    println!(
        "trained - keep_default: {:+.3}, 95 % {:+.3} to {:+.3}, over {} rounds",
        difference["mean"].as_f64().unwrap(),
        difference["ci95"][0].as_f64().unwrap(),
        difference["ci95"][1].as_f64().unwrap(),
        summary["episodes"]
    );
    assert!(difference["mean"].as_f64().unwrap() > 0.0, "{difference}");
    fifths
}

fn mean(steps: &[(DecisionRow, f64)]) -> f64 {
    steps.iter().map(|(_, reward)| reward).sum::<f64>() / steps.len() as f64
}

/// Nobody is left to put anything back but the service.
fn killed(bench: &Bench) {
    let mut lab = bench.begin("killed", &bench.small(), &[]);
    bench.wait_for_change("killed", &mut lab);
    signal(&lab, Signal::SIGKILL);
    lab.wait().unwrap();
    let killed = Instant::now();
    while !bench.is_original() || !bench.journalled().is_empty() {
        assert!(killed.elapsed() < LEASE, "its settings are still in force");
        sleep(Duration::from_millis(200));
    }
    println!(
        "\nthe lab killed: everything put back by the service after {:.0} s",
        killed.elapsed().as_secs_f64()
    );
}
