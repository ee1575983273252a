//! A policy judged on a decision log, within an operation: told how far it is, and ended when it is to end.

use std::path::Path;

use blkpilot_evaluate::{
    EvaluateError, Evaluation, Extras, NetworkTarget, Options, Progress, TargetPolicy, Verdict,
    VerdictRule, evaluate_with, verdict,
};

use super::store::{PolicyStore, StoreError, Version};
use crate::operations::Work;

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The estimates, and what says whether to believe them.
    pub evaluation: Evaluation,
    /// In a word.
    pub verdict: Verdict,
}

/// Who is judged, and on what.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The directory of the decision log.
    pub log: &'a Path,
    /// Who is judged.
    pub policy: &'a dyn TargetPolicy,
    /// With whom it is compared; `None` for the behaviour in the log.
    pub against: Option<&'a dyn TargetPolicy>,
    /// How.
    pub options: &'a Options,
    /// When estimates are believed.
    pub rule: &'a VerdictRule,
}

/// Judges a policy; `work` is told how far that is.
///
/// # Errors
/// What keeps it from being evaluated; `Stopped` when it is to end.
pub fn judge(question: Question<'_>, work: &Work) -> Result<Judged, EvaluateError> {
    let mut tell = |at: Progress| work.tell("reads the decision log", ratio(at));
    let extras = Extras {
        progress: Some(&mut tell),
        stop: Some(work.is_to_end()),
        ..Extras::default()
    };
    let evaluation = evaluate_with(
        question.log,
        question.policy,
        question.against,
        question.options,
        extras,
    )?;
    let verdict = verdict(&evaluation, question.rule);
    Ok(Judged {
        evaluation,
        verdict,
    })
}

/// Share of the passes over the log that is done; how long a first one is may not be known.
fn ratio(at: Progress) -> f64 {
    let within = match at.of {
        Some(of) if of > 0 => (at.rows as f64 / of as f64).min(1.0),
        _ => 0.0,
    };
    (at.pass as f64 + within) / at.passes as f64
}

/// A stored version as somebody to judge, and the discount that it was trained with, if it says.
///
/// # Errors
/// `Checkpoint`, `Mixed`.
pub fn stored(
    store: &PolicyStore,
    version: &Version,
) -> Result<(NetworkTarget, Option<f64>), StoreError> {
    let checkpoint = store.checkpoint(version)?;
    let (name, selection) = (&version.name.policy, version.selection);
    let policy = NetworkTarget::new(name, &checkpoint, selection, 0.0)?;
    Ok((policy, gamma_of(&checkpoint.manifest.config)))
}

/// The discount that a checkpoint was trained with: `gamma`, at whatever depth of its learner's configuration
/// it stands.
#[must_use]
pub fn gamma_of(config: &serde_json::Value) -> Option<f64> {
    let object = config.as_object()?;
    let own = object.get("gamma").and_then(serde_json::Value::as_f64);
    let own = own.filter(|gamma| (0.0..=1.0).contains(gamma));
    own.or_else(|| object.values().find_map(gamma_of))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_discount_is_found_where_a_config_has_it() {
        assert_eq!(gamma_of(&json!({"training": {"gamma": 0.8}})), Some(0.8));
        assert_eq!(gamma_of(&json!({"gamma": 1.5, "x": [1]})), None);
        assert_eq!(gamma_of(&json!(null)), None);
    }

    #[test]
    fn the_share_that_is_done_goes_over_all_passes() {
        let at = |pass, rows, of| {
            ratio(Progress {
                pass,
                passes: 4,
                rows,
                of,
            })
        };
        assert_eq!(at(0, 10, None), 0.0);
        assert_eq!(at(1, 50, Some(100)), 0.375);
        assert_eq!(at(3, 200, Some(100)), 1.0);
    }
}
