//! What a policy would have done in each row of a joint decision, and the weight that gives it.

use std::ops::Range;

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
        self.probabilities.clear();
        self.probabilities.resize(step.masks.len(), 0.0);
        let rows = 0..step.rows.len();
        probabilities_of(policy, step, rows, spec, &mut self.probabilities)?;
        self.ratios.clear();
        self.unsupported = 0.0;
        for row in &step.rows {
            let mut ratio = 1.0;
            for cell in step.heads_of(row).iter().filter(|cell| cell.is_free) {
                let p = self.probabilities[cell.mask.range()][usize::from(cell.requested)];
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

/// Writes a policy's probabilities in some rows of a joint decision to their places in `out`, which is in the order
/// of [`HostStep::masks`].
///
/// # Errors
/// `Policy`, `Improper`.
pub(crate) fn probabilities_of(
    policy: &dyn TargetPolicy,
    step: &HostStep,
    rows: Range<usize>,
    spec: &EnvSpec,
    out: &mut [f64],
) -> Result<(), EvaluateError> {
    let [Some(first), Some(last)] = [rows.clone().next(), rows.clone().last()] else {
        return Ok(());
    };
    let turns: Vec<_> = rows.clone().map(|i| step.turn(i, spec)).collect();
    let own = step.rows[first].mask.range().start..step.rows[last].mask.range().end;
    policy
        .probabilities(&turns, &mut out[own])
        .map_err(|(turn, source)| EvaluateError::Policy {
            row: step.rows[(first + turn).min(last)].place,
            policy: policy.name().to_owned(),
            source: Box::new(source),
        })?;
    for row in &step.rows[rows] {
        for cell in step.heads_of(row).iter().filter(|cell| cell.is_free) {
            let mask = cell.mask.range();
            check(&out[mask.clone()], &step.masks[mask]).map_err(|problem| {
                EvaluateError::Improper {
                    row: row.place,
                    policy: policy.name().to_owned(),
                    problem,
                }
            })?;
        }
    }
    Ok(())
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
