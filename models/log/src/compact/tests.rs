use std::fs;
use std::sync::Arc;
use std::time::Duration;

use blkpilot_env::MaskReason;
use proptest::prelude::*;

use super::*;
use crate::columns::{LoggedRow, Missing, Rows, all, rows_of};
use crate::files::Disk;
use crate::fixture::{Of, decision_of, outcome_of};
use crate::join::PATIENCE_US;
use crate::names::Named as _;
use crate::part::read_footer;
use crate::scan::{Query, Scan};
use crate::schema::{DecisionRow, Event, Source, Subject};
use crate::writer::{Config, Writer};

const NOON: i64 = 1_700_000_000_000_000;
const DAY: i64 = 86_400_000_000;
const KEEP: Keep = Keep {
    most_bytes: u64::MAX,
    most_age: None,
};
static GO_ON: AtomicBool = AtomicBool::new(false);

fn of(number: u128) -> Of {
    Of {
        number,
        host: "host-a",
        at_us: NOON + number as i64 * 10_000_000,
        episode: 1,
    }
}

fn open(dir: &Path) -> Writer {
    Writer::open(dir, Config::default()).unwrap().0
}

fn write(writer: &mut Writer, decisions: impl IntoIterator<Item = DecisionRow>) {
    for row in decisions {
        writer.append(&Event::Decision(Box::new(row))).unwrap();
    }
    writer.commit().unwrap();
}

fn settle(writer: &mut Writer, decisions: impl IntoIterator<Item = Of>) {
    for of in decisions {
        writer.append(&Event::Outcome(outcome_of(of))).unwrap();
    }
    writer.commit().unwrap();
}

fn compact(writer: &Writer, horizon: Horizon) -> Compacted {
    writer.compactor(KEEP).compact(horizon, &GO_ON).unwrap()
}

fn items(dir: &Path, query: Query) -> Vec<Result<Vec<LoggedRow>, LogError>> {
    let scan = Scan::open(dir, query, Horizon::Now(NOON)).unwrap();
    scan.map(|batch| batch.and_then(|batch| batch.rows()))
        .collect()
}

fn scan(dir: &Path) -> Vec<LoggedRow> {
    items(dir, Query::default())
        .into_iter()
        .flat_map(Result::unwrap)
        .collect()
}

fn numbers(rows: &[LoggedRow]) -> Vec<u128> {
    rows.iter().map(|row| row.decision.id.0).collect()
}

fn parquet(dir: &Path) -> Vec<Part> {
    parts(&Disk, dir).unwrap()
}

fn segments(dir: &Path) -> Vec<u64> {
    let segments = segment::list(&Disk, dir).unwrap().into_iter();
    segments.map(|(number, _)| number).collect()
}

/// Five segments of two hosts around midnight, each outcome in the segment after its decision.
fn five_segments(dir: &Path) -> (Writer, Vec<DecisionRow>) {
    let mut writer = open(dir);
    let midnight = NOON - NOON.rem_euclid(DAY) + DAY;
    let of = |number: u128| Of {
        host: if number.is_multiple_of(3) {
            "host-b/é"
        } else {
            "host-a"
        },
        at_us: midnight + (number as i64 - 12) * 1_000_000,
        ..of(number)
    };
    let mut written = vec![];
    for segment in 0..5 {
        let rows: Vec<_> = (segment * 5..segment * 5 + 5)
            .map(|n| decision_of(of(n)))
            .collect();
        if segment > 0 {
            settle(&mut writer, (segment * 5 - 5..segment * 5).map(of));
        }
        write(&mut writer, rows.clone());
        written.extend(rows);
        writer.seal().unwrap();
    }
    (writer, written)
}

