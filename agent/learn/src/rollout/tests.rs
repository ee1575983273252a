use std::collections::BTreeMap;

use blkpilot_env::cartpole::CartPole;
use blkpilot_env::sim::{Generator, SimHost, presets};
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{
    Autoreset, EnvError, Environment, JointAction, Masks, Observation, ResetOptions, Rewards, Rng,
    Step, Table,
};
use blkpilot_models::{Architecture, Tensor as Plain};
use ndarray::{Array1, Array2, Array3};
use rand::SeedableRng as _;
use tch::Tensor;

use super::*;
use crate::collector::{Actor, Collector, push_first_turns};

const HALF: Discount = Discount {
    gamma: 0.5,
    lambda: 0.5,
};

/// Episodes of three steps with reward 1 for each of two disks; the second is idle throughout. What it shows tells
/// steps and disks apart.
struct Timer {
    spec: EnvSpec,
    step: u32,
    terminates: bool,
}

impl Timer {
    fn new(terminates: bool) -> AutoresetEnv<Self> {
        let timer = Self {
            spec: CartPole::default_spec(),
            step: 0,
            terminates,
        };
        AutoresetEnv::new(timer, Autoreset::SameStep)
    }

    fn observe(&self) -> Observation {
        let mut disks = Table::zeros(2, 4);
        disks.values =
            Array2::from_shape_fn((2, 4), |(disk, _)| self.step as f32 + 0.3 * disk as f32);
        let action = JointAction {
            disks: Array2::zeros((2, 1)),
            devices: Array2::zeros((0, 0)),
        };
        Observation {
            disk_ids: vec!["a".to_owned(), "b".to_owned()],
            disks,
            pairs: Array3::zeros((2, 0, 0)),
            host: Table::zeros(1, 0),
            disk_group: vec![None, None],
            current: action.clone(),
            default: action,
            masks: Masks::all_allowed(&self.spec, 2, 0, 0),
            ..Observation::default()
        }
    }
}

impl Environment for Timer {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, _: Option<u64>, _: &ResetOptions) -> Result<Observation, EnvError> {
        self.step = 0;
        Ok(self.observe())
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        self.step += 1;
        let is_last = self.step == 3;
        Ok(Step {
            observation: self.observe(),
            rewards: Rewards {
                total: Array1::ones(2),
                own: Array1::ones(2),
                terms: Array2::ones((2, 1)),
                counted: vec![true, false],
            },
            executed: action.clone(),
            terminated: is_last && self.terminates,
            truncated: is_last && !self.terminates,
            final_observation: None,
        })
    }
}

/// A network that gives every turn the value 2.
fn flat(spec: &EnvSpec) -> Network {
    let architecture = Architecture::default();
    let zeros = |shape: Vec<usize>| Plain {
        data: vec![0.0; shape.iter().product()],
        shape,
    };
    let shapes = architecture.tensor_shapes(spec).into_iter();
    let mut tensors: BTreeMap<_, _> = shapes.map(|(name, shape)| (name, zeros(shape))).collect();
    tensors.insert(
        "critic.value.bias".to_owned(),
        Plain {
            shape: vec![1],
            data: vec![2.0],
        },
    );
    Network::from_tensors(spec, architecture, &tensors, Kind::Float).unwrap()
}

fn identity(spec: &EnvSpec) -> PerTable<Normaliser> {
    PerTable::build(spec, |_, features| Normaliser::identity(features.len()))
}

/// Advantages of both disks in four host-steps: one whole episode and the first step of another.
fn four_steps(terminates: bool) -> (Rollout, [Vec<f32>; 2]) {
    let spec = CartPole::default_spec();
    let (network, normalisers) = (flat(&spec), identity(&spec));
    let mut collector =
        Collector::new(vec![(Timer::new(terminates), 0)], Rng::seed_from_u64(0)).unwrap();
    let actor = Actor {
        network: &network,
        normalisers: &normalisers,
    };
    let rollout = collector.collect(actor, 4).unwrap();
    let estimates = rollout.estimate(&network, HALF).unwrap();
    let advantages = [0, 1].map(|disk| {
        let rows = rollout.tracks[0].iter().map(|step| step.disk_rows[disk]);
        rows.map(|row| estimates.returns[row] - estimates.values[row])
            .collect()
    });
    for step in &rollout.tracks[0] {
        assert!(
            estimates.disk_weights[step.disk_rows[0]] && !estimates.disk_weights[step.disk_rows[1]]
        );
    }
    (rollout, advantages)
}

