//! Learning takes no more memory the longer it goes on. `BLKPILOT_UPDATES` says how long; 2,000 in the long proof.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use blkpilot_env::sim::{Generator, SimHost};
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{Autoreset, Rng};
use blkpilot_learn::{Collector, Discount, Ppo, PpoConfig, Schedule};
use blkpilot_models::Architecture;
use rand::SeedableRng as _;

const UPDATES: usize = 120;
/// Most that the peak of the second half may lie above that of the first, MiB. Hosts differ in size from episode to
/// episode, and an allocator keeps what it was given.
const MOST_GROWTH_MIB: f64 = 4.0;
/// Updates between two checkpoints, which are made and thrown away.
const CHECKPOINT_EVERY: usize = 10;

fn config() -> PpoConfig {
    PpoConfig {
        steps: 32,
        epochs: 2,
        minibatch: 128,
        discount: Discount {
            gamma: 0.8,
            lambda: 0.9,
        },
        normalise_reward: true,
        learning_rate: Schedule::Constant(1e-3),
        clip: Schedule::Constant(0.2),
        value_clip: Some(0.5),
        value_coefficient: 0.5,
        entropy_coefficient: Schedule::Constant(0.01),
        max_grad_norm: 0.5,
        target_kl: None,
    }
}

/// What of this process is in memory, MiB.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<f64>().unwrap() / 1024.0
}

#[test]
fn memory_stays_flat_over_many_updates() {
    let updates = match std::env::var("BLKPILOT_UPDATES") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => UPDATES,
    };
    let generator = Generator {
        disks: (1, 4),
        steps: 16,
        schedulers: true,
        ..Generator::default()
    };
    let host = || SimHost::generated(generator.clone()).unwrap();
    let envs = (0..4).map(|seed| (AutoresetEnv::new(host(), Autoreset::SameStep), seed));
    let mut collector = Collector::new(envs.collect(), Rng::seed_from_u64(1)).unwrap();
    let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config(), 1).unwrap();
    let rollout = ppo.play(&mut collector).unwrap();
    ppo.warm_up(&rollout);
    let before = resident_mib();
    let mut resident = Vec::with_capacity(updates);
    for update in 1..=updates {
        let rollout = ppo.play(&mut collector).unwrap();
        ppo.update(&rollout, 0.0).unwrap();
        if update % CHECKPOINT_EVERY == 0 {
            ppo.checkpoint(serde_json::Value::Null).unwrap();
        }
        resident.push(resident_mib());
    }
    let peak = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    let (first, second) = resident.split_at(updates / 2);
    let (first, second) = (peak(first), peak(second));
    println!(
        "{updates} updates of {} host-steps on 4 random hosts each, a checkpoint every {CHECKPOINT_EVERY}",
        4 * config().steps
    );
    println!(
        "resident before the first: {before:.1} MiB; peak of the first half: {first:.1} MiB; of the second: {second:.1} MiB"
    );
    assert!(
        second - first <= MOST_GROWTH_MIB,
        "{:.1} MiB more in the second half",
        second - first
    );
}
