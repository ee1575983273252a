//! Environments under way: what calls do to them, one after another.

use blkpilot_env::{BatchError, JointAction, Level};
use blkpilot_proto::v1;
use blkpilot_proto::v1::observe_response::Shown;

use super::resetting::Resetting;
use super::stage::Stage;
use super::vector::Vector;
use crate::requests::repeat::{Remembered, Repeat};
use crate::wire;
use crate::wire::status::Failure;

/// Answers of Reset and Step that are remembered, for calls that are repeated.
const MOST_ANSWERS: usize = 4;

/// Environments under way.
#[derive(Debug)]
pub(crate) struct Running {
    vector: Vector,
    /// Seeds of the environments that no reset has begun yet.
    first_seeds: Vec<Option<u64>>,
    answers: Remembered<Answer>,
    /// Joint actions as they are unpacked; kept.
    levels: Vec<Level>,
    /// Where a host's answers are shown.
    stage: Option<Stage>,
}

#[derive(Debug, Clone)]
enum Answer {
    Reset(Box<v1::ResetResponse>),
    Step(Box<v1::StepResponse>),
}

impl Running {
    /// Environments before their first reset, which starts environment i from `seed` plus i.
    pub(super) fn new(vector: Vector, seed: u64, stage: Option<Stage>) -> Self {
        let seeds = (0..vector.count() as u64).map(|i| Some(seed.wrapping_add(i)));
        Self {
            first_seeds: seeds.collect(),
            vector,
            answers: Remembered::new(MOST_ANSWERS),
            levels: vec![],
            stage,
        }
    }

    /// The same again; `None` of a managed host. Nothing that was answered is remembered of it.
    pub(super) fn fork(&self) -> Option<Self> {
        Some(Self {
            vector: self.vector.fork()?,
            first_seeds: self.first_seeds.clone(),
            answers: Remembered::new(MOST_ANSWERS),
            levels: vec![],
            stage: None,
        })
    }

    pub(crate) fn vector(&self) -> &Vector {
        &self.vector
    }

    /// Starts episodes.
    ///
    /// # Errors
    /// As the environments; nothing is changed then.
    pub(crate) fn reset(&mut self, resetting: &Resetting) -> Result<(), Failure> {
        let restarts = resetting.restarts(&self.first_seeds)?;
        self.vector
            .reset(&restarts, &resetting.options)
            .map_err(|error| self.explain(error))?;
        for (first, restart) in self.first_seeds.iter_mut().zip(&restarts) {
            if *restart != blkpilot_env::Restart::Leave {
                *first = None;
            }
        }
        if let Some(stage) = &self.stage {
            stage.show(Shown::Reset(self.reset_to_wire()));
        }
        Ok(())
    }

    /// Steps all by their packed actions.
    ///
    /// # Errors
    /// As the environments; nothing is changed then.
    pub(crate) fn step(&mut self, levels: &[Level]) -> Result<(), Failure> {
        self.vector
            .step(levels)
            .map_err(|error| self.explain(error))?;
        if let Some(stage) = &self.stage {
            stage.show(Shown::Step(self.step_to_wire()));
        }
        Ok(())
    }

    /// A reset that may be a repeated one.
    pub(super) fn answer_reset(
        &mut self,
        resetting: &Resetting,
        repeat: Option<Repeat>,
    ) -> Result<v1::ResetResponse, Failure> {
        if let Some(Answer::Reset(answer)) = self.answers.find(repeat)? {
            return Ok(*answer);
        }
        self.reset(resetting)?;
        let answer = self.reset_to_wire();
        self.answers
            .note(repeat, || Answer::Reset(Box::new(answer.clone())));
        Ok(answer)
    }

    /// A step by joint actions that may be a repeated one.
    pub(super) fn answer_step(
        &mut self,
        actions: &[JointAction],
        repeat: Option<Repeat>,
    ) -> Result<v1::StepResponse, Failure> {
        if let Some(Answer::Step(answer)) = self.answers.find(repeat)? {
            return Ok(*answer);
        }
        let mut levels = std::mem::take(&mut self.levels);
        self.vector
            .pack(actions, &mut levels)
            .map_err(|error| self.explain(error))?;
        let stepped = self.step(&levels);
        self.levels = levels;
        stepped?;
        let answer = self.step_to_wire();
        self.answers
            .note(repeat, || Answer::Step(Box::new(answer.clone())));
        Ok(answer)
    }

    fn reset_to_wire(&self) -> v1::ResetResponse {
        let show = |i| wire::observation_to_wire(&self.vector.observation(i));
        match self.vector.count() {
            1 => v1::ResetResponse {
                observation: Some(show(0)),
                observations: vec![],
            },
            count => v1::ResetResponse {
                observation: None,
                observations: (0..count).map(show).collect(),
            },
        }
    }

    fn step_to_wire(&self) -> v1::StepResponse {
        let show = |i| self.vector.outcome(i).as_ref().map(wire::step_to_wire);
        match self.vector.count() {
            1 => show(0).unwrap_or_default(),
            count => v1::StepResponse {
                steps: (0..count).filter_map(show).collect(),
                ..v1::StepResponse::default()
            },
        }
    }

    /// What was refused, with the environment where there are several.
    fn explain(&self, error: BatchError) -> Failure {
        match error {
            BatchError::Environment {
                environment,
                source,
            } if self.vector.count() > 1 => Failure::from(source).of_environment(environment),
            other => other.into(),
        }
    }
}
