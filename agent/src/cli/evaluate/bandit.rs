//! `bandit_log.csv`: single decisions with one head.

use std::collections::BTreeMap;
use std::path::Path;

use blkpilot_models::ope::bandit::{
    BanditLog, Bias, Columns, Estimator, Head, Shrinkage, SupportDiagnostics, Tuned, choose_lambda,
    exact_table, weighted_table,
};
use blkpilot_models::ope::cressie_read::{Bounds, CressieRead};
use blkpilot_models::ope::interval::{ObpLowerBounds, hcope_lower};
use blkpilot_models::ope::{Bootstrap, Matrix, OpeError, WeightDiagnostics};
use serde_json::{Value, json};

use super::EvaluateError;
use super::cases::{BanditMeta, Meta, Range};
use super::report::{self, Object, level};
use super::table::{Block, Table};

const FILE: &str = "bandit_log.csv";
/// Thresholds above which scores count as the threshold, in the lower bound of Thomas et al.
const HCOPE_CAPS: [f64; 2] = [10.0, 5.0];
/// What the shrinkage is chosen from.
const LAMBDAS: [f64; 6] = [1.0, 5.0, 10.0, 50.0, 100.0, 1e9];
/// What weights and rewards are taken to be within.
const BOUNDS: Bounds = Bounds {
    weight: [0.0, 100.0],
    reward: [0.0, 1.0],
};
const BOOTSTRAPPED: [&str; 3] = ["ips", "dr", "snips"];

/// The estimators with the names they are reported by.
const ESTIMATORS: [(&str, Estimator); 14] = {
    use Estimator::{
        DirectMethod, DoublyRobust, InverseWeight, SelfNormalised, SelfNormalisedDoublyRobust,
    };
    use Shrinkage::{Clip, None, Optimistic, SubGaussian, Switch};
    [
        ("dm", DirectMethod),
        ("ips", InverseWeight(None)),
        ("snips", SelfNormalised),
        ("cips_lambda5", InverseWeight(Clip(5.0))),
        ("cips_lambda10", InverseWeight(Clip(10.0))),
        ("dr", DoublyRobust(None)),
        ("cdr_lambda10", DoublyRobust(Clip(10.0))),
        ("sndr", SelfNormalisedDoublyRobust),
        ("switch_dr_tau5", DoublyRobust(Switch(5.0))),
        ("switch_dr_tau2", DoublyRobust(Switch(2.0))),
        ("dros_lambda10", DoublyRobust(Optimistic(10.0))),
        ("dros_lambda1", DoublyRobust(Optimistic(1.0))),
        ("sg_ips_lambda0.05", InverseWeight(SubGaussian(0.05))),
        ("sg_dr_lambda0.05", DoublyRobust(SubGaussian(0.05))),
    ]
};

/// The columns of the file.
pub(super) struct File {
    action: Vec<u32>,
    reward: Vec<f64>,
    pscore: Vec<f64>,
    bucket: Vec<usize>,
    mask: Block<bool>,
    behaviour: Block<f64>,
    evaluation: Block<f64>,
    q_hat: Block<f64>,
}

impl File {
    pub(super) fn read(dir: &Path) -> Result<Self, EvaluateError> {
        let table = Table::read(dir, FILE)?;
        table.check_distinct("round")?;
        let levels = table.width("pie");
        Ok(Self {
            action: table.counts("action")?,
            reward: table.floats("reward")?,
            pscore: table.floats("pscore")?,
            bucket: table.counts("bucket")?,
            mask: table.flag_block("mask", levels)?,
            behaviour: table.float_block("pib", levels)?,
            evaluation: table.float_block("pie", levels)?,
            q_hat: table.float_block("qhat", levels)?,
        })
    }

    fn head(&self) -> Result<Head<'_>, OpeError> {
        Ok(Head {
            name: "",
            action: &self.action,
            pscore: &self.pscore,
            evaluation: self.evaluation.matrix()?,
            behaviour: Some(self.behaviour.matrix()?),
            mask: Some(self.mask.matrix()?),
            q_hat: Some(self.q_hat.matrix()?),
        })
    }

    /// The checked log, reduced to what estimators are made of.
    pub(super) fn columns(&self) -> Result<Columns, OpeError> {
        self.log()?.columns()
    }

    fn log(&self) -> Result<BanditLog<'_>, OpeError> {
        Ok(BanditLog {
            reward: &self.reward,
            heads: vec![self.head()?],
        })
    }
}

