//! Where a step may not allocate, an allocator that counts sees none.

use std::time::Duration;

use allocation_counter::measure;
use blkpilot_env::cartpole::CartPoleBatch;
use blkpilot_env::conformance::random_action;
use blkpilot_env::features::{Terms, observe_into, refresh};
use blkpilot_env::reward::{RewardConfig, score_into};
use blkpilot_env::sim::{Generator, SimBatch, SimHost, presets};
use blkpilot_env::window::HostWindow;
use blkpilot_env::{Autoreset, Environment as _, Level, Observation, ResetOptions, Rewards, Rng};
use rand::SeedableRng as _;

#[test]
fn features_and_rewards_of_a_window_allocate_nothing_in_kept_buffers() {
    let mut host = SimHost::fixed(presets::mixed()).unwrap();
    let obs = host.reset(Some(1), &ResetOptions::new()).unwrap();
    let before = host.sample().unwrap().clone();
    host.step(&obs.current).unwrap();
    let window = HostWindow::between(&before, host.sample().unwrap());
    let config = RewardConfig::default();
    let terms = Terms {
        interval: Duration::from_secs(1),
        reward: &config,
    };
    let (mut obs, mut rewards) = (Observation::default(), Rewards::default());
    let mut see = || {
        observe_into(host.spec(), &window, terms, &mut obs);
        refresh(&window, terms, &mut obs);
        score_into(&window, &config, &mut rewards);
    };
    assert!(measure(&mut see).count_total > 0, "the buffers take shape");
    assert_eq!(measure(&mut see).count_total, 0);
}

#[test]
fn many_hosts_allocate_nothing_in_a_step() {
    let generator = Generator {
        steps: 1_000,
        ..Generator::default()
    };
    let mut batch = SimBatch::generated(generator, 8).unwrap();
    batch.reset(Some(1));
    let mut rng = Rng::seed_from_u64(2);
    let mut draw = || -> Vec<Level> {
        let hosts = batch.hosts().iter();
        hosts
            .flat_map(|host| {
                let action = random_action(batch.spec(), host.observation(), &mut rng);
                let levels = action.disks.iter().chain(&action.devices);
                levels.copied().collect::<Vec<_>>()
            })
            .collect()
    };
    let actions: Vec<_> = (0..300).map(|_| draw()).collect();
    let (first, rest) = actions.split_at(100);
    first.iter().for_each(|action| batch.step(action).unwrap());
    let counted = measure(|| rest.iter().for_each(|action| batch.step(action).unwrap()));
    assert_eq!(counted.count_total, 0);
}

#[test]
fn carts_allocate_nothing_whether_they_fall_or_not() {
    for mode in [Autoreset::NextStep, Autoreset::SameStep] {
        let mut batch = CartPoleBatch::new(16, 1, mode);
        batch.reset(Some(1));
        let levels = [1; 16];
        let mut falls = 0;
        let counted = measure(|| {
            for _ in 0..100 {
                batch.step(&levels).unwrap();
                falls += batch.terminated().iter().filter(|fell| **fell).count();
            }
        });
        assert_eq!(counted.count_total, 0);
        assert!(falls >= 16);
    }
}
