//! A small world whose values are known by enumeration, and logs of it in the decision log's schema.
//!
//! Disks of one host, each with a state in {0, 1}, decide one after another on two heads of two levels. What
//! cache costs depends on how many chose it before; that number is the device's feature, so that a later
//! turn sees earlier choices.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by several tests, which say when they cannot go on"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use blkpilot_env::{
    Autoreset, EnvSpec, Feature, Head, HeadScope, Level, Levels, MaskReason, Rng, Scale, Unit,
    Validity,
};
use blkpilot_evaluate::{LoggedTurn, TargetPolicy};
use blkpilot_log::{
    Config, DecisionId, DecisionRow, EpisodeId, Event, HeadRow, HostStepId, OutcomeRow, Seen,
    Source, Stage, Subject, Writer,
};
use blkpilot_models::PolicyError;
use rand::{RngExt as _, SeedableRng as _};

pub(crate) const INTERVAL_US: i64 = 10_000_000;
pub(crate) const START_US: i64 = 1_700_000_000_000_000;

fn feature(name: &str) -> Feature {
    Feature {
        name: name.to_owned(),
        unit: Unit::Count,
        low: 0.0,
        high: 10.0,
        scale: Scale::Linear,
        doc: String::new(),
    }
}

fn head(name: &str, levels: [&str; 2]) -> Head {
    Head {
        name: name.to_owned(),
        levels: Levels::Named(levels.map(str::to_owned).to_vec()),
        scope: HeadScope::Disk,
    }
}

pub(crate) fn spec() -> EnvSpec {
    EnvSpec {
        name: "small_world".to_owned(),
        disk_features: vec![feature("state")],
        channel_features: vec![],
        pair_features: vec![],
        device_features: vec![feature("chosen_before")],
        host_features: vec![feature("load")],
        disk_heads: vec![
            head("cache", ["direct", "buffered"]),
            head("polling", ["off", "adaptive"]),
        ],
        device_heads: vec![],
        projections: vec![],
        reward_terms: vec!["loss".to_owned()],
        reward_range: (-10.0, 1.0),
        autoreset: Autoreset::Disabled,
    }
}

/// Probabilities of level 1: of cache by state and by whether anybody chose it before, of polling by state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) cache: [[f64; 2]; 2],
    pub(crate) polling: [f64; 2],
}

pub(crate) const BEHAVIOUR: Table = Table {
    name: "behaviour",
    cache: [[0.4, 0.5], [0.6, 0.3]],
    polling: [0.5, 0.4],
};
/// Better than the behaviour.
pub(crate) const GOOD: Table = Table {
    name: "good",
    cache: [[0.7, 0.25], [0.35, 0.2]],
    polling: [0.25, 0.7],
};
/// Worse.
pub(crate) const BAD: Table = Table {
    name: "bad",
    cache: [[0.25, 0.6], [0.8, 0.5]],
    polling: [0.75, 0.2],
};

impl Table {
    pub(crate) fn of(&self, state: usize, before: usize) -> [f64; 2] {
        [self.cache[state][before.min(1)], self.polling[state]]
    }
}

/// A [`Table`] as a policy.
pub(crate) struct Target {
    pub(crate) table: Table,
    pub(crate) spec: EnvSpec,
}

impl Target {
    pub(crate) fn new(table: Table) -> Self {
        let spec = spec();
        Self { table, spec }
    }
}

impl TargetPolicy for Target {
    fn name(&self) -> &str {
        self.table.name
    }
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }
    fn probabilities(
        &self,
        turns: &[LoggedTurn<'_>],
        out: &mut [f64],
    ) -> Result<(), (usize, PolicyError)> {
        for (turn, out) in turns.iter().zip(out.chunks_mut(4)) {
            let own = self
                .table
                .of(turn.disk[0] as usize, turn.device[0] as usize);
            for (head, p) in own.into_iter().enumerate() {
                let (closed, mask) = (2 * head, &turn.mask[2 * head..2 * head + 2]);
                let probabilities = match turn.forced(head) {
                    Some(level) if mask[usize::from(level)].is_allowed() => {
                        [f64::from(1 - level), f64::from(level)]
                    }
                    Some(_) => [0.0, 0.0],
                    None => [1.0 - p, p],
                };
                out[closed..closed + 2].copy_from_slice(&probabilities);
            }
        }
        Ok(())
    }
}

