use blkpilot_env::features::kvm_host_spec;
use blkpilot_env::{Level, MaskReason, Turn, TurnView};
use blkpilot_models::{Architecture, Normaliser, PerTable, Tensor as Plain};
use ndarray::{Array1, Array2, ArrayView1};
use rand::RngExt as _;

use super::*;

fn spec() -> EnvSpec {
    kvm_host_spec(&["none".to_owned(), "bfq".to_owned()])
}

fn architecture() -> Architecture {
    Architecture {
        hidden: 5,
        channel_hidden: 3,
        ..Architecture::default()
    }
}

/// What a row saw, took, and would take.
struct Row {
    is_disk: bool,
    values: [Array1<f32>; 3],
    channels: [Array2<f32>; 2],
    current: Vec<Level>,
    mask: Vec<MaskReason>,
    levels: Vec<Level>,
    probabilities: Vec<f64>,
}

impl Row {
    fn drawn(spec: &EnvSpec, is_disk: bool, channels: usize, rng: &mut Rng) -> Self {
        let mut row = |n: usize| Array1::from_shape_fn(n, |_| rng.random::<f32>());
        let values = [
            row(spec.disk_features.len()),
            row(spec.device_features.len()),
            row(spec.host_features.len()),
        ];
        let mut table = |n: usize| Array2::from_shape_fn((channels, n), |_| rng.random::<f32>());
        let tables = [
            table(spec.channel_features.len()),
            table(spec.pair_features.len()),
        ];
        let heads = if is_disk {
            &spec.disk_heads
        } else {
            &spec.device_heads
        };
        let (mut mask, mut levels, mut probabilities) = (vec![], vec![], vec![]);
        for head in heads {
            let n = head.len(channels);
            mask.extend(vec![MaskReason::Allowed; n]);
            levels.push(rng.random_range(0..n) as Level);
            let weights: Vec<f64> = (0..n).map(|_| rng.random::<f64>() + 0.1).collect();
            let sum: f64 = weights.iter().sum();
            probabilities.extend(weights.iter().map(|w| w / sum));
        }
        Self {
            is_disk,
            values,
            channels: tables,
            current: vec![0; heads.len()],
            mask,
            levels,
            probabilities,
        }
    }

    fn taken<'a>(&'a self, spec: &'a EnvSpec) -> TakenTurn<'a> {
        let current = ArrayView1::from(&self.current);
        let [disk, device, host] = &self.values;
        TakenTurn {
            view: TurnView {
                turn: if self.is_disk {
                    Turn::Disk(0)
                } else {
                    Turn::Device(0)
                },
                heads: if self.is_disk {
                    &spec.disk_heads
                } else {
                    &spec.device_heads
                },
                disk: self.is_disk.then(|| disk.view()),
                device: Some(device.view()),
                host: host.view(),
                channels: self.channels[0].view(),
                pairs: self.is_disk.then(|| self.channels[1].view()),
                current,
                default: current,
                mask: &self.mask,
            },
            levels: &self.levels,
            probabilities: &self.probabilities,
        }
    }
}

fn build(spec: &EnvSpec, steps: &[(&[&Row], Outcome)]) -> Decisions {
    let normalisers = PerTable::build(spec, |_, features| Normaliser::identity(features.len()));
    let mut builder = Builder::new(spec, &normalisers);
    for (rows, outcome) in steps {
        builder.push(rows.iter().map(|row| row.taken(spec)), *outcome);
    }
    builder.build().unwrap()
}

fn outcome(reward: f64, then: Then) -> Outcome {
    Outcome {
        reward,
        then,
        group: 0,
    }
}

/// A network that says the same whatever it sees: its value is 2, level l of each head scores l.
fn counting(spec: &EnvSpec) -> Network {
    let mut tensors = architecture().initial_tensors(spec, &mut Rng::seed_from_u64(0));
    for (name, Plain { shape, data }) in &mut tensors {
        data.fill(0.0);
        if name == "critic.value.bias" {
            data[0] = 2.0;
        } else if name.contains(".head.") && name.ends_with(".bias") && !name.contains("query") {
            let is_channel = name.ends_with("score.bias");
            (0..shape[0])
                .for_each(|level| data[level] = level as f32 + f32::from(u8::from(is_channel)));
        }
    }
    Network::from_tensors(spec, architecture(), &tensors, Kind::Double).unwrap()
}

