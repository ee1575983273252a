//! `EnvironmentService` over the environments held here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use blkpilot_env::JointAction;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_server::EnvironmentService;
use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::environment_wire::{describe, filter, lease, recipe, to_wire};
use super::observing::Observers;
use super::paging;
use super::rollout;
use crate::access::layer::NoHostChanged;
use crate::config::is_resource_id;
use crate::environments::resetting::Resetting;
use crate::environments::{Environments, Held};
use crate::requests::repeat::{Remembered, Repeat};
use crate::wire;
use crate::wire::names::{self, environment_name};
use crate::wire::status::Failure;

/// Creations that are remembered by request id.
const MOST_REQUESTS: usize = 1024;

/// `EnvironmentService`.
#[derive(Debug)]
pub struct Service {
    environments: Arc<Environments>,
    /// Ids of what was made by calls that may be repeated. Held while such a call is under way, so that one that
    /// repeats it waits for its answer.
    made: tokio::sync::Mutex<Remembered<String>>,
    observers: Observers,
}

impl Service {
    /// A service over these environments.
    #[must_use]
    pub fn new(environments: Arc<Environments>) -> Self {
        Self {
            environments,
            made: tokio::sync::Mutex::new(Remembered::new(MOST_REQUESTS)),
            observers: Observers::default(),
        }
    }

    fn held(&self, name: &str) -> Result<Arc<Held>, Failure> {
        let [id] = names::parse("name", name, "environments/*")?;
        self.environments.get(id, Instant::now())
    }

    fn acting(&self, name: &str) -> Result<Arc<Held>, Failure> {
        let [id] = names::parse("name", name, "environments/*")?;
        self.environments.get_acting(id, Instant::now())
    }

    async fn create(
        &self,
        request: v1::CreateEnvironmentRequest,
    ) -> Result<v1::Environment, Failure> {
        let repeat = Repeat::of("CreateEnvironment", &request.request_id, &request)?;
        let wanted = request
            .environment
            .ok_or_else(|| Failure::field("environment", "is missing: say what to create"))?;
        let recipe = recipe(wanted)?;
        let id = environment_id(request.environment_id)?;
        if request.validate_only {
            self.environments.check(&id, &recipe, Instant::now())?;
            return Ok(describe(&recipe, environment_name(&id)));
        }
        let made = self.environments.create(id, recipe, Instant::now());
        Ok(to_wire(&*self.once(repeat, made).await?))
    }

    async fn fork(&self, request: v1::ForkEnvironmentRequest) -> Result<v1::Environment, Failure> {
        let repeat = Repeat::of("ForkEnvironment", &request.request_id, &request)?;
        let original = self.held(&request.name)?;
        let id = environment_id(request.environment_id)?;
        let lease = lease("lease_duration", request.lease_duration)?;
        let lease = lease.unwrap_or(original.recipe.lease);
        if request.validate_only {
            self.environments
                .check_fork(&original, &id, Instant::now())?;
            return Ok(describe(&original.recipe, environment_name(&id)));
        }
        let forked = self.environments.fork(&original, id, lease, Instant::now());
        Ok(to_wire(&*self.once(repeat, forked).await?))
    }

    /// Makes something, unless this call repeats one that has.
    async fn once(
        &self,
        repeat: Option<Repeat>,
        make: impl Future<Output = Result<Arc<Held>, Failure>>,
    ) -> Result<Arc<Held>, Failure> {
        if repeat.is_none() {
            return make.await;
        }
        let mut made = self.made.lock().await;
        if let Some(id) = made.find(repeat)? {
            return self.environments.get(&id, Instant::now());
        }
        let held = make.await?;
        made.note(repeat, || held.id.clone());
        Ok(held)
    }

    async fn reset(
        &self,
        request: v1::ResetRequest,
    ) -> Result<Response<v1::ResetResponse>, Failure> {
        let held = self.acting(&request.name)?;
        let repeat = Repeat::of("Reset", &request.request_id, &request)?;
        let resetting = Resetting::from_wire(v1::RolloutReset {
            seed: request.seed,
            seeds: request.seeds,
            mask: request.mask,
            options: request.options,
        })?;
        let answer = held.reset(resetting, repeat).await?;
        Ok(played(&held, answer))
    }

    async fn step(&self, request: v1::StepRequest) -> Result<Response<v1::StepResponse>, Failure> {
        let held = self.acting(&request.name)?;
        let repeat = Repeat::of("Step", &request.request_id, &request)?;
        let answer = held.step(actions(&held, request)?, repeat).await?;
        Ok(played(&held, answer))
    }

