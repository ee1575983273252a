//! What `blkpilot-lab` can be told to do.

mod report;
mod reproduce;
mod runs;
mod serve;
mod sweep;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_agent::cli::shell::{self, CompletionsArgs, ManArgs};
use blkpilot_agent::cli::{CliError, EvaluateLogArgs, ServeArgs, evaluate_log};
use blkpilot_models::oracle::Limits;
use blkpilot_models::scenario_file::ScenarioFileError;
use blkpilot_models::{Checkpoint, Selection};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::calibrate::{self, Holdout, calibrate};
use crate::compare::compare;
use crate::config::{Config, ConfigError, Overrides};
use crate::evaluate::NeuralFqe;
use crate::log::{LogRun, log};
use crate::offline::LearntFrom;
use crate::oracle::{Cases, OracleOptions, oracle};
use crate::progress::{self, Progress};
use crate::remote::RemoteFigures;
use crate::sanity::{self, Sanity};
use crate::state::Changed;
use crate::train::{Existing, Run, Summary, resume_where, train};
use crate::{LabError, json_text, write_file};
use report::ReportArgs;
use reproduce::ReproduceArgs;
use runs::{DatabaseArgs, Follower, RunsArgs, Watch};
use serve::ServiceArgs;
use sweep::SweepArgs;

/// Trains policies for KVM hosts in simulation, and compares them.
#[derive(Debug, Parser)]
#[command(name = "blkpilot-lab", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
First steps:
  blkpilot-lab train experiments/configs/quickstart.toml     train for about a minute
  tensorboard --logdir out                                   watch it
  blkpilot-lab compare experiments/configs/quickstart.toml out/quickstart/seed-1/policy

Exit codes: 0 done, 1 failed, 2 the config or the command line is wrong, 130 interrupted.";

const TRAIN_HELP: &str = "\
The directory then holds
  policy/                 the checkpoint, for `blkpilot serve` and `blkpilot-lab compare`
  summary.json            steps, seconds, and the comparison with policies that are not trained
  curve.svg               return while learning
  state.json              where it stands, for `blkpilot-lab resume`
  config.toml             the config, with its scenario beside it in scenario.toml
  events.out.tfevents.*   the same and the losses, for TensorBoard

Ctrl-C ends the training early; policy/ and summary.json are written all the same, and
`blkpilot-lab resume` goes on from there.

A config with environment.kind = \"remote\" trains at a running service, on a live host too. Guests
are put back at each episode's end and at the run's: docs/operations.md, Training on a live host.

--start-from fine-tunes a policy that was trained before, in simulation too. start/ holds a copy.

With training.algorithm = distil a planner that knows the phases of simulated hosts tells the policy
what each level would have cost; training.threads may play and plan.

With training.algorithm = bc, cql or iql nothing is played: the policy is learnt from the decision
log that data.log (or --log) names, of `blkpilot serve` or `blkpilot-lab log`. The summary then also
has what the log's policy earned, what the learner expects of its own, and what `blkpilot evaluate`
says of it. Steps are gradient steps.

A config trains on hosts that [environment.generator] draws, or on one, environment.scenario: a
preset, or a TOML file, whose path starts at the config's directory.

Training and evaluation never share a seed: training seeds have their highest bit clear, evaluation
seeds have it set, and evaluation seed i is the same in every run. A config plays those from its
evaluation.first_seed on; choose settings on other seeds than those that you report.";

const RESUME_HELP: &str = "\
Goes on from the last time the policy was saved: at each checkpoint_every of the config, and at
Ctrl-C. On one machine the policy is then, bit for bit, that of a run without an interruption. That
needs the same config and the same code, so a config, scenario file or build that is another one now
is refused with the difference. --force goes on all the same, with the config and scenario in the
run's directory; summary.json names all versions of the code. What is at a service cannot be gone on
with exactly: a new episode begins there, with the policy, optimiser, statistics and random numbers
that were saved. A run that has ended is only compared again.";

const COMPARE_HELP: &str = "\
Every policy plays the same evaluation seeds, one episode each; the trained one is greedy. Intervals
are 95 % bootstrap intervals over episodes; differences are paired by seed.";

const ORACLE_HELP: &str = "\
The oracle knows in which phase every disk will be in the coming interval, and takes the joint
setting with the greatest noise-free steady reward less the cost of changing to it. It is exact
where all settings, after exact symmetries, fit --exhaustive; else it is searched for, and the
report bounds how much better the optimum could be. The lagged oracle sees the phases one interval
late, as a policy does. Best static is the best setting to hold throughout.

