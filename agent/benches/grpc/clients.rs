//! Many clients at once, a connection each, and a rollout: calls and steps per second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blkpilot_agent::client::connect;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment::Kind;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::rollout_request::Request as Asked;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use tokio::runtime::Runtime;
use tokio::sync::{Barrier, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Rounds in which the calls take turns that are compared; one more, the first, does not count.
const ROUNDS: usize = 10;
/// Carts in the rollout, and requests under way.
const CARTS: usize = 64;
const UNDER_WAY: usize = 16;
/// How long the rollout is measured, and before that.
const MEASURED: Duration = Duration::from_secs(3);
const BEFORE: Duration = Duration::from_millis(500);

/// What a client calls.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    /// A health check.
    Empty,
    /// A step of a cart of its own.
    Step,
    /// A joint decision.
    Propose,
}

/// What calls took that some clients made at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) calls_per_s: f64,
}

/// Lets so many clients make the calls, all of them the same at one time and each so often a round. What is
/// compared goes over the same connections in turn.
pub(crate) fn at_once<const N: usize>(
    runtime: &Runtime,
    server: &str,
    clients: usize,
    calls: [(Call, usize); N],
) -> [Taken; N] {
    runtime.block_on(async {
        let together = Arc::new(Barrier::new(clients));
        let mut tasks = Vec::new();
        for _ in 0..clients {
            let channel = connect(server).await.expect("the server listens");
            let together = Arc::clone(&together);
            tasks.push(tokio::spawn(async move {
                let mut client = Client::new(channel).await;
                let blocks = client.take_turns(calls, &together).await;
                client.end().await;
                blocks
            }));
        }
        let mut all = [(); N].map(|()| Vec::new());
        for task in tasks {
            let blocks = task.await.expect("a client ends well");
            for (all, blocks) in all.iter_mut().zip(blocks) {
                all.push(blocks);
            }
        }
        all.map(|blocks| taken(&blocks))
    })
}

/// The calls of one kind that a client made in one round.
pub(crate) struct Block {
    begun: Instant,
    ended: Instant,
    times: Vec<f64>,
}

impl Block {
    /// A call that has just ended.
    pub(crate) fn of_one(begun: Instant) -> Self {
        let ended = Instant::now();
        let times = vec![(ended - begun).as_nanos() as f64];
        Self {
            begun,
            ended,
            times,
        }
    }
}

/// Of the blocks of each client, in the order of the rounds.
pub(crate) fn taken(clients: &[Vec<Block>]) -> Taken {
    let span = |round: usize| {
        let blocks = || clients.iter().map(|blocks| &blocks[round]);
        let begun = blocks().map(|block| block.begun).min();
        let ended = blocks().map(|block| block.ended).max();
        let (begun, ended) = begun.zip(ended).expect("there are clients");
        (ended - begun).as_secs_f64()
    };
    let rounds = clients.first().map_or(0, Vec::len);
    let span: f64 = (0..rounds).map(span).sum();
    let times = clients.iter().flatten().flat_map(|block| &block.times);
    let mut times: Vec<f64> = times.copied().collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] / 1e3;
    Taken {
        p50_us: at(0.5),
        p99_us: at(0.99),
        calls_per_s: times.len() as f64 / span,
    }
}

pub(crate) struct Client {
    health: HealthClient<Channel>,
    environments: EnvironmentServiceClient<Channel>,
    tuner: TunerServiceClient<Channel>,
    step: v1::StepRequest,
}

impl Client {
    pub(crate) async fn new(channel: Channel) -> Self {
        let mut environments = EnvironmentServiceClient::new(channel.clone());
        let name = create(&mut environments, 1).await;
        let request = v1::ResetRequest {
            name: name.clone(),
            seed: Some(1),
            ..v1::ResetRequest::default()
        };
        let first = environments.reset(request).await.expect("resets");
        let step = v1::StepRequest {
            name,
            action: first.into_inner().observation.and_then(|seen| seen.current),
            ..v1::StepRequest::default()
        };
        Self {
            health: HealthClient::new(channel.clone()),
            tuner: TunerServiceClient::new(channel),
            environments,
            step,
        }
    }

    pub(crate) async fn end(mut self) {
        delete(&mut self.environments, self.step.name).await;
    }

