//! `EnvironmentService` over the environments held here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use blkpilot_env::sim::Generator;
use blkpilot_env::{Autoreset, ResetOptions};
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_server::EnvironmentService;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::access::layer::NoHostChanged;
use crate::config::is_resource_id;
use crate::environments::{Environments, Held, Kind, Recipe};
use crate::names::{self, environment_name, host_name};
use crate::paging;
use crate::status::Failure;
use crate::wire;

const DEFAULT_LEASE: Duration = Duration::from_secs(600);
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);
/// Creations that are remembered by request id.
const MOST_REQUESTS: usize = 1024;

/// `EnvironmentService`.
#[derive(Debug)]
pub struct Service {
    environments: Arc<Environments>,
    /// Request ids of creations, with the recipe and the id of what was made.
    requests: Mutex<VecDeque<(Uuid, Recipe, String)>>,
}

impl Service {
    /// A service over these environments.
    #[must_use]
    pub fn new(environments: Arc<Environments>) -> Self {
        Self {
            environments,
            requests: Mutex::default(),
        }
    }

    fn held(&self, name: &str) -> Result<Arc<Held>, Failure> {
        let [id] = names::parse("name", name, "environments/*")?;
        self.environments.get(id, Instant::now())
    }

    async fn create(
        &self,
        request: v1::CreateEnvironmentRequest,
    ) -> Result<v1::Environment, Failure> {
        let wanted = request
            .environment
            .ok_or_else(|| Failure::field("environment", "is missing: say what to create"))?;
        let recipe = recipe(wanted)?;
        let id = environment_id(request.environment_id)?;
        if request.validate_only {
            recipe.check(&self.environments.hosts)?;
            return Ok(describe(&recipe, environment_name(&id)));
        }
        let request_id = parse_request_id(&request.request_id)?;
        if let Some(held) = self.remembered(request_id, &recipe)? {
            return Ok(to_wire(&held));
        }
        let held = self
            .environments
            .create(id, recipe.clone(), Instant::now())
            .await?;
        if let Some(request_id) = request_id {
            let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            if requests.len() == MOST_REQUESTS {
                requests.pop_front();
            }
            requests.push_back((request_id, recipe, held.id.clone()));
        }
        Ok(to_wire(&held))
    }

    fn remembered(
        &self,
        request_id: Option<Uuid>,
        recipe: &Recipe,
    ) -> Result<Option<Arc<Held>>, Failure> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((id, made_from, held)) = requests.iter().find(|(id, ..)| Some(*id) == request_id)
        else {
            return Ok(None);
        };
        if made_from != recipe {
            let problem = format!("{id} was used for another request: make a new one");
            return Err(Failure::field("request_id", problem));
        }
        self.environments.get(held, Instant::now()).map(Some)
    }

    fn list(
        &self,
        request: &v1::ListEnvironmentsRequest,
    ) -> Result<v1::ListEnvironmentsResponse, Failure> {
        let size = paging::size(request.page_size)?;
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
        let page = &held[start..held.len().min(start + size)];
        let has_more = start + page.len() < held.len();
        let next = page.last().filter(|_| has_more).map(|held| held.id.clone());
        Ok(v1::ListEnvironmentsResponse {
            environments: page.iter().map(|held| to_wire(held)).collect(),
            next_page_token: next.unwrap_or_default(),
        })
    }
}

#[tonic::async_trait]
impl EnvironmentService for Service {
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
        let request = request.into_inner();
        let held = self.held(&request.name)?;
        let options: ResetOptions = request.options.into_iter().collect();
        let observation = held.reset(request.seed, options).await?;
        let observation = Some(wire::observation_to_wire(&observation));
        Ok(played(&held, v1::ResetResponse { observation }))
    }

    async fn step(
        &self,
        request: Request<v1::StepRequest>,
    ) -> Result<Response<v1::StepResponse>, Status> {
        let request = request.into_inner();
        let held = self.held(&request.name)?;
        let action = wire::action_from_wire("action", request.action).map_err(Failure::from)?;
        let step = held.step(action).await?;
        Ok(played(&held, wire::step_to_wire(&step)))
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
    if !matches!(held.recipe.kind, Kind::Host { .. }) {
        response.extensions_mut().insert(NoHostChanged);
    }
    response
}

/// A request id off the wire; empty for none.
pub(crate) fn parse_request_id(text: &str) -> Result<Option<Uuid>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = text.parse();
    id.map(Some)
        .map_err(|_| Failure::field("request_id", format!("\"{text}\" must be a UUID")))
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

