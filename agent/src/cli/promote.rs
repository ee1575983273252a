//! `blkpilot promote`: a policy behind the gate.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blkpilot_evaluate::{Admission, Force, GateRule, Needs, gate};
use blkpilot_models::{CheckpointBytes, Selection};
use clap::Args;
use serde_json::{Value, json};

use super::CliError;
use super::evaluate::decisions::{Settings, judge};
use super::evaluate::target::{Choice, refused};
use super::log::find;
use super::output::print;
use super::tables::{ABSENT, rfc3339, table};
use crate::decision::now_us;
use crate::policies::judging::Judged;
use crate::policies::store::{
    Action, Asked, Event, Outcome, PolicyStore, Stage, StoreError, Version, policy_id,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  blkpilot promote out/policy --data-dir /var/lib/blkpilot --selection sample
  blkpilot promote out/policy --data-dir /var/lib/blkpilot --not-worse --margin 0.01
  blkpilot promote --data-dir /var/lib/blkpilot --list
  blkpilot promote --data-dir /var/lib/blkpilot --undo

Exit status: 0 it is promoted, 1 the gate refused it, or it failed.";

#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// The policy: a checkpoint's directory
    #[arg(value_name = "POLICY_DIR", required_unless_present_any = ["list", "undo"])]
    policy: Option<PathBuf>,
    /// The data directory of the service: its decision log is evaluated, and it serves the policy within
    /// seconds where it runs, else when it is started
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// Promote what is at worst `--margin` worse, too
    #[arg(long)]
    not_worse: bool,
    /// Evaluate only decisions of so long ago
    #[arg(long, value_name = "SPAN", default_value = "7d", value_parser = humantime::parse_duration)]
    max_age: Duration,
    /// Promote whatever the gate says; needs --reason, and both are recorded
    #[arg(long, requires = "reason")]
    force: bool,
    /// Why the gate is passed by
    #[arg(long, value_name = "TEXT", requires = "force")]
    reason: Option<String>,
    /// List what was promoted, refused and taken back, oldest first
    #[arg(long, conflicts_with_all = ["policy", "undo", "force"])]
    list: bool,
    /// Put back the policy that was served before the promoted one
    #[arg(long, conflicts_with_all = ["policy", "force"])]
    undo: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PromoteArgs) -> Result<(), CliError> {
    if !args.data_dir.is_dir() {
        return Err(CliError::Usage(format!(
            "--data-dir {}: no directory is there: name that of the service's configuration",
            args.data_dir.display()
        )));
    }
    match (&args.policy, args.list) {
        (_, true) => list(args),
        (Some(policy), _) => promote(args, policy),
        (None, _) => undo(args),
    }
}

fn promote(args: &PromoteArgs, policy: &Path) -> Result<(), CliError> {
    let is_blank = |reason: &str| reason.trim().is_empty();
    if args.reason.as_deref().is_some_and(is_blank) {
        return Err(CliError::Usage(
            "--reason \"\" must say why: it is recorded".to_owned(),
        ));
    }
    let asked = asked(args.reason.clone());
    let store = PolicyStore::open(&args.data_dir)?;
    // Whatever the gate says, only what can be served is stored and promoted.
    let version = store_version(&store, args, policy, &asked)?;
    let (judged, admission) = judge_at_gate(args, policy, asked.at_us)?;
    let verdict = judged.ok().map(|judged| judged.verdict.text);
    if let Admission::Refused { objections } = &admission {
        let refusal = (admission.clone(), verdict);
        store.change(|change| {
            change.refuse(
                &version.name,
                Stage::Production,
                &asked,
                refusal.0,
                refusal.1,
            )
        })?;
        return refuse(args, &store, &version, objections);
    }
    let gate = Some((admission.clone(), verdict.clone()));
    store.change(|change| change.promote(&version.name, Stage::Production, &asked, gate))?;
    if args.json {
        return print(format_args!("{:#}", last_event(&store)?));
    }
    let verdict = verdict.as_deref().unwrap_or("it was not evaluated");
    print(format_args!(
        "{} is promoted{}: {verdict}\nA service that runs serves it within seconds, another when it is started; `blkpilot promote --undo` goes back.",
        version.name.policy,
        if matches!(admission, Admission::Forced { .. }) {
            " by force"
        } else {
            ""
        }
    ))
}

fn asked(reason: Option<String>) -> Asked {
    Asked {
        actor: format!("command of uid {}", uid()),
        at_us: now_us(),
        reason: reason.unwrap_or_default(),
    }
}

/// Of this process, by the owner of its directory in procfs.
fn uid() -> u32 {
    std::fs::metadata("/proc/self").map_or(u32::MAX, |found| found.uid())
}

