//! A process with two states and two heads, logs of it, and networks that say what they are told.

use blkpilot_env::{
    Autoreset, EnvSpec, Feature, Head, HeadScope, Level, Levels, MaskReason, Rng, Scale, Turn,
    TurnView, Unit,
};
use blkpilot_learn::offline::{Builder, Dataset, Joint, Logged, Offline};
use blkpilot_learn::{LearnError, Network};
use blkpilot_models::{Architecture, Checkpoint, Statistics, Tensor as Plain};
use ndarray::{ArrayView1, ArrayView2};
use rand::{RngExt as _, SeedableRng as _};
use tch::{Kind, Tensor};

pub(crate) const SMALL: Architecture = Architecture {
    hidden: 16,
    channel_hidden: 4,
    kind: blkpilot_models::architecture::Kind::PointerV1,
};

pub(crate) fn spec() -> EnvSpec {
    let state = |number: usize| Feature {
        name: format!("state_{number}"),
        unit: Unit::Flag,
        low: 0.0,
        high: 1.0,
        scale: Scale::Linear,
        doc: String::new(),
    };
    let head = |name: &str, levels: &[&str]| Head {
        name: name.to_owned(),
        levels: Levels::Named(levels.iter().map(|level| (*level).to_owned()).collect()),
        scope: HeadScope::Disk,
    };
    EnvSpec {
        name: "process".to_owned(),
        disk_features: (0..2).map(state).collect(),
        channel_features: vec![],
        pair_features: vec![],
        device_features: vec![],
        host_features: vec![],
        disk_heads: vec![head("first", &["a", "b"]), head("second", &["a", "b", "c"])],
        device_heads: vec![],
        projections: vec![],
        reward_terms: vec!["reward".to_owned()],
        reward_range: (-4.0, 4.0),
        autoreset: Autoreset::Disabled,
    }
}

/// A turn; its disk is its place in its joint decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) state: [f32; 2],
    pub(crate) levels: [Level; 2],
    pub(crate) reward: Option<f32>,
    /// Levels that may not be chosen, of the five of both heads.
    pub(crate) closed: &'static [usize],
}

impl Row {
    fn mask(&self) -> [MaskReason; 5] {
        let mut mask = [MaskReason::Allowed; 5];
        for level in self.closed {
            mask[*level] = MaskReason::Frozen;
        }
        mask
    }
}

