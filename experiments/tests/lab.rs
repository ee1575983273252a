//! Runs of the lab from end to end, small.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_lab::compare::{BASELINES, TRAINED, compare};
use blkpilot_lab::train::{Event, Existing, Run, Summary, train};
use blkpilot_lab::{Config, LabError, sanity};
use blkpilot_models::Checkpoint;
use blkpilot_models::checkpoint::OPTIMISER;

const TINY: &str = r#"
    version = 1
    [environment]
    kind = "sim_host"
    [environment.generator]
    disks = [1, 3]
    channels = [1, 3]
    steps = 6
    schedulers = true
    [network]
    hidden = 8
    channel_hidden = 4
    [training]
    env_steps = 96
    envs = 4
    steps = 6
    epochs = 1
    minibatch = 32
    gamma = 0.8
    gae_lambda = 0.9
    learning_rate = 1e-3
    clip = 0.2
    [evaluation]
    episodes = 3
"#;

fn tiny() -> Config {
    Config::parse(Path::new("tiny.toml"), TINY).unwrap()
}

fn run(out: &Path, seed: u64) -> Summary {
    let config = tiny();
    let run = Run {
        config: &config,
        seed,
        out,
        existing: Existing::Refuse,
    };
    train(&run, &AtomicBool::new(false), &mut |_| ()).unwrap()
}

fn lab(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blkpilot-lab"))
        .args(args)
        .env(
            "BLKPILOT_RUNS",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/lab.db"),
        )
        .output()
        .unwrap()
}

fn write_tiny(dir: &Path) -> PathBuf {
    let file = dir.join("tiny.toml");
    std::fs::write(&file, TINY).unwrap();
    file
}

#[test]
fn a_run_leaves_a_policy_a_summary_a_curve_and_events() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let summary = run(&out, 1);
    assert_eq!(
        (summary.env_steps, summary.updates, summary.interrupted),
        (96, 3, false)
    );
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    for key in [
        "env_steps",
        "wall_s",
        "steps_per_s",
        "policies",
        "differences",
    ] {
        assert!(!json[key].is_null(), "{key}");
    }
    for name in BASELINES {
        assert!(
            json["policies"][name]["reward_mean"].is_f64()
                && json["differences"][name]["ci95"][1].is_f64()
        );
    }
    assert!(json["policies"][TRAINED]["loss_mean"].is_f64());
    assert!(
        std::fs::read_to_string(out.join("curve.svg"))
            .unwrap()
            .contains("tiny, seed 1")
    );
    let is_events = |name: String| name.starts_with("events.out.tfevents.");
    let names = std::fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| is_events(name.clone())).count(), 1);

    let checkpoint = Checkpoint::load(&out.join("policy")).unwrap();
    assert_eq!(checkpoint.manifest.tensors_sha256, summary.policy_sha256);
    assert_eq!(checkpoint.manifest.config["training"]["epochs"], 1);
    let again = compare(&tiny(), &checkpoint, || true).unwrap();
    assert_eq!(
        again, summary.comparison,
        "a checkpoint plays as the network it was saved from"
    );
}

#[test]
fn the_same_seed_gives_the_same_policy_and_another_seed_another() {
    let dir = tempfile::tempdir().unwrap();
    let hash = |name: &str, seed| run(&dir.path().join(name), seed).policy_sha256;
    let first = hash("a", 5);
    assert_eq!(first, hash("b", 5));
    assert_ne!(first, hash("c", 6));
}

#[test]
fn an_interrupted_run_says_so_and_leaves_a_policy_that_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let config = tiny();
    let stop = AtomicBool::new(false);
    let run = Run {
        config: &config,
        seed: 1,
        out: &out,
        existing: Existing::Refuse,
    };
    let mut watch = |event: Event<'_>| {
        assert!(
            !matches!(event, Event::Comparing { .. } | Event::Compared),
            "an interrupted run is not compared"
        );
        if matches!(event, Event::Update { .. }) {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let summary = train(&run, &stop, &mut watch).unwrap();
    assert!(summary.interrupted && summary.env_steps < summary.env_steps_planned);
    let text = std::fs::read_to_string(out.join("summary.json")).unwrap();
    assert!(text.contains("\"interrupted\": true"));
    let checkpoint = Checkpoint::load(&out.join("policy")).unwrap();
    compare(&config, &checkpoint, || true).unwrap();
}

