//! The backward pass by hand: the gradient with respect to the parameters, from that with respect to what was said.
//!
//! The same chain rule as autograd's, in a third of its operations and without a graph. Each layer writes its part
//! of the network's gradient once per pass. Gradients have the shape of what they are gradients of.

use tch::{Kind, TchError, Tensor, no_grad};

use super::{ChannelSide, DeviceSide, Embedding, HeadNet, Linear, Network, Pointer, Side};
use crate::turns::{Batch, Lanes};

/// What a network says of disks' turns, and what its backward pass needs.
pub(crate) struct DiskPass<'a> {
    network: &'a Network,
    batch: &'a Batch,
    actor: Embedding,
    critic: Embedding,
    /// Queries of the pointer heads.
    queries: Vec<Option<Tensor>>,
    /// `[S, levels]` per head.
    pub(crate) scores: Vec<Tensor>,
    /// `[S]`.
    pub(crate) values: Tensor,
}

/// What a network says of devices' turns, and what its backward pass needs.
pub(crate) struct DevicePass<'a> {
    side: &'a DeviceSide,
    batch: &'a Batch,
    first: Tensor,
    z: Tensor,
    /// `[S, levels]` per head.
    pub(crate) scores: Vec<Tensor>,
}

impl Network {
    /// The gradient that backward passes write to, one number per parameter in the order of their names. The next
    /// pass after [`Network::clear_gradient`] overwrites it.
    pub(crate) fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// What no pass writes to is 0.
    pub(crate) fn clear_gradient(&self) -> Result<(), TchError> {
        self.gradient.shallow_clone().f_zero_().map(drop)
    }

    pub(crate) fn disk_pass<'a>(&'a self, batch: &'a Batch) -> Result<DiskPass<'a>, TchError> {
        no_grad(|| {
            let (actor, critic) = (self.actor.embed(batch)?, self.critic.embed(batch)?);
            let said = self.heads.iter().map(|head| head.say(&actor));
            let said = said.collect::<Result<Vec<_>, _>>()?;
            let (scores, queries) = said.into_iter().unzip();
            Ok(DiskPass {
                values: self.value.forward(&critic.z)?.f_squeeze_dim(1)?,
                network: self,
                batch,
                actor,
                critic,
                queries,
                scores,
            })
        })
    }

    /// `None` where devices have no heads.
    pub(crate) fn device_pass<'a>(
        &'a self,
        batch: &'a Batch,
    ) -> Result<Option<DevicePass<'a>>, TchError> {
        let Some(side) = &self.device else {
            return Ok(None);
        };
        no_grad(|| {
            let first = side.encoder[0].forward(&batch.own)?.f_tanh()?;
            let z = side.encoder[1].forward(&first)?.f_tanh()?;
            let scores = side.heads.iter().map(|head| head.forward(&z));
            Ok(Some(DevicePass {
                scores: scores.collect::<Result<_, _>>()?,
                side,
                batch,
                first,
                z,
            }))
        })
    }
}

impl DiskPass<'_> {
    /// Writes the gradient of all parameters of actor and critic.
    pub(crate) fn backward(&self, scores: &[Tensor], values: &Tensor) -> Result<(), TchError> {
        no_grad(|| {
            let Network { actor, critic, .. } = self.network;
            let mut of = Embedded::default();
            let heads = self.network.heads.iter().zip(&self.queries).zip(scores);
            for ((head, query), scores) in heads {
                head.backward(&self.actor, query.as_ref(), scores, &mut of)?;
            }
            actor.backward(self.batch, &self.actor, of)?;
            let mut of = Embedded::default();
            let value = &self.network.value;
            of.add_z(value.backward(&self.critic.z, &values.f_unsqueeze(1)?)?)?;
            critic.backward(self.batch, &self.critic, of)
        })
    }
}

impl DevicePass<'_> {
    /// Writes the gradient of all parameters of the device side.
    pub(crate) fn backward(&self, scores: &[Tensor]) -> Result<(), TchError> {
        no_grad(|| {
            let mut of = Embedded::default();
            for (head, scores) in self.side.heads.iter().zip(scores) {
                of.add_z(head.backward(&self.z, scores)?)?;
            }
            let Some(of_z) = of.z else { return Ok(()) };
            encoder_backward(
                &self.side.encoder,
                &self.batch.own,
                &self.first,
                &self.z,
                &of_z,
            )
        })
    }
}

/// Gradient with respect to an embedding, as heads add to it.
#[derive(Default)]
struct Embedded {
    z: Option<Tensor>,
    lanes: Option<Tensor>,
}

impl Embedded {
    fn add_z(&mut self, more: Tensor) -> Result<(), TchError> {
        add(&mut self.z, more)
    }

    fn add_lanes(&mut self, more: Tensor) -> Result<(), TchError> {
        add(&mut self.lanes, more)
    }
}

fn add(sum: &mut Option<Tensor>, more: Tensor) -> Result<(), TchError> {
    *sum = Some(match sum.take() {
        Some(mut sum) => sum.f_add_(&more)?,
        None => more,
    });
    Ok(())
}

