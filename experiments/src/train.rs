//! One training run: plays, learns, writes what it learnt, and compares it at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blkpilot_learn::{EpisodeEnd, LearnError};
use blkpilot_models::Checkpoint;
use serde::Serialize;

use crate::compare::{Comparison, compare, episode_count};
use crate::config::{Config, EnvironmentConfig};
use crate::curve::{self, Point};
use crate::learner::{self, Learner, LearnerState};
use crate::offline::{LearntFrom, evaluated};
use crate::remote::RemoteFigures;
use crate::run_lock::{LOCK_FILE, RunLock};
use crate::start::{START_DIR, Start};
use crate::state::{
    CONFIG_FILE, Changed, MEMORY_FILES, SCENARIO_FILE, STATE_FILE, State, remove_memories,
    save_memory, scenario, write_config,
};
use crate::tensorboard::EventWriter;
use crate::version::CODE;
use crate::{LabError, json_text, write_file};

/// Directory of the policy within that of the run.
pub const POLICY_DIR: &str = "policy";
/// File of the summary.
pub const SUMMARY_FILE: &str = "summary.json";
/// File of the learning curve.
pub const CURVE_FILE: &str = "curve.svg";

/// Episodes over which the reported return is averaged.
const RECENT: usize = 100;
/// Time between two writes of the event file.
const FLUSH: Duration = Duration::from_secs(2);

/// What to train, and where.
#[derive(Debug)]
pub struct Run<'a> {
    /// The experiment.
    pub config: &'a Config,
    /// Seed of everything random.
    pub seed: u64,
    /// Directory to write to.
    pub out: &'a Path,
    /// What to do with a run that stands there.
    pub existing: Existing,
}

/// What to do with a run that stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse to start.
    Refuse,
    /// Remove what an earlier run wrote.
    Overwrite,
}

/// What is happening, for whoever watches.
#[derive(Debug)]
pub enum Event<'a> {
    /// The run has its directory, and begins or goes on.
    Started {
        /// Its directory.
        dir: &'a Path,
        /// The experiment.
        config: &'a Config,
        /// Seed of the run.
        seed: u64,
        /// Host-steps played before.
        env_steps: u64,
        /// Whether it goes on.
        goes_on: bool,
    },
    /// The policy was saved, with where the run stands.
    Saved {
        /// Host-steps played.
        env_steps: u64,
        /// Mean return of recent episodes; `None` before the first has ended.
        episodic_return: Option<f64>,
    },
    /// The run has ended.
    Ended {
        /// What it came to.
        summary: &'a Summary,
    },
    /// An update was made.
    Update {
        /// Host-steps played.
        env_steps: u64,
        /// Host-steps the config asks for.
        planned: u64,
        /// Mean return of recent episodes; `None` before the first has ended.
        episodic_return: Option<f64>,
        /// Host-steps per second since the start.
        steps_per_s: f64,
        /// What the update came to, in a few words.
        note: &'a str,
        /// All its figures by the tags of their curves.
        scalars: &'a [(String, f64)],
    },
    /// Something that whoever watches should know.
    Note(String),
    /// The comparison plays this many episodes.
    Comparing {
        /// Episodes of all policies together.
        episodes: usize,
    },
    /// One of them has ended.
    Compared,
}

/// What a run came to; `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the config.
    pub config: String,
    /// Name of the learner.
    pub algorithm: &'static str,
    /// Seed of the run.
    pub seed: u64,
    /// Versions of the code that trained it, in their order; one, unless it was made to go on with another.
    pub code_versions: Vec<String>,
    /// Whether it was ended before its time; it is not compared then.
    pub interrupted: bool,
    /// Host-steps played; gradient steps of a learner from a log, which plays none.
    pub env_steps: u64,
    /// Those that the config asks for.
    pub env_steps_planned: u64,
    /// Updates made.
    pub updates: u64,
    /// Seconds spent on training, without the comparison.
    pub wall_s: f64,
    /// Host-steps per second of training.
    pub steps_per_s: f64,
    /// Seconds spent on the comparison.
    pub comparison_s: f64,
    /// Mean return of the last episodes of training; `None` if none has ended.
    pub episodic_return: Option<f64>,
    /// Hash of the spec that the policy was made for.
    pub spec_hash: String,
    /// SHA-256 of the policy's tensors.
    pub policy_sha256: String,
    /// The policy that it began from; `None` if from nothing.
    pub start: Option<Start>,
    /// What was done at a service since the run was begun or gone on with, without the comparison; `None` if nothing
    /// was.
    pub remote: Option<RemoteFigures>,
    /// The log that it was learnt from, and what is expected of the policy; `None` of one that has played.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learnt_from: Option<LearntFrom>,
    /// The trained policy beside those that are not.
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// Trains until the config's budget is spent or `stop` is set, then compares. `watch` is told what
/// happens. The directory holds a usable checkpoint from the first periodic one on, and in any case
/// at the end.
///
/// # Errors
/// `OutExists`, or whatever failed; checkpoints written before stay.
pub fn train(
    run: &Run<'_>,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Summary, LabError> {
    Session::begin(run, watch)?.finish(stop, watch)
}