/// How disks behave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    pub(crate) disks: usize,
    /// Cost to each disk on cache per other disk on it.
    pub(crate) contention: f64,
}

impl World {
    /// Reward of each disk.
    pub(crate) fn rewards(&self, states: &[usize], actions: &[[usize; 2]]) -> Vec<f64> {
        let buffered: usize = actions.iter().map(|action| action[0]).sum();
        let own = |(state, [cache, polling]): (&usize, &[usize; 2])| {
            let cost = [[0.6, 0.2], [0.3, 0.9]][*state][*cache];
            let cost_of_polling = [[0.0, 0.3], [0.4, 0.1]][*state][*polling];
            let others = (buffered - cache) * cache;
            -cost - cost_of_polling - self.contention * others as f64
        };
        states.iter().zip(actions).map(own).collect()
    }

    /// Probability that the next state is 1.
    pub(crate) fn next(state: usize, action: [usize; 2]) -> f64 {
        [[0.2, 0.6], [0.7, 0.4]][state][action[0]]
    }

    fn states_of(&self, joint: usize) -> Vec<usize> {
        (0..self.disks).map(|disk| joint >> disk & 1).collect()
    }

    /// Mean reward over disks in a joint state, and the joint state's successors with their probabilities.
    fn step(&self, policy: &Table, joint: usize) -> (f64, Vec<f64>) {
        let states = self.states_of(joint);
        let (mut reward, mut next) = (0.0, vec![0.0; 1 << self.disks]);
        for code in 0..1_usize << (2 * self.disks) {
            let actions: Vec<[usize; 2]> = (0..self.disks)
                .map(|disk| [code >> (2 * disk) & 1, code >> (2 * disk + 1) & 1])
                .collect();
            let (mut p, mut before) = (1.0, 0);
            for (state, action) in states.iter().zip(&actions) {
                for (one, level) in policy.of(*state, before).into_iter().zip(action) {
                    p *= if *level == 1 { one } else { 1.0 - one };
                }
                before += action[0];
            }
            let mean = self.rewards(&states, &actions).iter().sum::<f64>() / self.disks as f64;
            reward += p * mean;
            for (joint, next) in next.iter_mut().enumerate() {
                let to = self
                    .states_of(joint)
                    .into_iter()
                    .enumerate()
                    .map(|(disk, to)| {
                        let one = Self::next(states[disk], actions[disk]);
                        if to == 1 { one } else { 1.0 - one }
                    });
                *next += p * to.product::<f64>();
            }
        }
        (reward, next)
    }

    fn advance(&self, policy: &Table, from: &[f64]) -> (f64, Vec<f64>) {
        let (mut reward, mut next) = (0.0, vec![0.0; from.len()]);
        for (joint, p) in from.iter().enumerate() {
            let (own, to) = self.step(policy, joint);
            reward += p * own;
            next.iter_mut().zip(to).for_each(|(sum, x)| *sum += p * x);
        }
        (reward, next)
    }

    /// What a policy brings per step over windows of `horizon` steps, cut from episodes of `steps` steps of the
    /// behaviour that begin with all states 0.
    pub(crate) fn value(&self, policy: &Table, steps: usize, horizon: usize, gamma: f64) -> f64 {
        let mut at = vec![0.0; 1 << self.disks];
        at[0] = 1.0;
        let mut starts = vec![0.0; at.len()];
        let windows = steps / horizon;
        for step in 0..windows * horizon {
            if step % horizon == 0 {
                starts
                    .iter_mut()
                    .zip(&at)
                    .for_each(|(sum, p)| *sum += p / windows as f64);
            }
            at = self.advance(&BEHAVIOUR, &at).1;
        }
        let (mut value, mut discounts, mut discount) = (0.0, 0.0, 1.0);
        for _ in 0..horizon {
            let (reward, next) = self.advance(policy, &starts);
            value += discount * reward;
            discounts += discount;
            discount *= gamma;
            starts = next;
        }
        value / discounts
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) hosts: usize,
    pub(crate) episodes: usize,
    pub(crate) steps: usize,
}

