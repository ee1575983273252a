//! What the process of a run says, and what of it is shown.

use std::sync::Arc;
use std::time::Duration;

use blkpilot_proto::v1;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

use super::Shared;
use super::event::{Event, Figures, PolicyFigures};
use super::runs::Keep;
use crate::decision::now_us;
use crate::policies::deployment::blocking;
use crate::wire::timestamp;

/// Longest line that is understood, bytes; of a longer one the rest is taken for lines of its own, which are none.
const LONGEST_LINE: u64 = 64 << 10;

/// The next event that a process tells; `None` when it says no more. What is no event is passed over.
pub(super) async fn next_event(from: &mut (impl AsyncBufRead + Unpin)) -> Option<Event> {
    loop {
        let mut line = vec![];
        let mut part = (&mut *from).take(LONGEST_LINE);
        let read = part.read_until(b'\n', &mut line).await;
        // A pipe that cannot be read is one that is closed.
        if !matches!(read, Ok(1..)) {
            return None;
        }
        if let Ok(event) = serde_json::from_slice(&line) {
            return Some(event);
        }
    }
}

/// Shows what the process of a run has told.
pub(super) async fn hear(shared: &Arc<Shared>, id: &str, event: Event) {
    let (this, name) = (Arc::clone(shared), id.to_owned());
    let noted = blocking(move || this.runs.note(&name, |run| show(event, run))).await;
    if let Err(failure) = noted.and_then(|noted| noted) {
        // The process goes on, and what it says next is noted again.
        let error = failure.message();
        tracing::warn!(run = id, error, "how far it is was not recorded");
    }
}

/// Shows what an event says; whether that is to outlast a crash. Checkpoints do, since they are what outlasts it.
fn show(event: Event, run: &mut v1::TrainingRun) -> Keep {
    let asked = run.env_steps;
    let progress = run.progress.get_or_insert_default();
    match event {
        Event::Started { env_steps } => {
            progress.env_steps = count(env_steps);
            (progress.compared_episodes, progress.comparison_episodes) = (0, 0);
        }
        Event::Update {
            env_steps,
            episodic_return,
            steps_per_s,
            figures,
            ..
        } => {
            progress.env_steps = count(env_steps);
            progress.episodic_return = episodic_return;
            progress.steps_per_s = steps_per_s;
            progress.remaining = remaining(asked - progress.env_steps, steps_per_s);
            progress.figures = figures;
        }
        Event::Saved { env_steps } => {
            progress.env_steps = count(env_steps);
            progress.checkpoint_env_steps = count(env_steps);
            progress.checkpoint_time = Some(timestamp(now_us()));
            return Keep::OnStorage;
        }
        Event::Comparing { episodes } => {
            progress.compared_episodes = 0;
            progress.comparison_episodes = i32::try_from(episodes).unwrap_or(i32::MAX);
        }
        Event::Compared => progress.compared_episodes += 1,
        Event::Note { text } => tracing::info!(run = run.name, "{text}"),
        Event::Ended(figures) if figures.interrupted => {}
        Event::Ended(figures) => {
            progress.remaining = None;
            run.result = Some(result(figures));
            return Keep::OnStorage;
        }
    }
    Keep::InMemory
}

fn count(steps: u64) -> i64 {
    i64::try_from(steps).unwrap_or(i64::MAX)
}

fn remaining(steps: i64, steps_per_s: f64) -> Option<prost_types::Duration> {
    let left = Duration::try_from_secs_f64(steps.max(0) as f64 / steps_per_s).ok()?;
    prost_types::Duration::try_from(left).ok()
}

fn result(figures: Figures) -> v1::TrainingResult {
    v1::TrainingResult {
        tensors_sha256: figures.tensors_sha256,
        wall_s: figures.wall_s,
        steps_per_s: figures.steps_per_s,
        episodic_return: figures.episodic_return,
        policies: figures.policies.into_iter().map(policy).collect(),
    }
}

fn policy(figures: PolicyFigures) -> v1::TrainingFigures {
    let [reward_low, reward_high] = figures.reward_ci95;
    v1::TrainingFigures {
        policy: figures.policy,
        reward_mean: figures.reward_mean,
        reward_low,
        reward_high,
        loss_mean: figures.loss_mean,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[tokio::test]
    async fn what_is_no_event_is_passed_over_however_long_it_is() {
        let saved = serde_json::to_string(&Event::Saved { env_steps: 7 }).unwrap();
        let said = format!(
            "hello\n{}\n{{\"event\":\"new\"}}\n{saved}\n",
            "x".repeat(200_000)
        );
        let mut from = said.as_bytes();
        assert_eq!(
            next_event(&mut from).await,
            Some(Event::Saved { env_steps: 7 })
        );
        assert_eq!(next_event(&mut from).await, None);
    }

    #[test]
    fn an_update_says_how_long_it_will_take() {
        let mut run = v1::TrainingRun {
            env_steps: 1000,
            ..v1::TrainingRun::default()
        };
        let update = |steps_per_s| Event::Update {
            env_steps: 400,
            planned: 1000,
            episodic_return: Some(-0.5),
            steps_per_s,
            figures: BTreeMap::from([("losses/entropy".to_owned(), 1.5)]),
        };
        assert_eq!(show(update(100.0), &mut run), Keep::InMemory);
        let progress = run.progress.clone().unwrap();
        assert_eq!(progress.remaining.map(|left| left.seconds), Some(6));
        assert_eq!(progress.figures["losses/entropy"], 1.5);
        show(update(0.0), &mut run);
        assert_eq!(run.progress.unwrap().remaining, None);
    }
}
