//! `EnvironmentService` through a real server and a real client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::time::Duration;

use blkpilot_agent::access::role::Role;
use blkpilot_agent::client::remote::{RemoteEnvironment, observation_from_wire, step_from_wire};
use blkpilot_agent::wire::status::env_error;
use blkpilot_env::cartpole::CartPole;
use blkpilot_env::conformance::{Demands, check, random_action};
use blkpilot_env::sim::{Generator, SimHost, presets};
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{
    Autoreset, EnvError, EnvSpec, Environment, JointAction, Level, Observation, ResetOptions,
    Rewards, Rng, Step,
};
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment::Kind;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use ndarray::Array2;
use rand::SeedableRng as _;
use support::{
    HOST, Service, Settings, cart_pole, create, environment, fields, managed_host, preset, reason,
    reset, set,
};
use tonic::Code;
use tonic::transport::Channel;

fn step(name: &str, levels: Vec<u32>) -> v1::StepRequest {
    let disks = v1::LevelTable {
        rows: 1,
        heads: levels.len() as u32,
        levels,
    };
    v1::StepRequest {
        name: name.to_owned(),
        action: Some(v1::JointAction {
            disks: Some(disks),
            devices: None,
        }),
        ..v1::StepRequest::default()
    }
}

/// Runs a check that blocks, away from the server's threads.
async fn conforms(service: &Service, environment: v1::Environment, demands: Demands) {
    let target = service.with_token(Role::Operator);
    let checked = tokio::task::spawn_blocking(move || {
        check(
            || RemoteEnvironment::create(&target, environment.clone()).unwrap(),
            demands,
        )
    });
    checked.await.unwrap().unwrap();
}

const DETERMINISTIC: Demands = Demands {
    is_deterministic: true,
    steps: 40,
};

const MODES: [v1::Autoreset; 3] = [
    v1::Autoreset::Disabled,
    v1::Autoreset::NextStep,
    v1::Autoreset::SameStep,
];

