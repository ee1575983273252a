//! What a call costs: proposals and steps through gRPC on a Unix socket.
//!
//! Each figure is the median over many calls, one at a time, printed in nanoseconds and as a ratio
//! to an empty unary call (a health check) to the same server in the same run: ratios travel between
//! machines, nanoseconds do not. Beside a step through gRPC stands the same step in this process.
//! Then come many clients at once, a connection each, with empty calls, steps and joint decisions of the packaged
//! network for hosts of 1, 100 and 1000 disks in turn, the first proposal of a window, which is the one that is
//! decided (later ones are answered from what is shown), and a rollout.
//! With `--json FILE` the figures are also written there.

mod clients;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blkpilot_agent::client::connect;
use blkpilot_agent::client::remote::RemoteEnvironment;
use blkpilot_agent::config::Config;
use blkpilot_agent::owner::handle::{HostHandle, RewardCall, RewardChange};
use blkpilot_agent::server::Server;
use blkpilot_env::cartpole::CartPole;
use blkpilot_env::sim::{Scenario, SimHost, presets};
use blkpilot_env::{Environment, JointAction, ResetOptions};
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment::Kind;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use self::clients::{Block, Call, Client, Taken};

/// Calls per figure, and calls before them that are not counted.
const CALLS: usize = 2000;
const WARM_UP: usize = 200;
/// Disks of the large host.
const MANY: usize = 100;
/// Disks of the hosts whose joint decisions are proposed by the packaged network.
const HOSTS: [usize; 3] = [1, 100, 1000];
const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/policies/default");
/// Calls of a client in one round of those that take turns.
const CALLS_A_ROUND: usize = 100;
/// Decisions of single disks that clients are told together in one round, at most: joint ones of many disks are long.
const MOST_DISKS_A_ROUND: usize = 100_000;
/// Decisions that are made anew and timed.
const DECIDED: usize = 200;

fn main() {
    let json = std::env::args().skip_while(|arg| arg != "--json").nth(1);
    let dir = std::env::temp_dir().join(format!("blkpilot-bench-{}", std::process::id()));
    // As between two processes: the ends of a connection never share a thread.
    let servers = Runtime::new().expect("threads can be started");
    let runtime = Runtime::new().expect("threads can be started");
    let Serving {
        address: server, ..
    } = servers.block_on(serve(
        &dir.join("mixed"),
        "mixed",
        "baseline = \"least_loaded\"",
    ));
    let channel = runtime
        .block_on(connect(&server))
        .expect("the server listens");

    let mut health = HealthClient::new(channel.clone());
    let empty = median_ns(|| {
        let answer = runtime.block_on(health.check(HealthCheckRequest::default()));
        answer.expect("the server is healthy");
    });
    let mut report = Report::new(empty);
    proposals(&mut report, &runtime, &channel);
    steps(&mut report, &server);
    for disks in HOSTS {
        let serving = servers.block_on(serve_network(&dir.join(disks.to_string()), disks));
        at_once(&mut report, &runtime, &serving, disks);
    }
    let rate = clients::rollout(&runtime, &server);
    println!("{:<44} {rate:>9.0} steps/s", "rollout, 64 carts");
    report.headline("rollout_steps_per_s", rate);
    if let Some(file) = json {
        std::fs::write(&file, report.json()).expect("the report can be written");
    }
    // What is left there is of no use, and a temporary directory is swept.
    let _ = std::fs::remove_dir_all(&dir);
}

/// Where a service listens, and the host that it is for.
struct Serving {
    address: String,
    host: HostHandle,
}

/// A service of its own, with its socket in `dir`.
async fn serve(dir: &Path, scenario: &str, policy: &str) -> Serving {
    let text = format!(
        "
version = 1
[host]
kind = \"simulated\"
scenario = \"{scenario}\"
[policy]
{policy}
[service]
listen = \"unix:blkpilot.sock\"
data_dir = \"data\"
max_environments = 128
[service.limits]
calls_per_second = 1000000
"
    );
    let file: PathBuf = dir.join("blkpilot.toml");
    let config = Config::parse(&file, &text).expect("a valid configuration");
    let server = Server::start(config).await.expect("the server starts");
    let address = server.address().to_string();
    let host = server.host().clone();
    tokio::spawn(server.run(std::future::pending()));
    let mut view = host.view.clone();
    let observed = view.wait_for(|view| view.window.is_some()).await;
    observed.expect("the host is looked at");
    Serving { address, host }
}

