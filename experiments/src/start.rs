//! The policy that a run begins from: fine-tuning.

use std::path::Path;

use blkpilot_env::EnvSpec;
use blkpilot_models::Checkpoint;
use serde::{Deserialize, Serialize};

use crate::LabError;

/// Directory of the copy within that of the run.
pub const START_DIR: &str = "start";

/// Which policy a run began from. The copy in the run's directory is that policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// SHA-256 of its tensors.
    pub policy_sha256: String,
    /// Who learnt it.
    pub algorithm: String,
    /// Host-steps that it was learnt from.
    pub env_steps: u64,
}

impl Start {
    /// Reads a policy and sees whether it fits.
    ///
    /// # Errors
    /// `Start`, with the difference between the specs.
    pub(crate) fn load(dir: &Path, spec: &EnvSpec) -> Result<(Self, Checkpoint), LabError> {
        let loaded = Checkpoint::load(dir)
            .and_then(|checkpoint| checkpoint.check_fits(spec).map(|()| checkpoint));
        let checkpoint = loaded.map_err(|source| LabError::Start {
            dir: dir.to_owned(),
            source,
        })?;
        let manifest = &checkpoint.manifest;
        let start = Self {
            policy_sha256: manifest.tensors_sha256.clone(),
            algorithm: manifest.algorithm.clone(),
            env_steps: manifest.env_steps,
        };
        Ok((start, checkpoint))
    }

    /// Keeps a copy of the policy with the run.
    ///
    /// # Errors
    /// `Save`.
    pub(crate) fn keep(checkpoint: &Checkpoint, out: &Path) -> Result<(), LabError> {
        let mut copy = checkpoint.clone();
        copy.save(&out.join(START_DIR))
            .map_err(|source| LabError::Save { source })
    }
}
