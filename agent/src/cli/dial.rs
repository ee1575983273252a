//! What the tables say of the dial: policies and what stands in for them, exploration, and what was
//! asked for and is not in force.

use blkpilot_proto::v1;

use super::tables::short;

/// Characters of a checkpoint's version that are shown.
const SHORT_VERSION: usize = 12;

/// What of a guest's settings does not hold.
pub(super) fn notice(guest: &v1::Guest) -> Option<String> {
    let is_one = !guest.notice.is_empty();
    is_one.then(|| format!("notice: {}: {}", short(&guest.name), guest.notice))
}

/// How a guest is explored.
pub(super) fn exploration(guest: &v1::Guest) -> Option<String> {
    let exploration = guest.exploration.as_ref()?;
    let v1::Exploration {
        epsilon,
        changes_per_hour,
        changes_left,
        pause_reason,
    } = exploration;
    let pause = if pause_reason.is_empty() {
        String::new()
    } else {
        format!("; paused: {pause_reason}")
    };
    Some(format!(
        "exploration: {}: epsilon {epsilon}, {changes_left} of {changes_per_hour} changes left within the hour{pause}",
        short(&guest.name)
    ))
}

/// One line per policy: which it is, and what has stood in for it. None for a production policy that
/// nothing has stood in for, on a host without a candidate.
pub(super) fn policies(host: &v1::Host) -> Vec<String> {
    let counts = host.fallbacks.unwrap_or_default();
    let has_news = host.candidate.is_some() || !host.policy_error.is_empty();
    let production = (has_news || counts != v1::FallbackCounts::default()).then(|| {
        let policy = host.policy.clone().unwrap_or_default();
        line("policy", &policy, counts, &host.policy_error)
    });
    let candidate = host.candidate.as_ref().map(|candidate| {
        let counts = host.candidate_fallbacks.unwrap_or_default();
        line("candidate", candidate, counts, &host.candidate_error)
    });
    production.into_iter().chain(candidate).collect()
}

/// One line per daemon that tunes the host beside us.
pub(super) fn tuning_daemons(host: &v1::Host) -> Vec<String> {
    let line = |daemon: &v1::TuningDaemon| {
        let (settings, conflicts) = (daemon.settings.join(", "), daemon.conflicts.join(", "));
        let meets = if conflicts.is_empty() {
            "sets nothing that this service may set".to_owned()
        } else {
            format!("also sets {conflicts}; {}", daemon.meaning)
        };
        format!("beside: {} ({settings}): {meets}", daemon.name)
    };
    host.tuning_daemons.iter().map(line).collect()
}

fn line(role: &str, policy: &v1::Policy, counts: v1::FallbackCounts, error: &str) -> String {
    let v1::FallbackCounts {
        last_good,
        heuristic,
        keep,
    } = counts;
    let error = if error.is_empty() {
        String::new()
    } else {
        format!("; failed in the last interval: {error}")
    };
    format!(
        "{role}: {}; stood in for it so far: last good {last_good}, heuristic {heuristic}, keep {keep}{error}",
        with_version(policy)
    )
}

fn with_version(policy: &v1::Policy) -> String {
    let version: String = policy.version.chars().take(SHORT_VERSION).collect();
    if version.is_empty() {
        policy.name.clone()
    } else {
        format!("{} {version}", policy.name)
    }
}

/// Who decided: both, where two policies decided together, and what stood in for them.
pub(super) fn sources(decision: &v1::Decision) -> String {
    let own = decision.source();
    let mut names = vec![name(own.as_str_name())];
    for row in &decision.rows {
        let source = row.source();
        if source == v1::decision::Source::Canary && source != own {
            names.push(name(source.as_str_name()));
        }
        names.extend(stand_in(row));
    }
    let mut seen = vec![];
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen.join("+")
}

/// Who chose a row.
pub(super) fn chooser(decision: &v1::Decision, row: &v1::RowDecision) -> String {
    let policy = row.policy.as_ref().or(decision.policy.as_ref());
    let policy = policy.map_or_else(String::new, with_version);
    match stand_in(row) {
        Some(stage) => format!("{policy} ({stage})"),
        None => policy,
    }
}

