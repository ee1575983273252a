//! What is fitted: which quantities of a scenario, where they start, and how far they may go.

use blkpilot_env::sample::{Cache, DiskSettings, Polling};
use blkpilot_env::sim::{Costs, Scenario};
use serde::Serialize;

use super::settings::{Measured, Recorded, Setting};

/// A quantity that is fitted, on a logarithmic scale between two bounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parameter {
    /// Its key in the scenario, such as `disks[0].iothread_us`.
    pub name: String,
    /// Least value, > 0.
    pub low: f64,
    /// Greatest value.
    pub high: f64,
    /// Where the search starts, and what a value is pulled to that the recording says nothing of.
    pub start: f64,
    #[serde(skip)]
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    Cost(Cost),
    Device(usize, DeviceField),
    Disk(usize, DiskField),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cost {
    Float,
    Preempt,
    Wake,
    WakeCpu,
    BufferedDelay,
    BufferedCpu,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum DeviceField {
    Read,
    Write,
    Parallelism,
    Ceiling,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum DiskField {
    IoThread,
    Guest,
    Think,
    Outstanding,
}

impl Parameter {
    fn new(name: impl Into<String>, start: f64, (low, high): (f64, f64), target: Target) -> Self {
        Self {
            name: name.into(),
            low,
            high,
            // Off the bounds, where the transform is flat.
            start: start.clamp(low * 1.01, high / 1.01),
            target,
        }
    }

    /// The value at `x` ∈ ℝ: a logistic curve between the bounds, on a logarithmic scale.
    #[must_use]
    pub fn value(&self, x: f64) -> f64 {
        let share = 1.0 / (1.0 + (-x).exp());
        self.low * (self.high / self.low).powf(share)
    }

    /// Where the search starts, in ℝ.
    #[must_use]
    pub fn start_x(&self) -> f64 {
        let share = (self.start / self.low).ln() / (self.high / self.low).ln();
        (share / (1.0 - share)).ln()
    }

    /// Whether a value lies within a hundredth of its range from one of its bounds.
    #[must_use]
    pub fn is_at_bound(&self, value: f64) -> bool {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        !(0.01..=0.99).contains(&share)
    }

    fn set(&self, scenario: &mut Scenario, value: f64) {
        match self.target {
            Target::Cost(cost) => *cost_of(&mut scenario.costs, cost) = value,
            Target::Device(device, field) => {
                let device = &mut scenario.devices[device];
                match field {
                    DeviceField::Read => device.reference.read_us = value,
                    DeviceField::Write => device.reference.write_us = value,
                    DeviceField::Parallelism => device.parallelism = value,
                    DeviceField::Ceiling => device.max_iops = Some(value),
                }
            }
            Target::Disk(disk, field) => {
                let disk = &mut scenario.disks[disk];
                match field {
                    DiskField::IoThread => disk.iothread_us = value,
                    DiskField::Guest => disk.guest_us = value,
                    DiskField::Think => disk.phases[0].think_us = value,
                    DiskField::Outstanding => disk.phases[0].outstanding = value,
                }
            }
        }
    }
}

fn cost_of(costs: &mut Costs, cost: Cost) -> &mut f64 {
    match cost {
        Cost::Float => &mut costs.float_cpu_factor,
        Cost::Preempt => &mut costs.preempt_us,
        Cost::Wake => &mut costs.wake_us,
        Cost::WakeCpu => &mut costs.wake_cpu_us,
        Cost::BufferedDelay => &mut costs.buffered_delay_us,
        Cost::BufferedCpu => &mut costs.buffered_cpu_us,
    }
}

/// The scenario with the parameters at `x`.
#[must_use]
pub fn apply(parameters: &[Parameter], x: &[f64], scenario: &Scenario) -> Scenario {
    let mut scenario = scenario.clone();
    for (parameter, x) in parameters.iter().zip(x) {
        parameter.set(&mut scenario, parameter.value(*x));
    }
    scenario
}

/// What can be fitted to `seen` settings of a recording. What no setting shows is not fitted: a
/// host that was never buffered says nothing of what buffering costs.
#[must_use]
pub fn parameters(recorded: &Recorded, seen: &[usize], skeleton: &Scenario) -> Vec<Parameter> {
    let settings: Vec<&Setting> = seen.iter().map(|i| &recorded.settings[*i]).collect();
    let mut parameters = costs(&settings, skeleton);
    for device in 0..skeleton.devices.len() {
        parameters.extend(of_device(&settings, skeleton, device));
    }
    for disk in 0..skeleton.disks.len() {
        parameters.extend(of_disk(&settings, skeleton, disk));
    }
    parameters
}

fn costs(settings: &[&Setting], skeleton: &Scenario) -> Vec<Parameter> {
    let shows = |what: &dyn Fn(DiskSettings) -> bool| {
        let disks = 0..skeleton.disks.len();
        let busy = |s: &Setting, disk: usize| s.disks[disk].is_some() && what(s.of_disk(disk));
        let mut pairs = disks.flat_map(|disk| settings.iter().map(move |s| (*s, disk)));
        pairs.any(|(s, disk)| busy(s, disk))
    };
    let default = Costs::default();
    let mut costs = vec![];
    let mut add = |name: &str, start: f64, bounds: (f64, f64), cost: Cost| {
        costs.push(Parameter::new(
            format!("costs.{name}"),
            start,
            bounds,
            Target::Cost(cost),
        ));
    };
    if shows(&|s| s.channel == 0) && shows(&|s| s.channel != 0) {
        add(
            "float_cpu_factor",
            default.float_cpu_factor,
            (0.5, 4.0),
            Cost::Float,
        );
    }
    if shows(&|s| s.polling == Polling::Off) {
        add("wake_us", default.wake_us, (0.1, 1e3), Cost::Wake);
        add(
            "wake_cpu_us",
            default.wake_cpu_us,
            (0.05, 500.0),
            Cost::WakeCpu,
        );
    }
    add("preempt_us", default.preempt_us, (0.1, 1e4), Cost::Preempt);
    if shows(&|s| s.cache == Cache::Buffered) {
        add(
            "buffered_delay_us",
            default.buffered_delay_us,
            (0.05, 1e3),
            Cost::BufferedDelay,
        );
        add(
            "buffered_cpu_us",
            default.buffered_cpu_us,
            (0.05, 1e3),
            Cost::BufferedCpu,
        );
    }
    costs
}

fn of_device(settings: &[&Setting], skeleton: &Scenario, device: usize) -> Vec<Parameter> {
    let model = &skeleton.devices[device];
    let mine = |disk: &usize| skeleton.disks[*disk].device == device;
    let disks: Vec<usize> = (0..skeleton.disks.len()).filter(mine).collect();
    let reads = |disk: &usize| skeleton.disks[*disk].phases[0].read_share;
    let direct = |s: &&Setting| {
        let flow = |disk: &usize| {
            let reaches = s.of_disk(*disk).cache == Cache::Direct;
            s.disks[*disk]
                .as_ref()
                .filter(|_| reaches)
                .map_or(0.0, |m| m.iops)
        };
        disks.iter().map(flow).sum::<f64>()
    };
    let most_iops = settings.iter().map(direct).fold(0.0, f64::max);
    let mut parameters = vec![];
    let mut add = |key: &str, start: f64, bounds: (f64, f64), field: DeviceField| {
        let name = format!("devices[{device}].{key}");
        parameters.push(Parameter::new(
            name,
            start,
            bounds,
            Target::Device(device, field),
        ));
    };
    if disks.iter().any(|disk| reads(disk) > 0.01) {
        add(
            "reference.read_us",
            model.reference.read_us,
            (1.0, 1e5),
            DeviceField::Read,
        );
    }
    if disks.iter().any(|disk| reads(disk) < 0.99) {
        add(
            "reference.write_us",
            model.reference.write_us,
            (1.0, 1e5),
            DeviceField::Write,
        );
    }
    if most_iops > 0.0 {
        add(
            "parallelism",
            model.parallelism,
            (1.0, 512.0),
            DeviceField::Parallelism,
        );
        add(
            "max_iops",
            3.0 * most_iops,
            (0.9 * most_iops, 100.0 * most_iops),
            DeviceField::Ceiling,
        );
    }
    parameters
}

fn of_disk(settings: &[&Setting], skeleton: &Scenario, disk: usize) -> Vec<Parameter> {
    let seen: Vec<&Measured> = settings
        .iter()
        .filter_map(|s| s.disks[disk].as_ref())
        .collect();
    let Some(fastest) = seen
        .iter()
        .min_by(|a, b| a.latency_us.total_cmp(&b.latency_us))
    else {
        return vec![];
    };
    let depth = skeleton.disks[disk].phases[0].outstanding;
    let cpu_us = |m: &&Measured| Some(m.iothread_cores? / m.iops * 1e6);
    let iothread_us = seen.iter().filter_map(cpu_us).fold(f64::MAX, f64::min);
    let iothread_us = if iothread_us < f64::MAX {
        iothread_us
    } else {
        8.0
    };
    let vcpus = settings.iter().filter_map(|s| {
        let all: f64 = s.disks.iter().flatten().map(|m| m.iops).sum();
        Some(s.vcpu_cores? / all.max(1.0) * 1e6)
    });
    let guest_us = vcpus.fold(f64::MAX, f64::min);
    let guest_us = if guest_us < f64::MAX { guest_us } else { 5.0 };
    let parameter = |key: &str, start: f64, bounds: (f64, f64), field: DiskField| {
        Parameter::new(
            format!("disks[{disk}].{key}"),
            start,
            bounds,
            Target::Disk(disk, field),
        )
    };
    vec![
        parameter("iothread_us", iothread_us, (0.2, 1e4), DiskField::IoThread),
        parameter("guest_us", guest_us, (0.1, 1e5), DiskField::Guest),
        parameter(
            "phases[0].think_us",
            0.2 * fastest.latency_us,
            (0.1, 1e6),
            DiskField::Think,
        ),
        parameter(
            "phases[0].outstanding",
            1.1 * depth,
            (0.98 * depth, 8.0 * depth + 2.0),
            DiskField::Outstanding,
        ),
    ]
}
