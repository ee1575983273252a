//! What an agent sees: tables with validity and age per value, and masks with a reason per level.

use std::ops::Range;

use ndarray::{Array2, Array3, ArrayView1};
use serde::{Deserialize, Serialize};

use crate::decision::JointAction;
use crate::spec::{EnvSpec, Head};

/// Whether a value can be relied on, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Validity {
    /// Measured in this window.
    #[default]
    Valid = 0,
    /// Derived from a coarser signal than the feature's best source.
    Estimated,
    /// From an earlier window; `age_s` says how old.
    Stale,
    /// Undefined for lack of requests in the window.
    Idle,
    /// The guest has not opted in, so its source is not read.
    NotOptedIn,
    /// This host or guest does not offer the source.
    Unsupported,
    /// A counter went backwards: reset or replaced.
    CounterReset,
}

impl Validity {
    /// Whether the value carries information about this window.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Valid | Self::Estimated)
    }
}

/// A table of features: `values`, `validity` and `age_s` all have the shape [rows, columns].
/// A value that is not usable is shown as 0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Values, in the unit of the column's feature, clipped to its range.
    pub values: Array2<f32>,
    /// Validity per value.
    pub validity: Array2<Validity>,
    /// Age per value in seconds: 0 for one measured in this window.
    pub age_s: Array2<f32>,
}

impl Table {
    /// A table of `rows` × `columns` zeros, all valid.
    #[must_use]
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self {
            values: Array2::zeros((rows, columns)),
            validity: Array2::default((rows, columns)),
            age_s: Array2::zeros((rows, columns)),
        }
    }

    /// Gives the table its shape; where it has it, its contents stay.
    pub fn reshape(&mut self, rows: usize, columns: usize) {
        if self.values.dim() != (rows, columns) {
            *self = Self::zeros(rows, columns);
        }
    }

    /// The values of one row.
    #[must_use]
    pub fn row(&self, row: usize) -> ArrayView1<'_, f32> {
        self.values.row(row)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.nrows()
    }
}

/// Why a level may not be chosen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum MaskReason {
    /// It may be chosen.
    #[default]
    Allowed = 0,
    /// The disk has no IOThread; give it one at next boot.
    NoIoThread,
    /// A disk on the same IOThread has already chosen.
    TiedToIoThread,
    /// Several disks share the IOThread, and this level could stall the others.
    SharedIoThread,
    /// The disk runs `aio=native`, for which this level is not safe.
    AioNative,
    /// The knob is not enabled in the configuration.
    NotEnabled,
    /// The guest has not opted in.
    NotOptedIn,
    /// This host, guest or image does not support the level.
    Unsupported,
    /// The knob was changed by somebody else and is frozen.
    Frozen,
    /// A block or libvirt job runs on the guest.
    JobRunning,
    /// The last change is too recent.
    Dwell,
    /// The guest's monitor did not answer in time; it may by the next sample.
    Unresponsive,
    /// As many changes were made in the last minute as may be.
    RateLimit,
    /// Too many changes went wrong, so that none are made for a while.
    BreakerOpen,
    /// The disk's dirty pages are being written back, so that it does not stand still.
    WritingBack,
    /// The guest writes about as fast as its device, so that its dirty pages never get few.
    WritesTooFast,
    /// The host is short of memory.
    MemoryPressure,
    /// The guest's control group is short of memory.
    MemoryLimit,
    /// Writes of the disk have failed in this life of the guest.
    WriteErrors,
    /// The image lies on storage that other hosts use too.
    SharedStorage,
    /// The channel has a CPU that is dedicated to another guest's vCPU.
    DedicatedCpu,
    /// It did harm on this disk, so that it is not tried again for a while.
    RecentlyUndone,
}

