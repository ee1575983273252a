//! The knobs: how each is named, and how those of a running guest are read and written. (Those of a
//! block device: [`crate::device`].)
//!
//! A knob's value is a text in one canonical form per knob (`0-1`, `direct`, `32768`), so that what
//! was written, read back and journalled compare by equality.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use blkpilot_env::sample::Cache;

use crate::cpuset::CpuSet;
use crate::device::DeviceKnob;
use crate::disk_setting::DiskSetting;
use crate::error::{HostError, HostResult};
use crate::guest::{BootIo, Guest, GuestDisk, KnobKind};
use crate::hypervisor::Hypervisor;
use crate::journal::{Record, RecordState};
use crate::qmp::{
    LatencyHistogram, NodeOptions, ProtocolNode, Qmp, Whereabouts, reopened_node,
    stop_histogram_command,
};
use crate::settable::{Settable, write_and_check};

/// QEMU's own default for an IOThread: adaptive polling of up to 32 µs.
pub const ADAPTIVE_POLL_MAX_NS: u64 = 32_768;

/// One knob of one guest or device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Knob {
    /// The host CPUs of an IOThread: which channel serves its disks.
    Channel {
        /// libvirt's id of the IOThread.
        iothread: u32,
    },
    /// Whether a disk bypasses the host page cache.
    Cache {
        /// Target name of the disk.
        target: String,
    },
    /// How long an IOThread polls at most.
    Polling {
        /// libvirt's id of the IOThread.
        iothread: u32,
    },
    /// Whether QEMU counts a disk's latencies for us. Not a tuning knob, but a write like any other.
    Histogram {
        /// Target name of the disk.
        target: String,
    },
    /// A setting of a disk that is no head of a policy.
    Disk {
        /// Target name of the disk.
        target: String,
        /// Which.
        setting: DiskSetting,
    },
    /// A setting of a block device's request queue.
    Device(DeviceKnob),
}

/// A change of one knob of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Bind an IOThread to CPUs.
    Channel {
        /// libvirt's id of the IOThread.
        iothread: u32,
        /// The CPUs; never empty.
        cpus: CpuSet,
    },
    /// Choose a disk's cache strategy.
    Cache {
        /// Target name of the disk.
        target: String,
        /// The strategy.
        cache: Cache,
    },
    /// Choose how long an IOThread polls at most.
    Polling {
        /// libvirt's id of the IOThread.
        iothread: u32,
        /// Nanoseconds; 0 switches polling off.
        poll_max_ns: u64,
    },
    /// Count a disk's latencies.
    Histogram {
        /// Target name of the disk.
        target: String,
    },
    /// Set what is no head of a policy.
    Disk {
        /// Target name of the disk.
        target: String,
        /// Which.
        setting: DiskSetting,
        /// Its value in canonical form.
        value: String,
    },
}

/// A guest whose knobs are turned.
#[derive(Clone, Copy)]
pub struct KnobIo<'a> {
    /// The hypervisor that runs it.
    pub hypervisor: &'a dyn Hypervisor,
    /// The guest.
    pub guest: &'a Guest,
    /// Its block nodes as QEMU was started with.
    pub nodes: &'a NodeOptions,
    /// What they are turned for.
    pub purpose: Purpose,
}

/// What a knob is read and written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To tune the guest: only what it has opted in to.
    Tune,
    /// To put back what is journalled as ours: always, or an opt-out would leave no way back.
    Restore,
}

pub(crate) const DIRECT: &str = "direct";
pub(crate) const BUFFERED: &str = "buffered";
const COUNTING: &str = "counting";
const ABSENT: &str = "absent";
pub(crate) const FOREIGN: &str = "foreign";

impl Knob {
    /// The opt-in of a guest that it needs; `None` when any opt-in will do.
    #[must_use]
    pub fn kind(&self) -> Option<KnobKind> {
        match self {
            Self::Channel { .. } => Some(KnobKind::Channel),
            Self::Cache { .. } => Some(KnobKind::Cache),
            Self::Polling { .. } => Some(KnobKind::Polling),
            Self::Disk { setting, .. } => Some(setting.kind()),
            Self::Histogram { .. } | Self::Device(_) => None,
        }
    }
}

impl Change {
    /// The knob, and its new value in canonical form.
    #[must_use]
    pub fn knob_and_value(&self) -> (Knob, String) {
        match self {
            Self::Channel { iothread, cpus } => (
                Knob::Channel {
                    iothread: *iothread,
                },
                cpus.to_string(),
            ),
            Self::Cache { target, cache } => (
                Knob::Cache {
                    target: target.clone(),
                },
                cache_text(*cache).to_owned(),
            ),
            Self::Polling {
                iothread,
                poll_max_ns,
            } => (
                Knob::Polling {
                    iothread: *iothread,
                },
                poll_max_ns.to_string(),
            ),
            Self::Histogram { target } => (
                Knob::Histogram {
                    target: target.clone(),
                },
                COUNTING.to_owned(),
            ),
            Self::Disk {
                target,
                setting,
                value,
            } => (
                Knob::Disk {
                    target: target.clone(),
                    setting: *setting,
                },
                value.clone(),
            ),
        }
    }
}

