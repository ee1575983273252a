//! What a policy would have done in each row of a joint decision, and the weight that gives it.

use blkpilot_env::EnvSpec;
use blkpilot_models::ope::SUM_TOLERANCE;

use crate::error::EvaluateError;
use crate::step::HostStep;
use crate::target::TargetPolicy;

/// A policy's probabilities and weights over one joint decision.
#[derive(Debug, Default)]
pub(crate) struct Weighed {
    /// Probability of each level, in the order of [`HostStep::masks`].
    pub(crate) probabilities: Vec<f64>,
    /// Per row: the product over its heads with a choice of the probability of what was drawn over its propensity.
    pub(crate) ratios: Vec<f64>,
    /// Sum over heads with a choice of the probability of what the behaviour never does there, where its
    /// propensity shows that: it drew its level for certain.
    pub(crate) unsupported: f64,
}

impl Weighed {
    /// Of one joint decision.
    ///
    /// # Errors
    /// `Policy`, `Improper`.
    pub(crate) fn weigh(
        &mut self,
        policy: &dyn TargetPolicy,
        step: &HostStep,
        spec: &EnvSpec,
    ) -> Result<(), EvaluateError> {
        let turns: Vec<_> = (0..step.rows.len()).map(|i| step.turn(i, spec)).collect();
        self.probabilities.clear();
        self.probabilities.resize(step.masks.len(), 0.0);
        policy
            .probabilities(&turns, &mut self.probabilities)
            .map_err(|(turn, source)| EvaluateError::Policy {
                row: step.rows[turn.min(step.rows.len() - 1)].place,
                policy: policy.name().to_owned(),
                source: Box::new(source),
            })?;
        self.ratios.clear();
        self.unsupported = 0.0;
        for row in &step.rows {
            let mut ratio = 1.0;
            for cell in step.heads_of(row).iter().filter(|cell| cell.is_free) {
                let own = &self.probabilities[cell.mask.range()];
                check(own, &step.masks[cell.mask.range()]).map_err(|problem| {
                    EvaluateError::Improper {
                        row: row.place,
                        policy: policy.name().to_owned(),
                        problem,
                    }
                })?;
                let p = own[usize::from(cell.requested)];
                ratio *= p / cell.propensity;
                if cell.propensity >= 1.0 - SUM_TOLERANCE {
                    self.unsupported += 1.0 - p;
                }
            }
            self.ratios.push(ratio);
        }
        Ok(())
    }
}

fn check(own: &[f64], mask: &[blkpilot_env::MaskReason]) -> Result<(), String> {
    let (mut sum, mut is_good) = (0.0, true);
    for (p, reason) in own.iter().zip(mask) {
        sum += p;
        is_good &= (0.0..=1.0 + SUM_TOLERANCE).contains(p) && (*p == 0.0 || reason.is_allowed());
    }
    if is_good && (sum - 1.0_f64).abs() <= SUM_TOLERANCE {
        return Ok(());
    }
    Err(format!(
        "probabilities {own:?}: they must sum to 1 over what the mask allows"
    ))
}
