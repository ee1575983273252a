//! The device behind an image as telemetry and channels see it: one name, one class, the queues.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use blkpilot_env::sample::{DeviceClass, OpCounters};

use crate::block_device::{DeviceKind, class_of, device_dir, is_rotational, kind, numa_node};
use crate::block_stack::Resolver;
use crate::cpuset::CpuSet;
use crate::error::{HostError, HostResult};
use crate::hardware_queue::HardwareQueues;
use crate::layer::{Layer, LayerKind};
use crate::procfs_host::DeviceCounters;

/// The device that does the work of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingDevice {
    /// Kernel name of the deepest device that all requests of its images pass, such as `nvme0n1` under
    /// LVM on one disk, `md0` on two; under a file system of several devices their names, joined by
    /// `+`. See [`Layer::worker`].
    pub name: String,
    /// Kernel names of the devices whose counters are its, added up: several where the kernel counts
    /// by path or there is no one device.
    pub counted: BTreeSet<String>,
    /// Kernel names of the devices at the bottom: those with hardware queues.
    pub leaves: BTreeSet<String>,
    /// Kind, by the first leaf.
    pub class: DeviceClass,
    /// NUMA node, by the first leaf; 0 where unknown.
    pub numa: u16,
    /// CPUs of each hardware queue that ordinary requests get to, over all leaves: queues for polling
    /// are left out.
    pub queues: Vec<CpuSet>,
}

impl BackingDevice {
    /// The device that does the work of an image, or of a block device that is one.
    ///
    /// # Errors
    /// `Unsupported`, with the reason, when it is not on a block device of this host.
    pub fn of_image(resolver: &Resolver, image: &Path) -> HostResult<Self> {
        let stack = resolver.image(image);
        Self::of_stack(resolver, &stack).ok_or_else(|| HostError::Unsupported {
            what: format!("{}: finding its device", image.display()),
            reason: stack
                .first_problem()
                .unwrap_or("it is not on a block device of this host")
                .to_owned(),
        })
    }

    /// The device that does the work of a stack; `None` where it has no device.
    #[must_use]
    pub fn of_stack(resolver: &Resolver, stack: &Layer) -> Option<Self> {
        let name = Self::name_of(stack)?;
        let leaves = leaf_names(stack);
        let first = device_dir(resolver.sys(), leaves.first()?)?;
        let is_multipath =
            |worker: &Layer| worker.kind == LayerKind::Device(DeviceKind::NvmeMultipath);
        let is_counted_below = stack.worker().is_none_or(is_multipath);
        Some(Self {
            counted: if is_counted_below {
                leaves.clone()
            } else {
                [name.clone()].into()
            },
            class: class_of(kind(&first), is_rotational(&first)),
            numa: numa_node(&first).unwrap_or(0),
            queues: leaves
                .iter()
                .flat_map(|leaf| queues(resolver.sys(), leaf))
                .collect(),
            name,
            leaves,
        })
    }

    /// The [`BackingDevice::name`] that it will have: cheap, where the device may be known already.
    #[must_use]
    pub fn name_of(stack: &Layer) -> Option<String> {
        let joined = || Vec::from_iter(leaf_names(stack)).join("+");
        let name = stack
            .worker()
            .map_or_else(joined, |worker| worker.name.clone());
        Some(name).filter(|name| !name.is_empty())
    }

    /// Its counters among those of all devices; zero where the kernel keeps none.
    #[must_use]
    pub fn counters(&self, all: &BTreeMap<String, DeviceCounters>) -> DeviceCounters {
        let counted = self.counted.iter().filter_map(|name| all.get(name));
        counted.fold(DeviceCounters::default(), |sum, one| DeviceCounters {
            reads: added(sum.reads, one.reads),
            writes: added(sum.writes, one.writes),
            // At least one of them was busy for at least as long.
            busy_ns: sum.busy_ns.max(one.busy_ns),
        })
    }
}

fn leaf_names(stack: &Layer) -> BTreeSet<String> {
    let leaves = stack.leaves().into_iter();
    leaves.map(|leaf| leaf.name.clone()).collect()
}

fn added(a: OpCounters, b: OpCounters) -> OpCounters {
    OpCounters {
        requests: a.requests + b.requests,
        bytes: a.bytes + b.bytes,
        time_ns: a.time_ns + b.time_ns,
    }
}

fn queues(sys: &Path, leaf: &str) -> Vec<CpuSet> {
    let dir = device_dir(sys, leaf);
    let queues = dir.map(|dir| HardwareQueues::read(sys, &dir));
    queues
        .iter()
        .flat_map(HardwareQueues::interrupt_driven)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(reads: u64, busy_ns: u64) -> DeviceCounters {
        DeviceCounters {
            reads: OpCounters {
                requests: reads,
                bytes: reads * 4096,
                time_ns: reads * 10,
            },
            busy_ns,
            ..DeviceCounters::default()
        }
    }

    #[test]
    fn what_is_counted_apart_is_added_up_and_busy_for_as_long_as_the_busiest() {
        let all = BTreeMap::from([
            ("nvme0c0n1".to_owned(), counters(3, 70)),
            ("nvme0c1n1".to_owned(), counters(4, 50)),
            ("nvme0n1".to_owned(), counters(1000, 1000)),
        ]);
        let device = |counted: &[&str]| BackingDevice {
            name: "nvme0n1".into(),
            counted: counted.iter().map(|name| (*name).to_owned()).collect(),
            leaves: BTreeSet::new(),
            class: DeviceClass::Nvme,
            numa: 0,
            queues: vec![],
        };
        let sum = device(&["nvme0c0n1", "nvme0c1n1"]).counters(&all);
        assert_eq!(sum, counters(7, 70));
        assert_eq!(device(&["gone"]).counters(&all), DeviceCounters::default());
    }
}
