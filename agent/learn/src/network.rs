//! The actor-critic `pointer_v1` with gradients. What it computes, and the names of its tensors, are
//! those of `blkpilot_models::architecture`.

mod backward;

use std::collections::BTreeMap;

use blkpilot_env::{EnvSpec, Head, Rng};
use blkpilot_models::architecture::has_channels;
use blkpilot_models::{Architecture, Checkpoint, Tensor as Plain};
use tch::{Kind, TchError, Tensor};

use crate::LearnError;
use crate::adam::Parameters;
use crate::initial::initial_tensors;
use crate::turns::{Batch, Lanes};

/// Name of all parameters as one.
pub(crate) const ALL: &str = "all";

/// An actor-critic whose parameters can be trained.
#[derive(Debug)]
pub struct Network {
    architecture: Architecture,
    /// Views of `flat`, each with a gradient of its own.
    parameters: Parameters,
    /// One vector, under [`ALL`]: the parameters one after another in the order of their names.
    flat: Parameters,
    /// As `flat`; what backward passes write to.
    gradient: Tensor,
    actor: Side,
    heads: Vec<HeadNet>,
    critic: Side,
    value: Linear,
    device: Option<DeviceSide>,
}

impl Network {
    /// A network with orthogonal weights drawn from `rng`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(
        spec: &EnvSpec,
        architecture: Architecture,
        rng: &mut Rng,
    ) -> Result<Self, TchError> {
        Self::from_tensors(
            spec,
            architecture,
            &initial_tensors(&architecture, spec, rng),
            Kind::Float,
        )
    }

    /// The network of a policy, to go on learning from, whoever has learnt it.
    ///
    /// # Errors
    /// `Checkpoint` if its spec does not fit `spec`, with the difference; `Torch` if libtorch fails.
    pub(crate) fn of_policy(policy: &Checkpoint, spec: &EnvSpec) -> Result<Self, LearnError> {
        policy.check_fits(spec)?;
        let architecture = policy.manifest.architecture;
        Ok(Self::from_tensors(
            spec,
            architecture,
            &policy.tensors,
            Kind::Float,
        )?)
    }

    /// A network with given weights, computing in `kind`. `tensors` has the names and shapes of
    /// `Architecture::tensor_shapes`; others in it are ignored.
    ///
    /// # Errors
    /// If libtorch fails.
    ///
    /// # Panics
    /// If a tensor is missing: `Checkpoint::verify` refuses such.
    pub fn from_tensors(
        spec: &EnvSpec,
        architecture: Architecture,
        tensors: &BTreeMap<String, Plain>,
        kind: Kind,
    ) -> Result<Self, TchError> {
        let names: Vec<String> = architecture.tensor_shapes(spec).into_keys().collect();
        let data: Vec<f32> = names
            .iter()
            .flat_map(|n| &tensors[n].data)
            .copied()
            .collect();
        let flat = Tensor::f_from_slice(&data)?.f_to_kind(kind)?;
        let gradient = flat.f_zeros_like()?;
        let (mut parameters, mut gradients) = (Parameters::new(), Parameters::new());
        let mut start = 0;
        for name in names {
            let Plain { shape, data } = &tensors[&name];
            let (shape, size): (Vec<i64>, _) = (
                shape.iter().map(|size| *size as i64).collect(),
                data.len() as i64,
            );
            let own = |all: &Tensor| all.f_narrow(0, start, size)?.f_view(shape.as_slice());
            let parameter = own(&flat)?.f_detach()?.f_set_requires_grad(true)?;
            gradients.insert(name.clone(), own(&gradient)?);
            parameters.insert(name, parameter);
            start += size;
        }
        let parts = Parts {
            parameters: &parameters,
            gradients: &gradients,
            spec,
        };
        Ok(Self {
            actor: parts.side("actor"),
            heads: spec
                .disk_heads
                .iter()
                .map(|head| parts.head(head, architecture))
                .collect(),
            critic: parts.side("critic"),
            value: parts.linear("critic.value"),
            device: (!spec.device_heads.is_empty()).then(|| parts.device()),
            architecture,
            parameters,
            flat: Parameters::from([(ALL.to_owned(), flat)]),
            gradient,
        })
    }

    /// Kind and sizes.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The parameters, by name. They share memory with the network.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// All parameters as one vector, under the name [`ALL`]; it shares memory with the network. A step of an
    /// optimiser over it is a handful of operations, however many layers there are.
    pub(crate) fn flat(&self) -> &Parameters {
        &self.flat
    }

    /// The weights as they stand.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn tensors(&self) -> Result<BTreeMap<String, Plain>, TchError> {
        self.by_name(&self.flat[ALL])
    }

    /// A vector laid out as [`Network::flat`], taken apart.
    pub(crate) fn by_name(&self, vector: &Tensor) -> Result<BTreeMap<String, Plain>, TchError> {
        let data: Vec<f32> = plain(vector)?.data;
        let mut rest = data.as_slice();
        let part = |(name, parameter): (&String, &Tensor)| {
            let shape = parameter.size().into_iter().map(|size| size as usize);
            let (own, later) = rest.split_at(parameter.numel());
            rest = later;
            let part = Plain {
                shape: shape.collect(),
                data: own.to_vec(),
            };
            (name.clone(), part)
        };
        Ok(self.parameters.iter().map(part).collect())
    }

    /// Scores of each head in disks' turns: `[S, levels]` per head, not masked.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn scores(&self, batch: &Batch) -> Result<Vec<Tensor>, TchError> {
        let embedding = self.actor.embed(batch)?;
        let scores = |head: &HeadNet| Ok(head.say(&embedding)?.0);
        self.heads.iter().map(scores).collect()
    }

    /// Values of disks' turns: `[S]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn values(&self, batch: &Batch) -> Result<Tensor, TchError> {
        self.value
            .forward(&self.critic.embed(batch)?.z)?
            .f_squeeze_dim(1)
    }

    /// Scores of each head in devices' turns: `[S, levels]` per head, not masked. Empty where devices
    /// have no heads.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn device_scores(&self, batch: &Batch) -> Result<Vec<Tensor>, TchError> {
        let Some(device) = &self.device else {
            return Ok(Vec::new());
        };
        let z = encode(&device.encoder, &batch.own)?;
        device.heads.iter().map(|head| head.forward(&z)).collect()
    }
}

