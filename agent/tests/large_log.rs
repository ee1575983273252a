//! `blkpilot evaluate --log` on a log much larger than its memory: the rows of one host, given to ever more
//! hosts.
//!
//! `BLKPILOT_LOG_ROWS` says how many rows; without, few. The log is evaluated at a tenth of its size and
//! whole, so that what memory grows by can be told; rows per second stand beside those of a scan of the same
//! columns.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arrow_array::cast::AsArray as _;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use blkpilot_env::sim::{SimHost, presets};
use blkpilot_env::{EnvSpec, Environment as _, Rng};
use blkpilot_log::columns::{SCHEMA_VERSION, schema};
use blkpilot_log::play::Setup;
use blkpilot_log::{Config, Horizon, Player, Query, Scan};
use blkpilot_models::baseline::RandomPolicy;
use blkpilot_models::{Architecture, Checkpoint};
use nix::sys::resource::{UsageWho, getrusage};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use rand::SeedableRng as _;
use serde_json::Value;
use tempfile::TempDir;

const FEW_ROWS: u64 = 60_000;
/// Hosts of the whole log, of which a tenth is evaluated first.
const HOSTS: u64 = 1000;
const FEW_HOSTS: u64 = 20;
const MOST_MEMORY: u64 = 1 << 30;
/// What ten times the rows may add: an id per episode, and what the allocator keeps.
const MOST_GROWTH: u64 = 256 << 20;
/// All files of a log stand here: its rows are those of its first day.
const DAY: &str = "day=2024-01-01";

/// The rows of one host, as a simulated host gave them.
struct Base {
    spec: EnvSpec,
    batches: Vec<RecordBatch>,
    rows: u64,
}

impl Base {
    /// At least so many rows.
    fn played(rows: u64) -> Self {
        let scenario = presets::mixed();
        let setup = Setup {
            host: "base".to_owned(),
            policy_version: String::new(),
            interval_s: scenario.interval_s,
            epsilon: 0.0,
            reward_weights: [("beta".to_owned(), 0.5)].into(),
        };
        let host = SimHost::fixed(scenario).unwrap();
        let spec = host.spec().clone();
        let dir = TempDir::new().unwrap();
        let policy = Box::new(RandomPolicy);
        let mut player = Player::open(dir.path(), host, policy, setup, Config::default()).unwrap();
        let go_on = AtomicBool::new(false);
        for seed in 0.. {
            let mut decisions = Rng::seed_from_u64(seed);
            decisions.set_stream(1);
            player.play(seed, decisions, &go_on).unwrap();
            if player.tally().rows >= rows {
                break;
            }
        }
        let rows = player.finish().unwrap().rows;
        let scan = Scan::open(dir.path(), Query::default(), Horizon::Final).unwrap();
        let batches = scan.map(|batch| batch.unwrap().record_batch().clone());
        let batches = batches.collect();
        Self {
            spec,
            batches,
            rows,
        }
    }

    /// Gives the rows to one more host, as the next segment of the log in `dir`.
    fn write(&self, dir: &Path, number: u64) {
        let host = format!("host-{number:04}");
        let place = dir.join(format!("host={host}")).join(DAY);
        fs::create_dir_all(&place).unwrap();
        let mut writer =
            ArrowWriter::try_new(Summed::default(), schema(), Some(properties())).unwrap();
        for batch in &self.batches {
            writer.write(&of_host(batch, number, &host)).unwrap();
        }
        writer.flush().unwrap();
        let (bytes, crc32) = (writer.inner().bytes.len(), writer.inner().crc32.clone());
        let facts = [
            ("schema_version", u64::from(SCHEMA_VERSION)),
            ("segment", number),
            ("segment_rows", self.rows),
            ("segment_parts", 1),
            ("previous_segment", number - 1),
            ("damaged_lines", 0),
            ("data_bytes", bytes as u64),
            ("data_crc32", crc32.finalize().into()),
        ];
        let entry = |name: &str, value| KeyValue::new(format!("blkpilot.{name}"), Some(value));
        for (name, value) in facts {
            writer.append_key_value_metadata(entry(name, value.to_string()));
        }
        writer.append_key_value_metadata(entry("host", host));
        let part = place.join(format!("part-{number:012}.parquet"));
        fs::write(part, writer.into_inner().unwrap().bytes).unwrap();
    }
}

/// As the compaction of the log writes them.
fn properties() -> WriterProperties {
    let level = ZstdLevel::try_new(3).unwrap();
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(8192))
        .build()
}

