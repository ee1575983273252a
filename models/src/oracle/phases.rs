//! The Markov chain of the phases, as far as an oracle needs it.

use blkpilot_env::Rng;
use blkpilot_env::sim::Scenario;
use blkpilot_env::sim::scenario::DiskModel;
use ndarray::{Array1, Array2, Axis};
use rand::{RngExt as _, SeedableRng as _};

/// The phase of each disk.
pub type PhaseVector = Vec<usize>;

/// Phase vectors with their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct States {
    /// Phase vectors and their shares of the intervals; the shares sum to 1.
    pub weighted: Vec<(PhaseVector, f64)>,
    /// Whether they are all there are; else they are a sample.
    pub are_all: bool,
}

/// Whether a disk has anything to do in a phase.
#[must_use]
pub fn is_active(scenario: &Scenario, phases: &[usize], disk: usize) -> bool {
    scenario.disks[disk].phases[phases[disk]].outstanding > 0.0
}

/// Squarings of a disk's chain: 2⁶⁴ intervals are more than any phase lasts.
const SQUARINGS: u32 = 64;

/// Share of the intervals that a disk spends in each of its phases, in the long run, from the start that
/// an episode draws: any phase with the same probability. 0 for phases that it leaves for good.
///
/// The mean row of P^n for great n, P half the chain that the simulator follows and half the identity:
/// that changes no share, and the powers settle even if the chain is periodic (Norris 1997, theorems
/// 1.7.7 and 1.8.3).
#[must_use]
pub fn stationary(disk: &DiskModel) -> Vec<f64> {
    let phases = disk.phases.len();
    let mut powers = Array2::eye(phases);
    for (from, mut row) in powers.outer_iter_mut().enumerate() {
        row += &Array1::from_vec(disk.transitions(from));
    }
    for _ in 0..SQUARINGS {
        // Rounding would grow with each squaring.
        for mut row in powers.outer_iter_mut() {
            let total = row.sum();
            row /= total;
        }
        powers = powers.dot(&powers);
    }
    (powers.sum_axis(Axis(0)) / phases as f64).to_vec()
}

/// Intervals that a phase vector lasts in expectation, this one included, of `left` that are left of the
/// episode: (1 − (1 − p)^left)/p, p the probability that some disk moves on.
#[must_use]
pub fn expected_intervals(scenario: &Scenario, phases: &[usize], left: u32) -> f64 {
    let stays = |(disk, phase): (&DiskModel, &usize)| disk.stays(*phase);
    let all_stay: f64 = scenario.disks.iter().zip(phases).map(stays).product();
    let moves = 1.0 - all_stay;
    if moves < 1e-12 {
        return f64::from(left.max(1));
    }
    (1.0 - libm::pow(all_stay, f64::from(left.max(1)))) / moves
}

/// All phase vectors that recur, with their stationary shares, or, if there are more than `most`, as many
/// drawn from the stationary distribution with a fixed seed, each with the same weight per draw.
#[must_use]
pub fn states(scenario: &Scenario, most: usize) -> States {
    let shares: Vec<Vec<f64>> = scenario.disks.iter().map(stationary).collect();
    let recurring = |shares: &Vec<f64>| shares.iter().filter(|share| **share > 0.0).count();
    let count = shares
        .iter()
        .try_fold(1_usize, |n, s| n.checked_mul(recurring(s)));
    if count.is_some_and(|n| n <= most) {
        return States {
            weighted: product(&shares),
            are_all: true,
        };
    }
    let mut rng = Rng::seed_from_u64(0);
    let mut weighted: Vec<(PhaseVector, f64)> = Vec::new();
    for _ in 0..most {
        let drawn: PhaseVector = shares.iter().map(|s| draw(s, &mut rng)).collect();
        match weighted.iter_mut().find(|(phases, _)| *phases == drawn) {
            Some((_, weight)) => *weight += 1.0 / most as f64,
            None => weighted.push((drawn, 1.0 / most as f64)),
        }
    }
    States {
        weighted,
        are_all: false,
    }
}

fn product(shares: &[Vec<f64>]) -> Vec<(PhaseVector, f64)> {
    shares.iter().fold(vec![(Vec::new(), 1.0)], |built, own| {
        let extend = |(phases, weight): &(PhaseVector, f64)| -> Vec<(PhaseVector, f64)> {
            let with = |(p, share): (usize, &f64)| ([&phases[..], &[p]].concat(), weight * share);
            let recurring = own.iter().enumerate().filter(|(_, share)| **share > 0.0);
            recurring.map(with).collect()
        };
        built.iter().flat_map(extend).collect()
    })
}

