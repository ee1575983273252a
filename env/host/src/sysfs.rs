//! The host's shape from sysfs: CPUs, cores, NUMA nodes, and the block devices behind images.
//! Every function takes the root of sysfs, so that tests have their own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use blkpilot_env::sample::DeviceClass;
use nix::sys::stat::{major, minor};

use crate::cpuset::CpuSet;
use crate::error::{HostError, HostResult};

/// Layers of loop and device-mapper devices that are followed towards the hardware.
const MAX_LAYERS: usize = 8;

/// The CPUs of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// CPUs that are online.
    pub online: CpuSet,
    /// Physical cores with their hardware threads, in ascending order.
    pub cores: Vec<CpuSet>,
    /// CPUs by NUMA node; one node 0 with all CPUs where the kernel has no NUMA.
    pub nodes: Vec<(u16, CpuSet)>,
}

/// A block device that backs images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingDevice {
    /// Kernel name of the topmost whole device, such as `nvme0n1`, `dm-0` or `loop0`: the one whose
    /// counters show what the images on it cause.
    pub name: String,
    /// Kernel names of the devices at the bottom: those with hardware queues.
    pub leaves: BTreeSet<String>,
    /// Kind, by the first leaf.
    pub class: DeviceClass,
    /// NUMA node, by the first leaf; 0 where unknown.
    pub numa: u16,
    /// CPUs of each hardware queue, over all leaves.
    pub queues: Vec<CpuSet>,
}

impl Topology {
    /// Reads `devices/system/cpu` and `devices/system/node`.
    ///
    /// # Errors
    /// `Io`, `Parse`.
    pub fn read(sys: &Path) -> HostResult<Self> {
        let cpu_dir = sys.join("devices/system/cpu");
        let online: CpuSet = read_text(&cpu_dir.join("online"))?.parse()?;
        let mut cores = BTreeSet::new();
        for cpu in online.iter() {
            let siblings =
                read_text(&cpu_dir.join(format!("cpu{cpu}/topology/thread_siblings_list")))?;
            cores.insert(siblings.parse::<CpuSet>()?.intersection(&online));
        }
        Ok(Self {
            nodes: numa_nodes(sys, &online)?,
            cores: cores.into_iter().collect(),
            online,
        })
    }

    /// The NUMA node of a set of CPUs, by its first.
    #[must_use]
    pub fn node_of(&self, cpus: &CpuSet) -> u16 {
        let first = cpus.iter().next();
        let holds = |set: &CpuSet| first.is_some_and(|cpu| set.contains(cpu));
        self.nodes
            .iter()
            .find(|(_, set)| holds(set))
            .map_or(0, |(node, _)| *node)
    }
}

fn numa_nodes(sys: &Path, online: &CpuSet) -> HostResult<Vec<(u16, CpuSet)>> {
    let entries = fs::read_dir(sys.join("devices/system/node"))
        .into_iter()
        .flatten()
        .flatten();
    let mut nodes = Vec::new();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name
            .strip_prefix("node")
            .and_then(|number| number.parse().ok())
        else {
            continue;
        };
        nodes.push((number, read_text(&entry.path().join("cpulist"))?.parse()?));
    }
    nodes.sort();
    if nodes.is_empty() {
        nodes.push((0, online.clone()));
    }
    Ok(nodes)
}

impl BackingDevice {
    /// The device that an image lies on: for a file the device of its file system, for a block
    /// device itself; the whole disk rather than a partition.
    ///
    /// # Errors
    /// `Io`; `Unsupported` when the file system is not on a local block device.
    pub fn of_image(sys: &Path, image: &Path) -> HostResult<Self> {
        let metadata = fs::metadata(image).map_err(HostError::io(image))?;
        let is_device = metadata.file_type().is_block_device();
        let number = if is_device {
            metadata.rdev()
        } else {
            metadata.dev()
        };
        Self::of_number(sys, &format!("{}:{}", major(number), minor(number))).ok_or_else(|| {
            HostError::Unsupported {
                what: format!("{}: finding its device", image.display()),
                reason: "it is not on a local block device".into(),
            }
        })
    }

    fn of_number(sys: &Path, number: &str) -> Option<Self> {
        let mut dir = fs::canonicalize(sys.join("dev/block").join(number)).ok()?;
        if dir.join("partition").exists() {
            dir = dir.parent()?.to_owned();
        }
        let name = dir.file_name()?.to_string_lossy().into_owned();
        let leaves = leaves(sys, &name, MAX_LAYERS);
        let first = sys.join("block").join(leaves.first()?);
        let numa = read_text(&first.join("device/numa_node"))
            .ok()
            .and_then(|node| node.parse().ok());
        Some(Self {
            class: class(&first),
            numa: numa.unwrap_or(0),
            queues: leaves
                .iter()
                .flat_map(|leaf| queues(&sys.join("block").join(leaf)))
                .collect(),
            name,
            leaves,
        })
    }
}

/// The devices at the bottom of a device: through device mapper and md by `slaves`, through a loop
/// device by the file behind it.
fn leaves(sys: &Path, name: &str, layers: usize) -> BTreeSet<String> {
    let dir = sys.join("block").join(name);
    let slaves = fs::read_dir(dir.join("slaves"))
        .into_iter()
        .flatten()
        .flatten();
    let mut below: Vec<String> = slaves
        .map(|slave| slave.file_name().to_string_lossy().into_owned())
        .collect();
    if let Ok(file) = read_text(&dir.join("loop/backing_file")) {
        // A file that was deleted while it is in use has this suffix, and cannot be looked up.
        let file = PathBuf::from(file.trim_end_matches(" (deleted)"));
        below.extend(
            fs::metadata(file)
                .ok()
                .and_then(|metadata| whole_device(sys, metadata.dev())),
        );
    }
    if below.is_empty() || layers == 0 {
        return BTreeSet::from([name.to_owned()]);
    }
    below
        .iter()
        .flat_map(|slave| leaves(sys, &whole_name(sys, slave), layers - 1))
        .collect()
}

