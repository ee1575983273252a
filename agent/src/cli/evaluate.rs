//! `blkpilot evaluate`.

mod bandit;
mod cases;
pub(super) mod decisions;
mod edge;
mod multihead;
mod report;
mod sequential;
mod table;
pub(super) mod target;
mod text;
mod verdict_text;

use std::fs;
use std::path::PathBuf;

use blkpilot_models::ope::OpeError;
use clap::{Args, Subcommand};

use super::CliError;
use super::output::print;

const EXAMPLES: &str = "\
Examples:
  blkpilot evaluate --log /var/lib/blkpilot --policy out/policy --since 7d
  blkpilot evaluate --log out/log --policy out/new --against out/old --selection sample --html report.html
  blkpilot evaluate --log out/log --policy out/new --json | jq -r .verdict.text

The log's policy must have explored: docs/evaluation.md says what the diagnostics mean.";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(super) struct EvaluateArgs {
    #[command(subcommand)]
    command: Option<EvaluateCommand>,
    #[command(flatten)]
    log: decisions::LogArgs,
}

#[derive(Debug, Subcommand)]
enum EvaluateCommand {
    /// Evaluate policies on a folder of reference logs, with every estimator, interval and diagnostic
    ///
    /// Reads meta.json and, of bandit_log.csv, seq_*.csv, seqvar_*.csv, multihead_log.csv and
    /// edge_cases.json, what meta.json tells the sizes of or what is there. A log that cannot be evaluated
    /// is refused with the row and field.
    Cases(CasesArgs),
}

#[derive(Debug, Args)]
struct CasesArgs {
    /// The folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Write every figure to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Why a folder cannot be evaluated.
#[derive(Debug, thiserror::Error)]
enum EvaluateError {
    /// A file that cannot be read.
    #[error("{file}: {problem}")]
    File { file: String, problem: String },
    /// A log that is wrong, or an estimate that cannot be made of it.
    #[error("{file}: {source}")]
    Log {
        file: String,
        #[source]
        source: OpeError,
    },
}

impl EvaluateError {
    /// Puts the file before what is wrong with it.
    fn within(file: &str) -> impl Fn(OpeError) -> Self {
        move |source| Self::Log {
            file: file.to_owned(),
            source,
        }
    }
}

pub(super) fn run(args: &EvaluateArgs) -> Result<(), CliError> {
    match &args.command {
        Some(EvaluateCommand::Cases(args)) => cases(args),
        None => decisions::run(&args.log, vec![]),
    }
}

fn cases(args: &CasesArgs) -> Result<(), CliError> {
    let report = cases::evaluate(&args.dir).map_err(|error| {
        let dir = args.dir.display();
        CliError::Failed(format!("{dir}: {error}"))
    })?;
    if let Some(file) = &args.json {
        fs::write(file, format!("{report:#}\n"))
            .map_err(|error| CliError::Failed(format!("{}: {error}", file.display())))?;
    }
    print(text::report(&report))
}
