//! Changing the host: a request is checked whole, carried out, recorded, and shown to watchers.

use std::sync::Arc;
use std::time::Instant;

use blkpilot_env::decision::check_action;
use blkpilot_env::{JointAction, Masks, Observation, Turn};
use tonic::Code;
use uuid::Uuid;

use super::handle::{Answer, ChangeCall, Request};
use super::{Owner, policy_failed, unknown_decision};
use crate::admission::{self, Purpose, Situation};
use crate::backend::{BackendError, Execution};
use crate::decision::{Decider, Decision, Made, PolicyRef, Scripted, Source, State, make};
use crate::wire::names::{decision_name, guest_name};
use crate::wire::status::Failure;

/// Request ids that are remembered.
const MOST_REQUESTS: usize = 1024;

/// What the host is told.
pub(super) enum Change {
    Action,
    Rollback(Option<String>),
}

/// Why a decision was not carried out.
pub(super) enum Undone {
    Host(BackendError),
    Failure(Failure),
}

impl Owner {
    pub(super) fn change(&mut self, call: &ChangeCall) -> Answer {
        if let Some(answer) = self.remembered(call) {
            return answer;
        }
        if !matches!(call.request, Request::Rollback(_)) {
            self.refuse_if_attached()?;
        }
        let (observation, mut made, change) = self.prepare(&call.request)?;
        if matches!(change, Change::Action) {
            self.hold_back(call, &observation, &mut made)?;
        }
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
        // Once: a decision is on record under its name.
        self.proposals.retain(|p| p.decision.id != done.id);
        if let Some(id) = call.request_id {
            if self.requests.len() == MOST_REQUESTS {
                self.requests.pop_front();
            }
            self.requests
                .push_back((id, call.request.clone(), Arc::clone(&done)));
        }
        answer(done)
    }

    fn remembered(&self, call: &ChangeCall) -> Option<Answer> {
        let id = call.request_id?;
        let (_, request, decision) = self.requests.iter().find(|(known, ..)| *known == id)?;
        Some(if *request == call.request {
            answer(Arc::clone(decision))
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
        let proposal = self.proposals.iter().find(|p| p.decision.id == id);
        let stale = |why: &str| {
            let message = format!("{} {why}: call Propose again", decision_name(id));
            Failure::new(Code::FailedPrecondition, "PROPOSAL_STALE", message)
        };
        let proposal = proposal.ok_or_else(|| {
            let is_applied = self.config.recorder.history().find(id).is_some();
            if is_applied {
                stale("was applied already")
            } else {
                unknown_decision(id)
            }
        })?;
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
        check_action(&self.config.spec, &observation, &proposal.action)?;
        let mut made = Made {
            decision: Decision::clone(&proposal.decision),
            action: proposal.action.clone(),
            turns: proposal.turns.clone(),
        };
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
        let observation = self.open(&seen.observation);
        let action = defaults(&observation, guest);
        let made = self.script(&observation, action, Source::Rollback)?;
        Ok((observation, made))
    }

    /// What is seen, with no mask to bar a way back.
    pub(super) fn open(&self, seen: &Observation) -> Observation {
        let (n, k, d) = (seen.disk_count(), seen.channel_count(), seen.device_count());
        Observation {
            masks: Masks::all_allowed(&self.config.spec, n, k, d),
            ..seen.clone()
        }
    }

    pub(super) fn script(
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
    pub(super) fn carry_out(
        &mut self,
        observation: &Observation,
        mut made: Made,
        change: &Change,
    ) -> Result<Arc<Decision>, Undone> {
        let ready = self.config.recorder.make_ready();
        // What cannot be recorded is not done; but the way back is never barred, nor the guard's.
        let is_way_back =
            matches!(change, Change::Rollback(_)) || made.decision.source == Source::Guard;
        if let (Err(error), false) = (&ready, is_way_back) {
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
        let Execution {
            executed,
            failures,
            went_wrong,
        } = match change {
            Change::Action => backend.apply(observation, &made.action),
            Change::Rollback(guest) => backend.rollback(observation, guest.as_deref()),
        }
        .map_err(Undone::Host)?;
        made.execute(&executed, &failures);
        self.harm.note_changes(&made.decision.rows);
        match change {
            Change::Rollback(guest) => {
                self.watch.note_rollback(observation, &executed);
                if guest.is_none() {
                    self.end_device_trials(None);
                }
            }
            Change::Action if made.decision.source == Source::Guard => {}
            Change::Action => self.tell_guard(observation, &executed, went_wrong),
        }
        if let Some(seen) = &mut self.window {
            seen.observation.current = executed;
        }
        self.await_outcomes(&made);
        let done = self
            .config
            .recorder
            .record(made.decision)
            .map_err(|error| {
                let message = format!("{error}; {}", not_recorded(change));
                Undone::Failure(Failure::new(Code::Internal, "NOT_RECORDED", message))
            })?;
        // Who sees the decision shall see it in force; and there may be no watcher.
        self.show();
        let _ = self.decisions.send(Arc::clone(&done));
        Ok(done)
    }

    /// Whatever changes a guest is watched, whoever wanted it; the way back is not a change.
    fn tell_guard(&mut self, before: &Observation, executed: &JointAction, went_wrong: bool) {
        self.watch.note_change(before, executed);
        self.begin_scheduler_trials(before, executed);
        if went_wrong {
            self.watch.note_failure();
        }
    }

    fn await_outcomes(&mut self, made: &Made) {
        for (turn, row) in made.turns.iter().zip(&made.decision.rows) {
            if let Turn::Disk(disk) = turn {
                self.awaited.insert(*disk, row.clone());
            }
        }
    }
}

fn not_recorded(change: &Change) -> &'static str {
    match change {
        Change::Action => {
            "the change took effect but was not recorded: roll back, or make room for the decision log and apply again"
        }
        Change::Rollback(_) => {
            "everything was put back as far as it can be, but that was not recorded: make room for the decision log"
        }
    }
}

/// The levels of keep-default, for one guest or all; whatever else is there keeps what it has.
fn defaults(observation: &Observation, guest: Option<&str>) -> JointAction {
    let Some(guest) = guest else {
        return observation.default.clone();
    };
    let mut action = observation.current.clone();
    for (row, id) in observation.disk_ids.iter().enumerate() {
        if crate::wire::names::guest_of(id) == guest {
            action
                .disks
                .row_mut(row)
                .assign(&observation.default.disks.row(row));
        }
    }
    action
}

/// A rollback that left something alone has done what it could, and says so; an action that was not
/// wholly applied is a failure.
fn answer(done: Arc<Decision>) -> Answer {
    if done.state == State::Failed && done.source != Source::Rollback {
        Err(half_applied(&done))
    } else {
        Ok(done)
    }
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
