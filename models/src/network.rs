//! The actor-critic of [`crate::architecture`], forward only.
//!
//! One decision costs a few microseconds and allocates nothing but its result: weights are repacked
//! once, working memory is reused.

use std::collections::BTreeMap;

use blkpilot_env::{EnvSpec, Head, Scale, Turn, TurnView};
use ndarray::ArrayView1;

use crate::architecture::has_channels;
use crate::checkpoint::{Checkpoint, CheckpointError, Manifest, Tensor};
use crate::linear::{Linear, tanh_in_place};
use crate::normaliser::{Normaliser, PerTable, TableName, normalise};
use crate::policy::PolicyError;

/// What the network says about one turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Scores of all levels, head after head, in the order of the mask row. Not masked.
    pub scores: Vec<f32>,
    /// Value of a disk's turn; `None` in a device's.
    pub value: Option<f32>,
}

/// A network, ready to serve.
#[derive(Debug, Clone)]
pub struct ActorCritic {
    spec: EnvSpec,
    columns: Columns,
    actor: Side,
    heads: Vec<HeadNet>,
    critic: Side,
    value: Linear,
    device: Option<DeviceSide>,
}

/// Working memory of a network; one per thread.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    /// [disk | device | host], normalised.
    input: Vec<f32>,
    /// Number of channels (K).
    channels: usize,
    /// [K, C + P], normalised.
    channel_inputs: Vec<f32>,
    /// [K, lane].
    lanes: Vec<f32>,
    first: Vec<f32>,
    /// [h | mean lane].
    joined: Vec<f32>,
    z: Vec<f32>,
    query_base: Vec<f32>,
    query: Vec<f32>,
    scores: Vec<f32>,
}

impl ActorCritic {
    /// The network of a checkpoint.
    ///
    /// # Errors
    /// What [`Checkpoint::verify`] finds.
    pub fn new(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        checkpoint.verify()?;
        let Manifest {
            spec, normalisers, ..
        } = &checkpoint.manifest;
        Ok(Self::unverified(spec, normalisers, &checkpoint.tensors))
    }

    /// As [`ActorCritic::new`], of parts that nobody else has made: those of a network that is being trained.
    ///
    /// # Panics
    /// If a tensor of the architecture is missing.
    #[must_use]
    pub fn unverified(
        spec: &EnvSpec,
        normalisers: &PerTable<Normaliser>,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Self {
        let tensors = Tensors { map: tensors };
        let device = (!spec.device_heads.is_empty()).then(|| DeviceSide {
            encoder: tensors.encoder("device"),
            heads: spec
                .device_heads
                .iter()
                .map(|h| tensors.linear(&format!("device.head.{}", h.name)))
                .collect(),
        });
        Self {
            columns: Columns::new(spec, normalisers),
            actor: tensors.side("actor", spec),
            heads: spec
                .disk_heads
                .iter()
                .map(|head| tensors.head(head))
                .collect(),
            critic: tensors.side("critic", spec),
            value: tensors.linear("critic.value"),
            device,
            spec: spec.clone(),
        }
    }

    /// The spec that the network was made for.
    #[must_use]
    pub fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// Scores of all levels of a turn, head after head, in the order of the mask row. Not masked.
    ///
    /// # Errors
    /// `Shape` if the view is of another spec, `NonFinite` if it is not finite, `NonFiniteScore` if
    /// a score is not.
    pub fn scores<'s>(
        &self,
        view: &TurnView<'_>,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [f32], PolicyError> {
        self.read(view, scratch)?;
        self.score(view, scratch)?;
        Ok(&scratch.scores)
    }

    /// Value of a disk's turn; `None` in a device's.
    ///
    /// # Errors
    /// As [`ActorCritic::scores`].
    pub fn value(
        &self,
        view: &TurnView<'_>,
        scratch: &mut Scratch,
    ) -> Result<Option<f32>, PolicyError> {
        self.read(view, scratch)?;
        self.appraise(view, scratch)
    }

    /// Scores and value of a turn.
    ///
    /// # Errors
    /// As [`ActorCritic::scores`].
    pub fn forward(
        &self,
        view: &TurnView<'_>,
        scratch: &mut Scratch,
    ) -> Result<Forward, PolicyError> {
        self.read(view, scratch)?;
        self.score(view, scratch)?;
        let scores = scratch.scores.clone();
        Ok(Forward {
            scores,
            value: self.appraise(view, scratch)?,
        })
    }

