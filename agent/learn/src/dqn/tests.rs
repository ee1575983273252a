use std::sync::Arc;

use blkpilot_env::cartpole::CartPole;
use blkpilot_env::features::kvm_host_spec;
use blkpilot_env::sim::{Generator, SimHost};
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{Autoreset, JointAction, Observation, ResetOptions, Step};
use tch::no_grad;

use super::replay::{Drawn, Transition};
use super::*;
use crate::seen::SeenTurn;

const SMALL: Architecture = Architecture {
    kind: blkpilot_models::architecture::Kind::PointerV1,
    hidden: 3,
    channel_hidden: 2,
};

fn config() -> DqnConfig {
    DqnConfig {
        env_steps: 400,
        train_frequency: 8,
        gradient_steps: 2,
        learning_starts: 24,
        batch: 16,
        capacity: 200,
        prioritised: Some(Prioritised {
            alpha: 0.6,
            beta: 0.4,
        }),
        gamma: 0.9,
        n_steps: 3,
        bootstrap: Bootstrap::Double,
        follow: Follow::Copy { every: 16 },
        exploration: Exploration {
            from: 1.0,
            to: 0.1,
            fraction: 0.5,
        },
        learning_rate: Schedule::Constant(1e-3),
        max_grad_norm: 10.0,
    }
}

type Hosts = Collector<AutoresetEnv<SimHost>>;

fn hosts(count: u64) -> Hosts {
    let generator = Generator {
        disks: (1, 4),
        steps: 5,
        ..Generator::default()
    };
    let host = || SimHost::generated(generator.clone()).unwrap();
    let envs = (0..count).map(|seed| (AutoresetEnv::new(host(), Autoreset::SameStep), seed));
    Collector::new(envs.collect(), Rng::seed_from_u64(1)).unwrap()
}

fn learner(hosts: &Hosts, architecture: Architecture, config: DqnConfig) -> Dqn {
    Dqn::new(hosts.spec(), hosts.len(), architecture, config, 7).unwrap()
}

/// A network that says the same whatever it sees: V and the scores of CartPole's two levels.
fn constant(value: f32, scores: [f32; 2]) -> Network {
    let spec = CartPole::default_spec();
    let drawn = Network::new(&spec, SMALL, &mut Rng::seed_from_u64(0)).unwrap();
    let mut tensors = drawn.tensors().unwrap();
    for (name, tensor) in &mut tensors {
        tensor.data.fill(0.0);
        match name.as_str() {
            "critic.value.bias" => tensor.data.fill(value),
            "actor.head.push.bias" => tensor.data.copy_from_slice(&scores),
            _ => {}
        }
    }
    Network::from_tensors(&spec, SMALL, &tensors, Kind::Float).unwrap()
}

fn cart(number: f32, allowed: [bool; 2]) -> Arc<SeenTurn> {
    let spec = CartPole::default_spec();
    Arc::new(SeenTurn::from_parts(&spec, 0, &[number; 4], &allowed, &[0]).unwrap())
}

/// Four transitions: one that goes on, one that terminated, one cut after two steps, and one into a turn of which the
/// second level is masked.
fn four() -> Lessons {
    let mut replay = Replay::new(4, None);
    let both = [true; 2];
    let next = |allowed| Some(cart(9.0, allowed));
    let of = |level, reward, discount, next| Transition {
        turn: cart(1.0, both),
        levels: [level][..].into(),
        reward,
        discount,
        next,
    };
    replay.push(of(0, 0.5, 0.9, next(both)));
    replay.push(of(1, 1.0, 0.9, None));
    replay.push(of(1, 2.0, 0.81, next(both)));
    replay.push(of(0, 0.5, 0.9, next([true, false])));
    let drawn = Drawn {
        places: vec![0, 1, 2, 3],
        weights: vec![1.0, 0.5, 1.0, 0.25],
    };
    let spec = CartPole::default_spec();
    let plain = PerTable::build(&spec, |_, features| Normaliser::identity(features.len()));
    Lessons::of(&spec, &plain, &replay, &drawn).unwrap()
}

fn near(found: &Tensor, wanted: &[f64]) {
    let found = Vec::<f64>::try_from(found.to_kind(Kind::Double)).unwrap();
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() < 1e-5, "{found} is not {wanted}");
    }
}

