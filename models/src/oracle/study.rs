//! What policies lose against the oracle of a scenario.
//!
//! All policies play the same evaluation seeds. Their **regret** is (oracle − policy)/(oracle − random),
//! each the mean over the episodes of the host mean reward per interval; 0 is as good as the oracle, 1 as
//! bad as random. What is resampled for the intervals are episodes, the same ones for all policies.

use std::collections::BTreeMap;

use blkpilot_env::{JointAction, Rng};
use serde::Serialize;

use super::OracleError;
use super::accuracy::{Accuracy, Tally, accuracy, judge_all};
use super::best_static::BestStatic;
use super::dependence::{HeadDependence, dependence};
use super::phases::States;
use super::planner::Planner;
use super::policies::Sight;
use super::record::{Record, Records, play_all};
use super::regret::{Estimate, Scale, regret};
use crate::bootstrap::{ci95, mean};
use crate::episode::leave_out_empty;
use crate::policy::Policy;

/// Name of the best static setting in reports.
pub const BEST_STATIC: &str = "best_static";
/// Name of the random policy, the other end of the scale.
pub(super) const RANDOM: &str = "random";

/// How to judge.
#[derive(Debug, Clone)]
pub struct StudyOptions {
    /// Evaluation seeds, each with what the policies draw from in its episode. At least two.
    pub seeds: Vec<(u64, Rng)>,
    /// Gain, as a share of the range, up to which a decision is correct.
    pub tolerance: f64,
    /// Range below which a state is left out.
    pub epsilon: f64,
}

/// How far a study has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Phase vectors looked into, of how many.
    States(usize, usize),
    /// Episodes played, of how many.
    Episodes(usize, usize),
    /// Policies judged, of how many.
    Judged(usize, usize),
}

/// Why there is no study.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// The oracle has no answer.
    #[error(transparent)]
    Oracle(OracleError),
    /// The path of phases depends on what is done, so episodes cannot be paired.
    #[error(
        "evaluation seed {seed}: under {policy} the phases took another path than under keep_default"
    )]
    Path {
        /// The seed.
        seed: u64,
        /// The policy.
        policy: String,
    },
    /// No episode says anything.
    #[error(
        "on each of {seeds} evaluation seeds every disk was idle: give more episodes, or a scenario that does something"
    )]
    NothingCounted {
        /// Seeds played.
        seeds: usize,
    },
    /// Whoever watched said stop.
    #[error("interrupted")]
    Interrupted,
}

impl From<OracleError> for StudyError {
    fn from(error: OracleError) -> Self {
        match error {
            OracleError::Interrupted => Self::Interrupted,
            other => Self::Oracle(other),
        }
    }
}

/// Figures of one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyFigures {
    /// Host mean reward per interval.
    pub reward: Estimate,
    /// Relative performance loss.
    pub loss: Option<f64>,
    /// Regret; `None` if the oracle is no better than random.
    pub regret: Option<Estimate>,
    /// The regret if the optimum were as good as its bound.
    pub regret_at_bound: Option<f64>,
    /// Its decisions.
    pub accuracy: Accuracy,
    /// Reward per episode, for pooling.
    #[serde(skip)]
    pub rewards: Vec<f64>,
    /// Decisions per episode, likewise.
    #[serde(skip)]
    pub(super) tallies: Vec<Tally>,
}

/// Values without noise, mean over the phase vectors with their stationary shares.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SteadyFigures {
    /// Phase vectors in which some disk is active.
    pub states: usize,
    /// Whether these are all there are; else a sample.
    pub all_states: bool,
    /// Share of them in which all settings were tried.
    pub exhaustive: f64,
    /// Best value.
    pub best: f64,
    /// Proven bound of it; equal where all settings were tried.
    pub bound: f64,
    /// Value of random settings.
    pub random: f64,
    /// Value of the best static setting, without the cost of taking it up.
    pub best_static: f64,
    /// No static setting has a greater one.
    pub best_static_bound: f64,
    /// Whether all static settings were tried.
    pub best_static_exhaustive: bool,
    /// (best − best static)/(best − random): what knowing the state is worth.
    pub best_static_regret: f64,
    /// Values computed.
    pub evaluations: u64,
    /// Those whose reward had not settled.
    pub unsettled: u64,
}

/// All figures of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Study {
    /// The scenario.
    pub scenario: String,
    /// Episodes per policy that the figures are over.
    pub episodes: usize,
    /// Seeds left out because nothing counted on them.
    pub seeds_left_out: usize,
    /// Without noise and episodes.
    pub steady: SteadyFigures,
    /// By policy.
    pub policies: BTreeMap<String, PolicyFigures>,
    /// By head: how often its best level differs between phase vectors.
    pub dependence: BTreeMap<String, HeadDependence>,
    /// The best static joint action, levels per disk and head.
    #[serde(skip)]
    pub best_static: JointAction,
}