    fn list(
        &self,
        request: &v1::ListEnvironmentsRequest,
    ) -> Result<v1::ListEnvironmentsResponse, Failure> {
        let size = paging::size(request.page_size)?;
        let is_wanted = filter(&request.filter)?;
        let held = self.environments.list(Instant::now());
        let start = match request.page_token.as_str() {
            "" => 0,
            token => {
                1 + held
                    .iter()
                    .position(|held| held.id == token)
                    .ok_or_else(|| paging::foreign_token(token))?
            }
        };
        let mut rest = held[start..].iter().filter(|held| is_wanted(held));
        let page: Vec<_> = rest.by_ref().take(size).collect();
        let has_more = rest.next().is_some();
        let next = page.last().filter(|_| has_more).map(|held| held.id.clone());
        Ok(v1::ListEnvironmentsResponse {
            environments: page.iter().map(|held| to_wire(held)).collect(),
            next_page_token: next.unwrap_or_default(),
        })
    }
}

/// The joint actions of a step, one per environment.
fn actions(held: &Held, request: v1::StepRequest) -> Result<Vec<JointAction>, Failure> {
    let count = held.recipe.count.get();
    if count == 1 && request.actions.is_empty() {
        let action = wire::action_from_wire("action", request.action)?;
        return Ok(vec![action]);
    }
    if request.action.is_some() {
        let problem = format!("is for one environment: give actions, one for each of {count}");
        return Err(Failure::field("action", problem));
    }
    let actions = request.actions.into_iter().enumerate();
    let action = |(i, action)| wire::action_from_wire(&format!("actions[{i}]"), Some(action));
    Ok(actions.map(action).collect::<Result<_, _>>()?)
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl EnvironmentService for Service {
    type RolloutStream = Answers<v1::RolloutResponse>;
    type ObserveStream = Answers<v1::ObserveResponse>;

    async fn create_environment(
        &self,
        request: Request<v1::CreateEnvironmentRequest>,
    ) -> Result<Response<v1::Environment>, Status> {
        Ok(Response::new(self.create(request.into_inner()).await?))
    }

    async fn get_environment(
        &self,
        request: Request<v1::GetEnvironmentRequest>,
    ) -> Result<Response<v1::Environment>, Status> {
        Ok(Response::new(to_wire(
            &*self.held(&request.into_inner().name)?,
        )))
    }

    async fn list_environments(
        &self,
        request: Request<v1::ListEnvironmentsRequest>,
    ) -> Result<Response<v1::ListEnvironmentsResponse>, Status> {
        Ok(Response::new(self.list(&request.into_inner())?))
    }

    async fn get_spec(
        &self,
        request: Request<v1::GetSpecRequest>,
    ) -> Result<Response<v1::EnvSpec>, Status> {
        let held = self.held(&request.into_inner().name)?;
        Ok(Response::new(wire::spec_to_wire(&held.spec)))
    }

    async fn reset(
        &self,
        request: Request<v1::ResetRequest>,
    ) -> Result<Response<v1::ResetResponse>, Status> {
        Ok(Self::reset(self, request.into_inner()).await?)
    }

    async fn step(
        &self,
        request: Request<v1::StepRequest>,
    ) -> Result<Response<v1::StepResponse>, Status> {
        Ok(Self::step(self, request.into_inner()).await?)
    }

    async fn rollout(
        &self,
        request: Request<Streaming<v1::RolloutRequest>>,
    ) -> Result<Response<Self::RolloutStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let environments = Arc::clone(&self.environments);
        Ok(Response::new(Box::pin(rollout::answers(
            environments,
            &metadata,
            requests,
        ))))
    }

    async fn fork_environment(
        &self,
        request: Request<v1::ForkEnvironmentRequest>,
    ) -> Result<Response<v1::Environment>, Status> {
        Ok(Response::new(self.fork(request.into_inner()).await?))
    }

    async fn observe(
        &self,
        request: Request<v1::ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let held = self.held(&request.into_inner().name)?;
        let environments = Arc::clone(&self.environments);
        let shown = self.observers.observe(environments, &held)?;
        Ok(Response::new(Box::pin(shown)))
    }

    async fn delete_environment(
        &self,
        request: Request<v1::DeleteEnvironmentRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let [id] = names::parse("name", &request.name, "environments/*")?;
        match self.environments.delete(id, Instant::now()) {
            Err(_) if request.allow_missing => Ok(Response::new(())),
            other => Ok(Response::new(other?)),
        }
    }
}

/// An answer that is marked unless a managed host was played on.
fn played<T>(held: &Held, answer: T) -> Response<T> {
    let mut response = Response::new(answer);
    if held.recipe.held_host().is_none() {
        response.extensions_mut().insert(NoHostChanged);
    }
    response
}

fn environment_id(id: String) -> Result<String, Failure> {
    if id.is_empty() {
        return Ok(format!("e-{}", Uuid::new_v4()));
    }
    if is_resource_id(&id) {
        return Ok(id);
    }
    let problem = format!("\"{id}\" must be 1 to 63 of a-z, 0-9 and -, starting with a letter");
    Err(Failure::field("environment_id", problem))
}
