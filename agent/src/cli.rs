//! The command line of `blkpilot`.

#![deny(
    clippy::print_stdout,
    reason = "`output::print` bears a reader that ends"
)]

mod advise;
mod commands;
mod config;
mod connection;
mod data_dir;
mod device;
mod dial;
mod disk;
mod doctor;
mod evaluate;
mod journal;
mod json;
mod log;
mod observe;
mod output;
mod pages;
mod policy;
mod promote;
mod rollback;
mod serve;
pub mod shell;
mod sweep;
mod tables;
mod token;
mod topology;
mod training;
mod trial;
mod unfreeze;
mod weights;

use std::io::{IsTerminal as _, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use blkpilot_env::sim::{Scenario, presets};
use blkpilot_models::scenario_file;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tonic::{Code, Status};
use tracing_subscriber::EnvFilter;

use crate::client::ConnectError;
use crate::config::ConfigError;
use crate::server::ServeError;
use crate::trial::Plan;
use crate::wire::status::Failure;

pub use evaluate::decisions::{LogArgs as EvaluateLogArgs, run as evaluate_log};
pub use serve::{ServeArgs, run as serve};

const EXIT_CODES: &str = "\
Exit status:
  0  done
  1  refused or failed: the message names what, and the way out
  2  the command line or the configuration is wrong
  3  the service, or the host behind it, cannot be reached now";

/// Serves a policy that retunes running KVM guests, and talks to such a service.
#[derive(Debug, Parser)]
#[command(name = "blkpilot", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    ///
    /// Looks after one host, simulated or live, as the configuration says, and answers gRPC on a
    /// Unix socket, on loopback, or through TLS on any address, until it gets SIGINT or SIGTERM.
    Serve(ServeArgs),
    /// Say what of this host and configuration keeps the service from working, and how to repair it
    ///
    /// Looks at the configuration, the policies, the data directory and socket, the clock, the kernel, libvirt
    /// and QEMU. Changes nothing, and needs no service.
    #[command(after_help = doctor::HELP)]
    Doctor(doctor::DoctorArgs),
    /// What the configuration of the service may say
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Show the state of each virtual disk, without a service
    Observe(ObserveArgs),
    /// Show CPUs, channels, block devices, and what each virtual disk stands on
    ///
    /// Works without a service and changes nothing; of guests only the XML is read, opted in or not.
    Topology(topology::TopologyArgs),
    /// List running guests with their disks, modes and levels in force
    Guests(ClientArgs),
    /// Ask the policy for a joint decision; nothing is changed
    Propose(ClientArgs),
    /// Say what could be changed, now and at a next boot, with reason, evidence and gain; nothing is
    ///
    /// Now: what the policy of a running service would change. At a next boot: changes of guests'
    /// definitions (cache, io, queues, IOThreads, their CPUs, huge pages) as diffs, and what needs more
    /// (a udev rule, SR-IOV, vhost-user-blk). Guests need not have opted in: only their XML and bulk
    /// statistics are read, and none is sent a command.
    #[command(after_help = advise::EXAMPLES)]
    Advise(advise::AdviseArgs),
    /// Apply a proposal, or levels given by name
    Apply(ApplyArgs),
    /// List recorded decisions, newest first
    Decisions(DecisionsArgs),
    /// Print decisions as they are recorded, until interrupted
    Watch(WatchArgs),
    /// The files of a decision log: list, show rows, export, verify
    ///
    /// Works on a directory, whether or not a service writes to it, and changes nothing in it.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Put a guest, or all of them, back to what it had without blkpilot
    ///
    /// With the service dead: `--offline` does it straight through libvirt, and `--script` prints a
    /// shell script that needs nothing but `virsh`. What somebody else has set since is left alone.
    Rollback(rollback::RollbackArgs),
    /// List what the journal holds: every knob that was changed and not put back, newest first
    ///
    /// Works whether or not the service runs.
    Journal(journal::JournalArgs),
    /// Let knobs be tuned again that are frozen because somebody else changed them
    ///
    /// The value in force stays, and is what a later rollback goes back to.
    Unfreeze(unfreeze::UnfreezeArgs),
    /// Show or set the weights of the reward: the dial between latency and what it costs
    #[command(after_help = weights::HELP)]
    Weights(weights::WeightsArgs),
    /// Settings of the host's block devices: list, set, put back, unfreeze
    ///
    /// Only what a `[[host.device]]` of the service's configuration names can be changed. The scheduler
    /// is set by `blkpilot apply --set DEVICE:scheduler=LEVEL`.
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// Limits and qcow2 caches of virtual disks: list, set, put back
    ///
    /// Only of guests that have opted in to the knob `throttle` or `qcow2-cache`, within what host.throttle
    /// and host.qcow2_cache of the service's configuration say. No policy turns them.
    #[command(subcommand)]
    Disk(disk::DiskCommand),
    /// Measure what tuning brings: default and tuned windows in turn
    ///
    /// Takes the host over as an environment for as long as it lasts: guests that have opted in and
    /// whose mode allows changes alternate between what they have without blkpilot and what the
    /// policy proposes each interval. Prints medians over the alternations, how they compare pair by
    /// pair, and whether that is beyond noise. Afterwards, and when interrupted, the guests are put
    /// back.
    Trial(TrialArgs),
    /// Record a host under each setting of its knobs, for `blkpilot-lab calibrate`
    ///
    /// Works without a service. Each disk of a guest that has opted in, with a mode that allows
    /// changes, goes through every combination of its levels while the others keep their defaults.
    /// Afterwards, and when interrupted, everything is put back; what a crash leaves behind is in the
    /// journal, and is put back by whatever opens the data directory next.
    Sweep(SweepArgs),
    /// Say what a policy would have brought, from logs of another one's decisions
    ///
    /// Prints a verdict (better, worse, cannot tell, and why) with the estimates of three estimators and
    /// what says whether to believe them. Nothing is changed.
    Evaluate(Box<evaluate::EvaluateArgs>),
    /// The policies of a running service: upload, list, promote, roll back, archive
    #[command(subcommand, after_help = policy::EXAMPLES)]
    Policy(Box<policy::PolicyCommand>),
    /// Make a policy the one that the service serves, if an evaluation of its recent decisions says so
    ///
    /// The gate wants a verdict of better (or not worse) with the confidence given. What was served before is
    /// kept, and everything is recorded in the data directory: promoted, refused, forced, taken back.
    #[command(after_help = promote::EXAMPLES)]
    Promote(Box<promote::PromoteArgs>),
    /// The training runs of a service: create, watch, pause, resume, cancel
    #[command(subcommand, after_help = training::EXAMPLES)]
    Training(Box<training::TrainingCommand>),
    /// Print what a shell completes this command line by
    #[command(after_help = shell::COMPLETIONS_HELP)]
    Completions(shell::CompletionsArgs),
    /// Write the manual pages of all commands
    Man(shell::ManArgs),
    /// The tokens of a service's clients: make, revoke, list
    ///
    /// Works on the data directory, whether or not the service runs, as its user or root.
    #[command(subcommand, after_help = token::HELP)]
    Token(token::TokenCommand),
}

