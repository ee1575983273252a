use blkpilot_env::{EnvSpec, JointDecision, Observation, Rng, TurnView};
use proptest::prelude::*;
use rand::SeedableRng as _;

use super::*;
use crate::architecture::Architecture;
use crate::fixture::Sizes;

const SMALL: Architecture = Architecture {
    hidden: 6,
    channel_hidden: 4,
    kind: crate::architecture::Kind::PointerV1,
};

/// The text of `architecture` written down once more, in f64 and without any regard to speed.
struct Naive<'a> {
    checkpoint: &'a Checkpoint,
}

impl Naive<'_> {
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = &self.checkpoint.tensors[&format!("{name}.weight")];
        let bias = &self.checkpoint.tensors[&format!("{name}.bias")];
        assert_eq!(weight.shape, [bias.data.len(), x.len()], "{name}");
        let row = |i: usize| &weight.data[i * x.len()..][..x.len()];
        let product = |i: usize| {
            row(i)
                .iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * x)
                .sum::<f64>()
        };
        bias.data
            .iter()
            .enumerate()
            .map(|(i, b)| f64::from(*b) + product(i))
            .collect()
    }

    fn tanh(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.linear(name, x).into_iter().map(f64::tanh).collect()
    }

    fn inputs(&self, table: TableName, row: &ArrayView1<'_, f32>) -> Vec<f64> {
        let manifest = &self.checkpoint.manifest;
        let features = table.features(&manifest.spec);
        let mut out = vec![0.0; features.len()];
        manifest
            .normalisers
            .get(table)
            .apply(features, row, &mut out);
        out.into_iter().map(f64::from).collect()
    }

    fn common(&self, view: &TurnView<'_>) -> Vec<f64> {
        let none = vec![0.0; self.checkpoint.manifest.spec.device_features.len()];
        let device = view
            .device
            .map_or(none, |row| self.inputs(TableName::Device, &row));
        [device, self.inputs(TableName::Host, &view.host)].concat()
    }

    fn encode(&self, side: &str, u: &[f64]) -> Vec<f64> {
        self.tanh(
            &format!("{side}.encoder.1"),
            &self.tanh(&format!("{side}.encoder.0"), u),
        )
    }

    /// z, and e_k per channel.
    fn embed(&self, side: &str, view: &TurnView<'_>) -> (Vec<f64>, Vec<Vec<f64>>) {
        let disk = self.inputs(TableName::Disk, &view.disk.unwrap());
        let h = self.encode(side, &[disk, self.common(view)].concat());
        if !has_channels(&self.checkpoint.manifest.spec) {
            return (h, vec![]);
        }
        let pairs = view.pairs.unwrap();
        let rows = view.channels.rows().into_iter().zip(pairs.rows());
        let lanes: Vec<Vec<f64>> = rows
            .map(|(channel, pair)| {
                let channel = self.inputs(TableName::Channel, &channel);
                let pair = self.inputs(TableName::Pair, &pair);
                self.tanh(&format!("{side}.channel"), &[channel, pair].concat())
            })
            .collect();
        let width = self.checkpoint.manifest.architecture.channel_hidden;
        let mean = |i: usize| lanes.iter().map(|e| e[i]).sum::<f64>() / lanes.len().max(1) as f64;
        let pooled: Vec<f64> = (0..width).map(mean).collect();
        (
            self.tanh(&format!("{side}.trunk"), &[h, pooled].concat()),
            lanes,
        )
    }

    fn forward(&self, view: &TurnView<'_>) -> (Vec<f64>, Option<f64>) {
        let Turn::Disk(_) = view.turn else {
            let z = self.encode("device", &self.common(view));
            let heads = view.heads.iter();
            return (
                heads
                    .flat_map(|h| self.linear(&format!("device.head.{}", h.name), &z))
                    .collect(),
                None,
            );
        };
        let (z, lanes) = self.embed("actor", view);
        let mut scores = Vec::new();
        for head in view.heads {
            let name = format!("actor.head.{}", head.name);
            if !head.is_pointer() {
                scores.extend(self.linear(&name, &z));
                continue;
            }
            scores.extend(self.linear(&format!("{name}.zero"), &z));
            for lane in &lanes {
                let query = self.tanh(
                    &format!("{name}.query"),
                    &[z.clone(), lane.clone()].concat(),
                );
                scores.extend(self.linear(&format!("{name}.score"), &query));
            }
        }
        let value = self.linear("critic.value", &self.embed("critic", view).0)[0];
        (scores, Some(value))
    }
}

