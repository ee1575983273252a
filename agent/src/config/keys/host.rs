//! `[host]` with its tables, and `[[guest]]`.

use std::time::Duration;

use blkpilot_env::guard::exploration::MOST_CHANGES_PER_HOUR;
use blkpilot_host::{BufferedLimits, DeviceKnob, DiskBounds};
use toml::Value;

use super::{Fallback, Key, Kind, Reload, Table, Times, integer, names, span, text};
use crate::config::{
    CHANNEL_KINDS, DEDICATED_RULES, DEFAULT_INTERVAL, DEFAULT_URI, HOST_KINDS, KNOBS, MODES,
    ON_EXITS,
};

const fn fixed(name: &'static str, kind: Kind, default: Fallback, meaning: &'static str) -> Key {
    Key {
        name,
        kind,
        default,
        reload: Reload::Restart,
        meaning,
    }
}

const fn live(name: &'static str, kind: Kind, default: Fallback, meaning: &'static str) -> Key {
    Key {
        name,
        kind,
        default,
        reload: Reload::AtOnce,
        meaning,
    }
}

pub(super) static HOST: Table = Table {
    path: "host",
    meaning: "The host to look after.",
    times: Times::Once,
    keys: &[
        fixed(
            "name",
            Kind::Text("1 to 63 of a-z, 0-9 and -, starting with a letter"),
            Fallback::Is(|| text("local")),
            "Last segment of `hosts/*`.",
        ),
        live(
            "mode",
            Kind::Choice(|| names(&MODES)),
            Fallback::Is(|| text("advise")),
            "Mode of guests that have none of their own; `shadow` and `canary` stand for `advise` while there is no candidate.",
        ),
        fixed(
            "kind",
            Kind::Choice(|| names(&HOST_KINDS)),
            Fallback::Required,
            "What stands behind it. The keys and tables that follow are those of `libvirt`; those of `simulated` stand on their own.",
        ),
        fixed(
            "uri",
            Kind::Text("a libvirt URI"),
            Fallback::Is(|| text(DEFAULT_URI)),
            "The connection to libvirt.",
        ),
        fixed(
            "interval",
            Kind::Span {
                least: Duration::from_millis(100),
                most: Duration::from_secs(3600),
            },
            Fallback::Is(|| span(DEFAULT_INTERVAL)),
            "Length of one decision interval.",
        ),
        fixed(
            "on_exit",
            Kind::Choice(|| names(&ON_EXITS)),
            Fallback::Required,
            "What happens to our changes when the service stops.",
        ),
        fixed(
            "reserved_cpus",
            Kind::Text("host CPUs such as \"0-1,4\""),
            Fallback::Absent("none is reserved"),
            "CPUs that no disk may be bound to.",
        ),
        fixed(
            "dedicated_cpus",
            Kind::Choice(|| names(&DEDICATED_RULES)),
            Fallback::Is(|| text("avoid")),
            "CPUs to which one vCPU of another guest is pinned alone.",
        ),
        fixed(
            "channel_per",
            Kind::Choice(|| names(&CHANNEL_KINDS)),
            Fallback::Is(|| text("core")),
            "What a discovered channel is; not beside `[[host.channel]]`.",
        ),
        fixed(
            "channel",
            Kind::Nested,
            Fallback::Absent("channels are discovered"),
            "Channels that are given.",
        ),
        fixed(
            "buffered",
            Kind::Nested,
            Fallback::Absent("the defaults"),
            "When no disk goes over to buffered.",
        ),
        fixed(
            "device",
            Kind::Nested,
            Fallback::Absent("no device is written"),
            "Block devices of which settings may be changed.",
        ),
        fixed(
            "throttle",
            Kind::Nested,
            Fallback::Absent("the defaults"),
            "What no limit of a disk may be below.",
        ),
        fixed(
            "qcow2_cache",
            Kind::Nested,
            Fallback::Absent("the defaults"),
            "What no qcow2 caches may be beyond.",
        ),
    ],
};

pub(super) static SIMULATED: Table = Table {
    path: "host",
    meaning: "With `kind = \"simulated\"`: a host simulated in this process.",
    times: Times::Once,
    keys: &[
        fixed(
            "scenario",
            Kind::Text("a preset, or a TOML file (docs/simulator.md)"),
            Fallback::Required,
            "What is simulated.",
        ),
        fixed(
            "seed",
            Kind::Integer {
                unit: "–",
                least: 0,
                most: i64::MAX as u64,
            },
            Fallback::Is(|| integer(0_u64)),
            "Seed of everything random in it.",
        ),
        fixed(
            "time_scale",
            Kind::Number {
                unit: "simulated seconds per second",
                least: 0.001,
                most: 1000.0,
            },
            Fallback::Is(|| Value::Float(1.0)),
            "How fast it runs.",
        ),
    ],
};

pub(super) static CHANNEL: Table = Table {
    path: "host.channel",
    meaning: "A channel that is given, isolated CPUs too; then none is discovered.",
    times: Times::Each,
    keys: &[
        fixed(
            "name",
            Kind::Text("a name such as \"core-3\""),
            Fallback::Required,
            "Its name, that of the level of head `channel`.",
        ),
        fixed(
            "cpus",
            Kind::Text("host CPUs such as \"2-3\""),
            Fallback::Required,
            "Its CPUs.",
        ),
    ],
};

