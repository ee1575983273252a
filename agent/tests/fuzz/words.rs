//! What could stand in a field of a request, by its name.

use blkpilot_env::Rng;
use rand::RngExt as _;

/// Environments that are there again before each stretch of calls: their ids.
pub(crate) const CART: &str = "cart";
pub(crate) const CARTS: &str = "carts";
pub(crate) const HOST: &str = "host";
pub(crate) const DRAWN: &str = "drawn";

const NAMES: &[&str] = &[
    "hosts/local",
    "hosts/local/guests/-",
    "hosts/local/guests/backup",
    "hosts/local/guests/backup/disks/vda",
    "hosts/local/guests/%2e%2e/disks/%00",
    "hosts/local/devices/sda",
    "hosts/other",
    "environments/cart",
    "environments/carts",
    "environments/host",
    "environments/drawn",
    "environments/-",
    "decisions/0b0c7d6e-35a5-4d46-a8ff-2f6ad7a7e3f5",
    "policies/default",
    "policies/default/versions/1",
    "policies/default/versions/18446744073709551616",
    "operations/0b0c7d6e-35a5-4d46-a8ff-2f6ad7a7e3f5",
    "operations",
    "policies/-/versions/-",
    "evaluations/1",
    "trainingRuns/1",
    "",
    "/",
    "hosts//guests/",
];
const FILTERS: &[&str] = &[
    "",
    "state = \"READY\"",
    "kind = cart_pole AND count != 4",
    "a = b AND",
    "name = \"\\\"\"",
    "stage != production AND stage = candidate",
    "done = true",
    "\"",
    "= = =",
    "a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b AND a=b",
];
const TOKENS: &[&str] = &[
    "",
    "0",
    "0b0c7d6e-35a5-4d46-a8ff-2f6ad7a7e3f5",
    "environments/cart",
    "18446744073709551615",
    "-1",
    "policies/default",
    "AAAA",
];
const IDS: &[&str] = &[
    "",
    "0b0c7d6e-35a5-4d46-a8ff-2f6ad7a7e3f5",
    "00000000-0000-0000-0000-000000000000",
    "0b0c7d6e35a54d46a8ff2f6ad7a7e3f5",
    "not-an-id",
];
const ENVIRONMENT_IDS: &[&str] = &["", "x", "x-1", CART, "Not An Id", "-", "a\u{0}b"];
const LEVELS: &[&str] = &[
    "direct",
    "buffered",
    "float",
    "channel-0",
    "channel-1",
    "off",
    "adaptive",
    "cache",
    "channel",
    "polling",
    "none",
    "mq-deadline",
];
const PRESETS: &[&str] = &["mixed", "poor_binding", "mixed_numa", "atlantis", ""];
const OTHERS: &[&str] = &[
    "",
    "a",
    "\u{0}",
    "é",
    "\u{202e}",
    "{}",
    "[]",
    "../../etc/passwd",
    "%",
    "%zz",
    "NaN",
    "1e999",
    "-0",
];
const SCENARIO: &str = include_str!("../../../env/scenarios/mixed.toml");

/// A text that may be meant where a field has this name; sometimes any other.
pub(crate) fn text(rng: &mut Rng, field: &str) -> String {
    let meant: &[&str] = match field {
        "filter" | "order_by" => FILTERS,
        "page_token" | "resume_token" | "etag" => TOKENS,
        "request_id" => IDS,
        "environment_id" => ENVIRONMENT_IDS,
        "head" | "level" | "setting" | "value" => LEVELS,
        "preset" => PRESETS,
        "scenario_toml" | "config_toml" | "toml" => return scenario(rng),
        "name" | "parent" | "host" | "decision" | "operation" => NAMES,
        _ => OTHERS,
    };
    match rng.random_range(0..20) {
        0 => pick(rng, OTHERS).repeat(rng.random_range(1..200)),
        1 => pick(rng, NAMES).to_owned(),
        2 => {
            let meant = pick(rng, meant);
            super::mutate::text(rng, meant)
        }
        _ => pick(rng, meant).to_owned(),
    }
}

fn scenario(rng: &mut Rng) -> String {
    match rng.random_range(0..4) {
        0 => SCENARIO.to_owned(),
        _ => super::mutate::lines(rng, SCENARIO),
    }
}

/// One of them.
pub(crate) fn pick<'a, T: ?Sized>(rng: &mut Rng, all: &[&'a T]) -> &'a T {
    all[rng.random_range(0..all.len())]
}

/// A whole number as often small or at the edge as anything.
pub(crate) fn whole(rng: &mut Rng) -> i64 {
    const EDGES: &[i64] = &[
        0,
        1,
        -1,
        2,
        4,
        63,
        64,
        1024,
        1025,
        65_535,
        65_536,
        i32::MAX as i64,
        i32::MIN as i64,
        u32::MAX as i64,
        i64::MAX,
        i64::MIN,
        253_402_300_800,
    ];
    match rng.random_range(0..3) {
        0 => EDGES[rng.random_range(0..EDGES.len())],
        1 => rng.random_range(0..8),
        _ => rng.random::<i64>() >> rng.random_range(0..64),
    }
}

/// A number as often at the edge as anything.
pub(crate) fn real(rng: &mut Rng) -> f64 {
    const EDGES: [f64; 12] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        f64::MAX,
        f64::MIN_POSITIVE,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1e-300,
        1e9,
    ];
    match rng.random_range(0..2) {
        0 => EDGES[rng.random_range(0..EDGES.len())],
        _ => rng.random_range(-2.0..2.0),
    }
}