    /// Scores and values of many turns.
    ///
    /// # Errors
    /// As [`ActorCritic::scores`], for the first turn that fails.
    pub fn forward_batch(&self, views: &[TurnView<'_>]) -> Result<Vec<Forward>, PolicyError> {
        let mut scratch = Scratch::default();
        views
            .iter()
            .map(|view| self.forward(view, &mut scratch))
            .collect()
    }

    fn read(&self, view: &TurnView<'_>, scratch: &mut Scratch) -> Result<(), PolicyError> {
        let heads = match view.turn {
            Turn::Disk(_) => &self.spec.disk_heads,
            Turn::Device(_) => &self.spec.device_heads,
        };
        let levels: usize = heads
            .iter()
            .map(|head| head.len(view.channels.nrows()))
            .sum();
        if view.mask.len() != levels || view.heads.len() != heads.len() {
            return Err(PolicyError::Levels {
                turn: view.turn,
                got: view.mask.len(),
                want: levels,
            });
        }
        self.columns.read(&self.spec, view, scratch)
    }

    fn score(&self, view: &TurnView<'_>, scratch: &mut Scratch) -> Result<(), PolicyError> {
        scratch.scores.clear();
        match (view.turn, &self.device) {
            (Turn::Disk(_), _) => self.score_disk(scratch),
            (Turn::Device(_), Some(device)) => device.score(scratch),
            (Turn::Device(_), None) => {}
        }
        match scratch.scores.iter().position(|score| !score.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let head = head_at(view, at);
                Err(PolicyError::NonFiniteScore {
                    turn: view.turn,
                    head,
                    value: scratch.scores[at],
                })
            }
        }
    }

    fn score_disk(&self, scratch: &mut Scratch) {
        self.actor.embed(scratch);
        for head in &self.heads {
            head.score(scratch);
        }
    }

    fn appraise(
        &self,
        view: &TurnView<'_>,
        scratch: &mut Scratch,
    ) -> Result<Option<f32>, PolicyError> {
        let Turn::Disk(_) = view.turn else {
            return Ok(None);
        };
        self.critic.embed(scratch);
        let value = self.value.apply_one(&scratch.z);
        if value.is_finite() {
            return Ok(Some(value));
        }
        Err(PolicyError::NonFiniteScore {
            turn: view.turn,
            head: "value".to_owned(),
            value,
        })
    }
}

fn head_at(view: &TurnView<'_>, score: usize) -> String {
    let mut end = 0;
    let mut holds = |head: &&Head| {
        end += head.len(view.channels.nrows());
        score < end
    };
    view.heads
        .iter()
        .find(|head| holds(head))
        .map_or_else(String::new, |head| head.name.clone())
}

/// Encoder, and the channel side where there is one.
#[derive(Debug, Clone)]
struct Side {
    encoder: [Linear; 2],
    channels: Option<ChannelSide>,
}

#[derive(Debug, Clone)]
struct ChannelSide {
    channel: Linear,
    trunk: Linear,
}

impl Side {
    /// From `input` and `channel_inputs` to `z` and `lanes`.
    fn embed(&self, scratch: &mut Scratch) {
        let Scratch {
            channels,
            input,
            channel_inputs,
            lanes,
            first,
            joined,
            z,
            ..
        } = scratch;
        let [encoder_0, encoder_1] = &self.encoder;
        layer(encoder_0, input, first);
        let Some(ChannelSide { channel, trunk }) = &self.channels else {
            layer(encoder_1, first, z);
            return;
        };
        layer(encoder_1, first, joined);
        each_channel(channel, *channels, channel_inputs, lanes);
        let width = channel.outputs();
        let hidden = joined.len();
        joined.resize(hidden + width, 0.0);
        let mean = &mut joined[hidden..];
        for lane in lanes.chunks_exact(width) {
            mean.iter_mut()
                .zip(lane)
                .for_each(|(sum, value)| *sum += value);
        }
        mean.iter_mut()
            .for_each(|sum| *sum /= (*channels).max(1) as f32);
        layer(trunk, joined, z);
    }
}

