//! Policies, versions and events as messages, and back.

use std::str::FromStr as _;

use blkpilot_evaluate::{Admission, Block, GateRule, Mixed, Needs, Options, VerdictRule};
use blkpilot_models::Selection;
use blkpilot_proto::v1;

use crate::policies::store::{Action, Event, Family, Outcome, Stage, Version, VersionName};
use crate::wire::status::Failure;
use crate::wire::timestamp;

/// Age of the oldest decision that the gate looks at, seconds.
const MOST_AGE_S: f64 = 7.0 * 86_400.0;

pub(crate) fn family_to_wire(family: &Family) -> v1::PolicyFamily {
    let latest = VersionName {
        policy: family.id.clone(),
        number: family.latest,
    };
    v1::PolicyFamily {
        name: format!("policies/{}", family.id),
        create_time: Some(timestamp(family.created_us)),
        versions: i32::try_from(family.versions).unwrap_or(i32::MAX),
        latest_version: latest.to_string(),
        etag: format!("p{}", family.revision),
    }
}

pub(crate) fn version_to_wire(version: &Version, is_serving: bool) -> v1::PolicyVersion {
    v1::PolicyVersion {
        name: version.name.to_string(),
        stage: stage_to_wire(version.stage).into(),
        sha256: version.sha256.clone(),
        tensors_sha256: version.tensors_sha256.clone(),
        selection: match version.selection {
            Selection::Greedy => v1::PolicySelection::Greedy,
            Selection::Sample => v1::PolicySelection::Sample,
        }
        .into(),
        size_bytes: i64::try_from(version.size_bytes).unwrap_or(i64::MAX),
        algorithm: version.algorithm.clone(),
        env_steps: i64::try_from(version.env_steps).unwrap_or(i64::MAX),
        spec_name: version.spec_name.clone(),
        spec_hash: version.spec_hash.clone(),
        description: version.description.clone(),
        create_time: Some(timestamp(version.created_us)),
        update_time: Some(timestamp(version.updated_us)),
        etag: version.etag(),
        is_serving,
    }
}

fn stage_to_wire(stage: Stage) -> v1::PolicyStage {
    match stage {
        Stage::Stored => v1::PolicyStage::Stored,
        Stage::Candidate => v1::PolicyStage::Candidate,
        Stage::Canary => v1::PolicyStage::Canary,
        Stage::Production => v1::PolicyStage::Production,
        Stage::Archived => v1::PolicyStage::Archived,
    }
}

/// A stage that a version can be promoted to.
pub(crate) fn goal_from_wire(field: &str, stage: i32) -> Result<Stage, Failure> {
    match v1::PolicyStage::try_from(stage) {
        Ok(v1::PolicyStage::Candidate) => Ok(Stage::Candidate),
        Ok(v1::PolicyStage::Canary) => Ok(Stage::Canary),
        Ok(v1::PolicyStage::Production) => Ok(Stage::Production),
        _ => Err(Failure::field(
            field,
            "must be CANDIDATE, CANARY or PRODUCTION: ArchivePolicyVersion archives",
        )),
    }
}

pub(crate) fn selection_from_wire(field: &str, selection: i32) -> Result<Selection, Failure> {
    match v1::PolicySelection::try_from(selection) {
        Ok(v1::PolicySelection::Unspecified | v1::PolicySelection::Greedy) => Ok(Selection::Greedy),
        Ok(v1::PolicySelection::Sample) => Ok(Selection::Sample),
        Err(_) => {
            let problem = format!("{selection} must be 0, 1 or 2");
            Err(Failure::field(field, problem))
        }
    }
}

/// The id in `policies/{policy}`.
pub(crate) fn policy_from_wire<'a>(field: &str, name: &'a str) -> Result<&'a str, Failure> {
    let [id] = crate::wire::names::parse(field, name, "policies/*")?;
    Ok(id)
}

