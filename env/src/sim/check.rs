//! What may be in a scenario. All problems are reported at once, each with the path of its key.

use super::scenario::{
    ChannelModel, DeviceModel, DiskModel, MAX_CHANNELS, MAX_DISKS, MAX_MEAN_INTERVALS, Phase,
    Scenario, ScenarioErrors,
};

/// Greatest number of CPUs of a channel.
const MAX_CPUS: f64 = 1024.0;
/// Greatest number of phases of a disk.
const MAX_PHASES: usize = 64;
/// Problems named at most; a file of a million bad lines needs no million messages.
const MAX_PROBLEMS: usize = 100;

impl Scenario {
    /// Checks everything at once.
    ///
    /// # Errors
    /// Each key that is out of range, with its path.
    pub fn validate(&self) -> Result<(), ScenarioErrors> {
        let mut check = Check::default();
        check.host(self);
        check.counts(self);
        for (i, channel) in self.channels.iter().take(MAX_CHANNELS).enumerate() {
            check.channel(&format!("channels[{i}]"), channel);
        }
        for (i, device) in self.devices.iter().take(MAX_DISKS).enumerate() {
            check.device(&format!("devices[{i}]"), device);
        }
        for (i, disk) in self.disks.iter().take(MAX_DISKS).enumerate() {
            check.disk(&format!("disks[{i}]"), disk, self);
        }
        check.lanes(self);
        check.finish()
    }
}

#[derive(Default)]
struct Check(Vec<(String, String)>);

impl Check {
    fn finish(mut self) -> Result<(), ScenarioErrors> {
        if self.0.is_empty() {
            return Ok(());
        }
        let more = self.0.len().saturating_sub(MAX_PROBLEMS);
        self.0.truncate(MAX_PROBLEMS);
        if more > 0 {
            self.say("scenario", &format!("has {more} more problems"));
        }
        Err(ScenarioErrors(self.0))
    }

    fn say(&mut self, path: &str, problem: &str) {
        self.0.push((path.to_owned(), problem.to_owned()));
    }

    /// A NaN is in no range.
    fn range(&mut self, path: &str, value: f64, low: f64, high: f64) {
        if !(low..=high).contains(&value) {
            self.say(path, &format!("= {value} must be in [{low}, {high}]"));
        }
    }

    fn ranges(&mut self, path: &str, keys: &[(&str, f64, f64, f64)]) {
        for (key, value, low, high) in keys {
            self.range(&format!("{path}.{key}"), *value, *low, *high);
        }
    }

    fn index(&mut self, path: &str, index: usize, len: usize) {
        if index >= len {
            self.say(path, &format!("= {index} must be below {len}"));
        }
    }

    fn host(&mut self, host: &Scenario) {
        self.range("interval_s", host.interval_s, 1e-3, 3600.0);
        self.range("steps", f64::from(host.steps), 1.0, 1e6);
        self.range("noise", host.noise, 0.0, 1.0);
        self.range("memory_gib", host.memory_gib, 1e-3, 1e6);
        self.range("cache_gib", host.cache_gib, 1e-6, host.memory_gib);
        self.range(
            "dirty_limit_gib",
            host.dirty_limit_gib,
            1e-6,
            host.memory_gib,
        );
        for (key, value, low, high) in host.costs.ranges() {
            self.range(&format!("costs.{key}"), value, low, high);
        }
    }

    fn counts(&mut self, host: &Scenario) {
        let counts = [
            ("channels", host.channels.len(), MAX_CHANNELS),
            ("devices", host.devices.len(), MAX_DISKS),
            ("disks", host.disks.len(), MAX_DISKS),
        ];
        for (path, count, most) in counts {
            if !(1..=most).contains(&count) {
                self.say(path, &format!("has {count} entries, must have 1 to {most}"));
            }
        }
    }

    fn channel(&mut self, path: &str, channel: &ChannelModel) {
        self.ranges(
            path,
            &[
                ("cpus", f64::from(channel.cpus), 1.0, MAX_CPUS),
                (
                    "background_cores",
                    channel.background_cores,
                    0.0,
                    f64::from(channel.cpus),
                ),
            ],
        );
    }

    fn device(&mut self, path: &str, device: &DeviceModel) {
        let reference = &device.reference;
        self.ranges(
            path,
            &[
                ("reference.read_us", reference.read_us, 0.01, 1e7),
                ("reference.write_us", reference.write_us, 0.01, 1e7),
                (
                    "reference.bytes_per_sec",
                    reference.bytes_per_sec,
                    1e3,
                    1e13,
                ),
                ("parallelism", device.parallelism, 1.0, 1e5),
                ("max_iops", device.max_iops.unwrap_or(1.0), 1.0, 1e9),
                ("gc_inflation", device.gc_inflation, 0.0, 100.0),
                ("erased_gib", device.erased_gib, 0.0, 1e6),
                ("erase_bytes_per_sec", device.erase_bytes_per_sec, 0.0, 1e13),
                ("sequential_service", device.sequential_service, 1e-4, 1.0),
                ("merge_kib", device.merge_kib, 0.0, 65536.0),
            ],
        );
    }

