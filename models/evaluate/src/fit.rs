//! The model of rewards: linear fitted Q evaluation, cross-fitted by block.
//!
//! Of a joint decision it is the mean over its rows of `φ(x, a)·θ`: what a row adds depends on what it saw in
//! its turn, which is given the choices before it, and on what it chose itself.

use blkpilot_env::EnvSpec;
use blkpilot_models::ope::OpeError;
use blkpilot_models::ope::sequential::linear::{Fits, LinearFqe};

use crate::blocks::Blocks;
use crate::error::EvaluateError;
use crate::features::{Chosen, Features, INTERCEPT};
use crate::options::Options;
use crate::read::{Sink, Step};
use crate::replay::Replay;
use crate::step::HostStep;
use crate::target::TargetPolicy;
use crate::trajectory::{Cut, Trajectories, Turned, Unit};

/// Blocks are dealt out to so many folds; what is said of one comes from a fit on the others.
pub(crate) const FOLDS: usize = 5;
/// Transitions that are fitted to, about, at most.
const MOST_TRANSITIONS: u64 = 400_000;
/// On the diagonal, in transitions, but for the intercept: features are standardised, rewards are not.
const RIDGE: f64 = 1.0;

/// Which transitions are fitted to: every so manieth.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stride(u64);

impl Stride {
    pub(crate) fn of(steps: u64) -> Self {
        Self(steps.div_ceil(MOST_TRANSITIONS).max(1))
    }

    pub(crate) fn takes(self, number: u64) -> bool {
        number.is_multiple_of(self.0)
    }
}

/// Mean features over the rows of a step: of what was drawn, or of what a policy would.
pub(crate) fn features_of(
    features: &Features,
    step: &HostStep,
    unit: &Unit,
    chosen: Chosen<'_>,
    out: &mut Vec<f64>,
) {
    out.clear();
    out.resize(features.width(), 0.0);
    let rows = unit.rows(step);
    let weight = 1.0 / rows.len() as f64;
    for row in rows {
        features.add(step, &step.rows[row], chosen, weight, out);
    }
}

/// A step whose successor is awaited.
#[derive(Debug, Default, Clone)]
struct Open {
    is_open: bool,
    cut: Cut,
    fold: usize,
    /// Its features as those of a reward, and as those of what follows.
    features: Vec<f64>,
    after: Vec<f64>,
}

/// Sums over the transitions of one policy.
struct Sums {
    replay: Replay,
    /// Per fold.
    transitions: Vec<LinearFqe>,
    /// Per fold, the features expected at the beginning of windows, added up.
    starts: Vec<Vec<f64>>,
}

/// The model of one policy. Its value is `φ·(ρ + η_k)`: ρ of the reward, fitted to all steps, and η_k of what
/// follows with k steps to go, fitted to those whose successor is known. Both are one linear model over twice the
/// features, so that [`LinearFqe`] makes the sweeps.
pub(crate) struct Model {
    /// Per fold, from all other folds: ρ, then η.
    pub(crate) fits: Vec<Fits>,
    /// Per fold and steps to go, ρ + η.
    pub(crate) values: Vec<Vec<Vec<f64>>>,
    /// Per fold, what [`Fits::adjoint`] gives for its share of the windows' beginnings.
    pub(crate) adjoints: Vec<Vec<Vec<f64>>>,
}

/// The pass over a log that fits the models.
pub(crate) struct Fitting<'a> {
    spec: &'a EnvSpec,
    policies: &'a [&'a dyn TargetPolicy],
    features: &'a Features,
    blocks: &'a mut Blocks,
    stride: Stride,
    horizon: usize,
    sums: Vec<Sums>,
    trajectories: Trajectories,
    open: Vec<Open>,
    steps: u64,
    windows: u64,
    units: Vec<Unit>,
    twice: Vec<f64>,
}

