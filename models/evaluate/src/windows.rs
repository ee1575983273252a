//! The pass over a log that adds up what estimates and diagnostics need: per block and step of a window.
//!
//! Of the weights of a window: `w_t` has all choices up to and including step t; `w_{t,i}` of step t only those
//! of rows 0 to i, which is what the model's part of row i is weighted by. So each row is a decision of its own
//! in the doubly robust sum, and what it saw may depend on the choices before it.

use blkpilot_env::EnvSpec;
use blkpilot_models::ope::scaled::{Scaled, ScaledSum};

use crate::blocks::Blocks;
use crate::calibration::Calibrating;
use crate::diagnostics::Weights;
use crate::error::EvaluateError;
use crate::features::{Chosen, Features};
use crate::fit::{FOLDS, Model, Stride, features_of};
use crate::options::Options;
use crate::read::{Sink, Step};
use crate::replay::Replay;
use crate::step::HostStep;
use crate::target::TargetPolicy;
use crate::trajectory::{Cut, Trajectories, Turned, Unit};
use crate::weigh::Weighed;

/// A numerator and its denominator.
pub(crate) type Ratio = [ScaledSum; 2];

fn add(ratio: &mut Ratio, weight: Scaled, x: f64) {
    ratio[0].add(weight.times(x));
    ratio[1].add(weight);
}

/// Sums of one policy at one step of the windows of one block.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StepSums {
    /// `w_t r_t`.
    pub(crate) reward: Ratio,
    /// Mean over rows of `w_{t,i} q_i`.
    pub(crate) q: Ratio,
    /// Mean over rows of `w_{t,i−1} V_i`.
    pub(crate) v: Ratio,
}

/// Sums of one policy over the windows of one block.
#[derive(Debug, Clone, Default)]
pub(crate) struct PolicySums {
    pub(crate) steps: Vec<StepSums>,
    /// The model's value of the beginnings of windows.
    pub(crate) first: f64,
    /// What the transitions of the block move the model's estimate by.
    pub(crate) influence: f64,
    /// Weights of whole windows.
    pub(crate) weight: ScaledSum,
}

/// Sums over the windows of one block.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlockSums {
    /// Per step: rewards as they were, and windows.
    pub(crate) behaviour: Vec<[f64; 2]>,
    pub(crate) policies: Vec<PolicySums>,
    pub(crate) begun: f64,
    pub(crate) whole: f64,
}

impl BlockSums {
    fn new(policies: usize, horizon: usize) -> Self {
        let policy = PolicySums {
            steps: vec![StepSums::default(); horizon],
            ..PolicySums::default()
        };
        Self {
            behaviour: vec![[0.0; 2]; horizon],
            policies: vec![policy; policies],
            ..Self::default()
        }
    }
}

/// Windows, counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WindowCounts {
    pub(crate) begun: u64,
    pub(crate) whole: u64,
    pub(crate) longest: usize,
}

/// A window under way.
#[derive(Debug, Clone, Default)]
struct Window {
    cut: Cut,
    /// Per policy.
    weights: Vec<Scaled>,
    /// A step whose successor is awaited, for the model's influence.
    open: Vec<f64>,
    is_open: bool,
    fold: usize,
    reward: f64,
}

struct Of<'a> {
    policy: &'a dyn TargetPolicy,
    model: Option<Model>,
    weighed: Weighed,
    replay: Replay,
    weights: Weights,
}

/// The last pass.
pub(crate) struct Windows<'a> {
    spec: &'a EnvSpec,
    features: &'a Features,
    blocks: &'a mut Blocks,
    stride: Stride,
    horizon: usize,
    gamma: f64,
    policies: Vec<Of<'a>>,
    trajectories: Trajectories,
    open: Vec<Window>,
    pub(crate) sums: Vec<BlockSums>,
    pub(crate) counts: WindowCounts,
    pub(crate) calibrating: Calibrating,
    steps: u64,
    units: Vec<Unit>,
    drawn: Vec<f64>,
}

