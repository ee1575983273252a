//! The evaluation episodes of a configuration, played again: rewards per episode, and what was chosen where.
//!
//! Summaries hold means; paired intervals over training seeds need each episode's reward. Policies, seeds and
//! environment are those of the comparison, so the means are those of the summary, and the page says where they are not.

use blkpilot_env::Environment as _;
use blkpilot_models::NetworkPolicy;
use blkpilot_models::episode::{Episode, Measure, play};
use blkpilot_models::policy::Policy;

use super::behaviour::Recorded;
use super::collect::Group;
use crate::compare::{TRAINED, episode_count as episodes_compared, measure_of, policies};
use crate::{LabError, environments, seeds};

/// Episodes of all policies of one configuration.
#[derive(Debug)]
pub struct Replayed {
    /// What stands for an episode.
    pub measure: Measure,
    /// By run that is done, in the order of their seeds: one episode per evaluation seed.
    pub trained: Vec<Vec<Episode>>,
    /// By policy that is not trained, in the order of reports.
    pub baselines: Vec<(String, Vec<Episode>)>,
    /// What the trained policies chose.
    pub behaviour: Recorded,
}

/// Episodes that [`replay`] plays.
#[must_use]
pub fn episode_count(group: &Group) -> usize {
    if group.nothing_to_play().is_some() {
        return 0;
    }
    let more = group.done().skip(1).count();
    episodes_compared(&group.config) + more * group.config.evaluation.episodes
}

/// Plays them; `None` if there is nothing to play. `each_episode` says whether to go on.
///
/// # Errors
/// `Interrupted` if not; `Policy`, `Decide`, `Play`.
pub fn replay(
    group: &Group,
    each_episode: &mut dyn FnMut() -> bool,
) -> Result<Option<Replayed>, LabError> {
    if group.nothing_to_play().is_some() {
        return Ok(None);
    }
    let config = &group.config;
    let mut env = environments::make(&config.environment, environments::Purpose::Evaluation)?;
    let spec = env.spec().clone();
    let mut recorded = Recorded::new(&spec);
    let measure = measure_of(config);
    let mut episodes = |policy: &mut dyn Policy, mut recorded: Option<&mut Recorded>| {
        let mut episodes = Vec::with_capacity(config.evaluation.episodes);
        for episode in 0..config.evaluation.episodes {
            let seed = config.evaluation.seed(episode);
            let seed = (seed, seeds::decisions(seed));
            episodes.push(play(&mut env, policy, seed, measure, |played| {
                if let Some(recorded) = &mut recorded {
                    recorded.take(played.seen, played.decision);
                }
            })?);
            super::go_on(each_episode())?;
        }
        Ok::<_, LabError>(episodes)
    };
    let mut trained = vec![];
    for run in group.done() {
        run.checkpoint.check_fits(&spec)?;
        let mut policy = NetworkPolicy::new(TRAINED, &run.checkpoint, config.evaluation.selection)?;
        trained.push(episodes(&mut policy, Some(&mut recorded))?);
    }
    let mut baselines = vec![];
    for mut policy in policies(&spec, None)? {
        let played = episodes(policy.as_mut(), None)?;
        baselines.push((policy.name().to_owned(), played));
    }
    Ok(Some(Replayed {
        measure,
        trained,
        baselines,
        behaviour: recorded,
    }))
}
