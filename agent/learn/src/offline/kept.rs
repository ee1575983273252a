//! What of an offline learner stands in no other part of a checkpoint.

use std::collections::BTreeMap;

use blkpilot_env::Rng;
use blkpilot_models::checkpoint::OPTIMISER;
use blkpilot_models::{Checkpoint, Manifest, Tensor as Plain};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{Algorithm, Dataset, Offline, OfflineConfig, Trained};
use crate::LearnError;
use crate::adam::{Adam, AdamConfig, Moments};
use crate::network::{Network, plain};

/// Key of the learner's state in a manifest.
const STATE: &str = "offline";
/// Whose tensors are whose, behind [`OPTIMISER`].
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

type Tensors = BTreeMap<String, Plain>;

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
    write_moments("", &learner.policy.adam, tensors)?;
    if let Some(critic) = &learner.critic {
        write_weights(CRITIC, &critic.network, tensors)?;
        write_moments(CRITIC, &critic.adam, tensors)?;
    }
    if let Some(target) = &learner.target {
        write_weights(TARGET, target, tensors)?;
    }
    Ok(())
}

fn write_weights(of: &str, network: &Network, tensors: &mut Tensors) -> Result<(), LearnError> {
    for (name, tensor) in network.tensors()? {
        tensors.insert(format!("{OPTIMISER}{of}{name}"), tensor);
    }
    Ok(())
}

fn write_moments(of: &str, adam: &Adam, tensors: &mut Tensors) -> Result<(), LearnError> {
    for (name, Moments { first, second }) in adam.moments() {
        for (moment, tensor) in [("first", first), ("second", second)] {
            let name = format!("{OPTIMISER}{of}{moment}.{name}");
            tensors.insert(name, plain(tensor)?);
        }
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
    let reading = Reading { manifest, tensors };
    let (critic, target) = match config.algorithm {
        Algorithm::Bc => (None, None),
        Algorithm::Cql(_) => (None, Some(reading.network(TARGET)?)),
        Algorithm::Iql(_) => (
            Some(reading.trained(CRITIC, state.adam_steps)?),
            Some(reading.network(TARGET)?),
        ),
    };
    Ok(Offline {
        spec: manifest.spec.clone(),
        config,
        seed: manifest.seed,
        data,
        policy: reading.trained("", state.adam_steps)?,
        critic,
        target,
        rng: state.rng,
        steps: state.steps,
    })
}

struct Reading<'a> {
    manifest: &'a Manifest,
    tensors: &'a Tensors,
}

impl Reading<'_> {
    fn trained(&self, of: &str, adam_steps: u64) -> Result<Trained, LearnError> {
        let network = self.network(of)?;
        let mut moments = BTreeMap::new();
        for name in network.parameters().keys() {
            let of = |moment: &str| -> Result<Tensor, LearnError> {
                let shape = network.parameters()[name].size();
                let name = format!("{OPTIMISER}{of}{moment}.{name}");
                let Plain { data, .. } = self.tensor(&name, &shape)?;
                Ok(Tensor::f_from_slice(data)?.f_view(shape.as_slice())?)
            };
            let (first, second) = (of("first")?, of("second")?);
            moments.insert(name.clone(), Moments { first, second });
        }
        Ok(Trained {
            adam: Adam::resume(AdamConfig::default(), adam_steps, moments),
            network,
        })
    }

    /// The policy's network, or the one whose tensors are behind a prefix.
    fn network(&self, of: &str) -> Result<Network, LearnError> {
        let Manifest {
            architecture, spec, ..
        } = self.manifest;
        let mut own = Tensors::new();
        for (name, shape) in architecture.tensor_shapes(spec) {
            let stored = match of {
                "" => name.clone(),
                of => format!("{OPTIMISER}{of}{name}"),
            };
            let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
            own.insert(name, self.tensor(&stored, &shape)?.clone());
        }
        Ok(Network::from_tensors(
            spec,
            *architecture,
            &own,
            Kind::Float,
        )?)
    }

    fn tensor(&self, name: &str, wanted: &[i64]) -> Result<&Plain, LearnError> {
        let missing = || no_state(format!("it has no tensor {name}"));
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        let shape: Vec<i64> = tensor.shape.iter().map(|size| *size as i64).collect();
        if shape != wanted {
            return Err(no_state(format!("{name} is {shape:?}, and not {wanted:?}")));
        }
        Ok(tensor)
    }
}

fn no_state(problem: String) -> LearnError {
    LearnError::NoState { problem }
}
