//! Environment steps per CPU-second of PPO on CartPole-v1, with stable-baselines3 beside it at equal
//! hyper-parameters, and of PPO on simulated hosts.
//!
//! CPU time is that of the process, user and system, while it trains: without imports, and with the
//! environments on both sides. The two run in turn, round by round; figures are medians over the rounds. The
//! peer runs where `LEARN_PEER_PYTHON` names a Python with stable-baselines3, by the program `PPO_PEER_PROGRAM`;
//! `LEARN_PEER_LIBRARIES` is where its loader looks first. With `--json FILE` the figures are also written there.

use std::error::Error;
use std::process::{Command, ExitCode};

use blkpilot_env::cartpole::CartPole;
use blkpilot_env::sim::{Generator, SimHost};
use blkpilot_env::vector::AutoresetEnv;
use blkpilot_env::{Autoreset, Environment, Rng};
use blkpilot_learn::{Collector, Discount, Ppo, PpoConfig, Schedule};
use blkpilot_models::Architecture;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use rand::SeedableRng as _;
use serde_json::{Value, json};

const CARTPOLE_STEPS: u64 = 40_000;
const HOST_STEPS: u64 = 20_000;
const ROUNDS: usize = 5;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ppo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let json = std::env::args().skip_while(|arg| arg != "--json").nth(1);
    let (mut ours, mut peers, mut hosts) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS as u64 {
        ours.push(cartpole(round)?);
        peers.extend(peer(round)?);
        hosts.push(simulated_hosts(round)?);
    }
    let ours = median(&mut ours);
    println!("PPO on CartPole-v1, steps per CPU-second: {ours:.0}");
    let mut figures = json!({ "ours": ours });
    if !peers.is_empty() {
        let peer = median(&mut peers);
        println!("stable-baselines3: {peer:.0}, ratio {:.2}", ours / peer);
        figures = json!({ "ours": ours, "peer": peer, "ratio": ours / peer });
    }
    let hosts = median(&mut hosts);
    println!("PPO on simulated hosts, host-steps per CPU-second: {hosts:.0}");
    if let Some(file) = json {
        let report = json!({
            "name": "ppo",
            "rounds": ROUNDS,
            "ppo_cartpole_steps_per_cpu_s": figures,
            "ppo_host_steps_per_cpu_s": hosts,
        });
        std::fs::write(&file, format!("{report:#}\n"))?;
    }
    Ok(())
}

/// The hyper-parameters of rl-baselines3-zoo; networks of 64 × 64 tanh units, actor and critic apart.
fn cartpole(seed: u64) -> Outcome<f64> {
    let config = PpoConfig {
        steps: 32,
        epochs: 20,
        minibatch: 256,
        discount: Discount {
            gamma: 0.98,
            lambda: 0.8,
        },
        normalise_reward: false,
        learning_rate: Schedule::LinearToZero(1e-3),
        clip: Schedule::LinearToZero(0.2),
        value_clip: None,
        value_coefficient: 0.5,
        entropy_coefficient: Schedule::Constant(0.0),
        max_grad_norm: 0.5,
        target_kl: None,
    };
    let envs = (0..8).map(|env| CartPole::new(seed * 8 + env));
    steps_per_cpu_s(envs.collect(), config, seed, CARTPOLE_STEPS)
}

/// As experiments/configs/quickstart.toml.
fn simulated_hosts(seed: u64) -> Outcome<f64> {
    let config = PpoConfig {
        steps: 32,
        epochs: 4,
        minibatch: 512,
        discount: Discount {
            gamma: 0.8,
            lambda: 0.9,
        },
        normalise_reward: false,
        learning_rate: Schedule::LinearToZero(3e-3),
        clip: Schedule::Constant(0.2),
        value_clip: None,
        value_coefficient: 0.5,
        entropy_coefficient: Schedule::LinearToZero(0.005),
        max_grad_norm: 0.5,
        target_kl: None,
    };
    let generator = Generator {
        disks: (1, 6),
        channels: (2, 6),
        devices: (1, 2),
        steps: 32,
        ..Generator::default()
    };
    let host = |_| SimHost::generated(generator.clone());
    let envs = (0..16).map(host).collect::<Result<_, _>>()?;
    steps_per_cpu_s(envs, config, seed, HOST_STEPS)
}

fn steps_per_cpu_s<E: Environment>(
    envs: Vec<E>,
    config: PpoConfig,
    seed: u64,
    steps: u64,
) -> Outcome<f64> {
    let spec = envs.first().ok_or("no environment")?.spec().clone();
    let mut ppo = Ppo::new(&spec, Architecture::default(), config, seed)?;
    let start = cpu_s()?;
    let envs = envs.into_iter().zip(0..).map(|(env, index)| {
        let env = AutoresetEnv::new(env, Autoreset::SameStep);
        (env, seed * 1_000 + index)
    });
    let mut collector = Collector::new(envs.collect(), Rng::seed_from_u64(seed))?;
    let rollout = ppo.play(&mut collector)?;
    ppo.warm_up(&rollout);
    while ppo.env_steps() < steps {
        let progress = ppo.env_steps() as f64 / steps as f64;
        let rollout = ppo.play(&mut collector)?;
        ppo.update(&rollout, progress)?;
    }
    Ok(ppo.env_steps() as f64 / (cpu_s()? - start))
}

/// What the peer comes to; `None` where there is none.
fn peer(seed: u64) -> Outcome<Option<f64>> {
    let Some(python) = std::env::var_os("LEARN_PEER_PYTHON") else {
        return Ok(None);
    };
    let program = std::env::var_os("PPO_PEER_PROGRAM").ok_or("PPO_PEER_PROGRAM is not set")?;
    let mut command = Command::new(python);
    command.arg(program);
    command.args([CARTPOLE_STEPS.to_string(), seed.to_string()]);
    if let Some(libraries) = std::env::var_os("LEARN_PEER_LIBRARIES") {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let done = command.output()?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into());
    }
    let report: Value = serde_json::from_slice(&done.stdout)?;
    let of = |key: &str| {
        report[key]
            .as_f64()
            .ok_or(format!("the peer gave no {key}"))
    };
    Ok(Some(of("env_steps")? / of("cpu_s")?))
}

/// CPU time of this process so far, seconds.
fn cpu_s() -> Outcome<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(microseconds as f64 / 1e6)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
