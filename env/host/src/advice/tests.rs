use blkpilot_env::sample::DeviceClass;

use super::facts::{DeviceFacts, Storage};
use super::subject::Measured;
use super::subject::tests::{subject_of, xml};
use super::*;
use crate::backing_device::BackingDevice;
use crate::topology::Topology;

/// A host of 8 CPUs on two NUMA nodes with 16 GiB of memory, and the devices `sda` and `nvme0n1`.
pub(super) fn host() -> HostFacts {
    let cpus = |list: &str| list.parse().unwrap();
    let devices = ["nvme0n1", "sda"].map(|name| (name.to_owned(), DeviceFacts::default()));
    HostFacts {
        qemu: Version(7, 2, 0),
        libvirt: Version(9, 0, 0),
        kernel: Version(6, 1, 0),
        allows_io_uring: true,
        topology: Topology {
            online: cpus("0-7"),
            cores: Vec::new(),
            nodes: vec![(0, cpus("0-3")), (1, cpus("4-7"))],
            ..Topology::default()
        },
        mem_total_bytes: 16 << 30,
        mem_available_bytes: 12 << 30,
        huge_pages: Vec::new(),
        default_huge_page_kib: 2048,
        has_iommu: true,
        devices: devices.into(),
        daemons: Vec::new(),
    }
}

/// Puts the first disk of a guest on a device, and has it read 128 MiB over and over, slowly.
pub(super) fn busy(guest: &mut Subject, device: &str) {
    let class = if device.starts_with("nvme") {
        DeviceClass::Nvme
    } else {
        DeviceClass::SataSsd
    };
    let disk = &mut guest.disks[0];
    disk.storage = Storage::Local;
    disk.device = Some(BackingDevice {
        name: device.to_owned(),
        counted: [device.to_owned()].into(),
        leaves: [device.to_owned()].into(),
        class,
        numa: 0,
        queues: vec!["0-3".parse().unwrap(), "4-7".parse().unwrap()],
    });
    disk.capacity_bytes = Some(1 << 27);
    disk.measured = Some(Measured {
        read_bytes_total: 1 << 30,
        reads_per_sec: 2_000.0,
        writes_per_sec: 0.0,
        read_bytes_per_sec: 2_000.0 * 4096.0,
        write_bytes_per_sec: 0.0,
        in_flight: 4.0,
        latency_us: Some(2_000.0),
    });
}

/// The advice of a kind for a guest that is alone on the host.
pub(super) fn advice_of(kind: Kind, guest: &Subject, host: &HostFacts) -> Option<Advice> {
    let mut advice = advise(std::slice::from_ref(guest), host).into_iter();
    advice.find(|advice| advice.kind == kind)
}

/// The XML of a guest that has opted in to these knobs.
pub(super) fn opted_in(xml: &str, knobs: &str) -> String {
    let element = format!(
        "</uuid><metadata><b:tuning xmlns:b='https://blkpilot.dev/xmlns/1' knobs='{knobs}'/></metadata>"
    );
    xml.replace("</uuid>", &element)
}

/// The same guest with all advice followed, while it still runs as it did.
fn followed(guest: &Subject, advice: &[Advice]) -> Subject {
    let definition = Definition {
        xml: patched(&guest.xml, advice.iter().filter_map(Advice::edit)).unwrap(),
        live_xml: Some(guest.xml.clone()),
        is_persistent: true,
        snapshots: 0,
    };
    let mut next = Subject::from_definition(&definition).unwrap();
    for (new, old) in next.disks.iter_mut().zip(&guest.disks) {
        (new.storage, new.has_holes) = (old.storage, old.has_holes);
        new.device.clone_from(&old.device);
        new.capacity_bytes = old.capacity_bytes;
        new.measured = old.measured.filter(|_| new.runs_as_defined);
    }
    next
}

#[test]
fn advice_that_was_followed_is_gone_and_brings_no_other() {
    let new = HostFacts {
        qemu: Version(9, 2, 0),
        libvirt: Version(10, 10, 0),
        huge_pages: vec![facts::HugePages {
            page_kib: 2048,
            free: 512,
        }],
        ..host()
    };
    let drivers = [
        "",
        " cache='unsafe'",
        " cache='writethrough' io='threads'",
        " cache='directsync' io='native' queues='1'",
        " cache='none' io='native' iothread='1'",
        " cache='none' queues='2' iothread='1'",
    ];
    let pinned = "
  <iothreads>1</iothreads>
  <cputune>
    <vcpupin vcpu='0' cpuset='0'/>
    <iothreadpin iothread='1' cpuset='0'/>
  </cputune>";
    for driver in drivers {
        for host in [&host(), &new] {
            for device in ["sda", "nvme0n1"] {
                let mut guest = subject_of(&opted_in(&xml(driver, pinned), "cache"));
                busy(&mut guest, device);
                let advice = advise(std::slice::from_ref(&guest), host);
                assert!(!advice.is_empty(), "{driver}");
                let next = followed(&guest, &advice);
                let again = advise(&[next], host);
                let left: Vec<_> = again.iter().filter(|a| a.edit().is_some()).collect();
                assert_eq!(left, [] as [&Advice; 0], "{driver} on {device}");
            }
        }
    }
}

#[test]
fn ids_are_the_same_on_each_run_and_no_two_are() {
    let mut guest = subject_of(&xml(" cache='unsafe' queues='1'", ""));
    busy(&mut guest, "nvme0n1");
    let ids = |guest: &Subject| -> Vec<String> {
        let advice = advise(std::slice::from_ref(guest), &host());
        advice.into_iter().map(|advice| advice.id).collect()
    };
    let first = ids(&guest);
    assert!(first.contains(&format!("next-boot/queues/{}/vda", subject::tests::UUID)));
    let unique: std::collections::BTreeSet<_> = first.iter().collect();
    assert_eq!(unique.len(), first.len());
    guest.guest.name = "renamed".into();
    assert_eq!(ids(&guest), first);
}

#[test]
fn what_cannot_be_done_here_is_no_edit() {
    let mut advice = advice_of(Kind::Io, &subject_of(&xml(" cache='none'", "")), &host()).unwrap();
    assert!(advice.edit().is_some());
    advice.requires[0].is_met = None;
    assert_eq!(advice.edit(), None);
}

#[test]
fn transient_guests_and_snapshots_are_told_of() {
    let mut guest = subject_of(&xml(" cache='none'", ""));
    (guest.is_persistent, guest.snapshots) = (false, 2);
    let advice = advice_of(Kind::Io, &guest, &host()).unwrap();
    assert_eq!(advice.cautions.len(), 2, "{:?}", advice.cautions);
}