impl Settable for KnobIo<'_> {
    fn owner(&self) -> String {
        format!("guest {}", self.guest.name)
    }

    /// `NotOptedIn` for what needs the monitor; `Unsupported` when there is no such IOThread or disk.
    fn read_of(&self, knob: &Knob, undo: Option<&str>) -> HostResult<String> {
        match knob {
            Knob::Channel { iothread } => {
                let threads = self.hypervisor.iothread_cpus(&self.guest.uuid)?;
                let thread = threads.into_iter().find(|(id, _)| id == iothread);
                thread
                    .map(|(_, cpus)| cpus.to_string())
                    .ok_or_else(|| self.no_iothread(*iothread))
            }
            Knob::Polling { iothread } => {
                let poll_max_ns = self.hypervisor.poll_max_ns(&self.guest.uuid, *iothread)?;
                let poll_max_ns = poll_max_ns.ok_or_else(|| self.no_iothread(*iothread))?;
                Ok(poll_max_ns.to_string())
            }
            Knob::Cache { target } => {
                let node = self.node_that_is_journalled(self.disk(target)?, undo)?;
                Ok(if node.is_direct { DIRECT } else { BUFFERED }.to_owned())
            }
            Knob::Histogram { target } => {
                Ok(match self.qmp()?.latency_histogram(self.disk(target)?)? {
                    LatencyHistogram::Ours(_) => COUNTING,
                    LatencyHistogram::Absent => ABSENT,
                    LatencyHistogram::Foreign => FOREIGN,
                }
                .to_owned())
            }
            Knob::Disk { target, setting } => self.disk_setting(target, *setting),
            Knob::Device(_) => Err(self.not_of_a_guest(knob)),
        }
    }

    /// `Unsupported` where the value is not safe for this disk.
    fn write(&self, knob: &Knob, value: &str, undo: Option<&str>) -> HostResult<()> {
        self.check_allowed(knob)?;
        let uuid = &self.guest.uuid;
        match knob {
            Knob::Channel { iothread } => {
                self.hypervisor
                    .pin_iothread(uuid, *iothread, &value.parse()?)
            }
            Knob::Polling { iothread } => {
                let poll_max_ns = value
                    .parse()
                    .map_err(|_| HostError::parse("poll_max_ns", value))?;
                self.hypervisor
                    .set_poll_max_ns(uuid, *iothread, poll_max_ns)
            }
            Knob::Cache { target } => {
                let disk = self.disk(target)?;
                self.check_cache(disk, value)?;
                let node = self.node_that_is_journalled(disk, undo)?;
                self.qmp()?.reopen(&node, value == DIRECT)
            }
            Knob::Histogram { target } if value == COUNTING => {
                self.qmp()?.start_histogram(self.disk(target)?)
            }
            Knob::Histogram { target } => self.qmp()?.stop_histogram(self.disk(target)?),
            Knob::Disk { target, setting } => self.set_disk_setting(target, *setting, value),
            Knob::Device(_) => Err(self.not_of_a_guest(knob)),
        }
    }

    /// The monitor command (JSON) that sets a knob to its original on this life of the guest; `None`
    /// for one that libvirt has a call for, or where there is no such command.
    fn undo(
        &self,
        knob: &Knob,
        original: &str,
        known: Option<&Record>,
    ) -> HostResult<Option<String>> {
        Ok(match knob {
            Knob::Channel { .. } | Knob::Polling { .. } | Knob::Device(_) => None,
            Knob::Cache { target } => {
                let known = known.and_then(|record| record.undo.as_deref());
                let node = self.node_that_is_journalled(self.disk(target)?, known)?;
                Some(node.reopen_command(original == DIRECT).to_string())
            }
            Knob::Histogram { target } if original == ABSENT => {
                Some(stop_histogram_command(self.disk(target)?).to_string())
            }
            Knob::Histogram { .. } => None,
            Knob::Disk { target, setting } => {
                return self.undo_of_disk_setting(target, *setting, original);
            }
        })
    }

    fn side_effects(&self, _knob: &Knob) -> Option<String> {
        None
    }

    fn undo_once_made(&self, undo: &str) -> String {
        undo.to_owned()
    }

    fn go_back(&self, knob: &Knob, value: &str, undo: Option<&str>) -> HostResult<()> {
        write_and_check(self, knob, value, undo)
    }

    fn complete(&self, _record: &Record) -> HostResult<()> {
        Ok(())
    }

    fn is_in_use(&self, record: &Record) -> HostResult<bool> {
        if let (Knob::Disk { target, .. }, Some(undo)) = (&record.knob, &record.undo) {
            // What is below another image now keeps its caches until the guest ends.
            return reopened_node(undo)
                .map_or(Ok(true), |node| self.is_same_format_node(target, &node));
        }
        match self.whereabouts(record)? {
            Whereabouts::InUse => return Ok(true),
            // libvirt may make it the disk's own again.
            Whereabouts::Below { is_direct } if record.state != RecordState::Frozen => {
                self.put_back_below(record, is_direct)?;
            }
            Whereabouts::Below { .. } | Whereabouts::Closed => {}
        }
        Ok(false)
    }

    /// A histogram of somebody else's is left alone.
    fn check_change(&self, knob: &Knob, current: &str, value: &str) -> HostResult<()> {
        if let Knob::Disk { target, setting } = knob {
            return self.check_disk_setting(target, *setting, value);
        }
        if !matches!(knob, Knob::Histogram { .. }) || current != FOREIGN {
            return Ok(());
        }
        Err(HostError::Unsupported {
            what: format!("{}: {knob}", self.owner()),
            reason: "somebody else counts latencies in other buckets; it is left alone".into(),
        })
    }

    fn image_flushed_by(&self, knob: &Knob, current: &str, value: &str) -> Option<PathBuf> {
        let Knob::Cache { target } = knob else {
            return None;
        };
        let goes_direct = current == BUFFERED && value == DIRECT;
        let disk = self.guest.disk(target).filter(|_| goes_direct)?;
        disk.source.clone()
    }

    /// Refuses a knob that the guest has not opted in to, unless our own change of it is put back.
    fn check_allowed(&self, knob: &Knob) -> HostResult<()> {
        if self.purpose == Purpose::Restore {
            return Ok(());
        }
        let allowed = knob
            .kind()
            .map_or(self.guest.allows_monitor(), |kind| self.guest.allows(kind));
        if allowed {
            return Ok(());
        }
        Err(HostError::NotOptedIn {
            guest: self.guest.name.clone(),
            what: knob.to_string(),
        })
    }
}

