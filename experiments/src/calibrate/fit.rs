//! The fit: a robust distance between what a scenario predicts and what was measured, made small by
//! the downhill simplex of Nelder and Mead (1965), restarted, with coefficients that depend on the
//! number of parameters (Gao and Han 2012, eq. 4.1).

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use argmin::core::{CostFunction, Executor, State as _};
use argmin::solver::neldermead::NelderMead;
use blkpilot_env::sim::Scenario;
use blkpilot_env::{EnvError, Rng};
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use super::parameters::{Parameter, apply, parameters};
use super::predict::{Prediction, predict};
use super::settings::{Recorded, Setting};
use super::skeleton::skeleton;
use super::{CalibrateError, Options};

/// Relative error from which on the distance grows linearly: a setting that was disturbed does not
/// pull everything its way.
const HUBER: f64 = 0.15;
/// Weight of IOThread CPU against IOPS and latency.
const CPU_WEIGHT: f64 = 0.3;
/// Weight of the vCPUs' CPU.
const VCPU_WEIGHT: f64 = 0.1;
/// CPU below which differences say nothing, cores.
const LEAST_CORES: f64 = 0.01;
/// How far a parameter is expected to end from its start, as a standard deviation of its logarithm:
/// what the settings say little of stays near.
const PRIOR_SD: f64 = 1.5;
/// Edge of the first simplex, in units of the parameters' transform.
const EDGE: f64 = 0.7;
/// How far from the parameters' starts other searches begin, in units of the transform.
const SCATTER: f64 = 1.5;
/// Spread of the simplex's values at which a search ends.
const TOLERANCE: f64 = 1e-7;

/// How long to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Effort {
    /// Searches from different points, the first from where the parameters start, at least 1.
    pub starts: u32,
    /// Searches that follow, each from the best point so far.
    pub restarts: u32,
    /// Most steps of the simplex per search and parameter.
    pub steps_per_parameter: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            starts: 5,
            restarts: 3,
            steps_per_parameter: 60,
        }
    }
}

/// A fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// The settings it was fitted to.
    pub seen: Vec<usize>,
    /// What was fitted.
    pub parameters: Vec<Parameter>,
    /// The values, in the order of `parameters`.
    pub values: Vec<f64>,
    /// The scenario with them.
    pub scenario: Scenario,
    /// The distance.
    pub cost: f64,
}

/// Fits to each of several sets of settings; the result does not depend on the number of threads.
pub(super) fn all(
    recorded: &Recorded,
    jobs: &[Vec<usize>],
    options: &Options,
    done: &(dyn Fn(usize, usize) + Sync),
) -> Result<Vec<Fitted>, CalibrateError> {
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results = Mutex::new(vec![None; jobs.len()]);
    std::thread::scope(|scope| {
        let work = || -> Result<(), CalibrateError> {
            loop {
                let job = next.fetch_add(1, Ordering::Relaxed);
                let Some(seen) = jobs.get(job) else {
                    return Ok(());
                };
                let fitted = fit(recorded, seen, options)?;
                let mut results = results.lock().unwrap_or_else(|e| e.into_inner());
                results[job] = Some(fitted);
                done(finished.fetch_add(1, Ordering::Relaxed) + 1, jobs.len());
            }
        };
        let workers: Vec<_> = (0..options.threads.max(1))
            .map(|_| scope.spawn(work))
            .collect();
        let ends = workers
            .into_iter()
            .map(|w| w.join().expect("a fit does not panic"));
        ends.collect::<Result<(), _>>()
    })?;
    let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    Ok(results
        .into_iter()
        .map(|r| r.expect("every job was done"))
        .collect())
}

/// Fits to some settings.
pub(super) fn fit(
    recorded: &Recorded,
    seen: &[usize],
    options: &Options,
) -> Result<Fitted, CalibrateError> {
    let skeleton = skeleton(recorded, seen);
    skeleton.validate()?;
    let parameters = parameters(recorded, seen, &skeleton);
    let problem = Problem {
        settings: seen.iter().map(|i| &recorded.settings[*i]).collect(),
        parameters: &parameters,
        skeleton: &skeleton,
    };
    let (x, cost) = search(&problem, options)?;
    Ok(Fitted {
        seen: seen.to_vec(),
        values: parameters
            .iter()
            .zip(&x)
            .map(|(p, x)| p.value(*x))
            .collect(),
        scenario: apply(&parameters, &x, &skeleton),
        cost,
        parameters,
    })
}

