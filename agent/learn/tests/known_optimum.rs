//! Problems whose best policy can be computed, solved by each learner to within 1 % of what there is to gain over random
//! play. What a learnt policy is worth is computed too, state by state: nothing here is estimated.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "known_optimum/bandit.rs"]
mod bandit;
#[path = "known_optimum/chain.rs"]
mod chain;

use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{
    Autoreset, EnvSpec, Environment, Feature, Head, HeadScope, JointAction, Level, Levels,
    MaskReason, Observation, Rng, Scale, Table, Unit,
};
use blkpilot_learn::dqn::{Bootstrap, Exploration, Follow, Prioritised};
use blkpilot_learn::{Collector, Discount, Dqn, DqnConfig, Ppo, PpoConfig, Schedule};
use blkpilot_models::{Architecture, Checkpoint, NetworkPolicy, Selection, decide};
use ndarray::{Array2, Array3, ArrayView1};
use rand::SeedableRng as _;

const SEED: u64 = 1;
const ENVS: usize = 8;

/// One disk that decides with these heads on these numbers.
fn spec(name: &str, features: &[&str], heads: &[(&str, &[&str])]) -> EnvSpec {
    let feature = |name: &&str| Feature {
        name: (*name).to_owned(),
        unit: Unit::Ratio,
        low: -1.0,
        high: 1.0,
        scale: Scale::Linear,
        doc: String::new(),
    };
    let head = |(name, levels): &(&str, &[&str])| Head {
        name: (*name).to_owned(),
        levels: Levels::Named(levels.iter().map(|level| (*level).to_owned()).collect()),
        scope: HeadScope::Disk,
    };
    EnvSpec {
        name: name.to_owned(),
        disk_features: features.iter().map(feature).collect(),
        channel_features: vec![],
        pair_features: vec![],
        device_features: vec![],
        host_features: vec![],
        disk_heads: heads.iter().map(head).collect(),
        device_heads: vec![],
        projections: vec![],
        reward_terms: vec!["reward".to_owned()],
        reward_range: (-10.0, 10.0),
        autoreset: Autoreset::Disabled,
    }
}

/// What the one disk sees and may do: the heads' levels one after another.
fn observe(spec: &EnvSpec, numbers: &[f32], allowed: &[bool]) -> Observation {
    let mut disks = Table::zeros(1, numbers.len());
    disks.values.row_mut(0).assign(&ArrayView1::from(numbers));
    let action = JointAction {
        disks: Array2::zeros((1, spec.disk_heads.len())),
        devices: Array2::zeros((0, 0)),
    };
    let mut obs = Observation {
        disk_ids: vec!["one".to_owned()],
        disks,
        channels: Table::zeros(0, 0),
        pairs: Array3::zeros((1, 0, 0)),
        devices: Table::zeros(0, 0),
        host: Table::zeros(1, 0),
        disk_group: vec![None],
        current: action.clone(),
        default: action,
        masks: blkpilot_env::Masks::all_allowed(spec, 1, 0, 0),
        ..Observation::default()
    };
    for (reason, allowed) in obs.masks.disks.iter_mut().zip(allowed) {
        if !allowed {
            *reason = MaskReason::JobRunning;
        }
    }
    obs
}

/// What a policy does where it sees this.
fn levels(policy: &mut NetworkPolicy, spec: &EnvSpec, obs: &Observation) -> Vec<Level> {
    let decision = decide(policy, spec, obs, &mut Rng::seed_from_u64(0)).unwrap();
    decision.action.disks.row(0).to_vec()
}

fn architecture() -> Architecture {
    Architecture {
        hidden: 32,
        ..Architecture::default()
    }
}

fn collector<E: Environment>(make: impl Fn(u64) -> E) -> Collector<AutoresetEnv<E>> {
    let env = |seed| (AutoresetEnv::new(make(seed), Autoreset::SameStep), seed);
    let mut rng = Rng::seed_from_u64(SEED);
    rng.set_stream(1);
    Collector::new((0..ENVS as u64).map(env).collect(), rng).unwrap()
}

fn greedy(checkpoint: &Checkpoint) -> NetworkPolicy {
    NetworkPolicy::new("trained", checkpoint, Selection::Greedy).unwrap()
}