fn proposals(report: &mut Report, runtime: &Runtime, channel: &Channel) {
    let mut tuner = TunerServiceClient::new(channel.clone());
    let mut propose = || {
        let host = "hosts/local".to_owned();
        runtime
            .block_on(tuner.propose(v1::ProposeRequest { host }))
            .expect("proposes");
    };
    propose();
    report.add("propose, 4 disks, 4 channels", median_ns(propose));
}

fn steps(report: &mut Report, server: &str) {
    let cart = Kind::CartPole(v1::CartPole {});
    step(
        report,
        server,
        "step, cartpole",
        cart,
        &mut CartPole::new(0),
    );
    let small = endless(presets::by_name("mixed").expect("a preset"));
    step(
        report,
        server,
        "step, 4 disks, 4 channels",
        sim(&small),
        &mut sim_host(small),
    );
    let large = endless(presets::identical_disks(MANY, 8));
    let name = format!("step, {MANY} disks, 8 channels");
    step(report, server, &name, sim(&large), &mut sim_host(large));
}

/// A host of so many disks, for which the packaged network decides.
async fn serve_network(dir: &Path, disks: usize) -> Serving {
    std::fs::create_dir_all(dir).expect("a temporary directory can be made");
    let scenario = toml::to_string(&endless(presets::identical_disks(disks, 8)));
    let file = dir.join("scenario.toml");
    std::fs::write(&file, scenario.expect("a scenario is a table")).expect("it can be written");
    let policy = format!("checkpoint = \"{POLICY}\"");
    serve(dir, &file.to_string_lossy(), &policy).await
}

/// Empty calls, steps of a cart and joint decisions for the host; of the first two, which are the same for every host, the
/// figures beside the smallest are reported.
fn at_once(report: &mut Report, runtime: &Runtime, serving: &Serving, disks: usize) {
    for clients in [1, 16, 64] {
        let proposals = (MOST_DISKS_A_ROUND / disks / clients).clamp(1, CALLS_A_ROUND);
        let calls = [
            (Call::Empty, CALLS_A_ROUND),
            (Call::Step, CALLS_A_ROUND),
            (Call::Propose, proposals),
        ];
        let [empty, step, propose] = clients::at_once(runtime, &serving.address, clients, calls);
        if disks == 1 {
            report.taken("empty", clients, empty, empty);
            report.taken("step", clients, step, empty);
        }
        report.taken(&format!("propose_{disks}"), clients, propose, empty);
    }
    let [empty, first, here] = runtime.block_on(decided_anew(serving));
    report.taken(&format!("propose_{disks}_first"), 1, first, empty);
    report.taken(&format!("propose_{disks}_in_process"), 1, here, empty);
}

/// Empty calls and proposals that have to be decided, through gRPC and without, in turn.
async fn decided_anew(serving: &Serving) -> [Taken; 3] {
    let host = &serving.host;
    let channel = connect(&serving.address).await.expect("the server listens");
    let mut client = Client::new(channel).await;
    let mut blocks = [vec![], vec![], vec![]];
    let mut proposed = BTreeSet::new();
    for turn in 0..DECIDED {
        blocks[0].push(client.block(Call::Empty, 1).await);
        forget_proposal(host, 2 * turn).await;
        blocks[1].push(client.block(Call::Propose, 1).await);
        proposed.insert(host.propose().await.expect("is shown").id);
        forget_proposal(host, 2 * turn + 1).await;
        let begun = Instant::now();
        let proposal = host.propose().await.expect("proposes");
        blocks[2].push(Block::of_one(begun));
        proposed.insert(proposal.id);
    }
    assert_eq!(proposed.len(), 2 * DECIDED, "each was decided anew");
    client.end().await;
    blocks.map(|blocks| clients::taken(&[blocks]))
}

