//! What a learner remembers as one file, so that an interrupted run goes on with it.

use blkpilot_env::EnvSpec;

use super::{Prioritised, Replay, Transition};
use crate::LearnError;
use crate::dqn::steps::{HostStep, Waiting};
use crate::seen::file::{Read, Rest, Turns, Written, no_state, turn};

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
        let read = Read::open(spec, bytes)?;
        let turns = read.turns(spec)?;
        Ok(Self {
            replay: read.replay(&turns, capacity, prioritised)?,
            waiting: read.waiting(&turns)?,
        })
    }
}

impl<'a> Written<'a> {
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
}

impl Read<'_> {
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