fn search(problem: &Problem<'_>, options: &Options) -> Result<(Vec<f64>, f64), CalibrateError> {
    let Effort {
        starts, restarts, ..
    } = options.effort;
    let mut rng = Rng::seed_from_u64(options.seed);
    let start: Vec<f64> = problem.parameters.iter().map(Parameter::start_x).collect();
    let mut best = descend(problem, &start, options.effort, &mut rng)?;
    for search in 1..starts + restarts {
        let from: Vec<f64> = if search < starts {
            let scattered = |x: &f64| x + rng.random_range(-SCATTER..SCATTER);
            start.iter().map(scattered).collect()
        } else {
            best.0.clone()
        };
        let found = descend(problem, &from, options.effort, &mut rng)?;
        if found.1 < best.1 {
            best = found;
        }
    }
    Ok(best)
}

/// The best point of one search, and the distance there.
fn descend(
    problem: &Problem<'_>,
    from: &[f64],
    effort: Effort,
    rng: &mut Rng,
) -> Result<(Vec<f64>, f64), CalibrateError> {
    let failed = |e: argmin::core::Error| CalibrateError::Search(e.to_string());
    let n = from.len() as f64;
    let solver = NelderMead::new(simplex(from, rng))
        .with_sd_tolerance(TOLERANCE)
        .and_then(|s| s.with_gamma(1.0 + 2.0 / n))
        .and_then(|s| s.with_rho((0.75 - 0.5 / n).min(0.5)))
        .and_then(|s| s.with_sigma(1.0 - 1.0 / n.max(2.0)))
        .map_err(failed)?;
    let steps = effort.steps_per_parameter * from.len() as u64;
    let ended = Executor::new(problem, solver)
        .configure(|state| state.max_iters(steps))
        .run()
        .map_err(failed)?;
    let state = ended.state();
    let best = state.get_best_param().cloned();
    Ok((best.unwrap_or_else(|| from.to_vec()), state.get_best_cost()))
}

/// A simplex at `x` with edges along the axes, each in a random direction.
fn simplex(x: &[f64], rng: &mut Rng) -> Vec<Vec<f64>> {
    let mut corners = vec![x.to_vec()];
    for axis in 0..x.len() {
        let mut corner = x.to_vec();
        corner[axis] += if rng.random::<bool>() { EDGE } else { -EDGE };
        corners.push(corner);
    }
    corners
}

struct Problem<'a> {
    settings: Vec<&'a Setting>,
    parameters: &'a [Parameter],
    skeleton: &'a Scenario,
}

impl Problem<'_> {
    fn distance(&self, x: &[f64]) -> Result<f64, EnvError> {
        let scenario = apply(self.parameters, x, self.skeleton);
        let mut sum = 0.0;
        for setting in &self.settings {
            sum += distance(&predict(&scenario, &setting.key)?, setting);
        }
        let moved = |(p, x): (&Parameter, &f64)| (p.value(*x) / p.start).ln() / PRIOR_SD;
        let prior = self.parameters.iter().zip(x).map(moved);
        let prior: f64 = prior.map(|sds| 0.5 * sds * sds).sum();
        Ok((sum + prior) / self.settings.len() as f64)
    }
}

impl CostFunction for &Problem<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, x: &Self::Param) -> Result<f64, argmin::core::Error> {
        Ok(self.distance(x)?)
    }
}

/// How far a prediction is from a setting: Huber's function of the log errors.
fn distance(predicted: &Prediction, setting: &Setting) -> f64 {
    let mut sum = 0.0;
    let cores = |cores: f64| cores.max(LEAST_CORES);
    for (predicted, measured) in predicted.disks.iter().zip(&setting.disks) {
        let Some(measured) = measured else { continue };
        let Some(predicted) = predicted else {
            // As far off as a factor of a thousand.
            sum += 2.0 * huber(1e3_f64.ln());
            continue;
        };
        sum += huber((predicted.iops / measured.iops).ln());
        sum += huber((predicted.latency_us / measured.latency_us).ln());
        if let Some(measured) = measured.iothread_cores {
            sum += CPU_WEIGHT * huber((cores(predicted.iothread_cores) / cores(measured)).ln());
        }
    }
    if let (Some(predicted), Some(measured)) = (predicted.vcpu_cores, setting.vcpu_cores) {
        sum += VCPU_WEIGHT * huber((cores(predicted) / cores(measured)).ln());
    }
    sum
}

/// r²/2 for small r, linear beyond [`HUBER`], in units of it.
fn huber(r: f64) -> f64 {
    let r = r.abs() / HUBER;
    if r <= 1.0 { 0.5 * r * r } else { r - 0.5 }
}
