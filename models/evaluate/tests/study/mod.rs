//! What the studies of offline evaluation share: policies that can be played and evaluated, logs of them on a
//! simulated host, and their true values.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each study needs another part, and says when it cannot go on"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::{Scenario, SimHost};
use blkpilot_env::{EnvSpec, Environment as _, Level, MaskReason, Observation, Rng, TurnView};
use blkpilot_evaluate::{
    Block, Estimate, Estimator, Evaluation, Exposure, LoggedTurn, Options, TargetPolicy,
};
use blkpilot_log::Player;
use blkpilot_log::play::Setup;
use blkpilot_models::episode::{Measure, play};
use blkpilot_models::oracle::{Limits, OraclePolicy, Planner, Sight};
use blkpilot_models::{Choice, Policy, PolicyError};
use rand::SeedableRng as _;
use tempfile::TempDir;

/// Discount per step.
const GAMMA: f64 = 0.9;
/// Replicates of the bootstrap.
const REPLICATES: usize = 500;
/// Seeds of episodes that are in no log.
const FRESH: u64 = 1 << 62;

/// Which channel a policy leans to. Among equals it keeps the one in force, else takes the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// That with the fewest disks bound to it.
    Spread,
    /// That with the most.
    Crowd,
}

/// Which levels a policy leans to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lean {
    pub(crate) placement: Placement,
    pub(crate) cache: Level,
    /// `None`: to none, so that the head is uniform and weighs nothing.
    pub(crate) polling: Option<Level>,
}

/// Takes what it leans to with probability `share`, else any allowed level alike; head by head.
#[derive(Debug, Clone)]
pub(crate) struct Blend {
    name: String,
    spec: EnvSpec,
    lean: Lean,
    share: f64,
    bound_disks: usize,
}

impl Blend {
    pub(crate) fn new(spec: &EnvSpec, lean: Lean, share: f64) -> Self {
        let columns = &spec.channel_features;
        let bound_disks = columns.iter().position(|c| c.name == "bound_disks");
        Self {
            name: format!("{:?} {share:.2}", lean.placement).to_lowercase(),
            spec: spec.clone(),
            lean,
            share,
            bound_disks: bound_disks.unwrap(),
        }
    }

    pub(crate) fn label(&self) -> &str {
        &self.name
    }

    /// Probabilities of the levels of one head that has a choice.
    fn head(&self, view: &TurnView<'_>, head: usize, mask: &[MaskReason], out: &mut [f64]) {
        let allowed = mask.iter().filter(|reason| reason.is_allowed()).count() as f64;
        let preferred = self.preferred(view, head, mask);
        let share = if preferred.is_some() { self.share } else { 0.0 };
        for (level, (p, reason)) in out.iter_mut().zip(mask).enumerate() {
            *p = match reason.is_allowed() {
                true => (1.0 - share) / allowed,
                false => 0.0,
            };
            if preferred == Some(level) {
                *p += share;
            }
        }
    }

    fn preferred(&self, view: &TurnView<'_>, head: usize, mask: &[MaskReason]) -> Option<usize> {
        let is_allowed = |level: &usize| mask[*level].is_allowed();
        let level = match view.heads[head].name.as_str() {
            "channel" => self.channel(view, view.current[head], mask),
            "cache" => Some(usize::from(self.lean.cache)),
            "polling" => self.lean.polling.map(usize::from),
            _ => None,
        };
        level.filter(is_allowed)
    }

    fn channel(&self, view: &TurnView<'_>, current: Level, mask: &[MaskReason]) -> Option<usize> {
        let bound = |level: usize| view.channels[[level - 1, self.bound_disks]];
        let rank = |level: &usize| {
            let disks = match self.lean.placement {
                Placement::Spread => bound(*level),
                Placement::Crowd => -bound(*level),
            };
            (disks, *level != usize::from(current))
        };
        let allowed = (1..mask.len()).filter(|level| mask[*level].is_allowed());
        allowed.min_by(|a, b| {
            let ((a, a_moves), (b, b_moves)) = (rank(a), rank(b));
            a.total_cmp(&b).then(a_moves.cmp(&b_moves))
        })
    }
}

