//! Policies learnt from decision logs of simulated hosts: better than what wrote the log, or like it; runs that go on; logs
//! that are refused.
//!
//! `experiments/results/offline.md` has the same at full size, with the commands.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_lab::compare::TRAINED;
use blkpilot_lab::log::{LogRun, log};
use blkpilot_lab::train::{Event, Existing, Run, Summary, resume, train};
use blkpilot_lab::{Config, LabError};
use blkpilot_models::{Checkpoint, Selection};
use tempfile::TempDir;

/// Four equal disks on four equal channels: what is learnt is not to share one.
const SCENARIO: &str = "identical_disks";

/// A log of `least_loaded`, drawn from all that is allowed with `epsilon`.
fn logged(dir: &Path, episodes: u64, epsilon: f64) -> PathBuf {
    let out = dir.join("log");
    let run = LogRun {
        environment: SCENARIO,
        policy: "least_loaded",
        selection: Selection::Sample,
        epsilon,
        episodes,
        first_seed: 0,
        out: &out,
    };
    log(&run, &AtomicBool::new(false), || ()).unwrap();
    out
}

const BC: &str = "algorithm = \"bc\"";
const CQL: &str = "algorithm = \"cql\"\nalpha = 0.1\ntarget_every = 50";
const IQL: &str = "algorithm = \"iql\"\nexpectile = 0.9\nbeta = 10.0\npolyak = 0.02";

fn text(algorithm: &str, steps: u64, selection: &str) -> String {
    format!(
        "version = 1
        [environment]
        kind = \"sim_host\"
        scenario = \"{SCENARIO}\"
        [network]
        hidden = 32
        channel_hidden = 16
        [data]
        log = \"log\"
        [training]
        {algorithm}
        grad_steps = {steps}
        report_every = 10
        checkpoint_every = 20
        minibatch = 128
        gamma = 0.8
        learning_rate = 3e-3
        learning_rate_schedule = \"linear_to_zero\"
        max_grad_norm = 10.0
        [evaluation]
        episodes = 24
        first_seed = 10_000
        selection = \"{selection}\"
        "
    )
}

fn config(dir: &Path, text: &str) -> Config {
    let file = dir.join("own.toml");
    fs::write(&file, text).unwrap();
    Config::load(&file).unwrap()
}

/// Trains into `out`; `watch` is told the number of each report, and ends the run by giving true.
fn trained(config: &Config, out: &Path, mut watch: impl FnMut(u64) -> bool) -> Summary {
    let run = Run {
        config,
        seed: 3,
        out,
        existing: Existing::Refuse,
    };
    let (stop, mut reports) = (AtomicBool::new(false), 0);
    train(&run, &stop, &mut |event| {
        if let Event::Update { .. } = event {
            reports += 1;
            stop.fetch_or(watch(reports), Ordering::Relaxed);
        }
    })
    .unwrap()
}

/// Seed 3; 40 episodes of `least_loaded` with ε = 0.6 as the log; 24 evaluation episodes on other seeds.
#[test]
fn from_the_log_of_a_mediocre_policy_cql_and_iql_learn_a_better_one_and_cloning_one_like_it() {
    let dir = TempDir::new().unwrap();
    logged(dir.path(), 40, 0.6);
    for (name, algorithm, selection) in [
        ("bc", BC, "sample"),
        ("cql", CQL, "greedy"),
        ("iql", IQL, "greedy"),
    ] {
        let config = config(dir.path(), &text(algorithm, 500, selection));
        let summary = trained(&config, &dir.path().join(name), |_| false);
        let own = &summary.comparison.policies[TRAINED];
        let from = summary.learnt_from.unwrap();
        let was = &from.behaviour;
        let was_ci95 = was.reward_ci95.unwrap();
        let figures = format!(
            "{name}: {:.4} {:?}, the log {:.4} {was_ci95:?}",
            own.reward_mean, own.reward_ci95, was.reward_mean
        );
        assert_eq!((was.blocks, was.resampled), (40, "host x episode"));
        if name == "bc" {
            let [low, high] = own.reward_ci95;
            assert!(low < was.reward_mean && was.reward_mean < high, "{figures}");
            assert_eq!(from.own_estimate, None);
        } else {
            assert!(own.reward_ci95[0] > was_ci95[1], "{figures}");
            assert!(from.own_estimate.unwrap() > from.behaviour_return.unwrap());
        }
        let evaluation = from.evaluation.unwrap();
        assert_eq!(evaluation.estimates.len(), 3, "{evaluation:?}");
        assert!(evaluation.behaviour.is_some(), "{evaluation:?}");
    }
}

/// All that a run came to but for the time it took.
fn assert_same(a: (&Summary, &Path), b: (&Summary, &Path)) {
    let policy = |out: &Path| Checkpoint::load(&out.join("policy")).unwrap();
    let (first, second) = (policy(a.1), policy(b.1));
    assert_eq!(first.tensors, second.tensors);
    assert_eq!(first.manifest, second.manifest);
    let figures = |summary: &Summary| {
        let mut summary = serde_json::to_value(summary).unwrap();
        for time in ["wall_s", "steps_per_s", "comparison_s"] {
            summary[time].take();
        }
        summary
    };
    assert_eq!(figures(a.0), figures(b.0));
}

