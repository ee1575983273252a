//! The owner of a host that goes away, loses guests, and does not do all it is asked for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blkpilot_agent::admission::Choice;
use blkpilot_agent::backend::modes::{Modes, Reach};
use blkpilot_agent::backend::simulated::{SimulatedHost, spec};
use blkpilot_agent::backend::{
    BackendError, BackendKind, Execution, FrozenKnob, GuestStatus, HostBackend, Window,
};
use blkpilot_agent::config::OnExit;
use blkpilot_agent::config::mode::{Knob, Mode};
use blkpilot_agent::decision::chain::{Chain, Loaded};
use blkpilot_agent::decision::history::{LogConfig, Recorder};
use blkpilot_agent::decision::{PolicyRef, Source, State};
use blkpilot_agent::environments::hosted::HostedEnvironment;
use blkpilot_agent::owner::handle::{
    ChangeCall, HostHandle, HostState, Origin, Reloadable, Reloaded, Request, RewardCall,
    RewardChange, UnfreezeCall,
};
use blkpilot_agent::owner::pulse::PulseWatch;
use blkpilot_agent::owner::{OwnerConfig, start};
use blkpilot_agent::wire::names::Row;
use blkpilot_env::clock::ManualClock;
use blkpilot_env::guard::GuardConfig;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sample::HostSample;
use blkpilot_env::sim::{Scenario, presets};
use blkpilot_env::{
    EnvSpec, Environment as _, JointAction, Observation, ResetOptions, Rng, TurnView,
};
use blkpilot_host::Ring;
use blkpilot_log::{Stage, Subject};
use blkpilot_models::baseline::LeastLoaded;
use blkpilot_models::{Choice as PolicyChoice, Policy, PolicyError};
use tempfile::TempDir;
use uuid::Uuid;

/// What the test does to the host.
#[derive(Default)]
struct Fate {
    is_away: AtomicBool,
    connections: AtomicU32,
    /// Guests whose settings cannot be changed.
    stubborn: Mutex<Vec<String>>,
    /// How often an IOThread that is bound cannot be let float.
    binds: AtomicU32,
    rollbacks: AtomicU32,
    /// What a rollback cannot put back.
    left_behind: Mutex<Vec<String>>,
    /// What somebody else has changed of the guest `backup`.
    frozen: Mutex<Vec<FrozenKnob>>,
    /// A look does not end.
    is_stuck: AtomicBool,
    /// Such a look has begun.
    has_stuck: AtomicBool,
    /// No window ends.
    is_blind: AtomicBool,
    /// Length of an interval, if it is to be long.
    interval: Option<Duration>,
    /// What the host calls when its guests change.
    ring: Mutex<Option<Ring>>,
    /// How often it was asked for them between two looks.
    refreshes: AtomicU32,
    /// Guests that do not run any more.
    gone: Mutex<Vec<String>>,
}

struct Fragile {
    host: SimulatedHost,
    fate: Arc<Fate>,
}

impl Fragile {
    fn check(&self) -> Result<(), BackendError> {
        if self.fate.is_away.load(Ordering::SeqCst) {
            Err(BackendError::Unavailable(
                "libvirtd is down: start it".to_owned(),
            ))
        } else {
            Ok(())
        }
    }
}

impl HostBackend for Fragile {
    fn kind(&self) -> BackendKind {
        BackendKind::Simulated
    }

    fn spec(&self) -> &EnvSpec {
        self.host.spec()
    }

    fn set_modes(&mut self, modes: &Modes) {
        self.host.set_modes(modes);
    }

    fn first_window(&self) -> Duration {
        let is_blind = self.fate.is_blind.load(Ordering::SeqCst);
        Duration::from_millis(if is_blind { 60_000 } else { 1 })
    }

    fn restart_window(&mut self) -> Result<(), BackendError> {
        self.check()
    }

