//! Training runs of a service: queued, trained in processes of their own, watched, paused and gone on with.
//!
//! What trains, and what a config may say, is a [`Trainer`]'s, which `blkpilot-lab` brings: nothing here needs libtorch.
//! A run is a row in the database of the service and a directory, `DATA_DIR/training/RUN`. [`state`] says how one may
//! stand, `runs` keeps them, `crew` begins them in their order, `child` is the process of one.

mod child;
mod crew;
mod event;
mod hearing;
mod place;
mod records;
mod runs;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use blkpilot_models::CheckpointBytes;
use blkpilot_proto::v1;
use blkpilot_proto::v1::training_run::State;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::config::{Config, Problem};
use crate::database::DatabaseError;
use crate::operations::feed::Messages;
use crate::policies::store::{PolicyStore, VersionName};
use crate::wire::status::Failure;

pub use event::{Event, Figures, PolicyFigures};
pub use runs::MOST_RUNS;
pub(crate) use runs::{Call, NewRun, parse};

use place::{Places, failed};
use runs::{Runs, id_of};
use state::Wish;

/// The field of a request that is a config.
const SOURCE: &str = "training_run.source.config";
/// How long a process may take to save and end before it is killed; its last checkpoint stands then.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long stopping may take: as long as a process may, and what is written then.
const STOP: Duration = Duration::from_secs(PATIENCE.as_secs() + 5);

/// What trains. Processes that it starts tell [`Event`]s as lines of JSON on their standard output, end with status 0 when
/// the run is done, and with 130, after a checkpoint, soon after their standard input has ended.
#[derive(Debug, Clone)]
pub struct Trainer {
    /// The program.
    pub program: PathBuf,
    /// Checks a config and writes it as it is to be trained, or returns everything that is wrong with it.
    pub admit: fn(&Submission<'_>) -> Result<Admitted, Vec<Problem>>,
    /// The command of a run that begins, or goes on where there is a checkpoint.
    pub command: fn(&Path, &Task<'_>) -> Command,
}

/// A config as somebody has sent it.
pub struct Submission<'a> {
    /// The file to write it to, in a directory that has nothing else but what this writes.
    pub file: &'a Path,
    /// The text.
    pub config: &'a str,
    /// Scenarios that it may name, by file name.
    pub scenario_files: &'a BTreeMap<String, String>,
    /// The decision log that stands for one that is not named.
    pub log: &'a Path,
    /// The directory of a version of the policy store, `policies/{policy}/versions/{version}`, or why there is none.
    pub policy: &'a dyn Fn(&str) -> Result<PathBuf, String>,
}

/// A config that can be trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The learner.
    pub algorithm: String,
    /// Environment steps that it asks for.
    pub env_steps: u64,
    /// Seed of the run, unless another is given.
    pub seed: u64,
}

/// A run to be trained.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Its config, as it was written when it was admitted.
    pub config: &'a Path,
    /// Directory to write to.
    pub out: &'a Path,
    /// Seed of everything random.
    pub seed: u64,
    /// Whether it goes on although the code has changed.
    pub is_forced: bool,
    /// The trainer's own list of runs.
    pub list: &'a Path,
}

#[derive(Debug)]
struct Shared {
    trainer: Trainer,
    runs: Runs,
    places: Places,
    parallel: usize,
    /// What a process may take to save and end.
    patience: Duration,
}

/// The training runs of a service.
#[derive(Debug)]
pub struct Training {
    shared: Arc<Shared>,
    store: PolicyStore,
    log: PathBuf,
    stop: watch::Sender<bool>,
    crew: Mutex<Option<JoinHandle<()>>>,
}

