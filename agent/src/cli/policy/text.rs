//! Versions and events for people.

use blkpilot_proto::v1;

use crate::cli::tables::{ABSENT, moment, table};

/// One line per version.
pub(super) fn versions(versions: &[v1::PolicyVersion]) -> String {
    let mut lines = table(&[
        "VERSION",
        "STAGE",
        "SERVES",
        "CONTENT",
        "LEARNER",
        "STEPS",
        "UPLOADED",
        "DESCRIPTION",
    ]);
    for version in versions {
        lines.add_row([
            short(&version.name),
            stage(version.stage()),
            if version.is_serving { "yes" } else { ABSENT }.to_owned(),
            version.tensors_sha256.chars().take(12).collect(),
            version.algorithm.clone(),
            version.env_steps.to_string(),
            moment(version.create_time.as_ref()),
            version.description.clone(),
        ]);
    }
    lines.to_string()
}

/// All that is known of one.
pub(super) fn version(version: &v1::PolicyVersion) -> String {
    let selection = match version.selection() {
        v1::PolicySelection::Sample => "sample",
        v1::PolicySelection::Greedy | v1::PolicySelection::Unspecified => "greedy",
    };
    let mut lines = vec![
        version.name.clone(),
        format!("stage: {}", stage(version.stage())),
        format!("serves: {}", if version.is_serving { "yes" } else { "no" }),
        format!("content: {}", version.tensors_sha256),
        format!("selection: {selection}"),
        format!(
            "learner: {}, {} steps",
            version.algorithm, version.env_steps
        ),
        format!("spec: {} {}", version.spec_name, version.spec_hash),
        format!("uploaded: {}", moment(version.create_time.as_ref())),
    ];
    if !version.description.is_empty() {
        lines.push(format!("description: {}", version.description));
    }
    lines.join("\n")
}

/// One line per event, newest first.
pub(super) fn events(events: &[v1::PolicyEvent]) -> String {
    let mut lines = table(&["TIME", "WHO", "ACTION", "STAGE", "RESULT", "WHY"]);
    for event in events {
        let why = [&event.reason, &event.objections.join("; "), &event.verdict]
            .into_iter()
            .find(|text| !text.is_empty())
            .map_or(ABSENT, |text| text)
            .to_owned();
        lines.add_row([
            moment(event.time.as_ref()),
            event.actor.clone(),
            event.action().as_str_name().to_ascii_lowercase(),
            stage(event.stage()),
            event.result().as_str_name().to_ascii_lowercase(),
            why,
        ]);
    }
    format!("\n{lines}")
}

pub(super) fn rollback(done: &v1::RollbackProductionResponse) -> String {
    let name = |version: &Option<v1::PolicyVersion>| {
        let named = version.as_ref().map(|version| version.name.clone());
        named.unwrap_or_else(|| "the configuration's policy".to_owned())
    };
    format!(
        "{} is in production in place of {}",
        name(&done.production),
        name(&done.withdrawn)
    )
}

/// The verdict, what it rests on, and whether to believe it.
pub(super) fn evaluation(evaluation: &v1::Evaluation) -> String {
    let verdict = evaluation.verdict.clone().unwrap_or_default();
    let mut lines = table(&["ESTIMATOR", "POLICY", "BASELINE", "DIFFERENCE"]);
    for estimate in &evaluation.estimates {
        let values = [&estimate.value, &estimate.baseline, &estimate.difference].map(value);
        let why = [estimate.undefined.clone(), String::new(), String::new()];
        let [own, baseline, difference] = if estimate.undefined.is_empty() {
            values
        } else {
            why
        };
        lines.add_row([estimate.estimator.clone(), own, baseline, difference]);
    }
    let found = evaluation.diagnostics.unwrap_or_default();
    let weights = format!(
        "{} rows, {} windows, {} blocks; effective sample size {:.1} windows",
        evaluation.rows, evaluation.windows, evaluation.blocks, found.ess
    );
    let notes = evaluation.notes.iter().map(|note| format!("Note: {note}."));
    let head = [evaluation.name.clone(), verdict.text, lines.to_string()];
    let text: Vec<String> = head.into_iter().chain([weights]).chain(notes).collect();
    text.join("\n")
}

fn value(value: &Option<v1::EvaluationValue>) -> String {
    value.as_ref().map_or_else(
        || ABSENT.to_owned(),
        |it| {
            format!(
                "{:+.4} ({:+.4} to {:+.4})",
                it.estimate, it.interval_low, it.interval_high
            )
        },
    )
}

/// One line per evaluation.
pub(super) fn evaluations(evaluations: &[v1::Evaluation]) -> String {
    let mut lines = table(&["TIME", "POLICY", "AGAINST", "VERDICT", "DIFFERENCE"]);
    for evaluation in evaluations {
        let verdict = evaluation.verdict.clone().unwrap_or_default();
        let against = match &evaluation.against[..] {
            "" => "the behaviour".to_owned(),
            name => short(name),
        };
        lines.add_row([
            moment(evaluation.create_time.as_ref()),
            short(&evaluation.policy),
            against,
            verdict.word().as_str_name().to_ascii_lowercase(),
            value(&verdict.difference),
        ]);
    }
    lines.to_string()
}

/// `POLICY/NUMBER`.
fn short(name: &str) -> String {
    let short = name.trim_start_matches("policies/");
    short.replace("/versions/", "/")
}

fn stage(stage: v1::PolicyStage) -> String {
    let name = stage.as_str_name().trim_start_matches("POLICY_STAGE_");
    name.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    #[test]
    fn a_version_is_listed_by_its_short_name_and_stage() {
        let version = v1::PolicyVersion {
            name: "policies/net/versions/3".to_owned(),
            stage: v1::PolicyStage::Canary.into(),
            create_time: Some(Timestamp {
                seconds: 0,
                nanos: 0,
            }),
            ..v1::PolicyVersion::default()
        };
        let listed = versions(std::slice::from_ref(&version));
        let line = listed.lines().nth(1).unwrap();
        assert!(
            line.contains("net/3") && line.contains("canary") && line.contains("1970"),
            "{listed}"
        );
        let unseen = v1::Evaluation {
            policy: version.name.clone(),
            ..v1::Evaluation::default()
        };
        let listed = evaluations(&[unseen]);
        assert!(
            listed.contains("net/3") && listed.contains("the behaviour"),
            "{listed}"
        );
        let nothing = v1::RollbackProductionResponse::default();
        assert!(rollback(&nothing).starts_with("the configuration's policy"));
    }
}
