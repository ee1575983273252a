//! Training and comparison of policies from experiment configs: the library behind `blkpilot-lab`.
//!
//! Reading order: [`config`] (what an experiment is), [`environments`], [`remote`] (one at a service), [`seeds`],
//! `playing` (what a run plays on), `learner` (PPO, or another, as a run sees it), [`start`] (fine-tuning), [`train`],
//! [`compare`], [`oracle`], then what they write: [`tensorboard`], [`curve`], [`runs`]. [`calibrate`] and [`evaluate`]
//! stand apart: the one makes scenarios of recordings, the other adds a network to the evaluation of decision logs.
//! [`trainer`] is what the service of `blkpilot-lab serve` trains with.

pub mod calibrate;
pub mod cli;
pub mod compare;
pub mod config;
pub mod curve;
pub mod environments;
pub mod evaluate;
mod learner;
mod leash;
pub mod log;
pub mod offline;
pub mod oracle;
mod playing;
mod progress;
pub mod remote;
pub mod report;
pub mod reproduce;
pub mod run_lock;
pub mod runs;
pub mod sanity;
pub mod seeds;
pub mod start;
pub mod state;
pub mod statistics;
pub mod sweep;
mod telling;
pub mod tensorboard;
pub mod train;
pub mod trainer;
pub mod version;

use std::path::{Path, PathBuf};

use blkpilot_agent::client::remote::RemoteError;
use blkpilot_env::sim::ScenarioErrors;
use blkpilot_learn::LearnError;
use blkpilot_models::episode::PlayError;
use blkpilot_models::oracle::StudyError;
use blkpilot_models::{CheckpointError, PolicyError, ScenarioFileError};
use thiserror::Error;

pub use config::{Config, ConfigError};

