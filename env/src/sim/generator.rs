//! Random hosts for training, and, from other seeds, for testing.

use rand::RngExt as _;
use serde::{Deserialize, Serialize};

use super::costs::Costs;
use super::presets;
use super::scenario::{
    ChannelModel, DeviceModel, DiskModel, MAX_CHANNELS, MAX_DISKS, Phase, Scenario, ScenarioErrors,
};
use crate::sample::{Cache, Polling};

mod template;
mod work;

/// What random hosts are drawn from. Ranges are inclusive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Generator {
    /// Least and most disks.
    pub disks: (usize, usize),
    /// Least and most channels.
    pub channels: (usize, usize),
    /// Least and most backing devices.
    pub devices: (usize, usize),
    /// Intervals per episode.
    pub steps: u32,
    /// Length of an interval, seconds.
    pub interval_s: f64,
    /// Standard deviation of the multiplicative noise.
    pub noise: f64,
    /// Whether the I/O scheduler of the devices may be chosen.
    pub schedulers: bool,
    /// Share of the guests that do the kinds of work that guests are known to do, on images of the sizes
    /// that these have: size of requests, share of reads and reuse go together there. The others do anything.
    pub known_work: f64,
    /// Names of scenarios that come with the crate, hosts like which are drawn in `template_share` of the episodes;
    /// their disks, channels and devices are as many as there.
    pub templates: Vec<String>,
    /// Share of the hosts that are like one of the templates.
    pub template_share: f64,
    /// Factor, at least 1, up to which each size, rate and cost of such a host is above or below its template's.
    pub template_spread: f64,
}

/// Greatest `template_spread`.
pub const MAX_TEMPLATE_SPREAD: f64 = 10.0;

impl Default for Generator {
    fn default() -> Self {
        Self {
            disks: (1, 6),
            channels: (2, 6),
            devices: (1, 2),
            steps: 32,
            interval_s: 1.0,
            noise: 0.05,
            schedulers: false,
            known_work: 0.0,
            templates: vec![],
            template_share: 0.0,
            template_spread: 1.0,
        }
    }
}

