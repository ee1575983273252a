use blkpilot_env::features::kvm_host_spec;
use blkpilot_env::{EnvSpec, Level, MaskReason, Rng, Turn, TurnView};
use blkpilot_models::{Architecture, Normaliser, PerTable};
use ndarray::{Array1, Array2, ArrayView1};
use rand::{RngExt as _, SeedableRng as _};
use tch::no_grad;

use super::*;
use crate::turns::Turns;

const TURNS: usize = 40;

/// Turns of hosts of one to four channels, a level in three of them masked, some heads with one level left or none.
struct Fixture {
    network: Network,
    batch: Batch,
    masks: Vec<Vec<Vec<bool>>>,
    levels: Vec<Vec<i64>>,
}

impl Fixture {
    fn new() -> Self {
        let spec = kvm_host_spec(&[]);
        let mut rng = Rng::seed_from_u64(11);
        let normalisers = PerTable::build(&spec, |_, f| Normaliser::identity(f.len()));
        let mut turns = Turns::of_disks(&spec, &normalisers);
        let (mut masks, mut levels) = (vec![], vec![]);
        for _ in 0..TURNS {
            let mask = push(&spec, &mut turns, &mut rng);
            let draw = |mask: &Vec<bool>| {
                let allowed: Vec<usize> = (0..mask.len()).filter(|l| mask[*l]).collect();
                let at = rng.random_range(0..allowed.len().max(1));
                allowed.get(at).map_or(0, |level| *level as i64)
            };
            levels.push(mask.iter().map(draw).collect());
            masks.push(mask);
        }
        let architecture = Architecture {
            hidden: 4,
            channel_hidden: 3,
            ..Architecture::default()
        };
        let drawn = Network::new(&spec, architecture, &mut rng).unwrap();
        let mut tensors = drawn.tensors().unwrap();
        // Fresh scores are near 0: larger ones tell a wrong level from the right one.
        for (name, tensor) in &mut tensors {
            if name.contains(".head.") && !name.contains(".query.") {
                tensor.data.iter_mut().for_each(|weight| *weight *= 40.0);
            }
        }
        let network = Network::from_tensors(&spec, architecture, &tensors, Kind::Double).unwrap();
        let batch = turns.batch(0..TURNS).unwrap().to_kind(Kind::Double);
        Self {
            network,
            batch: batch.unwrap(),
            masks,
            levels,
        }
    }

    fn taken(&self) -> Tensor {
        table(&self.levels)
    }

    /// All that Q is asked for, weighed so that no row counts as another does.
    fn total(&self) -> Tensor {
        let q = Q::of(&self.network, &self.batch).unwrap();
        let rows = Tensor::arange_start(1, TURNS as i64 + 1, (Kind::Double, tch::Device::Cpu));
        let greatest = q.greatest(&self.batch).unwrap().square();
        let gap = q.soft_gap(&self.batch, &self.taken()).unwrap();
        ((q.taken(&self.taken()).unwrap().square() + greatest + gap) * rows).mean(Kind::Double)
    }
}

fn table(levels: &[Vec<i64>]) -> Tensor {
    Tensor::from_slice(&levels.concat()).view([levels.len() as i64, -1])
}

fn push(spec: &EnvSpec, turns: &mut Turns, rng: &mut Rng) -> Vec<Vec<bool>> {
    let channels = rng.random_range(1..=4);
    let mut row = |n: usize| Array1::from_shape_fn(n, |_| rng.random::<f32>());
    let [disk, device, host] = [
        &spec.disk_features,
        &spec.device_features,
        &spec.host_features,
    ]
    .map(|features| row(features.len()));
    let mut rows = |n: usize| Array2::from_shape_fn((channels, n), |_| rng.random::<f32>());
    let [lanes, pairs] = [&spec.channel_features, &spec.pair_features].map(|f| rows(f.len()));
    let widths = spec.disk_heads.iter().map(|head| head.len(channels));
    let masks: Vec<Vec<bool>> = widths
        .map(|n| (0..n).map(|_| rng.random_bool(2.0 / 3.0)).collect())
        .collect();
    let reason = |allowed: &bool| match allowed {
        true => MaskReason::Allowed,
        false => MaskReason::Dwell,
    };
    let mask: Vec<MaskReason> = masks.iter().flatten().map(reason).collect();
    let current: Vec<Level> = vec![0; spec.disk_heads.len()];
    let current = ArrayView1::from(&current);
    turns.push(&TurnView {
        turn: Turn::Disk(0),
        heads: &spec.disk_heads,
        disk: Some(disk.view()),
        device: Some(device.view()),
        host: host.view(),
        channels: lanes.view(),
        pairs: Some(pairs.view()),
        current,
        default: current,
        mask: &mask,
    });
    masks
}

fn allowed(mask: &[bool]) -> Vec<usize> {
    (0..mask.len()).filter(|level| mask[*level]).collect()
}