/// δ = 1 + ½·2 − 2 = 0 wherever something follows, also after a truncation.
#[test]
fn truncation_and_the_end_of_the_rollout_bootstrap() {
    let (rollout, [advantages, _]) = four_steps(false);
    assert_eq!(advantages, [0.0; 4]);
    assert_eq!(
        rollout.episodes,
        [EpisodeEnd {
            episodic_return: 3.0,
            steps: 3
        }]
    );
}

/// δ₂ = 1 − 2 = −1, carried back by ¼ per step, and not into the next episode.
#[test]
fn termination_does_not_bootstrap() {
    let (_, [advantages, _]) = four_steps(true);
    assert_eq!(advantages, [-0.0625, -0.25, -1.0, 0.0]);
}

/// δ = 0 + ½·2 − 2 = −1 in each step: A₂ = −1 − ¼·0 at the cut, −1.25, −1.3125.
#[test]
fn a_disk_that_does_not_count_has_reward_zero_and_weight_zero() {
    let (_, [_, idle]) = four_steps(false);
    assert_eq!(idle, [-1.3125, -1.25, -1.0, -1.0]);
}

/// Each disk by its own: r + ½ · V(what its episode showed last) − V(s), and where only the rollout ends, V of what it
/// shows now. The first observation of the next episode is another.
#[test]
fn a_truncated_episode_bootstraps_from_its_own_last_observation() {
    let spec = CartPole::default_spec();
    let network = Network::new(&spec, Architecture::default(), &mut Rng::seed_from_u64(5)).unwrap();
    let normalisers = identity(&spec);
    let mut collector =
        Collector::new(vec![(Timer::new(false), 0)], Rng::seed_from_u64(0)).unwrap();
    let actor = Actor {
        network: &network,
        normalisers: &normalisers,
    };
    let rollout = collector.collect(actor, 4).unwrap();
    let estimates = rollout.estimate(&network, HALF).unwrap();
    let timer = |step: u32| Timer {
        spec: spec.clone(),
        step,
        terminates: false,
    };
    let mut shown = Turns::of_disks(&spec, &normalisers);
    for step in [3, 1, 0] {
        push_first_turns(&spec, &timer(step).observe(), &mut shown).unwrap();
    }
    let ahead = values(&network, &shown).unwrap();
    for (step, ahead) in [(2, &ahead[..2]), (3, &ahead[2..4])] {
        for (disk, reward) in [(0, 1.0), (1, 0.0)] {
            let row = rollout.tracks[0][step].disk_rows[disk];
            let advantage = estimates.returns[row] - estimates.values[row];
            let want = reward + 0.5 * ahead[disk] - estimates.values[row];
            assert!((advantage - want).abs() < 1e-6, "{advantage} is not {want}");
        }
    }
    let apart = |a: usize, b: usize| (ahead[a] - ahead[b]).abs() > 1e-3;
    assert!(apart(0, 1) && apart(0, 4) && apart(2, 3), "{ahead:?}");
    let begins: Vec<bool> = rollout.tracks[0]
        .iter()
        .map(|step| step.begins_episode)
        .collect();
    assert_eq!(begins, [true, false, false, true]);
}

/// Disks 0 and 2 are on device 0. Disk 1 and device 1 had no choice.
#[test]
fn a_turn_is_credited_with_what_it_decided_for_and_teaches_where_it_had_a_choice() {
    let (free, forced) = (vec![true, true], vec![true, false]);
    let samples = |masks: &[&Vec<bool>]| {
        let rows: Vec<Vec<Vec<bool>>> = masks.iter().map(|mask| vec![mask.to_vec()]).collect();
        Samples::new(Turns::of_masks(&rows))
    };
    let spec = CartPole::default_spec();
    let rollout = Rollout {
        disks: samples(&[&free, &forced, &free]),
        devices: samples(&[&free, &forced]),
        ..Rollout::empty(&spec, &identity(&spec), 1)
    };
    let credited = |counted: [bool; 3]| {
        let step = HostStep {
            disk_rows: vec![0, 1, 2],
            device_rows: vec![0, 1],
            rewards: vec![0.0; 3],
            counted: counted.to_vec(),
            disk_device: vec![0, 1, 0],
            disk_group: vec![None; 3],
            tail: Tail::Next,
            begins_episode: true,
        };
        let mut estimates = Estimates {
            values: vec![],
            returns: vec![],
            disk_advantages: vec![0.0; 3],
            disk_weights: vec![false; 3],
            device_advantages: vec![0.0; 2],
            device_weights: vec![false; 2],
        };
        rollout.credit(&step, &[1.0, 2.0, 5.0], &mut estimates);
        estimates
    };
    let all = credited([true; 3]);
    assert_eq!(all.disk_advantages, [1.0, 2.0, 5.0]);
    assert_eq!(all.disk_weights, [true, false, true]);
    assert_eq!(all.device_advantages, [3.0, 2.0]);
    assert_eq!(all.device_weights, [true, false]);
    let some = credited([true, false, false]);
    assert_eq!(some.disk_weights, [true, false, false]);
    assert_eq!(some.device_advantages, [1.0, 0.0]);
    assert_eq!(some.device_weights, [true, false]);
}

