//! `blkpilot training`: the training runs of a service.

mod text;
mod watching;

use std::fs;
use std::path::{Path, PathBuf};

use blkpilot_env::sim::presets;
use blkpilot_proto::v1;
use blkpilot_proto::v1::training_service_client::TrainingServiceClient;
use clap::{Args, Subcommand};
use serde_json::json;
use toml::{Table, Value};
use uuid::Uuid;

use super::CliError;
use super::connection::ServerArgs;
use super::json::Json;
use super::output::print;
use super::pages;
use super::policy::{VersionArgs, print_version};
use crate::client::Connection;
use watching::watch;

pub(super) const EXAMPLES: &str = "\
Examples:
  blkpilot training create experiments/configs/quickstart.toml --watch
  blkpilot training create own.toml --id night-run --seed 7
  blkpilot training pause night-run
  blkpilot training resume night-run
  blkpilot training publish night-run --name own
  blkpilot training ls

The service is `blkpilot-lab serve`; `blkpilot serve` does not train. docs/training.md.";

#[derive(Debug, Subcommand)]
pub(super) enum TrainingCommand {
    /// Queue a run of a config
    ///
    /// The config and the scenario file that it may name are read here and sent; nothing else is. Of a service
    /// training.start_from is a version of its policy store, policies/POLICY/versions/NUMBER, and data.log, which is left
    /// out, its own decision log.
    Create(CreateArgs),
    /// List runs, newest first
    Ls(LsArgs),
    /// Show one run, with its config
    Get(RunArgs),
    /// Follow a run to its end; the run does not end with it
    ///
    /// Exit status: 0 once it has succeeded, 1 if it has failed or was cancelled.
    Watch(RunArgs),
    /// Let a run save where it stands and wait, over restarts of the service too
    Pause(ChangeArgs),
    /// Queue a run again that is paused or has failed, to go on from its last checkpoint
    Resume(ResumeArgs),
    /// End a run for good; its last checkpoint stays until it is removed
    Cancel(ChangeArgs),
    /// Store the policy of a run that has succeeded as a new version; it decides nothing until it is promoted
    Publish(PublishArgs),
    /// Remove a run that has ended, and all that it wrote
    Rm(ChangeArgs),
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The config, as `blkpilot-lab train` reads it
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// Name of the run: a-z, 0-9 and -, starting with a letter; the service picks one if it is not given
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Seed of everything random [default: the config's]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Check everything, queue nothing
    #[arg(long)]
    dry_run: bool,
    /// Follow it to its end, as `blkpilot training watch` does
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Only those that it admits, such as 'state = RUNNING'
    #[arg(long, value_name = "FILTER", default_value = "")]
    filter: String,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The run: ID, or trainingRuns/ID
    #[arg(value_name = "RUN", value_parser = run_name)]
    run: String,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// The run: ID, or trainingRuns/ID
    #[arg(value_name = "RUN", value_parser = run_name)]
    run: String,
    /// Say what would come of it, change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// Go on although the code of the service has changed since: another policy may come of it
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// The run: ID, or trainingRuns/ID
    #[arg(value_name = "RUN", value_parser = run_name)]
    run: String,
    /// The policy that it is a version of; by default the run's id
    #[arg(long, value_name = "POLICY")]
    name: Option<String>,
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// A run's name, from its short form too.
#[expect(clippy::unnecessary_wraps, reason = "as clap wants it")]
fn run_name(text: &str) -> Result<String, String> {
    let id = text.trim_start_matches("trainingRuns/");
    Ok(format!("trainingRuns/{id}"))
}

type Client = TrainingServiceClient<Connection>;

pub(super) async fn run(command: &TrainingCommand) -> Result<(), CliError> {
    match command {
        TrainingCommand::Create(args) => create(args).await,
        TrainingCommand::Ls(args) => ls(args).await,
        TrainingCommand::Get(args) => get(args).await,
        TrainingCommand::Watch(args) => {
            let mut client = client(&args.server).await?;
            watch(&mut client, &args.run, args.server.json).await
        }
        TrainingCommand::Pause(args) => pause(args).await,
        TrainingCommand::Resume(args) => resume(args).await,
        TrainingCommand::Cancel(args) => cancel(args).await,
        TrainingCommand::Publish(args) => publish(args).await,
        TrainingCommand::Rm(args) => rm(args).await,
    }
}

async fn client(args: &ServerArgs) -> Result<Client, CliError> {
    let connection = args.connect().await?;
    Ok(TrainingServiceClient::new(connection))
}

fn print_run(args: &ServerArgs, run: &v1::TrainingRun) -> Result<(), CliError> {
    if args.json {
        let value = Json::new().value("TrainingRun", run);
        return print(format_args!("{value:#}"));
    }
    print(text::run(run))
}

async fn create(args: &CreateArgs) -> Result<(), CliError> {
    let run = v1::TrainingRun {
        source: Some(source(&args.config)?),
        seed: args.seed,
        ..v1::TrainingRun::default()
    };
    let request = v1::CreateTrainingRunRequest {
        training_run: Some(run),
        training_run_id: args.id.clone().unwrap_or_default(),
        validate_only: args.dry_run,
        request_id: Uuid::new_v4().to_string(),
    };
    let mut client = client(&args.server).await?;
    let created = client.create_training_run(request).await?.into_inner();
    if args.watch {
        return watch(&mut client, &created.name, args.server.json).await;
    }
    print_run(&args.server, &created)
}

/// A config with the file that it names.
fn source(file: &Path) -> Result<v1::TrainingSource, CliError> {
    let mut source = v1::TrainingSource {
        config: read(file)?,
        ..v1::TrainingSource::default()
    };
    // What is no TOML the service refuses, and says where.
    let Ok(mut table) = source.config.parse::<Table>() else {
        return Ok(source);
    };
    let environment = table.get_mut("environment").and_then(Value::as_table_mut);
    let named = environment.and_then(|environment| environment.get_mut("scenario"));
    let Some(scenario) = named else {
        return Ok(source);
    };
    let name = scenario.as_str().unwrap_or_default().to_owned();
    if name.is_empty() || presets::by_name(&name).is_some() {
        return Ok(source);
    }
    let path = file.parent().unwrap_or(Path::new("")).join(&name);
    let short = path.file_name().unwrap_or_default().to_string_lossy();
    let short = short.into_owned();
    source.scenario_files.insert(short.clone(), read(&path)?);
    if name.trim_start_matches("./") != short {
        // There it stands beside the config.
        *scenario = Value::String(short);
        source.config = table.to_string();
    }
    Ok(source)
}

fn read(file: &Path) -> Result<String, CliError> {
    fs::read_to_string(file).map_err(|error| {
        let text = format!("{}: {error}: give a file that can be read", file.display());
        CliError::Usage(text)
    })
}

async fn ls(args: &LsArgs) -> Result<(), CliError> {
    let mut client = client(&args.server).await?;
    let runs = pages::all(async |page_token| {
        let request = v1::ListTrainingRunsRequest {
            page_size: 0,
            page_token,
            filter: args.filter.clone(),
        };
        let page = client.list_training_runs(request).await?.into_inner();
        Ok((page.training_runs, page.next_page_token))
    });
    let runs = runs.await?;
    if args.server.json {
        let json = Json::new();
        let runs: Vec<_> = runs
            .iter()
            .map(|run| json.value("TrainingRun", run))
            .collect();
        return print(format_args!("{:#}", json!({ "training_runs": runs })));
    }
    if runs.is_empty() {
        return print("nothing was trained here: `blkpilot training create CONFIG` queues a run");
    }
    print(text::runs(&runs))
}

async fn get(args: &RunArgs) -> Result<(), CliError> {
    let name = args.run.clone();
    let request = v1::GetTrainingRunRequest { name };
    let mut client = client(&args.server).await?;
    let run = client.get_training_run(request).await?.into_inner();
    print_run(&args.server, &run)?;
    match &run.source {
        Some(source) if !args.server.json => print(format_args!("\n{}", source.config.trim_end())),
        _ => Ok(()),
    }
}

async fn pause(args: &ChangeArgs) -> Result<(), CliError> {
    let request = v1::PauseTrainingRunRequest {
        name: args.run.clone(),
        validate_only: args.dry_run,
        request_id: Uuid::new_v4().to_string(),
        etag: String::new(),
    };
    let mut client = client(&args.server).await?;
    let run = client.pause_training_run(request).await?.into_inner();
    print_run(&args.server, &run)
}

async fn resume(args: &ResumeArgs) -> Result<(), CliError> {
    let change = &args.change;
    let request = v1::ResumeTrainingRunRequest {
        name: change.run.clone(),
        validate_only: change.dry_run,
        request_id: Uuid::new_v4().to_string(),
        etag: String::new(),
        force: args.force,
    };
    let mut client = client(&change.server).await?;
    let run = client.resume_training_run(request).await?.into_inner();
    print_run(&change.server, &run)
}

async fn cancel(args: &ChangeArgs) -> Result<(), CliError> {
    let request = v1::CancelTrainingRunRequest {
        name: args.run.clone(),
        validate_only: args.dry_run,
        request_id: Uuid::new_v4().to_string(),
        etag: String::new(),
    };
    let mut client = client(&args.server).await?;
    let run = client.cancel_training_run(request).await?.into_inner();
    print_run(&args.server, &run)
}

async fn publish(args: &PublishArgs) -> Result<(), CliError> {
    let id = args.run.trim_start_matches("trainingRuns/");
    let policy = args.name.as_deref().unwrap_or(id);
    let request = v1::PublishTrainingRunRequest {
        name: args.run.clone(),
        parent: format!("policies/{policy}"),
        selection: args.version.selection().into(),
        description: args.version.description.clone(),
        validate_only: args.version.dry_run,
        request_id: Uuid::new_v4().to_string(),
    };
    let mut client = client(&args.server).await?;
    let version = client.publish_training_run(request).await?.into_inner();
    print_version(&args.server, &version)
}

async fn rm(args: &ChangeArgs) -> Result<(), CliError> {
    let request = v1::DeleteTrainingRunRequest {
        name: args.run.clone(),
        validate_only: args.dry_run,
        ..v1::DeleteTrainingRunRequest::default()
    };
    let mut client = client(&args.server).await?;
    client.delete_training_run(request).await?;
    match (args.server.json, args.dry_run) {
        (true, _) => print("{}"),
        (false, true) => print(format_args!("{} can be removed", args.run)),
        (false, false) => print(format_args!("{} is removed", args.run)),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_scenario_that_a_config_names_is_sent_along_under_its_name_alone() {
        let dir = TempDir::new().unwrap();
        let of = |scenario: &str| {
            let file = dir.path().join("own.toml");
            let text = format!("[environment] # a comment\nscenario = \"{scenario}\"\n");
            fs::write(&file, text).unwrap();
            source(&file)
        };
        fs::create_dir(dir.path().join("hosts")).unwrap();
        for name in ["hosts/mine.toml", "mine.toml"] {
            fs::write(dir.path().join(name), "name = \"mine\"").unwrap();
            let source = of(name).unwrap();
            assert_eq!(source.scenario_files["mine.toml"], "name = \"mine\"");
            assert!(source.config.contains("scenario = \"mine.toml\""));
            // What need not be changed is sent as it is.
            let is_as_it_was = source.config.contains("# a comment");
            assert_eq!(is_as_it_was, name == "mine.toml");
        }
        assert!(of("mixed").unwrap().scenario_files.is_empty());
        let missing = of("nothing.toml").unwrap_err();
        assert!(missing.to_string().contains("nothing.toml"), "{missing}");
    }

    #[test]
    fn a_run_may_be_named_by_its_id_alone() {
        for text in ["night", "trainingRuns/night"] {
            assert_eq!(run_name(text).unwrap(), "trainingRuns/night");
        }
    }
}
