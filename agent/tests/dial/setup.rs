//! Four equal guests under one owner, and policies whose choices are known beforehand.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blkpilot_agent::backend::modes::{Modes, Reach};
use blkpilot_agent::backend::simulated::{SimulatedHost, spec};
use blkpilot_agent::backend::{
    BackendError, BackendKind, Execution, GuestStatus, HostBackend, Window,
};
use blkpilot_agent::config::mode::Mode;
use blkpilot_agent::config::{GuestConfig, OnExit};
use blkpilot_agent::decision::chain::{Chain, Loaded};
use blkpilot_agent::decision::history::{LogConfig, Recorder};
use blkpilot_agent::decision::{Decision, PolicyRef};
use blkpilot_agent::owner::handle::{HostHandle, HostView, Origin};
use blkpilot_agent::owner::{OwnerConfig, start};
use blkpilot_env::clock::ManualClock;
use blkpilot_env::features::CHANNEL_HEAD;
use blkpilot_env::guard::GuardConfig;
use blkpilot_env::guard::exploration::Exploration;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sample::HostSample;
use blkpilot_env::sim::presets;
use blkpilot_env::{EnvSpec, JointAction, Level, Observation, Rng, TurnView};
use blkpilot_log::{DecisionRow, Event, Reader, Subject};
use blkpilot_models::{Choice, Policy, PolicyError};
use tempfile::TempDir;

/// What a policy may take for a joint decision.
pub(crate) const LIMIT: Duration = Duration::from_secs(1);

/// Every action that a host was told to take, with what was in force.
pub(crate) type Told = Arc<Mutex<Vec<(JointAction, JointAction)>>>;

/// A simulated host that remembers what it was told.
pub(crate) struct Watched {
    host: SimulatedHost,
    pub(crate) told: Told,
    windows: Arc<AtomicUsize>,
}

impl HostBackend for Watched {
    fn kind(&self) -> BackendKind {
        self.host.kind()
    }

    fn spec(&self) -> &EnvSpec {
        self.host.spec()
    }

    fn set_modes(&mut self, modes: &Modes) {
        self.host.set_modes(modes);
    }

    fn first_window(&self) -> Duration {
        self.host.first_window()
    }

    fn restart_window(&mut self) -> Result<(), BackendError> {
        self.host.restart_window()
    }

    fn observe(&mut self) -> Result<Window, BackendError> {
        self.windows.fetch_add(1, Ordering::Relaxed);
        self.host.observe()
    }

    fn sample(&self) -> &HostSample {
        self.host.sample()
    }

    fn set_reward(&mut self, reward: RewardConfig) {
        self.host.set_reward(reward);
    }

    fn reward(&self) -> RewardConfig {
        self.host.reward()
    }

    fn guests(&self) -> Vec<GuestStatus> {
        self.host.guests()
    }

    fn apply(
        &mut self,
        obs: &Observation,
        action: &JointAction,
    ) -> Result<Execution, BackendError> {
        let told = (obs.current.clone(), action.clone());
        self.told.lock().unwrap().push(told);
        self.host.apply(obs, action)
    }

    fn rollback(
        &mut self,
        obs: &Observation,
        guest: Option<&str>,
    ) -> Result<Execution, BackendError> {
        self.host.rollback(obs, guest)
    }

    fn unfreeze(&mut self, guest: &str, knob: &str) -> Result<String, BackendError> {
        self.host.unfreeze(guest, knob)
    }
}

pub(crate) fn loaded(name: &str, policy: impl Policy + 'static) -> Loaded {
    Loaded {
        policy: Box::new(policy),
        reference: PolicyRef {
            name: name.to_owned(),
            version: format!("{name}-1"),
        },
    }
}

/// What is decided on four equal guests `guest-0` to `guest-3` with four channels.
pub(crate) struct Setup {
    /// Of the guests, in order.
    pub(crate) modes: [Mode; 4],
    /// Of `guest-0`.
    pub(crate) exploration: Option<Exploration>,
    pub(crate) production: Chain,
    pub(crate) candidate: Option<Loaded>,
    /// Where the production policy comes from.
    pub(crate) origin: Origin,
    pub(crate) guard: GuardConfig,
    pub(crate) clock: ManualClock,
}

impl Setup {
    pub(crate) fn new(modes: [Mode; 4], production: Loaded) -> Self {
        Self {
            modes,
            exploration: None,
            production: Chain::with_fallbacks(production, None, &four(), LIMIT),
            candidate: None,
            origin: Origin::Configuration,
            guard: easy(),
            clock: ManualClock::default(),
        }
    }