#[test]
fn a_run_is_not_overwritten_unless_asked_and_then_only_what_runs_write() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), 1);
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let config = tiny();
    let again = |existing| {
        let run = Run {
            config: &config,
            seed: 1,
            out: dir.path(),
            existing,
        };
        train(&run, &AtomicBool::new(false), &mut |_| ())
    };
    assert!(matches!(
        again(Existing::Refuse),
        Err(LabError::OutExists { .. })
    ));
    again(Existing::Overwrite).unwrap();
    assert!(dir.path().join("notes.txt").exists());
}

#[test]
fn sanity_overwrites_no_seed_unless_asked_and_looks_before_it_trains() {
    let dir = tempfile::tempdir().unwrap();
    let second = dir.path().join("dqn/seed-2");
    std::fs::create_dir_all(&second).unwrap();
    std::fs::write(second.join("summary.json"), "earlier").unwrap();
    let refused = lab(&[
        "sanity",
        "--seeds",
        "2",
        "--out",
        dir.path().to_str().unwrap(),
    ]);
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(
        text.contains("seed-2") && text.contains("--overwrite"),
        "{text}"
    );
    assert!(!dir.path().join("ppo").exists());

    let mut checks = sanity::checks().unwrap();
    for check in &mut checks {
        check.config.training.env_steps = 512;
        check.config.evaluation.episodes = 2;
        check.threshold = 0.0;
    }
    let (stop, mut watch) = (AtomicBool::new(false), |_: u64, _: Event<'_>| ());
    let out = dir.path();
    let result = sanity::sanity(&checks, 2, out, Existing::Overwrite, &stop, &mut watch).unwrap();
    let names: Vec<&str> = result.learners.iter().map(|own| own.algorithm).collect();
    assert_eq!(names, ["ppo", "dqn"]);
    let needed: Vec<usize> = result.learners.iter().map(|own| own.needed).collect();
    assert_eq!(needed, [2, 2]);
    assert!(result.passed && result.learners.iter().all(|own| own.runs.len() == 2));
    assert_ne!(
        std::fs::read_to_string(second.join("summary.json")).unwrap(),
        "earlier"
    );
}

#[test]
fn the_command_line_trains_and_compares_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let (config, out) = (write_tiny(dir.path()), dir.path().join("run"));
    let (config, out) = (config.to_str().unwrap(), out.to_str().unwrap());
    let trained = lab(&["train", config, "--out", out, "--seed", "3", "--json"]);
    assert!(trained.status.success(), "{trained:?}");
    let summary: serde_json::Value = serde_json::from_slice(&trained.stdout).unwrap();
    assert_eq!(summary["seed"], 3);
    let policy = format!("{out}/policy");
    let compared = lab(&["compare", config, &policy, "--json"]);
    let comparison: serde_json::Value = serde_json::from_slice(&compared.stdout).unwrap();
    assert_eq!(comparison["policies"], summary["policies"]);
    let table = lab(&["compare", config, &policy, "--episodes", "2"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.contains("least_loaded") && table.contains("mean over 2 episodes"),
        "{table}"
    );
}

#[test]
fn an_exported_policy_decides_the_same_and_has_nothing_of_its_learner() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_tiny(dir.path());
    let run_dir = dir.path().join("run");
    run(&run_dir, 3);
    let (own, exported) = (run_dir.join("policy"), dir.path().join("exported"));
    let [own, exported, config] = [&own, &exported, &config].map(|path| path.to_str().unwrap());
    let export = || lab(&["export", own, exported]);
    assert!(export().status.success());
    let decides = |policy: &str| lab(&["compare", config, policy, "--json"]).stdout;
    assert!(!decides(own).is_empty());
    assert_eq!(decides(own), decides(exported));
    let (whole, policy) = (
        Checkpoint::load(Path::new(own)).unwrap(),
        Checkpoint::load(Path::new(exported)).unwrap(),
    );
    assert!(whole.tensors.keys().any(|name| name.starts_with(OPTIMISER)));
    assert!(
        !policy
            .tensors
            .keys()
            .any(|name| name.starts_with(OPTIMISER))
    );
    assert!(policy.manifest.extra.is_empty());
    assert_eq!(policy.manifest.config, whole.manifest.config);

    let again = export();
    assert_ne!(again.status.code(), Some(0));
    let text = String::from_utf8(again.stderr).unwrap();
    assert!(text.contains(exported), "{text}");
}

