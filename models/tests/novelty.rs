//! How far an observation lies from those of training, on hosts within the training range and outside it.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use blkpilot_env::sim::{Generator, Scenario, SimHost};
use blkpilot_env::{EnvSpec, Environment as _, ResetOptions, Rng};
use blkpilot_models::baseline::RandomPolicy;
use blkpilot_models::{Novelty, Outlier, Statistics, decide_with};
use rand::SeedableRng as _;

const EPISODES: u64 = 40;

fn generator() -> Generator {
    Generator {
        disks: (1, 6),
        channels: (2, 6),
        devices: (1, 2),
        steps: 16,
        ..Generator::default()
    }
}

/// Shows every turn of random play on hosts of these seeds.
fn play(
    draw: impl Fn(&mut Rng) -> Scenario,
    seeds: std::ops::Range<u64>,
    mut see: impl FnMut(&blkpilot_env::TurnView<'_>),
) {
    for seed in seeds {
        let mut rng = Rng::seed_from_u64(seed);
        let mut host = SimHost::fixed(draw(&mut rng)).unwrap();
        let spec = host.spec().clone();
        let mut obs = host.reset(Some(seed), &ResetOptions::new()).unwrap();
        loop {
            let decided = decide_with(&mut RandomPolicy, &spec, &obs, &mut rng, |view, _| {
                see(view);
            })
            .unwrap();
            let step = host.step(&decided.action).unwrap();
            if step.is_last() {
                break;
            }
            obs = step.observation;
        }
    }
}

fn spec() -> EnvSpec {
    SimHost::generated(generator()).unwrap().spec().clone()
}

fn trained() -> Novelty {
    let spec = spec();
    let mut statistics = Statistics::new(&spec);
    play(
        |rng| generator().draw(rng),
        0..400,
        |view| statistics.observe(view),
    );
    Novelty::new(&spec, &statistics.ranges())
}

/// Share of turns in which something is novel, and the greatest distance of each.
fn judge(novelty: &Novelty, draw: impl Fn(&mut Rng) -> Scenario) -> (f64, Vec<Vec<Outlier>>) {
    let mut turns: Vec<Vec<Outlier>> = vec![];
    play(draw, 10_000..10_000 + EPISODES, |view| {
        turns.push(novelty.outliers(view));
    });
    let novel = turns.iter().filter(|found| !found.is_empty()).count();
    (novel as f64 / turns.len() as f64, turns)
}

fn median_distance(turns: &[Vec<Outlier>], feature: &str) -> f32 {
    let found = turns.iter().flatten().filter(|o| o.feature == feature);
    let mut beyond: Vec<f32> = found.map(|o| o.beyond).collect();
    beyond.sort_by(f32::total_cmp);
    beyond.get(beyond.len() / 2).copied().unwrap_or(0.0)
}

#[test]
fn hosts_like_those_of_training_are_known_and_others_are_told_by_what_is_new_and_how_far() {
    let novelty = trained();
    let (known, _) = judge(&novelty, |rng| generator().draw(rng));
    assert!(
        known < 0.02,
        "unseen hosts of the same kind: {known} of the turns novel"
    );

    // Other hosts outside the range in one respect each: the share of turns that say so, and by which feature.
    let many_disks = |disks: usize| {
        move |rng: &mut Rng| {
            Generator {
                disks: (disks, disks),
                channels: (4, 4),
                devices: (1, 1),
                ..generator()
            }
            .draw(rng)
        }
    };
    let (share, crowd) = judge(&novelty, many_disks(24));
    assert!(share > 0.95, "24 disks on one device: {share}");
    let (near, far) = (
        median_distance(&crowd, "disks"),
        median_distance(&judge(&novelty, many_disks(96)).1, "disks"),
    );
    assert!(
        near > 0.3 && far > near + 0.3,
        "24 disks {near}, 96 disks {far}"
    );

    let slow = |rng: &mut Rng| {
        let mut scenario = generator().draw(rng);
        for device in &mut scenario.devices {
            device.reference.read_us *= 1_000.0;
        }
        scenario
    };
    let (share, turns) = judge(&novelty, slow);
    assert!(share > 0.95, "devices a thousand times as slow: {share}");
    assert!(median_distance(&turns, "reference_us") > 0.3);
}
