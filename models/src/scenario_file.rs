//! Scenarios as command lines and configs name them: a preset, or a TOML file.

use std::path::{Path, PathBuf};

use blkpilot_env::sim::{Scenario, ScenarioErrors, presets};
use thiserror::Error;

/// Why there is no scenario.
#[derive(Debug, Error)]
pub enum ScenarioFileError {
    /// Neither a preset nor a file.
    #[error(
        "scenario `{name}`: no preset has this name, and there is no file {}: give a TOML file or one of {}",
        path.display(),
        presets::NAMES.join(", ")
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The file that it would have been.
        path: PathBuf,
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
    #[error("{}", self.lines().join("\n"))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it.
        problems: ScenarioErrors,
    },
}

impl ScenarioFileError {
    /// Everything that is wrong, with its cause: one line each, for whoever lists it among other
    /// problems.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Unknown { .. } => vec![self.to_string()],
            Self::Read { source, .. } => vec![format!("{self}: {source}")],
            Self::Invalid { path, problems } => {
                let line = |(key, problem): &(String, String)| {
                    format!("{}: {key} {problem}", path.display())
                };
                problems.0.iter().map(line).collect()
            }
        }
    }
}

/// The preset of that name, or else the scenario in that file. A relative path starts at `base`: the
/// directory of the config that names it, or `""` for the working directory. A file that is called like
/// a preset is reached as `./NAME`.
///
/// # Errors
/// `Unknown`, `Read`, `Invalid`.
pub fn load(name: &str, base: &Path) -> Result<Scenario, ScenarioFileError> {
    if let Some(preset) = presets::by_name(name) {
        return Ok(preset);
    }
    let path = base.join(name);
    if !path.exists() {
        return Err(ScenarioFileError::Unknown {
            name: name.to_owned(),
            path,
        });
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(ScenarioFileError::Read { path, source }),
    };
    Scenario::parse(&text).map_err(|problems| ScenarioFileError::Invalid { path, problems })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with `own.toml`, the preset `mixed` with some text replaced.
    fn own(from: &str, to: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let text = presets::text("mixed").unwrap().replace(from, to);
        std::fs::write(dir.path().join("own.toml"), text).unwrap();
        dir
    }

    #[test]
    fn a_name_is_a_preset_and_a_relative_path_starts_at_the_base() {
        let dir = own("name = \"mixed\"", "name = \"own\"");
        assert_eq!(load("mixed", dir.path()).unwrap(), presets::mixed());
        assert_eq!(load("own.toml", dir.path()).unwrap().name, "own");
        let absolute = dir.path().join("own.toml");
        let absolute = absolute.to_str().unwrap();
        assert_eq!(load(absolute, Path::new("/nowhere")).unwrap().name, "own");
    }

    #[test]
    fn a_preset_goes_before_a_file_of_its_name() {
        let dir = own("name = \"mixed\"", "name = \"own\"");
        std::fs::rename(dir.path().join("own.toml"), dir.path().join("mixed")).unwrap();
        assert_eq!(load("mixed", dir.path()).unwrap().name, "mixed");
        assert_eq!(load("./mixed", dir.path()).unwrap().name, "own");
    }

    #[test]
    fn an_unknown_name_lists_the_presets_and_the_file_that_was_looked_for() {
        let error = load("atlantis", Path::new("configs")).unwrap_err();
        assert!(matches!(error, ScenarioFileError::Unknown { .. }));
        let text = error.to_string();
        assert!(text.contains("configs/atlantis"), "{text}");
        assert!(
            presets::NAMES.iter().all(|name| text.contains(name)),
            "{text}"
        );
    }

    #[test]
    fn each_problem_of_a_file_is_a_line_that_names_the_file() {
        let dir = own("cpus = 1", "cpus = 0");
        let error = load("own.toml", dir.path()).unwrap_err();
        assert_eq!(error.lines().len(), 4, "{error}");
        let start = format!("{}: channels[", dir.path().join("own.toml").display());
        assert!(error.lines().iter().all(|line| line.starts_with(&start)));
        assert_eq!(error.to_string(), error.lines().join("\n"));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_cause() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(".", dir.path()).unwrap_err();
        assert!(matches!(error, ScenarioFileError::Read { .. }), "{error}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.lines()[0].contains(&cause), "{error}");
    }
}