impl Policy for Blend {
    fn name(&self) -> &str {
        &self.name
    }

    fn choose(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let distribution = self.distribution(spec, view)?;
        Ok(Choice::drawn(view, &distribution, rng))
    }

    fn distribution(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
    ) -> Result<Vec<Vec<f64>>, PolicyError> {
        let of_head = |head: usize| {
            let mask = view.head_mask(head);
            let mut out = vec![0.0; mask.len()];
            match view.forced(head) {
                Some(level) => out[usize::from(level)] = 1.0,
                None => self.head(view, head, mask, &mut out),
            }
            out
        };
        Ok((0..view.heads.len()).map(of_head).collect())
    }
}

impl TargetPolicy for Blend {
    fn name(&self) -> &str {
        &self.name
    }

    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn probabilities(
        &self,
        turns: &[LoggedTurn<'_>],
        out: &mut [f64],
    ) -> Result<(), (usize, PolicyError)> {
        let mut rest = out;
        for turn in turns {
            let view = turn.view();
            for (head, mask) in turn.head_masks().enumerate() {
                let (out, left) = std::mem::take(&mut rest).split_at_mut(mask.len());
                rest = left;
                match turn.forced(head) {
                    Some(level) => {
                        out.fill(0.0);
                        if mask[usize::from(level)].is_allowed() {
                            out[usize::from(level)] = 1.0;
                        }
                    }
                    None => self.head(&view, head, mask, out),
                }
            }
        }
        Ok(())
    }
}

/// The behaviour up to a window, then another policy: whose value an evaluation estimates.
struct Relieved<'a> {
    behaviour: Blend,
    target: &'a mut dyn Policy,
    /// Joint decisions of the behaviour.
    before: u32,
    made: u32,
}

impl Relieved<'_> {
    fn is_relieved(&self) -> bool {
        self.made > self.before
    }
}

impl Policy for Relieved<'_> {
    fn name(&self) -> &str {
        self.target.name()
    }

    fn begin(&mut self, spec: &EnvSpec, obs: &Observation) -> Result<(), PolicyError> {
        self.made += 1;
        if self.is_relieved() {
            return self.target.begin(spec, obs);
        }
        Ok(())
    }

    fn choose(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        if self.is_relieved() {
            return self.target.choose(spec, view, rng);
        }
        self.behaviour.choose(spec, view, rng)
    }

    fn reset(&mut self) {
        self.made = 0;
        self.target.reset();
    }
}

/// A host, and how its log is cut into windows.
#[derive(Debug, Clone)]
pub(crate) struct Study {
    pub(crate) scenario: Scenario,
    /// Steps of a window; those of an episode are a multiple of it.
    pub(crate) horizon: u32,
}

impl Study {
    pub(crate) fn spec(&self) -> EnvSpec {
        self.host().spec().clone()
    }

    fn host(&self) -> SimHost {
        SimHost::fixed(self.scenario.clone()).unwrap()
    }

    pub(crate) fn windows_per_episode(&self) -> u32 {
        self.scenario.steps / self.horizon
    }

    /// A log of so many episodes, in memory where there is a file system for that.
    pub(crate) fn log(&self, behaviour: &Blend, first_seed: u64, episodes: u64) -> TempDir {
        let shared_memory = Path::new("/dev/shm");
        let dir = if shared_memory.is_dir() {
            tempfile::tempdir_in(shared_memory)
        } else {
            tempfile::tempdir()
        };
        let dir = dir.unwrap();
        let setup = Setup {
            host: self.scenario.name.clone(),
            policy_version: String::new(),
            interval_s: self.scenario.interval_s,
            epsilon: 0.0,
            reward_weights: BTreeMap::new(),
        };
        let (host, policy) = (self.host(), Box::new(behaviour.clone()));
        let config = blkpilot_log::Config::default();
        let mut player = Player::open(dir.path(), host, policy, setup, config).unwrap();
        let go_on = AtomicBool::new(false);
        for seed in first_seed..first_seed + episodes {
            player.play(seed, decisions(seed), &go_on).unwrap();
        }
        player.finish().unwrap();
        dir
    }

