//! What a call costs: proposals and steps through gRPC on a Unix socket.
//!
//! Each figure is the median over many calls, one at a time, printed in nanoseconds and as a ratio
//! to an empty unary call (a health check) to the same server in the same run: ratios travel between
//! machines, nanoseconds do not. Beside a step through gRPC stands the same step in this process.
//! Then come many clients at once, a connection each, with empty calls, steps and joint decisions of the packaged
//! network for hosts of 1, 100 and 1000 disks, and a rollout.
//! With `--json FILE` the figures are also written there.

mod clients;

use std::path::{Path, PathBuf};
use std::time::Instant;

use blkpilot_agent::client::connect;
use blkpilot_agent::config::Config;
use blkpilot_agent::remote::RemoteEnvironment;
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

use self::clients::Taken;

/// Calls per figure, and calls before them that are not counted.
const CALLS: usize = 2000;
const WARM_UP: usize = 200;
/// Disks of the large host.
const MANY: usize = 100;
/// Disks of the hosts whose joint decisions are proposed by the packaged network.
const HOSTS: [usize; 3] = [1, 100, 1000];
const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/policies/default");
/// Decisions of single disks that clients ask for together, at most: joint ones of many disks take long.
const MOST_DECIDED: usize = 300_000;

fn main() {
    let json = std::env::args().skip_while(|arg| arg != "--json").nth(1);
    let dir = std::env::temp_dir().join(format!("blkpilot-bench-{}", std::process::id()));
    let runtime = Runtime::new().expect("threads can be started");
    let server = runtime.block_on(serve(
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
    at_once(&mut report, &runtime, &server);
    for disks in HOSTS {
        proposals_at_once(&mut report, &runtime, &dir, disks);
    }
    if let Some(file) = json {
        std::fs::write(&file, report.json()).expect("the report can be written");
    }
    // What is left there is of no use, and a temporary directory is swept.
    let _ = std::fs::remove_dir_all(&dir);
}

/// A service of its own, with its socket in `dir`.
async fn serve(dir: &Path, scenario: &str, policy: &str) -> String {
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
    let mut view = server.host().view.clone();
    tokio::spawn(server.run(std::future::pending()));
    let observed = view.wait_for(|view| view.window.is_some()).await;
    observed.expect("the host is looked at");
    address
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

fn at_once(report: &mut Report, runtime: &Runtime, server: &str) {
    for clients in [1, 16, 64] {
        let empty = clients::empty(runtime, server, clients);
        report.taken("empty", clients, empty);
        let steps = clients::steps(runtime, server, clients);
        report.taken("step", clients, steps);
    }
    let rate = clients::rollout(runtime, server);
    println!("{:<44} {rate:>9.0} steps/s", "rollout, 64 carts");
    report.headline("rollout_steps_per_s", rate);
}

/// Joint decisions of the packaged network for a host of so many disks.
fn proposals_at_once(report: &mut Report, runtime: &Runtime, dir: &Path, disks: usize) {
    let dir = dir.join(disks.to_string());
    std::fs::create_dir_all(&dir).expect("a temporary directory can be made");
    let scenario = toml::to_string(&endless(presets::identical_disks(disks, 8)));
    let file = dir.join("scenario.toml");
    std::fs::write(&file, scenario.expect("a scenario is a table")).expect("it can be written");
    let policy = format!("checkpoint = \"{POLICY}\"");
    let server = runtime.block_on(serve(&dir, &file.to_string_lossy(), &policy));
    for clients in [1, 16, 64] {
        let calls = (MOST_DECIDED / disks / clients).clamp(5, clients::CALLS);
        let taken = clients::proposals(runtime, &server, clients, calls);
        report.taken(&format!("propose_{disks}"), clients, taken);
    }
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

    /// What calls of clients at once took; with one client the key needs no number.
    fn taken(&mut self, call: &str, clients: usize, taken: Taken) {
        let Taken {
            p50_us,
            p99_us,
            calls_per_s,
        } = taken;
        let name = format!("{call}, {clients} clients");
        println!(
            "{name:<44} p50 {p50_us:>8.1} us, p99 {p99_us:>8.1} us, {calls_per_s:>9.0} calls/s"
        );
        let figures = [
            ("p50_us", p50_us),
            ("p99_us", p99_us),
            ("calls_per_s", calls_per_s),
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
