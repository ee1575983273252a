//! Many carts, stepped together: one array per quantity, so that a step is a few passes over arrays.

use rand::SeedableRng as _;

use super::{
    CartPole, MAX_STEPS, State, draw_start, dynamics, has_fallen, observe, refuse_options,
};
use crate::decision::ActionError;
use crate::environment::{BatchError, EnvError, ResetOptions, Restart};
use crate::observation::Observation;
use crate::spec::{Autoreset, EnvSpec, Level};

/// CartPole-v1 many times over, each cart with a generator of its own: cart i is `CartPole` with the
/// seed plus i, wrapped in the autoreset mode. A clone goes on as the original would, random numbers included.
#[derive(Debug, Clone)]
pub struct CartPoleBatch {
    spec: EnvSpec,
    rngs: Vec<crate::Rng>,
    x: Vec<f64>,
    x_dot: Vec<f64>,
    theta: Vec<f64>,
    theta_dot: Vec<f64>,
    steps: Vec<u32>,
    /// An episode was begun.
    has_begun: Vec<bool>,
    /// The episode ended in the last step.
    is_over: Vec<bool>,
    observations: Vec<[f32; 4]>,
    final_observations: Vec<[f32; 4]>,
    rewards: Vec<f32>,
    terminated: Vec<bool>,
    truncated: Vec<bool>,
}

impl CartPoleBatch {
    /// Carts before their first reset.
    #[must_use]
    pub fn new(carts: usize, seed: u64, mode: Autoreset) -> Self {
        Self {
            spec: EnvSpec {
                autoreset: mode,
                ..CartPole::default_spec()
            },
            rngs: seeds(seed).take(carts).collect(),
            x: vec![0.0; carts],
            x_dot: vec![0.0; carts],
            theta: vec![0.0; carts],
            theta_dot: vec![0.0; carts],
            steps: vec![0; carts],
            has_begun: vec![false; carts],
            is_over: vec![false; carts],
            observations: vec![[0.0; 4]; carts],
            final_observations: vec![[0.0; 4]; carts],
            rewards: vec![0.0; carts],
            terminated: vec![false; carts],
            truncated: vec![false; carts],
        }
    }

    /// Starts an episode in each cart. With a seed, everything random restarts from it.
    pub fn reset(&mut self, seed: Option<u64>) {
        if let Some(seed) = seed {
            let rngs = self.rngs.iter_mut().zip(seeds(seed));
            rngs.for_each(|(rng, fresh)| *rng = fresh);
        }
        for cart in 0..self.x.len() {
            self.begin(cart);
        }
    }

    /// Starts episodes as `restarts` says, an entry per cart. There are no options.
    ///
    /// # Errors
    /// `Count`; `Option` for any option. Nothing is changed then.
    pub fn reset_each(
        &mut self,
        restarts: &[Restart],
        options: &ResetOptions,
    ) -> Result<(), BatchError> {
        if restarts.len() != self.len() {
            return Err(BatchError::Count {
                got: restarts.len(),
                want: self.len(),
            });
        }
        refuse_options(options).map_err(BatchError::Option)?;
        for (cart, restart) in restarts.iter().enumerate() {
            match *restart {
                Restart::Leave => continue,
                Restart::GoOn => {}
                Restart::Seeded(seed) => self.rngs[cart] = crate::Rng::seed_from_u64(seed),
            }
            self.begin(cart);
        }
        Ok(())
    }

    /// Steps each cart: level 0 pushes left, 1 right. Results stand in the buffers below; nothing is
    /// allocated.
    ///
    /// # Errors
    /// `Length` for a number of levels other than that of the carts; `Environment` with `StepBeforeReset`,
    /// `EpisodeOver` if one has ended and there is no autoreset, or `Action` for a level above 1. Nothing is
    /// changed then.
    pub fn step(&mut self, levels: &[Level]) -> Result<(), BatchError> {
        self.check(levels)?;
        self.advance(levels);
        if self.spec.autoreset == Autoreset::NextStep {
            self.undo_ended();
        }
        for cart in 0..self.x.len() {
            self.is_over[cart] = self.terminated[cart] | self.truncated[cart];
        }
        if self.spec.autoreset == Autoreset::SameStep {
            self.restart_ended();
        }
        Ok(())
    }