/// A tensor's values, as f32.
pub(crate) fn plain(tensor: &Tensor) -> Result<Plain, TchError> {
    let shape = tensor.size().iter().map(|size| *size as usize).collect();
    let flat = tensor
        .f_detach()?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?
        .f_view([-1_i64])?;
    Ok(Plain {
        shape,
        data: Vec::try_from(flat)?,
    })
}

/// y = W·x + b.
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
    weight_gradient: Tensor,
    bias_gradient: Tensor,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_linear(&self.weight, Some(&self.bias))
    }
}

fn encode(layers: &[Linear; 2], x: &Tensor) -> Result<Tensor, TchError> {
    let first = layers[0].forward(x)?.f_tanh()?;
    layers[1].forward(&first)?.f_tanh()
}

/// What actor and critic each have of their own.
#[derive(Debug)]
struct Side {
    encoder: [Linear; 2],
    channels: Option<ChannelSide>,
}

#[derive(Debug)]
struct ChannelSide {
    channel: Linear,
    trunk: Linear,
}

/// What heads look at, and what it was made of.
struct Embedding {
    /// After the first layer of the encoder, `[S, hidden]`.
    first: Tensor,
    /// [h | mean lane], where there are channels; `[S, hidden + channel_hidden]`.
    joined: Option<Tensor>,
    /// `[S, hidden]`.
    z: Tensor,
    /// `[S, K, channel_hidden]`.
    lanes: Option<Tensor>,
}

impl Side {
    fn embed(&self, batch: &Batch) -> Result<Embedding, TchError> {
        let first = self.encoder[0].forward(&batch.own)?.f_tanh()?;
        let h = self.encoder[1].forward(&first)?.f_tanh()?;
        let (Some(side), Some(Lanes { features, share })) = (&self.channels, &batch.lanes) else {
            return Ok(Embedding {
                first,
                joined: None,
                z: h,
                lanes: None,
            });
        };
        let lanes = side.channel.forward(features)?.f_tanh()?;
        let mean =
            lanes
                .f_mul(share)?
                .f_sum_dim_intlist([1_i64].as_slice(), false, None::<Kind>)?;
        let joined = Tensor::f_cat(&[h, mean], 1)?;
        Ok(Embedding {
            z: side.trunk.forward(&joined)?.f_tanh()?,
            first,
            joined: Some(joined),
            lanes: Some(lanes),
        })
    }
}