/// Two joint decisions, the second after the first and terminated. In the second a disk with two channels, of
/// which either scores 1, takes channel, cache and polling levels with probabilities (0.2, 0.5, 0.3), (0.6, 0.4),
/// (1, 0, the mask leaving it no choice), and a device level 1 with 0.25: so
/// V = ((2 + 0.8 + 0.4) + 0.25)/2 = 1.725. Targets at γ = 0.5 and rewards −1 and −3: −1 + 0.5·(10 + 2·1.725) and −3.
#[test]
fn targets_are_those_worked_by_hand() {
    let (spec, mut rng) = (spec(), Rng::seed_from_u64(1));
    let mut draw = |is_disk| Row::drawn(&spec, is_disk, 2, &mut rng);
    let (first, mut disk, mut device) = (draw(true), draw(true), draw(false));
    disk.probabilities = vec![0.2, 0.5, 0.3, 0.6, 0.4, 1.0, 0.0];
    disk.mask[6] = MaskReason::Unsupported;
    device.probabilities = vec![0.75, 0.25];
    let decisions = build(
        &spec,
        &[
            (&[&first], outcome(-1.0, Then::Next)),
            (&[&disk, &device], outcome(-3.0, Then::End)),
        ],
    );
    let decisions = decisions.to_kind(Kind::Double).unwrap();
    let config = FqeConfig::new(0.5, 2, 0);
    let network = counting(&spec);
    let fitting = Fitting {
        adam: Adam::new(AdamConfig::default(), network.parameters()).unwrap(),
        network,
        decisions: &decisions,
        config: &config,
        rng: Rng::seed_from_u64(0),
        steps_to_go: 2,
    };
    let scale = Scale {
        mean: 10.0,
        deviation: 2.0,
    };
    let targets = fitting.targets(&[0, 1], Some(scale)).unwrap();
    for ((_, target), wanted) in targets.iter().zip([-1.0 + 0.5 * 13.45, -3.0]) {
        // Probabilities are held in f32.
        assert!((target - wanted).abs() < 1e-6, "{target} {wanted}");
    }
    let first = fitting.targets(&[0, 1], None).unwrap();
    assert_eq!(first, [(0, -1.0), (1, -3.0)]);
}

#[test]
fn what_is_expected_is_the_mean_over_all_joint_choices() {
    let (spec, mut rng) = (spec(), Rng::seed_from_u64(2));
    let network = Network::new(&spec, architecture(), &mut rng).unwrap();
    let mut rows = [
        Row::drawn(&spec, true, 2, &mut rng),
        Row::drawn(&spec, false, 2, &mut rng),
    ];
    let of = |rows: &[Row; 2], of: Of| {
        let [disk, device] = rows;
        // Among others, with fewer channels and without a device.
        let other = Row::drawn(&spec, true, 1, &mut Rng::seed_from_u64(3));
        let whole = build(
            &spec,
            &[
                (&[&other], outcome(0.0, Then::Next)),
                (&[disk, device], outcome(0.0, Then::Next)),
                (&[&other], outcome(0.0, Then::End)),
            ],
        );
        let found = no_grad(|| q(&network, &whole, &[2, 1], of)).unwrap();
        found.double_value(&[1])
    };
    let wanted = of(&rows, Of::Expected);
    let sizes = [3, 2, 2, 2_usize];
    let mut mean = 0.0;
    for code in 0..sizes.iter().product::<usize>() {
        let (mut rest, mut p) = (code, 1.0);
        let levels = sizes.map(|size| {
            let level = rest % size;
            rest /= size;
            level
        });
        for (head, level) in levels.iter().enumerate() {
            p *= match head {
                3 => rows[1].probabilities[*level],
                head => rows[0].probabilities[[0, 3, 5][head] + level],
            };
        }
        rows[0].levels = levels[..3].iter().map(|level| *level as Level).collect();
        rows[1].levels = vec![levels[3] as Level];
        mean += p * of(&rows, Of::Taken);
    }
    assert!((mean - wanted).abs() < 1e-5, "{mean} {wanted}");
}

