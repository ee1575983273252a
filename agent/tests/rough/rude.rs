//! Clients that do what no client should.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use blkpilot_agent::access::methods::METHODS;
use blkpilot_agent::client::Connection;
use blkpilot_env::Rng;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::rollout_request::Request as Asked;
use prost::Message as _;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;

use super::daemon::Site;
use super::raw::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Line, PING, PREFACE, RST_STREAM, SETTINGS, frame,
    greeting, headers, message,
};

/// Between two visits of a client.
const PAUSE: Duration = Duration::from_millis(5);
/// Connections on which nothing is ever said.
const SILENT: usize = 50;
/// Connections of each kind that is held open.
const HELD: usize = 4;
/// Calls that are begun on one of them.
const HALF_OPEN: u32 = 100;
/// What was not answered and is kept to be shown.
const MOST_SHOWN: usize = 8;
/// Carts whose rollouts nobody reads.
const CARTS: u32 = 256;
const ROLLOUT: &str = "/blkpilot.v1.EnvironmentService/Rollout";
const WATCH: &str = "/blkpilot.v1.TunerService/WatchDecisions";

/// What a client does to one connection.
#[derive(Debug, Clone, Copy)]
enum Rudeness {
    /// Rubbish from the first byte on.
    Babble,
    /// Rubbish after a good beginning.
    BabbleLater,
    /// Frames that are none, or not there, or not then.
    WrongFrames,
    /// Calls that are begun and taken back at once.
    Resets,
    /// Questions whose answers nobody reads.
    Pings,
    /// A connection that goes in the middle of a call.
    CutOff,
    /// A call whose message is random.
    RandomMessage,
    /// A call whose message says that it is longer than any may be.
    Oversized,
}

use Rudeness::{Babble, BabbleLater, CutOff, Oversized, Pings, RandomMessage, Resets, WrongFrames};

const VISITS: [Rudeness; 8] = [
    Babble,
    BabbleLater,
    WrongFrames,
    Resets,
    Pings,
    CutOff,
    RandomMessage,
    Oversized,
];

/// What became of visits.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    made: u64,
    /// Calls that were calls and were not answered, and rubbish after which the connection stayed.
    pub(crate) unanswered: Vec<String>,
}

impl fmt::Display for Visits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rough visits", self.made)
    }
}

/// Visits of all kinds, for so long, beside connections that are held.
pub(crate) async fn visit_for(site: &Site, length: Duration) -> Visits {
    let (at, token) = (site.address, site.token());
    let mut carts = Carts::create(site.target(&token).connect().await.unwrap()).await;
    let held = hold(at, token.expose(), &carts).await;
    let until = Instant::now() + length;
    let mut visitors = JoinSet::new();
    for (seed, rudeness) in VISITS.into_iter().enumerate() {
        let token = token.expose().to_owned();
        let rng = Rng::seed_from_u64(seed as u64);
        visitors.spawn(visitor(rudeness, at, token, rng, until));
    }
    let mut visits = Visits::default();
    while let Some(made) = visitors.join_next().await {
        let made = made.unwrap();
        visits.made += made.made;
        visits.unanswered.extend(made.unanswered);
    }
    drop(held);
    carts.delete().await;
    visits
}

async fn visitor(
    rudeness: Rudeness,
    at: SocketAddr,
    token: String,
    mut rng: Rng,
    until: Instant,
) -> Visits {
    let mut visits = Visits::default();
    let mut pauses = tokio::time::interval(PAUSE);
    while Instant::now() < until {
        pauses.tick().await;
        let what = visit(rudeness, at, &token, &mut rng).await;
        visits.made += 1;
        if let Some(what) = what.filter(|_| visits.unanswered.len() < MOST_SHOWN) {
            visits.unanswered.push(format!("{rudeness:?}: {what}"));
        }
    }
    visits
}

/// What was not as it must be, if anything.
async fn visit(rudeness: Rudeness, at: SocketAddr, token: &str, rng: &mut Rng) -> Option<String> {
    let mut line = Line::open(at).await;
    let path = METHODS[rng.random_range(0..METHODS.len())].path;
    match rudeness {
        Babble => line.say(&random(rng, 4096)).await,
        BabbleLater => line.say(&[greeting(), random(rng, 4096)].concat()).await,
        WrongFrames => line.say(&[greeting(), wrong_frames(rng)].concat()).await,
        Resets => line.say(&[greeting(), resets(path, token)].concat()).await,
        Pings => {
            let pings = frame(PING, 0, 0, &[7; 8]).repeat(500);
            line.say(&[greeting(), pings].concat()).await;
        }
        CutOff => {
            let mut call = greeting();
            call.extend(headers(1, path, token));
            call.extend(frame(DATA, 0, 1, &message(1000, &random(rng, 900))));
            call.truncate(rng.random_range(PREFACE.len()..=call.len()));
            line.say(&call).await;
            return None;
        }
        RandomMessage => {
            let bytes = random(rng, 512);
            let sent = frame(DATA, END_STREAM, 1, &message(bytes.len() as u32, &bytes));
            line.say(&[greeting(), headers(1, path, token), sent].concat())
                .await;
            // A watch goes on for as long as it is listened to.
            let is_watch = path.contains("Watch") || path.ends_with("Observe");
            let is_answered = is_watch || line.is_answered(1).await;
            return (!is_answered).then(|| format!("{path} with {bytes:?}"));
        }
        Oversized => {
            let path = "/blkpilot.v1.TunerService/Propose";
            let sent = frame(DATA, 0, 1, &message(u32::MAX, &[0; 1000]));
            line.say(&[greeting(), headers(1, path, token), sent].concat())
                .await;
            return (!line.is_answered(1).await).then(|| path.to_owned());
        }
    }
    (!line.hang_up().await).then(|| "the connection was not closed".to_owned())
}

