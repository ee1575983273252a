//! Training at a service, against a real one in this process.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_agent::config::Config as ServiceConfig;
use blkpilot_agent::server::{ServeError, Server};
use blkpilot_lab::config::Overrides;
use blkpilot_lab::report::{Options, report};
use blkpilot_lab::reproduce::{Request, reproduce};
use blkpilot_lab::state::Changed;
use blkpilot_lab::sweep::plan::Plan;
use blkpilot_lab::train::{Event, Existing, Run, Summary, resume, train};
use blkpilot_lab::{Config, LabError};
use blkpilot_models::Checkpoint;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

type Serving = JoinHandle<Result<(), ServeError>>;

/// A service with a simulated host whose intervals last milliseconds; ends when this is dropped.
struct Service {
    runtime: Runtime,
    dir: TempDir,
    running: Option<(oneshot::Sender<()>, Serving)>,
}

impl Service {
    fn start() -> Self {
        let mut service = Self {
            runtime: Runtime::new().unwrap(),
            dir: TempDir::new().unwrap(),
            running: None,
        };
        service.run();
        service
    }

    fn run(&mut self) {
        let file = self.dir.path().join("blkpilot.toml");
        let text = format!(
            "version = 1\n[host]\nkind = \"simulated\"\nscenario = \"capped_device\"\ntime_scale = 1000\n\
             [policy]\nbaseline = \"least_loaded\"\n[service]\nlisten = \"{}\"\ndata_dir = \"{}\"\n",
            self.address(),
            self.dir.path().join("data").display()
        );
        let config = ServiceConfig::parse(&file, &text).unwrap();
        let server = self.runtime.block_on(Server::start(config)).unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = self.runtime.spawn(server.run(async {
            let _ = stopped.await;
        }));
        self.running = Some((stop, serving));
    }

    fn stop(&mut self) {
        let (stop, serving) = self.running.take().unwrap();
        drop(stop);
        self.runtime.block_on(serving).unwrap().unwrap();
    }

    fn address(&self) -> String {
        format!("unix:{}", self.dir.path().join("s.sock").display())
    }

    fn config(&self, environment: &str, training: &str) -> Config {
        let text = text(&format!("kind = \"remote\"\n{environment}"), training);
        let text = text.replace("ADDRESS", &self.address());
        Config::parse(Path::new("remote.toml"), &text).unwrap()
    }
}

const PRESET: &str = "address = \"ADDRESS\"\nscenario = \"mixed\"";
const HOST: &str = "address = \"ADDRESS\"\nhost = \"hosts/local\"\nepisode_steps = 5";

fn text(environment: &str, training: &str) -> String {
    format!(
        "version = 1
        [environment]
        {environment}
        [training]
        {training}
        env_steps = 48
        steps = 6
        epochs = 2
        minibatch = 32
        gamma = 0.8
        gae_lambda = 0.9
        learning_rate = 1e-3
        clip = 0.2
        checkpoint_every = 12
        [evaluation]
        episodes = 3
        "
    )
}

/// As [`text`], with DQN.
fn with_dqn(environment: &str, training: &str) -> String {
    let text = text(environment, training);
    let keys = [
        ("steps = 6\n", "algorithm = \"dqn\"\n"),
        ("epochs = 2", "train_frequency = 6\ngradient_steps = 2"),
        ("minibatch = 32", "minibatch = 8\nlearning_starts = 12"),
        ("gae_lambda = 0.9", "replay_capacity = 500\nn_steps = 3"),
        (
            "clip = 0.2",
            "tau = 0.1\nexploration_fraction = 0.5\nexploration_final = 0.1",
        ),
    ];
    keys.into_iter().fold(text, |text, (own, other)| {
        let replaced = text.replacen(&format!("        {own}"), &format!("        {other}"), 1);
        assert_ne!(replaced, text, "no {own}");
        replaced
    })
}

fn run_of<'a>(config: &'a Config, out: &'a Path) -> Run<'a> {
    Run {
        config,
        seed: 3,
        out,
        existing: Existing::Refuse,
    }
}

fn trained(config: &Config, out: &Path) -> Summary {
    train(&run_of(config, out), &AtomicBool::new(false), &mut |_| ()).unwrap()
}

fn policy(out: &Path) -> Checkpoint {
    Checkpoint::load(&out.join("policy")).unwrap()
}

