//! The oracle's rule, and what it knows of each phase vector.

use std::collections::HashMap;

use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::Scenario;
use blkpilot_env::{Level, Rng};
use rand::SeedableRng as _;

use super::OracleError;
use super::bound::Bounds;
use super::knobs::{Place, Setting};
use super::phases::{PhaseVector, States, expected_intervals, states};
use super::search::{own_moves, random_setting, search};
use super::steady::MOST_BLOCKS;
use super::values::Values;

/// Rounds over all disks in which a decision is refined.
const MOST_ROUNDS: u32 = 20;

/// What an oracle may spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Settings of one phase vector, after symmetry, up to which all are tried.
    pub exhaustive: usize,
    /// Evaluations of a search in one phase vector.
    pub search: u64,
    /// Phase vectors up to which all are weighed; else as many are drawn.
    pub states: usize,
    /// Random settings behind the mean value of one phase vector.
    pub random: u32,
    /// Blocks of four intervals in which a host has to settle; the mean over the second half of them stands
    /// where it does not.
    pub blocks: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            exhaustive: 60_000,
            search: 4_000,
            states: 128,
            random: 64,
            blocks: MOST_BLOCKS,
        }
    }
}

/// What is known of a phase vector.
#[derive(Debug, Clone)]
pub struct Known {
    /// Values and canonical settings, best first.
    pub ranked: Vec<(f64, Setting)>,
    /// Whether these are all settings.
    pub is_exhaustive: bool,
    /// No setting has a greater value.
    pub bound: f64,
    /// Mean value over random settings.
    pub random: f64,
}

impl Known {
    /// The greatest value found.
    #[must_use]
    pub fn best(&self) -> f64 {
        self.ranked.first().map_or(0.0, |(value, _)| *value)
    }
}

/// A decision to be taken or judged: when, and from where.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// Phase vector that the decision is for.
    pub phases: PhaseVector,
    /// Setting in force.
    pub current: Setting,
    /// Intervals that are left of the episode, the one to come included.
    pub left: u32,
}

/// What a level of a disk's head costs: see [`Planner::costs_alone`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelCost {
    /// Index into `EnvSpec::disk_heads`.
    pub head: usize,
    /// The level.
    pub level: Level,
    /// In reward per interval.
    pub cost: f64,
}

/// Values of a scenario and the oracle's rule over them.
#[derive(Debug)]
pub struct Planner {
    values: Values,
    limits: Limits,
    bounds: Bounds,
    known: HashMap<PhaseVector, Known>,
}

impl Planner {
    /// Knows nothing yet: what it needs is computed when it is asked for.
    ///
    /// # Errors
    /// If the scenario does not hold together.
    pub fn new(
        scenario: &Scenario,
        reward: RewardConfig,
        limits: Limits,
    ) -> Result<Self, OracleError> {
        Ok(Self {
            values: Values::new(scenario, reward)?.with_most_blocks(limits.blocks),
            limits,
            bounds: Bounds::default(),
            known: HashMap::new(),
        })
    }

    /// The values.
    #[must_use]
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The same, to compute more of them.
    pub fn values_mut(&mut self) -> &mut Values {
        &mut self.values
    }

    /// What it may spend.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The phase vectors of the scenario with their weights; those without an active disk are left out,
    /// since nothing counts there, and the weights of the others sum to 1.
    #[must_use]
    pub fn states(&self) -> States {
        let mut states = states(self.values.scenario(), self.limits.states);
        states
            .weighted
            .retain(|(phases, _)| !self.values.active_disks(phases).is_empty());
        let total: f64 = states.weighted.iter().map(|(_, weight)| weight).sum();
        states
            .weighted
            .iter_mut()
            .for_each(|(_, weight)| *weight /= total);
        states
    }

    /// What is known of a phase vector; it is looked into the first time.
    ///
    /// # Errors
    /// If the host refuses a setting.
    pub fn know(&mut self, phases: &[usize]) -> Result<&Known, OracleError> {
        self.know_watched(phases, &mut || true)
    }

