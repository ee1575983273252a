//! `blkpilot-lab reproduce`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::runs::{DatabaseArgs, Watch};
use super::{existing, print, stop_flag};
use crate::reproduce::{Request, reproduce};
use crate::state::Changed;
use crate::{LabError, json_text};

pub(super) const HELP: &str = "\
Trains the run's config and seed again from its own directory, which is enough: config and scenario
were copied there. Then policy (with the learner's state), learning curve and comparison are
compared bit for bit. A run that was interrupted is made again as far as it came. Exit codes: 0
equal, 1 not equal, 2 refused. Equality needs the same code, the same libtorch and the same kind of
processor; a run of other code is refused unless --force is given.";

#[derive(Debug, Args)]
pub(super) struct ReproduceArgs {
    /// Directory of the run
    run: PathBuf,
    /// Directory to write to [default: <run>-again]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace what an earlier run wrote there
    #[arg(long)]
    overwrite: bool,
    /// Make it again although other code trained it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ReproduceArgs) -> Result<ExitCode, LabError> {
    let default = || {
        let name = args.run.file_name().unwrap_or_default().to_string_lossy();
        args.run.with_file_name(format!("{name}-again"))
    };
    let out = args.out.clone().unwrap_or_else(default);
    let request = Request {
        run: &args.run,
        out: &out,
        existing: existing(args.overwrite),
        changed: if args.force {
            Changed::GoOn
        } else {
            Changed::Refuse
        },
    };
    let mut watch = Watch::over(0, &args.database);
    let result = reproduce(&request, &stop_flag(), &mut |event| watch.see(&event));
    let reproduction = watch.end(result)?;
    print(&if args.json {
        json_text(&reproduction)
    } else {
        reproduction.text()
    });
    Ok(if reproduction.equal {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
