//! Bandits in the service: what they have learned is what the decision log holds, whenever the service is killed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blkpilot_agent::config::Config;
use blkpilot_agent::decision::learner::Learner;
use blkpilot_agent::server;
use blkpilot_env::EnvSpec;
use blkpilot_env::features::kvm_host_spec;
use blkpilot_log::{
    DecisionId, DecisionRow, Event, Horizon, OutcomeRow, Query, Scan, Stage, Writer,
};
use blkpilot_models::bandit::{Algorithm, BanditConfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::Settings;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
const THOMPSON: &str = "bandit = \"thompson\"";

fn settings(policy: &str) -> Settings {
    Settings {
        host: "kind = \"simulated\"\nscenario = \"mixed\"\ntime_scale = 100\nmode = \"auto\""
            .to_owned(),
        policy: policy.to_owned(),
        ..Settings::default()
    }
}

fn spec() -> EnvSpec {
    kvm_host_spec(&[])
}

struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path) -> Self {
        let file = dir.join("blkpilot.toml");
        fs::write(&file, settings(THOMPSON).toml(dir)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_blkpilot"))
            .args(["serve", "--config"])
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert!(line.contains("listening on"), "{line}");
        Self(child)
    }

    fn end(mut self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Rows of the log whose outcome tells something.
fn telling(dir: &Path) -> Vec<DecisionRow> {
    outcomes(dir).into_iter().map(|(row, _)| row).collect()
}

fn outcomes(dir: &Path) -> Vec<(DecisionRow, OutcomeRow)> {
    let log = dir.join("data/decisions");
    if !log.exists() {
        return vec![];
    }
    let batches = Scan::open(&log, Query::default(), Horizon::Final).unwrap();
    let rows = batches.flat_map(|batch| batch.unwrap().rows().unwrap());
    let telling = rows.filter_map(|row| {
        let outcome = row.outcome.ok()?;
        let is_telling = outcome.counted && outcome.validity.is_usable();
        is_telling.then_some((row.decision, outcome))
    });
    telling.collect()
}

fn wait_for_more(dir: &Path, than: usize) {
    let deadline = Instant::now() + PATIENCE;
    while telling(dir).len() <= than {
        assert!(Instant::now() < deadline, "no more than {than} outcomes");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn caught_up(dir: &Path) -> Learner {
    let config = BanditConfig::new(Algorithm::Thompson(1.0));
    let mut learner = Learner::open(&dir.join("data"), &spec(), config).unwrap();
    learner.catch_up(&dir.join("data/decisions"), "local");
    learner
}

#[test]
fn what_was_learned_outlives_kill_9_once_and_whole() {
    let dir = TempDir::new().unwrap();
    for round in 0..4 {
        let before = telling(dir.path()).len();
        let daemon = Daemon::start(dir.path());
        wait_for_more(dir.path(), before + 30 * (1 + round));
        daemon.end(Signal::SIGKILL);
        let rows = telling(dir.path()).len() as u64;
        assert_eq!(caught_up(dir.path()).rewards(), rows, "round {round}");
        assert_eq!(caught_up(dir.path()).rewards(), rows, "a second time");
    }
    let rows = telling(dir.path());
    let free = rows
        .iter()
        .flat_map(|row| &row.heads)
        .filter(|head| !head.forced);
    let drawn = free.filter(|head| head.propensity < 1.0).count();
    assert!(drawn > 0, "a Thompson sampler draws");
    assert!(
        rows.iter()
            .all(|row| row.stage == Stage::Policy && &*row.policy == "thompson")
    );
}

#[test]
fn a_bandit_without_a_past_learns_from_the_whole_log_of_another_policy() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("data")).unwrap();
    let daemon = Daemon::start(dir.path());
    wait_for_more(dir.path(), 40);
    daemon.end(Signal::SIGTERM);
    let rows = telling(dir.path()).len() as u64;
    let written = dir.path().join("data/bandits/thompson.json");
    assert!(written.exists(), "it is written down at the end");
    let config = BanditConfig::new(Algorithm::LinUcb(1.0));
    let mut other = Learner::open(&dir.path().join("data"), &spec(), config).unwrap();
    assert_eq!(other.rewards(), 0);
    other.catch_up(&dir.path().join("data/decisions"), "local");
    assert_eq!(other.rewards(), rows);
    other.catch_up(&dir.path().join("data/decisions"), "another-host");
    assert_eq!(other.rewards(), rows);
}

#[test]
fn a_row_that_is_not_of_its_spec_teaches_nothing_and_ends_nothing() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("data")).unwrap();
    let daemon = Daemon::start(dir.path());
    wait_for_more(dir.path(), 3);
    daemon.end(Signal::SIGTERM);
    let (whole, outcome) = outcomes(dir.path()).remove(0);
    let breaks: [fn(&mut DecisionRow); 5] = [
        |_| (),
        |row| row.seen.channels.truncate(1),
        |row| row.heads[0].executed = 99,
        |row| row.heads[1].mask.truncate(1),
        |row| row.heads.truncate(1),
    ];
    let log = dir.path().join("made_up");
    let mut writer = Writer::open(&log, blkpilot_log::Config::default())
        .unwrap()
        .0;
    for (number, break_it) in (1..).zip(breaks) {
        let (mut decision, mut outcome) = (whole.clone(), outcome.clone());
        (decision.id, outcome.decision_id) = (DecisionId(number), DecisionId(number));
        break_it(&mut decision);
        writer.append(&Event::Decision(Box::new(decision))).unwrap();
        writer.append(&Event::Outcome(outcome)).unwrap();
    }
    writer.commit().unwrap();
    let config = BanditConfig::new(Algorithm::LinUcb(1.0));
    let mut learner = Learner::open(dir.path(), &spec(), config).unwrap();
    learner.catch_up(&log, "local");
    assert_eq!(learner.rewards(), 1);
}

