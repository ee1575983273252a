//! Autoreset: what happens when an environment is stepped beyond the end of its episode.

use crate::decision::JointAction;
use crate::environment::{EnvError, Environment, ResetOptions, Rewards, Step};
use crate::observation::Observation;
use crate::spec::{Autoreset, EnvSpec};

/// Adds an autoreset mode to an environment that has none.
#[derive(Debug)]
pub struct AutoresetEnv<E> {
    inner: E,
    spec: EnvSpec,
    /// The levels in force when the episode ended, while a reset is due.
    ended_with: Option<JointAction>,
}

impl<E: Environment> AutoresetEnv<E> {
    /// Wraps `inner`, whose own mode must be `Disabled`.
    pub fn new(inner: E, mode: Autoreset) -> Self {
        let spec = EnvSpec {
            autoreset: mode,
            ..inner.spec().clone()
        };
        Self {
            inner,
            spec,
            ended_with: None,
        }
    }

    /// The environment inside.
    pub fn inner(&self) -> &E {
        &self.inner
    }

    /// The environment inside, on its own again.
    pub fn into_inner(self) -> E {
        self.inner
    }

    /// A step that only resets: its action is ignored, and none of the disks that were acted on
    /// counts.
    fn reset_step(&mut self, ended_with: JointAction) -> Result<Step, EnvError> {
        let observation = self.inner.reset(None, &ResetOptions::new())?;
        let (disks, terms) = (ended_with.disks.nrows(), self.spec.reward_terms.len());
        Ok(Step {
            rewards: Rewards {
                total: ndarray::Array1::zeros(disks),
                own: ndarray::Array1::zeros(disks),
                terms: ndarray::Array2::zeros((disks, terms)),
                counted: vec![false; disks],
            },
            executed: ended_with,
            observation,
            terminated: false,
            truncated: false,
            final_observation: None,
        })
    }
}

impl<E: Environment> Environment for AutoresetEnv<E> {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        self.ended_with = None;
        self.inner.reset(seed, options)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        if let Some(ended_with) = self.ended_with.take() {
            return self.reset_step(ended_with);
        }
        let mut step = self.inner.step(action)?;
        if step.is_last() {
            match self.spec.autoreset {
                Autoreset::Disabled => {}
                Autoreset::NextStep => self.ended_with = Some(step.observation.current.clone()),
                Autoreset::SameStep => {
                    let first = self.inner.reset(None, &ResetOptions::new())?;
                    let last = std::mem::replace(&mut step.observation, first);
                    step.final_observation = Some(Box::new(last));
                }
            }
        }
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::cartpole::CartPole;

    fn push_right() -> JointAction {
        JointAction {
            disks: Array2::ones((1, 1)),
            devices: Array2::zeros((0, 0)),
        }
    }

    fn run_to_the_end(mode: Autoreset) -> (AutoresetEnv<CartPole>, Step) {
        let mut env = AutoresetEnv::new(CartPole::new(5), mode);
        env.reset(Some(5), &ResetOptions::new()).unwrap();
        let last = loop {
            let step = env.step(&push_right()).unwrap();
            if step.is_last() {
                break step;
            }
        };
        (env, last)
    }

    #[test]
    fn same_step_shows_the_new_episode_and_keeps_the_last_observation() {
        let (mut env, last) = run_to_the_end(Autoreset::SameStep);
        assert!(last.final_observation.unwrap().disks.values[[0, 2]].abs() > 0.2);
        assert!(last.observation.disks.values[[0, 2]].abs() <= 0.05);
        env.step(&push_right()).unwrap();
    }

    #[test]
    fn next_step_ignores_its_action_and_earns_nothing() {
        let (mut env, last) = run_to_the_end(Autoreset::NextStep);
        assert!(last.final_observation.is_none());
        let reset = env.step(&push_right()).unwrap();
        assert_eq!(reset.rewards.total[0], 0.0);
        assert!(!reset.rewards.counted[0]);
        assert!(reset.observation.disks.values[[0, 2]].abs() <= 0.05);
    }

    #[test]
    fn disabled_refuses_to_go_on() {
        let (mut env, _) = run_to_the_end(Autoreset::Disabled);
        assert!(matches!(
            env.step(&push_right()),
            Err(EnvError::EpisodeOver)
        ));
    }
}