#[derive(Debug, Args)]
struct ObserveArgs {
    #[command(flatten)]
    source: HostSource,
    /// Length of a window in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    interval: Duration,
    /// End after this many windows; without it, when interrupted
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Append each sample to this recording, for `blkpilot-lab calibrate`; it is made if need be.
    /// Ctrl-C loses nothing
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print one JSON object per window
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct HostSource {
    /// The host of this libvirt connection, such as qemu:///system. Nothing is changed; on guests
    /// that have opted in QEMU counts latencies while this runs
    #[arg(long, value_name = "URI")]
    libvirt: Option<String>,
    // What it helps with is made from the names of the presets.
    #[arg(long, value_name = "SCENARIO", value_parser = parse_scenario, help = simulated_help())]
    simulated: Option<Box<Scenario>>,
}

fn simulated_help() -> String {
    let known = presets::NAMES.join(", ");
    format!("A simulated host: the path of a TOML file, or one of {known}")
}

/// A preset, or a file from the working directory on. Each problem stands on a line of its own.
fn parse_scenario(name: &str) -> Result<Box<Scenario>, String> {
    let loaded = scenario_file::load(name, Path::new(""));
    loaded
        .map(Box::new)
        .map_err(|error| error.lines().join("\n"))
}

#[derive(Debug, Args)]
struct ClientArgs {
    #[command(flatten)]
    connection: connection::ConnectionArgs,
    /// Name of the host; not needed if the service has one
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ApplyArgs {
    #[command(flatten)]
    what: ApplyWhat,
    /// Check everything, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Pass the guard's rate and breaker; the reason is recorded with the decision and in the journal
    #[arg(long, value_name = "REASON")]
    force: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct ApplyWhat {
    /// A proposal, as `propose` printed it: decisions/UUID
    #[arg(value_name = "DECISION")]
    decision: Option<String>,
    /// A level to set: GUEST/DISK:HEAD=LEVEL, such as db/vda:channel=channel-2; repeatable
    #[arg(long = "set", value_name = "LEVEL")]
    levels: Vec<String>,
}

#[derive(Debug, Args)]
struct DecisionsArgs {
    /// Print at most this many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct WatchArgs {
    /// End after this many decisions
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct TrialArgs {
    /// Pairs of a default and a tuned half
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    alternations: u32,
    /// Intervals at the start of each half that are not measured: time for caches to fill
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    settle: u32,
    /// Intervals of each half that are measured
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    measure: u32,
    /// Write the report to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    client: ClientArgs,
}

impl TrialArgs {
    fn plan(&self) -> Plan {
        Plan {
            alternations: self.alternations,
            settle: self.settle,
            measure: self.measure,
        }
    }
}

#[derive(Debug, Args)]
struct SweepArgs {
    #[command(flatten)]
    source: HostSource,
    /// Append the samples to this recording; it is made if need be
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// Directory of the journal, which puts back what a crash leaves behind, with --libvirt: that of
    /// the service, which must not be running
    #[arg(long, value_name = "DIR", required_unless_present = "simulated")]
    data_dir: Option<PathBuf>,
    /// Length of an interval in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    interval: Duration,
    /// Times that all settings are gone through, each time in another order
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Intervals after each change for caches to fill
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    settle: u32,
    /// Intervals that follow under the same setting
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    measure: u32,
    /// Most settings; where there are more, a random choice that holds the defaults
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    most_settings: u32,
    /// Seed of the order
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl SweepArgs {
    fn plan(&self) -> crate::sweep::Plan {
        crate::sweep::Plan {
            rounds: self.rounds,
            settle: self.settle,
            measure: self.measure,
            most_settings: self.most_settings as usize,
            seed: self.seed,
        }
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    seconds
        .filter(|s| (0.01..=3600.0).contains(s))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "must be a number of seconds in [0.01, 3600]".to_owned())
}

/// What ends a command before it is done.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Refused or failed.
    #[error("{0}")]
    Failed(String),
    /// The command line or the configuration is wrong.
    #[error("{0}")]
    Usage(String),
    /// The service or the host cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// `doctor` has found something, and said what.
    #[error("something wants to be repaired, see above")]
    Unwell {
        /// The status to end with: 1 for warnings, 2 for failures.
        status: u8,
    },
    /// Whoever read what it prints has ended: nobody is left to be told.
    #[error("nobody reads standard output any more")]
    ReaderGone,
}

impl CliError {
    /// The status the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }

    /// The same as a number.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unavailable(_) => 3,
            Self::Unwell { status } => *status,
            // What a shell shows of a process that SIGPIPE has ended.
            Self::ReaderGone => 141,
        }
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let text = match status.message() {
            "" => status.code().to_string(),
            message => message.to_owned(),
        };
        match status.code() {
            Code::Unavailable => Self::Unavailable(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::NoAnswer { .. } => Self::Unavailable(error.to_string()),
            other => Self::Usage(other.to_string()),
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.message().to_owned())
    }
}

/// Lets the log go to standard error, as much of it as the environment variable `BLKPILOT_LOG` says.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("BLKPILOT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
}

/// Runs the command that this process was started with; what it prints goes to standard output, what
/// ends it before it is done to standard error. Returns the status to end with.
pub async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever no longer reads the output need not be told so, and what `doctor` found stands there.
            if !matches!(error, CliError::ReaderGone | CliError::Unwell { .. }) {
                eprintln!("blkpilot: {error}");
            }
            error.exit_code()
        }
    }
}

