//! Estimates and diagnostics as JSON.

use blkpilot_models::ope::interval::{self, Interval};
use blkpilot_models::ope::{Kind, OpeError, Scores, Summary, WeightDiagnostics};
use serde_json::{Map, Value, json};

/// An object that is added to.
pub(super) type Object = Map<String, Value>;

/// The level of intervals as it stands in their names: `95` for alpha = 0.05.
pub(super) fn level(alpha: f64) -> String {
    let percent = (1000.0 * 100.0 * (1.0 - alpha)).round() / 1000.0;
    percent.to_string()
}

/// Estimate, standard error and the intervals that hold for many units; without the latter where there is
/// but one unit.
pub(super) fn estimate(scores: &Scores, alpha: f64) -> Object {
    let mut object = Object::new();
    object.insert("n".to_owned(), scores.values().len().into());
    object.insert("estimate".to_owned(), scores.estimate().into());
    if let Ok(summary) = scores.summary() {
        object.insert("std_err".to_owned(), summary.std_err.into());
        add_interval(
            &mut object,
            alpha,
            "normal",
            interval::normal(&summary, alpha),
        );
        if summary.kind == Kind::Mean {
            add_interval(
                &mut object,
                alpha,
                "student_t",
                interval::student_t(&summary, alpha),
            );
        }
    }
    object
}

/// Intervals that hold for any number of scores in `range`.
pub(super) fn add_bounded(object: &mut Object, summary: &Summary, range: Interval, alpha: f64) {
    object.insert("range".to_owned(), json!(range));
    let hoeffding = interval::hoeffding(summary, range, alpha);
    add_interval(object, alpha, "hoeffding", hoeffding);
    let bernstein = interval::empirical_bernstein(summary, range, alpha);
    add_interval(object, alpha, "empirical_bernstein", bernstein);
}

fn add_interval(object: &mut Object, alpha: f64, name: &str, ends: Interval) {
    object.insert(format!("ci{}_{name}", level(alpha)), json!(ends));
}

/// An estimate, or why there is none.
pub(super) fn estimate_or_reason(scores: Result<Scores, OpeError>, alpha: f64) -> Object {
    match scores {
        Ok(scores) => estimate(&scores, alpha),
        Err(error) => reason(&error),
    }
}

/// Why there is none.
pub(super) fn reason(error: &OpeError) -> Object {
    let mut object = Object::new();
    object.insert("undefined".to_owned(), error.to_string().into());
    object
}

/// Diagnostics of weights.
pub(super) fn weights(of: &WeightDiagnostics) -> Object {
    let values: [(&str, Value); 14] = [
        ("ess", of.ess.into()),
        ("ess_fraction", of.ess_fraction.into()),
        ("mean_weight", of.mean.into()),
        ("std_weight", of.std.into()),
        ("max_weight", of.max.into()),
        ("max_weight_share", of.max_share.into()),
        ("mean_weight_z", of.mean_z.into()),
        ("frac_zero_weight", of.zero_fraction.into()),
        ("frac_weight_gt_10", of.above_10_fraction.into()),
        ("p50", of.p50.into()),
        ("p95", of.p95.into()),
        ("p99", of.p99.into()),
        ("chi2_hat", of.chi2.into()),
        ("pareto_k", of.pareto_k.into()),
    ];
    values
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_named_in_percent() {
        assert_eq!(["95", "90", "99.5"], [0.05, 0.1, 0.005].map(level));
    }

    #[test]
    fn one_unit_has_no_interval() {
        let scores = Scores::mean(vec![2.0]).unwrap();
        assert_eq!(
            Value::from(estimate(&scores, 0.05)),
            json!({ "n": 1, "estimate": 2.0 })
        );
    }
}
