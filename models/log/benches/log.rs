//! Rows per second of the decision log: appended and committed, made Parquet, read back.
//!
//! With `--json FILE` the figures are also written there. Where `LOG_PEER_PYTHON` names a Python with
//! polars, the same files are read by it too, as a ratio side by side.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use blkpilot_env::{MaskReason, Validity};
use blkpilot_log::{
    Config, DecisionId, DecisionRow, EpisodeId, Event, HeadRow, Horizon, HostStepId, Keep,
    OutcomeRow, Query, Scan, Seen, Source, Stage, Subject, Writer,
};

/// Disks of the host; each step is one commit.
const DISKS: u64 = 4;
const STEPS: u64 = 10_000;
const PROJECTED: [&str; 4] = ["at", "head_propensity", "reward_own", "counted"];

/// Features and channels of a host of eight channels.
const DISK_FEATURES: usize = 24;
const CHANNELS: usize = 8;
const CHANNEL_FEATURES: usize = 10;
const PAIR_FEATURES: usize = 4;

fn main() {
    let json = std::env::args().skip_while(|arg| arg != "--json").nth(1);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let rows = (DISKS * STEPS) as f64;
    let mut report: BTreeMap<&str, f64> = BTreeMap::new();
    let mut add = |name: &'static str, figure: f64| {
        println!("{name:48} {figure:14.0}");
        report.insert(name, figure);
    };
    let mut writer = Writer::open(dir.path(), Config::default())
        .expect("opens")
        .0;
    add(
        "append, 4 rows and outcomes per commit, rows/s",
        rows / seconds(|| append(&mut writer)),
    );
    add(
        "scan of segments, all columns, rows/s",
        rows / seconds(|| scan(dir.path(), &[])),
    );
    writer.seal().expect("seals");
    let segments = bytes(dir.path(), "log");
    let keep = Keep {
        most_bytes: u64::MAX,
        most_age: None,
    };
    let go_on = AtomicBool::new(false);
    let mut compactor = writer.compactor(keep);
    let compacted = seconds(|| {
        compactor.compact(Horizon::Final, &go_on).expect("compacts");
    });
    add("compaction, rows/s", rows / compacted);
    let parquet = bytes(dir.path(), "parquet");
    add("bytes per row in segments", segments / rows);
    add("bytes per row in Parquet", parquet / rows);
    add(
        "scan of Parquet, all columns, rows/s",
        rows / seconds(|| scan(dir.path(), &[])),
    );
    let projected = seconds(|| scan(dir.path(), &PROJECTED));
    add("scan of Parquet, four columns, rows/s", rows / projected);
    if let Some(peer) = polars(dir.path()) {
        add("polars: scan of Parquet, four columns, rows/s", rows / peer);
        add(
            "four columns: times as fast as polars × 100",
            100.0 * peer / projected,
        );
    }
    if let Some(file) = json {
        let text = serde_json::json!({ "name": "log", "figures": report }).to_string();
        std::fs::write(&file, text).expect("the report can be written");
    }
}

fn seconds(act: impl FnOnce()) -> f64 {
    let started = Instant::now();
    act();
    started.elapsed().as_secs_f64()
}

fn append(writer: &mut Writer) {
    let mut number = 0;
    for step in 0..STEPS {
        for order in 0..DISKS {
            number += 1;
            let row = decision(number, step, order);
            writer
                .append(&Event::Decision(Box::new(row)))
                .expect("appends");
        }
        writer.commit().expect("commits");
        for number in number - DISKS + 1..=number {
            writer
                .append(&Event::Outcome(outcome(number, step)))
                .expect("appends");
        }
    }
    writer.commit().expect("commits");
}

fn scan(dir: &Path, columns: &[&str]) {
    let query = Query {
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
        ..Query::default()
    };
    let batches = Scan::open(dir, query, Horizon::Final).expect("opens");
    let rows: usize = batches.map(|batch| batch.expect("reads").len()).sum();
    assert_eq!(rows as u64, DISKS * STEPS);
}

