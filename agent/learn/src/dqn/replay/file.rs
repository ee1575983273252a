//! What a learner remembers as one safetensors file, so that an interrupted run goes on with it.
//!
//! A turn that several transitions share is written once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use blkpilot_env::{EnvSpec, Level};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{Prioritised, Replay, SeenTurn, Transition};
use crate::LearnError;
use crate::dqn::steps::{HostStep, Waiting};

/// Stands for no turn.
const NONE: i64 = -1;
/// Far more environments than are played together.
const MOST_ENVS: usize = 1 << 20;

/// What a learner remembers.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::dqn) struct Memory {
    pub(in crate::dqn) replay: Replay,
    /// By environment.
    pub(in crate::dqn) waiting: Vec<Waiting>,
}

impl Memory {
    /// All of it.
    pub(in crate::dqn) fn to_bytes(&self) -> Vec<u8> {
        let mut written = Written::default();
        written.replay(&self.replay);
        written.i64("waiting.envs", &[self.waiting.len() as i64]);
        written.waiting(&self.waiting);
        written.turns();
        written.finish()
    }

    /// What [`Memory::to_bytes`] gave, for a replay as it was made then.
    ///
    /// # Errors
    /// `NoState` if it is something else.
    pub(in crate::dqn) fn from_bytes(
        spec: &EnvSpec,
        bytes: &[u8],
        capacity: usize,
        prioritised: Option<Prioritised>,
    ) -> Result<Self, LearnError> {
        let read = Read {
            tensors: SafeTensors::deserialize(bytes)
                .map_err(|error| no_state(format!("its replay cannot be read: {error}")))?,
            heads: spec.disk_heads.len(),
        };
        let turns = read.turns(spec)?;
        Ok(Self {
            replay: read.replay(&turns, capacity, prioritised)?,
            waiting: read.waiting(&turns)?,
        })
    }
}

fn no_state(problem: String) -> LearnError {
    LearnError::NoState { problem }
}

/// Tensors to be written, by name, and the turns that they name by number.
#[derive(Default)]
struct Written<'a> {
    tensors: BTreeMap<&'static str, (Dtype, Vec<u8>)>,
    turns: Vec<&'a SeenTurn>,
    numbers: HashMap<*const SeenTurn, i64>,
}

impl<'a> Written<'a> {
    fn put(&mut self, name: &'static str, dtype: Dtype, bytes: impl Iterator<Item = u8>) {
        self.tensors.insert(name, (dtype, bytes.collect()));
    }

    fn i64(&mut self, name: &'static str, values: &[i64]) {
        self.put(
            name,
            Dtype::I64,
            values.iter().flat_map(|v| v.to_le_bytes()),
        );
    }

    fn f32(&mut self, name: &'static str, values: impl Iterator<Item = f32>) {
        self.put(name, Dtype::F32, values.flat_map(f32::to_le_bytes));
    }

    fn levels(&mut self, name: &'static str, values: impl Iterator<Item = Level>) {
        self.put(name, Dtype::U16, values.flat_map(Level::to_le_bytes));
    }

    /// The number of a turn, the same for each that shares it.
    fn number(&mut self, turn: &'a Arc<SeenTurn>) -> i64 {
        let turns = &mut self.turns;
        *self.numbers.entry(Arc::as_ptr(turn)).or_insert_with(|| {
            turns.push(turn);
            turns.len() as i64 - 1
        })
    }

    fn replay(&mut self, replay: &'a Replay) {
        let all = &replay.transitions;
        let turns: Vec<i64> = all.iter().map(|t| self.number(&t.turn)).collect();
        let next = all.iter().map(|t| t.next.as_ref());
        let next: Vec<i64> = next
            .map(|turn| turn.map_or(NONE, |turn| self.number(turn)))
            .collect();
        self.i64("transitions.turn", &turns);
        self.i64("transitions.next", &next);
        self.levels(
            "transitions.levels",
            all.iter().flat_map(|t| t.levels.iter().copied()),
        );
        self.f32("transitions.reward", all.iter().map(|t| t.reward));
        self.f32("transitions.discount", all.iter().map(|t| t.discount));
        self.i64("transitions.oldest", &[replay.oldest as i64]);
        if let Some(priorities) = &replay.priorities {
            self.f32("priorities.raw", priorities.raw.iter().copied());
            self.f32("priorities.greatest", [priorities.greatest].into_iter());
        }
    }

    fn waiting(&mut self, waiting: &'a [Waiting]) {
        let (mut envs, mut disks, mut turns) = (vec![], vec![], vec![]);
        for (env, waiting) in waiting.iter().enumerate() {
            for step in &waiting.steps {
                envs.push(env as i64);
                disks.push(step.turns.len() as i64);
                turns.extend(step.turns.iter().map(|turn| self.number(turn)));
            }
        }
        let steps = || waiting.iter().flat_map(|waiting| &waiting.steps);
        self.i64("waiting.env", &envs);
        self.i64("waiting.disks", &disks);
        self.i64("waiting.turn", &turns);
        let levels = steps()
            .flat_map(|step| &step.levels)
            .flat_map(|levels| levels.iter());
        self.levels("waiting.levels", levels.copied());
        self.f32(
            "waiting.reward",
            steps().flat_map(|step| step.rewards.iter().copied()),
        );
    }

