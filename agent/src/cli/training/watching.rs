//! `blkpilot training watch`: a bar on a terminal, lines elsewhere.

use std::io::{IsTerminal as _, stderr};

use blkpilot_proto::v1;
use blkpilot_proto::v1::training_run::State;
use indicatif::{ProgressBar, ProgressStyle};
use tonic::{Code, Status};

use super::{Client, text};
use crate::cli::json::Json;
use crate::cli::output::print;
use crate::cli::serve::interrupted;
use crate::cli::{CliError, tables};

/// Follows a run to its end, or until somebody presses Ctrl-C.
pub(super) async fn watch(client: &mut Client, name: &str, is_json: bool) -> Result<(), CliError> {
    let request = v1::WatchTrainingRunRequest {
        name: name.to_owned(),
        resume_token: String::new(),
    };
    let mut messages = client.watch_training_run(request).await?.into_inner();
    let interrupted = interrupted()?;
    tokio::pin!(interrupted);
    let mut shown = Shown::new(is_json);
    let mut last = None;
    loop {
        let message = tokio::select! {
            message = messages.message() => message.map_err(ended)?,
            () = &mut interrupted => return Ok(()),
        };
        let Some(message) = message else { break };
        let Some(run) = message.training_run else {
            continue;
        };
        shown.show(&run)?;
        last = Some(run);
    }
    shown.end();
    outcome(name, last, is_json)
}

fn outcome(name: &str, last: Option<v1::TrainingRun>, is_json: bool) -> Result<(), CliError> {
    let Some(run) = last else {
        let text = format!("{name}: the service has ended");
        return Err(CliError::Unavailable(text));
    };
    match run.state() {
        State::Succeeded if is_json => Ok(()),
        State::Succeeded => print(text::run(&run)),
        State::Cancelled => Err(CliError::Failed(format!("{name} was cancelled"))),
        State::Failed => Err(CliError::Failed(format!("{name} failed: {}", run.error))),
        _ => Err(CliError::Unavailable(format!(
            "{name}: the stream has ended before the run: watch it again"
        ))),
    }
}

/// The run goes on where the service does not.
fn ended(status: Status) -> CliError {
    match status.code() {
        Code::Unavailable | Code::Unknown => CliError::Unavailable(format!(
            "the service has ended ({}): the run goes on with its next start",
            status.message()
        )),
        _ => status.into(),
    }
}

/// What is shown of a run that goes on: JSON a line for each message, a bar where somebody looks, and else a line for
/// each state.
struct Shown {
    json: Option<Json>,
    bar: ProgressBar,
    state: State,
}

impl Shown {
    fn new(is_json: bool) -> Self {
        let style = ProgressStyle::with_template("{bar:28} {human_pos}/{human_len} steps  {msg}");
        let style = style.expect("the template is valid: a test draws it");
        Self {
            json: is_json.then(Json::new),
            bar: ProgressBar::new(0).with_style(style.progress_chars("=> ")),
            state: State::Unspecified,
        }
    }

    fn show(&mut self, run: &v1::TrainingRun) -> Result<(), CliError> {
        if let Some(json) = &self.json {
            return print(json.value("TrainingRun", run));
        }
        let progress = run.progress.clone().unwrap_or_default();
        self.bar.set_length(run.env_steps.unsigned_abs());
        self.bar.set_position(progress.env_steps.unsigned_abs());
        self.bar.set_message(message(run, &progress));
        if self.state != run.state() {
            self.state = run.state();
            if !stderr().is_terminal() {
                eprintln!("blkpilot: {} is {}", run.name, text::state(self.state));
            }
        }
        Ok(())
    }

    fn end(&self) {
        self.bar.finish();
    }
}

fn message(run: &v1::TrainingRun, progress: &v1::TrainingProgress) -> String {
    let value = progress
        .episodic_return
        .map_or_else(|| tables::ABSENT.to_owned(), |value| format!("{value:.2}"));
    let rest = if progress.comparison_episodes > 0 {
        format!(
            "{}/{} episodes compared",
            progress.compared_episodes, progress.comparison_episodes
        )
    } else {
        format!(
            "{:.0} steps/s, {} left",
            progress.steps_per_s,
            text::left(progress)
        )
    };
    format!("{}, return {value}, {rest}", text::state(run.state()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_is_drawn_with_its_return_and_the_time_left() {
        let progress = v1::TrainingProgress {
            env_steps: 10,
            episodic_return: Some(-0.5),
            steps_per_s: 100.0,
            remaining: Some(prost_types::Duration {
                seconds: 61,
                nanos: 0,
            }),
            ..v1::TrainingProgress::default()
        };
        let mut run = v1::TrainingRun {
            env_steps: 100,
            progress: Some(progress.clone()),
            ..v1::TrainingRun::default()
        };
        run.set_state(State::Running);
        let text = message(&run, &progress);
        assert_eq!(text, "running, return -0.50, 100 steps/s, 1m 1s left");
        let mut shown = Shown::new(false);
        shown.show(&run).unwrap();
        assert_eq!(shown.bar.position(), 10);
        shown.end();
    }

    #[test]
    fn the_end_of_a_run_is_the_end_of_the_command() {
        let ended = |state: State| {
            let mut run = v1::TrainingRun::default();
            run.set_state(state);
            outcome("trainingRuns/a", Some(run), true).map_err(|error| error.status())
        };
        assert_eq!(ended(State::Succeeded), Ok(()));
        assert_eq!(ended(State::Failed), Err(1));
        assert_eq!(ended(State::Cancelled), Err(1));
        assert_eq!(ended(State::Running), Err(3));
    }
}