    fn observe(&mut self) -> Result<Window, BackendError> {
        self.check()?;
        while self.fate.is_stuck.load(Ordering::SeqCst) {
            self.fate.has_stuck.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
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
        let mut guests = self.host.guests();
        let gone = self.fate.gone.lock().unwrap();
        guests.retain(|guest| !gone.contains(&guest.name));
        for guest in guests.iter_mut().filter(|guest| guest.name == "backup") {
            guest.frozen.clone_from(&self.fate.frozen.lock().unwrap());
        }
        guests
    }

    fn watch_guests(&mut self, ring: Ring) {
        *self.fate.ring.lock().unwrap() = Some(ring);
    }

    fn refresh(&mut self) -> Result<(), BackendError> {
        self.fate.refreshes.fetch_add(1, Ordering::SeqCst);
        self.check()
    }

    fn apply(
        &mut self,
        obs: &Observation,
        action: &JointAction,
    ) -> Result<Execution, BackendError> {
        self.check()?;
        let (mut action, mut failures) = (action.clone(), vec![]);
        for guest in self.fate.stubborn.lock().unwrap().iter() {
            let row = obs
                .disk_ids
                .iter()
                .position(|id| id.starts_with(guest))
                .unwrap();
            action
                .disks
                .row_mut(row)
                .assign(&obs.current.disks.row(row));
            failures.push(format!("{guest}: QEMU refused"));
        }
        for row in 0..obs.disk_ids.len() {
            let (before, after) = (obs.current.disks[[row, 0]], action.disks[[row, 0]]);
            let once_less = |left: u32| left.checked_sub(1);
            let order = Ordering::SeqCst;
            if before != 0
                && after == 0
                && self
                    .fate
                    .binds
                    .fetch_update(order, order, once_less)
                    .is_ok()
            {
                action.disks[[row, 0]] = before;
                failures.push(format!("{}: libvirt refused", obs.disk_ids[row]));
            }
        }
        let mut execution = self.host.apply(obs, &action)?;
        execution.failures = failures;
        Ok(execution)
    }

    fn rollback(
        &mut self,
        obs: &Observation,
        guest: Option<&str>,
    ) -> Result<Execution, BackendError> {
        self.check()?;
        self.fate.rollbacks.fetch_add(1, Ordering::SeqCst);
        let mut execution = self.host.rollback(obs, guest)?;
        execution.failures = self.fate.left_behind.lock().unwrap().clone();
        Ok(execution)
    }

    fn unfreeze(&mut self, guest: &str, knob: &str) -> Result<String, BackendError> {
        self.check()?;
        assert_eq!(guest, "backup");
        let mut frozen = self.fate.frozen.lock().unwrap();
        frozen.retain(|known| known.knob != knob);
        Ok("in force".to_owned())
    }
}

struct Case {
    host: HostHandle,
    fate: Arc<Fate>,
    _dir: TempDir,
}

impl Case {
    fn new(mode: Mode, policy: Box<dyn Policy>) -> Self {
        Self::with(Fate::default(), mode, policy)
    }

    fn with(fate: Fate, mode: Mode, policy: Box<dyn Policy>) -> Self {
        Self::on(presets::mixed(), fate, mode, policy)
    }

    fn on(scenario: Scenario, fate: Fate, mode: Mode, policy: Box<dyn Policy>) -> Self {
        let (fate, dir) = (Arc::new(fate), TempDir::new().unwrap());
        let spec = spec(&scenario).unwrap();
        let connect = {
            let fate = Arc::clone(&fate);
            move |_: &Modes| {
                fate.connections.fetch_add(1, Ordering::SeqCst);
                let host = SimulatedHost::open(scenario.clone(), 1, BTreeMap::new())?;
                let fragile = Fragile {
                    host,
                    fate: Arc::clone(&fate),
                };
                fragile.check()?;
                Ok(Box::new(fragile) as Box<dyn HostBackend>)
            }
        };
        let config = OwnerConfig {
            name: "local".to_owned(),
            kind: BackendKind::Simulated,
            interval: fate.interval.unwrap_or(Duration::from_millis(5)),
            modes: Modes {
                default: mode,
                guests: BTreeMap::new(),
                candidate: Reach::Nobody,
            },
            production: Chain::with_fallbacks(
                Loaded {
                    policy,
                    reference: PolicyRef::default(),
                },
                None,
                &spec,
                Duration::from_secs(1),
            ),
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
            neighbours: None,
            reward: RewardConfig::default(),
        };
        let (host, _) = start(config).unwrap();
        Self {
            host,
            fate,
            _dir: dir,
        }
    }

