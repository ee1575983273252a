//! Neural fitted Q evaluation beside the estimators of `blkpilot evaluate`.

use blkpilot_env::Level;
use blkpilot_evaluate::{Fit, Sample, SampleStep, Then, ValueModel};
use blkpilot_learn::LearnError;
use blkpilot_learn::fqe::{
    Builder, Decisions, FqeConfig, Outcome, TakenTurn, Then as Follows, fit,
};
use blkpilot_models::{Architecture, Normaliser, PerTable, Statistics};

/// Name of the estimator in reports.
pub const NAME: &str = "FQE neural";

/// Fitted Q evaluation with a network, anew for each policy and fold.
#[derive(Debug, Clone, Copy, Default)]
pub struct NeuralFqe {
    /// Kind and sizes of the network.
    pub architecture: Architecture,
}

impl ValueModel for NeuralFqe {
    fn name(&self) -> &str {
        NAME
    }

    fn values(&mut self, sample: &Sample, fit: Fit) -> Result<Vec<f64>, String> {
        self.fitted(sample, fit)
            .map_err(|error| match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            })
    }
}

impl NeuralFqe {
    fn fitted(&self, sample: &Sample, of: Fit) -> Result<Vec<f64>, LearnError> {
        let decisions = decisions(sample, of.policy)?;
        let config = FqeConfig {
            architecture: self.architecture,
            ..FqeConfig::new(sample.gamma(), sample.horizon(), sample.seed())
        };
        let is_held_out = |block: usize| block % Sample::FOLDS == of.held_out;
        let fitted = fit(sample.spec(), &decisions, is_held_out, &config)?;
        let begins = sample.steps().enumerate().filter(|(_, step)| step.begins);
        let begins: Vec<usize> = begins.map(|(number, _)| number).collect();
        fitted.values(&decisions, &begins)
    }
}

fn decisions(sample: &Sample, policy: usize) -> Result<Decisions, LearnError> {
    let mut builder = Builder::new(sample.spec(), &normalisers(sample));
    for step in sample.steps() {
        push(&mut builder, &step, policy);
    }
    builder.build()
}

/// Of all rows, whatever their fold: it is their scale and says nothing of what came of them.
fn normalisers(sample: &Sample) -> PerTable<Normaliser> {
    let mut statistics = Statistics::new(sample.spec());
    for turn in sample.steps().flat_map(|step| step.turns()) {
        statistics.observe(&turn.view());
    }
    statistics.normalisers()
}

fn push(builder: &mut Builder, step: &SampleStep<'_>, policy: usize) {
    let turns = step.turns();
    let levels: Vec<Level> = step.requested().collect();
    let (mut levels, mut probabilities) = (levels.as_slice(), step.probabilities(policy));
    let taken = turns.iter().map(|turn| {
        let (own, rest) = levels.split_at(turn.heads.len());
        let (likely, more) = probabilities.split_at(turn.mask.len());
        (levels, probabilities) = (rest, more);
        TakenTurn {
            view: turn.view(),
            levels: own,
            probabilities: likely,
        }
    });
    let outcome = Outcome {
        reward: step.reward,
        then: match step.then {
            Then::Next => Follows::Next,
            Then::End => Follows::End,
            Then::Unknown => Follows::Unknown,
        },
        group: step.block,
    };
    builder.push(taken, outcome);
}
