//! What is remembered of played host-steps, and what it was worth.

use blkpilot_env::EnvSpec;
use blkpilot_models::normaliser::{Normaliser, PerTable, Statistics};
use serde::{Deserialize, Serialize};
use tch::{Kind, no_grad};

use crate::LearnError;
use crate::gae::{Discount, advantages};
use crate::network::Network;
use crate::turns::Turns;

/// An episode that ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpisodeEnd {
    /// Sum over its steps of the host mean of the own rewards; a step in which no disk counts adds 0.
    pub episodic_return: f64,
    /// Its steps.
    pub steps: u32,
}

/// Turns with the levels drawn in them.
#[derive(Debug)]
pub struct Samples {
    /// What was seen; S rows.
    pub turns: Turns,
    /// The levels drawn; `[S, heads]`.
    pub levels: Vec<i64>,
    /// Log-probability of the levels under the policy that drew them, forced heads left out; `[S]`.
    pub log_probs: Vec<f32>,
}

/// What is remembered of some host-steps in each environment.
#[derive(Debug)]
pub struct Rollout {
    /// Turns of disks.
    pub disks: Samples,
    /// Turns of devices.
    pub devices: Samples,
    /// Episodes that ended.
    pub episodes: Vec<EpisodeEnd>,
    /// Host-steps played, over all environments.
    pub env_steps: u64,
    /// What the network was shown.
    pub seen: Statistics,
    /// Per environment its host-steps in order.
    pub(crate) tracks: Vec<Vec<HostStep>>,
    /// What follows where a track is cut, one row per disk.
    pub(crate) bootstraps: Turns,
}

/// One host-step of one environment.
#[derive(Debug)]
pub(crate) struct HostStep {
    /// Row in `Rollout::disks` of each disk.
    pub(crate) disk_rows: Vec<usize>,
    /// Row in `Rollout::devices` of each device that decided.
    pub(crate) device_rows: Vec<usize>,
    pub(crate) rewards: Vec<f32>,
    pub(crate) counted: Vec<bool>,
    pub(crate) disk_device: Vec<usize>,
    pub(crate) disk_group: Vec<Option<usize>>,
    pub(crate) tail: Tail,
    /// Whether its episode began with it; what only the rollout cuts goes on.
    pub(crate) begins_episode: bool,
}

/// Rewards of one environment, per host-step and disk; 0 where a disk does not count.
pub(crate) type Rewards = Vec<Vec<f32>>;

/// What comes after a host-step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tail {
    /// The next one of the track.
    Next,
    /// Nothing: the episode terminated.
    Terminated,
    /// Something that is not in the track: an episode that was truncated, or the end of the rollout.
    /// Its value per disk is that of the rows from here on in `Rollout::bootstraps`.
    Cut(usize),
}

/// What a rollout was worth, per sample.
#[derive(Debug)]
pub struct Estimates {
    /// Value of each disk's turn; `[S]`.
    pub values: Vec<f32>,
    /// Value plus the disk's own advantage: what the critic should have said; `[S]`.
    pub returns: Vec<f32>,
    /// What each disk's turn is credited with: the mean advantage of the disks on its IOThread; `[S]`.
    pub disk_advantages: Vec<f32>,
    /// Whether a disk's turn teaches the policy: a head had a choice and a credited disk counted; `[S]`.
    pub disk_weights: Vec<bool>,
    /// What each device's turn is credited with: the mean advantage of its disks.
    pub device_advantages: Vec<f32>,
    /// Whether a device's turn teaches the policy.
    pub device_weights: Vec<bool>,
}

impl Samples {
    fn new(turns: Turns) -> Self {
        Self {
            turns,
            levels: Vec::new(),
            log_probs: Vec::new(),
        }
    }
}

impl Rollout {
    pub(crate) fn empty(spec: &EnvSpec, normalisers: &PerTable<Normaliser>, envs: usize) -> Self {
        Self {
            disks: Samples::new(Turns::of_disks(spec, normalisers)),
            devices: Samples::new(Turns::of_devices(spec, normalisers)),
            episodes: Vec::new(),
            env_steps: 0,
            seen: Statistics::new(spec),
            tracks: (0..envs).map(|_| Vec::new()).collect(),
            bootstraps: Turns::of_disks(spec, normalisers),
        }
    }