/// The same rows, but of another host and segment, under ids of their own.
fn of_host(batch: &RecordBatch, number: u64, host: &str) -> RecordBatch {
    let rows = batch.num_rows();
    let own_id = |id: &str| format!("{number:08x}{}", &id[8..]);
    let own_ids = |name: &str| -> ArrayRef {
        let ids = batch[name].as_string::<i32>().iter();
        Arc::new(StringArray::from_iter_values(
            ids.map(|id| own_id(id.unwrap())),
        ))
    };
    let replaced = |name: &str| -> Option<ArrayRef> {
        Some(match name {
            "segment" => Arc::new(Int64Array::from_value(number as i64, rows)),
            "host_name" => Arc::new(StringArray::from_iter_values(std::iter::repeat_n(
                host, rows,
            ))),
            "decision_id" | "host_step_id" | "episode_id" => own_ids(name),
            _ => return None,
        })
    };
    let fields = batch.schema();
    let columns = fields.fields().iter().zip(batch.columns());
    let columns =
        columns.map(|(field, column)| replaced(field.name()).unwrap_or_else(|| column.clone()));
    RecordBatch::try_new(fields.clone(), columns.collect()).unwrap()
}

/// Bytes, and their sum.
#[derive(Default)]
struct Summed {
    bytes: Vec<u8>,
    crc32: crc32fast::Hasher,
}

impl std::io::Write for Summed {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.crc32.update(data);
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn blkpilot(args: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_blkpilot"))
        .args(args)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "blkpilot {args:?}: {said}");
    output.stdout
}

/// What an evaluation took.
struct Run {
    seconds: f64,
    /// The most memory of any child so far.
    memory: u64,
}

impl Run {
    fn of(log: &Path, policy: &Path, rows: u64) -> Self {
        let started = Instant::now();
        let log = log.to_str().unwrap();
        let policy = policy.to_str().unwrap();
        let args = [
            "--log",
            log,
            "--policy",
            policy,
            "--selection",
            "sample",
            "--json",
        ];
        let report: Value =
            serde_json::from_slice(&blkpilot(&[&["evaluate"], &args[..]].concat())).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        let facts = &report["evaluation"]["log"];
        assert_eq!(facts["rows"], rows, "{facts}");
        let estimate = &report["evaluation"]["estimates"][0]["value"]["estimate"];
        assert!(estimate.as_f64().unwrap().is_finite(), "{report}");
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        Self {
            seconds,
            memory: usage.max_rss() as u64 * 1024,
        }
    }

    fn print(&self, rows: u64) {
        println!(
            "{rows:>10} rows: {:8.1} s, {:>8.0} rows/s, {:5.0} MiB at most",
            self.seconds,
            rows as f64 / self.seconds,
            self.memory as f64 / f64::from(1 << 20)
        );
    }
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let bytes = |entry: fs::DirEntry| match entry.path() {
        path if path.is_dir() => bytes_below(&path),
        path => fs::metadata(path).unwrap().len(),
    };
    entries.map(bytes).sum()
}

/// Rows per second of reading alone.
fn scanned(log: &Path) -> f64 {
    let started = Instant::now();
    let scan = Scan::open(log, Query::default(), Horizon::Final).unwrap();
    let rows: usize = scan.map(|batch| batch.unwrap().len()).sum();
    rows as f64 / started.elapsed().as_secs_f64()
}

#[test]
fn memory_does_not_grow_with_the_rows() {
    let wanted = std::env::var("BLKPILOT_LOG_ROWS").ok();
    let wanted = wanted.map(|rows| rows.parse::<u64>().unwrap());
    let hosts = if wanted.is_some() { HOSTS } else { FEW_HOSTS };
    let base = Base::played(wanted.unwrap_or(FEW_ROWS).div_ceil(hosts));
    let dir = TempDir::new().unwrap();
    let [log, policy]: [PathBuf; 2] = ["decisions", "policy"].map(|name| dir.path().join(name));
    let mut rng = Rng::seed_from_u64(1);
    let mut network = Checkpoint::untrained(&base.spec, Architecture::default(), &mut rng);
    network.save(&policy).unwrap();
    for number in 1..=hosts / 10 {
        base.write(&log, number);
    }
    let (some, all) = (base.rows * (hosts / 10), base.rows * hosts);
    if wanted.is_none() {
        blkpilot(&["log", "verify", log.to_str().unwrap()]);
    }
    let tenth = Run::of(&log, &policy, some);
    for number in hosts / 10 + 1..=hosts {
        base.write(&log, number);
    }
    let whole = Run::of(&log, &policy, all);
    if wanted.is_some() {
        let gib = bytes_below(&log) as f64 / f64::from(1 << 30);
        println!(
            "{hosts} hosts, {gib:.2} GiB of Parquet; a network policy, three estimators, all diagnostics"
        );
        tenth.print(some);
        whole.print(all);
        println!("scan of all columns alone: {:.0} rows/s", scanned(&log));
    }
    assert!(whole.memory < MOST_MEMORY, "{} bytes", whole.memory);
    let growth = whole.memory - tenth.memory;
    assert!(growth < MOST_GROWTH, "{growth} bytes more");
}
