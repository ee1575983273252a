//! Seeds of environments: those of training and those of evaluation can never meet.
//!
//! Training seeds have their highest bit clear, evaluation seeds have it set; distinct seeds give
//! distinct keys of the generator. Later episodes of a training environment go on in the stream that
//! its seed started. Evaluation seed i is the same in every run, so runs can be compared; which ones are
//! played is the config's `evaluation.first_seed` and `episodes`.

use blkpilot_env::Rng;
use rand::SeedableRng as _;

const EVALUATION: u64 = 1 << 63;

/// Seed of one environment of a training run.
#[must_use]
pub fn training(run: u64, environment: usize) -> u64 {
    mix(run ^ mix(environment as u64)) & !EVALUATION
}

/// Evaluation seed `number`, below 2⁶³.
#[must_use]
pub fn evaluation(number: u64) -> u64 {
    EVALUATION | number
}

/// What a policy draws from in the episode of a seed. Not the environment's stream of that seed, or
/// what is drawn for a decision would follow from what was drawn for the host.
#[must_use]
pub fn decisions(seed: u64) -> Rng {
    let mut rng = Rng::seed_from_u64(seed);
    rng.set_stream(1);
    rng
}

/// SplitMix64's finaliser: runs with neighbouring seeds share no environment.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::RngExt as _;

    use super::*;

    #[test]
    fn training_and_evaluation_never_share_a_seed() {
        let mut seen = BTreeSet::new();
        for run in 0..100 {
            for environment in 0..64 {
                let seed = training(run, environment);
                assert!(seed < EVALUATION);
                assert!(
                    seen.insert(seed),
                    "run {run}, environment {environment} repeats a seed"
                );
            }
        }
        assert!((0..1000).all(|episode| evaluation(episode) >= EVALUATION));
    }

    #[test]
    fn a_policy_and_its_host_share_no_draws() {
        let seed = evaluation(3);
        let draws = |mut rng: Rng| -> [u64; 8] { std::array::from_fn(|_| rng.random()) };
        assert_eq!(draws(decisions(seed)), draws(decisions(seed)));
        let (policy, host) = (draws(decisions(seed)), draws(Rng::seed_from_u64(seed)));
        assert!(policy.iter().all(|draw| !host.contains(draw)));
    }
}
