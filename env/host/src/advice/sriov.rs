//! A virtual function of the NVMe device, passed to the guest in place of a disk.

use super::{Advice, Evidence, Gain, HostFacts, Kind, Remedy, Requirement, Subject, SubjectDisk};

/// Requests that are always in flight: a disk below it does not keep its device busy.
pub(super) const BUSY: f64 = 1.0;

pub(super) fn advise(guest: &Subject, disk: &SubjectDisk, host: &HostFacts) -> Option<Advice> {
    if !may_be_replaced(guest, disk, host) {
        return None;
    }
    let leaves = &disk.device.as_ref()?.leaves;
    let (name, device) = leaves.iter().find_map(|leaf| {
        let device = host.devices.get(leaf)?;
        (device.sriov_totalvfs > 0).then_some((leaf, device))
    })?;
    let mut advice = Advice {
        summary: format!("pass a virtual function of {name} to the guest in place of the disk"),
        reason: "the device can be divided by the hardware, and the guest then reaches its part without \
                 QEMU on the way"
            .to_owned(),
        evidence: vec![
            Evidence::number("virtual functions possible", device.sriov_totalvfs.into(), ""),
            Evidence::text("device", name.as_str()),
            Evidence::number("requests in flight", disk.measured?.in_flight, ""),
        ],
        gain: Gain::NotMeasured {
            text: "no time of the host's CPUs for its requests, and less latency",
        },
        requires: vec![Requirement {
            what: "an IOMMU in use (intel_iommu=on or the like)".to_owned(),
            found: if host.has_iommu { "IOMMU groups" } else { "no IOMMU group" }.to_owned(),
            is_met: Some(host.has_iommu),
        }],
        remedy: Remedy::Steps(vec![
            format!("make a virtual function with a namespace as large as the disk: sriov_numvfs of {name}, and the vendor's way to give it resources"),
            "copy the disk into that namespace while the guest is off".to_owned(),
            "replace the <disk> by <hostdev mode='subsystem' type='pci' managed='yes'> with the function's address".to_owned(),
        ]),
        ..Advice::of_disk(Kind::Sriov, guest, disk)
    };
    advice.cautions.push(
        "the guest can then be neither migrated nor snapshotted while it runs, its memory is locked, and \
         blkpilot no longer sees the disk"
            .to_owned(),
    );
    Some(advice)
}

/// Whether a disk is busy, and nothing of libvirt or QEMU is used on it that would be lost.
pub(super) fn may_be_replaced(guest: &Subject, disk: &SubjectDisk, host: &HostFacts) -> bool {
    let is_busy = disk
        .measured
        .is_some_and(|measured| measured.in_flight >= BUSY);
    let is_plain = disk.disk.format == "raw" && !disk.has_backing_chain && guest.snapshots == 0;
    let is_own = disk.is_image() && disk.shared_with(host).is_none();
    guest.guest.is_kvm && is_busy && is_plain && is_own
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, busy, host};
    use super::*;
    use crate::advice::facts::Storage;
    use crate::advice::subject::tests::{subject_of, xml};

    fn fast() -> (Subject, HostFacts) {
        let mut guest = subject_of(&xml(" cache='none' io='io_uring'", ""));
        busy(&mut guest, "nvme0n1");
        let mut host = host();
        host.devices.get_mut("nvme0n1").unwrap().sriov_totalvfs = 8;
        (guest, host)
    }

    #[test]
    fn only_a_device_with_virtual_functions_is_named() {
        let (guest, host) = fast();
        let advice = advice_of(Kind::Sriov, &guest, &host).unwrap();
        assert!(advice.summary.contains("nvme0n1"));
        assert_eq!(advice.edit(), None, "data has to be moved first");
        let (guest, mut host) = fast();
        host.devices.get_mut("nvme0n1").unwrap().sriov_totalvfs = 0;
        assert_eq!(advice_of(Kind::Sriov, &guest, &host), None);
    }

    #[test]
    fn what_would_lose_a_snapshot_an_overlay_or_a_migration_is_not_replaced() {
        let spoil: [fn(&mut Subject); 5] = [
            |guest| guest.snapshots = 1,
            |guest| guest.disks[0].has_backing_chain = true,
            |guest| guest.disks[0].is_shareable = true,
            |guest| guest.disks[0].storage = Storage::Shared("NFS"),
            |guest| guest.disks[0].measured.as_mut().unwrap().in_flight = 0.5,
        ];
        for (n, spoil) in spoil.iter().enumerate() {
            let (mut guest, host) = fast();
            spoil(&mut guest);
            for kind in [Kind::Sriov, Kind::VhostUser] {
                assert_eq!(advice_of(kind, &guest, &host), None, "case {n}");
            }
        }
    }
}
