//! Files: their file systems, and loop devices over them.

use super::*;
use crate::error::HostError;

/// A loop device over `disk.img`, which lies on `vda`.
fn loop_on_file(dio: &str) -> FakeHost {
    FakeHost::new(&[
        ("disk.img", "data"),
        ("sys/devices/pci/virtio0/block/vda/queue/rotational", "1\n"),
        ("sys/block/vda", "->sys/devices/pci/virtio0/block/vda"),
        ("sys/dev/block/DISK", "->sys/devices/pci/virtio0/block/vda"),
        (
            "sys/devices/virtual/block/loop0/loop/backing_file",
            "ROOT/disk.img\n",
        ),
        ("sys/devices/virtual/block/loop0/loop/dio", dio),
        ("sys/block/loop0", "->sys/devices/virtual/block/loop0"),
        ("sys/dev/block/7:0", "->sys/devices/virtual/block/loop0"),
    ])
}

#[test]
fn a_loop_device_leads_to_the_device_of_its_file() {
    let host = loop_on_file("1\n");
    assert_eq!(
        host.device("7:0"),
        "loop0 (direct I/O) on /disk.img on file system on vda"
    );
    let stack = host.resolver().device("7:0").unwrap();
    assert_eq!(host.backing(&stack).name, "vda");
}

#[test]
fn a_loop_device_that_answers_from_the_page_cache_does_the_work_itself() {
    let host = loop_on_file("0\n");
    let stack = host.resolver().device("7:0").unwrap();
    let device = host.backing(&stack);
    assert_eq!(device.name, "loop0");
    assert_eq!(Vec::from_iter(&device.leaves), ["vda"]);
}

#[test]
fn the_file_system_of_an_image_is_named_by_its_mount() {
    let host = loop_on_file("0\n");
    let line = format!("1 1 {} / ROOT rw - ext4 /dev/vda rw\n", host.number);
    host.add(&[("proc/self/mountinfo", line.as_str())]);
    let image = host.image("disk.img");
    assert_eq!(host.short(&image), "/disk.img on ext4 on vda");
    assert!(image.below[0].source.ends_with("proc/self/mountinfo"));
    assert!(image.below[0].below[0].source.ends_with(&host.number));
}

/// The stack of `/vm/disk.img` from its file system on, if that had an anonymous device number.
fn anonymous(host: &FakeHost, mounts: &str) -> Layer {
    host.add(&[("proc/self/mountinfo", mounts)]);
    host.resolver()
        .file_system(&host.root.path().join("vm/disk.img"), "0:77", &[])
}

#[test]
fn btrfs_stands_on_all_its_devices() {
    let host = FakeHost::new(&NVME);
    host.add(&[
        ("vm/disk.img", ""),
        ("sys/devices/pci/ata1/block/sdb/queue/rotational", "0\n"),
        ("sys/block/sdb", "->sys/devices/pci/ata1/block/sdb"),
        ("sys/fs/btrfs/features/x", ""),
        (
            "sys/fs/btrfs/some-uuid/devices/nvme0n1",
            "->sys/devices/pci/nvme/nvme0/nvme0n1",
        ),
        (
            "sys/fs/btrfs/some-uuid/devices/sdb",
            "->sys/devices/pci/ata1/block/sdb",
        ),
    ]);
    let stack = anonymous(
        &host,
        "1 1 0:40 /sub ROOT/vm rw - btrfs /dev/sdb rw,subvol=/sub\n",
    );
    assert_eq!(stack.to_string(), "btrfs on [nvme0n1, sdb]");
    let device = host.backing(&stack);
    assert_eq!(device.name, "nvme0n1+sdb");
    assert_eq!(device.counted.len(), 2);
    let unknown = anonymous(&host, "1 1 0:40 / ROOT/vm rw - btrfs /dev/sdc rw\n");
    assert!(
        unknown.first_problem().unwrap().contains("/dev/sdc"),
        "{unknown}"
    );
}

#[test]
fn an_overlay_leads_to_the_layer_that_has_the_file() {
    let host = loop_on_file("0\n");
    host.add(&[
        ("vm/disk.img", ""),
        ("lower/b/disk.img", ""),
        ("upper/other.img", ""),
    ]);
    let line = "1 1 0:50 / ROOT/vm rw - overlay overlay rw,lowerdir=ROOT/lower/a:ROOT/lower/b,upperdir=ROOT/upper\n";
    let stack = anonymous(&host, line);
    assert_eq!(
        host.short(&stack),
        "overlay on /lower/b/disk.img on file system on vda"
    );
    let hidden = anonymous(
        &host,
        "1 1 0:50 / ROOT/vm rw - overlay overlay rw,lowerdir=l/A:l/B\n",
    );
    assert!(!hidden.is_complete());
}

#[test]
fn what_no_device_of_this_host_holds_is_said_with_the_reason() {
    let host = FakeHost::new(&[("vm/disk.img", "")]);
    for (mount, reason) in [
        (
            "nfs4 server:/export",
            "server:/export is not a block device",
        ),
        ("tmpfs none", "memory"),
        ("zfs tank/vm", "tank/vm"),
    ] {
        let stack = anonymous(&host, &format!("1 1 0:60 / ROOT/vm rw - {mount} rw\n"));
        assert!(stack.first_problem().unwrap().contains(reason), "{stack}");
        assert_eq!(BackingDevice::of_stack(&host.resolver(), &stack), None);
    }
    let lost = anonymous(&host, "");
    assert!(lost.to_string().contains("0:77"), "{lost}");
    let gone = BackingDevice::of_image(&host.resolver(), Path::new("/no/such.img"));
    assert!(
        matches!(gone, Err(HostError::Unsupported { .. })),
        "{gone:?}"
    );
    assert!(!host.image("vm").is_complete(), "a directory is no image");
}
