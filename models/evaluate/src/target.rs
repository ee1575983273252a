//! Policies that are evaluated: what they would have done where another one decided.

use blkpilot_env::{EnvSpec, Head, Level, MaskReason, Turn, TurnView};
use blkpilot_models::categorical::{greedy, softmax_into};
use blkpilot_models::network::Scratch;
use blkpilot_models::{ActorCritic, Checkpoint, CheckpointError, PolicyError, Selection};
use ndarray::{ArrayView1, ArrayView2};

/// A policy that is evaluated.
pub trait TargetPolicy: Sync {
    /// Its name, for reports.
    fn name(&self) -> &str;

    /// Its version: the content hash of a checkpoint; empty, as by default, where it has none.
    fn version(&self) -> &str {
        ""
    }

    /// How it chooses, in words, such as `sample, epsilon 0.1`; by default it draws by its probabilities.
    fn chooses(&self) -> String {
        "sample".to_owned()
    }

    /// What it was made for: the log's rows must be of the same hash.
    fn spec(&self) -> &EnvSpec;

    /// Writes the probability of each level to `out`, in the order of the masks: turn after turn, head after
    /// head, level after level. A head's probabilities sum to 1 and are 0 where the mask forbids; one that
    /// has no choice (see [`LoggedTurn::forced`]) has all of it on the level it is left with, and where
    /// nothing is allowed all are 0.
    ///
    /// `turns` are those of one joint decision, in order; each sees the choices that were logged before it.
    ///
    /// # Errors
    /// If it cannot decide on what was seen in one of them, with the number of the turn.
    fn probabilities(
        &self,
        turns: &[LoggedTurn<'_>],
        out: &mut [f64],
    ) -> Result<(), (usize, PolicyError)>;
}

/// What a disk or device saw in its turn, as it was logged.
#[derive(Debug, Clone, Copy)]
pub struct LoggedTurn<'a> {
    /// Whose turn it was; the number is that of its row in the joint decision.
    pub turn: Turn,
    /// The heads to decide.
    pub heads: &'a [Head],
    /// The disk's features `[F]`; empty in a device's turn.
    pub disk: &'a [f32],
    /// The (backing) device's features `[E]`; empty where there is none.
    pub device: &'a [f32],
    /// The host's features `[H]`.
    pub host: &'a [f32],
    /// Number of channels (K).
    pub channel_count: usize,
    /// The channels' features after the choices made before, `[K, C]` row by row.
    pub channels: &'a [f32],
    /// The disk's relation to each channel, `[K, P]` row by row; empty in a device's turn.
    pub pairs: &'a [f32],
    /// The levels that were in force, one per head.
    pub previous: &'a [Level],
    /// What could be chosen: the heads' levels one after another.
    pub mask: &'a [MaskReason],
}

impl<'a> LoggedTurn<'a> {
    /// The turn as policies see it. What keep-default is was not logged: the levels in force stand for it.
    #[must_use]
    pub fn view(&self) -> TurnView<'a> {
        let is_disk = matches!(self.turn, Turn::Disk(_));
        let table = |values: &'a [f32]| {
            let columns = values.len().checked_div(self.channel_count).unwrap_or(0);
            ArrayView2::from_shape((self.channel_count, columns), values)
                .expect("the reader has compared the lengths with the spec")
        };
        let levels = ArrayView1::from(self.previous);
        TurnView {
            turn: self.turn,
            heads: self.heads,
            disk: is_disk.then(|| ArrayView1::from(self.disk)),
            device: (!self.device.is_empty()).then(|| ArrayView1::from(self.device)),
            host: ArrayView1::from(self.host),
            channels: table(self.channels),
            pairs: is_disk.then(|| table(self.pairs)),
            current: levels,
            default: levels,
            mask: self.mask,
        }
    }

    /// The masks of the heads, in turn.
    pub fn head_masks(&self) -> impl Iterator<Item = &'a [MaskReason]> + use<'a> {
        let (mask, channels, mut start) = (self.mask, self.channel_count, 0);
        self.heads.iter().map(move |head| {
            let end = start + head.len(channels);
            let own = &mask[start..end];
            start = end;
            own
        })
    }

    /// The level to take if a head has no choice; `None` if it has one.
    #[must_use]
    pub fn forced(&self, head: usize) -> Option<Level> {
        let mask = self.head_masks().nth(head)?;
        forced(mask, self.previous[head])
    }
}

