//! `queues=`: one queue of a virtio-blk disk for each vCPU.

use super::{
    Advice, Edit, Evidence, Gain, Kind, Remedy, Requirement, Subject, SubjectDisk, Version,
};

/// Since this machine type virtio-blk on PCI has a queue per vCPU unless told otherwise (`hw_compat_5_1`
/// in QEMU's hw/core/machine.c sets `num-queues` to 1).
const MACHINE_WITH_QUEUES: Version = Version(5, 2, 0);

pub(super) fn advise(guest: &Subject, disk: &SubjectDisk) -> Option<Advice> {
    let (queues, vcpus) = (in_force(guest, disk)?, guest.guest.vcpus);
    if queues >= vcpus {
        return None;
    }
    let advice = Advice {
        summary: format!("set queues='{vcpus}' of the disk's driver"),
        reason: "vCPUs share a queue, and with it a lock and an interrupt that is handled by one of them"
            .to_owned(),
        evidence: vec![
            Evidence::number("queues", queues.into(), ""),
            Evidence::number("vCPUs", vcpus.into(), ""),
            Evidence::text("machine", guest.machine.as_str()),
        ],
        gain: Gain::NotMeasured {
            text: "more requests per second where several vCPUs do I/O at a time",
        },
        requires: Vec::<Requirement>::new(),
        remedy: Remedy::Xml(Edit::Driver {
            target: disk.disk.target.clone(),
            set: vec![("queues", vcpus.to_string())],
        }),
        ..Advice::of_disk(Kind::Queues, guest, disk)
    };
    Some(advice)
}

/// Queues that a disk will have; `None` where it has none to choose or that cannot be told.
pub(super) fn in_force(guest: &Subject, disk: &SubjectDisk) -> Option<u32> {
    if !disk.is_virtio_blk {
        return None;
    }
    if disk.queues.is_some() {
        return disk.queues;
    }
    // Names of distributions, such as pc-q35-jammy, do not say which QEMU they are like.
    let has_queues = guest.machine_version()? >= MACHINE_WITH_QUEUES;
    // Only on PCI does QEMU count vCPUs.
    let is_pci = !guest.machine.starts_with("s390");
    Some(if has_queues && is_pci {
        guest.guest.vcpus
    } else {
        1
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, host};
    use super::*;
    use crate::advice::subject::tests::{subject_of, xml};

    fn queues_of(driver: &str, machine: &str) -> Option<String> {
        let xml = xml(driver, "").replace("pc-q35-7.2", machine);
        Some(advice_of(Kind::Queues, &subject_of(&xml), &host())?.summary)
    }

    #[test]
    fn fewer_queues_than_vcpus_are_raised() {
        let raised = Some("set queues='4' of the disk's driver".to_owned());
        assert_eq!(queues_of(" queues='2'", "pc-q35-7.2"), raised);
        assert_eq!(queues_of("", "pc-i440fx-5.1"), raised);
        assert_eq!(queues_of("", "s390-ccw-virtio-8.0"), raised);
    }

    #[test]
    fn what_qemu_does_by_itself_or_nobody_can_tell_is_left_alone() {
        for machine in [
            "pc-q35-7.2",
            "pc-q35-10.0",
            "pc-q35-jammy",
            "pc-q35-rhel8.2.0",
        ] {
            assert_eq!(queues_of("", machine), None, "{machine}");
        }
        assert_eq!(queues_of(" queues='8'", "pc-q35-7.2"), None);
    }
}
