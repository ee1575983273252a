//! What a host did in one interval: the disks, the channels, the devices and the host, with the
//! settings that were in force.
//!
//! A live host makes a window of two samples ([`HostWindow::between`]), the simulated host writes
//! it directly. [`crate::features`] turns a window into an observation, [`crate::reward`] into
//! rewards: what the two hosts mean by a feature or a reward is therefore the same.

mod rates;

use crate::observation::{MaskReason, Validity};
use crate::sample::{
    ChannelSample, DeviceClass, DeviceReference, DeviceSample, DiskMasks, DiskSample, DiskSettings,
    HostSample, LastHits, Reading,
};
use crate::spec::Level;

use rates::gained;
pub use rates::{DeviceWindow, DiskWindow};

/// One disk in a window.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskRow {
    /// `guest/target`.
    pub id: String,
    /// Row of the device that does its work.
    pub device: usize,
    /// Its IOThread, numbered over the host; `None` for a disk that runs in the main loop.
    pub group: Option<usize>,
    /// What was in force when the window began; the same as `settings` for a disk that has just
    /// appeared.
    pub settings_before: DiskSettings,
    /// What is in force at its end.
    pub settings: DiskSettings,
    /// What would be in force without us.
    pub default: DiskSettings,
    /// What may be chosen at its end.
    pub masks: DiskMasks,
    /// For each channel, the share of the guest's vCPUs that may run there; `[K]`.
    pub vcpu_share: Vec<f32>,
    /// Size of the image as the guest sees it, bytes.
    pub capacity_bytes: f64,
    /// Time since we last changed one of its settings, seconds.
    pub since_change_s: f64,
    /// What the page cache did for it when it last could, as known at the end.
    pub last_hits: Option<LastHits>,
    /// Requests in flight at the end.
    pub in_flight: Reading<u32>,
    /// Its pages in the host page cache at the end, bytes.
    pub cached_bytes: Reading<f64>,
    /// Its pages that have to be written back at the end, bytes.
    pub dirty_bytes: Reading<f64>,
    /// What it did; unknown (`CounterReset`) for one that has just appeared.
    pub did: DiskWindow,
}

/// One channel in a window.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelRow {
    /// Name, such as `core-3`.
    pub id: String,
    /// Number of its host CPUs.
    pub cpus: usize,
    /// NUMA node.
    pub numa: u16,
    /// Busy share of its CPUs; the whole host's for one that has just appeared.
    pub cpu_load: f64,
    /// Share of its CPU time spent in vCPUs.
    pub vcpu_load: Reading<f64>,
}

/// One backing device in a window.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceRow {
    /// Kernel name.
    pub id: String,
    /// Kind.
    pub class: DeviceClass,
    /// NUMA node.
    pub numa: u16,
    /// Reference of the loss.
    pub reference: DeviceReference,
    /// Scheduler in force when the window began, as a level of the device head; 0 where the head is
    /// not enabled.
    pub scheduler_before: Level,
    /// Scheduler in force at its end.
    pub scheduler: Level,
    /// Scheduler without us.
    pub default_scheduler: Level,
    /// What may be chosen at its end; empty where the head is not enabled.
    pub scheduler_mask: Vec<MaskReason>,
    /// What it did; unknown (`CounterReset`) for one that has just appeared.
    pub did: DeviceWindow,
}

/// The host as a whole in a window, its gauges as they stand at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostRow {
    /// CPUs online.
    pub cpus: u32,
    /// Busy share of all CPUs.
    pub cpu_load: f64,
    /// Memory, bytes.
    pub mem_total_bytes: f64,
    /// Memory that could be had without swapping, bytes.
    pub mem_available_bytes: f64,
    /// Dirty page cache, bytes.
    pub dirty_bytes: f64,
    /// Dirty page cache at which writers are throttled, bytes.
    pub dirty_limit_bytes: f64,
    /// Pressure on CPU (some, 10 s), a share of one.
    pub psi_cpu: Reading<f32>,
    /// Pressure on I/O (some, 10 s), a share of one.
    pub psi_io: Reading<f32>,
    /// Pressure on memory (some, 10 s), a share of one.
    pub psi_memory: Reading<f32>,
}

