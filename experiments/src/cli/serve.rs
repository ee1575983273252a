//! `blkpilot-lab serve`, and what makes `train` and `resume` the processes that train for it.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use blkpilot_agent::cli::{CliError, ServeArgs, log_to_stderr, serve};
use clap::Args;
use tokio::runtime::Runtime;

use super::runs::Follower;
use super::{done, stop_flag};
use crate::LabError;
use crate::leash;
use crate::run_lock::wait_until_free;
use crate::trainer::own_trainer;

pub(super) const HELP: &str = "\
This is `blkpilot serve` with one service more, TrainingService: clients create training runs from
configs, watch, pause, resume and cancel them. Each is a process of its own, training.parallel (of the
configuration) at a time; the others wait. Runs survive the service, however it ends, and go on with its
next start. docs/training.md.

Examples:
  blkpilot-lab serve --config agent/configs/simulated.toml
  blkpilot training create experiments/configs/quickstart.toml --watch
  blkpilot training ls";

/// How long whoever still trains in a directory may take to end: it was told to before.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    /// Tell what happens as lines of JSON, and end when standard input does: how `blkpilot-lab serve` starts this
    #[arg(long)]
    for_service: bool,
}

impl ServiceArgs {
    pub(super) fn follower(&self) -> Follower {
        match self.for_service {
            true => Follower::Service,
            false => Follower::Person,
        }
    }

    /// What ends the run in `dir`. For a service that was killed and started again, its process of before may still save
    /// there, and is waited for.
    pub(super) fn begin(&self, dir: &Path) -> Result<Arc<AtomicBool>, LabError> {
        let stop = stop_flag();
        if self.for_service {
            leash::hold(&stop);
            wait_until_free(dir, PATIENCE, &stop)?;
        }
        Ok(stop)
    }
}

pub(super) fn run(args: &ServeArgs) -> Result<ExitCode, LabError> {
    log_to_stderr();
    let runtime = Runtime::new();
    let runtime = runtime.map_err(|error| CliError::Failed(format!("no threads: {error}")))?;
    done(runtime.block_on(serve(args, Some(own_trainer()))))
}
