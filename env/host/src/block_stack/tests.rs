use super::*;
use crate::BackingDevice;
use crate::sysfs::tests::{add, tree};

mod files;

/// A host of which `sys` and `proc` are invented. Files of it are real, so that stat(2) says of each
/// that it lies on device `disk`, whose directory in sysfs the test may make.
struct FakeHost {
    root: tempfile::TempDir,
    number: String,
}

impl FakeHost {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tree(&[("proc/self/mountinfo", "")]);
        let number = number_text(fs::metadata(root.path()).unwrap().dev());
        let host = Self { root, number };
        host.add(files);
        host
    }

    /// `DISK` in a path stands for the number of the device that files lie on.
    fn add(&self, files: &[(&str, &str)]) {
        let paths: Vec<String> = files
            .iter()
            .map(|(path, _)| path.replace("DISK", &self.number))
            .collect();
        let files: Vec<(&str, &str)> = paths
            .iter()
            .map(String::as_str)
            .zip(files.iter().map(|(_, text)| *text))
            .collect();
        add(self.root.path(), &files);
    }

    fn resolver(&self) -> Resolver {
        Resolver::new(
            &self.root.path().join("sys"),
            &self.root.path().join("proc"),
        )
    }

    /// The stack of a block device in words, paths without the root.
    fn device(&self, number: &str) -> String {
        let layer = self.resolver().device(number).unwrap();
        self.short(&layer)
    }

    fn image(&self, path: &str) -> Layer {
        self.resolver().image(&self.root.path().join(path))
    }

    fn short(&self, layer: &Layer) -> String {
        layer
            .to_string()
            .replace(&self.root.path().display().to_string(), "")
    }

    fn backing(&self, layer: &Layer) -> BackingDevice {
        BackingDevice::of_stack(&self.resolver(), layer).unwrap()
    }
}

/// An NVMe disk with two partitions on the second NUMA node.
const NVME: [(&str, &str); 8] = [
    (
        "sys/devices/pci/nvme/nvme0/nvme0n1/nvme0n1p2/partition",
        "2",
    ),
    ("sys/devices/pci/nvme/nvme0/nvme0n1/queue/rotational", "0\n"),
    ("sys/devices/pci/nvme/nvme0/numa_node", "1\n"),
    ("sys/devices/pci/nvme/nvme0/nvme0n1/mq/0/cpu_list", "0, 2\n"),
    ("sys/devices/pci/nvme/nvme0/nvme0n1/mq/1/cpu_list", "1, 3\n"),
    ("sys/block/nvme0n1", "->sys/devices/pci/nvme/nvme0/nvme0n1"),
    (
        "sys/dev/block/259:0",
        "->sys/devices/pci/nvme/nvme0/nvme0n1",
    ),
    (
        "sys/dev/block/259:2",
        "->sys/devices/pci/nvme/nvme0/nvme0n1/nvme0n1p2",
    ),
];

#[test]
fn a_partition_leads_to_its_disk_with_the_queues() {
    let host = FakeHost::new(&NVME);
    assert_eq!(host.device("259:2"), "nvme0n1p2 on nvme0n1");
    let device = host.backing(&host.resolver().device("259:2").unwrap());
    assert_eq!((device.name.as_str(), device.numa), ("nvme0n1", 1));
    assert_eq!(device.class, blkpilot_env::sample::DeviceClass::Nvme);
    assert_eq!(device.queues.len(), 2);
    assert_eq!(host.resolver().device("1:1"), None);
}

#[test]
fn logical_volumes_on_one_disk_are_the_work_of_that_disk() {
    let host = FakeHost::new(&NVME);
    host.add(&[
        ("sys/devices/virtual/block/dm-3/dm/name", "vg-data\n"),
        ("sys/devices/virtual/block/dm-3/dm/uuid", "LVM-abcdef\n"),
        (
            "sys/devices/virtual/block/dm-3/slaves/nvme0n1p2",
            "->sys/devices/pci/nvme/nvme0/nvme0n1/nvme0n1p2",
        ),
        ("sys/block/dm-3", "->sys/devices/virtual/block/dm-3"),
        ("sys/dev/block/253:3", "->sys/devices/virtual/block/dm-3"),
        ("sys/devices/virtual/block/dm-4/dm/name", "luks\n"),
        (
            "sys/devices/virtual/block/dm-4/dm/uuid",
            "CRYPT-LUKS2-0-luks\n",
        ),
        (
            "sys/devices/virtual/block/dm-4/slaves/dm-3",
            "->sys/devices/virtual/block/dm-3",
        ),
        ("sys/dev/block/253:4", "->sys/devices/virtual/block/dm-4"),
    ]);
    assert_eq!(
        host.device("253:4"),
        "dm-4 (crypt luks) on dm-3 (LVM vg-data) on nvme0n1p2 on nvme0n1"
    );
    let stack = host.resolver().device("253:4").unwrap();
    assert!(stack.is_complete());
    assert_eq!(host.backing(&stack).name, "nvme0n1");
    let source = stack.below[0].source.display().to_string();
    assert!(source.ends_with("dm-4/slaves"), "{source}");
}