impl KnobIo<'_> {
    fn not_of_a_guest(&self, knob: &Knob) -> HostError {
        HostError::Unsupported {
            what: format!("{}: {knob}", self.owner()),
            reason: "it is a setting of a device".into(),
        }
    }

    /// The protocol node of a disk, which is the one that the journalled command is about, if there is one: a
    /// snapshot may have come in between.
    fn node_that_is_journalled(
        &self,
        disk: &GuestDisk,
        undo: Option<&str>,
    ) -> HostResult<ProtocolNode> {
        let node = self.qmp()?.protocol_node(disk, self.nodes)?;
        if undo
            .and_then(reopened_node)
            .is_some_and(|known| known != node.node_name)
        {
            return Err(HostError::ImageReplaced {
                guest: self.guest.name.clone(),
                disk: disk.target.clone(),
            });
        }
        Ok(node)
    }

    /// What has become of the block node that a record is about; one of another knob is always in use.
    fn whereabouts(&self, record: &Record) -> HostResult<Whereabouts> {
        let node = record.undo.as_deref().and_then(reopened_node);
        match (&record.knob, node) {
            (Knob::Cache { target }, Some(node)) => {
                self.qmp()?
                    .whereabouts(&node, self.disk(target)?, self.nodes)
            }
            _ => Ok(Whereabouts::InUse),
        }
    }

    /// Sends the journalled command to a node that a snapshot has put below another image.
    fn put_back_below(&self, record: &Record, is_direct: bool) -> HostResult<()> {
        let (Knob::Cache { target }, Some(command)) = (&record.knob, &record.undo) else {
            return Ok(());
        };
        let text = |is_direct| if is_direct { DIRECT } else { BUFFERED };
        if text(is_direct) == record.original {
            return Ok(());
        }
        self.check_no_job(target)?;
        self.qmp()?.repeat(command)?;
        match self.whereabouts(record)? {
            Whereabouts::Below { is_direct } if text(is_direct) != record.original => {
                Err(HostError::ReadBack {
                    owner: self.owner(),
                    knob: record.knob.to_string(),
                    wanted: record.original.clone(),
                    found: text(is_direct).to_owned(),
                })
            }
            _ => Ok(()),
        }
    }

    fn check_cache(&self, disk: &GuestDisk, value: &str) -> HostResult<()> {
        let Some(reason) = cache_obstacle(disk, value == BUFFERED) else {
            return self.check_no_job(&disk.target);
        };
        let what = format!(
            "guest {}, disk {}: cache strategy {value}",
            self.guest.name, disk.target
        );
        let reason = reason.to_owned();
        Err(HostError::Unsupported { what, reason })
    }

    pub(crate) fn check_no_job(&self, target: &str) -> HostResult<()> {
        if self.hypervisor.job_runs(&self.guest.uuid, target)? {
            return Err(HostError::JobRuns {
                guest: self.guest.name.clone(),
                disk: target.to_owned(),
            });
        }
        Ok(())
    }

    pub(crate) fn qmp(&self) -> HostResult<Qmp<'_>> {
        match self.purpose {
            Purpose::Tune => Qmp::of(self.hypervisor, self.guest),
            Purpose::Restore => Ok(Qmp::to_put_back(self.hypervisor, self.guest)),
        }
    }

    pub(crate) fn disk(&self, target: &str) -> HostResult<&GuestDisk> {
        self.guest
            .disk(target)
            .ok_or_else(|| HostError::Unsupported {
                what: format!("guest {}, disk {target}", self.guest.name),
                reason: "there is no such disk".into(),
            })
    }

    fn no_iothread(&self, iothread: u32) -> HostError {
        HostError::Unsupported {
            what: format!("guest {}, IOThread {iothread}", self.guest.name),
            reason: "there is no such IOThread".into(),
        }
    }
}

