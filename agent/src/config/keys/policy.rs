//! `[policy]` and `[candidate]`.

use blkpilot_models::bandit::{Algorithm, BanditConfig};
use toml::Value;

use super::{Fallback, Key, Kind, Reload, Table, Times, names, text};
use crate::config::policies::{BANDITS, BASELINES, PROMOTIONS, SELECTIONS, WITHDRAWALS};

const fn key(name: &'static str, kind: Kind, default: Fallback, meaning: &'static str) -> Key {
    Key {
        name,
        kind,
        default,
        reload: Reload::Restart,
        meaning,
    }
}

const CHECKPOINT: Key = key(
    "checkpoint",
    Kind::Text("a directory, beside the configuration or else below /usr/share/blkpilot"),
    Fallback::Absent("one of `baseline` and `bandit` then"),
    "A trained policy.",
);

const SELECTION: Key = key(
    "selection",
    Kind::Choice(|| names(&SELECTIONS)),
    Fallback::Is(|| text("greedy")),
    "How the scores of a trained policy become a choice.",
);

const BASELINE: Key = key(
    "baseline",
    Kind::Choice(|| BASELINES.to_vec()),
    Fallback::Absent("one of `checkpoint` and `bandit` then"),
    "A policy that was not trained.",
);

const BANDIT: Key = key(
    "bandit",
    Kind::Choice(|| names(&BANDITS)),
    Fallback::Absent("one of `checkpoint` and `baseline` then"),
    "A policy that learns here, from the first decision on.",
);

const fn caution(name: &'static str, meaning: &'static str) -> Key {
    let kind = Kind::Number {
        unit: "deviations",
        least: 0.0,
        most: 100.0,
    };
    key(name, kind, Fallback::Is(|| Value::Float(1.0)), meaning)
}

const ALPHA: Key = caution(
    "alpha",
    "Of `linucb`: width of the bound by which it chooses.",
);
const SCALE: Key = caution("scale", "Of `thompson`: width of what it draws from.");

fn bandit() -> BanditConfig {
    BanditConfig::new(Algorithm::LinUcb(1.0))
}

const RIDGE: Key = key(
    "ridge",
    Kind::Number {
        unit: "–",
        least: 1e-6,
        most: 1e6,
    },
    Fallback::Is(|| Value::Float(bandit().ridge)),
    "Of a bandit: what it is drawn towards 0 by, in observations.",
);

const MEMORY: Key = key(
    "memory",
    Kind::Number {
        unit: "share per observation",
        least: 0.9,
        most: 1.0,
    },
    Fallback::Is(|| Value::Float(bandit().memory)),
    "Of a bandit: what it keeps of what it knew at each observation.",
);

const PROMOTED: Key = key(
    "promoted",
    Kind::Choice(|| names(&PROMOTIONS)),
    Fallback::Is(|| text("serve")),
    "Whether what was promoted to production is served in its place.",
);

const ON_HARM: Key = key(
    "on_harm",
    Kind::Choice(|| names(&WITHDRAWALS)),
    Fallback::Is(|| text("roll_back")),
    "What becomes of a promoted version of whose changes the guard has put back `guard.harm_limit`.",
);

pub(super) static POLICY: Table = Table {
    path: "policy",
    meaning: "What decides in production: exactly one of `checkpoint`, `baseline` and `bandit`.",
    times: Times::Once,
    keys: &[
        CHECKPOINT, SELECTION, BASELINE, BANDIT, ALPHA, SCALE, RIDGE, MEMORY, PROMOTED, ON_HARM,
    ],
};

pub(super) static CANDIDATE: Table = Table {
    path: "candidate",
    meaning: "What may replace it one day: decides for guests in mode shadow (logged) and canary (applied).",
    times: Times::Once,
    keys: &[
        CHECKPOINT, SELECTION, BASELINE, BANDIT, ALPHA, SCALE, RIDGE, MEMORY,
    ],
};
