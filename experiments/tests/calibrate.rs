//! Calibration on recordings of simulated hosts whose parameters are known, and on recordings that
//! are no good.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::{Path, PathBuf};

use blkpilot_env::sample::HostSample;
use blkpilot_env::sim::{Costs, Scenario, SimHost, presets};
use blkpilot_env::{Environment as _, JointAction, Level, ResetOptions};
use blkpilot_lab::calibrate::{
    self, CalibrateError, Calibration, Effort, Holdout, Options, calibrate,
};
use blkpilot_log::recording::{Recorder, Source};

const WINDOWS: usize = 6;
const SETTLE: usize = 2;

/// A guest on core 0 with a working set that fits the page cache, on a device with a ceiling, at
/// costs that are nobody's defaults.
fn truth() -> Scenario {
    let mut scenario = presets::capped_device();
    scenario.disks.truncate(1);
    scenario.channels.truncate(2);
    scenario.noise = 0.02;
    scenario.steps = 1000;
    scenario.costs = Costs {
        float_cpu_factor: 1.4,
        preempt_us: 30.0,
        wake_us: 15.0,
        wake_cpu_us: 6.0,
        buffered_delay_us: 8.0,
        buffered_cpu_us: 5.0,
        ..Costs::default()
    };
    scenario.devices[0].max_iops = Some(6_000.0);
    let disk = &mut scenario.disks[0];
    disk.vcpu_channel = Some(0);
    disk.vcpu_cores = 0.0;
    disk.guest_us = 20.0;
    disk.iothread_us = 25.0;
    disk.phases[0].outstanding = 8.0;
    disk.phases[0].think_us = 120.0;
    // Small enough to be in the page cache before the first window that counts.
    disk.phases[0].working_set_gib = 0.01;
    scenario
}

fn source() -> Source {
    Source {
        name: "truth".to_owned(),
        is_simulated: true,
        interval_s: 1.0,
    }
}

/// Records `WINDOWS` windows behind `SETTLE` under each setting; `spoil` may change a sample.
fn record(
    path: &Path,
    scenario: &Scenario,
    settings: &[[Level; 3]],
    mut spoil: impl FnMut(usize, &mut HostSample),
) {
    let mut host = SimHost::fixed(scenario.clone()).unwrap();
    let obs = host.reset(Some(5), &ResetOptions::new()).unwrap();
    let mut recorder = Recorder::append(path, source()).unwrap();
    let mut count = 0;
    for levels in settings {
        let mut action: JointAction = obs.default.clone();
        for (head, level) in levels.iter().enumerate() {
            action.disks.column_mut(head).fill(*level);
        }
        for _ in 0..SETTLE + WINDOWS + 1 {
            host.step(&action).unwrap();
            let mut sample = host.sample().unwrap().clone();
            spoil(count, &mut sample);
            recorder.record(&sample).unwrap();
            count += 1;
        }
    }
    recorder.finish().unwrap();
}

/// Channel, cache and polling, every combination.
fn every_setting() -> Vec<[Level; 3]> {
    let levels = (0..3).flat_map(|k| (0..2).flat_map(move |c| (0..2).map(move |p| [k, c, p])));
    levels.collect()
}

fn options() -> Options {
    Options {
        settle: SETTLE,
        holdout: Holdout::Parts(4),
        effort: Effort {
            starts: 2,
            restarts: 2,
            steps_per_parameter: 40,
        },
        seed: 1,
        threads: 2,
    }
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.rec");
    (dir, path)
}

fn run(path: &Path, options: &Options) -> Result<Calibration, CalibrateError> {
    calibrate(path, options, &|_, _| ())
}

