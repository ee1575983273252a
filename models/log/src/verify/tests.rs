use std::fs;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::fixture::{Of, decision_of, outcome_of};
use crate::retain::Keep;
use crate::schema::{Event, OutcomeRow};
use crate::writer::{Config, Writer};

const FINAL: Horizon = Horizon::Final;

fn of(number: u128) -> Of {
    Of {
        number,
        host: "host-a",
        at_us: 1_700_000_000_000_000 + number as i64,
        episode: 1,
    }
}

/// A log of segments of these rows, all but the last of them Parquet.
fn log(segments: &[&[(DecisionRow, Option<OutcomeRow>)]]) -> (tempfile::TempDir, Writer) {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = Writer::open(dir.path(), Config::default()).unwrap();
    for (number, rows) in segments.iter().enumerate() {
        for (decision, outcome) in *rows {
            writer
                .append(&Event::Decision(Box::new(decision.clone())))
                .unwrap();
            if let Some(outcome) = outcome {
                writer.append(&Event::Outcome(outcome.clone())).unwrap();
            }
        }
        writer.commit().unwrap();
        if number + 1 < segments.len() {
            writer.seal().unwrap();
        }
    }
    let keep = Keep {
        most_bytes: u64::MAX,
        most_age: None,
    };
    let go_on = AtomicBool::new(false);
    writer.compactor(keep).compact(FINAL, &go_on).unwrap();
    (dir, writer)
}

fn good(number: u128) -> (DecisionRow, Option<OutcomeRow>) {
    (decision_of(of(number)), Some(outcome_of(of(number))))
}

fn changed(
    number: u128,
    change: impl FnOnce(&mut DecisionRow),
) -> (DecisionRow, Option<OutcomeRow>) {
    let (mut row, outcome) = good(number);
    change(&mut row);
    (row, outcome)
}

fn said(report: &Report) -> Vec<String> {
    let line = |finding: &Finding| {
        let file = finding
            .file
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        format!("{file} {:?}: {}", finding.row, finding.problem)
    };
    report.findings.iter().map(line).collect()
}

#[test]
fn a_log_as_it_was_written_is_right() {
    let segments = [
        vec![good(1), good(2)],
        vec![good(3)],
        vec![good(4), (decision_of(of(5)), None)],
    ];
    let segments: Vec<&[_]> = segments.iter().map(Vec::as_slice).collect();
    let (dir, _writer) = log(&segments);
    let report = verify(dir.path(), Horizon::Now(0)).unwrap();
    let wanted = Report {
        files: 3,
        rows: 5,
        outcomes: 4,
        awaited: 1,
        ..Report::default()
    };
    assert_eq!(report, wanted);
}

/// Each is wrong in one way, in Parquet and in a segment alike.
#[test]
fn what_is_wrong_with_a_row_is_said_with_file_and_row() {
    let late = |number| {
        (
            decision_of(of(number)),
            Some(OutcomeRow {
                at_us: 5,
                ..outcome_of(of(number))
            }),
        )
    };
    let endless = |number| {
        (
            decision_of(of(number)),
            Some(OutcomeRow {
                interval_s: f64::NAN,
                ..outcome_of(of(number))
            }),
        )
    };
    let wrong = |first: u128| {
        vec![
            good(first),
            changed(first + 1, |row| row.heads[0].propensity = 0.0),
            changed(first + 2, |row| row.heads[0].propensity = 1.5),
            changed(first + 3, |row| row.heads[0].propensity = f64::NAN),
            changed(first + 4, |row| row.heads[0].forced = true),
            changed(first + 5, |row| row.heads[0].requested = 2),
            changed(first + 6, |row| row.heads[0].altered = None),
            changed(first + 7, |row| row.epsilon = -0.5),
            late(first + 8),
            endless(first + 9),
        ]
    };
    let (parquet, live) = (wrong(0), wrong(100));
    let (dir, _writer) = log(&[&parquet, &live]);
    let report = verify(dir.path(), FINAL).unwrap();
    let problems = [
        "1): head_propensity of channel = 0 must be in (0, 1]",
        "2): head_propensity of channel = 1.5 must be in (0, 1]",
        "3): head_propensity of channel = NaN must be in (0, 1]",
        "4): head_propensity of channel = 0.30000000000000004 must be 1 where forced",
        "5): channel has 2 levels, requested is 2 and executed 0",
        "6): channel was requested 1 and executed 0, and head_altered does not say why",
        "7): epsilon = -0.5 must be in [0, 1]",
        "8): its outcome is from before it was decided",
        "9): interval_s = NaN must be > 0",
    ];
    let files = ["part-000000000001.parquet", "000000000002.log"];
    let wanted: Vec<String> = files
        .iter()
        .flat_map(|file| {
            problems
                .iter()
                .map(move |problem| format!("{file} Some({problem}"))
        })
        .collect();
    assert_eq!(said(&report), wanted);
    assert_eq!((report.wrong, report.rows), (18, 20));
}

#[test]
fn a_file_that_is_missing_damaged_or_not_itself_is_noticed() {
    let (dir, _writer) = log(&[&[good(1)], &[good(2)], &[good(3)], &[good(4)]]);
    let part = |number| {
        let parts = parts(&Disk, dir.path()).unwrap().into_iter();
        parts
            .map(|part| part.path)
            .find(|path| path.ends_with(crate::place::file_name(number)))
    };
    let second = part(2).unwrap();
    let bytes = fs::read(&second).unwrap();
    let said_now = || said(&verify(dir.path(), FINAL).unwrap());
    assert_eq!(said_now(), Vec::<String>::new());

    let mut damaged = bytes.clone();
    damaged[100] ^= 4;
    fs::write(&second, &damaged).unwrap();
    let found = said_now();
    assert!(
        found.len() == 1 && found[0].contains("002.parquet None: its checksum is"),
        "{found:?}"
    );

    fs::write(&second, &bytes[..bytes.len() / 2]).unwrap();
    let found = said_now();
    assert!(
        found[0].starts_with("part-000000000002.parquet None: "),
        "{found:?}"
    );

    fs::remove_file(&second).unwrap();
    let found = said_now();
    let wanted = "part-000000000003.parquet None: the rows of segment 2 stand before it and are lost; those before it are of segment 1";
    assert_eq!(found, [wanted]);

    // A copy of the third in place of the second: not its own, and its row is there twice.
    fs::copy(part(3).unwrap(), &second).unwrap();
    let found = said_now();
    assert!(
        found[0].ends_with("its footer says that it is of segment 3"),
        "{found:?}"
    );
    assert!(
        found.iter().any(|line| line.contains("is there twice")),
        "{found:?}"
    );
}

#[test]
fn damaged_lines_and_events_that_are_repeated_are_counted() {
    let (dir, writer) = log(&[&[good(1), good(2), good(1)]]);
    drop(writer);
    let path = segment::path_of(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    // Within the second row's outcome.
    let line = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .nth(3)
        .unwrap()
        .0;
    bytes[line + 30] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let report = verify(dir.path(), FINAL).unwrap();
    let found = said(&report);
    assert!(
        found.len() == 1 && found[0].contains("000000000001.log None: damaged at byte"),
        "{found:?}"
    );
    assert_eq!((report.rows, report.outcomes, report.repeated), (2, 1, 2));
}
