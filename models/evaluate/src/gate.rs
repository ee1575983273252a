//! Whether a policy may be promoted.

use serde::{Deserialize, Serialize};

use crate::evaluation::Evaluation;
use crate::verdict::{Verdict, Word};

/// What a promotion needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateRule {
    /// The verdict that it needs.
    pub needs: Needs,
    /// Least confidence of the interval behind it.
    pub confidence: f64,
    /// Greatest age of the newest decision that was evaluated, in seconds.
    pub max_age_s: f64,
}

impl Default for GateRule {
    /// Better, with 95 %, on decisions of the last week.
    fn default() -> Self {
        Self {
            needs: Needs::Better,
            confidence: 0.95,
            max_age_s: 7.0 * 86_400.0,
        }
    }
}

/// The verdict that a promotion needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// Better.
    Better,
    /// At worst the verdict's margin worse.
    NotWorse,
}

/// What somebody who passes the gate by has said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Force {
    /// Why.
    pub reason: String,
}

/// What the gate says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "admission")]
pub enum Admission {
    /// The evaluation says what is needed.
    Admitted,
    /// It does not, but somebody wants it all the same, and has said why.
    Forced {
        /// Why.
        reason: String,
        /// What the gate objects to.
        objections: Vec<String>,
    },
    /// It does not.
    Refused {
        /// What the gate objects to.
        objections: Vec<String>,
    },
}

impl Admission {
    /// Whether the policy may be promoted.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

/// Whether the policy that was evaluated may be promoted at `now_us`, microseconds since 1970 UTC. `judged` is
/// what was evaluated, with its verdict; `Err` says why there is none.
#[must_use]
pub fn gate(
    judged: Result<(&Evaluation, &Verdict), &str>,
    rule: &GateRule,
    now_us: i64,
    force: Option<&Force>,
) -> Admission {
    let mut objections = match judged {
        Ok((evaluation, verdict)) => objections(evaluation, verdict, rule, now_us),
        Err(why) => vec![format!("there is no evaluation: {why}")],
    };
    match force {
        _ if objections.is_empty() => Admission::Admitted,
        Some(force) if force.reason.trim().is_empty() => {
            objections.push("it was forced without a reason: say why, it is recorded".to_owned());
            Admission::Refused { objections }
        }
        Some(force) => Admission::Forced {
            reason: force.reason.trim().to_owned(),
            objections,
        },
        None => Admission::Refused { objections },
    }
}

fn objections(
    evaluation: &Evaluation,
    verdict: &Verdict,
    rule: &GateRule,
    now_us: i64,
) -> Vec<String> {
    let mut objections = vec![];
    let is_wanted = match rule.needs {
        Needs::Better => verdict.word == Word::Better,
        Needs::NotWorse => verdict.is_not_worse,
    };
    if !is_wanted {
        let wanted = match rule.needs {
            Needs::Better => "better",
            Needs::NotWorse => "not worse",
        };
        objections.push(format!("the verdict must be {wanted}: {}", verdict.text));
    }
    if verdict.confidence < rule.confidence {
        objections.push(format!(
            "the interval has a confidence of {}, and {} is wanted",
            verdict.confidence, rule.confidence
        ));
    }
    let age_s = evaluation
        .log
        .until_us
        .map(|until_us| now_us.saturating_sub(until_us) as f64 / 1e6);
    if age_s.is_none_or(|age_s| age_s > rule.max_age_s) {
        objections.push(format!(
            "the newest decision that was evaluated is {:.0} s old, more than {:.0} s: evaluate a recent log",
            age_s.unwrap_or(f64::INFINITY),
            rule.max_age_s
        ));
    }
    objections
}
