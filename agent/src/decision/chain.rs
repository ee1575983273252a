//! The fallback chain: what decides when a policy fails or is late.
//!
//! The policy, then the last policy known to be good, then the heuristic `least_loaded`, then nothing:
//! what is in force stays. A policy is out for the rest of a joint decision when it fails in a turn, or
//! has taken longer than it may; the choices that it made in earlier turns stand, since those after
//! them are conditional on them. The next joint decision begins with the policy again.

use std::time::Duration;

use blkpilot_env::clock::Clock;
use blkpilot_env::{EnvSpec, Level, MaskReason, Observation, Rng, TurnView};
use blkpilot_log::Stage;
use blkpilot_models::baseline::LeastLoaded;
use blkpilot_models::explore::{Explored, explore};
use blkpilot_models::{Choice, Outlier, Policy, PolicyError};

use super::PolicyRef;

/// A policy with its name and version.
pub struct Loaded {
    /// What chooses.
    pub policy: Box<dyn Policy>,
    /// Its name and version.
    pub reference: PolicyRef,
}

/// In how many joint decisions a stage has stood in for a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// The last policy known to be good.
    pub last_good: u64,
    /// The heuristic.
    pub heuristic: u64,
    /// Nothing: what was in force stayed.
    pub keep: u64,
}

impl Counts {
    fn of(&mut self, stage: Stage) -> Option<&mut u64> {
        match stage {
            Stage::Policy => None,
            Stage::LastGood => Some(&mut self.last_good),
            Stage::Heuristic => Some(&mut self.heuristic),
            Stage::Keep => Some(&mut self.keep),
        }
    }
}

/// What a turn is about.
#[derive(Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub(crate) spec: &'a EnvSpec,
    /// What the joint decision is about.
    pub(crate) observation: &'a Observation,
    pub(crate) clock: &'a (dyn Clock + Sync),
}

/// What one turn brought.
pub(crate) struct Turned {
    pub(crate) explored: Explored,
    pub(crate) stage: Stage,
    pub(crate) policy: PolicyRef,
    /// The exploration that was in force.
    pub(crate) epsilon: f64,
}

/// A policy and what may stand in for it.
pub struct Chain {
    links: Vec<(Stage, Loaded)>,
    /// What a policy may take for a joint decision.
    limit: Duration,
    /// The link in use.
    at: usize,
    /// Whether it has seen the observation.
    has_begun: bool,
    /// What it has taken in this joint decision.
    spent: Duration,
    /// The stages that have been counted in this joint decision.
    counted: Vec<Stage>,
    counts: Counts,
    error: Option<PolicyError>,
}

impl Chain {
    /// A policy that nothing stands in for: its failures are errors.
    #[must_use]
    pub fn alone(policy: Loaded, limit: Duration) -> Self {
        Self {
            links: vec![(Stage::Policy, policy)],
            limit,
            at: 0,
            has_begun: false,
            spent: Duration::ZERO,
            counted: vec![],
            counts: Counts::default(),
            error: None,
        }
    }

    /// A policy, the last one that was good if it is another, and the heuristic where the environment
    /// has channels.
    #[must_use]
    pub fn with_fallbacks(
        policy: Loaded,
        last_good: Option<Loaded>,
        spec: &EnvSpec,
        limit: Duration,
    ) -> Self {
        let mut chain = Self::alone(policy, limit);
        let heuristic = LeastLoaded::new(spec).ok().map(|heuristic| Loaded {
            reference: PolicyRef {
                name: heuristic.name().to_owned(),
                version: String::new(),
            },
            policy: Box::new(heuristic),
        });
        let last_good = last_good.map(|loaded| (Stage::LastGood, loaded));
        let heuristic = heuristic.map(|loaded| (Stage::Heuristic, loaded));
        chain.links.extend(last_good.into_iter().chain(heuristic));
        chain
    }

    /// The policy that should decide.
    pub(crate) fn policy(&mut self) -> &mut dyn Policy {
        &mut *self.links[0].1.policy
    }

    /// Its name and version.
    pub(crate) fn reference(&self) -> &PolicyRef {
        &self.links[0].1.reference
    }

    /// What has stood in for it so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Why something stood in for it in the last joint decision, or it decided nothing.
    pub(crate) fn error(&self) -> Option<&PolicyError> {
        self.error.as_ref()
    }

    /// A joint decision begins.
    pub(crate) fn begin(&mut self) {
        self.error = None;
        self.counted.clear();
        self.use_link(0);
    }

    fn use_link(&mut self, at: usize) {
        self.at = at;
        self.has_begun = false;
        self.spent = Duration::ZERO;
    }

