//! `blkpilot evaluate cases` against reference values, all of them, and against logs that are wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// What an evaluation may not read.
const ANSWERS: [&str; 2] = ["expected.json", "truth.json"];
/// Fields of the reference that tell where it comes from, or are its own inputs.
const PROVENANCE: [&str; 8] = [
    "library_run",
    "library_runs",
    "note",
    "source",
    "cobs_magic_own_run_for_information",
    "tolerance",
    "compare_tolerance",
    "default_tolerance_abs",
];
const TOLERANCE: f64 = 1e-9;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/cases")
}

fn expected() -> Value {
    json_of(&cases().join("expected.json"))
}

fn json_of(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// The folder without its answers.
fn copy() -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(cases()).unwrap() {
        let from = entry.unwrap().path();
        let name = from.file_name().unwrap().to_str().unwrap();
        if from.is_file() && !ANSWERS.contains(&name) {
            fs::copy(&from, dir.path().join(name)).unwrap();
        }
    }
    dir
}

fn run(dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blkpilot"))
        .args(["evaluate", "cases", "--json"])
        .arg(dir.join("report.json"))
        .arg(dir)
        .output()
        .unwrap()
}

fn report(dir: &Path) -> Value {
    let output = run(dir);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    json_of(&dir.join("report.json"))
}

/// What comes of a folder in which one file was changed: the message of the refusal.
fn refusal(file: &str, change: impl Fn(String) -> String) -> String {
    let dir = copy();
    let path = dir.path().join(file);
    let before = fs::read_to_string(&path).unwrap();
    let after = change(before.clone());
    assert_ne!(before, after, "nothing was changed");
    fs::write(&path, after).unwrap();
    let output = run(dir.path());
    assert_eq!(output.status.code(), Some(1), "{file}: not refused");
    assert!(!dir.path().join("report.json").exists());
    String::from_utf8(output.stderr).unwrap()
}

/// Walks the reference beside the report.
#[derive(Default)]
struct Comparison {
    values: usize,
    /// Of values with the ordinary tolerance, the largest deviation and where it is.
    worst: (f64, String),
    /// Of the others, the largest share of their tolerance.
    worst_share: (f64, String),
    problems: Vec<String>,
}

impl Comparison {
    fn compare(&mut self, path: &str, expected: &Value, found: &Value, tolerance: f64) {
        match (expected, found) {
            (Value::Object(fields), _) => {
                let own = ["tolerance", "compare_tolerance"].iter();
                let tolerance = own
                    .filter_map(|name| fields.get(*name)?.as_f64())
                    .next()
                    .unwrap_or(tolerance);
                for (name, value) in fields {
                    let unknowable = name == "truth" && found.get(name).is_none();
                    if !PROVENANCE.contains(&name.as_str()) && !unknowable {
                        self.compare(&format!("{path}.{name}"), value, &found[name], tolerance);
                    }
                }
            }
            (Value::Array(values), Value::Array(others)) if values.len() == others.len() => {
                for (i, (value, other)) in values.iter().zip(others).enumerate() {
                    self.compare(&format!("{path}[{i}]"), value, other, tolerance);
                }
            }
            (Value::Number(_), Value::Number(_)) => {
                let (known, found) = (expected.as_f64().unwrap(), found.as_f64().unwrap());
                self.number(path, known, found, tolerance);
            }
            _ => {
                self.values += 1;
                if expected != found {
                    self.problems
                        .push(format!("{path}: {found} instead of {expected}"));
                }
            }
        }
    }

    fn number(&mut self, path: &str, known: f64, found: f64, tolerance: f64) {
        self.values += 1;
        let deviation = (found - known).abs();
        let deviation = deviation.min(deviation / known.abs());
        let worst = if tolerance == TOLERANCE {
            (deviation, &mut self.worst)
        } else {
            (deviation / tolerance, &mut self.worst_share)
        };
        if worst.0 > worst.1.0 {
            *worst.1 = (worst.0, path.to_owned());
        }
        if deviation.is_nan() && known != found || deviation > tolerance {
            self.problems.push(format!(
                "{path}: {found} instead of {known}, tolerance {tolerance:e}"
            ));
        }
    }
}

