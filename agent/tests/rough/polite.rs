//! Clients that behave: each of their calls has to be answered well.

use std::fmt;
use std::time::{Duration, Instant};

use blkpilot_agent::client::Connection;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::daemon::Site;

/// Between two calls of a client.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a call may take: longer than anything but a hang.
const PATIENCE: Duration = Duration::from_secs(20);
/// Refusals that are kept to be shown.
const MOST_REFUSALS: usize = 8;

/// What became of calls.
#[derive(Debug, Default)]
pub(crate) struct Served {
    answered: u64,
    slowest: Duration,
    /// Those that were not answered well: none of them may be.
    pub(crate) refusals: Vec<String>,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (answered, slowest) = (self.answered, self.slowest.as_millis());
        write!(f, "{answered} calls answered, the slowest in {slowest} ms")
    }
}

impl Served {
    async fn note<T>(
        &mut self,
        what: &str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Option<T> {
        let begun = Instant::now();
        let late = |_| Err(Status::deadline_exceeded("no answer"));
        let answer = tokio::time::timeout(PATIENCE, call)
            .await
            .unwrap_or_else(late);
        self.slowest = self.slowest.max(begun.elapsed());
        match answer {
            Ok(answer) => {
                self.answered += 1;
                Some(answer)
            }
            Err(status) => {
                if self.refusals.len() < MOST_REFUSALS {
                    self.refusals.push(format!("{what}: {status}"));
                }
                None
            }
        }
    }

    fn add(mut self, other: Self) -> Self {
        self.answered += other.answered;
        self.slowest = self.slowest.max(other.slowest);
        self.refusals.extend(other.refusals);
        self
    }
}

/// Three clients, an orchestrator, a learner and a load balancer, for so long.
pub(crate) async fn call(site: &Site, length: Duration) -> Served {
    let until = Instant::now() + length;
    let connect = async || site.target(&site.token()).connect().await.unwrap();
    let (orchestrator, learner, balancer) = tokio::join!(
        orchestrate(connect().await, until),
        learn(connect().await, until),
        balance(connect().await, until),
    );
    orchestrator.add(learner).add(balancer)
}

async fn orchestrate(connection: Connection, until: Instant) -> Served {
    let mut served = Served::default();
    let mut tuner = TunerServiceClient::new(connection);
    let host = "hosts/local".to_owned();
    let mut pauses = tokio::time::interval(PAUSE);
    while Instant::now() < until {
        pauses.tick().await;
        let guests = v1::ListGuestsRequest {
            parent: host.clone(),
            ..v1::ListGuestsRequest::default()
        };
        served.note("ListGuests", tuner.list_guests(guests)).await;
        let propose = v1::ProposeRequest { host: host.clone() };
        let Some(proposed) = served.note("Propose", tuner.propose(propose)).await else {
            continue;
        };
        let name = proposed.into_inner().name;
        let get = v1::GetDecisionRequest { name };
        served.note("GetDecision", tuner.get_decision(get)).await;
    }
    served
}

async fn learn(connection: Connection, until: Instant) -> Served {
    let mut served = Served::default();
    let mut client = EnvironmentServiceClient::new(connection);
    let create = v1::CreateEnvironmentRequest {
        environment: Some(v1::Environment {
            kind: Some(v1::environment::Kind::CartPole(v1::CartPole {})),
            autoreset: v1::Autoreset::SameStep.into(),
            ..v1::Environment::default()
        }),
        ..v1::CreateEnvironmentRequest::default()
    };
    let made = client.create_environment(create).await.unwrap();
    let name = made.into_inner().name;
    let reset = v1::ResetRequest {
        name: name.clone(),
        ..v1::ResetRequest::default()
    };
    client.reset(reset).await.unwrap();
    let mut pauses = tokio::time::interval(PAUSE);
    while Instant::now() < until {
        pauses.tick().await;
        served.note("Step", client.step(push(&name))).await;
    }
    let delete = v1::DeleteEnvironmentRequest {
        name,
        ..v1::DeleteEnvironmentRequest::default()
    };
    served
        .note("DeleteEnvironment", client.delete_environment(delete))
        .await;
    served
}

fn push(name: &str) -> v1::StepRequest {
    let disks = v1::LevelTable {
        rows: 1,
        heads: 1,
        levels: vec![1],
    };
    v1::StepRequest {
        name: name.to_owned(),
        action: Some(v1::JointAction {
            disks: Some(disks),
            ..v1::JointAction::default()
        }),
        ..v1::StepRequest::default()
    }
}

async fn balance(connection: Connection, until: Instant) -> Served {
    let mut served = Served::default();
    let mut health = HealthClient::new(connection);
    let mut pauses = tokio::time::interval(PAUSE);
    while Instant::now() < until {
        pauses.tick().await;
        let asked = async {
            let answer = health.check(HealthCheckRequest::default()).await?;
            let is_serving = answer.into_inner().status == 1;
            is_serving
                .then_some(())
                .ok_or_else(|| Status::new(Code::Unavailable, "not serving"))
        };
        served.note("Check", asked).await;
    }
    served
}
