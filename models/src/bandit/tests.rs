use std::sync::Mutex;

use blkpilot_env::features::kvm_host_spec;
use blkpilot_env::sim::{SimHost, presets};
use blkpilot_env::{
    Autoreset, Environment as _, Feature, HeadScope, JointDecision, Levels, MaskReason, Scale, Unit,
};
use ndarray::{Array2, ArrayView2, aview1};

use super::*;
use crate::baseline::{KeepDefault, RandomPolicy};
use crate::policy::decide;

/// Two numbers are seen, and one of three levels is taken.
fn spec() -> EnvSpec {
    let feature = |name: &str| Feature {
        name: name.to_owned(),
        unit: Unit::Ratio,
        low: -1.0,
        high: 1.0,
        scale: Scale::Linear,
        doc: String::new(),
    };
    EnvSpec {
        name: "three_levels".to_owned(),
        disk_features: vec![feature("x"), feature("y")],
        channel_features: vec![],
        pair_features: vec![],
        device_features: vec![],
        host_features: vec![],
        disk_heads: vec![Head {
            name: "lever".to_owned(),
            levels: Levels::Named(["a", "b", "c"].map(str::to_owned).to_vec()),
            scope: HeadScope::Disk,
        }],
        device_heads: vec![],
        projections: vec![],
        reward_terms: vec!["loss".to_owned()],
        reward_range: (-10.0, 1.0),
        autoreset: Autoreset::Disabled,
    }
}

/// What is seen once.
struct Seen {
    disk: [f32; 2],
    mask: [MaskReason; 3],
}

impl Seen {
    fn draw(rng: &mut Rng) -> Self {
        let mut mask = [MaskReason::Allowed; 3];
        // Of the three levels one is closed in half of the rounds.
        if rng.random_bool(0.5) {
            mask[rng.random_range(0..3)] = MaskReason::JobRunning;
        }
        let disk = [(); 2].map(|()| rng.random_range(-1.0..1.0));
        Self { disk, mask }
    }

