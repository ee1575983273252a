//! The I/O scheduler of a device of the host, as a udev rule.

use std::path::PathBuf;

use blkpilot_env::sample::DeviceClass;

use super::facts::DeviceFacts;
use super::subject::Measured;
use super::{Advice, Evidence, Gain, HostFacts, Kind, Remedy, Requirement, Subject, SubjectDisk};
use crate::device::DeviceKnob;
use crate::telemetry::default_reference;

/// A disk moves at least this share of a device's bytes: it is the heavy one.
const HEAVY: f64 = 0.8;
/// Requests of a disk beside it take this many times what its kind of device needs for one.
const HELD_UP: f64 = 10.0;

/// A disk on the device, with what was measured.
struct Tenant<'a> {
    guest: &'a Subject,
    disk: &'a SubjectDisk,
    measured: Measured,
}

/// Advice for each device that images of these guests lie on.
pub(super) fn advise(guests: &[Subject], host: &HostFacts) -> Vec<Advice> {
    let devices = host.devices.iter();
    devices
        .filter_map(|(name, device)| advise_device(name, device, guests, host))
        .collect()
}

fn advise_device(
    name: &str,
    device: &DeviceFacts,
    guests: &[Subject],
    host: &HostFacts,
) -> Option<Advice> {
    let current = device.scheduler.as_deref()?;
    let tenants = tenants(name, guests);
    let class = class(name, guests)?;
    let (wanted, reason, mut evidence, gain) = match class {
        DeviceClass::Nvme => ("none", nvme_reason(), Vec::new(), nvme_gain()),
        DeviceClass::SataSsd | DeviceClass::Hdd => match noisy_neighbour(&tenants, class) {
            Some(evidence) => ("bfq", noise_reason(), evidence, noise_gain()),
            None if class == DeviceClass::Hdd && current == "none" => {
                ("mq-deadline", hdd_reason(), Vec::new(), hdd_gain())
            }
            None => return None,
        },
    };
    if wanted == current {
        return None;
    }
    let is_offered = device.schedulers.iter().any(|offered| offered == wanted);
    evidence.insert(0, Evidence::text("scheduler in use", current));
    let id = device.wwid.as_ref().map_or(name, |wwid| &wwid.value);
    Some(Advice {
        id: format!("next-boot/scheduler/{id}"),
        kind: Kind::Scheduler,
        guest: None,
        subject: name.to_owned(),
        summary: format!("set the I/O scheduler of {name} to {wanted}"),
        reason: reason.to_owned(),
        evidence,
        gain,
        requires: vec![Requirement {
            what: format!("a kernel that offers {wanted}"),
            found: device.schedulers.join(" "),
            // The kernel loads the module of one that is not listed, if there is one.
            is_met: is_offered.then_some(true),
        }],
        cautions: cautions(name, host),
        remedy: Remedy::File {
            path: rule_path(id),
            content: rule(name, device, wanted),
            then: "udevadm control --reload && udevadm trigger --subsystem-match=block --action=change",
        },
    })
}

fn cautions(device: &str, host: &HostFacts) -> Vec<String> {
    let everything = "it holds for everything on the device, other guests and the host included";
    // It comes after udev, and again whenever its profile changes.
    let overruled = host.daemons.iter().filter_map(|daemon| {
        let claim = daemon.sets(device, DeviceKnob::Scheduler)?;
        Some(format!(
            "{} sets it too, after udev ({}): change it there instead",
            daemon.kind, claim.source
        ))
    });
    std::iter::once(everything.to_owned())
        .chain(overruled)
        .collect()
}

/// The disks whose requests wait at the device, if they wait.
fn tenants<'a>(device: &str, guests: &'a [Subject]) -> Vec<Tenant<'a>> {
    let disks = guests
        .iter()
        .flat_map(|guest| guest.disks.iter().map(move |disk| (guest, disk)));
    disks
        .filter(|(_, disk)| is_counted_at(disk, device))
        .filter_map(|(guest, disk)| {
            let measured = disk.measured?;
            Some(Tenant {
                guest,
                disk,
                measured,
            })
        })
        .collect()
}

fn lies_on(disk: &SubjectDisk, device: &str) -> bool {
    disk.device
        .as_ref()
        .is_some_and(|backing| backing.leaves.contains(device))
}

