//! What sysfs says of a block device: kind, scheduler, hardware queues, controller, interrupts.
//! Source: the kernel's `ABI/stable/sysfs-block`.

use std::path::{Path, PathBuf};

use blkpilot_env::sample::DeviceClass;

use crate::hardware_queue::HardwareQueues;
use crate::interrupts::{Interrupt, Interrupts};
use crate::sysfs::{attribute, last_name, names, number, target};

/// Kind of a block device, by its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A namespace of an NVMe controller.
    Nvme,
    /// A namespace that is reached over several paths: it has no queues, its paths have.
    NvmeMultipath,
    /// A paravirtual disk, whatever the hypervisor keeps it on.
    VirtioBlk,
    /// A disk on a SATA or PATA port.
    Sata,
    /// Another SCSI disk: SAS, USB, iSCSI, virtio-scsi.
    Scsi,
    /// Device mapper: LVM, crypt, multipath.
    DeviceMapper,
    /// Software RAID.
    Md,
    /// A file, or part of it, as a device.
    Loop,
    /// Part of a device.
    Partition,
    /// Anything else.
    Other,
}

/// The I/O scheduler of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduler {
    /// The one in force; `none` where the device has no choice.
    pub current: String,
    /// All that the kernel offers, in its order.
    pub available: Vec<String>,
}

/// The controller of NVMe namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeController {
    /// Such as `nvme0`.
    pub name: String,
    /// `pcie`, `tcp`, `rdma`, `fc` or `loop`.
    pub transport: Option<String>,
    /// Its namespaces, hidden paths included.
    pub namespaces: Vec<String>,
}

/// A block device. What the kernel does not say is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Kernel name.
    pub name: String,
    /// Kind.
    pub kind: DeviceKind,
    /// Whether the kernel takes it for a rotating disk.
    pub is_rotational: bool,
    /// Size, bytes.
    pub size_bytes: u64,
    /// NUMA node.
    pub numa: Option<u16>,
    /// Model.
    pub model: Option<String>,
    /// Firmware revision.
    pub firmware: Option<String>,
    /// Scheduler.
    pub scheduler: Option<Scheduler>,
    /// Requests that may be allocated per hardware queue and direction.
    pub nr_requests: Option<u32>,
    /// Whether completions can be polled for, which takes queues for it.
    pub io_poll: bool,
    /// Hardware queues.
    pub queues: HardwareQueues,
    /// Controllers, of NVMe only: several behind a namespace with several paths.
    pub controllers: Vec<NvmeController>,
    /// Its interrupts, or those of its controller.
    pub interrupts: Vec<Interrupt>,
}

/// All block devices that have a size, without their partitions, by name. `sys` is `/sys`.
#[must_use]
pub fn block_devices(sys: &Path, proc_root: &Path) -> Vec<BlockDevice> {
    let interrupts = Interrupts::read(proc_root);
    names(&sys.join("block"))
        .iter()
        .filter_map(|name| BlockDevice::read(sys, name, &interrupts))
        // Loop devices without a file, and what else is not there yet.
        .filter(|device| device.size_bytes > 0)
        .collect()
}

impl BlockDevice {
    /// The device of this kernel name; `None` where there is none.
    pub(crate) fn read(sys: &Path, name: &str, interrupts: &Interrupts) -> Option<Self> {
        let dir = device_dir(sys, name)?;
        let controllers = nvme_controllers(&dir);
        Some(Self {
            kind: kind(&dir),
            is_rotational: is_rotational(&dir),
            // The kernel counts sectors of this size whatever the device's own is.
            size_bytes: number::<u64>(&dir, "size").unwrap_or(0).saturating_mul(512),
            numa: numa_node(&dir),
            model: attribute(&dir.join("device"), "model"),
            firmware: attribute(&dir.join("device"), "firmware_rev")
                .or_else(|| attribute(&dir.join("device"), "rev")),
            scheduler: attribute(&dir, "queue/scheduler").map(|text| Scheduler::parse(&text)),
            nr_requests: number(&dir, "queue/nr_requests"),
            io_poll: attribute(&dir, "queue/io_poll").as_deref() == Some("1"),
            queues: HardwareQueues::read(sys, &dir),
            interrupts: interrupts.of_device(&dir),
            name: name.to_owned(),
            controllers,
        })
    }

    /// The class whose model and references fit it.
    #[must_use]
    pub fn class(&self) -> DeviceClass {
        class_of(self.kind, self.is_rotational)
    }
}

impl Scheduler {
    /// From `none [mq-deadline] kyber`, as `queue/scheduler` has it; a device without a choice says `none`.
    pub(crate) fn parse(text: &str) -> Self {
        let bare = |word: &str| word.trim_matches(['[', ']']).to_owned();
        let mut words = text.split_whitespace();
        let current = words.clone().find(|word| word.starts_with('['));
        Self {
            current: current.or(words.next()).map(bare).unwrap_or_default(),
            available: text.split_whitespace().map(bare).collect(),
        }
    }
}