#[test]
fn what_is_learnt_on_simulated_hosts_of_a_service_is_what_is_learnt_on_our_own() {
    let service = Service::start();
    let dir = TempDir::new().unwrap();
    let [remote, local] = ["remote", "local"].map(|name| dir.path().join(name));
    let there = trained(&service.config(PRESET, "envs = 2"), &remote);
    let own = text("kind = \"sim_host\"\nscenario = \"mixed\"", "envs = 2");
    let here = trained(&Config::parse(Path::new("own.toml"), &own).unwrap(), &local);
    assert_eq!(there.policy_sha256, here.policy_sha256);
    assert_eq!(there.comparison, here.comparison);
    assert_eq!(there.env_steps, 48);
    let figures = there.remote.unwrap();
    assert_eq!((figures.steps, figures.put_back), (48, None));
    assert!(here.remote.is_none());
}

#[test]
fn a_host_is_trained_on_compared_in_turn_and_put_back() {
    let service = Service::start();
    let out = TempDir::new().unwrap();
    let out = out.path().join("run");
    let summary = trained(&service.config(HOST, "envs = 1"), &out);
    let figures = summary.remote.unwrap();
    assert_eq!((figures.steps, figures.put_back), (48, Some(true)));
    // Episodes of five steps, the one under way included.
    assert_eq!(figures.episodes, 48 / 5 + 1);
    assert!(figures.changes > 0, "{figures:?}");
    let policies: Vec<&String> = summary.comparison.policies.keys().collect();
    assert_eq!(policies, ["keep_default", "trained"]);
    assert!(summary.comparison.resampled.starts_with("rounds"));
    assert!(summary.comparison.table().contains("mean over 3 rounds"));
    let text = std::fs::read_to_string(out.join("summary.json")).unwrap();
    assert!(text.contains("\"put_back\": true"), "{text}");
}

#[test]
fn dqn_learns_at_a_service_what_it_learns_on_our_own() {
    let service = Service::start();
    let dir = TempDir::new().unwrap();
    let [remote, local] = ["remote", "local"].map(|name| dir.path().join(name));
    let there = with_dqn(&format!("kind = \"remote\"\n{PRESET}"), "envs = 2");
    let there = there.replace("ADDRESS", &service.address());
    let there = trained(
        &Config::parse(Path::new("there.toml"), &there).unwrap(),
        &remote,
    );
    let own = with_dqn("kind = \"sim_host\"\nscenario = \"mixed\"", "envs = 2");
    let here = trained(&Config::parse(Path::new("own.toml"), &own).unwrap(), &local);
    assert!(here.updates > 0);
    assert_eq!(
        (there.policy_sha256, there.updates),
        (here.policy_sha256, here.updates)
    );
    assert_eq!(there.remote.unwrap().steps, 48);
}

/// Also amid a round, where a round may be thousands of steps.
#[test]
fn dqn_on_a_host_is_stopped_between_two_steps_and_goes_on() {
    let service = Service::start();
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("run");
    let text = with_dqn(&format!("kind = \"remote\"\n{HOST}"), "envs = 1");
    let text = text.replace("ADDRESS", &service.address());
    let config = Config::parse(Path::new("dqn.toml"), &text).unwrap();
    let stopped = AtomicBool::new(true);
    let summary = train(&run_of(&config, &out), &stopped, &mut |_| ()).unwrap();
    assert!(summary.interrupted && summary.env_steps == 0);
    assert_eq!(summary.remote.unwrap().put_back, Some(true));
    let summary = resume(&out, &AtomicBool::new(false), &mut |_| ()).unwrap();
    let figures = summary.remote.unwrap();
    assert_eq!((summary.env_steps, figures.put_back), (48, Some(true)));
    assert!(summary.updates > 0 && figures.changes > 0, "{figures:?}");
}

#[test]
fn a_run_on_a_host_is_not_made_again_swept_or_played_for_a_report() {
    let service = Service::start();
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("run");
    trained(&service.config(HOST, "envs = 1"), &out);
    let request = Request {
        run: &out,
        out: &dir.path().join("again"),
        existing: Existing::Refuse,
        changed: Changed::Refuse,
    };
    let error = reproduce(&request, &AtomicBool::new(false), &mut |_| ()).unwrap_err();
    assert!(matches!(error, LabError::NotTwice { .. }), "{error:?}");
    assert!(!request.out.exists());
    let oracle_episodes = 2;
    let page = report(&[out], &Options { oracle_episodes }, &mut |_| true).unwrap();
    assert!(page.contains("What is at a service is not played again"));
    let host = text(&format!("kind = \"remote\"\n{HOST}"), "envs = 1");
    std::fs::write(dir.path().join("host.toml"), host).unwrap();
    let sweep = dir.path().join("sweep.toml");
    std::fs::write(&sweep, "version = 1\nconfig = \"host.toml\"\nseeds = 2\n").unwrap();
    let error = Plan::of(&sweep, None).unwrap_err();
    assert!(
        error.to_string().contains("trains on a live host"),
        "{error}"
    );
}

