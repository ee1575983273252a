//! What writes a run down while it goes: at its start, at each checkpoint, at its end.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Beginning, Runs, RunsError, Status};
use crate::LabError;
use crate::compare::TRAINED;
use crate::train::{Event, Summary};
use crate::version::CODE;

/// Writes one run after another into a database. A database that cannot be written costs a warning and nothing else;
/// it is tried again at each of the run's events.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    run: Option<Beginning>,
    open: Option<(Runs, i64)>,
    has_warned: bool,
}

impl Recorder {
    /// For runs to be recorded in the database at `path`; nothing is opened yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            run: None,
            open: None,
            has_warned: false,
        }
    }

    /// Records what an event says. A warning for the user if that fails, once.
    pub fn see(&mut self, event: &Event<'_>) -> Option<String> {
        let recorded = match event {
            Event::Started {
                dir,
                config,
                seed,
                env_steps,
                goes_on,
            } => {
                let directory = std::path::absolute(dir).unwrap_or_else(|_| (*dir).to_owned());
                self.open = None;
                self.run = Some(Beginning {
                    config_name: config.name.clone(),
                    config: config.document.clone(),
                    algorithm: config.algorithm().to_owned(),
                    seed: *seed,
                    code_version: CODE.to_owned(),
                    steps_planned: config.training.env_steps,
                    steps_done: *env_steps,
                    directory,
                    goes_on: *goes_on,
                });
                self.opened().map(|_| ())
            }
            Event::Saved {
                env_steps,
                episodic_return,
            } => {
                let figures = json!({ "episodic_return": episodic_return });
                self.progress(*env_steps, &figures)
            }
            Event::Ended { summary } => self.end(summary),
            Event::Update { .. } | Event::Note(_) | Event::Comparing { .. } | Event::Compared => {
                Ok(())
            }
        };
        self.warning(recorded)
    }

    /// Records that the run failed. A warning for the user if that fails, once.
    pub fn fail(&mut self, error: &LabError) -> Option<String> {
        self.run.as_ref()?;
        let text = crate::cli::error_text(error);
        let recorded = self
            .opened()
            .and_then(|(runs, id)| runs.end(*id, Status::Failed, Some(&text), None));
        self.run = None;
        self.warning(recorded)
    }

    fn progress(&mut self, env_steps: u64, figures: &Value) -> Result<(), RunsError> {
        if let Some(run) = &mut self.run {
            run.steps_done = env_steps;
        }
        let (runs, id) = self.opened()?;
        runs.progress(*id, env_steps, figures)
    }

    fn end(&mut self, summary: &Summary) -> Result<(), RunsError> {
        let status = if summary.interrupted {
            Status::Interrupted
        } else {
            Status::Done
        };
        let figures = figures(summary);
        let (runs, id) = self.opened()?;
        let recorded = runs
            .progress(*id, summary.env_steps, &figures)
            .and_then(|()| runs.end(*id, status, None, Some(&figures)));
        self.run = None;
        recorded
    }

    /// The database with the run's number. One that could not be opened before may be there now.
    fn opened(&mut self) -> Result<&mut (Runs, i64), RunsError> {
        if self.open.is_none() {
            let mut runs = Runs::open(&self.path)?;
            let run = self
                .run
                .as_mut()
                .expect("events of a run come after its start");
            let id = runs.begin(run)?;
            // From now on it stands there.
            run.goes_on = true;
            self.open = Some((runs, id));
        }
        Ok(self.open.as_mut().expect("was opened above"))
    }

    fn warning(&mut self, recorded: Result<(), RunsError>) -> Option<String> {
        let error = recorded.err().filter(|_| !self.has_warned)?;
        self.has_warned = true;
        let cause = std::error::Error::source(&error);
        let cause = cause.map_or_else(String::new, |cause| format!(" ({cause})"));
        Some(format!(
            "warning: {error}{cause}; the run goes on, but `blkpilot-lab runs` may not know of it"
        ))
    }
}

/// What the list tells of a run that has ended.
fn figures(summary: &Summary) -> Value {
    let comparison = &summary.comparison;
    let trained = comparison.policies.get(TRAINED);
    json!({
        "reward_mean": trained.map(|own| own.reward_mean),
        "reward_ci95": trained.map(|own| own.reward_ci95),
        "loss_mean": trained.and_then(|own| own.loss_mean),
        "differences": comparison.differences,
        "episodic_return": summary.episodic_return,
        "wall_s": summary.wall_s,
        "policy_sha256": summary.policy_sha256,
    })
}
