//! `blkpilot log`: the decision log's files, without a service.

mod text;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use blkpilot_log::inventory::{Inventory, inventory};
use blkpilot_log::verify::{is_log, verify};
use blkpilot_log::{Horizon, LogError, LoggedRow, Query, Scan, minari};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CliError;
use super::output::print;
use super::tables::rfc3339;
use crate::decision::now_us;

const LS_EXAMPLES: &str = "\
Examples:
  blkpilot log ls /var/lib/blkpilot
  blkpilot log ls out/log --json | jq '.files[] | select(.problem)'";

const SHOW_EXAMPLES: &str = "\
Examples:
  blkpilot log show /var/lib/blkpilot --guest db --disk vda --since 2h
  blkpilot log show out/log --since 2025-03-09T10:00:00Z --until 2025-03-09T11:00:00Z --all --json

With --json each row is one object on a line of its own, with all that docs/decision_log.md lists:
  … | jq 'select(.outcome.counted) | .outcome.reward_own'";

const EXPORT_EXAMPLES: &str = "\
OUT/data is then a dataset of Minari 0.5 in its Arrow storage: an episode per disk between two resets,
the executed levels as actions, and in its infos the propensity of each head. In Python:
  minari.MinariDataset(\"OUT/data\")
Shadow decisions, devices and decisions without an outcome are left out and counted.

Example:
  blkpilot log export /var/lib/blkpilot out/db --guest db --since 7d --id blkpilot/db-v0";

const VERIFY_EXAMPLES: &str = "\
Checked are: checksums of lines and files, footers, that no file or row is missing or there twice,
that each row stands where it belongs, that outcomes follow their decisions, and that propensities are
in (0, 1]. What is wrong is said with file and row, from 0.

Exit status: 0 nothing is wrong, 1 something is.";

#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// List files with rows, time, size and schema version, and what retention has dropped
    #[command(after_help = LS_EXAMPLES)]
    Ls(LsArgs),
    /// Show rows, Parquet or not yet, oldest first
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowArgs),
    /// Write rows as a dataset for offline learning
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArgs),
    /// Check that the log is what was written
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// The log's directory, or the data directory of the service that holds it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Filter {
    /// Only this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Only this guest
    #[arg(long, value_name = "NAME")]
    guest: Option<String>,
    /// Only this disk of a guest, or this device
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
    /// Only what this policy chose
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Only from then on: a time such as 2025-03-09T10:00:00Z, or so long ago, such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<i64>,
    /// Only before then
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<i64>,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The log's directory, or the data directory of the service that holds it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    filter: Filter,
    /// Show the newest so many
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "all")]
    limit: usize,
    /// Show all
    #[arg(long)]
    all: bool,
    /// Print one JSON object per row
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The log's directory, or the data directory of the service that holds it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Directory to write the dataset to
    #[arg(value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    filter: Filter,
    /// Name of the dataset
    #[arg(long, value_name = "ID", default_value = "blkpilot/log-v0")]
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The log's directory, or the data directory of the service that holds it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Filter {
    fn query(&self) -> Query {
        Query {
            columns: vec![],
            from_us: self.since,
            until_us: self.until,
            host: self.host.clone(),
            guest: self.guest.clone(),
            target: self.disk.clone(),
            policy: self.policy.clone(),
        }
    }
}

/// A time, or a span before now, in microseconds since 1970 UTC.
pub(super) fn parse_time(text: &str) -> Result<i64, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        let span_us = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        return Ok(now_us().saturating_sub(span_us));
    }
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| {
        "must be a time such as 2025-03-09T10:00:00Z, or a span before now such as 2h".to_owned()
    })?;
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    Ok(since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }))
}

pub(super) fn run(command: &LogCommand) -> Result<(), CliError> {
    match command {
        LogCommand::Ls(args) => ls(args),
        LogCommand::Show(args) => show(args),
        LogCommand::Export(args) => export(args),
        LogCommand::Verify(args) => check(args),
    }
}