fn play(host: SimHost, steps: usize) -> (Rollout, Network) {
    let spec = host.spec().clone();
    let network = Network::new(&spec, Architecture::default(), &mut Rng::seed_from_u64(5)).unwrap();
    let normalisers = identity(&spec);
    let mut collector = Collector::new(
        vec![(AutoresetEnv::new(host, Autoreset::SameStep), 9)],
        Rng::seed_from_u64(6),
    )
    .unwrap();
    let actor = Actor {
        network: &network,
        normalisers: &normalisers,
    };
    (collector.collect(actor, steps).unwrap(), network)
}

#[test]
fn log_probs_of_a_rollout_are_those_the_network_gives_afterwards() {
    let generator = Generator {
        steps: 5,
        schedulers: true,
        ..Generator::default()
    };
    let (rollout, network) = play(SimHost::generated(generator).unwrap(), 12);
    let Samples {
        turns,
        levels,
        log_probs,
    } = &rollout.disks;
    let batch = turns.batch(0..turns.len()).unwrap();
    let taken = Tensor::from_slice(levels).view([turns.len() as i64, -1]);
    let scores = network.scores(&batch).unwrap();
    let judged = crate::categorical::judge(&scores, &batch, &taken).unwrap();
    let gap = (judged.log_prob - Tensor::from_slice(log_probs))
        .abs()
        .max()
        .double_value(&[]);
    assert!(gap < 1e-5, "{gap}");
    assert!(
        rollout.devices.turns.len() >= 12,
        "each device decides in each host-step"
    );
}

#[test]
fn a_device_is_credited_with_the_mean_of_its_disks() {
    let (rollout, network) = play(SimHost::fixed(presets::noisy_neighbour()).unwrap(), 3);
    let estimates = rollout.estimate(&network, HALF).unwrap();
    for step in &rollout.tracks[0] {
        let own = |disk: usize| estimates.disk_advantages[step.disk_rows[disk]];
        let device = estimates.device_advantages[step.device_rows[0]];
        assert!((device - (own(0) + own(1)) / 2.0).abs() < 1e-6);
    }
}

#[test]
fn disks_on_one_iothread_share_their_credit() {
    let mut scenario = presets::identical_disks(3, 2);
    scenario.disks[1].iothread = scenario.disks[0].iothread;
    let (rollout, network) = play(SimHost::fixed(scenario).unwrap(), 3);
    let estimates = rollout.estimate(&network, HALF).unwrap();
    for step in &rollout.tracks[0] {
        let credit = |disk: usize| estimates.disk_advantages[step.disk_rows[disk]];
        let own = |disk: usize| {
            estimates.returns[step.disk_rows[disk]] - estimates.values[step.disk_rows[disk]]
        };
        assert!((credit(0) - (own(0) + own(1)) / 2.0).abs() < 1e-6);
        assert_eq!(credit(0), credit(1));
        assert!((credit(2) - own(2)).abs() < 1e-6);
    }
}

#[test]
fn an_environment_that_does_not_reset_itself_is_refused() {
    let error = Collector::new(vec![(CartPole::new(0), 0)], Rng::seed_from_u64(0)).unwrap_err();
    assert!(error.to_string().contains("AutoresetEnv"), "{error}");
}

/// As one that says it resets itself, but keeps the last observation of an episode to itself.
#[test]
fn a_truncation_without_a_final_observation_is_refused() {
    let spec = EnvSpec {
        autoreset: Autoreset::SameStep,
        ..CartPole::default_spec()
    };
    let (network, normalisers) = (flat(&spec), identity(&spec));
    let timer = Timer {
        spec,
        step: 0,
        terminates: false,
    };
    let mut collector = Collector::new(vec![(timer, 0)], Rng::seed_from_u64(0)).unwrap();
    let actor = Actor {
        network: &network,
        normalisers: &normalisers,
    };
    let error = collector.collect(actor, 4).unwrap_err();
    assert!(
        matches!(error, LearnError::Unfit { index: 0, .. })
            && error.to_string().contains("final observation"),
        "{error}"
    );
}

/// Two disks; the second has gone after the third step, which ends the episode, and in the next there is one.
struct Leaver {
    spec: EnvSpec,
    step: u32,
    /// Whether the episode ends where it goes.
    ends: bool,
}

