//! Reads a TOML document key by key and keeps every problem with its path, so that a file with five
//! mistakes is corrected in one go. (serde stops at the first.) What a key may be, and what holds without it, is
//! said by the table of keys.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use toml::{Table, Value};

use super::keys::{self, Fallback, Key};

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key, such as `host.simulated.seed`.
    pub path: String,
    /// What is wrong with it, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.text)
    }
}

/// Problems in the order in which they were found, shared by all sections of a document.
#[derive(Debug, Clone, Default)]
pub(crate) struct Problems(Rc<RefCell<Vec<Problem>>>);

impl Problems {
    pub(crate) fn add(&self, path: impl Into<String>, text: impl Into<String>) {
        self.0.borrow_mut().push(Problem {
            path: path.into(),
            text: text.into(),
        });
    }

    pub(crate) fn take(&self) -> Vec<Problem> {
        self.0.take()
    }
}

/// A table of the document. What nobody asked for is reported by [`Section::finish`].
#[derive(Debug)]
pub(crate) struct Section {
    path: String,
    table: Table,
    known: BTreeSet<&'static str>,
    problems: Problems,
}

impl Section {
    pub(crate) fn root(table: Table, problems: &Problems) -> Self {
        Self::at(String::new(), table, problems)
    }

    fn at(path: String, table: Table, problems: &Problems) -> Self {
        Self {
            path,
            table,
            known: BTreeSet::new(),
            problems: problems.clone(),
        }
    }

    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    pub(crate) fn problem(&self, key: &str, text: impl Into<String>) {
        self.problems.add(self.path(key), text);
    }

