//! From an evaluation to a word: better, worse, cannot tell.

use serde::{Deserialize, Serialize};

use crate::diagnostics::Diagnostics;
use crate::estimate::{Estimate, Estimator, Value};
use crate::evaluation::Evaluation;

/// When estimates are believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerdictRule {
    /// The estimator whose interval decides. The others must not contradict it.
    pub estimator: Estimator,
    /// Least effective sample size of whole windows.
    pub least_ess: f64,
    /// Least effective sample size of the blocks' weights.
    pub least_ess_blocks: f64,
    /// Least number of blocks.
    pub least_blocks: usize,
    /// Greatest share of one window in the sum of weights.
    pub most_share: f64,
    /// Greatest distance of the mean weight from 1, in standard errors.
    pub most_mean_z: f64,
    /// Greatest shape of the weights' tail.
    pub most_pareto_k: f64,
    /// Greatest mean probability of what the log never shows.
    pub most_unsupported: f64,
    /// Greatest excess of coverage over 1, in standard errors: propensities are wrong beyond it.
    pub most_excess_z: f64,
    /// Difference, in reward units, by which a policy may be worse and yet count as not worse.
    pub margin: f64,
}

impl Default for VerdictRule {
    /// WDR decides; 50 effective windows in 5 effective blocks of at least 10, none with more than a tenth of
    /// the weight; mean weight within 3 standard errors of 1; Pareto k up to 0.7; at most 1 % unsupported;
    /// margin 0.
    fn default() -> Self {
        Self {
            estimator: Estimator::Wdr,
            least_ess: 50.0,
            least_ess_blocks: 5.0,
            least_blocks: 10,
            most_share: 0.1,
            most_mean_z: 3.0,
            most_pareto_k: 0.7,
            most_unsupported: 0.01,
            most_excess_z: 4.0,
            margin: 0.0,
        }
    }
}

/// What is said of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// The interval of the difference lies above 0.
    Better,
    /// It lies below.
    Worse,
    /// Neither, or the estimate is not to be believed.
    CannotTell,
}

impl Word {
    /// In words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::CannotTell => "cannot tell",
        }
    }
}

/// A threshold that was not met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// The diagnostic.
    pub diagnostic: String,
    /// Its value; `None` where there is none.
    pub value: Option<f64>,
    /// The threshold.
    pub threshold: f64,
    /// In words, with the way out.
    pub text: String,
}

/// A word, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The word.
    pub word: Word,
    /// Whether the policy is at worst `margin` worse: the lower end of the interval says so, and it is believed.
    pub is_not_worse: bool,
    /// What it was compared with, in words.
    pub against: String,
    /// The difference that decides; `None` where there is none.
    pub difference: Option<Value>,
    /// Confidence of its interval.
    pub confidence: f64,
    /// Why it cannot be told; empty where it can.
    pub reasons: Vec<Reason>,
    /// What is assumed of who is exposed to whose choice.
    pub exposure: String,
    /// All of it in one sentence.
    pub text: String,
}

/// The verdict on an evaluation.
#[must_use]
pub fn verdict(evaluation: &Evaluation, rule: &VerdictRule) -> Verdict {
    let mut reasons = reasons_of_log(evaluation, rule);
    reasons.extend(reasons_of_weights("", &evaluation.diagnostics, rule));
    if let (Some(against), Some(diagnostics)) =
        (&evaluation.against, &evaluation.against_diagnostics)
    {
        let of = format!(" of {}", against.name);
        reasons.extend(reasons_of_weights(&of, diagnostics, rule));
    }
    let decides = find(evaluation, rule.estimator);
    let difference = decides.and_then(|estimate| estimate.difference);
    if difference.is_none() {
        reasons.push(undefined(decides, rule.estimator));
    }
    let mut word = Word::CannotTell;
    let mut is_not_worse = false;
    if let (Some(difference), true) = (difference, reasons.is_empty()) {
        word = word_of(&difference);
        is_not_worse = difference.interval[0] >= -rule.margin;
        if let Some(reason) = contradiction(evaluation, rule, word) {
            (word, is_not_worse) = (Word::CannotTell, false);
            reasons.push(reason);
        } else if word == Word::CannotTell {
            reasons.push(undecided(&difference, rule));
        }
    }
    let against = evaluation.against.as_ref().map_or_else(
        || "the behaviour in the log".to_owned(),
        |against| against.name.clone(),
    );
    let confidence = evaluation.options.confidence;
    let text = sentence(evaluation, word, &against, difference.as_ref(), &reasons);
    Verdict {
        word,
        is_not_worse,
        against,
        difference,
        confidence,
        reasons,
        exposure: evaluation.exposure.clone(),
        text,
    }
}

fn find(evaluation: &Evaluation, estimator: Estimator) -> Option<&Estimate> {
    let mut estimates = evaluation.estimates.iter();
    estimates.find(|estimate| estimate.estimator == estimator)
}

fn word_of(difference: &Value) -> Word {
    match difference.interval {
        [lower, _] if lower > 0.0 => Word::Better,
        [_, upper] if upper < 0.0 => Word::Worse,
        _ => Word::CannotTell,
    }
}

fn reason(
    diagnostic: &str,
    value: impl Into<Option<f64>>,
    threshold: f64,
    text: impl Into<String>,
) -> Reason {
    Reason {
        diagnostic: diagnostic.to_owned(),
        value: value.into(),
        threshold,
        text: text.into(),
    }
}