#[test]
fn what_is_wrong_with_the_request_is_exit_code_two() {
    let dir = tempfile::tempdir().unwrap();
    let good = write_tiny(dir.path());
    let bad = dir.path().join("bad.toml");
    std::fs::write(
        &bad,
        TINY.replace("clip = 0.2", "clip = -0.2")
            .replace("envs = 4\n", ""),
    )
    .unwrap();
    let output = lab(&["train", bad.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("training.clip = -0.2 must be > 0")
            && text.contains("training.envs is missing"),
        "{text}"
    );

    let missing = lab(&[
        "compare",
        good.to_str().unwrap(),
        dir.path().to_str().unwrap(),
    ]);
    assert_eq!(missing.status.code(), Some(2));
    assert_eq!(lab(&["train"]).status.code(), Some(2));
}

#[test]
fn a_policy_for_another_environment_is_refused_with_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), 1);
    let other = dir.path().join("other.toml");
    std::fs::write(&other, TINY.replace("schedulers = true", "")).unwrap();
    let policy = dir.path().join("policy");
    let output = lab(&["compare", other.to_str().unwrap(), policy.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("scheduler")
    );
}

/// A guest that is best buffered in one phase and best direct in the other.
const TWO_MINDED: &str = r#"
    name = "two_minded"
    steps = 12
    memory_gib = 8.0
    cache_gib = 4.0
    dirty_limit_gib = 1.0
    [[channels]]
    cpus = 1
    [[devices]]
    name = "sda"
    class = "sata_ssd"
    reference = { read_us = 110.0, write_us = 45.0, bytes_per_sec = 5e8 }
    parallelism = 10.0
    [[disks]]
    guest = "g"
    target = "vda"
    device = 0
    iothread = 0
    capacity_gib = 50.0
    phases = [
      { outstanding = 4, read_share = 1.0, request_kib = 4, working_set_gib = 0.05, mean_intervals = 5 },
      { outstanding = 4, read_share = 0.0, request_kib = 128, working_set_gib = 40.0, mean_intervals = 5 },
    ]
"#;

#[test]
fn the_oracle_judges_the_baselines_and_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("plain.toml");
    std::fs::write(&config, TINY.replace("schedulers = true", "")).unwrap();
    let (config, out) = (config.to_str().unwrap(), dir.path().join("run"));
    assert!(
        lab(&["train", config, "--out", out.to_str().unwrap()])
            .status
            .success()
    );
    let scenario = dir.path().join("two_minded.toml");
    std::fs::write(&scenario, TWO_MINDED).unwrap();
    let (policy, report) = (out.join("policy"), dir.path().join("report.json"));
    let judged = |threads: &str| {
        let output = lab(&[
            "oracle",
            scenario.to_str().unwrap(),
            "capped_device",
            "--policy",
            policy.to_str().unwrap(),
            "--episodes",
            "3",
            "--threads",
            threads,
            "--out",
            report.to_str().unwrap(),
        ]);
        assert!(output.status.success(), "{output:?}");
        (output, std::fs::read_to_string(&report).unwrap())
    };
    let (output, written) = judged("2");
    assert_eq!(judged("1").1, written);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "two_minded: 1 disks",
        "every setting tried",
        "All 2 scenarios",
        "lagged_oracle",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&written).unwrap();
    let first = &json["scenarios"][0];
    assert_eq!(first["scenario"], "two_minded");
    for name in BASELINES
        .into_iter()
        .chain([TRAINED, "best_static", "lagged_oracle", "oracle"])
    {
        let figures = &first["policies"][name];
        assert!(figures["regret"]["ci95"][1].is_f64(), "{name}: {figures}");
        assert!(
            figures["accuracy"]["correct"]["value"].is_f64(),
            "{name}: {figures}"
        );
        assert!(json["pooled"][name]["regret"]["value"].is_f64(), "{name}");
    }
    assert_eq!(
        first["best_static"]["g/vda"]["channel"]
            .as_str()
            .map(str::is_empty),
        Some(false)
    );
}

