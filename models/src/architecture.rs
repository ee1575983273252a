//! Names and shapes of the tensors of the actor-critic `pointer_v1`.
//!
//! Tensors are row-major [out, in], PyTorch's `Linear` convention: y = W·x + b. Below, `A(n → m)`
//! is a linear layer with `A.weight` `[m, n]` and `A.bias` `[m]`; F, C, P, E, H are the numbers of disk,
//! channel, pair, device and host features, `hidden` and `lane` the two widths.
//!
//! A disk's turn. u = [disk | device | host], each normalised; a disk without a device sees zeros.
//!
//! ```text
//! h      = tanh actor.encoder.1(hidden → hidden) ∘ tanh actor.encoder.0(F+E+H → hidden) (u)
//! e_k    = tanh actor.channel(C+P → lane) [channel k | pair k]
//! z      = tanh actor.trunk(hidden+lane → hidden) [h | mean_k e_k]
//! N pointer head:  score of channel k = actor.head.N.score(lane → 1)
//!                                       ∘ tanh actor.head.N.query(hidden+lane → lane) [z | e_k]
//!                  score of level 0   = actor.head.N.zero(hidden → 1) z
//! N named head:    actor.head.N(hidden → levels) z
//! value  = critic.value(hidden → 1) of the critic's own z, made by critic.encoder.{0,1},
//!          critic.channel and critic.trunk likewise
//! ```
//!
//! The mean over no channels is 0. Without a pointer head there are no `channel` and `trunk`
//! tensors, and z = h.
//!
//! A device's turn, where devices have heads. u = [device | host]; `device.encoder.0`,
//! `device.encoder.1` and one `device.head.N(hidden → levels)` per head. It has no value.

use std::collections::BTreeMap;

use blkpilot_env::{EnvSpec, Head, Rng};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Tensor;

/// The kinds of network there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The one described in the module's text.
    #[default]
    PointerV1,
}

/// Kind and sizes of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Its kind.
    pub kind: Kind,
    /// Width of the encoders and the trunk: 1 to [`Architecture::WIDEST`].
    pub hidden: usize,
    /// Width of what is known of one channel: 1 to [`Architecture::WIDEST`].
    pub channel_hidden: usize,
}

impl Default for Architecture {
    fn default() -> Self {
        Self {
            kind: Kind::PointerV1,
            hidden: 64,
            channel_hidden: 32,
        }
    }
}

impl Architecture {
    /// Greatest width a checkpoint may ask for.
    pub const WIDEST: usize = 4096;

    /// Shape of each tensor, by name.
    #[must_use]
    pub fn tensor_shapes(&self, spec: &EnvSpec) -> BTreeMap<String, Vec<usize>> {
        let mut shapes = Shapes {
            map: BTreeMap::new(),
            hidden: self.hidden,
            lane: self.channel_hidden,
        };
        shapes.disk_side("actor", spec);
        for head in &spec.disk_heads {
            shapes.head("actor", head);
        }
        shapes.disk_side("critic", spec);
        shapes.linear("critic.value", self.hidden, 1);
        if !spec.device_heads.is_empty() {
            shapes.encoder(
                "device",
                spec.device_features.len() + spec.host_features.len(),
            );
            for head in &spec.device_heads {
                shapes.head("device", head);
            }
        }
        shapes.map
    }

    /// Weights and biases drawn from ±1/√inputs, as PyTorch's `Linear` does.
    pub fn initial_tensors(&self, spec: &EnvSpec, rng: &mut Rng) -> BTreeMap<String, Tensor> {
        let shapes = self.tensor_shapes(spec);
        let inputs = |name: &str| {
            let weight = name
                .strip_suffix(".bias")
                .map(|layer| format!("{layer}.weight"));
            shapes[weight.as_deref().unwrap_or(name)][1].max(1)
        };
        let mut draw = |name: &str, shape: &[usize]| {
            let bound = 1.0 / (inputs(name) as f32).sqrt();
            let size = shape.iter().product();
            let data = (0..size)
                .map(|_| rng.random_range(-bound..=bound))
                .collect();
            Tensor {
                shape: shape.to_vec(),
                data,
            }
        };
        shapes
            .iter()
            .map(|(name, shape)| (name.clone(), draw(name, shape)))
            .collect()
    }
}

/// Whether disks choose channels: then the network has a channel side.
#[must_use]
pub fn has_channels(spec: &EnvSpec) -> bool {
    spec.disk_heads.iter().any(Head::is_pointer)
}

struct Shapes {
    map: BTreeMap<String, Vec<usize>>,
    hidden: usize,
    lane: usize,
}

impl Shapes {
    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.map
            .insert(format!("{name}.weight"), vec![outputs, inputs]);
        self.map.insert(format!("{name}.bias"), vec![outputs]);
    }

    fn encoder(&mut self, side: &str, inputs: usize) {
        self.linear(&format!("{side}.encoder.0"), inputs, self.hidden);
        self.linear(&format!("{side}.encoder.1"), self.hidden, self.hidden);
    }

    fn disk_side(&mut self, side: &str, spec: &EnvSpec) {
        let (disk, device) = (spec.disk_features.len(), spec.device_features.len());
        self.encoder(side, disk + device + spec.host_features.len());
        if has_channels(spec) {
            let channel = spec.channel_features.len() + spec.pair_features.len();
            self.linear(&format!("{side}.channel"), channel, self.lane);
            self.linear(
                &format!("{side}.trunk"),
                self.hidden + self.lane,
                self.hidden,
            );
        }
    }

    fn head(&mut self, side: &str, head: &Head) {
        let name = format!("{side}.head.{}", head.name);
        if head.is_pointer() {
            self.linear(&format!("{name}.query"), self.hidden + self.lane, self.lane);
            self.linear(&format!("{name}.score"), self.lane, 1);
            self.linear(&format!("{name}.zero"), self.hidden, 1);
        } else {
            self.linear(&name, self.hidden, head.len(0));
        }
    }
}
