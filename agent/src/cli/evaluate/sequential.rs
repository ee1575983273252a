//! `seq_*.csv` and `seqvar_*.csv`: trajectories over numbered states and actions.

use std::collections::BTreeMap;
use std::path::Path;

use blkpilot_models::ope::sequential::{
    Cap, Magic, Policy, QTable, Rows, Shape, StepWeights, Steps, TabularLog, fqe, marginal, mrdr,
};
use blkpilot_models::ope::{OpeError, Scores, Selection, WeightDiagnostics};
use serde_json::{Value, json};

use super::EvaluateError;
use super::cases::SequentialMeta;
use super::report::{self, Object};
use super::table::Table;

/// The policy that logged.
const BEHAVIOUR: &str = "behaviour";
/// What a cumulative weight counts at most in the estimators of that name.
const CAP: f64 = 10.0;
/// A step whose effective sample size is below this share of the trajectories is beyond the horizon.
const LEAST_ESS: f64 = 0.1;
/// Regret is told of the best 1 to this many.
const TOP: usize = 3;
/// Estimators by which candidates are ranked.
const RANKING: [&str; 11] = [
    "dm",
    "tis",
    "sntis",
    "pdis",
    "snpdis",
    "dr",
    "sndr",
    "magic",
    "mrdr_exact_tabular",
    "fqe_tabular_finite_horizon",
    "mis_tabular",
];

/// A log with the policies over it and their models.
struct Case {
    log: TabularLog,
    behaviour: Policy,
    /// By name, without the behaviour policy, in the order of the file.
    candidates: Vec<(String, Policy, QTable)>,
}

pub(super) fn evaluate(
    dir: &Path,
    name: &str,
    of: &SequentialMeta,
    alpha: f64,
) -> Result<Value, EvaluateError> {
    let case = Case::read(dir, name, of)?;
    let log_file = format!("{name}_log.csv");
    let within = EvaluateError::within(&log_file);
    let mut policies = Object::new();
    for (policy_name, policy, model) in &case.candidates {
        let mut object = Object::new();
        if let Some(truth) = of.true_value(policy_name) {
            object.insert("truth".to_owned(), truth);
        }
        let steps = case.log.steps(policy, model, of.gamma).map_err(&within)?;
        let weights = StepWeights::new(&steps);
        let mut estimators = by_weights(&steps, &weights, alpha);
        estimators.extend(by_model(&case, policy, of.gamma, alpha));
        add_ranges(&mut estimators, &steps, policy_name, of, alpha);
        object.insert("estimators".to_owned(), estimators.into());
        let diagnostics = diagnostics(&case, policy, &steps, &weights);
        object.insert(
            "weight_diagnostics_trajectory".to_owned(),
            diagnostics.into(),
        );
        policies.insert(policy_name.clone(), object.into());
    }
    let mut result = Object::new();
    let behaviour = behaviour(&case, of).map_err(&within)?;
    result.insert("behaviour".to_owned(), behaviour.into());
    if let Some(selection) = selection(&case, &policies, of) {
        let selection = selection.map_err(EvaluateError::within("meta.json"))?;
        result.insert("off_policy_selection".to_owned(), selection);
    }
    result.insert("policies".to_owned(), policies.into());
    Ok(result.into())
}

impl SequentialMeta {
    fn shape(&self) -> Shape {
        Shape {
            states: self.n_states,
            actions: self.n_actions,
            horizon: self.horizon,
        }
    }

    fn true_value(&self, policy: &str) -> Option<Value> {
        self.true_values
            .as_ref()?
            .get(policy)
            .map(|value| json!(value))
    }
}

