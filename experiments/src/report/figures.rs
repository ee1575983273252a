//! Estimates with intervals, over training seeds where there are several.
//!
//! A configuration is judged by its runs: each counts by the mean reward of its policy over the evaluation episodes.
//! Mean and interquartile mean of these are given with 95 % bootstrap intervals that resample runs (Agarwal et al. 2021,
//! section 4). Whole runs are resampled, not episodes within them: the episodes of one run share its policy, and as if
//! they did not, intervals would be too short. A configuration is one task, so its runs are one stratum;
//! [`Strata`] takes any number of them.
//!
//! Differences are paired by evaluation seed. Where there are several runs, runs and episodes are both resampled, each for
//! themselves (Owen 2007, the pigeonhole bootstrap), since both are draws.

use blkpilot_models::bootstrap::{ci95, ci95_of, mean};
use blkpilot_models::episode::Episode;

use super::collect::Group;
use super::replay::Replayed;
use crate::compare::TRAINED;
use crate::statistics::{interquartile_mean, median};

/// Runs that an interval over runs takes at least.
pub const LEAST_RUNS: usize = 3;

/// A figure with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// Its interval.
    pub ci95: [f64; 2],
}

/// Scores of runs by task.
#[derive(Debug, Clone, PartialEq)]
pub struct Strata(pub Vec<Vec<f64>>);

impl Strata {
    /// A statistic of all scores, with the interval of a bootstrap that resamples the runs of each task for
    /// themselves. `None` without scores, or where the statistic is undefined.
    ///
    /// Source: Agarwal et al. 2021, section 4.1.
    #[must_use]
    pub fn figure(&self, statistic: fn(&[f64]) -> Option<f64>) -> Option<Figure> {
        if self.0.iter().any(Vec::is_empty) {
            return None;
        }
        let value = statistic(&self.0.concat())?;
        let sizes: Vec<usize> = self.0.iter().map(Vec::len).collect();
        let ci95 = ci95_of(&sizes, |drawn| {
            let scores = drawn.iter().zip(&self.0);
            let scores = scores.flat_map(|(drawn, own)| drawn.iter().map(|run| own[*run]));
            statistic(&scores.collect::<Vec<_>>()).unwrap_or(value)
        });
        Some(Figure { value, ci95 })
    }
}

/// What an interval resamples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampled {
    /// Episodes of one policy.
    Episodes,
    /// Runs, whole.
    Runs,
    /// Runs and episodes.
    Both,
}

impl Resampled {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Episodes => "episodes",
            Self::Runs => "runs",
            Self::Both => "runs and episodes",
        }
    }
}

/// Figures of one policy.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyRow {
    /// Its name.
    pub name: String,
    /// Mean reward.
    pub mean: Figure,
    /// What the interval resamples.
    pub resampled: Resampled,
    /// Interquartile mean over the runs; only of trained policies.
    pub interquartile_mean: Option<Figure>,
    /// Mean relative performance loss.
    pub loss: Option<f64>,
    /// Trained minus it.
    pub difference: Option<Figure>,
}

/// Figures of one configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupFigures {
    /// Median score of the runs.
    pub median: f64,
    /// Mean reward by run, in the order of their seeds.
    pub scores: Vec<f64>,
    /// Per run, reward by episode, where every policy has one.
    pub rewards: Vec<Vec<f64>>,
    /// Evaluation episodes that count.
    pub episodes: usize,
    /// Those left out: with some policy nothing counted.
    pub left_out: usize,
    /// Trained first, then those that are not.
    pub policies: Vec<PolicyRow>,
    /// What intervals of differences resample.
    pub resampled: Resampled,
    /// Runs whose summary says another mean than the episodes played again: seed, what it says, what was found.
    pub deviations: Vec<(u64, f64, f64)>,
}

