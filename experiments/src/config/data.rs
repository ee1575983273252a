//! The decision log that a learner from a log learns from: `[data]`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Table;

use super::check::Check;
use super::training::LearnerConfig;

/// What is learnt from, where nothing is played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// Directory of the decision log.
    pub log: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawData {
    log: Option<PathBuf>,
}

/// `learner`: as far as it could be read.
pub(super) fn data(
    table: Option<Table>,
    base: &Path,
    learner: Option<&LearnerConfig>,
    check: &mut Check,
) -> Option<Data> {
    let is_given = table.is_some();
    let raw: RawData = check.read("data", table.unwrap_or_default());
    match learner {
        Some(LearnerConfig::Offline(_)) => {
            let wanted = "the directory of a decision log, from the config's directory on; or give --log DIR";
            let log = check.need("data.log", raw.log, wanted)?;
            Some(Data {
                log: base.join(log),
            })
        }
        Some(other) if is_given => {
            let text = format!(
                "is only for learners from a log, and {} plays: remove it",
                other.name()
            );
            check.problem("data", text);
            None
        }
        _ => None,
    }
}
