//! `blkpilot trial`: default and tuned windows in turn, through the service.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_env::{EnvSpec, Head, JointAction, Level, Observation};
use blkpilot_proto::v1;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Handle;

use super::commands::Session;
use super::output::print;
use super::serve::interrupted;
use super::{CliError, TrialArgs, tables};
use crate::client::remote::{RemoteEnvironment, RemoteError};
use crate::client::{Connection, Target};
use crate::trial::{self, Arm, Plan, Report, TrialError};
use crate::wire::names::{Row, host_name};

pub(super) async fn run(args: TrialArgs) -> Result<(), CliError> {
    let session = Session::open(&args.client).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, interrupt) = (Arc::clone(&stop), interrupted()?);
    tokio::spawn(async move {
        interrupt.await;
        stopped.store(true, Ordering::Relaxed);
    });
    let runtime = Handle::current();
    let (server, plan) = (args.client.connection.target()?, args.plan());
    let trial =
        tokio::task::spawn_blocking(move || try_out(&server, session, &runtime, plan, &stop));
    let report = trial
        .await
        .map_err(|e| CliError::Failed(format!("the trial panicked: {e}")))??;
    let json = serde_json::to_string_pretty(&report).expect("a report has string keys");
    if let Some(path) = &args.out {
        write(path, &json)?;
    }
    if args.client.json {
        print(json)?;
    } else {
        print(tables::trial(&report))?;
    }
    Ok(())
}

fn write(path: &PathBuf, json: &str) -> Result<(), CliError> {
    std::fs::write(path, format!("{json}\n"))
        .map_err(|e| CliError::Failed(format!("{}: cannot write the report: {e}", path.display())))
}

fn try_out(
    server: &Target,
    session: Session,
    runtime: &Handle,
    plan: Plan,
    stop: &AtomicBool,
) -> Result<Report, CliError> {
    let Session { mut client, host } = session;
    let kind = v1::environment::Kind::ManagedHost(v1::ManagedHost {
        host: host_name(&host),
        // One half is worse on purpose, and follows the other at once.
        force_reason: "a trial: default and tuned settings in turn".to_owned(),
        access: v1::HostAccess::Exclusive.into(),
    });
    let environment = v1::Environment {
        kind: Some(kind),
        ..v1::Environment::default()
    };
    let mut env = RemoteEnvironment::create(server, environment)?;
    let spec = blkpilot_env::Environment::spec(&env).clone();
    let mut tune = |obs: &Observation| {
        let decision = runtime
            .block_on(ask(&mut client, &host))
            .map_err(TrialError::Policy)?;
        action_of(&spec, obs, &host, &decision).map_err(TrialError::Policy)
    };
    let bar = progress(plan);
    let mut tick = |arm| {
        bar.set_message(match arm {
            Arm::Default => "default",
            Arm::Tuned => "tuned",
        });
        bar.inc(1);
        !stop.load(Ordering::Relaxed)
    };
    let report = trial::run(&mut env, &mut tune, plan, &mut tick);
    bar.finish_and_clear();
    report.map_err(|error| CliError::Failed(outcome(&error)))
}

/// Why there is no report, and what is in force now.
fn outcome(error: &TrialError) -> String {
    match error {
        TrialError::Empty => error.to_string(),
        TrialError::NotStarted(_) | TrialError::NotRestored { .. } => {
            format!("{error}; put them back with `blkpilot rollback`")
        }
        TrialError::Environment(_)
        | TrialError::Policy(_)
        | TrialError::GuestsChanged
        | TrialError::Interrupted => {
            format!("{error}; the guests are back at their defaults")
        }
    }
}

fn progress(plan: Plan) -> ProgressBar {
    let style = "{elapsed_precise} [{bar:30}] {pos}/{len} intervals, {msg}, {eta} left";
    let style = ProgressStyle::with_template(style).expect("the template is valid");
    ProgressBar::new(plan.intervals()).with_style(style.progress_chars("=> "))
}

async fn ask(
    client: &mut TunerServiceClient<Connection>,
    host: &str,
) -> Result<v1::Decision, String> {
    let request = v1::ProposeRequest {
        host: host_name(host),
    };
    let answer = client
        .propose(request)
        .await
        .map_err(|status| status.message().to_owned())?;
    Ok(answer.into_inner())
}

/// The action a decision stands for; rows that it does not name keep what they have.
fn action_of(
    spec: &EnvSpec,
    obs: &Observation,
    host: &str,
    decision: &v1::Decision,
) -> Result<JointAction, String> {
    let mut action = obs.current.clone();
    for (disk, id) in obs.disk_ids.iter().enumerate() {
        let name = Row::of_disk_id(id).name(host);
        let Some(row) = decision.rows.iter().find(|row| row.name == name) else {
            continue;
        };
        for (head, level) in levels_of(&spec.disk_heads, row, obs.channel_count())? {
            action.disks[[disk, head]] = level;
        }
    }
    for (device, id) in obs.device_ids.iter().enumerate() {
        let name = Row::Device(id.clone()).name(host);
        let Some(row) = decision.rows.iter().find(|row| row.name == name) else {
            continue;
        };
        for (head, level) in levels_of(&spec.device_heads, row, obs.channel_count())? {
            action.devices[[device, head]] = level;
        }
    }
    Ok(action)
}

fn levels_of(
    heads: &[Head],
    row: &v1::RowDecision,
    channels: usize,
) -> Result<Vec<(usize, Level)>, String> {
    let find = |choice: &v1::HeadDecision| {
        let head = heads.iter().position(|head| head.name == choice.head)?;
        let mut levels = 0..heads[head].len(channels) as Level;
        Some((
            head,
            levels.find(|level| heads[head].level_name(*level) == choice.requested)?,
        ))
    };
    row.heads
        .iter()
        .map(|choice| {
            find(choice).ok_or_else(|| {
                format!(
                    "{}: {} = {} is not in the spec",
                    row.name, choice.head, choice.requested
                )
            })
        })
        .collect()
}

impl From<RemoteError> for CliError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Connect(error) => error.into(),
            RemoteError::Refused(status) => (*status).into(),
            other => Self::Failed(other.to_string()),
        }
    }
}
