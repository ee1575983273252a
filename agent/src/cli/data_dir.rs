//! The data directory of a service, for commands that work without one.

use std::fs::File;
use std::path::{Path, PathBuf};

use blkpilot_host::HostError;
use blkpilot_log::LogError;
use nix::fcntl::Flock;

use super::CliError;
use crate::config::{Config, HostKind};

/// Where a service keeps its data, and the host that it is about.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) data_dir: PathBuf,
    /// The host's libvirt; `None` where that was not said.
    pub(super) uri: Option<String>,
}

impl Place {
    /// The place that a configuration names, or else the directory. `uri` counts before the
    /// configuration's.
    pub(super) fn find(
        config: Option<&Path>,
        data_dir: Option<&Path>,
        uri: Option<&str>,
    ) -> Result<Self, CliError> {
        let (data_dir, configured) = match (config, data_dir) {
            (Some(file), _) => of_config(file)?,
            (None, Some(dir)) => (dir.to_owned(), None),
            (None, None) => {
                let problem = "name the service's data directory with --data-dir or --config";
                return Err(CliError::Usage(problem.to_owned()));
            }
        };
        Ok(Self {
            data_dir,
            uri: uri.map(str::to_owned).or(configured),
        })
    }
}

fn of_config(file: &Path) -> Result<(PathBuf, Option<String>), CliError> {
    let config = Config::load(file)?;
    match config.host.kind {
        HostKind::Libvirt(libvirt) => Ok((config.service.data_dir, Some(libvirt.uri))),
        HostKind::Simulated { .. } => Err(CliError::Usage(format!(
            "{}: host.kind = \"simulated\": nothing of such a host is journalled",
            file.display()
        ))),
    }
}

/// The lock that a service with this data directory holds: two who turn the knobs of one host would
/// take each other's changes for those of a stranger.
pub(super) fn lock(data_dir: &Path) -> Result<Flock<File>, CliError> {
    blkpilot_log::lock(&data_dir.join("decisions")).map_err(|error| {
        CliError::Failed(match error {
            LogError::Locked { .. } => format!(
                "{}: a service or another command uses this data directory: ask the service instead, or stop it first",
                data_dir.display()
            ),
            other => match std::error::Error::source(&other) {
                Some(cause) => format!("{other}: {cause}"),
                None => other.to_string(),
            },
        })
    })
}

impl From<HostError> for CliError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Disconnected { .. } | HostError::Late { .. } => {
                Self::Unavailable(error.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}
