//! What the trained policies lose against an oracle, where a configuration plays on one scenario.

use blkpilot_env::reward::RewardConfig;
use blkpilot_models::NetworkPolicy;
use blkpilot_models::bootstrap::{ci95_of, mean};
use blkpilot_models::oracle::{Limits, Planner, Sight, StudyError, StudyOptions, study};

use super::collect::Group;
use super::figures::Figure;
use crate::compare::policies;
use crate::config::EnvironmentConfig;
use crate::state::scenario_of;
use crate::{LabError, seeds};

/// Settings of one phase vector up to which all are tried, and values that a search may compute: a page shall not
/// take hours. `blkpilot-lab oracle` goes further.
const LIMITS: (usize, u64) = (4_000, 1_000);

/// Rewards and regret on the scenario of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Gap {
    /// Name of the scenario.
    pub scenario: String,
    /// Episodes per policy.
    pub episodes: usize,
    /// Policies with their mean reward, and their regret against the lagged oracle; trained by run, best first.
    pub policies: Vec<(String, f64, Option<Figure>)>,
    /// Share of the states in which the oracle has tried every setting.
    pub exhaustive: f64,
}

/// Studies the scenario of a configuration: `None` if it does not play on one or no run is done, `Err` in words if
/// there is no oracle of it. `goes_on` is asked now and then.
///
/// # Errors
/// `Interrupted` if it does not, `Policy`, `Decide`.
pub fn gap(
    group: &Group,
    episodes: u64,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Result<Gap, String>>, LabError> {
    let Some(scenario) = scenario_of(&group.config) else {
        return Ok(None);
    };
    if group.done().next().is_none() {
        return Ok(None);
    }
    let reward = match &group.config.environment {
        EnvironmentConfig::SimHost { reward, .. } => *reward,
        _ => RewardConfig::default(),
    };
    let limits = Limits {
        exhaustive: LIMITS.0,
        search: LIMITS.1,
        ..Limits::default()
    };
    let mut planner = match Planner::new(scenario, reward, limits) {
        Ok(planner) => planner,
        Err(error) => return Ok(Some(Err(error.to_string()))),
    };
    let spec = planner.values().spec().clone();
    let mut all = policies(&spec, None)?;
    for run in group.done() {
        run.checkpoint.check_fits(&spec)?;
        let name = trained_name(run.seed);
        all.push(Box::new(NetworkPolicy::new(
            name,
            &run.checkpoint,
            group.config.evaluation.selection,
        )?));
    }
    let seed = |i: u64| {
        let seed = seeds::evaluation(group.config.evaluation.first_seed + i);
        (seed, seeds::decisions(seed))
    };
    let options = StudyOptions {
        seeds: (0..episodes.max(2)).map(seed).collect(),
        tolerance: 0.02,
        epsilon: 0.01,
    };
    let found = match study(&mut planner, &mut all, &options, &mut |_| goes_on()) {
        Ok(found) => found,
        Err(StudyError::Interrupted) => return Err(LabError::Interrupted),
        Err(error) => return Ok(Some(Err(error.to_string()))),
    };
    let rewards = |name: &str| found.policies.get(name).map(|own| own.rewards.as_slice());
    let (lagged, random) = (rewards(Sight::Last.name()), rewards("random"));
    let mut policies: Vec<(String, f64, Option<Figure>)> = found
        .policies
        .iter()
        .map(|(name, own)| {
            let regret = lagged.zip(random).and_then(|(lagged, random)| {
                (name.as_str() != "oracle")
                    .then(|| regret(lagged, &own.rewards, random))
                    .flatten()
            });
            (name.clone(), own.reward.value, regret)
        })
        .collect();
    policies.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(Some(Ok(Gap {
        scenario: found.scenario.clone(),
        episodes: found.episodes,
        policies,
        exhaustive: found.steady.exhaustive,
    })))
}

/// What the study calls a trained policy.
#[must_use]
pub fn trained_name(seed: u64) -> String {
    format!("trained, seed {seed}")
}

/// (best − policy)/(best − random), each the mean over the episodes, with its interval over episodes; `None` where the
/// best is no better than random.
fn regret(best: &[f64], policy: &[f64], random: &[f64]) -> Option<Figure> {
    let range = mean(best) - mean(random);
    if range <= 0.0 {
        return None;
    }
    let of = |drawn: &[usize]| {
        let mean = |values: &[f64]| drawn.iter().map(|i| values[*i]).sum::<f64>();
        (mean(best) - mean(policy)) / (mean(best) - mean(random))
    };
    let all: Vec<usize> = (0..best.len()).collect();
    Some(Figure {
        value: of(&all),
        ci95: ci95_of(&[best.len()], |drawn| of(&drawn[0])),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regret_is_nought_for_the_best_and_one_for_random() {
        let (best, random) = ([-0.1, -0.2, -0.3], [-0.5, -0.4, -0.9]);
        let of = |policy: &[f64]| regret(&best, policy, &random).map(|own| own.value);
        assert_eq!(of(&best), Some(0.0));
        assert_eq!(of(&random), Some(1.0));
        assert!((of(&[-0.3, -0.3, -0.6]).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(regret(&random, &best, &best), None);
    }
}
