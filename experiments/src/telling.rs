//! What happens in a run, told to a service: an event a line, as JSON, on standard output.

use std::io::Write as _;

use blkpilot_agent::training::{self, PolicyFigures};

use crate::compare::{Comparison, Figures, TRAINED};
use crate::train::{Event, Summary};

/// Tells an event. A service that does not listen any more has ended, and the run soon does.
pub(crate) fn tell(event: &Event<'_>) {
    let line = serde_json::to_string(&told(event)).expect("events hold text and numbers");
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn told(event: &Event<'_>) -> training::Event {
    match event {
        Event::Started { env_steps, .. } => training::Event::Started {
            env_steps: *env_steps,
        },
        Event::Update {
            env_steps,
            planned,
            episodic_return,
            steps_per_s,
            scalars,
            ..
        } => training::Event::Update {
            env_steps: *env_steps,
            planned: *planned,
            episodic_return: *episodic_return,
            steps_per_s: *steps_per_s,
            figures: scalars
                .iter()
                .filter(|(_, value)| value.is_finite())
                .cloned()
                .collect(),
        },
        Event::Saved { env_steps, .. } => training::Event::Saved {
            env_steps: *env_steps,
        },
        Event::Comparing { episodes } => training::Event::Comparing {
            episodes: u32::try_from(*episodes).unwrap_or(u32::MAX),
        },
        Event::Compared => training::Event::Compared,
        Event::Note(text) => training::Event::Note { text: text.clone() },
        Event::Ended { summary } => training::Event::Ended(figures(summary)),
    }
}

fn figures(summary: &Summary) -> training::Figures {
    training::Figures {
        interrupted: summary.interrupted,
        tensors_sha256: summary.policy_sha256.clone(),
        wall_s: summary.wall_s,
        steps_per_s: summary.steps_per_s,
        episodic_return: summary.episodic_return,
        policies: policies(&summary.comparison),
    }
}

/// The trained one first.
fn policies(comparison: &Comparison) -> Vec<PolicyFigures> {
    let figures = |(name, figures): (&String, &Figures)| PolicyFigures {
        policy: name.clone(),
        reward_mean: figures.reward_mean,
        reward_ci95: figures.reward_ci95,
        loss_mean: figures.loss_mean,
    };
    let mut policies: Vec<PolicyFigures> = comparison.policies.iter().map(figures).collect();
    policies.sort_by_key(|own| own.policy != TRAINED);
    policies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_is_not_finite_is_not_told_and_the_others_are() {
        let scalars = [
            ("losses/a".to_owned(), 0.5),
            ("losses/b".to_owned(), f64::NAN),
        ];
        let event = Event::Update {
            env_steps: 8,
            planned: 16,
            episodic_return: None,
            steps_per_s: 4.0,
            note: "",
            scalars: &scalars,
        };
        let line = serde_json::to_string(&told(&event)).unwrap();
        let back: training::Event = serde_json::from_str(&line).unwrap();
        let training::Event::Update { figures, .. } = back else {
            panic!("{line}");
        };
        assert_eq!(figures.into_iter().collect::<Vec<_>>(), scalars[..1]);
    }
}
