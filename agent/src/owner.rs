//! The owner of a host: the one thread that touches it.
//!
//! Calls come in over a bounded queue; what is seen goes out over a watch channel, what is decided
//! over a broadcast channel. Between calls the owner looks at the host once per interval and, for
//! guests in mode `shadow`, `canary` or `auto`, lets the policies decide. A host that cannot be reached
//! is tried again, less and less often.

mod attached;
mod change;
mod deciding;
mod device;
mod device_trial;
mod disks;
mod guarding;
pub mod handle;
mod harm;
mod held;
pub mod last_good;
mod neighbours;
mod panel;
pub mod pulse;
mod refresh;
mod reload;
mod reward;
mod seat;
mod unfreeze;

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkpilot_env::clock::Clock;
use blkpilot_env::guard::GuardConfig;
use blkpilot_env::guard::exploration::ExplorationBudget;
use blkpilot_env::guard::neighbour::{NeighbourConfig, NeighbourWatch};
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::{EnvSpec, JointAction, Observation, Rewards, Rng, Turn};
use blkpilot_log::turn::Ending;
use blkpilot_log::{DecisionRow, OutcomeRow};
use rand::SeedableRng as _;
use tokio::sync::{broadcast, watch};
use tonic::Code;
use uuid::Uuid;

use self::attached::Attached;
use self::device_trial::Before;
use self::guarding::Watch;
use self::handle::{
    ChangeCall, Command, HostHandle, HostInfo, HostState, HostView, MOST_WAITING, Origin, Request,
    ShownGuest, ShownWindow, Stop, StopSlot, unavailable,
};
use self::harm::HarmWatch;
use self::last_good::Proof;
use self::pulse::Pulse;
use self::refresh::{Bell, Refresh};
use self::seat::{Displaced, Seated};
use crate::admission::{self, Purpose};
use crate::backend::modes::Modes;
use crate::backend::{BackendError, BackendKind, Connect, GuestStatus, HostBackend};
use crate::config::OnExit;
use crate::decision::chain::{Chain, Counts};
use crate::decision::history::Recorder;
use crate::decision::learner::Learner;
use crate::decision::{Context, Decision, PolicyRef, now_us};
use crate::wire::names::decision_name;
use crate::wire::status::Failure;

/// Decisions that a watcher may be behind.
const MOST_UNSEEN: usize = 256;
/// The longest pause between two attempts to reach a host.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// What an owner needs to know.
pub struct OwnerConfig {
    /// Name of the host.
    pub name: String,
    /// What stands behind it.
    pub kind: BackendKind,
    /// What can be seen and done there.
    pub spec: EnvSpec,
    /// Length of one decision interval on the wall clock.
    pub interval: Duration,
    /// The modes of its guests.
    pub modes: Modes,
    /// What decides in production, and what stands in for it.
    pub production: Chain,
    /// What decides for guests in mode shadow and canary.
    pub candidate: Option<Chain>,
    /// Where the production policy comes from.
    pub origin: Origin,
    /// The configuration's, where another decides from the start and it is to be kept.
    pub configured: Option<Chain>,
    /// Keeps the production policy as the last good one, once it has proved itself.
    pub proof: Option<Proof>,
    /// What learns from what comes of decisions.
    pub learners: Vec<Learner>,
    /// Measures how long a policy takes.
    pub clock: Box<dyn Clock + Sync>,
    /// Seed of the order of decisions and of sampling.
    pub seed: u64,
    /// Reaches the host.
    pub connect: Connect,
    /// Records what is decided.
    pub recorder: Recorder,
    /// How careful its guard is.
    pub guard: GuardConfig,
    /// When it limits heavy neighbours; `None` for never.
    pub neighbours: Option<NeighbourConfig>,
    /// What is paid for, until somebody sets it otherwise.
    pub reward: RewardConfig,
}

/// Starts the owner of a host on a thread of its own.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(config: OwnerConfig) -> std::io::Result<(HostHandle, JoinHandle<()>)> {
    let (commands, inbox) = sync_channel(MOST_WAITING);
    let commands = Arc::new(commands);
    let bell = Bell::new(&commands);
    let pulse = Pulse::new(Instant::now());
    let (decisions, _) = broadcast::channel(MOST_UNSEEN);
    let (shown, view) = watch::channel(HostView {
        state: HostState::Starting,
        window: None,
        policy: config.production.reference().clone(),
        candidate: config.candidate.as_ref().map(|c| c.reference().clone()),
        policy_error: None,
        fallbacks: Counts::default(),
        candidate_error: None,
        candidate_fallbacks: Counts::default(),
        production_harm: None,
        candidate_harm: None,
        tuning_daemons: vec![],
        reward: config.reward,
        default_mode: config.modes.default,
    });
    let info = Arc::new(HostInfo {
        name: config.name.clone(),
        kind: config.kind,
        spec: config.spec.clone(),
        interval: config.interval,
    });
    let stop = StopSlot::default();
    let handle = HostHandle {
        stop: Arc::clone(&stop),
        info,
        view,
        history: config.recorder.history(),
        pulse: Arc::clone(&pulse),
        commands,
        decisions: decisions.downgrade(),
    };
    let name = format!("host-{}", config.name);
    let owner = Owner::new(config, shown, decisions, bell);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        owner.run(&inbox, &stop, &pulse);
        drop(inbox);
        // Whoever asked too late hears so.
        stop.lock().unwrap_or_else(PoisonError::into_inner).take();
    })?;
    Ok((handle, thread))
}

