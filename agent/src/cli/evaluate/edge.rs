//! `edge_cases.json`: tiny logs, each with something that a careless estimator gets wrong.

use std::path::Path;

use blkpilot_models::ope::bandit::{
    BanditLog, Columns, Estimator, Head, Shrinkage, SupportDiagnostics,
};
use blkpilot_models::ope::interval::hoeffding_half_width;
use blkpilot_models::ope::sequential::fqe::{Transition, Transitions};
use blkpilot_models::ope::sequential::{Cap, Policy, Shape, StepColumns, StepWeights, Steps};
use blkpilot_models::ope::{Bootstrap, Matrix, OpeError, Place, Scores, WeightDiagnostics};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::bandit::File;
use super::cases::Meta;
use super::report::Object;

/// How far what must be equal may differ.
const EQUAL: f64 = 1e-9;

#[derive(Debug, Deserialize)]
pub(super) struct Cases {
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    kind: String,
    input: Value,
}

/// The values of each case, or `error`.
pub(super) fn evaluate(dir: &Path, meta: &Meta, cases: Cases) -> Value {
    let of = |case: Case| {
        let values = match case.kind.as_str() {
            "bandit" => parse(&case).and_then(|input| bandit(&input, meta)),
            "seq" => parse(&case).and_then(|input| sequential(&input)),
            "interval" => parse(&case).map(|input| interval(&input)),
            "fqe" => parse(&case).and_then(|input| fitted(&input)),
            "property" => one_step(dir),
            kind => Err(format!(
                "kind = \"{kind}\" is none of bandit, seq, interval, fqe, property"
            )),
        };
        let object = values
            .unwrap_or_else(|error| [("error".to_owned(), error.into())].into_iter().collect());
        (case.name, object.into())
    };
    Value::Object(cases.cases.into_iter().map(of).collect())
}

fn parse<T: DeserializeOwned>(case: &Case) -> Result<T, String> {
    T::deserialize(&case.input).map_err(|error| format!("input: {error}"))
}

/// What is told of a case beside its values.
#[derive(Default)]
struct Report {
    values: Object,
    warnings: Vec<String>,
}

impl Report {
    fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.values.insert(name.to_owned(), value.into());
    }

    /// An estimate, or a word in its place and the reason among the warnings.
    fn add_estimate(&mut self, name: &str, scores: &Result<Scores, OpeError>) {
        match scores {
            Ok(scores) => self.add(name, scores.estimate()),
            Err(error) => {
                let word = match error {
                    OpeError::NoOverlap { .. } => "undefined".to_owned(),
                    other => other.to_string(),
                };
                self.add(name, word);
                self.warnings.push(format!("{name}: {error}"));
            }
        }
    }

    fn finish(mut self) -> Object {
        if !self.warnings.is_empty() {
            self.add("warning", true);
            self.values
                .insert("warnings".to_owned(), json!(self.warnings));
        }
        self.values
    }
}

/// A log of single decisions; a number that is missing is null.
#[derive(Debug, Deserialize)]
struct BanditInput {
    n_actions: usize,
    action: Vec<u32>,
    reward: Vec<Option<f64>>,
    pscore: Vec<Option<f64>>,
    eval_dist: Vec<Vec<f64>>,
    behaviour_dist: Option<Vec<Vec<f64>>>,
    mask: Option<Vec<Vec<u8>>>,
}

fn bandit(input: &BanditInput, meta: &Meta) -> Result<Object, String> {
    let number = |x: &Option<f64>| x.unwrap_or(f64::NAN);
    let reward: Vec<f64> = input.reward.iter().map(number).collect();
    let pscore: Vec<f64> = input.pscore.iter().map(number).collect();
    let flat = |field, rows| flat(field, rows, input.n_actions);
    let evaluation = flat("eval_dist", &input.eval_dist)?;
    let behaviour = input.behaviour_dist.as_ref();
    let behaviour = behaviour
        .map(|rows| flat("behaviour_dist", rows))
        .transpose()?;
    let mask = input
        .mask
        .as_ref()
        .map(|rows| mask_of(rows, input.n_actions))
        .transpose()?;
    let matrix = |values| Matrix::new(values, input.n_actions).map_err(|error| error.to_string());
    let allowed = mask
        .as_deref()
        .map(|mask| Matrix::new(mask, input.n_actions));
    let head = Head {
        name: "",
        action: &input.action,
        pscore: &pscore,
        evaluation: matrix(&evaluation)?,
        behaviour: behaviour.as_deref().map(matrix).transpose()?,
        mask: allowed.transpose().map_err(|error| error.to_string())?,
        q_hat: None,
    };
    let log = BanditLog {
        reward: &reward,
        heads: vec![head],
    };
    let columns = log.columns().map_err(|error| error.to_string())?;
    Ok(bandit_report(&log, &columns, meta))
}

