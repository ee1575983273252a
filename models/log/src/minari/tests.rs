use std::sync::atomic::AtomicBool;

use arrow_array::cast::AsArray as _;
use arrow_ipc::reader::FileReader;

use super::*;
use crate::fixture::{Of, decision_of, outcome_of};
use crate::join::Horizon;
use crate::scan::Query;
use crate::schema::{DecisionRow, Event, Source};
use crate::writer::{Config, Writer};

fn of(number: u128) -> Of {
    Of {
        number,
        host: "host-a",
        at_us: 1_700_000_000_000_000 + number as i64,
        episode: 1,
    }
}

fn write(dir: &Path, rows: Vec<(DecisionRow, Option<OutcomeRow>)>) {
    let (mut writer, _) = Writer::open(dir, Config::default()).unwrap();
    for (decision, outcome) in rows {
        writer.append(&Event::Decision(Box::new(decision))).unwrap();
        if let Some(outcome) = outcome {
            writer.append(&Event::Outcome(outcome)).unwrap();
        }
    }
    writer.commit().unwrap();
}

fn row(number: u128, disk: &str, feature: f32) -> DecisionRow {
    let mut row = decision_of(of(number));
    row.subject = Subject::Disk {
        guest: "vm".to_owned(),
        target: disk.to_owned(),
    };
    row.seen.disk = vec![feature, 0.5];
    row
}

fn outcome(number: u128, reward: f32) -> OutcomeRow {
    OutcomeRow {
        reward_total: reward,
        ..outcome_of(of(number))
    }
}

fn all(dir: &Path) -> Scan {
    Scan::open(dir, Query::default(), Horizon::Final).unwrap()
}

fn episode(out: &Path, number: u64) -> RecordBatch {
    let file = File::open(out.join(format!("data/{number}/part-0.arrow"))).unwrap();
    FileReader::try_new(file, None)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
}

fn floats(batch: &RecordBatch, column: &str) -> Vec<f32> {
    let list = batch[column].as_fixed_size_list().values().clone();
    list.as_primitive::<Float32Type>().values().to_vec()
}

#[test]
fn an_episode_is_what_one_disk_did_with_one_observation_more_than_steps() {
    let dir = tempfile::tempdir().unwrap();
    let terminal = OutcomeRow {
        terminated: true,
        ..outcome(3, 3.0)
    };
    let shadow = DecisionRow {
        source: Source::Shadow,
        ..row(9, "vda", 9.0)
    };
    // Two disks in turns; vda ends in a terminal state, vdb's last decision has no outcome.
    write(
        dir.path(),
        vec![
            (row(1, "vda", 1.0), Some(outcome(1, 1.0))),
            (row(2, "vdb", 2.0), Some(outcome(2, 2.0))),
            (shadow, None),
            (row(3, "vda", 3.0), Some(terminal)),
            (row(4, "vdb", 4.0), None),
        ],
    );
    let out = dir.path().join("out");
    let done = export(all(dir.path()), &out, "own/log-v0").unwrap();
    let wanted = Exported {
        episodes: 2,
        steps: 3,
        left_out: 1,
        without_outcome: 1,
        last: 0,
    };
    assert_eq!(done, wanted);

    // device, host, channel and pair features of the fixture follow the disk's.
    let rest = [1.0 / 3.0, 2.5];
    let seen = |feature: f32| [&[feature, 0.5][..], &rest].concat();
    let vda = episode(&out, 0);
    assert_eq!(
        floats(&vda, "observations"),
        [seen(1.0), seen(3.0), seen(3.0)].concat()
    );
    assert_eq!(
        vda["rewards"].as_primitive::<Float64Type>().values()[..],
        [1.0, 3.0, 0.0]
    );
    let flags = |batch: &RecordBatch, name: &str| -> Vec<bool> {
        batch[name]
            .as_boolean()
            .iter()
            .map(Option::unwrap)
            .collect()
    };
    assert_eq!(flags(&vda, "terminations"), [false, true, false]);
    assert_eq!(flags(&vda, "truncations"), [false; 3]);

    let vdb = episode(&out, 1);
    assert_eq!(
        floats(&vdb, "observations"),
        [seen(2.0), seen(4.0)].concat()
    );
    assert_eq!(flags(&vdb, "truncations"), [true, false]);
    let infos = vdb["infos"].as_struct();
    let propensity = infos
        .column_by_name("propensity")
        .unwrap()
        .as_fixed_size_list();
    let propensity = propensity
        .values()
        .as_primitive::<Float64Type>()
        .values()
        .to_vec();
    assert_eq!(propensity, [0.1 + 0.2, 1.0]);

    let metadata = fs::read_to_string(out.join("data/metadata.json")).unwrap();
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata["total_steps"], 3);
    let space: serde_json::Value =
        serde_json::from_str(metadata["action_space"].as_str().unwrap()).unwrap();
    assert_eq!(space["nvec"], json!([2]));
}

#[test]
fn an_episode_under_way_ends_with_the_observation_of_its_last_decision() {
    let dir = tempfile::tempdir().unwrap();
    let rows = (1..=3).map(|n| (row(n, "vda", n as f32), Some(outcome(n, n as f32))));
    write(dir.path(), rows.collect());
    let out = dir.path().join("out");
    let done = export(all(dir.path()), &out, "own/log-v0").unwrap();
    assert_eq!((done.steps, done.last), (2, 1));
    let episode = episode(&out, 0);
    assert_eq!(episode.num_rows(), 3);
    assert_eq!(
        episode["rewards"].as_primitive::<Float64Type>().values()[..],
        [1.0, 2.0, 0.0]
    );
}

#[test]
fn parquet_and_segments_give_the_same_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let rows = (1..=9).map(|n| (row(n, "vda", n as f32), Some(outcome(n, n as f32))));
    write(dir.path(), rows.collect());
    export(all(dir.path()), &dir.path().join("a"), "x").unwrap();
    let (mut writer, _) = Writer::open(dir.path(), Config::default()).unwrap();
    writer.seal().unwrap();
    let keep = crate::retain::Keep {
        most_bytes: u64::MAX,
        most_age: None,
    };
    let go_on = AtomicBool::new(false);
    writer
        .compactor(keep)
        .compact(Horizon::Final, &go_on)
        .unwrap();
    export(all(dir.path()), &dir.path().join("b"), "x").unwrap();
    let of = |name: &str| episode(&dir.path().join(name), 0);
    assert_eq!(of("a"), of("b"));
}

#[test]
fn rows_that_do_not_fit_one_dataset_are_refused_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = row(2, "vda", 2.0);
    other.seen.channels.push(0.0);
    write(
        dir.path(),
        vec![(row(1, "vda", 1.0), Some(outcome(1, 1.0))), (other, None)],
    );
    let error = export(all(dir.path()), &dir.path().join("out"), "x")
        .unwrap_err()
        .to_string();
    assert!(error.contains("segment 1 line 1 has 5 features"), "{error}");
    let nothing = Query {
        guest: Some("nobody".to_owned()),
        ..Query::default()
    };
    let scan = Scan::open(dir.path(), nothing, Horizon::Final).unwrap();
    let error = export(scan, &dir.path().join("none"), "x")
        .unwrap_err()
        .to_string();
    assert!(error.contains("nothing to export"), "{error}");
    let again = export(all(dir.path()), &dir.path().join("out"), "x").unwrap_err();
    assert!(again.to_string().contains("cannot create"), "{again}");
}