    /// Whether the document has the key, right or wrong.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.insert(key);
        self.table.remove(key)
    }

    /// The description of a key.
    fn key(&self, key: &str) -> &'static Key {
        let path = self.path(key);
        keys::find(&path)
            .unwrap_or_else(|| panic!("{path} is not in config/keys.rs, which is our bug"))
    }

    fn take_as<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let described = self.key(key);
        let value = self.take(key)?;
        let Some(read) = read(&value) else {
            self.problem(key, format!("= {value} must be {wanted}"));
            return None;
        };
        if let Some(objection) = described.objection(&value) {
            self.problem(key, objection);
            return None;
        }
        Some(read)
    }

    /// What holds without the key, which is looked at as if it stood there.
    fn fallback<T>(&self, key: &str, read: impl FnOnce(&Value) -> Option<T>) -> T {
        let path = self.path(key);
        match &self.key(key).default {
            Fallback::Is(value) => read(&value()),
            Fallback::Required | Fallback::Absent(_) => None,
        }
        .unwrap_or_else(|| panic!("{path} has no such default in config/keys.rs, which is our bug"))
    }

    /// Takes a key that is no longer one, and says where it has gone.
    pub(crate) fn moved(&mut self, key: &'static str, to: &str) {
        if self.table.remove(key).is_some() {
            self.problem(key, format!("has moved: write it as {to}"));
        }
    }

    /// Takes a key that is no longer one, and says what is in its place.
    pub(crate) fn gone(&mut self, key: &'static str, instead: &str) {
        if self.table.remove(key).is_some() {
            self.problem(key, format!("has gone: {instead}; remove it"));
        }
    }

    pub(crate) fn text(&mut self, key: &'static str) -> Option<String> {
        self.take_as(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    pub(crate) fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.take_as(key, "true or false", Value::as_bool)
    }

    pub(crate) fn integer(&mut self, key: &'static str) -> Option<u64> {
        self.take_as(key, "a whole number, 0 or greater", whole)
    }

    /// As [`Section::integer`], or its default.
    pub(crate) fn integer_or_default(&mut self, key: &'static str) -> u64 {
        self.integer(key)
            .unwrap_or_else(|| self.fallback(key, whole))
    }

    /// A count, or its default.
    pub(crate) fn count(&mut self, key: &'static str) -> u32 {
        // The table's range says that it fits.
        u32::try_from(self.integer_or_default(key)).unwrap_or(u32::MAX)
    }

    pub(crate) fn number(&mut self, key: &'static str) -> Option<f64> {
        self.take_as(key, "a number", keys::number)
    }

    /// As [`Section::number`], or its default.
    pub(crate) fn number_or_default(&mut self, key: &'static str) -> f64 {
        self.number(key)
            .unwrap_or_else(|| self.fallback(key, keys::number))
    }

    /// A span such as `"1s"` or `"250ms"`.
    pub(crate) fn span(&mut self, key: &'static str) -> Option<Duration> {
        self.take_as(key, "a time such as \"1s\" or \"250ms\"", duration)
    }

    /// As [`Section::span`], or its default.
    pub(crate) fn span_or_default(&mut self, key: &'static str) -> Duration {
        self.span(key)
            .unwrap_or_else(|| self.fallback(key, duration))
    }

    /// As [`Section::text`], or its default.
    pub(crate) fn text_or_default(&mut self, key: &'static str) -> String {
        self.text(key)
            .unwrap_or_else(|| self.fallback(key, |v| v.as_str().map(str::to_owned)))
    }

    /// As [`Section::choice`], or its default.
    pub(crate) fn choice_or_default<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> T {
        let named = |v: &Value| {
            let name = v.as_str()?;
            choices.iter().find(|(n, _)| *n == name).map(|(_, c)| *c)
        };
        self.choice(key, choices)
            .unwrap_or_else(|| self.fallback(key, named))
    }

    /// One of `choices`, by name.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let wanted = format!("one of {}", names.join(", "));
        self.take_as(key, &wanted, |v| {
            let name = v.as_str()?;
            choices.iter().find(|(n, _)| *n == name).map(|(_, c)| *c)
        })
    }

    /// A list of some of `choices`, by name.
    pub(crate) fn choices<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Option<Vec<T>> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let wanted = format!("a list of {}", names.join(", "));
        let find = |v: &Value| {
            let name = v.as_str()?;
            choices.iter().find(|(n, _)| *n == name).map(|(_, c)| *c)
        };
        self.take_as(key, &wanted, |v| v.as_array()?.iter().map(find).collect())
    }

    /// The value, or a problem when the key is missing. A key with another problem is not missing.
    pub(crate) fn required<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&mut Self, &'static str) -> Option<T>,
    ) -> Option<T> {
        if self.has(key) {
            return read(self, key);
        }
        self.known.insert(key);
        self.problem(key, format!("is missing: {wanted}"));
        None
    }

    pub(crate) fn section(&mut self, key: &'static str) -> Option<Self> {
        let path = self.path(key);
        let table = self.take_as(key, "a table", |v| v.as_table().cloned())?;
        Some(Self::at(path, table, &self.problems))
    }

    /// An array of tables; its entries are called `key[0]`, `key[1]` and so on.
    pub(crate) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let path = self.path(key);
        let entries = self.take_as(key, "a list of tables ([[…]])", |v| {
            v.as_array()?
                .iter()
                .map(|entry| entry.as_table().cloned())
                .collect::<Option<Vec<Table>>>()
        });
        let at = |(i, table)| Self::at(format!("{path}[{i}]"), table, &self.problems);
        entries
            .unwrap_or_default()
            .into_iter()
            .enumerate()
            .map(at)
            .collect()
    }

    /// Reports the keys that nobody asked for.
    pub(crate) fn finish(self) {
        let known: Vec<&str> = self.known.iter().copied().collect();
        for key in self.table.keys() {
            self.problem(
                key,
                format!("is unknown: remove it, or use one of {}", known.join(", ")),
            );
        }
    }
}

fn whole(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|i| u64::try_from(i).ok())
}

fn duration(value: &Value) -> Option<Duration> {
    value
        .as_str()
        .and_then(|text| humantime::parse_duration(text).ok())
}
