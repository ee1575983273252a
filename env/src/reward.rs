//! The reward: one function of a window, for live and simulated hosts alike.
//!
//! A disk's own part is minus its relative performance loss, in four parts that sum to it exactly,
//! minus what the service costs everybody else:
//!
//! Let L be the mean latency of the disk's requests in the window, R the reference latency of the
//! same requests (same direction and size) on the idle, unvirtualised device, f the environment
//! factor of the device's class. The loss is f·(L − R)/max(L, R): for L > R the share of throughput
//! that a closed-loop client loses, for L < R minus the share of the time that it saves; bounded by
//! ±f. With S the IOThread's run delay per request, D the mean time in the device and m the share
//! of requests that go there, L − R = S + m·(D − R) + (m − 1)·R + O: scheduling, device contention,
//! cache (a credit, since a hit saves R) and O, the rest: protocol overhead and queueing in the lane.
//!
//! CPU is charged per request and not per second, so that serving less never saves anything.

mod weighting;

use ndarray::{Array1, Array2, ArrayViewMut1};
use serde::{Deserialize, Serialize};

use crate::environment::Rewards;
use crate::sample::{Cache, DeviceReference};
use crate::window::{DiskRow, HostWindow};

pub use weighting::{WeightRanges, Weighting};

/// One named term of the reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewardTerm {
    /// The IOThread waited for a CPU.
    Scheduling,
    /// The device was slower than its reference.
    Contention,
    /// Requests that a perfect cache would not have sent to the device; a credit for hits.
    CacheMiss,
    /// Virtualisation, copies, queueing in the lane.
    Overhead,
    /// CPU per request.
    Cpu,
    /// Host memory that caches the disk.
    PageCache,
    /// Writes accepted but not yet on the device.
    Writeback,
    /// Settings of the disk, or the scheduler of its device, changed in this window.
    Change,
    /// p99 above the objective.
    Slo,
}

impl RewardTerm {
    /// All terms, in the order of `Rewards::terms`.
    pub const ALL: [Self; 9] = [
        Self::Scheduling,
        Self::Contention,
        Self::CacheMiss,
        Self::Overhead,
        Self::Cpu,
        Self::PageCache,
        Self::Writeback,
        Self::Change,
        Self::Slo,
    ];

    /// The terms that sum to the relative performance loss.
    pub const LOSS: [Self; 4] = [
        Self::Scheduling,
        Self::Contention,
        Self::CacheMiss,
        Self::Overhead,
    ];

    /// Bounds of one disk's reward in one step. A stalled disk earns the lower one.
    pub const RANGE: (f32, f32) = (-4.0, 1.0);

    /// Its name in the spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scheduling => "scheduling",
            Self::Contention => "contention",
            Self::CacheMiss => "cache_miss",
            Self::Overhead => "overhead",
            Self::Cpu => "cpu",
            Self::PageCache => "page_cache",
            Self::Writeback => "writeback",
            Self::Change => "change",
            Self::Slo => "slo",
        }
    }
}

/// Weights of the costs beside the loss, whose weight is 1. All are dimensionless and ≥ 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// Part of the host mean in a disk's training reward, in [0, 1].
    pub beta: f64,
    /// Cost of c/(c + R), c the IOThread CPU per request.
    pub cpu: f64,
    /// Cost of caching the disk in all of the host's memory.
    pub page_cache: f64,
    /// Cost of owing the device one window of write-back; capped at twice that.
    pub writeback: f64,
    /// Cost of one changed setting.
    pub change: f64,
    /// Cost of a p99 at twice the objective; capped there.
    pub slo: f64,
    /// Objective for the p99 latency, microseconds.
    pub slo_p99_us: Option<f64>,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            beta: 0.5,
            cpu: 0.2,
            page_cache: 0.3,
            writeback: 1.0,
            change: 0.02,
            slo: 0.5,
            slo_p99_us: None,
        }
    }
}

impl RewardConfig {
    /// All numbers by name, as the decision log keeps them; an objective that is not set has none.
    #[must_use]
    pub fn numbers(&self) -> std::collections::BTreeMap<String, f64> {
        let named = [
            ("beta", Some(self.beta)),
            ("cpu", Some(self.cpu)),
            ("page_cache", Some(self.page_cache)),
            ("writeback", Some(self.writeback)),
            ("change", Some(self.change)),
            ("slo", Some(self.slo)),
            ("slo_p99_us", self.slo_p99_us),
        ];
        let given = named
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        given.collect()
    }

