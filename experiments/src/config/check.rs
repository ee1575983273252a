//! Reading a config so that every problem is found, each with the path of its key.

use std::fmt;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::Problem;

/// The problems found so far.
#[derive(Default)]
pub(super) struct Check {
    pub(super) problems: Vec<Problem>,
}

impl Check {
    pub(super) fn problem(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem {
            path: path.into(),
            text: text.into(),
        });
    }

    /// Reads a table whose keys all have defaults. serde stops at the first problem, so each key is
    /// tried on its own first; those that fail are reported and left out.
    pub(super) fn read<T: DeserializeOwned + Default>(&mut self, path: &str, table: Table) -> T {
        let mut good = Table::new();
        for (key, value) in table {
            let alone = Table::from_iter([(key.clone(), value.clone())]);
            match T::deserialize(Value::Table(alone)) {
                Ok(_) => {
                    good.insert(key, value);
                }
                Err(error) => {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    self.problem(path, complaint(&key, &value, &error));
                }
            }
        }
        T::deserialize(Value::Table(good)).unwrap_or_default()
    }

    pub(super) fn need<T>(&mut self, path: &str, value: Option<T>, wanted: &str) -> Option<T> {
        let is_wrong = self.problems.iter().any(|problem| problem.path == path);
        if value.is_none() && !is_wrong {
            self.problem(path, format!("is missing: {wanted}"));
        }
        value
    }

    pub(super) fn that<T: Copy + fmt::Display>(
        &mut self,
        path: &str,
        value: Option<T>,
        is_good: impl Fn(T) -> bool,
        wanted: &str,
    ) {
        if let Some(value) = value.filter(|value| !is_good(*value)) {
            self.problem(path, format!("= {value} {wanted}"));
        }
    }
}

/// What serde says, as `= VALUE must be …` or `is unknown: …`.
fn complaint(key: &str, value: &Value, error: &toml::de::Error) -> String {
    let message = error.message();
    match message.strip_prefix(&format!("unknown field `{key}`, ")) {
        Some(expected) => format!("is unknown: {expected}"),
        None => format!("= {value}: {message}"),
    }
}

/// One section of the config.
pub(super) struct Section<'a> {
    pub(super) name: &'static str,
    pub(super) check: &'a mut Check,
}

impl Section<'_> {
    pub(super) fn need<T: Copy + fmt::Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        is_good: impl Fn(T) -> bool,
        wanted: &str,
    ) -> Option<T> {
        let path = format!("{}.{key}", self.name);
        self.check.need(&path, value, &format!("it {wanted}"));
        self.may(key, value, is_good, wanted)
    }

    pub(super) fn may<T: Copy + fmt::Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        is_good: impl Fn(T) -> bool,
        wanted: &str,
    ) -> Option<T> {
        self.check
            .that(&format!("{}.{key}", self.name), value, is_good, wanted);
        value
    }
}
