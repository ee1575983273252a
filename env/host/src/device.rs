//! The host's block devices: which they are, and the settings of their request queues.
//!
//! Source of names, units and meanings: the kernel's Documentation/ABI/stable/sysfs-block. Only what
//! stands here can be written: settings that lose data or need a quiet device (`write_cache`,
//! `max_sectors_kb`, `nomerges`, `io_poll`) are in no list.

mod find;
mod queue;
pub(crate) mod scheduler;
mod side_effects;
pub(crate) mod state;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::error::{HostError, HostResult};

pub use find::{Device, DeviceRules, Devices, stable_id};
#[cfg(test)]
pub(crate) use queue::Writer;
pub(crate) use side_effects::{SideEffect, SideEffects};
pub use state::{DeviceState, SettingState};

/// Fewest requests of a queue: the kernel's `BLKDEV_MIN_RQ`, below which it silently sets this.
const LEAST_REQUESTS: u64 = 4;
/// Most requests that any tag set holds: the kernel's `BLK_MQ_MAX_DEPTH`. A device's own holds fewer,
/// and the kernel refuses more than that.
const MOST_REQUESTS: u64 = 10_240;
/// Beyond this a random reader that the kernel takes for a sequential one fills the page cache.
const MOST_READ_AHEAD_KIB: u64 = 65_536;
/// Ten seconds: above that nothing is ever throttled, which 0 says plainly.
const MOST_WBT_US: u64 = 10_000_000;

/// A setting of a device's request queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKnob {
    /// The I/O scheduler. The kernel changes [`DeviceKnob::NrRequests`] and, unless somebody has set
    /// it, [`DeviceKnob::Wbt`] along with it.
    Scheduler,
    /// Requests that may be allocated, per hardware queue.
    NrRequests,
    /// Most that is read ahead of a sequential reader, KiB, in whole pages.
    ReadAhead,
    /// Target latency of reads beside buffered writes, microseconds; 0 throttles no writes. The
    /// kernel's −1 (its default) is not taken: what it sets cannot be known before.
    Wbt,
    /// Where completions run: 0 anywhere, 1 on the CPU group that submitted, 2 on that very CPU.
    RqAffinity,
}

/// A change of one setting of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceChange {
    /// The setting.
    pub knob: DeviceKnob,
    /// Its value in canonical form, as [`DeviceKnob::canonical`] makes it.
    pub value: String,
}

impl DeviceKnob {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Scheduler,
        Self::NrRequests,
        Self::ReadAhead,
        Self::Wbt,
        Self::RqAffinity,
    ];

    /// What the kernel changes along with the scheduler.
    pub(crate) const OF_SCHEDULER: [Self; 2] = [Self::NrRequests, Self::Wbt];

    /// Its name, which is that of its file below `/sys/block/DEVICE/queue`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::NrRequests => "nr_requests",
            Self::ReadAhead => "read_ahead_kb",
            Self::Wbt => "wbt_lat_usec",
            Self::RqAffinity => "rq_affinity",
        }
    }

    /// Its values, in the unit of its name; `None` for the scheduler, whose values the device tells.
    #[must_use]
    pub fn range(self) -> Option<RangeInclusive<u64>> {
        match self {
            Self::Scheduler => None,
            Self::NrRequests => Some(LEAST_REQUESTS..=MOST_REQUESTS),
            Self::ReadAhead => Some(0..=MOST_READ_AHEAD_KIB),
            Self::Wbt => Some(0..=MOST_WBT_US),
            Self::RqAffinity => Some(0..=2),
        }
    }

    /// A value in the form in which the kernel shows it.
    ///
    /// # Errors
    /// What is wrong with it, in words: out of bounds, no number, no whole page.
    pub fn canonical(self, value: &str) -> Result<String, String> {
        let Some(range) = self.range() else {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            return if !value.is_empty() && value.chars().all(is_plain) {
                Ok(value.to_owned())
            } else {
                Err("must be the name of a scheduler".to_owned())
            };
        };
        let number: Option<u64> = value.parse().ok();
        let number = number.filter(|number| range.contains(number));
        let number =
            number.ok_or_else(|| format!("must be in [{}, {}]", range.start(), range.end()))?;
        let page_kib = page_kib();
        if self == Self::ReadAhead && number % page_kib != 0 {
            return Err(format!("must be a multiple of a page, {page_kib} KiB"));
        }
        Ok(number.to_string())
    }
}

fn page_kib() -> u64 {
    let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let bytes = bytes.ok().flatten().and_then(|b| u64::try_from(b).ok());
    (bytes.unwrap_or(4096) / 1024).max(1)
}

impl fmt::Display for DeviceKnob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DeviceKnob {
    type Err = HostError;

    fn from_str(text: &str) -> HostResult<Self> {
        let known = Self::ALL.into_iter().find(|knob| knob.name() == text);
        known.ok_or_else(|| HostError::parse("setting of a device", text))
    }
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests;