    /// Advantages per disk by GAE(λ) across time, with the network's values. A disk that does not
    /// count in a step has reward 0 there.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn estimate(&self, network: &Network, discount: Discount) -> Result<Estimates, LearnError> {
        self.estimate_from(&self.rewards(), network, discount)
    }

    /// As [`Rollout::estimate`], with other rewards than those that were paid, per environment.
    pub(crate) fn estimate_from(
        &self,
        rewards: &[Rewards],
        network: &Network,
        discount: Discount,
    ) -> Result<Estimates, LearnError> {
        let said = Said {
            values: values(network, &self.disks.turns)?,
            ahead: values_or_none(network, &self.bootstraps)?,
        };
        let mut own = vec![0.0; said.values.len()];
        for (track, mut rewards) in self.tracks.iter().zip(rewards.iter().map(Vec::as_slice)) {
            for episode in track.chunk_by(|step, _| matches!(step.tail, Tail::Next)) {
                let (of_episode, later) = rewards.split_at(episode.len());
                estimate_episode(episode, of_episode, &said, discount, &mut own);
                rewards = later;
            }
        }
        let values = said.values;
        let returns = values
            .iter()
            .zip(&own)
            .map(|(value, advantage)| value + advantage)
            .collect();
        let mut estimates = Estimates {
            disk_advantages: vec![0.0; values.len()],
            disk_weights: vec![false; values.len()],
            device_advantages: vec![0.0; self.devices.turns.len()],
            device_weights: vec![false; self.devices.turns.len()],
            values,
            returns,
        };
        for step in self.tracks.iter().flatten() {
            self.credit(step, &own, &mut estimates);
        }
        Ok(estimates)
    }

    /// What was paid, per environment.
    pub(crate) fn rewards(&self) -> Vec<Rewards> {
        let of_track =
            |track: &Vec<HostStep>| track.iter().map(HostStep::counted_rewards).collect();
        self.tracks.iter().map(of_track).collect()
    }

    /// Credits each turn with the mean advantage of the disks it decides for: those on one IOThread
    /// share its choices and its time, those on one device its scheduler.
    fn credit(&self, step: &HostStep, own: &[f32], estimates: &mut Estimates) {
        for (disk, &row) in step.disk_rows.iter().enumerate() {
            let group = step.disk_group.get(disk).copied().flatten();
            let shares = |other: usize| {
                other == disk || (group.is_some() && step.disk_group[other] == group)
            };
            if let Some(mean) = step.mean_advantage(own, shares) {
                estimates.disk_advantages[row] = mean;
                estimates.disk_weights[row] = self.disks.turns.has_choice(row);
            }
        }
        for (device, &row) in step.device_rows.iter().enumerate() {
            if let Some(mean) = step.mean_advantage(own, |disk| step.disk_device[disk] == device) {
                estimates.device_advantages[row] = mean;
                estimates.device_weights[row] = self.devices.turns.has_choice(row);
            }
        }
    }
}

impl HostStep {
    fn counted_rewards(&self) -> Vec<f32> {
        let rewards = self.rewards.iter().zip(&self.counted);
        let of = |(reward, counts): (&f32, &bool)| if *counts { *reward } else { 0.0 };
        rewards.map(of).collect()
    }

    /// Mean advantage over those of the disks `of` that counted; `None` if none did.
    fn mean_advantage(&self, advantages: &[f32], of: impl Fn(usize) -> bool) -> Option<f32> {
        let counted = (0..self.disk_rows.len()).filter(|disk| self.counted[*disk] && of(*disk));
        let credited: Vec<f32> = counted
            .map(|disk| advantages[self.disk_rows[disk]])
            .collect();
        (!credited.is_empty()).then(|| credited.iter().sum::<f32>() / credited.len() as f32)
    }
}

/// What the critic says of a rollout.
struct Said {
    /// Of each disk's turn.
    values: Vec<f32>,
    /// Of each row of `Rollout::bootstraps`.
    ahead: Vec<f32>,
}

/// Writes the advantages of one stretch without an end inside to the rows of its samples. `rewards`: of its steps.
fn estimate_episode(
    steps: &[HostStep],
    rewards: &[Vec<f32>],
    said: &Said,
    discount: Discount,
    out: &mut [f32],
) {
    let Some(last) = steps.last() else { return };
    for disk in 0..last.disk_rows.len() {
        let rewards: Vec<f32> = rewards.iter().map(|of_step| of_step[disk]).collect();
        let tail = match last.tail {
            Tail::Cut(start) => said.ahead[start + disk],
            Tail::Terminated | Tail::Next => 0.0,
        };
        let own = steps.iter().map(|step| said.values[step.disk_rows[disk]]);
        let values: Vec<f32> = own.chain([tail]).collect();
        let advantages = advantages(&rewards, &values, discount)
            .expect("one value per step and one for the tail");
        for (step, advantage) in steps.iter().zip(advantages) {
            out[step.disk_rows[disk]] = advantage;
        }
    }
}

fn values(network: &Network, turns: &Turns) -> Result<Vec<f32>, LearnError> {
    let values = no_grad(|| {
        network
            .values(&turns.batch(0..turns.len())?)?
            .f_to_kind(Kind::Float)
    })?;
    Ok(Vec::try_from(values)?)
}

fn values_or_none(network: &Network, turns: &Turns) -> Result<Vec<f32>, LearnError> {
    if turns.is_empty() {
        Ok(Vec::new())
    } else {
        values(network, turns)
    }
}

#[cfg(test)]
mod tests;