impl Leaver {
    fn observe(&self) -> Observation {
        let disks = if self.step < 3 { 2 } else { 1 };
        let action = JointAction {
            disks: Array2::zeros((disks, 1)),
            devices: Array2::zeros((0, 0)),
        };
        Observation {
            disk_ids: ["a", "b"][..disks]
                .iter()
                .map(ToString::to_string)
                .collect(),
            disks: Table::zeros(disks, 4),
            pairs: Array3::zeros((disks, 0, 0)),
            host: Table::zeros(1, 0),
            disk_group: vec![None; disks],
            current: action.clone(),
            default: action,
            masks: Masks::all_allowed(&self.spec, disks, 0, 0),
            ..Observation::default()
        }
    }
}

impl Environment for Leaver {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(&mut self, _: Option<u64>, _: &ResetOptions) -> Result<Observation, EnvError> {
        Ok(self.observe())
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let disks = action.disks.nrows();
        self.step += 1;
        Ok(Step {
            observation: self.observe(),
            rewards: Rewards {
                total: Array1::ones(disks),
                own: Array1::ones(disks),
                terms: Array2::ones((disks, 1)),
                counted: vec![true; disks],
            },
            executed: action.clone(),
            terminated: false,
            truncated: self.step == 3 && self.ends,
            final_observation: None,
        })
    }
}

fn leaver(ends: bool) -> Collector<AutoresetEnv<Leaver>> {
    let leaver = Leaver {
        spec: CartPole::default_spec(),
        step: 0,
        ends,
    };
    let env = AutoresetEnv::new(leaver, Autoreset::SameStep);
    Collector::new(vec![(env, 0)], Rng::seed_from_u64(0)).unwrap()
}

/// Reward 1, γ = ½, value 2 throughout: where the rollout goes on or is cut δ = 0, and nowhere else.
#[test]
fn the_step_in_which_a_guest_goes_is_not_learnt_from_and_the_one_before_is_cut() {
    let spec = CartPole::default_spec();
    let (network, normalisers) = (flat(&spec), identity(&spec));
    let actor = Actor {
        network: &network,
        normalisers: &normalisers,
    };
    let mut collector = leaver(true);
    let rollout = collector.collect(actor, 5).unwrap();
    let disks: Vec<usize> = rollout.tracks[0]
        .iter()
        .map(|s| s.disk_rows.len())
        .collect();
    assert_eq!(disks, [2, 2, 1, 1], "of five steps the third is left out");
    let tails: Vec<bool> = rollout.tracks[0]
        .iter()
        .map(|step| matches!(step.tail, Tail::Cut(_)))
        .collect();
    assert_eq!(tails, [false, true, false, true]);
    let begins: Vec<bool> = rollout.tracks[0]
        .iter()
        .map(|step| step.begins_episode)
        .collect();
    assert_eq!(begins, [true, false, true, false]);
    assert_eq!(rollout.bootstraps.len(), 2 + 1);
    assert_eq!((rollout.episodes[0].steps, rollout.env_steps), (3, 5));
    let estimates = rollout.estimate(&network, HALF).unwrap();
    assert_eq!(estimates.returns, vec![2.0; 2 * 3 + 2]);
    let weights = [true, true, true, true, false, false, true, true];
    assert_eq!(estimates.disk_weights, weights);
    // The first step of a rollout has none before it.
    let mut collector = leaver(true);
    collector.collect(actor, 2).unwrap();
    let rollout = collector.collect(actor, 1).unwrap();
    assert!(rollout.tracks[0].is_empty() && rollout.bootstraps.is_empty());
    rollout.estimate(&network, HALF).unwrap();
}

#[test]
fn disks_that_change_without_an_end_of_the_episode_are_refused() {
    let spec = CartPole::default_spec();
    let (network, normalisers) = (flat(&spec), identity(&spec));
    let actor = Actor {
        network: &network,
        normalisers: &normalisers,
    };
    let error = leaver(false).collect(actor, 4).unwrap_err();
    assert!(
        error.to_string().contains("end the episode there"),
        "{error}"
    );
}

#[test]
fn a_rollout_that_is_not_gone_on_with_comes_to_nothing() {
    let spec = CartPole::default_spec();
    let (network, normalisers) = (flat(&spec), identity(&spec));
    let actor = Actor {
        network: &network,
        normalisers: &normalisers,
    };
    let env = (Timer::new(false), 0);
    let mut collector = Collector::new(vec![env], Rng::seed_from_u64(0)).unwrap();
    let mut asked = 0;
    let stopped = collector.collect_while(actor, 4, || {
        asked += 1;
        asked < 3
    });
    assert!(stopped.unwrap().is_none());
    assert_eq!(asked, 3);
}
