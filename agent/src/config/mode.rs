//! What may happen to a guest.

use std::fmt;

/// What may happen to a guest, one dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// It is listed, nothing else.
    Off,
    /// It is observed.
    Observe,
    /// Changes are proposed, and applied when somebody says so.
    Advise,
    /// As `Advise`; besides, what the candidate would do is logged every interval.
    Shadow,
    /// The candidate's decisions are applied every interval.
    Canary,
    /// The production policy's decisions are applied every interval.
    Auto,
}

impl Mode {
    /// Whether changes may be proposed and, when somebody says so, applied.
    #[must_use]
    pub fn allows_changes(self) -> bool {
        self >= Self::Advise
    }

    /// Whether changes are made every interval without anybody asking for them.
    #[must_use]
    pub fn is_automatic(self) -> bool {
        self >= Self::Canary
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Advise => "advise",
            Self::Shadow => "shadow",
            Self::Canary => "canary",
            Self::Auto => "auto",
        })
    }
}

/// A knob of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Knob {
    /// Channel of its IOThread.
    Channel,
    /// Its cache strategy.
    Cache,
    /// Polling of its IOThread.
    Polling,
    /// Its limits; no head.
    Throttle,
    /// Sizes of its qcow2 caches; no head.
    Qcow2Cache,
}

impl Knob {
    /// All of them: those of the heads, in their order, then the rest.
    pub const ALL: [Self; 5] = [
        Self::Channel,
        Self::Cache,
        Self::Polling,
        Self::Throttle,
        Self::Qcow2Cache,
    ];

    /// Its name; that of the head that turns it, where there is one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Cache => "cache",
            Self::Polling => "polling",
            Self::Throttle => "throttle",
            Self::Qcow2Cache => "qcow2-cache",
        }
    }
}