    async fn take_turns<const N: usize>(
        &mut self,
        calls: [(Call, usize); N],
        together: &Barrier,
    ) -> [Vec<Block>; N] {
        let mut blocks = [(); N].map(|()| Vec::new());
        for round in 0..=ROUNDS {
            for ((call, count), blocks) in calls.into_iter().zip(&mut blocks) {
                together.wait().await;
                let block = self.block(call, count).await;
                if round > 0 {
                    blocks.push(block);
                }
            }
        }
        blocks
    }

    pub(crate) async fn block(&mut self, call: Call, count: usize) -> Block {
        let begun = Instant::now();
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            self.call(call).await;
            times.push(start.elapsed().as_nanos() as f64);
        }
        Block {
            begun,
            ended: Instant::now(),
            times,
        }
    }

    async fn call(&mut self, call: Call) {
        match call {
            Call::Empty => {
                let answer = self.health.check(HealthCheckRequest::default()).await;
                answer.expect("the server is healthy");
            }
            Call::Step => {
                let answer = self.environments.step(self.step.clone()).await;
                answer.expect("steps");
            }
            Call::Propose => {
                let host = "hosts/local".to_owned();
                let answer = self.tuner.propose(v1::ProposeRequest { host }).await;
                answer.expect("proposes");
            }
        }
    }
}

/// Steps of carts per second over one rollout, with several requests under way.
pub(crate) fn rollout(runtime: &Runtime, server: &str) -> f64 {
    runtime.block_on(async {
        let channel = connect(server).await.expect("the server listens");
        let mut client = EnvironmentServiceClient::new(channel);
        let name = create(&mut client, CARTS as u32).await;
        let (requests, outgoing) = mpsc::channel(UNDER_WAY);
        let answers = client.rollout(ReceiverStream::new(outgoing)).await;
        let mut answers = answers.expect("is opened").into_inner();
        let open = v1::RolloutOpen {
            name: name.clone(),
            ..v1::RolloutOpen::default()
        };
        ask(&requests, Asked::Open(open)).await;
        ask(&requests, Asked::Reset(v1::RolloutReset::default())).await;
        for turn in 0..UNDER_WAY {
            ask(&requests, pushes(turn)).await;
        }
        for _ in 0..2 {
            answer(&mut answers).await;
        }
        play(&requests, &mut answers, BEFORE).await;
        let start = Instant::now();
        let played = play(&requests, &mut answers, MEASURED).await;
        let rate = (played * CARTS) as f64 / start.elapsed().as_secs_f64();
        drop((requests, answers));
        delete(&mut client, name).await;
        rate
    })
}

/// Steps for a while, each answer followed by another request; how many.
async fn play(
    requests: &mpsc::Sender<v1::RolloutRequest>,
    answers: &mut Streaming<v1::RolloutResponse>,
    span: Duration,
) -> usize {
    let (start, mut played) = (Instant::now(), 0);
    while start.elapsed() < span {
        answer(answers).await;
        ask(requests, pushes(played)).await;
        played += 1;
    }
    played
}

/// Each cart is pushed to and fro, a little out of step with the others.
fn pushes(turn: usize) -> Asked {
    let levels = (0..CARTS).map(|cart| (((turn + cart) / 2) % 2) as u16);
    let bytes: Vec<u8> = levels.flat_map(u16::to_le_bytes).collect();
    Asked::Actions(bytes.into())
}

async fn ask(requests: &mpsc::Sender<v1::RolloutRequest>, request: Asked) {
    let request = v1::RolloutRequest {
        request: Some(request),
    };
    requests.send(request).await.expect("the stream is open");
}

async fn answer(answers: &mut Streaming<v1::RolloutResponse>) -> v1::RolloutResponse {
    let answer = answers.message().await.expect("nothing is refused");
    answer.expect("the stream is open")
}

async fn create(client: &mut EnvironmentServiceClient<Channel>, count: u32) -> String {
    let environment = v1::Environment {
        kind: Some(Kind::CartPole(v1::CartPole {})),
        autoreset: v1::Autoreset::SameStep.into(),
        count,
        ..v1::Environment::default()
    };
    let request = v1::CreateEnvironmentRequest {
        environment: Some(environment),
        ..v1::CreateEnvironmentRequest::default()
    };
    let made = client.create_environment(request).await;
    made.expect("is created").into_inner().name
}

async fn delete(client: &mut EnvironmentServiceClient<Channel>, name: String) {
    let request = v1::DeleteEnvironmentRequest {
        name,
        allow_missing: true,
    };
    client
        .delete_environment(request)
        .await
        .expect("is deleted");
}
