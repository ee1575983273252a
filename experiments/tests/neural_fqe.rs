//! Neural fitted Q evaluation on logs of which the value of the policy is known: by enumeration in a small world, by
//! playing it in a simulated host.
//!
//! `cargo test` takes small logs and prints nothing; `BLKPILOT_FULL=1` takes larger ones and prints what all
//! estimators say.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "../../models/evaluate/tests/common/mod.rs"]
mod common;

use blkpilot_env::sim::{Scenario, SimHost, presets};
use blkpilot_env::{EnvSpec, Environment as _, Level, ResetOptions, Rng, TurnView};
use blkpilot_evaluate::{
    Block, Evaluation, Extras, LoggedTurn, Options, TargetPolicy, evaluate_with,
};
use blkpilot_lab::evaluate::NeuralFqe;
use blkpilot_log::{Config, Player, play};
use blkpilot_models::baseline::RandomPolicy;
use blkpilot_models::{Architecture, Choice, Policy, PolicyError, decide};
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const GAMMA: f64 = 0.8;

fn is_full() -> bool {
    std::env::var_os("BLKPILOT_FULL").is_some()
}

fn evaluated(log: &Path, policy: &dyn TargetPolicy, horizon: usize, block: Block) -> Evaluation {
    let options = Options {
        gamma: GAMMA,
        horizon,
        block,
        replicates: 200,
        ..Options::default()
    };
    let mut neural = NeuralFqe::default();
    if !is_full() {
        neural.architecture = Architecture {
            hidden: 16,
            channel_hidden: 8,
            ..Architecture::default()
        };
    }
    let extras = Extras {
        models: vec![&mut neural],
        ..Extras::default()
    };
    evaluate_with(log, policy, None, &options, extras).unwrap()
}

/// How far FQE, linear and neural, are from the value; all printed at full count.
fn errors(name: &str, found: &Evaluation, truth: f64) -> [f64; 2] {
    let neural = &found.models[0];
    let value = neural.value.unwrap_or_else(|| panic!("{neural:?}"));
    if is_full() {
        let was = found.behaviour.unwrap().estimate;
        println!(
            "{name}: value {truth:.4}, behaviour {was:.4}; {} windows",
            found.windows.begun
        );
        for estimate in &found.estimates {
            let name = estimate.estimator.name();
            match estimate.value {
                Some(value) => println!(
                    "  {name:10} {:.4} (error {:+.4}, std err {:.4})",
                    value.estimate,
                    value.estimate - truth,
                    value.std_err
                ),
                None => println!("  {name:10} undefined"),
            }
        }
        println!(
            "  {:10} {:.4} (error {:+.4}, std err {:.4})",
            neural.name,
            value.estimate,
            value.estimate - truth,
            value.std_err
        );
    }
    let linear = found.estimates[2].value.unwrap().estimate;
    [linear - truth, value.estimate - truth]
}

#[test]
fn in_a_small_world_the_network_finds_the_value_and_where_disks_interact_the_linear_model_does_not()
{
    let one = common::World {
        disks: 1,
        contention: 0.0,
    };
    let size = common::Size {
        hosts: 4,
        episodes: if is_full() { 24 } else { 6 },
        steps: 60,
    };
    let horizon = if is_full() { 3 } else { 2 };
    let run = |world: &common::World, table: common::Table| {
        let dir = tempfile::tempdir().unwrap();
        common::log(dir.path(), *world, size, 7);
        let policy = common::Target::new(table);
        let found = evaluated(dir.path(), &policy, horizon, Block::Seconds(300.0));
        let truth = world.value(&table, size.steps, horizon, GAMMA);
        errors(table.name, &found, truth)
    };
    let [_, neural] = run(&one, common::GOOD);
    assert!(neural.abs() < 0.03, "{neural:+.4}");
    // What cache costs a disk depends on who has chosen it before: the linear model does not cross that with its
    // choice.
    let crowded = common::World {
        disks: 2,
        contention: 2.0,
    };
    for table in [common::GOOD, common::BAD] {
        let [linear, neural] = run(&crowded, table);
        assert!(
            neural.abs() < 0.7 * linear.abs(),
            "{}: linear {linear:+.4}, neural {neural:+.4}",
            table.name
        );
        if !is_full() {
            break;
        }
    }
}

/// Prefers channels with few disks, by how many are there when it is its turn; direct and without polling, mostly.
struct Spread {
    spec: EnvSpec,
    bound_disks: usize,
}

impl Spread {
    fn new(spec: EnvSpec) -> Self {
        let mut columns = spec.channel_features.iter();
        let bound_disks = columns.position(|column| column.name == "bound_disks");
        Self {
            bound_disks: bound_disks.unwrap(),
            spec,
        }
    }

    fn of_head(&self, view: &TurnView<'_>, head: usize) -> Vec<f64> {
        let mask = view.head_mask(head);
        let mut weights: Vec<f64> = match view.forced(head) {
            Some(level) => (0..mask.len())
                .map(|other| f64::from(u8::from(other == usize::from(level))))
                .collect(),
            None if view.heads[head].is_pointer() => {
                let bound = view.channels.column(self.bound_disks);
                let of_channel = bound.iter().map(|bound| (-1.5 * f64::from(*bound)).exp());
                [0.1].into_iter().chain(of_channel).collect()
            }
            None => vec![0.7, 0.3],
        };
        for (weight, reason) in weights.iter_mut().zip(mask) {
            if !reason.is_allowed() {
                *weight = 0.0;
            }
        }
        let sum: f64 = weights.iter().sum();
        weights
            .iter()
            .map(|weight| weight / sum.max(1e-300))
            .collect()
    }
}