/// What a host did in one interval.
#[derive(Debug, Clone, PartialEq)]
pub struct HostWindow {
    /// Its length, seconds, > 0.
    pub span_s: f64,
    /// For each disk that was there when the window began, in the order of then, its row in
    /// `disks`; `None` for one that is gone. An action was chosen for these disks, so they are the
    /// rows of its reward.
    pub began_with: Vec<Option<usize>>,
    /// The disks that are there at its end: the rows of the observation.
    pub disks: Vec<DiskRow>,
    /// The channels at its end.
    pub channels: Vec<ChannelRow>,
    /// The backing devices at its end.
    pub devices: Vec<DeviceRow>,
    /// The rest.
    pub host: HostRow,
}

impl HostWindow {
    /// The window between two samples of one host.
    ///
    /// The samples need not list the same things. All are matched by their names: what has just
    /// appeared has no rates, a disk that is gone has no row.
    #[must_use]
    pub fn between(before: &HostSample, after: &HostSample) -> Self {
        let span_s = after.at.saturating_sub(before.at).as_secs_f64().max(1e-9);
        let host = host_row(before, after, span_s);
        let began_with = before.disks.iter().enumerate();
        Self {
            span_s,
            began_with: began_with
                .map(|(row, disk)| row_of(&after.disks, row, &disk.id))
                .collect(),
            disks: rows(&before.disks, &after.disks, |was, is| {
                disk_row(was, is, span_s)
            }),
            channels: rows(&before.channels, &after.channels, |was, is| {
                channel_row(was, is, host.cpu_load, span_s)
            }),
            devices: rows(&before.devices, &after.devices, |was, is| {
                device_row(was, is, span_s)
            }),
            host,
        }
    }

    /// Busy share of the CPUs behind a channel level; of all CPUs for `float`.
    #[must_use]
    pub fn cpu_load(&self, level: Level) -> f64 {
        usize::from(level)
            .checked_sub(1)
            .and_then(|channel| self.channels.get(channel))
            .map_or(self.host.cpu_load, |channel| channel.cpu_load)
    }
}

fn disk_row(was: Option<&DiskSample>, is: &DiskSample, span_s: f64) -> DiskRow {
    DiskRow {
        id: is.id.clone(),
        device: is.device,
        group: is.group,
        settings_before: was.map_or(is.settings, |was| was.settings),
        settings: is.settings,
        default: is.default,
        masks: is.masks.clone(),
        vcpu_share: is.vcpu_share.clone(),
        capacity_bytes: is.capacity_bytes as f64,
        since_change_s: is.since_change.as_secs_f64(),
        last_hits: is.last_hits,
        in_flight: is.in_flight,
        cached_bytes: is.cached_bytes.map(|bytes| bytes as f64),
        dirty_bytes: is.dirty_bytes.map(|bytes| bytes as f64),
        did: was.map_or(DiskWindow::unknown(Validity::CounterReset), |was| {
            DiskWindow::between(was, is, span_s)
        }),
    }
}

fn channel_row(
    was: Option<&ChannelSample>,
    is: &ChannelSample,
    host_load: f64,
    span_s: f64,
) -> ChannelRow {
    let cpus = is.cpus.len();
    let vcpu_ns = was.map_or(Err(Validity::CounterReset), |was| {
        gained(was.vcpu_ns, is.vcpu_ns)
    });
    ChannelRow {
        id: is.id.clone(),
        cpus,
        numa: is.numa,
        cpu_load: was.map_or(host_load, |was| {
            share_of_cpus(is.busy_ns.saturating_sub(was.busy_ns), cpus as f64, span_s)
        }),
        vcpu_load: vcpu_ns.map(|ns| share_of_cpus(ns, cpus as f64, span_s)),
    }
}