/// Calls `check` on each turn of a joint decision in which everybody keeps what is in force.
fn each_turn(spec: &EnvSpec, obs: &Observation, mut check: impl FnMut(&TurnView<'_>)) {
    let mut joint = JointDecision::in_random_order(spec, obs, &mut Rng::seed_from_u64(0));
    while let Some(view) = joint.view() {
        check(&view);
        let first = |head| {
            view.head_mask(head)
                .iter()
                .position(|m| m.is_allowed())
                .unwrap_or(0)
        };
        let levels: Vec<_> = (0..view.heads.len())
            .map(|head| view.forced(head).unwrap_or(first(head) as u16))
            .collect();
        joint.commit(&levels).unwrap();
    }
}

/// Weights of ±`gain`/√inputs and normalisers of no particular meaning.
fn random_checkpoint(
    spec: &EnvSpec,
    architecture: Architecture,
    gain: f32,
    rng: &mut Rng,
) -> Checkpoint {
    let mut checkpoint = Checkpoint::untrained(spec, architecture, rng);
    checkpoint
        .tensors
        .values_mut()
        .flat_map(|t| &mut t.data)
        .for_each(|w| *w *= gain);
    checkpoint.manifest.normalisers = PerTable::build(spec, |_, features| Normaliser {
        mean: features
            .iter()
            .map(|_| rng.random_range(0.0..4.0))
            .collect(),
        std: features
            .iter()
            .map(|_| rng.random_range(0.2..3.0))
            .collect(),
    });
    checkpoint
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let columns = [0_usize..9, 0..6, 0..4, 0..5, 0..4];
    (
        1_usize..4,
        0_usize..9,
        0_usize..3,
        columns,
        any::<[bool; 2]>(),
    )
        .prop_map(
            |(disks, channels, devices, columns, [has_channel_head, has_device_head])| Sizes {
                disks,
                channels,
                devices,
                columns,
                has_channel_head,
                has_device_head,
            },
        )
}

proptest! {
    #[test]
    fn any_network_equals_its_description(
        sizes in sizes(),
        hidden in 1_usize..80,
        channel_hidden in 1_usize..40,
        gain in 0.2_f32..2.0,
        seed in any::<u64>(),
    ) {
        let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(seed));
        let architecture = Architecture { hidden, channel_hidden, ..SMALL };
        let checkpoint = random_checkpoint(&spec, architecture, gain, &mut rng);
        let network = ActorCritic::new(&checkpoint).unwrap();
        let (naive, mut scratch) = (Naive { checkpoint: &checkpoint }, Scratch::default());
        let obs = sizes.observation(0.3, &mut rng);
        each_turn(&spec, &obs, |view| {
            let got = network.forward(view, &mut scratch).unwrap();
            let (scores, value) = naive.forward(view);
            assert_eq!(got.scores.len(), scores.len());
            assert_eq!(got.value.is_some(), value.is_some());
            let got = got.scores.into_iter().chain(got.value).map(f64::from);
            for (got, want) in got.zip(scores.into_iter().chain(value)) {
                assert!((got - want).abs() <= 2e-6 * (1.0 + want.abs()), "{got} {want}");
            }
        });
    }

    #[test]
    fn channels_in_another_order_have_their_scores_in_that_order(
        sizes in sizes().prop_filter("channels", |s| s.has_channel_head && s.channels > 1),
        seed in any::<u64>(),
    ) {
        let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(seed));
        let network = ActorCritic::new(&random_checkpoint(&spec, SMALL, 1.0, &mut rng)).unwrap();
        let obs = sizes.observation(0.0, &mut rng);
        let mut turned = obs.clone();
        for channel in 0..sizes.channels {
            let from = (channel + 1) % sizes.channels;
            turned.channels.values.row_mut(channel).assign(&obs.channels.values.row(from));
            for disk in 0..sizes.disks {
                let pair = obs.pairs.slice(ndarray::s![disk, from, ..]);
                turned.pairs.slice_mut(ndarray::s![disk, channel, ..]).assign(&pair);
            }
        }
        let first = |obs: &Observation| {
            let joint = JointDecision::in_random_order(&spec, obs, &mut Rng::seed_from_u64(1));
            let view = joint.view().unwrap();
            network.forward(&view, &mut Scratch::default()).unwrap()
        };
        let (before, after) = (first(&obs), first(&turned));
        // Head 0 has two levels; then come level 0 and the channels of head 1.
        let channels = 3..3 + sizes.channels;
        let mut want = before.scores.clone();
        want[channels].rotate_left(1);
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-6 * (1.0 + b.abs());
        prop_assert!(after.scores.iter().zip(&want).all(|(a, b)| near(*a, *b)));
        prop_assert!(near(after.value.unwrap(), before.value.unwrap()));
    }
}

