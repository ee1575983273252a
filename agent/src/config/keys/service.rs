//! The top of the file, `[service]`, `[log]` and `[training]`.

use std::time::Duration;

use super::{Fallback, Key, Kind, Reload, Table, Times, integer, span, text};
use crate::config::{DEFAULT_MAX_ENVIRONMENTS, DEFAULT_PARALLEL, DEFAULT_SOCKET, VERSION};
use crate::decision::history::LogConfig;

const fn key(
    name: &'static str,
    kind: Kind,
    default: Fallback,
    reload: Reload,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        reload,
        meaning,
    }
}

const fn table(name: &'static str, default: Fallback, meaning: &'static str) -> Key {
    key(name, Kind::Nested, default, Reload::Restart, meaning)
}

pub(super) static ROOT: Table = Table {
    path: "",
    meaning: "",
    times: Times::Once,
    keys: &[
        key(
            "version",
            Kind::Integer {
                unit: "–",
                least: VERSION,
                most: VERSION,
            },
            Fallback::Required,
            Reload::Restart,
            "Version of the file's format.",
        ),
        table("host", Fallback::Required, "The host."),
        table(
            "guest",
            Fallback::Absent("nothing is said of any"),
            "Guests.",
        ),
        table("guard", Fallback::Absent("the defaults"), "The guard."),
        table("reward", Fallback::Absent("the defaults"), "The reward."),
        table("policy", Fallback::Required, "What decides."),
        table(
            "candidate",
            Fallback::Absent("there is none"),
            "What may replace it.",
        ),
        table(
            "service",
            Fallback::Required,
            "Where to listen, what to keep.",
        ),
        table("log", Fallback::Absent("the defaults"), "The decision log."),
        table(
            "training",
            Fallback::Absent("the defaults"),
            "The training of policies.",
        ),
    ],
};

pub(super) static SERVICE: Table = Table {
    path: "service",
    meaning: "Where the service listens and what it keeps. Relative paths start at the file's directory.",
    times: Times::Once,
    keys: &[
        key(
            "listen",
            Kind::Text("unix:PATH, a loopback address, or with `[service.tls]` any"),
            Fallback::Is(|| text(&format!("unix:{DEFAULT_SOCKET}"))),
            Reload::Restart,
            "Where it listens.",
        ),
        key(
            "data_dir",
            Kind::Text("a directory"),
            Fallback::Required,
            Reload::Restart,
            "Where decisions, journal and lock are kept.",
        ),
        key(
            "max_environments",
            Kind::Integer {
                unit: "environments",
                least: 1,
                most: 10_000,
            },
            Fallback::Is(|| integer(DEFAULT_MAX_ENVIRONMENTS)),
            Reload::Restart,
            "Most environments held at once.",
        ),
        table(
            "socket",
            Fallback::Absent("whoever can open it is admin"),
            "Who may do what through the Unix socket.",
        ),
        table("tls", Fallback::Absent("none is spoken"), "TLS."),
        table(
            "limits",
            Fallback::Absent("the defaults"),
            "Bounds on what clients ask for.",
        ),
        table(
            "audit",
            Fallback::Absent("the defaults"),
            "The record of changes.",
        ),
    ],
};

const MOST_MIB: u64 = 1 << 20;

pub(super) static LOG: Table = Table {
    path: "log",
    meaning: "How much of the decision log is kept, in `DATA_DIR/decisions` (docs/decision_log.md).",
    times: Times::Once,
    keys: &[
        key(
            "max_mib",
            Kind::Integer {
                unit: "MiB",
                least: 2,
                most: MOST_MIB,
            },
            Fallback::Is(|| integer(LogConfig::default().keep.most_bytes >> 20)),
            Reload::AtOnce,
            "Segments and Parquet files together; the oldest go first. At least twice `segment_mib`.",
        ),
        key(
            "max_age",
            Kind::Span {
                least: Duration::from_secs(86_400),
                most: super::LONGEST,
            },
            Fallback::Absent("any age"),
            Reload::AtOnce,
            "Of a Parquet file's day.",
        ),
        key(
            "segment_mib",
            Kind::Integer {
                unit: "MiB",
                least: 1,
                most: 1024,
            },
            Fallback::Is(|| integer(LogConfig::default().segment_bytes >> 20)),
            Reload::Restart,
            "A segment of this size, or of the age `seal_after`, becomes Parquet.",
        ),
        key(
            "seal_after",
            Kind::Span {
                least: Duration::from_secs(1),
                most: Duration::from_secs(7 * 86_400),
            },
            Fallback::Is(|| span(LogConfig::default().seal_after)),
            Reload::AtOnce,
            "The age at which a segment becomes Parquet.",
        ),
    ],
};

pub(super) static TRAINING: Table = Table {
    path: "training",
    meaning: "How `blkpilot-lab serve` trains policies (docs/training.md); `blkpilot serve` does not.",
    times: Times::Once,
    keys: &[key(
        "parallel",
        Kind::Integer {
            unit: "runs",
            least: 1,
            most: 64,
        },
        Fallback::Is(|| integer(DEFAULT_PARALLEL)),
        Reload::Restart,
        "Most runs that are trained at once, each in a process of its own; others wait in their order.",
    )],
};
