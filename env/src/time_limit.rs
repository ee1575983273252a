//! Episodes of a length that whoever plays them chooses (Gymnasium's `TimeLimit`).

use std::num::NonZeroU32;

use crate::decision::JointAction;
use crate::environment::{EnvError, Environment, ResetOptions, Step};
use crate::observation::Observation;
use crate::spec::EnvSpec;

/// Truncates each episode after a number of steps, unless it ends before. For what has no end of its own, such as
/// a live host.
#[derive(Debug)]
pub struct TimeLimit<E> {
    inner: E,
    steps: NonZeroU32,
    /// Left in this episode; `None` before the first, 0 when it is over.
    left: Option<u32>,
}

impl<E: Environment> TimeLimit<E> {
    /// Wraps `inner`, whose own mode must be `Autoreset::Disabled`.
    pub fn new(inner: E, steps: NonZeroU32) -> Self {
        Self {
            inner,
            steps,
            left: None,
        }
    }

    /// The environment inside.
    pub fn inner(&self) -> &E {
        &self.inner
    }
}

impl<E: Environment> Environment for TimeLimit<E> {
    fn spec(&self) -> &EnvSpec {
        self.inner.spec()
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        let observation = self.inner.reset(seed, options)?;
        self.left = Some(self.steps.get());
        Ok(observation)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let left = self.left.ok_or(EnvError::StepBeforeReset)?;
        if left == 0 {
            return Err(EnvError::EpisodeOver);
        }
        let mut step = self.inner.step(action)?;
        let left = left - 1;
        step.truncated |= left == 0 && !step.terminated;
        self.left = Some(if step.is_last() { 0 } else { left });
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cartpole::CartPole;
    use crate::conformance::{Demands, check};
    use crate::sim::{SimHost, presets};
    use crate::spec::Autoreset;
    use crate::vector::AutoresetEnv;

    const DEMANDS: Demands = Demands {
        is_deterministic: true,
        steps: 40,
    };

    fn limited<E: Environment>(inner: E, steps: u32) -> TimeLimit<E> {
        TimeLimit::new(inner, NonZeroU32::new(steps).unwrap())
    }

    fn host() -> SimHost {
        SimHost::fixed(presets::by_name("mixed").unwrap()).unwrap()
    }

    #[test]
    fn it_conforms() {
        check(|| limited(host(), 7), DEMANDS).unwrap();
        let autoreset = |env| AutoresetEnv::new(env, Autoreset::SameStep);
        check(|| autoreset(limited(host(), 7)), DEMANDS).unwrap();
    }

    #[test]
    fn an_episode_is_cut_at_the_limit_and_not_ended() {
        let mut env = limited(host(), 3);
        for _ in 0..2 {
            let seen = env.reset(Some(1), &ResetOptions::new()).unwrap();
            let ends: Vec<(bool, bool)> = (0..3)
                .map(|_| env.step(&seen.current).unwrap())
                .map(|step| (step.terminated, step.truncated))
                .collect();
            assert_eq!(ends, [(false, false), (false, false), (false, true)]);
            let after = env.step(&seen.current);
            assert!(matches!(after, Err(EnvError::EpisodeOver)));
        }
    }

    /// A pole that falls in the last step that it was given has fallen.
    #[test]
    fn an_episode_that_ends_by_itself_is_not_cut() {
        let falls = |limit| {
            let mut env = limited(CartPole::new(5), limit);
            let mut seen = env.reset(Some(5), &ResetOptions::new()).unwrap();
            for taken in 1.. {
                let mut push = seen.current.clone();
                push.disks.fill(1);
                let step = env.step(&push).unwrap();
                if step.is_last() {
                    return (taken, step.terminated, step.truncated);
                }
                seen = step.observation;
            }
            unreachable!("a pole that is always pushed to one side falls");
        };
        let (taken, terminated, truncated) = falls(100);
        assert!(terminated && !truncated && taken < 100);
        assert_eq!(falls(taken), (taken, true, false));
        assert_eq!(falls(taken - 1), (taken - 1, false, true));
    }
}
