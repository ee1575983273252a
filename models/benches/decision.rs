//! Latency of a decision: one disk, and a joint decision of 100.
//!
//! Each figure is the median over many batches; of the joint decision of 100 disks by a network, the 99th
//! percentile of single decisions is given too: by one of the default size, untrained, and by the packaged
//! policy, whose layers are twice as wide. They are printed in nanoseconds and as a ratio to a
//! matrix–vector product of the network's size in plain loops, measured side by side in the same
//! run: ratios travel between machines, nanoseconds do not. With `--json FILE` they are also
//! written there.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use blkpilot_env::sim::{SimHost, presets};
use blkpilot_env::{EnvSpec, Environment as _, JointDecision, Observation, ResetOptions, Rng};
use blkpilot_models::baseline::LeastLoaded;
use blkpilot_models::{
    Architecture, Checkpoint, NetworkPolicy, Policy, Scratch, Selection, decide,
};
use rand::SeedableRng as _;

const PACKAGED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../agent/configs/policies/default"
);

fn main() {
    let json = std::env::args().skip_while(|arg| arg != "--json").nth(1);
    let mut report = Report::new(median_ns(reference()));
    let (spec, obs) = host(1, 8);
    one_disk(&mut report, &spec, &obs);
    for (disks, channels) in [(100, 8), (100, 32)] {
        let (spec, obs) = host(disks, channels);
        joint(&mut report, &spec, &obs);
    }
    if let Some(file) = json {
        std::fs::write(&file, report.json()).expect("the report can be written");
    }
}

fn host(disks: usize, channels: usize) -> (EnvSpec, Observation) {
    let mut host =
        SimHost::fixed(presets::identical_disks(disks, channels)).expect("a valid preset");
    let obs = host
        .reset(Some(1), &ResetOptions::new())
        .expect("the simulator starts");
    (host.spec().clone(), obs)
}

fn checkpoint(spec: &EnvSpec) -> Checkpoint {
    Checkpoint::untrained(spec, Architecture::default(), &mut Rng::seed_from_u64(1))
}

fn one_disk(report: &mut Report, spec: &EnvSpec, obs: &Observation) {
    let mut rng = Rng::seed_from_u64(2);
    let joint = JointDecision::in_random_order(spec, obs, &mut rng);
    let view = joint.view().expect("one disk has a turn");
    let policy =
        |selection| NetworkPolicy::new("bench", &checkpoint(spec), selection).expect("valid");
    for (name, selection) in [("greedy", Selection::Greedy), ("sample", Selection::Sample)] {
        let mut policy = policy(selection);
        let ns = median_ns(|| {
            black_box(
                policy
                    .choose(spec, black_box(&view), &mut rng)
                    .expect("decides"),
            );
        });
        report.add(&format!("one disk, 8 channels, {name}"), ns, 1);
    }
    let policy = policy(Selection::Greedy);
    let mut scratch = Scratch::default();
    let ns = median_ns(|| {
        black_box(
            policy
                .network()
                .forward(black_box(&view), &mut scratch)
                .expect("decides"),
        );
    });
    report.add("one disk, 8 channels, with value", ns, 1);
    let ns = median_ns(|| {
        black_box(policy.novelty(black_box(&view)));
    });
    report.add("one disk, 8 channels, novelty only", ns, 1);
}

fn joint(report: &mut Report, spec: &EnvSpec, obs: &Observation) {
    let network = |checkpoint: &Checkpoint| {
        let network = NetworkPolicy::new("bench", checkpoint, Selection::Sample);
        Box::new(network.expect("valid"))
    };
    let packaged = Checkpoint::load(Path::new(PACKAGED)).expect("it is in the repository");
    let heuristic = LeastLoaded::new(spec).expect("the spec has its features");
    let policies: [(&str, Box<dyn Policy>); 3] = [
        ("network", network(&checkpoint(spec))),
        ("packaged network", network(&packaged)),
        ("least loaded", Box::new(heuristic)),
    ];
    let mut rng = Rng::seed_from_u64(3);
    for (name, mut policy) in policies {
        let ns = median_ns(|| {
            black_box(decide(&mut *policy, spec, black_box(obs), &mut rng).expect("decides"));
        });
        let (disks, channels) = (obs.disk_count(), obs.channel_count());
        report.add(
            &format!("{disks} disks, {channels} channels, {name}, per disk"),
            ns,
            disks,
        );
        if name.ends_with("network") {
            let ns = p99_ns(|| {
                black_box(decide(&mut *policy, spec, black_box(obs), &mut rng).expect("decides"));
            });
            let name = format!("{disks} disks, {channels} channels, {name}, p99");
            report.add(&name, ns, 1);
        }
    }
}

/// A 160 × 160 matrix–vector product: about the multiplications of a decision with 8 channels.
fn reference() -> impl FnMut() {
    let weight = vec![0.5_f32; 160 * 160];
    let x = vec![0.25_f32; 160];
    move || {
        for row in black_box(&weight).chunks_exact(160) {
            black_box(row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>());
        }
    }
}

/// Median time of one call, over 101 batches of at least 200 µs.
fn median_ns(mut call: impl FnMut()) -> f64 {
    const BATCHES: usize = 101;
    let mut time = |calls: u32| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed().as_nanos() as f64 / f64::from(calls)
    };
    let first = time(10);
    let calls = (200_000.0 / first).clamp(1.0, 100_000.0) as u32;
    let mut times: Vec<f64> = (0..BATCHES).map(|_| time(calls)).collect();
    times.sort_by(f64::total_cmp);
    times[BATCHES / 2]
}

/// 99th percentile of single calls.
fn p99_ns(mut call: impl FnMut()) -> f64 {
    const CALLS: usize = 2000;
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_nanos() as f64
    };
    let mut times: Vec<f64> = (0..CALLS).map(time).collect();
    times.sort_by(f64::total_cmp);
    times[CALLS * 99 / 100]
}

struct Report {
    reference_ns: f64,
    lines: Vec<(String, f64)>,
}

impl Report {
    fn new(reference_ns: f64) -> Self {
        println!(
            "{:<52} {reference_ns:>9.0} ns",
            "reference: 160 × 160 product"
        );
        Self {
            reference_ns,
            lines: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, ns: f64, per: usize) {
        let ns = ns / per as f64;
        println!("{name:<52} {ns:>9.0} ns {:>7.2} ×", ns / self.reference_ns);
        self.lines.push((name.to_owned(), ns));
    }

    fn json(&self) -> String {
        let figures = self.lines.iter().map(|(name, ns)| {
            serde_json::json!({ "name": name, "ns": ns, "ratio": ns / self.reference_ns })
        });
        let figures: Vec<_> = figures.collect();
        format!(
            "{:#}\n",
            serde_json::json!({ "bench": "decision", "figures": figures })
        )
    }
}
