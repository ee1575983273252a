//! A recording summed up: what each disk did under each setting of the knobs.

use std::collections::BTreeMap;

use blkpilot_env::sample::{DiskSettings, Reading};
use blkpilot_env::window::{DiskRow, HostWindow};
use blkpilot_env::{Level, sample::Cache};
use blkpilot_log::recording::{Recording, RecordingError, Tally, Windows};
use serde::Serialize;

/// The setting of all knobs of a host: levels per disk, then the schedulers of the devices.
pub type Key = (Vec<[Level; 3]>, Vec<Level>);

/// What a disk did under a setting: medians over the windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// Requests per second.
    pub iops: f64,
    /// Mean latency, microseconds.
    pub latency_us: f64,
    /// Requests in flight, by Little's law.
    pub queue_depth: f64,
    /// Share of reads.
    pub read_share: f64,
    /// Bytes per request.
    pub request_bytes: f64,
    /// Flushes per request.
    pub flush_share: f64,
    /// CPU of its IOThread, cores.
    pub iothread_cores: Option<f64>,
    /// Share of reads that the page cache served.
    pub hit_rate: Option<f64>,
    /// Its pages in the page cache, bytes.
    pub cached_bytes: Option<f64>,
}

/// What a host did under a setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The knobs.
    pub key: Key,
    /// Windows it was measured in.
    pub windows: usize,
    /// Per disk; `None` for one that was idle or whose readings are missing.
    pub disks: Vec<Option<Measured>>,
    /// CPU of all vCPUs, cores.
    pub vcpu_cores: Option<f64>,
    /// CPU that is neither a vCPU's nor an IOThread's, cores.
    pub other_cores: Option<f64>,
}

impl Setting {
    /// The settings of one disk.
    ///
    /// # Panics
    /// If there is no such disk.
    #[must_use]
    pub fn of_disk(&self, disk: usize) -> DiskSettings {
        DiskSettings::from_levels(self.key.0[disk]).expect("levels come from settings")
    }

    /// In words, such as `db/vda float direct adaptive`.
    #[must_use]
    pub fn name(&self, disk_ids: &[String]) -> String {
        let disk = |(disk, id): (usize, &String)| {
            let settings = self.of_disk(disk);
            let channel = match settings.channel {
                0 => "float".to_owned(),
                k => format!("channel-{k}"),
            };
            let cache = match settings.cache {
                Cache::Direct => "direct",
                Cache::Buffered => "buffered",
            };
            let polling = ["off", "adaptive"][settings.polling as usize];
            format!("{id} {channel} {cache} polling-{polling}")
        };
        let disks: Vec<String> = disk_ids.iter().enumerate().map(disk).collect();
        let schedulers = self.key.1.iter().filter(|level| **level > 0);
        let schedulers = schedulers.map(|level| format!("scheduler-{level}"));
        disks
            .into_iter()
            .chain(schedulers)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// A recording, summed up.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// What became of its samples.
    pub tally: Tally,
    /// Windows left out because a setting was new.
    pub settling: usize,
    /// Windows left out because the host had other disks, devices or channels than in the last.
    pub other_host: usize,
    /// The last window: what the host consists of.
    pub host: HostWindow,
    /// Length of its windows, seconds.
    pub span_s: f64,
    /// The settings, in the order of their levels.
    pub settings: Vec<Setting>,
    /// Standard deviation of log IOPS between windows of one setting.
    pub noise: f64,
}

impl Recorded {
    /// Reads a recording through, leaving out `settle` windows after each change.
    ///
    /// # Errors
    /// `RecordingError`. A recording without a window that can be used gives no settings.
    pub fn read(recording: Recording, settle: usize) -> Result<Self, RecordingError> {
        let mut windows = Windows::of(recording);
        let mut runs: Vec<(Key, HostWindow)> = Vec::new();
        let (mut settling, mut run) = (0, (0_usize, None::<(usize, Key)>));
        for recorded in windows.by_ref() {
            let recorded = recorded?;
            let here = Some((recorded.session, key(&recorded.window)));
            run = if run.1 == here {
                (run.0 + 1, here)
            } else {
                (0, here)
            };
            if run.0 < settle {
                settling += 1;
            } else {
                runs.push((key(&recorded.window), recorded.window));
            }
        }
        let tally = windows.tally().clone();
        Ok(Self::of(tally, settling, runs))
    }

    fn of(tally: Tally, settling: usize, mut windows: Vec<(Key, HostWindow)>) -> Self {
        let seen = windows.len();
        let host = windows.last().map(|(_, window)| window.clone());
        let host = host.unwrap_or_else(empty);
        windows.retain(|(_, window)| parts(window) == parts(&host));
        let mut by_key: BTreeMap<Key, Vec<HostWindow>> = BTreeMap::new();
        let other_host = seen - windows.len();
        let spans = windows.iter().map(|(_, window)| window.span_s).collect();
        for (key, window) in windows {
            by_key.entry(key).or_default().push(window);
        }
        let noise = noise(&by_key);
        let settings = by_key
            .into_iter()
            .map(|(key, windows)| sum_up(key, &windows));
        Self {
            tally,
            settling,
            other_host,
            span_s: median(spans).unwrap_or(1.0),
            settings: settings
                .filter(|s| s.disks.iter().any(Option::is_some))
                .collect(),
            host,
            noise,
        }
    }