#[test]
fn rows_are_the_same_before_and_after_they_become_parquet() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, written) = five_segments(dir.path());
    let before = scan(dir.path());
    let decisions: Vec<_> = before.iter().map(|row| row.decision.clone()).collect();
    assert_eq!(decisions, written);
    assert!(before[..20].iter().all(|row| row.outcome.is_ok()));
    // The last segment waits for its outcomes.
    let done = compact(&writer, Horizon::Now(NOON));
    assert_eq!((done.segments, done.rows), (4, 20));
    assert_eq!(segments(dir.path()), [5, 6]);
    assert_eq!(scan(dir.path()), before);
    let done = compact(&writer, Horizon::Final);
    assert_eq!((done.segments, done.rows), (1, 5));
    let after = scan(dir.path());
    assert_eq!(after[..20], before[..20]);
    assert!(
        after[20..]
            .iter()
            .all(|row| row.outcome == Err(Missing::NotRecorded))
    );
    let names: BTreeMap<_, usize> =
        parquet(dir.path())
            .iter()
            .fold(BTreeMap::new(), |mut all, part| {
                let partition = part
                    .path
                    .parent()
                    .unwrap()
                    .strip_prefix(dir.path())
                    .unwrap();
                *all.entry(partition.to_str().unwrap().to_owned())
                    .or_default() += 1;
                all
            });
    let partitions: Vec<_> = names.keys().map(String::as_str).collect();
    assert_eq!(
        partitions,
        [
            "host=host-a/day=2023-11-14",
            "host=host-a/day=2023-11-15",
            "host=host-b%2F%C3%A9/day=2023-11-14",
            "host=host-b%2F%C3%A9/day=2023-11-15"
        ]
    );
}

#[test]
fn a_segment_waits_for_its_outcomes_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    write(&mut writer, [1, 2].map(|n| decision_of(of(n))));
    settle(&mut writer, [of(1)]);
    writer.seal().unwrap();
    assert_eq!(compact(&writer, Horizon::Now(of(2).at_us)).segments, 0);
    assert_eq!(scan(dir.path())[1].outcome, Err(Missing::Awaited));
    let late = of(2).at_us + PATIENCE_US;
    assert_eq!(compact(&writer, Horizon::Now(late - 1)).segments, 0);
    assert_eq!(compact(&writer, Horizon::Now(late)).segments, 1);
    let rows = scan(dir.path());
    assert_eq!(rows[0].outcome, Ok(outcome_of(of(1))));
    assert_eq!(rows[1].outcome, Err(Missing::NotRecorded));
    // One that comes after all belongs to nothing.
    settle(&mut writer, [of(2), of(99)]);
    writer.seal().unwrap();
    let done = compact(&writer, Horizon::Final);
    assert_eq!((done.orphans, done.segments, done.rows), (1, 1, 0));
    assert_eq!(scan(dir.path()), rows);
}

#[test]
fn a_decision_that_was_replaced_within_its_interval_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let other_disk = DecisionRow {
        subject: Subject::Disk {
            guest: "vm-1".to_owned(),
            target: "vdb".to_owned(),
        },
        ..decision_of(of(3))
    };
    write(
        &mut writer,
        [decision_of(of(1)), decision_of(of(2)), other_disk],
    );
    writer.seal().unwrap();
    settle(&mut writer, [of(2)]);
    // The other disk has not been replaced.
    assert_eq!(compact(&writer, Horizon::Now(NOON)).segments, 0);
    let outcomes: Vec<_> = scan(dir.path())
        .into_iter()
        .map(|row| row.outcome)
        .collect();
    let wanted = [
        Err(Missing::NotRecorded),
        Ok(outcome_of(of(2))),
        Err(Missing::Awaited),
    ];
    assert_eq!(outcomes, wanted);
    settle(&mut writer, [of(3)]);
    assert_eq!(compact(&writer, Horizon::Now(NOON)).segments, 1);
}

#[test]
fn what_has_no_outcome_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let shadow = DecisionRow {
        source: Source::Shadow,
        ..decision_of(of(1))
    };
    let device = DecisionRow {
        subject: Subject::Device {
            name: "nvme0n1".to_owned(),
        },
        ..decision_of(of(2))
    };
    write(&mut writer, [shadow, device, decision_of(of(3))]);
    writer.seal().unwrap();
    // The service is started anew.
    write(
        &mut writer,
        [decision_of(Of {
            episode: 2,
            ..of(4)
        })],
    );
    assert_eq!(compact(&writer, Horizon::Now(NOON)).segments, 1);
    let outcomes: Vec<_> = scan(dir.path())
        .into_iter()
        .map(|row| row.outcome)
        .collect();
    let wanted = [
        Missing::NotApplied,
        Missing::NotRecorded,
        Missing::EpisodeEnded,
        Missing::Awaited,
    ];
    assert_eq!(outcomes, wanted.map(Err));
}

