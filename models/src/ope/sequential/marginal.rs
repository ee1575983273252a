//! Marginalised importance sampling over a table: ratios of single steps instead of their product, so that
//! the variance does not grow exponentially with the horizon.
//!
//! Source: Xie, Ma and Wang 2019, "Towards Optimal Off-Policy Evaluation for Reinforcement Learning with
//! Marginalized Importance Sampling", for tables. Distributions of states are not renormalised.

use super::{Policy, TabularLog, check_setting, discounts};
use crate::ope::error::OpeError;

/// What one step of the horizon says of each state.
struct StepSums {
    count: Vec<f64>,
    reward: Vec<f64>,
    /// `[states × states]`.
    next: Vec<f64>,
}

/// Value of a policy over the horizon of a log: `Σ_t γ^t d_t·r_t` with `d_{t+1} = d_t P_t`, where r and P are
/// means weighted by the ratio of the step. A state that no trajectory is in at a step counts 0 there.
///
/// # Errors
/// `Setting` for gamma outside [0, 1].
pub fn value(log: &TabularLog, policy: &Policy, gamma: f64) -> Result<f64, OpeError> {
    check_setting(log.shape.horizon, gamma)?;
    let states = log.shape.states;
    let sums = collect(log, policy);
    let mut distribution = vec![0.0; states];
    for state in log.first_states() {
        distribution[state] += 1.0 / log.lengths.len() as f64;
    }
    let mut value = 0.0;
    for (discount, sums) in discounts(gamma, log.shape.horizon).iter().zip(&sums) {
        let mut next = vec![0.0; states];
        for state in (0..states).filter(|state| sums.count[*state] > 0.0) {
            let share = distribution[state] / sums.count[state];
            value += discount * share * sums.reward[state];
            let follows = &sums.next[state * states..(state + 1) * states];
            next.iter_mut()
                .zip(follows)
                .for_each(|(next, x)| *next += share * x);
        }
        distribution = next;
    }
    Ok(value)
}

fn collect(log: &TabularLog, policy: &Policy) -> Vec<StepSums> {
    let states = log.shape.states;
    let empty = || StepSums {
        count: vec![0.0; states],
        reward: vec![0.0; states],
        next: vec![0.0; states * states],
    };
    let mut sums: Vec<StepSums> = (0..log.shape.horizon).map(|_| empty()).collect();
    let steps = log.lengths.iter().flat_map(|length| 0..*length);
    for ((row, t), ratio) in steps.enumerate().zip(log.ratios(policy)) {
        let (state, sums) = (log.state[row], &mut sums[t]);
        sums.count[state] += 1.0;
        sums.reward[state] += ratio * log.reward[row];
        if let Some(next) = log.next_state[row] {
            sums.next[state * states + next] += ratio;
        }
    }
    sums
}