impl DeviceKind {
    /// In a word, for people and scripts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvme => "nvme",
            Self::NvmeMultipath => "nvme-multipath",
            Self::VirtioBlk => "virtio-blk",
            Self::Sata => "sata",
            Self::Scsi => "scsi",
            Self::DeviceMapper => "device-mapper",
            Self::Md => "md",
            Self::Loop => "loop",
            Self::Partition => "partition",
            Self::Other => "other",
        }
    }
}

/// The directory of a device or partition, without links.
pub(crate) fn device_dir(sys: &Path, name: &str) -> Option<PathBuf> {
    target(&sys.join("class/block").join(name)).or_else(|| target(&sys.join("block").join(name)))
}

/// The kind of the device with this directory (without links).
pub(crate) fn kind(dir: &Path) -> DeviceKind {
    let name = last_name(dir);
    let is_below = |prefix: &str| {
        dir.components()
            .any(|part| part.as_os_str().to_string_lossy().starts_with(prefix))
    };
    let has = |attribute: &str| dir.join(attribute).exists();
    if has("partition") {
        DeviceKind::Partition
    } else if has("dm") {
        DeviceKind::DeviceMapper
    } else if has("md") {
        DeviceKind::Md
    } else if name.starts_with("loop") {
        DeviceKind::Loop
    } else if name.starts_with("nvme") && is_below("nvme-subsys") {
        DeviceKind::NvmeMultipath
    } else if name.starts_with("nvme") {
        DeviceKind::Nvme
    } else if name.starts_with("vd") {
        DeviceKind::VirtioBlk
    } else if name.starts_with("sd") && is_below("ata") {
        DeviceKind::Sata
    } else if name.starts_with("sd") {
        DeviceKind::Scsi
    } else {
        DeviceKind::Other
    }
}

pub(crate) fn class_of(kind: DeviceKind, is_rotational: bool) -> DeviceClass {
    match kind {
        DeviceKind::Nvme | DeviceKind::NvmeMultipath => DeviceClass::Nvme,
        // virtio-blk never says what it stands on, and older kernels then call it rotating.
        DeviceKind::VirtioBlk => DeviceClass::SataSsd,
        _ if is_rotational => DeviceClass::Hdd,
        _ => DeviceClass::SataSsd,
    }
}

pub(crate) fn is_rotational(dir: &Path) -> bool {
    attribute(dir, "queue/rotational").as_deref() == Some("1")
}

/// The node of the nearest device above that has one; the kernel writes −1 for none.
pub(crate) fn numa_node(dir: &Path) -> Option<u16> {
    let device = target(&dir.join("device")).unwrap_or_else(|| dir.to_owned());
    let mut above = device.ancestors();
    above
        .find_map(|dir| attribute(dir, "numa_node"))?
        .parse()
        .ok()
}

/// The hidden paths of a namespace with several, by name: `nvme0c1n2` leads to `nvme0n2`.
pub(crate) fn nvme_paths(sys: &Path, head: &str) -> Vec<String> {
    let Some((subsystem, namespace)) = head.rsplit_once('n') else {
        return vec![];
    };
    let is_path = |name: &String| {
        let controller = name
            .strip_prefix(subsystem)
            .and_then(|rest| rest.strip_prefix('c'))
            .and_then(|rest| rest.split_once('n'));
        controller.is_some_and(|(controller, of)| of == namespace && is_number(controller))
    };
    names(&sys.join("block"))
        .into_iter()
        .filter(is_path)
        .collect()
}

/// Of a namespace: its controller, or with several paths those of the subsystem.
fn nvme_controllers(dir: &Path) -> Vec<NvmeController> {
    let Some(device) = target(&dir.join("device")) else {
        return vec![];
    };
    let dirs = if is_controller(&last_name(&device)) {
        vec![device]
    } else {
        let below = names(&device)
            .into_iter()
            .filter(|name| is_controller(name));
        below
            .filter_map(|name| target(&device.join(name)))
            .collect()
    };
    dirs.iter().map(|dir| controller(dir)).collect()
}

fn controller(dir: &Path) -> NvmeController {
    let is_namespace = |name: &String| {
        let number = name
            .strip_prefix("nvme")
            .and_then(|rest| rest.rsplit_once('n'));
        number.is_some_and(|(_, namespace)| is_number(namespace))
    };
    NvmeController {
        name: last_name(dir),
        transport: attribute(dir, "transport"),
        namespaces: names(dir).into_iter().filter(is_namespace).collect(),
    }
}

