use std::collections::BTreeMap;

use blkpilot_env::cartpole::CartPole;
use blkpilot_env::sim::{Generator, SimHost};
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{Autoreset, Environment, Rng};
use blkpilot_models::normaliser::{Normaliser, PerTable};
use blkpilot_models::{Architecture, Tensor as Plain};
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::collector::{Actor, Collector};
use crate::rollout::Rollout;

const SMALL: Architecture = Architecture {
    hidden: 7,
    channel_hidden: 5,
    kind: blkpilot_models::architecture::Kind::PointerV1,
};

/// A network in f64 whose weights are all of some size, and turns that it played.
fn played<E: Environment>(env: E) -> (Network, Rollout) {
    let env = AutoresetEnv::new(env, Autoreset::SameStep);
    let mut collector = Collector::new(vec![(env, 9)], Rng::seed_from_u64(6)).unwrap();
    let spec = collector.spec().clone();
    let mut rng = Rng::seed_from_u64(5);
    let mut weights = |shape: Vec<usize>| Plain {
        data: (0..shape.iter().product())
            .map(|_| rng.random_range(-0.5..0.5))
            .collect(),
        shape,
    };
    let shapes = SMALL.tensor_shapes(&spec).into_iter();
    let tensors: BTreeMap<_, _> = shapes.map(|(name, shape)| (name, weights(shape))).collect();
    let network = |kind| Network::from_tensors(&spec, SMALL, &tensors, kind).unwrap();
    let normalisers = PerTable::build(&spec, |_, features| Normaliser::identity(features.len()));
    let actor = Actor {
        network: &network(Kind::Float),
        normalisers: &normalisers,
    };
    let rollout = collector.collect(actor, 12).unwrap();
    (network(Kind::Double), rollout)
}

fn hosts(channels: bool) -> SimHost {
    let generator = Generator {
        steps: 4,
        disks: (1, 4),
        channels: if channels { (2, 5) } else { (1, 1) },
        schedulers: true,
        ..Generator::default()
    };
    SimHost::generated(generator).unwrap()
}

/// Numbers of some size in the shape of each tensor.
fn pulls(tensors: &[Tensor]) -> Vec<Tensor> {
    let like = |tensor: &Tensor| {
        let numbers = Tensor::arange(tensor.numel() as i64, (Kind::Double, tensor.device()));
        (numbers * 1.7 + 0.3).sin().view_as(tensor)
    };
    tensors.iter().map(like).collect()
}

/// By hand, and by autograd of Σ said · pull; both of all parameters that `name` is true of.
fn compare(network: &Network, said: &[Tensor], pulls: &[Tensor], name: impl Fn(&str) -> bool) {
    let carried: Tensor = said
        .iter()
        .zip(pulls)
        .map(|(s, p)| (s * p).sum(Kind::Double))
        .sum();
    let (names, parameters): (Vec<_>, Vec<_>) = network
        .parameters()
        .iter()
        .filter(|(own, _)| name(own))
        .unzip();
    let want = Tensor::run_backward(&[carried], &parameters, false, false);
    let got = network.gradient().copy();
    let mut start = 0;
    let mut checked = 0;
    for (own, parameter) in network.parameters() {
        let size = parameter.numel() as i64;
        let got = got.narrow(0, start, size).view_as(parameter);
        start += size;
        let Some(at) = names.iter().position(|name| *name == own) else {
            assert_eq!(got.abs().max().double_value(&[]), 0.0, "{own}");
            continue;
        };
        let gap = (&got - &want[at]).abs().max().double_value(&[]);
        assert!(gap < 1e-11, "{own}: {gap}");
        assert!(want[at].abs().max().double_value(&[]) > 1e-6, "{own}");
        checked += 1;
    }
    assert_eq!(checked, names.len());
}

#[test]
fn the_backward_pass_of_disks_equals_autograd() {
    fn check<E: Environment>(env: E) {
        let (network, rollout) = played(env);
        let turns = &rollout.disks.turns;
        let batch = turns
            .batch(0..turns.len())
            .unwrap()
            .to_kind(Kind::Double)
            .unwrap();
        let mut said = network.scores(&batch).unwrap();
        said.push(network.values(&batch).unwrap());
        let pulls = pulls(&said);
        network.clear_gradient().unwrap();
        let pass = network.disk_pass(&batch).unwrap();
        pass.backward(&pulls[..said.len() - 1], &pulls[said.len() - 1])
            .unwrap();
        compare(&network, &said, &pulls, |name| !name.starts_with("device."));
    }
    check(CartPole::new(1));
    check(hosts(true));
    check(hosts(false));
}

#[test]
fn the_backward_pass_of_devices_equals_autograd() {
    let (network, rollout) = played(hosts(true));
    let turns = &rollout.devices.turns;
    let batch = turns
        .batch(0..turns.len())
        .unwrap()
        .to_kind(Kind::Double)
        .unwrap();
    let said = network.device_scores(&batch).unwrap();
    let pulls = pulls(&said);
    network.clear_gradient().unwrap();
    let pass = network.device_pass(&batch).unwrap().unwrap();
    pass.backward(&pulls).unwrap();
    compare(&network, &said, &pulls, |name| name.starts_with("device."));
}
