//! Contextual bandits: policies that start without training and learn from the reward of each interval.
//!
//! Each head has a linear model of a row's reward, `ψ(x, a)·θ`, over what the row saw and what the head chose (`context`),
//! fitted by ridge regression that forgets (`ridge`). **LinUCB** takes the level whose reward may be the highest,
//! `ψ·θ̂ + α s(ψ)`; **Thompson sampling** takes each level as often as its reward is the highest under the posterior.
//! They are myopic: what a choice brings after its interval they do not see, but for what it costs to change. What
//! they are for is the time before there is a policy that was trained for the host.
//!
//! Source: Li, Chu, Langford and Schapire 2010, "A contextual-bandit approach to personalized news article
//! recommendation", section 3.2 (a model that levels share); Agrawal and Goyal 2013, "Thompson sampling for contextual
//! bandits with linear payoffs"; Russac, Vernade and Cappé 2019, "Weighted linear bandits for non-stationary
//! environments", on forgetting.

mod context;
mod ridge;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use blkpilot_env::{EnvSpec, Head, Level, Rng, Turn, TurnView};
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::context::{Slots, place};
use self::ridge::Ridge;
pub use self::ridge::Sums;
use crate::ope::quantile;
use crate::policy::{Choice, Policy, PolicyError, certain};

/// Draws from the posterior that say how often a level is the best.
const DRAWS: usize = 512;
/// Seed of these draws, which are the same for each decision: so probabilities are a function of what was learned
/// and seen, and the propensity of what is drawn by them is exact.
const SEED: u64 = 0x7465_6e73;

/// How a bandit goes about what it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// The highest upper bound of what a level may bring: so many standard deviations above the mean (α).
    LinUcb(f64),
    /// A draw from the posterior, whose standard deviation is multiplied by this (v): 1 is the posterior itself.
    Thompson(f64),
}

impl Algorithm {
    /// Its name in logs and configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LinUcb(_) => "linucb",
            Self::Thompson(_) => "thompson",
        }
    }
}

/// How a bandit learns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BanditConfig {
    /// How it goes about what it does not know; its number in [0, 100].
    pub algorithm: Algorithm,
    /// Ridge (λ), in observations, in [1e-6, 1e6].
    pub ridge: f64,
    /// What an observation weighs for each one of its head made after it, in [0.9, 1].
    pub memory: f64,
}

impl BanditConfig {
    /// With a ridge of one observation, and a memory of about ten thousand.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            ridge: 1.0,
            memory: 0.9999,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// `Config`: the first setting out of its range.
    pub fn check(&self) -> Result<(), BanditError> {
        let (what, value) = match self.algorithm {
            Algorithm::LinUcb(alpha) => ("alpha", alpha),
            Algorithm::Thompson(scale) => ("scale", scale),
        };
        let settings = [
            (what, value, 0.0..=100.0),
            ("ridge", self.ridge, 1e-6..=1e6),
            ("memory", self.memory, 0.9..=1.0),
        ];
        for (what, value, range) in settings {
            if !range.contains(&value) {
                let (low, high) = range.into_inner();
                return Err(BanditError::Config {
                    what,
                    value,
                    low,
                    high,
                });
            }
        }
        Ok(())
    }
}

/// Why there is no bandit.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BanditError {
    /// A setting out of its range.
    #[error("{what} = {value}: it must be in [{low}, {high}]")]
    Config {
        /// Name of the setting.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The least that it may be.
        low: f64,
        /// The most.
        high: f64,
    },
    /// What was learned is of another environment.
    #[error("what was learned does not fit: {why}")]
    Unfit {
        /// What does not fit.
        why: String,
    },
}

/// What a bandit has learned, to be written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learned {
    /// Hash of the spec by which features and levels are numbered.
    pub spec_hash: String,
    /// Rewards it has learned from.
    pub rewards: u64,
    /// Per head of a disk, then of a device.
    pub heads: Vec<Sums>,
}

