//! The network with gradients is the network that serves; hosts of different sizes share a batch.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use blkpilot_env::sim::{Generator, SimHost};
use blkpilot_env::{
    EnvSpec, Environment as _, JointDecision, Observation, ResetOptions, Rng, Turn,
};
use blkpilot_learn::network::Network;
use blkpilot_learn::turns::Turns;
use blkpilot_models::network::Scratch;
use blkpilot_models::normaliser::{Normaliser, PerTable, Statistics};
use blkpilot_models::{ActorCritic, Architecture, Checkpoint};
use rand::SeedableRng as _;
use tch::Tensor;

fn hosts() -> (EnvSpec, Vec<Observation>) {
    let generator = Generator {
        schedulers: true,
        ..Generator::default()
    };
    let mut host = SimHost::generated(generator).unwrap();
    let observations = (0..12).map(|seed| host.reset(Some(seed), &ResetOptions::new()).unwrap());
    let observations = observations.collect();
    (host.spec().clone(), observations)
}

fn statistics(spec: &EnvSpec, observations: &[Observation]) -> Statistics {
    let mut statistics = Statistics::new(spec);
    for obs in observations {
        let joint = JointDecision::in_random_order(spec, obs, &mut Rng::seed_from_u64(1));
        statistics.observe(&joint.view().unwrap());
    }
    statistics
}

fn untrained(spec: &EnvSpec, normalisers: &PerTable<Normaliser>) -> Checkpoint {
    let mut checkpoint =
        Checkpoint::untrained(spec, Architecture::default(), &mut Rng::seed_from_u64(4));
    checkpoint.manifest.normalisers = normalisers.clone();
    checkpoint
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    Vec::try_from(tensor).unwrap()
}

fn assert_close(got: f32, want: f32) {
    assert!(
        (got - want).abs() <= 2e-6 * (1.0 + want.abs()),
        "{got} is not {want}"
    );
}

#[test]
fn a_padded_batch_gives_what_the_serving_network_gives_one_by_one() {
    let (spec, observations) = hosts();
    let normalisers = statistics(&spec, &observations).normalisers();
    let checkpoint = untrained(&spec, &normalisers);
    let serving = ActorCritic::new(&checkpoint).unwrap();
    let network = Network::from_tensors(
        &spec,
        Architecture::default(),
        &checkpoint.tensors,
        tch::Kind::Float,
    )
    .unwrap();
    let mut turns = Turns::of_disks(&spec, &normalisers);
    let mut device_turns = Turns::of_devices(&spec, &normalisers);
    let (mut want, mut want_device) = (Vec::new(), Vec::new());
    let mut scratch = Scratch::default();
    for obs in &observations {
        let mut joint = JointDecision::in_random_order(&spec, obs, &mut Rng::seed_from_u64(2));
        while let Some(view) = joint.view() {
            let forward = serving.forward(&view, &mut scratch).unwrap();
            match view.turn {
                Turn::Disk(_) => {
                    turns.push(&view);
                    want.push((view.channels.nrows(), forward));
                }
                Turn::Device(_) => {
                    device_turns.push(&view);
                    want_device.push(forward);
                }
            }
            let stay = view.current.to_vec();
            let levels: Vec<u16> = stay
                .iter()
                .enumerate()
                .map(|(head, level)| view.forced(head).unwrap_or(*level))
                .collect();
            joint.commit(&levels).unwrap();
        }
    }
    let batch = turns.batch(0..turns.len()).unwrap();
    let scores: Vec<_> = network.scores(&batch).unwrap().iter().map(rows).collect();
    let values = Vec::<f32>::try_from(network.values(&batch).unwrap()).unwrap();
    for (row, (channels, forward)) in want.iter().enumerate() {
        let lens = spec.disk_heads.iter().map(|head| head.len(*channels));
        let got = scores
            .iter()
            .zip(lens)
            .flat_map(|(scores, len)| scores[row][..len].to_vec());
        for (got, want) in got.zip(&forward.scores) {
            assert_close(got, *want);
        }
        assert_close(values[row], forward.value.unwrap());
    }
    let batch = device_turns.batch(0..device_turns.len()).unwrap();
    let scores = rows(&network.device_scores(&batch).unwrap()[0]);
    for (got, want) in scores.iter().zip(&want_device) {
        for (got, want) in got.iter().zip(&want.scores) {
            assert_close(*got, *want);
        }
    }
    assert!(!want_device.is_empty() && want.iter().any(|(k, _)| *k != want[0].0));
}

#[test]
fn weights_come_back_as_they_were_given() {
    let (spec, observations) = hosts();
    let checkpoint = untrained(&spec, &statistics(&spec, &observations).normalisers());
    let network = Network::from_tensors(
        &spec,
        Architecture::default(),
        &checkpoint.tensors,
        tch::Kind::Float,
    )
    .unwrap();
    assert_eq!(network.tensors().unwrap(), checkpoint.tensors);
}