    /// As [`Planner::know`]; `goes_on` is asked before each value that is computed.
    ///
    /// # Errors
    /// As [`Planner::know`]; `Interrupted` if it does not.
    pub fn know_watched(
        &mut self,
        phases: &[usize],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<&Known, OracleError> {
        if !self.known.contains_key(phases) {
            let known = self.look_into(phases, goes_on)?;
            self.known.insert(phases.to_vec(), known);
        }
        Ok(&self.known[phases])
    }

    fn look_into(
        &mut self,
        phases: &[usize],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Known, OracleError> {
        let is_active = self.values.active_knobs(phases);
        let all = self
            .values
            .knobs()
            .enumerate(&is_active, self.limits.exhaustive);
        let random = self.mean_of_random(phases)?;
        let is_exhaustive = all.is_some();
        let bound = match all {
            Some(all) => {
                for setting in &all {
                    if !goes_on() {
                        return Err(OracleError::Interrupted);
                    }
                    self.values.value(phases, setting)?;
                }
                None
            }
            None => {
                let starts = self.best_elsewhere();
                search(
                    &mut self.values,
                    phases,
                    &starts,
                    self.limits.search,
                    goes_on,
                )?;
                Some(self.bounds.of(&self.values, phases)?)
            }
        };
        let ranked = self.values.ranked(phases);
        let best = ranked.first().map_or(0.0, |(value, _)| *value);
        Ok(Known {
            bound: bound.unwrap_or(best).max(best),
            ranked,
            is_exhaustive,
            random,
        })
    }

    /// The best settings found in other phase vectors: starts for a search, in a fixed order.
    fn best_elsewhere(&self) -> Vec<Setting> {
        let mut best: Vec<Setting> = self
            .known
            .values()
            .filter_map(|known| known.ranked.first().map(|(_, setting)| setting.clone()))
            .collect();
        best.sort();
        best.dedup();
        best.truncate(8);
        best
    }

    fn mean_of_random(&mut self, phases: &[usize]) -> Result<f64, OracleError> {
        let mut rng = Rng::seed_from_u64(1);
        let mut sum = 0.0;
        for _ in 0..self.limits.random {
            let setting = random_setting(self.values.knobs(), &mut rng);
            sum += self.values.value(phases, &setting)?;
        }
        Ok(sum / f64::from(self.limits.random))
    }

    /// The bound of a phase vector, also where all settings were tried.
    ///
    /// # Errors
    /// If the host refuses a setting.
    pub fn bound(&mut self, phases: &[usize]) -> Result<f64, OracleError> {
        self.bounds.of(&self.values, phases)
    }

    /// The oracle's rule: the setting that maximises its value less the cost of changing to it, the cost
    /// spread over the intervals that the phase vector is expected to last. What affects no active disk
    /// is left as it is.
    ///
    /// # Errors
    /// If the host refuses a setting.
    pub fn best_change(&mut self, moment: &Moment) -> Result<Setting, OracleError> {
        let Moment {
            phases,
            current,
            left,
        } = moment;
        if self.values.active_disks(phases).is_empty() {
            return Ok(current.clone());
        }
        let lasts = expected_intervals(self.values.scenario(), phases, *left);
        let weights = self.values.weights(phases);
        let stay = self.values.value(phases, current)?;
        let mut best = (stay, current.clone());
        self.know(phases)?;
        for (value, setting) in &self.known[phases].ranked {
            if *value <= best.0 {
                break;
            }
            let image = self
                .values
                .knobs()
                .nearest_image(setting, current, &weights);
            let net = value - self.values.change_cost(phases, current, &image) / lasts;
            if net > best.0 {
                best = (net, image);
            }
        }
        if !self.known[phases].is_exhaustive {
            best = self.refine(moment, best)?;
        }
        Ok(best.1)
    }

    /// Lets one disk after another change its mind, change cost included, until none gains: what a search
    /// has not tried may be better from where the host stands.
    fn refine(
        &mut self,
        moment: &Moment,
        mut best: (f64, Setting),
    ) -> Result<(f64, Setting), OracleError> {
        for _ in 0..MOST_ROUNDS {
            let before = best.0;
            for disk in self.values.active_disks(&moment.phases) {
                for next in own_moves(self.values.knobs(), &best.1, disk) {
                    let net = self.net(moment, &next)?;
                    if net > best.0 {
                        best = (net, next);
                    }
                }
            }
            if best.0 <= before {
                break;
            }
        }
        Ok(best)
    }

    /// What one disk would have gained, per interval, had it chosen its own best levels instead, while
    /// all others did what they did; change cost counts as in [`Planner::best_change`]. At least 0.
    ///
    /// # Errors
    /// If the host refuses a setting.
    pub fn gain_alone(
        &mut self,
        moment: &Moment,
        chosen: &Setting,
        disk: usize,
    ) -> Result<f64, OracleError> {
        let own = self.net(moment, chosen)?;
        let mut best = own;
        for other in own_moves(self.values.knobs(), chosen, disk) {
            best = best.max(self.net(moment, &other)?);
        }
        Ok(best - own)
    }

    /// What each level of a disk's heads would cost, per interval, beside the best joint levels that the disk
    /// has while all others do as in `chosen`: a level of a head goes with the best levels of its other heads.
    /// At least 0, and 0 for some level of each head. Heads without a choice are left out. Where the disk has too many
    /// joint levels to try, as [`own_moves`] has it, the other heads stay as chosen.
    ///
    /// # Errors
    /// If the host refuses a setting.
    pub fn costs_alone(
        &mut self,
        moment: &Moment,
        chosen: &Setting,
        disk: usize,
    ) -> Result<Vec<LevelCost>, OracleError> {
        let mut tried = own_moves(self.values.knobs(), chosen, disk);
        tried.push(chosen.clone());
        let mut nets = Vec::with_capacity(tried.len());
        for setting in &tried {
            nets.push(self.net(moment, setting)?);
        }
        let best = nets.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut costs = Vec::new();
        for (k, knob) in self.values.knobs().list().iter().enumerate() {
            let Place::Disks { head } = knob.place else {
                continue;
            };
            if !knob.disks.contains(&disk) {
                continue;
            }
            for level in &knob.levels {
                let with = tried
                    .iter()
                    .zip(&nets)
                    .filter(|(setting, _)| setting[k] == *level);
                let own = with.map(|(_, net)| *net).fold(f64::NEG_INFINITY, f64::max);
                costs.push(LevelCost {
                    head,
                    level: *level,
                    cost: best - own,
                });
            }
        }
        Ok(costs)
    }

    fn net(&mut self, moment: &Moment, setting: &[Level]) -> Result<f64, OracleError> {
        let Moment {
            phases,
            current,
            left,
        } = moment;
        let lasts = expected_intervals(self.values.scenario(), phases, *left);
        let value = self.values.value(phases, setting)?;
        Ok(value - self.values.change_cost(phases, current, setting) / lasts)
    }

    /// Whether a disk has a choice of its own.
    #[must_use]
    pub fn has_choice(&self, disk: usize) -> bool {
        let knobs = self.values.knobs().list();
        knobs
            .iter()
            .any(|k| matches!(k.place, Place::Disks { .. }) && k.disks.contains(&disk))
    }
}