    fn disk(&mut self, path: &str, disk: &DiskModel, host: &Scenario) {
        self.index(&format!("{path}.device"), disk.device, host.devices.len());
        self.index(
            &format!("{path}.vcpu_channel"),
            disk.vcpu_channel.unwrap_or(0),
            host.channels.len(),
        );
        self.index(
            &format!("{path}.default_channel"),
            disk.default_channel.into(),
            host.channels.len() + 1,
        );
        self.ranges(
            path,
            &[
                ("vcpu_cores", disk.vcpu_cores, 0.0, MAX_CPUS),
                ("guest_us", disk.guest_us, 0.0, 1e6),
                ("iothread_us", disk.iothread_us, 0.01, 1e6),
                ("capacity_gib", disk.capacity_gib, 1e-6, 1e6),
            ],
        );
        if disk.iothread.is_none() && disk.default_channel != 0 {
            let key = format!("{path}.default_channel");
            self.say(&key, "needs an iothread to be bound");
        }
        let phases = disk.phases.len();
        if !(1..=MAX_PHASES).contains(&phases) {
            let problem = format!("has {phases} entries, must have 1 to {MAX_PHASES}");
            self.say(&format!("{path}.phases"), &problem);
        }
        for (i, phase) in disk.phases.iter().take(MAX_PHASES).enumerate() {
            let path = format!("{path}.phases[{i}]");
            self.phase(&path, phase, disk.capacity_gib);
            self.next(&path, phase, phases);
        }
    }

    fn phase(&mut self, path: &str, phase: &Phase, capacity_gib: f64) {
        self.ranges(
            path,
            &[
                ("outstanding", phase.outstanding, 0.0, 65536.0),
                (
                    "arrivals_per_s",
                    phase.arrivals_per_s.unwrap_or(0.0),
                    0.0,
                    1e9,
                ),
                ("think_us", phase.think_us, 0.0, 1e9),
                ("read_share", phase.read_share, 0.0, 1.0),
                ("request_kib", phase.request_kib, 0.5, 65536.0),
                (
                    "working_set_gib",
                    phase.working_set_gib,
                    1e-6,
                    capacity_gib.max(1e-6),
                ),
                ("skew", phase.skew, 0.0, 5.0),
                ("sequential_share", phase.sequential_share, 0.0, 1.0),
                ("flush_share", phase.flush_share, 0.0, 1.0),
                (
                    "mean_intervals",
                    phase.mean_intervals,
                    1.0,
                    MAX_MEAN_INTERVALS,
                ),
            ],
        );
        if phase.outstanding > 0.0 && phase.outstanding < 1.0 {
            let key = format!("{path}.outstanding");
            self.say(
                &key,
                &format!("= {} must be 0 or at least 1", phase.outstanding),
            );
        }
        if phase.arrivals_per_s.is_some() && phase.think_us != 0.0 {
            let key = format!("{path}.think_us");
            self.say(
                &key,
                "is for a closed phase: leave it out beside arrivals_per_s",
            );
        }
    }

    fn next(&mut self, path: &str, phase: &Phase, phases: usize) {
        let key = format!("{path}.next");
        if phase.next.is_empty() {
            return;
        }
        if phase.next.len() != phases {
            let given = phase.next.len();
            self.say(
                &key,
                &format!("has {given} entries, must have one per phase, {phases}"),
            );
        }
        if phase.next.iter().any(|share| !(0.0..=1.0).contains(share)) {
            self.say(&key, "must hold shares in [0, 1]");
        }
        let sum: f64 = phase.next.iter().sum();
        if sum.is_nan() || (sum - 1.0).abs() > 1e-6 {
            self.say(&key, &format!("sums to {sum}, must sum to 1"));
        }
    }

    /// Disks on one IOThread have one binding and one polling.
    fn lanes(&mut self, host: &Scenario) {
        for (i, disk) in host.disks.iter().take(MAX_DISKS).enumerate() {
            let tied =
                |other: &&DiskModel| disk.iothread.is_some() && other.iothread == disk.iothread;
            let Some(first) = host.disks[..i].iter().find(tied) else {
                continue;
            };
            if first.default_channel != disk.default_channel {
                let key = format!("disks[{i}].default_channel");
                self.say(&key, "must be that of the other disks on its iothread");
            }
            if first.default_polling != disk.default_polling {
                let key = format!("disks[{i}].default_polling");
                self.say(&key, "must be that of the other disks on its iothread");
            }
        }
    }
}