    /// One with four equal disks and channels instead.
    fn with_scenario(scenario: Scenario, mode: Mode, policy: Box<dyn Policy>) -> Self {
        Self::on(scenario, Fate::default(), mode, policy)
    }

    async fn wait_for(&self, state: impl Fn(&HostState) -> bool) {
        let mut view = self.host.view.clone();
        let seen = view.wait_for(|view| state(&view.state));
        tokio::time::timeout(Duration::from_secs(20), seen)
            .await
            .unwrap()
            .unwrap();
    }
}

fn least_loaded() -> Box<dyn Policy> {
    Box::new(LeastLoaded::new(&spec(&presets::mixed()).unwrap()).unwrap())
}

fn set(guests: &[&str]) -> ChangeCall {
    let choice = |guest: &&str| Choice {
        row: Row::of_disk_id(&format!("{guest}/vda")),
        head: "cache".to_owned(),
        level: "buffered".to_owned(),
    };
    ChangeCall {
        request: Request::Levels(guests.iter().map(choice).collect()),
        validate_only: false,
        request_id: None,
        force_reason: None,
    }
}

#[tokio::test]
async fn a_host_that_comes_back_is_worked_with_again() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    case.fate.is_away.store(true, Ordering::SeqCst);
    case.wait_for(|state| matches!(state, HostState::Unavailable(_)))
        .await;
    let refused = case.host.propose().await.unwrap_err();
    assert_eq!(refused.reason(), "HOST_UNAVAILABLE");
    assert!(refused.message().contains("libvirtd is down: start it"));
    let refused = case.host.change(set(&["backup"])).await.unwrap_err();
    assert_eq!(refused.reason(), "HOST_UNAVAILABLE");
    case.fate.is_away.store(false, Ordering::SeqCst);
    case.wait_for(|state| *state == HostState::Ready).await;
    assert!(case.fate.connections.load(Ordering::SeqCst) >= 2);
    case.host.change(set(&["backup"])).await.unwrap();
}

/// The weight of page cache that the last observation shows.
fn shown_weight(case: &Case) -> f32 {
    let spec = &case.host.info.spec;
    let column = spec
        .host_features
        .iter()
        .position(|f| f.name == "weight_page_cache");
    let view = case.host.view.borrow();
    let window = view.window.as_ref();
    window.map_or(f32::NAN, |w| {
        w.observation.host.values[[0, column.unwrap()]]
    })
}

#[tokio::test]
async fn weights_that_are_set_are_shown_to_the_policy_and_outlast_a_lost_host() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let call = |page_cache, slo, validate_only| RewardCall {
        change: RewardChange {
            page_cache: Some(page_cache),
            slo: Some(slo),
            ..RewardChange::default()
        },
        validate_only,
    };
    let default = RewardConfig::default();
    let planned = case.host.set_reward(call(0.75, 1.0, true)).await.unwrap();
    assert_eq!((planned.page_cache, planned.cpu), (0.75, default.cpu));
    assert_eq!(case.host.view.borrow().reward, default, "only checked");
    let refused = case
        .host
        .set_reward(call(2.0, -1.0, false))
        .await
        .unwrap_err();
    let text = format!("{refused:?}");
    assert!(
        text.contains("weights.page_cache") && text.contains("weights.slo"),
        "{text}"
    );

    let set = case.host.set_reward(call(0.75, 1.0, false)).await.unwrap();
    assert_eq!(set, planned);
    assert_eq!(case.host.view.borrow().reward, set);
    eventually(|| shown_weight(&case) == 0.75).await;

    case.fate.is_away.store(true, Ordering::SeqCst);
    case.wait_for(|state| matches!(state, HostState::Unavailable(_)))
        .await;
    case.fate.is_away.store(false, Ordering::SeqCst);
    case.wait_for(|state| *state == HostState::Ready).await;
    eventually(|| shown_weight(&case) == 0.75).await;
}

