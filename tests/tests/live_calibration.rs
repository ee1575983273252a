//! From a real guest to a scenario: its knobs are swept and recorded, and the fit predicts settings
//! that it has not seen. Small, on whatever else the machine does: `scripts/calibrate-guest.sh` gives
//! the figures.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use blkpilot_agent::backend::HostBackend as _;
use blkpilot_agent::backend::live::LibvirtHost;
use blkpilot_agent::backend::modes::{Modes, Reach};
use blkpilot_agent::config::mode::Mode;
use blkpilot_agent::config::{LibvirtConfig, OnExit};
use blkpilot_agent::sweep::{self, Plan, Report, Sweep};
use blkpilot_env::sim::SimHost;
use blkpilot_host::channel::ChannelConfig;
use blkpilot_host::{CpuSet, DedicatedCpuRule, DeviceRules, DiskBounds};
use blkpilot_lab::calibrate::{Effort, Holdout, Options, calibrate};
use blkpilot_log::recording::{Recorder, Source};
use blkpilot_tests::fixture::{Fixture, preset};
use blkpilot_tests::live;

const INTERVAL: Duration = Duration::from_millis(500);
const PLAN: Plan = Plan {
    rounds: 2,
    settle: 3,
    measure: 3,
    most_settings: 8,
    seed: 2,
};

fn record(fixture: &Fixture, dir: &Path, recording: &Path) -> Report {
    let config = LibvirtConfig {
        uri: fixture.uri(),
        interval: INTERVAL,
        on_exit: OnExit::Revert,
        channels: ChannelConfig::Cores,
        reserved_cpus: CpuSet::default(),
        dedicated_cpus: DedicatedCpuRule::default(),
        devices: DeviceRules::new(),
        buffered: Default::default(),
        disks: DiskBounds::default(),
    };
    let modes = Modes {
        default: Mode::Advise,
        guests: BTreeMap::new(),
        candidate: Reach::Nobody,
    };
    let source = Source {
        name: fixture.uri(),
        is_simulated: false,
        interval_s: INTERVAL.as_secs_f64(),
    };
    let mut recorder = Recorder::append(recording, source).unwrap();
    let mut host = LibvirtHost::open(&config, &modes, dir).unwrap();
    let swept = Sweep {
        host: &mut host,
        modes: &modes,
        record: &mut |sample| recorder.record(sample),
        pause: &mut || {
            sleep(INTERVAL);
            true
        },
        progress: &mut |_, _| (),
    };
    let report = sweep::run(swept, PLAN).unwrap();
    host.observe().unwrap();
    let disks = &host.sample().disks;
    assert!(disks.iter().all(|d| d.settings == d.default), "{disks:?}");
    recorder.finish().unwrap();
    report
}

#[test]
fn a_guest_is_recorded_under_its_settings_and_predicted_under_those_held_out() {
    let guests = vec![preset("calibration").unwrap()];
    let Some(fixture) = live::fixture("live_calibration", guests) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("host.rec");
    let swept = record(&fixture, dir.path(), &recording);
    assert!(swept.failures.is_empty(), "{:?}", swept.failures);
    assert!(swept.settings >= 4, "{swept:?}");

    let options = Options {
        settle: PLAN.settle as usize,
        holdout: Holdout::Each,
        effort: Effort {
            starts: 1,
            restarts: 1,
            steps_per_parameter: 40,
        },
        seed: 1,
        threads: 2,
    };
    let found = calibrate(&recording, &options, &|_, _| ()).unwrap();
    let report = &found.report;
    let tally = &report.tally;
    assert_eq!(report.settings, swept.settings);
    assert_eq!(tally.samples, swept.samples);
    let skipped: u64 = tally.skipped.values().sum();
    assert_eq!(tally.used + skipped + 1, tally.samples, "{tally}");
    // Each setting is measured in two runs of three windows, and few of them are spoilt.
    assert!(tally.used >= swept.samples / 2, "{tally}");

    // Loose: on an idle machine it is a few percent.
    let (held_out, naive) = (report.held_out.unwrap(), report.naive.unwrap());
    assert!(held_out.iops.median < 0.5, "{held_out:?}");
    assert!(held_out.latency_us.median < 0.6, "{held_out:?}");
    assert!(
        held_out.iops.median < naive.iops.median,
        "{held_out:?} {naive:?}"
    );
    assert!(
        held_out.latency_us.median < naive.latency_us.median,
        "{held_out:?} {naive:?}"
    );
    SimHost::fixed(found.scenario).unwrap();
}
