//! Turns that are remembered as one safetensors file, with what goes with them, so that an interrupted run goes on.
//!
//! A turn that several things share is written once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use blkpilot_env::{EnvSpec, Level};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::SeenTurn;
use crate::LearnError;

pub(crate) fn no_state(problem: String) -> LearnError {
    LearnError::NoState { problem }
}

/// Tensors to be written, by name, and the turns that they name by number.
#[derive(Default)]
pub(crate) struct Written<'a> {
    tensors: BTreeMap<&'static str, (Dtype, Vec<u8>)>,
    turns: Vec<&'a SeenTurn>,
    numbers: HashMap<*const SeenTurn, i64>,
}

impl<'a> Written<'a> {
    fn put(&mut self, name: &'static str, dtype: Dtype, bytes: impl Iterator<Item = u8>) {
        self.tensors.insert(name, (dtype, bytes.collect()));
    }

    pub(crate) fn i64(&mut self, name: &'static str, values: &[i64]) {
        self.put(
            name,
            Dtype::I64,
            values.iter().flat_map(|v| v.to_le_bytes()),
        );
    }

    pub(crate) fn f32(&mut self, name: &'static str, values: impl Iterator<Item = f32>) {
        self.put(name, Dtype::F32, values.flat_map(f32::to_le_bytes));
    }

    pub(crate) fn levels(&mut self, name: &'static str, values: impl Iterator<Item = Level>) {
        self.put(name, Dtype::U16, values.flat_map(Level::to_le_bytes));
    }

    /// The number of a turn, the same for each that shares it.
    pub(crate) fn number(&mut self, turn: &'a Arc<SeenTurn>) -> i64 {
        let turns = &mut self.turns;
        *self.numbers.entry(Arc::as_ptr(turn)).or_insert_with(|| {
            turns.push(turn);
            turns.len() as i64 - 1
        })
    }

    pub(crate) fn turns(&mut self) {
        let turns = std::mem::take(&mut self.turns);
        let channels: Vec<i64> = turns.iter().map(|turn| turn.channels() as i64).collect();
        let widths: Vec<i64> = turns
            .iter()
            .map(|turn| turn.numbers().len() as i64)
            .collect();
        let levels: Vec<i64> = turns
            .iter()
            .map(|turn| turn.allowed().len() as i64)
            .collect();
        self.i64("turns.channels", &channels);
        self.i64("turns.width", &widths);
        self.i64("turns.levels", &levels);
        self.f32(
            "turns.numbers",
            turns.iter().flat_map(|turn| turn.numbers().iter().copied()),
        );
        let allowed = turns.iter().flat_map(|turn| turn.allowed());
        self.put(
            "turns.allowed",
            Dtype::U8,
            allowed.map(|allowed| u8::from(*allowed)),
        );
        self.levels(
            "turns.current",
            turns.iter().flat_map(|turn| turn.current().iter().copied()),
        );
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, data))| {
            let shape = vec![data.len() * 8 / dtype.bitsize()];
            let view =
                TensorView::new(*dtype, shape, data).expect("the shape was made of the data");
            (*name, view)
        });
        safetensors::serialize(views, None).expect("names and shapes are written as they are")
    }
}

/// Tensors that were read.
pub(crate) struct Read<'a> {
    tensors: SafeTensors<'a>,
    pub(crate) heads: usize,
}

pub(crate) type Turns = Vec<Arc<SeenTurn>>;

impl<'a> Read<'a> {
    /// What [`Written::finish`] gave.
    ///
    /// # Errors
    /// `NoState` if it is no safetensors file.
    pub(crate) fn open(spec: &EnvSpec, bytes: &'a [u8]) -> Result<Self, LearnError> {
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|error| no_state(format!("its memory cannot be read: {error}")))?;
        Ok(Self {
            tensors,
            heads: spec.disk_heads.len(),
        })
    }

    fn values<T, const BYTES: usize>(
        &self,
        name: &str,
        dtype: Dtype,
        of: impl Fn([u8; BYTES]) -> T,
    ) -> Result<Vec<T>, LearnError> {
        let wrong = |problem: &str| no_state(format!("the tensor {name} of its memory {problem}"));
        let tensor = self.tensors.tensor(name).map_err(|_| wrong("is missing"))?;
        if tensor.dtype() != dtype {
            return Err(wrong("has another kind of numbers"));
        }
        let (chunks, _) = tensor.data().as_chunks::<BYTES>();
        Ok(chunks.iter().map(|bytes| of(*bytes)).collect())
    }

    pub(crate) fn i64(&self, name: &str) -> Result<Vec<i64>, LearnError> {
        self.values(name, Dtype::I64, i64::from_le_bytes)
    }

    pub(crate) fn f32(&self, name: &str) -> Result<Vec<f32>, LearnError> {
        self.values(name, Dtype::F32, f32::from_le_bytes)
    }

    pub(crate) fn levels(&self, name: &str) -> Result<Vec<Level>, LearnError> {
        self.values(name, Dtype::U16, Level::from_le_bytes)
    }

    pub(crate) fn turns(&self, spec: &EnvSpec) -> Result<Turns, LearnError> {
        let (channels, widths) = (self.i64("turns.channels")?, self.i64("turns.width")?);
        let counts = self.i64("turns.levels")?;
        let mut numbers = Rest(&self.f32("turns.numbers")?);
        let allowed = self.values("turns.allowed", Dtype::U8, |[byte]| byte != 0)?;
        let mut allowed = Rest(&allowed);
        let mut current = Rest(&self.levels("turns.current")?);
        let of = channels.into_iter().zip(widths).zip(counts);
        let turn = |((channels, width), levels): ((i64, i64), i64)| {
            let channels = usize::try_from(channels).ok()?;
            let turn = SeenTurn::from_parts(
                spec,
                channels,
                numbers.take(width)?,
                allowed.take(levels)?,
                current.take(self.heads as i64)?,
            )?;
            Some(Arc::new(turn))
        };
        let turns: Option<Turns> = of.map(turn).collect();
        turns.ok_or_else(|| no_state("the turns of its memory are not of its spec".to_owned()))
    }
}

pub(crate) fn turn(turns: &Turns, number: i64) -> Option<Arc<SeenTurn>> {
    turns.get(usize::try_from(number).ok()?).cloned()
}

/// What is left of some values.
pub(crate) struct Rest<'a, T>(pub(crate) &'a [T]);

impl<'a, T> Rest<'a, T> {
    pub(crate) fn take(&mut self, count: i64) -> Option<&'a [T]> {
        let (own, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(own)
    }
}