impl Generator {
    /// Checks everything at once.
    ///
    /// # Errors
    /// Each key that is out of range, with its name.
    pub fn validate(&self) -> Result<(), ScenarioErrors> {
        let mut problems = Vec::new();
        let ranges = [
            ("disks", self.disks, MAX_DISKS),
            ("channels", self.channels, MAX_CHANNELS),
            ("devices", self.devices, 64),
        ];
        for (key, (low, high), most) in ranges {
            if low < 1 || high < low || high > most {
                problems.push((
                    key.to_owned(),
                    format!("= [{low}, {high}] must be a range within [1, {most}]"),
                ));
            }
        }
        if !(1..=1_000_000).contains(&self.steps) {
            problems.push((
                "steps".to_owned(),
                format!("= {} must be in [1, 1000000]", self.steps),
            ));
        }
        if !(1e-3..=3600.0).contains(&self.interval_s) {
            problems.push((
                "interval_s".to_owned(),
                format!("= {} must be in [0.001, 3600]", self.interval_s),
            ));
        }
        for (key, share) in [
            ("noise", self.noise),
            ("known_work", self.known_work),
            ("template_share", self.template_share),
        ] {
            if !(0.0..=1.0).contains(&share) {
                problems.push((key.to_owned(), format!("= {share} must be in [0, 1]")));
            }
        }
        self.validate_templates(&mut problems);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ScenarioErrors(problems))
        }
    }

    fn validate_templates(&self, problems: &mut Vec<(String, String)>) {
        let is_known = |name: &&String| presets::text(name).is_some();
        for name in self.templates.iter().filter(|name| !is_known(name)) {
            let known = presets::NAMES.join(", ");
            let problem = format!("has \"{name}\", which is none of {known}");
            problems.push(("templates".to_owned(), problem));
        }
        if self.templates.is_empty() && self.template_share > 0.0 {
            let problem = format!(
                "= {} needs templates: name scenarios, or leave it out",
                self.template_share
            );
            problems.push(("template_share".to_owned(), problem));
        }
        if !(1.0..=MAX_TEMPLATE_SPREAD).contains(&self.template_spread) {
            let problem = format!(
                "= {} must be in [1, {MAX_TEMPLATE_SPREAD}]",
                self.template_spread
            );
            problems.push(("template_spread".to_owned(), problem));
        }
    }

    /// Draws a host.
    #[must_use]
    pub fn draw(&self, rng: &mut crate::Rng) -> Scenario {
        if self.template_share > 0.0 && chance(rng, self.template_share) {
            return template::draw(self, rng);
        }
        let disks = rng.random_range(self.disks.0..=self.disks.1);
        let channels = rng.random_range(self.channels.0..=self.channels.1);
        let devices = rng.random_range(self.devices.0..=self.devices.1);
        let nodes = if chance(rng, 0.25) { 2 } else { 1 };
        let memory_gib = log_uniform(rng, 4.0, 256.0);
        let mut scenario = Scenario {
            name: "generated".to_owned(),
            interval_s: self.interval_s,
            steps: self.steps,
            noise: self.noise,
            memory_gib,
            cache_gib: memory_gib * rng.random_range(0.2..0.9),
            dirty_limit_gib: memory_gib * 0.1,
            schedulers: self.schedulers,
            costs: Costs::default(),
            channels: (0..channels)
                .map(|k| draw_channel(nodes * k / channels, rng))
                .collect(),
            devices: (0..devices).map(|d| draw_device(d, nodes, rng)).collect(),
            disks: Vec::with_capacity(disks),
        };
        // How much CPU a request costs is a property of the host (its CPU, whether it emulates).
        let cost = log_uniform(rng, 0.5, 8.0);
        for disk in 0..disks {
            let drawn = self.draw_disk(disk, &scenario, cost, rng);
            scenario.disks.push(drawn);
        }
        scenario
    }

    fn draw_disk(
        &self,
        index: usize,
        host: &Scenario,
        cost: f64,
        rng: &mut crate::Rng,
    ) -> DiskModel {
        let channels = host.channels.len();
        let vcpu_channel = chance(rng, 0.5).then(|| rng.random_range(0..channels));
        // One disk in six shares the IOThread of the one before it, one in ten has none.
        let iothread = match rng.random_range(0..60) {
            0..6 => None,
            6..16 if index > 0 => host.disks[index - 1].iothread.or(Some(index)),
            _ => Some(index),
        };
        let tied = host
            .disks
            .iter()
            .find(|d| iothread.is_some() && d.iothread == iothread)
            .cloned();
        let default_channel = match (&tied, iothread, vcpu_channel) {
            (Some(tied), ..) => tied.default_channel,
            (None, Some(_), Some(k)) if chance(rng, 0.5) => k as u16 + 1,
            (None, Some(_), _) if chance(rng, 0.3) => rng.random_range(1..=channels) as u16,
            _ => 0,
        };
        let is_known = self.known_work > 0.0 && chance(rng, self.known_work);
        let capacity_gib = if is_known {
            log_uniform(rng, 4.0, 1000.0)
        } else {
            log_uniform(rng, 0.05, 500.0)
        };
        DiskModel {
            guest: format!("guest-{index}"),
            target: "vda".to_owned(),
            device: rng.random_range(0..host.devices.len()),
            iothread,
            vcpu_channel,
            vcpu_cores: rng.random_range(0.02..0.8),
            guest_us: 4.0 * cost * log_uniform(rng, 0.5, 2.0),
            iothread_us: 6.0 * cost * log_uniform(rng, 0.7, 1.5),
            capacity_gib,
            default_channel,
            default_cache: if chance(rng, 0.25) {
                Cache::Buffered
            } else {
                Cache::Direct
            },
            default_polling: match &tied {
                Some(tied) => tied.default_polling,
                None if chance(rng, 0.7) => Polling::Adaptive,
                None => Polling::Off,
            },
            phases: (0..rng.random_range(1..=3))
                .map(|_| match is_known {
                    true => work::draw(capacity_gib, rng),
                    false => draw_phase(capacity_gib, rng),
                })
                .collect(),
        }
    }
}

