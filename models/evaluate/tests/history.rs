//! What learners are given of a log, and which logs they are not given.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod common;

use std::sync::Arc;

use blkpilot_env::EnvSpec;
use blkpilot_evaluate::{EvaluateError, History, MOST_HISTORY_ROWS, RowOutcome};
use blkpilot_log::{DecisionRow, OutcomeRow};
use common::{Size, World, rows, spec, write};
use tempfile::TempDir;

type Rows = Vec<(DecisionRow, OutcomeRow)>;

const WORLD: World = World {
    disks: 2,
    contention: 0.5,
};
const SIZE: Size = Size {
    hosts: 2,
    episodes: 2,
    steps: 5,
};

fn logged(change: impl FnOnce(&mut Rows)) -> (TempDir, Rows) {
    let mut rows = rows(WORLD, SIZE, 3);
    change(&mut rows);
    let dir = TempDir::new().unwrap();
    write(dir.path(), &rows);
    (dir, rows)
}

fn read(change: impl FnOnce(&mut Rows), spec: &EnvSpec) -> Result<History, EvaluateError> {
    let (dir, _) = logged(change);
    History::read(dir.path(), spec, MOST_HISTORY_ROWS, &mut |_| ())
}

fn refused(change: impl FnOnce(&mut Rows), spec: &EnvSpec) -> EvaluateError {
    match read(change, spec) {
        Ok(history) => panic!("{} rows were read", history.facts.rows),
        Err(error) => error,
    }
}

#[test]
fn each_row_is_there_with_what_was_seen_drawn_and_earned() {
    let (dir, rows) = logged(|_| {});
    let history = History::read(dir.path(), &spec(), MOST_HISTORY_ROWS, &mut |_| ()).unwrap();
    let found: Vec<_> = history.steps().flat_map(|step| step.rows()).collect();
    assert_eq!(found.len(), rows.len());
    for step in history.steps() {
        assert_eq!(step.counted, 2);
        for row in step.rows() {
            let same = rows.iter().filter(|(decision, outcome)| {
                decision.at_us == step.at_us
                    && decision.seen.disk == row.turn.disk
                    && decision.seen.device == row.turn.device
                    && decision
                        .heads
                        .iter()
                        .map(|h| h.requested)
                        .eq(row.levels.iter().copied())
                    && decision
                        .heads
                        .iter()
                        .map(|h| h.propensity)
                        .eq(row.propensities.iter().copied())
                    && Some(RowOutcome {
                        total: f64::from(outcome.reward_total),
                        own: f64::from(outcome.reward_own),
                        counted: true,
                    }) == row.outcome
            });
            assert!(same.count() >= 1, "{row:?}");
        }
    }
    let follow: Vec<bool> = history.steps().map(|step| step.follows).collect();
    // All but the first of each episode of each host.
    assert_eq!(follow.iter().filter(|follows| **follows).count(), 2 * 2 * 4);
}

#[test]
fn the_digest_is_that_of_what_was_read() {
    let digest = |change: &dyn Fn(&mut Rows)| read(change, &spec()).unwrap().digest;
    let own = digest(&|_| {});
    assert_eq!(own, digest(&|_| {}));
    assert_ne!(own, digest(&|rows| rows[7].1.reward_total -= 1e-3));
    assert_ne!(own, digest(&|rows| rows[7].0.seen.host[0] += 1e-3));
    assert_ne!(own, digest(&|rows| rows[7].0.heads[0].propensity = 0.25));
    assert_ne!(own, digest(&|rows| rows[9].1.terminated = true));
    // What nobody learns from may differ.
    assert_eq!(own, digest(&|rows| rows[7].0.policy = "another".into()));
}

#[test]
fn values_that_are_missing_are_means() {
    let history = read(
        |rows| {
            rows.iter_mut()
                .for_each(|(decision, _)| decision.seen.host[0] = 3.0);
            rows[4].0.seen.host[0] = f32::NAN;
        },
        &spec(),
    );
    let history = history.unwrap();
    let mut rows = history.steps().flat_map(|step| step.rows());
    assert!(rows.all(|row| row.turn.host[0] == 3.0 || (row.turn.host[0] - 3.0).abs() < 0.2));
    assert_eq!(history.facts.values_not_finite, 1);
}

#[test]
fn a_log_of_another_spec_is_refused_with_the_difference() {
    let mut other = spec();
    other.disk_features.push(other.disk_features[0].clone());
    let text = refused(|_| {}, &other).to_string();
    assert!(
        text.contains("disk_features has 1 values, the spec and channel_count need 2"),
        "{text}"
    );
    let mut other = spec();
    other.disk_heads[1].name = "poll".to_owned();
    let text = refused(|_| {}, &other).to_string();
    assert!(
        text.contains("head_name[1] = polling, the spec has poll"),
        "{text}"
    );
    let mut other = spec();
    other.host_features[0].scale = blkpilot_env::Scale::Log;
    let text = refused(|_| {}, &other).to_string();
    assert!(
        text.contains("a feature has another name, unit or scale"),
        "{text}"
    );
}

#[test]
fn a_log_without_outcomes_is_refused() {
    let rows = rows(WORLD, SIZE, 3);
    let dir = TempDir::new().unwrap();
    let mut writer = blkpilot_log::Writer::open(dir.path(), blkpilot_log::Config::default())
        .unwrap()
        .0;
    for (decision, _) in &rows {
        let event = blkpilot_log::Event::Decision(Box::new(decision.clone()));
        writer.append(&event).unwrap();
    }
    writer.commit().unwrap();
    let error = History::read(dir.path(), &spec(), MOST_HISTORY_ROWS, &mut |_| ()).unwrap_err();
    assert!(
        matches!(error, EvaluateError::NoOutcomes { rows: 40 }),
        "{error}"
    );
}

#[test]
fn a_reward_that_is_missing_or_weighted_in_two_ways_and_too_many_rows_are_refused() {
    let error = refused(|rows| rows[10].1.reward_total = f32::NAN, &spec());
    assert!(
        error
            .to_string()
            .contains("line 10: reward_total is missing"),
        "{error}"
    );
    let error = refused(
        |rows| {
            Arc::make_mut(&mut rows[10].0.reward_weights).insert("beta".to_owned(), 0.5);
        },
        &spec(),
    );
    assert!(
        matches!(error, EvaluateError::SeveralRewards { ways: 2, .. }),
        "{error}"
    );
    let (dir, _) = logged(|_| {});
    let error = History::read(dir.path(), &spec(), 39, &mut |_| ()).unwrap_err();
    assert!(
        matches!(error, EvaluateError::TooLong { most: 39 }),
        "{error}"
    );
}