#[test]
fn what_is_written_down_and_does_not_fit_is_refused_by_name_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("data/bandits/thompson.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let config = || {
        let text = settings(THOMPSON).toml(dir.path());
        Config::parse(&dir.path().join("blkpilot.toml"), &text).unwrap()
    };
    server::check(&config()).unwrap();
    for broken in [
        "{",
        "{\"format\": 7, \"until_us\": 0, \"learned\": {\"spec_hash\": \"\", \"rewards\": 0, \"heads\": []}}",
    ] {
        fs::write(&file, broken).unwrap();
        let error = server::check(&config()).unwrap_err().to_string();
        assert!(error.contains("policy.bandit = \"thompson\""), "{error}");
        assert!(
            error.contains("thompson.json") && error.contains("move it away"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), broken);
    }
}

#[test]
fn settings_of_a_bandit_are_checked_by_name() {
    let dir = TempDir::new().unwrap();
    let problems = |policy: &str| {
        let text = settings(policy).toml(dir.path());
        let parsed = Config::parse(&dir.path().join("blkpilot.toml"), &text);
        parsed.unwrap_err().to_string()
    };
    for (policy, words) in [
        ("bandit = \"exp3\"", "policy.bandit"),
        (
            "bandit = \"linucb\"\nbaseline = \"random\"",
            "stands beside policy.baseline",
        ),
        ("bandit = \"linucb\"\nscale = 1.0", "policy.scale"),
        (
            "bandit = \"linucb\"\nalpha = -1.0",
            "policy.alpha = -1 must be in [0, 100]",
        ),
        (
            "bandit = \"thompson\"\nmemory = 0.2",
            "policy.memory = 0.2 must be in [0.9, 1]",
        ),
        (
            "bandit = \"thompson\"\n[candidate]\nbandit = \"thompson\"",
            "candidate.bandit",
        ),
    ] {
        let text = problems(policy);
        assert!(text.contains(words), "{policy}: {text}");
    }
    let apart = settings("bandit = \"thompson\"\n[candidate]\nbandit = \"linucb\"\nalpha = 2");
    let text = apart.toml(dir.path());
    Config::parse(&dir.path().join("blkpilot.toml"), &text).unwrap();
}
