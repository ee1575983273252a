//! The owner of a host: the one thread that touches it.
//!
//! Calls come in over a bounded queue; what is seen goes out over a watch channel, what is decided
//! over a broadcast channel. Between calls the owner looks at the host once per interval and, for
//! guests in mode `auto`, lets the policy decide. A host that cannot be reached is tried again, less
//! and less often.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkpilot_env::decision::check_action;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::{EnvSpec, JointAction, Masks, Observation, Rewards, Rng, Turn};
use blkpilot_log::turn::Ending;
use blkpilot_log::{DecisionId, OutcomeRow};
use blkpilot_models::Policy;
use rand::SeedableRng as _;
use tokio::sync::{broadcast, watch};
use tonic::Code;
use uuid::Uuid;

use crate::admission::{self, Modes, Purpose, Situation};
use crate::backend::{BackendError, BackendKind, Connect, Execution, GuestStatus, HostBackend};
use crate::config::OnExit;
use crate::decision::{
    Context, Decider, Decision, Made, PolicyRef, Scripted, Source, State, make, now_us,
};
use crate::handle::{
    Answer, ChangeCall, Command, HostHandle, HostInfo, HostState, HostView, MOST_WAITING, Request,
    ShownWindow, unavailable,
};
use crate::history::Recorder;
use crate::mode::Mode;
use crate::names::{decision_name, guest_name};
use crate::status::Failure;

/// Decisions that a watcher may be behind.
const MOST_UNSEEN: usize = 256;
/// Proposals that can be applied.
const MOST_PROPOSALS: usize = 256;
/// How long a proposal can be applied.
const PROPOSAL_LIFE: Duration = Duration::from_secs(60);
/// Request ids that are remembered.
const MOST_REQUESTS: usize = 1024;
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
    /// What decides.
    pub policy: Box<dyn Policy>,
    /// Its name and version.
    pub policy_ref: PolicyRef,
    /// Seed of the order of decisions and of sampling.
    pub seed: u64,
    /// Reaches the host.
    pub connect: Connect,
    /// Records what is decided.
    pub recorder: Recorder,
}

/// Starts the owner of a host on a thread of its own.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(config: OwnerConfig) -> std::io::Result<(HostHandle, JoinHandle<()>)> {
    let (commands, inbox) = sync_channel(MOST_WAITING);
    let (decisions, _) = broadcast::channel(MOST_UNSEEN);
    let (shown, view) = watch::channel(HostView {
        state: HostState::Starting,
        window: None,
        policy_error: None,
    });
    let info = Arc::new(HostInfo {
        name: config.name.clone(),
        kind: config.kind,
        spec: config.spec.clone(),
        interval: config.interval,
        default_mode: config.modes.default,
        policy: config.policy_ref.clone(),
    });
    let handle = HostHandle {
        info,
        view,
        history: config.recorder.history(),
        commands,
        decisions: decisions.downgrade(),
    };
    let name = format!("host-{}", config.name);
    let owner = Owner::new(config, shown, decisions);
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || owner.run(&inbox))?;
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
    /// Decisions that wait for what comes of them, by row of the disk table.
    awaited: BTreeMap<usize, DecisionId>,
    proposals: VecDeque<Proposal>,
    requests: VecDeque<(Uuid, Request, Arc<Decision>)>,
    next_look: Instant,
    backoff: Duration,
    policy_error: Option<String>,
}

/// The last window, with masks that do not know modes.
struct Seen {
    observation: Observation,
    guests: Vec<GuestStatus>,
    at_us: i64,
}

struct Proposal {
    made: Made,
    /// What was in force when it was made.
    disk_ids: Vec<String>,
    current: JointAction,
    expires: Instant,
}

impl Owner {
    fn new(
        config: OwnerConfig,
        shown: watch::Sender<HostView>,
        decisions: broadcast::Sender<Arc<Decision>>,
    ) -> Self {
        let context = Context {
            host: config.name.clone(),
            episode: Uuid::new_v4(),
            spec_hash: config.spec.hash(),
            reward_weights: reward_weights(&RewardConfig::default()),
        };
        Self {
            context,
            shown,
            decisions,
            backend: None,
            window: None,
            rng: Rng::seed_from_u64(config.seed),
            awaited: BTreeMap::new(),
            proposals: VecDeque::new(),
            requests: VecDeque::new(),
            next_look: Instant::now(),
            backoff: config.interval,
            policy_error: None,
            config,
        }
    }

