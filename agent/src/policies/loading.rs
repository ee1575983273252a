//! The policies that the configuration asks for.

use std::path::Path;

use blkpilot_env::EnvSpec;
use blkpilot_models::baseline::{KeepDefault, LeastLoaded, RandomPolicy, RoundRobin};
use blkpilot_models::{Checkpoint, CheckpointError, NetworkPolicy, Policy, PolicyError, Selection};

use super::store::{self, PolicyStore, StoreError, Version, VersionName};
use crate::config::{self, PolicyConfig};
use crate::decision::PolicyRef;
use crate::decision::chain::Loaded;
use crate::decision::learner::{Learner, LearnerError};

/// Why a policy was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint cannot be served here.
    #[error("{setting}: {source}{}", cause(source))]
    Checkpoint {
        /// What the configuration says, such as `policy.checkpoint = DIR`.
        setting: String,
        /// What is wrong with it.
        #[source]
        source: CheckpointError,
    },
    /// What was promoted cannot be served.
    #[error(
        "{source}; `blkpilot promote --undo` goes back, policy.promoted = \"ignore\" passes it by"
    )]
    Promoted {
        /// What is wrong with it.
        #[source]
        source: StoreError,
    },
    /// The baseline cannot act on this host.
    #[error("{setting}: {source}")]
    Baseline {
        /// What the configuration says, such as `candidate.baseline = "random"`.
        setting: String,
        /// What is wrong with it.
        #[source]
        source: PolicyError,
    },
    /// What a bandit has learned is of no use, or cannot be read.
    #[error("{setting}: {source}")]
    Learner {
        /// What the configuration says, such as `policy.bandit = "linucb"`.
        setting: String,
        /// What is wrong.
        #[source]
        source: LearnerError,
    },
}

fn cause(error: &CheckpointError) -> String {
    std::error::Error::source(error).map_or_else(String::new, |cause| format!(" ({cause})"))
}

/// The production policy: the promoted one where there is one and the configuration does not ignore it, else
/// the configuration's. Nothing is written: what a build without a store had promoted is read where it is.
///
/// # Errors
/// Whatever is wrong with it; nothing is served in its place.
pub fn production(config: &config::Config, spec: &EnvSpec) -> Result<Served, LoadError> {
    let data_dir = &config.service.data_dir;
    let promoted = match config.promoted {
        config::Promotion::Serve => promoted(data_dir, spec)?,
        config::Promotion::Ignore => None,
    };
    let Some(promoted) = promoted else {
        return configured(config, spec);
    };
    let reference = &promoted.loaded.reference;
    tracing::info!(
        policy = reference.name,
        version = reference.version,
        "serving the promoted policy in place of the configuration's"
    );
    Ok(promoted)
}

/// The configuration's production policy.
///
/// # Errors
/// As [`load`].
pub fn configured(config: &config::Config, spec: &EnvSpec) -> Result<Served, LoadError> {
    load(&config.policy, "policy", spec, &config.service.data_dir)
}

fn promoted(data_dir: &Path, spec: &EnvSpec) -> Result<Option<Served>, LoadError> {
    let unusable = |source| LoadError::Promoted { source };
    let store = PolicyStore::open_to_read(data_dir).map_err(unusable)?;
    let standing = store.as_ref().map(PolicyStore::standing).transpose();
    let standing = standing.map_err(unusable)?.unwrap_or_default();
    if let (Some(store), Some(version)) = (&store, standing.production) {
        return stored(store, &version, spec).map(Some);
    }
    let older = store::promoted_before(data_dir).map_err(unusable)?;
    let older = older.map(|older| {
        let named = (older.policy, older.selection);
        let setting = format!("{}/promoted/policy", data_dir.display());
        served(older.checkpoint, named, spec)
            .map_err(|source| LoadError::Checkpoint { setting, source })
    });
    older.transpose()
}

/// Loads a version of the store, and checks that it fits.
///
/// # Errors
/// Whatever is wrong with it; for one made for another spec, the first difference.
pub fn stored(store: &PolicyStore, version: &Version, spec: &EnvSpec) -> Result<Served, LoadError> {
    let checkpoint = store.checkpoint(version);
    let checkpoint = checkpoint.map_err(|source| LoadError::Promoted { source })?;
    let named = (version.name.policy.clone(), version.selection);
    let setting = version.name.to_string();
    let served = served(checkpoint, named, spec);
    let served = served.map_err(|source| LoadError::Checkpoint { setting, source })?;
    Ok(Served {
        version: Some(version.name.clone()),
        ..served
    })
}

/// Loads the policy of a table, `policy` or `candidate`, and checks that it fits.
///
/// # Errors
/// Whatever is wrong with it; for a checkpoint made for another spec, the first difference.
pub fn load(
    config: &PolicyConfig,
    table: &str,
    spec: &EnvSpec,
    data_dir: &Path,
) -> Result<Served, LoadError> {
    match config {
        PolicyConfig::Baseline(name) => {
            let policy = baseline(name, spec).map_err(|source| LoadError::Baseline {
                setting: format!("{table}.baseline = \"{name}\""),
                source,
            })?;
            let reference = PolicyRef {
                name: name.clone(),
                version: String::new(),
            };
            Ok(Served {
                loaded: Loaded { policy, reference },
                network: None,
                learner: None,
                version: None,
            })
        }
        PolicyConfig::Bandit(config) => {
            let name = config.algorithm.name();
            let learner = Learner::open(data_dir, spec, *config);
            let learner = learner.map_err(|source| LoadError::Learner {
                setting: format!("{table}.bandit = \"{name}\""),
                source,
            })?;
            let reference = PolicyRef {
                name: name.to_owned(),
                version: String::new(),
            };
            Ok(Served {
                loaded: Loaded {
                    policy: learner.policy(),
                    reference,
                },
                network: None,
                learner: Some(learner),
                version: None,
            })
        }
        PolicyConfig::Checkpoint { dir, selection } => {
            checkpoint(dir, *selection, spec).map_err(|source| LoadError::Checkpoint {
                setting: format!("{table}.checkpoint = {}", dir.display()),
                source,
            })
        }
    }
}

/// A policy that fits.
pub struct Served {
    /// It, with its name and version.
    pub loaded: Loaded,
    /// The checkpoint it is from, and how its scores become a choice; `None` for a baseline.
    pub network: Option<(Checkpoint, Selection)>,
    /// What it learns with; `None` for one that does not.
    pub learner: Option<Learner>,
    /// Its name in the policy store, if it is from there.
    pub version: Option<VersionName>,
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
) -> Result<Served, CheckpointError> {
    let checkpoint = Checkpoint::load(dir)?;
    let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy();
    let selection = match selection {
        config::Selection::Greedy => Selection::Greedy,
        config::Selection::Sample => Selection::Sample,
    };
    served(checkpoint, (name.into_owned(), selection), spec)
}

fn served(
    checkpoint: Checkpoint,
    (name, selection): (String, Selection),
    spec: &EnvSpec,
) -> Result<Served, CheckpointError> {
    checkpoint.check_fits(spec)?;
    let policy = NetworkPolicy::new(name.clone(), &checkpoint, selection)?;
    let reference = PolicyRef {
        name,
        version: checkpoint.manifest.tensors_sha256.clone(),
    };
    Ok(Served {
        loaded: Loaded {
            policy: Box::new(policy),
            reference,
        },
        network: Some((checkpoint, selection)),
        learner: None,
        version: None,
    })
}