impl Case {
    fn read(dir: &Path, name: &str, of: &SequentialMeta) -> Result<Self, EvaluateError> {
        let shape = of.shape();
        let log = Table::read(dir, &format!("{name}_log.csv"))?;
        let rows = Rows {
            trajectory: log.integers("trajectory")?,
            step: log.integers("step")?,
            state: log.integers("state")?,
            action: log.integers("action")?,
            reward: log.floats("reward")?,
            next_state: log.integers("next_state")?,
            terminated: log.flags("terminated")?,
            truncated: log.flags("truncated")?,
            pscore: log.floats("pscore")?,
        };
        let log = TabularLog::new(&rows, shape).map_err(EvaluateError::within(log.file()))?;
        let policies = Table::read(dir, &format!("{name}_policies.csv"))?;
        let models = Table::read(dir, &format!("{name}_qhat.csv"))?;
        let mut values: BTreeMap<_, _> = by_policy(&models, "q", &shape)?.into_iter().collect();
        let mut behaviour = None;
        let mut candidates = vec![];
        for (policy, probabilities) in by_policy(&policies, "p", &shape)? {
            let within = EvaluateError::within(policies.file());
            let of = Policy::new(&policy, probabilities, &shape).map_err(within)?;
            if policy == BEHAVIOUR {
                behaviour = Some(of);
                continue;
            }
            let model = values.remove(&policy).ok_or_else(|| {
                problem(
                    models.file(),
                    format!("no rows of policy {policy}, which {} has", policies.file()),
                )
            })?;
            let model = QTable::new(&policy, model, &shape);
            candidates.push((
                policy,
                of,
                model.map_err(EvaluateError::within(models.file()))?,
            ));
        }
        let behaviour = behaviour.ok_or_else(|| {
            problem(
                policies.file(),
                format!("no rows of policy {BEHAVIOUR}, the one that logged"),
            )
        })?;
        Ok(Self {
            log,
            behaviour,
            candidates,
        })
    }
}

fn problem(file: &str, problem: String) -> EvaluateError {
    EvaluateError::File {
        file: file.to_owned(),
        problem,
    }
}

/// The table `[states × actions]` of each policy of a file, in order of appearance.
fn by_policy(
    table: &Table,
    prefix: &str,
    shape: &Shape,
) -> Result<Vec<(String, Vec<f64>)>, EvaluateError> {
    let block = table.float_block(prefix, shape.actions)?;
    let block = block
        .matrix()
        .map_err(EvaluateError::within(table.file()))?;
    let states: Vec<usize> = table.counts("state")?;
    let mut policies: Vec<(String, Vec<Option<&[f64]>>)> = vec![];
    for (row, (name, &state)) in table.text("policy")?.zip(&states).enumerate() {
        if state >= shape.states {
            let rule = "must be below the number of states";
            return Err(problem(
                table.file(),
                format!("row {row}: state = {state} {rule}"),
            ));
        }
        let at = policies.iter().position(|(known, _)| known == name);
        let at = at.unwrap_or_else(|| {
            policies.push((name.to_owned(), vec![None; shape.states]));
            policies.len() - 1
        });
        if policies[at].1[state].replace(block.row(row)).is_some() {
            let rule = format!("is there twice for policy {name}");
            return Err(problem(
                table.file(),
                format!("row {row}: state = {state} {rule}"),
            ));
        }
    }
    let whole = |(name, rows): (String, Vec<Option<&[f64]>>)| {
        let state = rows.iter().position(Option::is_none);
        let rows: Option<Vec<&[f64]>> = rows.into_iter().collect();
        match rows {
            Some(rows) => Ok((name, rows.concat())),
            None => Err(problem(
                table.file(),
                format!(
                    "policy {name}: no row of state {}",
                    state.unwrap_or_default()
                ),
            )),
        }
    };
    policies.into_iter().map(whole).collect()
}

fn by_weights(steps: &Steps, weights: &StepWeights, alpha: f64) -> Object {
    let estimates: [(&str, Result<Scores, OpeError>); 9] = [
        ("dm", steps.direct_method()),
        ("tis", steps.trajectory_wise(Cap::None)),
        ("sntis", steps.self_normalised_trajectory_wise()),
        ("pdis", steps.per_decision(Cap::None)),
        ("snpdis", steps.self_normalised_per_decision(weights)),
        ("dr", steps.doubly_robust()),
        ("sndr", steps.weighted_doubly_robust(weights)),
        ("ctis_c10", steps.trajectory_wise(Cap::At(CAP))),
        ("cpdis_c10", steps.per_decision(Cap::At(CAP))),
    ];
    let object = |(name, scores): (&str, _)| {
        (
            name.to_owned(),
            report::estimate_or_reason(scores, alpha).into(),
        )
    };
    let mut estimators: Object = estimates.into_iter().map(object).collect();
    let last_steps = Magic::default_steps(steps.horizon());
    let magic = Magic::new(steps, weights, &last_steps);
    let magic = magic.map_or_else(
        |error| report::reason(&error).into(),
        |of| magic_object(&of),
    );
    estimators.insert("magic".to_owned(), magic);
    estimators
}

