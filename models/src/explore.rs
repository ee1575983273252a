//! ε-greedy exploration with a propensity that can be relied on.
//!
//! The behaviour policy takes, per head, the policy's own draw with probability 1 − ε and else any of
//! the allowed levels with the same probability: it gives level a the probability
//! (1 − ε)·π(a) + ε/|A|, where A are the allowed levels of the head. That is what is returned, whichever
//! of the two drew the level: what a log needs is the probability of what was done (Dudík et al. 2014,
//! "Doubly robust policy evaluation and optimization", section 2). A head without a choice, as that of
//! a disk whose IOThread has chosen, is not explored.

use blkpilot_env::{EnvSpec, Level, Rng, TurnView};
use rand::RngExt as _;

use crate::baseline::uniform_over;
use crate::categorical::sample;
use crate::policy::{Choice, Policy, PolicyError};

/// How far a head's probabilities may be from a sum of 1.
const ROUNDING: f64 = 1e-9;

/// A choice of the behaviour policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Explored {
    /// The levels, with the behaviour policy's probabilities.
    pub choice: Choice,
    /// Per head: whether the level was drawn from all that are allowed.
    pub explored: Vec<bool>,
}

/// One turn of the behaviour policy that explores `policy` with `epsilon` in [0, 1]. At 0 it is the
/// policy itself, with its own propensities and as many draws.
///
/// # Errors
/// The policy's; `Improper` for what are no probabilities of the levels.
pub fn explore(
    policy: &mut dyn Policy,
    epsilon: f64,
    spec: &EnvSpec,
    view: &TurnView<'_>,
    rng: &mut Rng,
) -> Result<Explored, PolicyError> {
    let heads = view.heads.len();
    if epsilon <= 0.0 {
        let choice = policy.choose(spec, view, rng)?;
        let explored = vec![false; heads];
        return Ok(Explored { choice, explored });
    }
    let own = policy.distribution(spec, view)?;
    check(policy, view, &own)?;
    let mut made = Explored {
        choice: Choice::certain(Vec::with_capacity(heads)),
        explored: Vec::with_capacity(heads),
    };
    for (head, own) in own.iter().enumerate() {
        let (level, propensity, explored) = match view.forced(head) {
            Some(level) => (level, 1.0, false),
            None => draw(view, head, own, epsilon, rng),
        };
        made.choice.levels.push(level);
        made.choice.propensities.push(propensity);
        made.explored.push(explored);
    }
    Ok(made)
}

/// Probabilities `[levels]` of the behaviour policy for a head that has a choice. `own`: those of the
/// policy.
#[must_use]
pub fn mixture(view: &TurnView<'_>, head: usize, own: &[f64], epsilon: f64) -> Vec<f64> {
    let uniform = uniform_over(view.head_mask(head));
    let mix = |(own, uniform): (&f64, &f64)| (1.0 - epsilon) * own + epsilon * uniform;
    own.iter().zip(&uniform).map(mix).collect()
}

fn draw(
    view: &TurnView<'_>,
    head: usize,
    own: &[f64],
    epsilon: f64,
    rng: &mut Rng,
) -> (Level, f64, bool) {
    let explores = rng.random::<f64>() < epsilon;
    let level = if explores {
        sample(&uniform_over(view.head_mask(head)), rng)
    } else {
        sample(own, rng)
    };
    let propensity = mixture(view, head, own, epsilon)[level];
    (level as Level, propensity, explores)
}