    /// Number of carts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.x.len()
    }

    /// Whether there are no carts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.x.is_empty()
    }

    /// Position, velocity, angle and angular velocity of each cart (m, m/s, rad, rad/s).
    #[must_use]
    pub fn observations(&self) -> &[[f32; 4]] {
        &self.observations
    }

    /// What can be seen and done in each cart.
    #[must_use]
    pub fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// Whether an episode was begun in a cart.
    #[must_use]
    pub fn has_begun(&self, cart: usize) -> bool {
        self.has_begun[cart]
    }

    /// What a cart shows, as [`CartPole`] does.
    #[must_use]
    pub fn observation(&self, cart: usize) -> Observation {
        observe(&self.spec, self.observations[cart])
    }

    /// Whether a cart's episode has ended in the last step and the next was begun in it.
    #[must_use]
    pub fn has_final_observation(&self, cart: usize) -> bool {
        let has_ended = self.terminated[cart] | self.truncated[cart];
        has_ended && self.spec.autoreset == Autoreset::SameStep
    }

    /// The last observation of a cart's episode, where `observation` is already the next one's first.
    #[must_use]
    pub fn final_observation(&self, cart: usize) -> Option<Observation> {
        self.has_final_observation(cart)
            .then(|| observe(&self.spec, self.final_observations[cart]))
    }

    /// Under `SameStep`, the last observation of each cart's episode that has ended last.
    #[must_use]
    pub fn final_observations(&self) -> &[[f32; 4]] {
        &self.final_observations
    }

    /// Reward of the last step: 1, or 0 in a step that only resets.
    #[must_use]
    pub fn rewards(&self) -> &[f32] {
        &self.rewards
    }

    /// Whether the pole fell or the cart left the track in the last step.
    #[must_use]
    pub fn terminated(&self) -> &[bool] {
        &self.terminated
    }

    /// Whether the episode was cut at its 500th step.
    #[must_use]
    pub fn truncated(&self) -> &[bool] {
        &self.truncated
    }

    fn check(&self, levels: &[Level]) -> Result<(), BatchError> {
        let refuse = |environment, source| {
            Err(BatchError::Environment {
                environment,
                source,
            })
        };
        if let Some(cart) = self.has_begun.iter().position(|begun| !begun) {
            return refuse(cart, EnvError::StepBeforeReset);
        }
        if levels.len() != self.len() {
            return Err(BatchError::Length {
                got: levels.len(),
                want: self.len(),
            });
        }
        if let Some(cart) = levels.iter().position(|level| *level > 1) {
            let no_such_level = ActionError::NoSuchLevel {
                row: "cart".to_owned(),
                head: "push".to_owned(),
                level: levels[cart],
                last: 1,
            };
            return refuse(cart, EnvError::Action(no_such_level));
        }
        if self.spec.autoreset == Autoreset::Disabled
            && let Some(cart) = self.is_over.iter().position(|over| *over)
        {
            return refuse(cart, EnvError::EpisodeOver);
        }
        Ok(())
    }

    fn advance(&mut self, levels: &[Level]) {
        // Slices of one length: no index below is checked again.
        let carts = levels.len();
        let (x, x_dot) = (&mut self.x[..carts], &mut self.x_dot[..carts]);
        let (theta, theta_dot) = (&mut self.theta[..carts], &mut self.theta_dot[..carts]);
        for cart in 0..carts {
            let state = [x[cart], x_dot[cart], theta[cart], theta_dot[cart]];
            [x[cart], x_dot[cart], theta[cart], theta_dot[cart]] = dynamics(state, levels[cart]);
        }
        let steps = &mut self.steps[..carts];
        let (terminated, truncated) = (&mut self.terminated[..carts], &mut self.truncated[..carts]);
        let observations = &mut self.observations[..carts];
        for cart in 0..carts {
            let state = [x[cart], x_dot[cart], theta[cart], theta_dot[cart]];
            steps[cart] += 1;
            terminated[cart] = has_fallen(state);
            truncated[cart] = !terminated[cart] & (steps[cart] >= MAX_STEPS);
            observations[cart] = state.map(|value| value as f32);
        }
        self.rewards.fill(1.0);
    }

    /// Carts whose episode had already ended: the step is none for them, but a reset.
    fn undo_ended(&mut self) {
        for cart in 0..self.x.len() {
            if self.is_over[cart] {
                self.restart(cart);
                self.rewards[cart] = 0.0;
                (self.terminated[cart], self.truncated[cart]) = (false, false);
            }
        }
    }

    fn restart_ended(&mut self) {
        for cart in 0..self.x.len() {
            if self.is_over[cart] {
                self.final_observations[cart] = self.observations[cart];
                self.restart(cart);
            }
        }
    }

    /// Starts an episode that somebody asked for.
    fn begin(&mut self, cart: usize) {
        self.restart(cart);
        self.has_begun[cart] = true;
        self.rewards[cart] = 0.0;
        (self.terminated[cart], self.truncated[cart]) = (false, false);
    }

    fn restart(&mut self, cart: usize) {
        let state: State = draw_start(&mut self.rngs[cart]);
        [
            self.x[cart],
            self.x_dot[cart],
            self.theta[cart],
            self.theta_dot[cart],
        ] = state;
        self.steps[cart] = 0;
        self.is_over[cart] = false;
        self.observations[cart] = state.map(|value| value as f32);
    }
}