fn is_controller(name: &str) -> bool {
    name.strip_prefix("nvme").is_some_and(is_number)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tests::tree;

    fn read(sys: &Path, name: &str) -> BlockDevice {
        BlockDevice::read(sys, name, &Interrupts::default()).unwrap()
    }

    #[test]
    fn the_scheduler_in_brackets_is_in_force() {
        let scheduler = Scheduler::parse("none [mq-deadline] kyber");
        assert_eq!(scheduler.current, "mq-deadline");
        assert_eq!(scheduler.available, ["none", "mq-deadline", "kyber"]);
        assert_eq!(Scheduler::parse("none").current, "none");
    }

    #[test]
    fn a_namespace_shows_its_controller_with_all_its_namespaces() {
        let root = tree(&[
            ("devices/pci/numa_node", "1\n"),
            ("devices/pci/nvme/nvme0/model", "QEMU NVMe Ctrl   \n"),
            ("devices/pci/nvme/nvme0/firmware_rev", "7.2\n"),
            ("devices/pci/nvme/nvme0/transport", "pcie\n"),
            ("devices/pci/nvme/nvme0/nvme0n1/size", "2048\n"),
            (
                "devices/pci/nvme/nvme0/nvme0n1/queue/scheduler",
                "[none] kyber\n",
            ),
            ("devices/pci/nvme/nvme0/nvme0n1/queue/nr_requests", "1023\n"),
            ("devices/pci/nvme/nvme0/nvme0n1/queue/io_poll", "1\n"),
            (
                "devices/pci/nvme/nvme0/nvme0n1/device",
                "->devices/pci/nvme/nvme0",
            ),
            ("devices/pci/nvme/nvme0/nvme0n2/size", "8\n"),
            ("block/nvme0n1", "->devices/pci/nvme/nvme0/nvme0n1"),
        ]);
        let device = read(root.path(), "nvme0n1");
        assert_eq!(
            (device.kind, device.class()),
            (DeviceKind::Nvme, DeviceClass::Nvme)
        );
        assert_eq!(device.model.as_deref(), Some("QEMU NVMe Ctrl"));
        assert_eq!(device.firmware.as_deref(), Some("7.2"));
        assert_eq!(
            (device.size_bytes, device.nr_requests),
            (1 << 20, Some(1023))
        );
        assert!(device.io_poll);
        assert_eq!(device.numa, Some(1));
        assert_eq!(device.controllers[0].namespaces, ["nvme0n1", "nvme0n2"]);
        assert_eq!(device.controllers[0].transport.as_deref(), Some("pcie"));
    }

    #[test]
    fn a_virtio_disk_does_not_count_as_rotating_and_a_disk_on_ata_does() {
        let root = tree(&[
            ("devices/pci/virtio1/block/vda/queue/rotational", "1\n"),
            ("devices/pci/ata1/host0/block/sda/queue/rotational", "1\n"),
            ("devices/pci/host1/block/sdb/queue/rotational", "0\n"),
            ("block/vda", "->devices/pci/virtio1/block/vda"),
            ("block/sda", "->devices/pci/ata1/host0/block/sda"),
            ("block/sdb", "->devices/pci/host1/block/sdb"),
        ]);
        let found = ["vda", "sda", "sdb"].map(|name| {
            let device = read(root.path(), name);
            (device.kind, device.class())
        });
        assert_eq!(
            found,
            [
                (DeviceKind::VirtioBlk, DeviceClass::SataSsd),
                (DeviceKind::Sata, DeviceClass::Hdd),
                (DeviceKind::Scsi, DeviceClass::SataSsd),
            ]
        );
    }

    #[test]
    fn broken_attributes_are_none_and_a_missing_device_too() {
        let root = tree(&[
            ("block/sda/size", "many\n"),
            ("block/sda/queue/nr_requests", "-3\n"),
            ("block/sda/numa_node", "-1\n"),
            ("block/nvme7n1/x", ""),
        ]);
        let device = read(root.path(), "sda");
        assert_eq!((device.size_bytes, device.nr_requests), (0, None));
        assert_eq!((device.numa, device.scheduler.clone()), (None, None));
        assert!(read(root.path(), "nvme7n1").controllers.is_empty());
        assert!(BlockDevice::read(root.path(), "sdz", &Interrupts::default()).is_none());
        assert!(block_devices(root.path(), root.path()).is_empty());
    }

    #[test]
    fn only_paths_of_the_same_namespace_lead_to_it() {
        let root = tree(&[
            ("block/nvme0n1/x", ""),
            ("block/nvme0c0n1/x", ""),
            ("block/nvme0c12n1/x", ""),
            ("block/nvme0c0n11/x", ""),
            ("block/nvme1c0n1/x", ""),
            ("block/nvme0cxn1/x", ""),
        ]);
        assert_eq!(
            nvme_paths(root.path(), "nvme0n1"),
            ["nvme0c0n1", "nvme0c12n1"]
        );
        assert!(nvme_paths(root.path(), "sda").is_empty());
    }
}