#[test]
fn a_scenario_that_cannot_be_used_is_named_with_all_that_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken.toml");
    let broken = TWO_MINDED
        .replace("cache_gib = 4.0", "cache_gib = nan")
        .replace("cpus = 1", "cpus = 0");
    std::fs::write(&file, broken).unwrap();
    let refused = |name: &str, wanted: &[&str]| {
        let output = lab(&["oracle", name]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(wanted.iter().all(|part| text.contains(part)), "{text}");
    };
    refused(
        file.to_str().unwrap(),
        &["broken.toml", "cache_gib", "channels[0].cpus"],
    );
    refused("no_such", &["no_such", "identical_disks"]);
    std::fs::write(&file, "name = 3").unwrap();
    refused(file.to_str().unwrap(), &["broken.toml", "name"]);
    assert_eq!(lab(&["oracle"]).status.code(), Some(2));
    assert_eq!(
        lab(&["oracle", "mixed", "--tolerance", "2"]).status.code(),
        Some(2)
    );
}

#[test]
fn help_teaches() {
    let help = |args: &[&str]| String::from_utf8(lab(args).stdout).unwrap();
    insta::assert_snapshot!("help", help(&["--help"]));
    insta::assert_snapshot!("help_train", help(&["train", "--help"]));
    insta::assert_snapshot!("help_compare", help(&["compare", "--help"]));
    insta::assert_snapshot!("help_oracle", help(&["oracle", "--help"]));
    insta::assert_snapshot!("help_resume", help(&["resume", "--help"]));
    insta::assert_snapshot!("help_sweep", help(&["sweep", "--help"]));
    insta::assert_snapshot!("help_report", help(&["report", "--help"]));
    insta::assert_snapshot!("help_reproduce", help(&["reproduce", "--help"]));
    insta::assert_snapshot!("help_runs", help(&["runs", "--help"]));
    insta::assert_snapshot!("help_log", help(&["log", "--help"]));
}