fn device_row(was: Option<&DeviceSample>, is: &DeviceSample, span_s: f64) -> DeviceRow {
    DeviceRow {
        id: is.id.clone(),
        class: is.class,
        numa: is.numa,
        reference: is.reference,
        scheduler_before: was.map_or(is.scheduler, |was| was.scheduler),
        scheduler: is.scheduler,
        default_scheduler: is.default_scheduler,
        scheduler_mask: is.scheduler_mask.clone(),
        did: was.map_or(DeviceWindow::unknown(Validity::CounterReset), |was| {
            DeviceWindow::between(was, is, span_s)
        }),
    }
}

fn host_row(before: &HostSample, after: &HostSample, span_s: f64) -> HostRow {
    let host = &after.host;
    let busy_ns = host.cpu_busy_ns.saturating_sub(before.host.cpu_busy_ns);
    HostRow {
        cpus: host.cpus,
        cpu_load: share_of_cpus(busy_ns, f64::from(host.cpus), span_s),
        mem_total_bytes: host.mem_total_bytes as f64,
        mem_available_bytes: host.mem_available_bytes as f64,
        dirty_bytes: host.dirty_bytes as f64,
        dirty_limit_bytes: host.dirty_limit_bytes as f64,
        psi_cpu: host.psi_cpu,
        psi_io: host.psi_io,
        psi_memory: host.psi_memory,
    }
}

fn share_of_cpus(ns: u64, cpus: f64, span_s: f64) -> f64 {
    ns as f64 * 1e-9 / (span_s * cpus.max(1.0))
}

/// One row per thing in `after`, made of its earlier sample and its present one.
fn rows<T: Named, R>(
    before: &[T],
    after: &[T],
    row_of_pair: impl Fn(Option<&T>, &T) -> R,
) -> Vec<R> {
    let pair = |(row, is): (usize, &T)| {
        let was = row_of(before, row, is.id()).map(|row| &before[row]);
        row_of_pair(was, is)
    };
    after.iter().enumerate().map(pair).collect()
}

/// The row of the same thing in another sample: the same row where nothing came or went.
fn row_of<T: Named>(samples: &[T], row: usize, id: &str) -> Option<usize> {
    match samples.get(row) {
        Some(same) if same.id() == id => Some(row),
        _ => samples.iter().position(|sample| sample.id() == id),
    }
}

trait Named {
    fn id(&self) -> &str;
}

impl Named for DeviceSample {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Named for ChannelSample {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Named for DiskSample {
    fn id(&self) -> &str {
        &self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Environment as _;
    use crate::features::{REWARD_WEIGHTS, Terms, kvm_host_spec, observe, observe_into, refresh};
    use crate::observation::Observation;
    use crate::reward::{RewardConfig, RewardTerm, score, score_into};
    use crate::sim::{Generator, SimHost, presets};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    /// Two samples of a host with four disks.
    fn samples() -> (HostSample, HostSample) {
        let mut host = SimHost::fixed(presets::identical_disks(4, 4)).unwrap();
        let obs = host.reset(Some(1), &Default::default()).unwrap();
        let before = host.sample().unwrap().clone();
        host.step(&obs.current).unwrap();
        (before, host.sample().unwrap().clone())
    }

    #[test]
    fn disks_are_matched_by_name_whatever_their_order() {
        let (before, mut after) = samples();
        let straight = HostWindow::between(&before, &after);
        after.disks.reverse();
        let turned = HostWindow::between(&before, &after);
        assert_eq!(turned.began_with, [Some(3), Some(2), Some(1), Some(0)]);
        for (row, disk) in straight.disks.iter().enumerate() {
            assert_eq!(disk.did, turned.disks[3 - row].did);
        }
        let config = RewardConfig::default();
        assert_eq!(score(&straight, &config), score(&turned, &config));
    }

    fn terms(reward: &RewardConfig) -> Terms<'_> {
        Terms {
            interval: SECOND,
            reward,
        }
    }