/// Why the lab could not do what it was asked.
#[derive(Debug, Error)]
pub enum LabError {
    /// A config that cannot be run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A scenario that does not hold together.
    #[error(transparent)]
    Scenario(#[from] ScenarioErrors),
    /// The directory of the run is in use.
    #[error("{}: there is something already: choose another --out, or give --overwrite", dir.display())]
    OutExists {
        /// The directory.
        dir: PathBuf,
    },
    /// A run that cannot be gone on with.
    #[error("{}: cannot go on with this run: {problem}", dir.display())]
    NotResumable {
        /// Its directory.
        dir: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A run whose config is another one now.
    #[error(
        "{}: its config has changed, and the run would not be the same: {}; put it back, go on with the config in the \
         run's directory by --force, or train anew with another --out",
        dir.display(),
        differences.join("; ")
    )]
    Changed {
        /// Its directory.
        dir: PathBuf,
        /// Each key with both values.
        differences: Vec<String>,
    },
    /// An environment that cannot be created at a service.
    #[error("no environment at the service")]
    Remote(#[from] RemoteError),
    /// An environment at a service, where one of our own is wanted.
    #[error(
        "{address}: what is at a service can be trained on and compared, and nothing else: choose a scenario"
    )]
    NotHere {
        /// The service.
        address: String,
    },
    /// A run on a live host, which is never twice the same.
    #[error(
        "{}: was trained on a live host, which is not the same twice: the run cannot be made again",
        run.display()
    )]
    NotTwice {
        /// Directory of the run.
        run: PathBuf,
    },
    /// Settings of a live host that may still be in force.
    #[error(
        "{host}: not everything was found put back: `blkpilot journal` says what is changed, `blkpilot rollback --all` \
         puts it back"
    )]
    NotPutBack {
        /// The host.
        host: String,
    },
    /// A policy that training cannot begin from.
    #[error("{}: training cannot begin from this policy", dir.display())]
    Start {
        /// Its directory.
        dir: PathBuf,
        /// What is wrong.
        #[source]
        source: CheckpointError,
    },
    /// No runs.
    #[error(
        "{}: there is no run in or below: give directories that `blkpilot-lab train` or `sweep` has written",
        dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NothingToReport {
        /// The directories.
        dirs: Vec<PathBuf>,
    },
    /// A configuration of a sweep that is another one now.
    #[error(
        "{}: runs have begun there, and now the sweep would train them otherwise: {}; put it back, or give another --out",
        dir.display(),
        differences.join("; ")
    )]
    SweepChanged {
        /// Directory of the configuration.
        dir: PathBuf,
        /// Each key with both values.
        differences: Vec<String>,
    },
    /// A run of other code.
    #[error(
        "{}: was trained by {trained_by}, and this is {this}: what comes of it need not be what would have come of it; \
         use the build that trained it, or give --force",
        dir.display()
    )]
    OtherCode {
        /// Its directory.
        dir: PathBuf,
        /// The versions that trained it.
        trained_by: String,
        /// The version of this build.
        this: &'static str,
    },
    /// Another process trains there.
    #[error("{}: another process is training there: wait for it, or choose another directory", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A run that could not be saved.
    #[error("{}: the run cannot be saved; {}", dir.display(), what_stands(dir, *last))]
    NotSaved {
        /// Its directory.
        dir: PathBuf,
        /// Host-steps at the checkpoint that stands.
        last: Option<u64>,
        /// The cause.
        #[source]
        source: Box<LabError>,
    },
    /// The database of runs cannot be used.
    #[error(transparent)]
    Runs(#[from] runs::RunsError),
    /// A policy that cannot be loaded or does not fit.
    #[error(transparent)]
    Policy(#[from] CheckpointError),
    /// A checkpoint that cannot be saved.
    #[error("the policy cannot be saved")]
    Save {
        /// The cause.
        #[source]
        source: CheckpointError,
    },
    /// A file or directory that cannot be written.
    #[error("{}: cannot write it", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Learning failed.
    #[error("training failed")]
    Learn(#[from] LearnError),
    /// A policy cannot be made for the environment.
    #[error("a policy cannot play here")]
    Decide(#[from] PolicyError),
    /// An evaluation episode could not be played.
    #[error("an evaluation episode failed")]
    Play(#[from] PlayError),
    /// The oracle has no answer.
    #[error(transparent)]
    Study(#[from] StudyError),
    /// A scenario that cannot be read, or that is none.
    #[error(transparent)]
    ScenarioFile(#[from] ScenarioFileError),
    /// No evaluation episode says anything.
    #[error(
        "on each of {seeds} evaluation seeds there was a policy for which no disk ever counted: nothing to compare; \
         evaluate more or longer episodes"
    )]
    NothingCounted {
        /// Seeds played.
        seeds: usize,
    },
    /// A recording that gives no scenario.
    #[error(transparent)]
    Calibrate(#[from] calibrate::CalibrateError),
    /// A scenario that cannot be written as TOML.
    #[error("the scenario cannot be written as TOML: {0}")]
    Toml(#[from] toml::ser::Error),
    /// A picture that cannot be drawn.
    #[error("{}: cannot draw the plot: {problem}", path.display())]
    Plot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A log is written of hosts only.
    #[error(
        "{name}: is no simulated host: choose a scenario, or a config with environment.kind = \"sim_host\""
    )]
    NotAHost {
        /// Name of the config.
        name: String,
    },
    /// Neither a baseline nor a directory.
    #[error(
        "policy `{name}`: there is no such directory: give that of a trained policy, or one of {known}"
    )]
    NoPolicy {
        /// What was asked for.
        name: String,
        /// Names of the policies that need no directory.
        known: String,
    },
    /// Episodes that could not be logged.
    #[error(transparent)]
    Log(#[from] blkpilot_log::play::PlayError),
    /// A decision log that cannot be learnt from.
    #[error("{}: nothing can be learnt from this log: {source}", dir.display())]
    Logged {
        /// Its directory.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<blkpilot_evaluate::EvaluateError>,
    },
    /// A decision log that cannot be evaluated.
    #[error(transparent)]
    Evaluate(#[from] blkpilot_agent::cli::CliError),
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl LabError {
    /// The exit code that stands for it: 2 for what the caller can put right in what was asked, 130
    /// for Ctrl-C, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Scenario(_)
            | Self::ScenarioFile(_)
            | Self::OutExists { .. }
            | Self::NotResumable { .. }
            | Self::Changed { .. }
            | Self::NothingToReport { .. }
            | Self::SweepChanged { .. }
            | Self::OtherCode { .. }
            | Self::InUse { .. }
            | Self::Runs(runs::RunsError::Missing { .. } | runs::RunsError::NoRun { .. })
            | Self::NotAHost { .. }
            | Self::NoPolicy { .. }
            | Self::NotHere { .. }
            | Self::NotTwice { .. }
            | Self::Start { .. }
            | Self::Logged { .. }
            | Self::Policy(_) => 2,
            Self::Log(blkpilot_log::play::PlayError::Exists { .. }) => 2,
            Self::Calibrate(error) if error.is_about_the_recording() => 2,
            Self::Evaluate(error) => error.status(),
            Self::Interrupted => 130,
            _ => 1,
        }
    }
}

/// What is left of a run that could not be saved, and the way on.
fn what_stands(dir: &Path, last: Option<u64>) -> String {
    match last {
        Some(steps) => format!(
            "its checkpoint of {steps} steps stands: make room, and `blkpilot-lab resume {}` goes on from there",
            dir.display()
        ),
        None => {
            "it had no checkpoint yet: make room, and train it anew with --overwrite".to_owned()
        }
    }
}

/// Writes a file whole; its directory exists.
pub(crate) fn write_file(path: &Path, contents: impl AsRef<[u8]>) -> Result<(), LabError> {
    std::fs::write(path, contents).map_err(|source| LabError::Write {
        path: path.to_owned(),
        source,
    })
}

/// As JSON for people and scripts, with a newline at the end.
pub(crate) fn json_text(value: &impl serde::Serialize) -> String {
    let text = serde_json::to_string_pretty(value)
        .expect("reports hold strings, numbers and maps of them");
    text + "\n"
}
