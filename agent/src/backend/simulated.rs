//! A simulated host behind the service.

use std::collections::BTreeMap;
use std::time::Duration;

use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sample::HostSample;
use blkpilot_env::sim::{Scenario, SimHost};
use blkpilot_env::{
    EnvError, EnvSpec, Environment as _, JointAction, MaskReason, Observation, ResetOptions,
};
use ndarray::s;

use super::modes::Modes;
use super::{BackendError, BackendKind, Execution, GuestStatus, HostBackend, Window};
use crate::config::GuestConfig;
use crate::config::mode::Knob;
use crate::wire::names::guest_of;

/// A simulated host that never ends. An action takes effect at once and is felt in the window that
/// follows.
#[derive(Debug)]
pub struct SimulatedHost {
    host: SimHost,
    guests: BTreeMap<String, GuestConfig>,
    /// What the last window showed.
    last: Observation,
    /// What will be in force in the next window.
    next: JointAction,
}

impl SimulatedHost {
    /// A host with this scenario, after its first window. It runs on: its episode is not cut. Guests
    /// have opted in, to all knobs, unless `guests` says otherwise.
    ///
    /// # Errors
    /// `Unavailable` if the scenario does not hold together: it has been checked before.
    pub fn open(
        scenario: Scenario,
        seed: u64,
        guests: BTreeMap<String, GuestConfig>,
    ) -> Result<Self, BackendError> {
        let scenario = Scenario {
            steps: MOST_STEPS,
            ..scenario
        };
        let mut host = SimHost::fixed(scenario).map_err(|e| unavailable(&EnvError::from(e)))?;
        let last = host
            .reset(Some(seed), &ResetOptions::new())
            .map_err(|e| unavailable(&e))?;
        let next = last.current.clone();
        Ok(Self {
            host,
            guests,
            last,
            next,
        })
    }

    fn has_opted_in(&self, guest: &str) -> bool {
        self.guests
            .get(guest)
            .and_then(|g| g.opt_in)
            .unwrap_or(true)
    }

    /// Closes what the guest has not opted in to.
    fn restrict(&self, observation: &mut Observation) {
        let heads = self.host.spec().disk_heads.clone();
        let channels = observation.channel_count();
        for (row, id) in observation.disk_ids.iter().enumerate() {
            let guest = guest_of(id);
            let mut start = 0;
            for head in &heads {
                let end = start + head.len(channels);
                if let Some(reason) = self.closed(guest, &head.name) {
                    let mut cells = observation.masks.disks.slice_mut(s![row, start..end]);
                    cells.fill(reason);
                }
                start = end;
            }
        }
    }

    fn closed(&self, guest: &str, head: &str) -> Option<MaskReason> {
        if !self.has_opted_in(guest) {
            return Some(MaskReason::NotOptedIn);
        }
        let knobs = self.guests.get(guest)?.knobs.as_ref()?;
        let is_open = knobs
            .iter()
            .map(|k: &Knob| k.name())
            .any(|open| open == head);
        (!is_open).then_some(MaskReason::NotEnabled)
    }
}

/// The most that a scenario may have; the host starts over then.
const MOST_STEPS: u32 = 1_000_000;

/// What can be seen and done on a scenario's host; `None` if the scenario does not hold together.
#[must_use]
pub fn spec(scenario: &Scenario) -> Option<EnvSpec> {
    let host = SimHost::fixed(scenario.clone()).ok()?;
    Some(host.spec().clone())
}

fn unavailable(error: &EnvError) -> BackendError {
    BackendError::Unavailable(format!("the simulated host failed: {error}"))
}

impl HostBackend for SimulatedHost {
    fn kind(&self) -> BackendKind {
        BackendKind::Simulated
    }

    fn spec(&self) -> &EnvSpec {
        self.host.spec()
    }

    fn first_window(&self) -> Duration {
        Duration::ZERO
    }

    /// No time passes between the windows of a simulated host.
    fn restart_window(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn observe(&mut self) -> Result<Window, BackendError> {
        let step = match self.host.step(&self.next) {
            Err(EnvError::EpisodeOver) => {
                self.last = self
                    .host
                    .reset(None, &ResetOptions::new())
                    .map_err(|e| unavailable(&e))?;
                self.next = self.last.current.clone();
                self.host.step(&self.next)
            }
            other => other,
        };
        let step = step.map_err(|e| unavailable(&e))?;
        self.last = step.observation.clone();
        self.next = step.observation.current.clone();
        let mut observation = step.observation;
        self.restrict(&mut observation);
        Ok(Window {
            observation,
            rewards: Some(step.rewards),
        })
    }

    fn sample(&self) -> &HostSample {
        self.host.sample().expect("`open` has reset the host")
    }

    fn set_modes(&mut self, modes: &Modes) {
        self.guests = modes.guests.clone();
    }

    fn set_reward(&mut self, reward: RewardConfig) {
        self.host.set_reward(reward);
    }

    fn reward(&self) -> RewardConfig {
        *self.host.reward()
    }

    fn guests(&self) -> Vec<GuestStatus> {
        let mut targets: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for id in &self.last.disk_ids {
            let target = id
                .rsplit_once('/')
                .map_or(id.as_str(), |(_, target)| target);
            targets
                .entry(guest_of(id))
                .or_default()
                .push(target.to_owned());
        }
        let status = |(name, targets): (&str, Vec<String>)| GuestStatus {
            name: name.to_owned(),
            opted_in: self.has_opted_in(name),
            mode: None,
            targets,
            problem: None,
            frozen: vec![],
            exploration: None,
        };
        targets.into_iter().map(status).collect()
    }

    fn apply(&mut self, _: &Observation, action: &JointAction) -> Result<Execution, BackendError> {
        self.next = action.clone();
        Ok(Execution {
            executed: action.clone(),
            failures: vec![],
            went_wrong: false,
        })
    }

    fn rollback(
        &mut self,
        observation: &Observation,
        guest: Option<&str>,
    ) -> Result<Execution, BackendError> {
        for (row, id) in observation.disk_ids.iter().enumerate() {
            if guest.is_none_or(|guest| guest == guest_of(id)) {
                self.next
                    .disks
                    .row_mut(row)
                    .assign(&self.last.default.disks.row(row));
            }
        }
        if guest.is_none() {
            self.next.devices.assign(&self.last.default.devices);
        }
        Ok(Execution {
            executed: self.next.clone(),
            failures: vec![],
            went_wrong: false,
        })
    }

    fn unfreeze(&mut self, guest: &str, knob: &str) -> Result<String, BackendError> {
        let problem = format!("guest {guest}: {knob} is not frozen: nobody else is here");
        Err(BackendError::Unavailable(problem))
    }
}
