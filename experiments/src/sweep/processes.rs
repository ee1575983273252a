//! The runs of a sweep, each a process of its own: what one of them does to itself is no matter of the others.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use super::SWEEP_FILE;
use super::plan::{Configuration, Plan};
use super::ranking::{Outcome, SweepReport};
use crate::run_lock::{RunLock, is_held};
use crate::runs::Runs;
use crate::state::STATE_FILE;
use crate::train::SUMMARY_FILE;
use crate::trainer::train_or_resume;
use crate::{LabError, json_text, write_file};

/// Time between two looks at the processes.
const LOOK: Duration = Duration::from_millis(100);
/// Looks between two readings of how far the runs are.
const LOOKS_PER_READING: u32 = 10;
/// Exit code of a run that somebody ended.
const INTERRUPTED: i32 = 130;
/// Lines of what a run said that are shown when it fails.
const LAST_LINES: usize = 8;

/// How to run a sweep.
#[derive(Debug, Clone)]
pub struct Options {
    /// Processes at a time.
    pub jobs: usize,
    /// Whether runs that failed before are tried again.
    pub retry_failed: bool,
    /// Whether runs go on although the code has changed.
    pub force: bool,
    /// The binary that trains.
    pub binary: PathBuf,
    /// Database of runs.
    pub runs: PathBuf,
}

/// How far a sweep is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Host-steps of all runs.
    Steps {
        /// Played.
        done: u64,
        /// Planned.
        planned: u64,
    },
    /// A run has ended, and how.
    Ended {
        /// Its directory.
        dir: &'a Path,
        /// What became of it, in words.
        text: &'a str,
    },
}

/// One run of the sweep.
struct Job {
    configuration: usize,
    seed: u64,
    dir: PathBuf,
    planned: u64,
    /// As far as is known.
    steps: u64,
}

/// What is found in the directory of a run.
enum Found {
    Nothing,
    Done,
    /// A checkpoint to go on from.
    Begun,
    /// It failed, with what it said.
    Failed(String),
    /// Another process trains there.
    Busy,
}

/// Runs what of a sweep has not been done. `stop` ends it: the processes save where they stand.
///
/// # Errors
/// `InUse` if another sweep runs there, `SweepChanged`, `Write`. Runs that fail are no error of the sweep.
pub fn sweep(
    plan: &Plan,
    options: &Options,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Progress<'_>),
) -> Result<SweepReport, LabError> {
    let _lock = RunLock::take(&plan.out)?;
    plan.write()?;
    let mut crew = Crew {
        plan,
        options,
        waiting: VecDeque::new(),
        running: vec![],
        ended: vec![],
    };
    crew.look_around();
    crew.work(stop, watch);
    let report = SweepReport::of(
        plan,
        crew.ended
            .into_iter()
            .map(|(job, outcome)| (job.configuration, job.seed, job.dir, outcome)),
    );
    write_file(&plan.out.join(SWEEP_FILE), json_text(&report))?;
    Ok(report)
}

struct Crew<'a> {
    plan: &'a Plan,
    options: &'a Options,
    waiting: VecDeque<Job>,
    running: Vec<(Job, Child)>,
    ended: Vec<(Job, Outcome)>,
}

