//! `blkpilot-lab sweep`.

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::runs::DatabaseArgs;
use super::{print, stop_flag};
use crate::progress::SweepProgress;
use crate::sweep::{Options, Plan, sweep};
use crate::{LabError, json_text};

pub(super) const HELP: &str = "\
A sweep file names a config, seeds, and what differs between configurations:

  version = 1
  config = \"../configs/quickstart.toml\"   # from the sweep file's directory
  seeds = 5                               # 1 to 5, or a list: [3, 17]
  samples = 20                            # draw so many configurations; without it, all of a grid
  seed = 1                                # of the draw
  [parameters]
  training.learning_rate = { low = 1e-4, high = 1e-2, scale = \"log\" }
  training.epochs = { low = 2, high = 8 }
  training.clip = { values = [0.1, 0.2] }

All configurations are checked before anything starts. Each run is a process of its own and stands
in DIR/<configuration>/seed-<seed>, with what it says in seed-<seed>.log beside it. Ctrl-C lets the
runs save. The same command goes on: what is done is skipped, what was interrupted is resumed. A
run that fails stops no other; the sweep then ends with exit code 1. DIR/sweep.json holds the
ranking, and `blkpilot-lab report DIR` makes a page of it.";

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// The sweep, such as experiments/sweeps/quickstart_seeds.toml
    sweep: PathBuf,
    /// Directory to write to [default: out/<sweep>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs at a time [default: half the CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Also run those again that failed before
    #[arg(long)]
    retry_failed: bool,
    /// Go on with runs of other code
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &SweepArgs) -> Result<ExitCode, LabError> {
    let plan = Plan::of(&args.sweep, args.out.as_deref())?;
    let half = || std::thread::available_parallelism().map_or(1, NonZero::get) / 2;
    let options = Options {
        jobs: args.jobs.map_or_else(half, usize::from).max(1),
        retry_failed: args.retry_failed,
        force: args.force,
        binary: std::env::current_exe().map_err(|source| LabError::Write {
            path: "blkpilot-lab".into(),
            source,
        })?,
        runs: args.database.path(),
    };
    let mut progress = SweepProgress::new();
    let report = sweep(&plan, &options, &stop_flag(), &mut |event| {
        progress.show(event);
    })?;
    progress.end();
    print(&if args.json {
        json_text(&report)
    } else {
        report.text()
    });
    Ok(if report.interrupted {
        ExitCode::from(LabError::Interrupted.exit_code())
    } else if report.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