fn bandit_report(log: &BanditLog<'_>, columns: &Columns, meta: &Meta) -> Object {
    let mut report = Report::default();
    let weights = WeightDiagnostics::new(&columns.weight);
    report.add_estimate(
        "ips",
        &Estimator::InverseWeight(Shrinkage::None).scores(columns),
    );
    let snips = Estimator::SelfNormalised.scores(columns);
    report.add_estimate("snips", &snips);
    if let Ok(summary) = snips.and_then(|scores| scores.summary()) {
        report.add("snips_std_err", summary.std_err);
        let bootstrap = Bootstrap {
            replicates: meta.bootstrap.replicates,
            seed: meta.bootstrap.seed,
        };
        let terms = Estimator::SelfNormalised.terms(columns);
        let interval = terms.and_then(|terms| bootstrap.percentile(&[&terms], meta.alpha));
        match interval {
            Ok(intervals) => report.add("snips_bootstrap_ci", json!(intervals[0])),
            Err(error) => report.warnings.push(format!("snips_bootstrap_ci: {error}")),
        }
    }
    report.add("ess", weights.ess);
    report.add("ess_fraction", weights.ess_fraction);
    report.add("mean_weight", weights.mean);
    if let Some(support) = SupportDiagnostics::new(log) {
        report.add("eval_mass_without_support", support.mass_without_support);
        if support.mass_without_support > 0.0 {
            report.warnings.push(format!(
                "eval_dist: {} of its mass lies on actions that the behaviour policy never plays",
                support.mass_without_support
            ));
        }
    }
    report.finish()
}

/// Rows of this length, one after another.
fn flat<T: Copy>(field: &str, rows: &[Vec<T>], length: usize) -> Result<Vec<T>, String> {
    match rows.iter().position(|row| row.len() != length) {
        None => Ok(rows.concat()),
        Some(row) => Err(format!(
            "row {row}: {field} has {} values where there are {length} actions",
            rows[row].len()
        )),
    }
}

fn mask_of(rows: &[Vec<u8>], length: usize) -> Result<Vec<bool>, String> {
    let flags = flat("mask", rows, length)?;
    match flags.iter().position(|flag| *flag > 1) {
        None => Ok(flags.iter().map(|flag| *flag == 1).collect()),
        Some(i) => Err(format!(
            "row {}: mask = {} must be 0 or 1",
            i / length,
            flags[i]
        )),
    }
}

/// Trajectories, in one of the ways in which the cases give them.
#[derive(Debug, Deserialize)]
struct SequentialInput {
    gamma: f64,
    horizon: Option<usize>,
    n_trajectories: Option<usize>,
    pscore_const: Option<f64>,
    eval_prob_const: Option<f64>,
    reward_const: Option<f64>,
    q_by_step: Option<Vec<f64>>,
    q_hat: Option<f64>,
    returns: Option<Vec<f64>>,
    trajectories: Option<Vec<TrajectoryInput>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TrajectoryInput {
    Constant { ratio_const: f64, reward_const: f64 },
    Steps(Vec<StepInput>),
}

#[derive(Debug, Deserialize)]
struct StepInput {
    pscore: f64,
    eval_prob: f64,
    reward: f64,
}

/// Ratio and reward of one step.
type Step = (f64, f64);

impl SequentialInput {
    fn trajectories(&self) -> Result<Vec<Vec<Step>>, String> {
        if let Some(trajectories) = &self.trajectories {
            let of = |(i, trajectory)| self.trajectory(i, trajectory);
            return trajectories.iter().enumerate().map(of).collect();
        }
        let (Some(pscore), Some(eval_prob)) = (self.pscore_const, self.eval_prob_const) else {
            return Err(
                "input: trajectories, or pscore_const and eval_prob_const, are missing".to_owned(),
            );
        };
        let ratio = ratio(0, 0, eval_prob, pscore)?;
        if let Some(returns) = &self.returns {
            return Ok(returns
                .iter()
                .map(|reward| vec![(ratio, *reward)])
                .collect());
        }
        let reward = self.reward_const.ok_or("input: reward_const is missing")?;
        let trajectories = self
            .n_trajectories
            .ok_or("input: n_trajectories is missing")?;
        Ok(vec![vec![(ratio, reward); self.horizon()?]; trajectories])
    }

