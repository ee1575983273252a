use blkpilot_env::Autoreset;
use blkpilot_env::cartpole::CartPole;
use blkpilot_env::sim::{Generator, SimHost};
use blkpilot_env::vector::AutoresetEnv;
use rand::RngExt as _;
use tch::{Kind, no_grad};

use super::*;
use crate::loss::{Table, policy_loss};

const WEIGHTS: LossWeights = LossWeights {
    clip: 0.2,
    value_clip: Some(0.3),
    value: 0.5,
    entropy: 0.03,
};

fn config() -> PpoConfig {
    PpoConfig {
        steps: 8,
        epochs: 2,
        minibatch: 16,
        discount: Discount {
            gamma: 0.9,
            lambda: 0.9,
        },
        normalise_reward: false,
        learning_rate: Schedule::LinearToZero(1e-3),
        clip: Schedule::Constant(0.2),
        value_clip: None,
        value_coefficient: 0.5,
        entropy_coefficient: Schedule::Constant(0.01),
        max_grad_norm: 0.5,
        target_kl: None,
    }
}

fn hosts(count: u64) -> Collector<AutoresetEnv<SimHost>> {
    let generator = Generator {
        disks: (1, 4),
        steps: 5,
        schedulers: true,
        ..Generator::default()
    };
    let host = || SimHost::generated(generator.clone()).unwrap();
    let envs = (0..count).map(|seed| (AutoresetEnv::new(host(), Autoreset::SameStep), seed));
    Collector::new(envs.collect(), Rng::seed_from_u64(1)).unwrap()
}

/// All of the turns, in their order.
fn all<'a>(lessons: &'a Lessons<'_>) -> Minibatch<'a> {
    let rows: Vec<i64> = (0..lessons.len() as i64).collect();
    lessons.select(&rows).unwrap()
}

/// Central differences of the whole loss in f64, over a network of three and two units, on hosts
/// of several sizes, with old log-probabilities moved so that some turns are clipped.
#[test]
fn the_gradient_of_the_loss_equals_its_differences() {
    let mut collector = hosts(3);
    let spec = collector.spec().clone();
    let architecture = Architecture {
        hidden: 3,
        channel_hidden: 2,
        ..Architecture::default()
    };
    let ppo = Ppo::new(&spec, architecture, config(), 7).unwrap();
    let rollout = ppo.play(&mut collector).unwrap();
    let estimates = rollout.estimate(&ppo.network, ppo.config.discount).unwrap();
    let mut rng = Rng::seed_from_u64(8);
    let mut disks = Lessons::of_disks(&rollout.disks, &estimates).unwrap();
    let mut devices = Lessons::of_devices(&rollout.devices, &estimates).unwrap();
    for lessons in [&mut disks, &mut devices] {
        lessons.batch = lessons.batch.to_kind(Kind::Double).unwrap();
        let log_probs = lessons.log_probs.iter_mut();
        log_probs.for_each(|log_prob| *log_prob += rng.random_range(-0.4..0.4));
    }
    let (disks, devices) = (all(&disks), all(&devices));
    let tensors = ppo.network.tensors().unwrap();
    let network = Network::from_tensors(&spec, architecture, &tensors, Kind::Double).unwrap();

    let total = || loss(&network, &disks, Some(&devices), &WEIGHTS).unwrap();
    total();
    let gradient = network.gradient().copy();
    let (flat, mut start) = (no_grad(|| network.flat()[ALL].detach()), 0);
    const STEP: f64 = 1e-5;
    let mut checked = 0;
    for (name, parameter) in network.parameters() {
        let size = parameter.numel() as i64;
        for at in [start, start + size / 2, start + size - 1] {
            let nudge = |by: f64| {
                let _ = flat.get(at).g_add_scalar_(by);
                total().loss
            };
            let (up, down) = (nudge(STEP), nudge(-2.0 * STEP));
            nudge(STEP);
            let (got, want) = (gradient.double_value(&[at]), (up - down) / (2.0 * STEP));
            assert!(
                (got - want).abs() < 1e-7 + 1e-5 * want.abs(),
                "{name}[{at}]: {got} is not {want}"
            );
            checked += usize::from(want.abs() > 1e-9);
        }
        start += size;
    }
    assert!(checked > 50, "only {checked} differences were not 0");
}

