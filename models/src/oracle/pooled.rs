//! Figures over several scenarios.

use std::collections::BTreeMap;

use serde::Serialize;

use super::policies::Sight;
use super::regret::{Estimate, LEAST_RANGE};
use super::study::{PolicyFigures, RANDOM, Study};
use crate::bootstrap::ci95_of;

/// What is drawn again for the intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resampled {
    /// Episodes, those of each scenario for themselves: it is these scenarios that are asked about.
    Episodes,
    /// Scenarios with all their episodes: they are draws of many that could have been, such as random hosts.
    Scenarios,
}

/// One policy over several scenarios. Each weighs the same in a mean; a regret is the sum of what is lost over the sum
/// of the ranges.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PooledFigures {
    /// Host mean reward per interval.
    pub reward: Estimate,
    /// Relative performance loss.
    pub loss: Option<f64>,
    /// (oracle − policy)/(oracle − random); `None` if the oracle is no better than random.
    pub regret: Option<Estimate>,
    /// The same against the lagged oracle, which sees what a policy can see.
    pub lagged_regret: Option<Estimate>,
    /// Share of correct decisions, of all scenarios together; `None` if none was judged.
    pub correct: Option<Estimate>,
    /// Reward of the subject minus that of this policy, paired by episode; `None` without a subject, and of itself.
    pub subject_minus_it: Option<Estimate>,
}

/// Figures by policy, of those policies that played all of the scenarios; `subject` is the one that the others are
/// compared with.
#[must_use]
pub fn pooled(
    studies: &[Study],
    resampled: Resampled,
    subject: Option<&str>,
) -> BTreeMap<String, PooledFigures> {
    let Some(first) = studies.first() else {
        return BTreeMap::new();
    };
    let names = first.policies.keys();
    let in_all = names.filter(|name| studies.iter().all(|s| s.policies.contains_key(*name)));
    let pool = Pool { studies, resampled };
    in_all
        .map(|name| (name.clone(), pool.figures(name, subject)))
        .collect()
}

/// Scenarios, each with some of its episodes by their places in its study.
type Drawn<'a> = [(&'a Study, Vec<usize>)];

struct Pool<'a> {
    studies: &'a [Study],
    resampled: Resampled,
}

impl Pool<'_> {
    fn figures(&self, name: &str, subject: Option<&str>) -> PooledFigures {
        let minus_it = |subject: &str| self.estimate(|drawn| mean_lead(drawn, subject, name));
        let losses: Option<Vec<f64>> = self.studies.iter().map(|s| s.policies[name].loss).collect();
        let judged = self
            .studies
            .iter()
            .map(|s| s.policies[name].accuracy.judged);
        PooledFigures {
            reward: self.estimate(|drawn| {
                let means = drawn
                    .iter()
                    .map(|(s, at)| mean(&s.policies[name].rewards, at));
                means.sum::<f64>() / drawn.len() as f64
            }),
            loss: losses.map(|losses| losses.iter().sum::<f64>() / losses.len() as f64),
            regret: self.regret(Sight::Next.name(), name),
            lagged_regret: self.regret(Sight::Last.name(), name),
            correct: (judged.sum::<usize>() > 0)
                .then(|| self.estimate(|drawn| share_correct(drawn, name))),
            subject_minus_it: subject.filter(|s| *s != name).map(minus_it),
        }
    }

    fn regret(&self, oracle: &str, name: &str) -> Option<Estimate> {
        let range = |drawn: &Drawn<'_>| mean_lead(drawn, oracle, RANDOM);
        (range(&self.whole()) > LEAST_RANGE)
            .then(|| self.estimate(|drawn| mean_lead(drawn, oracle, name) / range(drawn)))
    }

    /// A statistic of all episodes, with its interval over what is drawn again.
    fn estimate(&self, statistic: impl Fn(&Drawn<'_>) -> f64) -> Estimate {
        let whole = self.whole();
        let ci95 = match self.resampled {
            Resampled::Episodes => {
                let sizes: Vec<usize> = self.studies.iter().map(|s| s.episodes).collect();
                ci95_of(&sizes, |drawn| {
                    let pairs = self.studies.iter().zip(drawn.iter().cloned());
                    statistic(&pairs.collect::<Vec<_>>())
                })
            }
            Resampled::Scenarios => ci95_of(&[whole.len()], |drawn| {
                let picked = drawn[0].iter().map(|i| whole[*i].clone());
                statistic(&picked.collect::<Vec<_>>())
            }),
        };
        Estimate {
            value: statistic(&whole),
            ci95,
        }
    }

    fn whole(&self) -> Vec<(&Study, Vec<usize>)> {
        let all = |study: &Study| (0..study.episodes).collect();
        self.studies.iter().map(|s| (s, all(s))).collect()
    }
}

/// By how much one policy earns more than another, mean over scenarios of the mean over episodes.
fn mean_lead(drawn: &Drawn<'_>, leader: &str, other: &str) -> f64 {
    let leads = drawn.iter().map(|(study, at)| {
        let of = |name: &str| mean(&study.policies[name].rewards, at);
        of(leader) - of(other)
    });
    leads.sum::<f64>() / drawn.len() as f64
}

fn mean(values: &[f64], at: &[usize]) -> f64 {
    at.iter().map(|i| values[*i]).sum::<f64>() / at.len() as f64
}

fn share_correct(drawn: &Drawn<'_>, name: &str) -> f64 {
    let tallies = |of: &PolicyFigures, at: &[usize]| -> [f64; 2] {
        let sum = |column: usize| at.iter().map(|i| of.tallies[*i][column]).sum::<usize>() as f64;
        [sum(0), sum(1)]
    };
    let sums = drawn.iter().map(|(s, at)| tallies(&s.policies[name], at));
    let [correct, judged] = sums.fold([0.0; 2], |sum, t| [sum[0] + t[0], sum[1] + t[1]]);
    correct / judged.max(1.0)
}
