//! `blkpilot promote`: a policy behind the gate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blkpilot_evaluate::{Admission, Force, GateRule, Needs, gate};
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::CliError;
use super::evaluate::decisions::{Settings, judge};
use super::evaluate::target::{Choice, checkpoint};
use super::log::find;
use super::output::print;
use super::tables::{ABSENT, rfc3339, table};
use crate::decision::now_us;
use crate::promotion::{Action, Chosen, Event, PromotionError, Promotions, Stage, record};

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
    /// The data directory of the service: its decision log is evaluated, and it serves the policy when it is
    /// started again
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
    if args
        .reason
        .as_deref()
        .is_some_and(|reason| reason.trim().is_empty())
    {
        return Err(CliError::Usage(
            "--reason \"\" must say why: it is recorded".to_owned(),
        ));
    }
    // Whatever the gate says, only what can be served is promoted.
    let checkpoint = checkpoint(policy)?;
    let promotions = Promotions::open(&args.data_dir)?;
    let now = now_us();
    let age_us = i64::try_from(args.max_age.as_micros()).unwrap_or(i64::MAX);
    let judged = find(&args.data_dir).and_then(|log| {
        judge(
            &log,
            policy,
            &args.settings,
            (Some(now.saturating_sub(age_us)), None),
            vec![],
        )
    });
    let judged = match judged {
        Ok(judged) => Ok(judged),
        Err(error @ CliError::Failed(_)) => Err(error.to_string()),
        Err(CliError::Usage(problem)) if args.force => Err(problem),
        Err(error) => return Err(error),
    };
    let judged = judged.as_ref();
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
        .map(|judged| (&judged.evaluation, &judged.verdict))
        .map_err(String::as_str);
    let admission = gate(of, &rule, now, force.as_ref());
    let name = policy.file_name().unwrap_or(policy.as_os_str());
    let event = Event {
        id: Uuid::new_v4().to_string(),
        at_us: now,
        action: Action::Promote,
        stage: Stage::Begun,
        policy: name.to_string_lossy().into_owned(),
        version: checkpoint.manifest.tensors_sha256.clone(),
        admission: Some(admission.clone()),
        verdict: judged.ok().map(|judged| judged.verdict.text.clone()),
    };
    if let Admission::Refused { objections } = &admission {
        promotions.refuse(&event)?;
        if args.json {
            print(format_args!("{:#}", json!(event)))?;
        }
        return Err(CliError::Failed(format!(
            "{} is not promoted: {}; --force --reason TEXT passes the gate by, and is recorded",
            event.policy,
            objections.join("; ")
        )));
    }
    let selection = match args.settings.selection {
        Choice::Greedy => Chosen::Greedy,
        Choice::Sample => Chosen::Sample,
    };
    promotions.promote(&event, checkpoint, selection)?;
    if args.json {
        return print(format_args!("{:#}", json!(event)));
    }
    let verdict = event.verdict.as_deref().unwrap_or("it was not evaluated");
    print(format_args!(
        "{} is promoted{}: {verdict}\nThe service serves it when it is started again; `blkpilot promote --undo` goes back.",
        event.policy,
        if matches!(admission, Admission::Forced { .. }) {
            " by force"
        } else {
            ""
        }
    ))
}

fn undo(args: &PromoteArgs) -> Result<(), CliError> {
    let promotions = Promotions::open(&args.data_dir)?;
    let (policy, version) = promotions.undo(Uuid::new_v4().to_string(), now_us())?;
    if args.json {
        return print(format_args!(
            "{:#}",
            json!({ "policy": policy, "version": version })
        ));
    }
    let back = if version.is_empty() {
        "the configuration's policy".to_owned()
    } else {
        format!("{policy} {version}")
    };
    print(format_args!(
        "back to {back}, when the service is started again"
    ))
}

fn list(args: &PromoteArgs) -> Result<(), CliError> {
    let events = record(&args.data_dir)?;
    if args.json {
        return print(format_args!("{:#}", json!({ "events": events })));
    }
    if events.is_empty() {
        return print("nothing was promoted here");
    }
    let mut lines = table(&["TIME", "ACTION", "POLICY", "VERSION", "RESULT", "WHY"]);
    for event in &events {
        let is_over = |other: &Event| other.id == event.id && other.stage == Stage::Done;
        let result = match event.stage {
            Stage::Begun if events.iter().any(is_over) => continue,
            Stage::Begun => "interrupted",
            Stage::Refused => "refused",
            Stage::Done => "done",
        };
        let action = match event.action {
            Action::Promote => "promote",
            Action::Undo => "undo",
        };
        lines.add_row([
            rfc3339(event.at_us),
            action.to_owned(),
            event.policy.clone(),
            event.version.chars().take(12).collect(),
            result.to_owned(),
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
        None => ABSENT.to_owned(),
    }
}

impl From<PromotionError> for CliError {
    fn from(error: PromotionError) -> Self {
        Self::Failed(error.to_string())
    }
}
