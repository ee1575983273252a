//! Scenarios by name, from the workloads the project started from.

use super::scenario::{DeviceModel, DiskModel, Phase, Scenario};
use crate::sample::{DeviceClass, DeviceReference};

/// Names that [`by_name`] knows.
pub const NAMES: [&str; 19] = [
    "mixed",
    "mixed_bursts",
    "mixed_cache",
    "mixed_crowded",
    "mixed_numa",
    "mixed_sata",
    "mixed_tenants",
    "identical_disks",
    "poor_binding",
    "capped_device",
    "noisy_neighbour",
    "trading",
    "iot_ingestion",
    "image_builds",
    "snapshot_storm",
    "sequential_backup",
    "random_read_4k",
    "seed_hdd",
    "seed_ssd",
];

/// The TOML text of each name, in the same order.
const TEXTS: [&str; NAMES.len()] = [
    include_str!("../../scenarios/mixed.toml"),
    include_str!("../../scenarios/mixed_bursts.toml"),
    include_str!("../../scenarios/mixed_cache.toml"),
    include_str!("../../scenarios/mixed_crowded.toml"),
    include_str!("../../scenarios/mixed_numa.toml"),
    include_str!("../../scenarios/mixed_sata.toml"),
    include_str!("../../scenarios/mixed_tenants.toml"),
    include_str!("../../scenarios/identical_disks.toml"),
    include_str!("../../scenarios/poor_binding.toml"),
    include_str!("../../scenarios/capped_device.toml"),
    include_str!("../../scenarios/noisy_neighbour.toml"),
    include_str!("../../scenarios/trading.toml"),
    include_str!("../../scenarios/iot_ingestion.toml"),
    include_str!("../../scenarios/image_builds.toml"),
    include_str!("../../scenarios/snapshot_storm.toml"),
    include_str!("../../scenarios/sequential_backup.toml"),
    include_str!("../../scenarios/random_read_4k.toml"),
    include_str!("../../scenarios/seed_hdd.toml"),
    include_str!("../../scenarios/seed_ssd.toml"),
];

/// A scenario by name.
#[must_use]
pub fn by_name(name: &str) -> Option<Scenario> {
    let place = NAMES.iter().position(|known| *known == name)?;
    Some(Scenario::parse(TEXTS[place]).expect("the scenarios of the crate are tested"))
}

/// The TOML text of a scenario by name: a start for one's own.
#[must_use]
pub fn text(name: &str) -> Option<&'static str> {
    let place = NAMES.iter().position(|known| *known == name)?;
    Some(TEXTS[place])
}

fn known(name: &str) -> Scenario {
    by_name(name).expect("the names in this file are in NAMES")
}

/// A PCIe 4 NVMe drive.
#[must_use]
pub fn nvme(name: &str) -> DeviceModel {
    DeviceModel {
        name: name.to_owned(),
        class: DeviceClass::Nvme,
        numa: 0,
        hw_queues: 16,
        reference: DeviceReference {
            read_us: 78.0,
            write_us: 18.0,
            bytes_per_sec: 6.5e9,
        },
        parallelism: 64.0,
        max_iops: None,
        gc_inflation: 1.5,
        erased_gib: 40.0,
        erase_bytes_per_sec: 1e9,
        sequential_service: 1.0,
        merge_kib: 0.0,
    }
}

/// A SATA drive.
#[must_use]
pub fn sata_ssd(name: &str) -> DeviceModel {
    DeviceModel {
        name: name.to_owned(),
        class: DeviceClass::SataSsd,
        numa: 0,
        hw_queues: 1,
        reference: DeviceReference {
            read_us: 110.0,
            write_us: 45.0,
            bytes_per_sec: 5.3e8,
        },
        parallelism: 10.0,
        max_iops: None,
        gc_inflation: 2.0,
        erased_gib: 10.0,
        erase_bytes_per_sec: 1.5e8,
        sequential_service: 1.0,
        merge_kib: 128.0,
    }
}