    fn run(mut self, inbox: &Receiver<Command>) {
        loop {
            let pause = self.next_look.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(pause) {
                Ok(Command::Stop(on_exit, reply)) => {
                    // Nobody waits any more if the reply cannot be sent.
                    let _ = reply.send(self.leave(on_exit));
                    return;
                }
                Ok(command) => self.serve(command),
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn serve(&mut self, command: Command) {
        let (answer, reply) = match command {
            Command::Propose(reply) => (self.propose(), reply),
            Command::Change(call, reply) => (self.change(&call), reply),
            Command::Find(id, reply) => (self.find(id), reply),
            Command::Stop(..) => unreachable!("run takes Stop itself"),
        };
        // A caller that has gone does not want the answer.
        let _ = reply.send(answer);
    }

    // Looking at the host.

    fn look(&mut self) {
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
                let backend = self.backend.insert((self.config.connect)()?);
                let wait = backend.first_window();
                if !wait.is_zero() {
                    self.next_look = Instant::now() + wait;
                    return Ok(());
                }
                backend
            }
        };
        let window = backend.observe()?;
        let guests = backend.guests();
        // Counted from when the last look was due, so that a slow one does not shift all others.
        self.next_look = (self.next_look + interval).max(Instant::now());
        let before = self.window.replace(Seen {
            observation: window.observation,
            guests,
            at_us: now_us(),
        });
        if let (Some(_), Some(rewards)) = (before, window.rewards) {
            self.settle_outcomes(&rewards);
        }
        self.awaited.clear();
        self.decide_by_itself()
    }

    fn lose(&mut self, error: &BackendError) {
        tracing::warn!(host = self.config.name, %error, retry_s = self.backoff.as_secs_f64(), "host unavailable");
        self.backend = None;
        self.window = None;
        self.awaited.clear();
        self.proposals.clear();
        self.next_look = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        let BackendError::Unavailable(reason) = error;
        self.shown
            .send_modify(|view| view.state = HostState::Unavailable(reason.clone()));
    }

    fn show(&self) {
        let window = self.window.as_ref().map(|seen| {
            let modes = &self.config.modes;
            let with_mode = |guest: &GuestStatus| (guest.clone(), modes.of(guest));
            Arc::new(ShownWindow {
                observation: self.restricted(seen, Purpose::Advice),
                guests: seen.guests.iter().map(with_mode).collect(),
                at_us: seen.at_us,
            })
        });
        self.shown.send_modify(|view| {
            if window.is_some() {
                view.state = HostState::Ready;
            }
            view.window = window;
            view.policy_error = self.policy_error.clone();
        });
    }

    fn restricted(&self, seen: &Seen, purpose: Purpose) -> Observation {
        admission::restrict(&seen.observation, &seen.guests, &self.config.modes, purpose)
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
        let outcome = |(disk, id): (&usize, &DecisionId)| {
            OutcomeRow::of_disk(*id, *disk, &self.config.spec, rewards, &ending)
        };
        let outcomes: Vec<OutcomeRow> = known.map(outcome).collect();
        if outcomes.is_empty() {
            return;
        }
        let recorder = &mut self.config.recorder;
        let written = recorder
            .append_outcomes(outcomes)
            .and_then(|()| recorder.flush());
        if let Err(error) = written {
            tracing::error!(%error, "outcomes were not recorded");
        }
    }

    // Deciding.

    /// In mode auto: decides and applies. A policy that fails changes nothing.
    fn decide_by_itself(&mut self) -> Result<(), BackendError> {
        let Some(seen) = &self.window else {
            return Ok(());
        };
        let modes = &self.config.modes;
        if !seen
            .guests
            .iter()
            .any(|guest| modes.of(guest) == Mode::Auto)
        {
            return Ok(());
        }
        let observation = self.restricted(seen, Purpose::Auto);
        let policy_ref = Some(self.config.policy_ref.clone());
        let decider = Decider {
            policy: &mut *self.config.policy,
            source: Source::Auto,
            policy_ref,
        };
        let made = make(
            decider,
            &self.context,
            &self.config.spec,
            &observation,
            &mut self.rng,
        );
        self.policy_error = match made {
            Err(error) => Some(error.to_string()),
            Ok(made) => match self.carry_out(&observation, made, &Change::Action) {
                Ok(_) => None,
                Err(Undone::Host(error)) => return Err(error),
                Err(Undone::Failure(failure)) => Some(failure.message().to_owned()),
            },
        };
        if let Some(error) = &self.policy_error {
            tracing::error!(
                host = self.config.name,
                error,
                "nothing was changed in this interval"
            );
        }
        Ok(())
    }

    fn propose(&mut self) -> Answer {
        let observation = self.restricted(self.seen()?, Purpose::Advice);
        let policy_ref = Some(self.config.policy_ref.clone());
        let decider = Decider {
            policy: &mut *self.config.policy,
            source: Source::Proposal,
            policy_ref,
        };
        let mut made = make(
            decider,
            &self.context,
            &self.config.spec,
            &observation,
            &mut self.rng,
        )
        .map_err(|error| policy_failed(&self.config.policy_ref, &error.to_string()))?;
        let life_us = i64::try_from(PROPOSAL_LIFE.as_micros()).expect("a minute in µs fits");
        made.decision.expires_us = Some(made.decision.at_us + life_us);
        let answer = Arc::new(made.decision.clone());
        if self.proposals.len() == MOST_PROPOSALS {
            self.proposals.pop_front();
        }
        self.proposals.push_back(Proposal {
            made,
            disk_ids: observation.disk_ids,
            current: observation.current,
            expires: Instant::now() + PROPOSAL_LIFE,
        });
        Ok(answer)
    }

    fn find(&self, id: Uuid) -> Answer {
        let now = Instant::now();
        let mut live = self
            .proposals
            .iter()
            .filter(|proposal| proposal.expires > now);
        let found = live.find(|proposal| proposal.made.decision.id == id);
        found
            .map(|proposal| Arc::new(proposal.made.decision.clone()))
            .ok_or_else(|| unknown_decision(id))
    }

    // Changing.

    fn change(&mut self, call: &ChangeCall) -> Answer {
        if let Some(answer) = self.remembered(call) {
            return answer;
        }
        let (observation, made, change) = self.prepare(&call.request)?;
        if call.validate_only {
            return Ok(Arc::new(as_if_applied(made)));
        }
        let done = match self.carry_out(&observation, made, &change) {
            Ok(done) => done,
            Err(Undone::Failure(failure)) => return Err(failure),
            Err(Undone::Host(error)) => {
                self.lose(&error);
                self.show();
                return Err(self.unavailable());
            }
        };
        self.show();
        if let Some(id) = call.request_id {
            if self.requests.len() == MOST_REQUESTS {
                self.requests.pop_front();
            }
            self.requests
                .push_back((id, call.request.clone(), Arc::clone(&done)));
        }
        if done.state == State::Failed && done.source != Source::Rollback {
            return Err(half_applied(&done));
        }
        Ok(done)
    }

    fn remembered(&self, call: &ChangeCall) -> Option<Answer> {
        let id = call.request_id?;
        let (_, request, decision) = self.requests.iter().find(|(known, ..)| *known == id)?;
        Some(if *request == call.request {
            Ok(Arc::clone(decision))
        } else {
            Err(Failure::field(
                "request_id",
                format!("{id} was used for another request: make a new one"),
            ))
        })
    }

    /// Checks a request whole; nothing has been touched when it is refused.
    fn prepare(&mut self, request: &Request) -> Result<(Observation, Made, Change), Failure> {
        match request {
            Request::Proposal(id) => {
                let (observation, made) = self.prepare_proposal(*id)?;
                Ok((observation, made, Change::Action))
            }
            Request::Levels(choices) => {
                let seen = self.seen()?;
                let observation = self.restricted(seen, Purpose::Advice);
                let at = Situation {
                    host: &self.config.name,
                    spec: &self.config.spec,
                    observation: &observation,
                    guests: &seen.guests,
                    modes: &self.config.modes,
                };
                let action = admission::explicit(at, choices)?;
                let made = self.script(&observation, action, Source::Explicit)?;
                Ok((observation, made, Change::Action))
            }
            Request::Rollback(guest) => {
                let (observation, made) = self.prepare_rollback(guest.as_deref())?;
                Ok((observation, made, Change::Rollback(guest.clone())))
            }
        }
    }

    fn prepare_proposal(&self, id: Uuid) -> Result<(Observation, Made), Failure> {
        let seen = self.seen()?;
        let proposal = self.proposals.iter().find(|p| p.made.decision.id == id);
        let proposal = proposal.ok_or_else(|| unknown_decision(id))?;
        let stale = |why: &str| {
            let message = format!("{} {why}: call Propose again", decision_name(id));
            Failure::new(Code::FailedPrecondition, "PROPOSAL_STALE", message)
        };
        if proposal.expires <= Instant::now() {
            return Err(stale("has expired"));
        }
        if proposal.disk_ids != seen.observation.disk_ids {
            return Err(stale("was made for other disks"));
        }
        if proposal.current != seen.observation.current {
            return Err(stale("was made for other levels in force"));
        }
        let observation = self.restricted(seen, Purpose::Advice);
        check_action(&self.config.spec, &observation, &proposal.made.action)?;
        let mut made = proposal.made.clone();
        made.decision.expires_us = None;
        Ok((observation, made))
    }

    /// Everything is open to a rollback: what the guest had without us is always allowed.
    fn prepare_rollback(&mut self, guest: Option<&str>) -> Result<(Observation, Made), Failure> {
        let seen = self.seen()?;
        if let Some(name) = guest
            && !seen.guests.iter().any(|known| known.name == name)
        {
            let name = guest_name(&self.config.name, name);
            return Err(Failure::not_found(
                &name,
                "it is not running; ListGuests names those that are",
            ));
        }
        let mut observation = seen.observation.clone();
        let (n, k, d) = (
            observation.disk_count(),
            observation.channel_count(),
            observation.device_count(),
        );
        observation.masks = Masks::all_allowed(&self.config.spec, n, k, d);
        let action = defaults(&observation, guest);
        let made = self.script(&observation, action, Source::Rollback)?;
        Ok((observation, made))
    }

    fn script(
        &mut self,
        observation: &Observation,
        action: JointAction,
        source: Source,
    ) -> Result<Made, Failure> {
        let decider = Decider {
            policy: &mut Scripted(action),
            source,
            policy_ref: None,
        };
        make(
            decider,
            &self.context,
            &self.config.spec,
            observation,
            &mut self.rng,
        )
        .map_err(|error| policy_failed(&PolicyRef::default(), &error.to_string()))
    }

    /// Applies, records, and tells the watchers. The record is durable when this returns.
    fn carry_out(
        &mut self,
        observation: &Observation,
        mut made: Made,
        change: &Change,
    ) -> Result<Arc<Decision>, Undone> {
        let ready = self.config.recorder.make_ready();
        // What cannot be recorded is not done; but the way back is never barred.
        if let (Err(error), Change::Action) = (&ready, change) {
            let message = format!("{error}; nothing was changed: make room for the decision log");
            return Err(Undone::Failure(Failure::new(
                Code::Unavailable,
                "LOG_UNAVAILABLE",
                message,
            )));
        }
        let backend = self.backend.as_mut().ok_or_else(|| {
            Undone::Host(BackendError::Unavailable(
                "the connection was lost".to_owned(),
            ))
        })?;
        let Execution { executed, failures } = match change {
            Change::Action => backend.apply(observation, &made.action),
            Change::Rollback(guest) => backend.rollback(observation, guest.as_deref()),
        }
        .map_err(Undone::Host)?;
        made.execute(&executed, &failures);
        if let Some(seen) = &mut self.window {
            seen.observation.current = executed;
        }
        self.await_outcomes(&made);
        let done = self.config.recorder.record(made.decision).map_err(|error| {
            let message = format!("{error}; the change took effect but was not recorded: roll back, or make room for the decision log and apply again");
            Undone::Failure(Failure::new(Code::Internal, "NOT_RECORDED", message))
        })?;
        // There may be no watcher.
        let _ = self.decisions.send(Arc::clone(&done));
        Ok(done)
    }

    fn await_outcomes(&mut self, made: &Made) {
        for (turn, row) in made.turns.iter().zip(&made.decision.rows) {
            if let Turn::Disk(disk) = turn {
                self.awaited.insert(*disk, row.id);
            }
        }
    }

    fn leave(&mut self, on_exit: OnExit) -> Answer {
        let nothing = || Failure::new(Code::Ok, "NOTHING_TO_DO", "nothing to put back");
        if on_exit == OnExit::Keep || self.backend.is_none() {
            return Err(nothing());
        }
        let call = ChangeCall {
            request: Request::Rollback(None),
            validate_only: false,
            request_id: None,
        };
        self.change(&call)
    }
}

/// What the host is told.
enum Change {
    Action,
    Rollback(Option<String>),
}

/// Why a decision was not carried out.
enum Undone {
    Host(BackendError),
    Failure(Failure),
}

/// The levels of keep-default, for one guest or all; whatever else is there keeps what it has.
fn defaults(observation: &Observation, guest: Option<&str>) -> JointAction {
    let Some(guest) = guest else {
        return observation.default.clone();
    };
    let mut action = observation.current.clone();
    for (row, id) in observation.disk_ids.iter().enumerate() {
        if crate::names::guest_of(id) == guest {
            action
                .disks
                .row_mut(row)
                .assign(&observation.default.disks.row(row));
        }
    }
    action
}

fn as_if_applied(mut made: Made) -> Decision {
    let action = made.action.clone();
    made.execute(&action, &[]);
    made.decision
}

fn half_applied(done: &Decision) -> Failure {
    let error = done.error.as_deref().unwrap_or("the host kept some values");
    let name = decision_name(done.id);
    let message = format!("{error}; {name} records what took effect");
    Failure::new(Code::Internal, "APPLY_FAILED", message).with("decision", name)
}

fn policy_failed(policy: &PolicyRef, error: &str) -> Failure {
    Failure::new(Code::Internal, "POLICY_FAILED", error).with("policy", &policy.name)
}

fn unknown_decision(id: Uuid) -> Failure {
    Failure::not_found(&decision_name(id), "it has expired, or was never made")
}

fn reward_weights(config: &RewardConfig) -> BTreeMap<String, f64> {
    let fields = serde_json::to_value(config).ok();
    let fields = fields.as_ref().and_then(serde_json::Value::as_object);
    let numbers = fields.into_iter().flatten();
    numbers
        .filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)))
        .collect()
}