fn magic_object(of: &Magic) -> Value {
    json!({
        "estimate": of.estimate,
        "J": of.last_step,
        "g_j": of.partial,
        "bias_j": of.bias,
        "x_j": of.share,
        "omega_diag": of.variance,
    })
}

fn by_model(case: &Case, policy: &Policy, gamma: f64, alpha: f64) -> Object {
    let log = &case.log;
    let table = mrdr::table(log, policy, &case.behaviour, gamma);
    let steps = table.and_then(|table| log.steps(policy, &table, gamma));
    let mrdr = steps.and_then(|steps| steps.doubly_robust());
    let finite = fqe::finite_horizon(log, policy, gamma).map(|of| {
        let states = 0..log.shape().states;
        json!({
            "estimate": of.estimate,
            "q_at_t0": states.map(|state| of.q.at(state)).collect::<Vec<_>>(),
            "n_unvisited_state_actions": of.unvisited,
        })
    });
    let alone = |estimate: f64| json!({ "estimate": estimate });
    let or_reason =
        |of: Result<Value, OpeError>| of.unwrap_or_else(|error| report::reason(&error).into());
    let infinite = fqe::infinite_horizon(log, policy, gamma).map(alone);
    let estimates: [(&str, Value); 4] = [
        (
            "mrdr_exact_tabular",
            report::estimate_or_reason(mrdr, alpha).into(),
        ),
        ("fqe_tabular_finite_horizon", or_reason(finite)),
        ("fqe_tabular_infinite_horizon", or_reason(infinite)),
        (
            "mis_tabular",
            or_reason(marginal::value(log, policy, gamma).map(alone)),
        ),
    ];
    estimates
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect()
}

/// Adds the intervals of those whose range the folder tells.
fn add_ranges(
    estimators: &mut Object,
    steps: &Steps,
    policy: &str,
    of: &SequentialMeta,
    alpha: f64,
) {
    let bounded: [(&str, Result<Scores, OpeError>); 2] = [
        ("ctis_c10", steps.trajectory_wise(Cap::At(CAP))),
        ("cpdis_c10", steps.per_decision(Cap::At(CAP))),
    ];
    for (name, scores) in bounded {
        let range = of
            .ranges
            .get(&format!("policies.{policy}.estimators.{name}"));
        let summary = scores.and_then(|scores| scores.summary());
        let object = estimators.get_mut(name).and_then(Value::as_object_mut);
        if let (Some(range), Ok(summary), Some(object)) = (range, summary, object) {
            report::add_bounded(object, &summary, *range, alpha);
        }
    }
}

fn diagnostics(case: &Case, policy: &Policy, steps: &Steps, weights: &StepWeights) -> Object {
    let of_trajectories = steps.trajectory_weights();
    let values: Vec<f64> = of_trajectories
        .iter()
        .map(|weight| weight.value())
        .collect();
    let overflowing = of_trajectories
        .iter()
        .zip(&values)
        .position(|(_, value)| value.is_infinite());
    let mut object = match overflowing {
        None => report::weights(&WeightDiagnostics::new(&values)),
        Some(trajectory) => report::reason(&OpeError::Overflow {
            trajectory,
            what: "the weight",
            log10: of_trajectories[trajectory].log10(),
        }),
    };
    let n = steps.trajectories() as f64;
    let per_step: Vec<f64> = weights.ess().iter().map(|ess| ess / n).collect();
    let support = Support::new(case, policy);
    let values: [(&str, Value); 5] = [
        ("ess_fraction_per_step", per_step.into()),
        (
            "effective_horizon_ess10pct",
            weights.effective_horizon(LEAST_ESS).into(),
        ),
        ("min_pscore", case.log.least_propensity().into()),
        ("n_unsupported", support.unsupported.into()),
        ("mean_step_renyi2", support.renyi2.into()),
    ];
    object.extend(values.map(|(name, value)| (name.to_owned(), value)));
    object
}

