//! Scenarios as the command line names them: a preset, or a TOML file.

use std::path::{Path, PathBuf};

use blkpilot_env::sim::{Scenario, ScenarioErrors, presets};
use thiserror::Error;

/// Why there is no scenario.
#[derive(Debug, Error)]
pub enum ScenarioFileError {
    /// Neither a preset nor a file.
    #[error("scenario `{name}`: no preset has this name and no file: give a TOML file or one of {}", presets::NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A file that cannot be read.
    #[error("{}: cannot read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no scenario, or one that does not hold together.
    #[error("{}", lines(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it.
        problems: ScenarioErrors,
    },
}

fn lines(path: &Path, problems: &ScenarioErrors) -> String {
    let line = |(key, problem): &(String, String)| format!("{}: {key} {problem}", path.display());
    let lines: Vec<String> = problems.0.iter().map(line).collect();
    lines.join("\n")
}

/// The preset of that name, or the scenario in that file.
///
/// # Errors
/// `Unknown`, `Read`, `Invalid`.
pub fn load(name: &str) -> Result<Scenario, ScenarioFileError> {
    if let Some(preset) = presets::by_name(name) {
        return Ok(preset);
    }
    let path = PathBuf::from(name);
    if !path.exists() {
        return Err(ScenarioFileError::Unknown {
            name: name.to_owned(),
        });
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(ScenarioFileError::Read { path, source }),
    };
    Scenario::parse(&text).map_err(|problems| ScenarioFileError::Invalid { path, problems })
}