/// Q of every joint choice of a turn, from the scores alone; a head without a choice has one entry that adds nothing.
fn enumerate(value: f64, scores: &[Vec<f64>], masks: &[Vec<bool>]) -> Vec<(Vec<Option<i64>>, f64)> {
    let mut all = vec![(vec![], value)];
    for (scores, mask) in scores.iter().zip(masks) {
        let levels = allowed(mask);
        let mean = levels.iter().map(|l| scores[*l]).sum::<f64>() / levels.len() as f64;
        let choices: Vec<(Option<i64>, f64)> = match levels.len() {
            0 | 1 => vec![(None, 0.0)],
            _ => levels
                .iter()
                .map(|l| (Some(*l as i64), scores[*l] - mean))
                .collect(),
        };
        let mut joined = vec![];
        for (taken, q) in &all {
            for (level, advantage) in &choices {
                joined.push(([&taken[..], &[*level]].concat(), q + advantage));
            }
        }
        all = joined;
    }
    all
}

#[test]
fn what_is_found_head_by_head_is_what_all_joint_choices_show() {
    let fixture = Fixture::new();
    let Fixture { network, batch, .. } = &fixture;
    let q = no_grad(|| Q::of(network, batch).unwrap());
    let (scores, values) = no_grad(|| {
        (
            network.scores(batch).unwrap(),
            network.values(batch).unwrap(),
        )
    });
    let taken = q.taken(&fixture.taken()).unwrap();
    let greatest = q.greatest(batch).unwrap();
    let best = q.best_levels(batch).unwrap();
    let gap = q.soft_gap(batch, &fixture.taken()).unwrap();
    let (mut joint_choices, mut forced) = (0, 0);
    for (row, masks) in fixture.masks.iter().enumerate() {
        let at = row as i64;
        let own = |head: &Tensor| Vec::<f64>::try_from(head.get(at)).unwrap();
        let scores: Vec<Vec<f64>> = scores.iter().map(own).collect();
        let all = enumerate(values.double_value(&[at]), &scores, masks);
        let fits = |joint: &[Option<i64>], levels: &[i64]| {
            joint
                .iter()
                .zip(levels)
                .all(|(own, level)| own.is_none_or(|own| own == *level))
        };
        let near = |found: &Tensor, wanted: f64| {
            let found = found.double_value(&[at]);
            assert!(
                (found - wanted).abs() < 1e-9,
                "row {row}: {found} is not {wanted}"
            );
        };
        let of = |levels: &[i64]| all.iter().find(|(joint, _)| fits(joint, levels)).unwrap().1;
        let most = all
            .iter()
            .map(|(_, q)| *q)
            .fold(f64::NEG_INFINITY, f64::max);
        near(&taken, of(&fixture.levels[row]));
        near(&greatest, most);
        let best = Vec::<i64>::try_from(best.get(at)).unwrap();
        assert_eq!(of(&best), most, "row {row}");
        let soft = all.iter().map(|(_, q)| q.exp()).sum::<f64>().ln();
        near(&gap, soft - of(&fixture.levels[row]));
        joint_choices += all.len();
        forced += all[0].0.iter().filter(|level| level.is_none()).count();
    }
    assert!(
        joint_choices > 3 * TURNS && forced > 10,
        "{joint_choices}, {forced}"
    );
}

#[test]
fn the_greedy_policy_of_a_checkpoint_is_that_of_q() {
    let fixture = Fixture::new();
    let Fixture { network, batch, .. } = &fixture;
    let q = no_grad(|| Q::of(network, batch).unwrap());
    let best = q.best_levels(batch).unwrap();
    let scores = no_grad(|| network.scores(batch).unwrap());
    for (row, masks) in fixture.masks.iter().enumerate() {
        for (head, mask) in masks.iter().enumerate() {
            let levels = allowed(mask);
            if levels.len() < 2 {
                continue;
            }
            let own = Vec::<f64>::try_from(scores[head].get(row as i64)).unwrap();
            let greedy = levels
                .into_iter()
                .max_by(|a, b| own[*a].total_cmp(&own[*b]));
            assert_eq!(
                Some(best.int64_value(&[row as i64, head as i64]) as usize),
                greedy
            );
        }
    }
}

#[test]
fn the_gradient_of_each_part_equals_its_differences() {
    let fixture = Fixture::new();
    let parameters: Vec<&Tensor> = fixture.network.parameters().values().collect();
    let gradients = Tensor::run_backward(&[fixture.total()], &parameters, false, false);
    const STEP: f64 = 1e-6;
    let mut checked = 0;
    for (name, gradient) in fixture.network.parameters().keys().zip(&gradients) {
        let flat = no_grad(|| fixture.network.parameters()[name].detach().view([-1]));
        let gradient = gradient.view([-1]);
        for at in [0, flat.size()[0] / 2, flat.size()[0] - 1] {
            let nudge = |by: f64| {
                let _ = flat.get(at).g_add_scalar_(by);
                no_grad(|| fixture.total().double_value(&[]))
            };
            let (up, down) = (nudge(STEP), nudge(-2.0 * STEP));
            nudge(STEP);
            let (got, want) = (gradient.double_value(&[at]), (up - down) / (2.0 * STEP));
            assert!(
                (got - want).abs() < 1e-5 * (1.0 + want.abs()),
                "{name}[{at}]: {got} is not {want}"
            );
            checked += usize::from(want.abs() > 1e-6);
        }
    }
    assert!(checked > 40, "only {checked} differences were not 0");
}