pub(super) fn evaluate(dir: &Path, meta: &Meta, of: &BanditMeta) -> Result<Value, EvaluateError> {
    let file = File::read(dir)?;
    evaluate_file(&file, meta, of).map_err(EvaluateError::within(FILE))
}

fn evaluate_file(file: &File, meta: &Meta, of: &BanditMeta) -> Result<Value, OpeError> {
    let columns = file.columns()?;
    let mut estimators = estimators(&columns, meta.alpha, of);
    for (name, object) in mrdr(file, &columns, meta.alpha)? {
        estimators.insert(name.to_owned(), object.into());
    }
    let cressie_read =
        cressie_read(&columns, meta.alpha).unwrap_or_else(|error| report::reason(&error));
    estimators.insert("cressie_read_m2".to_owned(), cressie_read.into());
    let mut result = Object::new();
    result.insert("estimators".to_owned(), estimators.into());
    let bounds = lower_bounds(&columns, meta.alpha, of);
    result.insert(
        "one_sided_lower_bounds_obp_convention".to_owned(),
        bounds.into(),
    );
    let seed = meta.bootstrap.seed;
    let bootstrap = bootstrap(&columns, meta).unwrap_or_else(|error| report::reason(&error));
    result.insert(format!("bootstrap_percentile_seed{seed}"), bootstrap.into());
    result.insert(
        "lambda_selection".to_owned(),
        lambdas(&columns, meta.alpha)?,
    );
    result.insert(
        "diagnostics".to_owned(),
        diagnostics(file, &columns)?.into(),
    );
    Ok(result.into())
}

fn estimators(columns: &Columns, alpha: f64, of: &BanditMeta) -> Object {
    let mut estimators = Object::new();
    for (name, estimator) in ESTIMATORS {
        let scores = match estimator.scores(columns) {
            Ok(scores) => scores,
            Err(error) => {
                estimators.insert(name.to_owned(), report::reason(&error).into());
                continue;
            }
        };
        let mut object = report::estimate(&scores, alpha);
        let range = of.ranges.get(&format!("estimators.{name}"));
        if let (Some(Range::Both(range)), Ok(summary)) = (range, scores.summary()) {
            report::add_bounded(&mut object, &summary, *range, alpha);
        }
        if name == "ips" {
            for cap in HCOPE_CAPS {
                if let Ok(bound) = hcope_lower(scores.values(), cap, alpha) {
                    object.insert(format!("hcope_lower{}_c{cap}", level(alpha)), bound.into());
                }
            }
        }
        estimators.insert(name.to_owned(), object.into());
    }
    estimators
}

