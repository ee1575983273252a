//! Windows of a log held in memory, for models that go over them many times.
//!
//! All windows while they fit; else a random sample of them: each window has a number by its seed and its
//! position, and those below a threshold are held, which is halved whenever there are too many. So each window is as
//! likely to be held as any other, and the same log gives the same sample.

use blkpilot_env::{EnvSpec, Level};

use crate::blocks::Blocks;
use crate::error::EvaluateError;
use crate::features::Features;
use crate::fit::FOLDS;
use crate::options::Options;
use crate::read::{Sink, Step};
use crate::step::HostStep;
use crate::target::{LoggedTurn, TargetPolicy};
use crate::trajectory::{Cut, Trajectories, Turned, Unit};
use crate::weigh::Weighed;

/// Rows of decisions that are held at most: of a host with four channels and the features of `kvm_host` about
/// 70 MB.
pub const MOST_HELD_ROWS: usize = 100_000;

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The next step of [`Sample::steps`].
    Next,
    /// Nothing: it has terminated, and its value is its reward.
    End,
    /// It is not known: a gap, or the step is there only as the one that follows another. Nothing can be
    /// fitted to it.
    Unknown,
}

/// A step of a trajectory of one host (or, under exposure `disk`, of one disk), held.
#[derive(Debug)]
struct Held {
    step: HostStep,
    /// Per policy, in the order of the step's masks.
    probabilities: Vec<Vec<f64>>,
    reward: f64,
    then: Then,
}

#[derive(Debug)]
struct Window {
    key: u64,
    block: usize,
    steps: Vec<Held>,
}

impl Window {
    fn rows(&self) -> usize {
        self.steps.iter().map(|held| held.step.rows.len()).sum()
    }
}

/// Windows of a log, with what each policy would have done in them.
#[derive(Debug)]
pub struct Sample {
    spec: EnvSpec,
    gamma: f64,
    horizon: usize,
    seed: u64,
    windows: Vec<Window>,
    begun: u64,
    most_rows: usize,
}

/// A step of a window.
#[derive(Debug, Clone, Copy)]
pub struct SampleStep<'a> {
    held: &'a Held,
    spec: &'a EnvSpec,
    /// Whether a window begins with it.
    pub begins: bool,
    /// Number of the block that its window belongs to.
    pub block: usize,
    /// Number of the fold that its block belongs to, below [`Sample::FOLDS`].
    pub fold: usize,
    /// Its reward: mean over the disks that count.
    pub reward: f64,
    /// What follows it.
    pub then: Then,
}

impl<'a> SampleStep<'a> {
    /// What each row that decides saw, in turn. All values are finite: means stand for others.
    #[must_use]
    pub fn turns(&self) -> Vec<LoggedTurn<'a>> {
        let (step, spec) = (&self.held.step, self.spec);
        (0..step.rows.len()).map(|i| step.turn(i, spec)).collect()
    }

    /// The levels that were requested: turn after turn, head after head.
    pub fn requested(&self) -> impl Iterator<Item = Level> + use<'a> {
        self.held.step.heads.iter().map(|cell| cell.requested)
    }

    /// With which probability a policy would have taken each level, as in
    /// [`TargetPolicy::probabilities`]. Policy 0 is the one that is evaluated, 1 what it is compared with.
    ///
    /// # Panics
    /// Without such a policy.
    #[must_use]
    pub fn probabilities(&self, policy: usize) -> &'a [f64] {
        &self.held.probabilities[policy]
    }
}

impl Sample {
    /// Folds that blocks are dealt out to.
    pub const FOLDS: usize = FOLDS;

    /// Of the log and the policies.
    #[must_use]
    pub fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// Discount per step.
    #[must_use]
    pub fn gamma(&self) -> f64 {
        self.gamma
    }

    /// Steps of a whole window.
    #[must_use]
    pub fn horizon(&self) -> usize {
        self.horizon
    }

    /// What is to be drawn at random follows from it.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Windows that are held.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Windows of the log.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Rows that are held at most.
    #[must_use]
    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// Rows that are held.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.windows.iter().map(Window::rows).sum()
    }

    /// Steps, window after window. Behind the last step of a window stands the one that follows it, where there
    /// is one.
    pub fn steps(&self) -> impl Iterator<Item = SampleStep<'_>> {
        let spec = &self.spec;
        self.windows.iter().flat_map(move |window| {
            let block = window.block;
            let steps = window.steps.iter().enumerate();
            steps.map(move |(i, held)| SampleStep {
                held,
                spec,
                begins: i == 0,
                block,
                fold: block % FOLDS,
                reward: held.reward,
                then: held.then,
            })
        })
    }

    /// Folds of the windows, in the order of those steps with which they begin.
    pub(crate) fn folds(&self) -> impl Iterator<Item = usize> {
        self.windows.iter().map(|window| window.block % FOLDS)
    }
}