/// The target network's Qs are 7 and 3 where both levels are allowed, and its V alone, 5, where there is no choice. The
/// learning network prefers the second level.
#[test]
fn targets_are_those_worked_out_by_hand() {
    let (network, target) = (constant(1.0, [0.0, 2.0]), constant(5.0, [4.0, 0.0]));
    let lessons = four();
    let of = |bootstrap| targets(&network, &target, &lessons, bootstrap).unwrap();
    let alone = 0.5 + 0.9 * 5.0;
    near(&of(Bootstrap::Max), &[6.8, 1.0, 2.0 + 0.81 * 7.0, alone]);
    near(&of(Bootstrap::Double), &[3.2, 1.0, 2.0 + 0.81 * 3.0, alone]);
}

/// Q is 0 and 2. Errors −3.2, 1, −2.43 and −5: Huber losses 2.7, 0.5, 1.93 and 4.5, of which the second counts half and
/// the last a quarter.
#[test]
fn the_loss_is_that_worked_out_by_hand() {
    let (network, lessons) = (constant(1.0, [0.0, 2.0]), four());
    let targets = Tensor::from_slice(&[3.2_f32, 1.0, 4.43, 5.0]);
    let found = loss(&network, &lessons, &targets).unwrap();
    near(&found.q, &[0.0, 2.0, 2.0, 0.0]);
    near(&found.errors, &[-3.2, 1.0, -2.43, -5.0]);
    near(&found.total.view([1]), &[(2.7 + 0.25 + 1.93 + 1.125) / 4.0]);
}

impl Lessons {
    fn to_double(&self) -> Self {
        let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        Self {
            batch: self.batch.to_kind(Kind::Double).unwrap(),
            next: self.next.to_kind(Kind::Double).unwrap(),
            levels: self.levels.shallow_clone(),
            rewards: double(&self.rewards),
            discounts: double(&self.discounts),
            weights: double(&self.weights),
        }
    }
}