#[tokio::test]
async fn what_did_not_take_effect_is_recorded_as_it_is() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    case.fate.stubborn.lock().unwrap().push("backup".to_owned());
    let refused = case
        .host
        .change(set(&["backup", "builds"]))
        .await
        .unwrap_err();
    assert_eq!(refused.reason(), "APPLY_FAILED");
    assert!(refused.message().contains("backup: QEMU refused"));
    let recorded = case
        .host
        .history
        .page("local", None, 1)
        .unwrap()
        .decisions
        .remove(0);
    assert!(refused.message().contains(&recorded.id.to_string()));
    let altered = |guest: &str| {
        let is_of = |row: &&blkpilot_log::DecisionRow| format!("{:?}", row.subject).contains(guest);
        let row = recorded.rows.iter().find(is_of).unwrap();
        (
            row.heads[1].requested,
            row.heads[1].executed,
            row.heads[1].altered.is_some(),
        )
    };
    assert_eq!(altered("backup"), (1, 0, true));
    assert_eq!(altered("builds"), (1, 1, false));
}

fn back() -> ChangeCall {
    ChangeCall {
        request: Request::Rollback(None),
        validate_only: false,
        request_id: None,
        force_reason: None,
    }
}

#[tokio::test]
async fn a_rollback_that_leaves_a_guest_without_rows_behind_has_failed() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let failure = "guest opted-out: QEMU refused".to_owned();
    case.fate.left_behind.lock().unwrap().push(failure.clone());
    let decision = case.host.change(back()).await.unwrap();
    assert_eq!(decision.state, State::Failed);
    assert_eq!(decision.error, Some(failure));
}

#[tokio::test]
async fn settings_of_an_environment_that_has_gone_go_back_once_the_host_answers() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let mut env = HostedEnvironment::attach(case.host.clone(), None)
        .await
        .unwrap();
    let env = tokio::task::spawn_blocking(move || {
        env.reset(None, &ResetOptions::new()).unwrap();
        env
    });
    let env = env.await.unwrap();
    let rollbacks = || case.fate.rollbacks.load(Ordering::SeqCst);
    assert_eq!(rollbacks(), 1);
    case.fate.is_away.store(true, Ordering::SeqCst);
    case.wait_for(|state| matches!(state, HostState::Unavailable(_)))
        .await;
    drop(env);
    let attempts = case.fate.connections.load(Ordering::SeqCst);
    let again = || case.fate.connections.load(Ordering::SeqCst) > attempts + 1;
    eventually(again).await;
    assert_eq!(rollbacks(), 1);
    case.fate.is_away.store(false, Ordering::SeqCst);
    eventually(|| rollbacks() == 2).await;
}

async fn eventually(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap();
}

/// Fails every time.
struct Broken;

impl Policy for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    fn choose(
        &mut self,
        spec: &EnvSpec,
        _: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<blkpilot_models::Choice, PolicyError> {
        Err(PolicyError::NoChannelHead {
            policy: "broken".to_owned(),
            spec: spec.name.clone(),
        })
    }
}

#[tokio::test]
async fn a_policy_that_fails_is_reported_and_the_heuristic_stands_in() {
    let case = Case::new(Mode::Auto, Box::new(Broken));
    let mut view = case.host.view.clone();
    let failed = view.wait_for(|view| view.policy_error.is_some());
    let failed = tokio::time::timeout(Duration::from_secs(20), failed)
        .await
        .unwrap()
        .unwrap();
    assert!(failed.policy_error.as_ref().unwrap().contains("broken"));
    drop(failed);
    let decisions = case.host.history.page("local", None, 10).unwrap().decisions;
    let mut rows = decisions.iter().flat_map(|decision| &decision.rows);
    assert!(rows.all(|row| (&*row.policy, row.stage) == ("least_loaded", Stage::Heuristic)));
    assert!(case.host.view.borrow().fallbacks.heuristic >= decisions.len() as u64);
    assert_eq!(
        case.host.propose().await.unwrap_err().reason(),
        "POLICY_FAILED"
    );
}

