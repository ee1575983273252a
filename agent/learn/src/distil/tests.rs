use blkpilot_env::Autoreset;
use blkpilot_env::Observation;
use blkpilot_env::cartpole::CartPole;
use blkpilot_env::features::kvm_host_spec;
use blkpilot_env::recorded::Recorded;
use blkpilot_env::sim::{Generator, Scenario, presets};
use blkpilot_env::vector::AutoresetEnv;
use tch::{Device, Kind};

use super::*;
use crate::turns::Batch;

const SMALL: Architecture = Architecture {
    kind: blkpilot_models::architecture::Kind::PointerV1,
    hidden: 16,
    channel_hidden: 8,
};

fn config() -> DistilConfig {
    DistilConfig {
        steps: 4,
        epochs: 4,
        minibatch: 32,
        replay_capacity: 100,
        temperature: 0.02,
        priced_per_step: 1.4,
        threads: 1,
        learning_rate: Schedule::Constant(5e-3),
        max_grad_norm: 10.0,
    }
}

fn under_way(hosts: Vec<SimHost>) -> Collector<Resumable<SimHost>> {
    let wrap = |host| AutoresetEnv::new(Recorded::new(host), Autoreset::SameStep);
    let seeded = hosts.into_iter().map(wrap).zip(0..);
    Collector::new(seeded.collect(), Rng::seed_from_u64(1)).unwrap()
}

/// Episodes end within an update of [`config`], and between two.
fn drawn(count: usize) -> Collector<Resumable<SimHost>> {
    let generator = Generator {
        disks: (1, 3),
        channels: (1, 3),
        steps: 7,
        known_work: 0.5,
        ..Generator::default()
    };
    under_way(
        (0..count)
            .map(|_| SimHost::generated(generator.clone()).unwrap())
            .collect(),
    )
}

fn fixed(scenario: &Scenario, count: usize) -> Collector<Resumable<SimHost>> {
    under_way(
        (0..count)
            .map(|_| SimHost::fixed(scenario.clone()).unwrap())
            .collect(),
    )
}

fn learner(hosts: &Collector<Resumable<SimHost>>, config: DistilConfig) -> Distil {
    Distil::new(hosts.spec(), SMALL, config, 7).unwrap()
}

fn row(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).view([1, -1])
}

/// In the first turn, scores 0 and ln 3 with a third level masked: π = 1/4 and 3/4. Targets 1 and −1 are costs 0 and 2:
/// 3/2 is expected. The scores are ∓ln 3 / 2 about their mean: errors ±(1 + ln 3 / 2). The second head is forced. In the
/// second turn the scores are as far apart as the targets, 2 and −2: no error, and the cost is 4 times the share that
/// the softmax gives to what is worse by 4.
#[test]
fn the_loss_is_the_expected_cost_and_a_little_of_the_squared_error() {
    let two = |a: Tensor, b: Tensor| Tensor::cat(&[a, b], 0);
    let mask = |a: &[bool], b: &[bool]| {
        two(
            Tensor::from_slice(a).view([1, -1]),
            Tensor::from_slice(b).view([1, -1]),
        )
    };
    let batch = Batch {
        own: Tensor::zeros([2, 0], (Kind::Double, Device::Cpu)),
        lanes: None,
        allowed: vec![
            mask(&[true, true, false], &[true, false, true]),
            mask(&[true, false], &[true, false]),
        ],
        free: two(row(&[1.0, 0.0]), row(&[1.0, 0.0])),
    };
    let apart = 3.0_f64.ln();
    let scores = [
        two(row(&[0.0, apart, 9.0]), row(&[4.0, 70.0, 0.0])),
        two(row(&[3.0, 8.0]), row(&[3.0, 8.0])),
    ];
    let targets = [
        two(row(&[1.0, -1.0, 0.0]), row(&[2.0, 0.0, -2.0])),
        two(row(&[0.0, 0.0]), row(&[0.0, 0.0])),
    ];
    let loss = loss(&scores, &batch, &targets).unwrap().double_value(&[]);
    let first = 1.5 + 0.05 * (1.0 + apart / 2.0).powi(2);
    let second = 4.0 / (1.0 + 4.0_f64.exp());
    let expected = f64::midpoint(first, second);
    assert!((loss - expected).abs() < 1e-12, "{loss} {expected}");
}

#[test]
fn what_the_best_scored_levels_cost_falls() {
    let mut hosts = fixed(&presets::poor_binding(), 4);
    let own = DistilConfig {
        priced_per_step: 100.0,
        ..config()
    };
    let mut learner = learner(&hosts, own);
    let mut update = || learner.update(&mut hosts, 0.0).unwrap().0;
    let first = update();
    let last = (0..12).map(|_| update()).last().unwrap();
    assert!(first.turns > 0 && first.greedy_cost > 0.02, "{first:?}");
    assert!(
        last.greedy_cost < 0.2 * first.greedy_cost,
        "{first:?} {last:?}"
    );
    assert!(last.loss < first.loss && last.cost < first.cost);
}

#[test]
fn how_many_threads_play_and_price_changes_nothing() {
    let trained = |threads: usize| {
        let mut hosts = drawn(5);
        let own = DistilConfig {
            threads,
            ..config()
        };
        let mut learner = learner(&hosts, own);
        let reports: Vec<DistilReport> = (0..3)
            .map(|_| learner.update(&mut hosts, 0.0).unwrap().0)
            .collect();
        (learner.network.tensors().unwrap(), reports, hosts.state())
    };
    let one = trained(1);
    assert_eq!(one, trained(3));
    assert_eq!(one, trained(64));
}