/// Every kind of environment that repeats itself.
fn kinds() -> Vec<Kind> {
    let generator = v1::sim_host::Generator {
        schedulers: true,
        steps: 10,
        ..v1::sim_host::Generator::default()
    };
    let random = Kind::SimHost(v1::SimHost {
        scenario: Some(v1::sim_host::Scenario::Generator(generator)),
    });
    let presets = presets::NAMES.iter().map(|name| preset(name));
    presets.chain([cart_pole(), random]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_conform_over_grpc_in_every_kind_and_autoreset_mode() {
    for on_tcp in [false, true] {
        let service = Service::start(&Settings {
            on_tcp,
            ..Settings::default()
        })
        .await;
        for kind in kinds() {
            for mode in MODES {
                let environment = v1::Environment {
                    autoreset: mode.into(),
                    ..environment(kind.clone())
                };
                conforms(&service, environment, DETERMINISTIC).await;
            }
        }
        let mut client = service.environments();
        let left = client
            .list_environments(v1::ListEnvironmentsRequest::default())
            .await;
        assert!(left.unwrap().into_inner().environments.is_empty());
    }
}

/// An environment at a service by single calls, as clients without a stream have it.
struct ByCalls {
    runtime: tokio::runtime::Handle,
    client: EnvironmentServiceClient<Channel>,
    name: String,
    spec: EnvSpec,
}

impl ByCalls {
    /// The spec is that of a remote environment of the same kind.
    async fn create(service: &Service, environment: v1::Environment, spec: EnvSpec) -> Self {
        let mut client = service.environments();
        let request = v1::CreateEnvironmentRequest {
            environment: Some(environment),
            ..v1::CreateEnvironmentRequest::default()
        };
        let made = client.create_environment(request).await.unwrap();
        Self {
            runtime: tokio::runtime::Handle::current(),
            client,
            name: made.into_inner().name,
            spec,
        }
    }
}

impl Environment for ByCalls {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        let request = v1::ResetRequest {
            seed,
            options: options.clone(),
            ..reset(&self.name)
        };
        let answer = self.runtime.block_on(self.client.reset(request));
        let answer = answer.map_err(|status| env_error(&status))?.into_inner();
        Ok(observation_from_wire(answer.observation.unwrap()).unwrap())
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let table = |levels: &Array2<Level>| v1::LevelTable {
            rows: levels.nrows() as u32,
            heads: levels.ncols() as u32,
            levels: levels.iter().map(|level| u32::from(*level)).collect(),
        };
        let request = v1::StepRequest {
            name: self.name.clone(),
            action: Some(v1::JointAction {
                disks: Some(table(&action.disks)),
                devices: Some(table(&action.devices)),
            }),
            ..v1::StepRequest::default()
        };
        let answer = self.runtime.block_on(self.client.step(request));
        let answer = answer.map_err(|status| env_error(&status))?;
        Ok(step_from_wire(answer.into_inner()).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn single_calls_conform_as_the_stream_does() {
    let service = Service::start(&Settings::default()).await;
    for kind in [cart_pole(), preset("mixed")] {
        for mode in MODES {
            let environment = v1::Environment {
                autoreset: mode.into(),
                ..environment(kind.clone())
            };
            let (server, same) = (service.server.clone(), environment.clone());
            let spec = tokio::task::spawn_blocking(move || {
                let remote = RemoteEnvironment::create(&server, same).unwrap();
                remote.spec().clone()
            });
            let spec = spec.await.unwrap();
            let mut fresh = vec![];
            for _ in 0..2 {
                fresh.push(ByCalls::create(&service, environment.clone(), spec.clone()).await);
            }
            let checked =
                tokio::task::spawn_blocking(move || check(|| fresh.pop().unwrap(), DETERMINISTIC));
            checked.await.unwrap().unwrap();
        }
    }
}

/// The bits of all numbers of an observation: -0 is not 0, and NaN is NaN.
fn bits_of(seen: &Observation) -> Vec<u32> {
    let tables = [&seen.disks, &seen.channels, &seen.devices, &seen.host];
    let values = tables
        .into_iter()
        .flat_map(|t| t.values.iter().chain(&t.age_s));
    values
        .chain(&seen.pairs)
        .map(|value| value.to_bits())
        .collect()
}

fn bits_of_rewards(rewards: &Rewards) -> Vec<u32> {
    let values = rewards.total.iter().chain(&rewards.own);
    let values = values.chain(&rewards.terms);
    values.map(|value| value.to_bits()).collect()
}

fn assert_same(ours: &Step, theirs: &Step) {
    assert_eq!(ours, theirs);
    assert_eq!(bits_of(&ours.observation), bits_of(&theirs.observation));
    let lasts = [ours, theirs].map(|step| step.final_observation.as_deref().map(bits_of));
    assert_eq!(lasts[0], lasts[1]);
    assert_eq!(
        bits_of_rewards(&ours.rewards),
        bits_of_rewards(&theirs.rewards)
    );
}

/// Plays both with the same actions; how many episodes have ended.
fn assert_equal(
    remote: &mut impl Environment,
    local: &mut impl Environment,
    steps: usize,
) -> usize {
    let spec = local.spec().clone();
    assert_eq!(&spec, remote.spec());
    let mut rng = Rng::seed_from_u64(5);
    let mut seen = local.reset(Some(3), &ResetOptions::new()).unwrap();
    let shown = remote.reset(Some(3), &ResetOptions::new()).unwrap();
    assert_eq!(seen, shown);
    assert_eq!(bits_of(&seen), bits_of(&shown));
    let mut episodes = 0;
    for _ in 0..steps {
        let action = random_action(&spec, &seen, &mut rng);
        let ours = local.step(&action).unwrap();
        assert_same(&ours, &remote.step(&action).unwrap());
        episodes += usize::from(ours.is_last());
        seen = ours.observation;
    }
    episodes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_environment_is_the_local_one_bit_for_bit() {
    let service = Service::start(&Settings::default()).await;
    let server = service.server.clone();
    let same_step = |kind| v1::Environment {
        autoreset: v1::Autoreset::SameStep.into(),
        ..environment(kind)
    };
    let played = tokio::task::spawn_blocking(move || {
        let remote = |kind| RemoteEnvironment::create(&server, same_step(kind)).unwrap();
        let cart = AutoresetEnv::new(CartPole::new(0), Autoreset::SameStep);
        let ended = assert_equal(&mut remote(cart_pole()), &mut { cart }, 100);
        assert!(ended >= 2, "{ended} episodes");
        for name in presets::NAMES {
            let host = SimHost::fixed(presets::by_name(name).unwrap()).unwrap();
            let host = AutoresetEnv::new(host, Autoreset::SameStep);
            assert_equal(&mut remote(preset(name)), &mut { host }, 20);
        }
        let generator = v1::sim_host::Generator {
            schedulers: true,
            steps: 9,
            known_work: 0.5,
            templates: vec!["mixed_numa".to_owned()],
            template_share: 0.5,
            template_spread: 2.0,
            ..v1::sim_host::Generator::default()
        };
        let random = Kind::SimHost(v1::SimHost {
            scenario: Some(v1::sim_host::Scenario::Generator(generator)),
        });
        let generator = Generator {
            schedulers: true,
            steps: 9,
            known_work: 0.5,
            templates: vec!["mixed_numa".to_owned()],
            template_share: 0.5,
            template_spread: 2.0,
            ..Generator::default()
        };
        let host = SimHost::generated(generator).unwrap();
        let host = AutoresetEnv::new(host, Autoreset::SameStep);
        let ended = assert_equal(&mut remote(random), &mut { host }, 40);
        assert_eq!(ended, 40 / 9);
    });
    played.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_thinks_for_longer_than_its_lease_keeps_its_environment() {
    const LEASE: Duration = Duration::from_secs(1);
    let service = Service::start(&Settings::default()).await;
    let lease = v1::Environment {
        lease_duration: LEASE.try_into().ok(),
        ..environment(cart_pole())
    };
    // One that nobody renews shows that the time was long enough.
    let request = v1::CreateEnvironmentRequest {
        environment: Some(lease.clone()),
        environment_id: "forgotten".to_owned(),
        ..v1::CreateEnvironmentRequest::default()
    };
    let mut client = service.environments();
    client.create_environment(request).await.unwrap();
    let server = service.server.clone();
    let thought = tokio::task::spawn_blocking(move || {
        let mut env = RemoteEnvironment::create(&server, lease).unwrap();
        let seen = env.reset(Some(1), &ResetOptions::new()).unwrap();
        std::thread::sleep(3 * LEASE);
        env.step(&seen.current).unwrap();
    });
    thought.await.unwrap();
    let gone = client.reset(reset("environments/forgotten")).await;
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_on_the_wire_is_named_with_the_way_out() {
    let service = Service::start(&Settings::default()).await;
    let server = service.server.clone();
    let made = tokio::task::spawn_blocking(move || {
        let mut env = RemoteEnvironment::create(&server, environment(cart_pole())).unwrap();
        let seen = env.reset(Some(1), &ResetOptions::new()).unwrap();
        (env, seen)
    });
    let (mut env, seen) = made.await.unwrap();
    let name = env.name().to_owned();
    let delete = v1::DeleteEnvironmentRequest {
        name: name.clone(),
        allow_missing: false,
    };
    service
        .environments()
        .delete_environment(delete)
        .await
        .unwrap();
    let stepped = tokio::task::spawn_blocking(move || {
        let error = env.step(&seen.current).unwrap_err();
        (env, error)
    });
    let (env, error) = stepped.await.unwrap();
    let text = error.to_string();
    assert!(matches!(error, EnvError::Host { .. }));
    assert!(
        text.contains(&name) && text.contains("create it anew"),
        "{text}"
    );

    let server = service.server.clone();
    service.stop().await;
    let reset = tokio::task::spawn_blocking(move || {
        let mut env = env;
        env.reset(None, &ResetOptions::new()).unwrap_err()
    });
    let text = reset.await.unwrap().to_string();
    assert!(
        text.contains(&server) && text.contains("blkpilot journal"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_host_conforms_and_is_put_back() {
    let service = Service::start(&Settings {
        host: "kind = \"simulated\"\nscenario = \"mixed\"\ntime_scale = 1000".to_owned(),
        ..Settings::default()
    })
    .await;
    let before = service.level("ingestion/vda", "channel").await;
    let demands = Demands {
        is_deterministic: false,
        steps: 20,
    };
    conforms(&service, environment(managed_host()), demands).await;
    // Every step is a decision on record.
    assert!(service.decisions().await.len() >= 20);

    let mut environments = service.environments();
    environments
        .create_environment(create(managed_host(), "mine"))
        .await
        .unwrap();
    let second = environments
        .create_environment(create(managed_host(), "yours"))
        .await
        .unwrap_err();
    assert_eq!(reason(&second), "HOST_ATTACHED");
    let change = set(&[("backup/vda", "cache", "buffered")]);
    let refused = service.tuner().apply(change.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused), "HOST_ATTACHED");

    let observation = environments
        .reset(reset("environments/mine"))
        .await
        .unwrap()
        .into_inner();
    let observation = observation.observation.unwrap();
    let mut action = observation.current.unwrap();
    action.disks.as_mut().unwrap().levels[0] = 2;
    let disk = observation.disk_ids[0].clone();
    let request = v1::StepRequest {
        name: "environments/mine".to_owned(),
        action: Some(action),
        ..v1::StepRequest::default()
    };
    environments.step(request).await.unwrap();
    assert_eq!(service.level(&disk, "channel").await, "channel-1");

    let delete = v1::DeleteEnvironmentRequest {
        name: "environments/mine".to_owned(),
        allow_missing: false,
    };
    environments.delete_environment(delete).await.unwrap();
    while service.level(&disk, "channel").await == "channel-1" {
        tokio::task::yield_now().await;
    }
    assert_eq!(service.level("ingestion/vda", "channel").await, before);
    // It is free again; what was played counts as changes for a minute of the host, which is 60 ms here.
    while let Err(refused) = service.tuner().apply(change.clone()).await {
        assert_eq!(reason(&refused), "RATE_LIMITED");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_passes_the_guard_by_says_why() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let past_the_guard = |reason: &str| {
        Kind::ManagedHost(v1::ManagedHost {
            host: HOST.to_owned(),
            force_reason: reason.to_owned(),
            access: v1::HostAccess::Exclusive.into(),
        })
    };
    let refused = client.create_environment(create(past_the_guard("  "), "blank"));
    let refused = refused.await.unwrap_err();
    assert_eq!(fields(&refused), ["environment.managed_host.force_reason"]);
    let made = client.create_environment(create(past_the_guard(" a trial "), "trial"));
    let made = made.await.unwrap().into_inner();
    assert_eq!(made.kind, Some(past_the_guard("a trial")));
}

#[tokio::test]
async fn over_tcp_a_managed_host_is_given_out_to_the_holder_of_a_token() {
    let service = Service::start(&Settings {
        on_tcp: true,
        ..Settings::default()
    })
    .await;
    let refused = service
        .environments()
        .create_environment(create(managed_host(), "mine"))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let operator = service.with_token(Role::Operator);
    EnvironmentServiceClient::new(operator.connect().await.unwrap())
        .create_environment(create(managed_host(), "mine"))
        .await
        .unwrap();
}

#[tokio::test]
async fn wrong_requests_are_refused_with_reason_and_field() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    client
        .create_environment(create(cart_pole(), "cart"))
        .await
        .unwrap();
    let cart = "environments/cart";

    let early = client.step(step(cart, vec![0])).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    assert_eq!(reason(&early), "STEP_BEFORE_RESET");

    let unknown = client
        .step(step("environments/nobody", vec![0]))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("environments/nobody"));

    client.reset(reset(cart)).await.unwrap();
    let beyond = client.step(step(cart, vec![7])).await.unwrap_err();
    assert_eq!(beyond.code(), Code::InvalidArgument);
    assert_eq!(reason(&beyond), "ACTION_NO_SUCH_LEVEL");
    assert_eq!(fields(&beyond), ["action[cart].push"]);
    let shapeless = client.step(step(cart, vec![0, 0])).await.unwrap_err();
    assert_eq!(reason(&shapeless), "ACTION_SHAPE");
    let huge = client.step(step(cart, vec![70_000])).await.unwrap_err();
    assert_eq!(fields(&huge), ["action.disks.levels"]);
    let mut untrue = step(cart, vec![0]);
    let table = untrue.action.as_mut().unwrap().disks.as_mut().unwrap();
    (table.rows, table.heads) = (u32::MAX, u32::MAX);
    assert_eq!(
        fields(&client.step(untrue).await.unwrap_err()),
        ["action.disks.levels"]
    );
    let nothing = v1::StepRequest {
        name: cart.to_owned(),
        ..v1::StepRequest::default()
    };
    assert_eq!(fields(&client.step(nothing).await.unwrap_err()), ["action"]);
    // None of them has moved the cart.
    client.step(step(cart, vec![1])).await.unwrap();

    let mut options = reset(cart);
    options
        .options
        .insert("colour".to_owned(), "red".to_owned());
    let refused = client.reset(options).await.unwrap_err();
    assert_eq!(reason(&refused), "RESET_OPTION");
    assert_eq!(fields(&refused), ["options[colour]"]);
}

#[tokio::test]
async fn wrong_environments_are_not_created() {
    let service = Service::start(&Settings {
        service: "max_environments = 2".to_owned(),
        ..Settings::default()
    })
    .await;
    let mut client = service.environments();
    let refused = client
        .create_environment(create(preset("atlantis"), ""))
        .await
        .unwrap_err();
    assert_eq!(fields(&refused), ["environment.sim_host.preset"]);
    assert!(refused.message().contains("identical_disks"));

    let scenario = "name = \"x\"\ninterval_s = -1.0";
    let scenario = v1::sim_host::Scenario::ScenarioToml(scenario.to_owned());
    let scenario = Kind::SimHost(v1::SimHost {
        scenario: Some(scenario),
    });
    let refused = client
        .create_environment(create(scenario, ""))
        .await
        .unwrap_err();
    assert_eq!(fields(&refused), ["environment.sim_host.scenario_toml"]);

    let nothing = v1::CreateEnvironmentRequest::default();
    assert_eq!(
        fields(&client.create_environment(nothing).await.unwrap_err()),
        ["environment"]
    );
    let refused = client
        .create_environment(create(cart_pole(), "No!"))
        .await
        .unwrap_err();
    assert_eq!(fields(&refused), ["environment_id"]);
    let mut brief = create(cart_pole(), "");
    brief.environment.as_mut().unwrap().lease_duration = Some(prost_types::Duration::default());
    let refused = client.create_environment(brief).await.unwrap_err();
    assert_eq!(fields(&refused), ["environment.lease_duration"]);

    let tried = v1::CreateEnvironmentRequest {
        validate_only: true,
        ..create(cart_pole(), "a")
    };
    client.create_environment(tried).await.unwrap();
    client
        .create_environment(create(cart_pole(), "a"))
        .await
        .unwrap();
    let twice = client
        .create_environment(create(cart_pole(), "a"))
        .await
        .unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);
    client
        .create_environment(create(cart_pole(), "b"))
        .await
        .unwrap();
    let third = client
        .create_environment(create(cart_pole(), "c"))
        .await
        .unwrap_err();
    assert_eq!(third.code(), Code::ResourceExhausted);
    assert_eq!(reason(&third), "TOO_MANY_ENVIRONMENTS");
}

#[tokio::test]
async fn environments_are_shown_listed_and_deleted() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let request = v1::CreateEnvironmentRequest {
        request_id: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".to_owned(),
        ..create(preset("mixed"), "")
    };
    let made = client
        .create_environment(request.clone())
        .await
        .unwrap()
        .into_inner();
    let again = client
        .create_environment(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(made.name, again.name);
    for id in ["b", "a"] {
        client
            .create_environment(create(cart_pole(), id))
            .await
            .unwrap();
    }
    let page = |page_token| v1::ListEnvironmentsRequest {
        page_size: 2,
        page_token,
        filter: "kind != managed_host".to_owned(),
    };
    let first = client
        .list_environments(page(String::new()))
        .await
        .unwrap()
        .into_inner();
    let second = client
        .list_environments(page(first.next_page_token))
        .await
        .unwrap()
        .into_inner();
    let names = first
        .environments
        .iter()
        .chain(&second.environments)
        .map(|e| e.name.as_str());
    assert_eq!(
        names.collect::<Vec<_>>(),
        [made.name.as_str(), "environments/b", "environments/a"]
    );
    assert!(second.next_page_token.is_empty());

    let name = made.name.clone();
    let spec = client
        .get_spec(v1::GetSpecRequest { name: name.clone() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(spec.kind, "kvm_host");
    assert_eq!(spec.disk_features[0].name, "queue_depth");
    let delete = |allow_missing| v1::DeleteEnvironmentRequest {
        name: made.name.clone(),
        allow_missing,
    };
    client.delete_environment(delete(false)).await.unwrap();
    assert_eq!(
        client
            .delete_environment(delete(false))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    client.delete_environment(delete(true)).await.unwrap();
    let gone = client
        .get_environment(v1::GetEnvironmentRequest { name })
        .await
        .unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}