pub(crate) fn version_name_from_wire(field: &str, name: &str) -> Result<VersionName, Failure> {
    let parsed = VersionName::from_str(name).ok();
    // The short form is for people.
    let parsed = parsed.filter(|parsed| parsed.to_string() == name);
    parsed.ok_or_else(|| {
        let problem = format!("\"{name}\" must have the form policies/*/versions/NUMBER");
        Failure::field(field, problem)
    })
}

/// A filter of versions: `stage = NAME` or `stage != NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    All,
    At(Stage),
    NotAt(Stage),
}

impl Filter {
    pub(crate) fn admits(self, stage: Stage) -> bool {
        match self {
            Self::All => true,
            Self::At(wanted) => stage == wanted,
            Self::NotAt(unwanted) => stage != unwanted,
        }
    }

    pub(crate) fn from_wire(field: &str, text: &str) -> Result<Self, Failure> {
        if text.trim().is_empty() {
            return Ok(Self::All);
        }
        let parsed = || {
            let rest = text.trim().strip_prefix("stage")?.trim_start();
            let (make, name): (fn(Stage) -> Self, _) = match rest.strip_prefix("!=") {
                Some(name) => (Self::NotAt, name),
                None => (Self::At, rest.strip_prefix('=')?),
            };
            let name = name.trim().trim_matches('"').to_ascii_lowercase();
            let name = name.trim_start_matches("policy_stage_");
            let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name)?;
            Some(make(stage))
        };
        parsed().ok_or_else(|| {
            let known = Stage::ALL.map(|stage| stage.name().to_ascii_uppercase());
            let problem = format!(
                "\"{text}\" must be `stage = NAME` or `stage != NAME`, with one of {}",
                known.join(", ")
            );
            Failure::field(field, problem)
        })
    }
}

/// What a version must be to go into production.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gate {
    pub(crate) options: Options,
    pub(crate) verdict: VerdictRule,
    pub(crate) rule: GateRule,
}

impl Gate {
    /// At `now_us`, microseconds since 1970 UTC, of the field `within`.
    ///
    /// All that is wrong is named at once, with what is known to be `wrong` beside it.
    pub(crate) fn from_wire(
        within: &str,
        gate: Option<v1::PromotionGate>,
        now_us: i64,
        mut wrong: Vec<(&'static str, String)>,
    ) -> Result<Self, Failure> {
        let gate = gate.unwrap_or_default();
        let mut or = |key: &'static str, value: f64, default: f64, low: f64, high: f64| {
            let value = if value == 0.0 { default } else { value };
            if !(low..=high).contains(&value) {
                wrong.push((key, format!("{value} must be in [{low}, {high}]")));
            }
            value
        };
        let margin = or("margin", gate.margin, 0.0, 0.0, 1e6);
        let confidence = or("confidence", gate.confidence, 0.95, 0.5, 0.9999);
        let horizon = or(
            "horizon_steps",
            gate.horizon_steps.into(),
            10.0,
            1.0,
            1000.0,
        );
        let block_s = or("block_s", gate.block_s, 600.0, 1.0, 1e7);
        let replicates = or(
            "replicates",
            gate.replicates.into(),
            2000.0,
            100.0,
            100_000.0,
        );
        let least_ess = or("least_ess", gate.least_ess, 50.0, 1.0, 1e9);
        let mut wrong = wrong
            .into_iter()
            .map(|(key, problem)| (format!("{within}.{key}"), problem));
        if let Some((field, problem)) = wrong.next() {
            let first = Failure::field(field, problem);
            return Err(wrong.fold(first, |failure, (field, problem)| {
                failure.violating(field, problem)
            }));
        }
        Ok(Self {
            options: Options {
                horizon: horizon as usize,
                block: Block::Seconds(block_s),
                mixed: if gate.mixed {
                    Mixed::Admitted
                } else {
                    Mixed::Refused
                },
                confidence,
                replicates: replicates as usize,
                from_us: Some(now_us.saturating_sub((MOST_AGE_S * 1e6) as i64)),
                // Rows that come meanwhile would be in one pass and not in another.
                until_us: Some(now_us),
                now_us: Some(now_us),
                ..Options::default()
            },
            verdict: VerdictRule {
                least_ess,
                margin,
                ..VerdictRule::default()
            },
            rule: GateRule {
                needs: if gate.not_worse {
                    Needs::NotWorse
                } else {
                    Needs::Better
                },
                confidence,
                max_age_s: MOST_AGE_S,
            },
        })
    }
}

