//! On `mixed_tenants` and `mixed_bursts` no one setting is good: there is something to learn.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use blkpilot_env::Rng;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::Scenario;
use blkpilot_models::Policy;
use blkpilot_models::baseline::{KeepDefault, LeastLoaded, RandomPolicy};
use blkpilot_models::oracle::{Limits, Planner, Resampled, Study, StudyOptions, pooled, study};
use rand::SeedableRng as _;

/// What each must lose to whom knows the state, and how often each head's best level must differ between
/// phase vectors, at least.
const MIXED: [(&str, &[(&str, f64)]); 2] = [
    (
        include_str!("../../env/scenarios/mixed_tenants.toml"),
        &[("channel", 0.2), ("cache", 0.2), ("polling", 0.2)],
    ),
    (
        include_str!("../../env/scenarios/mixed_bursts.toml"),
        &[("channel", 0.1)],
    ),
];
const LEAST_REGRET: f64 = 0.15;
/// `make verify` plays 32.
const EPISODES: u64 = 8;

fn studied(text: &str) -> Study {
    let scenario: Scenario = toml::from_str(text).unwrap();
    let reward = RewardConfig::default();
    let mut planner = Planner::new(&scenario, reward, Limits::default()).unwrap();
    let least_loaded = LeastLoaded::new(planner.values().spec()).unwrap();
    let mut policies: Vec<Box<dyn Policy>> = vec![
        Box::new(KeepDefault),
        Box::new(RandomPolicy),
        Box::new(least_loaded),
    ];
    let options = StudyOptions {
        seeds: (0..EPISODES)
            .map(|i| (i, Rng::seed_from_u64(500 + i)))
            .collect(),
        tolerance: 0.02,
        epsilon: 0.01,
    };
    study(&mut planner, &mut policies, &options, &mut |_| true).unwrap()
}

#[test]
fn the_best_static_setting_gives_up_fifteen_percent_and_what_is_best_depends_on_the_state() {
    let mut studies = Vec::new();
    for (text, heads) in MIXED {
        let study = studied(text);
        let (name, steady) = (&study.scenario, &study.steady);
        assert!(
            steady.all_states && steady.best_static_exhaustive,
            "{name}: exact"
        );
        assert_eq!(steady.exhaustive, 1.0, "{name}: exact");
        assert!(
            steady.best_static_regret >= LEAST_REGRET,
            "{name}: {steady:?}"
        );
        for (head, least) in heads {
            let differs = &study.dependence[*head];
            assert!(differs.differs >= *least, "{name}, {head}: {differs:?}");
        }
        studies.push(study);
    }
    let pooled = pooled(&studies, Resampled::Episodes, None);
    let of = |policy: &str| pooled[policy].regret.unwrap().value;
    assert!(of("best_static") >= LEAST_REGRET, "{pooled:?}");
    assert!(of("lagged_oracle") < of("best_static"), "{pooled:?}");
    assert!(of("best_static") < of("keep_default"), "{pooled:?}");
}
