//! What a learner remembers: turns that the planner priced, the oldest making room for the newest.

use std::sync::Arc;

use blkpilot_env::{EnvSpec, Rng};
use blkpilot_models::normaliser::{Normaliser, PerTable};
use rand::RngExt as _;
use tch::{TchError, Tensor};

use crate::LearnError;
use crate::seen::SeenTurn;
use crate::seen::file::{Read, Rest, Written, no_state, turn};
use crate::turns::{Batch, Turns};

/// A turn of a disk, and what its scores should have been.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lesson {
    pub(super) turn: Arc<SeenTurn>,
    /// Laid out as the mask is; relative to their mean over the levels allowed, and 0 where one is not.
    pub(super) scores: Box<[f32]>,
}

/// A ring of lessons.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Memory {
    capacity: usize,
    lessons: Vec<Lesson>,
    /// Place of the oldest, once the ring is full.
    oldest: usize,
}

impl Memory {
    /// An empty one for at most `capacity` lessons, at least 1.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            lessons: vec![],
            oldest: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lessons.len()
    }

    /// Remembers a lesson, in the place of the oldest if there is no room.
    pub(super) fn push(&mut self, lesson: Lesson) {
        if self.lessons.len() < self.capacity {
            self.lessons.push(lesson);
            return;
        }
        self.lessons[self.oldest] = lesson;
        self.oldest = (self.oldest + 1) % self.capacity;
    }

    /// So many lessons, each drawn from all of them, normalised by what is known now. There must be one.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(super) fn draw(
        &self,
        count: usize,
        spec: &EnvSpec,
        normalisers: &PerTable<Normaliser>,
        rng: &mut Rng,
    ) -> Result<(Batch, Vec<Tensor>), TchError> {
        let mut turns = Turns::of_disks(spec, normalisers);
        let mut scores = vec![];
        for _ in 0..count {
            let lesson = &self.lessons[rng.random_range(0..self.lessons.len())];
            lesson.turn.with(spec, |view| turns.push(view));
            scores.extend_from_slice(&lesson.scores);
        }
        Ok((turns.batch(0..count)?, turns.batch_of_levels(&scores)?))
    }

    /// All of it.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut written = Written::default();
        let lessons = self.lessons.iter();
        let turns: Vec<i64> = lessons.map(|own| written.number(&own.turn)).collect();
        written.i64("lessons.turn", &turns);
        let scores = self.lessons.iter().flat_map(|own| own.scores.iter());
        written.f32("lessons.scores", scores.copied());
        written.i64("lessons.oldest", &[self.oldest as i64]);
        written.turns();
        written.finish()
    }

    /// What [`Memory::to_bytes`] gave, for a memory as it was made then.
    ///
    /// # Errors
    /// `NoState` if it is something else.
    pub(super) fn from_bytes(
        spec: &EnvSpec,
        bytes: &[u8],
        capacity: usize,
    ) -> Result<Self, LearnError> {
        let read = Read::open(spec, bytes)?;
        let turns = read.turns(spec)?;
        let scores = read.f32("lessons.scores")?;
        let mut scores = Rest(&scores);
        let lesson = |number: i64| {
            let turn = turn(&turns, number)?;
            let scores = scores.take(turn.allowed().len() as i64)?.into();
            Some(Lesson { turn, scores })
        };
        let numbers = read.i64("lessons.turn")?;
        let lessons: Option<Vec<Lesson>> = numbers.into_iter().map(lesson).collect();
        let oldest = read.i64("lessons.oldest")?.first().copied();
        let oldest = oldest.and_then(|oldest| usize::try_from(oldest).ok());
        let memory = lessons.zip(oldest).map(|(lessons, oldest)| Self {
            capacity,
            lessons,
            oldest,
        });
        let holds = |own: &Self| own.len() <= capacity && own.oldest < capacity;
        memory
            .filter(holds)
            .ok_or_else(|| no_state("the lessons of its memory do not hold together".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::cartpole::CartPole;
    use rand::SeedableRng as _;

    use super::*;

    fn lesson(number: f32) -> Lesson {
        let spec = CartPole::default_spec();
        let turn = SeenTurn::from_parts(&spec, 0, &[number; 4], &[true, true], &[0]).unwrap();
        Lesson {
            turn: Arc::new(turn),
            scores: [number, -number].into(),
        }
    }

    fn filled(capacity: usize, lessons: usize) -> Memory {
        let mut memory = Memory::new(capacity);
        (0..lessons).for_each(|number| memory.push(lesson(number as f32)));
        memory
    }

    #[test]
    fn the_oldest_makes_room() {
        assert_eq!(filled(3, 2).lessons, [lesson(0.0), lesson(1.0)]);
        let full = filled(3, 5);
        assert_eq!(full.lessons, [lesson(3.0), lesson(4.0), lesson(2.0)]);
        assert_eq!(full.oldest, 2);
    }

    #[test]
    fn every_lesson_is_drawn_and_keeps_its_scores() {
        let spec = CartPole::default_spec();
        let identity = PerTable::build(&spec, |_, features| Normaliser::identity(features.len()));
        let mut rng = Rng::seed_from_u64(1);
        let (batch, scores) = filled(4, 4).draw(100, &spec, &identity, &mut rng).unwrap();
        assert_eq!(
            (batch.own.size(), scores[0].size()),
            (vec![100, 4], vec![100, 2])
        );
        let mut drawn = [0; 4];
        for row in 0..100 {
            let number = scores[0].double_value(&[row, 0]);
            assert!((scores[0].double_value(&[row, 1]) + number).abs() < 1e-12);
            assert!((batch.own.double_value(&[row, 0]) - spec_scale(number)).abs() < 1e-6);
            drawn[number as usize] += 1;
        }
        assert!(drawn.iter().all(|count| *count > 10), "{drawn:?}");
    }

    fn spec_scale(value: f64) -> f64 {
        let features = &CartPole::default_spec().disk_features;
        f64::from(features[0].scale.apply(value as f32))
    }

    #[test]
    fn what_was_written_is_read_and_what_does_not_fit_is_refused() {
        let spec = CartPole::default_spec();
        for memory in [filled(3, 0), filled(3, 2), filled(3, 5)] {
            let bytes = memory.to_bytes();
            assert_eq!(Memory::from_bytes(&spec, &bytes, 3).unwrap(), memory);
        }
        let bytes = filled(3, 3).to_bytes();
        let error = Memory::from_bytes(&spec, &bytes, 2)
            .unwrap_err()
            .to_string();
        assert!(error.contains("do not hold together"), "{error}");
        let error = Memory::from_bytes(&spec, &bytes[..40], 3)
            .unwrap_err()
            .to_string();
        assert!(error.contains("its memory cannot be read"), "{error}");
        let mut short = filled(3, 3);
        short.lessons[1].scores = [0.5].into();
        let error = Memory::from_bytes(&spec, &short.to_bytes(), 3).unwrap_err();
        assert!(
            error.to_string().contains("do not hold together"),
            "{error}"
        );
    }
}