    /// What is wrong with the weights: key and problem.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let weights = [
            ("cpu", self.cpu),
            ("page_cache", self.page_cache),
            ("writeback", self.writeback),
            ("change", self.change),
            ("slo", self.slo),
        ];
        let mut problems: Vec<_> = weights
            .iter()
            .filter(|(_, weight)| !(0.0..=1.0).contains(weight))
            .map(|(key, weight)| ((*key).to_owned(), format!("= {weight} must be in [0, 1]")))
            .collect();
        if !(0.0..=1.0).contains(&self.beta) {
            problems.push((
                "beta".to_owned(),
                format!("= {} must be in [0, 1]", self.beta),
            ));
        }
        if self
            .slo_p99_us
            .is_some_and(|us| !(us.is_finite() && us > 0.0))
        {
            problems.push((
                "slo_p99_us".to_owned(),
                "must be > 0 microseconds".to_owned(),
            ));
        }
        problems
    }
}

/// Latency of a request on the idle device, microseconds: the mean over reads and writes of the
/// given size.
#[must_use]
pub fn reference_us(reference: &DeviceReference, read_share: f64, request_bytes: f64) -> f64 {
    let base = read_share * reference.read_us + (1.0 - read_share) * reference.write_us;
    base + request_bytes / reference.bytes_per_sec * 1e6
}

/// The reward of a window. Rows are the disks it began with; one that is gone at its end does not
/// count.
#[must_use]
pub fn score(window: &HostWindow, config: &RewardConfig) -> Rewards {
    let mut rewards = Rewards::default();
    score_into(window, config, &mut rewards);
    rewards
}

/// As [`score`], into buffers that are kept: nothing is allocated where they have a row per disk.
pub fn score_into(window: &HostWindow, config: &RewardConfig, rewards: &mut Rewards) {
    shape(rewards, window.began_with.len());
    for (row, now) in window.began_with.iter().enumerate() {
        let costs = now.and_then(|now| judge(window, &window.disks[now], config));
        rewards.counted[row] = costs.is_some();
        rewards.own[row] = write_terms(rewards.terms.row_mut(row), costs);
    }
    let mean = rewards.host_mean().unwrap_or(0.0);
    let beta = config.beta as f32;
    for row in 0..rewards.counted.len() {
        rewards.total[row] = if rewards.counted[row] {
            (1.0 - beta) * rewards.own[row] + beta * mean
        } else {
            0.0
        };
    }
}

fn shape(rewards: &mut Rewards, disks: usize) {
    if rewards.terms.dim() != (disks, RewardTerm::ALL.len()) {
        *rewards = Rewards {
            total: Array1::zeros(disks),
            own: Array1::zeros(disks),
            terms: Array2::zeros((disks, RewardTerm::ALL.len())),
            counted: vec![false; disks],
        };
    }
}

/// Writes one disk's terms and returns their sum within the bounds; 0 for one that does not count.
fn write_terms(mut terms: ArrayViewMut1<'_, f32>, costs: Option<Costs>) -> f32 {
    let Some(costs) = costs else {
        terms.fill(0.0);
        return 0.0;
    };
    for (cell, cost) in terms.iter_mut().zip(costs) {
        *cell = -cost as f32;
    }
    let (low, high) = RewardTerm::RANGE;
    terms.sum().clamp(low, high)
}

/// The relative performance loss of each disk that counts, averaged; in [−1, 1], or 4 for a stall.
#[must_use]
pub fn mean_loss(rewards: &Rewards) -> Option<f32> {
    let loss = |row: usize| {
        -RewardTerm::LOSS
            .iter()
            .map(|term| rewards.terms[[row, *term as usize]])
            .sum::<f32>()
    };
    let rows = (0..rewards.counted.len()).filter(|row| rewards.counted[*row]);
    let (disks, sum) = rows.fold((0_u32, 0.0), |(disks, sum), row| {
        (disks + 1, sum + loss(row))
    });
    (disks > 0).then(|| sum / disks as f32)
}

type Costs = [f64; RewardTerm::ALL.len()];

