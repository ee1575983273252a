//! The report as a table for people.

use comfy_table::{Table, presets};
use serde_json::Value;

/// Estimates with their standard errors, one line each.
pub(super) fn report(report: &Value) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["LOG", "POLICY", "ESTIMATOR", "ESTIMATE", "STD ERR"]);
    add(&mut table, "bandit", "", &report["bandit"]);
    for log in ["seq", "seqvar"] {
        for (policy, of) in entries(&report[log]["policies"]) {
            add(&mut table, log, policy, of);
        }
    }
    add(&mut table, "multihead", "", &report["multihead"]);
    let mut text = table.to_string();
    for (name, of) in entries(&report["edge_cases"]) {
        text.push_str(&format!("\nedge case {name}: {of}"));
    }
    text
}

fn entries(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    of.as_object().into_iter().flatten()
}

fn add(table: &mut Table, log: &str, policy: &str, of: &Value) {
    for (name, estimate) in entries(&of["estimators"]) {
        let number = |key: &str| match &estimate[key] {
            Value::Null => "-".to_owned(),
            value => value
                .as_f64()
                .map_or_else(|| value.to_string(), |x| format!("{x:.6}")),
        };
        let value = match estimate["undefined"].as_str() {
            Some(reason) => reason.to_owned(),
            None => number("estimate"),
        };
        table.add_row([log, policy, name, &value, &number("std_err")]);
    }
}