/// Why a disk's cache strategy must not be set, as far as its XML tells.
#[must_use]
pub fn cache_obstacle(disk: &GuestDisk, buffered: bool) -> Option<&'static str> {
    if disk.cache_obstacle.is_some() {
        return disk.cache_obstacle;
    }
    // QEMU checks this when it opens an image but not when it reopens it.
    let blocks = buffered && disk.boot_io == BootIo::Native;
    blocks.then_some("under aio=native buffered requests can block the IOThread; boot it with io='threads' or 'io_uring'")
}

pub(crate) fn cache_text(cache: Cache) -> &'static str {
    match cache {
        Cache::Direct => DIRECT,
        Cache::Buffered => BUFFERED,
    }
}

pub(crate) fn cache_of(text: &str) -> Cache {
    if text == BUFFERED {
        Cache::Buffered
    } else {
        Cache::Direct
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Channel { iothread } => write!(f, "iothread/{iothread}/cpus"),
            Self::Polling { iothread } => write!(f, "iothread/{iothread}/poll_max_ns"),
            Self::Cache { target } => write!(f, "disk/{target}/cache"),
            Self::Histogram { target } => write!(f, "disk/{target}/histogram"),
            Self::Disk { target, setting } => write!(f, "disk/{target}/{setting}"),
            Self::Device(knob) => write!(f, "queue/{knob}"),
        }
    }
}

impl FromStr for Knob {
    type Err = HostError;

    fn from_str(text: &str) -> HostResult<Self> {
        let error = || HostError::parse("knob", text);
        if let Some(setting) = text.strip_prefix("queue/") {
            return setting.parse().map(Self::Device).map_err(|_| error());
        }
        let mut parts = text.split('/');
        let (Some(kind), Some(name), Some(what), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error());
        };
        let number = || name.parse().map_err(|_| error());
        match (kind, what) {
            ("iothread", "cpus") => Ok(Self::Channel {
                iothread: number()?,
            }),
            ("iothread", "poll_max_ns") => Ok(Self::Polling {
                iothread: number()?,
            }),
            ("disk", "cache") => Ok(Self::Cache {
                target: name.to_owned(),
            }),
            ("disk", "histogram") => Ok(Self::Histogram {
                target: name.to_owned(),
            }),
            ("disk", setting) => Ok(Self::Disk {
                target: name.to_owned(),
                setting: setting.parse().map_err(|_| error())?,
            }),
            _ => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_knobs_are_read_back() {
        for knob in [
            Knob::Channel { iothread: 3 },
            Knob::Polling { iothread: 1 },
            Knob::Cache {
                target: "vda".into(),
            },
            Knob::Histogram {
                target: "vdb".into(),
            },
            Knob::Disk {
                target: "vda".into(),
                setting: DiskSetting::Throttle,
            },
            Knob::Disk {
                target: "vda".into(),
                setting: DiskSetting::Qcow2Cache,
            },
            Knob::Device(DeviceKnob::ReadAhead),
        ] {
            assert_eq!(knob.to_string().parse::<Knob>().unwrap(), knob);
        }
        assert!("disk/vda/size".parse::<Knob>().is_err());
        assert!("iothread/x/cpus".parse::<Knob>().is_err());
        assert!("queue/write_cache".parse::<Knob>().is_err());
    }
}
