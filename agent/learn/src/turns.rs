//! What a network is shown: turns of disks or devices, kept ragged and batched with padding.

use std::ops::Range;

use blkpilot_env::{EnvSpec, Head, Turn, TurnView};
use blkpilot_models::architecture::has_channels;
use blkpilot_models::{Normaliser, PerTable, TableName};
use ndarray::ArrayView1;
use tch::{Kind, TchError, Tensor};

/// Turns of one kind, one after another, already normalised. Each may have another number of
/// channels; [`Turns::batch`] pads them.
#[derive(Debug)]
pub struct Turns {
    spec: EnvSpec,
    normalisers: PerTable<Normaliser>,
    is_pointer: Vec<bool>,
    named_levels: Vec<usize>,
    own_width: usize,
    lane_width: usize,
    rows: usize,
    own: Vec<f32>,
    lanes: Vec<f32>,
    /// Row r has the channels `lane_starts[r]..lane_starts[r + 1]`.
    lane_starts: Vec<usize>,
    allowed: Vec<bool>,
    allowed_starts: Vec<usize>,
    free: Vec<bool>,
}

impl Turns {
    /// Turns of disks.
    #[must_use]
    pub fn of_disks(spec: &EnvSpec, normalisers: &PerTable<Normaliser>) -> Self {
        let own = spec.disk_features.len() + spec.device_features.len() + spec.host_features.len();
        let lane = if has_channels(spec) {
            spec.channel_features.len() + spec.pair_features.len()
        } else {
            0
        };
        Self::new(spec, normalisers, &spec.disk_heads, (own, lane))
    }

    /// Turns of devices.
    #[must_use]
    pub fn of_devices(spec: &EnvSpec, normalisers: &PerTable<Normaliser>) -> Self {
        let own = spec.device_features.len() + spec.host_features.len();
        Self::new(spec, normalisers, &spec.device_heads, (own, 0))
    }

    fn new(
        spec: &EnvSpec,
        normalisers: &PerTable<Normaliser>,
        heads: &[Head],
        (own_width, lane_width): (usize, usize),
    ) -> Self {
        Self {
            spec: spec.clone(),
            normalisers: normalisers.clone(),
            is_pointer: heads.iter().map(Head::is_pointer).collect(),
            named_levels: heads.iter().map(|head| head.len(0)).collect(),
            own_width,
            lane_width,
            rows: 0,
            own: Vec::new(),
            lanes: Vec::new(),
            lane_starts: vec![0],
            allowed: Vec::new(),
            allowed_starts: vec![0],
            free: Vec::new(),
        }
    }

    /// Turns of disks of which only masks matter, per row and head; a head with one level to choose is forced.
    #[cfg(test)]
    pub(crate) fn of_masks(rows: &[Vec<Vec<bool>>]) -> Self {
        use blkpilot_env::Levels;
        use blkpilot_env::cartpole::CartPole;

        let mut spec = CartPole::default_spec();
        let head = |mask: &Vec<bool>| Head {
            levels: Levels::Named(mask.iter().map(|_| String::new()).collect()),
            ..spec.disk_heads[0].clone()
        };
        spec.disk_heads = rows[0].iter().map(head).collect();
        let identity = PerTable::build(&spec, |_, features| Normaliser::identity(features.len()));
        let mut turns = Self::of_disks(&spec, &identity);
        for heads in rows {
            let choices = |mask: &Vec<bool>| mask.iter().filter(|allowed| **allowed).count() > 1;
            turns.free.extend(heads.iter().map(choices));
            turns.allowed.extend(heads.iter().flatten());
            turns.allowed_starts.push(turns.allowed.len());
            turns.lane_starts.push(0);
            turns.own.resize(turns.own.len() + turns.own_width, 0.0);
            turns.rows += 1;
        }
        turns
    }