fn stand_in(row: &v1::RowDecision) -> Option<String> {
    let is_one = !matches!(row.stage(), v1::Stage::Policy | v1::Stage::Unspecified);
    is_one.then(|| name(row.stage().as_str_name().trim_start_matches("STAGE_")))
}

fn name(of: &str) -> String {
    of.to_lowercase()
}

/// What became of a head: `cache direct→buffered`, and what was asked for where it is not in force.
pub(super) fn change(head: &v1::HeadDecision) -> String {
    let v1::HeadDecision {
        head: name,
        previous,
        requested,
        executed,
        ..
    } = head;
    let asked_for = if requested == executed || executed.is_empty() {
        String::new()
    } else {
        format!(", not {requested}")
    };
    format!("{name} {previous}→{executed}{asked_for}")
}

/// The level in force, and why it is not what was chosen.
pub(super) fn in_force(head: &v1::HeadDecision) -> String {
    if head.altered.is_empty() {
        head.executed.clone()
    } else {
        format!("{}: {}", head.executed, head.altered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(previous: &str, requested: &str, executed: &str) -> v1::HeadDecision {
        v1::HeadDecision {
            head: "cache".to_owned(),
            previous: previous.to_owned(),
            requested: requested.to_owned(),
            executed: executed.to_owned(),
            ..v1::HeadDecision::default()
        }
    }

    #[test]
    fn what_was_asked_for_and_is_not_in_force_is_named() {
        let applied = head("direct", "buffered", "buffered");
        assert_eq!(change(&applied), "cache direct→buffered");
        let mut refused = head("direct", "buffered", "direct");
        assert_eq!(change(&refused), "cache direct→direct, not buffered");
        refused.altered = "QEMU refused".to_owned();
        assert_eq!(in_force(&refused), "direct: QEMU refused");
    }

    #[test]
    fn sources_name_both_policies_and_what_stood_in() {
        let row = |source: v1::decision::Source, stage: v1::Stage| v1::RowDecision {
            source: source.into(),
            stage: stage.into(),
            ..v1::RowDecision::default()
        };
        let mut decision = v1::Decision {
            source: v1::decision::Source::Auto.into(),
            rows: vec![row(v1::decision::Source::Auto, v1::Stage::Policy)],
            ..v1::Decision::default()
        };
        assert_eq!(sources(&decision), "auto");
        decision.rows.extend([
            row(v1::decision::Source::Canary, v1::Stage::Policy),
            row(v1::decision::Source::Canary, v1::Stage::Heuristic),
        ]);
        assert_eq!(sources(&decision), "auto+canary+heuristic");
    }

    #[test]
    fn a_daemon_beside_is_shown_with_what_it_sets_that_we_may_set() {
        let daemon = v1::TuningDaemon {
            name: "tuned".into(),
            settings: vec!["profile mine".into()],
            meaning: "leave it to one".into(),
            ..v1::TuningDaemon::default()
        };
        let fighting = v1::TuningDaemon {
            conflicts: vec!["sda: scheduler ([disk] elevator=bfq)".into()],
            ..daemon.clone()
        };
        let host = v1::Host {
            tuning_daemons: vec![daemon, fighting],
            ..v1::Host::default()
        };
        assert_eq!(
            tuning_daemons(&host),
            [
                "beside: tuned (profile mine): sets nothing that this service may set",
                "beside: tuned (profile mine): also sets sda: scheduler ([disk] elevator=bfq); leave it to one"
            ]
        );
    }

    #[test]
    fn policies_are_quiet_until_there_is_something_to_say() {
        let mut host = v1::Host {
            policy: Some(v1::Policy {
                name: "ppo".to_owned(),
                version: "0123456789abcdef".to_owned(),
            }),
            ..v1::Host::default()
        };
        assert_eq!(policies(&host), Vec::<String>::new());
        host.fallbacks = Some(v1::FallbackCounts {
            heuristic: 3,
            ..v1::FallbackCounts::default()
        });
        host.policy_error = "late".to_owned();
        assert_eq!(
            policies(&host),
            [
                "policy: ppo 0123456789ab; stood in for it so far: last good 0, heuristic 3, keep 0; failed in the last interval: late"
            ]
        );
    }
}
