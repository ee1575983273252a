//! A simulated host under way: its scenario, its episode, and what the last interval showed, in
//! buffers that are kept from step to step.

use super::episode::Episode;
use super::scenario::{Scenario, ScenarioErrors};
use super::{Generator, presets};
use crate::decision::{JointAction, check_action_of_groups, group_leaders};
use crate::environment::{EnvError, ResetOptions, Rewards};
use crate::features::{SCHEDULERS, Terms, kvm_host_spec, observe_into, refresh};
use crate::observation::Observation;
use crate::reward::{RewardConfig, Weighting, score_into};
use crate::spec::EnvSpec;

/// Where the scenario of an episode comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    /// The same in each episode.
    Fixed(Scenario),
    /// Drawn anew for each episode.
    Generated(Generator),
}

impl Source {
    /// # Errors
    /// Everything that is wrong with the scenario or the generator.
    pub(super) fn validate(&self) -> Result<(), ScenarioErrors> {
        match self {
            Self::Fixed(scenario) => scenario.validate(),
            Self::Generated(generator) => generator.validate(),
        }
    }

    /// What is seen and done on its hosts.
    pub(super) fn spec(&self) -> EnvSpec {
        let schedulers = match self {
            Self::Fixed(scenario) => scenario.schedulers,
            Self::Generated(generator) => generator.schedulers,
        };
        if schedulers {
            kvm_host_spec(&SCHEDULERS.map(str::to_owned))
        } else {
            kvm_host_spec(&[])
        }
    }
}

/// What the page cache holds when an episode starts: reset option `page_cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Start {
    /// Nothing (`cold`, the default).
    #[default]
    Cold,
    /// At any time as much of each buffered disk as it would end up with (`warm`).
    Warm,
}

/// How episodes begin, by the options of a reset.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    start: Start,
    /// What is played in place of the source's scenario.
    scenario: Option<Scenario>,
}

impl Beginning {
    /// # Errors
    /// `Option` for one that is unknown or wrong.
    pub(super) fn from_options(rules: &Rules, options: &ResetOptions) -> Result<Self, EnvError> {
        let mut beginning = Self::default();
        for (name, value) in options {
            let refuse = |problem: String| EnvError::Option {
                name: name.clone(),
                value: value.clone(),
                problem,
            };
            match name.as_str() {
                "page_cache" => {
                    beginning.start = match value.as_str() {
                        "cold" => Start::Cold,
                        "warm" => Start::Warm,
                        _ => return Err(refuse("must be `cold` or `warm`".to_owned())),
                    };
                }
                "scenario" => {
                    let mut scenario = presets::by_name(value).ok_or_else(|| {
                        refuse(format!("is not one of {}", presets::NAMES.join(", ")))
                    })?;
                    scenario.schedulers = !rules.spec.device_heads.is_empty();
                    beginning.scenario = Some(scenario);
                }
                _ => {
                    return Err(refuse(
                        "the simulated host knows only the options `scenario` and `page_cache`"
                            .to_owned(),
                    ));
                }
            }
        }
        Ok(beginning)
    }
}

/// What is asked of a host: how it is seen and what it is paid.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) spec: EnvSpec,
    pub(super) reward: Weighting,
}

/// A host under way.
#[derive(Debug, Clone)]
pub(super) struct Simulation {
    source: Source,
    rng: crate::Rng,
    episode: Option<Episode>,
    /// What is paid for, and shown to be.
    reward: RewardConfig,
    /// What is to be from the next observation on.
    next_reward: Option<RewardConfig>,
    /// First disk of each disk's IOThread.
    leaders: Vec<usize>,
    /// What the last interval showed.
    pub(super) observation: Observation,
    /// What the last step earned.
    pub(super) rewards: Rewards,
}

impl Simulation {
    pub(super) fn new(source: Source, rng: crate::Rng) -> Self {
        Self {
            source,
            rng,
            episode: None,
            reward: RewardConfig::default(),
            next_reward: None,
            leaders: vec![],
            observation: Observation::default(),
            rewards: Rewards::default(),
        }
    }

    pub(super) fn reseed(&mut self, rng: crate::Rng) {
        self.rng = rng;
    }

    pub(super) fn rng(&self) -> &crate::Rng {
        &self.rng
    }

    /// Other weights from the next observation on: what was decided under those that were shown is paid by them.
    pub(super) fn set_reward(&mut self, reward: RewardConfig) {
        self.next_reward = Some(reward);
    }

    /// What the last observation shows.
    pub(super) fn reward(&self) -> &RewardConfig {
        &self.reward
    }

    /// `None` before the first reset.
    pub(super) fn episode(&self) -> Option<&Episode> {
        self.episode.as_ref()
    }

    /// Whether the episode has run its length.
    pub(super) fn is_over(&self) -> bool {
        let is_over = |episode: &Episode| episode.step >= episode.scenario.steps;
        self.episode.as_ref().is_some_and(is_over)
    }

    /// Starts an episode. The first window after it holds the transient of the baseline: it is
    /// discarded.
    pub(super) fn reset(&mut self, rules: &Rules, beginning: &Beginning) {
        let scenario = self.draw_scenario(beginning);
        let mut episode = Episode::start(scenario, &mut self.rng);
        if beginning.start == Start::Warm {
            episode.keep_page_cache_warm();
        }
        episode.run_interval(&mut self.rng);
        episode.run_interval(&mut self.rng);
        self.reward = rules.reward.draw(&mut self.rng);
        self.next_reward = None;
        let terms = Terms {
            interval: episode.interval(),
            reward: &self.reward,
        };
        observe_into(&rules.spec, &episode.window, terms, &mut self.observation);
        self.leaders = group_leaders(&self.observation.disk_group);
        self.episode = Some(episode);
    }

    /// What is drawn is drawn in any case, so that the numbers after it do not depend on the options.
    fn draw_scenario(&mut self, beginning: &Beginning) -> Scenario {
        let drawn = match &self.source {
            Source::Fixed(scenario) => scenario.clone(),
            Source::Generated(generator) => generator.draw(&mut self.rng),
        };
        beginning.scenario.clone().unwrap_or(drawn)
    }

    /// Whether an action can be taken now.
    pub(super) fn check(&self, rules: &Rules, action: &JointAction) -> Result<(), EnvError> {
        if self.episode.is_none() {
            return Err(EnvError::StepBeforeReset);
        }
        if self.is_over() {
            return Err(EnvError::EpisodeOver);
        }
        check_action_of_groups(&rules.spec, &self.observation, &self.leaders, action)?;
        Ok(())
    }

    /// Takes an action that [`Simulation::check`] has passed, lets an interval go by, and brings the
    /// observation and the rewards up to date. Writes the levels that took effect into `executed`.
    pub(super) fn step(&mut self, action: &JointAction, executed: &mut JointAction) {
        let episode = self.episode.as_mut().expect("check has seen an episode");
        episode.apply(action);
        executed.copy_from(action);
        episode.write_executed(executed);
        episode.run_interval(&mut self.rng);
        episode.step += 1;
        score_into(&episode.window, &self.reward, &mut self.rewards);
        self.reward = self.next_reward.take().unwrap_or(self.reward);
        let terms = Terms {
            interval: episode.interval(),
            reward: &self.reward,
        };
        refresh(&episode.window, terms, &mut self.observation);
    }
}