fn reasons_of_log(evaluation: &Evaluation, rule: &VerdictRule) -> Vec<Reason> {
    let mut reasons = vec![];
    let blocks = evaluation.windows.blocks;
    if blocks < rule.least_blocks {
        let text = format!(
            "{blocks} blocks of {} are fewer than {}: log for longer, or on more hosts",
            evaluation.options.block, rule.least_blocks
        );
        reasons.push(reason(
            "blocks",
            blocks as f64,
            rule.least_blocks as f64,
            text,
        ));
    }
    for head in &evaluation.calibration {
        let z = head.excess_z();
        if z > rule.most_excess_z {
            let text = format!(
                "the propensities of head {} are not those with which levels were drawn: mean 1/(levels x propensity) is {:.3}, {z:.1} standard errors above 1, which it cannot exceed (at most {})",
                head.head, head.coverage, rule.most_excess_z
            );
            reasons.push(reason("calibration", z, rule.most_excess_z, text));
        }
    }
    reasons
}

fn reasons_of_weights(of: &str, found: &Diagnostics, rule: &VerdictRule) -> Vec<Reason> {
    let mut reasons = vec![];
    if found.ess < rule.least_ess {
        let text = format!(
            "the effective sample size{of} is {:.1} of {} windows, below {}: it holds for {} steps; shorten the horizon, log more, or with more exploration",
            found.ess,
            found.windows,
            rule.least_ess,
            found.effective_horizon(rule.least_ess)
        );
        reasons.push(reason("ess", found.ess, rule.least_ess, text));
    }
    if found.ess_blocks < rule.least_ess_blocks {
        let text = format!(
            "the weights{of} lie in {:.1} effective blocks, fewer than {}: log for longer",
            found.ess_blocks, rule.least_ess_blocks
        );
        reasons.push(reason(
            "ess_blocks",
            found.ess_blocks,
            rule.least_ess_blocks,
            text,
        ));
    }
    if found.max_share > rule.most_share {
        let text = format!(
            "one window has {:.0} % of the weight{of}, more than {:.0} %",
            100.0 * found.max_share,
            100.0 * rule.most_share
        );
        reasons.push(reason("max_share", found.max_share, rule.most_share, text));
    }
    if let Some(z) = found.mean_z.filter(|z| z.abs() > rule.most_mean_z) {
        let text = format!(
            "the mean weight{of} is {:.3}, {:.1} standard errors from 1 (at most {}): propensities are wrong, or the log never shows what the policy does",
            found.mean, z, rule.most_mean_z
        );
        reasons.push(reason("mean_z", z, rule.most_mean_z, text));
    }
    if let Some(k) = found.pareto_k.filter(|k| *k > rule.most_pareto_k) {
        let text = format!(
            "the tail of the weights{of} has Pareto k {k:.2}, above {}: no mean of them is to be trusted",
            rule.most_pareto_k
        );
        reasons.push(reason("pareto_k", k, rule.most_pareto_k, text));
    }
    if found.unsupported > rule.most_unsupported {
        let text = format!(
            "{:.1} % of the policy's choices{of} are of levels that the log never shows there, more than {:.1} %: log with exploration",
            100.0 * found.unsupported,
            100.0 * rule.most_unsupported
        );
        reasons.push(reason(
            "unsupported",
            found.unsupported,
            rule.most_unsupported,
            text,
        ));
    }
    reasons
}

fn undefined(decides: Option<&Estimate>, estimator: Estimator) -> Reason {
    let why = decides.and_then(|estimate| estimate.undefined.as_deref());
    let text = format!(
        "{} gives no estimate: {}",
        estimator.name(),
        why.unwrap_or("it was not made")
    );
    reason("estimate", None, 0.0, text)
}

/// Another estimator whose interval lies on the other side of 0.
fn contradiction(evaluation: &Evaluation, rule: &VerdictRule, word: Word) -> Option<Reason> {
    if word == Word::CannotTell {
        return None;
    }
    let others = evaluation.estimates.iter();
    let mut others = others.filter(|estimate| estimate.estimator != rule.estimator);
    others.find_map(|other| {
        let difference = other.difference?;
        let says = word_of(&difference);
        (says != Word::CannotTell && says != word).then(|| {
            let text = format!(
                "{} says {}, but {} says {} ({:+.4}): the model or the weights are wrong",
                rule.estimator.name(),
                word.text(),
                other.estimator.name(),
                says.text(),
                difference.estimate
            );
            reason("agreement", difference.estimate, 0.0, text)
        })
    })
}

fn undecided(difference: &Value, rule: &VerdictRule) -> Reason {
    let [lower, upper] = difference.interval;
    let text = format!(
        "the interval of {}'s difference, {lower:+.4} to {upper:+.4}, holds 0: log more, or with more exploration",
        rule.estimator.name()
    );
    reason("interval", difference.estimate, 0.0, text)
}

fn sentence(
    evaluation: &Evaluation,
    word: Word,
    against: &str,
    difference: Option<&Value>,
    reasons: &[Reason],
) -> String {
    let name = &evaluation.policy.name;
    let percent = 100.0 * evaluation.options.confidence;
    let told = match (word, difference) {
        (Word::CannotTell, _) | (_, None) => {
            let why: Vec<&str> = reasons.iter().map(|reason| reason.text.as_str()).collect();
            format!(
                "cannot tell whether {name} is better than {against}: {}",
                why.join("; ")
            )
        }
        (_, Some(difference)) => format!(
            "{name} is {} than {against}: by {:+.4} per step ({percent:.0} % interval {:+.4} to {:+.4})",
            word.text(),
            difference.estimate,
            difference.interval[0],
            difference.interval[1]
        ),
    };
    format!("{told}. Exposure {}", evaluation.exposure)
}
