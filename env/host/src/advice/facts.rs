//! What the rules ask about the host: versions, CPUs, memory, and the devices that images lie on.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;
use procfs::{FromRead as _, Meminfo};

use crate::block_device::Scheduler;
use crate::error::{HostError, HostResult};
use crate::topology::Topology;
use crate::tuning_daemon::TuningDaemon;

/// File systems that several hosts may have mounted: f_type in statfs(2), and a name for people.
/// FUSE stands for whatever is behind it, GlusterFS among others.
const SHARED_FILE_SYSTEMS: [(u32, &str); 8] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x00c3_6400, "CephFS"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x6573_5546, "FUSE"),
];
/// tmpfs and ramfs: f_type in statfs(2). There is no page cache to choose, and no device.
const MEMORY_FILE_SYSTEMS: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// A version of three parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// The host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    /// Version of QEMU.
    pub qemu: Version,
    /// Version of libvirtd.
    pub libvirt: Version,
    /// Version of the kernel.
    pub kernel: Version,
    /// Whether the kernel lets every process use io_uring (`kernel.io_uring_disabled` is 0 or unknown
    /// to it).
    pub allows_io_uring: bool,
    /// Its CPUs.
    pub topology: Topology,
    /// Memory, bytes.
    pub mem_total_bytes: u64,
    /// Memory that new work could have without swapping, page cache included, bytes.
    pub mem_available_bytes: u64,
    /// Pools of huge pages that have been set aside, smallest pages first.
    pub huge_pages: Vec<HugePages>,
    /// Size of the pages of the pool that is used where none is named, KiB.
    pub default_huge_page_kib: u64,
    /// Whether an IOMMU is in use, without which no device can be passed to a guest.
    pub has_iommu: bool,
    /// Devices at the bottom, by kernel name.
    pub devices: BTreeMap<String, DeviceFacts>,
    /// Other daemons that tune the host.
    pub daemons: Vec<TuningDaemon>,
}

/// A pool of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePages {
    /// Size of a page, KiB.
    pub page_kib: u64,
    /// Pages that are neither in use nor promised.
    pub free: u64,
}

/// A device with hardware queues.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceFacts {
    /// The I/O scheduler in use; `None` where the device has none to choose.
    pub scheduler: Option<String>,
    /// All schedulers that the kernel offers now.
    pub schedulers: Vec<String>,
    /// A name that stays with the hardware.
    pub wwid: Option<Wwid>,
    /// Virtual functions that its PCI function could have.
    pub sriov_totalvfs: u32,
    /// Whether it is reached over a network, so that another host may use it too.
    pub is_remote: bool,
}

/// A device's own name, the same on every host that it is put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wwid {
    /// Where the kernel shows it, below the device's directory in sysfs.
    pub attribute: &'static str,
    /// The name.
    pub value: String,
}

/// Who may use an image beside this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Only this host.
    Local,
    /// Other hosts or guests too: what is shared, in a word.
    Shared(&'static str),
    /// It lies in memory.
    Memory,
    /// It cannot be told, since the image is not a file that can be looked at here.
    Unknown,
}

