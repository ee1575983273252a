//! Every key of the daemon's configuration, once: what it is, its unit, range and default, and whether a
//! reload takes it. The reader checks by this table, and docs/config.md is made of it.

mod access;
mod guard;
mod host;
mod policy;
mod service;

use std::time::Duration;

use toml::Value;

/// A table of the configuration.
#[derive(Debug)]
pub struct Table {
    /// Its path, such as `guard.neighbour`; empty for the top of the file.
    pub path: &'static str,
    /// What it is about.
    pub meaning: &'static str,
    /// Whether it is written once, or once for each thing.
    pub times: Times,
    /// Its keys.
    pub keys: &'static [Key],
}

/// How often a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// `[table]`.
    Once,
    /// `[[table]]`, for each thing.
    Each,
}

/// A key of a table.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// What holds where it is not written.
    pub default: Fallback,
    /// When a change of it takes effect.
    pub reload: Reload,
    /// What it is, in a sentence.
    pub meaning: &'static str,
}

/// What may be written. Ranges hold their ends.
#[derive(Debug)]
pub enum Kind {
    /// A string; how it looks.
    Text(&'static str),
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Integer {
        /// What it counts.
        unit: &'static str,
        /// The least.
        least: u64,
        /// The greatest.
        most: u64,
    },
    /// A number.
    Number {
        /// What it measures.
        unit: &'static str,
        /// The least.
        least: f64,
        /// The greatest.
        most: f64,
    },
    /// A number above 0.
    Positive {
        /// What it measures.
        unit: &'static str,
    },
    /// A time such as `"1s"` or `"250ms"`.
    Span {
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// One of these names.
    Choice(fn() -> Vec<&'static str>),
    /// A list of some of these names.
    Choices(fn() -> Vec<&'static str>),
    /// A table, or tables, described on their own.
    Nested,
}

/// What holds where a key is not written.
#[derive(Debug)]
pub enum Fallback {
    /// It has to be.
    Required,
    /// This value.
    Is(fn() -> Value),
    /// No value; what that means.
    Absent(&'static str),
}

/// When a change of a key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// With SIGHUP.
    AtOnce,
    /// With the next start.
    Restart,
}

/// All tables, in the order of the reference.
pub static TABLES: [&Table; 24] = [
    &service::ROOT,
    &host::HOST,
    &host::SIMULATED,
    &host::CHANNEL,
    &host::BUFFERED,
    &host::DEVICE,
    &host::THROTTLE,
    &host::QCOW2_CACHE,
    &host::GUEST,
    &host::EXPLORATION,
    &guard::GUARD,
    &guard::NEIGHBOUR,
    &guard::REWARD,
    &policy::POLICY,
    &policy::CANDIDATE,
    &service::SERVICE,
    &access::SOCKET,
    &access::CALLER,
    &access::TLS,
    &access::CLIENT,
    &access::LIMITS,
    &access::AUDIT,
    &service::LOG,
    &service::TRAINING,
];

/// The key at `path`, such as `guest[2].exploration.epsilon`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    let plain = without_indices(path);
    let (table, name) = plain.rsplit_once('.').unwrap_or(("", &plain));
    let mut keys = TABLES
        .iter()
        .filter(|known| known.path == table)
        .flat_map(|known| known.keys);
    keys.find(|key| key.name == name)
}

/// The keys of the table at `path`, such as `guest[2].exploration`.
pub(crate) fn within(path: &str) -> impl Iterator<Item = &'static Key> {
    let plain = without_indices(path);
    let tables = TABLES.iter().filter(move |table| table.path == plain);
    tables.flat_map(|table| table.keys)
}

/// `guest[2].mode` as `guest.mode`.
fn without_indices(path: &str) -> String {
    let mut is_index = false;
    let keep = |c: &char| {
        is_index = (is_index || *c == '[') && *c != ']';
        !is_index && *c != ']'
    };
    path.chars().filter(keep).collect()
}

impl Key {
    /// What is wrong with a value that has the right type; `None` if nothing is.
    pub(crate) fn objection(&self, value: &Value) -> Option<String> {
        let range = self.kind.range();
        let is_within = match self.kind {
            Kind::Integer { least, most, .. } => {
                let given = value.as_integer().and_then(|i| u64::try_from(i).ok())?;
                (least..=most).contains(&given)
            }
            Kind::Number { least, most, .. } => (least..=most).contains(&number(value)?),
            Kind::Positive { .. } => number(value).is_some_and(|x| x > 0.0 && x.is_finite()),
            Kind::Span { least, most } => {
                let given = humantime::parse_duration(value.as_str()?).ok()?;
                (least..=most).contains(&given)
            }
            Kind::Text(_) | Kind::Flag | Kind::Choice(_) | Kind::Choices(_) | Kind::Nested => true,
        };
        let shown = || match (&self.kind, number(value)) {
            // −1 and −1.0 are one number.
            (Kind::Number { .. } | Kind::Positive { .. }, Some(number)) => number.to_string(),
            _ => value.to_string(),
        };
        (!is_within).then(|| format!("= {} must be {}", shown(), range.unwrap_or_default()))
    }
}

/// A number, written as one or as a whole one.
pub(crate) fn number(value: &Value) -> Option<f64> {
    let whole = || value.as_integer().map(|i| i as f64);
    value.as_float().or_else(whole)
}

impl Kind {
    /// The range in words; `None` where there is none.
    #[must_use]
    pub fn range(&self) -> Option<String> {
        let span = |span: Duration| humantime::format_duration(span).to_string();
        match self {
            Self::Integer { least, most, .. } => Some(format!("in [{least}, {most}]")),
            Self::Number { least, most, .. } => Some(format!("in [{least}, {most}]")),
            Self::Positive { .. } => Some("> 0".to_owned()),
            Self::Span { least, most } if *most == LONGEST => {
                Some(format!("at least {}", span(*least)))
            }
            Self::Span { least, most } => Some(format!("in [{}, {}]", span(*least), span(*most))),
            Self::Text(_) | Self::Flag | Self::Choice(_) | Self::Choices(_) | Self::Nested => None,
        }
    }
}

/// A span without a longest.
const LONGEST: Duration = Duration::MAX;

/// A span of any length above 0, as far as it can be told from 0.
const ABOVE_ZERO: Kind = Kind::Span {
    least: Duration::from_nanos(1),
    most: LONGEST,
};

/// A count of at least 1.
const fn count(unit: &'static str) -> Kind {
    Kind::Integer {
        unit,
        least: 1,
        most: u32::MAX as u64,
    }
}

fn integer(value: impl Into<u64>) -> Value {
    Value::Integer(value.into().try_into().unwrap_or(i64::MAX))
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn span(value: Duration) -> Value {
    Value::String(humantime::format_duration(value).to_string())
}

/// The names of choices.
pub(super) fn names<T>(choices: &[(&'static str, T)]) -> Vec<&'static str> {
    choices.iter().map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests;