const PERCENT: Kind = Kind::Integer {
    unit: "percent",
    least: 0,
    most: 100,
};

pub(super) static BUFFERED: Table = Table {
    path: "host.buffered",
    meaning: "When no disk goes over to buffered.",
    times: Times::Once,
    keys: &[
        fixed(
            "memory_pressure_percent",
            PERCENT,
            Fallback::Is(|| integer(BufferedLimits::default().memory_pressure_percent)),
            "From this share of the time on in which something waits for memory (PSI, 10 s).",
        ),
        fixed(
            "available_memory_percent",
            PERCENT,
            Fallback::Is(|| integer(BufferedLimits::default().available_memory_percent)),
            "Below this share of the host's memory that is available.",
        ),
        fixed(
            "group_memory_percent",
            PERCENT,
            Fallback::Is(|| integer(BufferedLimits::default().group_memory_percent)),
            "From this share of its control group's limit on that a guest has taken for good.",
        ),
    ],
};

pub(super) static DEVICE: Table = Table {
    path: "host.device",
    meaning: "A block device of which settings may be changed, by those who ask for it.",
    times: Times::Each,
    keys: &[
        fixed(
            "match",
            Kind::Text("a kernel name, or a stable id (`blkpilot device list`)"),
            Fallback::Required,
            "The device.",
        ),
        fixed(
            "knobs",
            Kind::Choices(|| DeviceKnob::ALL.map(DeviceKnob::name).to_vec()),
            Fallback::Required,
            "The settings that may be changed.",
        ),
    ],
};

const fn at_least_one(unit: &'static str) -> Kind {
    Kind::Integer {
        unit,
        least: 1,
        most: i64::MAX as u64,
    }
}

pub(super) static THROTTLE: Table = Table {
    path: "host.throttle",
    meaning: "What no limit may be below that `blkpilot disk` or the guard sets.",
    times: Times::Once,
    keys: &[
        fixed(
            "least_iops",
            at_least_one("requests per second"),
            Fallback::Is(|| integer(DiskBounds::default().throttle.least_iops)),
            "Least limit of requests.",
        ),
        fixed(
            "least_bytes_per_s",
            at_least_one("bytes per second"),
            Fallback::Is(|| integer(DiskBounds::default().throttle.least_bytes_per_s)),
            "Least limit of bytes.",
        ),
    ],
};

pub(super) static QCOW2_CACHE: Table = Table {
    path: "host.qcow2_cache",
    meaning: "What no qcow2 caches may be beyond that `blkpilot disk` sets.",
    times: Times::Once,
    keys: &[fixed(
        "most_mib",
        at_least_one("MiB"),
        Fallback::Is(|| integer(DiskBounds::default().qcow2_cache.most_bytes >> 20)),
        "Caches of one disk together.",
    )],
};

pub(super) static GUEST: Table = Table {
    path: "guest",
    meaning: "What the configuration says of one guest, over what its metadata says.",
    times: Times::Each,
    keys: &[
        live(
            "name",
            Kind::Text("the guest's libvirt name"),
            Fallback::Required,
            "The guest.",
        ),
        live(
            "mode",
            Kind::Choice(|| names(&MODES)),
            Fallback::Absent("its metadata's, or `host.mode`"),
            "What may happen to it.",
        ),
        live(
            "opt_in",
            Kind::Flag,
            Fallback::Absent("its metadata decides; on a simulated host it has opted in"),
            "Whether it has agreed to be changed.",
        ),
        live(
            "knobs",
            Kind::Choices(|| names(&KNOBS)),
            Fallback::Absent("its metadata's, or all"),
            "The knobs that may be turned; without `opt_in` only those that its metadata allows too.",
        ),
        live(
            "exploration",
            Kind::Nested,
            Fallback::Absent("its metadata's, or none"),
            "How much it is explored, in modes canary and auto.",
        ),
        live(
            "p99_objective_us",
            Kind::Positive {
                unit: "microseconds",
            },
            Fallback::Absent("no objective of its own"),
            "Objective of its disks for the p99 latency: what `[guard.neighbour]` protects.",
        ),
    ],
};

pub(super) static EXPLORATION: Table = Table {
    path: "guest.exploration",
    meaning: "How much a guest is explored: `exploration = { epsilon = 0.05, changes_per_hour = 6 }`.",
    times: Times::Once,
    keys: &[
        live(
            "epsilon",
            Kind::Number {
                unit: "probability",
                least: 0.0,
                most: 1.0,
            },
            Fallback::Required,
            "With it a level is drawn from all that are allowed, instead of by the policy.",
        ),
        live(
            "changes_per_hour",
            Kind::Integer {
                unit: "changes",
                least: 0,
                most: MOST_CHANGES_PER_HOUR as u64,
            },
            Fallback::Required,
            "The most changes that such draws may make in an hour.",
        ),
    ],
};