fn with_view<T>(spec: &EnvSpec, row: &Row, then: impl FnOnce(TurnView<'_>) -> T) -> T {
    let nothing = || ArrayView2::from_shape((0, 0), &[]).unwrap();
    let mask = row.mask();
    then(TurnView {
        turn: Turn::Disk(0),
        heads: &spec.disk_heads,
        disk: Some(ArrayView1::from(&row.state)),
        device: None,
        host: ArrayView1::from(&[]),
        channels: nothing(),
        pairs: Some(nothing()),
        current: ArrayView1::from(&row.levels),
        default: ArrayView1::from(&row.levels),
        mask: &mask,
    })
}

pub(crate) fn builder(spec: &EnvSpec, joints: &[&[Row]]) -> Result<Builder, LearnError> {
    let mut statistics = Statistics::new(spec);
    for row in joints.iter().copied().flatten() {
        with_view(spec, row, |view| statistics.observe(&view));
    }
    Builder::new(spec, statistics)
}

/// Joint decisions of one host that follow each other; the last terminates, or is cut.
pub(crate) fn try_dataset(
    spec: &EnvSpec,
    joints: &[&[Row]],
    terminates: bool,
) -> Result<Dataset, LearnError> {
    let mut builder = builder(spec, joints)?;
    for (number, rows) in joints.iter().enumerate() {
        let joint = Joint {
            host: 0,
            follows: number > 0,
            has_terminated: terminates && number + 1 == joints.len(),
        };
        push(&mut builder, spec, joint, rows, &[0.5, 0.25]);
    }
    builder.build("digest".to_owned())
}

pub(crate) fn dataset(spec: &EnvSpec, joints: &[&[Row]], terminates: bool) -> Dataset {
    try_dataset(spec, joints, terminates).unwrap()
}

fn push(builder: &mut Builder, spec: &EnvSpec, joint: Joint, rows: &[Row], propensities: &[f64]) {
    let masks: Vec<[MaskReason; 5]> = rows.iter().map(Row::mask).collect();
    let nothing = || ArrayView2::from_shape((0, 0), &[]).unwrap();
    let turns = rows
        .iter()
        .zip(&masks)
        .enumerate()
        .map(|(disk, (row, mask))| Logged {
            view: TurnView {
                turn: Turn::Disk(disk),
                heads: &spec.disk_heads,
                disk: Some(ArrayView1::from(&row.state)),
                device: None,
                host: ArrayView1::from(&[]),
                channels: nothing(),
                pairs: Some(nothing()),
                current: ArrayView1::from(&row.levels),
                default: ArrayView1::from(&row.levels),
                mask,
            },
            disk: disk as u32,
            levels: &row.levels,
            propensities,
            reward: row.reward,
        });
    builder.push(joint, turns);
}

/// Probability of level 1 of the first head and of level 2 of the second, by state; the second head's others are as
/// likely as each other.
pub(crate) const BEHAVIOUR: [[f64; 2]; 2] = [[0.3, 0.2], [0.6, 0.5]];
/// The best levels by state.
pub(crate) const BEST: [[usize; 2]; 2] = [[1, 2], [0, 0]];
/// Steps of an episode, after which it has terminated.
const STEPS: usize = 6;

/// In state 0 level 1 of the first head costs 0.2 and leads to state 1, level 0 costs nothing and stays; in state 1
/// level 0 earns 1 and stays, level 1 earns 1.2 and leads back. The second head earns 0.5 with level 2 in state 0 and
/// with level 0 in state 1.
fn earned(state: usize, [first, second]: [usize; 2]) -> (f64, usize) {
    let (reward, next) = match (state, first) {
        (0, 0) => (0.0, 0),
        (0, _) => (-0.2, 1),
        (_, 0) => (1.0, 1),
        (_, _) => (1.2, 0),
    };
    let right = second == [2, 0][state];
    (reward + if right { 0.5 } else { 0.0 }, next)
}

/// What the best policy brings from state 0 on over [`STEPS`] steps.
pub(crate) fn value_of_best(gamma: f64) -> f64 {
    let (mut sum, mut state, mut discount) = (0.0, 0, 1.0);
    for _ in 0..STEPS {
        let (reward, next) = earned(state, BEST[state]);
        sum += discount * reward;
        (state, discount) = (next, discount * gamma);
    }
    sum
}

/// Episodes of the behaviour in the process, from state 0 on.
pub(crate) fn log_of_process(episodes: usize, seed: u64) -> Dataset {
    let spec = spec();
    let mut rng = Rng::seed_from_u64(seed);
    let mut taken = vec![];
    for _ in 0..episodes {
        let mut state = 0;
        for step in 0..STEPS {
            let [one, two] = BEHAVIOUR[state];
            let first = usize::from(rng.random::<f64>() < one);
            let at: f64 = rng.random();
            let second = if at < two {
                2
            } else {
                usize::from(at < two + (1.0 - two) / 2.0)
            };
            let propensities = [
                if first == 1 { one } else { 1.0 - one },
                if second == 2 { two } else { (1.0 - two) / 2.0 },
            ];
            let (reward, next) = earned(state, [first, second]);
            taken.push((step, row(state, [first, second], reward), propensities));
            state = next;
        }
    }
    let mut statistics = Statistics::new(&spec);
    for (_, row, _) in &taken {
        with_view(&spec, row, |view| statistics.observe(&view));
    }
    let mut builder = Builder::new(&spec, statistics).unwrap();
    for (step, row, propensities) in &taken {
        let joint = Joint {
            host: 0,
            follows: *step > 0,
            has_terminated: step + 1 == STEPS,
        };
        push(&mut builder, &spec, joint, &[*row], propensities);
    }
    builder
        .build(format!("{episodes} episodes, seed {seed}"))
        .unwrap()
}

fn row(state: usize, levels: [usize; 2], reward: f64) -> Row {
    Row {
        state: [0, 1].map(|of| f32::from(u8::from(of == state))),
        levels: levels.map(|level| level as Level),
        reward: Some(reward as f32),
        closed: &[],
    }
}

/// Scores of the learner's checkpoint in both states, as they are served.
fn scores(learner: &Offline) -> [Vec<f64>; 2] {
    let checkpoint = learner.checkpoint(serde_json::Value::Null).unwrap();
    let policy = blkpilot_models::ActorCritic::new(&checkpoint).unwrap();
    let mut scratch = blkpilot_models::network::Scratch::default();
    [0, 1].map(|state| {
        let row = row(state, [0, 0], 0.0);
        with_view(&spec(), &row, |view| {
            let scores = policy.scores(&view, &mut scratch).unwrap();
            scores.iter().map(|score| f64::from(*score)).collect()
        })
    })
}

/// As [`BEHAVIOUR`], of the learner's policy.
pub(crate) fn probabilities(learner: &Offline) -> [[f64; 2]; 2] {
    scores(learner).map(|scores| {
        let share =
            |of: &[f64], level: usize| of[level].exp() / of.iter().map(|s| s.exp()).sum::<f64>();
        [share(&scores[..2], 1), share(&scores[2..], 2)]
    })
}

/// As [`BEST`], of the learner's policy.
pub(crate) fn greedy(learner: &Offline) -> [[usize; 2]; 2] {
    let best = |of: &[f64]| {
        (0..of.len())
            .max_by(|a, b| of[*a].total_cmp(&of[*b]))
            .unwrap()
    };
    scores(learner).map(|scores| [best(&scores[..2]), best(&scores[2..])])
}

fn checkpoint(spec: &EnvSpec, seed: u64) -> Checkpoint {
    Checkpoint::untrained(spec, SMALL, &mut Rng::seed_from_u64(seed))
}

/// A network with weights drawn from `seed`, in f64.
pub(crate) fn drawn(spec: &EnvSpec, seed: u64) -> Network {
    let Checkpoint { mut tensors, .. } = checkpoint(spec, seed);
    let mut rng = Rng::seed_from_u64(seed);
    // Biases too, and layers that give scores, are to be seen in what comes out.
    for Plain { data, .. } in tensors.values_mut() {
        data.iter_mut()
            .for_each(|w| *w += rng.random_range(-0.5..0.5_f32));
    }
    Network::from_tensors(spec, SMALL, &tensors, Kind::Double).unwrap()
}

/// A network that says the same of every turn.
pub(crate) fn constant(spec: &EnvSpec, value: f64, first: &[f64], second: &[f64]) -> Network {
    let Checkpoint { mut tensors, .. } = checkpoint(spec, 1);
    for (name, Plain { data, .. }) in &mut tensors {
        data.fill(0.0);
        let says = match name.as_str() {
            "critic.value.bias" => &[value][..],
            "actor.head.first.bias" => first,
            "actor.head.second.bias" => second,
            _ => continue,
        };
        data.iter_mut()
            .zip(says)
            .for_each(|(bias, own)| *bias = *own as f32);
    }
    Network::from_tensors(spec, SMALL, &tensors, Kind::Double).unwrap()
}

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
}