/// Why the runs of a data directory cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Their directory cannot be used.
    #[error("{}: {source}", dir.display())]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The database of the service cannot be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Training {
    /// Opens the runs of a data directory, which nobody else serves now, and goes on with those that wait.
    ///
    /// # Errors
    /// `Database`, `Dir`.
    pub fn open(trainer: Trainer, config: &Config, store: &PolicyStore) -> Result<Self, OpenError> {
        let data_dir = &config.service.data_dir;
        let at = |source| OpenError::Dir {
            dir: data_dir.join("training"),
            source,
        };
        let places = Places::open(data_dir).map_err(at)?;
        let runs = Runs::open(store.database().clone())?;
        let known = runs.ids()?;
        let swept = places.sweep(&known).map_err(at)?;
        if swept > 0 {
            tracing::info!(
                swept,
                "removed training runs that were not yet, or no longer, there"
            );
        }
        let shared = Arc::new(Shared {
            trainer,
            runs,
            places,
            parallel: config.training.parallel,
            patience: PATIENCE,
        });
        let stop = watch::Sender::new(false);
        let crew = tokio::spawn(crew::work(Arc::clone(&shared), stop.subscribe()));
        Ok(Self {
            shared,
            store: store.clone(),
            log: data_dir.join("decisions"),
            stop,
            crew: Mutex::new(Some(crew)),
        })
    }

    /// Lets the processes save and end, and waits for them, for 35 s at most. The runs go on with the next start.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let crew = self.crew.lock();
        let crew = crew.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut crew) = crew
            && tokio::time::timeout(STOP, &mut crew).await.is_err()
        {
            tracing::error!("training processes did not end in {STOP:?}");
            crew.abort();
        }
    }

    /// Queues a run of a config, `seed` in place of the config's if it is given.
    ///
    /// # Errors
    /// Violations of `training_run.source`; `ALREADY_EXISTS`, `TOO_MANY_RUNS`; a violation of `request_id`.
    pub(crate) fn create(
        &self,
        call: &Call,
        source: v1::TrainingSource,
        seed: Option<u64>,
        creator: String,
    ) -> Result<v1::TrainingRun, Failure> {
        let (id, places) = (&call.id, &self.shared.places);
        if let Some(first) = self.shared.runs.answered(call)? {
            return Ok(first);
        }
        let staged = places.stage();
        let staged = staged.map_err(|error| failed(&places.dir(id), &error))?;
        let file = staged.dir().join(format!("{id}.toml"));
        let admitted = self.admit(&file, &source)?;
        let new = NewRun {
            id: id.clone(),
            source,
            seed: seed.unwrap_or(admitted.seed),
            algorithm: admitted.algorithm,
            env_steps: admitted.env_steps,
            output_dir: places.out(id).to_string_lossy().into_owned(),
            creator,
        };
        let settle = || {
            let settled = places.settle(staged, id);
            settled.map_err(|error| failed(&places.dir(id), &error))
        };
        self.shared.runs.create(&new, call, settle)
    }

    fn admit(&self, file: &Path, source: &v1::TrainingSource) -> Result<Admitted, Failure> {
        let submission = Submission {
            file,
            config: &source.config,
            scenario_files: &source.scenario_files,
            log: &self.log,
            policy: &|name| self.policy(name),
        };
        (self.shared.trainer.admit)(&submission).map_err(refused)
    }

    fn policy(&self, name: &str) -> Result<PathBuf, String> {
        let version: VersionName = name.parse()?;
        let found = self.store.version(&version);
        let found = found.map_err(|error| error.to_string())?;
        let dir = self.store.checkpoint_dir(&found);
        std::path::absolute(&dir).map_err(|error| error.to_string())
    }

    pub(crate) fn pause(&self, call: &Call) -> Result<v1::TrainingRun, Failure> {
        self.shared.runs.wish(call, Wish::Pause, false)
    }

    pub(crate) fn resume(&self, call: &Call, is_forced: bool) -> Result<v1::TrainingRun, Failure> {
        self.shared.runs.wish(call, Wish::Resume, is_forced)
    }

    pub(crate) fn cancel(&self, call: &Call) -> Result<v1::TrainingRun, Failure> {
        self.shared.runs.wish(call, Wish::Cancel, false)
    }

    /// Deletes a run that has ended, and all that it wrote.
    pub(crate) fn delete(&self, call: &Call, allow_missing: bool) -> Result<(), Failure> {
        let is_deleted = self.shared.runs.delete(call, allow_missing)?;
        if is_deleted && !call.validate_only {
            let places = &self.shared.places;
            let removed = places.remove(&call.id);
            return removed.map_err(|error| failed(&places.dir(&call.id), &error));
        }
        Ok(())
    }

    /// What came of a run.
    ///
    /// # Errors
    /// `NOT_FOUND`, `RUN_NOT_DONE`, `CHECKPOINT_DAMAGED`.
    pub(crate) fn policy_of(&self, id: &str) -> Result<CheckpointBytes, Failure> {
        let run = self.get(id)?;
        let Some(result) = run
            .result
            .as_ref()
            .filter(|_| run.state() == State::Succeeded)
        else {
            return Err(not_done(&run));
        };
        let dir = self.shared.places.out(id).join("policy");
        let damaged = |problem: String| {
            let message = format!("{}: {problem}: train it again", dir.display());
            Failure::new(Code::DataLoss, "CHECKPOINT_DAMAGED", message).with("name", &run.name)
        };
        let read = CheckpointBytes::read(&dir);
        let bytes = read.map_err(|error| damaged(error.to_string()))?;
        let policy = bytes.verify(&dir);
        let policy = policy.map_err(|error| damaged(error.to_string()))?;
        let found = policy.manifest.tensors_sha256;
        if found != result.tensors_sha256 {
            let made = &result.tensors_sha256;
            return Err(damaged(format!(
                "holds {found}, and {made} came of the run"
            )));
        }
        Ok(bytes)
    }

    pub(crate) fn get(&self, id: &str) -> Result<v1::TrainingRun, Failure> {
        self.shared.runs.get(id)
    }

    pub(crate) fn list(&self) -> Result<Vec<v1::TrainingRun>, Failure> {
        self.shared.runs.list()
    }

    pub(crate) fn follow(
        &self,
        id: &str,
        token: &str,
    ) -> Result<Messages<v1::TrainingRun>, Failure> {
        self.shared.runs.follow(id, token)
    }
}

fn not_done(run: &v1::TrainingRun) -> Failure {
    let stands = run.state().as_str_name();
    let message = format!(
        "{} is {stands}: only what was trained to its end is published",
        run.name
    );
    Failure::new(Code::FailedPrecondition, "RUN_NOT_DONE", message).with("name", &run.name)
}

fn line(problem: &Problem) -> String {
    match &problem.path[..] {
        "" => format!("config: {}", problem.text),
        _ => format!("config: {problem}"),
    }
}

/// All that is wrong with a config, each with the path of its key.
fn refused(problems: Vec<Problem>) -> Failure {
    let lines: Vec<String> = problems.iter().map(line).collect();
    let failure = Failure::new(Code::InvalidArgument, "INVALID_FIELD", lines.join("\n"));
    problems.into_iter().fold(failure, |failure, problem| {
        let field = match &problem.path[..] {
            "" => SOURCE.to_owned(),
            path => format!("{SOURCE}.{path}"),
        };
        failure.violating(field, problem.text)
    })
}

#[cfg(test)]
mod tests;