impl GroupFigures {
    /// Of the episodes of a configuration; `None` if nothing counted on any seed.
    #[must_use]
    pub fn of(group: &Group, replayed: &Replayed) -> Option<Self> {
        let baselines = replayed.baselines.iter().map(|(_, episodes)| episodes);
        let all: Vec<&Vec<Episode>> = replayed.trained.iter().chain(baselines).collect();
        let played = all.first()?.len();
        let counts = |episode: usize| all.iter().all(|own| own[episode].reward.is_some());
        let kept: Vec<usize> = (0..played).filter(|episode| counts(*episode)).collect();
        if kept.is_empty() {
            return None;
        }
        let rewards_of = |episodes: &Vec<Episode>| -> Vec<f64> {
            kept.iter()
                .filter_map(|own| episodes[*own].reward)
                .collect()
        };
        let rewards: Vec<Vec<f64>> = replayed.trained.iter().map(rewards_of).collect();
        let scores: Vec<f64> = rewards.iter().map(|own| mean(own)).collect();
        let over_runs = rewards.len() >= LEAST_RUNS;
        let mut policies = vec![trained_row(
            &rewards,
            &scores,
            over_runs,
            loss(&replayed.trained, &kept),
        )];
        for (name, episodes) in &replayed.baselines {
            let own = rewards_of(episodes);
            policies.push(PolicyRow {
                name: name.clone(),
                mean: Figure {
                    value: mean(&own),
                    ci95: ci95(&own),
                },
                resampled: Resampled::Episodes,
                interquartile_mean: None,
                loss: loss(std::slice::from_ref(episodes), &kept),
                difference: Some(difference(&rewards, &own, over_runs)),
            });
        }
        Some(Self {
            median: median(&scores)?,
            deviations: deviations(group, replayed),
            scores,
            rewards,
            episodes: kept.len(),
            left_out: played - kept.len(),
            policies,
            resampled: if over_runs {
                Resampled::Both
            } else {
                Resampled::Episodes
            },
        })
    }

    /// This configuration minus another one on the same evaluation seeds, reward by episode. `None` unless both have
    /// enough runs, and episodes in the same number.
    ///
    /// Source: Owen 2007.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Option<Figure> {
        let is_comparable = self.episodes == other.episodes
            && self.left_out == other.left_out
            && self.scores.len() >= LEAST_RUNS
            && other.scores.len() >= LEAST_RUNS;
        if !is_comparable {
            return None;
        }
        let sizes = [self.scores.len(), other.scores.len(), self.episodes];
        let of = |rewards: &[Vec<f64>], runs: &[usize], episodes: &[usize]| {
            let sum: f64 = runs
                .iter()
                .map(|run| episodes.iter().map(|own| rewards[*run][*own]).sum::<f64>())
                .sum();
            sum / (runs.len() * episodes.len()) as f64
        };
        let ci95 = ci95_of(&sizes, |drawn| {
            of(&self.rewards, &drawn[0], &drawn[2]) - of(&other.rewards, &drawn[1], &drawn[2])
        });
        Some(Figure {
            value: mean(&self.scores) - mean(&other.scores),
            ci95,
        })
    }
}

fn trained_row(
    rewards: &[Vec<f64>],
    scores: &[f64],
    over_runs: bool,
    loss: Option<f64>,
) -> PolicyRow {
    let runs = Strata(vec![scores.to_vec()]);
    let over_episodes = || {
        let per_episode = mean_of_runs(rewards);
        Figure {
            value: mean(&per_episode),
            ci95: ci95(&per_episode),
        }
    };
    let of_runs = over_runs
        .then(|| runs.figure(|scores| Some(mean(scores))))
        .flatten();
    PolicyRow {
        name: TRAINED.to_owned(),
        resampled: match of_runs {
            Some(_) => Resampled::Runs,
            None => Resampled::Episodes,
        },
        mean: of_runs.unwrap_or_else(over_episodes),
        interquartile_mean: over_runs.then(|| runs.figure(interquartile_mean)).flatten(),
        loss,
        difference: None,
    }
}

/// Trained minus `other`, which has one reward per episode.
fn difference(rewards: &[Vec<f64>], other: &[f64], over_runs: bool) -> Figure {
    let paired: Vec<Vec<f64>> = rewards
        .iter()
        .map(|own| {
            own.iter()
                .zip(other)
                .map(|(own, other)| own - other)
                .collect()
        })
        .collect();
    let per_episode = mean_of_runs(&paired);
    let ci95 = if over_runs {
        ci95_of(&[paired.len(), other.len()], |drawn| {
            let of_run = |run: &usize| drawn[1].iter().map(|own| paired[*run][*own]).sum::<f64>();
            drawn[0].iter().map(of_run).sum::<f64>() / (paired.len() * other.len()) as f64
        })
    } else {
        ci95(&per_episode)
    };
    Figure {
        value: mean(&per_episode),
        ci95,
    }
}

