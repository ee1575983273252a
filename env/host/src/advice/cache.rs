//! `cache=`: which disks go through the host's page cache.

use super::facts::Storage;
use super::sriov::BUSY;
use super::{
    Advice, Budget, Edit, Evidence, Gain, HostFacts, Kind, Remedy, Subject, SubjectDisk, io,
};
use crate::guest::{BootCache, BootIo, KnobKind};
use crate::telemetry::default_reference;

/// On average every byte of the disk was read this often: then what was read once is read again.
const REREAD: u64 = 2;
/// A disk that always has a request in flight, and yet completes one only this many times as seldom as its
/// kind of device would one after the other, waits for its device.
const WAITS_FOR_DEVICE: f64 = 2.0;
/// Share of the bytes moved that are reads; with more writes the page cache fills with dirty pages.
const MOSTLY_READS: f64 = 0.5;
/// Part of the memory available that may be given to disks as page cache.
const PAGE_CACHE_SHARE: u64 = 2;

const GIB: f64 = (1_u64 << 30) as f64;

/// A cache mode, and why it.
struct Wanted {
    cache: BootCache,
    reason: String,
    evidence: Vec<Evidence>,
    gain: Gain,
    cautions: Vec<String>,
}

/// Memory that disks may have as page cache beside those that have it already, bytes.
pub(super) fn budget_bytes(guests: &[Subject], host: &HostFacts) -> u64 {
    let disks = guests.iter().flat_map(|guest| &guest.disks);
    let buffered = disks.filter(|disk| disk.is_image() && !disk.disk.boot_cache.is_direct());
    let taken: u64 = buffered.filter_map(|disk| disk.capacity_bytes).sum();
    (host.mem_available_bytes / PAGE_CACHE_SHARE).saturating_sub(taken)
}

pub(super) fn advise(
    guest: &Subject,
    disk: &SubjectDisk,
    host: &HostFacts,
    budget: &mut Budget,
) -> Option<Advice> {
    if !disk.is_image() || disk.storage == Storage::Memory {
        return None;
    }
    let wanted = match disk.disk.boot_cache {
        BootCache::Unsafe => Some(buffered(lost_flushes(), disk, host)),
        BootCache::Writethrough if disk.is_virtio_blk => {
            Some(buffered(needless_flushes(disk), disk, host))
        }
        BootCache::DirectSync if disk.is_virtio_blk => {
            fits(guest, disk, host, budget).or_else(|| Some(needless_flushes(disk)))
        }
        BootCache::Writethrough | BootCache::DirectSync => None,
        BootCache::Writeback => shared(disk, host).or_else(|| too_large(disk, host)),
        BootCache::None => fits(guest, disk, host, budget),
    }?;
    let submits = partner(disk, host, wanted.cache);
    let mut set = vec![("cache", wanted.cache.attribute().to_owned())];
    let mut requires = Vec::new();
    if submits != disk.disk.boot_io {
        set.push(("io", submits.attribute().to_owned()));
        requires = io::requirements(submits, host);
    }
    let assignments: Vec<String> = set.iter().map(|(k, v)| format!("{k}='{v}'")).collect();
    let mut advice = Advice {
        summary: format!("set {} of the disk's driver", assignments.join(" and ")),
        reason: wanted.reason,
        gain: wanted.gain,
        requires,
        remedy: Remedy::Xml(Edit::Driver {
            target: disk.disk.target.clone(),
            set,
        }),
        ..Advice::of_disk(Kind::Cache, guest, disk)
    };
    let now = [
        ("cache", disk.disk.boot_cache.attribute()),
        ("io", disk.disk.boot_io.attribute()),
    ];
    advice.evidence = now.map(|(name, value)| Evidence::text(name, value)).into();
    advice.evidence.extend(wanted.evidence);
    advice.cautions.extend(wanted.cautions);
    Some(advice)
}