fn draw(shares: &[f64], rng: &mut Rng) -> usize {
    let mut left = rng.random::<f64>();
    let reached = shares.iter().position(|share| {
        left -= share;
        left < 0.0
    });
    reached.unwrap_or(shares.len() - 1)
}

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, ResetOptions};

    use super::*;

    fn two_phases(means: [f64; 2]) -> Scenario {
        let mut scenario = presets::identical_disks(2, 2);
        for disk in &mut scenario.disks {
            disk.phases = means
                .map(|mean_intervals| blkpilot_env::sim::scenario::Phase {
                    mean_intervals,
                    ..presets::random_read(1.0, 1.0)
                })
                .to_vec();
        }
        scenario
    }

    fn assert_near(found: &[f64], wanted: &[f64]) {
        let is_near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        let all = found.len() == wanted.len() && found.iter().zip(wanted).all(is_near);
        assert!(all, "{found:?} for {wanted:?}");
    }

    /// One disk with phases of these mean lengths and these that may follow.
    fn chain<const N: usize>(phases: [(f64, [f64; N]); N]) -> Scenario {
        let mut scenario = presets::identical_disks(1, 1);
        scenario.disks[0].phases = phases
            .map(
                |(mean_intervals, next)| blkpilot_env::sim::scenario::Phase {
                    mean_intervals,
                    next: next.to_vec(),
                    ..presets::random_read(1.0, 1.0)
                },
            )
            .to_vec();
        scenario
    }

    /// Every second jump ends in the first phase, 1/8 and 3/8 of them in the others; times the lengths
    /// 4, 8 and 8 that is 2 : 1 : 3. Were all jumps alike, it would be 1 : 2 : 2.
    #[test]
    fn the_shares_follow_the_transitions_that_the_host_follows() {
        let scenario = Scenario {
            steps: 40_000,
            ..chain([
                (4.0, [0.0, 0.25, 0.75]),
                (8.0, [1.0, 0.0, 0.0]),
                (8.0, [1.0, 0.0, 0.0]),
            ])
        };
        let shares = stationary(&scenario.disks[0]);
        assert_near(&shares, &[2.0 / 6.0, 1.0 / 6.0, 3.0 / 6.0]);
        let mut host = SimHost::fixed(scenario).unwrap();
        let action = host.reset(Some(5), &ResetOptions::new()).unwrap().default;
        let mut counted = [0_u32; 3];
        for _ in 0..40_000 {
            host.step(&action).unwrap();
            counted[host.phases().unwrap()[0]] += 1;
        }
        for (share, count) in shares.iter().zip(counted) {
            let seen = f64::from(count) / 40_000.0;
            assert!((share - seen).abs() < 0.02, "{shares:?} {counted:?}");
        }
    }

    #[test]
    fn a_chain_that_only_alternates_has_shares() {
        let cycle = chain([
            (1.0, [0.0, 1.0, 0.0]),
            (1.0, [0.0, 0.0, 1.0]),
            (1.0, [1.0, 0.0, 0.0]),
        ]);
        assert_near(&stationary(&cycle.disks[0]), &[1.0 / 3.0; 3]);
    }

    /// From 0 to 1 or 2 and never back: half of the starts in 0 end in either.
    #[test]
    fn phases_that_are_left_for_good_have_no_share_and_no_phase_vector() {
        let scenario = chain([
            (1e3, [0.0, 0.5, 0.5]),
            (5.0, [0.0, 1.0, 0.0]),
            (7.0, [0.0, 0.0, 1.0]),
        ]);
        assert_near(&stationary(&scenario.disks[0]), &[0.0, 0.5, 0.5]);
        let recurring = states(&scenario, 2);
        assert!(recurring.are_all);
        let phases: Vec<PhaseVector> = recurring.weighted.into_iter().map(|(p, _)| p).collect();
        assert_eq!(phases, [[1], [2]]);
        assert_eq!(expected_intervals(&scenario, &[1], 9), 9.0);
        assert!((expected_intervals(&scenario, &[0], 2) - 1.999).abs() < 1e-9);
    }

    #[test]
    fn the_host_spends_its_time_as_the_stationary_shares_say() {
        let scenario = Scenario {
            steps: 20_000,
            ..two_phases([4.0, 12.0])
        };
        assert_near(&stationary(&scenario.disks[0]), &[0.25, 0.75]);
        let mut host = SimHost::fixed(scenario.clone()).unwrap();
        let action = host.reset(Some(3), &ResetOptions::new()).unwrap().default;
        let mut in_first = 0;
        for _ in 0..20_000 {
            host.step(&action).unwrap();
            in_first += host.phases().unwrap().iter().filter(|p| **p == 0).count();
        }
        let share = in_first as f64 / 40_000.0;
        assert!((share - 0.25).abs() < 0.02, "{share}");
        let States { weighted, are_all } = states(&scenario, 4);
        assert!(are_all);
        assert_eq!(weighted[3].0, [1, 1]);
        assert!((weighted[3].1 - 0.5625).abs() < 1e-12);
        assert!((weighted.iter().map(|(_, w)| w).sum::<f64>() - 1.0).abs() < 1e-12);
    }

    /// Two disks that leave with 1/4 and 1/12: 1/p = 1/(1 − 3/4·11/12) = 3.2 intervals without an end.
    #[test]
    fn a_phase_vector_lasts_as_long_as_all_of_its_disks_stay() {
        let scenario = two_phases([4.0, 12.0]);
        let lasts = |left| expected_intervals(&scenario, &[0, 1], left);
        assert!((lasts(1000) - 3.2).abs() < 1e-9);
        assert!((lasts(1) - 1.0).abs() < 1e-9);
        assert!((lasts(2) - (1.0 + 0.6875)).abs() < 1e-9);
        let frozen = presets::identical_disks(2, 2);
        assert_eq!(expected_intervals(&frozen, &[0, 0], 17), 17.0);
    }

    #[test]
    fn too_many_phase_vectors_are_sampled_by_their_shares() {
        let scenario = two_phases([4.0, 12.0]);
        let States { weighted, are_all } = states(&scenario, 3);
        assert!(!are_all);
        let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
        assert!((total - 1.0).abs() < 1e-12);
    }
}
