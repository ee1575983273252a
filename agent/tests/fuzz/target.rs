//! A service in this process, and calls to it in bytes.

use std::time::Duration;

use blkpilot_agent::config::Config;
use blkpilot_agent::server::Server;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use bytes::{Buf as _, BufMut as _};
use http::uri::PathAndQuery;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::words::{CART, CARTS, DRAWN, HOST};

const CONFIG: &str = "version = 1
[host]
kind = \"simulated\"
scenario = \"mixed\"
time_scale = 20
[policy]
baseline = \"random\"
[service]
listen = \"unix:s\"
data_dir = \"data\"
max_environments = 16
";
/// What a call may take: a deadline that the client sets, and after which it hangs.
const DEADLINE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a watch is listened to.
const LISTENING: Duration = Duration::from_millis(50);

/// A service that ends when this is dropped.
pub(crate) struct Target {
    channel: Channel,
    _stop: oneshot::Sender<()>,
    _dir: TempDir,
}

/// How a call was answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answer {
    pub(crate) code: String,
    pub(crate) reason: String,
    /// The first field that it complains of.
    pub(crate) field: String,
}

impl Target {
    pub(crate) async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let config = Config::parse(&dir.path().join("blkpilot.toml"), CONFIG).unwrap();
        let server = Server::start(config).await.unwrap();
        let address = server.address().to_string();
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            channel: blkpilot_agent::client::connect(&address).await.unwrap(),
            _stop: stop,
            _dir: dir,
        }
    }

    /// Deletes every environment, and makes those that requests name.
    pub(crate) async fn renew(&self) {
        let mut client = EnvironmentServiceClient::new(self.channel.clone());
        let listed = client.list_environments(v1::ListEnvironmentsRequest::default());
        for environment in listed.await.unwrap().into_inner().environments {
            let delete = v1::DeleteEnvironmentRequest {
                name: environment.name,
                allow_missing: true,
            };
            client.delete_environment(delete).await.unwrap();
        }
        let cart = || v1::environment::Kind::CartPole(v1::CartPole {});
        let sim = |scenario| {
            v1::environment::Kind::SimHost(v1::SimHost {
                scenario: Some(scenario),
            })
        };
        let preset = v1::sim_host::Scenario::Preset("mixed".to_owned());
        let drawn = v1::sim_host::Scenario::Generator(v1::sim_host::Generator::default());
        let kinds = [
            (CART, cart(), 1),
            (CARTS, cart(), 4),
            (HOST, sim(preset), 1),
            (DRAWN, sim(drawn), 2),
        ];
        for (id, kind, count) in kinds {
            let environment = v1::Environment {
                kind: Some(kind),
                count,
                autoreset: v1::Autoreset::SameStep.into(),
                ..v1::Environment::default()
            };
            let create = v1::CreateEnvironmentRequest {
                environment: Some(environment),
                environment_id: id.to_owned(),
                ..v1::CreateEnvironmentRequest::default()
            };
            client.create_environment(create).await.unwrap();
        }
    }

    /// Sends these messages to a method, and listens to the end, or, where it watches, to the first answer.
    ///
    /// # Errors
    /// What is wrong with the answer: there is none, or none that a client should get.
    pub(crate) async fn call(&self, path: &str, messages: &[Vec<u8>]) -> Result<Answer, String> {
        let answered = tokio::time::timeout(PATIENCE, self.ask(path, messages));
        let Ok(status) = answered.await else {
            return Err("it hangs".to_owned());
        };
        let is_undecodable = status.message().starts_with("failed to decode Protobuf");
        match status.code() {
            Code::Internal if is_undecodable => {}
            Code::Unknown | Code::Internal | Code::DataLoss | Code::Unimplemented => {
                return Err(format!("{status:?}"));
            }
            _ => {}
        }
        Ok(Answer::of(&status))
    }

    async fn ask(&self, path: &str, messages: &[Vec<u8>]) -> Status {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        if let Err(error) = client.ready().await {
            return Status::unknown(format!("the connection is gone: {error}"));
        }
        let mut request = Request::new(tokio_stream::iter(messages.to_vec()));
        request.set_timeout(DEADLINE);
        let path_and_query: PathAndQuery = path.parse().unwrap();
        let mut answers = match client.streaming(request, path_and_query, Raw).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status,
        };
        let is_watch = path.contains("/Watch") || path.ends_with("/Observe");
        loop {
            let next = answers.message();
            let next = match tokio::time::timeout(LISTENING, next).await {
                Err(_) if is_watch => return Status::ok(""),
                Err(_) => continue,
                Ok(next) => next,
            };
            match next {
                Ok(Some(())) if is_watch => return Status::ok(""),
                Ok(Some(())) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

impl Answer {
    fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let violations = details.bad_request().map(|bad| &bad.field_violations[..]);
        let field = violations.and_then(|all| all.first()).map(|v| &v.field);
        Self {
            code: format!("{:?}", status.code()),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            field: field.map(|field| bare(field)).unwrap_or_default(),
        }
    }
}

/// A field without places in lists and names of entries, of which there is no end.
fn bare(field: &str) -> String {
    let mut depth = 0_usize;
    let is_kept = |c: &char| {
        depth += usize::from(*c == '[');
        let is_outside = depth == 0;
        depth = depth.saturating_sub(usize::from(*c == ']'));
        is_outside && !c.is_ascii_digit()
    };
    field.chars().filter(is_kept).collect()
}

/// Bytes out, and whatever comes in.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        from.advance(from.remaining());
        Ok(Some(()))
    }
}
