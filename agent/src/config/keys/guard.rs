//! `[guard]`, `[guard.neighbour]` and `[reward]`.

use std::time::Duration;

use blkpilot_env::guard::GuardConfig;
use blkpilot_env::guard::neighbour::NeighbourConfig;
use blkpilot_env::reward::RewardConfig;
use toml::Value;

use super::{ABOVE_ZERO, Fallback, Key, Kind, LONGEST, Reload, Table, Times, count, integer, span};

const fn key(name: &'static str, kind: Kind, default: Fallback, meaning: &'static str) -> Key {
    Key {
        name,
        kind,
        default,
        reload: Reload::AtOnce,
        meaning,
    }
}

const ANY_SPAN: Kind = Kind::Span {
    least: Duration::ZERO,
    most: LONGEST,
};

const MICROSECONDS: Kind = Kind::Positive {
    unit: "microseconds",
};

fn guard() -> GuardConfig {
    GuardConfig::default()
}

pub(super) static GUARD: Table = Table {
    path: "guard",
    meaning: "What the guard allows in modes canary and auto, and of what clients apply (docs/operations.md, The guard).",
    times: Times::Once,
    keys: &[
        key(
            "dwell",
            ANY_SPAN,
            Fallback::Is(|| span(guard().dwell)),
            "Shortest time between two changes of one setting of one disk.",
        ),
        key(
            "changes_per_minute",
            count("disks"),
            Fallback::Is(|| integer(guard().changes_per_minute)),
            "Most changed disks per minute over the host.",
        ),
        key(
            "trial_windows",
            count("intervals"),
            Fallback::Is(|| integer(guard().trial.windows)),
            "Intervals after a change in which it is judged.",
        ),
        key(
            "doubt_windows",
            count("intervals"),
            Fallback::Is(|| integer(guard().trial.doubt_windows)),
            "As many at most while the latency has risen, but chance explains it.",
        ),
        key(
            "objective_windows",
            count("intervals"),
            Fallback::Is(|| integer(guard().trial.objective_windows)),
            "Intervals in a row above the objective, after which a change on trial goes back.",
        ),
        key(
            "late_windows",
            count("intervals"),
            Fallback::Is(|| integer(guard().trial.late_windows)),
            "Intervals in a row above the objective, after which a change that was kept goes back.",
        ),
        key(
            "stall_windows",
            count("intervals"),
            Fallback::Is(|| integer(guard().stall_windows)),
            "Intervals without a completion, requests in flight, that are a stall.",
        ),
        key(
            "tolerated_ratio",
            Kind::Number {
                unit: "ratio",
                least: 1.0,
                most: 100.0,
            },
            Fallback::Is(|| Value::Float(guard().trial.tolerated_ratio)),
            "Rise of the latency that is borne, beyond what chance explains.",
        ),
        key(
            "p99_objective_us",
            MICROSECONDS,
            Fallback::Absent("no objective"),
            "What lifts the p99 latency of a disk above it is put back.",
        ),
        key(
            "retry_undone",
            ABOVE_ZERO,
            Fallback::Is(|| span(guard().backoff.retry)),
            "Time for which a level that did harm stays closed, doubled each further time; at most `longest_retry`.",
        ),
        key(
            "longest_retry",
            ABOVE_ZERO,
            Fallback::Is(|| span(guard().backoff.longest_retry)),
            "The longest such time.",
        ),
        key(
            "breaker_failures",
            count("changes"),
            Fallback::Is(|| integer(guard().breaker.failures)),
            "Changes that went wrong within `breaker_within`, after which none is made.",
        ),
        key(
            "breaker_within",
            ABOVE_ZERO,
            Fallback::Is(|| span(guard().breaker.within)),
            "Time within which they are counted.",
        ),
        key(
            "breaker_pause",
            ABOVE_ZERO,
            Fallback::Is(|| span(guard().breaker.pause)),
            "For so long none is made; doubled while the next goes wrong too, up to an hour or this if it is longer.",
        ),
        key(
            "harm_limit",
            count("changes"),
            Fallback::Is(|| integer(guard().harm.changes)),
            "Changes of one policy that were put back within `harm_within`, after which a promoted one is taken out of use (`policy.on_harm`).",
        ),
        key(
            "harm_within",
            ABOVE_ZERO,
            Fallback::Is(|| span(guard().harm.within)),
            "Time within which they are counted.",
        ),
        key(
            "neighbour",
            Kind::Nested,
            Fallback::Absent("nobody is limited"),
            "When heavy neighbours are limited.",
        ),
    ],
};

fn neighbour() -> NeighbourConfig {
    NeighbourConfig::default()
}

pub(super) static NEIGHBOUR: Table = Table {
    path: "guard.neighbour",
    meaning: "Limits a heavy neighbour that has opted in to `throttle`, in modes canary and auto, while disks miss their `p99_objective_us`; nobody is limited without this table.",
    times: Times::Once,
    keys: &[
        key(
            "windows",
            count("intervals"),
            Fallback::Is(|| integer(neighbour().windows)),
            "Missed so often in a row before anything is limited, and limited further.",
        ),
        key(
            "relief_windows",
            count("intervals"),
            Fallback::Is(|| integer(neighbour().relief_windows)),
            "Met so often in a row before a limit is loosened.",
        ),
        key(
            "dominant_share",
            Kind::Number {
                unit: "share of the device's requests or bytes",
                least: 0.05,
                most: 1.0,
            },
            Fallback::Is(|| Value::Float(neighbour().dominant_share)),
            "From this share on a disk is a heavy neighbour.",
        ),
        key(
            "step",
            Kind::Number {
                unit: "share of what the disk does",
                least: 0.05,
                most: 0.95,
            },
            Fallback::Is(|| Value::Float(neighbour().step)),
            "What one step leaves it.",
        ),
        key(
            "longest",
            ANY_SPAN,
            Fallback::Is(|| span(neighbour().longest)),
            "The longest time that one disk is limited.",
        ),
        key(
            "pause",
            ANY_SPAN,
            Fallback::Is(|| span(neighbour().pause)),
            "Time after that in which it is not again.",
        ),
    ],
};

const fn weight(name: &'static str, default: fn() -> Value, meaning: &'static str) -> Key {
    let kind = Kind::Number {
        unit: "weight",
        least: 0.0,
        most: 1.0,
    };
    key(name, kind, Fallback::Is(default), meaning)
}

fn reward() -> RewardConfig {
    RewardConfig::default()
}

pub(super) static REWARD: Table = Table {
    path: "reward",
    meaning: "Weights of what a decision costs beside the performance loss of the disks, whose weight is 1. `blkpilot weights` sets others until the service ends; a reload sets those that were changed in the file.",
    times: Times::Once,
    keys: &[
        weight(
            "cpu",
            || Value::Float(reward().cpu),
            "IOThread CPU per request, against the time of the same request on the idle device.",
        ),
        weight(
            "page_cache",
            || Value::Float(reward().page_cache),
            "Caching a disk in all of the host's memory.",
        ),
        weight(
            "writeback",
            || Value::Float(reward().writeback),
            "Owing the device one interval of write-back; capped at twice that.",
        ),
        weight(
            "change",
            || Value::Float(reward().change),
            "One changed setting.",
        ),
        weight(
            "slo",
            || Value::Float(reward().slo),
            "A p99 at twice `slo_p99_us`; capped there.",
        ),
        key(
            "slo_p99_us",
            MICROSECONDS,
            Fallback::Absent("no objective"),
            "Objective for the p99 latency.",
        ),
    ],
};