pub(crate) fn event_to_wire(event: &Event) -> v1::PolicyEvent {
    use v1::policy_event::{Action as WireAction, Result as WireResult};
    let objections = match &event.admission {
        Some(Admission::Refused { objections } | Admission::Forced { objections, .. }) => {
            objections.clone()
        }
        Some(Admission::Admitted) | None => vec![],
    };
    v1::PolicyEvent {
        id: event.id.clone(),
        time: Some(timestamp(event.at_us)),
        actor: event.actor.clone(),
        action: match event.action {
            Action::Upload => WireAction::Upload,
            Action::Promote => WireAction::Promote,
            Action::Rollback => WireAction::Rollback,
            Action::Archive => WireAction::Archive,
        }
        .into(),
        result: match event.outcome {
            Outcome::Done => WireResult::Done,
            Outcome::Refused => WireResult::Refused,
            Outcome::Interrupted => WireResult::Interrupted,
        }
        .into(),
        version: event
            .version()
            .map_or_else(String::new, |name| name.to_string()),
        tensors_sha256: event.tensors_sha256.clone(),
        stage: stage_to_wire(event.stage).into(),
        reason: event.reason.clone(),
        objections,
        verdict: event.verdict.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_a_stage_and_another_text_is_refused_with_those_there_are() {
        let filter = |text: &str| Filter::from_wire("filter", text);
        assert_eq!(filter(" "), Ok(Filter::All));
        assert_eq!(
            filter("stage = PRODUCTION"),
            Ok(Filter::At(Stage::Production))
        );
        assert_eq!(
            filter("stage!=POLICY_STAGE_ARCHIVED"),
            Ok(Filter::NotAt(Stage::Archived))
        );
        for text in ["stage", "stage = X", "name = a"] {
            let refused = filter(text).unwrap_err();
            assert!(refused.message().contains("CANARY"), "{text}");
        }
        assert!(Filter::NotAt(Stage::Archived).admits(Stage::Stored));
        assert!(!Filter::At(Stage::Canary).admits(Stage::Stored));
    }

    #[test]
    fn a_gate_that_says_nothing_is_the_default_one_and_all_that_is_wrong_is_named() {
        let gate = Gate::from_wire("gate", None, 0, vec![]).unwrap();
        assert_eq!(gate.rule, GateRule::default());
        assert_eq!(gate.verdict, VerdictRule::default());
        let wrong = v1::PromotionGate {
            margin: -1.0,
            confidence: 1.5,
            horizon_steps: f64::from(u8::MAX) as i32,
            ..v1::PromotionGate::default()
        };
        let refused = Gate::from_wire("gate", Some(wrong), 0, vec![]).unwrap_err();
        assert!(
            refused.message().contains("gate.margin: -1 must"),
            "{refused:?}"
        );
        let status = tonic::Status::from(refused);
        let details = tonic_types::StatusExt::get_error_details(&status);
        let violations = &details.bad_request().unwrap().field_violations;
        let fields: Vec<&str> = violations.iter().map(|v| &v.field[..]).collect();
        assert_eq!(fields, ["gate.margin", "gate.confidence"]);
    }

    #[test]
    fn names_of_versions_have_one_form_on_the_wire() {
        let parse = |name: &str| version_name_from_wire("name", name).map(|name| name.number);
        assert_eq!(parse("policies/net/versions/3"), Ok(3));
        for name in [
            "net/3",
            "policies/net/versions/0",
            "policies/net/versions/03",
            "x",
        ] {
            assert!(parse(name).is_err(), "{name}");
        }
    }
}