#[tokio::test]
async fn a_reload_takes_modes_at_once_and_the_reward_only_while_no_environment_is_paid_by_it() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let settings = |default_mode, cpu| Reloadable {
        default_mode,
        guests: BTreeMap::new(),
        guard: GuardConfig::default(),
        neighbours: None,
        log: LogConfig::default(),
        reward: Some(RewardConfig {
            cpu,
            ..RewardConfig::default()
        }),
    };
    let done = case.host.reload(settings(Mode::Observe, 0.75)).await;
    assert_eq!(done.unwrap(), Reloaded::default());
    {
        let view = case.host.view.borrow();
        assert_eq!((view.default_mode, view.reward.cpu), (Mode::Observe, 0.75));
    }
    let refused = case.host.change(set(&["backup"])).await.unwrap_err();
    assert_eq!(refused.reason(), "MODE_FORBIDS");

    let _lease = HostedEnvironment::attach(case.host.clone(), None)
        .await
        .unwrap();
    let done = case
        .host
        .reload(settings(Mode::Advise, 0.25))
        .await
        .unwrap();
    assert!(done.left[0].starts_with("reward: "), "{done:?}");
    let view = case.host.view.borrow();
    assert_eq!((view.default_mode, view.reward.cpu), (Mode::Advise, 0.75));
}

/// What systemd's watchdog is fed by.
#[tokio::test]
async fn a_look_that_does_not_end_stops_the_pulse_until_it_does() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let mut watch = PulseWatch::new(Arc::clone(&case.host.pulse));
    // When whatever was due is overdue; only one that has come round meanwhile is alive then.
    let much_later = Instant::now() + Duration::from_secs(3600);
    assert!(watch.is_alive(much_later));
    case.fate.is_stuck.store(true, Ordering::SeqCst);
    while !case.fate.has_stuck.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    let _what_came_before = watch.is_alive(much_later);
    assert!(!watch.is_alive(much_later));
    case.fate.is_stuck.store(false, Ordering::SeqCst);
    while !watch.is_alive(much_later) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn leaving_puts_everything_back_only_if_asked_to() {
    for (on_exit, rollbacks) in [(OnExit::Keep, 0), (OnExit::Revert, 1)] {
        let case = Case::new(Mode::Advise, least_loaded());
        case.wait_for(|state| *state == HostState::Ready).await;
        case.host.change(set(&["backup"])).await.unwrap();
        let last = case.host.stop(on_exit).await.unwrap();
        assert_eq!(last.is_some(), on_exit == OnExit::Revert);
        assert_eq!(case.fate.rollbacks.load(Ordering::SeqCst), rollbacks);
        assert_eq!(
            case.host.propose().await.unwrap_err().reason(),
            "HOST_STOPPED"
        );
    }
}

