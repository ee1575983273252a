//! Seeds of environments: those of training and those of evaluation can never meet.
//!
//! Training seeds have their highest bit clear, evaluation seeds have it set; distinct seeds give
//! distinct keys of the generator. Later episodes of a training environment go on in the stream that
//! its seed started. Evaluation seed i is the same in every run, so runs can be compared.

const EVALUATION: u64 = 1 << 63;

/// Seed of one environment of a training run.
#[must_use]
pub fn training(run: u64, environment: usize) -> u64 {
    mix(run ^ mix(environment as u64)) & !EVALUATION
}

/// Seed of one evaluation episode.
#[must_use]
pub fn evaluation(episode: usize) -> u64 {
    EVALUATION | episode as u64
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
}