#[test]
fn a_log_is_evaluated_with_one_estimator_more_that_no_verdict_looks_at() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("two.toml");
    let two = TINY
        .replace("disks = [1, 3]", "disks = [2, 2]")
        .replace("schedulers = true", "schedulers = false");
    std::fs::write(&file, two).unwrap();
    let [file, out] = [file, dir.path().join("log")].map(|path| path.to_str().unwrap().to_owned());
    let played = lab(&[
        "log",
        &file,
        "--policy",
        "random",
        "--episodes",
        "30",
        "--out",
        &out,
    ]);
    assert!(played.status.success(), "{played:?}");
    let evaluate = [
        "evaluate",
        "--log",
        &out,
        "--policy",
        "random",
        "--horizon",
        "2",
        "--block",
        "episode",
        "--replicates",
        "200",
    ];
    let shown = lab(&evaluate);
    let text = String::from_utf8(shown.stdout).unwrap();
    for words in [
        "SNPDIS",
        "WDR",
        "FQE neural",
        "no verdict looks at it",
        "Exposure host",
    ] {
        assert!(text.contains(words), "{words}: {text}{:?}", shown.stderr);
    }
    let output = lab(&[&evaluate[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let evaluation = &json["evaluation"];
    assert_eq!(evaluation["estimates"].as_array().unwrap().len(), 3);
    let models = evaluation["models"].as_array().unwrap();
    assert_eq!(
        (models.len(), &models[0]["name"]),
        (1, &"FQE neural".into())
    );
    // The log's own policy: a model must come near what was.
    let difference = models[0]["difference"]["estimate"].as_f64().unwrap();
    let was = evaluation["behaviour"]["estimate"].as_f64().unwrap();
    assert!(difference.abs() < 0.25 * was.abs(), "{difference} {was}");

    let refused = lab(&["evaluate", "--log", &out]);
    assert_eq!(refused.status.code(), Some(2));
    let refused = lab(&["evaluate", "--log", "nowhere", "--policy", "random"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("nowhere"), "{text}");
}

/// Rows of a log.
fn rows_of(log: &Path) -> Vec<blkpilot_log::LoggedRow> {
    use blkpilot_log::{Horizon, Query, Scan};
    let scan = Scan::open(log, Query::default(), Horizon::Final).unwrap();
    scan.flat_map(|batch| batch.unwrap().rows().unwrap())
        .collect()
}

#[test]
fn a_log_of_simulated_hosts_is_what_was_asked_for_and_the_same_by_seed() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_tiny(dir.path());
    let write = |environment: &str, policy: &str, out: &str, more: &[&str]| {
        let out = dir.path().join(out);
        let to = ["--json", "--out", out.to_str().unwrap()];
        let fixed = ["log", environment, "--policy", policy];
        let output = lab(&[&fixed[..], &to, more].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = rows_of(&out);
        assert_eq!(report["rows"], rows.len());
        rows
    };
    let explored = ["--epsilon", "0.5", "--episodes", "4"];
    let rows = write(config.to_str().unwrap(), "least_loaded", "a", &explored);
    let again = write(config.to_str().unwrap(), "least_loaded", "b", &explored);
    assert_eq!(rows, again, "the same seeds give the same log, ids and all");
    let later = [&explored[..], &["--first-seed", "4"]].concat();
    let others = write(config.to_str().unwrap(), "least_loaded", "c", &later);
    assert_ne!(rows, others);
    let is_ours = |row: &blkpilot_log::LoggedRow| {
        let decision = &row.decision;
        (&*decision.host, &*decision.policy) == ("tiny", "least_loaded")
    };
    assert!(rows.iter().all(is_ours));
    let drawn = write("mixed", "random", "d", &["--episodes", "1"]);
    assert!(drawn.iter().all(|row| row.decision.epsilon == 0.0));

    run(&dir.path().join("run"), 1);
    let trained = dir.path().join("run/policy");
    let sampled = ["--selection", "sample", "--episodes", "2"];
    let rows = write(
        config.to_str().unwrap(),
        trained.to_str().unwrap(),
        "e",
        &sampled,
    );
    let heads = || rows.iter().flat_map(|row| &row.decision.heads);
    assert!(heads().all(|head| head.forced || head.propensity < 1.0));
    let version = Checkpoint::load(&trained).unwrap().manifest.tensors_sha256;
    assert!(
        rows.iter()
            .all(|row| *row.decision.policy_version == version)
    );
}

#[test]
fn a_log_that_cannot_be_written_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &[&str], wanted: &str| {
        let out = dir.path().join("log");
        let output = lab(&[args, &["--out", out.to_str().unwrap()]].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(wanted), "{text}");
    };
    refused(&["log", "mixed", "--policy", "no_such"], "keep_default");
    refused(&["log", "no_such", "--policy", "random"], "no_such");
    let cartpole = dir.path().join("cartpole.toml");
    let (_, rest) = TINY.split_once("[network]").unwrap();
    let text = format!("version = 1\n[environment]\nkind = \"cartpole\"\n[network]{rest}");
    std::fs::write(&cartpole, text).unwrap();
    let cartpole = cartpole.to_str().unwrap();
    refused(
        &["log", cartpole, "--policy", "random"],
        "no simulated host",
    );
    let out = dir.path().join("log");
    let args = ["log", "mixed", "--policy", "random", "--episodes", "1"];
    let written = lab(&[&args[..], &["--out", out.to_str().unwrap()]].concat());
    assert!(written.status.success());
    refused(&args, "choose another directory");
}

#[test]
fn every_config_and_sweep_that_comes_with_blkpilot_is_valid() {
    let files = |name: &str| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().path())
    };
    for file in files("configs") {
        Config::load(&file).unwrap_or_else(|error| panic!("{error}"));
    }
    for file in files("sweeps") {
        blkpilot_lab::sweep::Plan::of(&file, None).unwrap_or_else(|error| panic!("{error}"));
    }
}
