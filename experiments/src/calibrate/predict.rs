//! What the simulated host of a scenario does under a setting.

use blkpilot_env::sample::DiskSettings;
use blkpilot_env::sim::{Scenario, SimHost};
use blkpilot_env::window::HostWindow;
use blkpilot_env::{EnvError, Environment as _, ResetOptions};

use super::settings::{Key, vcpu_cores};

/// Intervals after which a host without writes is steady: its page cache starts warm.
const READ_STEPS: u32 = 2;
/// Intervals after which write-back is steady too.
const WRITE_STEPS: u32 = 8;
/// Length of an interval, seconds: counters are whole requests, so slow disks need long ones.
const INTERVAL_S: f64 = 5.0;

/// What a disk does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DiskPrediction {
    pub(super) iops: f64,
    pub(super) latency_us: f64,
    pub(super) iothread_cores: f64,
}

/// What a host does.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prediction {
    /// Per disk; `None` for one that completes nothing.
    pub(super) disks: Vec<Option<DiskPrediction>>,
    /// CPU of all vCPUs, cores.
    pub(super) vcpu_cores: Option<f64>,
}

/// The last window of a host that has been under a setting for long, without noise.
pub(super) fn predict(scenario: &Scenario, key: &Key) -> Result<Prediction, EnvError> {
    let mut host = SimHost::fixed(held(scenario, key))?;
    let warm = ResetOptions::from([("page_cache".to_owned(), "warm".to_owned())]);
    let obs = host.reset(Some(0), &warm)?;
    let mut action = obs.default;
    if action.devices.ncols() > 0 {
        for (device, level) in key.1.iter().enumerate() {
            action.devices[[device, 0]] = *level;
        }
    }
    let writes = |d: &blkpilot_env::sim::scenario::DiskModel| d.phases[0].read_share < 1.0;
    let steps = if scenario.disks.iter().any(writes) {
        WRITE_STEPS
    } else {
        READ_STEPS
    };
    let mut before = None;
    for _ in 0..steps {
        before = host.sample().cloned();
        host.step(&action)?;
    }
    let before = before.expect("there is at least one step");
    let after = host.sample().expect("the host has been reset");
    Ok(of_window(&HostWindow::between(&before, after), scenario))
}

/// The scenario with the setting as everybody's default.
fn held(scenario: &Scenario, key: &Key) -> Scenario {
    let mut scenario = scenario.clone();
    scenario.noise = 0.0;
    scenario.interval_s = INTERVAL_S;
    scenario.steps = scenario.steps.max(WRITE_STEPS);
    for (disk, levels) in scenario.disks.iter_mut().zip(&key.0) {
        let settings = DiskSettings::from_levels(*levels).expect("levels come from settings");
        disk.default_channel = if disk.iothread.is_some() {
            settings.channel
        } else {
            0
        };
        disk.default_cache = settings.cache;
        disk.default_polling = settings.polling;
    }
    scenario
}

fn of_window(window: &HostWindow, scenario: &Scenario) -> Prediction {
    let background: f64 = scenario.channels.iter().map(|c| c.background_cores).sum();
    let disk = |row: &blkpilot_env::window::DiskRow| {
        Some(DiskPrediction {
            iops: row.did.iops.ok().filter(|iops| *iops > 0.0)?,
            latency_us: row.did.latency_us_mean.ok().filter(|us| *us > 0.0)?,
            iothread_cores: row.did.iothread_cores.unwrap_or(0.0),
        })
    };
    Prediction {
        disks: window.disks.iter().map(disk).collect(),
        vcpu_cores: vcpu_cores(window).map(|cores| (cores - background).max(0.0)),
    }
}