#[test]
fn the_same_seed_gives_the_same_weights_bit_for_bit() {
    let train = || {
        let mut collector = hosts(2);
        let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config(), 3).unwrap();
        let rollout = ppo.play(&mut collector).unwrap();
        ppo.warm_up(&rollout);
        for _ in 0..3 {
            let rollout = ppo.play(&mut collector).unwrap();
            ppo.update(&rollout, 0.5).unwrap();
        }
        ppo.network.tensors().unwrap()
    };
    assert_eq!(train(), train());
}

#[test]
fn an_update_raises_what_paid_and_reports_what_it_did() {
    let mut collector = hosts(4);
    let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config(), 3).unwrap();
    let rollout = ppo.play(&mut collector).unwrap();
    ppo.warm_up(&rollout);
    let rollout = ppo.play(&mut collector).unwrap();
    let estimates = rollout.estimate(&ppo.network, ppo.config.discount).unwrap();
    let lessons = Lessons::of_disks(&rollout.disks, &estimates).unwrap();
    let report = ppo.update(&rollout, 0.25).unwrap();
    // The plain objective, under the normalisers of the rollout.
    let scores = ppo.network.scores(&lessons.batch).unwrap();
    let scores = scores.iter().map(|scores| Table::read(scores).unwrap());
    let unclipped = LossWeights {
        clip: 1e9,
        ..WEIGHTS
    };
    let after = policy_loss(scores.collect(), &all(&lessons), &unclipped).objective;
    assert!(after < -1e-3, "{after}");
    assert_eq!(report.learning_rate, 0.75e-3);
    let names: Vec<&str> = report
        .head_entropy
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["channel", "cache", "polling", "scheduler"]);
    let polling = report.head_entropy[2].1;
    assert!(
        (polling - 2.0_f64.ln()).abs() < 0.02,
        "an untrained head of two levels: {polling}"
    );
    assert!(report.approx_kl > 0.0 && report.grad_norm > 0.0 && report.minibatches > 2);
}

/// One update of one step on all turns, at this progress, by a learner and what it became.
fn one_step(config: PpoConfig, progress: f64) -> (UpdateReport, Ppo) {
    let mut collector = hosts(4);
    let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config, 3).unwrap();
    let rollout = ppo.play(&mut collector).unwrap();
    (ppo.update(&rollout, progress).unwrap(), ppo)
}

fn single() -> PpoConfig {
    PpoConfig {
        epochs: 1,
        minibatch: 1_000_000,
        learning_rate: Schedule::Constant(1e-3),
        ..config()
    }
}

#[test]
fn what_is_annealed_ends_at_nothing() {
    let annealed = Schedule::LinearToZero(2.0);
    assert_eq!(
        [-1.0, 0.0, 0.75, 1.0, 1.5].map(|at| annealed.at(at)),
        [2.0, 2.0, 0.5, 0.0, 0.0]
    );
    let rate = PpoConfig {
        learning_rate: Schedule::LinearToZero(1e-3),
        ..single()
    };
    let weights = |ppo: &Ppo| ppo.network.tensors().unwrap();
    let stopped = weights(&one_step(rate.clone(), 1.0).1);
    let moved = weights(&one_step(rate, 0.5).1);
    let start = Network::new(
        &hosts(1).spec().clone(),
        Architecture::default(),
        &mut Rng::seed_from_u64(3),
    );
    let start = start.unwrap().tensors().unwrap();
    assert_eq!(stopped, start);
    assert_ne!(moved, start);

    let bonus = |entropy_coefficient| PpoConfig {
        entropy_coefficient,
        ..single()
    };
    let (linear, none) = (Schedule::LinearToZero(100.0), Schedule::Constant(0.0));
    let norm = |schedule, progress| one_step(bonus(schedule), progress).0.grad_norm;
    assert_eq!(norm(linear, 1.0), norm(none, 1.0));
    assert_ne!(norm(linear, 0.0), norm(none, 0.0));

    let clipped = |progress| {
        let clip = Schedule::LinearToZero(0.2);
        let (epochs, minibatch) = (4, 16);
        let config = PpoConfig {
            clip,
            epochs,
            minibatch,
            ..single()
        };
        one_step(config, progress).0.clip_fraction
    };
    let (early, late) = (clipped(0.0), clipped(0.9999));
    assert!(early < 0.3 && late > 0.6, "{early} {late}");
}