#[test]
fn a_learner_that_was_saved_goes_on_as_if_it_had_not_been() {
    let mut hosts = drawn(3);
    let mut straight = learner(&hosts, config());
    let mut episodes = vec![];
    let mut update = |learner: &mut Distil, hosts: &mut Collector<_>| {
        let (report, ended) = learner.update(hosts, 0.3).unwrap();
        episodes.extend(ended);
        report
    };
    update(&mut straight, &mut hosts);
    let saved = straight.checkpoint(serde_json::Value::Null).unwrap();
    let memory = straight.memory();
    let state = hosts.state();
    let reports = [0, 1].map(|_| update(&mut straight, &mut hosts));

    let (saved, spec) = (saved.tensors.clone(), saved);
    let checkpoint = Checkpoint {
        tensors: saved,
        ..spec
    };
    let mut resumed = Distil::resume(&checkpoint, Some(&memory), config()).unwrap();
    let generated = || drawn(3).into_environments().into_iter();
    let made = generated().map(|env| env.into_inner().into_inner());
    let mut hosts = Collector::resume(made.collect(), state).unwrap();
    assert_eq!(reports, [0, 1].map(|_| update(&mut resumed, &mut hosts)));
    let end = |learner: &Distil| learner.checkpoint(serde_json::Value::Null).unwrap();
    assert_eq!(end(&straight), end(&resumed));
    assert_eq!(straight.memory(), resumed.memory());
    assert_eq!((resumed.env_steps(), resumed.updates()), (36, 3));
    assert!(!episodes.is_empty());
}

#[test]
fn a_learner_that_begins_from_a_policy_keeps_how_it_sees_and_widens_what_it_has_seen() {
    let mut hosts = drawn(3);
    let mut taught = learner(&hosts, config());
    taught.update(&mut hosts, 0.0).unwrap();
    let policy = taught.checkpoint(serde_json::Value::Null).unwrap();
    let begin = || Distil::start_from(&policy, hosts.spec(), config(), 8).unwrap();
    let unchanged = begin().checkpoint(serde_json::Value::Null).unwrap();
    for (name, tensor) in taught.network.tensors().unwrap() {
        assert_eq!(unchanged.tensors[&name], tensor, "{name}");
    }
    let mut further = begin();
    let mut others = fixed(&presets::capped_device(), 2);
    others.spec = policy.manifest.spec.clone();
    further.update(&mut others, 0.0).unwrap();
    let after = further.checkpoint(serde_json::Value::Null).unwrap();
    assert_eq!(after.manifest.normalisers, policy.manifest.normalisers);
    let (was, is) = (&policy.manifest.seen.disk, &after.manifest.seen.disk);
    let widened = |(was, is): (&f32, &f32)| is >= was;
    assert!(was.max.iter().zip(&is.max).all(widened));
    assert_ne!(was, is);
    let resumed = Distil::resume(&after, Some(&further.memory()), config()).unwrap();
    assert_eq!(resumed.checkpoint(serde_json::Value::Null).unwrap(), after);

    let cart = Checkpoint::untrained(&CartPole::default_spec(), SMALL, &mut Rng::seed_from_u64(1));
    let error = Distil::start_from(&cart, hosts.spec(), config(), 8).unwrap_err();
    assert!(error.to_string().contains("spec"), "{error}");
}

#[test]
fn what_cannot_be_planned_for_is_refused_with_the_way_out() {
    struct Cart(AutoresetEnv<CartPole>);
    impl Environment for Cart {
        fn spec(&self) -> &EnvSpec {
            self.0.spec()
        }
        fn reset(
            &mut self,
            seed: Option<u64>,
            options: &blkpilot_env::ResetOptions,
        ) -> Result<Observation, blkpilot_env::EnvError> {
            self.0.reset(seed, options)
        }
        fn step(
            &mut self,
            action: &blkpilot_env::JointAction,
        ) -> Result<blkpilot_env::Step, blkpilot_env::EnvError> {
            self.0.step(action)
        }
    }
    impl Planned for Cart {
        fn host(&self) -> Option<&SimHost> {
            None
        }
    }
    let cart = Cart(AutoresetEnv::new(CartPole::new(0), Autoreset::SameStep));
    let mut carts = Collector::new(vec![(cart, 1)], Rng::seed_from_u64(1)).unwrap();
    let mut learner = Distil::new(carts.spec(), SMALL, config(), 7).unwrap();
    let error = learner.update(&mut carts, 0.0).unwrap_err().to_string();
    assert!(
        error.contains("no simulated host") && error.contains("PPO"),
        "{error}"
    );

    let with_schedulers = kvm_host_spec(&["none".to_owned(), "mq-deadline".to_owned()]);
    let error = Distil::new(&with_schedulers, SMALL, config(), 7)
        .unwrap_err()
        .to_string();
    assert!(error.contains("schedulers = false"), "{error}");

    let other = Checkpoint::untrained(carts.spec(), SMALL, &mut Rng::seed_from_u64(1));
    let error = Distil::resume(&other, None, config())
        .unwrap_err()
        .to_string();
    assert!(error.contains("extra.distil"), "{error}");
}