/// Whether a disk's requests are counted at the device: those of one that lies on a loop device, say, may
/// wait there, or be answered from the page cache.
fn is_counted_at(disk: &SubjectDisk, device: &str) -> bool {
    disk.device
        .as_ref()
        .is_some_and(|backing| backing.counted.contains(device))
}

fn class(device: &str, guests: &[Subject]) -> Option<DeviceClass> {
    let mut disks = guests.iter().flat_map(|guest| &guest.disks);
    let disk = disks.find(|disk| lies_on(disk, device))?;
    Some(disk.device.as_ref()?.class)
}

/// What shows that one disk holds another up: it moves most of the bytes, and the other's requests take
/// far longer than the device needs.
fn noisy_neighbour(tenants: &[Tenant<'_>], class: DeviceClass) -> Option<Vec<Evidence>> {
    let all: f64 = tenants
        .iter()
        .map(|tenant| tenant.measured.bytes_per_sec())
        .sum();
    let heavy = tenants
        .iter()
        .find(|tenant| tenant.measured.bytes_per_sec() >= HEAVY * all)?;
    let device_us = default_reference(class).read_us;
    let held_up = tenants
        .iter()
        .filter(|tenant| !std::ptr::eq(*tenant, heavy))
        .find(|tenant| {
            let latency = tenant.measured.latency_us;
            latency.is_some_and(|latency| latency >= HELD_UP * device_us)
        })?;
    let name =
        |tenant: &Tenant<'_>| format!("{}/{}", tenant.guest.guest.name, tenant.disk.disk.target);
    Some(vec![
        Evidence::text("heavy disk", name(heavy)),
        Evidence::number(
            "its share",
            heavy.measured.bytes_per_sec() / all * 100.0,
            "% of bytes",
        ),
        Evidence::text("disk that waits", name(held_up)),
        Evidence::number("its mean latency", held_up.measured.latency_us?, "µs"),
        Evidence::number("request of its kind of device", device_us, "µs"),
    ])
}

fn nvme_reason() -> &'static str {
    "an NVMe device has queues of its own for each CPU and orders requests itself: a scheduler only costs \
     CPU time and a lock"
}

fn nvme_gain() -> Gain {
    Gain::Documented {
        text: "`none` suits fast devices with many queues",
        source: "Linux: Documentation/block/blk-mq.rst",
    }
}

fn noise_reason() -> &'static str {
    "one disk fills the device's queue, and another one on the same device waits behind it; BFQ shares the \
     device's time between processes"
}

fn noise_gain() -> Gain {
    Gain::Measured {
        text: "IOPS of the disk that waits ×33, 99th percentile of its latency 4512 → 107 µs; what the heavy \
               one lost was not measured",
        source: "one measurement of ours on a machine with two cores",
    }
}

fn hdd_reason() -> &'static str {
    "heads have to move between requests, and nothing orders them"
}

fn hdd_gain() -> Gain {
    Gain::Documented {
        text: "mq-deadline batches reads and writes and bounds how long each waits",
        source: "Linux: Documentation/block/deadline-iosched.rst",
    }
}

fn rule_path(id: &str) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    };
    let id: String = id.chars().map(plain).collect();
    format!("/etc/udev/rules.d/60-blkpilot-scheduler-{id}.rules").into()
}

/// The rule names the hardware where it has a name, since kernel names change from boot to boot.
fn rule(name: &str, device: &DeviceFacts, wanted: &str) -> String {
    let which = match &device.wwid {
        Some(wwid) => format!("ATTR{{{}}}==\"{}\"", wwid.attribute, pattern(&wwid.value)),
        None => format!("KERNEL==\"{name}\""),
    };
    format!(
        "# blkpilot advise: scheduler of {name}\n\
         ACTION==\"add|change\", SUBSYSTEM==\"block\", ENV{{DEVTYPE}}==\"disk\", {which}, ATTR{{queue/scheduler}}=\"{wanted}\"\n"
    )
}