/// How requests are to be submitted under a cache mode. QEMU refuses Linux AIO without O_DIRECT.
fn partner(disk: &SubjectDisk, host: &HostFacts, cache: BootCache) -> BootIo {
    let best = io::best_direct(disk, host);
    match (cache.is_direct(), disk.disk.boot_io) {
        (true, BootIo::Threads | BootIo::Default) => best.unwrap_or(BootIo::Threads),
        (false, BootIo::Native) if best == Some(BootIo::IoUring) => BootIo::IoUring,
        (false, BootIo::Native) => BootIo::Threads,
        (_, kept) => kept,
    }
}

/// The same for a disk that goes through the page cache: it still does, unless it had better not.
fn buffered(wanted: Wanted, disk: &SubjectDisk, host: &HostFacts) -> Wanted {
    let had_better_not = shared(disk, host).or_else(|| too_large(disk, host));
    let cache = had_better_not.map_or(BootCache::Writeback, |direct| direct.cache);
    Wanted { cache, ..wanted }
}

fn lost_flushes() -> Wanted {
    Wanted {
        cache: BootCache::None,
        reason:
            "with cache='unsafe' QEMU ignores the guest's flushes: what the guest was told is on \
                 stable storage is lost when the host fails"
                .to_owned(),
        evidence: Vec::new(),
        gain: Gain::NotMeasured {
            text: "the guest's data survives a failure of the host; it gets slower, since flushes count again",
        },
        cautions: Vec::new(),
    }
}

fn needless_flushes(disk: &SubjectDisk) -> Wanted {
    let mode = disk.disk.boot_cache.attribute();
    Wanted {
        cache: BootCache::None,
        reason: format!(
            "with cache='{mode}' QEMU flushes after every single write, though the guest says itself \
             when it needs that: virtio-blk passes its flushes on"
        ),
        evidence: Vec::new(),
        gain: Gain::NotMeasured {
            text: "writes no longer wait for a flush each",
        },
        cautions: vec![
            "keep it for a guest that does not flush: Linux before 2.6.32, or file systems mounted \
             without barriers"
                .to_owned(),
        ],
    }
}

fn shared(disk: &SubjectDisk, host: &HostFacts) -> Option<Wanted> {
    let others = disk.shared_with(host)?;
    Some(Wanted {
        cache: BootCache::None,
        reason: format!(
            "its image may be used by {others}; pages that this host has cached can then be stale, and \
             libvirt refuses to migrate the guest"
        ),
        evidence: vec![Evidence::text("used also by", others)],
        gain: Gain::Documented {
            text: "the guest may be migrated while it runs",
            source: "libvirt: virDomainMigrate, flag VIR_MIGRATE_UNSAFE",
        },
        cautions: Vec::new(),
    })
}

fn too_large(disk: &SubjectDisk, host: &HostFacts) -> Option<Wanted> {
    let capacity = disk.capacity_bytes?;
    (capacity >= host.mem_total_bytes).then(|| Wanted {
        cache: BootCache::None,
        reason: "the disk is larger than the host's memory, so the page cache cannot hold it, while its \
                 pages drive out those of others and everything is copied once more"
            .to_owned(),
        evidence: vec![
            Evidence::number("size of the disk", capacity as f64 / GIB, "GiB"),
            Evidence::number("memory of the host", host.mem_total_bytes as f64 / GIB, "GiB"),
        ],
        gain: Gain::NotMeasured {
            text: "less memory and CPU time on the host, and the guest may be migrated while it runs",
        },
        cautions: vec![
            "a working set much smaller than the disk may do better as it is: `blkpilot trial` tells"
                .to_owned(),
        ],
    })
}

