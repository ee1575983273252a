//! Speed of the simulated host on one core: disk-steps per second for N disks and K channels, with
//! the allocations of a step, and the cost of a reset; then steps per second of CartPole.
//!
//! Hosts are drawn by the generator, with a device for every 16 disks, and stepped in one `SimBatch`
//! of at least 256 disks. Joint actions are drawn beforehand: once each step takes another one, so
//! that most settings change at every step, and once the same is held. Seconds are CPU seconds, and
//! figures medians over batches of steps.
//!
//! With the environment variable GYMNASIUM_PYTHON, a Python that has Gymnasium, its
//! `CartPoleVectorEnv` is measured beside ours. With `--json FILE` the figures are also written there.

use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use blkpilot_env::cartpole::CartPoleBatch;
use blkpilot_env::conformance::random_action;
use blkpilot_env::sim::{Generator, SimBatch};
use blkpilot_env::{Autoreset, Level, Rng};
use nix::time::{ClockId, clock_gettime};
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Map, Value, json};

const DISKS: [usize; 4] = [1, 16, 128, 1024];
const CHANNELS: [usize; 2] = [4, 16];
const CARTS: [usize; 3] = [1, 8, 1024];
const BATCH_S: f64 = 0.03;
const BUDGET_S: f64 = 1.0;

fn main() {
    let json = std::env::args().skip_while(|arg| arg != "--json").nth(1);
    let mut report = Report::default();
    for disks in DISKS {
        for channels in CHANNELS {
            hosts(&mut report, disks, channels);
        }
    }
    for carts in CARTS {
        cartpole(&mut report, carts);
    }
    if let Some(file) = json {
        std::fs::write(&file, report.json()).expect("the report can be written");
    }
}

fn hosts(report: &mut Report, disks: usize, channels: usize) {
    let size = format!("n{disks}_k{channels}");
    let mut batch = batch(disks, channels);
    let all_disks = (disks * batch.hosts().len()) as f64;
    let reset_s = median_s(|| batch.reset(None));
    batch.reset(Some(1));
    let actions = draw_actions(&batch);
    let mut turns = actions.iter().cycle();
    let mut step = || {
        let action = turns.next().expect("a cycle never ends");
        batch.step(black_box(action)).expect("an allowed action");
    };
    let changing_s = median_s(&mut step);
    const COUNTED: u64 = 16;
    let counted = allocation_counter::measure(|| (0..COUNTED).for_each(|_| step()));
    let held_s = median_s(|| batch.step(black_box(&actions[0])).expect("allowed"));

    report.add("sim_disk_steps_per_s", &size, all_disks / changing_s);
    report.add("sim_disk_steps_per_s_held", &size, all_disks / held_s);
    report.add("sim_disk_resets_per_s", &size, all_disks / reset_s);
    let per_step = counted.count_total as f64 / COUNTED as f64;
    report.add("sim_allocs_per_step", &size, per_step);
}

fn batch(disks: usize, channels: usize) -> SimBatch {
    let devices = (disks / 16).max(1);
    let generator = Generator {
        disks: (disks, disks),
        channels: (channels, channels),
        devices: (devices, devices),
        steps: 1_000_000,
        ..Generator::default()
    };
    let hosts = (256 / disks).max(1);
    let mut batch = SimBatch::generated(generator, hosts).expect("a valid generator");
    batch.reset(Some(1));
    batch
}

/// Random joint actions of all hosts, packed. What is allowed on a simulated host never changes.
fn draw_actions(batch: &SimBatch) -> Vec<Vec<Level>> {
    const ACTIONS: usize = 16;
    let mut rng = Rng::seed_from_u64(2);
    let mut draw = || {
        let mut packed = Vec::with_capacity(batch.action_len());
        for host in batch.hosts() {
            let action = random_action(batch.spec(), host.observation(), &mut rng);
            packed.extend(action.disks.iter().chain(&action.devices));
        }
        packed
    };
    (0..ACTIONS).map(|_| draw()).collect()
}

fn cartpole(report: &mut Report, carts: usize) {
    let mut batch = CartPoleBatch::new(carts, 1, Autoreset::NextStep);
    batch.reset(Some(1));
    let mut rng = Rng::seed_from_u64(2);
    let levels: Vec<Vec<Level>> = (0..64)
        .map(|_| (0..carts).map(|_| rng.random_range(0..2)).collect())
        .collect();
    let mut turns = levels.iter().cycle();
    let ours_s = median_s(|| {
        let levels = turns.next().expect("a cycle never ends");
        batch.step(black_box(levels)).expect("two levels");
    });
    let key = "cartpole_steps_per_s";
    report.add(key, &format!("ours_{carts}"), carts as f64 / ours_s);
    if let Ok(python) = std::env::var("GYMNASIUM_PYTHON") {
        report.add(
            key,
            &format!("gymnasium_{carts}"),
            gymnasium(&python, carts),
        );
    }
}

fn gymnasium(python: &str, carts: usize) -> f64 {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/gymnasium_cartpole.py");
    let run = Command::new(python)
        .args([script, &carts.to_string()])
        .output()
        .expect("GYMNASIUM_PYTHON can be run");
    let printed = String::from_utf8_lossy(&run.stdout);
    printed.trim().parse().unwrap_or_else(|_| {
        let problem = String::from_utf8_lossy(&run.stderr);
        panic!("{script} failed: {problem}")
    })
}

/// Median CPU seconds of one call, over batches of calls; fewer batches where one call takes long.
fn median_s(mut call: impl FnMut()) -> f64 {
    let mut time = |calls: u32| {
        let start = cpu_s();
        (0..calls).for_each(|_| call());
        (cpu_s() - start) / f64::from(calls)
    };
    time(1);
    let one = time(3);
    let calls = (BATCH_S / one).clamp(1.0, 1e6) as u32;
    let batches = (BUDGET_S / (one * f64::from(calls))).clamp(3.0, 15.0) as usize;
    let mut times: Vec<f64> = (0..batches).map(|_| time(calls)).collect();
    times.sort_by(f64::total_cmp);
    times[batches / 2]
}

/// CPU time of this process: others that run meanwhile do not count.
fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has this clock");
    Duration::from(time).as_secs_f64()
}

#[derive(Default)]
struct Report(Map<String, Value>);

impl Report {
    fn add(&mut self, key: &str, size: &str, figure: f64) {
        println!("{key:<28} {size:<16} {figure:>14.1}");
        let figures = self.0.entry(key).or_insert_with(|| json!({}));
        figures[size] = json!(figure);
    }

    fn json(&self) -> String {
        let report = json!({ "bench": "sim", "headlines": self.0 });
        format!("{report:#}\n")
    }
}