#[test]
fn a_host_is_predicted_under_settings_that_were_held_out() {
    let (dir, path) = scratch();
    record(&path, &truth(), &every_setting(), |_, _| ());
    let found = run(&path, &options()).unwrap();
    let (held_out, naive) = (found.report.held_out.unwrap(), found.report.naive.unwrap());
    assert_eq!((found.report.settings, held_out.rows), (12, 12));
    assert!(held_out.iops.median < 0.05, "{held_out:?}");
    assert!(held_out.latency_us.median < 0.05, "{held_out:?}");
    assert!(held_out.iops.worst < 0.25, "{held_out:?}");
    assert!(naive.iops.median > 0.3, "{naive:?}");
    // What each request costs and what the device can do show directly.
    let disk = &found.scenario.disks[0];
    let near = |found: f64, truth: f64, share: f64| (found / truth - 1.0).abs() < share;
    assert!(near(disk.iothread_us, 25.0, 0.15), "{disk:?}");
    assert!(near(disk.guest_us, 20.0, 0.15), "{disk:?}");
    assert!(near(disk.phases[0].outstanding, 8.0, 0.2), "{disk:?}");
    // How the time in the device splits into service, queueing and ceiling does not show: the disk
    // kept one queue depth. The time itself does.
    let direct = found
        .report
        .rows
        .iter()
        .find(|r| r.setting.contains("direct"));
    let direct = direct.unwrap();
    assert!(near(
        direct.fitted.unwrap().latency_us,
        direct.measured.latency_us,
        0.05
    ));

    // The scenario is a file that simulates as it did.
    let text = found.toml().unwrap();
    let read: Scenario = toml::from_str(&text).unwrap();
    assert_eq!(read, found.scenario);
    SimHost::fixed(read).unwrap();
    let plot = dir.path().join("p.svg");
    calibrate::plot::write(&plot, &found.report).unwrap();
    let circles = fs::read_to_string(&plot)
        .unwrap()
        .matches("<circle")
        .count();
    // Two panels with twelve fitted and twelve held-out points each, and two keys each.
    assert_eq!(circles, 2 * (12 + 12 + 2));
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let (_dir, path) = scratch();
    record(
        &path,
        &truth(),
        &[[0, 0, 1], [1, 0, 0], [2, 0, 1]],
        |_, _| (),
    );
    let quick = |threads| Options {
        threads,
        holdout: Holdout::Each,
        effort: Effort {
            starts: 1,
            restarts: 0,
            steps_per_parameter: 5,
        },
        ..options()
    };
    let found = run(&path, &quick(1)).unwrap();
    assert_eq!(found, run(&path, &quick(3)).unwrap());
    // Nothing was ever buffered, so what that costs is not fitted.
    let names = found.report.parameters.iter().map(|p| &p.parameter.name);
    assert!(names.clone().any(|name| name == "costs.wake_us"));
    assert!(!names.clone().any(|name| name.contains("buffered")));
}

#[test]
fn spoilt_windows_are_left_out_and_counted_and_the_rest_is_used() {
    let (_dir, path) = scratch();
    let spoil = |n: usize, sample: &mut HostSample| match n {
        4 => sample.disks[0].reads.requests = 1,
        13 => sample.at = std::time::Duration::ZERO,
        _ => (),
    };
    record(&path, &truth(), &[[0, 0, 1], [1, 0, 1], [2, 0, 1]], spoil);
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() - 30]).unwrap();
    let options = Options {
        holdout: Holdout::None,
        effort: Effort {
            starts: 1,
            restarts: 0,
            steps_per_parameter: 5,
        },
        ..options()
    };
    let report = run(&path, &options).unwrap().report;
    let skipped: Vec<(String, u64)> = report
        .tally
        .skipped
        .iter()
        .map(|(reason, n)| (reason.text().to_owned(), *n))
        .collect();
    let want = [
        ("clock jump", 1),
        ("gap", 1),
        ("settings changed", 2),
        ("counter reset", 1),
    ];
    assert_eq!(skipped, want.map(|(reason, n)| (reason.to_owned(), n)));
    assert_eq!(report.tally.used, 3 * 9 - 2 - 5);
    assert!(report.tally.torn_bytes > 0);
    assert_eq!(report.held_out, None);
}

#[test]
fn what_says_nothing_is_refused_with_the_way_out() {
    let (_dir, path) = scratch();
    record(&path, &truth(), &[[0, 0, 1]], |_, _| ());
    let one_setting = run(&path, &options()).unwrap_err();
    assert!(one_setting.is_about_the_recording());
    let text = one_setting.to_string();
    assert!(
        text.contains("host.rec") && text.contains("blkpilot sweep"),
        "{text}"
    );

    let (_dir, idle) = scratch();
    let mut scenario = truth();
    scenario.disks[0].phases[0].outstanding = 0.0;
    record(&idle, &scenario, &every_setting(), |_, _| ());
    let text = run(&idle, &options()).unwrap_err().to_string();
    assert!(text.contains("busy"), "{text}");

    let (_dir, foreign) = scratch();
    fs::write(&foreign, "name = \"a scenario\"\n").unwrap();
    let error = run(&foreign, &options()).unwrap_err();
    assert!(error.is_about_the_recording() && error.to_string().contains("host.rec"));
}
