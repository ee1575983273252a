//! Episodes that can be written down while they are under way, and gone on with in another process.
//!
//! What is kept is not the state of a host, which would tie what is written to how a simulation is made, but where the
//! episode began and what was done since: it is played again up to there.

use serde::{Deserialize, Serialize};

use crate::decision::JointAction;
use crate::environment::{EnvError, Environment, Repeatable, ResetOptions, Step};
use crate::observation::Observation;
use crate::spec::EnvSpec;

/// How an episode began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begun {
    /// With a seed.
    Seed(u64),
    /// With what the random numbers had come to.
    Rng(Box<crate::Rng>),
}

/// An episode under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeState {
    /// How it began.
    pub begun: Begun,
    /// The options it began with.
    pub options: ResetOptions,
    /// What was done since, in order.
    pub actions: Vec<JointAction>,
}

/// An environment that remembers its episode.
#[derive(Debug)]
pub struct Recorded<E> {
    inner: E,
    state: Option<EpisodeState>,
}

impl<E: Repeatable> Recorded<E> {
    /// Remembers from the next reset on.
    pub fn new(inner: E) -> Self {
        Self { inner, state: None }
    }

    /// Goes on with an episode, in an environment that is made as the one was in which it was under way; with what is
    /// seen now.
    ///
    /// # Errors
    /// The environment's: it is not made as that one was.
    pub fn resume(inner: E, state: &EpisodeState) -> Result<(Self, Observation), EnvError> {
        let mut recorded = Self::new(inner);
        let seed = match &state.begun {
            Begun::Seed(seed) => Some(*seed),
            Begun::Rng(rng) => {
                recorded.inner.set_rng((**rng).clone());
                None
            }
        };
        let mut seen = recorded.reset(seed, &state.options)?;
        for action in &state.actions {
            seen = recorded.step(action)?.observation;
        }
        Ok((recorded, seen))
    }

    /// The environment inside.
    #[must_use]
    pub fn inner(&self) -> &E {
        &self.inner
    }

    /// The environment inside, on its own again.
    pub fn into_inner(self) -> E {
        self.inner
    }

    /// The episode under way; `None` before the first.
    #[must_use]
    pub fn state(&self) -> Option<&EpisodeState> {
        self.state.as_ref()
    }
}

impl<E: Repeatable> Environment for Recorded<E> {
    fn spec(&self) -> &EnvSpec {
        self.inner.spec()
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        let begun = match seed {
            Some(seed) => Begun::Seed(seed),
            None => Begun::Rng(Box::new(self.inner.rng().clone())),
        };
        let seen = self.inner.reset(seed, options)?;
        self.state = Some(EpisodeState {
            begun,
            options: options.clone(),
            actions: vec![],
        });
        Ok(seen)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let step = self.inner.step(action)?;
        if let Some(state) = &mut self.state {
            state.actions.push(action.clone());
        }
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cartpole::CartPole;
    use crate::sim::{Generator, SimHost};
    use crate::spec::Autoreset;
    use crate::vector::AutoresetEnv;

    /// The levels in force, or for CartPole now left, now right.
    fn action(seen: &Observation, step: usize) -> JointAction {
        let mut action = seen.default.clone();
        let levels = action.disks.iter_mut();
        levels.enumerate().for_each(|(i, level)| {
            if seen.channel_count() == 0 {
                *level = ((i + step) % 2) as u16;
            }
        });
        action
    }

    fn assert_goes_on<E: Repeatable>(make: impl Fn() -> E) {
        let wrapped = |recorded| AutoresetEnv::new(recorded, Autoreset::SameStep);
        let mut env = wrapped(Recorded::new(make()));
        let mut seen = env.reset(Some(8), &ResetOptions::new()).unwrap();
        for step in 0..70 {
            seen = env.step(&action(&seen, step)).unwrap().observation;
        }
        let text = serde_json::to_string(env.inner().state().unwrap()).unwrap();
        let state: EpisodeState = serde_json::from_str(&text).unwrap();
        assert!(matches!(state.begun, Begun::Rng(_)), "a later episode");
        let (again, shown) = Recorded::resume(make(), &state).unwrap();
        assert_eq!(shown, seen);
        let mut again = wrapped(again);
        for step in 70..200 {
            let action = action(&seen, step);
            let [a, b] = [&mut env, &mut again].map(|env| env.step(&action).unwrap());
            assert_eq!(a.rewards, b.rewards);
            assert_eq!(a.observation, b.observation);
            seen = a.observation;
        }
    }

    #[test]
    fn an_episode_that_is_gone_on_with_is_the_same_and_so_are_those_after_it() {
        assert_goes_on(|| CartPole::new(0));
        assert_goes_on(|| SimHost::generated(Generator::default()).unwrap());
    }

    #[test]
    fn before_the_first_reset_there_is_nothing_to_write_down() {
        assert_eq!(Recorded::new(CartPole::new(0)).state(), None);
    }
}
