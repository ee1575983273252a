//! The live host as an [`Environment`].

use super::*;

impl Environment for LiveHost {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// Restores the baseline of all managed guests and lets one window pass. There is no randomness
    /// of ours, so a seed changes nothing.
    fn reset(
        &mut self,
        _seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        if let Some((name, value)) = options.iter().next() {
            let problem = "the live host has no options".to_owned();
            return Err(EnvError::Option {
                name: name.clone(),
                value: value.clone(),
                problem,
            });
        }
        self.rollback(&Scope::Settings)?;
        self.wait_interval();
        let before = self.sample()?;
        self.wait_interval();
        let sample = self.sample()?;
        let window = HostWindow::between(&before, &sample);
        let observation = self.seen(&window);
        self.episode = Some(Episode {
            step: 0,
            sample,
            observation: observation.clone(),
        });
        Ok(observation)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let episode = self.episode.take().ok_or(EnvError::StepBeforeReset)?;
        let result = self.step_from(&episode, action);
        // A refused action leaves the episode as it was.
        self.episode = Some(match &result {
            Ok((_, next)) => Episode {
                step: episode.step + 1,
                sample: next.clone(),
                observation: Observation::default(),
            },
            Err(_) => episode,
        });
        let (step, _) = result?;
        if let Some(episode) = &mut self.episode {
            episode.observation = step.observation.clone();
        }
        Ok(step)
    }
}

impl LiveHost {
    fn step_from(
        &mut self,
        episode: &Episode,
        action: &JointAction,
    ) -> Result<(Step, HostSample), EnvError> {
        if self
            .config
            .episode_steps
            .is_some_and(|steps| episode.step >= steps)
        {
            return Err(EnvError::EpisodeOver);
        }
        check_action(&self.spec, &episode.observation, action)?;
        let execution = self.apply(&episode.observation, action)?;
        self.wait_interval();
        let sample = self.sample()?;
        let window = HostWindow::between(&episode.sample, &sample);
        let step = Step {
            observation: self.seen(&window),
            rewards: score(&window, &self.config.reward),
            executed: execution.executed,
            terminated: false,
            truncated: self
                .config
                .episode_steps
                .is_some_and(|steps| episode.step + 1 >= steps),
            final_observation: None,
        };
        Ok((step, sample))
    }
}

impl From<HostError> for EnvError {
    fn from(error: HostError) -> Self {
        Self::Host {
            message: error.to_string(),
            source: Some(Box::new(error)),
        }
    }
}