/// udev matches by shell patterns: whatever could be one stands for itself as `?`.
fn pattern(value: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || ".-_:".contains(c) {
            c
        } else {
            '?'
        }
    };
    value.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, busy, host};
    use super::*;
    use crate::advice::advise as all;
    use crate::advice::facts::Wwid;
    use crate::advice::subject::tests::{subject_of, xml};

    fn on(device: &str) -> Subject {
        let mut guest = subject_of(&xml(
            " cache='none' io='io_uring' iothread='1'",
            "<iothreads>1</iothreads>",
        ));
        busy(&mut guest, device);
        guest
    }

    fn scheduled(device: &str, scheduler: &str) -> HostFacts {
        let mut host = host();
        let facts = host.devices.get_mut(device).unwrap();
        facts.scheduler = Some(scheduler.to_owned());
        facts.schedulers = ["none", "mq-deadline", "bfq"].map(str::to_owned).into();
        host
    }

    #[test]
    fn nvme_goes_without_a_scheduler_by_a_rule_that_names_the_hardware() {
        let mut host = scheduled("nvme0n1", "mq-deadline");
        host.devices.get_mut("nvme0n1").unwrap().wwid = Some(Wwid {
            attribute: "wwid",
            value: "nvme.1 [x]".into(),
        });
        let advice = advice_of(Kind::Scheduler, &on("nvme0n1"), &host).unwrap();
        assert_eq!(advice.id, "next-boot/scheduler/nvme.1 [x]");
        let Remedy::File { path, content, .. } = advice.remedy else {
            panic!("a rule is a file");
        };
        assert_eq!(
            path.to_str().unwrap(),
            "/etc/udev/rules.d/60-blkpilot-scheduler-nvme.1--x-.rules"
        );
        let expected = "ACTION==\"add|change\", SUBSYSTEM==\"block\", ENV{DEVTYPE}==\"disk\", ATTR{wwid}==\"nvme.1??x?\", ATTR{queue/scheduler}=\"none\"\n";
        assert!(content.ends_with(expected), "{content}");
        assert_eq!(
            advice_of(
                Kind::Scheduler,
                &on("nvme0n1"),
                &scheduled("nvme0n1", "none")
            ),
            None
        );
    }

    #[test]
    fn a_daemon_that_would_overrule_the_rule_is_named() {
        let root = crate::sysfs::tests::tree(&[
            ("etc/tuned/active_profile", "mine"),
            ("etc/tuned/mine/tuned.conf", "[disk]\nelevator=bfq\n"),
        ]);
        let words = "python3 /usr/sbin/tuned";
        crate::tuning_daemon::tests::process(root.path(), 7, "tuned", "usr/bin/python3", words);
        let proc = root.path().join("proc");
        let host = HostFacts {
            daemons: crate::tuning_daemon::tuning_daemons(&proc, root.path()),
            ..scheduled("nvme0n1", "mq-deadline")
        };
        let advice = advice_of(Kind::Scheduler, &on("nvme0n1"), &host).unwrap();
        let said = "tuned sets it too, after udev ([disk] elevator=bfq): change it there instead";
        assert_eq!(advice.cautions[1], said);
    }

    #[test]
    fn bfq_is_for_a_measured_neighbour_only() {
        let host = scheduled("sda", "mq-deadline");
        let (heavy, mut light) = (on("sda"), on("sda"));
        let measured = light.disks[0].measured.as_mut().unwrap();
        (measured.read_bytes_per_sec, measured.write_bytes_per_sec) = (1e5, 0.0);
        let scheduler = |guests: &[Subject]| {
            let advice = all(guests, &host);
            let mine = advice.into_iter().find(|a| a.kind == Kind::Scheduler);
            mine.map(|advice| advice.summary)
        };
        let guests = [heavy.clone(), light.clone()];
        assert_eq!(
            scheduler(&guests).unwrap(),
            "set the I/O scheduler of sda to bfq"
        );
        assert_eq!(scheduler(std::slice::from_ref(&heavy)), None, "alone");
        let mut above = light.clone();
        above.disks[0].device.as_mut().unwrap().counted = ["loop3".to_owned()].into();
        let waits = "it waits at a loop device of its own";
        assert_eq!(scheduler(&[heavy.clone(), above]), None, "{waits}");
        light.disks[0].measured.as_mut().unwrap().latency_us = Some(500.0);
        assert_eq!(scheduler(&[heavy, light]), None, "it does not wait long");
    }
}