/// A head of a disk.
#[derive(Debug, Clone)]
enum HeadNet {
    Named(Linear),
    Pointer(Box<Pointer>),
}

/// The query layer is split by its inputs, so that what z adds to it is computed once.
#[derive(Debug, Clone)]
struct Pointer {
    query_of_z: Linear,
    query_of_lane: Linear,
    score: Linear,
    zero: Linear,
}

impl HeadNet {
    /// Appends the head's scores.
    fn score(&self, scratch: &mut Scratch) {
        match self {
            Self::Named(linear) => append(linear, &scratch.z, &mut scratch.scores),
            Self::Pointer(pointer) => pointer.score(scratch),
        }
    }
}

impl Pointer {
    fn score(&self, scratch: &mut Scratch) {
        let Scratch {
            lanes,
            z,
            query_base,
            query,
            scores,
            ..
        } = scratch;
        append(&self.zero, z, scores);
        let width = self.query_of_z.outputs();
        query_base.resize(width, 0.0);
        self.query_of_z.apply(z, query_base);
        query.resize(lanes.len(), 0.0);
        for (query, lane) in query.chunks_exact_mut(width).zip(lanes.chunks_exact(width)) {
            self.query_of_lane.apply_from(query_base, lane, query);
        }
        tanh_in_place(query);
        scores.extend(
            query
                .chunks_exact(width)
                .map(|query| self.score.apply_one(query)),
        );
    }
}

#[derive(Debug, Clone)]
struct DeviceSide {
    encoder: [Linear; 2],
    heads: Vec<Linear>,
}

impl DeviceSide {
    fn score(&self, scratch: &mut Scratch) {
        let Scratch {
            input,
            first,
            z,
            scores,
            ..
        } = scratch;
        layer(&self.encoder[0], input, first);
        layer(&self.encoder[1], first, z);
        for head in &self.heads {
            append(head, z, scores);
        }
    }
}

/// y = tanh(W·x + b).
fn layer(linear: &Linear, x: &[f32], y: &mut Vec<f32>) {
    y.resize(linear.outputs(), 0.0);
    linear.apply(x, y);
    tanh_in_place(y);
}

/// One row of `lanes` per channel, from one row of `inputs` per channel.
fn each_channel(linear: &Linear, channels: usize, inputs: &[f32], lanes: &mut Vec<f32>) {
    let (width, columns) = (linear.outputs(), inputs.len() / channels.max(1));
    lanes.resize(channels * width, 0.0);
    for (channel, lane) in lanes.chunks_exact_mut(width).enumerate() {
        linear.apply(&inputs[channel * columns..][..columns], lane);
    }
    tanh_in_place(lanes);
}

fn append(linear: &Linear, x: &[f32], scores: &mut Vec<f32>) {
    let start = scores.len();
    scores.resize(start + linear.outputs(), 0.0);
    linear.apply(x, &mut scores[start..]);
}

/// The tensors of a verified checkpoint.
struct Tensors<'a> {
    map: &'a BTreeMap<String, Tensor>,
}

impl Tensors<'_> {
    fn get(&self, name: &str, part: &str) -> &Tensor {
        self.map
            .get(&format!("{name}.{part}"))
            .expect("each tensor of the architecture is there")
    }

    fn linear(&self, name: &str) -> Linear {
        let weight = self.get(name, "weight");
        Linear::new(
            weight.shape[1],
            &weight.data,
            self.get(name, "bias").data.clone(),
        )
    }

    fn encoder(&self, side: &str) -> [Linear; 2] {
        [0, 1].map(|i| self.linear(&format!("{side}.encoder.{i}")))
    }

    fn side(&self, side: &str, spec: &EnvSpec) -> Side {
        let channels = has_channels(spec).then(|| ChannelSide {
            channel: self.linear(&format!("{side}.channel")),
            trunk: self.linear(&format!("{side}.trunk")),
        });
        Side {
            encoder: self.encoder(side),
            channels,
        }
    }

    fn head(&self, head: &Head) -> HeadNet {
        let name = format!("actor.head.{}", head.name);
        if !head.is_pointer() {
            return HeadNet::Named(self.linear(&name));
        }
        let [query_of_z, query_of_lane] = self.split_query(&format!("{name}.query"));
        HeadNet::Pointer(Box::new(Pointer {
            query_of_z,
            query_of_lane,
            score: self.linear(&format!("{name}.score")),
            zero: self.linear(&format!("{name}.zero")),
        }))
    }

    /// The layer over [z | e_k] as one over z, with the bias, and one over e_k, without.
    fn split_query(&self, name: &str) -> [Linear; 2] {
        let (weight, bias) = (self.get(name, "weight"), self.get(name, "bias"));
        let [lane, inputs] = weight.shape[..] else {
            unreachable!("weights have two dimensions")
        };
        let hidden = inputs - lane;
        let columns = |from: usize, to: usize| -> Vec<f32> {
            weight
                .data
                .chunks_exact(inputs)
                .flat_map(|row| &row[from..to])
                .copied()
                .collect()
        };
        [
            Linear::new(hidden, &columns(0, hidden), bias.data.clone()),
            Linear::new(lane, &columns(hidden, inputs), vec![0.0; lane]),
        ]
    }
}

