//! Settings of a virtual disk beyond the policy's heads: limits and qcow2 caches. No policy turns them;
//! somebody asks for them, and limits may be the guard's tool against a neighbour.

mod io;
pub(crate) mod state;

use std::fmt;
use std::str::FromStr;

use crate::error::{HostError, HostResult};
use crate::guest::KnobKind;
use crate::qcow2_cache::{self, Qcow2CacheBounds};
use crate::throttle::{self, ThrottleBounds};

pub use state::{DiskSettingState, DiskState};

/// A setting of a virtual disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskSetting {
    /// Limits of requests and bytes per second, by libvirt: [`crate::throttle::Throttle`].
    Throttle,
    /// Sizes of QEMU's caches of a qcow2 image's tables: [`crate::qcow2_cache::Qcow2Cache`].
    Qcow2Cache,
}

/// What no guest may be set beyond, by the service's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskBounds {
    /// Of limits.
    pub throttle: ThrottleBounds,
    /// Of qcow2 caches.
    pub qcow2_cache: Qcow2CacheBounds,
}

/// A change of one setting of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChange {
    /// The setting.
    pub setting: DiskSetting,
    /// What is set of it, as `NAME` and `VALUE`; the rest stays as it is in force.
    pub named: Vec<(String, String)>,
}

impl DiskSetting {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Throttle, Self::Qcow2Cache];

    /// Its name, also as a knob that a guest may opt in to.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Throttle => "throttle",
            Self::Qcow2Cache => "qcow2-cache",
        }
    }

    /// The opt-in that it needs.
    #[must_use]
    pub fn kind(self) -> KnobKind {
        match self {
            Self::Throttle => KnobKind::Throttle,
            Self::Qcow2Cache => KnobKind::Qcow2Cache,
        }
    }

    /// How it is written that nothing is set of it: no limit at all, the caches of the start of QEMU.
    #[must_use]
    pub fn unset(self) -> &'static str {
        match self {
            Self::Throttle => throttle::NONE,
            Self::Qcow2Cache => qcow2_cache::AS_BOOTED,
        }
    }

    /// The setting that a name is part of: `total_iops_sec` or `throttle` itself.
    fn of(name: &str) -> Option<Self> {
        if throttle::is_limit(name) {
            Some(Self::Throttle)
        } else if qcow2_cache::is_part(name) {
            Some(Self::Qcow2Cache)
        } else {
            name.parse().ok()
        }
    }
}

impl DiskChange {
    /// Groups what an operator names, `NAME` and `VALUE`, by setting.
    ///
    /// # Errors
    /// What is wrong with a name, in words.
    pub fn of(named: &[(String, String)]) -> Result<Vec<Self>, String> {
        let mut changes: Vec<Self> = Vec::new();
        for pair in named {
            let setting = DiskSetting::of(&pair.0).ok_or_else(|| {
                format!(
                    "\"{}\" must be throttle or one of its limits ({}), qcow2-cache or one of its parts ({})",
                    pair.0,
                    throttle::names().collect::<Vec<_>>().join(", "),
                    qcow2_cache::PARTS.join(", ")
                )
            })?;
            let known = changes.iter_mut().find(|change| change.setting == setting);
            match known {
                Some(change) => change.named.push(pair.clone()),
                None => changes.push(Self {
                    setting,
                    named: vec![pair.clone()],
                }),
            }
        }
        Ok(changes)
    }

    /// A throttle with these limits alone, each per second.
    #[must_use]
    pub fn limit(iops: Option<u64>, bytes: Option<u64>) -> Self {
        let pair = |name: &str, value: u64| (name.to_owned(), value.to_string());
        let unset = (
            DiskSetting::Throttle.name().to_owned(),
            throttle::NONE.to_owned(),
        );
        let limits = [
            iops.map(|iops| pair("total_iops_sec", iops)),
            bytes.map(|bytes| pair("total_bytes_sec", bytes)),
        ];
        Self {
            setting: DiskSetting::Throttle,
            named: std::iter::once(unset)
                .chain(limits.into_iter().flatten())
                .collect(),
        }
    }

    /// What is named after the setting itself, and whether that starts from nothing.
    fn parts(&self) -> Result<(bool, Vec<(String, String)>), String> {
        let (whole, parts): (Vec<_>, Vec<_>) = self
            .named
            .iter()
            .cloned()
            .partition(|(name, _)| name == self.setting.name());
        match whole
            .iter()
            .find(|(_, value)| value != self.setting.unset())
        {
            Some((name, value)) => Err(format!(
                "{name} = {value} must be {}, or name what is to be set of it",
                self.setting.unset()
            )),
            None => Ok((!whole.is_empty(), parts)),
        }
    }
}

impl fmt::Display for DiskSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DiskSetting {
    type Err = HostError;

    fn from_str(text: &str) -> HostResult<Self> {
        let known = Self::ALL.into_iter().find(|setting| setting.name() == text);
        known.ok_or_else(|| HostError::parse("setting of a disk", text))
    }
}

#[cfg(test)]
mod tests;
