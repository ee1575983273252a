//! Joint decisions: making them, and the rows that go into the log.

pub mod chain;
mod compaction;
pub mod history;
pub mod learner;

use std::collections::BTreeMap;
use std::sync::Arc;

use blkpilot_env::{EnvSpec, JointAction, Observation, Rng, Turn, TurnView};
use blkpilot_log::{
    DecisionId, DecisionRow, EpisodeId, HostStepId, Seen, Source as LogSource, StepContext,
};
use blkpilot_models::{Choice, Policy, PolicyError, decide_with};
use uuid::Uuid;

/// A joint decision over the disks and devices of one host.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Its id.
    pub id: Uuid,
    /// Name of the host.
    pub host: String,
    /// Who decided.
    pub source: Source,
    /// How far it got.
    pub state: State,
    /// When it was made, in microseconds since 1970 UTC.
    pub at_us: i64,
    /// Until when a proposal can be applied, in microseconds since 1970 UTC.
    pub expires_us: Option<i64>,
    /// The policy that chose, if one did.
    pub policy: Option<PolicyRef>,
    /// One per disk, then one per device, in the order in which they decided.
    pub rows: Vec<DecisionRow>,
    /// Whether it has reached stable storage.
    pub durable: bool,
    /// What failed, of a decision that failed.
    pub error: Option<String>,
    /// Why it was made, of a decision of the guard.
    pub reason: Option<String>,
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The policy, because somebody asked.
    Proposal,
    /// The policy, by itself.
    Auto,
    /// Somebody who gave levels.
    Explicit,
    /// A return to what the guests had without us.
    Rollback,
    /// The guard, which puts back a change that did harm.
    Guard,
    /// The candidate, beside those that act; nothing is applied.
    Shadow,
    /// The candidate, by itself, on guests that were chosen for it.
    Canary,
}

/// How far a decision got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing has been changed.
    Proposed,
    /// It took effect.
    Applied,
    /// It was refused or failed, perhaps in part.
    Failed,
}

/// A policy and its version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyRef {
    /// A baseline's name, or that of a checkpoint's directory.
    pub name: String,
    /// Content hash of the checkpoint; empty for a baseline.
    pub version: String,
}

/// Why nothing of a shadow decision is in force.
const NOT_APPLIED: &str = "mode shadow applies nothing";

/// What all decisions of a host have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// Name of the host.
    pub host: Arc<str>,
    /// Rows between two starts of the service.
    pub episode: Uuid,
    /// `EnvSpec::hash`.
    pub spec_hash: Arc<str>,
    /// Weights of the reward.
    pub reward_weights: Arc<BTreeMap<String, f64>>,
}

/// A decision that has been made, with the action it stands for and the turns of its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// The decision; `executed` is what was requested.
    pub decision: Decision,
    /// The joint action.
    pub action: JointAction,
    /// The turn of each row.
    pub turns: Vec<Turn>,
}

/// Who decides, and in whose name.
pub struct Decider<'a> {
    /// What chooses.
    pub policy: &'a mut dyn Policy,
    /// In whose name.
    pub source: Source,
    /// The policy's name and version; `None` if somebody gave the levels.
    pub policy_ref: Option<PolicyRef>,
}

/// Lets the decider decide on an observation whose masks are as they shall be.
///
/// # Errors
/// The policy's.
pub fn make(
    decider: Decider<'_>,
    context: &Context,
    spec: &EnvSpec,
    observation: &Observation,
    rng: &mut Rng,
) -> Result<Made, PolicyError> {
    let Decider {
        policy,
        source,
        policy_ref,
    } = decider;
    let id = Uuid::new_v4();
    let at_us = now_us();
    let step = step_context(id, at_us, context, source, policy_ref.as_ref());
    let mut rows = vec![];
    let decided = decide_with(policy, spec, observation, rng, |view, made| {
        let order = rows.len() as u32;
        let id = DecisionId(Uuid::new_v4().as_u128());
        rows.push(DecisionRow::of_turn(
            id,
            order,
            &step,
            observation,
            view,
            made,
        ));
    })?;
    let decision = Decision {
        id,
        host: context.host.to_string(),
        source,
        state: State::Proposed,
        at_us,
        expires_us: None,
        policy: policy_ref,
        rows,
        durable: false,
        error: None,
        reason: None,
    };
    Ok(Made {
        decision,
        action: decided.action,
        turns: decided.order,
    })
}

fn step_context(
    id: Uuid,
    at_us: i64,
    context: &Context,
    source: Source,
    policy: Option<&PolicyRef>,
) -> StepContext {
    let policy = policy.cloned().unwrap_or_default();
    StepContext {
        host_step_id: HostStepId(id.as_u128()),
        episode_id: EpisodeId(context.episode.as_u128()),
        at_us,
        host: context.host.clone(),
        source: log_source(source),
        policy: policy.name.into(),
        policy_version: policy.version.into(),
        spec_hash: context.spec_hash.clone(),
        reward_weights: context.reward_weights.clone(),
    }
}