#[test]
fn what_the_writer_repeats_is_one_row_across_parquet_and_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    for round in 0..4 {
        // Each segment begins with what the one before it ends with.
        write(&mut writer, [round, round + 1].map(|n| decision_of(of(n))));
        settle(&mut writer, [of(round), of(round + 1), of(round)]);
        writer.seal().unwrap();
        let rows = scan(dir.path());
        assert_eq!(numbers(&rows), (0..=round + 1).collect::<Vec<_>>());
        if round % 2 == 1 {
            let done = compact(&writer, Horizon::Final);
            assert_eq!(done.duplicates, 2, "{done:?}");
            assert_eq!(scan(dir.path()), rows);
        }
    }
}

#[test]
fn a_crash_before_the_segment_is_removed_leaves_each_row_once() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = five_segments(dir.path());
    let before = scan(dir.path());
    let kept: Vec<_> = segment::list(&Disk, dir.path()).unwrap()[..4]
        .iter()
        .map(|(_, path)| (path.clone(), fs::read(path).unwrap()))
        .collect();
    compact(&writer, Horizon::Now(NOON));
    let files = parquet(dir.path());
    for (path, bytes) in &kept[2..] {
        fs::write(path, bytes).unwrap();
    }
    // A file of theirs, and one that was being written.
    fs::remove_file(&files.last().unwrap().path).unwrap();
    let left = files[0]
        .path
        .with_file_name(".part-000000000003.parquet.tmp");
    fs::write(&left, b"PAR1 half a file").unwrap();
    assert_eq!(scan(dir.path()), before);
    assert_eq!(compact(&writer, Horizon::Now(NOON)).segments, 2);
    assert_eq!(scan(dir.path()), before);
    assert_eq!(parquet(dir.path()), files);
    assert!(!left.exists());
}

#[test]
fn asked_to_stop_it_leaves_the_segment_and_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = five_segments(dir.path());
    let before = scan(dir.path());
    let stop = AtomicBool::new(true);
    let done = writer
        .compactor(KEEP)
        .compact(Horizon::Final, &stop)
        .unwrap();
    assert_eq!(done, Compacted::default());
    assert_eq!(scan(dir.path()), before);
    assert!(parquet(dir.path()).is_empty() && leftovers(&Disk, dir.path()).unwrap().is_empty());
}

#[test]
fn the_oldest_go_first_and_are_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = five_segments(dir.path());
    compact(&writer, Horizon::Final);
    let all = scan(dir.path());
    let size = |part: &Part| fs::metadata(&part.path).unwrap().len();
    let total: u64 = parquet(dir.path()).iter().map(size).sum();
    let keep = |most_bytes, most_age| Keep {
        most_bytes,
        most_age,
    };
    let retain = |keep, now| writer.compactor(keep).retain(now).unwrap();
    assert_eq!(retain(keep(total * 2, None), NOON).rows, 0);
    let gone = retain(keep(total - 1, None), NOON);
    assert_eq!((gone.rows, gone.through_segment), (5, 1));
    assert_eq!(scan(dir.path()), all[5..]);
    // Rows 5 to 11 are of the day before the others; a file goes when its whole segment is old.
    let day_after = NOON - NOON.rem_euclid(DAY) + 2 * DAY;
    let gone = retain(keep(total, Some(Duration::from_secs(3600))), day_after);
    assert_eq!((gone.rows, gone.through_segment), (5, 2));
    assert_eq!(scan(dir.path()), all[10..]);
    let dropped = retain::dropped(&Disk, dir.path()).unwrap();
    assert_eq!((dropped.rows, dropped.through_segment), (10, 2));
    // What was counted before a crash is not counted again when it goes at last.
    let counted = Dropped {
        through_segment: 3,
        ..dropped
    };
    fs::write(
        dir.path().join("retention.json"),
        serde_json::to_string(&counted).unwrap(),
    )
    .unwrap();
    assert_eq!(scan(dir.path()), all[15..]);
    assert_eq!(retain(keep(total, None), NOON).rows, 0);
    assert!(parquet(dir.path()).iter().all(|part| part.number > 3));
    assert_eq!(retain(keep(0, None), NOON).rows, 10);
    assert_eq!(scan(dir.path()), []);
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn segments_that_cannot_become_parquet_in_time_are_dropped_and_counted_too() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = five_segments(dir.path());
    let keep = Keep {
        most_bytes: 0,
        most_age: None,
    };
    let gone = writer.compactor(keep).retain(NOON).unwrap();
    assert_eq!((gone.rows, gone.files, gone.through_segment), (25, 5, 5));
    assert_eq!(scan(dir.path()), []);
}

