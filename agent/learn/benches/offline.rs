//! Gradient steps of conservative Q-learning per second of CPU time, on one thread.
//!
//! Prints a line of JSON: the median over runs, and each of them. The transitions are made up, of CartPole's shape, and
//! the same as in scripts/bench_cql_peer.py, which measures d3rlpy's DiscreteCQL on them. Sampling of minibatches is part
//! of a step, on both sides. Ours has two encoders of 64 × 64 (value and advantages), d3rlpy's one, so that a step of ours
//! does about twice the arithmetic.
//!
//! ```text
//! cargo bench --workspace --bench offline
//! ```

#![expect(clippy::unwrap_used, reason = "a benchmark may fail where it stands")]

use blkpilot_env::cartpole::CartPole;
use blkpilot_env::{EnvSpec, Environment as _, Level, MaskReason, Turn, TurnView};
use blkpilot_learn::offline::{
    Algorithm, Builder, CqlConfig, Dataset, Joint, Logged, Offline, OfflineConfig, TdLoss,
};
use blkpilot_learn::ppo::Schedule;
use blkpilot_models::{Architecture, Statistics};
use ndarray::{ArrayView1, ArrayView2};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

const TURNS: usize = 10_000;
/// Turns of an episode; the last of each terminates.
const EPISODE: usize = 100;
const MINIBATCH: usize = 256;
const WARM_UP: u64 = 200;
const STEPS: u64 = 1_000;
const RUNS: usize = 5;

fn main() {
    let spec = CartPole::new(0).spec().clone();
    let config = OfflineConfig {
        algorithm: Algorithm::Cql(CqlConfig {
            alpha: 1.0,
            td_loss: TdLoss::Huber,
            target_every: 8_000,
        }),
        minibatch: MINIBATCH,
        gamma: 0.99,
        learning_rate: Schedule::Constant(6.25e-5),
        max_grad_norm: None,
    };
    let architecture = Architecture::default();
    let shapes = architecture.tensor_shapes(&spec).into_values();
    let parameters: usize = shapes.map(|shape| shape.iter().product::<usize>()).sum();
    let mut learner = Offline::new(&spec, architecture, config, transitions(&spec), 1).unwrap();
    learner.learn(WARM_UP, 0.0).unwrap();
    let mut rates: Vec<f64> = (0..RUNS).map(|_| rate(&mut learner)).collect();
    let runs: Vec<String> = rates.iter().map(|rate| format!("{rate:.1}")).collect();
    rates.sort_by(f64::total_cmp);
    println!(
        "{{\"cql_grad_steps_per_cpu_s\": {:.1}, \"runs\": [{}], \"steps\": {STEPS}, \"minibatch\": {MINIBATCH}, \"hidden\": {}, \"parameters\": {parameters}}}",
        rates[RUNS / 2],
        runs.join(", "),
        architecture.hidden
    );
}

/// Gradient steps per second of CPU time, of user and system together.
fn rate(learner: &mut Offline) -> f64 {
    let before = cpu_s();
    learner.learn(STEPS, 0.0).unwrap();
    STEPS as f64 / (cpu_s() - before)
}

fn cpu_s() -> f64 {
    let used = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (used.user_time().num_microseconds() + used.system_time().num_microseconds()) as f64 / 1e6
}

fn transitions(spec: &EnvSpec) -> Dataset {
    let seen = |turn: usize| -> [f32; 4] {
        std::array::from_fn(|column| (0.37 * turn as f64 + 1.3 * column as f64).sin() as f32)
    };
    let with_view = |turn: usize, then: &mut dyn for<'a> FnMut(TurnView<'a>, &'a [Level])| {
        let (row, levels) = (seen(turn), [(turn * 7 / 3 % 2) as Level]);
        let nothing = || ArrayView2::from_shape((0, 0), &[]).unwrap();
        let view = TurnView {
            turn: Turn::Disk(0),
            heads: &spec.disk_heads,
            disk: Some(ArrayView1::from(&row)),
            device: None,
            host: ArrayView1::from(&[]),
            channels: nothing(),
            pairs: Some(nothing()),
            current: ArrayView1::from(&levels),
            default: ArrayView1::from(&levels),
            mask: &[MaskReason::Allowed; 2],
        };
        then(view, &levels);
    };
    let mut statistics = Statistics::new(spec);
    (0..TURNS).for_each(|turn| with_view(turn, &mut |view, _| statistics.observe(&view)));
    let mut builder = Builder::new(spec, statistics).unwrap();
    for turn in 0..TURNS {
        with_view(turn, &mut |view, levels| {
            let joint = Joint {
                host: 0,
                follows: turn % EPISODE > 0,
                has_terminated: turn % EPISODE + 1 == EPISODE,
            };
            let logged = Logged {
                view,
                disk: 0,
                levels,
                propensities: &[0.5],
                reward: Some(1.0),
            };
            builder.push(joint, [logged]);
        });
    }
    builder.build("made up".to_owned()).unwrap()
}
