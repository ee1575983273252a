//! `io=`: how QEMU submits requests that bypass the page cache.

use super::facts::Storage;
use super::{
    Advice, Edit, Evidence, Gain, HostFacts, Kind, Remedy, Requirement, Subject, SubjectDisk,
    Version,
};
use crate::guest::{BootIo, KnobKind};

/// QEMU 7.1.0 could not boot guests with io_uring and an IOThread (qemu-project/qemu issue 1193).
const QEMU_IO_URING: Version = Version(7, 2, 0);
/// libvirt documentation, domain XML, disk driver attribute `io`.
const LIBVIRT_IO_URING: Version = Version(6, 3, 0);
/// The first kernel with io_uring.
const KERNEL_IO_URING: Version = Version(5, 1, 0);

pub(super) fn advise(guest: &Subject, disk: &SubjectDisk, host: &HostFacts) -> Option<Advice> {
    if !disk.is_image() || !disk.disk.boot_cache.is_direct() {
        return None;
    }
    let best = best_direct(disk, host)?;
    let (reason, gain) = match disk.disk.boot_io {
        BootIo::Threads | BootIo::Default => (
            "each direct request is handed to a thread of a pool and back, though the kernel takes such \
             requests without one",
            Gain::NotMeasured {
                text: "fewer switches between threads for each request",
            },
        ),
        BootIo::Native if best == BootIo::IoUring && wants_cache_knob(guest, disk) => (
            "the guest has opted in to the cache knob, which stays closed under io='native': its requests \
             may block once they are buffered",
            Gain::NotMeasured {
                text: "none by itself: the cache of the running guest can then be tuned",
            },
        ),
        BootIo::Native | BootIo::IoUring => return None,
    };
    let advice = Advice {
        summary: format!("set io='{}' of the disk's driver", best.attribute()),
        reason: reason.to_owned(),
        evidence: vec![
            Evidence::text("cache", disk.disk.boot_cache.attribute()),
            Evidence::text("io", disk.disk.boot_io.attribute()),
        ],
        gain,
        requires: requirements(best, host),
        remedy: Remedy::Xml(Edit::Driver {
            target: disk.disk.target.clone(),
            set: vec![("io", best.attribute().to_owned())],
        }),
        ..Advice::of_disk(Kind::Io, guest, disk)
    };
    Some(advice)
}

fn wants_cache_knob(guest: &Subject, disk: &SubjectDisk) -> bool {
    guest.guest.allows(KnobKind::Cache) && disk.disk.cache_obstacle.is_none()
}

/// The best way to submit direct requests here: io_uring where all that it needs is there, else Linux
/// AIO where it does not block, which it does while a file system finds space for a hole.
pub(super) fn best_direct(disk: &SubjectDisk, host: &HostFacts) -> Option<BootIo> {
    let is_met = |needed: &Requirement| needed.is_met == Some(true);
    if requirements(BootIo::IoUring, host).iter().all(is_met) {
        return Some(BootIo::IoUring);
    }
    let never_allocates = disk.disk.format == "raw" && disk.has_holes == Some(false);
    (never_allocates && disk.storage == Storage::Local).then_some(BootIo::Native)
}

/// What a way to submit requests needs.
pub(super) fn requirements(io: BootIo, host: &HostFacts) -> Vec<Requirement> {
    match io {
        BootIo::Threads | BootIo::Default | BootIo::Native => Vec::new(),
        BootIo::IoUring => vec![
            Requirement::version("QEMU", QEMU_IO_URING, host.qemu),
            Requirement::version("libvirt", LIBVIRT_IO_URING, host.libvirt),
            Requirement::version("Linux", KERNEL_IO_URING, host.kernel),
            Requirement {
                what: "kernel.io_uring_disabled = 0".to_owned(),
                found: if host.allows_io_uring {
                    "0, or no such setting"
                } else {
                    "not 0"
                }
                .to_owned(),
                is_met: Some(host.allows_io_uring),
            },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, host, opted_in};
    use super::*;
    use crate::advice::subject::tests::{subject_of, xml};

    fn io_of(xml: &str, host: &HostFacts) -> Option<String> {
        let advice = advice_of(Kind::Io, &subject_of(xml), host)?;
        assert!(advice.edit().is_some());
        Some(advice.summary)
    }

    #[test]
    fn threads_give_way_to_io_uring_or_else_to_linux_aio() {
        let threads = xml(" cache='none'", "");
        assert!(io_of(&threads, &host()).unwrap().contains("io_uring"));
        let old = HostFacts {
            qemu: Version(7, 1, 0),
            ..host()
        };
        assert!(io_of(&threads, &old).unwrap().contains("native"));
        let forbidden = HostFacts {
            allows_io_uring: false,
            ..host()
        };
        assert!(io_of(&threads, &forbidden).unwrap().contains("native"));
        let qcow2 = threads.replace("type='raw'", "type='qcow2'");
        assert_eq!(
            io_of(&qcow2, &old),
            None,
            "an image that grows blocks Linux AIO"
        );
    }

    #[test]
    fn buffered_disks_and_those_that_do_well_are_left_alone() {
        for driver in [
            "",
            " cache='none' io='native'",
            " cache='none' io='io_uring'",
        ] {
            assert_eq!(io_of(&xml(driver, ""), &host()), None, "{driver}");
        }
    }

    #[test]
    fn linux_aio_is_left_where_it_keeps_a_knob_closed() {
        let native = opted_in(&xml(" cache='none' io='native'", ""), "channel cache");
        assert!(io_of(&native, &host()).unwrap().contains("io_uring"));
        let channel = opted_in(&xml(" cache='none' io='native'", ""), "channel");
        assert_eq!(io_of(&channel, &host()), None);
    }
}