/// Costs of one disk in the order of `RewardTerm::ALL`; `None` if it was idle or cannot be judged.
fn judge(window: &HostWindow, disk: &DiskRow, config: &RewardConfig) -> Option<Costs> {
    let did = &disk.did;
    let device = &window.devices[disk.device];
    let iops = did.iops.ok()?;
    if iops == 0.0 {
        return disk.in_flight.is_ok_and(|n| n > 0).then(stalled);
    }
    let latency = did.latency_us_mean.ok()?;
    let read_share = did.read_share.ok()?;
    let reference = reference_us(&device.reference, read_share, did.request_bytes.ok()?);
    let await_us = device.did.await_us.unwrap_or(reference);

    let run_delay = (did.run_delay.unwrap_or(0.0) * 1e6 / iops).min(latency);
    let (to_device, cached) = match disk.settings.cache {
        Cache::Direct => (1.0, 0.0),
        Cache::Buffered => (
            read_share * (1.0 - did.hit_rate.unwrap_or(0.0)),
            disk.cached_bytes.unwrap_or(0.0) / window.host.mem_total_bytes,
        ),
    };
    let in_device = (to_device * await_us).min(latency - run_delay);
    let scale = device.class.environment_factor() / latency.max(reference);
    let cpu_us = did.iothread_cores.unwrap_or(0.0) * 1e6 / iops;
    let owed_s = disk.dirty_bytes.unwrap_or(0.0) / device.reference.bytes_per_sec;
    let excess = match (config.slo_p99_us, did.latency_us_p99) {
        (Some(objective), Ok(p99)) => (p99 / objective - 1.0).clamp(0.0, 1.0),
        _ => 0.0,
    };
    Some([
        scale * run_delay,
        scale * (in_device - to_device * reference),
        scale * (to_device - 1.0) * reference,
        scale * (latency - run_delay - in_device),
        config.cpu * cpu_us / (cpu_us + reference),
        config.page_cache * cached.min(1.0),
        config.writeback * (owed_s / window.span_s).min(2.0),
        config.change * changes(window, disk) as f64,
        config.slo * excess,
    ])
}

/// Settings of the disk and of its device that changed in the window.
fn changes(window: &HostWindow, disk: &DiskRow) -> usize {
    let device = &window.devices[disk.device];
    let levels = disk.settings_before.levels().into_iter();
    let changed = levels.zip(disk.settings.levels()).filter(|(a, b)| a != b);
    changed.count() + usize::from(device.scheduler_before != device.scheduler)
}