/// Adam's first moment is a tenth of the first gradient that it is given.
#[test]
fn gradients_are_clipped_all_together_before_the_step() {
    let most = |max_grad_norm| PpoConfig {
        max_grad_norm,
        ..single()
    };
    let first = |ppo: &Ppo| ppo.adam.moments()[ALL].first.norm().double_value(&[]);
    let (report, free) = one_step(most(1e9), 0.0);
    assert!((first(&free) / (0.1 * report.grad_norm) - 1.0).abs() < 1e-4);
    let (same, held) = one_step(most(1e-3), 0.0);
    assert_eq!(same.grad_norm, report.grad_norm);
    assert!((first(&held) / 1e-4 - 1.0).abs() < 2e-3, "{}", first(&held));
}

/// Nothing but an update moves the scale, and what is reported of a rollout is what was paid.
#[test]
fn playing_leaves_the_scale_of_rewards_alone_and_reports_them_as_they_were() {
    let normalising = PpoConfig {
        normalise_reward: true,
        ..config()
    };
    let learner = |collector: &Collector<_>, config| {
        Ppo::new(collector.spec(), Architecture::default(), config, 3).unwrap()
    };
    let (mut one, mut other) = (hosts(4), hosts(4));
    let mut scaled = learner(&one, normalising);
    let mut plain = learner(&other, config());
    let (rollout, same) = (
        scaled.play(&mut one).unwrap(),
        plain.play(&mut other).unwrap(),
    );
    assert_eq!(scaled.reward_scale, Some(RewardScale::default()));
    assert_eq!(rollout.episodes, same.episodes);
    assert!(!rollout.episodes.is_empty());
    scaled.warm_up(&rollout);
    plain.warm_up(&same);
    let before = scaled.reward_scale.clone();
    assert_ne!(before, Some(RewardScale::default()));
    let (rollout, same) = (
        scaled.play(&mut one).unwrap(),
        plain.play(&mut other).unwrap(),
    );
    assert_eq!(scaled.reward_scale, before);
    assert_eq!(rollout.rewards(), same.rewards());
    let report = scaled.update(&rollout, 0.0).unwrap();
    assert_ne!(scaled.reward_scale, before);
    assert_ne!(
        report.value_loss,
        plain.update(&same, 0.0).unwrap().value_loss
    );
}

#[test]
fn a_checkpoint_whose_rewards_were_not_scaled_as_the_config_says_is_refused() {
    let normalising = PpoConfig {
        normalise_reward: true,
        ..config()
    };
    let spec = CartPole::default_spec();
    for (trained, resumed) in [(normalising.clone(), config()), (config(), normalising)] {
        let ppo = Ppo::new(&spec, Architecture::default(), trained, 3).unwrap();
        let checkpoint = ppo.checkpoint(serde_json::Value::Null).unwrap();
        let error = Ppo::resume(&checkpoint, resumed).unwrap_err().to_string();
        assert!(error.contains("set normalise_reward ="), "{error}");
    }
}

#[test]
fn target_kl_ends_an_update_early() {
    let mut collector = hosts(4);
    let config = PpoConfig {
        epochs: 50,
        target_kl: Some(1e-4),
        ..config()
    };
    let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config, 3).unwrap();
    let rollout = ppo.play(&mut collector).unwrap();
    let report = ppo.update(&rollout, 0.0).unwrap();
    assert!(report.minibatches < 50, "{}", report.minibatches);
}