fn whole_device(sys: &Path, number: u64) -> Option<String> {
    let dir = fs::canonicalize(sys.join("dev/block").join(format!(
        "{}:{}",
        major(number),
        minor(number)
    )))
    .ok()?;
    let whole = if dir.join("partition").exists() {
        dir.parent()?.to_owned()
    } else {
        dir
    };
    Some(whole.file_name()?.to_string_lossy().into_owned())
}

/// `slaves` may name partitions, which are not below `block` themselves.
fn whole_name(sys: &Path, name: &str) -> String {
    let mut entries = fs::read_dir(sys.join("block"))
        .into_iter()
        .flatten()
        .flatten();
    let holder = entries.find(|entry| entry.path().join(name).join("partition").exists());
    holder.map_or_else(
        || name.to_owned(),
        |entry| entry.file_name().to_string_lossy().into_owned(),
    )
}

fn class(dir: &Path) -> DeviceClass {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let rotates = read_text(&dir.join("queue/rotational")).is_ok_and(|flag| flag == "1");
    match (name.starts_with("nvme"), rotates) {
        (true, _) => DeviceClass::Nvme,
        // virtio-blk never says what it stands on, and the kernel then calls it rotating.
        (false, true) if !name.starts_with("vd") => DeviceClass::Hdd,
        (false, _) => DeviceClass::SataSsd,
    }
}

fn queues(dir: &Path) -> Vec<CpuSet> {
    let entries = fs::read_dir(dir.join("mq")).into_iter().flatten().flatten();
    let lists = entries.filter_map(|entry| read_text(&entry.path().join("cpu_list")).ok());
    lists.filter_map(|list| list.parse().ok()).collect()
}

fn read_text(path: &Path) -> HostResult<String> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(HostError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Writes files below a temporary root; a content that starts with `->` makes a link.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("->") {
                Some(target) => symlink(root.path().join(target), path).unwrap(),
                None => fs::write(path, content).unwrap(),
            }
        }
        root
    }

    #[test]
    fn cores_hold_their_hardware_threads() {
        let root = tree(&[
            ("devices/system/cpu/online", "0-3\n"),
            (
                "devices/system/cpu/cpu0/topology/thread_siblings_list",
                "0,2\n",
            ),
            (
                "devices/system/cpu/cpu1/topology/thread_siblings_list",
                "1,3\n",
            ),
            (
                "devices/system/cpu/cpu2/topology/thread_siblings_list",
                "0,2\n",
            ),
            (
                "devices/system/cpu/cpu3/topology/thread_siblings_list",
                "1,3\n",
            ),
            ("devices/system/node/node0/cpulist", "0,2\n"),
            ("devices/system/node/node1/cpulist", "1,3\n"),
        ]);
        let topology = Topology::read(root.path()).unwrap();
        let cores: Vec<String> = topology.cores.iter().map(CpuSet::to_string).collect();
        assert_eq!(cores, ["0,2", "1,3"]);
        assert_eq!(topology.node_of(&topology.cores[1]), 1);
    }

    #[test]
    fn a_virtio_disk_does_not_count_as_rotating() {
        let root = tree(&[
            ("devices/virtio1/block/vda/queue/rotational", "1\n"),
            ("block/vda", "->devices/virtio1/block/vda"),
            ("dev/block/254:0", "->devices/virtio1/block/vda"),
        ]);
        let device = BackingDevice::of_number(root.path(), "254:0").unwrap();
        assert_eq!(device.class, DeviceClass::SataSsd);
    }

    #[test]
    fn a_partition_leads_to_its_disk_with_the_queues() {
        let root = tree(&[
            ("devices/pci/nvme0n1/nvme0n1p2/partition", "2"),
            ("devices/pci/nvme0n1/queue/rotational", "0\n"),
            ("devices/pci/nvme0n1/device/numa_node", "1\n"),
            ("devices/pci/nvme0n1/mq/0/cpu_list", "0, 2\n"),
            ("devices/pci/nvme0n1/mq/1/cpu_list", "1, 3\n"),
            ("block/nvme0n1", "->devices/pci/nvme0n1"),
            ("dev/block/259:2", "->devices/pci/nvme0n1/nvme0n1p2"),
        ]);
        let device = BackingDevice::of_number(root.path(), "259:2").unwrap();
        assert_eq!(
            (device.name.as_str(), device.class, device.numa),
            ("nvme0n1", DeviceClass::Nvme, 1)
        );
        assert_eq!(device.queues.len(), 2);
        assert_eq!(BackingDevice::of_number(root.path(), "1:1"), None);
    }

    #[test]
    fn a_mapped_device_keeps_its_name_and_has_the_leaves_below() {
        let root = tree(&[
            ("devices/virtual/dm-0/slaves/sda1/partition", "1"),
            ("devices/ata/sda/sda1/partition", "1"),
            ("devices/ata/sda/queue/rotational", "1\n"),
            ("block/dm-0", "->devices/virtual/dm-0"),
            ("block/sda", "->devices/ata/sda"),
            ("dev/block/253:0", "->devices/virtual/dm-0"),
        ]);
        let device = BackingDevice::of_number(root.path(), "253:0").unwrap();
        assert_eq!(device.name, "dm-0");
        assert_eq!(device.leaves, BTreeSet::from(["sda".to_owned()]));
        assert_eq!(device.class, DeviceClass::Hdd);
    }
}