#[test]
fn every_reference_value_is_met() {
    let dir = copy();
    let report = report(dir.path());
    let mut comparison = Comparison::default();
    comparison.compare("", &expected(), &report, TOLERANCE);
    println!(
        "{} values; worst deviation {:e} at {}; of those with a tolerance of their own, {:.3} of it at {}",
        comparison.values,
        comparison.worst.0,
        comparison.worst.1,
        comparison.worst_share.0,
        comparison.worst_share.1
    );
    assert!(
        comparison.values >= 2389,
        "only {} values",
        comparison.values
    );
    let problems = &comparison.problems;
    assert!(
        problems.is_empty(),
        "{} of {}:\n{}",
        problems.len(),
        comparison.values,
        problems.join("\n")
    );
}

/// A comparison that finds nothing says nothing.
#[test]
fn a_value_that_is_off_or_missing_is_found() {
    let expected = expected();
    let problems = |change: &dyn Fn(&mut Value)| {
        let mut found = expected.clone();
        change(&mut found);
        let mut comparison = Comparison::default();
        comparison.compare("", &expected, &found, TOLERANCE);
        comparison.problems.len()
    };
    assert_eq!(problems(&|_| {}), 0);
    assert_eq!(
        problems(&|v| v["bandit"]["estimators"]["dr"]["estimate"] = 0.748_865_04.into()),
        1
    );
    assert_eq!(
        problems(&|v| v["seq"]["policies"]["e3"]["estimators"]["tis"]["std_err"] = Value::Null),
        1
    );
    assert_eq!(
        problems(&|v| v["seqvar"]["policies"]["e1"]["estimators"]["magic"]["x_j"][2] = 0.9.into()),
        1
    );
}

#[test]
fn every_edge_case_is_answered_as_it_asks() {
    let dir = copy();
    let answers = &report(dir.path())["edge_cases"];
    let cases = json_of(&cases().join("edge_cases.json"));
    let mut comparison = Comparison::default();
    let mut errors = 0;
    for case in cases["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let answer = &answers[name];
        for (key, value) in case["expect"].as_object().unwrap() {
            match (key.as_str(), value) {
                ("error", _) => {
                    errors += 1;
                    check_message(name, answer["error"].as_str().unwrap());
                    assert_eq!(
                        answer.as_object().unwrap().len(),
                        1,
                        "{name}: a value beside an error"
                    );
                }
                ("tis", Value::String(_)) => {
                    assert!(
                        answer[key].as_str().unwrap().starts_with("overflow"),
                        "{answer}"
                    );
                }
                _ => comparison.compare(&format!("{name}.{key}"), value, &answer[key], TOLERANCE),
            }
        }
    }
    println!(
        "{} values, {errors} errors; worst deviation {:e}",
        comparison.values, comparison.worst.0
    );
    assert!(comparison.problems.is_empty(), "{:#?}", comparison.problems);
    assert_eq!(errors, 8);
}

fn check_message(case: &str, message: &str) {
    let (row, field) = match case {
        "zero_propensity" => ("row 2", "pscore"),
        "propensity_above_one" | "negative_propensity" => ("row 1", "pscore"),
        "nan_reward" => ("row 0", "reward"),
        "eval_row_not_normalised" => ("row 0", "eval_dist"),
        "action_out_of_range" => ("row 3", "action"),
        "length_mismatch" => ("row 5", "reward"),
        "logged_action_masked" => ("row 4", "action"),
        other => panic!("{other}: an error that nobody has thought of"),
    };
    assert!(
        message.starts_with(&format!("{row}: {field}")),
        "{case}: {message}"
    );
}