impl Side {
    fn backward(&self, batch: &Batch, seen: &Embedding, of: Embedded) -> Result<(), TchError> {
        let Some(of_z) = of.z else { return Ok(()) };
        let Embedding {
            first,
            joined,
            z,
            lanes,
        } = seen;
        let (Some(side), Some(inputs), Some(lanes), Some(joined)) =
            (&self.channels, &batch.lanes, lanes, joined)
        else {
            return encoder_backward(&self.encoder, &batch.own, first, z, &of_z);
        };
        let ChannelSide { channel, trunk } = side;
        let of_joined = trunk.backward(joined, &Tensor::f_tanh_backward(&of_z, z)?)?;
        let (hidden, lane) = (z.size2()?.1, joined.size2()?.1 - z.size2()?.1);
        let Lanes { features, share } = inputs;
        let of_mean = of_joined.f_narrow(1, hidden, lane)?.f_unsqueeze(1)?;
        let mut of_lanes = of_mean.f_mul(share)?;
        if let Some(of_heads) = &of.lanes {
            of_lanes = of_lanes.f_add_(of_heads)?;
        }
        let of_channel = Tensor::f_tanh_backward(&of_lanes, lanes)?;
        channel.learn(&rows(features)?, &rows(&of_channel)?)?;
        let (h, of_h) = (
            joined.f_narrow(1, 0, hidden)?,
            of_joined.f_narrow(1, 0, hidden)?,
        );
        encoder_backward(&self.encoder, &batch.own, first, &h, &of_h)
    }
}

/// Of h = tanh ∘ tanh, from x by way of `first`.
fn encoder_backward(
    [layer_0, layer_1]: &[Linear; 2],
    x: &Tensor,
    first: &Tensor,
    h: &Tensor,
    of_h: &Tensor,
) -> Result<(), TchError> {
    let of_first = layer_1.backward(first, &Tensor::f_tanh_backward(of_h, h)?)?;
    layer_0.learn(x, &Tensor::f_tanh_backward(&of_first, first)?)
}

impl HeadNet {
    fn backward(
        &self,
        seen: &Embedding,
        query: Option<&Tensor>,
        scores: &Tensor,
        of: &mut Embedded,
    ) -> Result<(), TchError> {
        match (self, query, &seen.lanes) {
            (Self::Named(linear), ..) => of.add_z(linear.backward(&seen.z, scores)?),
            (Self::Pointer(pointer), Some(query), Some(lanes)) => {
                pointer.backward(&seen.z, lanes, query, scores, of)
            }
            (Self::Pointer(pointer), ..) => of.add_z(pointer.zero.backward(&seen.z, scores)?),
        }
    }
}

impl Pointer {
    fn backward(
        &self,
        z: &Tensor,
        lanes: &Tensor,
        query: &Tensor,
        scores: &Tensor,
        of: &mut Embedded,
    ) -> Result<(), TchError> {
        let levels = scores.size2()?.1;
        of.add_z(self.zero.backward(z, &scores.f_narrow(1, 0, 1)?)?)?;
        let of_channels = scores.f_narrow(1, 1, levels - 1)?.f_reshape([-1, 1])?;
        let of_query = self.score.backward(&rows(query)?, &of_channels)?;
        let of_query = Tensor::f_tanh_backward(&of_query.f_view_as(query)?, query)?;
        let of_base = sum_over(&of_query, 1)?;
        let Linear { weight, .. } = &self.query;
        let lane = weight.size2()?.1 - self.hidden;
        let part = |start, width| -> Result<[Tensor; 2], TchError> {
            let gradient = self.query.weight_gradient.f_narrow(1, start, width)?;
            Ok([weight.f_narrow(1, start, width)?, gradient])
        };
        let ([of_z, z_gradient], [of_lane, lane_gradient]) =
            (part(0, self.hidden)?, part(self.hidden, lane)?);
        let _ = of_base.f_tr()?.f_mm_out(&z_gradient, z)?;
        let _ = rows(&of_query)?
            .f_tr()?
            .f_mm_out(&lane_gradient, &rows(lanes)?)?;
        self.query.learn_bias(&of_base)?;
        of.add_z(of_base.f_mm(&of_z)?)?;
        of.add_lanes(rows(&of_query)?.f_mm(&of_lane)?.f_view_as(lanes)?)
    }
}

impl Linear {
    /// Writes the gradient of its own parameters; `x` `[S, in]`, `of_y` `[S, out]`.
    fn learn(&self, x: &Tensor, of_y: &Tensor) -> Result<(), TchError> {
        let _ = of_y.f_tr()?.f_mm_out(&self.weight_gradient, x)?;
        self.learn_bias(of_y)
    }

    fn learn_bias(&self, of_y: &Tensor) -> Result<(), TchError> {
        let (rows, out) = ([0_i64], &self.bias_gradient);
        of_y.f_sum_intlist_out(out, rows.as_slice(), false, None::<Kind>)
            .map(drop)
    }

    /// As [`Linear::learn`]; returns the gradient of `x`.
    fn backward(&self, x: &Tensor, of_y: &Tensor) -> Result<Tensor, TchError> {
        self.learn(x, of_y)?;
        of_y.f_mm(&self.weight)
    }
}

/// `[S, K, width]` as `[S · K, width]`.
fn rows(tensor: &Tensor) -> Result<Tensor, TchError> {
    tensor.f_flatten(0, 1)
}

fn sum_over(tensor: &Tensor, dimension: i64) -> Result<Tensor, TchError> {
    tensor.f_sum_dim_intlist([dimension].as_slice(), false, None::<Kind>)
}

#[cfg(test)]
mod tests;
