//! vhost-user-blk: SPDK serves the disk, past QEMU and the kernel. A pointer only.

use blkpilot_env::sample::DeviceClass;

use super::sriov::may_be_replaced;
use super::{
    Advice, Evidence, Gain, HostFacts, Kind, Remedy, Requirement, Subject, SubjectDisk, Version,
};

/// libvirt documentation, domain XML, disk type `vhostuser`.
const LIBVIRT: Version = Version(7, 1, 0);

pub(super) fn advise(guest: &Subject, disk: &SubjectDisk, host: &HostFacts) -> Option<Advice> {
    let device = disk.device.as_ref()?;
    let is_fit = disk.is_virtio_blk && device.class == DeviceClass::Nvme;
    if !is_fit || !may_be_replaced(guest, disk, host) {
        return None;
    }
    let shared = if guest.has_shared_memory {
        "shared"
    } else {
        "private"
    };
    let mut advice = Advice {
        summary: "let SPDK serve the disk by vhost-user-blk".to_owned(),
        reason: "the disk keeps an NVMe device busy; SPDK drives such a device without the kernel, by \
                 polling"
            .to_owned(),
        evidence: vec![
            Evidence::number("requests in flight", disk.measured?.in_flight, ""),
            Evidence::text("device", device.name.as_str()),
        ],
        gain: Gain::NotMeasured {
            text: "more requests per second per host CPU where a CPU is given to SPDK for good",
        },
        requires: vec![
            Requirement::version("libvirt", LIBVIRT, host.libvirt),
            Requirement {
                what: "an SPDK vhost target that owns the device".to_owned(),
                found: "cannot be told from here".to_owned(),
                is_met: None,
            },
            Requirement {
                what: "memory shared with it: <memoryBacking> with <source type='memfd'/> and <access mode='shared'/>".to_owned(),
                found: format!("{shared} memory"),
                is_met: Some(guest.has_shared_memory),
            },
        ],
        remedy: Remedy::Steps(vec![
            "give the device to SPDK (vfio-pci), and copy the disk to a bdev of it".to_owned(),
            "share the guest's memory: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>".to_owned(),
            "replace the <disk> by <disk type='vhostuser' device='disk'> with <source type='unix' path='SOCKET'/>".to_owned(),
        ]),
        ..Advice::of_disk(Kind::VhostUser, guest, disk)
    };
    advice.cautions.push(
        "the whole device goes to SPDK, a CPU polls all the time, libvirt can neither snapshot nor copy \
         the disk, and blkpilot no longer sees it"
            .to_owned(),
    );
    Some(advice)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, busy, host};
    use super::*;
    use crate::advice::subject::tests::{subject_of, xml};

    #[test]
    fn it_is_a_pointer_for_busy_nvme_disks_that_says_what_is_missing() {
        let mut guest = subject_of(&xml(" cache='none' io='io_uring'", ""));
        busy(&mut guest, "nvme0n1");
        let advice = advice_of(Kind::VhostUser, &guest, &host()).unwrap();
        assert_eq!(advice.edit(), None);
        let met: Vec<_> = advice.requires.iter().map(|needed| needed.is_met).collect();
        assert_eq!(met, [Some(true), None, Some(false)]);
        busy(&mut guest, "sda");
        assert_eq!(advice_of(Kind::VhostUser, &guest, &host()), None);
    }
}