impl Crew<'_> {
    /// Sorts the runs into those that are done and those to do.
    fn look_around(&mut self) {
        // All configurations with their first seed, then all with the second: a sweep that is cut short says something
        // of each.
        for seed in &self.plan.seeds {
            for (number, configuration) in self.plan.configurations.iter().enumerate() {
                let mut job = Job {
                    configuration: number,
                    seed: *seed,
                    dir: self.plan.run_dir(configuration, *seed),
                    planned: configuration.config.training.env_steps,
                    steps: 0,
                };
                let outcome = match found(&job.dir) {
                    Found::Done => Some(Outcome::Done),
                    Found::Busy => Some(Outcome::Elsewhere),
                    Found::Failed(error) if !self.options.retry_failed => {
                        Some(Outcome::Failed(error))
                    }
                    Found::Failed(_) | Found::Begun | Found::Nothing => None,
                };
                match outcome {
                    Some(outcome) => {
                        job.steps = job.planned;
                        self.ended.push((job, outcome));
                    }
                    None => self.waiting.push_back(job),
                }
            }
        }
    }

    fn work(&mut self, stop: &AtomicBool, watch: &mut dyn FnMut(Progress<'_>)) {
        let mut looks = 0;
        let mut is_stopped = false;
        self.tell(watch);
        loop {
            if !is_stopped && stop.load(Ordering::Relaxed) {
                is_stopped = true;
                self.tell_children_to_stop();
            }
            while !is_stopped && self.running.len() < self.options.jobs {
                let Some(job) = self.waiting.pop_front() else {
                    break;
                };
                self.start(job, watch);
            }
            self.collect(watch);
            if self.running.is_empty() && (is_stopped || self.waiting.is_empty()) {
                break;
            }
            std::thread::sleep(LOOK);
            looks += 1;
            if looks % LOOKS_PER_READING == 0 {
                self.read_steps();
                self.tell(watch);
            }
        }
        let unbegun = self
            .waiting
            .drain(..)
            .map(|job| (job, Outcome::Interrupted));
        self.ended.extend(unbegun);
    }

    fn start(&mut self, job: Job, watch: &mut dyn FnMut(Progress<'_>)) {
        let started = self.command(&job).and_then(|mut command| command.spawn());
        match started {
            Ok(child) => self.running.push((job, child)),
            Err(error) => self.end(
                job,
                Outcome::Failed(format!("cannot be started: {error}")),
                watch,
            ),
        }
    }

    fn command(&self, job: &Job) -> std::io::Result<Command> {
        let configuration: &Configuration = &self.plan.configurations[job.configuration];
        let mut command = train_or_resume(
            &self.options.binary,
            &self.plan.config_file(configuration),
            &job.dir,
            job.seed,
            self.options.force,
        );
        let _ = fs::remove_file(failure_file(&job.dir));
        let log = File::create(log_file(&job.dir))?;
        command.arg("--runs").arg(&self.options.runs);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    /// Each saves where it stands when it is told to end.
    fn tell_children_to_stop(&self) {
        for (_, child) in &self.running {
            // Not yet waited for, so the number is still theirs.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        }
    }

    fn collect(&mut self, watch: &mut dyn FnMut(Progress<'_>)) {
        let mut number = 0;
        while number < self.running.len() {
            match self.running[number].1.try_wait() {
                Ok(None) => number += 1,
                Ok(Some(status)) => {
                    let (job, _) = self.running.swap_remove(number);
                    let outcome = outcome(&job.dir, status);
                    self.end(job, outcome, watch);
                }
                Err(error) => {
                    let (job, _) = self.running.swap_remove(number);
                    let text = format!("its process cannot be waited for: {error}");
                    self.end(job, Outcome::Failed(text), watch);
                }
            }
        }
    }

    fn end(&mut self, mut job: Job, outcome: Outcome, watch: &mut dyn FnMut(Progress<'_>)) {
        if let Outcome::Failed(error) = &outcome {
            // If it cannot be written, the run is tried again the next time.
            let _ = fs::write(failure_file(&job.dir), error);
        }
        if outcome != Outcome::Interrupted {
            job.steps = job.planned;
        }
        watch(Progress::Ended {
            dir: &job.dir,
            text: &outcome.text(),
        });
        self.ended.push((job, outcome));
        self.tell(watch);
    }

    /// How far the runs are, from their last checkpoints.
    fn read_steps(&mut self) {
        let Ok(runs) = Runs::open_to_read(&self.options.runs) else {
            return;
        };
        for (job, _) in &mut self.running {
            let steps = runs.steps_done(&job.dir).ok().flatten();
            job.steps = steps.unwrap_or(job.steps).min(job.planned);
        }
    }

    fn tell(&self, watch: &mut dyn FnMut(Progress<'_>)) {
        let ended = self.ended.iter().map(|(job, _)| job);
        let running = self.running.iter().map(|(job, _)| job);
        let all = || ended.clone().chain(running.clone()).chain(&self.waiting);
        watch(Progress::Steps {
            done: all().map(|job| job.steps).sum(),
            planned: all().map(|job| job.planned).sum(),
        });
    }
}

fn found(dir: &Path) -> Found {
    #[derive(Deserialize)]
    struct End {
        interrupted: bool,
    }
    if is_held(dir).unwrap_or(false) {
        return Found::Busy;
    }
    if let Ok(error) = fs::read_to_string(failure_file(dir)) {
        return Found::Failed(error);
    }
    let summary = fs::read(dir.join(SUMMARY_FILE)).ok();
    let end = summary.and_then(|text| serde_json::from_slice::<End>(&text).ok());
    match end {
        Some(End { interrupted: false }) => Found::Done,
        _ if dir.join(STATE_FILE).exists() => Found::Begun,
        _ => Found::Nothing,
    }
}

fn outcome(dir: &Path, status: ExitStatus) -> Outcome {
    match status.code() {
        Some(0) => Outcome::Done,
        Some(INTERRUPTED) => Outcome::Interrupted,
        _ => Outcome::Failed(format!("{status}{}", last_words(dir))),
    }
}

/// The end of what a run said.
fn last_words(dir: &Path) -> String {
    let text = fs::read(log_file(dir)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    last.iter().map(|line| format!("\n{line}")).collect()
}

/// What a run says, beside its directory.
fn log_file(dir: &Path) -> PathBuf {
    dir.with_extension("log")
}

/// There while a run counts as failed.
fn failure_file(dir: &Path) -> PathBuf {
    dir.with_extension("failed")
}
