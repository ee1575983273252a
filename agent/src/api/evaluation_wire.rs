//! Evaluations as messages, and how they are asked for.

use blkpilot_evaluate::{
    Diagnostics, Estimate, Exposure, Options, Reason, Value, Verdict, VerdictRule, Word,
};
use blkpilot_proto::v1;
use serde_json::json;

use super::policy_wire::Gate;
use crate::policies::judging::Judged;
use crate::wire::status::Failure;
use crate::wire::timestamp;

/// How a policy is evaluated.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manner {
    pub(crate) options: Options,
    pub(crate) verdict: VerdictRule,
    /// The discount, where one was given.
    pub(crate) gamma: Option<f64>,
}

impl Manner {
    /// At `now_us`, microseconds since 1970 UTC. All that is wrong is named at once.
    pub(crate) fn from_wire(
        options: Option<&v1::EvaluationOptions>,
        now_us: i64,
    ) -> Result<Self, Failure> {
        let given = options.copied().unwrap_or_default();
        let gate = v1::PromotionGate {
            not_worse: false,
            margin: given.margin,
            confidence: given.confidence,
            horizon_steps: given.horizon_steps,
            block_s: given.block_s,
            replicates: given.replicates,
            least_ess: given.least_ess,
            mixed: given.mixed,
        };
        let mut wrong = vec![];
        if given
            .gamma
            .is_some_and(|gamma| !(0.0..=1.0).contains(&gamma))
        {
            let gamma = given.gamma.unwrap_or_default();
            wrong.push(("gamma", format!("= {gamma} must be in [0, 1]")));
        }
        if !(0.0..=1e9).contains(&given.max_age_s) {
            let age = given.max_age_s;
            wrong.push(("max_age_s", format!("= {age} must be in [0, 1e9]")));
        }
        let Gate {
            options, verdict, ..
        } = Gate::from_wire("options", Some(gate), now_us, wrong)?;
        let age_us = (given.max_age_s > 0.0).then_some((given.max_age_s * 1e6) as i64);
        Ok(Self {
            options: Options {
                from_us: age_us.map(|age_us| now_us.saturating_sub(age_us)),
                exposure: if given.exposure_disk {
                    Exposure::Disk
                } else {
                    Exposure::Host
                },
                ..options
            },
            verdict,
            gamma: given.gamma,
        })
    }
}

/// What an evaluation is of.
pub(crate) struct Subject<'a> {
    pub(crate) name: String,
    pub(crate) at_us: i64,
    pub(crate) policy: &'a str,
    pub(crate) against: &'a str,
}

pub(crate) fn evaluation_to_wire(of: Subject<'_>, judged: &Judged) -> v1::Evaluation {
    let Judged {
        evaluation,
        verdict,
    } = judged;
    let whole = json!({ "evaluation": evaluation, "verdict": verdict });
    v1::Evaluation {
        name: of.name,
        create_time: Some(timestamp(of.at_us)),
        policy: of.policy.to_owned(),
        against: of.against.to_owned(),
        verdict: Some(verdict_to_wire(verdict)),
        estimates: evaluation.estimates.iter().map(estimate_to_wire).collect(),
        behaviour: evaluation.behaviour.as_ref().map(value_to_wire),
        diagnostics: Some(diagnostics_to_wire(&evaluation.diagnostics)),
        against_diagnostics: evaluation
            .against_diagnostics
            .as_ref()
            .map(diagnostics_to_wire),
        rows: count(evaluation.log.rows),
        windows: count(evaluation.windows.begun),
        blocks: count(evaluation.windows.blocks as u64),
        from_time: evaluation.log.from_us.map(timestamp),
        until_time: evaluation.log.until_us.map(timestamp),
        notes: evaluation.notes.clone(),
        json: format!("{whole:#}"),
    }
}

fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn value_to_wire(value: &Value) -> v1::EvaluationValue {
    v1::EvaluationValue {
        estimate: value.estimate,
        std_err: value.std_err,
        interval_low: value.interval[0],
        interval_high: value.interval[1],
    }
}

fn estimate_to_wire(estimate: &Estimate) -> v1::EvaluationEstimate {
    v1::EvaluationEstimate {
        estimator: estimate.estimator.name().to_owned(),
        value: estimate.value.as_ref().map(value_to_wire),
        baseline: estimate.baseline.as_ref().map(value_to_wire),
        difference: estimate.difference.as_ref().map(value_to_wire),
        undefined: estimate.undefined.clone().unwrap_or_default(),
    }
}

fn verdict_to_wire(verdict: &Verdict) -> v1::EvaluationVerdict {
    v1::EvaluationVerdict {
        word: match verdict.word {
            Word::Better => v1::evaluation_verdict::Word::Better,
            Word::Worse => v1::evaluation_verdict::Word::Worse,
            Word::CannotTell => v1::evaluation_verdict::Word::CannotTell,
        }
        .into(),
        is_not_worse: verdict.is_not_worse,
        against: verdict.against.clone(),
        difference: verdict.difference.as_ref().map(value_to_wire),
        confidence: verdict.confidence,
        reasons: verdict.reasons.iter().map(reason_to_wire).collect(),
        exposure: verdict.exposure.clone(),
        text: verdict.text.clone(),
    }
}

fn reason_to_wire(reason: &Reason) -> v1::VerdictReason {
    v1::VerdictReason {
        diagnostic: reason.diagnostic.clone(),
        value: reason.value,
        threshold: reason.threshold,
        text: reason.text.clone(),
    }
}

fn diagnostics_to_wire(found: &Diagnostics) -> v1::WeightDiagnostics {
    v1::WeightDiagnostics {
        windows: count(found.windows),
        ess: found.ess,
        ess_blocks: found.ess_blocks,
        mean: found.mean,
        mean_z: found.mean_z,
        max_share: found.max_share,
        zero_fraction: found.zero_fraction,
        pareto_k: found.pareto_k,
        unsupported: found.unsupported,
    }
}
