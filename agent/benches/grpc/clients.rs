//! Many clients at once, a connection each, and a rollout: calls and steps per second.

use std::time::{Duration, Instant};

use blkpilot_agent::client::connect;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment::Kind;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::rollout_request::Request as Asked;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Calls of each client that count, and before them that do not.
pub(crate) const CALLS: usize = 1000;
/// Of so many calls that count, as many again divided by this come before.
const WARM_UP: usize = 10;
/// Carts in the rollout, and requests under way.
const CARTS: usize = 64;
const UNDER_WAY: usize = 16;
/// How long the rollout is measured, and before that.
const MEASURED: Duration = Duration::from_secs(3);
const BEFORE: Duration = Duration::from_millis(500);

/// What calls took that some clients made at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) calls_per_s: f64,
}

/// Empty calls of so many clients.
pub(crate) fn empty(runtime: &Runtime, server: &str, clients: usize) -> Taken {
    at_once(runtime, server, clients, empty_calls)
}

async fn empty_calls(channel: Channel) -> (Instant, Vec<f64>) {
    let health = HealthClient::new(channel);
    times(CALLS, || {
        let mut health = health.clone();
        async move {
            let answer = health.check(HealthCheckRequest::default()).await;
            answer.expect("the server is healthy");
        }
    })
    .await
}

/// Steps of so many clients, a cart each.
pub(crate) fn steps(runtime: &Runtime, server: &str, clients: usize) -> Taken {
    at_once(runtime, server, clients, step_calls)
}

async fn step_calls(channel: Channel) -> (Instant, Vec<f64>) {
    let mut client = EnvironmentServiceClient::new(channel);
    let name = create(&mut client, 1).await;
    let request = v1::ResetRequest {
        name: name.clone(),
        seed: Some(1),
        ..v1::ResetRequest::default()
    };
    let first = client.reset(request).await.expect("resets").into_inner();
    let step = v1::StepRequest {
        name: name.clone(),
        action: first.observation.and_then(|seen| seen.current),
        ..v1::StepRequest::default()
    };
    let taken = times(CALLS, || {
        let (mut client, step) = (client.clone(), step.clone());
        async move {
            client.step(step).await.expect("steps");
        }
    })
    .await;
    delete(&mut client, name).await;
    taken
}

/// Joint decisions that so many clients ask for, so often each.
pub(crate) fn proposals(runtime: &Runtime, server: &str, clients: usize, calls: usize) -> Taken {
    at_once(runtime, server, clients, move |channel| {
        proposal_calls(channel, calls)
    })
}

async fn proposal_calls(channel: Channel, calls: usize) -> (Instant, Vec<f64>) {
    let tuner = TunerServiceClient::new(channel);
    times(calls, || {
        let mut tuner = tuner.clone();
        async move {
            let host = "hosts/local".to_owned();
            let answer = tuner.propose(v1::ProposeRequest { host }).await;
            answer.expect("proposes");
        }
    })
    .await
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

/// Nanoseconds of each of so many calls, and when the first that counts began.
async fn times<F: Future<Output = ()>>(
    calls: usize,
    mut call: impl FnMut() -> F,
) -> (Instant, Vec<f64>) {
    for _ in 0..calls.div_ceil(WARM_UP) {
        call().await;
    }
    let begun = Instant::now();
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        call().await;
        times.push(start.elapsed().as_nanos() as f64);
    }
    (begun, times)
}

fn at_once<F>(runtime: &Runtime, server: &str, clients: usize, each: impl Fn(Channel) -> F) -> Taken
where
    F: Future<Output = (Instant, Vec<f64>)> + Send + 'static,
{
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for _ in 0..clients {
            let channel = connect(server).await.expect("the server listens");
            tasks.push(tokio::spawn(each(channel)));
        }
        let (mut all, mut begun) = (Vec::new(), None);
        for task in tasks {
            let (first, times) = task.await.expect("a client ends well");
            begun = Some(begun.map_or(first, |begun: Instant| begun.min(first)));
            all.extend(times);
        }
        let span = begun.expect("there are clients").elapsed();
        all.sort_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize] / 1e3;
        Taken {
            p50_us: at(0.5),
            p99_us: at(0.99),
            calls_per_s: all.len() as f64 / span.as_secs_f64(),
        }
    })
}
