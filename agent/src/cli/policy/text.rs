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
        let listed = versions(&[version]);
        let line = listed.lines().nth(1).unwrap();
        assert!(
            line.contains("net/3") && line.contains("canary") && line.contains("1970"),
            "{listed}"
        );
        let nothing = v1::RollbackProductionResponse::default();
        assert!(rollback(&nothing).starts_with("the configuration's policy"));
    }
}