/// Doubly robust with a table per bucket that is fitted to the same rows, in both forms.
fn mrdr(
    file: &File,
    columns: &Columns,
    alpha: f64,
) -> Result<[(&'static str, Object); 2], OpeError> {
    let head = file.head()?;
    let buckets = file.bucket.iter().max().map_or(0, |most| most + 1);
    let levels = head.evaluation.columns();
    let with_table = |table: Vec<f64>| {
        let rows = file
            .bucket
            .iter()
            .flat_map(|b| &table[b * levels..(b + 1) * levels]);
        let q_hat: Vec<f64> = rows.copied().collect();
        let columns = columns.with_model(&head, Matrix::new(&q_hat, levels)?)?;
        let scores = Estimator::DoublyRobust(Shrinkage::None).scores(&columns);
        Ok(report::estimate_or_reason(scores, alpha))
    };
    let weighted = weighted_table(&head, &file.reward, &file.bucket, buckets)?;
    let exact = exact_table(&head, &file.reward, &file.bucket, buckets)?;
    Ok([
        ("mrdr_weighted_tabular", with_table(weighted)?),
        ("mrdr_exact_tabular", with_table(exact)?),
    ])
}

fn cressie_read(columns: &Columns, alpha: f64) -> Result<Object, OpeError> {
    let mut sums = CressieRead::new(BOUNDS)?;
    sums.push(&columns.weight, &columns.reward)?;
    let mut object = Object::new();
    object.insert("estimate".to_owned(), sums.estimate()?.into());
    object.insert(format!("ci{}", level(alpha)), json!(sums.interval(alpha)?));
    for (name, [low, high]) in [("w", BOUNDS.weight), ("r", BOUNDS.reward)] {
        object.insert(format!("{name}min"), low.into());
        object.insert(format!("{name}max"), high.into());
    }
    Ok(object)
}

/// Those whose largest score the folder tells.
fn lower_bounds(columns: &Columns, alpha: f64, of: &BanditMeta) -> Object {
    let mut bounds = Object::new();
    for (name, estimator) in ESTIMATORS {
        let key = format!("one_sided_lower_bounds_obp_convention.{name}.x_max");
        let Some(Range::Most(x_max)) = of.ranges.get(&key) else {
            continue;
        };
        let scores = estimator.scores(columns);
        let of = scores.and_then(|scores| ObpLowerBounds::new(scores.values(), *x_max, alpha));
        let level = level(alpha);
        let object = of.map_or_else(
            |error| report::reason(&error),
            |of| {
                let values = [
                    ("x_max".to_owned(), *x_max),
                    (format!("hoeffding_lower{level}"), of.hoeffding),
                    (format!("bernstein_lower{level}"), of.bernstein),
                    (format!("student_t_lower{level}"), of.student_t),
                ];
                values
                    .map(|(name, value)| (name, value.into()))
                    .into_iter()
                    .collect()
            },
        );
        bounds.insert(name.to_owned(), object.into());
    }
    bounds
}

fn bootstrap(columns: &Columns, meta: &Meta) -> Result<Object, OpeError> {
    let all: BTreeMap<&str, Estimator> = ESTIMATORS.into_iter().collect();
    let terms = BOOTSTRAPPED.map(|name| all[name].terms(columns));
    let terms = terms.into_iter().collect::<Result<Vec<_>, _>>()?;
    let replicates = meta.bootstrap.replicates;
    let bootstrap = Bootstrap {
        replicates,
        seed: meta.bootstrap.seed,
    };
    let intervals = bootstrap.percentile(&terms.iter().collect::<Vec<_>>(), meta.alpha)?;
    let of = |(name, [lower, upper]): (&str, [f64; 2])| {
        let object = json!({ "lower": lower, "upper": upper, "B": replicates });
        (name.to_owned(), object)
    };
    Ok(BOOTSTRAPPED.into_iter().zip(intervals).map(of).collect())
}

fn lambdas(columns: &Columns, delta: f64) -> Result<Value, OpeError> {
    let tuned = [
        ("cips", Tuned::ClippedInverseWeight),
        ("dros", Tuned::OptimisticDoublyRobust),
    ];
    let mut result = Object::new();
    for (name, tuned) in tuned {
        let upper = choose_lambda(columns, tuned, &LAMBDAS, Bias::UpperBound(delta))?;
        let plug_in = choose_lambda(columns, tuned, &LAMBDAS, Bias::PlugIn)?;
        let points = upper
            .grid
            .iter()
            .zip(&plug_in.grid)
            .map(|((lambda, upper), (_, plug_in))| {
                let errors = json!({
                    "mse_with_bias_upper_bound": upper,
                    "mse_plugin_bias": plug_in,
                });
                (format!("{lambda:?}"), errors)
            });
        let of = json!({
            "grid": points.collect::<Object>(),
            "best_with_bias_upper_bound": upper.best,
            "best_plugin_bias": plug_in.best,
        });
        result.insert(name.to_owned(), of);
    }
    Ok(result.into())
}

fn diagnostics(file: &File, columns: &Columns) -> Result<Object, OpeError> {
    let mut object = report::weights(&WeightDiagnostics::new(&columns.weight));
    let least = file.pscore.iter().copied().fold(f64::INFINITY, f64::min);
    object.insert("min_pscore".to_owned(), least.into());
    if let Some(support) = SupportDiagnostics::new(&file.log()?) {
        let values: [(&str, Value); 4] = [
            (
                "eval_mass_without_support",
                support.mass_without_support.into(),
            ),
            ("mean_kl_eval_behaviour", support.kl.into()),
            ("mean_renyi2_exact", support.renyi2.into()),
            ("frac_rounds_greedy_match", support.greedy_match.into()),
        ];
        object.extend(values.map(|(name, value)| (name.to_owned(), value)));
    }
    Ok(object)
}
