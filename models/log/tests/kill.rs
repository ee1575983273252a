//! Kills a process that writes and compacts again and again, and checks that what it acknowledged is
//! there, once, and that every file can be read.
//!
//! Without a test harness: the process starts itself again as the writer. `BLKPILOT_KILLS` is the
//! number of kills.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use blkpilot_env::{MaskReason, Validity};
use blkpilot_log::inventory::{Form, inventory};
use blkpilot_log::verify::verify;
use blkpilot_log::{
    Config, DecisionId, DecisionRow, EpisodeId, Event, HeadRow, Horizon, HostStepId, Keep,
    OutcomeRow, Query, Scan, Seen, Source, Stage, Subject, Writer,
};

const WRITER: &str = "--write-to";
const FEW_KILLS: u32 = 12;
/// Kills of one log; a new one is begun then, or reading it would take longer and longer.
const KILLS_PER_LOG: u32 = 20;
/// Decisions of a commit.
const BATCH: u64 = 3;

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(WRITER) {
        write_for_ever(Path::new(&args.next().expect("a directory follows")));
    }
    let kills = std::env::var("BLKPILOT_KILLS");
    let kills = kills.map_or(FEW_KILLS, |n| {
        n.parse().expect("BLKPILOT_KILLS is a number")
    });
    let mut total = Tally::default();
    for first in (0..kills).step_by(KILLS_PER_LOG as usize) {
        let rounds = first..kills.min(first + KILLS_PER_LOG);
        total.add(&kill_a_log(rounds));
    }
    let Tally {
        acknowledged,
        parquet_rows,
        compacting,
    } = total;
    assert!(
        acknowledged > 0,
        "no round got as far as one acknowledgement"
    );
    assert!(parquet_rows > 0, "no round got as far as a Parquet file");
    assert!(kills < 100 || compacting > 0, "no kill hit a compaction");
    println!(
        "{kills} kills, {compacting} of them within a compaction; {acknowledged} rows acknowledged, none lost, none twice, {parquet_rows} of them Parquet; every file could be read"
    );
    // The line that scripts/test.sh counts.
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

#[derive(Debug, Default)]
struct Tally {
    acknowledged: u64,
    parquet_rows: u64,
    /// Kills that left a file half written, or a segment beside its files.
    compacting: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.parquet_rows += other.parquet_rows;
        self.compacting += other.compacting;
    }
}

fn kill_a_log(rounds: std::ops::Range<u32>) -> Tally {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut tally = Tally::default();
    for round in rounds {
        tally.acknowledged = tally.acknowledged.max(kill_a_writer(dir.path(), round));
        let (found, settled) = read(dir.path());
        let Tally { acknowledged, .. } = tally;
        assert!(
            found >= acknowledged,
            "{acknowledged} were acknowledged, {found} found"
        );
        // The outcomes of a batch come with the next.
        assert!(
            settled + BATCH >= acknowledged,
            "{acknowledged} acknowledged, {settled} settled"
        );
        let report = verify(dir.path(), Horizon::Now(0)).expect("the log can be verified");
        assert_eq!((report.wrong, report.rows), (0, found), "{report:?}");
        let files = inventory(dir.path()).expect("the log can be listed").files;
        let is_left =
            |dir: &Path| left_half_written(dir) || files.iter().any(|f| f.form == Form::Unfinished);
        tally.compacting += u64::from(is_left(dir.path()));
        let parquet = files.iter().filter(|file| file.form == Form::Parquet);
        tally.parquet_rows = parquet.map(|file| file.rows).sum();
    }
    tally
}

fn left_half_written(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return false;
    };
    entries.map_while(Result::ok).any(|entry| {
        let is_temporary = entry.path().extension().is_some_and(|end| end == "tmp");
        is_temporary || entry.path().is_dir() && left_half_written(&entry.path())
    })
}