fn store_version(
    store: &PolicyStore,
    args: &PromoteArgs,
    policy: &Path,
    asked: &Asked,
) -> Result<Version, CliError> {
    let bytes = CheckpointBytes::read(policy).map_err(|error| refused(policy, &error))?;
    let kept = store.keep(&bytes)?;
    let name = policy.file_name().unwrap_or(policy.as_os_str());
    let id = policy_id(&name.to_string_lossy());
    let selection = match args.settings.selection {
        Choice::Greedy => Selection::Greedy,
        Choice::Sample => Selection::Sample,
    };
    Ok(store.change(|change| change.upload(&id, &kept, selection, "", asked))?)
}

/// What came of the evaluation, or why there is none, and what the gate says of it.
fn judge_at_gate(
    args: &PromoteArgs,
    policy: &Path,
    now: i64,
) -> Result<(Result<Judged, String>, Admission), CliError> {
    let age_us = i64::try_from(args.max_age.as_micros()).unwrap_or(i64::MAX);
    let span = (Some(now.saturating_sub(age_us)), None);
    let judged =
        find(&args.data_dir).and_then(|log| judge(&log, policy, &args.settings, span, vec![]));
    let judged = match judged {
        Ok(judged) => Ok(judged),
        Err(error @ CliError::Failed(_)) => Err(error.to_string()),
        Err(CliError::Usage(problem)) if args.force => Err(problem),
        Err(error) => return Err(error),
    };
    let rule = GateRule {
        needs: if args.not_worse {
            Needs::NotWorse
        } else {
            Needs::Better
        },
        confidence: args.settings.confidence,
        max_age_s: args.max_age.as_secs_f64(),
    };
    let force = args.reason.clone().map(|reason| Force { reason });
    let of = judged
        .as_ref()
        .map(|judged| (&judged.evaluation, &judged.verdict))
        .map_err(String::as_str);
    let admission = gate(of, &rule, now, force.as_ref());
    Ok((judged, admission))
}

fn refuse(
    args: &PromoteArgs,
    store: &PolicyStore,
    version: &Version,
    objections: &[String],
) -> Result<(), CliError> {
    if args.json {
        print(format_args!("{:#}", last_event(store)?))?;
    }
    Err(CliError::Failed(format!(
        "{} is not promoted: {}; --force --reason TEXT passes the gate by, and is recorded",
        version.name.policy,
        objections.join("; ")
    )))
}

fn last_event(store: &PolicyStore) -> Result<Value, CliError> {
    Ok(store.events()?.last().map_or(Value::Null, json_of))
}

fn json_of(event: &Event) -> Value {
    json!({
        "id": event.id,
        "at_us": event.at_us,
        "actor": event.actor,
        "action": match event.action {
            Action::Rollback => "undo",
            action => action.name(),
        },
        "stage": event.outcome.name(),
        "policy": event.policy,
        "number": event.number,
        "version": event.tensors_sha256,
        "admission": event.admission,
        "verdict": event.verdict,
    })
}

fn undo(args: &PromoteArgs) -> Result<(), CliError> {
    let store = PolicyStore::open(&args.data_dir)?;
    let done = store.change(|change| change.rollback("", &asked(None)))?;
    let [policy, version] = done.production.map_or_else(Default::default, |back| {
        [back.name.policy, back.tensors_sha256]
    });
    if args.json {
        let value = json!({ "policy": policy, "version": version });
        return print(format_args!("{value:#}"));
    }
    let back = if version.is_empty() {
        "the configuration's policy".to_owned()
    } else {
        format!("{policy} {version}")
    };
    print(format_args!(
        "back to {back}: within seconds where the service runs, else when it is started"
    ))
}

fn list(args: &PromoteArgs) -> Result<(), CliError> {
    let events = PolicyStore::open(&args.data_dir)?.events()?;
    let is_listed = |event: &&Event| matches!(event.action, Action::Promote | Action::Rollback);
    let events: Vec<&Event> = events.iter().filter(is_listed).collect();
    if args.json {
        let events: Vec<Value> = events.into_iter().map(json_of).collect();
        return print(format_args!("{:#}", json!({ "events": events })));
    }
    if events.is_empty() {
        return print("nothing was promoted here");
    }
    let mut lines = table(&[
        "TIME", "ACTION", "POLICY", "VERSION", "STAGE", "RESULT", "WHY",
    ]);
    for event in events {
        let action = match event.action {
            Action::Rollback => "undo",
            action => action.name(),
        };
        lines.add_row([
            rfc3339(event.at_us),
            action.to_owned(),
            event.policy.clone(),
            event.tensors_sha256.chars().take(12).collect(),
            event.stage.name().to_owned(),
            event.outcome.name().to_owned(),
            why(event),
        ]);
    }
    print(lines)
}

fn why(event: &Event) -> String {
    match &event.admission {
        Some(Admission::Forced { reason, .. }) => format!("forced: {reason}"),
        Some(Admission::Refused { objections }) => objections.join("; "),
        Some(Admission::Admitted) => event.verdict.clone().unwrap_or_default(),
        None if event.outcome == Outcome::Done && !event.reason.is_empty() => event.reason.clone(),
        None => ABSENT.to_owned(),
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}