fn mean_of_runs(rewards: &[Vec<f64>]) -> Vec<f64> {
    let episodes = rewards.first().map_or(0, Vec::len);
    (0..episodes)
        .map(|episode| rewards.iter().map(|own| own[episode]).sum::<f64>() / rewards.len() as f64)
        .collect()
}

fn loss(runs: &[Vec<Episode>], kept: &[usize]) -> Option<f64> {
    let losses = runs
        .iter()
        .flat_map(|own| kept.iter().filter_map(|i| own[*i].loss));
    let losses: Vec<f64> = losses.collect();
    (!losses.is_empty()).then(|| mean(&losses))
}

/// The comparison of a run leaves out the seeds on which nothing counted for one of its own policies.
fn deviations(group: &Group, replayed: &Replayed) -> Vec<(u64, f64, f64)> {
    let mut deviations = vec![];
    for (run, episodes) in group.done().zip(&replayed.trained) {
        let counts = |number: &usize| {
            let of = |own: &Vec<Episode>| own[*number].reward.is_some();
            of(episodes) && replayed.baselines.iter().all(|(_, own)| of(own))
        };
        let rewards: Vec<f64> = (0..episodes.len())
            .filter(counts)
            .filter_map(|number| episodes[number].reward)
            .collect();
        let said = run.summary.as_ref();
        let said = said.and_then(|own| own["policies"][TRAINED]["reward_mean"].as_f64());
        let found = mean(&rewards);
        if let Some(said) = said.filter(|said| *said != found) {
            deviations.push((run.seed, said, found));
        }
    }
    deviations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_near(interval: [f64; 2], wanted: [f64; 2], most: f64) {
        let apart = |i: usize| (interval[i] - wanted[i]).abs();
        assert!(
            apart(0) < most && apart(1) < most,
            "{interval:?} {wanted:?}"
        );
    }

    /// All resamples of three runs can be written down: 27, of which one is all the least.
    #[test]
    fn the_interval_over_few_runs_is_that_of_all_resamples() {
        let scores = [0.0, 3.0, 6.0];
        let mut means = vec![];
        for a in scores {
            for b in scores {
                means.extend(scores.map(|c| (a + b + c) / 3.0));
            }
        }
        means.sort_by(f64::total_cmp);
        // 1/27 = 3.7 % of them are at each end, more than 2.5 %.
        let wanted = [means[0], means[26]];
        let figure = Strata(vec![scores.to_vec()])
            .figure(|own| Some(mean(own)))
            .unwrap();
        assert_eq!((figure.value, figure.ci95), (3.0, wanted));
    }

    /// Each task's runs are resampled for themselves, so a difference between tasks is no variance.
    #[test]
    fn strata_are_not_mixed() {
        let strata = Strata(vec![vec![1.0; 4], vec![9.0; 4]]);
        let figure = strata.figure(|own| Some(mean(own))).unwrap();
        assert_eq!((figure.value, figure.ci95), (5.0, [5.0, 5.0]));
        assert_eq!(Strata(vec![vec![], vec![1.0]]).figure(median), None);
    }

    /// Runs that differ make the interval wide, however many episodes each of them plays.
    #[test]
    fn runs_that_differ_widen_the_interval_of_a_difference() {
        let episodes = 400;
        let rewards: Vec<Vec<f64>> = [0.0, 1.0, 2.0, 3.0, 4.0]
            .iter()
            .map(|level| vec![*level; episodes])
            .collect();
        let other = vec![0.0; episodes];
        let over_episodes = difference(&rewards, &other, false);
        assert_eq!(over_episodes.ci95, [2.0, 2.0]);
        let both = difference(&rewards, &other, true);
        // Means of five draws of 0 to 4: standard error √(2/5) = 0.63.
        is_near(both.ci95, [2.0 - 1.24, 2.0 + 1.24], 0.2);
        assert_eq!(both.value, 2.0);
    }

    #[test]
    fn episodes_that_differ_widen_it_too() {
        let rewards = vec![(0..100).map(f64::from).collect::<Vec<_>>(); 3];
        let both = difference(&rewards, &[0.0; 100], true);
        // Standard error of the mean of 100 draws of 0 to 99: 2.89.
        is_near(both.ci95, [49.5 - 5.66, 49.5 + 5.66], 0.6);
    }
}
