//! A folder of reference logs: what is in it, and the report over it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use blkpilot_models::ope::interval::{Interval, check_alpha};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::report::Object;
use super::{EvaluateError, bandit, edge, multihead, sequential};

const META: &str = "meta.json";
const EDGE_CASES: &str = "edge_cases.json";

/// What a reader needs beside the logs.
#[derive(Debug, Deserialize)]
pub(super) struct Meta {
    /// Probability that an interval misses.
    pub(super) alpha: f64,
    pub(super) bootstrap: BootstrapMeta,
    bandit: Option<BanditMeta>,
    seq: Option<SequentialMeta>,
    seqvar: Option<SequentialMeta>,
    multihead: Option<MultiheadMeta>,
}

#[derive(Debug, Deserialize)]
pub(super) struct BootstrapMeta {
    #[serde(rename = "B")]
    pub(super) replicates: usize,
    pub(super) seed: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct BanditMeta {
    #[serde(default)]
    pub(super) ranges: BTreeMap<String, Range>,
}

/// The range of a score, or its largest value.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum Range {
    Both(Interval),
    Most(f64),
}

#[derive(Debug, Deserialize)]
pub(super) struct SequentialMeta {
    pub(super) gamma: f64,
    pub(super) horizon: usize,
    pub(super) n_states: usize,
    pub(super) n_actions: usize,
    #[serde(default)]
    pub(super) ranges: BTreeMap<String, Interval>,
    pub(super) true_values: Option<BTreeMap<String, TrueValue>>,
}

#[derive(Debug, Clone, Copy, Deserialize, serde::Serialize)]
pub(super) struct TrueValue {
    pub(super) v_finite_horizon: f64,
    pub(super) v_infinite_horizon: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct MultiheadMeta {
    pub(super) heads: Vec<usize>,
    pub(super) head_names: Vec<String>,
}

/// Evaluates every log that `meta.json` names, and the edge cases where there are any.
pub(super) fn evaluate(dir: &Path) -> Result<Value, EvaluateError> {
    let meta: Meta = read_json(dir, META)?;
    check_alpha(meta.alpha).map_err(EvaluateError::within(META))?;
    let mut report = Object::new();
    report.insert("alpha".to_owned(), meta.alpha.into());
    if let Some(of) = &meta.bandit {
        report.insert("bandit".to_owned(), bandit::evaluate(dir, &meta, of)?);
    }
    for (name, of) in [("seq", &meta.seq), ("seqvar", &meta.seqvar)] {
        if let Some(of) = of {
            report.insert(
                name.to_owned(),
                sequential::evaluate(dir, name, of, meta.alpha)?,
            );
        }
    }
    if let Some(of) = &meta.multihead {
        report.insert(
            "multihead".to_owned(),
            multihead::evaluate(dir, of, meta.alpha)?,
        );
    }
    if dir.join(EDGE_CASES).exists() {
        let cases = read_json(dir, EDGE_CASES)?;
        report.insert("edge_cases".to_owned(), edge::evaluate(dir, &meta, cases));
    }
    Ok(json!(report))
}

fn read_json<T: DeserializeOwned>(dir: &Path, file: &str) -> Result<T, EvaluateError> {
    let problem = |problem: String| EvaluateError::File {
        file: file.to_owned(),
        problem,
    };
    let text = fs::read_to_string(dir.join(file)).map_err(|error| problem(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| problem(error.to_string()))
}