Regret is (oracle − policy)/(oracle − random): 0 as good as the oracle, 1 as bad as random. A
decision of one disk is correct if changing it alone would gain at most --tolerance of the state's
range. A scenario in which best static has hardly any regret has nothing to teach. The terms are
defined in docs/oracle.md.

Examples:
  blkpilot-lab oracle env/scenarios/mixed_bursts.toml
  blkpilot-lab oracle env/scenarios/mixed_*.toml --episodes 32
  blkpilot-lab oracle poor_binding --policy out/quickstart/seed-1/policy --json
  blkpilot-lab oracle experiments/configs/default.toml --hosts 40 --episodes 4 --first-seed 10000";

const CALIBRATE_HELP: &str = "\
What can be read off the recording is: channels, devices, disks, read share, request size, queue depth
and the pages in the cache. What cannot is fitted: CPU per request of guest and IOThread, service times,
parallelism and ceiling of the devices, think time and requests outstanding, the costs of waking, being
preempted, floating and buffering. The report tells the error on settings of the knobs that the fit has
not seen, and beside it that of the mean of the other settings. A disk that keeps one queue depth shows
how long a request stays in the device, not how that splits into service, queueing and a ceiling: do not
take the scenario for a model of the device under other loads.

Record with
  blkpilot sweep --libvirt qemu:///system --data-dir /var/lib/blkpilot --record host.rec";

const LOG_HELP: &str = "\
The log is the one that `blkpilot serve` writes: look at it with `blkpilot log`. Its columns, with the
propensity of each choice, are listed in docs/decision_log.md. A policy that never draws has propensity
1 everywhere, from which no other policy can be evaluated: give --epsilon, or --selection sample.
Episodes are those of the evaluation seeds, one after another on one host, from 2024-01-01 on.

Examples:
  blkpilot-lab log mixed --policy random --episodes 20 --out out/random-log
  blkpilot-lab log experiments/configs/quickstart.toml --policy out/quickstart/seed-1/policy \\
      --selection sample --epsilon 0.05 --episodes 100 --out out/quickstart-log
  blkpilot log verify out/quickstart-log";

const EVALUATE_HELP: &str = "\
This is `blkpilot evaluate --log` with one estimator more, FQE neural: fitted Q evaluation with a network
of the policies' architecture. It takes minutes rather than seconds, no verdict looks at it, and
docs/evaluation.md says what its interval covers.

Examples:
  blkpilot-lab evaluate --log out/log --policy out/policy --selection sample
  blkpilot-lab evaluate --log out/log --policy out/new --against out/old --selection sample --html report.html";

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a policy as a config says, then compare it with those that are not trained
    #[command(after_help = TRAIN_HELP)]
    Train(TrainArgs),
    /// Go on with a training run that was interrupted, as if it had not been
    #[command(after_help = RESUME_HELP)]
    Resume(ResumeArgs),
    /// Train a config over seeds and parameters, several runs at a time, and rank what comes of it
    #[command(after_help = sweep::HELP)]
    Sweep(SweepArgs),
    /// Make one page of runs and sweeps: curves, intervals, what the policies do where
    #[command(after_help = report::HELP)]
    Report(ReportArgs),
    /// Train a run again from its own directory, and say whether the same comes of it
    #[command(after_help = reproduce::HELP)]
    Reproduce(ReproduceArgs),
    /// List training runs: what was run, how it stands, what came of it
    #[command(after_help = runs::HELP)]
    Runs(RunsArgs),
    /// Compare a trained policy with keep_default, random, round_robin and least_loaded
    #[command(after_help = COMPARE_HELP)]
    Compare(CompareArgs),
    /// Write a trained policy to a directory of its own, without what only its learner needs
    ///
    /// To serve, to package or to hand on: a smaller checkpoint that decides the same, and that no run can be resumed
    /// from.
    Export(ExportArgs),
    /// Judge policies by the oracle of a scenario: regret and assignment accuracy
    #[command(after_help = ORACLE_HELP)]
    Oracle(OracleArgs),
    /// Write the decision log of a policy on simulated hosts, as Parquet
    #[command(after_help = LOG_HELP)]
    Log(LogArgs),
    /// Say what a policy would have brought, from logs of another one's decisions
    ///
    /// Prints a verdict (better, worse, cannot tell, and why) with the estimates of four estimators and what says
    /// whether to believe them. Nothing is changed.
    #[command(after_help = EVALUATE_HELP)]
    Evaluate(Box<EvaluateLogArgs>),
    /// Fit a scenario to a recording of a host, and tell the error on settings held out
    #[command(after_help = CALIBRATE_HELP)]
    Calibrate(CalibrateArgs),
    /// Check that PPO and DQN solve CartPole: 100,000 and 50,000 steps on each of five seeds
    Sanity(SanityArgs),
    /// Run the service, as `blkpilot serve` does, and train for its clients
    #[command(after_help = serve::HELP)]
    Serve(ServeArgs),
    /// Print what a shell completes this command line by: `completions bash`, zsh, fish
    Completions(CompletionsArgs),
    /// Write the manual pages of all commands
    Man(ManArgs),
}