    /// Number of turns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Number of heads decided in each turn.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.is_pointer.len()
    }

    /// Whether a head had a choice in a turn.
    #[must_use]
    pub fn is_free(&self, row: usize, head: usize) -> bool {
        self.free[row * self.heads() + head]
    }

    /// Whether any head had a choice in a turn.
    #[must_use]
    pub fn has_choice(&self, row: usize) -> bool {
        (0..self.heads()).any(|head| self.is_free(row, head))
    }

    /// Appends a turn; returns its row. The view is of the spec, and of this kind of turn.
    pub fn push(&mut self, view: &TurnView<'_>) -> usize {
        if let Some(disk) = view.disk {
            self.push_own(TableName::Disk, &disk);
        }
        match view.device {
            Some(device) => self.push_own(TableName::Device, &device),
            None => self
                .own
                .resize(self.own.len() + self.spec.device_features.len(), 0.0),
        }
        self.push_own(TableName::Host, &view.host);
        self.push_lanes(view);
        self.allowed
            .extend(view.mask.iter().map(|reason| reason.is_allowed()));
        self.allowed_starts.push(self.allowed.len());
        self.free
            .extend((0..view.heads.len()).map(|head| view.forced(head).is_none()));
        self.rows += 1;
        self.rows - 1
    }

    fn push_own(&mut self, table: TableName, row: &ArrayView1<'_, f32>) {
        normalise(&self.spec, &self.normalisers, table, row, &mut self.own);
    }

    fn push_lanes(&mut self, view: &TurnView<'_>) {
        let mut count = 0;
        if let (Turn::Disk(_), Some(pairs), 1..) = (view.turn, view.pairs, self.lane_width) {
            count = view.channels.nrows();
            for (channel, pair) in view.channels.rows().into_iter().zip(pairs.rows()) {
                normalise(
                    &self.spec,
                    &self.normalisers,
                    TableName::Channel,
                    &channel,
                    &mut self.lanes,
                );
                normalise(
                    &self.spec,
                    &self.normalisers,
                    TableName::Pair,
                    &pair,
                    &mut self.lanes,
                );
            }
        }
        let start = self.lane_starts[self.rows];
        self.lane_starts.push(start + count);
    }

    /// Where what is laid out as the masks are has a turn's levels of a head.
    pub(crate) fn levels_of(&self, row: usize, head: usize) -> Range<usize> {
        let (start, end) = (self.allowed_starts[row], self.allowed_starts[row + 1]);
        let named = |of: Range<usize>| -> usize {
            let own = of.filter(|head| !self.is_pointer[*head]);
            own.map(|head| self.named_levels[head]).sum()
        };
        let pointers = |of: Range<usize>| of.filter(|head| self.is_pointer[*head]).count();
        let all = 0..self.heads();
        let of_pointer = (end - start - named(all.clone()))
            .checked_div(pointers(all))
            .unwrap_or(0);
        let first = start + named(0..head) + pointers(0..head) * of_pointer;
        let count = if self.is_pointer[head] {
            of_pointer
        } else {
            self.named_levels[head]
        };
        first..first + count
    }

    /// What is laid out as the masks are, of all turns: `[S, levels]` per head, 0 where a turn has no such level.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(crate) fn batch_of_levels(&self, values: &[f32]) -> Result<Vec<Tensor>, TchError> {
        let channels = (0..self.rows).map(|row| self.channels(row)).max();
        let channels = channels.unwrap_or(0).max(1);
        let of_head = |head: usize| {
            let width = self.width(head, channels);
            let mut padded = vec![0.0_f32; self.rows * width];
            for row in 0..self.rows {
                let own = &values[self.levels_of(row, head)];
                padded[row * width..][..own.len()].copy_from_slice(own);
            }
            Tensor::f_from_slice(&padded)?.f_view([self.rows as i64, width as i64])
        };
        (0..self.heads()).map(of_head).collect()
    }

    fn width(&self, head: usize, channels: usize) -> usize {
        if self.is_pointer[head] {
            channels + 1
        } else {
            self.named_levels[head]
        }
    }

    /// The turns of `rows` as tensors, padded to the greatest number of channels among them.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn batch(&self, rows: Range<usize>) -> Result<Batch, TchError> {
        let count = rows.len();
        let channels = rows
            .clone()
            .map(|row| self.channels(row))
            .max()
            .unwrap_or(0)
            .max(1);
        let own = &self.own[rows.start * self.own_width..rows.end * self.own_width];
        let own = Tensor::f_from_slice(own)?.f_view([count as i64, self.own_width as i64])?;
        let lanes = (self.lane_width > 0)
            .then(|| self.batch_lanes(rows.clone(), channels))
            .transpose()?;
        let allowed = (0..self.heads())
            .map(|head| self.batch_allowed(rows.clone(), head, channels))
            .collect::<Result<_, _>>()?;
        let free = self.free[rows.start * self.heads()..rows.end * self.heads()].iter();
        let free: Vec<f32> = free.map(|free| f32::from(u8::from(*free))).collect();
        let free = Tensor::f_from_slice(&free)?.f_view([count as i64, self.heads() as i64])?;
        Ok(Batch {
            own,
            lanes,
            allowed,
            free,
        })
    }

    fn channels(&self, row: usize) -> usize {
        self.lane_starts[row + 1] - self.lane_starts[row]
    }

    fn batch_lanes(&self, rows: Range<usize>, channels: usize) -> Result<Lanes, TchError> {
        let (count, width) = (rows.len(), self.lane_width);
        let mut features = vec![0.0; count * channels * width];
        let mut share = vec![0.0_f32; count * channels];
        for (at, row) in rows.enumerate() {
            let own = self.channels(row);
            let source = self.lane_starts[row] * width..self.lane_starts[row + 1] * width;
            features[at * channels * width..][..own * width].copy_from_slice(&self.lanes[source]);
            share[at * channels..][..own].fill(1.0 / own as f32);
        }
        let shape = |last: usize| [count as i64, channels as i64, last as i64];
        Ok(Lanes {
            features: Tensor::f_from_slice(&features)?.f_view(shape(width))?,
            share: Tensor::f_from_slice(&share)?.f_view(shape(1))?,
        })
    }

    fn batch_allowed(
        &self,
        rows: Range<usize>,
        head: usize,
        channels: usize,
    ) -> Result<Tensor, TchError> {
        let width = self.width(head, channels);
        let mut allowed = vec![false; rows.len() * width];
        for (at, row) in rows.clone().enumerate() {
            let mask = self.head_mask(row, head);
            let out = &mut allowed[at * width..][..width];
            out[..mask.len()].copy_from_slice(mask);
            // A head without a choice counts for nothing, but its softmax must stay finite.
            out[0] |= !mask.contains(&true);
        }
        Tensor::f_from_slice(&allowed)?.f_view([rows.len() as i64, width as i64])
    }

    /// Which levels of a head may be chosen in a turn; none where it has no choice to offer.
    pub(crate) fn head_mask(&self, row: usize, head: usize) -> &[bool] {
        &self.allowed[self.levels_of(row, head)]
    }
}