impl Policy for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let draw = |head: usize| {
            if let Some(level) = view.forced(head) {
                return (level, 1.0);
            }
            let p = self.of_head(view, head);
            let mut left: f64 = rng.random();
            let level = p.iter().position(|p| {
                left -= p;
                left < 0.0
            });
            let level = level.unwrap_or(p.iter().rposition(|p| *p > 0.0).unwrap());
            (level as Level, p[level])
        };
        let (levels, propensities) = (0..view.heads.len()).map(draw).unzip();
        Ok(Choice {
            levels,
            propensities,
        })
    }
}

impl TargetPolicy for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }
    fn probabilities(
        &self,
        turns: &[LoggedTurn<'_>],
        out: &mut [f64],
    ) -> Result<(), (usize, PolicyError)> {
        let views = turns.iter().map(LoggedTurn::view);
        let all = views.flat_map(|view| {
            let heads = 0..view.heads.len();
            heads
                .flat_map(|head| self.of_head(&view, head))
                .collect::<Vec<_>>()
        });
        out.iter_mut().zip(all).for_each(|(out, p)| *out = p);
        Ok(())
    }
}

fn log(dir: &Path, scenario: &Scenario, episodes: u64) {
    let setup = play::Setup {
        host: "simulated".to_owned(),
        policy_version: String::new(),
        interval_s: scenario.interval_s,
        epsilon: 0.0,
        reward_weights: BTreeMap::new(),
    };
    let host = SimHost::fixed(scenario.clone()).unwrap();
    let policy = Box::new(RandomPolicy);
    let mut player = Player::open(dir, host, policy, setup, Config::default()).unwrap();
    for seed in 0..episodes {
        let decisions = Rng::seed_from_u64(1_000_000 + seed);
        assert!(
            player
                .play(seed, decisions, &AtomicBool::new(false))
                .unwrap()
        );
    }
    player.finish().unwrap();
}

/// What `policy` brings per step over windows of `horizon` steps, from states of fresh episodes in which the random
/// policy has left the host; with its standard error over episodes.
fn played(scenario: &Scenario, policy: &mut Spread, horizon: usize, episodes: u64) -> (f64, f64) {
    let mut host = SimHost::fixed(scenario.clone()).unwrap();
    let spec = host.spec().clone();
    let steps = scenario.steps as usize;
    let (mut means, mut random) = (vec![], RandomPolicy);
    for seed in 0..episodes {
        let (mut sum, mut windows) = (0.0, 0.0);
        for start in (0..steps).step_by(horizon) {
            let mut rng = Rng::seed_from_u64(2_000_000 + seed);
            let mut obs = host
                .reset(Some(500_000 + seed), &ResetOptions::new())
                .unwrap();
            let (mut value, mut discount, mut discounts) = (0.0, 1.0, 0.0);
            for at in 0..start + horizon {
                let own: &mut dyn Policy = if at < start {
                    &mut random
                } else {
                    &mut *policy
                };
                let decision = decide(own, &spec, &obs, &mut rng).unwrap();
                let step = host.step(&decision.action).unwrap();
                if at >= start {
                    value += discount * f64::from(step.rewards.host_mean().unwrap_or(0.0));
                    discounts += discount;
                    discount *= GAMMA;
                }
                obs = step.observation;
            }
            sum += value / discounts;
            windows += 1.0;
        }
        means.push(sum / windows);
    }
    let n = means.len() as f64;
    let mean = means.iter().sum::<f64>() / n;
    let squares: f64 = means.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0) / n).sqrt())
}

#[test]
fn on_a_simulated_host_the_network_comes_near_what_is_played() {
    let (horizon, steps) = if is_full() { (8, 64) } else { (2, 32) };
    let (episodes, fresh) = if is_full() { (60, 200) } else { (40, 40) };
    let names = if is_full() {
        &["mixed", "identical_disks"][..]
    } else {
        &["identical_disks"][..]
    };
    for name in names {
        let scenario = Scenario {
            steps,
            ..presets::by_name(name).unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), &scenario, episodes);
        let spec = SimHost::fixed(scenario.clone()).unwrap().spec().clone();
        let mut policy = Spread::new(spec);
        let (truth, std_err) = played(&scenario, &mut policy, horizon, fresh);
        let found = evaluated(dir.path(), &policy, horizon, Block::Episode);
        let [linear, neural] = errors(name, &found, truth);
        if is_full() {
            println!(
                "  linear {linear:+.4}, neural {neural:+.4}; the value is known to {std_err:.4}"
            );
        }
        let was = found.behaviour.unwrap().estimate;
        // A model that learnt nothing would say what was. Over long horizons gains that disks make in each other's
        // stead are counted twice.
        let share = if is_full() { 1.0 } else { 0.5 };
        let room = share * (was - truth).abs() + 4.0 * std_err;
        assert!(
            neural.abs() < room,
            "{name}: {neural:+.4} of {truth:.4}, was {was:.4}"
        );
    }
}
