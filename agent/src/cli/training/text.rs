//! Training runs for people.

use std::time::Duration;

use blkpilot_proto::v1;
use blkpilot_proto::v1::training_run::State;

use crate::cli::tables::{ABSENT, align_right, moment, table};

/// One line per run.
pub(super) fn runs(runs: &[v1::TrainingRun]) -> String {
    let mut lines = table(&[
        "RUN", "STATE", "LEARNER", "SEED", "STEPS", "OF", "RETURN", "LEFT", "CREATED", "BY",
    ]);
    for run in runs {
        let progress = run.progress.clone().unwrap_or_default();
        lines.add_row([
            run.name.trim_start_matches("trainingRuns/").to_owned(),
            state(run.state()),
            run.algorithm.clone(),
            run.seed().to_string(),
            progress.env_steps.to_string(),
            run.env_steps.to_string(),
            number(progress.episodic_return),
            left(&progress),
            moment(run.create_time.as_ref()),
            run.creator.clone(),
        ]);
    }
    align_right(&mut lines, 3..7);
    lines.to_string()
}

/// All that is known of one.
pub(super) fn run(run: &v1::TrainingRun) -> String {
    let mut lines = vec![
        run.name.clone(),
        format!("state: {}", state(run.state())),
        format!("learner: {}, seed {}", run.algorithm, run.seed()),
    ];
    lines.extend(run.progress.as_ref().map(|own| progress(run, own)));
    if !run.error.is_empty() {
        lines.push(format!("error: {}", run.error));
    }
    if let Some(result) = &run.result {
        lines.push(format!("content: {}", result.tensors_sha256));
        lines.extend(result.policies.iter().map(figures));
    }
    lines.push(format!("directory: {}", run.output_dir));
    lines.push(format!("created: {}", moment(run.create_time.as_ref())));
    lines.join("\n")
}

fn progress(run: &v1::TrainingRun, progress: &v1::TrainingProgress) -> String {
    let saved = match &progress.checkpoint_time {
        Some(at) => format!(
            "saved at {} steps, {}",
            progress.checkpoint_env_steps,
            moment(Some(at))
        ),
        None => "not saved yet".to_owned(),
    };
    format!(
        "steps: {} of {}, {:.0} per second, return {}; {saved}",
        progress.env_steps,
        run.env_steps,
        progress.steps_per_s,
        number(progress.episodic_return)
    )
}

fn figures(own: &v1::TrainingFigures) -> String {
    format!(
        "reward of {}: {:.4} ({:.4} to {:.4})",
        own.policy, own.reward_mean, own.reward_low, own.reward_high
    )
}

/// Its state in small letters.
pub(super) fn state(state: State) -> String {
    state.as_str_name().to_ascii_lowercase()
}

/// The time that is left, in whole seconds.
pub(super) fn left(progress: &v1::TrainingProgress) -> String {
    let seconds = progress.remaining.map(|left| left.seconds.unsigned_abs());
    seconds.map_or_else(
        || ABSENT.to_owned(),
        |seconds| humantime::format_duration(Duration::from_secs(seconds)).to_string(),
    )
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| ABSENT.to_owned(), |value| format!("{value:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_listed_by_its_short_name_and_shown_with_why_it_failed() {
        let mut failed = v1::TrainingRun {
            name: "trainingRuns/night".to_owned(),
            error: "no room".to_owned(),
            ..v1::TrainingRun::default()
        };
        failed.set_state(State::Failed);
        let listed = runs(std::slice::from_ref(&failed));
        let line = listed.lines().nth(1).unwrap();
        assert!(
            line.starts_with(" night") && line.contains("failed"),
            "{listed}"
        );
        assert!(run(&failed).contains("error: no room"));
    }
}