fn normalise(
    spec: &EnvSpec,
    normalisers: &PerTable<Normaliser>,
    table: TableName,
    row: &ArrayView1<'_, f32>,
    out: &mut Vec<f32>,
) {
    let start = out.len();
    out.resize(start + row.len(), 0.0);
    normalisers
        .get(table)
        .apply(table.features(spec), row, &mut out[start..]);
}

/// Turns as tensors; S of them.
#[derive(Debug)]
pub struct Batch {
    /// `[S, F + E + H]` (of devices: E + H), normalised.
    pub own: Tensor,
    /// The channels, where disks choose among them.
    pub lanes: Option<Lanes>,
    /// Per head: which levels may be chosen; `[S, levels]`. At least one in each row.
    pub allowed: Vec<Tensor>,
    /// 1 where a head had a choice, 0 where it was forced; `[S, heads]`.
    pub free: Tensor,
}

/// Channels as tensors, padded to K.
#[derive(Debug)]
pub struct Lanes {
    /// `[S, K, C + P]`, normalised; 0 where there is no such channel.
    pub features: Tensor,
    /// `[S, K, 1]`: 1 / number of channels, 0 where there is no such channel.
    pub share: Tensor,
}

impl Batch {
    /// The turns at `index`, int64 `[M]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn select(&self, index: &Tensor) -> Result<Self, TchError> {
        self.map(|tensor| tensor.f_index_select(0, index))
    }

    /// With numbers of another kind; masks stay.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        self.map(|tensor| match tensor.kind() {
            Kind::Bool => Ok(tensor.shallow_clone()),
            _ => tensor.f_to_kind(kind),
        })
    }

    fn map(
        &self,
        mut of: impl FnMut(&Tensor) -> Result<Tensor, TchError>,
    ) -> Result<Self, TchError> {
        let lanes = match &self.lanes {
            Some(Lanes { features, share }) => Some(Lanes {
                features: of(features)?,
                share: of(share)?,
            }),
            None => None,
        };
        Ok(Self {
            own: of(&self.own)?,
            lanes,
            allowed: self.allowed.iter().map(&mut of).collect::<Result<_, _>>()?,
            free: of(&self.free)?,
        })
    }
}
