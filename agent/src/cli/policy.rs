//! `blkpilot policy`: the policies of a running service.

mod evaluate;
mod text;

use std::path::{Path, PathBuf};

use blkpilot_models::CheckpointBytes;
use blkpilot_proto::longrunning::Operation;
use blkpilot_proto::longrunning::operation::Result as Ending;
use blkpilot_proto::v1;
use blkpilot_proto::v1::operation_service_client::OperationServiceClient;
use blkpilot_proto::v1::policy_service_client::PolicyServiceClient;
use blkpilot_proto::v1::upload_policy_version_request::Content;
use clap::{Args, Subcommand, ValueEnum};
use prost::Message;
use serde_json::json;
use uuid::Uuid;

use super::connection::ServerArgs;
use super::evaluate::target::{Choice, refused};
use super::json::Json;
use super::output::print;
use super::pages;
use super::{CliError, force_reason};
use crate::client::Connection;
use crate::policies::store::{VersionName, policy_id};

pub(super) const EXAMPLES: &str = "\
Examples:
  blkpilot policy upload out/policy --name quickstart --selection sample
  blkpilot policy promote quickstart/1 --to canary
  blkpilot policy evaluate quickstart/1 --since 7d
  blkpilot policy promote quickstart/1 --to production
  blkpilot policy rollback --reason 'p99 of db went up'
  blkpilot policy ls

`blkpilot promote` does the same on a data directory, whether or not the service runs.";

/// Size of the chunks of an upload.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Store a checkpoint as a new version of a policy; it decides nothing yet
    Upload(UploadArgs),
    /// List versions with the stage that each stands at, newest first
    Ls(LsArgs),
    /// Show one version, and what was done to it
    Show(ShowArgs),
    /// Say what a version would have brought, from the service's own decisions
    ///
    /// As `blkpilot evaluate` does on a log; the service keeps the last 200. Nothing is changed.
    Evaluate(evaluate::EvaluateArgs),
    /// List what was evaluated, newest first
    Evaluations(evaluate::EvaluationsArgs),
    /// Let a version decide: `candidate` in mode shadow, `canary` in mode canary, `production` in mode auto
    ///
    /// Production is behind the gate: the version is evaluated on the service's own decisions of the last seven
    /// days, and must be better than they were. The service goes over to it between two intervals.
    Promote(PromoteArgs),
    /// Put back what was in production before, or the configuration's policy
    Rollback(RollbackArgs),
    /// Take a version out of use; its checkpoint is kept
    Archive(ArchiveArgs),
}