struct Owner {
    config: OwnerConfig,
    context: Context,
    shown: watch::Sender<HostView>,
    decisions: broadcast::Sender<Arc<Decision>>,
    backend: Option<Box<dyn HostBackend>>,
    window: Option<Seen>,
    rng: Rng,
    /// The candidate's in the shadow, so that it changes no draw of those who act.
    shadow_rng: Rng,
    explored: ExplorationBudget,
    /// Decisions that wait for what comes of them, by row of the disk table.
    awaited: BTreeMap<usize, DecisionRow>,
    proposals: VecDeque<Proposal>,
    requests: VecDeque<(Uuid, Request, Arc<Decision>)>,
    next_look: Instant,
    /// Rung when guests may have changed.
    bell: Arc<Bell>,
    refresh: Refresh,
    backoff: Duration,
    policy_error: Option<String>,
    candidate_error: Option<String>,
    attached: Option<Attached>,
    watch: Watch,
    harm: HarmWatch,
    neighbours: Option<NeighbourWatch>,
    /// Settings of devices that are being judged, in the order in which they were changed.
    device_trials: BTreeMap<String, Vec<Before>>,
    /// Settings of an environment that has gone may be in force still.
    restore_due: bool,
    /// Since the start: before that nothing of it can have been changed.
    was_reached: bool,
    seated: Seated,
    displaced: Displaced,
}

/// The last window, with masks that do not know modes.
struct Seen {
    observation: Observation,
    guests: Vec<GuestStatus>,
    at_us: i64,
}

struct Proposal {
    decision: Arc<Decision>,
    action: JointAction,
    turns: Vec<Turn>,
    /// What was in force when it was made.
    disk_ids: Vec<String>,
    current: JointAction,
    expires: Instant,
}

impl Owner {
    fn new(
        mut config: OwnerConfig,
        shown: watch::Sender<HostView>,
        decisions: broadcast::Sender<Arc<Decision>>,
        bell: Arc<Bell>,
    ) -> Self {
        let seated = Seated::new(config.configured.take(), config.origin);
        let context = Context {
            host: config.name.as_str().into(),
            episode: Uuid::new_v4(),
            spec_hash: config.spec.hash().into(),
            reward_weights: Arc::new(config.reward.numbers()),
        };
        Self {
            context,
            shown,
            decisions,
            backend: None,
            window: None,
            rng: Rng::seed_from_u64(config.seed),
            shadow_rng: Rng::seed_from_u64(!config.seed),
            explored: ExplorationBudget::default(),
            awaited: BTreeMap::new(),
            proposals: VecDeque::new(),
            requests: VecDeque::new(),
            next_look: Instant::now(),
            bell,
            refresh: Refresh::new(Instant::now()),
            backoff: config.interval,
            policy_error: None,
            candidate_error: None,
            attached: None,
            watch: Watch::new(&config.guard),
            harm: HarmWatch::default(),
            neighbours: config.neighbours.map(NeighbourWatch::new),
            device_trials: BTreeMap::new(),
            restore_due: false,
            was_reached: false,
            seated,
            displaced: None,
            config,
        }
    }

