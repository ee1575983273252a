//! What stands behind one resource: one or many environments of a kind, reset and stepped together.

use blkpilot_env::cartpole::CartPoleBatch;
use blkpilot_env::sim::SimBatch;
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{
    BatchError, EnvError, EnvSpec, Environment, JointAction, Level, Observation, ResetOptions,
    Restart, Rewards, Step,
};
use ndarray::{Array1, Array2};

use super::hosted::HostedEnvironment;
use super::packed;

/// One or many environments of a kind.
#[derive(Debug)]
pub enum Vector {
    /// Simulated hosts.
    Sim(Box<SimBatch>),
    /// Carts with their poles.
    Carts {
        /// The carts.
        carts: Box<CartPoleBatch>,
        /// The levels of the last step.
        levels: Vec<Level>,
    },
    /// A managed host.
    Host(Box<Hosted>),
    /// What can be seen on a managed host on which somebody else acts.
    Observer(Box<EnvSpec>),
}

/// A managed host with what its last call has shown.
#[derive(Debug)]
pub struct Hosted {
    env: AutoresetEnv<HostedEnvironment>,
    /// `None` before the first reset.
    last: Option<Step>,
}

impl Hosted {
    /// A host before its first reset.
    #[must_use]
    pub fn new(env: AutoresetEnv<HostedEnvironment>) -> Self {
        Self { env, last: None }
    }

    /// What its last call has shown; after a reset, a step that nothing came of. `None` before the first.
    #[must_use]
    pub fn last(&self) -> Option<&Step> {
        self.last.as_ref()
    }

    fn reset(&mut self, restarts: &[Restart], options: &ResetOptions) -> Result<(), BatchError> {
        let [restart] = restarts else {
            return Err(BatchError::Count {
                got: restarts.len(),
                want: 1,
            });
        };
        let seed = match *restart {
            Restart::Leave => return Ok(()),
            Restart::GoOn => None,
            Restart::Seeded(seed) => Some(seed),
        };
        let observation = self.env.reset(seed, options).map_err(only)?;
        self.last = Some(Step {
            observation,
            rewards: Rewards::default(),
            executed: JointAction::default(),
            terminated: false,
            truncated: false,
            final_observation: None,
        });
        Ok(())
    }

    fn step(&mut self, levels: &[Level]) -> Result<(), BatchError> {
        let Some(last) = &self.last else {
            return Err(only(EnvError::StepBeforeReset));
        };
        let mut action = last.observation.current.clone();
        let want = action.disks.len() + action.devices.len();
        if levels.len() != want {
            let got = levels.len();
            return Err(BatchError::Length { got, want });
        }
        let cells = action.disks.iter_mut().chain(&mut action.devices);
        cells.zip(levels).for_each(|(cell, level)| *cell = *level);
        self.last = Some(self.env.step(&action).map_err(only)?);
        Ok(())
    }
}

/// What the only environment has refused.
fn only(source: EnvError) -> BatchError {
    BatchError::Environment {
        environment: 0,
        source,
    }
}

/// What one environment shows, where it is kept in full.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// After the step, or the reset.
    pub observation: &'a Observation,
    /// Of the last step.
    pub rewards: &'a Rewards,
    /// What took effect in it.
    pub executed: &'a JointAction,
    /// A terminal state was reached.
    pub terminated: bool,
    /// The episode was cut.
    pub truncated: bool,
    /// The last of the episode, under same-step.
    pub final_observation: Option<&'a Observation>,
}

impl Seen<'_> {
    fn to_step(self) -> Step {
        Step {
            observation: self.observation.clone(),
            rewards: self.rewards.clone(),
            executed: self.executed.clone(),
            terminated: self.terminated,
            truncated: self.truncated,
            final_observation: self.final_observation.cloned().map(Box::new),
        }
    }
}

impl Vector {
    /// Carts, of which none was stepped yet.
    #[must_use]
    pub fn carts(carts: CartPoleBatch) -> Self {
        let levels = vec![0; carts.len()];
        let carts = Box::new(carts);
        Self::Carts { carts, levels }
    }

    /// What can be seen and done in each.
    #[must_use]
    pub fn spec(&self) -> &EnvSpec {
        match self {
            Self::Sim(batch) => batch.spec(),
            Self::Carts { carts, .. } => carts.spec(),
            Self::Host(host) => host.env.spec(),
            Self::Observer(spec) => spec,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Sim(batch) => batch.hosts().len(),
            Self::Carts { carts, .. } => carts.len(),
            Self::Host(_) | Self::Observer(_) => 1,
        }
    }

    /// The same again, random numbers included; `None` of a managed host.
    #[must_use]
    pub fn fork(&self) -> Option<Self> {
        match self {
            Self::Sim(batch) => Some(Self::Sim(batch.clone())),
            Self::Carts { carts, levels } => Some(Self::Carts {
                carts: carts.clone(),
                levels: levels.clone(),
            }),
            Self::Host(_) | Self::Observer(_) => None,
        }
    }