    fn with<T>(&self, spec: &EnvSpec, look: impl FnOnce(&TurnView<'_>) -> T) -> T {
        let nothing = Array2::<f32>::zeros((0, 0));
        let levels = [0];
        look(&TurnView {
            turn: Turn::Disk(0),
            heads: &spec.disk_heads,
            disk: Some(aview1(&self.disk)),
            device: None,
            host: aview1(&[]),
            channels: nothing.view(),
            pairs: None::<ArrayView2<'_, f32>>,
            current: aview1(&levels),
            default: aview1(&levels),
            mask: &self.mask,
        })
    }

    /// Mean reward of each level.
    fn means(&self) -> [f64; 3] {
        let [x, y] = self.disk.map(f64::from);
        [-1.0, -1.0 + 0.5 * x, -1.2 + 0.5 * y]
    }

    fn allowed(&self) -> impl Iterator<Item = f64> {
        let allowed = self.mask.iter().zip(self.means());
        allowed.filter_map(|(mask, mean)| mask.is_allowed().then_some(mean))
    }

    fn best(&self) -> f64 {
        self.allowed().fold(f64::NEG_INFINITY, f64::max)
    }

    fn mean_of_all(&self) -> f64 {
        self.allowed().sum::<f64>() / self.allowed().count() as f64
    }
}

fn bandit(algorithm: Algorithm) -> Bandit {
    Bandit::new(&spec(), BanditConfig::new(algorithm)).unwrap()
}

/// Plays `rounds` with noise of 0.2; the share of what there is to gain over a random choice in the rounds after the
/// first half.
fn share_gained(bandit: &mut Bandit, rounds: usize, rng: &mut Rng) -> f64 {
    let spec = spec();
    let (mut gained, mut to_gain) = (0.0, 0.0);
    for round in 0..rounds {
        let seen = Seen::draw(rng);
        let choice = seen.with(&spec, |view| bandit.choose(&spec, view, rng).unwrap());
        let level = usize::from(choice.levels[0]);
        assert!(seen.mask[level].is_allowed());
        let mean = seen.means()[level];
        if round >= rounds / 2 {
            gained += mean - seen.mean_of_all();
            to_gain += seen.best() - seen.mean_of_all();
        }
        let reward = mean + 0.2 * quantile::normal(rng.random_range(1e-9..1.0));
        seen.with(&spec, |view| bandit.learn(view, &choice.levels, reward));
    }
    gained / to_gain
}

#[test]
fn a_masked_bandit_is_solved_to_within_one_percent() {
    for algorithm in [Algorithm::LinUcb(1.0), Algorithm::Thompson(1.0)] {
        for seed in 0..2 {
            let mut bandit = bandit(algorithm);
            let mut rng = Rng::seed_from_u64(seed);
            let share = share_gained(&mut bandit, 4000, &mut rng);
            assert!(share > 0.99, "{algorithm:?}, seed {seed}: {share:.4}");
        }
    }
}

/// Of two levels the better one is the best with probability Φ(Δ/σ).
#[test]
fn thompson_takes_a_level_as_often_as_it_is_the_best() {
    let spec = spec();
    let mut bandit = bandit(Algorithm::Thompson(1.0));
    let seen = Seen {
        disk: [0.2, -0.4],
        mask: [
            MaskReason::Allowed,
            MaskReason::Allowed,
            MaskReason::JobRunning,
        ],
    };
    for (level, reward) in [(0, -1.0), (1, -0.9), (0, -1.2), (1, -1.1), (0, -0.8)] {
        seen.with(&spec, |view| bandit.learn(view, &[level], reward));
    }
    let (found, wanted) = seen.with(&spec, |view| {
        let ridge = &bandit.disk[0].ridge;
        let rows = [0, 1].map(|level| bandit.disk[0].slots.features(view, 0, level));
        let difference: Vec<f64> = rows[1].iter().zip(&rows[0]).map(|(a, b)| a - b).collect();
        let deviation = ridge.covariance(&[&difference])[(0, 0)].sqrt();
        let z = ridge.mean(&difference) / deviation;
        let wanted = 0.5 * libm::erfc(-z / std::f64::consts::SQRT_2);
        (bandit.probabilities(view, 0), wanted)
    });
    assert!((0.05..0.95).contains(&wanted), "{wanted}");
    assert_eq!(found[2], 0.0);
    assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    // Of 512 draws the standard error is at most 0.022.
    assert!((found[1] - wanted).abs() < 0.07, "{found:?}, not {wanted}");
}

#[test]
fn the_propensity_is_the_frequency_with_which_a_level_is_drawn() {
    let spec = spec();
    let mut bandit = bandit(Algorithm::Thompson(1.0));
    let mut rng = Rng::seed_from_u64(9);
    share_gained(&mut bandit, 30, &mut rng);
    let seen = Seen {
        disk: [0.1, 0.3],
        mask: [MaskReason::Allowed; 3],
    };
    let mut drawn = [0.0; 3];
    let mut propensities = [0.0; 3];
    for _ in 0..4000 {
        let choice = seen.with(&spec, |view| bandit.choose(&spec, view, &mut rng).unwrap());
        let level = usize::from(choice.levels[0]);
        drawn[level] += 1.0 / 4000.0;
        propensities[level] = choice.propensities[0];
    }
    for (drawn, propensity) in drawn.iter().zip(propensities) {
        assert!((drawn - propensity).abs() < 0.035, "{drawn} {propensity}");
    }
}

#[test]
fn a_bandit_that_goes_on_from_what_was_written_down_is_the_same() {
    let mut first = bandit(Algorithm::Thompson(1.0));
    share_gained(&mut first, 50, &mut Rng::seed_from_u64(4));
    let text = serde_json::to_string(&first.learned()).unwrap();
    let learned: Learned = serde_json::from_str(&text).unwrap();
    let mut second = Bandit::resume(&spec(), first.config, learned).unwrap();
    assert_eq!(second.rewards(), 50);
    let [a, b] = [&mut first, &mut second]
        .map(|bandit| share_gained(bandit, 200, &mut Rng::seed_from_u64(5)));
    assert_eq!(a, b);
    assert_eq!(first.learned(), second.learned());
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let config = BanditConfig::new(Algorithm::LinUcb(1.0));
    let mut learned = Bandit::new(&spec(), config).unwrap().learned();
    let other = Bandit::resume(&kvm_host_spec(&[]), config, learned.clone()).unwrap_err();
    assert!(other.to_string().contains("its spec is"), "{other}");
    learned.heads[0].moment[0] = f64::NAN;
    let broken = Bandit::resume(&spec(), config, learned).unwrap_err();
    assert!(broken.to_string().contains("head 0"), "{broken}");
    let wrong = BanditConfig {
        memory: 0.5,
        ..config
    };
    let error = Bandit::new(&spec(), wrong).unwrap_err().to_string();
    assert_eq!(error, "memory = 0.5: it must be in [0.9, 1]");
}

#[test]
fn a_reward_that_is_no_number_and_a_head_without_a_choice_teach_nothing() {
    let spec = spec();
    let mut bandit = bandit(Algorithm::LinUcb(1.0));
    let untouched = bandit.learned();
    let seen = |mask| Seen {
        disk: [0.5; 2],
        mask,
    };
    let open = seen([MaskReason::Allowed; 3]);
    open.with(&spec, |view| bandit.learn(view, &[1], f64::NAN));
    assert_eq!(bandit.learned(), untouched);
    let closed = seen([
        MaskReason::Allowed,
        MaskReason::JobRunning,
        MaskReason::JobRunning,
    ]);
    closed.with(&spec, |view| bandit.learn(view, &[0], -1.0));
    assert_eq!(bandit.learned().heads, untouched.heads);
}

/// A bandit that is taught from outside.
struct Told<'a>(&'a Mutex<Bandit>);