#[derive(Debug, Args)]
struct TrainArgs {
    /// The experiment, such as experiments/configs/quickstart.toml
    config: PathBuf,
    /// Decision log to learn from, instead of the config's data.log; only for algorithms bc, cql and iql
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// Directory to write to [default: out/<config>/seed-<seed>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of everything random [default: the config's]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Begin from this policy: its weights and normalisers [default: the config's training.start_from]
    #[arg(long, value_name = "DIR")]
    start_from: Option<PathBuf>,
    /// The service, where the environment is at one [default: the config's environment.address]
    #[arg(long, value_name = "SERVER")]
    server: Option<String>,
    /// Replace the run that stands in the directory
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    service: ServiceArgs,
    /// Print the summary as JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ResumeArgs {
    /// Directory of the run
    run: PathBuf,
    /// Go on although the config or the code has changed
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    service: ServiceArgs,
    /// Print the summary as JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// The experiment whose environment and evaluation episodes to use
    config: PathBuf,
    /// Directory of the policy: `policy` in the directory of a training run
    policy: PathBuf,
    /// Episodes per policy [default: the config's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    episodes: Option<u32>,
    /// The service, where the environment is at one [default: the config's environment.address]
    #[arg(long, value_name = "SERVER")]
    server: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Also write the JSON to a file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// Directory of the policy: `policy` in the directory of a training run
    policy: PathBuf,
    /// Directory to write, which must not be there yet
    out: PathBuf,
}

#[derive(Debug, Args)]
struct OracleArgs {
    /// Presets, TOML files of scenarios, or experiments' configs, with the reward weights of these
    #[arg(required = true, value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Hosts to draw from a config with a generator
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    hosts: u64,
    /// Also judge a trained policy: `policy` in the directory of a training run
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Episodes per policy and scenario
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    episodes: u64,
    /// Number of the first evaluation seed
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000_000_000))]
    first_seed: u64,
    /// Gain, as a share of the state's range, up to which a decision is correct
    #[arg(long, value_name = "SHARE", default_value_t = 0.02, value_parser = share)]
    tolerance: f64,
    /// Range, in reward per interval, below which a state is left out of the accuracy
    #[arg(long, value_name = "REWARD", default_value_t = 0.01, value_parser = share)]
    epsilon: f64,
    /// Settings of one phase vector up to which all are tried
    #[arg(long, value_name = "N", default_value_t = 60_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    exhaustive: u32,
    /// Values that a search may compute in one phase vector
    #[arg(long, value_name = "N", default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    search: u64,
    /// Scenarios studied at a time [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Also write the JSON to a file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct LogArgs {
    /// A preset, the TOML file of a scenario, or an experiment's config
    environment: String,
    /// keep_default, random, round_robin, least_loaded, or the directory of a trained policy
    #[arg(long, value_name = "POLICY")]
    policy: String,
    /// How a trained policy's scores become a choice
    #[arg(long, value_name = "HOW", default_value = "greedy", value_parser = ["greedy", "sample"])]
    selection: String,
    /// Probability with which each choice is drawn from all that is allowed instead
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    epsilon: f64,
    /// Episodes to play
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    episodes: u64,
    /// Number of the first evaluation seed
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000_000_000))]
    first_seed: u64,
    /// Directory of the log, in which there must be none yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A number in [0, 1].
fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| "must be a number in [0, 1]".to_owned())?;
    (0.0..=1.0)
        .contains(&value)
        .then_some(value)
        .ok_or_else(|| "must be in [0, 1]".to_owned())
}

#[derive(Debug, Args)]
struct CalibrateArgs {
    /// The recording, of `blkpilot sweep` or `blkpilot observe --record`
    recording: PathBuf,
    /// Write the scenario to this file, as TOML
    #[arg(long, value_name = "SCENARIO")]
    out: PathBuf,
    /// Draw predicted against measured
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Also write the report to a file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Settings to hold out: each once, none, or in N parts
    #[arg(long, value_name = "each|none|N", default_value = "each", value_parser = parse_holdout)]
    holdout: Holdout,
    /// Windows after each change of a setting that are left out: time for caches to fill
    #[arg(long, value_name = "N", default_value_t = 3)]
    settle: usize,
    /// Seed of the search
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print the report as JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn parse_holdout(text: &str) -> Result<Holdout, String> {
    match text {
        "each" => Ok(Holdout::Each),
        "none" => Ok(Holdout::None),
        number => match number.parse() {
            Ok(parts) if parts >= 2 => Ok(Holdout::Parts(parts)),
            _ => Err("must be `each`, `none` or a number of parts from 2 on".to_owned()),
        },
    }
}

#[derive(Debug, Args)]
struct SanityArgs {
    /// Seeds to train, from 1
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Directory to write to
    #[arg(long, value_name = "DIR", default_value = "out/sanity")]
    out: PathBuf,
    /// Replace the runs that stand in the directory
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    database: DatabaseArgs,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Does what was asked, and prints it.
    ///
    /// # Errors
    /// Whatever stands in the way.
    pub fn run(self) -> Result<ExitCode, LabError> {
        match self.command {
            Command::Train(args) => run_train(&args),
            Command::Resume(args) => run_resume(&args),
            Command::Sweep(args) => sweep::run(&args),
            Command::Report(args) => report::run(&args),
            Command::Reproduce(args) => reproduce::run(&args),
            Command::Runs(args) => runs::run(&args),
            Command::Compare(args) => run_compare(&args),
            Command::Export(args) => run_export(&args),
            Command::Oracle(args) => run_oracle(&args),
            Command::Log(args) => run_log(&args),
            Command::Evaluate(args) => run_evaluate(&args),
            Command::Calibrate(args) => run_calibrate(&args),
            Command::Sanity(args) => run_sanity(&args),
            Command::Serve(args) => serve::run(&args),
            Command::Completions(args) => done(shell::completions(&args, Self::command())),
            Command::Man(args) => done(shell::man(&args, Self::command())),
        }
    }
}

/// How a command ends that the service's binary has too.
fn done(result: Result<(), CliError>) -> Result<ExitCode, LabError> {
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Nobody is left to be told.
        Err(error @ CliError::ReaderGone) => Ok(error.exit_code()),
        Err(error) => Err(error.into()),
    }
}

fn run_train(args: &TrainArgs) -> Result<ExitCode, LabError> {
    let overrides = Overrides {
        address: args.server.clone(),
        log: args.log.clone(),
        start_from: args.start_from.clone(),
    };
    let config = Config::load_with(&args.config, &overrides)?;
    let seed = args.seed.unwrap_or(config.seed);
    let default_out = || {
        PathBuf::from("out")
            .join(&config.name)
            .join(format!("seed-{seed}"))
    };
    let out = args.out.clone().unwrap_or_else(default_out);
    let run = Run {
        config: &config,
        seed,
        out: &out,
        existing: existing(args.overwrite),
    };
    let (steps, follower) = (config.training.env_steps, args.service.follower());
    let stop = args.service.begin(&out)?;
    let summary = Watch::over_one(steps, &args.database, follower, |watch| {
        train(&run, &stop, watch)
    })?;
    Ok(show_summary(&summary, &out, args.json, follower))
}

fn run_resume(args: &ResumeArgs) -> Result<ExitCode, LabError> {
    let changed = match args.force {
        true => Changed::GoOn,
        false => Changed::Refuse,
    };
    let follower = args.service.follower();
    let stop = args.service.begin(&args.run)?;
    let summary = Watch::over_one(0, &args.database, follower, |watch| {
        resume_where(&args.run, changed, &stop, watch)
    })?;
    Ok(show_summary(&summary, &args.run, args.json, follower))
}