    fn turns(&mut self) {
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

    fn finish(self) -> Vec<u8> {
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
struct Read<'a> {
    tensors: SafeTensors<'a>,
    heads: usize,
}

type Turns = Vec<Arc<SeenTurn>>;

impl Read<'_> {
    fn values<T, const BYTES: usize>(
        &self,
        name: &str,
        dtype: Dtype,
        of: impl Fn([u8; BYTES]) -> T,
    ) -> Result<Vec<T>, LearnError> {
        let wrong = |problem: &str| no_state(format!("the tensor {name} of its replay {problem}"));
        let tensor = self.tensors.tensor(name).map_err(|_| wrong("is missing"))?;
        if tensor.dtype() != dtype {
            return Err(wrong("has another kind of numbers"));
        }
        let (chunks, _) = tensor.data().as_chunks::<BYTES>();
        Ok(chunks.iter().map(|bytes| of(*bytes)).collect())
    }

    fn i64(&self, name: &str) -> Result<Vec<i64>, LearnError> {
        self.values(name, Dtype::I64, i64::from_le_bytes)
    }

    fn f32(&self, name: &str) -> Result<Vec<f32>, LearnError> {
        self.values(name, Dtype::F32, f32::from_le_bytes)
    }

    fn levels(&self, name: &str) -> Result<Vec<Level>, LearnError> {
        self.values(name, Dtype::U16, Level::from_le_bytes)
    }

    fn turns(&self, spec: &EnvSpec) -> Result<Turns, LearnError> {
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
        turns.ok_or_else(|| no_state("the turns of its replay are not of its spec".to_owned()))
    }

    fn replay(
        &self,
        turns: &Turns,
        capacity: usize,
        prioritised: Option<Prioritised>,
    ) -> Result<Replay, LearnError> {
        let (own, next) = (self.i64("transitions.turn")?, self.i64("transitions.next")?);
        let levels = self.levels("transitions.levels")?;
        let (rewards, discounts) = (
            self.f32("transitions.reward")?,
            self.f32("transitions.discount")?,
        );
        let oldest = self.i64("transitions.oldest")?;
        let transition = |at: usize| {
            Some(Transition {
                turn: turn(turns, own[at])?,
                levels: levels.get(at * self.heads..(at + 1) * self.heads)?.into(),
                reward: *rewards.get(at)?,
                discount: *discounts.get(at)?,
                next: match *next.get(at)? {
                    NONE => None,
                    number => Some(turn(turns, number)?),
                },
            })
        };
        let all: Option<Vec<Transition>> = (0..own.len()).map(transition).collect();
        let broken = || no_state("the transitions of its replay do not hold together".to_owned());
        let transitions = all.filter(|all| all.len() <= capacity).ok_or_else(broken)?;
        let mut replay = Replay {
            transitions,
            oldest: oldest.first().map_or(0, |oldest| *oldest as usize),
            ..Replay::new(capacity, prioritised)
        };
        if replay.oldest >= capacity {
            return Err(broken());
        }
        if let Some(priorities) = &mut replay.priorities {
            let raw = self.f32("priorities.raw")?;
            let greatest = self.f32("priorities.greatest")?;
            if raw.len() != replay.transitions.len() || greatest.len() != 1 {
                return Err(broken());
            }
            priorities.greatest = greatest[0];
            for (place, priority) in raw.into_iter().enumerate() {
                priorities.set(place, priority);
            }
        }
        Ok(replay)
    }

    fn waiting(&self, turns: &Turns) -> Result<Vec<Waiting>, LearnError> {
        let envs = self.i64("waiting.envs")?.first().copied();
        let envs = envs.and_then(|envs| usize::try_from(envs).ok());
        let broken = || no_state("what waits in its replay does not hold together".to_owned());
        let envs = envs.filter(|envs| *envs <= MOST_ENVS).ok_or_else(broken)?;
        let mut waiting = vec![Waiting::default(); envs];
        let mut own = Rest(&self.i64("waiting.turn")?);
        let mut levels = Rest(&self.levels("waiting.levels")?);
        let mut rewards = Rest(&self.f32("waiting.reward")?);
        let steps = self
            .i64("waiting.env")?
            .into_iter()
            .zip(self.i64("waiting.disks")?);
        let mut add = |env: i64, disks: i64| {
            let numbers = own.take(disks)?.iter();
            let step = HostStep {
                turns: numbers
                    .map(|number| turn(turns, *number))
                    .collect::<Option<_>>()?,
                levels: (0..disks)
                    .map(|_| levels.take(self.heads as i64).map(Into::into))
                    .collect::<Option<_>>()?,
                rewards: rewards.take(disks)?.to_vec(),
            };
            waiting
                .get_mut(usize::try_from(env).ok()?)?
                .steps
                .push_back(step);
            Some(())
        };
        for (env, disks) in steps {
            add(env, disks).ok_or_else(broken)?;
        }
        Ok(waiting)
    }
}

fn turn(turns: &Turns, number: i64) -> Option<Arc<SeenTurn>> {
    turns.get(usize::try_from(number).ok()?).cloned()
}

/// What is left of some values.
struct Rest<'a, T>(&'a [T]);

impl<'a, T> Rest<'a, T> {
    fn take(&mut self, count: i64) -> Option<&'a [T]> {
        let (own, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(own)
    }
}
