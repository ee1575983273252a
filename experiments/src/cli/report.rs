//! `blkpilot-lab report`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::Args;

use super::{print, stop_flag};
use crate::progress::ReportProgress;
use crate::report::{Options, report};
use crate::sweep::Plan;
use crate::{LabError, write_file};

pub(super) const HELP: &str = "\
The page needs no network and no script: learning curves with their spread over seeds, the policies
with 95 % intervals, paired differences, what the policy does where, what is lost against an oracle
where a config plays on one scenario, and the commands that make each run again. The evaluation
episodes are played again for it.

Examples:
  blkpilot-lab report out/quickstart/seed-1 --out report.html
  blkpilot-lab report out/quickstart_seeds out/quickstart_settings --out report.html";

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Directories of runs or sweeps, or above them; or a sweep's file
    #[arg(required = true, value_name = "DIR|SWEEP")]
    of: Vec<PathBuf>,
    /// File to write
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Episodes per policy against the oracle; 0 for none
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(..=100_000))]
    oracle_episodes: u64,
}

pub(super) fn run(args: &ReportArgs) -> Result<ExitCode, LabError> {
    let options = Options {
        oracle_episodes: args.oracle_episodes,
    };
    let stop = stop_flag();
    let progress = ReportProgress::new();
    let dirs: Vec<PathBuf> = args.of.iter().map(|of| dir(of)).collect::<Result<_, _>>()?;
    let page = report(&dirs, &options, &mut |event| {
        progress.show(event);
        !stop.load(Ordering::Relaxed)
    })?;
    progress.end();
    if let Some(dir) = args.out.parent().filter(|dir| *dir != Path::new("")) {
        std::fs::create_dir_all(dir).map_err(|source| LabError::Write {
            path: dir.to_owned(),
            source,
        })?;
    }
    write_file(&args.out, page)?;
    print(&format!("written to {}\n", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// The file of a sweep stands for the directory that it is written to unless another is given.
fn dir(of: &Path) -> Result<PathBuf, LabError> {
    if of.is_file() {
        Ok(Plan::of(of, None)?.out)
    } else {
        Ok(of.to_owned())
    }
}