/// Rows of a log of the behaviour, each with its outcome, in the order in which a service writes them.
pub(crate) fn rows(world: World, size: Size, seed: u64) -> Vec<(DecisionRow, OutcomeRow)> {
    let mut rng = Rng::seed_from_u64(seed);
    let (mut rows, mut number) = (vec![], 1_u128);
    let mut at_us = START_US;
    for episode in 0..size.episodes {
        let mut states = vec![vec![0_usize; world.disks]; size.hosts];
        for step in 0..size.steps {
            for (host, states) in states.iter_mut().enumerate() {
                let first = rows.len();
                let mut actions = vec![];
                for (disk, state) in states.iter().enumerate() {
                    let before: usize = actions.iter().map(|action: &[usize; 2]| action[0]).sum();
                    let p = BEHAVIOUR.of(*state, before);
                    let action = p.map(|p| usize::from(rng.random::<f64>() < p));
                    let drawn = [0, 1].map(|head| {
                        let one = p[head];
                        if action[head] == 1 { one } else { 1.0 - one }
                    });
                    let at = Place {
                        host,
                        episode,
                        step,
                        disk,
                        at_us,
                    };
                    rows.push(row(number, at, *state, before, action, drawn));
                    number += 1;
                    actions.push(action);
                }
                let rewards = world.rewards(states, &actions);
                for ((_, outcome), reward) in rows[first..].iter_mut().zip(rewards) {
                    outcome.reward_own = reward as f32;
                    outcome.reward_total = reward as f32;
                    outcome.truncated = step + 1 == size.steps;
                }
                for (state, action) in states.iter_mut().zip(&actions) {
                    *state = usize::from(rng.random::<f64>() < World::next(*state, *action));
                }
            }
            at_us += INTERVAL_US;
        }
    }
    rows
}

#[derive(Clone, Copy)]
struct Place {
    host: usize,
    episode: usize,
    step: usize,
    disk: usize,
    at_us: i64,
}

fn row(
    number: u128,
    at: Place,
    state: usize,
    before: usize,
    action: [usize; 2],
    drawn: [f64; 2],
) -> (DecisionRow, OutcomeRow) {
    let episode = ((at.host as u128) << 32) | (at.episode as u128 + 1);
    let head = |(i, name): (usize, &str)| HeadRow {
        head: name.to_owned(),
        previous: 0,
        requested: action[i] as Level,
        executed: action[i] as Level,
        propensity: drawn[i],
        explored: false,
        forced: false,
        altered: None,
        mask: vec![MaskReason::Allowed; 2],
    };
    let decision = DecisionRow {
        id: DecisionId(number),
        host_step_id: HostStepId((episode << 40) | at.step as u128),
        episode_id: EpisodeId(episode),
        at_us: at.at_us,
        host: format!("host-{}", at.host).into(),
        subject: Subject::Disk {
            guest: "vm".to_owned(),
            target: format!("vd{}", at.disk),
        },
        order: at.disk as u32,
        source: Source::Simulator,
        stage: Stage::Policy,
        epsilon: 0.0,
        reason: None,
        policy: "behaviour".into(),
        policy_version: "".into(),
        spec_hash: spec().hash().into(),
        seen: Seen {
            disk: vec![state as f32],
            device: vec![before as f32],
            host: vec![1.0],
            ..Seen::default()
        },
        heads: ["cache", "polling"]
            .into_iter()
            .enumerate()
            .map(head)
            .collect(),
        novel: vec![],
        reward_weights: Arc::new(BTreeMap::from([("beta".to_owned(), 0.0)])),
    };
    let outcome = OutcomeRow {
        decision_id: DecisionId(number),
        at_us: at.at_us + INTERVAL_US,
        interval_s: 10.0,
        reward_total: 0.0,
        reward_own: 0.0,
        reward_terms: BTreeMap::new(),
        counted: true,
        validity: Validity::Valid,
        terminated: false,
        truncated: false,
    };
    (decision, outcome)
}

/// Writes rows as a log; outcomes follow their joint decision.
pub(crate) fn write(dir: &Path, rows: &[(DecisionRow, OutcomeRow)]) {
    let mut writer = Writer::open(dir, Config::default()).unwrap().0;
    for same in rows.chunk_by(|(a, _), (b, _)| a.host_step_id == b.host_step_id) {
        for (decision, _) in same {
            writer
                .append(&Event::Decision(Box::new(decision.clone())))
                .unwrap();
        }
        for (_, outcome) in same {
            writer.append(&Event::Outcome(outcome.clone())).unwrap();
        }
    }
    writer.commit().unwrap();
}

/// A log of the behaviour.
pub(crate) fn log(dir: &Path, world: World, size: Size, seed: u64) {
    write(dir, &rows(world, size, seed));
}
