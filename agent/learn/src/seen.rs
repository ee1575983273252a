//! A disk's turn as it was seen, before any normalisation: what learners remember.

pub(crate) mod file;

use blkpilot_env::{EnvSpec, Level, MaskReason, Turn, TurnView};
use ndarray::{ArrayView1, ArrayView2};

/// A disk's turn in one piece, with all that a network is shown of it.
///
/// Features are kept as they were seen: mean and deviation move while more is seen, and what is kept for a long time
/// would else be normalised by what was known long ago, beside turns that are normalised by what is known now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SeenTurn {
    /// The disk's features, its device's and the host's, then those of each channel and of the disk's relation to each.
    numbers: Box<[f32]>,
    channels: usize,
    /// Of each level whether it might be chosen; for what reason not is not kept.
    allowed: Box<[bool]>,
    /// The levels that were in force.
    current: Box<[Level]>,
}

impl SeenTurn {
    /// Of a disk's turn.
    pub(crate) fn of(view: &TurnView<'_>) -> Self {
        let mut numbers = Vec::new();
        let rows = [view.disk, view.device, Some(view.host)];
        for row in rows.into_iter().flatten() {
            numbers.extend(row);
        }
        numbers.extend(view.channels);
        numbers.extend(view.pairs.iter().flatten());
        let allowed = view.mask.iter().map(|reason| reason.is_allowed());
        Self {
            numbers: numbers.into(),
            channels: view.channels.nrows(),
            allowed: allowed.collect(),
            current: view.current.iter().copied().collect(),
        }
    }

    /// From its parts; `None` if they do not fit the spec or each other.
    pub(crate) fn from_parts(
        spec: &EnvSpec,
        channels: usize,
        numbers: &[f32],
        allowed: &[bool],
        current: &[Level],
    ) -> Option<Self> {
        let levels: usize = spec.disk_heads.iter().map(|head| head.len(channels)).sum();
        let whole = Self::width(spec, channels);
        let fits = [whole, whole - spec.device_features.len()].contains(&numbers.len())
            && allowed.len() == levels
            && current.len() == spec.disk_heads.len();
        fits.then(|| Self {
            numbers: numbers.into(),
            channels,
            allowed: allowed.into(),
            current: current.into(),
        })
    }

    /// How many numbers a turn has, if the disk has a device.
    fn width(spec: &EnvSpec, channels: usize) -> usize {
        let own = spec.disk_features.len() + spec.device_features.len() + spec.host_features.len();
        own + channels * (spec.channel_features.len() + spec.pair_features.len())
    }

    pub(crate) fn numbers(&self) -> &[f32] {
        &self.numbers
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    pub(crate) fn allowed(&self) -> &[bool] {
        &self.allowed
    }

    pub(crate) fn current(&self) -> &[Level] {
        &self.current
    }

    /// Shows it as it was seen.
    pub(crate) fn with<T>(&self, spec: &EnvSpec, look: impl FnOnce(&TurnView<'_>) -> T) -> T {
        let mut rest = &self.numbers[..];
        let mut take = |count: usize| {
            let (own, later) = rest.split_at(count);
            rest = later;
            own
        };
        let disk = take(spec.disk_features.len());
        let has_device = self.numbers.len() == Self::width(spec, self.channels);
        let device = take(if has_device {
            spec.device_features.len()
        } else {
            0
        });
        let host = take(spec.host_features.len());
        let mut table = |width: usize| {
            let shape = (self.channels, width);
            ArrayView2::from_shape(shape, take(self.channels * width)).expect("as many as taken")
        };
        let channels = table(spec.channel_features.len());
        let pairs = table(spec.pair_features.len());
        let current = ArrayView1::from(&self.current[..]);
        let reason = |allowed: &bool| match allowed {
            true => MaskReason::Allowed,
            false => MaskReason::NotEnabled,
        };
        let mask: Vec<MaskReason> = self.allowed.iter().map(reason).collect();
        look(&TurnView {
            turn: Turn::Disk(0),
            heads: &spec.disk_heads,
            disk: Some(ArrayView1::from(disk)),
            device: (!device.is_empty()).then(|| ArrayView1::from(device)),
            host: ArrayView1::from(host),
            channels,
            pairs: Some(pairs),
            current,
            default: current,
            mask: &mask,
        })
    }
}
