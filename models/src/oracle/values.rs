//! Values of settings, each computed once.

use std::collections::HashMap;

use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::{Scenario, SimHost};
use blkpilot_env::{EnvSpec, Environment as _, Level, Observation, ResetOptions};

use super::OracleError;
use super::knobs::{Knobs, Setting};
use super::phases::is_active;
use super::steady::{MOST_BLOCKS, frozen, settle};

/// The values r(φ, a) of one scenario.
#[derive(Debug)]
pub struct Values {
    scenario: Scenario,
    reward: RewardConfig,
    spec: EnvSpec,
    first: Observation,
    knobs: Knobs,
    known: HashMap<Vec<usize>, HashMap<Setting, f64>>,
    evaluations: u64,
    unsettled: u64,
    most_blocks: u32,
}

impl Values {
    /// None known yet.
    ///
    /// # Errors
    /// If the scenario does not hold together.
    pub fn new(scenario: &Scenario, reward: RewardConfig) -> Result<Self, OracleError> {
        let mut host = SimHost::fixed(scenario.clone())?.with_reward(reward);
        let obs = host.reset(Some(0), &ResetOptions::new())?;
        Ok(Self {
            knobs: Knobs::new(host.spec(), &obs, scenario),
            spec: host.spec().clone(),
            first: obs,
            scenario: scenario.clone(),
            reward,
            known: HashMap::new(),
            evaluations: 0,
            unsettled: 0,
            most_blocks: MOST_BLOCKS,
        })
    }

    /// The same, with less patience with hosts that do not settle: so many blocks of four intervals.
    #[must_use]
    pub fn with_most_blocks(self, most_blocks: u32) -> Self {
        Self {
            most_blocks,
            ..self
        }
    }

    /// The scenario.
    #[must_use]
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// The weights of the reward.
    #[must_use]
    pub fn reward(&self) -> &RewardConfig {
        &self.reward
    }

    /// The spec of its host.
    #[must_use]
    pub fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// What its host shows first: names of disks and devices, masks.
    #[must_use]
    pub fn first_observation(&self) -> &Observation {
        &self.first
    }

    /// What can be set.
    #[must_use]
    pub fn knobs(&self) -> &Knobs {
        &self.knobs
    }

    /// Values computed so far, and how many of them had not settled.
    #[must_use]
    pub fn evaluations(&self) -> (u64, u64) {
        (self.evaluations, self.unsettled)
    }

    /// Disks that have something to do in a phase vector.
    #[must_use]
    pub fn active_disks(&self, phases: &[usize]) -> Vec<usize> {
        let disks = 0..self.scenario.disks.len();
        disks
            .filter(|disk| is_active(&self.scenario, phases, *disk))
            .collect()
    }

    /// Number of active disks that each knob affects.
    #[must_use]
    pub fn weights(&self, phases: &[usize]) -> Vec<f64> {
        let active = self.active_disks(phases);
        let count = |disks: &[usize]| disks.iter().filter(|disk| active.contains(disk)).count();
        self.knobs
            .list()
            .iter()
            .map(|knob| count(&knob.disks) as f64)
            .collect()
    }

    /// Per knob: whether it affects an active disk.
    #[must_use]
    pub fn active_knobs(&self, phases: &[usize]) -> Vec<bool> {
        self.weights(phases)
            .iter()
            .map(|weight| *weight > 0.0)
            .collect()
    }

    /// The cost of changing the knobs that differ, as the reward charges it to the host mean in the
    /// interval of the change.
    #[must_use]
    pub fn change_cost(&self, phases: &[usize], from: &[Level], to: &[Level]) -> f64 {
        let changed = from.iter().zip(to).zip(self.weights(phases));
        let disks: f64 = changed
            .filter(|((a, b), _)| a != b)
            .map(|(_, weight)| weight)
            .sum();
        self.reward.change * disks / self.active_disks(phases).len().max(1) as f64
    }

    /// r(φ, a), in reward per interval; 0 where every disk is idle.
    ///
    /// # Errors
    /// If the host refuses the setting.
    pub fn value(&mut self, phases: &[usize], setting: &[Level]) -> Result<f64, OracleError> {
        let setting = self.knobs.canonical(setting, &self.active_knobs(phases));
        if let Some(value) = self.known.get(phases).and_then(|own| own.get(&setting)) {
            return Ok(*value);
        }
        let action = self.knobs.write(&setting);
        let steady = settle(
            frozen(&self.scenario, phases, &action),
            &action,
            self.reward,
            self.most_blocks,
        )?;
        self.evaluations += 1;
        self.unsettled += u64::from(!steady.is_settled);
        let value = steady.host_mean.unwrap_or(0.0);
        self.known
            .entry(phases.to_vec())
            .or_default()
            .insert(setting, value);
        Ok(value)
    }

    /// What is known of a phase vector: settings, canonical, with their values, best first.
    #[must_use]
    pub fn ranked(&self, phases: &[usize]) -> Vec<(f64, Setting)> {
        let known = self.known.get(phases).into_iter().flatten();
        let mut ranked: Vec<(f64, Setting)> = known.map(|(s, v)| (*v, s.clone())).collect();
        ranked.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| x.cmp(y)));
        ranked
    }
}