#[test]
fn a_stripe_is_the_deepest_device_that_all_requests_pass() {
    let host = FakeHost::new(&NVME);
    host.add(&[
        ("sys/devices/pci/nvme/nvme1/nvme1n1/mq/0/cpu_list", "0-3\n"),
        ("sys/block/nvme1n1", "->sys/devices/pci/nvme/nvme1/nvme1n1"),
        ("sys/devices/virtual/block/md0/md/level", "raid0\n"),
        (
            "sys/devices/virtual/block/md0/slaves/nvme0n1",
            "->sys/devices/pci/nvme/nvme0/nvme0n1",
        ),
        (
            "sys/devices/virtual/block/md0/slaves/nvme1n1",
            "->sys/devices/pci/nvme/nvme1/nvme1n1",
        ),
        ("sys/devices/virtual/block/dm-0/dm/name", "vg-a\n"),
        ("sys/devices/virtual/block/dm-0/dm/uuid", "LVM-x\n"),
        (
            "sys/devices/virtual/block/dm-0/slaves/md0",
            "->sys/devices/virtual/block/md0",
        ),
        ("sys/dev/block/253:0", "->sys/devices/virtual/block/dm-0"),
    ]);
    assert_eq!(
        host.device("253:0"),
        "dm-0 (LVM vg-a) on md0 (raid0) on [nvme0n1, nvme1n1]"
    );
    let device = host.backing(&host.resolver().device("253:0").unwrap());
    assert_eq!(device.name, "md0");
    assert_eq!(Vec::from_iter(&device.leaves), ["nvme0n1", "nvme1n1"]);
    assert_eq!((device.queues.len(), device.counted.len()), (3, 1));
}

#[test]
fn a_thin_volume_whose_data_and_metadata_lie_on_one_disk_is_the_work_of_that_disk() {
    let host = FakeHost::new(&NVME);
    let dm = |number, name, uuid| {
        let dir = format!("sys/devices/virtual/block/dm-{number}/dm");
        host.add(&[
            (&format!("{dir}/name"), name),
            (&format!("{dir}/uuid"), uuid),
        ]);
    };
    dm(0, "vg-pool_tmeta\n", "LVM-a-tmeta\n");
    dm(1, "vg-pool_tdata\n", "LVM-b-tdata\n");
    dm(2, "vg-pool-tpool\n", "LVM-c-tpool\n");
    dm(3, "vg-thin\n", "LVM-d\n");
    let virtual_dm = "sys/devices/virtual/block/dm-";
    host.add(&[
        (
            &format!("{virtual_dm}0/slaves/nvme0n1"),
            "->sys/devices/pci/nvme/nvme0/nvme0n1",
        ),
        (
            &format!("{virtual_dm}1/slaves/nvme0n1p2"),
            "->sys/devices/pci/nvme/nvme0/nvme0n1/nvme0n1p2",
        ),
        (
            &format!("{virtual_dm}2/slaves/dm-0"),
            "->sys/devices/virtual/block/dm-0",
        ),
        (
            &format!("{virtual_dm}2/slaves/dm-1"),
            "->sys/devices/virtual/block/dm-1",
        ),
        (
            &format!("{virtual_dm}3/slaves/dm-2"),
            "->sys/devices/virtual/block/dm-2",
        ),
        ("sys/dev/block/253:3", "->sys/devices/virtual/block/dm-3"),
    ]);
    let stack = host.resolver().device("253:3").unwrap();
    assert_eq!(
        host.short(&stack),
        "dm-3 (LVM vg-thin) on dm-2 (LVM thin pool vg-pool-tpool) on \
         [dm-0 (LVM vg-pool_tmeta) on nvme0n1, dm-1 (LVM vg-pool_tdata) on nvme0n1p2 on nvme0n1]"
    );
    let device = host.backing(&stack);
    assert_eq!((device.name.as_str(), device.queues.len()), ("nvme0n1", 2));
}

