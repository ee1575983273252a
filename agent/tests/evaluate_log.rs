//! `blkpilot evaluate --log` and `blkpilot promote` on a log of a simulated host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use blkpilot_env::sim::{SimHost, presets};
use blkpilot_env::{EnvSpec, Environment as _, ResetOptions, Rng, Turn};
use blkpilot_log::{
    Config, DecisionId, DecisionRow, Ending, EpisodeId, Event, HostStepId, OutcomeRow, Source,
    StepContext, Writer,
};
use blkpilot_models::baseline::RandomPolicy;
use blkpilot_models::{Architecture, Checkpoint, decide_with};
use rand::SeedableRng as _;
use serde_json::Value;
use tempfile::TempDir;

const STEPS: u32 = 400;
const INTERVAL_US: i64 = 10_000_000;

fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_micros() as i64
}

/// Decisions of the random policy on a simulated host, the last of them an interval ago.
fn write_log(dir: &Path, break_row: Option<u128>) -> EnvSpec {
    let mut host = SimHost::fixed(presets::identical_disks(2, 2)).unwrap();
    let mut obs = host.reset(Some(1), &ResetOptions::new()).unwrap();
    let (spec, mut rng) = (host.spec().clone(), Rng::seed_from_u64(5));
    let mut writer = Writer::open(dir, Config::default()).unwrap().0;
    let start_us = now_us() - i64::from(STEPS + 1) * INTERVAL_US;
    let (mut number, mut episode) = (1_u128, 1_u128);
    for step in 0..STEPS {
        let at_us = start_us + i64::from(step) * INTERVAL_US;
        let context = StepContext {
            host_step_id: HostStepId(u128::from(step) + 1),
            episode_id: EpisodeId(episode),
            at_us,
            host: "host-a".into(),
            source: Source::Simulator,
            policy: "random".into(),
            policy_version: "".into(),
            spec_hash: spec.hash().into(),
            reward_weights: Arc::default(),
        };
        let mut rows = vec![];
        let decision = decide_with(&mut RandomPolicy, &spec, &obs, &mut rng, |view, made| {
            let order = rows.len() as u32;
            let id = DecisionId(number + u128::from(order));
            let row = DecisionRow::of_turn(id, order, &context, &obs, view, made);
            rows.push((view.turn, row));
        })
        .unwrap();
        let done = host.step(&decision.action).unwrap();
        let ending = Ending {
            at_us: at_us + INTERVAL_US,
            interval_s: 10.0,
            terminated: false,
            truncated: done.truncated,
        };
        let mut outcomes = vec![];
        for (turn, mut row) in rows {
            if Some(row.id.0) == break_row {
                row.heads[0].propensity = 0.0;
            }
            if let Turn::Disk(disk) = turn {
                outcomes.push(OutcomeRow::of_disk(
                    row.id,
                    disk,
                    &spec,
                    &done.rewards,
                    &ending,
                ));
            }
            number += 1;
            writer.append(&Event::Decision(Box::new(row))).unwrap();
        }
        for outcome in outcomes {
            writer.append(&Event::Outcome(outcome)).unwrap();
        }
        obs = done.observation;
        if done.truncated {
            obs = host.reset(None, &ResetOptions::new()).unwrap();
            episode += 1;
        }
    }
    writer.commit().unwrap();
    spec
}

fn checkpoint(dir: &Path, spec: &EnvSpec, seed: u64) {
    let mut rng = Rng::seed_from_u64(seed);
    Checkpoint::untrained(spec, Architecture::default(), &mut rng)
        .save(dir)
        .unwrap();
}

/// A data directory with a log, and a policy beside it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(break_row: Option<u128>) -> Self {
        let dir = TempDir::new().unwrap();
        let spec = write_log(&dir.path().join("data/decisions"), break_row);
        checkpoint(&dir.path().join("policy"), &spec, 7);
        checkpoint(&dir.path().join("other"), &spec, 8);
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_blkpilot"))
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }
}