fn check(policy: &dyn Policy, view: &TurnView<'_>, own: &[Vec<f64>]) -> Result<(), PolicyError> {
    let improper = |problem: String| PolicyError::Improper {
        turn: view.turn,
        policy: policy.name().to_owned(),
        problem,
    };
    if own.len() != view.heads.len() {
        let problem = format!("{} heads, of {}", own.len(), view.heads.len());
        return Err(improper(problem));
    }
    for (head, own) in own.iter().enumerate() {
        let is_probability = own.iter().all(|p| (0.0..=1.0).contains(p));
        let sum: f64 = own.iter().sum();
        let is_whole = own.len() == view.head_mask(head).len() && (sum - 1.0).abs() <= ROUNDING;
        if !is_probability || !is_whole {
            let name = &view.heads[head].name;
            let problem = format!("probabilities {own:?} for head `{name}`");
            return Err(improper(problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, JointDecision, MaskReason, Observation, ResetOptions};
    use rand::SeedableRng as _;

    use super::*;
    use crate::architecture::Architecture;
    use crate::baseline::{LeastLoaded, RandomPolicy};
    use crate::checkpoint::Checkpoint;
    use crate::network_policy::{NetworkPolicy, Selection};

    const DECISIONS: usize = 20_000;
    const EPSILON: f64 = 0.2;
    /// Standard deviations that a frequency may be away: exceeded once in 10⁵ by chance, and about 60
    /// frequencies are looked at, with fixed seeds.
    const Z: f64 = 4.5;

    /// What was drawn of one level, and what the logged propensities say that should have been.
    #[derive(Debug, Default, Clone, Copy)]
    struct Tally {
        drawn: f64,
        expected: f64,
        variance: f64,
        /// Sum of 1 / propensity where it was drawn, and of the greatest that may vary.
        weight: f64,
    }

    fn host() -> (SimHost, Observation) {
        let mut host = SimHost::fixed(presets::mixed()).unwrap();
        let obs = host.reset(Some(3), &ResetOptions::new()).unwrap();
        (host, obs)
    }

    /// Decides for a simulated host that runs on, and counts per head and level.
    fn run(policy: &mut dyn Policy, seed: u64) -> Vec<Vec<Tally>> {
        let (mut host, mut obs) = host();
        let (spec, mut rng) = (host.spec().clone(), Rng::seed_from_u64(seed));
        let channels = obs.channel_count();
        let heads = spec.disk_heads.iter();
        let mut tallies: Vec<_> = heads
            .map(|head| vec![Tally::default(); head.len(channels)])
            .collect();
        for _ in 0..DECISIONS {
            policy.begin(&spec, &obs).unwrap();
            let mut joint = JointDecision::in_random_order(&spec, &obs, &mut rng);
            while let Some(view) = joint.view() {
                let own = policy.distribution(&spec, &view).unwrap();
                let made = explore(policy, EPSILON, &spec, &view, &mut rng).unwrap();
                for (head, tallies) in tallies.iter_mut().enumerate() {
                    let level = usize::from(made.choice.levels[head]);
                    let propensity = made.choice.propensities[head];
                    if view.forced(head).is_some() {
                        assert_eq!((propensity, made.explored[head]), (1.0, false));
                        continue;
                    }
                    let mixed = mixture(&view, head, &own[head], EPSILON);
                    assert!((mixed.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{mixed:?}");
                    assert_eq!(propensity, mixed[level]);
                    for (tally, p) in tallies.iter_mut().zip(&mixed) {
                        tally.expected += p;
                        tally.variance += p * (1.0 - p);
                    }
                    tallies[level].drawn += 1.0;
                    tallies[level].weight += 1.0 / propensity;
                }
                joint.commit(&made.choice.levels).unwrap();
            }
            let (action, _) = joint.finish();
            obs = match host.step(&action) {
                Ok(step) if !step.truncated => step.observation,
                _ => host.reset(None, &ResetOptions::new()).unwrap(),
            };
        }
        tallies
    }

    fn assert_frequencies(of: &str, tallies: &[Vec<Tally>]) {
        for (head, levels) in tallies.iter().enumerate() {
            let turns: f64 = levels.iter().map(|tally| tally.drawn).sum();
            assert!(turns >= DECISIONS as f64, "{of}: head {head} is free");
            for (level, tally) in levels.iter().enumerate() {
                let z = (tally.drawn - tally.expected) / tally.variance.sqrt();
                assert!(z.abs() < Z, "{of}: head {head} level {level}: {tally:?}");
                // Each level is drawn in one of 5 · |A| at least, so its weights add up to the turns.
                let share = tally.weight / turns;
                assert!(
                    (share - 1.0).abs() < 0.1,
                    "{of}: head {head} level {level}: {share}"
                );
            }
        }
    }

    #[test]
    fn levels_are_drawn_as_often_as_their_logged_propensities_say() {
        let (host, _) = host();
        let spec = host.spec();
        let mut rng = Rng::seed_from_u64(9);
        let checkpoint = Checkpoint::untrained(spec, Architecture::default(), &mut rng);
        let network = |selection| NetworkPolicy::new("net", &checkpoint, selection).unwrap();
        let policies: [Box<dyn Policy>; 3] = [
            Box::new(LeastLoaded::new(spec).unwrap()),
            Box::new(RandomPolicy),
            Box::new(network(Selection::Sample)),
        ];
        for mut policy in policies {
            let tallies = run(policy.as_mut(), 17);
            assert_frequencies(policy.name(), &tallies);
        }
    }

    fn first_turn<T>(obs: &Observation, spec: &EnvSpec, of: impl FnOnce(&TurnView<'_>) -> T) -> T {
        let joint = JointDecision::in_random_order(spec, obs, &mut Rng::seed_from_u64(1));
        of(&joint.view().unwrap())
    }

    #[test]
    fn a_greedy_level_has_the_rest_of_epsilon_and_the_others_their_share_of_it() {
        let (host, mut obs) = host();
        let spec = host.spec();
        // Two of the five channel levels are closed.
        obs.masks
            .disks
            .slice_mut(ndarray::s![.., 3..5])
            .fill(MaskReason::Dwell);
        first_turn(&obs, spec, |view| {
            let mut policy = LeastLoaded::new(spec).unwrap();
            policy.begin(spec, &obs).unwrap();
            let own = policy.distribution(spec, view).unwrap();
            let mixed = mixture(view, 0, &own[0], 0.3);
            let greedy = own[0].iter().position(|p| *p == 1.0).unwrap();
            for (level, p) in mixed.iter().enumerate() {
                let want = match (level == greedy, level < 3) {
                    (true, _) => 0.7 + 0.3 / 3.0,
                    (false, true) => 0.3 / 3.0,
                    (false, false) => 0.0,
                };
                assert!((p - want).abs() < 1e-12, "{level}: {p}, not {want}");
            }
        });
    }

    #[test]
    fn disks_on_one_iothread_explore_once() {
        let (host, mut obs) = host();
        let spec = host.spec();
        obs.disk_group = vec![Some(0); obs.disk_count()];
        let mut rng = Rng::seed_from_u64(8);
        let mut explored = 0;
        for _ in 0..200 {
            let mut joint = JointDecision::in_random_order(spec, &obs, &mut rng);
            let mut first = None;
            while let Some(view) = joint.view() {
                let made = explore(&mut RandomPolicy, 0.5, spec, &view, &mut rng).unwrap();
                let (level, is_explored) = (made.choice.levels[0], made.explored[0]);
                if let Some(first) = first {
                    assert_eq!((level, is_explored), (first, false));
                    assert_eq!(made.choice.propensities[0], 1.0);
                } else {
                    explored += usize::from(is_explored);
                    first = Some(level);
                }
                joint.commit(&made.choice.levels).unwrap();
            }
        }
        assert!((60..140).contains(&explored), "{explored}");
    }

    #[test]
    fn without_epsilon_it_is_the_policy_with_its_own_propensities_and_draws() {
        let (host, obs) = host();
        let spec = host.spec();
        first_turn(&obs, spec, |view| {
            let (mut a, mut b) = (Rng::seed_from_u64(4), Rng::seed_from_u64(4));
            let made = explore(&mut RandomPolicy, 0.0, spec, view, &mut a).unwrap();
            let choice = RandomPolicy.choose(spec, view, &mut b).unwrap();
            assert_eq!((made.choice, a), (choice, b));
        });
    }

    #[test]
    fn what_are_no_probabilities_is_an_error_that_names_the_policy() {
        struct Drunk;
        impl Policy for Drunk {
            fn name(&self) -> &str {
                "drunk"
            }
            fn choose(
                &mut self,
                _: &EnvSpec,
                view: &TurnView<'_>,
                _: &mut Rng,
            ) -> Result<Choice, PolicyError> {
                Ok(Choice {
                    levels: view.current.to_vec(),
                    propensities: vec![0.5; view.heads.len()],
                })
            }
        }
        let (host, obs) = host();
        let spec = host.spec();
        first_turn(&obs, spec, |view| {
            let mut rng = Rng::seed_from_u64(4);
            let refused = explore(&mut Drunk, 0.1, spec, view, &mut rng);
            let policy = "drunk".to_owned();
            assert_eq!(refused, Err(PolicyError::NoDistribution { policy }));
            let own = vec![vec![f64::NAN; 2]; view.heads.len()];
            let refused = check(&Drunk, view, &own).unwrap_err().to_string();
            assert!(
                refused.contains("drunk") && refused.contains("NaN"),
                "{refused}"
            );
        });
    }
}
