//! Starting and ending the service, its socket, health and reflection.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use blkpilot_agent::client::connect;
use blkpilot_agent::config::{Config, ConfigError, HostKind};
use blkpilot_agent::owner::last_good;
use blkpilot_agent::server::{ServeError, Server};
use blkpilot_env::cartpole::CartPole;
use blkpilot_env::features::kvm_host_spec;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::{Scenario, presets};
use blkpilot_env::{EnvSpec, Rng};
use blkpilot_host::{BufferedLimits, DeviceKnob, DeviceRules, DiskBounds};
use blkpilot_models::{Architecture, Checkpoint};
use blkpilot_proto::v1;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use rand::SeedableRng as _;
use support::{HOST, Service, Settings, socket};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

fn problems(text: &str) -> Vec<String> {
    match Config::parse(Path::new("x.toml"), text).unwrap_err() {
        ConfigError::Invalid { problems, .. } => problems.into_iter().map(|p| p.path).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn every_problem_of_a_configuration_is_named_at_once() {
    let text = "
version = 2
colour = \"red\"
[host]
name = \"Über\"
kind = \"simulated\"
mode = \"sometimes\"
scenario = \"atlantis\"
time_scale = 0
[[guest]]
mode = \"auto\"
knobs = [\"warp\"]
[[guest]]
name = \"a\"
[[guest]]
name = \"a\"
[policy]
baseline = 7
[service]
listen = \"0.0.0.0:7077\"
max_environments = 0
[reward]
cpu = 1.5
slo_p99_us = 0
beta = 0.1
";
    assert_eq!(
        problems(text),
        [
            "version",
            "guest[0].name",
            "guest[0].knobs",
            "guest[2].name",
            "colour",
            "host.name",
            "host.mode",
            "host.scenario",
            "host.time_scale",
            "policy.baseline",
            "service.listen",
            "service.data_dir",
            "service.max_environments",
            "reward.cpu",
            "reward.slo_p99_us",
            "reward.beta",
        ]
    );
    assert_eq!(problems(""), ["version", "host", "policy", "service"]);
}

#[test]
fn weights_of_the_reward_that_are_not_given_are_the_default_ones() {
    let reward = |tables: &str| {
        let text = Settings::default().toml(Path::new("/d")) + tables;
        Config::parse(Path::new("/d/x.toml"), &text).unwrap().reward
    };
    assert_eq!(reward(""), RewardConfig::default());
    let given = RewardConfig {
        page_cache: 0.75,
        slo_p99_us: Some(900.0),
        ..RewardConfig::default()
    };
    assert_eq!(
        reward("[reward]\npage_cache = 0.75\nslo_p99_us = 900\n"),
        given
    );
}

#[test]
fn limits_caches_and_neighbours_have_bounds_and_nobody_is_limited_unless_it_says_so() {
    let config = |tables: &str| {
        let settings = Settings {
            host: "kind = \"libvirt\"\non_exit = \"keep\"".to_owned(),
            guests: tables.to_owned(),
            ..Settings::default()
        };
        settings.toml(Path::new("/d"))
    };
    let parsed = |tables: &str| Config::parse(Path::new("/d/x.toml"), &config(tables)).unwrap();
    let disks = |config: &Config| match &config.host.kind {
        HostKind::Libvirt(libvirt) => libvirt.disks,
        HostKind::Simulated { .. } => unreachable!("it is a live one"),
    };
    let default = parsed("");
    assert_eq!(disks(&default), DiskBounds::default());
    assert_eq!(default.neighbours, None);
    let given = parsed(
        "[[guest]]
name = \"db\"
knobs = [\"throttle\", \"qcow2-cache\"]
p99_objective_us = 900
[host.throttle]
least_iops = 70
[host.qcow2_cache]
most_mib = 3
[guard.neighbour]
windows = 2
longest = \"30s\"",
    );
    assert_eq!(disks(&given).throttle.least_iops, 70);
    assert_eq!(disks(&given).qcow2_cache.most_bytes, 3 << 20);
    let neighbours = given.neighbours.unwrap();
    let floors = (neighbours.least_iops, neighbours.least_bytes_per_s);
    assert_eq!(floors, (70, 1 << 20), "those of the host's limits");
    assert_eq!(
        (neighbours.windows, neighbours.longest),
        (2, Duration::from_secs(30))
    );
    assert_eq!(given.host.guests["db"].p99_objective_us, Some(900.0));
    let wrong = "[[guest]]
name = \"db\"
p99_objective_us = 0
[host.throttle]
least_iops = 0
colour = 1
[host.qcow2_cache]
most_mib = 0
[guard.neighbour]
windows = 0
step = 1
dominant_share = 2
least_iops = 5";
    assert_eq!(
        problems(&config(wrong)),
        [
            "guest[0].p99_objective_us",
            "host.throttle.least_iops",
            "host.throttle.colour",
            "host.qcow2_cache.most_mib",
            "guard.neighbour.windows",
            "guard.neighbour.dominant_share",
            "guard.neighbour.step",
            "guard.neighbour.least_iops",
        ]
    );
}

#[test]
fn devices_are_changed_as_far_as_the_configuration_says_and_no_further() {
    let config = |devices: &str| {
        let settings = Settings {
            host: "kind = \"libvirt\"\non_exit = \"keep\"".to_owned(),
            guests: devices.to_owned(),
            ..Settings::default()
        };
        settings.toml(Path::new("/d"))
    };
    let rules = |devices: &str| {
        let config = Config::parse(Path::new("/d/x.toml"), &config(devices)).unwrap();
        match config.host.kind {
            HostKind::Libvirt(libvirt) => libvirt.devices,
            HostKind::Simulated { .. } => unreachable!("it is a live one"),
        }
    };
    assert_eq!(rules(""), DeviceRules::new());
    let given =
        rules("[[host.device]]\nmatch = \"wwid:naa.5\"\nknobs = [\"scheduler\", \"nr_requests\"]");
    let knobs = [DeviceKnob::Scheduler, DeviceKnob::NrRequests].into();
    assert_eq!(given, [("wwid:naa.5".to_owned(), knobs)].into());
    let wrong = "[[host.device]]
match = \"sda\"
knobs = [\"write_cache\"]
[[host.device]]
match = \"sdb\"
knobs = []
colour = 1
[[host.device]]
match = \"sdb\"
knobs = []
[[host.device]]";
    assert_eq!(
        problems(&config(wrong)),
        [
            "host.device[0].knobs",
            "host.device[1].colour",
            "host.device[2].match",
            "host.device[3].match",
            "host.device[3].knobs"
        ]
    );
}

#[test]
fn the_limits_of_buffered_are_shares_in_percent_and_have_defaults() {
    let text = |buffered: &str| {
        let settings = Settings {
            host: "kind = \"libvirt\"\non_exit = \"keep\"".to_owned(),
            guests: buffered.to_owned(),
            ..Settings::default()
        };
        settings.toml(Path::new("/d"))
    };
    let limits = |buffered: &str| {
        let config = Config::parse(Path::new("/d/x.toml"), &text(buffered)).unwrap();
        match config.host.kind {
            HostKind::Libvirt(libvirt) => libvirt.buffered,
            HostKind::Simulated { .. } => unreachable!("it is a live one"),
        }
    };
    assert_eq!(limits(""), BufferedLimits::default());
    let given = BufferedLimits {
        memory_pressure_percent: 5,
        ..BufferedLimits::default()
    };
    assert_eq!(
        limits("[host.buffered]\nmemory_pressure_percent = 5"),
        given
    );
    let wrong = "[host.buffered]
group_memory_percent = 101
available_memory_percent = -1
psi = 1";
    assert_eq!(
        problems(&text(wrong)),
        [
            "host.buffered.available_memory_percent",
            "host.buffered.group_memory_percent",
            "host.buffered.psi"
        ]
    );
}

#[test]
fn an_exploration_out_of_range_is_refused_and_a_mode_may_come_before_its_candidate() {
    let text = |candidate: &str| {
        let settings = Settings {
            guests: "
[[guest]]
name = \"a\"
mode = \"shadow\"
exploration = { epsilon = 1.5, changes_per_hour = 6 }
[[guest]]
name = \"b\"
mode = \"canary\"
exploration = { epsilon = 0.05, per_minute = 1 }"
                .to_owned(),
            ..Settings::default()
        };
        settings.toml(Path::new("/d")) + candidate
    };
    let ranges = [
        "guest[0].exploration.epsilon",
        "guest[1].exploration.changes_per_hour",
        "guest[1].exploration.per_minute",
    ];
    assert_eq!(problems(&text("")), ranges);
    let with = text("[candidate]\nbaseline = \"round_robin\"\n");
    assert_eq!(problems(&with), ranges);
    let wrong = text("[candidate]\nbaseline = \"none\"\n");
    assert_eq!(problems(&wrong).last().unwrap(), "candidate.baseline");
    let good = with
        .replace("1.5", "0.5")
        .replace("per_minute = 1", "changes_per_hour = 1");
    let config = Config::parse(Path::new("/d/x.toml"), &good).unwrap();
    assert!(config.candidate.is_some());
    assert_eq!(config.host.guests["b"].exploration.unwrap().epsilon, 0.05);
}

#[test]
fn only_unix_sockets_and_loopback_addresses_are_listened_on() {
    let config = |listen: &str| {
        let settings = Settings::default().toml(Path::new("/d"));
        let socket = format!("unix:{}", socket(Path::new("/d")).display());
        Config::parse(Path::new("/d/x.toml"), &settings.replace(&socket, listen))
    };
    for taken in [
        "unix:/run/x.sock",
        "unix:x.sock",
        "127.0.0.1:1",
        "[::1]:1",
        "http://127.0.0.1:1",
    ] {
        config(taken).unwrap();
    }
    let long = format!("unix:/{}", "x".repeat(120));
    for refused in [
        "0.0.0.0:1",
        "192.168.0.1:1",
        "[::]:1",
        "localhost:1",
        "/run/x",
        &long,
    ] {
        let error = config(refused).unwrap_err().to_string();
        assert!(error.contains("service.listen"), "{error}");
    }
}

/// A configuration in `dir` whose host has the scenario of the file `own.toml` beside it.
fn on_own_scenario(dir: &Path) -> Result<Config, ConfigError> {
    let settings = Settings {
        host: "kind = \"simulated\"\nscenario = \"own.toml\"".to_owned(),
        ..Settings::default()
    };
    Config::parse(&dir.join("blkpilot.toml"), &settings.toml(dir))
}

#[test]
fn a_scenario_is_read_from_a_file_beside_the_configuration() {
    let dir = TempDir::new().unwrap();
    let text = presets::text("poor_binding").unwrap();
    let text = text.replace("poor_binding", "own");
    std::fs::write(dir.path().join("own.toml"), text).unwrap();
    let config = on_own_scenario(dir.path()).unwrap();
    let HostKind::Simulated { scenario, .. } = config.host.kind else {
        panic!("{:?}", config.host.kind);
    };
    let expected = Scenario {
        name: "own".to_owned(),
        ..presets::poor_binding()
    };
    assert_eq!(*scenario, expected);
}

#[test]
fn every_problem_of_a_scenario_file_is_named_with_the_file() {
    let dir = TempDir::new().unwrap();
    let text = presets::text("poor_binding").unwrap();
    let broken = text
        .replace("cpus = 1", "cpus = 0")
        .replace("memory_gib = ", "memory_gib = -");
    let file = dir.path().join("own.toml");
    std::fs::write(&file, broken).unwrap();
    let text = on_own_scenario(dir.path()).unwrap_err().to_string();
    let start = format!("host.scenario = \"own.toml\": {}: ", file.display());
    assert!(text.lines().count() >= 2, "{text}");
    assert!(text.lines().all(|line| line.contains(&start)), "{text}");
    assert!(
        text.contains("channels[0].cpus") && text.contains("memory_gib"),
        "{text}"
    );
}

#[test]
fn a_scenario_that_is_not_there_is_told_with_the_file_and_the_presets() {
    let dir = TempDir::new().unwrap();
    let text = on_own_scenario(dir.path()).unwrap_err().to_string();
    let file = dir.path().join("own.toml").display().to_string();
    assert!(
        text.contains(&file) && text.contains("poor_binding"),
        "{text}"
    );
}

#[test]
fn the_example_configurations_are_valid() {
    for name in ["simulated", "libvirt"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/{name}.toml"));
        Config::load(&file).unwrap();
    }
}

fn save_checkpoint(spec: &EnvSpec, dir: &Path) {
    let mut rng = Rng::seed_from_u64(1);
    let mut checkpoint = Checkpoint::untrained(spec, Architecture::default(), &mut rng);
    checkpoint.save(dir).unwrap();
}

/// Starts a service with the checkpoint that `prepare` leaves in a directory.
async fn start_with(prepare: impl FnOnce(&Path)) -> Result<Service, ServeError> {
    let dir = TempDir::new().unwrap();
    prepare(&dir.path().join("policy"));
    let settings = Settings {
        policy: "checkpoint = \"policy\"".to_owned(),
        ..Settings::default()
    };
    Service::start_in(dir, &settings).await
}

#[tokio::test]
async fn a_checkpoint_that_fits_is_served() {
    let service = start_with(|dir| save_checkpoint(&kvm_host_spec(&[]), dir))
        .await
        .unwrap();
    let host = HOST.to_owned();
    let proposal = service
        .tuner()
        .propose(v1::ProposeRequest { host })
        .await
        .unwrap()
        .into_inner();
    let policy = proposal.policy.unwrap();
    assert_eq!((policy.name.as_str(), policy.version.len()), ("policy", 64));
}

/// How long a service may take for what it does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// A checkpoint whose weights are so large that every score of its network is infinite.
fn save_overflowing(spec: &EnvSpec, dir: &Path) {
    let mut rng = Rng::seed_from_u64(5);
    let mut checkpoint = Checkpoint::untrained(spec, Architecture::default(), &mut rng);
    let tensors = checkpoint.tensors.values_mut();
    for value in tensors.flat_map(|tensor| &mut tensor.data) {
        *value = f32::MAX;
    }
    checkpoint.save(dir).unwrap();
}

#[tokio::test]
async fn the_last_good_checkpoint_stands_in_for_its_successor_that_fails() {
    let dir = TempDir::new().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    save_checkpoint(&kvm_host_spec(&[]), &good);
    save_overflowing(&kvm_host_spec(&[]), &bad);
    let settings = |policy: &Path| Settings {
        host: "kind = \"simulated\"\nscenario = \"mixed\"\ntime_scale = 500\nmode = \"auto\""
            .to_owned(),
        policy: format!("checkpoint = \"{}\"", policy.display()),
        ..Settings::default()
    };
    let service = Service::start_in(dir, &settings(&good)).await.unwrap();
    let kept = last_good::dir_in(&service.dir.path().join("data"));
    let until_kept = async {
        while !kept.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, until_kept).await.unwrap();
    assert!(service.decisions().await.len() as u32 >= last_good::PROVEN_AFTER);
    let dir = service.stop().await;

    let service = Service::start_in(dir, &settings(&bad)).await.unwrap();
    let until_failed = async {
        loop {
            let hosts = v1::ListHostsRequest::default();
            let hosts = service.tuner().list_hosts(hosts).await.unwrap();
            let host = hosts.into_inner().hosts.remove(0);
            if !host.policy_error.is_empty() {
                break host;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let host = tokio::time::timeout(PATIENCE, until_failed).await.unwrap();
    assert!(host.policy_error.contains("weights are too large"));
    let fallbacks = host.fallbacks.unwrap();
    assert!(fallbacks.last_good >= 1 && fallbacks.heuristic == 0);
    let mut decisions = service.decisions().await.into_iter();
    let of_policy = |d: &v1::Decision| d.policy.as_ref().is_some_and(|p| p.name == "bad");
    let decision = decisions.find(of_policy).unwrap();
    assert_eq!(decision.source(), v1::decision::Source::Auto);
    for row in decision.rows {
        assert_eq!(row.stage(), v1::Stage::LastGood);
        let version = row.policy.unwrap().version;
        let checkpoint = Checkpoint::load(&kept).unwrap();
        assert_eq!(version, checkpoint.manifest.tensors_sha256);
    }
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_served_is_refused_before_anything_listens() {
    let truncated = |dir: &Path| {
        save_checkpoint(&kvm_host_spec(&[]), dir);
        let tensors = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let tensors = tensors
            .max_by_key(|path| path.metadata().unwrap().len())
            .unwrap();
        let bytes = std::fs::read(&tensors).unwrap();
        std::fs::write(&tensors, &bytes[..bytes.len() / 2]).unwrap();
    };
    let foreign = |dir: &Path| {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("model.onnx"), "not ours").unwrap();
    };
    let other_environment = |dir: &Path| save_checkpoint(&CartPole::default_spec(), dir);
    let other_heads =
        |dir: &Path| save_checkpoint(&kvm_host_spec(&["none".into(), "bfq".into()]), dir);
    type Prepare<'a> = &'a dyn Fn(&Path);
    let cases: [(Prepare<'_>, &str); 5] = [
        (&|_| {}, "policy"),
        (&truncated, "SHA-256"),
        (&foreign, "policy"),
        (&other_environment, "cart_position"),
        (&other_heads, "scheduler"),
    ];
    for (prepare, named) in cases {
        let Err(error) = start_with(prepare).await else {
            panic!("a checkpoint without {named} was served")
        };
        let text = error.to_string();
        assert!(
            text.contains("policy.checkpoint") && text.contains(named),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_socket_is_for_owner_and_group_and_goes_with_the_service() {
    let service = Service::start(&Settings::default()).await;
    let path = socket(service.dir.path());
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let _dir = service.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_but_nothing_else_is() {
    let dir = TempDir::new().unwrap();
    let path = socket(dir.path());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let service = Service::start_in(dir, &Settings::default()).await.unwrap();

    // The data directory is locked, so the second one needs its own.
    let file = service.dir.path().join("second.toml");
    let text = Settings::default().toml(service.dir.path());
    let text = text.replace("/data\"", "/second\"");
    let second = Config::parse(&file, &text).unwrap();
    let error = Server::start(second).await.unwrap_err();
    assert!(
        error.to_string().contains("another server listens there"),
        "{error}"
    );
    let same_data = Config::parse(&file, &Settings::default().toml(service.dir.path())).unwrap();
    let error = Server::start(same_data).await.unwrap_err();
    assert!(matches!(error, ServeError::Log(_)), "{error}");
    service.guests().await;

    let dir = TempDir::new().unwrap();
    std::fs::write(socket(dir.path()), "precious").unwrap();
    let Err(error) = Service::start_in(dir, &Settings::default()).await else {
        panic!("a file that is no socket was replaced")
    };
    assert!(error.to_string().contains("no socket"), "{error}");
}

#[tokio::test]
async fn health_follows_the_host() {
    let status = async |service: &Service, name: &str| {
        let service_name = name.to_owned();
        let mut client = HealthClient::new(service.channel.clone());
        let request = HealthCheckRequest {
            service: service_name,
        };
        client.check(request).await.unwrap().into_inner().status()
    };
    let tuner = "blkpilot.v1.TunerService";
    let service = Service::start(&Settings::default()).await;
    service.guests().await;
    assert_eq!(status(&service, "").await, ServingStatus::Serving);
    while status(&service, tuner).await != ServingStatus::Serving {
        tokio::task::yield_now().await;
    }
    let service = Service::start(&Settings {
        host: "kind = \"libvirt\"\nuri = \"qemu+unix:///system?socket=/nonexistent\"\non_exit = \"keep\"".to_owned(),
        ..Settings::default()
    })
    .await;
    while status(&service, tuner).await != ServingStatus::NotServing {
        tokio::task::yield_now().await;
    }
    let environments = "blkpilot.v1.EnvironmentService";
    assert_eq!(status(&service, environments).await, ServingStatus::Serving);
    // Its thread is in libvirt's library every so often, which the end of the process must not meet.
    service.stop().await;
}

/// A watch of health never ends by itself.
#[tokio::test]
async fn a_service_that_stops_says_so_first_takes_no_calls_and_waits_for_those_under_way_so_long() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("blkpilot.toml");
    let config = Config::parse(&file, &Settings::default().toml(dir.path())).unwrap();
    let server = Server::start(config).await.unwrap();
    let server = server.drain_within(Duration::from_millis(300));
    let channel = connect(&server.address().to_string()).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    let mut watched = vec![];
    for name in [
        "",
        "blkpilot.v1.EnvironmentService",
        "blkpilot.v1.TunerService",
    ] {
        let request = HealthCheckRequest {
            service: name.to_owned(),
        };
        let answer = HealthClient::new(channel.clone()).watch(request).await;
        watched.push(answer.unwrap().into_inner());
    }
    drop(stop);
    for health in &mut watched {
        while health.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
    }
    let mut tuner = TunerServiceClient::new(channel);
    let refused = loop {
        let call = tuner.list_hosts(v1::ListHostsRequest::default());
        let code = call.await.unwrap_err().code();
        // What this client says of a call that meets the end of its connection.
        if code != Code::Cancelled {
            break code;
        }
    };
    assert_eq!(refused, Code::Unavailable);
    // Those that hang are waited for no longer, which is no failure of the service.
    let ended = tokio::time::timeout(PATIENCE, serving).await;
    ended.unwrap().unwrap().unwrap();
    assert!(!socket(dir.path()).exists());
}

#[tokio::test]
async fn reflection_names_the_services_and_finds_a_message() {
    let service = Service::start(&Settings::default()).await;
    let ask = async |request: MessageRequest| {
        let mut client = ServerReflectionClient::new(service.channel.clone());
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let mut answers = client
            .server_reflection_info(tokio_stream::once(request))
            .await
            .unwrap()
            .into_inner();
        answers
            .next()
            .await
            .unwrap()
            .unwrap()
            .message_response
            .unwrap()
    };
    let MessageResponse::ListServicesResponse(list) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list of services")
    };
    let names: Vec<&str> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for name in [
        "blkpilot.v1.EnvironmentService",
        "blkpilot.v1.TunerService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let symbol = MessageRequest::FileContainingSymbol("blkpilot.v1.Decision".to_owned());
    assert!(matches!(
        ask(symbol).await,
        MessageResponse::FileDescriptorResponse(_)
    ));
}
