//! `TrainingService` over the training runs of a service, or over none: then it says why.

use std::sync::Arc;

use blkpilot_proto::v1;
use blkpilot_proto::v1::training_service_server::TrainingService;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::filter::Filter;
use super::new_version::{NewVersion, description_problem, parent_problem};
use super::paging;
use super::policy_wire::{policy_from_wire, selection_from_wire};
use super::watchers::{Events, Watchers};
use crate::access::actor::actor;
use crate::config::is_resource_id;
use crate::operations::feed::Message;
use crate::policies::deployment::{Deployment, blocking};
use crate::requests::{Repeatable, answered};
use crate::training::{Call, Training, parse};
use crate::wire::status::Failure;

/// Watchers at once.
const MOST_WATCHERS: usize = 64;
/// Longest config, bytes.
const LONGEST_CONFIG: usize = 64 << 10;
/// Files beside a config,
const MOST_FILES: usize = 16;
/// and the longest of them, bytes.
const LONGEST_FILE: usize = 256 << 10;
/// Longest name of one, without its ending.
const LONGEST_NAME: usize = 63;

/// `TrainingService`.
#[derive(Debug, Clone)]
pub struct Service {
    /// `None` where there is nothing that trains.
    training: Option<Arc<Training>>,
    deployment: Arc<Deployment>,
    watchers: Watchers,
}

impl Service {
    /// A service over these runs, whose policies become versions of this deployment's store; without any it refuses
    /// every call.
    #[must_use]
    pub fn new(training: Option<Arc<Training>>, deployment: Arc<Deployment>) -> Self {
        Self {
            training,
            deployment,
            watchers: Watchers::new(MOST_WATCHERS),
        }
    }

    /// Ends all streams, because the service ends.
    pub fn stop(&self) {
        self.watchers.stop();
    }

    fn training(&self) -> Result<Arc<Training>, Failure> {
        self.training.clone().ok_or_else(|| {
            let message = "this service does not train, since it has no libtorch: start `blkpilot-lab serve` with the same configuration in its place";
            Failure::new(Code::FailedPrecondition, "TRAINING_UNAVAILABLE", message)
        })
    }

    async fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Training) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let training = self.training()?;
        Ok(Response::new(blocking(move || act(&training)).await??))
    }
}

fn create(
    training: &Training,
    request: v1::CreateTrainingRunRequest,
    creator: String,
) -> Result<v1::TrainingRun, Failure> {
    let repeatable = Repeatable::of("CreateTrainingRun", &request.request_id, &request)?;
    let run = request.training_run.unwrap_or_default();
    let source = run.source.unwrap_or_default();
    check_source(&source)?;
    let call = Call {
        id: run_id(request.training_run_id)?,
        validate_only: request.validate_only,
        repeatable,
        ..Call::default()
    };
    training.create(&call, source, run.seed, creator)
}

fn publish(
    training: &Training,
    deployment: &Deployment,
    request: &v1::PublishTrainingRunRequest,
    actor: String,
) -> Result<v1::PolicyVersion, Failure> {
    let repeatable = Repeatable::of("PublishTrainingRun", &request.request_id, request)?;
    let id = parse(&request.name)?;
    if let Some(problem) = parent_problem(&request.parent) {
        return Err(Failure::field("parent", problem));
    }
    if let Some(problem) = description_problem(&request.description) {
        return Err(Failure::field("description", problem));
    }
    let description = match &request.description[..] {
        "" => format!("trained by {}", request.name),
        given => given.to_owned(),
    };
    let new = NewVersion {
        policy: policy_from_wire("parent", &request.parent)?.to_owned(),
        selection: selection_from_wire("selection", request.selection)?,
        description,
        validate_only: request.validate_only,
        repeatable,
    };
    // The run may have been deleted since.
    if let Some(first) = answered(new.repeatable.as_ref(), deployment.store().database())? {
        return Ok(first);
    }
    new.store(deployment, &training.policy_of(id)?, actor)
}

fn run_id(id: String) -> Result<String, Failure> {
    if id.is_empty() {
        return Ok(format!("r-{}", Uuid::new_v4()));
    }
    if is_resource_id(&id) {
        return Ok(id);
    }
    let problem = format!("\"{id}\" must be 1 to 63 of a-z, 0-9 and -, starting with a letter");
    Err(Failure::field("training_run_id", problem))
}

/// What can be said of a source without reading it.
fn check_source(source: &v1::TrainingSource) -> Result<(), Failure> {
    let config = "training_run.source.config";
    if source.config.trim().is_empty() {
        let problem = "is missing: give the text of a config, as `blkpilot-lab train` reads it";
        return Err(Failure::field(config, problem));
    }
    if source.config.len() > LONGEST_CONFIG {
        let problem = format!("is longer than {LONGEST_CONFIG} bytes");
        return Err(Failure::field(config, problem));
    }
    let files = "training_run.source.scenario_files";
    if source.scenario_files.len() > MOST_FILES {
        return Err(Failure::field(files, format!("has more than {MOST_FILES}")));
    }
    for (name, text) in &source.scenario_files {
        let field = format!("{files}[{name}]");
        if !is_file_name(name) {
            let problem = format!(
                "must be named by 1 to {LONGEST_NAME} of a-z, A-Z, 0-9, _ and -, then .toml: a name, and no path"
            );
            return Err(Failure::field(field, problem));
        }
        if text.len() > LONGEST_FILE {
            let problem = format!("is longer than {LONGEST_FILE} bytes");
            return Err(Failure::field(field, problem));
        }
    }
    Ok(())
}