fn random(rng: &mut Rng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(1..=most)];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn wrong_frames(rng: &mut Rng) -> Vec<u8> {
    let mut frames = vec![];
    for _ in 0..rng.random_range(1..20) {
        let (kind, flags) = (rng.random_range(0..12), rng.random());
        let stream = rng.random_range(0..8);
        frames.extend(frame(kind, flags, stream, &random(rng, 64)));
    }
    // What each of them breaks by itself, in whatever comes before it.
    let broken = [
        frame(DATA, 0, 0, b"on no stream"),
        frame(SETTINGS, 0, 0, b"of no length"),
        frame(HEADERS, END_HEADERS, 2, b"of a server"),
        frame(RST_STREAM, 0, 9, &[0; 4]),
    ];
    frames.extend(&broken[rng.random_range(0..broken.len())]);
    frames
}

fn resets(path: &str, token: &str) -> Vec<u8> {
    let streams = (0..HALF_OPEN).map(|i| 2 * i + 1);
    let both = |stream| {
        let begun = headers(stream, path, token);
        [begun, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    streams.flat_map(both).collect()
}

/// Connections on which something was begun that is never gone on with: watches and a rollout that nobody reads, calls
/// without a message, halves of a preface.
async fn hold(at: SocketAddr, token: &str, carts: &Carts) -> Vec<Line> {
    let mut held = vec![];
    let asked = message(13, b"\x0a\x0bhosts/local");
    let watch = [
        greeting(),
        headers(1, WATCH, token),
        frame(DATA, END_STREAM, 1, &asked),
    ]
    .concat();
    let begun = |i: u32| {
        let method = &METHODS[i as usize % METHODS.len()];
        headers(2 * i + 1, method.path, token)
    };
    let half_open: Vec<u8> = (0..HALF_OPEN).flat_map(begun).collect();
    let half_open = [greeting(), half_open].concat();
    let rollout = carts.rollout(token);
    for bytes in [&watch[..], &rollout, &half_open, &PREFACE[..10]] {
        for _ in 0..HELD {
            let mut line = Line::open(at).await;
            line.say(bytes).await;
            held.push(line);
        }
    }
    held
}

/// Many carts in one resource, for rollouts whose answers are long.
struct Carts {
    client: EnvironmentServiceClient<Connection>,
    name: String,
}

impl Carts {
    async fn create(connection: Connection) -> Self {
        let mut client = EnvironmentServiceClient::new(connection);
        let environment = v1::Environment {
            kind: Some(v1::environment::Kind::CartPole(v1::CartPole {})),
            count: CARTS,
            autoreset: v1::Autoreset::SameStep.into(),
            ..v1::Environment::default()
        };
        let create = v1::CreateEnvironmentRequest {
            environment: Some(environment),
            ..v1::CreateEnvironmentRequest::default()
        };
        let made = client.create_environment(create).await.unwrap();
        let name = made.into_inner().name;
        Self { client, name }
    }

    /// A rollout in bytes: more is asked than is answered before somebody reads.
    fn rollout(&self, token: &str) -> Vec<u8> {
        let open = v1::RolloutOpen {
            name: self.name.clone(),
            view: v1::RolloutView::Full.into(),
        };
        let actions = vec![0; 2 * CARTS as usize].into();
        let (open, reset) = (Asked::Open(open), Asked::Reset(v1::RolloutReset::default()));
        let steps = std::iter::repeat_n(Asked::Actions(actions), 60);
        let mut bytes = [greeting(), headers(1, ROLLOUT, token)].concat();
        for request in [open, reset].into_iter().chain(steps) {
            let request = Some(request);
            let encoded = v1::RolloutRequest { request }.encode_to_vec();
            let sent = message(encoded.len() as u32, &encoded);
            bytes.extend(frame(DATA, 0, 1, &sent));
        }
        bytes
    }

    async fn delete(&mut self) {
        let delete = v1::DeleteEnvironmentRequest {
            name: self.name.clone(),
            ..v1::DeleteEnvironmentRequest::default()
        };
        self.client.delete_environment(delete).await.unwrap();
    }
}

/// Connections on which nothing is said.
pub(crate) async fn say_nothing(site: &Site) -> Vec<Line> {
    let mut silent = vec![];
    for _ in 0..SILENT {
        silent.push(Line::open(site.address).await);
    }
    silent
}

/// # Panics
/// Where the service holds one of these open.
pub(crate) async fn see_them_closed(lines: Vec<Line>) {
    for mut line in lines {
        assert!(line.is_closed().await, "a silent connection is kept");
    }
}