/// Bytes of the files with this ending below a directory.
fn bytes(dir: &Path, ending: &str) -> f64 {
    let entries = std::fs::read_dir(dir)
        .expect("lists")
        .map(|entry| entry.expect("lists").path());
    entries
        .map(|path| match path.extension() {
            _ if path.is_dir() => bytes(&path, ending),
            Some(end) if end == ending => std::fs::metadata(&path).expect("reads").len() as f64,
            _ => 0.0,
        })
        .sum()
}

/// Seconds that polars takes for the same columns, without its start.
fn polars(dir: &Path) -> Option<f64> {
    let python = std::env::var_os("LOG_PEER_PYTHON")?;
    let program = "import sys, time, polars
pattern, columns = sys.argv[1], sys.argv[2].split(',')
start = time.perf_counter()
rows = polars.scan_parquet(pattern).select(columns).collect().height
print(time.perf_counter() - start, rows)";
    let pattern = dir.join("host=*/day=*/*.parquet");
    let output = Command::new(python)
        .args(["-c", program])
        .arg(pattern)
        .arg(PROJECTED.join(","))
        .output();
    let output = output.expect("the peer starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (seconds, rows) = text
        .trim()
        .split_once(' ')
        .expect("the peer says two numbers");
    assert_eq!(rows.parse(), Ok(DISKS * STEPS));
    seconds.parse().ok()
}

fn decision(number: u64, step: u64, order: u64) -> DecisionRow {
    let feature = |i: usize| ((number as usize * 31 + i * 17) % 1009) as f32 / 1009.0;
    let features = |count: usize| (0..count).map(feature).collect::<Vec<f32>>();
    let head = |name: &str, levels: usize| HeadRow {
        head: name.to_owned(),
        previous: 0,
        requested: (number as usize % levels) as u16,
        executed: (number as usize % levels) as u16,
        propensity: 1.0 / levels as f64,
        explored: number.is_multiple_of(20),
        forced: false,
        altered: None,
        mask: vec![MaskReason::Allowed; levels],
    };
    DecisionRow {
        id: DecisionId(scattered(number)),
        host_step_id: HostStepId(scattered(step)),
        episode_id: EpisodeId(1),
        at_us: 1_700_000_000_000_000 + step as i64 * 2_000_000,
        host: "host".into(),
        subject: Subject::Disk {
            guest: format!("vm-{order}"),
            target: "vda".to_owned(),
        },
        order: order as u32,
        source: Source::Auto,
        stage: Stage::Policy,
        epsilon: 0.05,
        reason: None,
        policy: "policy".into(),
        policy_version: "0123456789abcdef".repeat(4).into(),
        spec_hash: "fedcba9876543210".repeat(4).into(),
        seen: Seen {
            disk: features(DISK_FEATURES),
            device: features(8),
            host: features(8),
            channel_count: CHANNELS,
            channels: features(CHANNELS * CHANNEL_FEATURES),
            pairs: features(CHANNELS * PAIR_FEATURES),
            flaws: vec![],
        },
        heads: vec![
            head("channel", CHANNELS + 1),
            head("cache", 2),
            head("polling", 2),
        ],
        novel: vec![],
        reward_weights: Arc::new(BTreeMap::from([
            ("beta".to_owned(), 0.5),
            ("cpu".to_owned(), 0.1),
        ])),
    }
}

/// Ids are random: they do not compress.
fn scattered(number: u64) -> u128 {
    u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64
        | u128::from(number.wrapping_mul(0xbf58_476d_1ce4_e5b9))
}

fn outcome(number: u64, step: u64) -> OutcomeRow {
    let term = (number % 997) as f32 / -997.0;
    OutcomeRow {
        decision_id: DecisionId(scattered(number)),
        at_us: 1_700_000_002_000_000 + step as i64 * 2_000_000,
        interval_s: 2.0,
        reward_total: term,
        reward_own: term,
        reward_terms: ["contention", "cpu", "delay", "miss"]
            .map(|name| (name.to_owned(), term / 4.0))
            .into(),
        counted: true,
        validity: Validity::Valid,
        terminated: false,
        truncated: false,
    }
}
