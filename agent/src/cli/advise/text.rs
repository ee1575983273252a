//! Advice for people: a block for each, with the change below it.

use blkpilot_host::advice::{Advice, Evidence, Gain, Remedy, Requirement, Value};

use super::Report;
use super::live::{Live, LiveChange};
use crate::cli::CliError;
use crate::cli::tables::figure;

/// Width at which lines are broken.
const WIDTH: usize = 100;
/// Where what is said begins, after its heading.
const INDENT: usize = 12;

pub(super) fn report(report: &Report<'_>) -> Result<String, CliError> {
    let mut blocks = vec![live(report.live), "NEXT BOOT".to_owned()];
    if report.advice.is_empty() {
        blocks.push(format!(
            "  nothing to advise: the {} guests at {} are as they should be, as far as this can be told",
            report.survey.guests.len(),
            report.uri
        ));
    }
    for advice in report.advice {
        blocks.push(block(advice, report.diff(advice)?.as_deref()));
    }
    for (guest, problem) in &report.survey.unreadable {
        blocks.push(format!("{guest}: cannot be advised: {problem}"));
    }
    Ok(blocks.join("\n\n"))
}

fn live(live: &Live) -> String {
    let fighting = live.proposal.iter().flat_map(|proposal| &proposal.fighting);
    let fighting = fighting.map(|daemon| {
        format!(
            "  {} ({}) sets {} too: {}",
            daemon.name,
            daemon.settings.join(", "),
            daemon.conflicts.join(", "),
            daemon.meaning
        )
    });
    std::iter::once(proposed(live))
        .chain(fighting)
        .collect::<Vec<_>>()
        .join("\n")
}

fn proposed(live: &Live) -> String {
    match &live.proposal {
        Err(problem) => format!("LIVE\n  what could be changed now is not known: {problem}"),
        Ok(proposal) if proposal.changes.is_empty() => format!(
            "LIVE\n  host {} at {}: the policy would change nothing",
            proposal.host, live.server
        ),
        Ok(proposal) => {
            let changes: Vec<String> = proposal.changes.iter().map(change).collect();
            format!(
                "LIVE\n  host {} at {}: `blkpilot apply {}` makes these changes\n{}",
                proposal.host,
                live.server,
                proposal.decision,
                changes.join("\n")
            )
        }
    }
}

fn change(change: &LiveChange) -> String {
    let LiveChange {
        subject,
        knob,
        from,
        to,
        id,
        ..
    } = change;
    let whose = match &change.guest {
        Some((guest, _)) => format!("{guest}/{subject}"),
        None => subject.clone(),
    };
    let chance = change.propensity.map_or(String::new(), |p| {
        format!(", chosen with probability {p:.3}")
    });
    format!("  {whose}: {knob} {from} → {to}{chance}  [{id}]")
}

fn block(advice: &Advice, diff: Option<&str>) -> String {
    let whose = match &advice.guest {
        Some(guest) => format!("{}/{}", guest.name, advice.subject),
        None => advice.subject.clone(),
    };
    let mut lines = vec![
        format!("{whose}: {}", advice.summary),
        said("id", &advice.id),
        said("why", &advice.reason),
    ];
    let evidence: Vec<String> = advice.evidence.iter().map(known).collect();
    lines.extend((!evidence.is_empty()).then(|| said("evidence", &evidence.join("; "))));
    lines.push(said("gain", &gain(&advice.gain)));
    let needs: Vec<String> = advice.requires.iter().map(needed).collect();
    lines.extend((!needs.is_empty()).then(|| said("needs", &needs.join("; "))));
    lines.extend(
        advice
            .cautions
            .iter()
            .map(|caution| said("beware", caution)),
    );
    lines.push(match (&advice.remedy, diff) {
        (_, Some(diff)) => diff.trim_end().to_owned(),
        (Remedy::Xml(_), None) => said("change", "not possible here now: see what it needs"),
        (Remedy::Steps(steps), None) => steps_of(steps),
        (
            Remedy::File {
                path,
                content,
                then,
            },
            None,
        ) => format!(
            "{}\n{}\n{}",
            said("file", &path.display().to_string()),
            content.trim_end(),
            said("then", then)
        ),
    });
    lines.join("\n")
}

fn steps_of(steps: &[String]) -> String {
    let numbered = steps.iter().enumerate();
    let lines: Vec<String> = numbered
        .map(|(n, step)| said(&format!("step {}", n + 1), step))
        .collect();
    lines.join("\n")
}

fn known(evidence: &Evidence) -> String {
    let value = match &evidence.value {
        Value::Text(text) => text.clone(),
        Value::Number(number) if number.fract() == 0.0 => format!("{number:.0}"),
        Value::Number(number) => figure(*number),
    };
    format!("{} {value} {}", evidence.name, evidence.unit)
        .trim_end()
        .to_owned()
}

fn gain(gain: &Gain) -> String {
    match gain {
        Gain::Measured { text, source } => format!("{text} (measured by us: {source})"),
        Gain::Documented { text, source } => format!("{text} (documented, not measured: {source})"),
        Gain::NotMeasured { text } => format!("{text} (not measured)"),
    }
}

fn needed(needed: &Requirement) -> String {
    let is_met = match needed.is_met {
        Some(true) => "met",
        Some(false) => "not met",
        None => "to be checked",
    };
    format!("{} ({}: {is_met})", needed.what, needed.found)
}

/// A heading and what is said under it, broken into lines.
fn said(heading: &str, text: &str) -> String {
    let mut lines = vec![format!("  {heading}")];
    let mut is_first = true;
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is always a line");
        let width = last.chars().count();
        if is_first {
            let gap = INDENT.saturating_sub(width).max(1);
            *last += &format!("{}{word}", " ".repeat(gap));
            is_first = false;
        } else if width + 1 + word.chars().count() > WIDTH {
            lines.push(format!("{}{word}", " ".repeat(INDENT)));
        } else {
            *last += &format!(" {word}");
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_broken_and_stand_under_each_other() {
        let text = "word ".repeat(40);
        let said = said("why", &text);
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines.len() > 1 && lines.iter().all(|line| line.chars().count() <= WIDTH));
        assert!(lines[0].starts_with("  why       word"), "{}", lines[0]);
        assert!(lines[1].starts_with("            word"), "{}", lines[1]);
    }

    #[test]
    fn evidence_has_its_unit_and_no_needless_digits() {
        let of = |value, unit| {
            known(&Evidence {
                name: "x",
                value,
                unit,
            })
        };
        assert_eq!(of(Value::Number(4.0), ""), "x 4");
        assert_eq!(of(Value::Number(1707.6), "µs"), "x 1708 µs");
        assert_eq!(of(Value::Text("none".into()), ""), "x none");
    }
}