impl Version {
    /// From libvirt's form, major · 1,000,000 + minor · 1,000 + release.
    #[must_use]
    pub fn from_libvirt(number: u32) -> Self {
        Self(number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
    }

    /// The first numbers of a text such as `6.1.0-13-amd64`.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        Self(next(), next(), next())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl HostFacts {
    /// Reads what procfs and sysfs say; `devices` and `daemons` are empty still. Nothing is written.
    ///
    /// # Errors
    /// `Io`, `Parse`.
    pub fn read(proc: &Path, sys: &Path, qemu: Version, libvirt: Version) -> HostResult<Self> {
        let meminfo = proc.join("meminfo");
        let memory = Meminfo::from_file(&meminfo).map_err(|error| HostError::Io {
            path: meminfo,
            source: std::io::Error::other(error),
        })?;
        let kernel = proc.join("sys/kernel/osrelease");
        let kernel = fs::read_to_string(&kernel).map_err(HostError::io(&kernel))?;
        let uring = text(&proc.join("sys/kernel/io_uring_disabled"));
        Ok(Self {
            qemu,
            libvirt,
            kernel: Version::from_text(&kernel),
            allows_io_uring: uring.is_none_or(|value| value == "0"),
            topology: Topology::read(sys, proc)?,
            mem_total_bytes: memory.mem_total,
            mem_available_bytes: memory.mem_available.unwrap_or(memory.mem_free),
            huge_pages: huge_pages(proc, sys),
            default_huge_page_kib: memory.hugepagesize.unwrap_or(0) / 1024,
            has_iommu: entries(&sys.join("kernel/iommu_groups")).next().is_some(),
            devices: BTreeMap::new(),
            daemons: Vec::new(),
        })
    }
}

/// The pools, or none where hugetlbfs is not mounted: libvirt needs it.
fn huge_pages(proc: &Path, sys: &Path) -> Vec<HugePages> {
    let mounts = text(&proc.join("mounts")).unwrap_or_default();
    let is_mounted = mounts
        .lines()
        .any(|line| line.split_whitespace().nth(2) == Some("hugetlbfs"));
    if !is_mounted {
        return Vec::new();
    }
    let mut pools: Vec<HugePages> = entries(&sys.join("kernel/mm/hugepages"))
        .filter_map(|dir| {
            let name = dir.file_name()?.to_str()?.to_owned();
            let number = |file: &str| text(&dir.join(file))?.parse::<u64>().ok();
            let promised = number("resv_hugepages").unwrap_or(0);
            Some(HugePages {
                page_kib: name
                    .strip_prefix("hugepages-")?
                    .strip_suffix("kB")?
                    .parse()
                    .ok()?,
                free: number("free_hugepages")?.saturating_sub(promised),
            })
        })
        .collect();
    pools.sort_by_key(|pool| pool.page_kib);
    pools
}

impl DeviceFacts {
    /// Reads those of a device from sysfs.
    #[must_use]
    pub fn read(sys: &Path, name: &str) -> Self {
        let dir = sys.join("block").join(name);
        // Without brackets there is nothing to choose.
        let offered = text(&dir.join("queue/scheduler")).filter(|text| text.contains('['));
        let scheduler = offered.map(|text| Scheduler::parse(&text));
        let wwid = |attribute| {
            let value = text(&dir.join(attribute))?;
            Some(Wwid { attribute, value })
        };
        let totalvfs = text(&dir.join("device/device/sriov_totalvfs"));
        Self {
            schedulers: scheduler.iter().flat_map(|s| s.available.clone()).collect(),
            scheduler: scheduler.map(|scheduler| scheduler.current),
            wwid: ["wwid", "device/wwid"].into_iter().find_map(wwid),
            sriov_totalvfs: totalvfs.and_then(|n| n.parse().ok()).unwrap_or(0),
            is_remote: is_remote(&dir),
        }
    }
}

/// NVMe over fabrics says so; iSCSI and Fibre Channel stand in the device's path.
fn is_remote(dir: &Path) -> bool {
    let transport = text(&dir.join("device/transport"));
    let path = fs::canonicalize(dir).unwrap_or_default();
    let path = path.to_string_lossy();
    transport.is_some_and(|transport| transport != "pcie")
        || path.contains("/session")
        || path.contains("/rport-")
}

impl Storage {
    /// Of an image, by its file system; a block device counts as local here.
    #[must_use]
    pub fn of_image(image: &Path) -> Self {
        let Ok(file_system) = statfs(image) else {
            return Self::Unknown;
        };
        // The magic numbers are 32 bits wide, whatever their type is here.
        let kind = file_system.filesystem_type().0 as u32;
        let is_device = fs::metadata(image).is_ok_and(|metadata| {
            use std::os::unix::fs::FileTypeExt as _;
            metadata.file_type().is_block_device()
        });
        if is_device {
            return Self::Local;
        }
        if MEMORY_FILE_SYSTEMS.contains(&kind) {
            return Self::Memory;
        }
        let shared = SHARED_FILE_SYSTEMS.iter().find(|(known, _)| *known == kind);
        shared.map_or(Self::Local, |(_, name)| Self::Shared(name))
    }
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn versions_are_ordered_numbers() {
        assert_eq!(Version::from_libvirt(7_002_022), Version(7, 2, 22));
        assert_eq!(Version::from_text("6.1.0-13-amd64\n"), Version(6, 1, 0));
        assert!(Version(10, 0, 0) > Version(9, 2, 4));
    }

    #[test]
    fn a_device_says_its_scheduler_functions_and_transport() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        write(
            sys,
            "block/nvme0n1/queue/scheduler",
            "none [mq-deadline] bfq\n",
        );
        write(sys, "block/nvme0n1/wwid", "eui.1234\n");
        write(sys, "block/nvme0n1/device/transport", "pcie\n");
        write(sys, "block/nvme0n1/device/device/sriov_totalvfs", "32\n");
        let device = DeviceFacts::read(sys, "nvme0n1");
        assert_eq!(device.scheduler.as_deref(), Some("mq-deadline"));
        assert_eq!(device.schedulers, ["none", "mq-deadline", "bfq"]);
        assert_eq!(device.wwid.unwrap().value, "eui.1234");
        assert_eq!((device.sriov_totalvfs, device.is_remote), (32, false));
        write(sys, "block/nvme0n1/device/transport", "tcp\n");
        assert!(DeviceFacts::read(sys, "nvme0n1").is_remote);
        write(sys, "block/dm-0/queue/scheduler", "none\n");
        assert_eq!(DeviceFacts::read(sys, "dm-0").scheduler, None);
    }

    #[test]
    fn huge_pages_that_are_promised_are_not_free() {
        let root = tempfile::tempdir().unwrap();
        let pool = "kernel/mm/hugepages/hugepages-2048kB";
        write(root.path(), &format!("{pool}/free_hugepages"), "100\n");
        write(root.path(), &format!("{pool}/resv_hugepages"), "30\n");
        assert_eq!(huge_pages(root.path(), root.path()), [], "not mounted");
        write(
            root.path(),
            "mounts",
            "hugetlbfs /dev/hugepages hugetlbfs rw 0 0\n",
        );
        let pools = huge_pages(root.path(), root.path());
        assert_eq!(
            pools,
            [HugePages {
                page_kib: 2048,
                free: 70
            }]
        );
    }

    #[test]
    fn this_host_can_be_read() {
        let (proc, sys) = (Path::new("/proc"), Path::new("/sys"));
        let version = Version(7, 2, 0);
        let facts = HostFacts::read(proc, sys, version, version).unwrap();
        assert!(facts.kernel > Version(2, 6, 0) && facts.mem_total_bytes > 0);
        assert_eq!(Storage::of_image(Path::new("/nowhere")), Storage::Unknown);
    }
}
