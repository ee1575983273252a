//! The oracle and the best static setting as policies.

use blkpilot_env::{EnvSpec, JointAction, Observation, Rng, Turn, TurnView};

use super::knobs::Setting;
use super::phases::PhaseVector;
use super::planner::{Moment, Planner};
use crate::policy::{Choice, Policy, PolicyError};

/// Which phase vector an oracle sees when it decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// That of the interval to come.
    Next,
    /// That of the interval before, as a policy does.
    Last,
}

/// The oracle's rule as a policy, on an episode whose path of phases is given.
pub struct OraclePolicy<'a> {
    planner: &'a mut Planner,
    path: &'a [PhaseVector],
    sight: Sight,
    step: usize,
    planned: JointAction,
}

impl<'a> OraclePolicy<'a> {
    /// `path`: the phase vector at the reset, then that of each interval.
    #[must_use]
    pub fn new(planner: &'a mut Planner, path: &'a [PhaseVector], sight: Sight) -> Self {
        Self {
            planner,
            path,
            sight,
            step: 0,
            planned: JointAction::default(),
        }
    }

    fn plan(&mut self, obs: &Observation) -> Result<Setting, PolicyError> {
        let seen = match self.sight {
            Sight::Next => self.step + 1,
            Sight::Last => self.step,
        };
        let failed = |reason: String| PolicyError::Planning {
            policy: self.sight.name().to_owned(),
            reason,
        };
        let phases = self
            .path
            .get(seen)
            .ok_or_else(|| failed(format!("the path of phases ends before interval {seen}")))?;
        let moment = Moment {
            phases: phases.clone(),
            current: self.planner.values().knobs().read(&obs.current),
            left: (self.path.len() - 1).saturating_sub(self.step) as u32,
        };
        let planned = self.planner.best_change(&moment);
        planned.map_err(|error| PolicyError::Planning {
            policy: self.sight.name().to_owned(),
            reason: error.to_string(),
        })
    }
}

impl Sight {
    /// Name of the oracle with this sight, in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Next => "oracle",
            Self::Last => "lagged_oracle",
        }
    }
}

impl Policy for OraclePolicy<'_> {
    fn name(&self) -> &str {
        self.sight.name()
    }

    fn begin(&mut self, _: &EnvSpec, obs: &Observation) -> Result<(), PolicyError> {
        let setting = self.plan(obs)?;
        self.planned = self.planner.values().knobs().write(&setting);
        self.step += 1;
        Ok(())
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        Ok(planned_choice(&self.planned, view))
    }

    fn reset(&mut self) {
        self.step = 0;
    }
}

/// Holds one joint action.
#[derive(Debug, Clone)]
pub struct StaticPolicy {
    name: &'static str,
    action: JointAction,
}

impl StaticPolicy {
    /// Holds `action` from the first interval on.
    #[must_use]
    pub fn new(name: &'static str, action: JointAction) -> Self {
        Self { name, action }
    }
}

impl Policy for StaticPolicy {
    fn name(&self) -> &str {
        self.name
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        Ok(planned_choice(&self.action, view))
    }
}

/// What a joint action says in one turn; heads without a choice keep what they must.
fn planned_choice(action: &JointAction, view: &TurnView<'_>) -> Choice {
    let row = match view.turn {
        Turn::Disk(disk) => action.disks.row(disk),
        Turn::Device(device) => action.devices.row(device),
    };
    let level = |head: usize| view.forced(head).unwrap_or(row[head]);
    Choice::certain((0..view.heads.len()).map(level).collect())
}