/// Why the guard is to be passed by, as a request says it.
fn force_reason(reason: Option<&str>) -> Result<String, CliError> {
    match reason {
        Some(reason) if reason.trim().is_empty() => Err(CliError::Usage(
            "--force \"\" must say why: the reason is recorded".to_owned(),
        )),
        reason => Ok(reason.unwrap_or_default().to_owned()),
    }
}

/// Runs a command; what it prints goes to standard output, the log to standard error.
///
/// # Errors
/// What ends it before it is done.
pub async fn run(cli: Cli) -> Result<(), CliError> {
    match cli.command {
        Command::Serve(args) => serve::run(&args, None).await,
        Command::Config(command) => config::run(&command),
        Command::Observe(args) => observe::run(args).await,
        Command::Topology(args) => topology::run(&args),
        Command::Guests(args) => commands::guests(&args).await,
        Command::Propose(args) => commands::propose(&args).await,
        Command::Advise(args) => advise::run(args).await,
        Command::Apply(args) => commands::apply(&args).await,
        Command::Decisions(args) => commands::decisions(&args).await,
        Command::Watch(args) => commands::watch(&args).await,
        Command::Log(command) => log::run(&command),
        Command::Rollback(args) => rollback::run(&args).await,
        Command::Journal(args) => journal::run(&args),
        Command::Unfreeze(args) => unfreeze::run(&args).await,
        Command::Weights(args) => weights::run(&args).await,
        Command::Device(command) => device::run(&command).await,
        Command::Disk(command) => disk::run(&command).await,
        Command::Trial(args) => trial::run(args).await,
        Command::Sweep(args) => sweep::run(args).await,
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Policy(command) => policy::run(&command).await,
        Command::Training(command) => training::run(&command).await,
        Command::Promote(args) => promote::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
        Command::Token(command) => token::run(&command),
    }
}