/// The pass over a log that takes the sample.
pub(crate) struct Sampling<'a> {
    policies: &'a [&'a dyn TargetPolicy],
    features: &'a Features,
    blocks: &'a mut Blocks,
    sample: Sample,
    weighed: Vec<Weighed>,
    trajectories: Trajectories,
    /// Per trajectory.
    open: Vec<(Cut, Option<Window>)>,
    units: Vec<Unit>,
    rows: usize,
    /// Windows whose key is not above it are held.
    keep: u64,
}

impl<'a> Sampling<'a> {
    pub(crate) fn new(
        policies: &'a [&'a dyn TargetPolicy],
        features: &'a Features,
        blocks: &'a mut Blocks,
        most_rows: usize,
        options: &Options,
    ) -> Self {
        Self {
            policies,
            features,
            blocks,
            sample: Sample {
                spec: policies[0].spec().clone(),
                gamma: options.gamma,
                horizon: options.horizon,
                seed: options.seed,
                windows: vec![],
                begun: 0,
                most_rows,
            },
            weighed: policies.iter().map(|_| Weighed::default()).collect(),
            trajectories: Trajectories::new(options.exposure),
            open: vec![],
            units: vec![],
            rows: 0,
            keep: u64::MAX,
        }
    }

    /// The sample, all windows having ended.
    pub(crate) fn done(mut self) -> Sample {
        let open = self.open.into_iter().filter_map(|(_, window)| window);
        self.sample.windows.extend(open);
        self.sample
    }

    fn take_unit(&mut self, step: &HostStep, unit: &Unit) {
        if self.open.len() <= unit.trajectory {
            let more = || (Cut::default(), None);
            self.open.resize_with(unit.trajectory + 1, more);
        }
        let (mut cut, mut window) = std::mem::take(&mut self.open[unit.trajectory]);
        let (blocks, horizon) = (&mut *self.blocks, self.sample.horizon);
        let turned = cut.take(unit, horizon, || {
            blocks.number(step.host, step.at_us, step.episode)
        });
        if let Turned::Begins { .. } = turned {
            if let Some(mut ended) = window.take() {
                if unit.follows {
                    self.push(&mut ended, step, unit);
                    if let Some(last) = ended.steps.last_mut() {
                        last.then = Then::Unknown;
                    }
                }
                self.sample.windows.push(ended);
            }
            let key = key(self.sample.seed, self.sample.begun);
            self.sample.begun += 1;
            window = (key <= self.keep).then(|| Window {
                key,
                block: cut.block,
                steps: vec![],
            });
        }
        if let Some(window) = &mut window {
            self.push(window, step, unit);
        }
        self.open[unit.trajectory] = (cut, window);
        while self.rows > self.sample.most_rows {
            self.thin();
        }
    }

    fn push(&mut self, window: &mut Window, step: &HostStep, unit: &Unit) {
        if let Some(last) = window.steps.last_mut()
            && last.then == Then::Unknown
        {
            last.then = Then::Next;
        }
        let rows = unit.rows(step);
        let mut own = step.only(rows.clone());
        self.features.fill(&mut own);
        let masks = step.rows[rows].iter().map(|row| row.mask.range());
        let of_policy = |weighed: &Weighed| {
            let own = masks.clone();
            own.flat_map(|mask| weighed.probabilities[mask].iter().copied())
                .collect()
        };
        self.rows += own.rows.len();
        window.steps.push(Held {
            probabilities: self.weighed.iter().map(of_policy).collect(),
            step: own,
            reward: unit.reward,
            then: if unit.has_terminated {
                Then::End
            } else {
                Then::Unknown
            },
        });
    }

    /// Holds half as many windows.
    fn thin(&mut self) {
        self.keep /= 2;
        let keep = self.keep;
        self.sample.windows.retain(|window| window.key <= keep);
        for (_, window) in &mut self.open {
            window.take_if(|window| window.key > keep);
        }
        let open = self.open.iter().filter_map(|(_, window)| window.as_ref());
        self.rows = self
            .sample
            .windows
            .iter()
            .chain(open)
            .map(Window::rows)
            .sum();
    }
}

impl Sink for Sampling<'_> {
    fn take(&mut self, step: &Step<'_>) -> Result<(), EvaluateError> {
        let mut units = std::mem::take(&mut self.units);
        self.trajectories.units(step, &mut units);
        if !units.is_empty() {
            for (policy, weighed) in self.policies.iter().zip(&mut self.weighed) {
                weighed.weigh(*policy, step.step, &self.sample.spec)?;
            }
        }
        for unit in &units {
            self.take_unit(step.step, unit);
        }
        self.units = units;
        Ok(())
    }
}

/// A number for a window, as if drawn.
///
/// Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", the mixer of SplitMix64.
fn key(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