/// A contextual bandit over the heads of disks and devices.
#[derive(Debug, Clone)]
pub struct Bandit {
    config: BanditConfig,
    spec_hash: String,
    rewards: u64,
    disk: Vec<HeadModel>,
    device: Vec<HeadModel>,
    /// By number of levels: standard normal numbers, `[DRAWS, levels]`.
    normals: BTreeMap<usize, Vec<f64>>,
}

#[derive(Debug, Clone)]
struct HeadModel {
    slots: Slots,
    ridge: Ridge,
}

impl Bandit {
    /// One that knows nothing, for environments with this spec.
    ///
    /// # Errors
    /// `Config`.
    pub fn new(spec: &EnvSpec, config: BanditConfig) -> Result<Self, BanditError> {
        config.check()?;
        let of = |heads: &[Head], is_disk| {
            let slots = place(spec, heads, is_disk).into_iter();
            let model = |slots: Slots| HeadModel {
                ridge: Ridge::new(slots.width(), config.ridge),
                slots,
            };
            slots.map(model).collect()
        };
        Ok(Self {
            config,
            spec_hash: spec.hash(),
            rewards: 0,
            disk: of(&spec.disk_heads, true),
            device: of(&spec.device_heads, false),
            normals: BTreeMap::new(),
        })
    }

    /// One that goes on from what was learned.
    ///
    /// # Errors
    /// `Config`, `Unfit`.
    pub fn resume(
        spec: &EnvSpec,
        config: BanditConfig,
        learned: Learned,
    ) -> Result<Self, BanditError> {
        let mut bandit = Self::new(spec, config)?;
        let unfit = |why: String| Err(BanditError::Unfit { why });
        if learned.spec_hash != bandit.spec_hash {
            return unfit(format!(
                "its spec is {}, this host's is {}",
                learned.spec_hash, bandit.spec_hash
            ));
        }
        let heads = bandit.disk.len() + bandit.device.len();
        if learned.heads.len() != heads {
            let found = learned.heads.len();
            return unfit(format!("it has {found} heads, the spec {heads}"));
        }
        let models = bandit.disk.iter_mut().chain(&mut bandit.device);
        for (number, (model, sums)) in models.zip(learned.heads).enumerate() {
            let width = model.slots.width();
            let Some(ridge) = Ridge::of(sums, width) else {
                return unfit(format!(
                    "head {number} is no regression on {width} features"
                ));
            };
            model.ridge = ridge;
        }
        bandit.rewards = learned.rewards;
        Ok(bandit)
    }

    /// What it has learned.
    #[must_use]
    pub fn learned(&self) -> Learned {
        let models = self.disk.iter().chain(&self.device);
        Learned {
            spec_hash: self.spec_hash.clone(),
            rewards: self.rewards,
            heads: models.map(|model| model.ridge.sums().clone()).collect(),
        }
    }

    /// Hash of the spec by which it numbers features and levels.
    #[must_use]
    pub fn spec_hash(&self) -> &str {
        &self.spec_hash
    }

    /// Rewards it has learned from.
    #[must_use]
    pub fn rewards(&self) -> u64 {
        self.rewards
    }

    /// Learns that one who saw `view` and took `levels`, one per head, got `reward` in the interval that followed. A
    /// reward that is no number teaches nothing.
    pub fn learn(&mut self, view: &TurnView<'_>, levels: &[Level], reward: f64) {
        if !reward.is_finite() {
            return;
        }
        self.rewards += 1;
        let config = self.config;
        let heads = levels.iter().enumerate();
        for ((head, level), model) in heads.zip(self.models(view)) {
            // What a head had no choice of says nothing about its levels.
            if view.forced(head).is_none() {
                let features = model.slots.features(view, head, *level);
                model.ridge.push(&features, reward, &config);
            }
        }
    }

    /// What each allowed level of a head is expected to bring and the standard deviation of that, `[levels]`.
    #[must_use]
    pub fn expected(&self, view: &TurnView<'_>, head: usize) -> Vec<Option<[f64; 2]>> {
        let model = self.model(view, head);
        let of = |level: usize| {
            let features = model.slots.features(view, head, level as Level);
            let deviation = model.ridge.covariance(&[&features])[(0, 0)].sqrt();
            [model.ridge.mean(&features), deviation]
        };
        let mask = view.head_mask(head).iter().enumerate();
        mask.map(|(level, reason)| reason.is_allowed().then(|| of(level)))
            .collect()
    }

