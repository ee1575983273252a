//! Networks and Adam's moments among the tensors of a checkpoint: beside those of the policy, behind [`OPTIMISER`] and
//! a prefix that says whose they are.

use std::collections::BTreeMap;

use blkpilot_models::checkpoint::OPTIMISER;
use blkpilot_models::{Manifest, Tensor as Plain};
use tch::{Kind, Tensor};

use crate::LearnError;
use crate::adam::Moments;
use crate::network::{Network, plain};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Plain>;

/// Adds the weights of a network that is not the policy's.
pub(crate) fn write_weights(
    of: &str,
    network: &Network,
    tensors: &mut Tensors,
) -> Result<(), LearnError> {
    for (name, tensor) in network.tensors()? {
        tensors.insert(format!("{OPTIMISER}{of}{name}"), tensor);
    }
    Ok(())
}

/// Adds the moments of a network's parameters; `of` is empty for the policy's.
pub(crate) fn write_moments(
    of: &str,
    moments: &BTreeMap<String, Moments>,
    tensors: &mut Tensors,
) -> Result<(), LearnError> {
    for (name, Moments { first, second }) in moments {
        for (moment, tensor) in [("first", first), ("second", second)] {
            tensors.insert(format!("{OPTIMISER}{of}{moment}.{name}"), plain(tensor)?);
        }
    }
    Ok(())
}

/// What a checkpoint holds.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) tensors: &'a Tensors,
}

impl Stored<'_> {
    /// The policy's network, or with a prefix another one.
    pub(crate) fn network(&self, of: &str) -> Result<Network, LearnError> {
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
        let network = Network::from_tensors(spec, *architecture, &own, Kind::Float);
        Ok(network?)
    }

    /// Adam's moments of a network's parameters, by their names.
    pub(crate) fn moments(
        &self,
        of: &str,
        network: &Network,
    ) -> Result<BTreeMap<String, Moments>, LearnError> {
        let parameters = network.parameters().iter();
        let of_one = |(name, parameter): (&String, &Tensor)| {
            let shape = parameter.size();
            let read = |moment: &str| -> Result<Tensor, LearnError> {
                let name = format!("{OPTIMISER}{of}{moment}.{name}");
                let Plain { data, .. } = self.tensor(&name, &shape)?;
                Ok(Tensor::f_from_slice(data)?.f_view(shape.as_slice())?)
            };
            let (first, second) = (read("first")?, read("second")?);
            Ok((name.clone(), Moments { first, second }))
        };
        parameters.map(of_one).collect()
    }

    fn tensor(&self, name: &str, wanted: &[i64]) -> Result<&Plain, LearnError> {
        let no_state = |problem| LearnError::NoState { problem };
        let missing = || no_state(format!("it has no tensor {name}"));
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        let shape: Vec<i64> = tensor.shape.iter().map(|size| *size as i64).collect();
        if shape != wanted {
            return Err(no_state(format!("{name} is {shape:?}, and not {wanted:?}")));
        }
        Ok(tensor)
    }
}