/// As [`TurnView::forced`].
pub(crate) fn forced(mask: &[MaskReason], previous: Level) -> Option<Level> {
    let mut allowed = mask
        .iter()
        .enumerate()
        .filter(|(_, reason)| reason.is_allowed());
    match (allowed.next(), allowed.next()) {
        (None, _) => Some(previous),
        (Some((only, _)), None) => Some(only as Level),
        (Some(_), Some(_)) => None,
    }
}

/// Puts all on one level, where it is allowed.
fn certain(level: usize, mask: &[MaskReason], out: &mut [f64]) {
    out.fill(0.0);
    if mask.get(level).is_some_and(|reason| reason.is_allowed()) {
        out[level] = 1.0;
    }
}

/// Mixes a draw from all that is allowed into the probabilities of a head that has a choice.
fn explore(epsilon: f64, mask: &[MaskReason], out: &mut [f64]) {
    if epsilon <= 0.0 {
        return;
    }
    let allowed = mask.iter().filter(|reason| reason.is_allowed()).count() as f64;
    for (p, reason) in out.iter_mut().zip(mask) {
        if reason.is_allowed() {
            *p = (1.0 - epsilon) * *p + epsilon / allowed;
        }
    }
}

/// A checkpoint's network.
#[derive(Debug, Clone)]
pub struct NetworkTarget {
    name: String,
    version: String,
    network: ActorCritic,
    selection: Selection,
    epsilon: f64,
}

impl NetworkTarget {
    /// The network of a checkpoint as it is served: `selection` says how its scores become a choice, and
    /// with `epsilon`, in [0, 1], a head that has one is drawn from all that is allowed instead.
    ///
    /// A greedy policy without epsilon takes one level for certain: a row in which another was drawn weighs 0.
    ///
    /// # Errors
    /// What is wrong with the checkpoint.
    pub fn new(
        name: impl Into<String>,
        checkpoint: &Checkpoint,
        selection: Selection,
        epsilon: f64,
    ) -> Result<Self, CheckpointError> {
        Ok(Self {
            name: name.into(),
            version: checkpoint.manifest.tensors_sha256.clone(),
            network: ActorCritic::new(checkpoint)?,
            selection,
            epsilon: epsilon.clamp(0.0, 1.0),
        })
    }
}

impl TargetPolicy for NetworkTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn chooses(&self) -> String {
        let how = match self.selection {
            Selection::Greedy => "greedy",
            Selection::Sample => "sample",
        };
        match self.epsilon {
            0.0 => how.to_owned(),
            epsilon => format!("{how}, epsilon {epsilon}"),
        }
    }

    fn spec(&self) -> &EnvSpec {
        self.network.spec()
    }

    fn probabilities(
        &self,
        turns: &[LoggedTurn<'_>],
        out: &mut [f64],
    ) -> Result<(), (usize, PolicyError)> {
        let (mut scratch, mut rest) = (Scratch::default(), out);
        for (i, turn) in turns.iter().enumerate() {
            let scores = self.network.scores(&turn.view(), &mut scratch);
            let mut scores = scores.map_err(|error| (i, error))?;
            for (mask, previous) in turn.head_masks().zip(turn.previous) {
                let (own, more) = scores.split_at(mask.len());
                let (out, left) = std::mem::take(&mut rest).split_at_mut(mask.len());
                (scores, rest) = (more, left);
                match (forced(mask, *previous), self.selection) {
                    (Some(level), _) => {
                        certain(usize::from(level), mask, out);
                        continue;
                    }
                    (None, Selection::Greedy) => {
                        let best = greedy(own, mask).expect("a head with a choice has a level");
                        certain(best, mask, out);
                    }
                    (None, Selection::Sample) => softmax_into(own, mask, out),
                }
                explore(self.epsilon, mask, out);
            }
        }
        Ok(())
    }
}

/// Every allowed level of a head with the same probability.
#[derive(Debug, Clone)]
pub struct UniformTarget {
    spec: EnvSpec,
}

impl UniformTarget {
    /// For environments with this spec.
    #[must_use]
    pub fn new(spec: EnvSpec) -> Self {
        Self { spec }
    }
}

impl TargetPolicy for UniformTarget {
    fn name(&self) -> &'static str {
        "random"
    }

    fn chooses(&self) -> String {
        "uniform over what is allowed".to_owned()
    }

    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn probabilities(
        &self,
        turns: &[LoggedTurn<'_>],
        out: &mut [f64],
    ) -> Result<(), (usize, PolicyError)> {
        let mut rest = out;
        for mask in turns.iter().flat_map(LoggedTurn::head_masks) {
            let (out, left) = std::mem::take(&mut rest).split_at_mut(mask.len());
            rest = left;
            out.fill(0.0);
            explore(1.0, mask, out);
        }
        Ok(())
    }
}