    pub(crate) fn start(self) -> Case {
        let (dir, told) = (TempDir::new().unwrap(), Told::default());
        let windows = Arc::new(AtomicUsize::new(0));
        let guest = |(i, mode): (usize, &Mode)| {
            let guest = GuestConfig {
                mode: Some(*mode),
                exploration: self.exploration.filter(|_| i == 0),
                ..GuestConfig::default()
            };
            (format!("guest-{i}"), guest)
        };
        let modes = Modes {
            default: Mode::Observe,
            guests: self.modes.iter().enumerate().map(guest).collect(),
            candidate: match self.candidate {
                Some(_) => Reach::Canary,
                None => Reach::Nobody,
            },
        };
        let connect = {
            let (told, windows) = (Arc::clone(&told), Arc::clone(&windows));
            move |_: &Modes| {
                let scenario = presets::identical_disks(4, 4);
                let watched = Watched {
                    host: SimulatedHost::open(scenario, 1, BTreeMap::new())?,
                    told: Arc::clone(&told),
                    windows: Arc::clone(&windows),
                };
                Ok(Box::new(watched) as Box<dyn HostBackend>)
            }
        };
        let config = OwnerConfig {
            name: "local".to_owned(),
            kind: BackendKind::Simulated,
            interval: Duration::from_millis(2),
            modes,
            production: self.production,
            candidate: self.candidate.map(|policy| Chain::alone(policy, LIMIT)),
            origin: self.origin,
            configured: None,
            proof: None,
            learners: vec![],
            clock: Box::new(self.clock),
            spec: four(),
            seed: 1,
            connect: Box::new(connect),
            recorder: Recorder::open(dir.path(), &LogConfig::default()).unwrap(),
            guard: self.guard,
            neighbours: None,
            reward: RewardConfig::default(),
        };
        let (host, _) = start(config).unwrap();
        Case {
            host,
            told,
            windows,
            dir,
        }
    }
}

/// A guard that judges in one window and finds nothing harmful, so that exploring goes on.
pub(crate) fn easy() -> GuardConfig {
    let mut guard = GuardConfig {
        dwell: Duration::ZERO,
        changes_per_minute: 1_000_000,
        ..GuardConfig::default()
    };
    guard.trial.windows = 1;
    guard.trial.settle_windows_cache = 0;
    guard.trial.tolerated_ratio = 100.0;
    guard.breaker.failures = 1_000_000;
    guard
}

pub(crate) fn four() -> EnvSpec {
    spec(&presets::identical_disks(4, 4)).unwrap()
}

pub(crate) struct Case {
    pub(crate) host: HostHandle,
    pub(crate) told: Told,
    /// Windows that were observed.
    pub(crate) windows: Arc<AtomicUsize>,
    dir: TempDir,
}

impl Case {
    pub(crate) async fn view(&self, is_so: impl Fn(&HostView) -> bool) -> HostView {
        let mut view = self.host.view.clone();
        let seen = view.wait_for(|view| is_so(view));
        let seen = tokio::time::timeout(Duration::from_secs(60), seen).await;
        seen.unwrap().unwrap().clone()
    }

    /// So many decisions, oldest first, once there are as many.
    pub(crate) async fn decisions(&self, count: usize) -> Vec<Arc<Decision>> {
        let listed = || {
            let page = self.host.history.page("local", None, 10_000).unwrap();
            page.decisions
        };
        self.view(|_| listed().len() >= count).await;
        let mut decisions = listed();
        decisions.reverse();
        decisions.truncate(count);
        decisions
    }

    /// The log once nothing is written to it any more.
    pub(crate) async fn log(self) -> Vec<Event> {
        self.host.stop(OnExit::Keep).await.unwrap();
        let entries = Reader::open(self.dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().event).collect()
    }

    /// Whether the host was ever told to change this disk.
    pub(crate) fn was_changed(&self, disk: usize) -> bool {
        let told = self.told.lock().unwrap();
        let mut told = told.iter();
        told.any(|(current, action)| current.disks.row(disk) != action.disks.row(disk))
    }
}

pub(crate) fn guest(row: &DecisionRow) -> &str {
    match &row.subject {
        Subject::Disk { guest, .. } => guest,
        Subject::Device { name } => panic!("devices have no heads here: {name}"),
    }
}

pub(crate) fn rows<'a>(
    decisions: &'a [Arc<Decision>],
    of: &'a str,
) -> impl Iterator<Item = &'a DecisionRow> + 'a {
    let rows = decisions.iter().flat_map(|decision| &decision.rows);
    rows.filter(move |row| guest(row) == of)
}

/// Takes one channel for every disk, where it may.
#[derive(Clone, Copy)]
pub(crate) struct Channel(pub(crate) Level);

impl Policy for Channel {
    fn name(&self) -> &str {
        "channel"
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let mut levels = view.current.to_vec();
        if view.head_mask(CHANNEL_HEAD)[usize::from(self.0)].is_allowed() {
            levels[CHANNEL_HEAD] = self.0;
        }
        Ok(Choice::certain(levels))
    }
}
