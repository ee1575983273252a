//! What of an offline learner stands in no other part of a checkpoint.

use blkpilot_env::Rng;
use blkpilot_models::{Checkpoint, Manifest};
use serde::{Deserialize, Serialize};

use super::{Algorithm, Dataset, Offline, OfflineConfig, Trained};
use crate::LearnError;
use crate::adam::{Adam, AdamConfig};
use crate::stored::{Stored, Tensors, write_moments, write_weights};

/// Key of the learner's state in a manifest.
const STATE: &str = "offline";
/// Whose tensors are whose.
const CRITIC: &str = "critic.";
const TARGET: &str = "target.";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    steps: u64,
    /// Steps of Adam, which are those of the policy's and of the critic's optimiser alike.
    adam_steps: u64,
    rng: Rng,
    /// What the log is known by.
    log: String,
}

pub(super) fn write(
    learner: &Offline,
    manifest: &mut Manifest,
    tensors: &mut Tensors,
) -> Result<(), LearnError> {
    let state = State {
        steps: learner.steps,
        adam_steps: learner.policy.adam.steps(),
        rng: learner.rng.clone(),
        log: learner.data.digest.clone(),
    };
    let state = serde_json::to_value(state).expect("numbers and text");
    manifest.extra.insert(STATE.to_owned(), state);
    write_moments("", learner.policy.adam.moments(), tensors)?;
    if let Some(critic) = &learner.critic {
        write_weights(CRITIC, &critic.network, tensors)?;
        write_moments(CRITIC, critic.adam.moments(), tensors)?;
    }
    if let Some(target) = &learner.target {
        write_weights(TARGET, target, tensors)?;
    }
    Ok(())
}

pub(super) fn read(
    checkpoint: &Checkpoint,
    config: OfflineConfig,
    data: Dataset,
) -> Result<Offline, LearnError> {
    let Checkpoint { manifest, tensors } = checkpoint;
    let (found, wanted) = (&manifest.algorithm, config.algorithm.name());
    if found != wanted {
        return Err(no_state(format!("it is of {found}, and not of {wanted}")));
    }
    let state = manifest.extra.get(STATE).cloned().unwrap_or_default();
    let state: State = serde_json::from_value(state)
        .map_err(|error| no_state(format!("extra.{STATE} of its manifest: {error}")))?;
    if state.log != data.digest {
        return Err(no_state(format!(
            "it learnt from a log with SHA-256 {}, and this one has {}: the log has changed since; put it back, or train anew",
            state.log, data.digest
        )));
    }
    let stored = Stored { manifest, tensors };
    let (critic, target) = match config.algorithm {
        Algorithm::Bc => (None, None),
        Algorithm::Cql(_) => (None, Some(stored.network(TARGET)?)),
        Algorithm::Iql(_) => (
            Some(trained(stored, CRITIC, state.adam_steps)?),
            Some(stored.network(TARGET)?),
        ),
    };
    Ok(Offline {
        spec: manifest.spec.clone(),
        config,
        seed: manifest.seed,
        data,
        policy: trained(stored, "", state.adam_steps)?,
        critic,
        target,
        rng: state.rng,
        steps: state.steps,
    })
}

fn trained(stored: Stored<'_>, of: &str, adam_steps: u64) -> Result<Trained, LearnError> {
    let network = stored.network(of)?;
    let moments = stored.moments(of, &network)?;
    Ok(Trained {
        adam: Adam::resume(AdamConfig::default(), adam_steps, moments),
        network,
    })
}

fn no_state(problem: String) -> LearnError {
    LearnError::NoState { problem }
}