#[test]
fn numbers_are_never_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = five_segments(dir.path());
    compact(&writer, Horizon::Final);
    drop(writer);
    for number in segments(dir.path()) {
        fs::remove_file(segment::path_of(dir.path(), number)).unwrap();
    }
    let mut writer = open(dir.path());
    assert_eq!(writer.number(), 6);
    write(&mut writer, [decision_of(of(77))]);
    assert_eq!(numbers(&scan(dir.path())).last(), Some(&77));
}

#[test]
fn files_that_are_torn_damaged_or_of_another_schema_are_named_and_the_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    for number in 0..4 {
        write(&mut writer, [decision_of(of(number))]);
        writer.seal().unwrap();
    }
    compact(&writer, Horizon::Final);
    let files: Vec<_> = parquet(dir.path())
        .into_iter()
        .map(|part| part.path)
        .collect();
    let bytes = fs::read(&files[0]).unwrap();
    fs::write(&files[0], &bytes[..bytes.len() - 9]).unwrap();
    let other = replaced(
        &fs::read(&files[2]).unwrap(),
        b"schema_version\x18\x011",
        b"schema_version\x18\x017",
    );
    fs::write(&files[2], other).unwrap();
    let items = items(dir.path(), Query::default());
    let problem = |item: &Result<_, LogError>| item.as_ref().err().map(ToString::to_string);
    let problems: Vec<_> = items.iter().filter_map(problem).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].contains("part-000000000001.parquet: cannot be read as Parquet"),
        "{problems:?}"
    );
    assert!(
        problems[1].contains(
            "part-000000000003.parquet: its schema version is 7, this build reads schema version 1"
        ),
        "{problems:?}"
    );
    let rows: Vec<_> = items.into_iter().filter_map(Result::ok).flatten().collect();
    assert_eq!(numbers(&rows), [1, 3]);
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from);
    let mut bytes = bytes.to_vec();
    let at = at.expect("the footer names its version");
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

#[test]
fn a_query_takes_the_same_rows_and_columns_of_parquet_and_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = five_segments(dir.path());
    let all = scan(dir.path());
    let queries = [
        Query {
            from_us: Some(all[7].decision.at_us),
            until_us: Some(all[18].decision.at_us),
            ..Query::default()
        },
        Query {
            host: Some("host-b/é".to_owned()),
            ..Query::default()
        },
        Query {
            guest: Some("vm-1".to_owned()),
            target: Some("vda".to_owned()),
            policy: Some("ppo".to_owned()),
            ..Query::default()
        },
        Query {
            policy: Some("other".to_owned()),
            ..Query::default()
        },
    ];
    let read = |query: &Query| -> Vec<LoggedRow> {
        items(dir.path(), query.clone())
            .into_iter()
            .flat_map(Result::unwrap)
            .collect()
    };
    let before: Vec<_> = queries.iter().map(read).collect();
    let counts: Vec<_> = before.iter().map(Vec::len).collect();
    assert_eq!(counts, [11, 9, 25, 0]);
    assert_eq!(before[0], all[7..18]);
    assert!(
        before[1]
            .iter()
            .all(|row| &*row.decision.host == "host-b/é")
    );
    compact(&writer, Horizon::Now(NOON));
    assert_eq!(queries.iter().map(read).collect::<Vec<_>>(), before);

    let columns = ["head_propensity", "at", "reward_own"]
        .map(str::to_owned)
        .to_vec();
    let query = Query {
        columns: columns.clone(),
        host: Some("host-a".to_owned()),
        ..Query::default()
    };
    for batch in Scan::open(dir.path(), query, Horizon::Now(NOON)).unwrap() {
        let batch = batch.unwrap();
        let schema = batch.record_batch().schema();
        let names: Vec<_> = schema
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect();
        assert_eq!(names, columns);
        let lists = batch
            .number_lists::<arrow_array::types::Float64Type>("head_propensity")
            .unwrap();
        assert_eq!(lists.offsets.len(), batch.len() + 1);
        assert!(lists.values.iter().all(|p| *p == 0.1 + 0.2));
        assert!(
            batch
                .texts("policy")
                .unwrap_err()
                .to_string()
                .contains("`policy` is no column")
        );
    }
    let query = Query {
        columns: vec!["no_such".to_owned()],
        ..Query::default()
    };
    assert!(Scan::open(dir.path(), query, Horizon::Final).is_err());
}