#[test]
fn a_namespace_with_several_paths_counts_by_path_and_has_their_queues() {
    let host = FakeHost::new(&[
        (
            "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1/size",
            "8\n",
        ),
        ("sys/devices/pci/nvme/nvme0/nvme0c0n1/mq/0/cpu_list", "0\n"),
        ("sys/devices/pci/nvme/nvme1/nvme0c1n1/mq/0/cpu_list", "1\n"),
        (
            "sys/block/nvme0n1",
            "->sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
        ),
        (
            "sys/block/nvme0c0n1",
            "->sys/devices/pci/nvme/nvme0/nvme0c0n1",
        ),
        (
            "sys/block/nvme0c1n1",
            "->sys/devices/pci/nvme/nvme1/nvme0c1n1",
        ),
        (
            "sys/dev/block/259:0",
            "->sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
        ),
    ]);
    assert_eq!(
        host.device("259:0"),
        "nvme0n1 (multipath) on [nvme0c0n1, nvme0c1n1]"
    );
    let device = host.backing(&host.resolver().device("259:0").unwrap());
    assert_eq!((device.name.as_str(), device.queues.len()), ("nvme0n1", 2));
    assert_eq!(Vec::from_iter(&device.counted), ["nvme0c0n1", "nvme0c1n1"]);
}

#[test]
fn circles_end_and_so_does_what_is_too_deep() {
    let circle = FakeHost::new(&[
        ("sys/devices/virtual/block/dm-0/dm/name", "a\n"),
        (
            "sys/devices/virtual/block/dm-0/slaves/dm-1",
            "->sys/devices/virtual/block/dm-1",
        ),
        ("sys/devices/virtual/block/dm-1/dm/name", "b\n"),
        (
            "sys/devices/virtual/block/dm-1/slaves/dm-0",
            "->sys/devices/virtual/block/dm-0",
        ),
        ("sys/dev/block/253:0", "->sys/devices/virtual/block/dm-0"),
    ]);
    let stack = circle.resolver().device("253:0").unwrap();
    assert_eq!(stack.first_problem(), Some("dm-0 stands on itself"));

    let files: Vec<(String, String)> = (0..40)
        .flat_map(|n| {
            let dir = format!("sys/devices/virtual/block/dm-{n}");
            let below = n + 1;
            [
                (format!("{dir}/dm/name"), "x".into()),
                (
                    format!("{dir}/slaves/dm-{below}"),
                    format!("->sys/devices/virtual/block/dm-{below}"),
                ),
            ]
        })
        .collect();
    let deep = FakeHost::new(&[("sys/dev/block/253:0", "->sys/devices/virtual/block/dm-0")]);
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    deep.add(&files);
    let stack = deep.resolver().device("253:0").unwrap();
    assert!(stack.first_problem().unwrap().contains("layers"), "{stack}");
}

#[test]
fn broken_trees_are_told_and_keep_what_is_known() {
    let host = FakeHost::new(&[
        ("sys/devices/virtual/block/dm-0/dm/uuid", "\u{1}garbage"),
        (
            "sys/devices/virtual/block/dm-0/slaves/sdq",
            "->sys/devices/nowhere",
        ),
        ("sys/block/dm-0", "->sys/devices/virtual/block/dm-0"),
        ("sys/dev/block/253:0", "->sys/devices/virtual/block/dm-0"),
        ("sys/devices/virtual/block/dm-1/dm/name", "empty\n"),
        ("sys/dev/block/253:1", "->sys/devices/virtual/block/dm-1"),
        (
            "sys/devices/virtual/block/loop1/loop/backing_file",
            "/gone.img (deleted)\n",
        ),
        ("sys/dev/block/7:1", "->sys/devices/virtual/block/loop1"),
        ("sys/devices/virtual/block/loop2/size", "0\n"),
        ("sys/dev/block/7:2", "->sys/devices/virtual/block/loop2"),
        (
            "sys/devices/virtual/block/loop3/loop/backing_file",
            "ROOT/none.img\n",
        ),
        ("sys/dev/block/7:3", "->sys/devices/virtual/block/loop3"),
        ("sys/devices/virtual/block/nbd0/size", "8\n"),
        ("sys/dev/block/43:0", "->sys/devices/virtual/block/nbd0"),
    ]);
    for (number, reason) in [
        ("253:0", "sdq below it is not in sysfs"),
        ("253:1", "it stands on no device"),
        ("7:1", "/gone.img was deleted"),
        ("7:2", "no file is attached"),
        ("7:3", "No such file"),
        ("43:0", "known to its client only"),
    ] {
        let stack = host.resolver().device(number).unwrap();
        assert!(stack.first_problem().unwrap().contains(reason), "{stack}");
        assert!(!stack.is_complete() && stack.worker().is_some());
    }
    assert_eq!(
        host.backing(&host.resolver().device("253:0").unwrap()).name,
        "dm-0"
    );
}