fn recipe(environment: v1::Environment) -> Result<Recipe, Failure> {
    use v1::environment::Kind as Wire;
    let kind = match environment.kind {
        Some(Wire::CartPole(_)) => Kind::CartPole,
        Some(Wire::SimHost(host)) => sim_host(host)?,
        Some(Wire::ManagedHost(host)) => {
            let [name] = names::parse("environment.managed_host.host", &host.host, "hosts/*")?;
            let field = "environment.managed_host.force_reason";
            Kind::Host {
                name: name.to_owned(),
                force_reason: wire::force_reason_from_wire(field, &host.force_reason)?,
            }
        }
        None => {
            let problem = "is missing: give sim_host, cart_pole or managed_host";
            return Err(Failure::field("environment.kind", problem));
        }
    };
    let autoreset = match environment.autoreset {
        0 => Autoreset::Disabled,
        given => wire::autoreset_from_wire("environment.autoreset", given)?,
    };
    Ok(Recipe {
        kind,
        seed: environment.seed,
        autoreset,
        lease: lease(environment.lease_duration)?,
    })
}

fn sim_host(host: v1::SimHost) -> Result<Kind, Failure> {
    use v1::sim_host::Scenario as Wire;
    match host.scenario {
        Some(Wire::Preset(name)) => Ok(Kind::Preset(name)),
        Some(Wire::ScenarioToml(text)) => Ok(Kind::Scenario(text)),
        Some(Wire::Generator(generator)) => Ok(Kind::Generated(self::generator(&generator))),
        None => {
            let problem = "is missing: give preset, scenario_toml or generator";
            Err(Failure::field("environment.sim_host.scenario", problem))
        }
    }
}

fn generator(wire: &v1::sim_host::Generator) -> Generator {
    let default = Generator::default();
    let range = |range: Option<v1::sim_host::CountRange>, default| {
        range.map_or(default, |r| (r.low as usize, r.high as usize))
    };
    Generator {
        disks: range(wire.disks, default.disks),
        channels: range(wire.channels, default.channels),
        devices: range(wire.devices, default.devices),
        steps: if wire.steps == 0 {
            default.steps
        } else {
            wire.steps
        },
        schedulers: wire.schedulers,
        known_work: wire.known_work,
        templates: wire.templates.clone(),
        template_share: wire.template_share,
        template_spread: if wire.template_spread == 0.0 {
            default.template_spread
        } else {
            wire.template_spread
        },
        ..default
    }
}

fn lease(wire: Option<prost_types::Duration>) -> Result<Duration, Failure> {
    let Some(wire) = wire else {
        return Ok(DEFAULT_LEASE);
    };
    let lease = Duration::try_from(wire).ok();
    lease
        .filter(|lease| (Duration::from_secs(1)..=LONGEST_LEASE).contains(lease))
        .ok_or_else(|| {
            Failure::field(
                "environment.lease_duration",
                format!("{wire} must be in [1s, 24h]"),
            )
        })
}

fn to_wire(held: &Held) -> v1::Environment {
    let left = held.expires_at().saturating_duration_since(Instant::now());
    v1::Environment {
        create_time: Some(held.created.into()),
        expire_time: Some((SystemTime::now() + left).into()),
        ..describe(&held.recipe, environment_name(&held.id))
    }
}

fn describe(recipe: &Recipe, name: String) -> v1::Environment {
    use v1::environment::Kind as Wire;
    use v1::sim_host::Scenario;
    let sim = |scenario| {
        Wire::SimHost(v1::SimHost {
            scenario: Some(scenario),
        })
    };
    let kind = match &recipe.kind {
        Kind::CartPole => Wire::CartPole(v1::CartPole {}),
        Kind::Host { name, force_reason } => Wire::ManagedHost(v1::ManagedHost {
            host: host_name(name),
            force_reason: force_reason.clone().unwrap_or_default(),
        }),
        Kind::Preset(name) => sim(Scenario::Preset(name.clone())),
        Kind::Scenario(text) => sim(Scenario::ScenarioToml(text.clone())),
        Kind::Generated(generator) => sim(Scenario::Generator(generator_to_wire(generator))),
    };
    v1::Environment {
        name,
        kind: Some(kind),
        seed: recipe.seed,
        autoreset: wire::autoreset_to_wire(recipe.autoreset).into(),
        lease_duration: prost_types::Duration::try_from(recipe.lease).ok(),
        create_time: None,
        expire_time: None,
    }
}

fn generator_to_wire(generator: &Generator) -> v1::sim_host::Generator {
    let range = |(low, high): (usize, usize)| {
        Some(v1::sim_host::CountRange {
            low: low as u32,
            high: high as u32,
        })
    };
    v1::sim_host::Generator {
        disks: range(generator.disks),
        channels: range(generator.channels),
        devices: range(generator.devices),
        steps: generator.steps,
        schedulers: generator.schedulers,
        known_work: generator.known_work,
        templates: generator.templates.clone(),
        template_share: generator.template_share,
        template_spread: generator.template_spread,
    }
}