#[test]
fn a_run_on_a_log_that_is_interrupted_and_gone_on_with_is_the_same() {
    let dir = TempDir::new().unwrap();
    logged(dir.path(), 3, 0.5);
    for (name, algorithm) in [("bc", BC), ("cql", CQL), ("iql", IQL)] {
        let text = text(algorithm, 65, "greedy").replace("episodes = 24", "episodes = 2");
        let config = config(dir.path(), &text);
        let whole = dir.path().join(format!("{name}-whole"));
        let straight = trained(&config, &whole, |_| false);
        assert_eq!(straight.algorithm, name);
        assert_eq!((straight.env_steps, straight.env_steps_planned), (65, 65));
        for at in [1, 6] {
            let out = dir.path().join(format!("{name}-{at}"));
            let cut = trained(&config, &out, |report| report == at);
            assert!(cut.interrupted);
            assert_eq!(cut.env_steps, 10 * at);
            assert_eq!(cut.learnt_from.unwrap().evaluation, None);
            let summary = resume(&out, &AtomicBool::new(false), &mut |_| ()).unwrap();
            assert_same((&straight, &whole), (&summary, &out));
        }
    }
}

#[test]
fn a_run_whose_log_has_changed_is_not_gone_on_with() {
    let dir = TempDir::new().unwrap();
    let own = logged(dir.path(), 2, 0.5);
    let config = config(dir.path(), &text(CQL, 40, "greedy"));
    let out = dir.path().join("out");
    trained(&config, &out, |report| report == 2);
    let other = TempDir::new().unwrap();
    let changed = logged(other.path(), 2, 0.4);
    fs::rename(&own, dir.path().join("kept")).unwrap();
    fs::rename(changed, &own).unwrap();
    let refused = lab(&["resume", out.to_str().unwrap()]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("the log has changed since"), "{text}");
    fs::remove_dir_all(&own).unwrap();
    fs::rename(dir.path().join("kept"), &own).unwrap();
    assert!(lab(&["resume", out.to_str().unwrap()]).status.success());
}

fn lab(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blkpilot-lab"))
        .args(args)
        .env(
            "BLKPILOT_RUNS",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/offline.db"),
        )
        .output()
        .unwrap()
}

#[test]
fn the_command_takes_a_log_and_says_what_is_expected_of_the_policy() {
    let dir = TempDir::new().unwrap();
    let own = logged(dir.path(), 3, 0.5);
    let moved = dir.path().join("elsewhere");
    fs::rename(own, &moved).unwrap();
    let file = dir.path().join("own.toml");
    fs::write(&file, text(IQL, 20, "greedy")).unwrap();
    let [file, moved, out] =
        [file, moved, dir.path().join("out")].map(|p| p.to_str().unwrap().to_owned());
    let refused = lab(&["train", &file, "--out", &out]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(
        text.contains("nothing can be learnt from this log"),
        "{text}"
    );
    let done = lab(&["train", &file, "--log", &moved, "--out", &out]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{text}");
    for part in [
        "of them with reward and successor",
        "least_loaded in the log: ",
        "the learner expects ",
        "by WDR on the same log: ",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
}

fn problems(text: &str) -> Vec<String> {
    match Config::parse(Path::new("x.toml"), text) {
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
        Ok(_) => vec![],
    }
}

#[test]
fn keys_of_other_learners_and_data_where_nothing_learns_from_them_are_refused() {
    let good = text(CQL, 20, "greedy");
    assert_eq!(problems(&good), Vec::<String>::new());
    let found = problems(&good.replace("alpha = 0.1", "alpha = -1.0\nexpectile = 0.5\nenvs = 3"));
    let wanted = [
        "x.toml: training.envs is unknown",
        "x.toml: training.expectile is only for algorithm = \"iql\": remove it",
        "x.toml: training.alpha = -1 must be at least 0",
    ];
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.starts_with(wanted), "{found} and not {wanted}");
    }
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    let found = problems(&good.replace("log = \"log\"", ""));
    assert!(
        found[0].starts_with("x.toml: data.log is missing: "),
        "{found:?}"
    );
    let ppo = include_str!("../configs/quickstart.toml").to_owned() + "[data]\nlog = \"log\"\n";
    let found = problems(&ppo);
    assert_eq!(
        found,
        ["x.toml: data is only for learners from a log, and ppo plays: remove it"]
    );
}

#[test]
fn a_log_of_another_spec_is_refused_with_the_difference() {
    let dir = TempDir::new().unwrap();
    logged(dir.path(), 1, 0.5);
    let cartpole = text(BC, 20, "sample")
        .replace(&format!("scenario = \"{SCENARIO}\""), "")
        .replace("sim_host", "cartpole");
    let config = config(dir.path(), &cartpole);
    let out = dir.path().join("out");
    let run = Run {
        config: &config,
        seed: 1,
        out: &out,
        existing: Existing::Refuse,
    };
    let error = train(&run, &AtomicBool::new(false), &mut |_| ()).unwrap_err();
    assert!(matches!(error, LabError::Logged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("and `cartpole` is"), "{text}");
    assert!(text.contains("disk_features has"), "{text}");
    assert!(
        !out.exists(),
        "nothing is written of a run that cannot begin"
    );
}
