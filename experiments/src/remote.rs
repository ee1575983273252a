//! An environment at a service, and what was done to it.
//!
//! The lab never touches a host: a service does, with its opt-in, bounds, journal and guard. What the lab asks for
//! is asked as any client of `EnvironmentService` asks.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use blkpilot_agent::client::remote::{RemoteEnvironment, RemoteError, is_host_unavailable};
use blkpilot_agent::client::{ConnectError, TOKEN_VARIABLE, Target};
use blkpilot_env::observation::head_slice;
use blkpilot_env::time_limit::TimeLimit;
use blkpilot_env::{
    EnvError, EnvSpec, Environment, Head, JointAction, Level, MaskReason, Observation,
    ResetOptions, Rewards, Step,
};
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment::Kind;
use ndarray::{Array1, Array2};
use serde::Serialize;

use crate::config::{RemoteConfig, RemoteKind};
use crate::environments::Purpose;

/// How long a host that the service cannot reach is waited for, and between two tries.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_secs(1);

/// How often a host is asked to be put back before that is given up: a way back to direct waits for dirty pages.
const MOST_RESETS: u32 = 10;

/// An environment at a service; deleted there when this is dropped, which puts a host back.
#[derive(Debug)]
pub struct Remote {
    env: TimeLimit<RemoteEnvironment>,
    is_host: bool,
    purpose: Purpose,
    /// What was seen last; `None` before the first reset.
    seen: Option<Observation>,
    figures: RemoteFigures,
}

/// What was done at a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RemoteFigures {
    /// The service.
    pub address: String,
    /// What was played there: a host, a preset, or `cart_pole`.
    pub played: String,
    /// Steps.
    pub steps: u64,
    /// Episodes begun; each puts a host back first.
    pub episodes: u64,
    /// Levels of disks and devices that a step has changed.
    pub changes: u64,
    /// Levels that were asked for and not done: closed since they were offered, not possible, or not done yet.
    pub not_carried_out: u64,
    /// Levels that were no longer in force at the end of their window: undone by the guard, or changed by somebody.
    pub changed_back: u64,
    /// Episodes that ended since guests came or went.
    pub cut_short: u64,
    /// Episodes that ended since the service could not reach its host for a while.
    pub lost: u64,
    /// Whether everything was found put back at the end; `None` where there is nothing to put back.
    pub put_back: Option<bool>,
}

impl RemoteFigures {
    /// With what was done in another environment of the same run.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        Self {
            steps: self.steps + other.steps,
            episodes: self.episodes + other.episodes,
            changes: self.changes + other.changes,
            not_carried_out: self.not_carried_out + other.not_carried_out,
            changed_back: self.changed_back + other.changed_back,
            cut_short: self.cut_short + other.cut_short,
            lost: self.lost + other.lost,
            ..self
        }
    }
}

impl Remote {
    /// Creates it at the service. A host is taken over: until this is dropped the service decides nothing by
    /// itself, and refuses changes but a rollback. Where nothing may be changed, there is nothing to learn: its first
    /// reset is refused then, unless the purpose is another.
    ///
    /// # Errors
    /// As [`RemoteEnvironment::create`].
    pub fn create(config: &RemoteConfig, purpose: Purpose) -> Result<Self, RemoteError> {
        let (kind, played) = match &config.kind {
            RemoteKind::Host { name, force_reason } => {
                let host = v1::ManagedHost {
                    host: name.clone(),
                    force_reason: force_reason.clone().unwrap_or_default(),
                    access: v1::HostAccess::Exclusive.into(),
                };
                (Kind::ManagedHost(host), name.clone())
            }
            RemoteKind::Preset(name) => {
                let preset = v1::sim_host::Scenario::Preset(name.clone());
                let scenario = Some(preset);
                (Kind::SimHost(v1::SimHost { scenario }), name.clone())
            }
            RemoteKind::CartPole => (Kind::CartPole(v1::CartPole {}), "cart_pole".to_owned()),
        };
        let environment = v1::Environment {
            kind: Some(kind),
            ..v1::Environment::default()
        };
        let env = RemoteEnvironment::create(target(config)?, environment)?;
        let is_host = config.is_host();
        Ok(Self {
            env: TimeLimit::new(env, config.episode_steps.unwrap_or(NonZeroU32::MAX)),
            is_host,
            purpose,
            seen: None,
            figures: RemoteFigures {
                address: config.address.clone(),
                played,
                steps: 0,
                episodes: 0,
                changes: 0,
                not_carried_out: 0,
                changed_back: 0,
                cut_short: 0,
                lost: 0,
                put_back: is_host.then_some(false),
            },
        })
    }