/// Central differences of the whole loss in f64, on hosts of several sizes, with targets moved so that both parts of Huber's
/// loss are there.
#[test]
fn the_gradient_of_the_loss_equals_its_differences() {
    let mut hosts = hosts(4);
    let spec = hosts.spec().clone();
    let mut dqn = learner(&hosts, SMALL, config());
    for _ in 0..12 {
        dqn.round(&mut hosts).unwrap();
    }
    let drawn = dqn.memory.replay.draw(64, 0.5, &mut Rng::seed_from_u64(2));
    let lessons = Lessons::of(&spec, &dqn.normalisers, &dqn.memory.replay, &drawn).unwrap();
    let lessons = lessons.to_double();
    let double = |network: &Network| {
        let tensors = network.tensors().unwrap();
        Network::from_tensors(&spec, SMALL, &tensors, Kind::Double).unwrap()
    };
    let (network, target) = (double(&dqn.network), double(&dqn.target));
    let follows = targets(&network, &target, &lessons, Bootstrap::Double).unwrap();
    let spread = Tensor::linspace(-3.0, 3.0, 64, (Kind::Double, tch::Device::Cpu));
    let wanted = loss(&network, &lessons, &follows).unwrap().q + spread;
    let total = || loss(&network, &lessons, &wanted).unwrap().total;
    let errors = loss(&network, &lessons, &wanted).unwrap().errors.abs();
    let beyond = errors.gt(1.0).sum(Kind::Int64).int64_value(&[]);
    assert!((8..56).contains(&beyond), "{beyond}");
    let parameters: Vec<&Tensor> = network.parameters().values().collect();
    let gradients = Tensor::run_backward(&[total()], &parameters, false, false);
    const STEP: f64 = 1e-6;
    let mut checked = 0;
    for (name, gradient) in network.parameters().keys().zip(&gradients) {
        let flat = no_grad(|| network.parameters()[name].detach().view([-1]));
        let gradient = gradient.view([-1]);
        for at in [0, flat.size()[0] / 2, flat.size()[0] - 1] {
            let nudge = |by: f64| {
                let _ = flat.get(at).g_add_scalar_(by);
                no_grad(|| total().double_value(&[]))
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
    }
    assert!(checked > 30, "only {checked} differences were not 0");
}

#[test]
fn the_same_seed_gives_the_same_weights_bit_for_bit() {
    let train = || {
        let mut hosts = hosts(2);
        let mut dqn = learner(&hosts, Architecture::default(), config());
        for _ in 0..10 {
            dqn.round(&mut hosts).unwrap();
        }
        (dqn.network.tensors().unwrap(), dqn.memory())
    };
    assert_eq!(train(), train());
}

/// Saved while an episode is under way and host-steps wait for what follows.
#[test]
fn a_learner_goes_on_from_its_checkpoint_bit_for_bit() {
    for follow in [Follow::Copy { every: 24 }, Follow::Polyak { tau: 0.1 }] {
        let config = DqnConfig { follow, ..config() };
        let mut hosts = hosts(2);
        let mut dqn = learner(&hosts, SMALL, config.clone());
        for _ in 0..9 {
            dqn.round(&mut hosts).unwrap();
        }
        assert!(
            dqn.memory
                .waiting
                .iter()
                .any(|waiting| !waiting.steps.is_empty())
        );
        let checkpoint = dqn.checkpoint(serde_json::Value::Null).unwrap();
        checkpoint.verify().unwrap();
        let bytes = dqn.memory();
        let text = serde_json::to_string(&checkpoint.manifest).unwrap();
        let checkpoint = Checkpoint {
            manifest: serde_json::from_str(&text).unwrap(),
            ..checkpoint
        };
        let mut again = Dqn::resume(&checkpoint, Some(&bytes), 2, config).unwrap();
        assert_eq!(again.memory(), bytes);
        for _ in 0..9 {
            // The same transitions for both: what is compared is what is learnt from them.
            dqn.bout().unwrap();
            again.bout().unwrap();
            assert_eq!(
                dqn.network.tensors().unwrap(),
                again.network.tensors().unwrap()
            );
            assert_eq!(
                dqn.target.tensors().unwrap(),
                again.target.tensors().unwrap()
            );
        }
    }
}

#[test]
fn a_checkpoint_of_another_learner_is_refused() {
    let mut hosts = hosts(1);
    let mut dqn = learner(&hosts, SMALL, config());
    dqn.round(&mut hosts).unwrap();
    let mut checkpoint = dqn.checkpoint(serde_json::Value::Null).unwrap();
    let resume = |checkpoint: &Checkpoint| {
        let error = Dqn::resume(checkpoint, None, 1, config()).unwrap_err();
        error.to_string()
    };
    let target = "optimiser.target.critic.value.bias";
    let kept = checkpoint.tensors.remove(target).unwrap();
    assert!(resume(&checkpoint).contains(target));
    checkpoint.tensors.insert(target.to_owned(), kept);
    assert!(Dqn::resume(&checkpoint, None, 1, config()).is_ok());
    checkpoint.manifest.extra.clear();
    assert!(resume(&checkpoint).contains("extra.dqn"));
}

#[test]
fn the_target_follows_by_copies_or_step_by_step() {
    let gap = |dqn: &Dqn| {
        let gap = |name: &String| {
            let difference = &dqn.network.parameters()[name] - &dqn.target.parameters()[name];
            no_grad(|| difference.abs().max().double_value(&[]))
        };
        let names = dqn.network.parameters().keys();
        names.map(gap).fold(0.0, f64::max)
    };
    let mut hosts = hosts(2);
    let mut dqn = learner(&hosts, SMALL, config());
    // Rounds of 8 host-steps: the first with gradient steps is the third, at 24, and begins with a copy.
    let mut gaps = vec![];
    for _ in 0..6 {
        let before = gap(&dqn);
        dqn.round(&mut hosts).unwrap();
        gaps.push((dqn.env_steps(), dqn.copied_at, gap(&dqn) > before));
    }
    let copied: Vec<(u64, u64)> = gaps.iter().map(|(steps, at, _)| (*steps, *at)).collect();
    assert_eq!(
        copied,
        [(8, 0), (16, 0), (24, 24), (32, 24), (40, 40), (48, 40)]
    );
    assert_eq!(
        gaps.iter().map(|g| g.2).collect::<Vec<_>>()[..4],
        [false, false, true, true]
    );

    let follow = Follow::Polyak { tau: 0.25 };
    let mut dqn = learner(&hosts, SMALL, DqnConfig { follow, ..config() });
    let name = "critic.value.bias";
    let value = |network: &Network| network.parameters()[name].double_value(&[0]);
    for _ in 0..3 {
        dqn.play(&mut hosts, &mut || true).unwrap();
    }
    let before = value(&dqn.target);
    dqn.learn().unwrap();
    let wanted = before + 0.25 * (value(&dqn.network) - before);
    assert!(value(&dqn.network) != before);
    assert!((value(&dqn.target) - wanted).abs() < 1e-7);
}

#[test]
fn exploration_falls_along_a_line_and_begins_where_learning_does() {
    let exploration = config().exploration;
    for (progress, wanted) in [(0.0, 1.0), (0.25, 0.55), (0.5, 0.1), (0.9, 0.1)] {
        assert!((exploration.at(progress) - wanted).abs() < 1e-12);
    }
    let at_once = Exploration {
        fraction: 0.0,
        ..exploration
    };
    assert_eq!(at_once.at(0.0), 0.1);
    let mut hosts = hosts(1);
    let mut dqn = learner(
        &hosts,
        SMALL,
        DqnConfig {
            exploration: at_once,
            ..config()
        },
    );
    let epsilons: Vec<f64> = (0..5)
        .map(|_| dqn.round(&mut hosts).unwrap().epsilon)
        .collect();
    assert_eq!(epsilons, [1.0, 1.0, 1.0, 0.1, 0.1]);
}

#[test]
fn levels_are_greedy_but_for_a_share_and_always_allowed() {
    for (epsilon, least, most) in [(0.0, 0.0, 0.0), (1.0, 0.4, 0.6), (0.5, 0.15, 0.35)] {
        let mut cart = Collector::new(
            vec![(AutoresetEnv::new(CartPole::new(1), Autoreset::SameStep), 1)],
            Rng::seed_from_u64(5),
        )
        .unwrap();
        let network = constant(0.0, [0.0, 1.0]);
        let spec = CartPole::default_spec();
        let manifest = Manifest::untrained(&spec, SMALL);
        let tensors = network.tensors().unwrap();
        let served = ActorCritic::new(&Checkpoint { manifest, tensors }).unwrap();
        let mut player = Player::new(served, epsilon);
        let mut seen = Statistics::new(&spec);
        let (mut other, mut all) = (0.0, 0.0);
        for _ in 0..400 {
            for (step, _) in cart.play_step(&mut player, &mut seen).unwrap().steps {
                all += 1.0;
                other += f64::from(u8::from(*step.levels[0] == [0]));
            }
        }
        let share = other / all;
        assert!((least..=most).contains(&share), "{share} at {epsilon}");
    }
}

/// A cart that ends by truncation after three steps.
struct Short {
    cart: CartPole,
    steps: u32,
}

impl Environment for Short {
    fn spec(&self) -> &EnvSpec {
        self.cart.spec()
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, blkpilot_env::EnvError> {
        self.steps = 0;
        self.cart.reset(seed, options)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, blkpilot_env::EnvError> {
        self.steps += 1;
        let mut step = self.cart.step(action)?;
        step.truncated = self.steps == 3;
        Ok(step)
    }
}

#[test]
fn an_episode_that_is_cut_bootstraps_from_its_last_observation() {
    let short = Short {
        cart: CartPole::new(1),
        steps: 0,
    };
    let envs = vec![(AutoresetEnv::new(short, Autoreset::SameStep), 1)];
    let mut cart = Collector::new(envs, Rng::seed_from_u64(5)).unwrap();
    let config = DqnConfig {
        n_steps: 2,
        train_frequency: 4,
        learning_starts: 100,
        ..config()
    };
    let mut dqn = Dqn::new(cart.spec(), 1, SMALL, config, 7).unwrap();
    dqn.round(&mut cart).unwrap();
    let replay = &dqn.memory.replay;
    let of = |place: usize| {
        let Transition {
            reward,
            discount,
            next,
            ..
        } = replay.get(place);
        (*reward, *discount, next.clone().unwrap())
    };
    assert_eq!(replay.len(), 3);
    let ((first, a, middle), (second, b, last), (third, c, last_too)) = (of(0), of(1), of(2));
    assert_eq!((first, second, third), (1.9, 1.9, 1.0));
    assert_eq!((a, b, c), (0.81, 0.81, 0.9));
    assert_eq!(*middle, *replay.get(2).turn);
    assert!(Arc::ptr_eq(&last, &last_too));
    // It is not the first one of the next episode.
    let begun = &dqn.memory.waiting[0].steps[0].turns[0];
    assert_ne!(last.numbers(), begun.numbers());
    assert!(begun.numbers().iter().all(|number| number.abs() <= 0.05));
}

#[test]
fn disks_on_one_io_thread_are_credited_with_the_mean_of_those_that_counted() {
    let obs = Observation {
        disk_group: vec![Some(0), None, Some(0), Some(0), Some(1)],
        ..Observation::default()
    };
    let rewards = blkpilot_env::Rewards {
        total: ndarray::arr1(&[-1.0, -2.0, -4.0, -100.0, -7.0]),
        counted: vec![true, true, true, false, false],
        ..blkpilot_env::Rewards::default()
    };
    let credited: Vec<f32> = (0..5)
        .map(|disk| play::credited(disk, &obs, &rewards))
        .collect();
    assert_eq!(credited, [-2.5, -2.0, -2.5, -2.5, 0.0]);
}

/// Rows that were seen before and after the statistics moved are normalised alike when they are drawn.
#[test]
fn what_is_remembered_is_normalised_by_what_is_known_now() {
    let lessons = |std: f32| {
        let mut replay = Replay::new(1, None);
        replay.push(Transition {
            turn: cart(4.0, [true; 2]),
            levels: [0][..].into(),
            reward: 0.0,
            discount: 0.9,
            next: Some(cart(-2.0, [true; 2])),
        });
        let drawn = replay.draw(1, 0.0, &mut Rng::seed_from_u64(1));
        let spec = CartPole::default_spec();
        let mut normalisers = PerTable::build(&spec, |_, f| Normaliser::identity(f.len()));
        normalisers.disk = Normaliser {
            mean: vec![1.0; 4],
            std: vec![std; 4],
        };
        Lessons::of(&spec, &normalisers, &replay, &drawn).unwrap()
    };
    for std in [1.0, 3.0] {
        let lessons = lessons(std);
        near(&lessons.batch.own.view([-1]), &[3.0 / f64::from(std); 4]);
        near(&lessons.next.own.view([-1]), &[-3.0 / f64::from(std); 4]);
    }
}

#[test]
fn a_loss_that_is_no_number_is_said() {
    let mut hosts = hosts(1);
    let mut dqn = learner(&hosts, SMALL, config());
    for _ in 0..4 {
        dqn.play(&mut hosts, &mut || true).unwrap();
    }
    let mut broken = dqn.memory.replay.get(0).clone();
    broken.reward = f32::INFINITY;
    for _ in 0..dqn.memory.replay.len() {
        dqn.memory.replay.push(broken.clone());
    }
    let error = dqn.learn().unwrap_err().to_string();
    assert!(error.contains("the loss is inf"), "{error}");
}

#[test]
fn devices_that_decide_are_refused_with_the_way_out() {
    let spec = kvm_host_spec(&["none".to_owned(), "bfq".to_owned()]);
    let error = Dqn::new(&spec, 1, SMALL, config(), 1)
        .unwrap_err()
        .to_string();
    for part in ["head scheduler", "schedulers = false", "PPO"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_memory_stays_within_its_capacity_over_many_rounds() {
    let mut hosts = hosts(4);
    let config = DqnConfig {
        capacity: 50,
        learning_starts: u64::MAX,
        ..config()
    };
    let mut dqn = learner(&hosts, SMALL, config);
    let mut sizes = vec![];
    for _ in 0..60 {
        let report = dqn.round(&mut hosts).unwrap();
        assert!(report.remembered <= 50 && report.learnt.is_none());
        sizes.push(dqn.memory().len());
    }
    let (half, most) = (sizes[30], *sizes[30..].iter().max().unwrap());
    assert!(most < half + half / 2, "{half}, then {most}");
}