fn log_uniform(rng: &mut crate::Rng, low: f64, high: f64) -> f64 {
    libm::exp(rng.random_range(libm::log(low)..libm::log(high)))
}

fn chance(rng: &mut crate::Rng, probability: f64) -> bool {
    rng.random::<f64>() < probability
}

fn draw_channel(node: usize, rng: &mut crate::Rng) -> ChannelModel {
    let background = if chance(rng, 0.3) {
        rng.random_range(0.05..0.8)
    } else {
        0.02
    };
    ChannelModel {
        // A physical core has one CPU or two hyper-threads.
        cpus: if chance(rng, 0.3) { 2 } else { 1 },
        numa: node as u16,
        background_cores: background,
    }
}

fn draw_device(index: usize, nodes: usize, rng: &mut crate::Rng) -> DeviceModel {
    let name = format!("dev{index}");
    let mut device = match rng.random_range(0..10) {
        0..4 => presets::nvme(&name),
        4..6 => presets::sata_ssd(&name),
        6 => presets::hdd(&name),
        _ => presets::capped_nvme(&name, log_uniform(rng, 300.0, 30_000.0)),
    };
    device.numa = rng.random_range(0..nodes) as u16;
    let speed = log_uniform(rng, 0.6, 1.6);
    device.reference.read_us *= speed;
    device.reference.write_us *= speed;
    device.reference.bytes_per_sec /= speed;
    device
}