    /// What was done so far.
    #[must_use]
    pub fn figures(&self) -> &RemoteFigures {
        &self.figures
    }

    /// Puts a host back, sees that it is, and leaves it. Takes two intervals of the host, and more where dirty pages
    /// are written back first.
    #[must_use]
    pub fn close(mut self) -> RemoteFigures {
        if self.is_host {
            let nothing_done = self.figures.episodes == 0;
            let is_back = nothing_done || (0..MOST_RESETS).any(|_| self.is_put_back());
            self.figures.put_back = Some(is_back);
        }
        self.figures
    }

    fn is_put_back(&mut self) -> bool {
        let seen = self.reset_patiently(None, &ResetOptions::new());
        seen.is_ok_and(|seen| seen.current == seen.default)
    }

    /// A host that a service cannot reach is back soon, or it takes longer than anybody waits.
    fn reset_patiently(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        let begun = Instant::now();
        loop {
            match self.env.reset(seed, options) {
                Err(error) if is_host_unavailable(&error) && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(PAUSE);
                }
                other => return other,
            }
        }
    }

    /// Ends the episode where nothing can be seen: what came of the action is not known, and nobody learns from it.
    fn lose(&mut self, error: EnvError) -> Result<Step, EnvError> {
        let Some(before) = self.seen.take() else {
            return Err(error);
        };
        self.figures.steps += 1;
        self.figures.lost += 1;
        let (disks, terms) = (before.disk_count(), self.spec().reward_terms.len());
        Ok(Step {
            observation: Observation::default(),
            rewards: Rewards {
                total: Array1::zeros(disks),
                own: Array1::zeros(disks),
                terms: Array2::zeros((disks, terms)),
                counted: vec![false; disks],
            },
            executed: before.current,
            terminated: false,
            truncated: true,
            final_observation: None,
        })
    }

    fn count(&mut self, before: &Observation, action: &JointAction, step: &Step) {
        let figures = &mut self.figures;
        let (executed, after) = (&step.executed, &step.observation);
        figures.steps += 1;
        figures.changes += differing(executed, &before.current);
        figures.not_carried_out += differing(executed, action);
        if after.disk_ids == before.disk_ids && after.device_ids == before.device_ids {
            figures.changed_back += differing(&after.current, executed);
        } else {
            figures.cut_short += 1;
        }
    }
}

impl Environment for Remote {
    fn spec(&self) -> &EnvSpec {
        self.env.spec()
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        let seen = self.reset_patiently(seed, options)?;
        let is_to_learn = self.is_host && self.purpose == Purpose::Training;
        if is_to_learn && self.figures.episodes == 0 {
            check_choice(&self.figures.played, self.env.spec(), &seen)?;
        }
        self.figures.episodes += 1;
        self.seen = Some(seen.clone());
        Ok(seen)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let step = match self.env.step(action) {
            Err(error) if is_host_unavailable(&error) => return self.lose(error),
            other => other?,
        };
        if let Some(before) = self.seen.replace(step.observation.clone()) {
            self.count(&before, action, &step);
        }
        Ok(step)
    }
}

