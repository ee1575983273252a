//! Services that guard themselves, and calls to them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use blkpilot_agent::access::role::Role;
use blkpilot_agent::access::tls::TlsKeeper;
use blkpilot_agent::access::tokens::{Secret, Token, TokenFile, Wanted};
use blkpilot_agent::client::{ConnectError, Connection, Target};
use blkpilot_agent::config::Config;
use blkpilot_agent::server::Server;
use http::uri::PathAndQuery;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

/// A service on a simulated host, which ends when this is dropped.
pub(crate) struct Service {
    pub(crate) dir: TempDir,
    /// Where it listens, for a client.
    pub(crate) address: String,
    pub(crate) tls: Option<Arc<TlsKeeper>>,
    _stop: oneshot::Sender<()>,
}

/// A configuration that listens there, with these tables below `service`.
pub(crate) fn toml(listen: &str, tables: &str) -> String {
    format!(
        "version = 1
[host]
kind = \"simulated\"
scenario = \"mixed\"
time_scale = 20
[policy]
baseline = \"least_loaded\"
[service]
listen = \"{listen}\"
data_dir = \"data\"
{tables}
"
    )
}

impl Service {
    pub(crate) async fn start(listen: &str, tables: &str) -> Self {
        Self::start_in(TempDir::new().unwrap(), listen, tables).await
    }

    /// With what is in the directory: certificates, tokens.
    pub(crate) async fn start_in(dir: TempDir, listen: &str, tables: &str) -> Self {
        let file = dir.path().join("blkpilot.toml");
        let config = Config::parse(&file, &toml(listen, tables)).unwrap();
        let server = Server::start(config).await.unwrap();
        let (address, tls) = (server.address().to_string(), server.tls());
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            dir,
            address,
            tls,
            _stop: stop,
        }
    }

    pub(crate) fn target(&self) -> Target {
        Target::from(&self.address)
    }

    pub(crate) fn with_token(&self, token: &Secret) -> Target {
        Target {
            token: Some(token.clone()),
            ..self.target()
        }
    }

    pub(crate) fn tokens(&self) -> TokenFile {
        TokenFile::in_dir(&self.dir.path().join("data"))
    }

    pub(crate) fn token(&self, role: Role) -> (Token, Secret) {
        self.tokens()
            .create(wanted(role), SystemTime::now())
            .unwrap()
    }
}

pub(crate) fn wanted(role: Role) -> Wanted {
    Wanted {
        name: format!("a test's {role}"),
        role,
        lifetime: Some(Duration::from_secs(600)),
    }
}

/// One that was taken until an hour ago.
pub(crate) fn expired(tokens: &TokenFile) -> Secret {
    let then = SystemTime::now() - Duration::from_secs(4200);
    tokens.create(wanted(Role::Admin), then).unwrap().1
}

pub(crate) fn revoked(tokens: &TokenFile) -> Secret {
    let now = SystemTime::now();
    let (token, secret) = tokens.create(wanted(Role::Admin), now).unwrap();
    tokens.revoke(&token.id, now).unwrap();
    secret
}

/// As a client of this CA's service.
pub(crate) fn trusting(target: Target, ca: &Path) -> Target {
    let ca = Some(ca.to_owned());
    Target { ca, ..target }
}

/// With this certificate to show.
pub(crate) fn showing(target: Target, identity: (PathBuf, PathBuf)) -> Target {
    let identity = Some(identity);
    Target { identity, ..target }
}

/// What an empty request to a method is answered: the status, which is OK for a first message too.
pub(crate) async fn ask(connection: &Connection, path: &str) -> Status {
    let answered = async {
        let mut client = tonic::client::Grpc::new(connection.clone());
        client
            .ready()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let path = PathAndQuery::try_from(path).unwrap();
        let codec = ProstCodec::<(), ()>::default();
        let answer = client
            .server_streaming(Request::new(()), path, codec)
            .await?;
        answer.into_inner().message().await
    };
    let answered = tokio::time::timeout(Duration::from_secs(30), answered);
    match answered.await.unwrap() {
        Ok(_) => Status::ok(""),
        Err(status) => status,
    }
}

pub(crate) const CHECK: &str = "/grpc.health.v1.Health/Check";
pub(crate) const LIST_HOSTS: &str = "/blkpilot.v1.TunerService/ListHosts";
pub(crate) const ROLLBACK: &str = "/blkpilot.v1.TunerService/Rollback";

/// What an empty request of a new connection is answered.
pub(crate) async fn ask_anew(target: &Target, path: &str) -> Result<Status, ConnectError> {
    Ok(ask(&target.connect().await?, path).await)
}

/// The stable reason of a failure.
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|info| info.reason.clone())
        .unwrap_or_default()
}
