//! A service on a socket of its own, in this process.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod checkpoints;
pub(crate) mod daemon;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use blkpilot_agent::access::role::Role;
use blkpilot_agent::access::tokens::{TokenFile, Wanted};
use blkpilot_agent::client::{Target, connect};
use blkpilot_agent::config::Config;
use blkpilot_agent::server::{ServeError, Server};
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment::Kind;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

/// What a configuration has besides its sockets and directories.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Lines of `[host]`.
    pub(crate) host: String,
    /// Tables of guests.
    pub(crate) guests: String,
    /// Lines of `[policy]`.
    pub(crate) policy: String,
    /// More lines of `[service]`.
    pub(crate) service: String,
    /// Listens on a loopback port instead of a Unix socket.
    pub(crate) on_tcp: bool,
}

impl Default for Settings {
    /// A simulated host that is looked at 20 times a second.
    fn default() -> Self {
        Self {
            host: "kind = \"simulated\"\nscenario = \"mixed\"\ntime_scale = 20".to_owned(),
            guests: String::new(),
            policy: "baseline = \"least_loaded\"".to_owned(),
            service: String::new(),
            on_tcp: false,
        }
    }
}

impl Settings {
    /// The configuration, with everything it names in `dir`.
    pub(crate) fn toml(&self, dir: &Path) -> String {
        let listen = if self.on_tcp {
            "127.0.0.1:0".to_owned()
        } else {
            format!("unix:{}", socket(dir).display())
        };
        let Self {
            host,
            guests,
            policy,
            service,
            ..
        } = self;
        let data = dir.join("data");
        let data = data.display();
        format!(
            "version = 1\n[host]\n{host}\n{guests}\n[policy]\n{policy}\n[service]\nlisten = \"{listen}\"\ndata_dir = \"{data}\"\n{service}\n"
        )
    }
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("blkpilot.sock")
}

/// A service that ends when this is dropped.
pub(crate) struct Service {
    pub(crate) dir: TempDir,
    /// Where it listens, for a client.
    pub(crate) server: String,
    pub(crate) channel: Channel,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Service {
    pub(crate) async fn start(settings: &Settings) -> Self {
        Self::start_in(TempDir::new().unwrap(), settings)
            .await
            .unwrap()
    }

    pub(crate) async fn start_in(dir: TempDir, settings: &Settings) -> Result<Self, ServeError> {
        let file = dir.path().join("blkpilot.toml");
        let config = Config::parse(&file, &settings.toml(dir.path())).unwrap();
        let server = Server::start(config).await?;
        let address = server.address().to_string();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Ok(Self {
            dir,
            channel: connect(&address).await.unwrap(),
            server: address,
            stop: Some(stop),
            serving: Some(serving),
        })
    }

    /// Ends it and hands back its directory.
    pub(crate) async fn stop(mut self) -> TempDir {
        drop(self.stop.take());
        self.serving.take().unwrap().await.unwrap().unwrap();
        self.dir
    }

    /// The service, with a new token for this role.
    pub(crate) fn with_token(&self, role: Role) -> Target {
        let wanted = Wanted {
            name: "a test".to_owned(),
            role,
            lifetime: None,
        };
        let tokens = TokenFile::in_dir(&self.dir.path().join("data"));
        let (_, secret) = tokens.create(wanted, SystemTime::now()).unwrap();
        Target {
            token: Some(secret),
            ..Target::from(&self.server)
        }
    }

    pub(crate) fn tuner(&self) -> TunerServiceClient<Channel> {
        TunerServiceClient::new(self.channel.clone())
    }

    pub(crate) fn environments(&self) -> EnvironmentServiceClient<Channel> {
        EnvironmentServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn guests(&self) -> Vec<v1::Guest> {
        let request = v1::ListGuestsRequest {
            parent: HOST.to_owned(),
            ..v1::ListGuestsRequest::default()
        };
        self.tuner()
            .list_guests(request)
            .await
            .unwrap()
            .into_inner()
            .guests
    }

    /// The level in force of a head of a disk, `guest/target`.
    pub(crate) async fn level(&self, disk: &str, head: &str) -> String {
        let name = disk_name(disk);
        let guests = self.guests().await;
        let mut disks = guests.into_iter().flat_map(|guest| guest.disks);
        let disk = disks.find(|disk| disk.name == name).unwrap();
        disk.heads
            .into_iter()
            .find(|h| h.head == head)
            .unwrap()
            .current
    }

    pub(crate) async fn decisions(&self) -> Vec<v1::Decision> {
        let request = v1::ListDecisionsRequest {
            parent: HOST.to_owned(),
            page_size: 1000,
            page_token: String::new(),
        };
        self.tuner()
            .list_decisions(request)
            .await
            .unwrap()
            .into_inner()
            .decisions
    }
}

pub(crate) const HOST: &str = "hosts/local";

pub(crate) fn disk_name(disk: &str) -> String {
    let (guest, target) = disk.split_once('/').unwrap();
    format!("{HOST}/guests/{guest}/disks/{target}")
}

/// A request that sets levels: disk, head, level.
pub(crate) fn set(levels: &[(&str, &str, &str)]) -> v1::ApplyRequest {
    let choice = |(disk, head, level): &(&str, &str, &str)| v1::LevelChoice {
        name: disk_name(disk),
        head: (*head).to_owned(),
        level: (*level).to_owned(),
    };
    let choices = levels.iter().map(choice).collect();
    v1::ApplyRequest {
        host: HOST.to_owned(),
        action: Some(v1::apply_request::Action::Levels(v1::ExplicitLevels {
            choices,
        })),
        ..v1::ApplyRequest::default()
    }
}

/// The stable reason of a failure.
pub(crate) fn reason(status: &Status) -> String {
    status
        .get_error_details()
        .error_info()
        .unwrap()
        .reason
        .clone()
}

/// The fields that a failure complains of.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details
        .bad_request()
        .map(|bad| bad.field_violations.clone());
    violations
        .unwrap_or_default()
        .into_iter()
        .map(|v| v.field)
        .collect()
}

/// An environment of a kind, with what is given where nothing is said.
pub(crate) fn environment(kind: Kind) -> v1::Environment {
    v1::Environment {
        kind: Some(kind),
        ..v1::Environment::default()
    }
}

/// A simulated host with a built-in scenario.
pub(crate) fn preset(name: &str) -> Kind {
    let preset = v1::sim_host::Scenario::Preset(name.to_owned());
    Kind::SimHost(v1::SimHost {
        scenario: Some(preset),
    })
}

/// The cart and its pole.
pub(crate) fn cart_pole() -> Kind {
    Kind::CartPole(v1::CartPole {})
}

/// The host that the service manages.
pub(crate) fn managed_host() -> Kind {
    let host = HOST.to_owned();
    Kind::ManagedHost(v1::ManagedHost {
        host,
        ..v1::ManagedHost::default()
    })
}

/// A request that creates one of a kind, with an id.
pub(crate) fn create(kind: Kind, id: &str) -> v1::CreateEnvironmentRequest {
    v1::CreateEnvironmentRequest {
        environment: Some(environment(kind)),
        environment_id: id.to_owned(),
        ..v1::CreateEnvironmentRequest::default()
    }
}

/// A request that resets an environment.
pub(crate) fn reset(name: &str) -> v1::ResetRequest {
    v1::ResetRequest {
        name: name.to_owned(),
        ..v1::ResetRequest::default()
    }
}

/// A piece of metadata of a failure.
pub(crate) fn metadata(status: &Status, key: &str) -> Option<String> {
    let details = status.get_error_details();
    details.error_info()?.metadata.get(key).cloned()
}
