//! Generalised advantage estimation.

use thiserror::Error;

/// How far ahead an advantage looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Discount {
    /// Discount per decision interval, in [0, 1].
    pub gamma: f32,
    /// Weight of longer returns, in [0, 1]: 0 is one-step, 1 is Monte Carlo.
    pub lambda: f32,
}

/// `values` does not hold one entry more than `rewards`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{values} values for {rewards} rewards: GAE needs one value more than rewards")]
pub struct LengthMismatch {
    /// Number of rewards.
    pub rewards: usize,
    /// Number of values.
    pub values: usize,
}

/// Advantages by GAE(λ), one per step, in reward units.
///
/// `rewards`: `[T]`; `values`: `[T+1]`, the last bootstraps a truncated or running tail and is 0 after
/// termination. The series must not span the end of an episode.
///
/// # Errors
/// `LengthMismatch`.
///
/// Source: Schulman et al. 2016, eq. 16.
pub fn advantages(
    rewards: &[f32],
    values: &[f32],
    discount: Discount,
) -> Result<Vec<f32>, LengthMismatch> {
    if values.len() != rewards.len() + 1 {
        return Err(LengthMismatch {
            rewards: rewards.len(),
            values: values.len(),
        });
    }
    let (gamma, decay) = (discount.gamma, discount.gamma * discount.lambda);
    let mut advantages = vec![0.0; rewards.len()];
    let mut later = 0.0;
    for t in (0..rewards.len()).rev() {
        let delta = rewards[t] + gamma * values[t + 1] - values[t];
        later = delta + decay * later;
        advantages[t] = later;
    }
    Ok(advantages)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Discount = Discount {
        gamma: 0.5,
        lambda: 0.5,
    };

    /// δ = [1 + 1 − 1, 0 + 2 − 2, 2 + 4 − 4] = [1, 0, 2]; A₂ = 2, A₁ = 0 + 2/4, A₀ = 1 + 0.5/4.
    #[test]
    fn truncated_tail_bootstraps_from_the_last_value() {
        let got = advantages(&[1.0, 0.0, 2.0], &[1.0, 2.0, 4.0, 8.0], HALF).unwrap();
        assert_eq!(got, [1.125, 0.5, 2.0]);
    }

    /// As above with V₃ = 0: δ₂ = 2 − 4 = −2; A₁ = −0.5, A₀ = 1 − 0.125.
    #[test]
    fn terminated_tail_has_no_value() {
        let got = advantages(&[1.0, 0.0, 2.0], &[1.0, 2.0, 4.0, 0.0], HALF).unwrap();
        assert_eq!(got, [0.875, -0.5, -2.0]);
    }

    #[test]
    fn lambda_one_is_the_discounted_return_minus_the_value() {
        let discount = Discount {
            gamma: 0.9,
            lambda: 1.0,
        };
        let got = advantages(&[1.0, 1.0], &[0.3, 0.7, 2.0], discount).unwrap();
        assert!((got[0] - (1.0 + 0.9 + 0.81 * 2.0 - 0.3)).abs() < 1e-6);
        assert!((got[1] - (1.0 + 0.9 * 2.0 - 0.7)).abs() < 1e-6);
    }

    #[test]
    fn a_missing_bootstrap_is_refused() {
        let error = advantages(&[1.0], &[1.0], HALF).unwrap_err();
        assert_eq!(
            error,
            LengthMismatch {
                rewards: 1,
                values: 1
            }
        );
    }
}
