//! `blkpilot rollback`: through the service, without it, or as a script.

use std::path::PathBuf;

use blkpilot_host::Knob;
use blkpilot_host::journal::Journal;
use blkpilot_host::tuner::{Outcome, Settlement};
use blkpilot_host::undo_script::undo_script;
use blkpilot_proto::v1;
use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use super::commands::{Session, show};
use super::data_dir::{Place, lock};
use super::output::print;
use super::{CliError, ClientArgs, tables};
use crate::backend::live::{journal_of, put_back};
use crate::wire::names::{guest_name, host_name};

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    what: RollbackWhat,
    /// Check everything, change nothing; `blkpilot journal` lists what --offline and --script put back
    #[arg(long, conflicts_with = "without_service")]
    dry_run: bool,
    /// Straight through libvirt, without the service, which must not be running; the latency
    /// histograms go too
    #[arg(long, group = "without_service", requires = "place")]
    offline: bool,
    /// Print a POSIX shell script that does it with nothing but virsh; nothing is changed now
    #[arg(
        long,
        group = "without_service",
        requires = "place",
        conflicts_with = "json"
    )]
    script: bool,
    /// With --offline or --script: the configuration of the service, which names its data directory
    /// and libvirt
    #[arg(
        long,
        value_name = "FILE",
        group = "place",
        requires = "without_service"
    )]
    config: Option<PathBuf>,
    /// With --offline or --script: the data directory of the service
    #[arg(
        long,
        value_name = "DIR",
        group = "place",
        requires = "without_service"
    )]
    data_dir: Option<PathBuf>,
    /// With --offline or --script: the libvirt connection, such as qemu:///system
    #[arg(long, value_name = "URI", requires = "without_service")]
    libvirt: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct RollbackWhat {
    /// The guest; with --offline or --script also a device, by its kernel name
    guest: Option<String>,
    /// All guests, and the host's block devices
    #[arg(long)]
    all: bool,
}

impl RollbackArgs {
    fn place(&self) -> Result<Place, CliError> {
        let (config, data_dir) = (self.config.as_deref(), self.data_dir.as_deref());
        Place::find(config, data_dir, self.libvirt.as_deref())
    }
}

pub(super) async fn run(args: &RollbackArgs) -> Result<(), CliError> {
    if args.script {
        print_script(args)
    } else if args.offline {
        offline(args).await
    } else {
        by_service(args).await
    }
}

async fn by_service(args: &RollbackArgs) -> Result<(), CliError> {
    let mut session = Session::open(&args.client).await.map_err(or_without)?;
    let name = match &args.what.guest {
        Some(guest) => guest_name(&session.host, guest),
        None => format!("{}/guests/-", host_name(&session.host)),
    };
    let request = v1::RollbackRequest {
        name,
        validate_only: args.dry_run,
        request_id: Uuid::new_v4().to_string(),
    };
    let decision = session.client.rollback(request).await?.into_inner();
    show(&args.client, &decision)?;
    match decision.error.as_str() {
        "" => Ok(()),
        error => Err(CliError::Failed(error.to_owned())),
    }
}

/// The way back must not end where the service does.
fn or_without(error: CliError) -> CliError {
    match error {
        CliError::Unavailable(problem) => CliError::Unavailable(format!(
            "{problem}; without a service, `blkpilot rollback --all --offline --config FILE` puts everything back"
        )),
        other => other,
    }
}

async fn offline(args: &RollbackArgs) -> Result<(), CliError> {
    let Place { data_dir, uri } = args.place()?;
    let uri = uri.ok_or_else(|| {
        CliError::Usage("--offline with --data-dir needs --libvirt URI too".to_owned())
    })?;
    // Before anything is made there: what has no journal has nothing to put back.
    Journal::open_to_read(&journal_of(&data_dir))?;
    let guest = args.what.guest.clone();
    let restoring = tokio::task::spawn_blocking(move || {
        let _lock = lock(&data_dir)?;
        Ok::<_, CliError>(put_back(&uri, &data_dir, guest.as_deref())?)
    });
    let panicked = |e| CliError::Failed(format!("the rollback panicked: {e}"));
    let outcomes = restoring.await.map_err(panicked)??;
    if args.client.json {
        let outcomes: Vec<Value> = outcomes.iter().map(to_json).collect();
        print(format_args!("{:#}", json!({ "outcomes": outcomes })))?;
    } else if outcomes.is_empty() {
        print("nothing to put back")?;
    } else {
        print(tables::outcomes(&outcomes))?;
    }
    let left: Vec<String> = outcomes.iter().filter_map(left_behind).collect();
    if left.is_empty() {
        Ok(())
    } else {
        Err(CliError::Failed(left.join("; ")))
    }
}

fn left_behind(outcome: &Outcome) -> Option<String> {
    let is_left = matches!(
        outcome.result,
        Settlement::Frozen { .. } | Settlement::Failed { .. }
    );
    let (_, text) = tables::settlement(&outcome.result);
    is_left.then(|| format!("{}: {}: {text}", outcome.owner(), outcome.knob))
}

fn to_json(outcome: &Outcome) -> Value {
    let (result, _) = tables::settlement(&outcome.result);
    let (value, reason) = match &outcome.result {
        Settlement::Restored { original: value }
        | Settlement::Kept { value }
        | Settlement::Frozen { found: value, .. } => (Some(value), None),
        Settlement::Unrecorded { original, reason } => (Some(original), Some(reason)),
        Settlement::Moot => (None, None),
        Settlement::Failed { reason } => (None, Some(reason)),
    };
    let is_device = matches!(outcome.knob, Knob::Device(_));
    json!({
        "guest": (!is_device).then_some(&outcome.name),
        "device": is_device.then_some(&outcome.name),
        "knob": outcome.knob.to_string(),
        "result": result,
        "value": value,
        "reason": reason,
    })
}

fn print_script(args: &RollbackArgs) -> Result<(), CliError> {
    let Place { data_dir, uri } = args.place()?;
    let mut records = Journal::open_to_read(&journal_of(&data_dir))?.records()?;
    if let Some(guest) = &args.what.guest {
        records.retain(|record| record.name == *guest);
    }
    print(undo_script(&records, uri.as_deref()).trim_end())
}