    /// Whether anything can be fitted.
    ///
    /// # Errors
    /// What is missing, and the way out.
    pub fn check(&self) -> Result<(), String> {
        let tally = &self.tally;
        match self.settings.len() {
            0 => Err(format!(
                "no window can be used to calibrate ({tally}; {} after changes of settings): record longer, \
                 on a host with managed disks that are busy",
                self.settling
            )),
            1 => Err(format!(
                "every window has the same setting of the knobs ({tally}): record a sweep with `blkpilot sweep`"
            )),
            _ => Ok(()),
        }
    }

    /// Names of the disks.
    #[must_use]
    pub fn disk_ids(&self) -> Vec<String> {
        self.host.disks.iter().map(|d| d.id.clone()).collect()
    }
}

fn empty() -> HostWindow {
    let sample = blkpilot_env::sample::HostSample {
        at: std::time::Duration::ZERO,
        disks: vec![],
        channels: vec![],
        devices: vec![],
        host: blkpilot_env::sample::HostGauges {
            cpus: 0,
            cpu_busy_ns: 0,
            mem_total_bytes: 0,
            mem_available_bytes: 0,
            dirty_bytes: 0,
            dirty_limit_bytes: 0,
            psi_cpu: Ok(0.0),
            psi_io: Ok(0.0),
            psi_memory: Ok(0.0),
        },
    };
    HostWindow::between(&sample, &sample)
}

fn key(window: &HostWindow) -> Key {
    (
        window.disks.iter().map(|d| d.settings.levels()).collect(),
        window.devices.iter().map(|d| d.scheduler).collect(),
    )
}

/// What must be the same for windows to be of one host.
fn parts(window: &HostWindow) -> (Vec<(&str, usize)>, Vec<&str>, Vec<&str>) {
    (
        window
            .disks
            .iter()
            .map(|d| (d.id.as_str(), d.device))
            .collect(),
        window.devices.iter().map(|d| d.id.as_str()).collect(),
        window.channels.iter().map(|c| c.id.as_str()).collect(),
    )
}

fn sum_up(key: Key, windows: &[HostWindow]) -> Setting {
    let disks = (0..key.0.len()).map(|disk| {
        let rows: Vec<&DiskRow> = windows.iter().map(|w| &w.disks[disk]).collect();
        measured(&rows)
    });
    Setting {
        disks: disks.collect(),
        windows: windows.len(),
        vcpu_cores: median(windows.iter().filter_map(vcpu_cores).collect()),
        other_cores: median(windows.iter().filter_map(other_cores).collect()),
        key,
    }
}

fn measured(rows: &[&DiskRow]) -> Option<Measured> {
    let of = |reading: &dyn Fn(&DiskRow) -> Reading<f64>| {
        median(rows.iter().filter_map(|row| reading(row).ok()).collect())
    };
    let iops = of(&|row| row.did.iops)?;
    (iops > 0.0).then_some(())?;
    Some(Measured {
        iops,
        latency_us: of(&|row| row.did.latency_us_mean).filter(|us| *us > 0.0)?,
        queue_depth: of(&|row| row.did.queue_depth)?,
        read_share: of(&|row| row.did.read_share)?,
        request_bytes: of(&|row| row.did.request_bytes)?,
        flush_share: of(&|row| row.did.flush_share)?,
        iothread_cores: of(&|row| row.did.iothread_cores),
        hit_rate: of(&|row| row.did.hit_rate),
        cached_bytes: of(&|row| row.cached_bytes),
    })
}

/// CPU of all vCPUs in a window, cores.
pub(super) fn vcpu_cores(window: &HostWindow) -> Option<f64> {
    let of = |c: &blkpilot_env::window::ChannelRow| Some(c.vcpu_load.ok()? * c.cpus as f64);
    window.channels.iter().map(of).sum()
}

fn other_cores(window: &HostWindow) -> Option<f64> {
    let busy: f64 = window
        .channels
        .iter()
        .map(|c| c.cpu_load * c.cpus as f64)
        .sum();
    let iothreads = window
        .disks
        .iter()
        .filter_map(|d| d.did.iothread_cores.ok());
    Some((busy - vcpu_cores(window)? - iothreads.sum::<f64>()).max(0.0))
}

fn noise(by_key: &BTreeMap<Key, Vec<HostWindow>>) -> f64 {
    let (mut sum, mut degrees) = (0.0, 0.0);
    for windows in by_key.values() {
        for disk in 0..windows[0].disks.len() {
            let iops = windows.iter().filter_map(|w| w.disks[disk].did.iops.ok());
            let logs: Vec<f64> = iops.filter(|x| *x > 0.0).map(f64::ln).collect();
            let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
            sum += logs.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            degrees += logs.len().saturating_sub(1) as f64;
        }
    }
    if degrees > 0.0 {
        (sum / degrees).sqrt()
    } else {
        0.0
    }
}

/// The median; `None` of nothing.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(values[n / 2]),
        _ => Some(f64::midpoint(values[n / 2 - 1], values[n / 2])),
    }
}
