//! The guard's limits on heavy neighbours, from the owner's windows to what the host is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blkpilot_agent::backend::modes::{Modes, Reach};
use blkpilot_agent::backend::simulated::{SimulatedHost, spec};
use blkpilot_agent::backend::{
    BackendError, BackendKind, DiskAction, DiskName, Execution, GuardLimits, GuestStatus,
    HostBackend, Planned, Window,
};
use blkpilot_agent::config::mode::Mode;
use blkpilot_agent::config::{GuestConfig, OnExit};
use blkpilot_agent::decision::PolicyRef;
use blkpilot_agent::decision::chain::{Chain, Loaded};
use blkpilot_agent::decision::history::{LogConfig, Recorder};
use blkpilot_agent::owner::handle::{DiskCall, DiskRequest, HostHandle, Origin};
use blkpilot_agent::owner::{OwnerConfig, start};
use blkpilot_env::clock::ManualClock;
use blkpilot_env::guard::GuardConfig;
use blkpilot_env::guard::neighbour::NeighbourConfig;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sample::HostSample;
use blkpilot_env::sim::presets;
use blkpilot_env::{EnvSpec, JointAction, Observation};
use blkpilot_host::{DiskSetting, DiskState};
use blkpilot_models::baseline::KeepDefault;
use tempfile::TempDir;

const VICTIM: &str = "guest-0/vda";
const HEAVY: &str = "guest-1/vda";
const PATIENCE: Duration = Duration::from_secs(60);

/// What the host was told, and what is in force.
#[derive(Debug, Default)]
struct Told {
    actions: Vec<DiskAction>,
    limits: GuardLimits,
    refuses: bool,
}

/// A simulated host of equal disks whose limits are only remembered.
struct Limited {
    host: SimulatedHost,
    told: Arc<Mutex<Told>>,
}

impl HostBackend for Limited {
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

    fn disks(&self) -> Result<Vec<DiskState>, BackendError> {
        let disk = DiskName::of(HEAVY);
        Ok(vec![DiskState {
            guest: disk.guest,
            target: disk.target,
            settings: vec![],
        }])
    }

    fn change_disk(
        &mut self,
        disk: &DiskName,
        action: &DiskAction,
    ) -> Result<Vec<Planned>, BackendError> {
        let mut told = self.told.lock().unwrap();
        told.actions.push(action.clone());
        if told.refuses {
            return Err(BackendError::Unavailable("refused".to_owned()));
        }
        match action {
            DiskAction::Limit { reason, .. } => {
                told.limits.limited.insert(disk.to_string(), reason.clone());
            }
            DiskAction::Lift | DiskAction::Set(_) | DiskAction::PutBack => {
                told.limits.limited.remove(&disk.to_string());
            }
            DiskAction::Check(_) => {}
        }
        Ok(vec![])
    }

    fn limits(&self) -> GuardLimits {
        self.told.lock().unwrap().limits.clone()
    }
}

struct Case {
    host: HostHandle,
    told: Arc<Mutex<Told>>,
    _dir: TempDir,
}

impl Case {
    fn new(mode: Mode, refuses: bool) -> Self {
        let scenario = presets::identical_disks(2, 4);
        let told = Told {
            limits: GuardLimits {
                may_limit: [HEAVY.to_owned()].into(),
                limited: BTreeMap::new(),
            },
            refuses,
            ..Told::default()
        };
        let (told, dir) = (Arc::new(Mutex::new(told)), TempDir::new().unwrap());
        let spec = spec(&scenario).unwrap();
        let victim = GuestConfig {
            p99_objective_us: Some(0.001),
            ..GuestConfig::default()
        };
        let heavy = GuestConfig {
            mode: Some(mode),
            ..GuestConfig::default()
        };
        let connect = {
            let told = Arc::clone(&told);
            move |_: &Modes| {
                let host = SimulatedHost::open(scenario.clone(), 1, BTreeMap::new())?;
                let told = Arc::clone(&told);
                Ok(Box::new(Limited { host, told }) as Box<dyn HostBackend>)
            }
        };
        let policy = Box::new(KeepDefault);
        let reference = PolicyRef::default();
        let config = OwnerConfig {
            name: "local".to_owned(),
            kind: BackendKind::Simulated,
            interval: Duration::from_millis(2),
            modes: Modes {
                default: Mode::Advise,
                guests: [
                    ("guest-0".to_owned(), victim),
                    ("guest-1".to_owned(), heavy),
                ]
                .into(),
                candidate: Reach::Nobody,
            },
            production: Chain::alone(Loaded { policy, reference }, Duration::from_secs(1)),
            candidate: None,
            origin: Origin::Configuration,
            configured: None,
            proof: None,
            learners: vec![],
            clock: Box::new(ManualClock::default()),
            spec,
            seed: 1,
            connect: Box::new(connect),
            recorder: Recorder::open(dir.path(), &LogConfig::default()).unwrap(),
            guard: GuardConfig::default(),
            neighbours: Some(NeighbourConfig {
                windows: 3,
                dominant_share: 0.3,
                // Of the simulated host's own clock, which runs faster than this.
                longest: Duration::from_secs(1 << 30),
                ..NeighbourConfig::default()
            }),
            reward: RewardConfig::default(),
        };
        let (host, _) = start(config).unwrap();
        Self {
            host,
            told,
            _dir: dir,
        }
    }

