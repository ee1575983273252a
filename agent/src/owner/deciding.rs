//! What is decided every interval without anybody asking, and what is proposed when somebody does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkpilot_env::Observation;
use blkpilot_env::guard::exploration::Exploration;
use blkpilot_log::Subject;
use blkpilot_models::PolicyError;
use uuid::Uuid;

use super::change::{Change, Undone};
use super::handle::{Answer, ShownExploration};
use super::panel::{Allowance, Panel, Shadow};
use super::{Owner, Proposal, Seen, policy_failed, unknown_decision};
use crate::admission::Purpose;
use crate::backend::{BackendError, GuestStatus};
use crate::config::mode::Mode;
use crate::decision::chain::Situation;
use crate::decision::{Decider, Made, PolicyRef, Source, make};
use crate::wire::names::guest_of;

/// Proposals that can be applied, and rows of all of them: one row holds what its policy saw, some 2 KiB.
const MOST_PROPOSALS: usize = 256;
const MOST_PROPOSED_ROWS: usize = 10_000;
/// How long a proposal can be applied.
const PROPOSAL_LIFE: Duration = Duration::from_secs(60);

impl Owner {
    /// For guests in mode auto and canary: decides and applies; for those in mode shadow: decides and
    /// records. All of them see the host as it was at the end of the window.
    pub(super) fn decide_by_itself(&mut self) -> Result<(), BackendError> {
        let Some(seen) = &self.window else {
            return Ok(());
        };
        let modes = self.modes_of(seen);
        let shadowed = modes.values().any(|mode| *mode == Mode::Shadow);
        let shadowed = shadowed.then(|| self.guarded(self.restricted(seen, Purpose::Shadow)));
        if modes.values().any(|mode| mode.is_automatic()) {
            self.decide_and_apply(&modes)?;
        }
        if let Some(observation) = shadowed {
            self.decide_in_shadow(&observation, &modes);
        }
        Ok(())
    }

    fn modes_of(&self, seen: &Seen) -> BTreeMap<String, Mode> {
        let mode = |guest: &GuestStatus| (guest.name.clone(), self.config.modes.of(guest));
        seen.guests.iter().map(mode).collect()
    }

    fn decide_and_apply(&mut self, modes: &BTreeMap<String, Mode>) -> Result<(), BackendError> {
        let Some(seen) = &self.window else {
            return Ok(());
        };
        let observation = self.guarded(self.restricted(seen, Purpose::Auto));
        let allowances = self.allowances(seen);
        let made = self.decide_together(&observation, modes, allowances);
        self.note_candidate_error();
        self.policy_error = match made {
            Err(error) => Some(error.to_string()),
            Ok(made) => match self.carry_out(&observation, made, &Change::Action) {
                Ok(_) => self.config.production.error().map(ToString::to_string),
                Err(Undone::Host(error)) => return Err(error),
                Err(Undone::Failure(failure)) => Some(failure.message().to_owned()),
            },
        };
        if let Some(error) = &self.policy_error {
            tracing::error!(host = self.config.name, error, "deciding by itself");
        }
        Ok(())
    }

    /// One joint decision of both policies. Where a policy fails something stands in for it.
    fn decide_together(
        &mut self,
        observation: &Observation,
        modes: &BTreeMap<String, Mode>,
        allowances: BTreeMap<String, Allowance>,
    ) -> Result<Made, PolicyError> {
        let (source, policy_ref) = self.in_whose_name(modes);
        let at = Situation {
            spec: &self.config.spec,
            observation,
            clock: &*self.config.clock,
        };
        let mut panel = Panel::new(
            at,
            &mut self.config.production,
            self.config.candidate.as_mut(),
            modes,
            allowances,
        );
        let decider = Decider {
            policy: &mut panel,
            source,
            policy_ref: Some(policy_ref),
        };
        let mut made = make(decider, &self.context, at.spec, observation, &mut self.rng)?;
        for guest in panel.sign(&mut made.decision.rows) {
            self.explored.note(self.watch.now(), &guest);
        }
        self.note_proof(&made);
        Ok(made)
    }

    /// The production policy's, unless no guest is in its mode.
    fn in_whose_name(&self, modes: &BTreeMap<String, Mode>) -> (Source, PolicyRef) {
        match &self.config.candidate {
            Some(candidate) if !modes.values().any(|mode| *mode == Mode::Auto) => {
                (Source::Canary, candidate.reference().clone())
            }
            _ => (Source::Auto, self.config.production.reference().clone()),
        }
    }

    /// A production policy that has decided by itself for long enough is the last good one from now on.
    fn note_proof(&mut self, made: &Made) {
        if let Some(proof) = &mut self.config.proof {
            proof.note(&made.decision.rows);
        }
    }

    fn note_candidate_error(&mut self) {
        let error = self
            .config
            .candidate
            .as_ref()
            .and_then(|chain| chain.error());
        self.candidate_error = error.map(ToString::to_string);
    }