/// Studies a scenario: the given policies beside best static, lagged oracle and oracle. `policies` must
/// contain random. `watch` is told of the progress and says whether to go on.
///
/// # Errors
/// `Interrupted` if not; `Oracle` if a policy or the host fails; `Path`, `NothingCounted`.
pub fn study(
    planner: &mut Planner,
    policies: &mut [Box<dyn Policy>],
    options: &StudyOptions,
    watch: &mut dyn FnMut(Progress) -> bool,
) -> Result<Study, StudyError> {
    let states = planner.states();
    look_into(planner, &states, watch)?;
    let best = BestStatic::find(planner, &states)?;
    let steady = steady_figures(planner, &states, &best)?;
    let dependence = dependence(planner, &states, options.tolerance, options.epsilon)?;
    let mut records = play_all(planner, policies, &best, options, watch)?;
    let kept = leave_out_empty(&mut records, |record| record.episode.reward);
    let episodes = kept.iter().filter(|kept| **kept).count();
    if episodes == 0 {
        return Err(StudyError::NothingCounted { seeds: kept.len() });
    }
    let tallies = judge_all(planner, &records, options, watch)?;
    let (evaluations, unsettled) = planner.values().evaluations();
    Ok(Study {
        scenario: planner.values().scenario().name.clone(),
        episodes,
        seeds_left_out: kept.len() - episodes,
        policies: policy_figures(&records, &tallies, steady.bound - steady.best),
        steady: SteadyFigures {
            evaluations,
            unsettled,
            ..steady
        },
        dependence,
        best_static: planner.values().knobs().write(&best.setting),
    })
}

fn look_into(
    planner: &mut Planner,
    states: &States,
    watch: &mut dyn FnMut(Progress) -> bool,
) -> Result<(), StudyError> {
    let count = states.weighted.len();
    for (done, (phases, _)) in states.weighted.iter().enumerate() {
        go_on(watch(Progress::States(done, count)))?;
        planner.know_watched(phases, &mut || watch(Progress::States(done, count)))?;
    }
    go_on(watch(Progress::States(count, count)))
}

pub(super) fn go_on(goes_on: bool) -> Result<(), StudyError> {
    if goes_on {
        Ok(())
    } else {
        Err(StudyError::Interrupted)
    }
}

fn steady_figures(
    planner: &mut Planner,
    states: &States,
    best_static: &BestStatic,
) -> Result<SteadyFigures, OracleError> {
    let (mut best, mut bound, mut random, mut exhaustive) = (0.0, 0.0, 0.0, 0_usize);
    for (phases, weight) in &states.weighted {
        let known = planner.know(phases)?;
        best += weight * known.best();
        bound += weight * known.bound;
        random += weight * known.random;
        exhaustive += usize::from(known.is_exhaustive);
    }
    Ok(SteadyFigures {
        states: states.weighted.len(),
        all_states: states.are_all,
        exhaustive: exhaustive as f64 / states.weighted.len().max(1) as f64,
        best,
        bound,
        random,
        best_static: best_static.value,
        best_static_bound: best_static.bound,
        best_static_exhaustive: best_static.is_exhaustive,
        best_static_regret: (best - best_static.value) / (best - random),
        evaluations: 0,
        unsettled: 0,
    })
}

fn policy_figures(
    records: &Records,
    tallies: &BTreeMap<String, Vec<Tally>>,
    gap: f64,
) -> BTreeMap<String, PolicyFigures> {
    let rewards: BTreeMap<&str, Vec<f64>> = records
        .iter()
        .map(|(name, own)| {
            (
                name.as_str(),
                own.iter().filter_map(|r| r.episode.reward).collect(),
            )
        })
        .collect();
    let figures = |(name, own): (&String, &Vec<Record>)| {
        let losses: Vec<f64> = own.iter().filter_map(|r| r.episode.loss).collect();
        let scale = Scale {
            oracle: &rewards[Sight::Next.name()],
            policy: &rewards[name.as_str()],
            random: &rewards[RANDOM],
        };
        let figures = PolicyFigures {
            reward: Estimate {
                value: mean(scale.policy),
                ci95: ci95(scale.policy),
            },
            loss: (!losses.is_empty()).then(|| mean(&losses)),
            regret: regret(scale),
            regret_at_bound: scale.at_bound(gap),
            accuracy: accuracy(&tallies[name]),
            rewards: scale.policy.to_vec(),
            tallies: tallies[name].clone(),
        };
        (name.clone(), figures)
    };
    records.iter().map(figures).collect()
}
