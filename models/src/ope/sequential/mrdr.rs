//! More robust doubly robust over a table: q̂ fitted for the variance of the doubly robust estimate.
//!
//! Source: Farajtabar, Chow and Ghavamzadeh 2018, "More Robust Doubly Robust Off-policy Evaluation",
//! the objective for reinforcement learning.

use super::{Policy, QTable, TabularLog, discounts};
use crate::ope::error::OpeError;
use crate::ope::least_squares::minimum_norm;
use crate::ope::scaled::{Scaled, ScaledSum};

/// Per state, what minimises `Σ γ^{2t} w_{t−1}² ρ_t q' Ω q` over the steps in it, with
/// `q = D q̂(s) − 1{a_t} R_t`, `R_t = r_t + γ ρ_{t+1} R_{t+1}`, `D = diag(pie)` and
/// `Ω = diag(1/pib) − 11'` on the actions that `behaviour` plays; of equal minima the one of least norm. 0
/// for a state never seen. The estimate is then [`Steps::doubly_robust`] with this table.
///
/// # Errors
/// `Setting` for gamma; `Value` where a ratio is beyond f64; `Overflow` where a weighted return is.
///
/// [`Steps::doubly_robust`]: super::Steps::doubly_robust
pub fn table(
    log: &TabularLog,
    policy: &Policy,
    behaviour: &Policy,
    gamma: f64,
) -> Result<QTable, OpeError> {
    let targets = targets(log, policy, gamma)?;
    let mut q = Vec::with_capacity(targets.len());
    for (state, targets) in targets.chunks(log.shape.actions).enumerate() {
        q.extend(fit(policy.at(state), behaviour.at(state), targets));
    }
    QTable::new("mrdr", q, &log.shape)
}

/// Per state and action: the sum of `c R` over that of `c` in the whole state, `c` the coefficient above.
fn targets(log: &TabularLog, policy: &Policy, gamma: f64) -> Result<Vec<f64>, OpeError> {
    let zero = vec![0.0; log.shape.states * log.shape.actions];
    let steps = log.steps(policy, &QTable::new("nothing", zero, &log.shape)?, gamma)?;
    let returns = returns(&steps)?;
    let discounts = discounts(gamma, log.shape.horizon);
    let mut total = vec![ScaledSum::default(); log.shape.states];
    let mut weighted = vec![ScaledSum::default(); log.shape.states * log.shape.actions];
    for trajectory in 0..steps.trajectories() {
        for step in steps.walk(trajectory) {
            let (state, action) = (log.state[step.row], log.action[step.row]);
            let discounted = step.before.times(discounts[step.t]);
            let coefficient = discounted.product(discounted).times(steps.ratio[step.row]);
            total[state].add(coefficient);
            let pair = state * log.shape.actions + action;
            weighted[pair].add(coefficient.times(returns[step.row]));
        }
    }
    let of = |(pair, weighted): (usize, ScaledSum)| {
        let total = total[pair / log.shape.actions].total();
        if total.is_zero() {
            return 0.0;
        }
        weighted.total().quotient(total).value()
    };
    Ok(weighted.into_iter().enumerate().map(of).collect())
}

/// `R_t = r_t + γ ρ_{t+1} R_{t+1}` of each row.
fn returns(steps: &super::Steps) -> Result<Vec<f64>, OpeError> {
    let mut returns = vec![0.0; steps.reward.len()];
    for trajectory in 0..steps.trajectories() {
        let mut following = Scaled::ZERO;
        for row in steps.rows_of(trajectory).rev() {
            let mut sum = ScaledSum::default();
            sum.add(Scaled::new(steps.reward[row]));
            sum.add(following);
            let total = sum.total();
            returns[row] = total.value();
            if !returns[row].is_finite() {
                return Err(OpeError::Overflow {
                    trajectory,
                    what: "a weighted return",
                    log10: total.log10(),
                });
            }
            following = total.times(steps.gamma * steps.ratio[row]);
        }
    }
    Ok(returns)
}

/// All steps in a state share D and Ω, so their equations add up to `D Ω D q̂ = D Ω u`, u the targets.
fn fit(pie: &[f64], pib: &[f64], targets: &[f64]) -> Vec<f64> {
    let actions = pie.len();
    let omega = |j: usize, k: usize| match (pib[j] > 0.0 && pib[k] > 0.0, j == k) {
        (false, _) => 0.0,
        (true, true) => 1.0 / pib[j] - 1.0,
        (true, false) => -1.0,
    };
    let mut matrix = vec![0.0; actions * actions];
    let mut right = vec![0.0; actions];
    for j in 0..actions {
        for k in 0..actions {
            matrix[j * actions + k] = pie[j] * omega(j, k) * pie[k];
            right[j] += pie[j] * omega(j, k) * targets[k];
        }
    }
    minimum_norm(&matrix, &right)
}