    /// Values of a policy in so many fresh windows, one per episode, from the states in which the behaviour
    /// leaves the host: the same states for each policy.
    pub(crate) fn values(
        &self,
        behaviour: &Blend,
        target: &mut dyn Policy,
        windows: u64,
    ) -> Vec<f64> {
        let per_episode = self.windows_per_episode();
        let mut hosts: Vec<SimHost> = (1..=per_episode)
            .map(|window| {
                let steps = window * self.horizon;
                let scenario = self.scenario.clone();
                SimHost::fixed(Scenario { steps, ..scenario }).unwrap()
            })
            .collect();
        let mut policy = Relieved {
            behaviour: behaviour.clone(),
            target,
            before: 0,
            made: 0,
        };
        (0..windows)
            .map(|seed| {
                let window = (seed % u64::from(per_episode)) as u32;
                policy.before = window * self.horizon;
                self.value(&mut hosts[window as usize], &mut policy, FRESH | seed)
            })
            .collect()
    }

    pub(crate) fn truth(&self, behaviour: &Blend, target: &Blend, windows: u64) -> Mean {
        Mean::of(&self.values(behaviour, &mut target.clone(), windows))
    }

    /// The oracle's value; the disks of the study have one phase each.
    pub(crate) fn oracle(&self, behaviour: &Blend, windows: u64) -> Mean {
        let reward = RewardConfig::default();
        let mut planner = Planner::new(&self.scenario, reward, Limits::default()).unwrap();
        let path = vec![vec![0; self.scenario.disks.len()]; self.horizon as usize + 1];
        let mut oracle = OraclePolicy::new(&mut planner, &path, Sight::Next);
        Mean::of(&self.values(behaviour, &mut oracle, windows))
    }

    /// Discounted mean reward per step of the last window of an episode.
    fn value(&self, host: &mut SimHost, policy: &mut Relieved<'_>, seed: u64) -> f64 {
        let (mut value, mut discounts, mut discount) = (0.0, 0.0, 1.0);
        let (mut step, before) = (0, policy.before);
        let of_seed = (seed, decisions(seed));
        play(host, policy, of_seed, Measure::Return, |played| {
            if step >= before {
                let mean = played.step.rewards.host_mean();
                value += discount * f64::from(mean.expect("no disk of a study is ever idle"));
                discounts += discount;
                discount *= GAMMA;
            }
            step += 1;
        })
        .unwrap();
        value / discounts
    }

    pub(crate) fn options(&self, exposure: Exposure) -> Options {
        Options {
            gamma: GAMMA,
            horizon: self.horizon as usize,
            exposure,
            block: Block::Episode,
            replicates: REPLICATES,
            ..Options::default()
        }
    }
}

/// What a policy draws from in the episode of a seed; the host draws from stream 0.
fn decisions(seed: u64) -> Rng {
    let mut rng = Rng::seed_from_u64(seed);
    rng.set_stream(1);
    rng
}

/// A mean and its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mean {
    pub(crate) mean: f64,
    pub(crate) std_err: f64,
}

impl Mean {
    pub(crate) fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        Self {
            mean,
            std_err: (squares / (n - 1.0) / n).sqrt(),
        }
    }
}

pub(crate) fn of(evaluation: &Evaluation, estimator: Estimator) -> &Estimate {
    let mut estimates = evaluation.estimates.iter();
    let found = estimates.find(|estimate| estimate.estimator == estimator);
    found.unwrap()
}

pub(crate) fn is_full() -> bool {
    std::env::var_os("BLKPILOT_FULL").is_some()
}