/// A 7,200 rpm disk: seek and half a turn for each small request.
#[must_use]
pub fn hdd(name: &str) -> DeviceModel {
    DeviceModel {
        name: name.to_owned(),
        class: DeviceClass::Hdd,
        numa: 0,
        hw_queues: 1,
        reference: DeviceReference {
            read_us: 8_000.0,
            write_us: 4_000.0,
            bytes_per_sec: 2.2e8,
        },
        parallelism: 1.0,
        max_iops: None,
        gc_inflation: 0.0,
        erased_gib: 0.0,
        erase_bytes_per_sec: 0.0,
        // The next sector passes under the head: no seek, no half turn.
        sequential_service: 0.02,
        merge_kib: 1024.0,
    }
}

/// An NVMe drive behind a ceiling of `iops`, as under a tenant's cap or a busy neighbour.
#[must_use]
pub fn capped_nvme(name: &str, iops: f64) -> DeviceModel {
    DeviceModel {
        max_iops: Some(iops),
        ..nvme(name)
    }
}

/// Small random reads over a working set.
#[must_use]
pub fn random_read(outstanding: f64, working_set_gib: f64) -> Phase {
    Phase {
        outstanding,
        arrivals_per_s: None,
        think_us: 0.0,
        read_share: 1.0,
        request_kib: 4.0,
        working_set_gib,
        skew: 0.6,
        sequential_share: 0.0,
        flush_share: 0.0,
        snapshot: false,
        next: vec![],
        mean_intervals: 20.0,
    }
}

/// `disks` equal disks with an IOThread each on `channels` equal channels: one per channel is best.
#[must_use]
pub fn identical_disks(disks: usize, channels: usize) -> Scenario {
    let mut scenario = known("identical_disks");
    scenario.channels = vec![scenario.channels[0].clone(); channels];
    let one = scenario.disks[0].clone();
    let numbered = |i: usize| DiskModel {
        guest: format!("guest-{i}"),
        iothread: Some(i),
        ..one.clone()
    };
    scenario.disks = (0..disks).map(numbered).collect();
    scenario
}

/// Guests whose IOThread shares a core with their own vCPUs, with free cores beside.
#[must_use]
pub fn poor_binding() -> Scenario {
    known("poor_binding")
}

/// Working sets that fit the page cache, on a device with a ceiling: buffered is best.
#[must_use]
pub fn capped_device() -> Scenario {
    known("capped_device")
}

/// A latency-sensitive reader beside a writer that keeps 256 requests outstanding.
#[must_use]
pub fn noisy_neighbour() -> Scenario {
    known("noisy_neighbour")
}

/// Trading, IoT ingestion, image builds and backup on one host with an NVMe and a capped drive: a steady
/// host, which one setting serves throughout.
#[must_use]
pub fn mixed() -> Scenario {
    known("mixed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_valid_and_named_like_its_file() {
        for (name, text) in NAMES.iter().zip(TEXTS) {
            match Scenario::parse(text) {
                Ok(scenario) => assert_eq!(scenario.name, *name),
                Err(problems) => panic!("{name}: {problems}"),
            }
        }
    }

    #[test]
    fn everything_wrong_with_a_file_is_named_at_once() {
        let mut scenario = mixed();
        scenario.channels.clear();
        scenario.memory_gib = f64::NAN;
        scenario.disks[0].capacity_gib = -3.0;
        scenario.disks[0].phases[0].next = vec![0.5, 0.4];
        scenario.disks[1].phases[0].read_share = 1.5;
        let problems = scenario.validate().unwrap_err().to_string();
        for part in [
            "channels has 0",
            "memory_gib = NaN",
            "disks[0].capacity_gib = -3",
            "disks[0].phases[0].next sums to 0.9",
            "disks[1].phases[0].read_share = 1.5",
        ] {
            assert!(problems.contains(part), "{part} not in {problems}");
        }
    }

    #[test]
    fn text_that_is_no_scenario_is_refused_with_its_line() {
        let text = text("mixed").unwrap().replace("capacity_gib", "capacity");
        let problem = Scenario::parse(&text).unwrap_err().to_string();
        assert!(
            problem.contains("line") && problem.contains("capacity"),
            "{problem}"
        );
        let many = Scenario::parse("name = 1000000000000")
            .unwrap_err()
            .to_string();
        assert!(many.contains("line 1"), "{many}");
    }
}