    #[test]
    fn who_is_gone_keeps_its_row_of_rewards_and_has_none_of_the_observation() {
        let (before, mut after) = samples();
        after.disks.remove(1);
        let window = HostWindow::between(&before, &after);
        assert_eq!(window.began_with, [Some(0), None, Some(1), Some(2)]);
        let config = RewardConfig::default();
        let rewards = score(&window, &config);
        assert_eq!(rewards.counted, [true, false, true, true]);
        let obs = observe(&kvm_host_spec(&[]), &window, terms(&config));
        assert_eq!(obs.disk_count(), 3);
        assert_eq!(obs.disk_ids[1], before.disks[2].id);
    }

    #[test]
    fn who_has_just_appeared_has_settings_but_no_rates() {
        let (mut before, after) = samples();
        before.disks.pop();
        before.channels.pop();
        before.devices.clear();
        let window = HostWindow::between(&before, &after);
        assert_eq!(
            window.disks[3].did,
            DiskWindow::unknown(Validity::CounterReset)
        );
        assert_eq!(window.disks[3].settings_before, after.disks[3].settings);
        assert_eq!(window.channels[3].cpu_load, window.host.cpu_load);
        assert_eq!(window.channels[3].vcpu_load, Err(Validity::CounterReset));
        let did = window.devices[0].did;
        assert_eq!(did, DeviceWindow::unknown(Validity::CounterReset));
        let rewards = score(&window, &RewardConfig::default());
        assert_eq!(rewards.counted, [true; 3]);
        let contention = RewardTerm::Contention as usize;
        assert_eq!(
            rewards.terms[[0, contention]],
            0.0,
            "taken at its reference"
        );
    }

    #[test]
    fn weights_of_the_reward_stand_in_their_columns() {
        let (before, after) = samples();
        let window = HostWindow::between(&before, &after);
        let config = RewardConfig {
            cpu: 0.1,
            page_cache: 0.2,
            writeback: 0.3,
            change: 0.4,
            slo: 0.5,
            slo_p99_us: Some(600.0),
            ..RewardConfig::default()
        };
        let spec = kvm_host_spec(&[]);
        let shown = |config: &RewardConfig| {
            let obs = observe(&spec, &window, terms(config));
            REWARD_WEIGHTS.map(|name| {
                let column = spec.host_features.iter().position(|f| f.name == name);
                obs.host.values[[0, column.unwrap()]]
            })
        };
        assert_eq!(shown(&config), [0.1, 0.2, 0.3, 0.4, 0.5, 600.0]);
        let without = RewardConfig {
            slo_p99_us: None,
            ..config
        };
        assert_eq!(shown(&without)[4..], [0.0, 0.0]);
    }

    #[test]
    fn kept_buffers_hold_what_new_ones_would_whatever_they_held_before() {
        let (mut obs, mut rewards) = (Observation::default(), Default::default());
        let config = RewardConfig::default();
        for seed in 0..20 {
            let mut host = SimHost::generated(Generator {
                schedulers: seed % 2 == 0,
                ..Generator::default()
            })
            .unwrap();
            let first = host.reset(Some(seed), &Default::default()).unwrap();
            let before = host.sample().unwrap().clone();
            host.step(&first.default).unwrap();
            let mut after = host.sample().unwrap().clone();
            after.disks[0].latency_counts = Err(Validity::NotOptedIn);
            let window = HostWindow::between(&before, &after);
            observe_into(host.spec(), &window, terms(&config), &mut obs);
            assert_eq!(obs, observe(host.spec(), &window, terms(&config)));
            let config = RewardConfig {
                cpu: 0.7,
                slo_p99_us: Some(900.0),
                ..config
            };
            refresh(&window, terms(&config), &mut obs);
            assert_eq!(obs, observe(host.spec(), &window, terms(&config)));
            score_into(&window, &config, &mut rewards);
            assert_eq!(rewards, score(&window, &config));
        }
    }
}