/// The service, shown what the config names, and what environment variables do beyond it.
fn target(config: &RemoteConfig) -> Result<Target, ConnectError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let credentials = config.credentials.clone().or_by(variable);
    let token = variable(TOKEN_VARIABLE).map(Into::into);
    credentials.target(&config.address, token)
}

/// Levels that differ between two joint actions.
fn differing(a: &JointAction, b: &JointAction) -> u64 {
    let of = |a: &Array2<Level>, b: &Array2<Level>| a.iter().zip(b).filter(|(a, b)| a != b).count();
    (of(&a.disks, &b.disks) + of(&a.devices, &b.devices)) as u64
}

/// That there is something to learn on a host: a level that may be chosen in place of the one in force.
fn check_choice(host: &str, spec: &EnvSpec, seen: &Observation) -> Result<(), EnvError> {
    let (channels, current) = (seen.channel_count(), &seen.current);
    let is_open = has_choice(
        &spec.disk_heads,
        channels,
        &seen.masks.disks,
        &current.disks,
    ) || has_choice(
        &spec.device_heads,
        channels,
        &seen.masks.devices,
        &current.devices,
    );
    if is_open {
        return Ok(());
    }
    let closed = seen.masks.disks.iter().find(|mask| !mask.is_allowed());
    let why = match closed {
        Some(reason) => format!(
            "nothing of its {} disks may be changed: {}",
            seen.disk_count(),
            reason.text()
        ),
        None => "it has no disk".to_owned(),
    };
    Err(EnvError::Host {
        message: format!(
            "{host}: there is nothing to learn here: {why}; opt a guest in (docs/operations.md), or wait until it may \
             be changed again (`blkpilot guests --json` names a reason per level)"
        ),
        source: None,
    })
}

fn has_choice(
    heads: &[Head],
    channels: usize,
    masks: &Array2<MaskReason>,
    current: &Array2<Level>,
) -> bool {
    current.indexed_iter().any(|((row, head), in_force)| {
        let masks = masks.row(row);
        let masks = masks.to_slice().unwrap_or_default();
        let levels = head_slice(heads, channels, masks, head).iter().enumerate();
        let mut others = levels.filter(|(level, _)| *level != usize::from(*in_force));
        others.any(|(_, mask)| mask.is_allowed())
    })
}

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::{SimHost, presets};

    use super::*;

    fn shown() -> (EnvSpec, Observation) {
        let mut host = SimHost::fixed(presets::by_name("mixed").unwrap()).unwrap();
        let seen = host.reset(Some(1), &ResetOptions::new()).unwrap();
        (host.spec().clone(), seen)
    }

    #[test]
    fn a_host_on_which_nothing_may_be_changed_is_refused_with_the_reason() {
        let (spec, mut seen) = shown();
        check_choice("hosts/a", &spec, &seen).unwrap();
        // What is in force is allowed, and nothing else.
        let channels = seen.channel_count();
        for row in 0..seen.disk_count() {
            let mut start = 0;
            for (head, known) in spec.disk_heads.iter().enumerate() {
                let in_force = usize::from(seen.current.disks[[row, head]]);
                for level in (0..known.len(channels)).filter(|level| *level != in_force) {
                    seen.masks.disks[[row, start + level]] = MaskReason::NotOptedIn;
                }
                start += known.len(channels);
            }
        }
        seen.masks.devices.fill(MaskReason::NotEnabled);
        let error = check_choice("hosts/a", &spec, &seen)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("hosts/a:") && error.contains("opted in"),
            "{error}"
        );
        let error = check_choice("hosts/a", &spec, &Observation::default()).unwrap_err();
        assert!(error.to_string().contains("no disk"), "{error}");
    }

    #[test]
    fn each_level_counts() {
        let (_, seen) = shown();
        let mut other = seen.current.clone();
        assert_eq!(differing(&seen.current, &other), 0);
        other.disks[[0, 0]] += 1;
        other.disks[[1, 1]] += 1;
        assert_eq!(differing(&seen.current, &other), 2);
    }
}
