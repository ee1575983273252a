//! Turns that were logged, as tensors, each with what came of it and what its disk saw next.

use std::collections::HashMap;

use blkpilot_env::{EnvSpec, Level, TurnView};
use blkpilot_models::{Normaliser, PerTable, Range, Statistics};
use tch::{Kind, TchError, Tensor};

use crate::LearnError;
use crate::turns::{Batch, Turns};

/// A disk's turn, as it was logged.
#[derive(Debug)]
pub struct Logged<'a> {
    /// What was seen; all of it finite.
    pub view: TurnView<'a>,
    /// Number of the disk on its host, the same in all its turns.
    pub disk: u32,
    /// The levels that were taken, one per head.
    pub levels: &'a [Level],
    /// With which probability each of them was drawn, in (0, 1].
    pub propensities: &'a [f64],
    /// What came of it, on the scale that is to be learnt: 0 of a disk that does not count; `None` where it is not
    /// known.
    pub reward: Option<f32>,
}

/// A joint decision, as it was logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joint {
    /// Number of its host; those of a host are pushed in order.
    pub host: usize,
    /// It follows the one pushed before of this host: within its episode, and without a gap.
    pub follows: bool,
    /// The episode ended here in a terminal state.
    pub has_terminated: bool,
}

/// Where a disk was seen last.
#[derive(Debug, Clone, Copy)]
struct Last {
    row: usize,
    /// The how manieth joint decision of its host it was.
    number: u64,
}

/// Takes logged turns in.
#[derive(Debug)]
pub struct Builder {
    statistics: Statistics,
    turns: Turns,
    levels: Vec<i64>,
    propensities: Vec<f32>,
    rewards: Vec<Option<f32>>,
    next: Vec<Next>,
    begins: Vec<bool>,
    joints: HashMap<usize, u64>,
    last: HashMap<(usize, u32), Last>,
}

/// What follows a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// This row: the turn of the same disk in the next joint decision.
    Row(usize),
    /// Nothing.
    End,
    /// It was not logged.
    Unknown,
}

impl Builder {
    /// For turns of this spec, of which the log's `statistics` give the normalisers.
    ///
    /// # Errors
    /// `NoLessons` if devices have heads too: a log tells what came of a disk's turn, not of a device's.
    pub fn new(spec: &EnvSpec, statistics: Statistics) -> Result<Self, LearnError> {
        if !spec.device_heads.is_empty() {
            return Err(no_lessons(format!(
                "devices of `{}` decide too (head {}), and what came of their choices is no part of a log; log hosts whose devices have no heads",
                spec.name, spec.device_heads[0].name
            )));
        }
        Ok(Self {
            turns: Turns::of_disks(spec, &statistics.normalisers()),
            statistics,
            levels: vec![],
            propensities: vec![],
            rewards: vec![],
            next: vec![],
            begins: vec![],
            joints: HashMap::new(),
            last: HashMap::new(),
        })
    }

