//! The hardware queues of a device (blk-mq contexts): which CPUs submit to each, and for what.

use std::path::{Path, PathBuf};

use blkpilot_env::observation::Validity;

use crate::block_device::{DeviceKind, kind};
use crate::cpuset::CpuSet;
use crate::sysfs::{attribute, last_name, names, number};

/// What a hardware queue is used for: `HCTX_TYPE_*` of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    /// Everything that has no queue of its own kind.
    Default,
    /// Reads.
    Read,
    /// Requests whose completion is polled for (`RWF_HIPRI`, io_uring with IOPOLL); no interrupt.
    Poll,
}

/// One hardware queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardwareQueue {
    /// Its number, as in `mq/N`.
    pub index: u32,
    /// CPUs that submit to it.
    pub cpus: CpuSet,
    /// What for.
    pub kind: QueueKind,
    /// Requests that it holds.
    pub tags: Option<u32>,
}

/// All hardware queues of a device, by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardwareQueues {
    /// The queues; none where the device passes requests on without.
    pub list: Vec<HardwareQueue>,
    /// How the kinds are known: `Valid` from the kernel, `Estimated` from the driver's parameters.
    pub kinds: Validity,
    /// Where the kinds are from.
    pub kinds_source: PathBuf,
}

/// How many queues of each kind there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Split {
    read: usize,
    poll: usize,
}

impl HardwareQueues {
    /// Those of the device with this directory (without links). `sys` is `/sys`.
    pub(crate) fn read(sys: &Path, dir: &Path) -> Self {
        let mut list: Vec<HardwareQueue> = names(&dir.join("mq"))
            .iter()
            .filter_map(|name| queue(&dir.join("mq").join(name)))
            .collect();
        list.sort_by_key(|queue| queue.index);
        let (kinds, validity, kinds_source) = kinds(sys, dir, &list);
        for (queue, kind) in list.iter_mut().zip(kinds) {
            queue.kind = kind;
        }
        Self {
            list,
            kinds: validity,
            kinds_source,
        }
    }

    /// CPUs of each queue that requests get to which nobody polls for.
    pub(crate) fn interrupt_driven(&self) -> impl Iterator<Item = &CpuSet> {
        let driven = self
            .list
            .iter()
            .filter(|queue| queue.kind != QueueKind::Poll);
        driven.map(|queue| &queue.cpus)
    }
}

impl QueueKind {
    /// As the kernel calls it in debugfs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Read => "read",
            Self::Poll => "poll",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Default, Self::Read, Self::Poll]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

fn queue(dir: &Path) -> Option<HardwareQueue> {
    let cpus = attribute(dir, "cpu_list").unwrap_or_default();
    Some(HardwareQueue {
        index: last_name(dir).parse().ok()?,
        cpus: cpus.parse().ok()?,
        kind: QueueKind::Default,
        tags: number(dir, "nr_tags"),
    })
}

fn kinds(sys: &Path, dir: &Path, list: &[HardwareQueue]) -> (Vec<QueueKind>, Validity, PathBuf) {
    let debugfs = sys.join("kernel/debug/block").join(last_name(dir));
    let told = list.iter().map(|queue| {
        let text = attribute(&debugfs, &format!("hctx{}/type", queue.index))?;
        QueueKind::from_name(&text)
    });
    if let (Some(told), false) = (told.collect(), list.is_empty()) {
        return (told, Validity::Valid, debugfs);
    }
    let can_poll = attribute(dir, "queue/io_poll").as_deref() == Some("1");
    let driver = match kind(dir) {
        DeviceKind::Nvme => "nvme",
        DeviceKind::VirtioBlk => "virtio_blk",
        // One kind, unless a driver has poll queues in a way of its own.
        _ => {
            let validity = if can_poll {
                Validity::Estimated
            } else {
                Validity::Valid
            };
            let kinds = vec![QueueKind::Default; list.len()];
            return (kinds, validity, dir.join("queue/io_poll"));
        }
    };
    let parameters = sys.join("module").join(driver).join("parameters");
    let asked = |name| number(&parameters, name).unwrap_or(0);
    let poll = if can_poll { asked("poll_queues") } else { 0 };
    let split = split(list.len(), asked("write_queues"), poll);
    let validity = match split {
        Split { read: 0, poll: 0 } => Validity::Valid,
        _ => Validity::Estimated,
    };
    (laid_out(list.len(), split), validity, parameters)
}

/// As drivers share their queues out: `nvme_setup_irqs` and `nvme_calc_irq_sets` of
/// `drivers/nvme/host/pci.c`, `init_vq` of `drivers/block/virtio_blk.c` (which has no `write_queues`).
fn split(queues: usize, write: usize, poll: usize) -> Split {
    let poll = poll.min(queues.saturating_sub(1));
    let driven = queues - poll;
    let read = match write {
        0 => 0,
        _ if driven <= 1 => 0,
        _ if write >= driven => 1,
        _ => driven - write,
    };
    Split { read, poll }
}