impl<'a> Windows<'a> {
    pub(crate) fn new(
        spec: &'a EnvSpec,
        policies: &[&'a dyn TargetPolicy],
        models: Vec<Option<Model>>,
        features: &'a Features,
        blocks: &'a mut Blocks,
        stride: Stride,
        options: &Options,
    ) -> Self {
        let of = |(policy, model): (&&'a dyn TargetPolicy, Option<Model>)| Of {
            policy: *policy,
            model,
            weighed: Weighed::default(),
            replay: Replay::new(options),
            weights: Weights::new(options.horizon),
        };
        Self {
            spec,
            features,
            blocks,
            stride,
            horizon: options.horizon,
            gamma: options.gamma,
            policies: policies.iter().zip(models).map(of).collect(),
            trajectories: Trajectories::new(options.exposure),
            open: vec![],
            sums: vec![],
            counts: WindowCounts::default(),
            calibrating: Calibrating::new(spec),
            steps: 0,
            units: vec![],
            drawn: vec![],
        }
    }

    /// Weights of each policy, all windows having ended.
    pub(crate) fn weights(&self) -> Vec<&Weights> {
        self.policies.iter().map(|of| &of.weights).collect()
    }

    /// Length of a block in seconds; `None` of episodes.
    pub(crate) fn block_s(&self) -> Option<f64> {
        self.blocks.seconds()
    }

    fn take_unit(&mut self, step: &HostStep, unit: &Unit) -> Result<(), EvaluateError> {
        let count = self.policies.len();
        if self.open.len() <= unit.trajectory {
            self.open.resize(unit.trajectory + 1, Window::default());
        }
        let mut window = std::mem::take(&mut self.open[unit.trajectory]);
        let blocks = &mut *self.blocks;
        let turned = window.cut.take(unit, self.horizon, || {
            blocks.number(step.host, step.at_us, step.episode)
        });
        let block = window.cut.block;
        if self.sums.len() <= block {
            self.sums
                .resize_with(block + 1, || BlockSums::new(count, self.horizon));
        }
        if let Turned::Begins { .. } = turned {
            window.weights.clear();
            window.weights.resize(count, Scaled::ONE);
            self.counts.begun += 1;
            self.sums[block].begun += 1.0;
        }
        let at = window.cut.at();
        self.counts.longest = self.counts.longest.max(at + 1);
        let behaviour = &mut self.sums[block].behaviour[at];
        behaviour[0] += unit.reward;
        behaviour[1] += 1.0;
        self.add_policies(step, unit, &mut window);
        if let Turned::Begins { .. } = turned {
            self.add_first(step, unit, block)?;
        }
        self.add_influence(step, unit, &mut window)?;
        if unit.has_terminated && at + 1 < self.horizon {
            self.end(&window, at + 1);
        }
        if at + 1 == self.horizon || unit.has_terminated {
            self.finish(&window);
        }
        self.open[unit.trajectory] = window;
        Ok(())
    }

    /// After its end a window counts on, with its last weight and rewards of 0.
    fn end(&mut self, window: &Window, from: usize) {
        let sums = &mut self.sums[window.cut.block];
        for at in from..self.horizon {
            sums.behaviour[at][1] += 1.0;
            for ((policy, weight), of) in sums
                .policies
                .iter_mut()
                .zip(&window.weights)
                .zip(&mut self.policies)
            {
                let sums = &mut policy.steps[at];
                for ratio in [&mut sums.reward, &mut sums.q, &mut sums.v] {
                    add(ratio, *weight, 0.0);
                }
                of.weights.step(at, *weight);
            }
        }
        self.counts.longest = self.horizon;
    }

    fn finish(&mut self, window: &Window) {
        self.counts.whole += 1;
        let sums = &mut self.sums[window.cut.block];
        sums.whole += 1.0;
        let policies = sums.policies.iter_mut().zip(&window.weights);
        for ((sums, weight), of) in policies.zip(&mut self.policies) {
            sums.weight.add(*weight);
            of.weights.whole(*weight);
        }
    }

    fn add_policies(&mut self, step: &HostStep, unit: &Unit, window: &mut Window) {
        let (block, at) = (window.cut.block, window.cut.at());
        let rows = unit.rows(step);
        let share = 1.0 / rows.len() as f64;
        let width = self.features.width();
        for (number, of) in self.policies.iter_mut().enumerate() {
            let sums = &mut self.sums[block].policies[number];
            let weight = &mut window.weights[number];
            let theta = of
                .model
                .as_ref()
                .map(|model| model.values[block % FOLDS][self.horizon - at - 1].as_slice());
            for row in rows.clone() {
                let before = *weight;
                *weight = before.times(of.weighed.ratios[row]);
                let Some(theta) = theta else { continue };
                let mut value = |chosen| {
                    self.drawn.clear();
                    self.drawn.resize(width, 0.0);
                    let features = &self.features;
                    features.add(step, &step.rows[row], chosen, 1.0, &mut self.drawn);
                    dot(&self.drawn, theta)
                };
                let q = value(Chosen::Logged);
                let v = value(Chosen::Expected(&of.weighed.probabilities));
                let sums = &mut sums.steps[at];
                add(&mut sums.q, weight.times(share), q);
                add(&mut sums.v, before.times(share), v);
            }
            add(&mut sums.steps[at].reward, *weight, unit.reward);
            of.weights.step(at, *weight);
        }
    }

    /// What the models say that a window which begins here is worth.
    fn add_first(
        &mut self,
        step: &HostStep,
        unit: &Unit,
        block: usize,
    ) -> Result<(), EvaluateError> {
        for (number, of) in self.policies.iter_mut().enumerate() {
            let Some(model) = &of.model else { continue };
            let replay = &mut of.replay;
            let expected = replay.features(of.policy, self.spec, (step, unit), self.features)?;
            let theta = &model.values[block % FOLDS][self.horizon - 1];
            self.sums[block].policies[number].first += dot(expected, theta);
        }
        Ok(())
    }

    /// What the transition that ends here moves the model's estimate by.
    fn add_influence(
        &mut self,
        step: &HostStep,
        unit: &Unit,
        window: &mut Window,
    ) -> Result<(), EvaluateError> {
        if window.is_open && unit.follows {
            for (number, of) in self.policies.iter_mut().enumerate() {
                let Some(model) = &of.model else { continue };
                let replay = &mut of.replay;
                let expected =
                    replay.features(of.policy, self.spec, (step, unit), self.features)?;
                let moved = influence_after(model, window, Some(expected), self.gamma);
                self.sums[window.fold].policies[number].influence += moved;
            }
        }
        window.is_open = self.stride.takes(self.steps);
        self.steps += 1;
        if !window.is_open {
            return Ok(());
        }
        window.fold = window.cut.block;
        window.reward = unit.reward;
        features_of(self.features, step, unit, Chosen::Logged, &mut window.open);
        for (number, of) in self.policies.iter().enumerate() {
            let Some(model) = &of.model else { continue };
            let moved = influence_reward(model, window);
            self.sums[window.fold].policies[number].influence += moved;
        }
        if unit.has_terminated {
            window.is_open = false;
            for number in 0..self.policies.len() {
                let Some(model) = &self.policies[number].model else {
                    continue;
                };
                let moved = influence_after(model, window, None, self.gamma);
                self.sums[window.fold].policies[number].influence += moved;
            }
        }
        Ok(())
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Over the fits that a step is part of, what its reward moves the estimate by. What is surprising is said by the fit
/// that has not seen it: a fit follows what it was fitted to, and would call its own error too small.
///
/// Source: MacKinnon and White 1985, "Some heteroskedasticity-consistent covariance matrix estimators with improved
/// finite sample properties", the jackknife, here with a fold left out.
fn influence_reward(model: &Model, window: &Window) -> f64 {
    let width = window.open.len();
    let reward = &model.fits[window.fold % FOLDS].theta(1)[..width];
    let surprise = window.reward - dot(&window.open, reward);
    let of_fold = |fold: usize| {
        let vectors = model.adjoints[fold].iter();
        vectors.map(|u| dot(&u[..width], &window.open)).sum::<f64>()
    };
    surprise * other_folds(window).map(of_fold).sum::<f64>()
}

/// The same of what follows it; `None`: nothing.
fn influence_after(model: &Model, window: &Window, next: Option<&[f64]>, gamma: f64) -> f64 {
    let (width, own) = (window.open.len(), window.fold % FOLDS);
    let surprise = |k: usize| {
        let after = match (k, next) {
            (0, _) | (_, None) => 0.0,
            (k, Some(next)) => dot(next, &model.values[own][k - 1]),
        };
        gamma * after - dot(&window.open, &model.fits[own].theta(k + 1)[width..])
    };
    let surprises: Vec<f64> = (0..model.adjoints[own].len()).map(surprise).collect();
    let of_fold = |fold: usize| {
        let vectors = model.adjoints[fold].iter().zip(&surprises);
        let moved = vectors.map(|(u, surprise)| dot(&u[width..], &window.open) * surprise);
        moved.sum::<f64>()
    };
    other_folds(window).map(of_fold).sum()
}

fn other_folds(window: &Window) -> impl Iterator<Item = usize> + use<> {
    let own = window.fold % FOLDS;
    (0..FOLDS).filter(move |fold| *fold != own)
}

impl Sink for Windows<'_> {
    fn take(&mut self, step: &Step<'_>) -> Result<(), EvaluateError> {
        self.calibrating.take(step.step);
        let mut units = std::mem::take(&mut self.units);
        self.trajectories.units(step, &mut units);
        if !units.is_empty() {
            for of in &mut self.policies {
                of.weighed.weigh(of.policy, step.step, self.spec)?;
                let choices = step.step.heads.iter().filter(|cell| cell.is_free).count();
                of.weights.unsupported(of.weighed.unsupported, choices);
            }
        }
        for unit in &units {
            self.take_unit(step.step, unit)?;
        }
        self.units = units;
        Ok(())
    }
}
