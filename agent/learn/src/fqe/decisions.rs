//! Joint decisions that were logged, as tensors.

use std::ops::Range;

use blkpilot_env::{EnvSpec, Head, Level, Turn, TurnView};
use blkpilot_models::{Normaliser, PerTable};
use tch::{Kind, TchError, Tensor};

use crate::LearnError;
use crate::turns::{Batch, Turns};

/// What follows a joint decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The one that is pushed next.
    Next,
    /// Nothing: its value is its reward.
    End,
    /// It is not known: the joint decision is only the one that follows another.
    Unknown,
}

/// What came of a joint decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Its reward.
    pub reward: f64,
    /// What follows it.
    pub then: Then,
    /// What it belongs to: groups are held out, or kept for the early stop, as a whole.
    pub group: usize,
}

/// A row of a joint decision.
#[derive(Debug)]
pub struct TakenTurn<'a> {
    /// What was seen; all of it finite.
    pub view: TurnView<'a>,
    /// The levels that were taken, one per head.
    pub levels: &'a [Level],
    /// With which probability the policy that is evaluated takes each level, in the order of the mask; 0 where
    /// that forbids.
    pub probabilities: &'a [f64],
}

/// Rows of one kind, with the weights of levels in the order of the masks.
#[derive(Debug)]
struct Side {
    turns: Turns,
    heads: Vec<Head>,
    channels: Vec<usize>,
    taken: Vec<f32>,
    expected: Vec<f32>,
    /// Row r has the weights `starts[r]..starts[r + 1]`.
    starts: Vec<usize>,
}

impl Side {
    fn new(turns: Turns, heads: &[Head]) -> Self {
        Self {
            turns,
            heads: heads.to_vec(),
            channels: vec![],
            taken: vec![],
            expected: vec![],
            starts: vec![0],
        }
    }

    fn push(&mut self, turn: &TakenTurn<'_>) {
        self.turns.push(&turn.view);
        let channels = turn.view.channels.nrows();
        let start = self.taken.len();
        self.taken.resize(start + turn.view.mask.len(), 0.0);
        let mut own = &mut self.taken[start..];
        for (head, level) in self.heads.iter().zip(turn.levels) {
            own[usize::from(*level)] = 1.0;
            own = &mut own[head.len(channels)..];
        }
        let probabilities = turn.probabilities.iter();
        self.expected.extend(probabilities.map(|p| *p as f32));
        self.starts.push(self.taken.len());
        self.channels.push(channels);
    }

    fn build(self) -> Result<Option<Rows>, TchError> {
        if self.turns.is_empty() {
            return Ok(None);
        }
        let batch = self.turns.batch(0..self.turns.len())?;
        let widths: Vec<usize> = batch
            .allowed
            .iter()
            .map(|allowed| Ok(allowed.size2()?.1 as usize))
            .collect::<Result<_, TchError>>()?;
        Ok(Some(Rows {
            taken: self.weights(&widths, &self.taken)?,
            expected: self.weights(&widths, &self.expected)?,
            batch,
        }))
    }

    /// Per head `[rows, levels]`, padded with 0.
    fn weights(&self, widths: &[usize], of: &[f32]) -> Result<Vec<Tensor>, TchError> {
        let rows = self.channels.len();
        let mut padded: Vec<Vec<f32>> =
            widths.iter().map(|width| vec![0.0; rows * width]).collect();
        for (row, channels) in self.channels.iter().enumerate() {
            let mut own = &of[self.starts[row]..self.starts[row + 1]];
            for ((head, width), out) in self.heads.iter().zip(widths).zip(&mut padded) {
                let (levels, rest) = own.split_at(head.len(*channels));
                out[row * width..][..levels.len()].copy_from_slice(levels);
                own = rest;
            }
        }
        let tensor = |(values, width): (&Vec<f32>, &usize)| {
            Tensor::f_from_slice(values)?.f_view([rows as i64, *width as i64])
        };
        padded.iter().zip(widths).map(tensor).collect()
    }
}

/// Rows of one kind as tensors; S of them.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) batch: Batch,
    /// Per head `[S, levels]`: 1 where a level was taken.
    pub(super) taken: Vec<Tensor>,
    /// Per head `[S, levels]`: the policy's probabilities.
    pub(super) expected: Vec<Tensor>,
}

impl Rows {
    fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        let of = |tensors: &[Tensor]| -> Result<Vec<Tensor>, TchError> {
            tensors
                .iter()
                .map(|tensor| tensor.f_to_kind(kind))
                .collect()
        };
        Ok(Self {
            batch: self.batch.to_kind(kind)?,
            taken: of(&self.taken)?,
            expected: of(&self.expected)?,
        })
    }
}

#[derive(Debug, Clone)]
pub(super) struct StepRows {
    pub(super) disks: Range<usize>,
    pub(super) devices: Range<usize>,
    outcome: Outcome,
}

/// Takes joint decisions in.
#[derive(Debug)]
pub struct Builder {
    disks: Side,
    devices: Side,
    steps: Vec<StepRows>,
}

impl Builder {
    /// For rows of this spec, which a network is to see by these normalisers.
    #[must_use]
    pub fn new(spec: &EnvSpec, normalisers: &PerTable<Normaliser>) -> Self {
        let disks = Turns::of_disks(spec, normalisers);
        let devices = Turns::of_devices(spec, normalisers);
        Self {
            disks: Side::new(disks, &spec.disk_heads),
            devices: Side::new(devices, &spec.device_heads),
            steps: vec![],
        }
    }

    /// Appends a joint decision.
    ///
    /// # Panics
    /// If levels or probabilities are not of the view's heads.
    pub fn push<'a>(&mut self, turns: impl IntoIterator<Item = TakenTurn<'a>>, outcome: Outcome) {
        let first = [&self.disks, &self.devices].map(|side| side.turns.len());
        for turn in turns {
            match turn.view.turn {
                Turn::Disk(_) => self.disks.push(&turn),
                Turn::Device(_) => self.devices.push(&turn),
            }
        }
        self.steps.push(StepRows {
            disks: first[0]..self.disks.turns.len(),
            devices: first[1]..self.devices.turns.len(),
            outcome,
        });
    }

    /// All of them, as tensors.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn build(self) -> Result<Decisions, LearnError> {
        Ok(Decisions {
            disks: self.disks.build()?,
            devices: self.devices.build()?,
            steps: self.steps,
        })
    }
}

/// Joint decisions, numbered from 0.
#[derive(Debug)]
pub struct Decisions {
    pub(super) disks: Option<Rows>,
    pub(super) devices: Option<Rows>,
    pub(super) steps: Vec<StepRows>,
}

impl Decisions {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What came of one.
    #[must_use]
    pub fn outcome(&self, step: usize) -> Outcome {
        self.steps[step].outcome
    }

    /// Numbers of those of which it is known what follows.
    pub fn transitions(&self) -> impl Iterator<Item = usize> {
        let steps = self.steps.iter().enumerate();
        let known = steps.filter(|(_, step)| step.outcome.then != Then::Unknown);
        known.map(|(number, _)| number)
    }

    /// With numbers of another kind.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn to_kind(&self, kind: Kind) -> Result<Self, LearnError> {
        let of = |rows: &Option<Rows>| rows.as_ref().map(|rows| rows.to_kind(kind)).transpose();
        Ok(Self {
            disks: of(&self.disks)?,
            devices: of(&self.devices)?,
            steps: self.steps.clone(),
        })
    }
}