/// Requests in flight and none completed: the worst there is.
fn stalled() -> Costs {
    let mut costs = [0.0; RewardTerm::ALL.len()];
    costs[RewardTerm::Contention as usize] = -f64::from(RewardTerm::RANGE.0);
    costs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Environment as _;
    use crate::decision::JointAction;
    use crate::sample::{Cache, DiskSettings, HostSample};
    use crate::sim::scenario::{DeviceModel, Phase, Scenario};
    use crate::sim::{SimHost, presets};
    use crate::window::DiskWindow;

    #[test]
    fn numbers_are_named_and_an_objective_that_is_not_set_is_left_out() {
        let mut config = RewardConfig::default();
        assert_eq!(config.numbers()["beta"], config.beta);
        assert!(!config.numbers().contains_key("slo_p99_us"));
        config.slo_p99_us = Some(900.0);
        assert_eq!(config.numbers()["slo_p99_us"], 900.0);
    }

    /// Mean own reward per step of one fixed action over an episode.
    fn mean_reward(scenario: Scenario, act: impl Fn(&mut JointAction)) -> f32 {
        let mut host = SimHost::fixed(Scenario {
            noise: 0.0,
            ..scenario
        })
        .unwrap();
        let obs = host.reset(Some(3), &Default::default()).unwrap();
        let mut action = obs.default.clone();
        act(&mut action);
        let rewards: Vec<f32> = (0..40)
            .map(|_| host.step(&action).unwrap().rewards.host_mean().unwrap())
            .collect();
        rewards.iter().sum::<f32>() / rewards.len() as f32
    }

    fn one_reader(device: DeviceModel) -> Scenario {
        let mut scenario = presets::identical_disks(1, 4);
        scenario.devices = vec![device];
        scenario
    }

    /// Two samples of one honest window, for edits by hand.
    fn honest_window() -> (HostSample, HostSample) {
        let mut host = SimHost::fixed(presets::identical_disks(1, 2)).unwrap();
        let obs = host.reset(Some(1), &Default::default()).unwrap();
        let before = host.sample().unwrap().clone();
        host.step(&obs.current).unwrap();
        (before, host.sample().unwrap().clone())
    }

    #[test]
    fn the_four_parts_sum_to_the_relative_loss() {
        let (before, after) = honest_window();
        let rewards = score(
            &HostWindow::between(&before, &after),
            &RewardConfig::default(),
        );
        let window = DiskWindow::between(&before.disks[0], &after.disks[0], 1.0);
        let device = &after.devices[0];
        let latency = window.latency_us_mean.unwrap();
        let reference = reference_us(&device.reference, 1.0, 4096.0);
        let loss =
            device.class.environment_factor() * (latency - reference) / latency.max(reference);
        assert!((f64::from(mean_loss(&rewards).unwrap()) - loss).abs() < 1e-6);
    }

    #[test]
    fn a_stalled_disk_earns_the_least_there_is_and_an_idle_one_nothing() {
        let (before, mut after) = honest_window();
        after.disks[0].reads = before.disks[0].reads;
        after.disks[0].writes = before.disks[0].writes;
        after.disks[0].in_flight = Ok(3);
        let stalled = score(
            &HostWindow::between(&before, &after),
            &RewardConfig::default(),
        );
        assert_eq!(stalled.own[0], RewardTerm::RANGE.0);
        after.disks[0].in_flight = Ok(0);
        let idle = score(
            &HostWindow::between(&before, &after),
            &RewardConfig::default(),
        );
        assert!(!idle.counted[0] && idle.total[0] == 0.0);
        assert_eq!(idle.host_mean(), None);
    }

    #[test]
    fn throttling_a_disk_never_pays() {
        let caps = [40_000.0, 10_000.0, 2_000.0, 500.0, 100.0];
        let rewards: Vec<f32> = caps
            .iter()
            .map(|iops| {
                let device = DeviceModel {
                    reference: presets::nvme("d").reference,
                    ..presets::capped_nvme("d", *iops)
                };
                mean_reward(one_reader(device), |_| ())
            })
            .collect();
        assert!(rewards.windows(2).all(|w| w[1] < w[0]), "{rewards:?}");
    }

    #[test]
    fn piling_up_dirty_pages_scores_worse_than_honest_writes() {
        let mut scenario = one_reader(presets::sata_ssd("sda"));
        scenario.disks[0].phases = vec![Phase {
            read_share: 0.0,
            request_kib: 256.0,
            outstanding: 16.0,
            ..presets::random_read(1.0, 60.0)
        }];
        let direct = mean_reward(scenario.clone(), |_| ());
        let piled = mean_reward(scenario, |action| {
            action.disks[[0, 1]] = Cache::Buffered as u16;
        });
        assert!(piled < direct, "buffered {piled}, direct {direct}");
    }

    #[test]
    fn the_page_cache_is_charged_to_those_who_use_it() {
        let (before, mut after) = honest_window();
        let settings = DiskSettings {
            cache: Cache::Buffered,
            ..after.disks[0].settings
        };
        let mut before = before;
        before.disks[0].settings = settings;
        after.disks[0].settings = settings;
        let charge = |after: &HostSample| {
            score(
                &HostWindow::between(&before, after),
                &RewardConfig::default(),
            )
            .terms[[0, RewardTerm::PageCache as usize]]
        };
        let none = charge(&after);
        after.disks[0].cached_bytes = Ok(after.host.mem_total_bytes / 2);
        assert!((charge(&after) - none + 0.15).abs() < 1e-6);
    }

    #[test]
    fn beta_mixes_own_and_host_mean() {
        let mut host = SimHost::fixed(presets::mixed()).unwrap();
        let obs = host.reset(Some(5), &Default::default()).unwrap();
        let before = host.sample().unwrap().clone();
        host.step(&obs.current).unwrap();
        let window = HostWindow::between(&before, host.sample().unwrap());
        let selfish = score(
            &window,
            &RewardConfig {
                beta: 0.0,
                ..RewardConfig::default()
            },
        );
        let shared = score(
            &window,
            &RewardConfig {
                beta: 1.0,
                ..RewardConfig::default()
            },
        );
        assert_eq!(selfish.total, selfish.own);
        let mean = shared.host_mean().unwrap();
        assert!(
            shared
                .counted
                .iter()
                .zip(&shared.total)
                .all(|(c, t)| !c || (t - mean).abs() < 1e-6)
        );
    }
}