/// Scale, mean and deviation per column of each table.
#[derive(Debug, Clone)]
struct Columns {
    tables: PerTable<Vec<(Scale, f32, f32)>>,
    has_channels: bool,
}

impl Columns {
    fn new(spec: &EnvSpec, normalisers: &PerTable<Normaliser>) -> Self {
        let tables = PerTable::build(spec, |table, features| {
            let Normaliser { mean, std } = normalisers.get(table);
            let moments = mean.iter().zip(std);
            features
                .iter()
                .zip(moments)
                .map(|(f, (mean, std))| (f.scale, *mean, *std))
                .collect()
        });
        Self {
            tables,
            has_channels: has_channels(spec),
        }
    }

    /// Normalises a view into `input` and `channel_inputs`.
    fn read(
        &self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), PolicyError> {
        let reader = Reader {
            columns: self,
            spec,
            turn: view.turn,
        };
        let Scratch {
            input,
            channel_inputs,
            channels,
            ..
        } = scratch;
        input.clear();
        channel_inputs.clear();
        *channels = view.channels.nrows();
        if let Some(disk) = view.disk {
            reader.row(TableName::Disk, &disk, input)?;
        }
        match view.device {
            Some(device) => reader.row(TableName::Device, &device, input)?,
            None => input.resize(input.len() + self.tables.device.len(), 0.0),
        }
        reader.row(TableName::Host, &view.host, input)?;
        if let (Some(pairs), true) = (view.pairs, self.has_channels) {
            if pairs.nrows() != *channels {
                return Err(PolicyError::PairRows {
                    got: pairs.nrows(),
                    want: *channels,
                });
            }
            for (channel, pair) in view.channels.rows().into_iter().zip(pairs.rows()) {
                reader.row(TableName::Channel, &channel, channel_inputs)?;
                reader.row(TableName::Pair, &pair, channel_inputs)?;
            }
        }
        Ok(())
    }
}

struct Reader<'a> {
    columns: &'a Columns,
    spec: &'a EnvSpec,
    turn: Turn,
}

impl Reader<'_> {
    /// Appends a row, normalised.
    fn row(
        &self,
        table: TableName,
        row: &ArrayView1<'_, f32>,
        out: &mut Vec<f32>,
    ) -> Result<(), PolicyError> {
        let columns = self.columns.tables.get(table);
        if row.len() != columns.len() {
            return Err(PolicyError::Shape {
                table,
                got: row.len(),
                want: columns.len(),
            });
        }
        let mut is_finite = true;
        out.extend(
            row.iter()
                .zip(columns)
                .map(|(&value, &(scale, mean, std))| {
                    is_finite &= value.is_finite();
                    normalise(scale, value, mean, std)
                }),
        );
        if is_finite {
            Ok(())
        } else {
            Err(self.non_finite(table, row))
        }
    }

    fn non_finite(&self, table: TableName, row: &ArrayView1<'_, f32>) -> PolicyError {
        let named = table.features(self.spec).iter().zip(row);
        let (feature, value) = named
            .filter(|(_, value)| !value.is_finite())
            .map(|(feature, value)| (feature.name.clone(), *value))
            .next()
            .expect("called when a value is not finite");
        PolicyError::NonFinite {
            turn: self.turn,
            table,
            feature,
            value,
        }
    }
}

#[cfg(test)]
mod tests;