    /// The candidate decides for the guests in mode shadow, past the guard, as if it were to be applied;
    /// what it chose is recorded, and nothing else happens. Other guests stay as they are.
    fn decide_in_shadow(&mut self, observation: &Observation, modes: &BTreeMap<String, Mode>) {
        let Some(candidate) = &mut self.config.candidate else {
            return;
        };
        let policy_ref = Some(candidate.reference().clone());
        let at = Situation {
            spec: &self.config.spec,
            observation,
            clock: &*self.config.clock,
        };
        let decider = Decider {
            policy: &mut Shadow::new(at, candidate),
            source: Source::Shadow,
            policy_ref,
        };
        let rng = &mut self.shadow_rng;
        let made = make(decider, &self.context, at.spec, observation, rng);
        self.note_candidate_error();
        // A candidate that fails has nothing to log; its error is shown.
        let Ok(mut made) = made else { return };
        made.leave_unapplied();
        let mut decision = made.decision;
        let is_shadowed = |subject: &Subject| match subject {
            Subject::Disk { guest, .. } => modes.get(guest) == Some(&Mode::Shadow),
            Subject::Device { .. } => false,
        };
        decision.rows.retain(|row| is_shadowed(&row.subject));
        let recorder = &mut self.config.recorder;
        let recorded = recorder
            .make_ready()
            .and_then(|()| recorder.record(decision));
        match recorded {
            Ok(done) => {
                self.show();
                // There may be no watcher.
                let _ = self.decisions.send(Arc::clone(&done));
            }
            Err(error) => {
                tracing::error!(host = self.config.name, %error, "a shadow decision was not recorded");
            }
        }
    }

    // Exploring.

    /// What each guest may be explored in this interval; those that may not be are not in it.
    fn allowances(&self, seen: &Seen) -> BTreeMap<String, Allowance> {
        let allowance = |guest: &GuestStatus| {
            let ShownExploration {
                limits,
                changes_left,
                pause,
            } = self.exploration_of(seen, guest)?;
            let allowance = Allowance {
                epsilon: limits.epsilon,
                changes_left,
            };
            pause.is_none().then(|| (guest.name.clone(), allowance))
        };
        seen.guests.iter().filter_map(allowance).collect()
    }

    /// `None` for a guest that is not to be explored at all.
    pub(super) fn exploration_of(
        &self,
        seen: &Seen,
        guest: &GuestStatus,
    ) -> Option<ShownExploration> {
        let limits = self.config.modes.exploration_of(guest)?;
        let now = self.watch.now();
        let changes_left = self.explored.left(now, &guest.name, &limits);
        Some(ShownExploration {
            limits,
            changes_left,
            pause: self.pause(seen, guest, &limits, changes_left),
        })
    }

    /// Why a guest is not explored now.
    fn pause(
        &self,
        seen: &Seen,
        guest: &GuestStatus,
        limits: &Exploration,
        changes_left: u32,
    ) -> Option<String> {
        let mode = self.config.modes.of(guest);
        if limits.epsilon <= 0.0 {
            return Some("epsilon is 0".to_owned());
        }
        if !mode.is_automatic() {
            return Some(format!("nothing is explored in mode {mode}"));
        }
        if changes_left == 0 {
            return Some("the budget of this hour is used up".to_owned());
        }
        let ids = seen.observation.disk_ids.iter();
        let mut disks = ids.filter(|id| guest_of(id) == guest.name);
        disks.find_map(|disk| {
            let unrest = self.watch.unrest(disk)?;
            Some(format!("{disk}: {unrest}"))
        })
    }

    // Proposing.

    pub(super) fn propose(&mut self) -> Answer {
        // Several may have asked before there was an answer that all of them could be shown.
        if let Some(proposal) = self.shown.borrow().proposal() {
            return Ok(proposal);
        }
        let observation = self.restricted(self.seen()?, Purpose::Advice);
        let policy_ref = self.config.production.reference().clone();
        let decider = Decider {
            policy: self.config.production.policy(),
            source: Source::Proposal,
            policy_ref: Some(policy_ref.clone()),
        };
        let mut made = make(
            decider,
            &self.context,
            &self.config.spec,
            &observation,
            &mut self.rng,
        )
        .map_err(|error| policy_failed(&policy_ref, &error.to_string()))?;
        let life_us = i64::try_from(PROPOSAL_LIFE.as_micros()).expect("a minute in µs fits");
        made.decision.expires_us = Some(made.decision.at_us + life_us);
        let Made {
            decision,
            action,
            turns,
        } = made;
        let answer = Arc::new(decision);
        self.make_room_for_proposal(answer.rows.len());
        self.proposals.push_back(Proposal {
            decision: Arc::clone(&answer),
            action,
            turns,
            disk_ids: observation.disk_ids,
            current: observation.current,
            expires: Instant::now() + PROPOSAL_LIFE,
        });
        self.shown.borrow().offer(&answer);
        Ok(answer)
    }

    /// Forgets proposals that have expired, and the oldest where there are too many.
    fn make_room_for_proposal(&mut self, rows: usize) {
        let now = Instant::now();
        let mut kept: usize = self.proposals.iter().map(|p| p.decision.rows.len()).sum();
        while let Some(oldest) = self.proposals.front() {
            let is_full =
                self.proposals.len() >= MOST_PROPOSALS || kept + rows > MOST_PROPOSED_ROWS;
            if oldest.expires > now && !is_full {
                return;
            }
            kept -= oldest.decision.rows.len();
            self.proposals.pop_front();
        }
    }

    pub(super) fn find(&self, id: Uuid) -> Answer {
        let now = Instant::now();
        let mut live = self
            .proposals
            .iter()
            .filter(|proposal| proposal.expires > now);
        let found = live.find(|proposal| proposal.decision.id == id);
        found
            .map(|proposal| Arc::clone(&proposal.decision))
            .ok_or_else(|| unknown_decision(id))
    }
}