/// The generators of the carts, from the first on.
fn seeds(seed: u64) -> impl Iterator<Item = crate::Rng> {
    (0..).map(move |cart| crate::Rng::seed_from_u64(seed.wrapping_add(cart)))
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use rand::RngExt as _;

    use super::*;
    use crate::cartpole::CartPole;
    use crate::decision::JointAction;
    use crate::environment::{Environment as _, ResetOptions, Step};
    use crate::vector::AutoresetEnv;

    const CARTS: usize = 9;

    fn single(env: &mut AutoresetEnv<CartPole>, level: Level) -> Step {
        let action = JointAction {
            disks: Array2::from_elem((1, 1), level),
            devices: Array2::zeros((0, 0)),
        };
        env.step(&action).unwrap()
    }

    /// The angle decides, or mostly a coin: episodes that are cut and episodes that fall.
    fn choose(seen: [f32; 4], careless: bool, rng: &mut crate::Rng) -> Level {
        if careless && rng.random_range(0..4) != 0 {
            return rng.random_range(0..2);
        }
        Level::from(seen[2] + 0.5 * seen[3] + 0.05 * seen[0] + 0.1 * seen[1] > 0.0)
    }

    #[test]
    fn each_cart_plays_the_episodes_it_would_play_alone() {
        for mode in [Autoreset::NextStep, Autoreset::SameStep] {
            let mut batch = CartPoleBatch::new(CARTS, 0, mode);
            batch.reset(Some(7));
            let mut alone: Vec<_> = (0..CARTS as u64)
                .map(|cart| {
                    let mut env = AutoresetEnv::new(CartPole::new(0), mode);
                    env.reset(Some(7 + cart), &ResetOptions::new()).unwrap();
                    env
                })
                .collect();
            let mut rng = crate::Rng::seed_from_u64(1);
            let (mut falls, mut cuts) = (0, 0);
            for _ in 0..1200 {
                let levels: Vec<Level> = (0..CARTS)
                    .map(|cart| choose(batch.observations()[cart], cart % 2 == 0, &mut rng))
                    .collect();
                batch.step(&levels).unwrap();
                for (cart, env) in alone.iter_mut().enumerate() {
                    let step = single(env, levels[cart]);
                    let seen = step.observation.disks.values;
                    assert_eq!(seen.as_slice().unwrap(), batch.observations()[cart]);
                    assert_eq!(step.rewards.total[0], batch.rewards()[cart]);
                    let ends = (batch.terminated()[cart], batch.truncated()[cart]);
                    assert_eq!((step.terminated, step.truncated), ends);
                    falls += u32::from(step.terminated);
                    cuts += u32::from(step.truncated);
                    if let Some(last) = step.final_observation {
                        let seen = last.disks.values;
                        assert_eq!(seen.as_slice().unwrap(), batch.final_observations()[cart]);
                    }
                }
            }
            assert!(falls > 5 && cuts > 5, "{falls} {cuts}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let mut batch = CartPoleBatch::new(2, 3, Autoreset::Disabled);
        let refused = batch.step(&[0, 0]).unwrap_err();
        let before_reset = |error: &BatchError| {
            matches!(
                error,
                BatchError::Environment {
                    environment: 0,
                    source: EnvError::StepBeforeReset
                }
            )
        };
        assert!(before_reset(&refused), "{refused}");
        batch.reset(None);
        let before = batch.observations().to_vec();
        for levels in [&[0][..], &[0, 0, 0]] {
            let refused = batch.step(levels).unwrap_err();
            assert!(
                matches!(refused, BatchError::Length { want: 2, .. }),
                "{refused}"
            );
        }
        let refused = batch.step(&[0, 2]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "environment 1: cart: push = 2 is not a level; it has 0 to 1"
        );
        assert_eq!(batch.observations(), before);
        while !batch.terminated().contains(&true) {
            batch.step(&[1, 1]).unwrap();
        }
        let refused = batch.step(&[1, 1]).unwrap_err();
        assert!(matches!(
            refused,
            BatchError::Environment {
                source: EnvError::EpisodeOver,
                ..
            }
        ));
    }

    #[test]
    fn a_cart_that_has_ended_is_reset_while_the_others_go_on() {
        let mut batch = CartPoleBatch::new(2, 3, Autoreset::Disabled);
        let none = ResetOptions::new();
        let begin = [Restart::Seeded(5), Restart::Leave];
        batch.reset_each(&begin, &none).unwrap();
        assert!(batch.has_begun(0) && !batch.has_begun(1));
        batch
            .reset_each(&[Restart::Leave, Restart::GoOn], &none)
            .unwrap();
        let mut alone = CartPole::new(4);
        let first = alone.reset(None, &none).unwrap();
        assert_eq!(batch.observation(1), first);
        while !batch.terminated()[0] {
            batch
                .step(&[1, u16::from(batch.observations()[1][2] > 0.0)])
                .unwrap();
        }
        let other = batch.observations()[1];
        batch
            .reset_each(&[Restart::GoOn, Restart::Leave], &none)
            .unwrap();
        assert_eq!(batch.observations()[1], other);
        batch.step(&[0, 0]).unwrap();
    }

    #[test]
    fn a_clone_goes_on_as_the_original_does() {
        let mut batch = CartPoleBatch::new(3, 1, Autoreset::SameStep);
        batch.reset(Some(1));
        batch.step(&[0, 1, 0]).unwrap();
        let mut fork = batch.clone();
        for _ in 0..60 {
            for carts in [&mut batch, &mut fork] {
                carts.step(&[1, 0, 1]).unwrap();
            }
            assert_eq!(batch.observations(), fork.observations());
            assert_eq!(batch.terminated(), fork.terminated());
        }
    }
}