#[test]
fn gradients_are_those_of_differences() {
    let (spec, mut rng) = (spec(), Rng::seed_from_u64(4));
    let tensors = architecture().initial_tensors(&spec, &mut rng);
    let rows: Vec<Row> = (0..6)
        .map(|i| Row::drawn(&spec, i % 3 != 2, 2, &mut rng))
        .collect();
    let all: Vec<&Row> = rows.iter().collect();
    let decisions = build(
        &spec,
        &[
            (&all[..3], outcome(-1.0, Then::Next)),
            (&all[3..], outcome(-3.0, Then::End)),
        ],
    );
    let decisions = decisions.to_kind(Kind::Double).unwrap();
    let scale = Scale {
        mean: -2.0,
        deviation: 1.5,
    };
    let lessons = [(0, -1.0), (1, -3.0)];
    let network = Network::from_tensors(&spec, architecture(), &tensors, Kind::Double).unwrap();
    let at = || loss(&network, &decisions, &lessons, scale).unwrap();
    let parameters: Vec<&Tensor> = network.parameters().values().collect();
    let gradients = Tensor::run_backward(&[at()], &parameters, false, false);
    let mut moved = 0;
    for ((name, parameter), gradient) in network.parameters().iter().zip(&gradients) {
        let gradient = gradient.view([-1]).double_value(&[0]);
        let nudge = |by: f64| {
            no_grad(|| {
                let _ = parameter
                    .detach()
                    .view([-1])
                    .narrow(0, 0, 1)
                    .g_add_scalar_(by);
            });
        };
        let step = 1e-5;
        nudge(step);
        let above = at().double_value(&[]);
        nudge(-2.0 * step);
        let below = at().double_value(&[]);
        nudge(step);
        let difference = (above - below) / (2.0 * step);
        assert!(
            (gradient - difference).abs() < 1e-7 * (1.0 + difference.abs()),
            "{name}: {gradient} {difference}"
        );
        moved += usize::from(difference != 0.0);
    }
    assert!(
        moved > parameters.len() / 2,
        "{moved} of {}",
        parameters.len()
    );
}

#[test]
fn groups_are_held_out_or_kept_for_the_early_stop_as_a_whole() {
    let (spec, mut rng) = (spec(), Rng::seed_from_u64(5));
    let row = Row::drawn(&spec, true, 1, &mut rng);
    let rows = [&row];
    let steps: Vec<(&[&Row], Outcome)> = (0..40)
        .map(|i| {
            let then = if i % 2 == 0 {
                Then::Next
            } else {
                Then::Unknown
            };
            let outcome = Outcome {
                group: i / 4,
                ..outcome(0.0, then)
            };
            (&rows[..], outcome)
        })
        .collect();
    let decisions = build(&spec, &steps);
    let (train, check) = split(&decisions, |group| group >= 7).unwrap();
    assert_eq!(check, [16, 18]);
    assert_eq!(train, [0, 2, 4, 6, 8, 10, 12, 14, 20, 22, 24, 26]);
    let (train, check) = split(&decisions, |group| group >= 2).unwrap();
    assert_eq!((train, check), (vec![0, 2], vec![4, 6]));
}

#[test]
fn a_mean_that_rewards_cannot_add_up_to_is_refused() {
    let (spec, mut rng) = (spec(), Rng::seed_from_u64(6));
    let row = Row::drawn(&spec, true, 1, &mut rng);
    let decisions = build(&spec, &[(&[&row], outcome(0.0, Then::End))]);
    let network = Network::new(&spec, architecture(), &mut rng).unwrap();
    let config = FqeConfig::new(0.5, 2, 0);
    let fitting = Fitting {
        adam: Adam::new(AdamConfig::default(), network.parameters()).unwrap(),
        network,
        decisions: &decisions,
        config: &config,
        rng,
        steps_to_go: 2,
    };
    let says = |values: &[f64]| fitting.check_reach(values, [-2.0, -1.0], 1.5);
    assert!(says(&[-4.4, -1.0]).is_ok());
    assert!(matches!(
        says(&[-6.0, -5.0]),
        Err(LearnError::FitDiverged { .. })
    ));
    assert!(says(&[f64::NAN]).is_err());
}