/// Devices alone have moved, each by ln ratio = −0.4: e^−0.4 − 1 + 0.4 per turn of theirs, and all of
/// them are outside the clip range.
#[test]
fn how_far_the_policy_moved_counts_the_turns_of_devices() {
    let mut collector = hosts(4);
    let ppo = Ppo::new(collector.spec(), Architecture::default(), config(), 3).unwrap();
    let rollout = ppo.play(&mut collector).unwrap();
    let estimates = rollout.estimate(&ppo.network, ppo.config.discount).unwrap();
    let disks = Lessons::of_disks(&rollout.disks, &estimates).unwrap();
    let mut devices = Lessons::of_devices(&rollout.devices, &estimates).unwrap();
    let log_probs = devices.log_probs.iter_mut();
    log_probs.for_each(|log_prob| *log_prob += 0.4);
    let (disks, devices) = (all(&disks), all(&devices));
    let seen = loss(&ppo.network, &disks, Some(&devices), &WEIGHTS).unwrap();
    let teaching = |weights: &[bool]| weights.iter().filter(|w| **w).count() as f64;
    let moved = teaching(&estimates.device_weights);
    let share = moved / (moved + teaching(&estimates.disk_weights));
    assert!(share > 0.0 && share < 1.0, "{share}");
    let kl = share * ((-0.4_f64).exp() - 1.0 + 0.4);
    assert!((seen.approx_kl - kl).abs() < 1e-5, "{}", seen.approx_kl);
    assert!((seen.clip_fraction - share).abs() < 1e-6);
}

#[test]
fn entropy_of_a_head_is_averaged_over_the_minibatches_that_had_it() {
    let spec = SimHost::generated(Generator {
        schedulers: true,
        ..Generator::default()
    })
    .unwrap()
    .spec()
    .clone();
    let mut tally = Tally::default();
    for head_entropy in [
        vec![Some(1.0), Some(0.5), None, Some(0.25)],
        vec![Some(2.0), None, None],
        vec![Some(3.0), Some(0.7), None, Some(0.75)],
    ] {
        tally.add(&Figures {
            head_entropy,
            ..Figures::default()
        });
    }
    let report = tally.report(&spec);
    let want = [("channel", 2.0), ("cache", 0.6), ("scheduler", 0.5)];
    assert_eq!(report.head_entropy.len(), want.len());
    for ((name, got), (head, mean)) in report.head_entropy.iter().zip(want) {
        assert_eq!(name, head);
        assert!((got - mean).abs() < 1e-12, "{name}: {got}");
    }
}

#[test]
fn a_loss_that_is_not_finite_is_an_error_with_a_way_out() {
    let env = AutoresetEnv::new(CartPole::new(0), Autoreset::SameStep);
    let mut collector = Collector::new(vec![(env, 0)], Rng::seed_from_u64(1)).unwrap();
    let mut ppo = Ppo::new(collector.spec(), Architecture::default(), config(), 3).unwrap();
    let rollout = ppo.play(&mut collector).unwrap();
    let _ = no_grad(|| {
        ppo.network.parameters()["critic.value.bias"]
            .shallow_clone()
            .fill_(f64::NAN)
    });
    let error = ppo.update(&rollout, 0.0).unwrap_err();
    assert!(
        error.to_string().contains("lower the learning rate"),
        "{error}"
    );
}

/// Returns 0, 2 (variance 1) and errors ±½ (variance ¼).
#[test]
fn explained_variance_worked_by_hand() {
    let estimates = Estimates {
        values: vec![0.5, 1.5],
        returns: vec![0.0, 2.0],
        disk_advantages: vec![],
        disk_weights: vec![],
        device_advantages: vec![],
        device_weights: vec![],
    };
    assert!((explained_variance(&estimates) - 0.75).abs() < 1e-12);
}