/// In the log `Proposal` is advice that was not applied; only what is applied is logged here, and
/// advice that somebody took is explicit, with the name of the policy that gave it.
fn log_source(source: Source) -> LogSource {
    match source {
        Source::Auto => LogSource::Auto,
        Source::Proposal | Source::Explicit => LogSource::Explicit,
        Source::Rollback => LogSource::Rollback,
        Source::Guard => LogSource::Guard,
        Source::Shadow => LogSource::Shadow,
        Source::Canary => LogSource::Canary,
    }
}

impl Made {
    /// Notes that nothing of it is applied: what was in force stays.
    pub(crate) fn leave_unapplied(&mut self) {
        let heads = self.decision.rows.iter_mut().flat_map(|row| &mut row.heads);
        for head in heads {
            head.executed = head.previous;
            let is_altered = head.executed != head.requested;
            head.altered = is_altered.then(|| NOT_APPLIED.to_owned());
        }
    }

    /// Says why it was made.
    pub fn explain(&mut self, reason: &str) {
        for row in &mut self.decision.rows {
            row.reason = Some(reason.to_owned());
        }
        self.decision.reason = Some(reason.to_owned());
    }

    /// Takes over what the host did. A failure may be one of a guest that has no row here.
    pub fn execute(&mut self, executed: &JointAction, failures: &[String]) {
        let reason = if failures.is_empty() {
            "the guest has gone, or the host kept its value".to_owned()
        } else {
            failures.join("; ")
        };
        for (row, turn) in self.decision.rows.iter_mut().zip(&self.turns) {
            row.set_executed(*turn, executed, &reason);
        }
        let mut heads = self.decision.rows.iter().flat_map(|row| &row.heads);
        let is_failed = !failures.is_empty() || heads.any(|head| head.altered.is_some());
        self.decision.state = if is_failed {
            State::Failed
        } else {
            State::Applied
        };
        self.decision.error = is_failed.then_some(reason);
    }
}

impl Decision {
    /// A decision as the log has it: its rows, in order. `None` without rows.
    #[must_use]
    pub fn from_log(mut rows: Vec<DecisionRow>) -> Option<Self> {
        rows.sort_by_key(|row| row.order);
        // Of two policies that decided together, it stands in the name of the production policy; and
        // of those that stood in, in that of none.
        let in_its_name = |row: &&DecisionRow| (row.source != LogSource::Auto, row.stage);
        let first = rows.iter().min_by_key(in_its_name)?.clone();
        let policy = (!first.policy.is_empty()).then(|| PolicyRef {
            name: first.policy.to_string(),
            version: first.policy_version.to_string(),
        });
        let source = source_of(first.source, policy.is_some());
        let altered = rows
            .iter()
            .flat_map(|row| &row.heads)
            .find_map(|head| head.altered.clone());
        let (state, error) = match (source, altered) {
            (Source::Shadow, _) => (State::Proposed, None),
            (_, Some(altered)) => (State::Failed, Some(altered)),
            (_, None) => (State::Applied, None),
        };
        Some(Self {
            id: Uuid::from_u128(first.host_step_id.0),
            host: first.host.to_string(),
            source,
            state,
            at_us: first.at_us,
            expires_us: None,
            policy,
            durable: true,
            error,
            reason: first.reason,
            rows,
        })
    }

    /// Without what the policy saw, which is most of its size and stands in the log.
    #[must_use]
    pub fn slim(mut self) -> Self {
        for row in &mut self.rows {
            row.seen = Seen::default();
            row.novel = vec![];
            row.reward_weights = Arc::default();
        }
        self
    }
}

fn source_of(source: LogSource, has_policy: bool) -> Source {
    match source {
        LogSource::Explicit if !has_policy => Source::Explicit,
        LogSource::Explicit | LogSource::Proposal => Source::Proposal,
        LogSource::Rollback => Source::Rollback,
        LogSource::Guard => Source::Guard,
        LogSource::Shadow => Source::Shadow,
        LogSource::Canary => Source::Canary,
        LogSource::Simulator | LogSource::Auto => Source::Auto,
    }
}

/// Microseconds since 1970 UTC.
#[must_use]
pub fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

/// "Chooses" what somebody else chose: makes rows of levels that were given. A level that is not allowed
/// is refused, not replaced by one that is: what was asked for is done as it is, or not at all.
#[derive(Debug)]
pub struct Scripted(pub JointAction);

impl Policy for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let levels = match view.turn {
            Turn::Disk(disk) => self.0.disks.row(disk),
            Turn::Device(device) => self.0.devices.row(device),
        };
        Ok(Choice::certain(levels.to_vec()))
    }
}