    fn actions(&self) -> Vec<DiskAction> {
        self.told.lock().unwrap().actions.clone()
    }

    /// Waits for windows until it is so.
    async fn wait_for(&self, so: impl Fn(&[DiskAction]) -> bool) {
        let mut view = self.host.view.clone();
        let seen = view.wait_for(|_| so(&self.actions()));
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        seen.unwrap().unwrap();
    }

    async fn pass(&self, windows: usize) {
        let mut view = self.host.view.clone();
        for _ in 0..windows {
            view.changed().await.unwrap();
        }
    }
}

fn is_limit(action: &DiskAction) -> bool {
    matches!(action, DiskAction::Limit { .. })
}

#[tokio::test]
async fn a_heavy_neighbour_is_limited_with_the_reason_and_no_limit_outlives_the_service() {
    let case = Case::new(Mode::Auto, false);
    case.wait_for(|actions| actions.iter().any(is_limit)).await;
    let first = case.actions().remove(0);
    let DiskAction::Limit { change, reason } = &first else {
        panic!("{first:?}");
    };
    assert_eq!(change.setting, DiskSetting::Throttle);
    assert_eq!(change.named[0], ("throttle".to_owned(), "none".to_owned()));
    assert!(
        change
            .named
            .iter()
            .any(|(name, _)| name == "total_iops_sec")
    );
    assert!(
        reason.contains(VICTIM) && reason.contains("requests"),
        "{reason}"
    );
    // A limit that brings nothing is lifted, and set again later.
    let deadline = Instant::now() + PATIENCE;
    while case.host.disks().await.unwrap()[0].guard_reason.is_none() {
        assert!(Instant::now() < deadline, "the limit is not shown");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    case.host.stop(OnExit::Keep).await.unwrap();
    assert_eq!(case.actions().last(), Some(&DiskAction::Lift));
    assert!(case.told.lock().unwrap().limits.limited.is_empty());
}

#[tokio::test]
async fn a_guest_that_is_not_automatic_is_not_limited() {
    let case = Case::new(Mode::Advise, false);
    case.pass(20).await;
    assert_eq!(case.actions(), []);
}

#[tokio::test]
async fn a_limit_that_cannot_be_set_is_not_tried_in_each_window() {
    let case = Case::new(Mode::Auto, true);
    case.wait_for(|actions| actions.iter().any(is_limit)).await;
    case.pass(10).await;
    assert_eq!(case.actions().len(), 1);
}

#[tokio::test]
async fn an_operator_is_told_what_is_refused_and_no_unknown_disk_is_changed() {
    let case = Case::new(Mode::Advise, true);
    case.wait_for(|_| true).await;
    case.pass(2).await;
    let call = |disk: &str, named: &str| DiskCall {
        disk: DiskName::of(disk),
        action: DiskRequest::Set(vec![(named.to_owned(), "200".to_owned())]),
        validate_only: false,
    };
    for (disk, named, reason) in [
        ("guest-7/vda", "total_iops_sec", "NOT_FOUND"),
        ("guest-1/vdx", "total_iops_sec", "NOT_FOUND"),
        (HEAVY, "speed", "INVALID"),
        (HEAVY, "total_iops_sec", "DISK_REFUSED"),
    ] {
        let failure = case.host.change_disk(call(disk, named)).await.unwrap_err();
        let known = failure.reason();
        assert!(known.contains(reason), "{disk} {named}: {known}");
    }
    assert_eq!(case.actions().len(), 1, "one of them reached the host");
}