impl<'a> Fitting<'a> {
    pub(crate) fn new(
        spec: &'a EnvSpec,
        policies: &'a [&'a dyn TargetPolicy],
        features: &'a Features,
        blocks: &'a mut Blocks,
        stride: Stride,
        options: &Options,
    ) -> Result<Self, EvaluateError> {
        let width = features.width();
        let of_policy = |_| -> Result<Sums, OpeError> {
            let folds = (0..FOLDS).map(|_| LinearFqe::new(2 * width, 0.0));
            Ok(Sums {
                replay: Replay::new(options),
                transitions: folds.collect::<Result<_, _>>()?,
                starts: vec![vec![0.0; width]; FOLDS],
            })
        };
        Ok(Self {
            spec,
            policies,
            features,
            blocks,
            stride,
            horizon: options.horizon,
            sums: policies.iter().map(of_policy).collect::<Result<_, _>>()?,
            trajectories: Trajectories::new(options.exposure),
            open: vec![],
            steps: 0,
            windows: 0,
            units: vec![],
            twice: vec![],
        })
    }

    /// The model of each policy, or why there is none.
    pub(crate) fn models(&self, options: &Options) -> Vec<Result<Model, OpeError>> {
        let models = self.sums.iter();
        models.map(|sums| self.model(sums, options)).collect()
    }

    fn model(&self, sums: &Sums, options: &Options) -> Result<Model, OpeError> {
        let (mut fits, mut adjoints, mut values) = (vec![], vec![], vec![]);
        let width = self.features.width();
        for held_out in 0..FOLDS {
            let mut others = LinearFqe::new(2 * width, RIDGE)?
                .unpenalised(INTERCEPT)?
                .unpenalised(width + INTERCEPT)?;
            for (fold, transitions) in sums.transitions.iter().enumerate() {
                if fold != held_out {
                    others.merge(transitions)?;
                }
            }
            let fit = others.fits(options.gamma, options.horizon)?;
            let windows = self.windows.max(1) as f64;
            let start = sums.starts[held_out].iter().map(|x| x / windows);
            let start: Vec<f64> = start.clone().chain(start).collect();
            adjoints.push(fit.adjoint(&start));
            let value = |k: usize| {
                let (reward, after) = fit.theta(k).split_at(width);
                reward.iter().zip(after).map(|(r, a)| r + a).collect()
            };
            values.push((1..=options.horizon).map(value).collect());
            fits.push(fit);
        }
        Ok(Model {
            fits,
            values,
            adjoints,
        })
    }

    fn take_unit(&mut self, step: &HostStep, unit: &Unit) -> Result<(), EvaluateError> {
        if self.open.len() <= unit.trajectory {
            self.open.resize(unit.trajectory + 1, Open::default());
        }
        let mut open = std::mem::take(&mut self.open[unit.trajectory]);
        let blocks = &mut *self.blocks;
        let turned = open.cut.take(unit, self.horizon, || {
            blocks.number(step.host, step.at_us, step.episode)
        });
        let begins = matches!(turned, Turned::Begins { .. });
        let fold = open.cut.block % FOLDS;
        let is_next = open.is_open && unit.follows;
        self.windows += u64::from(begins);
        for (policy, sums) in self.policies.iter().zip(&mut self.sums) {
            if !begins && !is_next {
                break;
            }
            let of = (step, unit);
            let expected = sums
                .replay
                .features(*policy, self.spec, of, self.features)?;
            if is_next {
                self.twice.clear();
                self.twice.extend_from_slice(expected);
                self.twice.extend_from_slice(expected);
                let transitions = &mut sums.transitions[open.fold];
                transitions.push(&open.after, &self.twice, 0.0)?;
            }
            if begins {
                let start = sums.starts[fold].iter_mut().zip(expected);
                start.for_each(|(sum, x)| *sum += x);
            }
        }
        (open.is_open, open.fold) = (self.stride.takes(self.steps), fold);
        self.steps += 1;
        if open.is_open {
            features_of(
                self.features,
                step,
                unit,
                Chosen::Logged,
                &mut open.features,
            );
            let width = self.features.width();
            open.after.clear();
            open.after.resize(width, 0.0);
            open.after.extend_from_slice(&open.features);
            open.features.resize(2 * width, 0.0);
            self.twice.clear();
            self.twice.resize(2 * width, 0.0);
            for sums in &mut self.sums {
                sums.transitions[fold].push(&open.features, &self.twice, unit.reward)?;
            }
        }
        if open.is_open && unit.has_terminated {
            open.is_open = false;
            for sums in &mut self.sums {
                sums.transitions[fold].push(&open.after, &self.twice, 0.0)?;
            }
        }
        self.open[unit.trajectory] = open;
        Ok(())
    }
}

impl Sink for Fitting<'_> {
    fn take(&mut self, step: &Step<'_>) -> Result<(), EvaluateError> {
        let mut units = std::mem::take(&mut self.units);
        self.trajectories.units(step, &mut units);
        for unit in &units {
            self.take_unit(step.step, unit)?;
        }
        self.units = units;
        Ok(())
    }
}