/// What was proposed before is not shown any more where something else is paid for.
async fn forget_proposal(host: &HostHandle, turn: usize) {
    let change = RewardChange {
        cpu: Some(if turn.is_multiple_of(2) { 0.25 } else { 0.5 }),
        ..RewardChange::default()
    };
    let call = RewardCall {
        change,
        validate_only: false,
    };
    host.set_reward(call).await.expect("is set");
}

fn endless(mut scenario: Scenario) -> Scenario {
    scenario.steps = 1_000_000;
    scenario
}

fn sim(scenario: &Scenario) -> Kind {
    let text = toml::to_string(scenario).expect("a scenario is a table");
    Kind::SimHost(v1::SimHost {
        scenario: Some(v1::sim_host::Scenario::ScenarioToml(text)),
    })
}

fn sim_host(scenario: Scenario) -> SimHost {
    SimHost::fixed(scenario).expect("a valid scenario")
}

fn step(report: &mut Report, server: &str, name: &str, kind: Kind, local: &mut dyn Environment) {
    report.add(&format!("{name}, in process"), median_ns(stepper(local)));
    let environment = v1::Environment {
        kind: Some(kind),
        ..v1::Environment::default()
    };
    let mut remote = RemoteEnvironment::create(server, environment).expect("is created");
    report.add(name, median_ns(stepper(&mut remote)));
}

/// Steps that change nothing, and a reset where an episode ends.
fn stepper(env: &mut dyn Environment) -> impl FnMut() {
    let mut action: Option<JointAction> = None;
    move || {
        let now = action.take().unwrap_or_else(|| {
            let first = env.reset(Some(1), &ResetOptions::new()).expect("resets");
            first.current
        });
        let step = env.step(&now).expect("steps");
        action = (!step.is_last()).then_some(step.observation.current);
    }
}

fn median_ns(mut call: impl FnMut()) -> f64 {
    (0..WARM_UP).for_each(|_| call());
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_nanos() as f64
    };
    let mut times: Vec<f64> = (0..CALLS).map(time).collect();
    times.sort_by(f64::total_cmp);
    times[CALLS / 2]
}

struct Report {
    reference_ns: f64,
    lines: Vec<(String, f64)>,
    headlines: serde_json::Map<String, serde_json::Value>,
}

impl Report {
    fn new(reference_ns: f64) -> Self {
        println!(
            "{:<44} {reference_ns:>9.0} ns",
            "reference: empty call (health check)"
        );
        Self {
            reference_ns,
            lines: Vec::new(),
            headlines: serde_json::Map::new(),
        }
    }

    fn add(&mut self, name: &str, ns: f64) {
        println!("{name:<44} {ns:>9.0} ns {:>7.2} ×", ns / self.reference_ns);
        self.lines.push((name.to_owned(), ns));
    }

    /// What calls of clients at once took, beside empty ones; with one client the key needs no number.
    fn taken(&mut self, call: &str, clients: usize, taken: Taken, empty: Taken) {
        let Taken {
            p50_us,
            p99_us,
            calls_per_s,
        } = taken;
        let ratio = p50_us / empty.p50_us;
        let share = calls_per_s / empty.calls_per_s;
        let name = format!("{call}, {clients} clients");
        println!(
            "{name:<28} p50 {p50_us:>9.1} us {ratio:>6.2} ×, p99 {p99_us:>9.1} us, {calls_per_s:>8.0} calls/s {share:>5.2} ×"
        );
        let figures = [
            ("p50_us", p50_us),
            ("p99_us", p99_us),
            ("calls_per_s", calls_per_s),
            ("p50_ratio", ratio),
            ("calls_ratio", share),
        ];
        for (figure, value) in figures {
            if clients == 1 {
                self.headline(&format!("{call}_{figure}"), value);
            }
            self.headline(&format!("{call}_{figure}_{clients}"), value);
        }
    }

    fn headline(&mut self, key: &str, value: f64) {
        self.headlines.insert(key.to_owned(), value.into());
    }

    fn json(&self) -> String {
        let figures = self.lines.iter().map(|(name, ns)| {
            serde_json::json!({ "name": name, "ns": ns, "ratio": ns / self.reference_ns })
        });
        let figures: Vec<_> = figures.collect();
        let document = serde_json::json!({
            "bench": "grpc",
            "figures": figures,
            "headlines": { "grpc": self.headlines },
        });
        format!("{document:#}\n")
    }
}