/// The page cache is worth it where it surely holds the disk, the disk is read again and again, and the
/// device keeps it waiting.
fn fits(
    guest: &Subject,
    disk: &SubjectDisk,
    host: &HostFacts,
    budget: &mut Budget,
) -> Option<Wanted> {
    let (measured, device) = (disk.measured?, disk.device.as_ref()?);
    let capacity = disk.capacity_bytes?;
    let reads = measured.read_bytes_per_sec / measured.bytes_per_sec();
    let device_us = default_reference(device.class).read_us;
    let us_per_request = 1e6 / (measured.reads_per_sec + measured.writes_per_sec);
    let waits = measured.in_flight >= BUSY && us_per_request >= WAITS_FOR_DEVICE * device_us;
    let is_read_again = reads >= MOSTLY_READS && measured.read_bytes_total >= REREAD * capacity;
    let may_be_cached = disk.storage == Storage::Local && disk.shared_with(host).is_none();
    let is_possible = may_be_cached && capacity <= budget.page_cache_bytes;
    if !(waits && is_read_again && is_possible) || guest.is_crowded(disk) {
        return None;
    }
    budget.page_cache_bytes -= capacity;
    let mut cautions = vec![
        "libvirt then refuses to migrate the guest while it runs".to_owned(),
        "it takes host memory and CPU time; what the guest has not flushed is in the host's memory"
            .to_owned(),
    ];
    if guest.guest.allows(KnobKind::Cache) && disk.disk.cache_obstacle.is_none() {
        cautions.push(format!(
            "the running guest can try it: blkpilot apply --set {}/{}:cache=buffered",
            guest.guest.name, disk.disk.target
        ));
    }
    Some(Wanted {
        cache: BootCache::Writeback,
        reason: "reads wait for the device, and the same data is read again and again: the page cache can \
                 hold all of the disk"
            .to_owned(),
        evidence: vec![
            Evidence::number("requests in flight", measured.in_flight, ""),
            Evidence::number("mean latency", measured.latency_us?, "µs"),
            Evidence::number("time between completions", us_per_request, "µs"),
            Evidence::number("read of its kind of device", device_us, "µs"),
            Evidence::number("share of reads", reads * 100.0, "% of bytes"),
            Evidence::number(
                "read since the guest's start",
                measured.read_bytes_total as f64 / capacity as f64,
                "times the disk",
            ),
            Evidence::number("size of the disk", capacity as f64 / GIB, "GiB"),
            Evidence::number("available memory", host.mem_available_bytes as f64 / GIB, "GiB"),
        ],
        gain: Gain::Measured {
            text: "IOPS ×10.16 (95 %: ×10.01 to ×11.57) for ×5.72 of the host's CPU time, on a guest whose \
                   working set fits, over a device limited to 2,000 requests per second",
            source: "docs/verification/trial-poor-cache.md",
        },
        cautions,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, busy, host};
    use super::*;
    use crate::advice::subject::Measured;
    use crate::advice::subject::tests::{subject_of, xml};

    fn cache_of(guest: &Subject, host: &HostFacts) -> Option<Advice> {
        advice_of(Kind::Cache, guest, host)
    }

    fn set(advice: &Advice) -> String {
        match &advice.remedy {
            Remedy::Xml(Edit::Driver { set, .. }) => format!("{set:?}"),
            other => panic!("{other:?}"),
        }
    }

    fn slow_reader(driver: &str) -> Subject {
        let mut guest = subject_of(&xml(driver, ""));
        busy(&mut guest, "sda");
        guest
    }

    fn of(guest: &mut Subject) -> &mut Measured {
        guest.disks[0].measured.as_mut().unwrap()
    }

    #[test]
    fn a_small_disk_that_is_read_again_and_again_may_be_cached() {
        let advice = cache_of(&slow_reader(" cache='none' io='native'"), &host()).unwrap();
        assert_eq!(
            set(&advice),
            r#"[("cache", "writeback"), ("io", "io_uring")]"#
        );
        assert!(matches!(advice.gain, Gain::Measured { .. }));
        let uring = cache_of(&slow_reader(" cache='none' io='io_uring'"), &host()).unwrap();
        assert_eq!(set(&uring), r#"[("cache", "writeback")]"#);
    }

    #[test]
    fn without_io_uring_a_cached_disk_is_served_by_threads() {
        let mut host = host();
        host.allows_io_uring = false;
        let advice = cache_of(&slow_reader(" cache='none' io='native'"), &host).unwrap();
        assert_eq!(
            set(&advice),
            r#"[("cache", "writeback"), ("io", "threads")]"#
        );
    }

    #[test]
    fn nothing_is_cached_that_does_not_fit_or_is_not_read_again_or_is_shared() {
        let spoil: [fn(&mut Subject, &mut HostFacts); 7] = [
            |_, host| host.mem_available_bytes = 1 << 27,
            |guest, _| of(guest).read_bytes_total = 1 << 27,
            |guest, _| of(guest).write_bytes_per_sec = 1e12,
            |guest, _| of(guest).reads_per_sec = 5_000.0,
            |guest, _| of(guest).in_flight = 0.9,
            |guest, _| guest.disks[0].storage = Storage::Shared("NFS"),
            |_, host| host.devices.get_mut("sda").unwrap().is_remote = true,
        ];
        for (n, spoil) in spoil.iter().enumerate() {
            let (mut guest, mut host) = (slow_reader(" cache='none' io='io_uring'"), host());
            spoil(&mut guest, &mut host);
            assert_eq!(cache_of(&guest, &host), None, "case {n}");
        }
    }

    #[test]
    fn a_disk_that_waits_for_a_cpu_is_not_taken_for_one_that_waits_for_its_device() {
        let pinned = |cpus: &str| format!("<vcpu cpuset='{cpus}'>4</vcpu><iothreads>1</iothreads>");
        let driver = " cache='none' io='io_uring' iothread='1'";
        let cached = |cpus: &str| {
            let vcpus = "<vcpu placement='static'>4</vcpu>";
            let mut guest = subject_of(&xml(driver, "").replace(vcpus, &pinned(cpus)));
            busy(&mut guest, "sda");
            cache_of(&guest, &host())
        };
        assert!(cached("0-7").is_some());
        assert_eq!(cached("0-1"), None);
    }

    #[test]
    fn the_page_cache_is_promised_once() {
        let mut host = host();
        // Room for one disk of 128 MiB.
        host.mem_available_bytes = 1 << 28;
        let guests = [1, 2].map(|n| {
            let mut guest = slow_reader(" cache='none' io='io_uring'");
            guest.guest.uuid = format!("uuid-{n}");
            guest
        });
        let advice = crate::advice::advise(&guests, &host);
        let cached = advice.iter().filter(|advice| advice.kind == Kind::Cache);
        assert_eq!(cached.count(), 1);
    }

    #[test]
    fn shared_storage_goes_without_the_page_cache() {
        let mut guest = subject_of(&xml("", ""));
        guest.disks[0].storage = Storage::Shared("NFS");
        let advice = cache_of(&guest, &host()).unwrap();
        assert_eq!(set(&advice), r#"[("cache", "none"), ("io", "io_uring")]"#);
        assert!(advice.reason.contains("NFS"), "{}", advice.reason);
    }

    #[test]
    fn flushes_are_neither_ignored_nor_forced_and_the_rest_stays() {
        for (mode, wanted) in [
            ("unsafe", "writeback"),
            ("writethrough", "writeback"),
            ("directsync", "none"),
        ] {
            let mut guest = subject_of(&xml(&format!(" cache='{mode}' io='threads'"), ""));
            let advice = cache_of(&guest, &host()).unwrap();
            assert!(set(&advice).contains(&format!("\"{wanted}\"")), "{mode}");
            guest.disks[0].storage = Storage::Shared("NFS");
            let advice = cache_of(&guest, &host()).unwrap();
            assert!(set(&advice).contains("\"none\""), "{mode} on NFS");
        }
    }

    #[test]
    fn a_disk_larger_than_memory_is_not_cached_and_others_are_left_as_they_are() {
        let mut guest = slow_reader(" cache='writeback'");
        assert_eq!(cache_of(&guest, &host()), None);
        guest.disks[0].capacity_bytes = Some(1 << 50);
        assert!(set(&cache_of(&guest, &host()).unwrap()).contains("none"));
        guest.disks[0].storage = Storage::Memory;
        assert_eq!(
            cache_of(&guest, &host()),
            None,
            "tmpfs may know no O_DIRECT"
        );
    }
}