    /// One turn. `epsilon` is for the policy itself: what stands in does not explore.
    ///
    /// # Errors
    /// Why the last link failed; the chain is at its end then, until the next joint decision.
    pub(crate) fn choose(
        &mut self,
        at: Situation<'_>,
        view: &TurnView<'_>,
        epsilon: f64,
        rng: &mut Rng,
    ) -> Result<Turned, PolicyError> {
        while self.at < self.links.len() {
            match self.try_link(at, view, epsilon, rng) {
                Ok(turned) => {
                    self.count(turned.stage);
                    return Ok(turned);
                }
                Err(error) => {
                    let (stage, loaded) = &self.links[self.at];
                    tracing::warn!(policy = loaded.reference.name, ?stage, %error, "policy failed");
                    // What is wrong with the policy matters more than with what stands in.
                    self.error.get_or_insert(error);
                    self.use_link(self.at + 1);
                }
            }
        }
        let ended = self.error.clone();
        Err(ended.expect("a chain has a link, and ends only by an error of each"))
    }

    /// As [`Chain::choose`], but what is in force stays where every link fails.
    pub(crate) fn choose_or_keep(
        &mut self,
        at: Situation<'_>,
        view: &TurnView<'_>,
        epsilon: f64,
        rng: &mut Rng,
    ) -> Turned {
        self.choose(at, view, epsilon, rng).unwrap_or_else(|_| {
            self.count(Stage::Keep);
            kept(view)
        })
    }

    /// Counts that a stage has decided, once per joint decision.
    pub(crate) fn count(&mut self, stage: Stage) {
        if self.counted.contains(&stage) {
            return;
        }
        self.counted.push(stage);
        if let Some(count) = self.counts.of(stage) {
            *count += 1;
        }
    }

    /// What the link in use had not seen in training.
    pub(crate) fn novelty(&self, view: &TurnView<'_>) -> Vec<Outlier> {
        let link = self.links.get(self.at);
        link.map_or_else(Vec::new, |(_, loaded)| loaded.policy.novelty(view))
    }

    fn try_link(
        &mut self,
        at: Situation<'_>,
        view: &TurnView<'_>,
        epsilon: f64,
        rng: &mut Rng,
    ) -> Result<Turned, PolicyError> {
        let started = at.clock.now();
        let (stage, loaded) = &mut self.links[self.at];
        if !self.has_begun {
            self.has_begun = true;
            loaded.policy.begin(at.spec, at.observation)?;
        }
        let epsilon = if *stage == Stage::Policy {
            epsilon
        } else {
            0.0
        };
        let explored = explore(&mut *loaded.policy, epsilon, at.spec, view, rng)?;
        check(&loaded.reference.name, view, &explored.choice)?;
        self.spent += at.clock.now().saturating_sub(started);
        if self.spent > self.limit {
            return Err(PolicyError::Late {
                policy: loaded.reference.name.clone(),
                took_ms: self.spent.as_secs_f64() * 1e3,
                limit_ms: self.limit.as_secs_f64() * 1e3,
            });
        }
        Ok(Turned {
            explored,
            stage: *stage,
            policy: loaded.reference.clone(),
            epsilon,
        })
    }
}

/// Every level that is in force, or that the IOThread has been given.
fn kept(view: &TurnView<'_>) -> Turned {
    let level = |head: usize| -> Level {
        let mask = view.head_mask(head);
        let forced = view
            .forced(head)
            .filter(|_| mask.contains(&MaskReason::TiedToIoThread));
        forced.unwrap_or(view.current[head])
    };
    let levels: Vec<Level> = (0..view.heads.len()).map(level).collect();
    Turned {
        explored: Explored {
            explored: vec![false; levels.len()],
            choice: Choice::certain(levels),
        },
        stage: Stage::Keep,
        policy: PolicyRef {
            name: "keep".to_owned(),
            version: String::new(),
        },
        epsilon: 0.0,
    }
}

/// Whether a choice is one: what is not allowed, or has no probability, is a failure of the policy.
fn check(policy: &str, view: &TurnView<'_>, choice: &Choice) -> Result<(), PolicyError> {
    let improper = |problem: String| PolicyError::Improper {
        turn: view.turn,
        policy: policy.to_owned(),
        problem,
    };
    let heads = view.heads.len();
    let (levels, propensities) = (choice.levels.len(), choice.propensities.len());
    if (levels, propensities) != (heads, heads) {
        let problem = format!("{levels} levels with {propensities} propensities for {heads} heads");
        return Err(improper(problem));
    }
    let made = choice.levels.iter().zip(&choice.propensities).enumerate();
    for (head, (&level, &propensity)) in made {
        let mask = view.head_mask(head);
        let is_allowed = mask
            .get(usize::from(level))
            .is_some_and(|reason| reason.is_allowed());
        let is_tied = mask.contains(&MaskReason::TiedToIoThread);
        let stays = level == view.current[head] && !is_tied;
        let name = &view.heads[head].name;
        if !is_allowed && !stays {
            let problem = format!("level {level} of head `{name}`, which is not allowed now");
            return Err(improper(problem));
        }
        if !(propensity > 0.0 && propensity <= 1.0) {
            let problem = format!("the propensity {propensity} for head `{name}`");
            return Err(improper(problem));
        }
    }
    Ok(())
}
