//! The policy that the configuration asks for.

use std::path::Path;

use blkpilot_env::EnvSpec;
use blkpilot_models::baseline::{KeepDefault, LeastLoaded, RandomPolicy, RoundRobin};
use blkpilot_models::{Checkpoint, CheckpointError, NetworkPolicy, Policy, PolicyError, Selection};

use crate::config::{self, PolicyConfig};
use crate::decision::PolicyRef;

/// Why a policy was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint cannot be served here.
    #[error("policy.checkpoint = {dir}: {source}{}", cause(source))]
    Checkpoint {
        /// Its directory.
        dir: String,
        /// What is wrong with it.
        #[source]
        source: CheckpointError,
    },
    /// The baseline cannot act on this host.
    #[error("policy.baseline = \"{name}\": {source}")]
    Baseline {
        /// Its name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: PolicyError,
    },
}

fn cause(error: &CheckpointError) -> String {
    std::error::Error::source(error).map_or_else(String::new, |cause| format!(" ({cause})"))
}

/// Loads a policy and checks that it fits.
///
/// # Errors
/// Whatever is wrong with it; for a checkpoint made for another spec, the first difference.
pub fn load(
    config: &PolicyConfig,
    spec: &EnvSpec,
) -> Result<(Box<dyn Policy>, PolicyRef), LoadError> {
    match config {
        PolicyConfig::Baseline(name) => {
            let policy = baseline(name, spec).map_err(|source| LoadError::Baseline {
                name: name.clone(),
                source,
            })?;
            let policy_ref = PolicyRef {
                name: name.clone(),
                version: String::new(),
            };
            Ok((policy, policy_ref))
        }
        PolicyConfig::Checkpoint { dir, selection } => {
            checkpoint(dir, *selection, spec).map_err(|source| LoadError::Checkpoint {
                dir: dir.display().to_string(),
                source,
            })
        }
    }
}

fn baseline(name: &str, spec: &EnvSpec) -> Result<Box<dyn Policy>, PolicyError> {
    Ok(match name {
        "random" => Box::new(RandomPolicy),
        "round_robin" => Box::new(RoundRobin::new(spec)?),
        "least_loaded" => Box::new(LeastLoaded::new(spec)?),
        // The configuration has checked the name against `config::BASELINES`.
        _ => Box::new(KeepDefault),
    })
}

fn checkpoint(
    dir: &Path,
    selection: config::Selection,
    spec: &EnvSpec,
) -> Result<(Box<dyn Policy>, PolicyRef), CheckpointError> {
    let checkpoint = Checkpoint::load(dir)?;
    checkpoint.check_fits(spec)?;
    let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy();
    let selection = match selection {
        config::Selection::Greedy => Selection::Greedy,
        config::Selection::Sample => Selection::Sample,
    };
    let policy = NetworkPolicy::new(name.clone(), &checkpoint, selection)?;
    let policy_ref = PolicyRef {
        name: name.into_owned(),
        version: checkpoint.manifest.tensors_sha256,
    };
    Ok((Box::new(policy), policy_ref))
}