    /// Starts episodes as `restarts` says, an entry per environment.
    ///
    /// # Errors
    /// As the environments; nothing is changed then.
    pub fn reset(
        &mut self,
        restarts: &[Restart],
        options: &ResetOptions,
    ) -> Result<(), BatchError> {
        match self {
            Self::Sim(batch) => batch.reset_each(restarts, options),
            Self::Carts { carts, .. } => carts.reset_each(restarts, options),
            Self::Host(host) => host.reset(restarts, options),
            Self::Observer(_) => Err(only(observes())),
        }
    }

    /// Steps all by their packed actions: of each the levels of its disks, row by row, then those of its devices.
    ///
    /// # Errors
    /// As the environments; nothing is changed then.
    pub fn step(&mut self, levels: &[Level]) -> Result<(), BatchError> {
        match self {
            Self::Sim(batch) => batch.step(levels),
            Self::Carts {
                carts,
                levels: last,
            } => {
                carts.step(levels)?;
                last.copy_from_slice(levels);
                Ok(())
            }
            Self::Host(host) => host.step(levels),
            Self::Observer(_) => Err(only(observes())),
        }
    }

    /// Writes joint actions, one per environment, one after another into `levels`.
    ///
    /// # Errors
    /// `Count`; `Environment` with `StepBeforeReset` or `Action` for the first whose shape does not fit.
    pub fn pack(&self, actions: &[JointAction], levels: &mut Vec<Level>) -> Result<(), BatchError> {
        if actions.len() != self.count() {
            return Err(BatchError::Count {
                got: actions.len(),
                want: self.count(),
            });
        }
        levels.clear();
        for (environment, action) in actions.iter().enumerate() {
            self.check_shape(environment, action)
                .map_err(|source| BatchError::Environment {
                    environment,
                    source,
                })?;
            levels.extend(action.disks.iter().chain(&action.devices));
        }
        Ok(())
    }

    fn check_shape(&self, environment: usize, action: &JointAction) -> Result<(), EnvError> {
        let rows = self.rows(environment).ok_or(EnvError::StepBeforeReset)?;
        packed::check_shape(self.spec(), rows, action)?;
        Ok(())
    }

    /// Disks and devices of an environment; `None` before its first reset.
    fn rows(&self, environment: usize) -> Option<(usize, usize)> {
        match self {
            Self::Carts { carts, .. } => carts.has_begun(environment).then_some((1, 0)),
            _ => {
                let observation = self.seen(environment)?.observation;
                Some((observation.disk_count(), observation.device_count()))
            }
        }
    }

    /// What an environment shows; `None` before its first reset, and of carts, which keep arrays.
    #[must_use]
    pub fn seen(&self, environment: usize) -> Option<Seen<'_>> {
        match self {
            Self::Sim(batch) => {
                let host = &batch.hosts()[environment];
                host.has_begun().then(|| Seen {
                    observation: host.observation(),
                    rewards: host.rewards(),
                    executed: host.executed(),
                    terminated: host.is_terminated(),
                    truncated: host.is_truncated(),
                    final_observation: host.final_observation(),
                })
            }
            Self::Host(host) => host.last().map(|step| Seen {
                observation: &step.observation,
                rewards: &step.rewards,
                executed: &step.executed,
                terminated: step.terminated,
                truncated: step.truncated,
                final_observation: step.final_observation.as_deref(),
            }),
            Self::Carts { .. } | Self::Observer(_) => None,
        }
    }

    /// What an environment shows now; without rows before its first reset.
    #[must_use]
    pub fn observation(&self, environment: usize) -> Observation {
        match self {
            Self::Carts { carts, .. } if carts.has_begun(environment) => {
                carts.observation(environment)
            }
            _ => self
                .seen(environment)
                .map_or_else(Observation::default, |seen| seen.observation.clone()),
        }
    }

    /// What came of the last step in an environment; `None` before its first reset.
    #[must_use]
    pub fn outcome(&self, environment: usize) -> Option<Step> {
        match self {
            Self::Carts { carts, levels } => Some(cart_step(carts, environment, levels)),
            _ => self.seen(environment).map(Seen::to_step),
        }
    }
}

fn cart_step(carts: &CartPoleBatch, cart: usize, levels: &[Level]) -> Step {
    let reward = carts.rewards()[cart];
    let one = Array1::from_elem(1, reward);
    Step {
        observation: carts.observation(cart),
        rewards: Rewards {
            total: one.clone(),
            own: one,
            terms: Array2::from_elem((1, 1), reward),
            counted: vec![has_counted(carts, cart)],
        },
        executed: JointAction {
            disks: Array2::from_elem((1, 1), executed_level(carts, cart, levels)),
            devices: Array2::zeros((0, 0)),
        },
        terminated: carts.terminated()[cart],
        truncated: carts.truncated()[cart],
        final_observation: carts.final_observation(cart).map(Box::new),
    }
}

/// A cart earns 1 in each step but one that only resets.
pub(crate) fn has_counted(carts: &CartPoleBatch, cart: usize) -> bool {
    carts.rewards()[cart] != 0.0
}

/// The level that took effect in the last step.
pub(crate) fn executed_level(carts: &CartPoleBatch, cart: usize, levels: &[Level]) -> Level {
    if has_counted(carts, cart) {
        levels[cart]
    } else {
        0
    }
}

fn observes() -> EnvError {
    EnvError::Host {
        message: "this environment only observes: create one with exclusive access to act"
            .to_owned(),
        source: None,
    }
}