/// One disk feature x, no other inputs, hidden 1, one head with two levels, all by hand:
/// h = tanh(2·tanh(x + 1) − 1); scores 3h and −h + 0.5; value of the critic 10·tanh(tanh(−x)).
#[test]
fn a_small_network_worked_by_hand() {
    let sizes = Sizes {
        disks: 1,
        devices: 0,
        channels: 0,
        columns: [1, 0, 0, 0, 0],
        has_channel_head: false,
        has_device_head: false,
    };
    let mut spec = sizes.spec();
    spec.disk_heads.truncate(1);
    let architecture = Architecture {
        hidden: 1,
        channel_hidden: 1,
        ..SMALL
    };
    let mut checkpoint = Checkpoint::untrained(&spec, architecture, &mut Rng::seed_from_u64(0));
    let values: [(&str, &[f32]); 12] = [
        ("actor.encoder.0.weight", &[1.0]),
        ("actor.encoder.0.bias", &[1.0]),
        ("actor.encoder.1.weight", &[2.0]),
        ("actor.encoder.1.bias", &[-1.0]),
        ("actor.head.cache.weight", &[3.0, -1.0]),
        ("actor.head.cache.bias", &[0.0, 0.5]),
        ("critic.encoder.0.weight", &[-1.0]),
        ("critic.encoder.0.bias", &[0.0]),
        ("critic.encoder.1.weight", &[1.0]),
        ("critic.encoder.1.bias", &[0.0]),
        ("critic.value.weight", &[10.0]),
        ("critic.value.bias", &[0.0]),
    ];
    assert_eq!(checkpoint.tensors.len(), values.len());
    for (name, data) in values {
        checkpoint.tensors.get_mut(name).unwrap().data = data.to_vec();
    }
    let network = ActorCritic::new(&checkpoint).unwrap();
    let mut obs = sizes.observation(0.0, &mut Rng::seed_from_u64(0));
    obs.masks.disks = ndarray::Array2::default((1, 2));
    obs.current.disks = ndarray::Array2::zeros((1, 1));
    obs.default = obs.current.clone();
    obs.disks.values[[0, 0]] = 0.5;
    let joint = JointDecision::in_random_order(&spec, &obs, &mut Rng::seed_from_u64(0));
    let got = network
        .forward(&joint.view().unwrap(), &mut Scratch::default())
        .unwrap();
    // tanh 1.5 = 0.905148254, tanh(2·0.905148254 − 1) = 0.669581…; tanh(−0.5) = −0.462117157,
    // tanh of it −0.431828…
    let h = (2.0 * 0.905_148_254_f64 - 1.0).tanh();
    let want = [3.0 * h, 0.5 - h, 10.0 * (-0.462_117_157_f64).tanh()];
    for (got, want) in got.scores.iter().copied().chain(got.value).zip(want) {
        assert!((f64::from(got) - want).abs() < 2e-6, "{got} {want}");
    }
}

#[test]
fn a_disk_alone_on_a_host_without_channels_has_only_level_0() {
    let sizes = Sizes {
        channels: 0,
        ..Sizes::default()
    };
    let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(4));
    let network = ActorCritic::new(&random_checkpoint(&spec, SMALL, 1.0, &mut rng)).unwrap();
    let obs = sizes.observation(0.0, &mut rng);
    let mut scratch = Scratch::default();
    each_turn(&spec, &obs, |view| {
        if let Turn::Disk(_) = view.turn {
            assert_eq!(network.scores(view, &mut scratch).unwrap().len(), 2 + 1 + 3);
        }
    });
}

