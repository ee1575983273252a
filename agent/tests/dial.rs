//! The dial on a simulated host: shadow, canary and auto beside each other, exploration and its budget,
//! and what stands in for a policy that fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blkpilot_agent::admission::Modes;
use blkpilot_agent::backend::simulated::{SimulatedHost, spec};
use blkpilot_agent::backend::{
    BackendError, BackendKind, Execution, GuestStatus, HostBackend, Window,
};
use blkpilot_agent::chain::{Chain, Counts, Loaded};
use blkpilot_agent::config::{GuestConfig, OnExit};
use blkpilot_agent::decision::{Decision, PolicyRef, Source, State};
use blkpilot_agent::handle::{HostHandle, HostView, ShownExploration};
use blkpilot_agent::history::Recorder;
use blkpilot_agent::mode::Mode;
use blkpilot_agent::owner::{OwnerConfig, start};
use blkpilot_env::clock::ManualClock;
use blkpilot_env::features::{CACHE_HEAD, CHANNEL_HEAD};
use blkpilot_env::guard::GuardConfig;
use blkpilot_env::guard::exploration::Exploration;
use blkpilot_env::sample::HostSample;
use blkpilot_env::sim::presets;
use blkpilot_env::{EnvSpec, JointAction, Level, Observation, Rng, TurnView};
use blkpilot_log::{DecisionRow, Event, Reader, Source as LogSource, Stage, Subject};
use blkpilot_models::baseline::{KeepDefault, LeastLoaded, RandomPolicy};
use blkpilot_models::{Choice, Policy, PolicyError};
use tempfile::TempDir;

/// What a policy may take for a joint decision.
const LIMIT: Duration = Duration::from_secs(1);

/// Every action that a host was told to take, with what was in force.
type Told = Arc<Mutex<Vec<(JointAction, JointAction)>>>;

/// A simulated host that remembers what it was told.
struct Watched {
    host: SimulatedHost,
    told: Told,
}

impl HostBackend for Watched {
    fn kind(&self) -> BackendKind {
        self.host.kind()
    }