#[test]
fn the_last_rows_are_read_without_the_files_before_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = five_segments(dir.path());
    compact(&writer, Horizon::Final);
    write(&mut writer, [decision_of(of(24)), decision_of(of(25))]);
    let last = |rows| {
        let scan = Scan::open(dir.path(), Query::default(), Horizon::Final).unwrap();
        let batches = scan.from_last(rows).map(Result::unwrap);
        numbers(
            &batches
                .flat_map(|batch| batch.rows().unwrap())
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(last(6), (15..26).collect::<Vec<_>>());
    assert_eq!(last(1000), (0..26).collect::<Vec<_>>());
}

#[test]
fn a_reader_beside_writer_and_compactor_sees_each_row_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let mut compactor = writer.compactor(KEEP);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                compactor.compact(Horizon::Final, &GO_ON).unwrap();
            }
        });
        for number in 0..30 {
            write(&mut writer, [decision_of(of(number))]);
            settle(&mut writer, [of(number)]);
            writer.seal().unwrap();
            assert_eq!(numbers(&scan(dir.path())), (0..=number).collect::<Vec<_>>());
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_footer_says_what_the_file_was_made_of_and_sums_it_up() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = five_segments(dir.path());
    compact(&writer, Horizon::Final);
    let mut previous = 0;
    for parts in parquet(dir.path()).chunk_by(|a, b| a.number == b.number) {
        let mut rows = 0;
        for part in parts {
            let (_, footer) = read_footer(&Disk, &part.path).unwrap();
            assert_eq!(
                (footer.segment, footer.previous_segment),
                (part.number, previous)
            );
            assert_eq!(
                (footer.segment_rows, footer.segment_parts),
                (5, parts.len() as u64)
            );
            let bytes = fs::read(&part.path).unwrap();
            let data = &bytes[..footer.data_bytes as usize];
            assert_eq!(crc32fast::hash(data), footer.data_crc32);
            assert!(footer.at_us.unwrap().0 <= footer.at_us.unwrap().1);
            rows += footer.rows;
        }
        assert_eq!(rows, 5);
        previous = parts[0].number;
    }
}

fn arbitrary_row() -> impl Strategy<Value = LoggedRow> {
    let numbers = (
        any::<u64>(),
        0..i64::MAX,
        any::<u32>(),
        0_usize..4,
        0_usize..5,
    );
    let texts = (
        ".*",
        proptest::option::of(".*"),
        any::<bool>(),
        any::<bool>(),
    );
    (numbers, texts).prop_map(
        |((id, at_us, order, heads, features), (text, reason, one, two))| {
            let mut decision = decision_of(Of {
                number: id.into(),
                host: "h",
                at_us,
                episode: id.into(),
            });
            decision.order = order >> 1;
            decision.host = text.as_str().into();
            decision.policy = text.as_str().into();
            decision.reason.clone_from(&reason);
            decision.heads = vec![decision.heads[0].clone(); heads];
            for head in &mut decision.heads {
                head.altered.clone_from(&reason);
                head.explored = one;
                head.forced = two;
                head.mask = MaskReason::ALL.iter().map(|(reason, _)| *reason).collect();
            }
            decision.seen.channels = (0..features).map(|i| i as f32 / 3.0).collect();
            decision.seen.flaws = vec![decision.seen.flaws[0]; features];
            decision.novel = vec![text.clone(); features];
            Arc::make_mut(&mut decision.reward_weights).insert(text.clone(), f64::MIN_POSITIVE);
            if one {
                decision.subject = Subject::Device { name: text };
                decision.source = Source::Guard;
            }
            let mut outcome = outcome_of(Of {
                number: id.into(),
                host: "h",
                at_us: 0,
                episode: 0,
            });
            outcome.counted = one;
            outcome.truncated = two;
            let missing = Missing::ALL[features % 4];
            LoggedRow {
                segment: id >> 1,
                line: id >> 2,
                decision,
                outcome: if two { Ok(outcome) } else { Err(missing) },
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rows_are_the_same_after_they_were_columns(rows in prop::collection::vec(arbitrary_row(), 0..5)) {
        let mut columns = Rows::new(&all());
        rows.iter().for_each(|row| columns.push(row));
        prop_assert_eq!(rows_of(&columns.take()).unwrap(), rows);
        prop_assert!(columns.is_empty());
    }
}