    fn horizon(&self) -> Result<usize, String> {
        self.horizon
            .ok_or_else(|| "input: horizon is missing".to_owned())
    }

    fn trajectory(&self, i: usize, of: &TrajectoryInput) -> Result<Vec<Step>, String> {
        match of {
            TrajectoryInput::Constant {
                ratio_const,
                reward_const,
            } => Ok(vec![(*ratio_const, *reward_const); self.horizon()?]),
            TrajectoryInput::Steps(steps) => {
                let step = |(t, step): (usize, &StepInput)| {
                    Ok((ratio(i, t, step.eval_prob, step.pscore)?, step.reward))
                };
                steps.iter().enumerate().map(step).collect()
            }
        }
    }

    /// What the model expects at a step: 0 without one.
    fn q(&self, step: usize) -> Result<f64, String> {
        match (&self.q_by_step, self.q_hat) {
            (Some(q), _) => q
                .get(step)
                .copied()
                .ok_or_else(|| format!("step {step}: q_by_step has only {} values", q.len())),
            (None, q) => Ok(q.unwrap_or_default()),
        }
    }

    fn steps(&self) -> Result<Steps, String> {
        let trajectories = self.trajectories()?;
        let lengths: Vec<usize> = trajectories.iter().map(Vec::len).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let steps = || lengths.iter().flat_map(|length| 0..*length);
        let q = steps()
            .map(|step| self.q(step))
            .collect::<Result<Vec<_>, _>>()?;
        let (ratio, reward) = trajectories.concat().into_iter().unzip();
        let columns = StepColumns {
            ratio,
            reward,
            v: q.clone(),
            q,
        };
        let horizon = self.horizon.unwrap_or(longest);
        Steps::new(&lengths, horizon, self.gamma, columns).map_err(|error| error.to_string())
    }
}

fn ratio(trajectory: usize, step: usize, eval_prob: f64, pscore: f64) -> Result<f64, String> {
    let place = Place::Step {
        trajectory: trajectory as i64,
        step: step as i64,
    };
    if !(pscore > 0.0 && pscore <= 1.0) {
        return Err(format!("{place}: pscore = {pscore} must be in (0, 1]"));
    }
    if !(0.0..=1.0).contains(&eval_prob) {
        return Err(format!(
            "{place}: eval_prob = {eval_prob} must be in [0, 1]"
        ));
    }
    Ok(eval_prob / pscore)
}

fn sequential(input: &SequentialInput) -> Result<Object, String> {
    let steps = input.steps()?;
    let weights = StepWeights::new(&steps);
    let mut report = Report::default();
    report.add_estimate("tis", &steps.trajectory_wise(Cap::None));
    report.add_estimate("sntis", &steps.self_normalised_trajectory_wise());
    report.add_estimate("pdis", &steps.per_decision(Cap::None));
    report.add_estimate("snpdis", &steps.self_normalised_per_decision(&weights));
    if input.q_by_step.is_some() || input.q_hat.is_some() {
        report.add_estimate("dm", &steps.direct_method());
        report.add_estimate("dr", &steps.doubly_robust());
        report.add_estimate("sndr", &steps.weighted_doubly_robust(&weights));
    }
    report.add("ess", weights.ess().last().copied());
    Ok(report.finish())
}

#[derive(Debug, Deserialize)]
struct IntervalInput {
    n: usize,
    range: [f64; 2],
    delta: f64,
}

fn interval(input: &IntervalInput) -> Object {
    let mut report = Report::default();
    let range = input.range[1] - input.range[0];
    report.add(
        "half_width",
        hoeffding_half_width(range, input.n, input.delta),
    );
    report.finish()
}

#[derive(Debug, Deserialize)]
struct FittedInput {
    gamma: f64,
    transitions_truncated: Vec<TransitionInput>,
    transitions_terminated: Vec<TransitionInput>,
}

#[derive(Debug, Deserialize)]
struct TransitionInput {
    s: usize,
    a: usize,
    r: f64,
    s2: Option<usize>,
    terminated: bool,
}

fn fitted(input: &FittedInput) -> Result<Object, String> {
    let mut report = Report::default();
    let logs = [
        ("q_infinite_truncated", &input.transitions_truncated),
        ("q_infinite_terminated", &input.transitions_terminated),
    ];
    for (name, rows) in logs {
        report.add(name, fixed_point(rows, input.gamma)?);
    }
    Ok(report.finish())
}

/// Q of the first state and its only action.
fn fixed_point(rows: &[TransitionInput], gamma: f64) -> Result<f64, String> {
    let states = rows
        .iter()
        .flat_map(|row| [row.s, row.s2.unwrap_or(0)])
        .max();
    let shape = Shape {
        states: states.ok_or("transitions: no rows")? + 1,
        actions: 1,
        horizon: 1,
    };
    let mut transitions = Transitions::new(shape);
    for (i, row) in rows.iter().enumerate() {
        if row.a != 0 {
            return Err(format!(
                "row {i}: a = {} must be 0: the case names no policy",
                row.a
            ));
        }
        if !row.terminated && row.s2.is_none() {
            return Err(format!(
                "row {i}: s2 is missing where the episode did not terminate"
            ));
        }
        transitions.push(Transition {
            state: row.s,
            action: row.a,
            reward: row.r,
            next_state: row.s2.filter(|_| !row.terminated),
        });
    }
    let only = Policy::new("the only action", vec![1.0; shape.states], &shape)
        .map_err(|error| error.to_string())?;
    let q = transitions
        .infinite_horizon(&only, gamma)
        .map_err(|error| error.to_string())?;
    Ok(q.at(0)[0])
}

/// Single decisions are trajectories of one step.
fn one_step(dir: &Path) -> Result<Object, String> {
    let file = File::read(dir).map_err(|error| error.to_string())?;
    let columns = file.columns().map_err(|error| error.to_string())?;
    let expected = columns.reward.iter().zip(&columns.residual);
    let as_steps = StepColumns {
        ratio: columns.weight.clone(),
        reward: columns.reward.clone(),
        q: expected.map(|(r, e)| r - e).collect(),
        v: columns.value.clone(),
    };
    let steps = Steps::new(&vec![1; columns.rows()], 1, 0.5, as_steps)
        .map_err(|error| error.to_string())?;
    let weights = StepWeights::new(&steps);
    let bandit = |estimator: Estimator| estimator.scores(&columns);
    let groups = [
        vec![
            ("ips", bandit(Estimator::InverseWeight(Shrinkage::None))),
            ("pdis", steps.per_decision(Cap::None)),
            ("tis", steps.trajectory_wise(Cap::None)),
        ],
        vec![
            ("snips", bandit(Estimator::SelfNormalised)),
            ("snpdis", steps.self_normalised_per_decision(&weights)),
            ("sntis", steps.self_normalised_trajectory_wise()),
        ],
        vec![
            ("dr", bandit(Estimator::DoublyRobust(Shrinkage::None))),
            ("dr", steps.doubly_robust()),
        ],
    ];
    let mut report = Report::default();
    let mut equal = vec![];
    for group in &groups {
        let estimates: Vec<f64> = group
            .iter()
            .filter_map(|(_, s)| Some(s.as_ref().ok()?.estimate()))
            .collect();
        let within = estimates.iter().all(|x| (x - estimates[0]).abs() <= EQUAL);
        if within && estimates.len() == group.len() {
            equal.push(group.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        }
        for (name, scores) in group {
            report.add_estimate(name, scores);
        }
    }
    report.add("equal", json!(equal));
    Ok(report.finish())
}