const QUICK: [&str; 8] = [
    "--selection",
    "sample",
    "--horizon",
    "2",
    "--block",
    "100s",
    "--replicates",
    "200",
];

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_log_is_evaluated_in_words_as_json_and_as_a_page() {
    let place = Place::new(None);
    let evaluate = [
        &["evaluate", "--log", "data", "--policy", "policy"][..],
        &QUICK,
    ]
    .concat();
    let (out, err) = text(&place.run(&evaluate));
    assert!(
        out.contains("policy") && out.contains("Exposure host"),
        "{out}{err}"
    );
    for name in [
        "SNPDIS",
        "WDR",
        "FQE",
        "Weights: effective sample size",
        "Counted:",
    ] {
        assert!(out.contains(name), "{name}: {out}");
    }
    assert!(!out.contains("NaN"), "{out}");
    let more = ["--json", "--html", "page.html", "--against", "other"];
    let output = place.run(&[&evaluate[..], &more].concat());
    let (out, err) = text(&output);
    assert!(output.status.success(), "{err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    let [evaluation, verdict] = ["evaluation", "verdict"].map(|key| &json[key]);
    assert_eq!(evaluation["log"]["rows"], 2 * STEPS);
    assert_eq!(evaluation["against"]["name"], "other");
    assert_eq!(evaluation["estimates"].as_array().unwrap().len(), 3);
    assert!(["better", "worse", "cannot_tell"].contains(&verdict["word"].as_str().unwrap()));
    // An untrained network draws nearly at random, as the log did.
    assert!(evaluation["diagnostics"]["ess"].as_f64().unwrap() > 50.0);
    let page = fs::read_to_string(place.path("page.html")).unwrap();
    assert!(page.contains("<svg") && page.contains(verdict["text"].as_str().unwrap()));
    let random = [
        &["evaluate", "--log", "data", "--policy", "random"][..],
        &QUICK,
    ]
    .concat();
    let (out, err) = text(&place.run(&random));
    assert!(
        out.starts_with("cannot tell whether random is better"),
        "{out}{err}"
    );
}

#[test]
fn what_cannot_be_evaluated_ends_it_with_the_row_and_a_status_of_its_own() {
    let place = Place::new(Some(21));
    let evaluate = [
        &["evaluate", "--log", "data", "--policy", "policy"][..],
        &QUICK,
    ]
    .concat();
    let output = place.run(&evaluate);
    let (out, err) = text(&output);
    assert_eq!((output.status.code(), out.as_str()), (Some(1), ""));
    assert!(
        err.contains("segment 1, line 20: head_propensity of channel = 0"),
        "{err}"
    );
    let usage = |args: &[&str], words: &str| {
        let output = place.run(args);
        let (_, err) = text(&output);
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert!(err.contains(words), "{err}");
    };
    usage(&["evaluate", "--log", "data"], "--policy");
    usage(&["evaluate"], "--log");
    usage(
        &["evaluate", "--log", "policy", "--policy", "policy"],
        "no decision log",
    );
    usage(
        &[&evaluate[..], &["--gamma", "1.5"]].concat(),
        "gamma = 1.5 must be in [0, 1]",
    );
    let (_, err) = text(&place.run(&["evaluate", "--log", "data", "--policy", "nowhere"]));
    assert!(err.contains("nowhere") && err.contains("random"), "{err}");
}

#[test]
fn the_gate_refuses_records_and_is_passed_by_with_a_reason_only() {
    let place = Place::new(None);
    let promote = [&["promote", "policy", "--data-dir", "data"][..], &QUICK].concat();
    // More is wanted of the weights than this log has.
    let strict = [&promote[..], &["--least-ess", "1000"]].concat();
    let output = place.run(&strict);
    let (_, err) = text(&output);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains("is not promoted: the verdict must be better: cannot tell"),
        "{err}"
    );
    assert!(!place.path("data/promoted/policy").exists());
    let output = place.run(&[&strict[..], &["--force"]].concat());
    assert_eq!(output.status.code(), Some(2));
    let output = place.run(&[&strict[..], &["--force", "--reason", " "]].concat());
    assert_eq!(output.status.code(), Some(2));

    let output = place.run(&[&strict[..], &["--force", "--reason", "the old one stalls"]].concat());
    let (out, err) = text(&output);
    assert!(
        output.status.success() && out.starts_with("policy is promoted by force: "),
        "{out}{err}"
    );
    let config = "version = 1\n[host]\nname = \"local\"\nkind = \"simulated\"\nscenario = \"mixed\"\n\
[policy]\nbaseline = \"keep_default\"\n[service]\nlisten = \"unix:s\"\ndata_dir = \"data\"\n";
    fs::write(place.path("c.toml"), config).unwrap();
    let check = ["serve", "--check", "--config", "c.toml"];
    let (out, err) = text(&place.run(&check));
    assert!(
        out.contains("can be served") && err.contains("serving the promoted policy"),
        "{out}{err}"
    );
    let ignored = config.replace("baseline", "promoted = \"ignore\"\nbaseline");
    fs::write(place.path("c.toml"), ignored).unwrap();
    let (_, err) = text(&place.run(&check));
    assert!(!err.contains("serving the promoted policy"), "{err}");

    let (out, err) = text(&place.run(&["promote", "--data-dir", "data", "--undo"]));
    assert!(
        out.contains("back to the configuration's policy"),
        "{out}{err}"
    );
    let (out, _) = text(&place.run(&["promote", "--data-dir", "data", "--list"]));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert!(
        lines[1].contains("refused") && lines[2].contains("forced: the old one stalls"),
        "{out}"
    );
    assert!(lines[3].contains("undo"), "{out}");
}

#[test]
fn without_a_log_nothing_is_promoted() {
    let place = Place::new(None);
    fs::create_dir(place.path("empty")).unwrap();
    let promote = ["promote", "policy", "--data-dir", "empty"];
    let output = place.run(&promote);
    let (_, err) = text(&output);
    assert_ne!(output.status.code(), Some(0));
    assert!(err.contains("no decision log"), "{err}");
    let forced = [&promote[..], &["--force", "--reason", "the first one"]].concat();
    let (out, err) = text(&place.run(&forced));
    assert!(out.contains("it was not evaluated"), "{out}{err}");
}
