//! What the lab's own configs learn, with small budgets. Seeds, budgets and thresholds are stated;
//! each test compares with policies that are not trained.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use blkpilot_env::{Environment, Level, ResetOptions};
use blkpilot_lab::compare::BASELINES;
use blkpilot_lab::train::{Existing, Run, Summary, train};
use blkpilot_lab::{Config, environments, seeds};
use blkpilot_models::baseline::RandomPolicy;
use blkpilot_models::{Checkpoint, NetworkPolicy, Policy, Selection, decide};

const SEED: u64 = 1;

fn config(name: &str) -> Config {
    Config::load(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("configs")
            .join(name),
    )
    .unwrap()
}

fn learn(config: &Config) -> (Summary, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let run = Run {
        config,
        seed: SEED,
        out: &out,
        existing: Existing::Refuse,
    };
    let summary = train(&run, &AtomicBool::new(false), &mut |_| ()).unwrap();
    (summary, Checkpoint::load(&out.join("policy")).unwrap())
}

/// The channel levels in force at the end of an evaluation episode, sorted.
fn final_channels(config: &Config, policy: &mut dyn Policy, episode: usize) -> Vec<Level> {
    let mut env =
        environments::make(&config.environment, environments::Purpose::Evaluation).unwrap();
    let (spec, seed) = (env.spec().clone(), config.evaluation.seed(episode));
    let channel = spec.disk_head("channel").unwrap();
    let mut rng = seeds::decisions(seed);
    let mut obs = env.reset(Some(seed), &ResetOptions::new()).unwrap();
    loop {
        let action = decide(policy, &spec, &obs, &mut rng).unwrap().action;
        let step = env.step(&action).unwrap();
        obs = step.observation.clone();
        if step.is_last() {
            let mut channels = obs.current.disks.column(channel).to_vec();
            channels.sort_unstable();
            return channels;
        }
    }
}

/// Seed 1, 20,000 host-steps, 20 evaluation episodes; all must end with one disk per channel.
#[test]
fn four_identical_disks_end_on_one_channel_each() {
    let config = config("four_identical.toml");
    let (_, checkpoint) = learn(&config);
    let mut trained = NetworkPolicy::new("trained", &checkpoint, Selection::Greedy).unwrap();
    let ends = |policy: &mut dyn Policy| -> usize {
        (0..20)
            .filter(|episode| final_channels(&config, policy, *episode) == [1, 2, 3, 4])
            .count()
    };
    let (trained, random) = (ends(&mut trained), ends(&mut RandomPolicy));
    assert!(
        trained == 20 && random <= 5,
        "of 20 episodes: trained {trained}, random {random}"
    );
}

/// Seed 1, 40,000 host-steps, a fraction of the config's; 100 evaluation episodes; the 95 %
/// interval of the difference from each baseline must lie above 0.
#[test]
fn quickstart_beats_every_baseline_with_a_fraction_of_its_budget() {
    let mut config = config("quickstart.toml");
    config.training.env_steps = 40_000;
    // A test that is looked at again and again leaves the reported seeds alone.
    config.evaluation.first_seed = 0;
    config.evaluation.episodes = 100;
    let (summary, _) = learn(&config);
    for baseline in BASELINES {
        let difference = &summary.comparison.differences[baseline];
        assert!(
            difference.ci95[0] > 0.0,
            "trained minus {baseline}: {difference:?}"
        );
    }
}