/// How far a policy is from the one that logged.
struct Support {
    /// Pairs of state and action that the policy plays and the behaviour policy does not.
    unsupported: usize,
    /// Mean over the logged steps of E[ρ²]; `None` where a pair is not supported.
    renyi2: Option<f64>,
}

impl Support {
    fn new(case: &Case, policy: &Policy) -> Self {
        let pairs = |state| policy.at(state).iter().zip(case.behaviour.at(state));
        let states = 0..case.log.shape().states;
        let lacking = |state| {
            pairs(state)
                .filter(|(p, b)| **p > 0.0 && **b == 0.0)
                .count()
        };
        let unsupported = states.clone().map(lacking).sum();
        let of_state = |state| {
            pairs(state)
                .filter(|(p, _)| **p > 0.0)
                .map(|(p, b)| p * p / b)
                .sum()
        };
        let of_states: Vec<f64> = states.map(of_state).collect();
        let of_steps = case.log.states().iter().map(|state| of_states[*state]);
        let mean = of_steps.sum::<f64>() / case.log.rows() as f64;
        Self {
            unsupported,
            renyi2: (unsupported == 0).then_some(mean),
        }
    }
}

/// What the behaviour policy got itself.
fn behaviour(case: &Case, of: &SequentialMeta) -> Result<Object, OpeError> {
    let zero = vec![0.0; of.n_states * of.n_actions];
    let model = QTable::new(BEHAVIOUR, zero, &of.shape())?;
    let steps = case.log.steps(&case.behaviour, &model, of.gamma)?;
    let returns = Scores::mean(steps.returns())?;
    let mut object = Object::new();
    if let Some(truth) = of.true_value(BEHAVIOUR) {
        object.insert("truth".to_owned(), truth);
    }
    object.insert(
        "on_policy_mean_discounted_return".to_owned(),
        returns.estimate().into(),
    );
    if let Ok(summary) = returns.summary() {
        object.insert("on_policy_std_err".to_owned(), summary.std_err.into());
    }
    Ok(object)
}

/// How each estimator ranks the candidates, where their true values are known.
fn selection(
    case: &Case,
    policies: &Object,
    of: &SequentialMeta,
) -> Option<Result<Value, OpeError>> {
    let truth = of.true_values.as_ref()?;
    let threshold = truth.get(BEHAVIOUR)?.v_finite_horizon;
    let names: Vec<&String> = case.candidates.iter().map(|(name, ..)| name).collect();
    let values = names
        .iter()
        .map(|name| truth.get(*name).map(|value| value.v_finite_horizon));
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    let mut by_estimator = Object::new();
    for estimator in RANKING {
        let estimates = names
            .iter()
            .map(|name| policies[*name]["estimators"][estimator]["estimate"].as_f64());
        // An estimator that fails on one candidate ranks none.
        let Some(estimates) = estimates.collect::<Option<Vec<f64>>>() else {
            continue;
        };
        match Selection::new(&estimates, &values, threshold, TOP) {
            Ok(of) => {
                by_estimator.insert(estimator.to_owned(), selection_object(&of, &names).into())
            }
            Err(error) => return Some(Err(error)),
        };
    }
    Some(Ok(json!({
        "threshold_for_type_errors": threshold,
        "by_estimator": by_estimator,
    })))
}

fn selection_object(of: &Selection, names: &[&String]) -> Object {
    let ranking: Vec<&String> = of
        .ranking
        .iter()
        .map(|candidate| names[*candidate])
        .collect();
    let values: [(&str, Value); 9] = [
        ("ranking", json!(ranking)),
        ("spearman", of.spearman.into()),
        ("kendall_tau_b", of.kendall_tau_b.into()),
        ("pearson", of.pearson.into()),
        ("mean_abs_error", of.mean_abs_error.into()),
        ("median_abs_error", of.median_abs_error.into()),
        ("mse", of.mse.into()),
        ("type_i_error_rate", of.type_i.into()),
        ("type_ii_error_rate", of.type_ii.into()),
    ];
    let mut object: Object = values
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect();
    for (k, top) in (1..).zip(&of.top) {
        object.insert(format!("regret_at_{k}"), top.regret.into());
        object.insert(
            format!("normalized_regret_at_{k}"),
            top.normalized_regret.into(),
        );
        object.insert(format!("worst_of_top{k}_value"), top.worst.into());
    }
    object
}