/// The config's file names another service: that is no reason to refuse.
#[test]
fn a_run_whose_service_was_named_on_the_command_line_goes_on_there() {
    let service = Service::start();
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("host.toml");
    let environment = HOST.replace("ADDRESS", "unix:/nowhere/s.sock");
    let written = text(&format!("kind = \"remote\"\n{environment}"), "envs = 1");
    std::fs::write(&file, &written).unwrap();
    let overrides = Overrides {
        address: Some(service.address()),
        ..Overrides::default()
    };
    let config = Config::load_with(&file, &overrides).unwrap();
    let out = dir.path().join("run");
    let stopped = AtomicBool::new(true);
    train(&run_of(&config, &out), &stopped, &mut |_| ()).unwrap();
    let summary = resume(&out, &AtomicBool::new(false), &mut |_| ()).unwrap();
    assert_eq!(summary.env_steps, 48);
    // What the command line cannot say is compared as ever.
    std::fs::write(&file, written.replace("epochs = 2", "epochs = 3")).unwrap();
    let error = resume(&out, &AtomicBool::new(false), &mut |_| ()).unwrap_err();
    assert!(matches!(error, LabError::Changed { .. }), "{error:?}");
}

#[test]
fn a_run_without_evaluation_episodes_is_not_compared() {
    let service = Service::start();
    let out = TempDir::new().unwrap();
    let mut config = service.config(HOST, "envs = 1");
    config.evaluation.episodes = 0;
    let summary = trained(&config, &out.path().join("run"));
    assert!(!summary.interrupted && summary.comparison.policies.is_empty());
}

/// A step of a live host takes seconds: nobody waits for the end of a rollout.
#[test]
fn a_run_that_is_stopped_plays_no_rollout_to_its_end_and_puts_the_host_back() {
    let service = Service::start();
    let dir = TempDir::new().unwrap();
    let stopped = AtomicBool::new(true);
    let start = started(dir.path());
    let training = format!("envs = 1\nstart_from = \"{}\"", start.display());
    let (config, out) = (service.config(HOST, &training), dir.path().join("tuned"));
    let summary = train(&run_of(&config, &out), &stopped, &mut |_| ()).unwrap();
    assert!(summary.interrupted && summary.env_steps == 0);
    let figures = summary.remote.unwrap();
    assert_eq!((figures.steps, figures.put_back), (0, Some(true)));
    let (config, out) = (service.config(HOST, "envs = 1"), dir.path().join("new"));
    let summary = train(&run_of(&config, &out), &stopped, &mut |_| ()).unwrap();
    assert!(summary.interrupted && summary.env_steps == 0);
    // Both go on: the one without, the other with its warm-up.
    for (name, updates) in [("tuned", 8), ("new", 7)] {
        let out = dir.path().join(name);
        let summary = resume(&out, &AtomicBool::new(false), &mut |_| ()).unwrap();
        assert_eq!((summary.env_steps, summary.updates), (48, updates));
    }
}

/// A policy trained on our own simulated host; its directory.
fn started(dir: &Path) -> PathBuf {
    let own = text("kind = \"sim_host\"\nscenario = \"mixed\"", "envs = 2");
    let config = Config::parse(Path::new("own.toml"), &own).unwrap();
    let out = dir.join("start");
    trained(&config, &out);
    out.join("policy")
}

#[test]
fn a_policy_trained_in_simulation_is_fine_tuned_on_a_host() {
    let service = Service::start();
    let dir = TempDir::new().unwrap();
    let start = started(dir.path());
    let before = Checkpoint::load(&start).unwrap();
    let training = format!("envs = 1\nstart_from = \"{}\"", start.display());
    let out = dir.path().join("tuned");
    let summary = trained(&service.config(HOST, &training), &out);
    // No rollout is spent on a warm-up.
    assert_eq!((summary.env_steps, summary.updates), (48, 8));
    let after = policy(&out);
    let sha = &before.manifest.tensors_sha256;
    let kept = summary.start.unwrap();
    assert_eq!((&kept.policy_sha256, kept.env_steps), (sha, 48));
    assert_eq!(after.manifest.extra["start"]["policy_sha256"], **sha);
    // The copy is the policy, so the run can be made again from its own directory.
    assert_eq!(Checkpoint::load(&out.join("start")).unwrap(), before);
    assert_eq!(after.manifest.normalisers, before.manifest.normalisers);
    assert_ne!(after.tensors, before.tensors);
    let weights = |policy: &Checkpoint| -> Vec<f32> {
        let all = policy.tensors.iter();
        let own = all.filter(|(name, _)| !name.starts_with("optimiser"));
        own.flat_map(|(_, tensor)| tensor.data.clone()).collect()
    };
    let moved = weights(&after)
        .iter()
        .zip(weights(&before))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0_f32, f32::max);
    // Adam moves a weight by about the learning rate per step: these are the weights it began from.
    assert!(moved > 0.0 && moved < 0.1, "{moved}");
}