fn show_summary(summary: &Summary, out: &Path, as_json: bool, follower: Follower) -> ExitCode {
    match (follower, as_json) {
        // It was told already.
        (Follower::Service, _) => {}
        (Follower::Person, true) => print(&json_text(summary)),
        (Follower::Person, false) => print(&train_text(summary, out)),
    }
    let is_left = |remote: &RemoteFigures| remote.put_back == Some(false);
    if summary.remote.as_ref().is_some_and(is_left) {
        ExitCode::FAILURE
    } else if summary.interrupted {
        ExitCode::from(LabError::Interrupted.exit_code())
    } else {
        ExitCode::SUCCESS
    }
}

fn train_text(summary: &Summary, out: &Path) -> String {
    let Summary {
        env_steps,
        wall_s,
        steps_per_s,
        ..
    } = summary;
    let figures = format!("{env_steps} steps in {wall_s:.1} s ({steps_per_s:.0} steps/s)");
    let out = out.display();
    if summary.interrupted {
        let done = summary
            .remote
            .as_ref()
            .map_or_else(String::new, remote_text);
        return format!(
            "{done}interrupted after {figures}; the policy as it stood is in {out}/policy, and `blkpilot-lab resume {out}` goes on\n"
        );
    }
    let from = summary.learnt_from.as_ref();
    let from = from.map_or_else(String::new, LearntFrom::text);
    let comparison = if summary.comparison.policies.is_empty() {
        "not compared: evaluation.episodes is 0".to_owned()
    } else {
        summary.comparison.table()
    };
    let done = summary
        .remote
        .as_ref()
        .map_or_else(String::new, remote_text);
    format!("{comparison}\n{from}{done}{figures}; written to {out}\n")
}

/// What was done at a service, and what is in force there now.
fn remote_text(figures: &RemoteFigures) -> String {
    let RemoteFigures {
        played,
        steps,
        episodes,
        changes,
        not_carried_out,
        changed_back,
        put_back,
        ..
    } = figures;
    let state = match put_back {
        None => "",
        Some(true) => "; everything is put back",
        Some(false) => {
            "; NOT everything was found put back: `blkpilot journal` says what is changed, `blkpilot rollback --all` puts it back"
        }
    };
    format!(
        "{played}: {steps} steps in {episodes} episodes, {changes} levels changed, {not_carried_out} asked for and not \
         done, {changed_back} changed back by the guard or others{state}\n"
    )
}

fn run_compare(args: &CompareArgs) -> Result<ExitCode, LabError> {
    let overrides = Overrides {
        address: args.server.clone(),
        ..Overrides::default()
    };
    let mut config = Config::load_with(&args.config, &overrides)?;
    config.evaluation.episodes = args
        .episodes
        .map_or(config.evaluation.episodes, |n| n as usize);
    let checkpoint = Checkpoint::load(&args.policy)?;
    let mut progress = Progress::over(0);
    progress.show(&crate::train::Event::Comparing {
        episodes: crate::compare::episode_count(&config),
    });
    let comparison = compare(&config, &checkpoint, || {
        progress.show(&crate::train::Event::Compared);
        true
    })?;
    progress.end();
    if let Some(file) = &args.out {
        write_file(file, json_text(&comparison))?;
    }
    print(&if args.json {
        json_text(&comparison)
    } else {
        comparison.table() + "\n"
    });
    Ok(ExitCode::SUCCESS)
}