impl MaskReason {
    /// Whether the level may be chosen.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        self == Self::Allowed
    }

    /// The reason in words, with the way out where there is one.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::NoIoThread => {
                "the disk has no IOThread (add one with <driver iothread=…> and restart the guest)"
            }
            Self::TiedToIoThread => "a disk on the same IOThread has already chosen",
            Self::SharedIoThread => {
                "the IOThread serves several disks, which this level could stall"
            }
            Self::AioNative => {
                "the disk runs aio=native, under which this level can block the IOThread (use io='threads' or io='io_uring')"
            }
            Self::NotEnabled => "the knob is not enabled for this guest",
            Self::NotOptedIn => "the guest has not opted in",
            Self::Unsupported => "this host, guest or image does not support it",
            Self::Frozen => {
                "somebody else changed the knob, so it is frozen (`blkpilot unfreeze` lets it be tuned again)"
            }
            Self::JobRunning => "a block or libvirt job is running on the guest",
            Self::Dwell => "the last change is too recent",
            Self::Unresponsive => "the guest did not answer in time (try again)",
            Self::RateLimit => "as many changes were made in the last minute as may be",
            Self::BreakerOpen => "too many changes went wrong, so none are made for a while",
            Self::WritingBack => {
                "the disk's dirty pages are being written back first, so that it does not stand still (try again)"
            }
            Self::WritesTooFast => {
                "the guest writes about as fast as its device, so the disk would stand still for its dirty pages (a rollback goes to direct all the same)"
            }
            Self::MemoryPressure => "the host is short of memory for its page cache",
            Self::MemoryLimit => {
                "the guest's control group is short of memory, and its page cache counts there (raise its limit)"
            }
            Self::WriteErrors => {
                "writes of the disk have failed since its guest was started, and a buffered one would hide the next"
            }
            Self::SharedStorage => {
                "the image lies on storage that other hosts use too, which do not see this host's page cache"
            }
            Self::DedicatedCpu => {
                "a vCPU of another guest is pinned to a CPU of the channel, alone (host.dedicated_cpus = \"share\" opens it)"
            }
            Self::RecentlyUndone => {
                "it did harm here and was undone, so it is not tried again for a while"
            }
        }
    }
}

/// What may be chosen now: per disk and per device one row that holds the levels of its heads one
/// after another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Masks {
    /// `[N, sum of the disk heads' levels]`.
    pub disks: Array2<MaskReason>,
    /// `[D, sum of the device heads' levels]`.
    pub devices: Array2<MaskReason>,
}

impl Masks {
    /// Everything allowed.
    #[must_use]
    pub fn all_allowed(spec: &EnvSpec, disks: usize, channels: usize, devices: usize) -> Self {
        Self {
            disks: Array2::default((disks, spec.disk_levels(channels))),
            devices: Array2::default((devices, spec.device_levels(channels))),
        }
    }
}

/// The columns of a mask row that belong to head number `head`.
///
/// # Panics
/// If there is no such head.
#[must_use]
pub fn head_columns(heads: &[Head], channels: usize, head: usize) -> Range<usize> {
    let start: usize = heads[..head].iter().map(|h| h.len(channels)).sum();
    start..start + heads[head].len(channels)
}

/// The part of a mask row that belongs to head number `head`.
///
/// # Panics
/// If `row` is shorter than the heads' levels together.
#[must_use]
pub fn head_slice<'a>(
    heads: &[Head],
    channels: usize,
    row: &'a [MaskReason],
    head: usize,
) -> &'a [MaskReason] {
    &row[head_columns(heads, channels, head)]
}

/// What an agent sees at one decision.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Observation {
    /// Names of the disks, `guest/target`; N of them.
    pub disk_ids: Vec<String>,
    /// Names of the backing devices; D of them.
    pub device_ids: Vec<String>,
    /// Names of the channels; K of them.
    pub channel_ids: Vec<String>,
    /// `[N, F]`.
    pub disks: Table,
    /// `[K, C]`.
    pub channels: Table,
    /// `[N, K, P]`: what relates one disk to one channel.
    pub pairs: Array3<f32>,
    /// `[D, E]`.
    pub devices: Table,
    /// `[1, H]`.
    pub host: Table,
    /// Row of the device table that backs each disk; N entries.
    pub disk_device: Vec<usize>,
    /// IOThread group of each disk; `None` for a disk without an IOThread.
    pub disk_group: Vec<Option<usize>>,
    /// The levels in force.
    pub current: JointAction,
    /// The levels of keep-default: what the guest would have without us.
    pub default: JointAction,
    /// What may be chosen now, and why not.
    pub masks: Masks,
}

impl Observation {
    /// Number of disks (N).
    #[must_use]
    pub fn disk_count(&self) -> usize {
        self.disks.rows()
    }

    /// Number of channels (K).
    #[must_use]
    pub fn channel_count(&self) -> usize {
        self.channels.rows()
    }

    /// Number of backing devices (D).
    #[must_use]
    pub fn device_count(&self) -> usize {
        self.devices.rows()
    }
}