fn is_file_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let stem = name.strip_suffix(".toml").unwrap_or_default();
    (1..=LONGEST_NAME).contains(&stem.len()) && stem.chars().all(allowed)
}

fn list(
    training: &Training,
    request: &v1::ListTrainingRunsRequest,
) -> Result<v1::ListTrainingRunsResponse, Failure> {
    let filter = Filter::parse(&request.filter, &["name", "state", "algorithm", "creator"])?;
    let wanted = |run: &v1::TrainingRun| {
        filter.admits(|field| match field {
            "name" => run.name.clone(),
            "state" => run.state().as_str_name().to_owned(),
            "algorithm" => run.algorithm.clone(),
            _ => run.creator.clone(),
        })
    };
    let runs = training.list()?.into_iter().filter(wanted);
    let (training_runs, next_page_token) = paging::page_behind(
        runs,
        |run| run.name.clone(),
        request.page_size,
        &request.page_token,
    )?;
    Ok(v1::ListTrainingRunsResponse {
        training_runs,
        next_page_token,
    })
}

fn to_wire(message: Message<v1::TrainingRun>) -> v1::WatchTrainingRunResponse {
    v1::WatchTrainingRunResponse {
        training_run: Some(message.value),
        resume_token: message.token,
        missed: message.missed,
    }
}

#[tonic::async_trait]
impl TrainingService for Service {
    type WatchTrainingRunStream = Events<v1::WatchTrainingRunResponse>;

    async fn create_training_run(
        &self,
        request: Request<v1::CreateTrainingRunRequest>,
    ) -> Result<Response<v1::TrainingRun>, Status> {
        let creator = actor(request.extensions());
        let request = request.into_inner();
        self.ask(move |training| create(training, request, creator))
            .await
    }

    async fn get_training_run(
        &self,
        request: Request<v1::GetTrainingRunRequest>,
    ) -> Result<Response<v1::TrainingRun>, Status> {
        let name = request.into_inner().name;
        self.ask(move |training| training.get(parse(&name)?)).await
    }

    async fn list_training_runs(
        &self,
        request: Request<v1::ListTrainingRunsRequest>,
    ) -> Result<Response<v1::ListTrainingRunsResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |training| list(training, &request)).await
    }

    async fn watch_training_run(
        &self,
        request: Request<v1::WatchTrainingRunRequest>,
    ) -> Result<Response<Self::WatchTrainingRunStream>, Status> {
        let request = request.into_inner();
        let place = self.watchers.place()?;
        let follow = move |training: &Training| {
            training.follow(parse(&request.name)?, &request.resume_token)
        };
        let messages = self.ask(follow).await?.into_inner();
        let events = self.watchers.stream(place, messages, to_wire);
        Ok(Response::new(events))
    }

    async fn pause_training_run(
        &self,
        request: Request<v1::PauseTrainingRunRequest>,
    ) -> Result<Response<v1::TrainingRun>, Status> {
        let request = request.into_inner();
        self.ask(move |training| {
            let call = Call {
                repeatable: Repeatable::of("PauseTrainingRun", &request.request_id, &request)?,
                id: parse(&request.name)?.to_owned(),
                etag: request.etag,
                validate_only: request.validate_only,
            };
            training.pause(&call)
        })
        .await
    }

    async fn resume_training_run(
        &self,
        request: Request<v1::ResumeTrainingRunRequest>,
    ) -> Result<Response<v1::TrainingRun>, Status> {
        let request = request.into_inner();
        self.ask(move |training| {
            let call = Call {
                repeatable: Repeatable::of("ResumeTrainingRun", &request.request_id, &request)?,
                id: parse(&request.name)?.to_owned(),
                etag: request.etag,
                validate_only: request.validate_only,
            };
            training.resume(&call, request.force)
        })
        .await
    }

    async fn cancel_training_run(
        &self,
        request: Request<v1::CancelTrainingRunRequest>,
    ) -> Result<Response<v1::TrainingRun>, Status> {
        let request = request.into_inner();
        self.ask(move |training| {
            let call = Call {
                repeatable: Repeatable::of("CancelTrainingRun", &request.request_id, &request)?,
                id: parse(&request.name)?.to_owned(),
                etag: request.etag,
                validate_only: request.validate_only,
            };
            training.cancel(&call)
        })
        .await
    }

    async fn publish_training_run(
        &self,
        request: Request<v1::PublishTrainingRunRequest>,
    ) -> Result<Response<v1::PolicyVersion>, Status> {
        let actor = actor(request.extensions());
        let request = request.into_inner();
        let deployment = Arc::clone(&self.deployment);
        self.ask(move |training| publish(training, &deployment, &request, actor))
            .await
    }

    async fn delete_training_run(
        &self,
        request: Request<v1::DeleteTrainingRunRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.ask(move |training| {
            let call = Call {
                id: parse(&request.name)?.to_owned(),
                etag: request.etag,
                validate_only: request.validate_only,
                repeatable: None,
            };
            training.delete(&call, request.allow_missing)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_beside_a_config_has_a_name_and_no_path() {
        for name in ["mine.toml", "A-1_b.toml"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in [
            "",
            ".toml",
            "mine",
            "/etc/passwd.toml",
            "../x.toml",
            "a/b.toml",
            "a..toml",
            "ä.toml",
        ] {
            assert!(!is_file_name(name), "{name}");
        }
        let source = v1::TrainingSource {
            config: "version = 1".to_owned(),
            scenario_files: [("../x.toml".to_owned(), String::new())].into(),
        };
        let refused = check_source(&source).unwrap_err();
        assert!(refused.message().contains("no path"), "{refused:?}");
        assert!(check_source(&v1::TrainingSource::default()).is_err());
    }
}