/// Goes on with the run in `dir`, from the last time its policy was saved: what comes of it is what would have come
/// of it without an interruption, bit for bit, on one machine; but at a service, where a new episode begins. One that
/// has ended is only compared again.
///
/// # Errors
/// `NotResumable`, `Changed`, `OtherCode`, or as [`train`].
pub fn resume(
    dir: &Path,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Summary, LabError> {
    resume_where(dir, Changed::Refuse, stop, watch)
}

/// As [`resume`], where `changed` may say that changed circumstances are no reason to refuse.
///
/// # Errors
/// `NotResumable`, `Changed`, `OtherCode`, or as [`train`].
pub fn resume_where(
    dir: &Path,
    changed: Changed,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Summary, LabError> {
    // A directory that is not there is not made only to hold a lock.
    let lock = match dir.is_dir() {
        true => Some(RunLock::take(dir)?),
        false => None,
    };
    let (state, checkpoint) = State::load(dir)?;
    state.check_code(dir, changed)?;
    let config = state.config(dir, changed)?;
    if let EnvironmentConfig::Remote(remote) = &config.environment {
        watch(Event::Note(format!(
            "what is at {} has gone on meanwhile: a new episode begins, and the run will not be, bit for bit, the one \
             that was not interrupted; policy, optimiser, statistics and random numbers are those that were saved",
            remote.address
        )));
    }
    let session = Session::resume(dir, lock, &config, state, &checkpoint)?;
    watch(Event::Started {
        dir,
        config: &config,
        seed: session.seed,
        env_steps: session.learner.env_steps(),
        goes_on: true,
    });
    session.finish(stop, watch)
}

/// A run under way.
struct Session<'a> {
    config: &'a Config,
    seed: u64,
    learner: Box<dyn Learner>,
    start: Option<Start>,
    files: Files,
    record: Record,
    started: Instant,
    /// Seconds of training before it was interrupted.
    before_s: f64,
    /// Versions of the code that have trained it, this one last.
    code_versions: Vec<String>,
    /// Host-steps at its last checkpoint.
    saved_at: Option<u64>,
}

impl<'a> Session<'a> {
    fn begin(run: &Run<'a>, watch: &mut dyn FnMut(Event<'_>)) -> Result<Self, LabError> {
        let config = run.config;
        if run.existing == Existing::Refuse {
            // Before a host is touched; somebody may begin there meanwhile, so again once the lock is held.
            refuse_used(run.out)?;
        }
        let (learner, origin) = learner::begin(config, run.seed)?;
        let files = Files::create(run)?;
        if let Some((_, policy)) = &origin {
            Start::keep(policy, run.out)?;
        }
        watch(Event::Started {
            dir: run.out,
            config,
            seed: run.seed,
            env_steps: 0,
            goes_on: false,
        });
        Ok(Self {
            config,
            seed: run.seed,
            learner,
            start: origin.map(|(start, _)| start),
            files,
            record: Record::default(),
            started: Instant::now(),
            before_s: 0.0,
            code_versions: vec![CODE.to_owned()],
            saved_at: None,
        })
    }

    fn resume(
        dir: &Path,
        lock: Option<RunLock>,
        config: &'a Config,
        state: State,
        checkpoint: &Checkpoint,
    ) -> Result<Self, LabError> {
        let learner_state = LearnerState {
            memory: state.memory(dir)?,
            collector: state.collector,
            seed: state.seed,
        };
        let mut code_versions = state.code_versions;
        if code_versions.last().is_none_or(|version| version != CODE) {
            code_versions.push(CODE.to_owned());
        }
        let learner = learner::resume(config, checkpoint, learner_state)
            .map_err(|error| not_resumable(dir, error))?;
        Ok(Self {
            config,
            seed: state.seed,
            saved_at: Some(learner.env_steps()),
            learner,
            start: state.start,
            files: Files::open(dir, lock, state.next_checkpoint)?,
            record: Record {
                recent: state.recent,
                points: state.points,
            },
            started: Instant::now(),
            before_s: state.wall_s,
            code_versions,
        })
    }

    fn wall_s(&self) -> f64 {
        self.before_s + self.started.elapsed().as_secs_f64()
    }

    fn finish(
        mut self,
        stop: &AtomicBool,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Summary, LabError> {
        let planned = self.config.training.env_steps;
        let mut is_stopped = stop.load(Ordering::Relaxed);
        while self.learner.env_steps() < planned && !is_stopped {
            if let Err(error) = self.update(stop, watch) {
                if matches!(self.config.environment, EnvironmentConfig::Remote(_)) {
                    // What was learnt before is as good as ever, and the service may be back later.
                    self.save(watch)?;
                }
                return Err(error);
            }
            is_stopped = stop.load(Ordering::Relaxed);
        }
        let wall_s = self.wall_s();
        let checkpoint = self.save(watch)?;
        let (env_steps, updates) = (self.learner.env_steps(), self.learner.updates());
        let mut learnt_from = self.learner.learnt_from()?;
        let remote = self.learner.close();
        let title = format!(
            "{}, seed {}: return while learning",
            self.config.name, self.seed
        );
        self.files.draw(&title, &self.record.points)?;
        let comparing = Instant::now();
        let comparison = if is_stopped {
            None
        } else if self.config.evaluation.episodes == 0 {
            Some(Comparison::none(self.config))
        } else {
            compare_unless_stopped(self.config, &checkpoint, stop, watch)?
        };
        // Of a run that has ended, what an evaluation on its log says stands beside.
        if let (Some(from), true) = (&mut learnt_from, comparison.is_some()) {
            let selection = self.config.evaluation.selection;
            from.evaluation = Some(evaluated(&from.log, &checkpoint, selection, from.gamma)?);
        }
        let summary = Summary {
            config: self.config.name.clone(),
            algorithm: self.config.algorithm(),
            seed: self.seed,
            code_versions: self.code_versions.clone(),
            interrupted: comparison.is_none(),
            env_steps,
            env_steps_planned: planned,
            updates,
            wall_s,
            steps_per_s: env_steps as f64 / wall_s,
            comparison_s: comparing.elapsed().as_secs_f64(),
            episodic_return: self.record.episodic_return(),
            spec_hash: checkpoint.manifest.spec_hash.clone(),
            policy_sha256: checkpoint.manifest.tensors_sha256.clone(),
            learnt_from,
            start: self.start,
            remote,
            comparison: comparison.unwrap_or_else(|| Comparison::none(self.config)),
        };
        write_file(&self.files.out.join(SUMMARY_FILE), json_text(&summary))?;
        watch(Event::Ended { summary: &summary });
        Ok(summary)
    }

    /// One update of the learner, and what is written of it; nothing, if it was stopped on the way.
    fn update(
        &mut self,
        stop: &AtomicBool,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), LabError> {
        let training = &self.config.training;
        let Some(update) = self.learner.update(stop)? else {
            return Ok(());
        };
        let learner::Update {
            episodes,
            mut scalars,
            note,
        } = update;
        let env_steps = self.learner.env_steps();
        let steps_per_s = env_steps as f64 / self.wall_s();
        self.record.add(env_steps, &episodes);
        scalars.extend(self.record.scalars(&episodes));
        for tag in ["charts/SPS", "time/fps"] {
            scalars.push((tag.to_owned(), steps_per_s));
        }
        self.files.log(env_steps, &scalars)?;
        watch(Event::Update {
            env_steps,
            planned: training.env_steps,
            episodic_return: self.record.episodic_return(),
            steps_per_s,
            note: &note,
            scalars: &scalars,
        });
        if env_steps >= self.files.next_checkpoint {
            self.files.next_checkpoint = env_steps + training.checkpoint_every;
            self.save(watch)?;
        }
        Ok(())
    }

    /// Saves the policy and where the run stands. If that fails, what was saved before stands.
    fn save(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<Checkpoint, LabError> {
        let checkpoint = self.save_all().map_err(|source| LabError::NotSaved {
            dir: self.files.out.clone(),
            last: self.saved_at,
            source: Box::new(source),
        })?;
        self.saved_at = Some(self.learner.env_steps());
        watch(Event::Saved {
            env_steps: self.learner.env_steps(),
            episodic_return: self.record.episodic_return(),
        });
        Ok(checkpoint)
    }

    fn save_all(&mut self) -> Result<Checkpoint, LabError> {
        let mut checkpoint = self.learner.checkpoint(self.config.document.clone())?;
        if let Some(start) = &self.start {
            let start = serde_json::to_value(start).expect("text and numbers");
            let extra = &mut checkpoint.manifest.extra;
            extra.insert(START_DIR.to_owned(), start);
        }
        let checkpoint = self.files.save(checkpoint)?;
        let LearnerState {
            collector, memory, ..
        } = self.learner.state();
        let number = memory.as_ref().map(|_| self.learner.env_steps());
        if let (Some(number), Some(memory)) = (number, memory) {
            save_memory(&self.files.out, number, &memory)?;
        }
        let state = State {
            format: State::FORMAT,
            config: self.config.name.clone(),
            base: self.config.base.clone(),
            document: self.config.document.clone(),
            scenario: scenario(self.config),
            seed: self.seed,
            policy_sha256: checkpoint.manifest.tensors_sha256.clone(),
            start: self.start.clone(),
            collector,
            memory: number,
            recent: self.record.recent.clone(),
            points: self.record.points.clone(),
            wall_s: self.wall_s(),
            next_checkpoint: self.files.next_checkpoint,
            code_versions: self.code_versions.clone(),
        };
        state.save(&self.files.out)?;
        remove_memories(&self.files.out, number)?;
        Ok(checkpoint)
    }
}

/// What is missing for a run to go on is told with its directory.
fn not_resumable(dir: &Path, error: LabError) -> LabError {
    match error {
        LabError::Learn(LearnError::NoState { problem }) => LabError::NotResumable {
            dir: dir.to_owned(),
            problem,
        },
        other => other,
    }
}

fn compare_unless_stopped(
    config: &Config,
    checkpoint: &Checkpoint,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Comparison>, LabError> {
    watch(Event::Comparing {
        episodes: episode_count(config),
    });
    let each_episode = || {
        watch(Event::Compared);
        !stop.load(Ordering::Relaxed)
    };
    match compare(config, checkpoint, each_episode) {
        Ok(comparison) => Ok(Some(comparison)),
        Err(LabError::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is remembered of a run's episodes.
#[derive(Debug, Default)]
struct Record {
    /// The last ones that ended.
    recent: Vec<EpisodeEnd>,
    points: Vec<Point>,
}

impl Record {
    fn add(&mut self, env_steps: u64, episodes: &[EpisodeEnd]) {
        self.recent.extend(episodes);
        self.recent
            .drain(..self.recent.len().saturating_sub(RECENT));
        self.points
            .extend(mean_return(episodes).map(|mean| (env_steps, mean)));
    }

    /// Of the recent episodes.
    fn episodic_return(&self) -> Option<f64> {
        mean_return(&self.recent)
    }

    /// Of those that have just ended as CleanRL names them, and of the recent ones as Stable-Baselines3 does.
    fn scalars(&self, episodes: &[EpisodeEnd]) -> Vec<(String, f64)> {
        let all = [
            ("charts/episodic_return", mean_return(episodes)),
            ("charts/episodic_length", mean_length(episodes)),
            ("rollout/ep_rew_mean", mean_return(&self.recent)),
            ("rollout/ep_len_mean", mean_length(&self.recent)),
        ];
        let known = all
            .into_iter()
            .filter_map(|(tag, value)| Some((tag, value?)));
        known.map(|(tag, value)| (tag.to_owned(), value)).collect()
    }
}

fn mean_return(episodes: &[EpisodeEnd]) -> Option<f64> {
    mean(episodes, |episode| episode.episodic_return)
}

fn mean_length(episodes: &[EpisodeEnd]) -> Option<f64> {
    mean(episodes, |episode| f64::from(episode.steps))
}

fn mean(episodes: &[EpisodeEnd], of: impl Fn(&EpisodeEnd) -> f64) -> Option<f64> {
    let sum: f64 = episodes.iter().map(of).sum();
    (!episodes.is_empty()).then(|| sum / episodes.len() as f64)
}

/// What a run writes.
struct Files {
    _lock: Option<RunLock>,
    out: PathBuf,
    events: EventWriter,
    flushed: Instant,
    next_checkpoint: u64,
}

impl Files {
    fn create(run: &Run<'_>) -> Result<Self, LabError> {
        let out = run.out;
        let lock = RunLock::take(out)?;
        match run.existing {
            Existing::Refuse => refuse_used(out)?,
            Existing::Overwrite => remove_run(out)?,
        }
        write_config(out, run.config)?;
        Self::open(out, Some(lock), run.config.training.checkpoint_every)
    }

    /// Those of a run that begins or goes on; its events go to a file beside those before it.
    fn open(out: &Path, lock: Option<RunLock>, next_checkpoint: u64) -> Result<Self, LabError> {
        let failed = |source| LabError::Write {
            path: out.to_owned(),
            source,
        };
        Ok(Self {
            _lock: lock,
            out: out.to_owned(),
            events: EventWriter::create(out).map_err(failed)?,
            flushed: Instant::now(),
            next_checkpoint,
        })
    }

    fn log(&mut self, env_steps: u64, scalars: &[(String, f64)]) -> Result<(), LabError> {
        let scalars: Vec<(&str, f64)> = scalars
            .iter()
            .map(|(tag, value)| (tag.as_str(), *value))
            .collect();
        let path = || self.out.clone();
        self.events
            .scalars(env_steps, &scalars)
            .map_err(|source| LabError::Write {
                path: path(),
                source,
            })?;
        if self.flushed.elapsed() >= FLUSH {
            self.flushed = Instant::now();
            self.events.flush().map_err(|source| LabError::Write {
                path: path(),
                source,
            })?;
        }
        Ok(())
    }

    /// Saves the policy over the one before it.
    fn save(&mut self, mut checkpoint: Checkpoint) -> Result<Checkpoint, LabError> {
        checkpoint
            .replace(&self.out.join(POLICY_DIR))
            .map_err(|source| LabError::Save { source })?;
        Ok(checkpoint)
    }

    fn draw(&mut self, title: &str, points: &[Point]) -> Result<(), LabError> {
        let path = self.out.join(CURVE_FILE);
        self.events.flush().map_err(|source| LabError::Write {
            path: self.out.clone(),
            source,
        })?;
        curve::write(&path, title, points).map_err(|error| LabError::Write {
            path,
            source: std::io::Error::other(error),
        })
    }
}

/// `OutExists` if there is something in the directory of a run.
pub(crate) fn refuse_used(dir: &Path) -> Result<(), LabError> {
    // A lock alone is left by a process that ended before it wrote anything.
    let is_content = |entry: &fs::DirEntry| entry.file_name() != LOCK_FILE;
    let is_used = dir.is_file()
        || fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(|e| is_content(&e)));
    if is_used {
        Err(LabError::OutExists {
            dir: dir.to_owned(),
        })
    } else {
        Ok(())
    }
}

/// Removes what a run writes, and nothing else.
fn remove_run(dir: &Path) -> Result<(), LabError> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let (name, path) = (
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        );
        let removed = match name.as_str() {
            SUMMARY_FILE | CURVE_FILE | STATE_FILE | CONFIG_FILE | SCENARIO_FILE => {
                fs::remove_file(&path)
            }
            POLICY_DIR | "policy.previous" | START_DIR => fs::remove_dir_all(&path),
            _ if name.starts_with("events.out.tfevents.") => fs::remove_file(&path),
            _ if name.starts_with(MEMORY_FILES) => fs::remove_file(&path),
            _ => Ok(()),
        };
        removed.map_err(|source| LabError::Write { path, source })?;
    }
    Ok(())
}