impl Policy for Told<'_> {
    fn name(&self) -> &'static str {
        "told"
    }
    fn choose(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        self.0.lock().unwrap().choose(spec, view, rng)
    }
}

/// Host mean reward over the last 100 of 400 steps; whoever `learns` is told what came of each turn.
fn on_host(
    scenario: &str,
    policy: &mut dyn Policy,
    mut learns: impl FnMut(&TurnView<'_>, &[Level], f64),
) -> f64 {
    let mut scenario = presets::by_name(scenario).unwrap();
    scenario.steps = 400;
    let mut host = SimHost::fixed(scenario).unwrap();
    let spec = host.spec().clone();
    let mut rng = Rng::seed_from_u64(3);
    let mut seen = host.reset(Some(3), &Default::default()).unwrap();
    let mut late = vec![];
    for step in 0..400 {
        let decision = decide(policy, &spec, &seen, &mut rng).unwrap();
        let done = host.step(&decision.action).unwrap();
        let mut turns = JointDecision::new(&spec, &seen, decision.order.clone()).unwrap();
        for made in &decision.choices {
            if let (Turn::Disk(disk), Some(view)) = (made.turn, turns.view()) {
                let reward = f64::from(done.rewards.total[disk]);
                learns(&view, &made.choice.levels, reward);
            }
            turns.commit(&made.choice.levels).unwrap();
        }
        if step >= 300 {
            late.extend(done.rewards.host_mean().map(f64::from));
        }
        seen = done.observation;
    }
    late.iter().sum::<f64>() / late.len() as f64
}

#[test]
fn on_a_simulated_host_a_bandit_learns_what_the_default_does_not_know() {
    for scenario in ["capped_device", "poor_binding"] {
        let keep = on_host(scenario, &mut KeepDefault, |_, _, _| {});
        let random = on_host(scenario, &mut RandomPolicy, |_, _, _| {});
        for algorithm in [Algorithm::LinUcb(1.0), Algorithm::Thompson(1.0)] {
            let spec = SimHost::fixed(presets::by_name(scenario).unwrap()).unwrap();
            let config = BanditConfig::new(algorithm);
            let learner = Mutex::new(Bandit::new(spec.spec(), config).unwrap());
            let learned = on_host(scenario, &mut Told(&learner), |view, levels, reward| {
                learner.lock().unwrap().learn(view, levels, reward);
            });
            println!("{scenario} {algorithm:?}: {learned:.4}, keep {keep:.4}, random {random:.4}");
            assert!(learned > keep + 0.02, "{scenario}: {learned:.4}, {keep:.4}");
            assert!(
                learned > random + 0.02,
                "{scenario}: {learned:.4}, {random:.4}"
            );
        }
    }
}
