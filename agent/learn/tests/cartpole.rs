//! PPO learns CartPole, small-scale: one seed. Half of this budget is not enough on every CPU.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use blkpilot_env::cartpole::CartPole;
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{Autoreset, Environment as _, ResetOptions, Rng};
use blkpilot_learn::{Collector, Discount, Ppo, PpoConfig, Schedule};
use blkpilot_models::baseline::RandomPolicy;
use blkpilot_models::{Architecture, NetworkPolicy, Policy, Selection, decide};
use rand::SeedableRng as _;

const SEED: u64 = 1;
const ENV_STEPS: u64 = 100_000;
const THRESHOLD: f64 = 400.0;

fn config() -> PpoConfig {
    PpoConfig {
        steps: 32,
        epochs: 20,
        minibatch: 256,
        discount: Discount {
            gamma: 0.98,
            lambda: 0.8,
        },
        normalise_reward: false,
        learning_rate: Schedule::LinearToZero(1e-3),
        clip: Schedule::LinearToZero(0.2),
        value_clip: None,
        value_coefficient: 0.5,
        entropy_coefficient: Schedule::Constant(0.0),
        max_grad_norm: 0.5,
        target_kl: None,
    }
}

/// Another stream than the cart's, so that no decision follows from where the cart starts.
fn decisions(seed: u64) -> Rng {
    let mut rng = Rng::seed_from_u64(seed);
    rng.set_stream(1);
    rng
}

/// Mean return of 20 episodes on seeds that training never used.
fn evaluate(policy: &mut dyn Policy) -> f64 {
    let mut total = 0.0;
    for seed in 1_000..1_020 {
        let (mut cart, mut rng) = (CartPole::new(seed), decisions(seed));
        let spec = CartPole::default_spec();
        let mut obs = cart.reset(Some(seed), &ResetOptions::new()).unwrap();
        loop {
            let decision = decide(policy, &spec, &obs, &mut rng).unwrap();
            let step = cart.step(&decision.action).unwrap();
            total += f64::from(step.rewards.total[0]);
            if step.is_last() {
                break;
            }
            obs = step.observation;
        }
    }
    total / 20.0
}

#[test]
fn ppo_balances_the_pole_where_random_play_does_not() {
    let spec = CartPole::default_spec();
    let mut ppo = Ppo::new(&spec, Architecture::default(), config(), SEED).unwrap();
    let envs = (0..8).map(|seed| {
        (
            AutoresetEnv::new(CartPole::new(seed), Autoreset::SameStep),
            seed,
        )
    });
    let mut collector = Collector::new(envs.collect(), decisions(SEED)).unwrap();
    let rollout = ppo.play(&mut collector).unwrap();
    ppo.warm_up(&rollout);
    while ppo.env_steps() < ENV_STEPS {
        let rollout = ppo.play(&mut collector).unwrap();
        ppo.update(&rollout, ppo.env_steps() as f64 / ENV_STEPS as f64)
            .unwrap();
    }
    let checkpoint = ppo.checkpoint(serde_json::Value::Null).unwrap();
    let mut trained = NetworkPolicy::new("trained", &checkpoint, Selection::Greedy).unwrap();
    let (trained, random) = (evaluate(&mut trained), evaluate(&mut RandomPolicy));
    assert!(
        trained >= THRESHOLD && random < 60.0,
        "trained {trained}, random {random}"
    );
    println!("trained {trained}, random {random}");
}
