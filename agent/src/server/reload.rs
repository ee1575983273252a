//! A configuration that is read again while the service runs: what of it is taken, and what waits for a
//! restart.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use blkpilot_env::reward::RewardConfig;
use toml::{Table, Value};

use crate::config::keys::{self, Kind, Reload};
use crate::config::{Config, ConfigError};
use crate::owner::handle::{HostHandle, Reloadable};
use crate::wire::status::Failure;

/// Why nothing of a configuration was taken: the one before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It cannot be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The owner of the host did not take it.
    #[error("{}", .0.message())]
    Owner(Failure),
}

/// What came of a reload: keys by their paths in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Keys that have changed and hold now.
    pub taken: Vec<String>,
    /// Keys that have changed and wait for a restart.
    pub need_restart: Vec<String>,
    /// What could not be taken now, and the way out.
    pub left: Vec<String>,
}

/// Reads a configuration again and again.
#[derive(Debug)]
pub struct Reloader {
    file: PathBuf,
    /// What was read last and taken.
    text: String,
    /// What it says of the reward.
    reward: RewardConfig,
    host: HostHandle,
}

impl Reloader {
    /// Of a file with this text, which says this of the reward, and by which the host is looked after now.
    #[must_use]
    pub fn new(file: &Path, text: String, reward: RewardConfig, host: HostHandle) -> Self {
        Self {
            file: file.to_owned(),
            text,
            reward,
            host,
        }
    }

    /// Reads the file, checks all of it, and lets the host's owner take what it can.
    ///
    /// # Errors
    /// `Config` with every problem, or `Owner`; then nothing has changed.
    pub async fn reload(&mut self) -> Result<Report, ReloadError> {
        let text = Config::text_of(&self.file)?;
        let config = Config::parse(&self.file, &text)?;
        let changed = changed(&self.text, &text);
        let (taken, need_restart): (Vec<String>, Vec<String>) =
            changed.into_iter().partition(|path| is_taken(path));
        let reward = (config.reward != self.reward).then_some(config.reward);
        let settings = Reloadable {
            default_mode: config.host.mode,
            guests: config.host.guests,
            guard: config.guard,
            neighbours: config.neighbours,
            log: config.log,
            reward,
        };
        let done = self.host.reload(settings);
        let done = done.await.map_err(ReloadError::Owner)?;
        self.text = text;
        // One that was not taken is tried again with the next reload.
        if done.left.is_empty() {
            self.reward = config.reward;
        }
        Ok(Report {
            taken,
            need_restart,
            left: done.left,
        })
    }
}

/// The keys that differ between two texts, which both can be read.
fn changed(before: &str, after: &str) -> Vec<String> {
    let values = |text: &str| {
        let mut found = BTreeMap::new();
        flatten("", &text.parse().unwrap_or_default(), &mut found);
        found
    };
    let (before, after) = (values(before), values(after));
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differ = paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path));
    differ.cloned().collect()
}

/// Every value by its path. A table in a list goes by its name where it has one, so that one that is put before
/// it does not change it.
fn flatten(path: &str, table: &Table, found: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        match value {
            Value::Table(table) => {
                // That it is there says something by itself.
                found.insert(path.clone(), Value::Boolean(true));
                flatten(&path, table, found);
            }
            Value::Array(entries) if entries.iter().any(Value::is_table) => {
                for (i, entry) in entries.iter().filter_map(Value::as_table).enumerate() {
                    let named = ["name", "match"].iter().find_map(|key| entry.get(*key));
                    let id = named
                        .and_then(Value::as_str)
                        .map_or_else(|| i.to_string(), str::to_owned);
                    flatten(&format!("{path}[{id}]"), entry, found);
                }
            }
            value => {
                found.insert(path, value.clone());
            }
        }
    }
}

/// Whether a reload takes a key, or all that is in a table.
fn is_taken(path: &str) -> bool {
    let Some(key) = keys::find(path) else {
        return false;
    };
    match key.kind {
        Kind::Nested => keys::within(path).any(|key| key.reload == Reload::AtOnce),
        _ => key.reload == Reload::AtOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_are_named_whatever_else_moves() {
        let before = "
[host]
mode = \"advise\"
uri = \"a\"
[[guest]]
name = \"web\"
mode = \"auto\"
";
        let after = "
[host]
mode = \"observe\"
uri = \"b\"
[[guest]]
name = \"db\"
opt_in = true
[[guest]]
name = \"web\"
mode = \"auto\"
[guard]
dwell = \"1s\"
";
        let paths = changed(before, after);
        assert_eq!(
            paths,
            [
                "guard",
                "guard.dwell",
                "guest[db].name",
                "guest[db].opt_in",
                "host.mode",
                "host.uri"
            ]
        );
        let left: Vec<&String> = paths.iter().filter(|path| !is_taken(path)).collect();
        assert_eq!(left, ["host.uri"]);
    }
}
