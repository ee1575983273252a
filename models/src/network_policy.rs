//! A network as a policy.

use blkpilot_env::{EnvSpec, Level, Rng, TurnView};

use crate::categorical::{greedy, sample, softmax, softmax_into};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::network::{ActorCritic, Scratch};
use crate::normaliser::{Novelty, Outlier};
use crate::policy::{Choice, Policy, PolicyError, certain};

/// How a network's scores become a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// The allowed level with the greatest score, with propensity 1.
    Greedy,
    /// A level drawn by the masked softmax; a head that is not forced takes one number from the
    /// generator.
    Sample,
}

/// A network as a policy.
#[derive(Debug, Clone)]
pub struct NetworkPolicy {
    name: String,
    network: ActorCritic,
    novelty: Novelty,
    selection: Selection,
    scratch: Scratch,
    probabilities: Vec<f64>,
}

impl NetworkPolicy {
    /// The policy of a checkpoint, under a name for logs. Whether it fits an environment is
    /// [`Checkpoint::check_fits`]' to say.
    ///
    /// # Errors
    /// What [`Checkpoint::verify`] finds.
    pub fn new(
        name: impl Into<String>,
        checkpoint: &Checkpoint,
        selection: Selection,
    ) -> Result<Self, CheckpointError> {
        let network = ActorCritic::new(checkpoint)?;
        let novelty = Novelty::new(&checkpoint.manifest.spec, &checkpoint.manifest.seen);
        let (scratch, probabilities) = (Scratch::default(), Vec::new());
        Ok(Self {
            name: name.into(),
            network,
            novelty,
            selection,
            scratch,
            probabilities,
        })
    }

    /// The network inside.
    #[must_use]
    pub fn network(&self) -> &ActorCritic {
        &self.network
    }
}

impl Policy for NetworkPolicy {
    fn name(&self) -> &str {
        &self.name
    }

    fn choose(
        &mut self,
        _spec: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let mut scores = self.network.scores(view, &mut self.scratch)?;
        let heads = view.heads.len();
        let mut choice = Choice {
            levels: Vec::with_capacity(heads),
            propensities: Vec::with_capacity(heads),
        };
        for head in 0..heads {
            let mask = view.head_mask(head);
            let (own, rest) = scores.split_at(mask.len());
            scores = rest;
            let (level, propensity) = match (view.forced(head), self.selection) {
                (Some(level), _) => (level, 1.0),
                (None, Selection::Greedy) => {
                    let level =
                        greedy(own, mask).expect("a head with a choice has an allowed level");
                    (level as Level, 1.0)
                }
                (None, Selection::Sample) => {
                    self.probabilities.resize(mask.len(), 0.0);
                    softmax_into(own, mask, &mut self.probabilities);
                    let level = sample(&self.probabilities, rng);
                    (level as Level, self.probabilities[level])
                }
            };
            choice.levels.push(level);
            choice.propensities.push(propensity);
        }
        Ok(choice)
    }

    fn distribution(
        &mut self,
        _spec: &EnvSpec,
        view: &TurnView<'_>,
    ) -> Result<Vec<Vec<f64>>, PolicyError> {
        let mut scores = self.network.scores(view, &mut self.scratch)?;
        let mut heads = Vec::with_capacity(view.heads.len());
        for head in 0..view.heads.len() {
            let mask = view.head_mask(head);
            let (own, rest) = scores.split_at(mask.len());
            scores = rest;
            heads.push(match (view.forced(head), self.selection) {
                (Some(level), _) => certain(mask.len(), level),
                (None, Selection::Greedy) => {
                    let level =
                        greedy(own, mask).expect("a head with a choice has an allowed level");
                    certain(mask.len(), level as Level)
                }
                (None, Selection::Sample) => softmax(own, mask),
            });
        }
        Ok(heads)
    }

    fn novelty(&self, view: &TurnView<'_>) -> Vec<Outlier> {
        self.novelty.outliers(view)
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, JointDecision, Observation, ResetOptions};
    use rand::SeedableRng as _;

    use super::*;
    use crate::architecture::Architecture;
    use crate::fixture::Sizes;
    use crate::policy::decide;