/// Replaces the cell of a column in a row, counted from 0 without the header.
fn set(column: &str, row: usize, value: &str) -> impl Fn(String) -> String {
    move |text| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let at = lines[0].split(',').position(|name| name == column).unwrap();
        let mut cells: Vec<&str> = lines[row + 1].split(',').collect();
        cells[at] = value;
        lines[row + 1] = cells.join(",");
        lines.join("\n") + "\n"
    }
}

fn without_row(row: usize) -> impl Fn(String) -> String {
    move |text| {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.remove(row + 1);
        lines.join("\n") + "\n"
    }
}

fn row_twice(row: usize) -> impl Fn(String) -> String {
    move |text| {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.insert(row + 1, lines[row + 1]);
        lines.join("\n") + "\n"
    }
}

#[test]
fn a_log_that_is_wrong_is_refused_by_row_and_field() {
    let refused = |file: &str, change: &dyn Fn(String) -> String, what: &str| {
        let message = refusal(file, change);
        assert!(message.contains(&format!("{file}: {what}")), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    };
    let bandit = "bandit_log.csv";
    refused(bandit, &set("pscore", 7, "0"), "row 7: pscore = 0");
    refused(bandit, &set("pscore", 7, ""), "row 7: pscore is missing");
    refused(bandit, &set("pscore", 7, "nan"), "row 7: pscore = NaN");
    refused(
        bandit,
        &set("pscore", 7, "0.5"),
        "row 7: pscore = 0.5 must be what",
    );
    refused(bandit, &set("reward", 9, "inf"), "row 9: reward = inf");
    refused(bandit, &set("action", 3, "8"), "row 3: action = 8");
    refused(
        bandit,
        &set("mask5", 0, "0"),
        "row 0: action = 5 must be allowed",
    );
    refused(bandit, &set("pie5", 0, "0.2"), "row 0: eval_dist sums to");
    refused(bandit, &set("qhat2", 4, "nan"), "row 4: q_hat = NaN");
    refused(bandit, &row_twice(5), "row 6: round = 5 is there twice");
    refused(
        bandit,
        &|text| text.lines().next().unwrap().to_owned() + "\n",
        "the log of decisions: no rows",
    );
    let seq = "seq_log.csv";
    refused(
        seq,
        &set("pscore", 21, "1.5"),
        "trajectory 1, step 1: pscore = 1.5",
    );
    refused(
        seq,
        &without_row(23),
        "trajectory 1, step 4: step = 4 comes where",
    );
    refused(
        seq,
        &row_twice(23),
        "trajectory 1, step 3: step = 3 is there twice",
    );
    refused(
        seq,
        &set("next_state", 22, "5"),
        "trajectory 1, step 2: next_state = 5",
    );
    refused(
        seq,
        &set("terminated", 22, "1"),
        "trajectory 1, step 2: terminated = true",
    );
    refused(seq, &without_row(39), "trajectory 1: number of steps = 19");
    refused(
        seq,
        &set("state", 40, "6"),
        "trajectory 2, step 0: state = 6",
    );
    refused(
        "seq_policies.csv",
        &set("p0", 8, "0.9"),
        "state 2: policy e0 sums to",
    );
    refused(
        "seq_policies.csv",
        &without_row(8),
        "policy e0: no row of state 2",
    );
    refused(
        "seqvar_qhat.csv",
        &set("q3", 7, "inf"),
        "state 1: q_hat of e0 = inf",
    );
    let multihead = "multihead_log.csv";
    refused(
        multihead,
        &set("pscore_cache", 2, "-0.1"),
        "row 2: pscore_cache = -0.1",
    );
    refused(
        multihead,
        &set("action_iothread", 2, "2"),
        "row 2: action_iothread = 2",
    );
}

/// Rows of trajectories may come in any order.
#[test]
fn the_order_of_rows_does_not_matter() {
    let dir = copy();
    let straight = report(dir.path());
    let path = dir.path().join("seqvar_log.csv");
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1..].reverse();
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    assert_eq!(report(dir.path())["seqvar"], straight["seqvar"]);
}
