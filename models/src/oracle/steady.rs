//! The noise-free steady state of a host that stays in one phase vector under one setting.

use blkpilot_env::features::{CACHE_HEAD, CHANNEL_HEAD, POLLING_HEAD};
use blkpilot_env::reward::{RewardConfig, RewardTerm};
use blkpilot_env::sample::DiskSettings;
use blkpilot_env::sim::scenario::Phase;
use blkpilot_env::sim::{Scenario, SimHost};
use blkpilot_env::{Environment as _, JointAction, ResetOptions};
use ndarray::Array2;

use super::OracleError;

/// Intervals whose rewards are averaged before two means are compared.
/// Even, because throttled writers swing between two values.
const BLOCK: u32 = 4;
/// Difference of the means of two blocks in a row at which the reward has settled.
const SETTLED: f64 = 3e-4;
/// Spread of the rewards within one block at which it has settled already.
const STILL: f64 = 1e-5;
/// Blocks after which what it has come to stands: longer than phases last.
pub const MOST_BLOCKS: u32 = 32;

/// What a host comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Steady {
    /// Mean host reward per interval; `None` if every disk is idle.
    pub host_mean: Option<f64>,
    /// Reward terms per disk and interval, in the order of `RewardTerm::ALL`; `[N, terms]`.
    pub terms: Array2<f64>,
    /// Whether it settled within the bound on the intervals.
    pub is_settled: bool,
}

impl Steady {
    fn is_near(&self, other: &Self) -> bool {
        let means = self.host_mean.zip(other.host_mean);
        means.is_none_or(|(a, b)| (a - b).abs() <= SETTLED)
    }

    /// Sum of some terms of one disk.
    #[must_use]
    pub fn sum(&self, disk: usize, terms: &[RewardTerm]) -> f64 {
        terms
            .iter()
            .map(|term| self.terms[[disk, *term as usize]])
            .sum()
    }
}

/// The scenario in which each disk stays in one phase, without noise, with `action` as its default.
#[must_use]
pub fn frozen(scenario: &Scenario, phases: &[usize], action: &JointAction) -> Scenario {
    let mut frozen = Scenario {
        noise: 0.0,
        steps: BLOCK * MOST_BLOCKS + 1,
        ..scenario.clone()
    };
    for (row, (disk, phase)) in frozen.disks.iter_mut().zip(phases).enumerate() {
        disk.phases = vec![Phase {
            next: vec![],
            ..disk.phases[*phase].clone()
        }];
        let levels = [CHANNEL_HEAD, CACHE_HEAD, POLLING_HEAD].map(|head| action.disks[[row, head]]);
        if let Some(settings) = DiskSettings::from_levels(levels) {
            disk.default_channel = settings.channel;
            disk.default_cache = settings.cache;
            disk.default_polling = settings.polling;
        }
    }
    frozen
}

/// Holds `action` on a frozen scenario until the host reward settles. Where it does not, because
/// throttled writers keep swinging, the mean over the second half of the intervals stands.
///
/// # Errors
/// If the scenario does not hold together or the action does not fit it.
pub fn settle(
    frozen: Scenario,
    action: &JointAction,
    reward: RewardConfig,
    most_blocks: u32,
) -> Result<Steady, OracleError> {
    let mut host = SimHost::fixed(frozen)?.with_reward(reward);
    let warm = ResetOptions::from([("page_cache".to_owned(), "warm".to_owned())]);
    host.reset(Some(0), &warm)?;
    // Schedulers have no default of their own in a scenario: their change falls into this interval.
    host.step(action)?;
    let mut blocks: Vec<Steady> = Vec::new();
    for _ in 0..most_blocks.clamp(1, MOST_BLOCKS) {
        let (next, is_still) = block(&mut host, action)?;
        let is_settled = is_still || blocks.last().is_some_and(|last| last.is_near(&next));
        blocks.push(Steady { is_settled, ..next });
        if let Some(settled) = blocks.pop_if(|last| last.is_settled) {
            return Ok(settled);
        }
    }
    Ok(mean_of(&blocks[blocks.len() / 2..]))
}

/// Some intervals in a row, and whether the reward stood still in them.
fn block(host: &mut SimHost, action: &JointAction) -> Result<(Steady, bool), OracleError> {
    let interval = |_| {
        let rewards = host.step(action)?.rewards;
        Ok(Steady {
            host_mean: rewards.host_mean().map(f64::from),
            terms: rewards.terms.mapv(f64::from),
            is_settled: false,
        })
    };
    let intervals: Vec<Steady> = (0..BLOCK)
        .map(interval)
        .collect::<Result<_, OracleError>>()?;
    let means = || intervals.iter().filter_map(|interval| interval.host_mean);
    let spread = means().fold(f64::MIN, f64::max) - means().fold(f64::MAX, f64::min);
    Ok((mean_of(&intervals), spread <= STILL))
}

fn mean_of(parts: &[Steady]) -> Steady {
    let means: Vec<f64> = parts.iter().filter_map(|part| part.host_mean).collect();
    let mut terms = Array2::zeros(parts[0].terms.raw_dim());
    for part in parts {
        terms += &part.terms;
    }
    Steady {
        host_mean: (!means.is_empty()).then(|| means.iter().sum::<f64>() / means.len() as f64),
        terms: terms / parts.len() as f64,
        is_settled: false,
    }
}