    fn policy(spec: &EnvSpec, selection: Selection) -> NetworkPolicy {
        let mut rng = Rng::seed_from_u64(5);
        let checkpoint = Checkpoint::untrained(spec, Architecture::default(), &mut rng);
        checkpoint.check_fits(spec).unwrap();
        NetworkPolicy::new("net", &checkpoint, selection).unwrap()
    }

    fn first_turn<T>(spec: &EnvSpec, obs: &Observation, of: impl FnOnce(&TurnView<'_>) -> T) -> T {
        let joint = JointDecision::in_random_order(spec, obs, &mut Rng::seed_from_u64(1));
        of(&joint.view().unwrap())
    }

    #[test]
    fn sampled_levels_come_with_the_probability_the_masked_softmax_gives_them() {
        let sizes = Sizes {
            disks: 1,
            ..Sizes::default()
        };
        let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(6));
        let mut policy = policy(&spec, Selection::Sample);
        for _ in 0..200 {
            let obs = sizes.observation(0.4, &mut rng);
            first_turn(&spec, &obs, |view| {
                let scores = policy
                    .network
                    .forward(view, &mut Scratch::default())
                    .unwrap()
                    .scores;
                let choice = policy.choose(&spec, view, &mut rng).unwrap();
                let mut start = 0;
                for head in 0..view.heads.len() {
                    let mask = view.head_mask(head);
                    let p = softmax(&scores[start..][..mask.len()], mask);
                    start += mask.len();
                    let level = usize::from(choice.levels[head]);
                    match view.forced(head) {
                        Some(forced) => assert_eq!(
                            (choice.levels[head], choice.propensities[head]),
                            (forced, 1.0)
                        ),
                        None => assert_eq!(choice.propensities[head], p[level]),
                    }
                    assert!(view.forced(head).is_some() || mask[level].is_allowed());
                }
            });
        }
    }

    #[test]
    fn greedy_takes_the_best_allowed_level_and_draws_nothing() {
        let sizes = Sizes {
            disks: 1,
            ..Sizes::default()
        };
        let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(6));
        let mut policy = policy(&spec, Selection::Greedy);
        let obs = sizes.observation(0.0, &mut rng);
        first_turn(&spec, &obs, |view| {
            let scores = policy
                .network
                .forward(view, &mut Scratch::default())
                .unwrap()
                .scores;
            let before = rng.clone();
            let choice = policy.choose(&spec, view, &mut rng).unwrap();
            assert_eq!(rng, before);
            assert_eq!(choice.propensities, [1.0; 3]);
            assert_eq!(
                usize::from(choice.levels[0]),
                usize::from(scores[1] > scores[0])
            );
        });
    }

    #[test]
    fn it_decides_for_a_simulated_host_the_same_way_each_time() {
        let mut host = SimHost::fixed(presets::mixed()).unwrap();
        let obs = host.reset(Some(1), &ResetOptions::new()).unwrap();
        let spec = host.spec().clone();
        let run = || {
            let mut policy = policy(&spec, Selection::Sample);
            decide(&mut policy, &spec, &obs, &mut Rng::seed_from_u64(3)).unwrap()
        };
        let decision = run();
        assert_eq!(decision, run());
        assert_eq!(decision.policy, "net");
        host.step(&decision.action).unwrap();
    }

    #[test]
    fn what_training_did_not_see_is_reported_with_the_turn() {
        let sizes = Sizes {
            disks: 2,
            ..Sizes::default()
        };
        let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(6));
        let mut checkpoint = Checkpoint::untrained(&spec, Architecture::default(), &mut rng);
        checkpoint.manifest.seen.disk.min[1] = 0.0;
        checkpoint.manifest.seen.disk.max[1] = 0.5;
        let mut policy = NetworkPolicy::new("net", &checkpoint, Selection::Greedy).unwrap();
        let mut obs = sizes.observation(0.0, &mut rng);
        obs.disks.values.fill(0.1);
        obs.disks.values[[1, 1]] = 7.0;
        let decision = decide(&mut policy, &spec, &obs, &mut rng).unwrap();
        for made in decision.choices {
            let names: Vec<_> = made.novel.iter().map(|o| o.feature.as_str()).collect();
            let want: &[&str] = if made.turn == blkpilot_env::Turn::Disk(1) {
                &["disk_1"]
            } else {
                &[]
            };
            assert_eq!(names, want);
        }
    }
}
