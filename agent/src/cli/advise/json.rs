//! Advice for scripts.

use blkpilot_host::advice::{Advice, Evidence, Gain, Remedy, Requirement, Value as EvidenceValue};
use blkpilot_proto::v1::TuningDaemon;
use serde_json::{Value, json};

use super::Report;
use super::live::{Live, LiveChange, Proposal};
use crate::cli::CliError;

pub(super) fn report(report: &Report<'_>) -> Result<Value, CliError> {
    let advice = report.advice.iter().map(|advice| {
        let diff = report.diff(advice)?;
        Ok(one(advice, diff.as_deref()))
    });
    let unreadable = report.survey.unreadable.iter();
    Ok(json!({
        "libvirt": report.uri,
        "live": live(report.live),
        "next_boot": advice.collect::<Result<Vec<_>, CliError>>()?,
        "unreadable": unreadable
            .map(|(guest, problem)| json!({ "guest": guest, "problem": problem }))
            .collect::<Vec<_>>(),
    }))
}

fn live(live: &Live) -> Value {
    let fighting = live
        .proposal
        .as_ref()
        .map_or(&[][..], |proposal| &proposal.fighting[..]);
    let (host, decision, changes, problem) = match &live.proposal {
        Ok(Proposal {
            host,
            decision,
            changes,
            ..
        }) => {
            let changes = changes.iter().map(change).collect();
            (Some(host), Some(decision), changes, None)
        }
        Err(problem) => (None, None, Vec::new(), Some(problem)),
    };
    json!({
        "server": live.server,
        "host": host,
        "decision": decision,
        "advice": changes,
        "daemons": fighting.iter().map(daemon).collect::<Vec<_>>(),
        "problem": problem,
    })
}

/// One that sets what the service may set.
fn daemon(daemon: &TuningDaemon) -> Value {
    json!({
        "name": daemon.name,
        "pid": daemon.pid,
        "settings": daemon.settings,
        "conflicts": daemon.conflicts,
        "meaning": daemon.meaning,
    })
}

fn change(change: &LiveChange) -> Value {
    let (guest, uuid) = match &change.guest {
        Some((guest, uuid)) => (Some(guest), uuid.as_ref()),
        None => (None, None),
    };
    json!({
        "id": change.id,
        "guest": guest,
        "uuid": uuid,
        "disk": change.subject,
        "knob": change.knob,
        "from": change.from,
        "to": change.to,
        "propensity": change.propensity,
    })
}

fn one(advice: &Advice, diff: Option<&str>) -> Value {
    let guest = advice.guest.as_ref();
    json!({
        "id": advice.id,
        "kind": advice.kind.to_string(),
        "guest": guest.map(|guest| &guest.name),
        "uuid": guest.map(|guest| &guest.uuid),
        "disk": advice.subject,
        "summary": advice.summary,
        "reason": advice.reason,
        "evidence": advice.evidence.iter().map(evidence).collect::<Vec<_>>(),
        "gain": gain(&advice.gain),
        "requires": advice.requires.iter().map(requirement).collect::<Vec<_>>(),
        "cautions": advice.cautions,
        "change": change_of(&advice.remedy, diff),
    })
}

fn evidence(evidence: &Evidence) -> Value {
    let value = match &evidence.value {
        EvidenceValue::Number(number) => json!(number),
        EvidenceValue::Text(text) => json!(text),
    };
    json!({ "name": evidence.name, "value": value, "unit": evidence.unit })
}

fn gain(gain: &Gain) -> Value {
    let (text, known, source) = match gain {
        Gain::Measured { text, source } => (text, "measured", Some(source)),
        Gain::Documented { text, source } => (text, "documented", Some(source)),
        Gain::NotMeasured { text } => (text, "not measured", None),
    };
    json!({ "text": text, "known": known, "source": source })
}

fn requirement(needed: &Requirement) -> Value {
    json!({ "what": needed.what, "found": needed.found, "met": needed.is_met })
}

fn change_of(remedy: &Remedy, diff: Option<&str>) -> Value {
    match remedy {
        Remedy::Xml(_) => json!({ "type": "xml", "diff": diff }),
        Remedy::File {
            path,
            content,
            then,
        } => json!({ "type": "file", "path": path, "content": content, "then": then }),
        Remedy::Steps(steps) => json!({ "type": "steps", "steps": steps }),
    }
}