#[test]
fn one_working_memory_serves_hosts_of_any_size_one_after_another() {
    let spec = Sizes::default().spec();
    let mut rng = Rng::seed_from_u64(4);
    let network = ActorCritic::new(&random_checkpoint(&spec, SMALL, 1.0, &mut rng)).unwrap();
    let mut shared = Scratch::default();
    for channels in [7, 0, 3, 1, 9] {
        let sizes = Sizes {
            channels,
            ..Sizes::default()
        };
        let obs = sizes.observation(0.2, &mut rng);
        each_turn(&spec, &obs, |view| {
            let fresh = network.forward(view, &mut Scratch::default()).unwrap();
            assert_eq!(network.forward(view, &mut shared).unwrap(), fresh);
            assert_eq!(network.forward_batch(&[]).unwrap(), []);
        });
    }
}

#[test]
fn a_value_that_is_not_finite_is_refused_by_the_name_of_its_feature() {
    let sizes = Sizes {
        disks: 1,
        devices: 1,
        ..Sizes::default()
    };
    let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(4));
    let network = ActorCritic::new(&random_checkpoint(&spec, SMALL, 1.0, &mut rng)).unwrap();
    let good = sizes.observation(0.0, &mut rng);
    let error_of = |obs: &Observation| {
        let joint = JointDecision::in_random_order(&spec, obs, &mut Rng::seed_from_u64(0));
        network
            .forward(&joint.view().unwrap(), &mut Scratch::default())
            .unwrap_err()
            .to_string()
    };
    let mut obs = good.clone();
    obs.disks.values[[0, 1]] = f32::NAN;
    assert_eq!(
        error_of(&obs),
        "disk 0 sees disk feature `disk_1` = NaN: an observation must be finite"
    );
    let mut obs = good.clone();
    obs.channels.values[[3, 2]] = f32::INFINITY;
    assert!(error_of(&obs).contains("channel feature `channel_2` = inf"));
    let mut obs = good.clone();
    obs.pairs[[0, 1, 1]] = f32::NEG_INFINITY;
    assert!(error_of(&obs).contains("pair feature `pair_1` = -inf"));
    let mut obs = good.clone();
    obs.devices.values[[0, 0]] = f32::NAN;
    assert!(error_of(&obs).contains("device feature `device_0`"));
    let mut obs = good;
    obs.host.values[[0, 0]] = f32::NAN;
    assert!(error_of(&obs).contains("host feature `host_0`"));
}

#[test]
fn a_view_of_another_spec_is_refused_not_misread() {
    let sizes = Sizes::default();
    let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(4));
    let network = ActorCritic::new(&random_checkpoint(&spec, SMALL, 1.0, &mut rng)).unwrap();
    let error_of = |other: Sizes| {
        let spec = other.spec();
        let obs = other.observation(0.0, &mut Rng::seed_from_u64(0));
        let joint = JointDecision::in_random_order(&spec, &obs, &mut Rng::seed_from_u64(0));
        network
            .forward(&joint.view().unwrap(), &mut Scratch::default())
            .unwrap_err()
    };
    let wider = error_of(Sizes {
        columns: [6, 3, 2, 3, 2],
        ..sizes
    });
    assert!(
        matches!(
            wider,
            PolicyError::Shape {
                table: TableName::Disk,
                got: 6,
                want: 5
            }
        ),
        "{wider}"
    );
    let headless = error_of(Sizes {
        has_channel_head: false,
        ..sizes
    });
    assert!(
        matches!(
            headless,
            PolicyError::Levels {
                got: 5,
                want: 10,
                ..
            }
        ),
        "{headless}"
    );
}

#[test]
fn weights_that_overflow_are_an_error_not_a_choice() {
    let sizes = Sizes {
        has_device_head: false,
        ..Sizes::default()
    };
    let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(4));
    let mut checkpoint = random_checkpoint(&spec, SMALL, 1.0, &mut rng);
    let mut set =
        |name: &str, value: f32| checkpoint.tensors.get_mut(name).unwrap().data.fill(value);
    set("actor.trunk.bias", 20.0);
    set("actor.head.polling.weight", f32::MAX);
    let network = ActorCritic::new(&checkpoint).unwrap();
    let obs = sizes.observation(0.0, &mut rng);
    each_turn(&spec, &obs, |view| {
        let error = network.scores(view, &mut Scratch::default()).unwrap_err();
        assert!(
            error.to_string().contains("score of head `polling` is inf"),
            "{error}"
        );
    });
}