fn run_export(args: &ExportArgs) -> Result<ExitCode, LabError> {
    let mut policy = Checkpoint::load(&args.policy)?.to_serve();
    policy.save(&args.out)?;
    print(&format!("written to {}\n", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

fn run_oracle(args: &OracleArgs) -> Result<ExitCode, LabError> {
    let cases = Cases::find(&args.scenarios, args.hosts, args.first_seed)?;
    let checkpoint = args.policy.as_deref().map(Checkpoint::load).transpose()?;
    let options = OracleOptions {
        episodes: args.episodes,
        first_seed: args.first_seed,
        tolerance: args.tolerance,
        epsilon: args.epsilon,
        limits: Limits {
            exhaustive: args.exhaustive as usize,
            search: args.search,
            ..Limits::default()
        },
        threads: args.threads.map_or_else(all_cpus, usize::from),
    };
    let stop = stop_flag();
    let mut progress = Progress::over(0);
    let report = oracle(
        &cases,
        checkpoint.as_ref(),
        &options,
        &mut |number, stage| {
            progress.show_study(&cases.cases[number].scenario.name, stage);
            !stop.load(Ordering::Relaxed)
        },
    )?;
    progress.end();
    if let Some(file) = &args.out {
        write_file(file, json_text(&report))?;
    }
    print(&if args.json {
        json_text(&report)
    } else {
        report.text()
    });
    Ok(ExitCode::SUCCESS)
}

fn all_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn run_evaluate(args: &EvaluateLogArgs) -> Result<ExitCode, LabError> {
    let mut neural = NeuralFqe::default();
    done(evaluate_log(args, vec![&mut neural]))
}

fn run_log(args: &LogArgs) -> Result<ExitCode, LabError> {
    let run = LogRun {
        environment: &args.environment,
        policy: &args.policy,
        selection: match args.selection.as_str() {
            "sample" => Selection::Sample,
            _ => Selection::Greedy,
        },
        epsilon: args.epsilon,
        episodes: args.episodes,
        first_seed: args.first_seed,
        out: &args.out,
    };
    let bar = progress::episodes(args.episodes);
    let logged = log(&run, &stop_flag(), || bar.inc(1))?;
    bar.finish();
    print(&if args.json {
        json_text(&logged)
    } else {
        logged.text(&args.out)
    });
    Ok(if logged.interrupted {
        ExitCode::from(LabError::Interrupted.exit_code())
    } else {
        ExitCode::SUCCESS
    })
}

fn run_calibrate(args: &CalibrateArgs) -> Result<ExitCode, LabError> {
    let options = calibrate::Options {
        settle: args.settle,
        holdout: args.holdout,
        seed: args.seed,
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        ..calibrate::Options::default()
    };
    let bar = progress::fits();
    let calibration = calibrate(&args.recording, &options, &|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    write_file(&args.out, calibration.toml()?)?;
    if let Some(path) = &args.plot {
        calibrate::plot::write(path, &calibration.report).map_err(|problem| LabError::Plot {
            path: path.clone(),
            problem,
        })?;
    }
    if let Some(path) = &args.report {
        write_file(path, json_text(&calibration.report))?;
    }
    print(&if args.json {
        json_text(&calibration.report)
    } else {
        calibration.report.text()
    });
    Ok(ExitCode::SUCCESS)
}

fn run_sanity(args: &SanityArgs) -> Result<ExitCode, LabError> {
    let checks = sanity::checks()?;
    let mut watch = Watch::over(0, &args.database);
    let result = sanity::sanity(
        &checks,
        args.seeds,
        &args.out,
        existing(args.overwrite),
        &stop_flag(),
        &mut |_, event| watch.see(&event),
    );
    let result = watch.end(result)?;
    print(&if args.json {
        json_text(&result)
    } else {
        sanity_text(&result)
    });
    Ok(if result.passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn sanity_text(result: &Sanity) -> String {
    let mut text = String::new();
    for learner in &result.learners {
        let name = learner.algorithm;
        for run in &learner.runs {
            text += &format!(
                "{name}, seed {}: return {:.1} (random {:.1}) after {} steps, {:.1} s\n",
                run.seed, run.trained, run.random, run.env_steps, run.wall_s
            );
        }
        let verdict = if learner.passed { "passed" } else { "FAILED" };
        let (needed, all) = (learner.needed, learner.runs.len());
        let threshold = learner.threshold;
        text += &format!("{name} {verdict}: {needed} of {all} seeds must reach {threshold}\n");
    }
    text
}

fn existing(overwrite: bool) -> Existing {
    if overwrite {
        Existing::Overwrite
    } else {
        Existing::Refuse
    }
}

/// Set when somebody presses Ctrl-C or the process is told to end.
fn stop_flag() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Without a handler the default one ends the process, which loses no checkpoint.
    let _ = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed));
    stop
}

/// Prints to standard output; a reader that has gone away is no failure of ours.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// An error with its causes, for standard error.
#[must_use]
pub fn error_text(error: &LabError) -> String {
    let mut text = match error {
        // Each line of these names the file already.
        LabError::Config(ConfigError::Invalid { .. })
        | LabError::ScenarioFile(ScenarioFileError::Invalid { .. }) => error.to_string(),
        _ => format!("blkpilot-lab: {error}"),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text += &format!("\n  caused by: {source}");
        cause = source.source();
    }
    text
}