    fn models(&mut self, view: &TurnView<'_>) -> &mut [HeadModel] {
        match view.turn {
            Turn::Disk(_) => &mut self.disk,
            Turn::Device(_) => &mut self.device,
        }
    }

    fn model(&self, view: &TurnView<'_>, head: usize) -> &HeadModel {
        match view.turn {
            Turn::Disk(_) => &self.disk[head],
            Turn::Device(_) => &self.device[head],
        }
    }

    /// Probabilities of the levels of one head.
    fn probabilities(&mut self, view: &TurnView<'_>, head: usize) -> Vec<f64> {
        let levels = view.head_mask(head).len();
        if let Some(level) = view.forced(head) {
            return certain(levels, level);
        }
        match self.config.algorithm {
            Algorithm::LinUcb(alpha) => certain(levels, self.optimistic(view, head, alpha)),
            Algorithm::Thompson(scale) => self.posterior(view, head, scale),
        }
    }

    /// The level with the highest upper bound. Among equals what is in force stays, else the first is taken.
    fn optimistic(&self, view: &TurnView<'_>, head: usize, alpha: f64) -> Level {
        let expected = self.expected(view, head);
        let bounds = expected.iter().enumerate();
        let bounds = bounds.filter_map(|(level, expected)| {
            expected.map(|[mean, deviation]| (level, mean + alpha * deviation))
        });
        let current = usize::from(view.current[head]);
        let best = bounds.max_by(|(a, a_bound), (b, b_bound)| {
            let order = a_bound.partial_cmp(b_bound).unwrap_or(Ordering::Equal);
            let stays = (*a == current).cmp(&(*b == current));
            order.then(stays).then(b.cmp(a))
        });
        best.map_or(view.current[head], |(level, _)| level as Level)
    }

    /// How often each level is the best, over draws from the posterior.
    fn posterior(&mut self, view: &TurnView<'_>, head: usize, scale: f64) -> Vec<f64> {
        let mask = view.head_mask(head);
        let allowed = (0..mask.len()).filter(|level| mask[*level].is_allowed());
        let allowed: Vec<usize> = allowed.collect();
        self.normals
            .entry(allowed.len())
            .or_insert_with_key(|levels| normals(*levels));
        let (model, normals) = (self.model(view, head), &self.normals[&allowed.len()]);
        let features = allowed.iter().map(|level| {
            let level = *level as Level;
            model.slots.features(view, head, level)
        });
        let features: Vec<Vec<f64>> = features.collect();
        let rows: Vec<&[f64]> = features.iter().map(Vec::as_slice).collect();
        let means: Vec<f64> = rows.iter().map(|own| model.ridge.mean(own)).collect();
        let root = ridge::root(model.ridge.covariance(&rows));
        let mut out = vec![0.0; mask.len()];
        for normal in normals.chunks_exact(allowed.len()) {
            let drawn = |i: &usize| {
                let noise: f64 = (0..=*i).map(|j| root[(*i, j)] * normal[j]).sum();
                means[*i] + scale * noise
            };
            let best = (0..allowed.len()).max_by(|a, b| drawn(a).total_cmp(&drawn(b)));
            out[allowed[best.expect("a head with a choice has levels")]] += 1.0;
        }
        out.iter_mut().for_each(|count| *count /= DRAWS as f64);
        out
    }
}

/// Standard normal numbers, `[DRAWS, levels]`.
fn normals(levels: usize) -> Vec<f64> {
    let mut rng = Rng::seed_from_u64(SEED);
    let normal = |_| quantile::normal(rng.random_range(1e-12..1.0));
    (0..levels * DRAWS).map(normal).collect()
}

impl Policy for Bandit {
    fn name(&self) -> &str {
        self.config.algorithm.name()
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
        let heads = 0..view.heads.len();
        Ok(heads.map(|head| self.probabilities(view, head)).collect())
    }
}

#[cfg(test)]
mod tests;