    /// Appends the turns of a joint decision.
    ///
    /// # Panics
    /// If levels are not of the view's heads.
    pub fn push<'a>(&mut self, joint: Joint, turns: impl IntoIterator<Item = Logged<'a>>) {
        let number = self.joints.entry(joint.host).or_default();
        *number += 1;
        let number = *number;
        for turn in turns {
            let row = self.push_turn(&turn);
            if joint.has_terminated {
                self.next[row] = Next::End;
            }
            let here = Last { row, number };
            let before = self.last.insert((joint.host, turn.disk), here);
            let before = before.filter(|last| joint.follows && last.number + 1 == number);
            if let Some(before) = before {
                self.next[before.row] = Next::Row(row);
            }
            self.begins.push(before.is_none());
        }
    }

    fn push_turn(&mut self, turn: &Logged<'_>) -> usize {
        let heads = turn.view.heads.len();
        assert_eq!(turn.levels.len(), heads, "one level per head");
        let row = self.turns.push(&turn.view);
        let levels = turn.levels.iter().copied();
        self.levels.extend(levels.map(i64::from));
        let free = (0..heads).filter(|head| self.turns.is_free(row, *head));
        let propensity: f64 = free.map(|head| turn.propensities[head]).product();
        self.propensities.push(propensity as f32);
        self.rewards.push(turn.reward);
        self.next.push(Next::Unknown);
        row
    }

    /// All of them, as tensors. `digest` is what the log is known by.
    ///
    /// # Errors
    /// `NoLessons` if no turn has a choice, `Torch` if libtorch fails.
    pub fn build(self, digest: String) -> Result<Dataset, LearnError> {
        let rows = self.turns.len();
        let choices: Vec<i64> = (0..rows)
            .filter(|row| self.turns.has_choice(*row))
            .map(|row| row as i64)
            .collect();
        if choices.is_empty() {
            return Err(no_lessons(format!(
                "in none of its {rows} turns was there a choice; log guests that have opted in"
            )));
        }
        let is_known =
            |row: &usize| self.rewards[*row].is_some() && self.next[*row] != Next::Unknown;
        let transitions: Vec<usize> = (0..rows).filter(is_known).collect();
        let begins = transitions.iter().filter(|row| self.begins[**row]);
        let as_i64 = |rows: &[usize]| rows.iter().map(|row| *row as i64).collect();
        let (mut next, mut goes_on) = (vec![0; rows], vec![0.0_f32; rows]);
        for (row, follows) in self.next.iter().enumerate() {
            if let Next::Row(follows) = follows {
                (next[row], goes_on[row]) = (*follows as i64, 1.0);
            }
        }
        let known = self.rewards.iter().flatten().count();
        let rewards: Vec<f32> = self.rewards.iter().map(|r| r.unwrap_or(0.0)).collect();
        let begins: Vec<usize> = begins.copied().collect();
        let heads = self.turns.heads() as i64;
        Ok(Dataset {
            facts: Facts {
                turns: rows,
                choices: choices.len(),
                transitions: transitions.len(),
                cut: known - transitions.len(),
                greatest_reward: rewards.iter().fold(0.0_f32, |most, r| most.max(r.abs())),
            },
            batch: self.turns.batch(0..rows)?,
            levels: Tensor::f_from_slice(&self.levels)?.f_view([rows as i64, heads])?,
            propensities: Tensor::f_from_slice(&self.propensities)?,
            rewards: Tensor::f_from_slice(&rewards)?,
            goes_on: Tensor::f_from_slice(&goes_on)?,
            next: Tensor::f_from_slice(&next)?,
            choices,
            transitions: as_i64(&transitions),
            begins: as_i64(&begins),
            normalisers: self.statistics.normalisers(),
            seen: self.statistics.ranges(),
            digest,
            course: Course {
                rewards,
                next: self.next,
            },
        })
    }
}

fn no_lessons(problem: String) -> LearnError {
    LearnError::NoLessons { problem }
}

/// What a data set holds, counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// Disks' turns.
    pub turns: usize,
    /// Of them, those in which a head had a choice: what is imitated.
    pub choices: usize,
    /// Turns of which it is known what they earned and what follows: what values are learnt from.
    pub transitions: usize,
    /// Turns that earned something known but whose successor was not logged, since the episode was cut or the log has a
    /// gap: no value is learnt from them, as there is nothing to bootstrap from.
    pub cut: usize,
    /// Greatest reward in absolute value.
    pub greatest_reward: f32,
}