/// The log itself where a data directory was named.
pub(super) fn find(dir: &Path) -> Result<PathBuf, CliError> {
    let dir = blkpilot_log::locate(dir);
    if is_log(&dir)? {
        return Ok(dir);
    }
    Err(CliError::Usage(format!(
        "{}: no decision log is there: name the directory with its *.log or host=* in it, or the data directory of a service",
        dir.display()
    )))
}

fn ls(args: &LsArgs) -> Result<(), CliError> {
    let dir = find(&args.dir)?;
    let found = inventory(&dir)?;
    if args.json {
        print(format_args!("{:#}", inventory_json(&dir, &found)))
    } else {
        print(text::inventory(&found))
    }
}

fn inventory_json(dir: &Path, found: &Inventory) -> Value {
    let files: Vec<Value> = found
        .files
        .iter()
        .map(|file| {
            json!({
                "file": file.file,
                "form": file.form,
                "segment": file.segment,
                "bytes": file.bytes,
                "rows": file.rows,
                "version": file.version,
                "first": file.at_us.map(|(first, _)| rfc3339(first)),
                "last": file.at_us.map(|(_, last)| rfc3339(last)),
                "problem": file.problem,
            })
        })
        .collect();
    json!({ "log": dir, "files": files, "dropped": found.dropped })
}

fn show(args: &ShowArgs) -> Result<(), CliError> {
    let dir = find(&args.dir)?;
    let limit = if args.all { usize::MAX } else { args.limit };
    let mut newest = VecDeque::new();
    for batch in Scan::open(&dir, args.filter.query(), Horizon::Now(now_us()))? {
        for row in batch?.rows()? {
            if args.all && args.json {
                print(row_json(&row))?;
                continue;
            }
            newest.push_back(row);
            if newest.len() > limit {
                newest.pop_front();
            }
        }
    }
    if args.json {
        newest.iter().try_for_each(|row| print(row_json(row)))
    } else if newest.is_empty() {
        print("no row fits")
    } else {
        print(text::rows(newest.iter()))
    }
}

fn row_json(row: &LoggedRow) -> Value {
    let missing = row.outcome.as_ref().err().map(|missing| missing.text());
    json!({
        "segment": row.segment,
        "line": row.line,
        "decision": row.decision,
        "outcome": row.outcome.as_ref().ok(),
        "outcome_missing": missing,
    })
}

fn export(args: &ExportArgs) -> Result<(), CliError> {
    let dir = find(&args.dir)?;
    let scan = Scan::open(&dir, args.filter.query(), Horizon::Now(now_us()))?;
    let done = minari::export(scan, &args.out, &args.id)?;
    if args.json {
        return print(json!(done));
    }
    print(format_args!(
        "{} episodes of {} steps in {}; left out: {} of shadows and devices, {} without an outcome, {} whose observation ends an episode",
        done.episodes,
        done.steps,
        args.out.join("data").display(),
        done.left_out,
        done.without_outcome,
        done.last
    ))
}

fn check(args: &VerifyArgs) -> Result<(), CliError> {
    let dir = find(&args.dir)?;
    let report = verify(&dir, Horizon::Now(now_us()))?;
    if args.json {
        print(format_args!("{:#}", json!(report)))?;
    } else {
        print(text::report(&report))?;
    }
    if report.wrong == 0 {
        return Ok(());
    }
    Err(CliError::Failed(format!(
        "{}: {} things are wrong with this log; what is whole can still be read",
        dir.display(),
        report.wrong
    )))
}

impl From<LogError> for CliError {
    fn from(error: LogError) -> Self {
        Self::Failed(match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_as_such_or_as_a_span_before_now() {
        assert_eq!(
            parse_time("2023-11-14T22:13:20Z"),
            Ok(1_700_000_000_000_000)
        );
        assert_eq!(parse_time("2023-11-14 22:13:20"), Ok(1_700_000_000_000_000));
        let ago = now_us() - parse_time("2h").unwrap();
        assert!((7_190_000_000..=7_210_000_000).contains(&ago), "{ago}");
        assert!(parse_time("yesterday").unwrap_err().contains("such as 2h"));
    }
}
