//! `blkpilot-lab runs`, and how the other commands find the database.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::print;
use crate::progress::Progress;
use crate::runs::{DEFAULT_FILE, Filter, Recorder, Runs, Status, VARIABLE, show_text, table};
use crate::telling::tell;
use crate::train::{Event, Summary};
use crate::{LabError, json_text};

pub(super) const HELP: &str = "\
Each training run is recorded with its config, seed, code version and figures when it begins, at
each checkpoint and when it ends. A run is `lost` if it was under way and its process is gone:
`blkpilot-lab resume` goes on from its last checkpoint. What is listed is a record: removing the
file loses the list and no run.

The file is SQLite, with one table, `run`. Examples:
  blkpilot-lab runs --status failed
  blkpilot-lab runs show 3
  blkpilot-lab runs --config quickstart --json | jq '.[].figures.reward_mean'";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct RunsArgs {
    #[command(subcommand)]
    command: Option<RunsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum RunsCommand {
    /// Show all that is known of one run
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Only runs that stand so
    #[arg(long, value_name = "STATUS")]
    status: Option<Status>,
    /// Only runs of configs with this in their name
    #[arg(long, value_name = "NAME")]
    config: Option<String>,
    /// Only runs of this learner
    #[arg(long, value_name = "LEARNER")]
    algorithm: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Number of the run
    id: i64,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Args)]
pub(super) struct DatabaseArgs {
    /// Database of runs [default: $BLKPILOT_RUNS, or else out/runs.db]
    #[arg(long = "runs", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl DatabaseArgs {
    pub(super) fn path(&self) -> PathBuf {
        let variable = || {
            std::env::var_os(VARIABLE)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let given = self.file.clone().or_else(variable);
        given.unwrap_or_else(|| DEFAULT_FILE.into())
    }
}

/// Who follows a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follower {
    /// A person, on standard error.
    Person,
    /// A service, on standard output.
    Service,
}

/// Shows runs while they go, and records them.
pub(super) struct Watch {
    pub(super) progress: Progress,
    recorder: Recorder,
    follower: Follower,
}

impl Watch {
    pub(super) fn over(env_steps: u64, database: &DatabaseArgs) -> Self {
        Self {
            progress: Progress::over(env_steps),
            recorder: Recorder::new(database.path()),
            follower: Follower::Person,
        }
    }

    pub(super) fn see(&mut self, event: &Event<'_>) {
        match self.follower {
            Follower::Person => self.progress.show(event),
            Follower::Service => tell(event),
        }
        if let Some(warning) = self.recorder.see(event) {
            self.progress.say(&warning);
        }
    }

    /// The end of all runs, with what they came to.
    pub(super) fn end<T>(&mut self, result: Result<T, LabError>) -> Result<T, LabError> {
        self.progress.end();
        if let Err(error) = &result
            && let Some(warning) = self.recorder.fail(error)
        {
            self.progress.say(&warning);
        }
        result
    }

    /// Runs what trains one policy, watched.
    pub(super) fn over_one(
        env_steps: u64,
        database: &DatabaseArgs,
        follower: Follower,
        run: impl FnOnce(&mut dyn FnMut(Event<'_>)) -> Result<Summary, LabError>,
    ) -> Result<Summary, LabError> {
        let mut watch = Self {
            follower,
            ..Self::over(env_steps, database)
        };
        let result = run(&mut |event| watch.see(&event));
        watch.end(result)
    }
}

pub(super) fn run(args: &RunsArgs) -> Result<ExitCode, LabError> {
    let text = match &args.command {
        Some(RunsCommand::Show(args)) => {
            let record = Runs::open_to_read(&args.database.path())?.get(args.id)?;
            if args.json {
                json_text(&record)
            } else {
                show_text(&record)
            }
        }
        None => {
            let args = &args.list;
            let records = Runs::open_to_read(&args.database.path())?.list(&Filter {
                status: args.status,
                config: args.config.clone(),
                algorithm: args.algorithm.clone(),
            })?;
            if args.json {
                json_text(&records)
            } else {
                table(&records)
            }
        }
    };
    print(&text);
    Ok(ExitCode::SUCCESS)
}
