//! `[service.socket]`, `[service.tls]`, `[service.limits]` and `[service.audit]`.

use super::{Fallback, Key, Kind, Reload, Table, Times, integer, names, text};
use crate::access::Limits;
use crate::access::audit::AuditConfig;
use crate::config::access::{ROLES, SOCKET_ROLES};

const fn key(name: &'static str, kind: Kind, default: Fallback, meaning: &'static str) -> Key {
    Key {
        name,
        kind,
        default,
        reload: Reload::Restart,
        meaning,
    }
}

const fn up_to(unit: &'static str, least: u64, most: u64) -> Kind {
    Kind::Integer { unit, least, most }
}

/// Ids of users and groups.
const ID: Kind = up_to("–", 0, u32::MAX as u64);
const ROLE: Kind = Kind::Choice(|| names(&ROLES));

pub(super) static SOCKET: Table = Table {
    path: "service.socket",
    meaning: "What those may do who reach the service by its Unix socket and send no token (docs/security.md).",
    times: Times::Once,
    keys: &[
        key(
            "role",
            Kind::Choice(|| names(&SOCKET_ROLES)),
            Fallback::Is(|| text("admin")),
            "Of whoever can open it and has no `caller` below.",
        ),
        key(
            "caller",
            Kind::Nested,
            Fallback::Absent("nobody is told apart"),
            "Roles of users and groups.",
        ),
    ],
};

pub(super) static CALLER: Table = Table {
    path: "service.socket.caller",
    meaning: "The role of a user or a primary group of the socket; a user's counts before a group's.",
    times: Times::Each,
    keys: &[
        key(
            "uid",
            ID,
            Fallback::Absent("`gid` says who"),
            "The user; either this or `gid`.",
        ),
        key(
            "gid",
            ID,
            Fallback::Absent("`uid` says who"),
            "The primary group.",
        ),
        key("role", ROLE, Fallback::Required, "What it may do."),
    ],
};

pub(super) static TLS: Table = Table {
    path: "service.tls",
    meaning: "TLS at the address in `listen`. A change of the files' contents is taken within seconds, without a reload.",
    times: Times::Once,
    keys: &[
        key(
            "certificate",
            Kind::Text("a PEM file"),
            Fallback::Required,
            "The service's certificate, then those up to its CA.",
        ),
        key(
            "key",
            Kind::Text("a PEM file"),
            Fallback::Required,
            "Its private key; nobody else may read it.",
        ),
        key(
            "client_ca",
            Kind::Text("a PEM file"),
            Fallback::Absent("no certificate is asked for"),
            "Only holders of certificates of this CA connect.",
        ),
        key(
            "client",
            Kind::Nested,
            Fallback::Absent("every holder is an observer"),
            "Roles of names in certificates.",
        ),
    ],
};

pub(super) static CLIENT: Table = Table {
    path: "service.tls.client",
    meaning: "The role of a name in client certificates; the first that fits counts.",
    times: Times::Each,
    keys: &[
        key(
            "common_name",
            Kind::Text("a name, compared whole"),
            Fallback::Absent("`alternative_name` says who"),
            "The subject's common name; either this or `alternative_name`.",
        ),
        key(
            "alternative_name",
            Kind::Text("a DNS name, URI or mail address, compared whole"),
            Fallback::Absent("`common_name` says who"),
            "A subject alternative name.",
        ),
        key("role", ROLE, Fallback::Required, "What it may do."),
    ],
};

fn most() -> Limits {
    Limits::default()
}

pub(super) static LIMITS: Table = Table {
    path: "service.limits",
    meaning: "What clients may ask for at once.",
    times: Times::Once,
    keys: &[
        key(
            "message_mib",
            up_to("MiB", 1, 256),
            Fallback::Is(|| integer(most().message_mib)),
            "Longest message of a request.",
        ),
        key(
            "streams_per_connection",
            up_to("calls", 1, 65_536),
            Fallback::Is(|| integer(most().streams_per_connection)),
            "Calls and streams of one connection at once; those beyond wait.",
        ),
        key(
            "connections",
            up_to("connections", 1, 65_536),
            Fallback::Is(|| integer(most().connections)),
            "Connections at once; those beyond are closed.",
        ),
        key(
            "calls_per_second",
            up_to("calls per second", 1, 1_000_000),
            Fallback::Is(|| integer(most().calls_per_second)),
            "Of a client that is known: a token, a user of the machine, a certificate.",
        ),
        key(
            "unknown_calls_per_second",
            up_to("calls per second", 1, 1_000_000),
            Fallback::Is(|| integer(most().unknown_calls_per_second)),
            "Of an address whose callers are not.",
        ),
    ],
};

pub(super) static AUDIT: Table = Table {
    path: "service.audit",
    meaning: "How much is kept of `DATA_DIR/audit.jsonl`, a line for each call that changes something.",
    times: Times::Once,
    keys: &[
        key(
            "file_mib",
            up_to("MiB", 1, 1024),
            Fallback::Is(|| integer(AuditConfig::default().file_mib)),
            "At this size the next file is begun.",
        ),
        key(
            "files",
            up_to("files", 2, 100),
            Fallback::Is(|| integer(AuditConfig::default().files)),
            "Files in all; the oldest go.",
        ),
    ],
};