fn draw_phase(capacity_gib: f64, rng: &mut crate::Rng) -> Phase {
    let read_share = match rng.random_range(0..4) {
        0 => 1.0,
        1 => 0.0,
        _ => rng.random_range(0.2..0.98),
    };
    let is_open = chance(rng, 0.2);
    Phase {
        outstanding: match is_open {
            _ if chance(rng, 0.08) => 0.0,
            true => 256.0,
            false => log_uniform(rng, 1.0, 64.0).round(),
        },
        arrivals_per_s: is_open.then(|| log_uniform(rng, 50.0, 30_000.0)),
        think_us: if is_open || chance(rng, 0.5) {
            0.0
        } else {
            log_uniform(rng, 10.0, 2000.0)
        },
        read_share,
        request_kib: [4.0, 4.0, 4.0, 8.0, 16.0, 64.0, 256.0][rng.random_range(0..7)],
        working_set_gib: capacity_gib * rng.random_range(0.1..1.0),
        skew: rng.random_range(0.0..1.1),
        sequential_share: if chance(rng, 0.6) {
            0.0
        } else {
            rng.random_range(0.1..1.0)
        },
        flush_share: if chance(rng, 0.6) {
            0.0
        } else {
            rng.random_range(0.01..0.5)
        },
        snapshot: chance(rng, 0.08),
        next: vec![],
        mean_intervals: log_uniform(rng, 8.0, 60.0),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn drawn(generator: &Generator, hosts: usize) -> Vec<Scenario> {
        let mut rng = crate::Rng::seed_from_u64(1);
        (0..hosts).map(|_| generator.draw(&mut rng)).collect()
    }

    /// Mean share of the image that reads of such sizes work on.
    fn reuse(generator: &Generator, sizes: std::ops::Range<f64>) -> f64 {
        let hosts = drawn(generator, 400);
        let disks = hosts.iter().flat_map(|host| &host.disks);
        let shares = disks.flat_map(|disk| {
            let reads = disk
                .phases
                .iter()
                .filter(|p| p.outstanding > 0.0 && p.read_share > 0.9);
            let own = reads.filter(|phase| sizes.contains(&phase.request_kib));
            own.map(|phase| phase.working_set_gib / disk.capacity_gib)
        });
        let shares: Vec<f64> = shares.collect();
        assert!(shares.len() > 100);
        shares.iter().sum::<f64>() / shares.len() as f64
    }

    #[test]
    fn known_work_reads_a_hot_set_in_small_requests_and_the_whole_in_large_ones() {
        let known = Generator {
            known_work: 1.0,
            ..Generator::default()
        };
        for host in drawn(&known, 400) {
            host.validate().unwrap();
        }
        let (small, large) = (reuse(&known, 4.0..33.0), reuse(&known, 100.0..2000.0));
        assert!(small < 0.5 * large && large > 0.6, "{small} {large}");
        let any = Generator::default();
        let (small, large) = (reuse(&any, 4.0..33.0), reuse(&any, 100.0..2000.0));
        assert!((small - large).abs() < 0.1, "{small} {large}");
    }

    fn like(name: &str, spread: f64) -> Generator {
        Generator {
            steps: 64,
            templates: vec![name.to_owned()],
            template_share: 1.0,
            template_spread: spread,
            ..Generator::default()
        }
    }

    #[test]
    fn hosts_like_every_scenario_hold_together_and_differ_by_at_most_the_spread() {
        for name in presets::NAMES {
            let template = presets::by_name(name).unwrap();
            for host in drawn(&like(name, 3.0), 50) {
                host.validate()
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
                let pairs = host.disks.iter().zip(&template.disks);
                for (disk, own) in pairs {
                    let factor = disk.iothread_us / own.iothread_us;
                    assert!((1.0 / 3.0..=3.0).contains(&factor), "{name}: {factor}");
                    assert_eq!(disk.phases.len(), own.phases.len());
                }
                let caches = (
                    host.cache_gib / template.cache_gib,
                    host.memory_gib / template.memory_gib,
                );
                assert!(
                    (caches.0 - caches.1).abs() < 1e-9,
                    "one factor for all memory: {caches:?}"
                );
            }
            let exact = Scenario {
                name: "generated".to_owned(),
                interval_s: 1.0,
                steps: 64,
                noise: 0.05,
                schedulers: false,
                ..template
            };
            assert_eq!(drawn(&like(name, 1.0), 2), [exact.clone(), exact]);
        }
    }

    #[test]
    fn templates_are_drawn_in_their_share_and_leave_the_other_hosts_as_they_are() {
        let generator = Generator {
            disks: (1, 2),
            template_share: 0.25,
            ..like("mixed_numa", 1.0)
        };
        let hosts = drawn(&generator, 1000);
        let share = hosts.iter().filter(|host| host.disks.len() == 4).count();
        assert!((200..300).contains(&share), "{share}");
        let no_share = Generator {
            template_share: 0.0,
            ..generator.clone()
        };
        let none = Generator {
            disks: (1, 2),
            steps: 64,
            ..Generator::default()
        };
        assert_eq!(drawn(&no_share, 20), drawn(&none, 20));
    }

    #[test]
    fn templates_that_do_not_hold_together_are_refused() {
        let wrong = Generator {
            templates: vec!["mixed_nothing".to_owned()],
            template_spread: 0.5,
            ..Generator::default()
        };
        let error = wrong.validate().unwrap_err().to_string();
        assert!(
            error.contains("templates has \"mixed_nothing\", which is none of mixed,"),
            "{error}"
        );
        assert!(
            error.contains("template_spread = 0.5 must be in [1, 10]"),
            "{error}"
        );
        let empty = Generator {
            template_share: 0.5,
            ..Generator::default()
        };
        let error = empty.validate().unwrap_err().to_string();
        assert!(
            error.contains("template_share = 0.5 needs templates"),
            "{error}"
        );
    }
}
