//! Words for the values of the log's enumerations: those of its segments, checked against them.

use blkpilot_env::{MaskReason, Validity};
use blkpilot_models::TableName;

use crate::schema::{Source, Stage};

/// An enumeration whose values have names.
pub(crate) trait Named: Copy + Sized + 'static {
    /// All values, with their names.
    const ALL: &'static [(Self, &'static str)];

    fn word(self) -> &'static str;

    fn parse(text: &str) -> Option<Self> {
        let mut known = Self::ALL.iter();
        known
            .find(|(_, name)| *name == text)
            .map(|(value, _)| *value)
    }
}

macro_rules! named {
    ($type:ty: $($variant:ident $text:literal),+ $(,)?) => {
        impl Named for $type {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $text)),+];

            fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }
    };
}

named!(Source:
    Simulator "simulator", Proposal "proposal", Shadow "shadow", Canary "canary", Auto "auto",
    Explicit "explicit", Rollback "rollback", Guard "guard",
);
named!(Stage: Policy "policy", LastGood "last_good", Heuristic "heuristic", Keep "keep");
named!(TableName:
    Disk "disk", Channel "channel", Pair "pair", Device "device", Host "host",
);
named!(Validity:
    Valid "valid", Estimated "estimated", Stale "stale", Idle "idle", NotOptedIn "not_opted_in",
    Unsupported "unsupported", CounterReset "counter_reset",
);
named!(MaskReason:
    Allowed "allowed", NoIoThread "no_io_thread", TiedToIoThread "tied_to_io_thread",
    SharedIoThread "shared_io_thread", AioNative "aio_native", NotEnabled "not_enabled",
    NotOptedIn "not_opted_in", Unsupported "unsupported", Frozen "frozen",
    JobRunning "job_running", Dwell "dwell", Unresponsive "unresponsive", RateLimit "rate_limit",
    BreakerOpen "breaker_open", WritingBack "writing_back", WritesTooFast "writes_too_fast",
    MemoryPressure "memory_pressure", MemoryLimit "memory_limit", WriteErrors "write_errors",
    SharedStorage "shared_storage", DedicatedCpu "dedicated_cpu",
    RecentlyUndone "recently_undone",
);

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::Serialize;

    use super::*;

    fn check<T: Named + Serialize + PartialEq + Debug>() {
        for (value, name) in T::ALL {
            assert_eq!(serde_json::to_value(value).unwrap(), *name);
            assert_eq!((value.word(), T::parse(name)), (*name, Some(*value)));
        }
        assert_eq!(T::parse("no such thing"), None);
    }

    #[test]
    fn names_are_those_of_the_segments() {
        check::<Source>();
        check::<Stage>();
        check::<TableName>();
        check::<Validity>();
        check::<MaskReason>();
    }
}
