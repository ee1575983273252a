//! Policies that are named on the command line.

use std::path::Path;

use blkpilot_env::features::kvm_host_spec;
use blkpilot_evaluate::{NetworkTarget, TargetPolicy, UniformTarget};
use blkpilot_models::{Checkpoint, Selection};
use clap::ValueEnum;

use crate::cli::CliError;
use crate::policies::judging::gamma_of;

/// The baseline whose probabilities follow from the mask alone.
pub(in crate::cli) const RANDOM: &str = "random";

/// How a network's scores become a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Choice {
    /// The best level, as it is served by default: weights are 0 where the log did another thing
    Greedy,
    /// Drawn by the policy's probabilities
    Sample,
}

/// A policy, and the discount that it was trained with, if its checkpoint says so.
pub(in crate::cli) struct Named {
    pub(in crate::cli) policy: Box<dyn TargetPolicy>,
    pub(in crate::cli) gamma: Option<f64>,
}

/// The policy of a checkpoint's directory, or `random`. `like`: a checkpoint whose spec the latter takes.
pub(in crate::cli) fn load(
    named: &Path,
    like: Option<&Path>,
    choice: Choice,
    epsilon: f64,
) -> Result<Named, CliError> {
    if named.as_os_str() == RANDOM && !named.is_dir() {
        let like = like.filter(|like| like.is_dir());
        let spec = match like {
            Some(like) => checkpoint(like)?.manifest.spec,
            None => kvm_host_spec(&[]),
        };
        let policy = Box::new(UniformTarget::new(spec));
        return Ok(Named {
            policy,
            gamma: None,
        });
    }
    let checkpoint = checkpoint(named)?;
    let selection = match choice {
        Choice::Greedy => Selection::Greedy,
        Choice::Sample => Selection::Sample,
    };
    let name = named.file_name().unwrap_or(named.as_os_str());
    let policy = NetworkTarget::new(name.to_string_lossy(), &checkpoint, selection, epsilon);
    Ok(Named {
        policy: Box::new(policy.map_err(|error| refused(named, &error))?),
        gamma: gamma_of(&checkpoint.manifest.config),
    })
}

fn checkpoint(dir: &Path) -> Result<Checkpoint, CliError> {
    Checkpoint::load(dir).map_err(|error| refused(dir, &error))
}

pub(in crate::cli) fn refused(dir: &Path, error: &blkpilot_models::CheckpointError) -> CliError {
    let cause =
        std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    let hint = if dir.exists() {
        ""
    } else {
        "; name the directory of a checkpoint, or `random`"
    };
    CliError::Failed(format!("{error}{cause}{hint}"))
}