/// Logged turns; S of them.
#[derive(Debug)]
pub struct Dataset {
    /// What it holds.
    pub facts: Facts,
    /// What was seen.
    batch: Batch,
    /// int64 `[S, heads]`.
    levels: Tensor,
    /// Of the joint choice of a turn, forced heads left out; `[S]`.
    propensities: Tensor,
    /// `[S]`; 0 where it is not known.
    rewards: Tensor,
    /// 1 where a turn follows; `[S]`.
    goes_on: Tensor,
    /// Which, int64 `[S]`; 0 where none does.
    next: Tensor,
    choices: Vec<i64>,
    transitions: Vec<i64>,
    /// Transitions with which a disk's course begins.
    begins: Vec<i64>,
    course: Course,
    /// Mean and deviation per column of the log.
    pub normalisers: PerTable<Normaliser>,
    /// Range per column of the log.
    pub seen: PerTable<Range>,
    /// What the log is known by.
    pub digest: String,
}

/// Rewards along the courses of disks.
#[derive(Debug)]
struct Course {
    rewards: Vec<f32>,
    next: Vec<Next>,
}

impl Dataset {
    /// Rows of turns with a choice.
    #[must_use]
    pub fn choices(&self) -> &[i64] {
        &self.choices
    }

    /// Rows of transitions.
    #[must_use]
    pub fn transitions(&self) -> &[i64] {
        &self.transitions
    }

    /// Rows of transitions with which the course of a disk begins.
    #[must_use]
    pub fn begins(&self) -> &[i64] {
        &self.begins
    }

    /// What is to be learnt from some rows.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn lessons(&self, rows: &[i64]) -> Result<Lessons, TchError> {
        let rows = Tensor::f_from_slice(rows)?;
        let pick = |tensor: &Tensor| tensor.f_index_select(0, &rows);
        Ok(Lessons {
            batch: self.batch.select(&rows)?,
            levels: pick(&self.levels)?,
            rewards: pick(&self.rewards)?,
            goes_on: pick(&self.goes_on)?,
            next: self.batch.select(&pick(&self.next)?)?,
        })
    }

    /// What was seen and taken in some rows, without what followed.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn examples(&self, rows: &[i64]) -> Result<(Batch, Tensor), TchError> {
        let rows = Tensor::f_from_slice(rows)?;
        Ok((
            self.batch.select(&rows)?,
            self.levels.f_index_select(0, &rows)?,
        ))
    }

    /// Mean of −ln propensity over the turns with a choice: what a policy that is the behaviour's has as its loss of
    /// cloning, in nats.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn behaviour_entropy(&self) -> Result<f64, TchError> {
        let rows = Tensor::f_from_slice(&self.choices)?;
        let own = self.propensities.f_index_select(0, &rows)?;
        own.f_log()?
            .f_mean(Kind::Double)?
            .f_neg()?
            .f_double_value(&[])
    }

    /// Discounted sums of what the behaviour earned on the courses of disks from their beginnings to where they end or
    /// are cut; one per beginning.
    #[must_use]
    pub fn returns(&self, gamma: f64) -> Vec<f64> {
        let Course { rewards, next } = &self.course;
        let of = |first: &i64| {
            let (mut row, mut discount, mut sum) = (*first as usize, 1.0, 0.0);
            loop {
                sum += discount * f64::from(rewards[row]);
                discount *= gamma;
                match next[row] {
                    Next::Row(follows) => row = follows,
                    Next::End | Next::Unknown => return sum,
                }
            }
        };
        self.begins.iter().map(of).collect()
    }
}

/// What is to be learnt from some turns; S of them.
#[derive(Debug)]
pub struct Lessons {
    /// What was seen.
    pub batch: Batch,
    /// What was taken; int64 `[S, heads]`.
    pub levels: Tensor,
    /// What it earned; `[S]`.
    pub rewards: Tensor,
    /// 1 where a turn follows, 0 after termination; `[S]`.
    pub goes_on: Tensor,
    /// What the disk saw in its next turn; some turn where none follows.
    pub next: Batch,
}

impl Lessons {
    /// With numbers of another kind.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        Ok(Self {
            batch: self.batch.to_kind(kind)?,
            levels: self.levels.shallow_clone(),
            rewards: self.rewards.f_to_kind(kind)?,
            goes_on: self.goes_on.f_to_kind(kind)?,
            next: self.next.to_kind(kind)?,
        })
    }
}