    fn run(mut self, inbox: &Receiver<Command>, stop: &Mutex<Option<Stop>>, pulse: &Pulse) {
        loop {
            pulse.beat(self.next_look.max(Instant::now()) + self.config.interval);
            let asked = stop.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Stop { on_exit, reply }) = asked {
                self.config.learners.iter_mut().for_each(Learner::keep);
                // Nobody waits any more if the reply cannot be sent.
                let _ = reply.send(self.leave(on_exit));
                return;
            }
            let now = Instant::now();
            if self.bell.take() {
                self.refresh.ask(now);
            }
            let pause = self.next_look.saturating_duration_since(now);
            // However many calls wait, the host is looked at in time.
            if pause.is_zero() {
                self.look();
                // Where looks take longer than the interval, one call each is what is left for those that wait.
                if let Ok(command) = inbox.try_recv() {
                    self.serve(command);
                }
                continue;
            }
            let refresh = self.refresh.wait(now);
            if refresh == Some(Duration::ZERO) {
                self.follow_guests();
                continue;
            }
            match inbox.recv_timeout(refresh.map_or(pause, |refresh| refresh.min(pause))) {
                Ok(command) => self.serve(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn serve(&mut self, command: Command) {
        // A caller that has gone does not want the answer: that is no error.
        match command {
            Command::Propose(reply) => drop(reply.send(self.propose())),
            Command::Change(call, reply) => drop(reply.send(self.change(&call))),
            Command::Find(id, reply) => drop(reply.send(self.find(id))),
            Command::Unfreeze(call, reply) => drop(reply.send(self.unfreeze(&call))),
            Command::Reload(settings, reply) => drop(reply.send(self.reload(*settings))),
            Command::SetReward(call, reply) => drop(reply.send(self.set_reward(&call))),
            Command::Devices(reply) => drop(reply.send(self.devices())),
            Command::ChangeDevice(call, reply) => drop(reply.send(self.change_device(&call))),
            Command::Disks(reply) => drop(reply.send(self.disks())),
            Command::ChangeDisk(call, reply) => drop(reply.send(self.change_disk(&call))),
            Command::Seat(succession, reply) => drop(reply.send(self.seat(succession))),
            Command::Attach(force_reason, reply) => drop(reply.send(self.attach(force_reason))),
            Command::Reset(reply) => self.reset(reply),
            Command::Step(action, reply) => self.step(action, reply),
            Command::Wake => {}
        }
    }

    // Looking at the host.

    fn look(&mut self) {
        self.detach_if_gone();
        match self.try_look() {
            Ok(()) => self.backoff = self.config.interval,
            Err(error) => self.lose(&error),
        }
        self.show();
    }

    fn try_look(&mut self) -> Result<(), BackendError> {
        let interval = self.config.interval;
        let backend = match &mut self.backend {
            Some(backend) => backend,
            None => {
                let connected = (self.config.connect)(&self.config.modes)?;
                let backend = self.backend.insert(connected);
                backend.set_reward(self.config.reward);
                let bell = Arc::clone(&self.bell);
                backend.watch_guests(Arc::new(move || bell.ring()));
                self.was_reached = true;
                let wait = backend.first_window();
                if !wait.is_zero() {
                    self.next_look = Instant::now() + wait;
                    return Ok(());
                }
                backend
            }
        };
        let window = backend.observe()?;
        self.context.reward_weights = Arc::new(backend.reward().numbers());
        let guests = backend.guests();
        // Counted from when the last look was due, so that a slow one does not shift all others.
        self.next_look = (self.next_look + interval).max(Instant::now());
        let before = self.window.replace(Seen {
            observation: window.observation,
            guests,
            at_us: now_us(),
        });
        if let Some(rewards) = window.rewards.as_ref().filter(|_| before.is_some()) {
            self.settle_outcomes(rewards);
        }
        self.awaited.clear();
        if self.attached.is_some() {
            if self.is_guarded_environment() {
                self.guard_window()?;
            }
            self.answer_waiting(window.rewards);
            return Ok(());
        }
        self.guard_window()?;
        self.decide_by_itself()
    }

    /// Shows the guests as they are now, between two looks; rows of those that have gone stay closed until
    /// the next.
    fn follow_guests(&mut self) {
        let Some(backend) = &mut self.backend else {
            self.refresh.forget(Instant::now());
            return;
        };
        let started = Instant::now();
        let followed = backend.refresh().map(|()| backend.guests());
        let (now, took) = (Instant::now(), started.elapsed());
        match followed {
            Ok(guests) => {
                self.refresh.done(now, took);
                if let Some(seen) = &mut self.window {
                    seen.guests = guests;
                }
                self.show();
            }
            Err(error) => {
                tracing::info!(host = self.config.name, %error, "guests have changed, and cannot be asked yet");
                self.refresh.failed(now, took);
            }
        }
    }

    fn lose(&mut self, error: &BackendError) {
        tracing::warn!(host = self.config.name, %error, retry_s = self.backoff.as_secs_f64(), "host unavailable");
        self.backend = None;
        self.window = None;
        self.refresh.forget(Instant::now());
        self.watch.forget();
        self.awaited.clear();
        self.proposals.clear();
        self.next_look = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        let BackendError::Unavailable(reason) = error;
        self.fail_waiting(reason);
        self.shown
            .send_modify(|view| view.state = HostState::Unavailable(reason.clone()));
    }

    fn show(&self) {
        let window = self.window.as_ref().map(|seen| {
            Arc::new(ShownWindow {
                observation: self.restricted(seen, Purpose::Advice),
                guests: seen.guests.iter().map(|g| self.shown(seen, g)).collect(),
                at_us: seen.at_us,
                proposal: Mutex::default(),
            })
        });
        let counts = |chain: &Chain| chain.counts();
        let backend = self.backend.as_ref();
        let daemons = backend.map_or_else(Vec::new, |backend| backend.tuning_daemons());
        self.shown.send_modify(|view| {
            if window.is_some() {
                view.state = HostState::Ready;
            }
            view.window = window;
            view.policy = self.config.production.reference().clone();
            let candidate = self.config.candidate.as_ref();
            view.candidate = candidate.map(|candidate| candidate.reference().clone());
            view.policy_error = self.policy_error.clone();
            view.tuning_daemons = daemons;
            view.reward = self.config.reward;
            view.default_mode = self.config.modes.default;
            view.fallbacks = self.config.production.counts();
            view.candidate_error = self.candidate_error.clone();
            view.production_harm = self.harm.of_production();
            view.candidate_harm = self.harm.of_candidate();
            view.candidate_fallbacks = self
                .config
                .candidate
                .as_ref()
                .map_or_else(Counts::default, counts);
        });
    }

    fn shown(&self, seen: &Seen, guest: &GuestStatus) -> ShownGuest {
        let modes = &self.config.modes;
        ShownGuest {
            status: guest.clone(),
            mode: modes.of(guest),
            notice: modes.notice(guest),
            exploration: self.exploration_of(seen, guest),
        }
    }

    fn restricted(&self, seen: &Seen, purpose: Purpose) -> Observation {
        admission::restrict(
            &self.config.spec,
            &seen.observation,
            &seen.guests,
            &self.config.modes,
            purpose,
        )
    }

    fn seen(&self) -> Result<&Seen, Failure> {
        self.window.as_ref().ok_or_else(|| self.unavailable())
    }

    fn unavailable(&self) -> Failure {
        unavailable(&self.config.name, &self.shown.borrow().state)
    }

    /// Notes what became of the decisions of the last window.
    fn settle_outcomes(&mut self, rewards: &Rewards) {
        let ending = Ending {
            at_us: now_us(),
            interval_s: self.config.interval.as_secs_f64(),
            terminated: false,
            truncated: false,
        };
        let known = self
            .awaited
            .iter()
            .filter(|(disk, _)| **disk < rewards.counted.len());
        let outcome = |(disk, row): (&usize, &DecisionRow)| {
            OutcomeRow::of_disk(row.id, *disk, &self.config.spec, rewards, &ending)
        };
        let outcomes: Vec<OutcomeRow> = known.clone().map(outcome).collect();
        if outcomes.is_empty() {
            return;
        }
        let recorder = &mut self.config.recorder;
        let written = recorder
            .append_outcomes(outcomes.clone())
            .and_then(|()| recorder.flush());
        if let Err(error) = written {
            tracing::error!(%error, "outcomes were not recorded");
            return;
        }
        for learner in &mut self.config.learners {
            learner.learn(known.clone().map(|(_, row)| row).zip(&outcomes));
        }
    }

    /// The last decision, if there is one.
    fn leave(&mut self, on_exit: OnExit) -> Result<Option<Arc<Decision>>, Failure> {
        self.leave_neighbours();
        if on_exit == OnExit::Keep {
            return Ok(None);
        }
        let call = ChangeCall {
            request: Request::Rollback(None),
            validate_only: false,
            request_id: None,
            force_reason: None,
        };
        match self.change(&call) {
            Ok(decision) => Ok(Some(decision)),
            // It was put back, and that is what counts here.
            Err(failure) if failure.reason() == "NOT_RECORDED" => {
                tracing::error!(
                    host = self.config.name,
                    error = failure.message(),
                    "leaving"
                );
                Ok(None)
            }
            Err(_) => self.put_back_unseen().map(|()| None),
        }
    }

    /// Puts everything back without a window, so without a decision: there are no rows to name.
    fn put_back_unseen(&mut self) -> Result<(), Failure> {
        let put_back = |owner: &mut Self| {
            let backend = match &mut owner.backend {
                Some(backend) => backend,
                None => {
                    let connected = (owner.config.connect)(&owner.config.modes)?;
                    owner.backend.insert(connected)
                }
            };
            backend.rollback(&Observation::default(), None)
        };
        let left_behind = match put_back(self) {
            Ok(execution) if execution.failures.is_empty() => return Ok(()),
            Ok(execution) => execution.failures.join("; "),
            Err(error) if !self.was_reached => {
                tracing::warn!(host = self.config.name, %error, "never reached, so nothing to put back");
                return Ok(());
            }
            Err(error) => error.to_string(),
        };
        Err(Failure::new(Code::Unavailable, "NOT_PUT_BACK", left_behind))
    }
}

fn policy_failed(policy: &PolicyRef, error: &str) -> Failure {
    Failure::new(Code::Internal, "POLICY_FAILED", error).with("policy", &policy.name)
}

fn unknown_decision(id: Uuid) -> Failure {
    Failure::not_found(&decision_name(id), "it has expired, or was never made")
}