#[tokio::test]
async fn leaving_puts_back_also_what_was_never_seen() {
    let fate = Fate {
        is_blind: true.into(),
        ..Fate::default()
    };
    let case = Case::with(fate, Mode::Advise, least_loaded());
    assert_eq!(case.host.stop(OnExit::Revert).await.unwrap(), None);
    assert_eq!(case.fate.rollbacks.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn leaving_a_host_that_is_away_says_that_nothing_was_put_back() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    case.fate.is_away.store(true, Ordering::SeqCst);
    let failure = case.host.stop(OnExit::Revert).await.unwrap_err();
    assert_eq!(failure.reason(), "NOT_PUT_BACK");
}

#[tokio::test]
async fn a_stop_is_not_lost_when_the_queue_is_full() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    case.fate.is_stuck.store(true, Ordering::SeqCst);
    eventually(|| case.fate.has_stuck.load(Ordering::SeqCst)).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let host = case.host.clone();
        calls.spawn(async move { host.find(Uuid::nil()).await });
    }
    // The owner answers nobody now, and the queue is not as long as that.
    let refused = loop {
        if let Err(failure) = calls.join_next().await.unwrap().unwrap() {
            break failure;
        }
    };
    assert_eq!(refused.reason(), "HOST_BUSY");
    let host = case.host.clone();
    let stopping = tokio::spawn(async move { host.stop(OnExit::Revert).await });
    tokio::task::yield_now().await;
    case.fate.is_stuck.store(false, Ordering::SeqCst);
    assert!(stopping.await.unwrap().unwrap().is_some());
    assert_eq!(case.fate.rollbacks.load(Ordering::SeqCst), 1);
}

/// Keeps what is there until it has seen some windows, then puts every disk on one channel.
struct Harmful {
    turns: u32,
}

impl Policy for Harmful {
    fn name(&self) -> &str {
        "harmful"
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<PolicyChoice, PolicyError> {
        self.turns += 1;
        let mut levels = view.current.to_vec();
        if self.turns > 40 && view.head_mask(0)[1].is_allowed() {
            levels[0] = 1;
        }
        Ok(PolicyChoice::certain(levels))
    }
}

#[tokio::test]
async fn the_guard_puts_back_what_a_harmful_policy_did_and_says_why() {
    let policy = Box::new(Harmful { turns: 0 });
    let case = Case::with_scenario(presets::identical_disks(4, 4), Mode::Auto, policy);
    let mut watcher = case.host.watch().unwrap();
    let mut harmed = vec![];
    let guarded = loop {
        let next = tokio::time::timeout(Duration::from_secs(20), watcher.recv());
        let decision = next.await.unwrap().unwrap();
        match decision.source {
            Source::Guard => break decision,
            _ => harmed.push(decision),
        }
    };
    let reason = guarded.reason.clone().unwrap();
    assert!(reason.contains("after the change"), "{reason}");
    let is_bad = |row: &blkpilot_log::DecisionRow| row.heads[0].executed == 1;
    let bad = harmed.iter().filter(|d| d.rows.iter().any(is_bad)).count();
    assert!(
        (1..=3).contains(&bad),
        "{bad} windows before it was noticed"
    );
    let id = reason.split(':').next().unwrap();
    let row = guarded.rows.iter().find(
        |row| matches!(&row.subject, Subject::Disk { guest, .. } if id.starts_with(guest.as_str())),
    );
    assert_eq!(row.unwrap().heads[0].executed, 0, "back to float");
    let kept = case.host.history.page("local", None, 1_000).unwrap();
    let kept = kept.decisions.iter().find(|d| d.id == guarded.id).unwrap();
    assert_eq!(kept.reason, guarded.reason);
}

#[tokio::test]
async fn a_way_back_of_the_guard_that_fails_is_tried_again() {
    let fate = Fate {
        binds: AtomicU32::new(2),
        ..Fate::default()
    };
    let policy = Box::new(Harmful { turns: 0 });
    let case = Case::on(presets::identical_disks(4, 4), fate, Mode::Auto, policy);
    let mut watcher = case.host.watch().unwrap();
    let mut tried = 0;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), watcher.recv());
        let decision = next.await.unwrap().unwrap();
        if decision.source != Source::Guard {
            continue;
        }
        tried += 1;
        let went_back = |row: &blkpilot_log::DecisionRow| {
            let head = &row.heads[0];
            head.previous == 1 && head.executed == 0
        };
        if decision.rows.iter().any(went_back) {
            break;
        }
    }
    assert!(tried > 1, "the first way back was refused");
    assert_eq!(case.fate.binds.load(Ordering::SeqCst), 0);
}

