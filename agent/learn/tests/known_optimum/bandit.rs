//! A contextual bandit: two numbers are seen, one of three levers is pulled, each episode is one pull. In half of the
//! rounds a lever is closed.

use blkpilot_env::{
    EnvError, EnvSpec, Environment, JointAction, Level, Observation, ResetOptions, Rewards, Rng,
    Step,
};
use blkpilot_models::NetworkPolicy;
use ndarray::{arr1, arr2};
use rand::{RngExt as _, SeedableRng as _};

use super::{levels, observe, spec};

#[derive(Debug, Clone)]
struct Round {
    seen: [f32; 2],
    allowed: [bool; 3],
}

impl Round {
    fn draw(rng: &mut Rng) -> Self {
        let mut allowed = [true; 3];
        if rng.random_bool(0.5) {
            allowed[rng.random_range(0..3)] = false;
        }
        Self {
            seen: [(); 2].map(|()| rng.random_range(-1.0..1.0)),
            allowed,
        }
    }

    /// Mean reward of each lever: the best one is another in three parts of the square.
    fn means(&self) -> [f64; 3] {
        let [x, y] = self.seen.map(f64::from);
        [x, 0.5 * y - 0.5 * x, 0.2 - y]
    }

    fn best(&self) -> f64 {
        let open = self.means().into_iter().zip(self.allowed);
        open.filter(|(_, is_open)| *is_open)
            .fold(f64::NEG_INFINITY, |best, (mean, _)| best.max(mean))
    }

    fn random(&self) -> f64 {
        let open = self.means().into_iter().zip(self.allowed);
        let open: Vec<f64> = open.filter_map(|(mean, is)| is.then_some(mean)).collect();
        open.iter().sum::<f64>() / open.len() as f64
    }
}

pub(crate) struct Bandit {
    spec: EnvSpec,
    rng: Rng,
    round: Option<Round>,
}

fn bandit_spec() -> EnvSpec {
    spec("bandit", &["x", "y"], &[("lever", &["a", "b", "c"])])
}

impl Bandit {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            spec: bandit_spec(),
            rng: Rng::seed_from_u64(seed),
            round: None,
        }
    }

    fn show(&self, round: &Round) -> Observation {
        observe(&self.spec, &round.seen, &round.allowed)
    }
}

impl Environment for Bandit {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, seed: Option<u64>, _: &ResetOptions) -> Result<Observation, EnvError> {
        if let Some(seed) = seed {
            self.rng = Rng::seed_from_u64(seed);
        }
        let round = Round::draw(&mut self.rng);
        let seen = self.show(&round);
        self.round = Some(round);
        Ok(seen)
    }

    /// The reward is the mean with noise of 0.2 to either side.
    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let round = self.round.take().ok_or(EnvError::EpisodeOver)?;
        let lever = usize::from(action.disks[[0, 0]]);
        assert!(round.allowed[lever], "a lever that is closed was pulled");
        let reward = (round.means()[lever] + self.rng.random_range(-0.2..0.2)) as f32;
        Ok(Step {
            observation: self.show(&round),
            rewards: Rewards {
                total: arr1(&[reward]),
                own: arr1(&[reward]),
                terms: arr2(&[[reward]]),
                counted: vec![true],
            },
            executed: action.clone(),
            terminated: true,
            truncated: false,
            final_observation: None,
        })
    }
}

/// Over 5,000 rounds that no learner has seen, by their means.
pub(crate) fn regret(policy: &mut NetworkPolicy) -> f64 {
    let (spec, mut rng) = (bandit_spec(), Rng::seed_from_u64(1_000_000));
    let (mut best, mut own, mut random) = (0.0, 0.0, 0.0);
    for _ in 0..5_000 {
        let round = Round::draw(&mut rng);
        let seen = observe(&spec, &round.seen, &round.allowed);
        let lever: Level = levels(policy, &spec, &seen)[0];
        best += round.best();
        own += round.means()[usize::from(lever)];
        random += round.random();
    }
    super::regret(best, own, random)
}