/// Starts a writer, kills it after some acknowledgements and a while, and returns the last of them.
fn kill_a_writer(dir: &Path, round: u32) -> u64 {
    let program = std::env::current_exe().expect("the test knows its own path");
    let mut child = Command::new(program)
        .arg(WRITER)
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the writer starts");
    let output = BufReader::new(child.stdout.take().expect("its output is piped"));
    let mut lines = output.lines().map_while(Result::ok);
    let nth = (round * 7 % 40) as usize;
    let first = lines.nth(nth).expect("the writer acknowledges events");
    // The moment of the kill is to be any: nothing waits for it.
    let while_us = u64::from(round.wrapping_mul(2_654_435_761) % 8_000);
    let started = Instant::now();
    while started.elapsed() < Duration::from_micros(while_us) {
        std::hint::spin_loop();
    }
    // SIGKILL on Unix.
    child.kill().expect("the writer can be killed");
    child.wait().expect("the writer ends");
    let last = lines.last().unwrap_or(first);
    last.parse().expect("acknowledgements are numbers")
}

/// Appends decisions with numbers that go on from what is there, each with the outcomes of those
/// before it; acknowledges each batch by the last number in it. Another thread compacts all the time.
fn write_for_ever(dir: &Path) -> ! {
    let config = Config {
        segment_bytes: 20_000,
    };
    let (mut writer, _) = Writer::open(dir, config).expect("opens");
    let keep = Keep {
        most_bytes: u64::MAX,
        most_age: None,
    };
    let mut compactor = writer.compactor(keep);
    std::thread::spawn(move || {
        let go_on = AtomicBool::new(false);
        loop {
            compactor
                .compact(Horizon::Now(0), &go_on)
                .expect("compacts");
            std::thread::yield_now();
        }
    });
    let (mut number, settled) = read(dir);
    let mut awaited: Vec<u64> = (settled + 1..=number).collect();
    let mut out = std::io::stdout();
    loop {
        for number in awaited.drain(..) {
            writer
                .append(&Event::Outcome(outcome(number)))
                .expect("appends");
        }
        for _ in 0..BATCH {
            number += 1;
            awaited.push(number);
            writer
                .append(&Event::Decision(Box::new(decision(number))))
                .expect("appends");
        }
        writer.commit().expect("commits");
        writeln!(out, "{number}").expect("acknowledges");
        out.flush().expect("acknowledges");
    }
}

/// The numbers of the last decision and of the last that has an outcome, after checking that none
/// before them is missing.
fn read(dir: &Path) -> (u64, u64) {
    let (mut last, mut settled) = (0, 0);
    // Before its first segment there is nothing.
    let scan = Scan::open(dir, Query::default(), Horizon::Now(0)).expect("opens");
    for batch in scan {
        for row in batch
            .expect("every file can be read")
            .rows()
            .expect("rows are whole")
        {
            last += 1;
            assert_eq!(row.decision, decision(last));
            if let Ok(found) = row.outcome {
                assert_eq!(found, outcome(last));
                assert_eq!(settled, last - 1, "outcomes are acknowledged in order");
                settled = last;
            }
        }
    }
    (last, settled)
}

fn decision(number: u64) -> DecisionRow {
    DecisionRow {
        id: DecisionId(u128::from(number)),
        host_step_id: HostStepId(u128::from(number / BATCH)),
        episode_id: EpisodeId(1),
        at_us: 1_700_000_000_000_000 + number as i64,
        host: "host".into(),
        subject: Subject::Disk {
            guest: "vm".to_owned(),
            target: "vda".to_owned(),
        },
        order: (number % BATCH) as u32,
        source: Source::Auto,
        stage: Stage::Policy,
        epsilon: 0.0,
        reason: None,
        policy: "random".into(),
        policy_version: "".into(),
        spec_hash: "ab".into(),
        seen: Seen {
            disk: vec![number as f32; 20],
            ..Seen::default()
        },
        heads: vec![HeadRow {
            head: "cache".to_owned(),
            previous: 0,
            requested: 1,
            executed: 1,
            propensity: 0.5,
            explored: false,
            forced: false,
            altered: None,
            mask: vec![MaskReason::Allowed; 2],
        }],
        novel: vec![],
        reward_weights: Arc::new(BTreeMap::from([("beta".to_owned(), 0.5)])),
    }
}

fn outcome(number: u64) -> OutcomeRow {
    OutcomeRow {
        decision_id: DecisionId(u128::from(number)),
        at_us: 1_700_000_010_000_000 + number as i64,
        interval_s: 10.0,
        reward_total: -0.1,
        reward_own: -0.1,
        reward_terms: BTreeMap::from([("contention".to_owned(), -0.1)]),
        counted: true,
        validity: Validity::Valid,
        terminated: false,
        truncated: false,
    }
}