#[derive(Debug)]
enum HeadNet {
    Named(Linear),
    Pointer(Box<Pointer>),
}

#[derive(Debug)]
struct Pointer {
    hidden: i64,
    query: Linear,
    score: Linear,
    zero: Linear,
}

impl HeadNet {
    /// Scores, and the queries of a pointer head; `[S, levels]` and `[S, K, channel_hidden]`.
    fn say(&self, embedding: &Embedding) -> Result<(Tensor, Option<Tensor>), TchError> {
        match (self, &embedding.lanes) {
            (Self::Named(linear), _) => Ok((linear.forward(&embedding.z)?, None)),
            (Self::Pointer(pointer), Some(lanes)) => pointer.say(&embedding.z, lanes),
            (Self::Pointer(pointer), None) => Ok((pointer.zero.forward(&embedding.z)?, None)),
        }
    }
}

impl Pointer {
    /// The query layer over [z | e_k] is taken apart, so that its part over z is computed once per
    /// turn and not once per channel.
    fn say(&self, z: &Tensor, lanes: &Tensor) -> Result<(Tensor, Option<Tensor>), TchError> {
        let Linear { weight, bias, .. } = &self.query;
        let lane = weight.size2()?.1 - self.hidden;
        let of_z = z
            .f_linear(&weight.f_narrow(1, 0, self.hidden)?, Some(bias))?
            .f_unsqueeze(1)?;
        let of_lane = lanes.f_linear(&weight.f_narrow(1, self.hidden, lane)?, None::<&Tensor>)?;
        let query = of_lane.f_add(&of_z)?.f_tanh()?;
        let channels = self.score.forward(&query)?.f_squeeze_dim(2)?;
        let scores = Tensor::f_cat(&[self.zero.forward(z)?, channels], 1)?;
        Ok((scores, Some(query)))
    }
}

#[derive(Debug)]
struct DeviceSide {
    encoder: [Linear; 2],
    heads: Vec<Linear>,
}

/// Puts layers together from parameters by name.
struct Parts<'a> {
    parameters: &'a Parameters,
    gradients: &'a Parameters,
    spec: &'a EnvSpec,
}

impl Parts<'_> {
    fn linear(&self, name: &str) -> Linear {
        let get = |of: &Parameters, part: &str| of[&format!("{name}.{part}")].shallow_clone();
        Linear {
            weight: get(self.parameters, "weight"),
            bias: get(self.parameters, "bias"),
            weight_gradient: get(self.gradients, "weight"),
            bias_gradient: get(self.gradients, "bias"),
        }
    }

    fn encoder(&self, side: &str) -> [Linear; 2] {
        [0, 1].map(|layer| self.linear(&format!("{side}.encoder.{layer}")))
    }

    fn side(&self, side: &str) -> Side {
        let channels = has_channels(self.spec).then(|| ChannelSide {
            channel: self.linear(&format!("{side}.channel")),
            trunk: self.linear(&format!("{side}.trunk")),
        });
        Side {
            encoder: self.encoder(side),
            channels,
        }
    }

    fn head(&self, head: &Head, architecture: Architecture) -> HeadNet {
        let name = format!("actor.head.{}", head.name);
        if !head.is_pointer() {
            return HeadNet::Named(self.linear(&name));
        }
        HeadNet::Pointer(Box::new(Pointer {
            hidden: architecture.hidden as i64,
            query: self.linear(&format!("{name}.query")),
            score: self.linear(&format!("{name}.score")),
            zero: self.linear(&format!("{name}.zero")),
        }))
    }

    fn device(&self) -> DeviceSide {
        let heads = self.spec.device_heads.iter();
        DeviceSide {
            encoder: self.encoder("device"),
            heads: heads
                .map(|head| self.linear(&format!("device.head.{}", head.name)))
                .collect(),
        }
    }
}