/// Both number the default queues first, those for polling last.
fn laid_out(queues: usize, split: Split) -> Vec<QueueKind> {
    let kind = |index| {
        if index >= queues - split.poll {
            QueueKind::Poll
        } else if index >= queues - split.poll - split.read {
            QueueKind::Read
        } else {
            QueueKind::Default
        }
    };
    (0..queues).map(kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tests::{add, tree};

    fn namespace(parameters: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let root = tree(&[
            ("devices/nvme0n1/mq/0/cpu_list", "0, 1\n"),
            ("devices/nvme0n1/mq/0/nr_tags", "1023\n"),
            ("devices/nvme0n1/mq/1/cpu_list", "2, 3\n"),
            ("devices/nvme0n1/mq/2/cpu_list", "0, 1, 2, 3\n"),
            ("devices/nvme0n1/mq/10/cpu_list", "\n"),
            ("devices/nvme0n1/queue/io_poll", "1\n"),
        ]);
        add(root.path(), parameters);
        let dir = root.path().join("devices/nvme0n1");
        (root, dir)
    }

    fn kinds_of(queues: &HardwareQueues) -> Vec<&'static str> {
        queues.list.iter().map(|queue| queue.kind.name()).collect()
    }

    #[test]
    fn queues_stand_in_the_order_of_their_numbers() {
        let (root, dir) = namespace(&[]);
        let queues = HardwareQueues::read(root.path(), &dir);
        let indices: Vec<u32> = queues.list.iter().map(|queue| queue.index).collect();
        assert_eq!(indices, [0, 1, 2, 10]);
        assert_eq!(queues.list[0].cpus.to_string(), "0-1");
        assert_eq!(
            (queues.list[0].tags, queues.list[1].tags),
            (Some(1023), None)
        );
        assert_eq!(kinds_of(&queues), ["default"; 4]);
    }

    #[test]
    fn poll_queues_are_the_last_and_no_others_get_ordinary_requests() {
        let (root, dir) = namespace(&[("module/nvme/parameters/poll_queues", "2\n")]);
        let queues = HardwareQueues::read(root.path(), &dir);
        assert_eq!(kinds_of(&queues), ["default", "default", "poll", "poll"]);
        assert_eq!(queues.kinds, Validity::Estimated);
        assert_eq!(queues.interrupt_driven().count(), 2);
    }

    #[test]
    fn a_device_that_cannot_poll_has_no_poll_queue_whatever_was_asked_for() {
        let (root, dir) = namespace(&[("module/nvme/parameters/poll_queues", "2\n")]);
        std::fs::write(dir.join("queue/io_poll"), "0\n").unwrap();
        assert_eq!(
            kinds_of(&HardwareQueues::read(root.path(), &dir)),
            ["default"; 4]
        );
    }

    #[test]
    fn the_kernels_own_word_is_believed_before_the_parameters() {
        let types = ["default", "read", "read", "poll"];
        let file = |index: &str| format!("kernel/debug/block/nvme0n1/hctx{index}/type");
        let files: Vec<(String, &str)> = ["0", "1", "2", "10"]
            .map(file)
            .into_iter()
            .zip(types)
            .collect();
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), *text))
            .collect();
        let (root, dir) = namespace(&files);
        let queues = HardwareQueues::read(root.path(), &dir);
        assert_eq!(kinds_of(&queues), types);
        assert_eq!(queues.kinds, Validity::Valid);
    }

    #[test]
    fn queues_are_split_as_the_drivers_do() {
        for (queues, write, poll, wanted) in [
            (3, 0, 1, Split { read: 0, poll: 1 }),
            (8, 2, 2, Split { read: 4, poll: 2 }),
            (8, 9, 0, Split { read: 1, poll: 0 }),
            (1, 1, 4, Split { read: 0, poll: 0 }),
            (0, 1, 4, Split { read: 0, poll: 0 }),
        ] {
            assert_eq!(
                split(queues, write, poll),
                wanted,
                "{queues} {write} {poll}"
            );
            assert_eq!(laid_out(queues, wanted).len(), queues);
        }
    }

    #[test]
    fn broken_queues_are_left_out() {
        let root = tree(&[
            ("devices/sda/mq/0/cpu_list", "0-x\n"),
            ("devices/sda/mq/one/cpu_list", "0\n"),
        ]);
        let queues = HardwareQueues::read(root.path(), &root.path().join("devices/sda"));
        assert!(queues.list.is_empty());
    }
}