    fn spec(&self) -> &EnvSpec {
        self.host.spec()
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

fn loaded(name: &str, policy: impl Policy + 'static) -> Loaded {
    Loaded {
        policy: Box::new(policy),
        reference: PolicyRef {
            name: name.to_owned(),
            version: format!("{name}-1"),
        },
    }
}

/// What is decided on four equal guests `guest-0` to `guest-3` with four channels.
struct Setup {
    /// Of the guests, in order.
    modes: [Mode; 4],
    /// Of `guest-0`.
    exploration: Option<Exploration>,
    production: Chain,
    candidate: Option<Loaded>,
    guard: GuardConfig,
    clock: ManualClock,
}

impl Setup {
    fn new(modes: [Mode; 4], production: Loaded) -> Self {
        Self {
            modes,
            exploration: None,
            production: Chain::with_fallbacks(production, None, &four(), LIMIT),
            candidate: None,
            guard: easy(),
            clock: ManualClock::default(),
        }
    }

    fn start(self) -> Case {
        let (dir, told) = (TempDir::new().unwrap(), Told::default());
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
            has_candidate: self.candidate.is_some(),
        };
        let connect = {
            let told = Arc::clone(&told);
            move || {
                let scenario = presets::identical_disks(4, 4);
                let host = SimulatedHost::open(scenario, 1, BTreeMap::new())?;
                let told = Arc::clone(&told);
                Ok(Box::new(Watched { host, told }) as Box<dyn HostBackend>)
            }
        };
        let config = OwnerConfig {
            name: "local".to_owned(),
            kind: BackendKind::Simulated,
            interval: Duration::from_millis(2),
            modes,
            production: self.production,
            candidate: self.candidate.map(|policy| Chain::alone(policy, LIMIT)),
            proof: None,
            clock: Box::new(self.clock),
            spec: four(),
            seed: 1,
            connect: Box::new(connect),
            recorder: Recorder::open(dir.path(), 1 << 30).unwrap(),
            guard: self.guard,
        };
        let (host, _) = start(config).unwrap();
        Case { host, told, dir }
    }
}

/// A guard that judges in one window and finds nothing harmful, so that exploring goes on.
fn easy() -> GuardConfig {
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

fn four() -> EnvSpec {
    spec(&presets::identical_disks(4, 4)).unwrap()
}

struct Case {
    host: HostHandle,
    told: Told,
    dir: TempDir,
}

impl Case {
    async fn view(&self, is_so: impl Fn(&HostView) -> bool) -> HostView {
        let mut view = self.host.view.clone();
        let seen = view.wait_for(|view| is_so(view));
        let seen = tokio::time::timeout(Duration::from_secs(60), seen).await;
        seen.unwrap().unwrap().clone()
    }

    /// So many decisions, oldest first, once there are as many.
    async fn decisions(&self, count: usize) -> Vec<Arc<Decision>> {
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
    async fn log(self) -> Vec<Event> {
        self.host.stop(OnExit::Keep).await.unwrap();
        let entries = Reader::open(self.dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().event).collect()
    }

    /// Whether the host was ever told to change this disk.
    fn was_changed(&self, disk: usize) -> bool {
        let told = self.told.lock().unwrap();
        let mut told = told.iter();
        told.any(|(current, action)| current.disks.row(disk) != action.disks.row(disk))
    }
}

fn guest(row: &DecisionRow) -> &str {
    match &row.subject {
        Subject::Disk { guest, .. } => guest,
        Subject::Device { name } => panic!("devices have no heads here: {name}"),
    }
}

fn rows<'a>(
    decisions: &'a [Arc<Decision>],
    of: &'a str,
) -> impl Iterator<Item = &'a DecisionRow> + 'a {
    let rows = decisions.iter().flat_map(|decision| &decision.rows);
    rows.filter(move |row| guest(row) == of)
}

/// Takes one channel for every disk, where it may.
#[derive(Clone, Copy)]
struct Channel(Level);

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

// Shadow and canary.

#[tokio::test]
async fn a_shadow_changes_nothing_and_logs_what_the_candidate_would_do() {
    let modes = [Mode::Shadow, Mode::Observe, Mode::Advise, Mode::Off];
    let mut setup = Setup::new(modes, loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", RandomPolicy));
    let case = setup.start();
    let decisions = case.decisions(40).await;
    let mut would_change = 0;
    for decision in &decisions {
        assert_eq!(
            (decision.source, decision.state, decision.durable),
            (Source::Shadow, State::Proposed, true)
        );
        let by = decision.policy.as_ref().unwrap();
        assert_eq!(by.version, "candidate-1");
        assert_eq!(decision.rows.len(), 1);
        for row in &decision.rows {
            assert_eq!(
                (guest(row), row.source, row.policy_version.as_str()),
                ("guest-0", LogSource::Shadow, "candidate-1")
            );
            for head in &row.heads {
                let allowed = head.mask.iter().filter(|m| m.is_allowed()).count();
                assert!(!head.forced && allowed >= 2, "{head:?}");
                assert_eq!(head.propensity, 1.0 / allowed as f64);
                assert_eq!(head.executed, head.previous);
                assert_eq!(head.altered.is_some(), head.requested != head.executed);
                would_change += usize::from(head.altered.is_some());
            }
        }
    }
    assert!(would_change > 0);
    assert_eq!(case.told.lock().unwrap().len(), 0);
    let id = decisions[0].id;
    let mut from_log = vec![];
    for event in case.log().await {
        match event {
            Event::Decision(row) if row.host_step_id.0 == id.as_u128() => from_log.push(*row),
            Event::Decision(_) => {}
            Event::Outcome(outcome) => panic!("nothing came of it: {outcome:?}"),
        }
    }
    let again = Decision::from_log(from_log).unwrap().slim();
    assert_eq!(again, *decisions[0]);
}

#[tokio::test]
async fn a_proposal_for_a_guest_in_the_shadow_is_the_production_policys() {
    let mut setup = Setup::new([Mode::Shadow; 4], loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", Channel(2)));
    let case = setup.start();
    case.view(|view| view.window.is_some()).await;
    let proposal = case.host.propose().await.unwrap();
    assert_eq!(proposal.policy.as_ref().unwrap().name, "production");
    let chosen = proposal
        .rows
        .iter()
        .map(|row| row.heads[CHANNEL_HEAD].requested);
    assert_eq!(chosen.collect::<Vec<_>>(), [1; 4]);
}

#[tokio::test]
async fn canary_and_auto_decide_together_each_by_its_own_policy() {
    let modes = [Mode::Canary, Mode::Auto, Mode::Shadow, Mode::Advise];
    let mut setup = Setup::new(modes, loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", Channel(2)));
    let case = setup.start();
    let decisions = case.decisions(20).await;
    let (shadow, joint): (Vec<_>, Vec<_>) = decisions
        .into_iter()
        .partition(|decision| decision.source == Source::Shadow);
    assert!(shadow.len() >= 9 && joint.len() >= 9);
    for decision in &joint {
        assert_eq!((decision.source, decision.rows.len()), (Source::Auto, 4));
        assert_eq!(decision.policy.as_ref().unwrap().name, "production");
        for row in &decision.rows {
            let want = match guest(row) {
                "guest-0" => (LogSource::Canary, "candidate", "candidate-1"),
                _ => (LogSource::Auto, "production", "production-1"),
            };
            let by = (row.source, row.policy.as_str(), row.policy_version.as_str());
            assert_eq!(by, want);
        }
    }
    let first = |of| rows(&joint, of).next().unwrap().heads[CHANNEL_HEAD].executed;
    assert_eq!((first("guest-0"), first("guest-1")), (2, 1));
    assert_eq!((first("guest-2"), first("guest-3")), (0, 0));
    let changed = [0, 1, 2, 3].map(|disk| case.was_changed(disk));
    assert_eq!(changed, [true, true, false, false]);
    let shadowed = rows(&shadow, "guest-2").next().unwrap();
    assert_eq!(shadowed.heads[CHANNEL_HEAD].requested, 2);
    // What was decided together is read back as one decision.
    let wanted = joint[0].clone();
    let mut from_log = vec![];
    for event in case.log().await {
        if let Event::Decision(row) = event
            && row.host_step_id.0 == wanted.id.as_u128()
        {
            from_log.push(*row);
        }
    }
    assert_eq!(Decision::from_log(from_log).unwrap().slim(), *wanted);
}

#[tokio::test]
async fn each_disk_sees_the_choices_made_before_it_whoever_made_them() {
    let least_loaded = || LeastLoaded::new(&four()).unwrap();
    let modes = [Mode::Canary, Mode::Auto, Mode::Canary, Mode::Auto];
    let mut setup = Setup::new(modes, loaded("production", least_loaded()));
    setup.candidate = Some(loaded("candidate", least_loaded()));
    let case = setup.start();
    let decisions = case.decisions(1).await;
    let rows = decisions[0].rows.iter();
    let channels: BTreeSet<Level> = rows.map(|row| row.heads[CHANNEL_HEAD].executed).collect();
    // Four equal disks, four channels: one each.
    assert_eq!(channels, BTreeSet::from([1, 2, 3, 4]));
}

#[tokio::test]
async fn without_a_candidate_shadow_and_canary_are_advice_and_say_so() {
    let modes = [Mode::Shadow, Mode::Canary, Mode::Advise, Mode::Advise];
    let case = Setup::new(modes, loaded("production", Channel(1))).start();
    let view = case.view(|view| view.window.is_some()).await;
    for (shown, mode) in view.window.unwrap().guests.iter().zip(modes) {
        assert_eq!(shown.mode, Mode::Advise);
        let notice = shown.notice.clone().unwrap_or_default();
        let is_one = notice.contains(&format!("mode {mode}")) && notice.contains("[candidate]");
        assert_eq!(is_one, mode.needs_candidate(), "{notice}");
    }
    let mut last = 0;
    for _ in 0..10 {
        let is_next = |view: &HostView| view.window.as_ref().is_some_and(|w| w.at_us > last);
        let view = case.view(is_next).await;
        last = view.window.unwrap().at_us;
    }
    assert_eq!(case.told.lock().unwrap().len(), 0);
}

// Exploration.

fn exploring(epsilon: f64, changes_per_hour: u32, guard: GuardConfig) -> Setup {
    let modes = [Mode::Auto, Mode::Auto, Mode::Observe, Mode::Observe];
    Setup {
        exploration: Some(Exploration {
            epsilon,
            changes_per_hour,
        }),
        guard,
        ..Setup::new(modes, loaded("production", KeepDefault))
    }
}

/// Explored draws that set another level than the one in force.
fn explored_changes<'a>(rows: impl Iterator<Item = &'a DecisionRow>) -> usize {
    let is_one = |row: &&DecisionRow| {
        let mut heads = row.heads.iter();
        heads.any(|head| head.explored && head.requested != head.previous)
    };
    rows.filter(is_one).count()
}

fn shown(view: &HostView, of: &str) -> Option<ShownExploration> {
    let window = view.window.as_ref().unwrap();
    let guest = window.guests.iter().find(|guest| guest.status.name == of);
    guest.unwrap().exploration.clone()
}

#[tokio::test]
async fn the_mixtures_propensity_is_logged() {
    let epsilon = 0.4;
    let case = exploring(epsilon, 3600, easy()).start();
    let decisions = case.decisions(300).await;
    let view = case.view(|view| view.window.is_some()).await;
    let defaults = view
        .window
        .unwrap()
        .observation
        .default
        .disks
        .row(0)
        .to_vec();
    let (mut explored, mut greedy) = (0, 0);
    for row in rows(&decisions, "guest-0") {
        assert!(row.epsilon == epsilon || row.epsilon == 0.0);
        for (head, default) in row.heads.iter().zip(&defaults) {
            let allowed = head.mask.iter().filter(|m| m.is_allowed()).count() as f64;
            let want = match (head.forced, head.requested == *default) {
                (true, _) => 1.0,
                (false, true) => 1.0 - row.epsilon + row.epsilon / allowed,
                (false, false) => row.epsilon / allowed,
            };
            assert!(
                (head.propensity - want).abs() < 1e-12,
                "{head:?} of {row:?}"
            );
            assert!(!head.explored || row.epsilon > 0.0 && !head.forced);
            explored += usize::from(head.explored);
            greedy += usize::from(!head.explored && !head.forced);
        }
    }
    assert!(explored > 20 && greedy > 20, "{explored} and {greedy}");
    for row in rows(&decisions, "guest-1") {
        assert_eq!(row.epsilon, 0.0);
        assert!(row.heads.iter().all(|head| head.propensity == 1.0));
    }
    assert!(case.was_changed(0) && !case.was_changed(1));
}

#[tokio::test]
async fn an_exhausted_budget_ends_exploring() {
    let case = exploring(0.9, 2, easy()).start();
    let is_used_up = |view: &HostView| {
        view.window.is_some() && shown(view, "guest-0").is_some_and(|e| e.changes_left == 0)
    };
    let view = case.view(is_used_up).await;
    let pause = shown(&view, "guest-0").unwrap().pause.unwrap();
    assert!(pause.contains("budget"), "{pause}");
    let so_far = case.host.history.page("local", None, 10_000).unwrap();
    // Less than an hour on the host's clock, which passes an interval per window.
    let decisions = case.decisions(so_far.decisions.len() + 40).await;
    assert_eq!(explored_changes(rows(&decisions, "guest-0")), 2);
    let of_guest: Vec<&DecisionRow> = rows(&decisions, "guest-0").collect();
    let last = of_guest.iter().rposition(|row| row.epsilon > 0.0).unwrap();
    for row in &of_guest[last + 1..] {
        assert!(
            row.heads.iter().all(|head| head.propensity == 1.0),
            "{row:?}"
        );
    }
    assert!(of_guest.len() - last > 40);
}

#[tokio::test]
async fn a_guest_that_misses_its_objective_is_not_explored() {
    let mut guard = easy();
    guard.trial.p99_objective_us = Some(0.001);
    let case = exploring(0.9, 3600, guard).start();
    let decisions = case.decisions(30).await;
    assert!(rows(&decisions, "guest-0").all(|row| row.epsilon == 0.0));
    let view = case.view(|view| view.window.is_some()).await;
    let shown = shown(&view, "guest-0").unwrap();
    assert_eq!(shown.changes_left, 3600);
    assert!(shown.pause.unwrap().contains("objective"));
    assert_eq!(explored_changes(rows(&decisions, "guest-0")), 0);
}

#[tokio::test]
async fn nothing_is_explored_while_a_change_is_on_trial() {
    let mut guard = easy();
    guard.trial.windows = 5;
    let case = exploring(0.9, 3600, guard).start();
    let decisions = case.decisions(60).await;
    let of_guest: Vec<&DecisionRow> = rows(&decisions, "guest-0").collect();
    let changed = |row: &&DecisionRow| row.heads.iter().any(|h| h.executed != h.previous);
    let changes: Vec<usize> = (0..of_guest.len())
        .filter(|i| changed(&of_guest[*i]))
        .collect();
    assert!(changes.len() >= 3, "{changes:?}");
    for at in changes {
        let after = of_guest[at + 1..].iter().take(4);
        assert!(after.clone().all(|row| row.epsilon == 0.0));
        assert!(after.flat_map(|row| &row.heads).all(|head| head.forced));
    }
}

// The fallback chain.

/// A policy that fails in every turn.
enum Faulty {
    Error,
    NotFinite,
    NotAllowed,
    /// By this clock.
    Slow(ManualClock),
}

impl Policy for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn choose(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let mut choice = Choice::certain(view.current.to_vec());
        match self {
            Self::Error => {
                return Err(PolicyError::NoChannelHead {
                    policy: "faulty".to_owned(),
                    spec: spec.name.clone(),
                });
            }
            Self::NotFinite => choice.propensities[CACHE_HEAD] = f64::NAN,
            Self::NotAllowed => choice.levels[CACHE_HEAD] = 7,
            // Two turns are in time, the third is not.
            Self::Slow(clock) => clock.advance(LIMIT * 2 / 5),
        }
        Ok(choice)
    }
}

/// The stages of the first decision's rows, in the order of the turns.
fn stages(decisions: &[Arc<Decision>]) -> Vec<Stage> {
    decisions[0].rows.iter().map(|row| row.stage).collect()
}

#[tokio::test]
async fn the_heuristic_stands_in_for_a_policy_however_it_fails() {
    for (fault, said) in [
        (Faulty::Error, "points at any"),
        (Faulty::NotFinite, "NaN"),
        (Faulty::NotAllowed, "level 7"),
    ] {
        let case = Setup::new([Mode::Auto; 4], loaded("faulty", fault)).start();
        let decisions = case.decisions(3).await;
        assert_eq!(stages(&decisions), [Stage::Heuristic; 4]);
        let by = decisions[0].rows.iter().map(|row| row.policy.as_str());
        assert_eq!(by.collect::<Vec<_>>(), ["least_loaded"; 4]);
        let view = case.view(|view| view.policy_error.is_some()).await;
        assert!(view.policy_error.unwrap().contains(said), "{said}");
        let Counts {
            last_good,
            heuristic,
            keep,
        } = view.fallbacks;
        assert!(heuristic >= 3);
        assert_eq!((last_good, keep), (0, 0));
    }
}

#[tokio::test]
async fn a_late_policy_is_out_for_the_rest_of_the_decision() {
    let clock = ManualClock::default();
    let slow = loaded("slow", Faulty::Slow(clock.clone()));
    let mut setup = Setup::new([Mode::Auto; 4], slow);
    setup.clock = clock;
    let case = setup.start();
    let decisions = case.decisions(3).await;
    for decision in &decisions {
        let stages = decision.rows.iter().map(|row| row.stage);
        assert_eq!(
            stages.collect::<Vec<_>>(),
            [
                Stage::Policy,
                Stage::Policy,
                Stage::Heuristic,
                Stage::Heuristic
            ]
        );
    }
    let view = case.view(|view| view.policy_error.is_some()).await;
    let error = view.policy_error.unwrap();
    assert!(
        error.contains("slow") && error.contains("1000 ms"),
        "{error}"
    );
}

#[tokio::test]
async fn the_last_good_policy_comes_before_the_heuristic_and_nothing_after_it() {
    let faulty = || loaded("faulty", Faulty::Error);
    let mut setup = Setup::new([Mode::Auto; 4], faulty());
    let last_good = Some(loaded("before", Channel(3)));
    setup.production = Chain::with_fallbacks(faulty(), last_good, &four(), LIMIT);
    let case = setup.start();
    let decisions = case.decisions(3).await;
    assert_eq!(stages(&decisions), [Stage::LastGood; 4]);
    let row = &decisions[0].rows[0];
    assert_eq!(row.policy_version, "before-1");
    assert_eq!(row.heads[CHANNEL_HEAD].executed, 3);
    let view = case.view(|view| view.fallbacks.last_good >= 3).await;
    assert_eq!((view.fallbacks.heuristic, view.fallbacks.keep), (0, 0));

    let mut setup = Setup::new([Mode::Auto; 4], faulty());
    setup.production = Chain::alone(faulty(), LIMIT);
    let case = setup.start();
    let decisions = case.decisions(3).await;
    assert_eq!(stages(&decisions), [Stage::Keep; 4]);
    assert!((0..4).all(|disk| !case.was_changed(disk)));
    let view = case.view(|view| view.fallbacks.keep >= 3).await;
    assert_eq!((view.fallbacks.last_good, view.fallbacks.heuristic), (0, 0));
}

#[tokio::test]
async fn the_production_policy_stands_in_for_a_candidate_that_fails() {
    let modes = [Mode::Canary, Mode::Auto, Mode::Observe, Mode::Observe];
    let mut setup = Setup::new(modes, loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", Faulty::Error));
    let case = setup.start();
    let decisions = case.decisions(3).await;
    let canary = rows(&decisions, "guest-0").next().unwrap();
    assert_eq!(
        (canary.source, canary.stage, canary.policy.as_str()),
        (LogSource::Canary, Stage::LastGood, "production")
    );
    assert_eq!(canary.heads[CHANNEL_HEAD].executed, 1);
    let auto = rows(&decisions, "guest-1").next().unwrap();
    assert_eq!(auto.stage, Stage::Policy);
    let view = case
        .view(|view| view.candidate_fallbacks.last_good >= 3)
        .await;
    assert_eq!(view.fallbacks, Counts::default());
    assert_eq!(view.policy_error, None);
    let view = case.view(|view| view.candidate_error.is_some()).await;
    assert!(view.candidate_error.unwrap().contains("faulty"));
}

#[tokio::test]
async fn a_candidate_that_fails_in_the_shadow_is_named_and_logs_nothing() {
    let mut setup = Setup::new([Mode::Shadow; 4], loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", Faulty::Error));
    let case = setup.start();
    let view = case.view(|view| view.candidate_error.is_some()).await;
    assert!(view.candidate_error.unwrap().contains("faulty"));
    assert_eq!(view.policy_error, None);
    assert_eq!(case.log().await, []);
}