#[test]
fn fine_tuning_is_repeatable_and_can_be_gone_on_with() {
    let dir = TempDir::new().unwrap();
    let start = started(dir.path());
    let training = format!("envs = 2\nstart_from = \"{}\"", start.display());
    let own = text("kind = \"sim_host\"\nscenario = \"mixed\"", &training);
    let config = Config::parse(Path::new("own.toml"), &own).unwrap();
    let out = |name: &str| dir.path().join(name);
    let whole = trained(&config, &out("whole"));
    let (stop, cut) = (AtomicBool::new(false), out("cut"));
    let mut at_once = |event: Event<'_>| {
        stop.fetch_or(matches!(event, Event::Update { .. }), Ordering::Relaxed);
    };
    let summary = train(&run_of(&config, &cut), &stop, &mut at_once).unwrap();
    assert!(summary.interrupted && summary.updates == 1);
    // It does not matter any more what became of the policy that it began from.
    std::fs::remove_dir_all(&start).unwrap();
    let resumed = resume(&cut, &AtomicBool::new(false), &mut |_| ()).unwrap();
    assert_eq!(resumed.policy_sha256, whole.policy_sha256);
    assert_eq!(resumed.start, whole.start);
    assert_eq!(policy(&cut).manifest, policy(&out("whole")).manifest);
    // And the whole run can be made again from its directory, wherever that was moved to.
    std::fs::rename(out("whole"), out("moved")).unwrap();
    let request = Request {
        run: &out("moved"),
        out: &out("again"),
        existing: Existing::Refuse,
        changed: Changed::Refuse,
    };
    let again = reproduce(&request, &AtomicBool::new(false), &mut |_| ()).unwrap();
    assert!(again.equal, "{:?}", again.differences);
    let config = Config::load(&out("moved").join("config.toml")).unwrap();
    let start = config.training.start_from.unwrap();
    assert_eq!(
        start.canonicalize().unwrap(),
        out("moved").join("start").canonicalize().unwrap()
    );
}

#[test]
fn a_policy_that_does_not_fit_is_refused_with_the_difference_and_nothing_is_begun() {
    let service = Service::start();
    let dir = TempDir::new().unwrap();
    let start = started(dir.path());
    let cart = "address = \"ADDRESS\"\ncart_pole = true";
    let training = format!("envs = 1\nstart_from = \"{}\"", start.display());
    let out = dir.path().join("out");
    let config = service.config(cart, &training);
    let error = train(&run_of(&config, &out), &AtomicBool::new(false), &mut |_| ()).unwrap_err();
    let LabError::Start { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(source.to_string().contains("is missing"), "{source}");
    assert_eq!(error.exit_code(), 2);
    assert!(!out.exists());
}

#[test]
fn a_run_whose_service_fails_keeps_what_it_learnt_and_goes_on_with_a_new_episode() {
    let mut service = Service::start();
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("run");
    let config = service.config(HOST, "envs = 1");
    let mut updates = 0;
    let failed = train(
        &run_of(&config, &out),
        &AtomicBool::new(false),
        &mut |event| {
            if let Event::Update { .. } = event {
                updates += 1;
                if updates == 2 {
                    service.stop();
                }
            }
        },
    );
    let error = blkpilot_lab::cli::error_text(&failed.unwrap_err());
    // Which of the two depends on whether a call was under way.
    let ways = ["does not answer any more", "is being stopped"];
    assert!(ways.iter().any(|way| error.contains(way)), "{error}");
    // With the warm-up, three rollouts.
    assert_eq!(policy(&out).manifest.env_steps, 18);
    service.run();
    let mut notes = vec![];
    let summary = resume(&out, &AtomicBool::new(false), &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
    })
    .unwrap();
    assert!(notes[0].contains("a new episode begins"), "{notes:?}");
    assert_eq!((summary.env_steps, summary.updates), (48, 7));
    assert_eq!(summary.remote.unwrap().steps, 30);
}

#[test]
fn a_service_that_is_not_there_is_named() {
    let dir = TempDir::new().unwrap();
    let environment = HOST.replace("ADDRESS", "unix:/nowhere/s.sock");
    let text = text(&format!("kind = \"remote\"\n{environment}"), "envs = 1");
    let config = Config::parse(Path::new("x.toml"), &text).unwrap();
    let out = dir.path().join("run");
    let failed = train(&run_of(&config, &out), &AtomicBool::new(false), &mut |_| ());
    let error = blkpilot_lab::cli::error_text(&failed.unwrap_err());
    assert!(error.contains("unix:/nowhere/s.sock"), "{error}");
    assert!(!out.exists());
}