fn dqn<E: Environment>(make: impl Fn(u64) -> E, config: DqnConfig) -> NetworkPolicy {
    let mut collector = collector(make);
    let planned = config.env_steps;
    let mut dqn = Dqn::new(collector.spec(), ENVS, architecture(), config, SEED).unwrap();
    while dqn.env_steps() < planned {
        dqn.round(&mut collector).unwrap();
    }
    greedy(&dqn.checkpoint(serde_json::Value::Null).unwrap())
}

fn ppo<E: Environment>(make: impl Fn(u64) -> E, config: PpoConfig, planned: u64) -> NetworkPolicy {
    let mut collector = collector(make);
    let mut ppo = Ppo::new(collector.spec(), architecture(), config, SEED).unwrap();
    let rollout = ppo.play(&mut collector).unwrap();
    ppo.warm_up(&rollout);
    while ppo.env_steps() < planned {
        let progress = ppo.env_steps() as f64 / planned as f64;
        let rollout = ppo.play(&mut collector).unwrap();
        ppo.update(&rollout, progress).unwrap();
    }
    greedy(&ppo.checkpoint(serde_json::Value::Null).unwrap())
}

fn dqn_config(env_steps: u64) -> DqnConfig {
    DqnConfig {
        env_steps,
        train_frequency: 32,
        gradient_steps: 8,
        learning_starts: 1000,
        batch: 64,
        capacity: 20_000,
        prioritised: None,
        gamma: 1.0,
        n_steps: 1,
        bootstrap: Bootstrap::Double,
        follow: Follow::Copy { every: 512 },
        exploration: Exploration {
            from: 1.0,
            to: 0.1,
            fraction: 0.5,
        },
        learning_rate: Schedule::LinearToZero(2e-3),
        max_grad_norm: 10.0,
    }
}

fn ppo_config() -> PpoConfig {
    PpoConfig {
        steps: 64,
        epochs: 8,
        minibatch: 128,
        discount: Discount {
            gamma: 1.0,
            lambda: 0.95,
        },
        learning_rate: Schedule::LinearToZero(3e-3),
        clip: Schedule::Constant(0.2),
        value_clip: None,
        value_coefficient: 0.5,
        entropy_coefficient: Schedule::LinearToZero(0.01),
        max_grad_norm: 0.5,
        target_kl: None,
        normalise_reward: false,
    }
}

/// Share of what there is to gain over random play that a policy leaves.
fn regret(best: f64, own: f64, random: f64) -> f64 {
    (best - own) / (best - random)
}

#[test]
fn dqn_solves_a_masked_bandit() {
    let mut policy = dqn(bandit::Bandit::new, dqn_config(16_000));
    let regret = bandit::regret(&mut policy);
    assert!(regret < 0.01, "{regret}");
}

#[test]
fn ppo_solves_a_masked_bandit() {
    let mut policy = ppo(bandit::Bandit::new, ppo_config(), 40_000);
    let regret = bandit::regret(&mut policy);
    assert!(regret < 0.01, "{regret}");
}

#[test]
fn dqn_solves_a_masked_chain_of_two_heads() {
    let mut policy = dqn(chain::Chain::new, dqn_config(16_000));
    let regret = chain::regret(&mut policy);
    assert!(regret < 0.01, "{regret}");
}

#[test]
fn dqn_over_three_steps_from_a_prioritised_replay_solves_the_chain() {
    let config = DqnConfig {
        n_steps: 3,
        prioritised: Some(Prioritised {
            alpha: 0.6,
            beta: 0.4,
        }),
        follow: Follow::Polyak { tau: 0.01 },
        // What was played by chance is learnt from as if it were the policy's: the less of it the better.
        exploration: Exploration {
            from: 1.0,
            to: 0.02,
            fraction: 0.5,
        },
        ..dqn_config(32_000)
    };
    let mut policy = dqn(chain::Chain::new, config);
    let regret = chain::regret(&mut policy);
    assert!(regret < 0.01, "{regret}");
}

#[test]
fn ppo_solves_a_masked_chain_of_two_heads() {
    let mut policy = ppo(chain::Chain::new, ppo_config(), 40_000);
    let regret = chain::regret(&mut policy);
    assert!(regret < 0.01, "{regret}");
}
