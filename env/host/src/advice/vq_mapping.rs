//! The queues of one disk on several IOThreads.

use blkpilot_env::sample::DeviceClass;

use super::{
    Advice, Edit, Evidence, Gain, HostFacts, Kind, Remedy, Requirement, Subject, SubjectDisk,
    Version, queues,
};

/// QEMU 9.0 release notes, virtio-blk `iothread-vq-mapping`.
const QEMU: Version = Version(9, 0, 0);
/// libvirt documentation, domain XML, `<iothreads>` below a disk's `<driver>`.
const LIBVIRT: Version = Version(10, 0, 0);
/// Threads for one disk: each costs CPU time of the host, more so when it polls.
const MOST_IOTHREADS: u32 = 4;
/// Below as many vCPUs one IOThread keeps up with what they can ask for.
const LEAST_VCPUS: u32 = 4;

pub(super) fn advise(guest: &Subject, disk: &SubjectDisk, host: &HostFacts) -> Option<Advice> {
    let (measured, device) = (disk.measured?, disk.device.as_ref()?);
    let vcpus = guest.guest.vcpus;
    let queues = queues::in_force(guest, disk)?;
    let hardware = u32::try_from(device.queues.len()).unwrap_or(u32::MAX);
    // A queue per vCPU is advised too, and needed here.
    let missing = (queues < vcpus).then_some(vcpus);
    let iothreads = MOST_IOTHREADS.min(queues.max(vcpus)).min(hardware);
    let requires = vec![
        Requirement::version("QEMU", QEMU, host.qemu),
        Requirement::version("libvirt", LIBVIRT, host.libvirt),
    ];
    let is_possible = requires.iter().all(|needed| needed.is_met == Some(true))
        && !disk.lacks_ioeventfd
        && disk.iothreads.len() < 2
        && iothreads >= 2;
    let is_worth_it = guest.guest.is_kvm
        && vcpus >= LEAST_VCPUS
        && device.class == DeviceClass::Nvme
        && measured.in_flight >= f64::from(iothreads);
    if !is_possible || !is_worth_it {
        return None;
    }
    let mut advice = Advice {
        summary: format!("spread the disk's queues over {iothreads} IOThreads of its own"),
        reason:
            "one thread takes the requests of all vCPUs, on a device with queues enough for several"
                .to_owned(),
        evidence: vec![
            Evidence::number("requests in flight", measured.in_flight, ""),
            Evidence::number(
                "requests",
                measured.reads_per_sec + measured.writes_per_sec,
                "per second",
            ),
            Evidence::number("vCPUs", vcpus.into(), ""),
            Evidence::number("queues of the disk", queues.into(), ""),
            Evidence::number("hardware queues", hardware.into(), ""),
        ],
        gain: Gain::Documented {
            text: "more requests per second where the one IOThread is the bottleneck",
            source: "Red Hat Developer, 2024-09-05: Scaling virtio-blk disk I/O with IOThread Virtqueue Mapping",
        },
        requires,
        remedy: Remedy::Xml(Edit::MapQueues {
            target: disk.disk.target.clone(),
            iothreads,
            queues: missing,
        }),
        ..Advice::of_disk(Kind::VqMapping, guest, disk)
    };
    advice.cautions.push(
        "blkpilot tunes disks with one IOThread only: channel and polling of this disk are then closed"
            .to_owned(),
    );
    Some(advice)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, busy, host};
    use super::*;
    use crate::advice::subject::tests::{subject_of, xml};

    fn mapping(guest: &Subject, host: &HostFacts) -> Option<Remedy> {
        Some(advice_of(Kind::VqMapping, guest, host)?.remedy)
    }

    fn fast() -> (Subject, HostFacts) {
        let mut guest = subject_of(&xml(" cache='none' io='io_uring'", ""));
        busy(&mut guest, "nvme0n1");
        let host = HostFacts {
            qemu: Version(9, 0, 0),
            libvirt: Version(10, 0, 0),
            ..host()
        };
        (guest, host)
    }

    #[test]
    fn a_busy_disk_on_nvme_is_spread_over_iothreads() {
        let (guest, host) = fast();
        let expected = Remedy::Xml(Edit::MapQueues {
            target: "vda".into(),
            iothreads: 2,
            queues: None,
        });
        assert_eq!(
            mapping(&guest, &host),
            Some(expected),
            "it has two hardware queues"
        );
    }

    #[test]
    fn both_versions_are_needed() {
        for (qemu, libvirt) in [
            (Version(8, 2, 9), Version(10, 0, 0)),
            (Version(9, 0, 0), Version(9, 10, 0)),
        ] {
            let (guest, host) = fast();
            let host = HostFacts {
                qemu,
                libvirt,
                ..host
            };
            assert_eq!(mapping(&guest, &host), None);
        }
    }

    #[test]
    fn an_idle_disk_or_a_slow_device_needs_no_more_threads() {
        let (mut guest, host) = fast();
        guest.disks[0].measured.as_mut().unwrap().in_flight = 1.0;
        assert_eq!(mapping(&guest, &host), None);
        let (mut guest, host) = fast();
        busy(&mut guest, "sda");
        assert_eq!(mapping(&guest, &host), None);
    }
}
