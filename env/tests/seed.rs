//! The rows of the article that the project started from, on the presets `seed_hdd` and `seed_ssd`.

#![allow(clippy::unwrap_used, reason = "test code outside #[test] functions")]

use blkpilot_env::sample::{Cache, HostSample};
use blkpilot_env::sim::{Scenario, SimHost, presets};
use blkpilot_env::window::DiskWindow;
use blkpilot_env::{Environment as _, ResetOptions};

const GB: f64 = 1e9;

/// A run of one phase of a preset, with the counters before and after each interval.
fn run(preset: &str, phase: usize, cache: Cache, steps: usize) -> Vec<HostSample> {
    let mut scenario: Scenario = presets::by_name(preset).unwrap();
    scenario.disks[0].phases = vec![scenario.disks[0].phases[phase].clone()];
    scenario.disks[0].default_cache = cache;
    let mut host = SimHost::fixed(scenario).unwrap();
    let warm = ResetOptions::from([("page_cache".to_owned(), "warm".to_owned())]);
    let obs = host.reset(Some(1), &warm).unwrap();
    let mut samples = vec![host.sample().unwrap().clone()];
    for _ in 0..steps {
        host.step(&obs.default).unwrap();
        samples.push(host.sample().unwrap().clone());
    }
    samples
}

fn between(samples: &[HostSample], from: usize, to: usize) -> DiskWindow {
    let (from, to) = (&samples[from], &samples[to]);
    let span_s = (to.at - from.at).as_secs_f64();
    DiskWindow::between(&from.disks[0], &to.disks[0], span_s)
}

fn close(what: &str, got: f64, wanted: f64) {
    println!("{what}: {got:.4} for {wanted}");
    assert!(
        (got / wanted - 1.0).abs() < 0.1,
        "{what}: {got} for {wanted}"
    );
}

#[test]
fn sequential_writes_of_32_jobs() {
    for (preset, gb_per_s, depth) in [("seed_hdd", 1.23, 37.0), ("seed_ssd", 3.05, 9.0)] {
        let window = between(&run(preset, 0, Cache::Direct, 20), 10, 20);
        let rate = window.iops.unwrap() * window.request_bytes.unwrap() / GB;
        close(&format!("{preset} GB/s"), rate, gb_per_s);
        close(
            &format!("{preset} queue depth"),
            window.queue_depth.unwrap(),
            depth,
        );
    }
}

#[test]
fn random_reads_of_4_kib() {
    for (preset, latency_us) in [("seed_hdd", 87.4), ("seed_ssd", 14.6)] {
        let window = between(&run(preset, 1, Cache::Direct, 20), 10, 20);
        close(
            &format!("{preset} latency"),
            window.latency_us_mean.unwrap(),
            latency_us,
        );
    }
}

#[test]
fn virtualisation_adds_7_2_percent_to_the_latency_of_the_ssd() {
    let samples = run("seed_ssd", 1, Cache::Direct, 20);
    let reference = samples[0].devices[0].reference;
    let bare = reference.read_us + 4096.0 / reference.bytes_per_sec * 1e6;
    let window = between(&samples, 10, 20);
    close(
        "extra latency",
        window.latency_us_mean.unwrap() / bare - 1.0,
        0.072,
    );
}

#[test]
fn the_page_cache_of_the_ssd_host_misses_1_3_percent() {
    let window = between(&run("seed_ssd", 2, Cache::Buffered, 20), 10, 20);
    close("hit rate", window.hit_rate.unwrap(), 0.987);
    close("miss rate", 1.0 - window.hit_rate.unwrap(), 0.013);
}

/// Bytes copied so far: each was read once and written once beyond what the guest wrote.
fn copied(sample: &HostSample) -> f64 {
    let device = &sample.devices[0];
    (device.reads.bytes + device.writes.bytes - sample.disks[0].writes.bytes) as f64 / 2.0
}

/// Share of the throughput kept until 95 % of `shared` bytes have been copied, and how many seconds that
/// takes: the last clusters are written late.
fn snapshot(preset: &str, shared: f64) -> (f64, f64) {
    let before = between(&run(preset, 3, Cache::Direct, 5), 1, 5)
        .iops
        .unwrap();
    let samples = run(preset, 4, Cache::Direct, 1000);
    let is_copied = |s: &HostSample| copied(s) >= 0.95 * shared;
    let end = samples
        .iter()
        .position(is_copied)
        .expect("copied within the run");
    let seconds = (samples[end].at - samples[0].at).as_secs_f64();
    println!("{preset}: copied in {seconds} s");
    (between(&samples, 0, end).iops.unwrap() / before, seconds)
}

#[test]
fn a_snapshot_leaves_the_ssd_82_percent_and_copies_3_2_gb() {
    let (kept, _) = snapshot("seed_ssd", 3.2 * GB);
    close("seed_ssd throughput kept", kept, 0.82);
    let samples = run("seed_ssd", 4, Cache::Direct, 600);
    close("seed_ssd copied, GB", copied(&samples[600]) / GB, 3.2);
}

#[test]
fn a_snapshot_leaves_the_hdd_15_percent_for_432_seconds() {
    let shared = presets::by_name("seed_hdd").unwrap().disks[0].phases[4].working_set_gib;
    let (kept, seconds) = snapshot("seed_hdd", shared * 1_073_741_824.0);
    close("seed_hdd throughput kept", kept, 0.15);
    close("seed_hdd seconds", seconds, 432.0);
}