fn frozen(knob: &str, head: Option<Knob>) -> FrozenKnob {
    FrozenKnob {
        knob: knob.to_owned(),
        head,
        targets: vec!["vda".to_owned()],
        original: "0-3".to_owned(),
        set: "1".to_owned(),
        found: "2".to_owned(),
        at_us: None,
    }
}

fn unfreeze(guest: &str) -> UnfreezeCall {
    UnfreezeCall {
        guest: guest.to_owned(),
        target: None,
        knob: None,
        validate_only: false,
    }
}

#[tokio::test]
async fn frozen_knobs_are_shown_and_unfrozen_as_far_as_is_asked() {
    let fate = Fate::default();
    fate.frozen.lock().unwrap().extend([
        frozen("iothread/1/cpus", Some(Knob::Channel)),
        frozen("disk/vda/cache", Some(Knob::Cache)),
        frozen("disk/vda/histogram", None),
    ]);
    let case = Case::with(fate, Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let shown = || {
        let window = case.host.view.borrow().window.clone().unwrap();
        let backup = window.guests.iter().find(|g| g.status.name == "backup");
        backup.unwrap().status.frozen.len()
    };
    assert_eq!(shown(), 3);

    let dry = UnfreezeCall {
        validate_only: true,
        ..unfreeze("backup")
    };
    assert_eq!(case.host.unfreeze(dry).await.unwrap().len(), 3);
    assert_eq!(shown(), 3);
    for (call, found) in [
        (unfreeze("nobody"), "guests/nobody"),
        (
            UnfreezeCall {
                target: Some("vdz".to_owned()),
                ..unfreeze("backup")
            },
            "disks/vdz",
        ),
    ] {
        let refused = case.host.unfreeze(call).await.unwrap_err();
        assert!(refused.message().contains(found), "{}", refused.message());
    }
    let cache = UnfreezeCall {
        target: Some("vda".to_owned()),
        knob: Some(Knob::Cache),
        ..unfreeze("backup")
    };
    let done = case.host.unfreeze(cache).await.unwrap();
    assert_eq!(done.len(), 1);
    assert_eq!(
        (done[0].knob.as_str(), done[0].found.as_str()),
        ("disk/vda/cache", "in force")
    );
    assert_eq!(shown(), 2);
    assert_eq!(
        case.host.unfreeze(unfreeze("backup")).await.unwrap().len(),
        2
    );
    assert_eq!(case.host.unfreeze(unfreeze("backup")).await.unwrap(), []);
    assert_eq!(shown(), 0);
}

#[tokio::test]
async fn nothing_is_unfrozen_under_somebodys_environment() {
    let case = Case::new(Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let _lease = HostedEnvironment::attach(case.host.clone(), None)
        .await
        .unwrap();
    let refused = case.host.unfreeze(unfreeze("backup")).await.unwrap_err();
    assert_eq!(refused.reason(), "HOST_ATTACHED");
}

impl Case {
    fn ring(&self) {
        let ring = self.fate.ring.lock().unwrap().clone();
        ring.unwrap()();
    }

    /// Waits until these guests are shown, in the window that was the last before.
    async fn wait_for_guests(&self, is_so: impl Fn(&[String]) -> bool) {
        let mut view = self.host.view.clone();
        let at_us = view.borrow().window.as_ref().unwrap().at_us;
        let shown = view.wait_for(|view| {
            let window = view.window.as_ref().unwrap();
            assert_eq!(window.at_us, at_us, "no other window has ended");
            let names = window.guests.iter().map(|guest| guest.status.name.clone());
            is_so(&names.collect::<Vec<_>>())
        });
        let shown = tokio::time::timeout(Duration::from_secs(60), shown).await;
        shown.unwrap().unwrap();
    }
}

fn rarely() -> Fate {
    Fate {
        interval: Some(Duration::from_secs(3600)),
        ..Fate::default()
    }
}

#[tokio::test]
async fn a_guest_that_goes_or_comes_is_known_long_before_the_next_look() {
    let case = Case::with(rarely(), Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let gone = "backup".to_owned();
    case.fate.gone.lock().unwrap().push(gone.clone());
    case.ring();
    case.wait_for_guests(|guests| !guests.contains(&gone)).await;
    // Its row is still there, and nothing can be asked for on it.
    let refused = case.host.change(set(&["backup"])).await.unwrap_err();
    assert_eq!(refused.reason(), "NOT_FOUND");
    case.host.change(set(&["builds"])).await.unwrap();
    case.fate.gone.lock().unwrap().clear();
    case.ring();
    case.wait_for_guests(|guests| guests.contains(&gone)).await;
}

#[tokio::test]
async fn whoever_asks_before_anything_changes_has_the_same_proposal() {
    let case = Case::with(rarely(), Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let first = case.host.propose().await.unwrap();
    assert_eq!(case.host.propose().await.unwrap(), first);
    let change = RewardChange {
        cpu: Some(0.75),
        ..RewardChange::default()
    };
    let call = RewardCall {
        change,
        validate_only: false,
    };
    case.host.set_reward(call).await.unwrap();
    let second = case.host.propose().await.unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(case.host.propose().await.unwrap().id, second.id);

    let apply = |id| ChangeCall {
        request: Request::Proposal(id),
        ..set(&["backup"])
    };
    // Both can be applied still, once: what is in force is what they were made for.
    let applied = case.host.change(apply(first.id)).await.unwrap();
    assert_eq!((applied.id, applied.state), (first.id, State::Applied));
    let refused = case.host.change(apply(first.id)).await.unwrap_err();
    assert_eq!(refused.reason(), "PROPOSAL_STALE");
    assert!(refused.message().contains("was applied already"));
    let refused = case.host.change(apply(second.id)).await.unwrap_err();
    assert!(refused.message().contains("was made for other levels"));
    assert_ne!(case.host.propose().await.unwrap().id, second.id);
}

#[tokio::test]
async fn of_many_proposals_the_last_ones_can_be_applied() {
    let case = Case::with(rarely(), Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let mut proposed = vec![];
    for turn in 0..=256 {
        let change = RewardChange {
            cpu: Some(f64::from(turn) / 1000.0),
            ..RewardChange::default()
        };
        let call = RewardCall {
            change,
            validate_only: false,
        };
        case.host.set_reward(call).await.unwrap();
        proposed.push(case.host.propose().await.unwrap().id);
    }
    let refused = case.host.find(proposed[0]).await.unwrap_err();
    assert_eq!(refused.reason(), "NOT_FOUND");
    for id in &proposed[1..] {
        assert_eq!(case.host.find(*id).await.unwrap().id, *id);
    }
}

#[tokio::test]
async fn a_storm_of_events_is_seen_in_a_few_looks_and_calls_are_still_answered() {
    let case = Case::with(rarely(), Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    let started = Instant::now();
    for _ in 0..100_000 {
        case.ring();
    }
    case.host.propose().await.unwrap();
    case.fate.gone.lock().unwrap().push("backup".to_owned());
    case.ring();
    let gone = "backup".to_owned();
    case.wait_for_guests(|guests| !guests.contains(&gone)).await;
    let most = 2 + started.elapsed().as_millis() / 500;
    let refreshes = u128::from(case.fate.refreshes.load(Ordering::SeqCst));
    assert!((1..=most).contains(&refreshes), "{refreshes} of {most}");
}

#[tokio::test]
async fn what_happened_while_the_host_could_not_be_asked_is_made_up_for() {
    let case = Case::with(rarely(), Mode::Advise, least_loaded());
    case.wait_for(|state| *state == HostState::Ready).await;
    case.fate.is_away.store(true, Ordering::SeqCst);
    case.fate.gone.lock().unwrap().push("backup".to_owned());
    case.ring();
    let fate = &case.fate;
    eventually(|| fate.refreshes.load(Ordering::SeqCst) > 0).await;
    case.fate.is_away.store(false, Ordering::SeqCst);
    // Nothing rings any more.
    let gone = "backup".to_owned();
    case.wait_for_guests(|guests| !guests.contains(&gone)).await;
}
