//! `multihead_log.csv`: single decisions with several heads.

use std::path::Path;

use blkpilot_models::ope::bandit::{BanditLog, Estimator, Head, Shrinkage};
use blkpilot_models::ope::weights::effective_sample_size;
use blkpilot_models::ope::{OpeError, WeightDiagnostics};
use serde_json::{Value, json};

use super::EvaluateError;
use super::cases::MultiheadMeta;
use super::report::{self, Object};
use super::table::{Block, Table};

const FILE: &str = "multihead_log.csv";

struct HeadColumns<'a> {
    name: &'a str,
    action: Vec<u32>,
    pscore: Vec<f64>,
    evaluation: Block<f64>,
    q_hat: Block<f64>,
}

impl<'a> HeadColumns<'a> {
    fn read(table: &Table, name: &'a str, levels: usize) -> Result<Self, EvaluateError> {
        Ok(Self {
            name,
            action: table.counts(&format!("action_{name}"))?,
            pscore: table.floats(&format!("pscore_{name}"))?,
            evaluation: table.float_block(&format!("pie_{name}"), levels)?,
            q_hat: table.float_block(&format!("qhat_{name}"), levels)?,
        })
    }

    fn head(&self) -> Result<Head<'_>, OpeError> {
        Ok(Head {
            name: self.name,
            action: &self.action,
            pscore: &self.pscore,
            evaluation: self.evaluation.matrix()?,
            behaviour: None,
            mask: None,
            q_hat: Some(self.q_hat.matrix()?),
        })
    }
}

pub(super) fn evaluate(dir: &Path, of: &MultiheadMeta, alpha: f64) -> Result<Value, EvaluateError> {
    let table = Table::read(dir, FILE)?;
    table.check_distinct("round")?;
    let reward = table.floats("reward")?;
    let heads = of.head_names.iter().zip(&of.heads);
    let heads = heads.map(|(name, levels)| HeadColumns::read(&table, name, *levels));
    let heads = heads.collect::<Result<Vec<_>, _>>()?;
    evaluate_heads(&reward, &heads, alpha).map_err(EvaluateError::within(FILE))
}

fn evaluate_heads(
    reward: &[f64],
    heads: &[HeadColumns<'_>],
    alpha: f64,
) -> Result<Value, OpeError> {
    let heads = heads
        .iter()
        .map(HeadColumns::head)
        .collect::<Result<_, _>>()?;
    let joint = BanditLog { reward, heads }.columns()?;
    let additive = joint.pseudo_inverse();
    let (ips, dr) = (
        Estimator::InverseWeight(Shrinkage::None),
        Estimator::DoublyRobust(Shrinkage::None),
    );
    let estimators = [
        ("dm", &joint, Estimator::DirectMethod),
        ("joint_ips", &joint, ips),
        ("joint_snips", &joint, Estimator::SelfNormalised),
        ("joint_dr", &joint, dr),
        ("joint_sndr", &joint, Estimator::SelfNormalisedDoublyRobust),
        ("pi_additive_ips", &additive, ips),
        ("sn_pi_additive_ips", &additive, Estimator::SelfNormalised),
        ("pi_additive_dr", &additive, dr),
    ];
    let estimates = estimators.map(|(name, columns, estimator)| {
        let object = report::estimate_or_reason(estimator.scores(columns), alpha);
        (name.to_owned(), object.into())
    });
    let per_head = joint.head_weight.iter();
    let per_head = per_head.map(|weights| effective_sample_size(weights) / weights.len() as f64);
    let least = additive
        .weight
        .iter()
        .copied()
        .fold(f64::INFINITY, f64::min);
    Ok(json!({
        "estimators": estimates.into_iter().collect::<Object>(),
        "diagnostics": {
            "joint": report::weights(&WeightDiagnostics::new(&joint.weight)),
            "per_head_ess_fraction": per_head.collect::<Vec<_>>(),
            "pi_additive_weight_mean": additive.weight.iter().sum::<f64>() / joint.rows() as f64,
            "pi_additive_weight_min": least,
        },
    }))
}