#[derive(Debug, Args)]
pub(super) struct UploadArgs {
    /// The checkpoint's directory
    #[arg(value_name = "POLICY_DIR")]
    dir: PathBuf,
    /// The policy that it is a version of; by default the directory's name
    #[arg(long, value_name = "POLICY")]
    name: Option<String>,
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// How a checkpoint becomes a version.
#[derive(Debug, Args)]
pub(super) struct VersionArgs {
    /// How its scores become a choice
    #[arg(long, value_enum, default_value = "greedy")]
    selection: Choice,
    /// What is to be said of it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) description: String,
    /// Check everything, store nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

impl VersionArgs {
    pub(super) fn selection(&self) -> v1::PolicySelection {
        match self.selection {
            Choice::Greedy => v1::PolicySelection::Greedy,
            Choice::Sample => v1::PolicySelection::Sample,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Only versions of this policy
    #[arg(value_name = "POLICY")]
    policy: Option<String>,
    /// Show archived versions too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// POLICY/NUMBER, or policies/POLICY/versions/NUMBER
    #[arg(value_name = "VERSION")]
    version: VersionName,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Goal {
    Candidate,
    Canary,
    Production,
}

#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// POLICY/NUMBER, or policies/POLICY/versions/NUMBER
    #[arg(value_name = "VERSION")]
    version: VersionName,
    /// Where it shall decide
    #[arg(long, value_enum)]
    to: Goal,
    /// Let through what is at worst --margin worse, too
    #[arg(long)]
    not_worse: bool,
    /// Put a canary behind the gate, too
    #[arg(long)]
    gate: bool,
    #[command(flatten)]
    judging: evaluate::JudgingArgs,
    /// Pass the gate by; the reason is recorded
    #[arg(long, value_name = "REASON")]
    force: Option<String>,
    /// Check everything but the gate, change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// Why; recorded
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Say what would be put back, change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct ArchiveArgs {
    /// POLICY/NUMBER, or policies/POLICY/versions/NUMBER
    #[arg(value_name = "VERSION")]
    version: VersionName,
    #[command(flatten)]
    server: ServerArgs,
}

type Client = PolicyServiceClient<Connection>;

pub(super) async fn run(command: &PolicyCommand) -> Result<(), CliError> {
    match command {
        PolicyCommand::Upload(args) => upload(args).await,
        PolicyCommand::Ls(args) => ls(args).await,
        PolicyCommand::Show(args) => show(args).await,
        PolicyCommand::Evaluate(args) => evaluate::run(args).await,
        PolicyCommand::Evaluations(args) => evaluate::list(args).await,
        PolicyCommand::Promote(args) => promote(args).await,
        PolicyCommand::Rollback(args) => rollback(args).await,
        PolicyCommand::Archive(args) => archive(args).await,
    }
}

async fn client(args: &ServerArgs) -> Result<Client, CliError> {
    let connection = args.connect().await?;
    Ok(PolicyServiceClient::new(connection))
}

pub(super) fn print_version(
    args: &ServerArgs,
    version: &v1::PolicyVersion,
) -> Result<(), CliError> {
    if args.json {
        let value = Json::new().value("PolicyVersion", version);
        return print(format_args!("{value:#}"));
    }
    print(text::version(version))
}

async fn upload(args: &UploadArgs) -> Result<(), CliError> {
    let bytes = CheckpointBytes::read(&args.dir).map_err(|error| refused(&args.dir, &error))?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => policy_id(&name_of(&args.dir)),
    };
    let header = v1::UploadHeader {
        parent: format!("policies/{name}"),
        sha256: bytes.sha256(),
        manifest_bytes: bytes.manifest.len() as i64,
        tensors_bytes: bytes.tensors.len() as i64,
        selection: args.version.selection().into(),
        description: args.version.description.clone(),
        validate_only: args.version.dry_run,
        request_id: Uuid::new_v4().to_string(),
    };
    let chunks = [&bytes.manifest, &bytes.tensors]
        .into_iter()
        .flat_map(|file| file.chunks(CHUNK_BYTES))
        .map(|chunk| Content::Chunk(chunk.to_vec()));
    let messages: Vec<_> = std::iter::once(Content::Header(header))
        .chain(chunks)
        .map(|content| v1::UploadPolicyVersionRequest {
            content: Some(content),
        })
        .collect();
    let mut client = client(&args.server).await?;
    let sent = client.upload_policy_version(tokio_stream::iter(messages));
    print_version(&args.server, &sent.await?.into_inner())
}

/// Of a directory, also where it is given as `.`.
fn name_of(dir: &Path) -> String {
    let whole = dir.canonicalize();
    let whole = whole.as_deref().unwrap_or(dir);
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}

async fn ls(args: &LsArgs) -> Result<(), CliError> {
    let mut client = client(&args.server).await?;
    let versions = pages::all(async |page_token| {
        let request = v1::ListPolicyVersionsRequest {
            parent: format!("policies/{}", args.policy.as_deref().unwrap_or("-")),
            page_size: 0,
            page_token,
            filter: if args.all { "" } else { "stage != ARCHIVED" }.to_owned(),
        };
        let page = client.list_policy_versions(request).await?.into_inner();
        Ok((page.versions, page.next_page_token))
    });
    let versions = versions.await?;
    if args.server.json {
        let json = Json::new();
        let versions: Vec<_> = versions
            .iter()
            .map(|version| json.value("PolicyVersion", version))
            .collect();
        return print(format_args!("{:#}", json!({ "versions": versions })));
    }
    if versions.is_empty() {
        return print("no policy is stored here: `blkpilot policy upload POLICY_DIR` stores one");
    }
    print(text::versions(&versions))
}

async fn show(args: &ShowArgs) -> Result<(), CliError> {
    let mut client = client(&args.server).await?;
    let name = args.version.to_string();
    let request = v1::GetPolicyVersionRequest { name: name.clone() };
    let version = client.get_policy_version(request).await?.into_inner();
    let request = v1::ListPolicyEventsRequest {
        page_size: 1000,
        page_token: String::new(),
    };
    let events = client.list_policy_events(request).await?.into_inner();
    let events = events.events.into_iter();
    let events: Vec<_> = events.filter(|event| event.version == name).collect();
    if args.server.json {
        let json = Json::new();
        let listed: Vec<_> = events
            .iter()
            .map(|event| json.value("PolicyEvent", event))
            .collect();
        let value = json!({ "version": json.value("PolicyVersion", &version), "events": listed });
        return print(format_args!("{value:#}"));
    }
    print(text::version(&version))?;
    print(text::events(&events))
}

async fn promote(args: &PromoteArgs) -> Result<(), CliError> {
    let mut client = client(&args.server).await?;
    let is_gated = args.gate || matches!(args.to, Goal::Production);
    let request = v1::PromotePolicyVersionRequest {
        name: args.version.to_string(),
        stage: match args.to {
            Goal::Candidate => v1::PolicyStage::Candidate,
            Goal::Canary => v1::PolicyStage::Canary,
            Goal::Production => v1::PolicyStage::Production,
        }
        .into(),
        gate: is_gated.then(|| args.judging.gate(args.not_worse)),
        force_reason: force_reason(args.force.as_deref())?,
        validate_only: args.dry_run,
        request_id: Uuid::new_v4().to_string(),
        etag: String::new(),
    };
    let operation = client.promote_policy_version(request).await?.into_inner();
    let done = follow(&args.server, operation).await?;
    let version: v1::PolicyVersion = response(&done)?;
    print_version(&args.server, &version)
}

/// The operation at its end; how far it is goes to standard error.
async fn follow(args: &ServerArgs, operation: Operation) -> Result<Operation, CliError> {
    if operation.done {
        return Ok(operation);
    }
    let mut client = OperationServiceClient::new(args.connect().await?);
    let request = v1::WatchOperationRequest {
        name: operation.name.clone(),
        resume_token: String::new(),
    };
    let mut messages = client.watch_operation(request).await?.into_inner();
    let (mut last, mut step) = (operation, String::new());
    while let Some(message) = messages.message().await? {
        let Some(operation) = message.operation else {
            continue;
        };
        let metadata = operation.metadata.clone().unwrap_or_default();
        let progress = v1::OperationProgress::decode(&metadata.value[..]).unwrap_or_default();
        if progress.step != step && !operation.done {
            eprintln!("blkpilot: {}", progress.step);
            step = progress.step;
        }
        last = operation;
    }
    Ok(last)
}

fn response<T: Message + Default>(operation: &Operation) -> Result<T, CliError> {
    match &operation.result {
        Some(Ending::Response(response)) => T::decode(&response.value[..])
            .map_err(|error| CliError::Failed(format!("{}: {error}", operation.name))),
        Some(Ending::Error(status)) => Err(CliError::Failed(status.message.clone())),
        None => Err(CliError::Unavailable(format!(
            "{}: the service has ended before it was done",
            operation.name
        ))),
    }
}

async fn rollback(args: &RollbackArgs) -> Result<(), CliError> {
    let request = v1::RollbackProductionRequest {
        reason: args.reason.clone(),
        etag: String::new(),
        validate_only: args.dry_run,
        request_id: Uuid::new_v4().to_string(),
    };
    let mut client = client(&args.server).await?;
    let done = client.rollback_production(request).await?.into_inner();
    if args.server.json {
        let value = Json::new().value("RollbackProductionResponse", &done);
        return print(format_args!("{value:#}"));
    }
    print(text::rollback(&done))
}

async fn archive(args: &ArchiveArgs) -> Result<(), CliError> {
    let request = v1::ArchivePolicyVersionRequest {
        name: args.version.to_string(),
        request_id: Uuid::new_v4().to_string(),
        ..v1::ArchivePolicyVersionRequest::default()
    };
    let mut client = client(&args.server).await?;
    let archived = client.archive_policy_version(request).await?.into_inner();
    print_version(&args.server, &archived)
}
