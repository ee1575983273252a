//! The daemon's configuration: TOML in, a checked [`Config`] or every problem out, before anything
//! is touched.

mod access;
pub mod keys;
pub mod mode;
mod policies;
pub mod reference;
mod toml_reader;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blkpilot_env::guard::GuardConfig;
use blkpilot_env::guard::exploration::Exploration;
use blkpilot_env::guard::harm::HarmLimits;
use blkpilot_env::guard::neighbour::NeighbourConfig;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::{Scenario, presets};
use blkpilot_host::channel::ChannelConfig;
use blkpilot_host::qcow2_cache::Qcow2CacheBounds;
use blkpilot_host::throttle::ThrottleBounds;
use blkpilot_host::{
    BufferedLimits, CpuSet, DedicatedCpuRule, DeviceKnob, DeviceRules, DiskBounds,
};
use blkpilot_log::Keep;
use blkpilot_models::scenario_file;
use thiserror::Error;

pub use self::access::AccessConfig;
use self::mode::{Knob, Mode};
pub use self::policies::{BASELINES, PolicyConfig, Promotion, Selection, Withdrawal};
pub use self::toml_reader::Problem;
use self::toml_reader::{Problems, Section};
use crate::decision::history::LogConfig;

/// Where the daemon listens, and clients look for it, unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/blkpilot/blkpilot.sock";

/// The version of the file format.
const VERSION: u64 = 1;
/// How libvirt is connected to unless it is said otherwise.
pub(crate) const DEFAULT_URI: &str = "qemu:///system";
/// Length of an interval unless it is said otherwise.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
/// Most environments unless it is said otherwise.
const DEFAULT_MAX_ENVIRONMENTS: u64 = 64;
/// Most training runs at once unless it is said otherwise.
const DEFAULT_PARALLEL: u64 = 1;

const MODES: [(&str, Mode); 6] = [
    ("off", Mode::Off),
    ("observe", Mode::Observe),
    ("advise", Mode::Advise),
    ("shadow", Mode::Shadow),
    ("canary", Mode::Canary),
    ("auto", Mode::Auto),
];

const KNOBS: [(&str, Knob); 5] = [
    ("channel", Knob::Channel),
    ("cache", Knob::Cache),
    ("polling", Knob::Polling),
    ("throttle", Knob::Throttle),
    ("qcow2-cache", Knob::Qcow2Cache),
];

const HOST_KINDS: [(&str, Backing); 2] = [
    ("simulated", Backing::Simulated),
    ("libvirt", Backing::Libvirt),
];

const ON_EXITS: [(&str, OnExit); 2] = [("keep", OnExit::Keep), ("revert", OnExit::Revert)];

const DEDICATED_RULES: [(&str, DedicatedCpuRule); 2] = [
    ("avoid", DedicatedCpuRule::Avoid),
    ("share", DedicatedCpuRule::Share),
];

const CHANNEL_KINDS: [(&str, ChannelKind); 3] = [
    ("core", ChannelKind::Core),
    ("thread", ChannelKind::Thread),
    ("node", ChannelKind::Node),
];

/// A configuration that can be served.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The host to look after.
    pub host: HostConfig,
    /// What decides in production, until another is promoted.
    pub policy: PolicyConfig,
    /// What becomes of one that was.
    pub promoted: Promotion,
    /// What becomes of it once the guard had to put back too much of what it did.
    pub on_harm: Withdrawal,
    /// What may replace it one day, for guests in mode shadow or canary.
    pub candidate: Option<PolicyConfig>,
    /// Where to listen and what to keep.
    pub service: ServiceConfig,
    /// How careful the guard is.
    pub guard: GuardConfig,
    /// When the guard limits heavy neighbours; `None` for never. Its floors are those of
    /// [`LibvirtConfig::disks`].
    pub neighbours: Option<NeighbourConfig>,
    /// How the decision log is kept.
    pub log: LogConfig,
    /// How policies are trained, where the service can.
    pub training: TrainingConfig,
    /// What decisions are paid for, until a call sets it otherwise.
    pub reward: RewardConfig,
}

/// The host to look after.
#[derive(Debug, Clone, PartialEq)]
pub struct HostConfig {
    /// Last segment of `hosts/*`.
    pub name: String,
    /// Mode of guests that have none of their own.
    pub mode: Mode,
    /// What stands behind it.
    pub kind: HostKind,
    /// What the configuration says of single guests, by name.
    pub guests: BTreeMap<String, GuestConfig>,
}

/// What stands behind a host.
#[derive(Debug, Clone, PartialEq)]
pub enum HostKind {
    /// Simulated in this process.
    Simulated {
        /// What is simulated.
        scenario: Box<Scenario>,
        /// Seed of everything random in it.
        seed: u64,
        /// Simulated seconds per second.
        time_scale: f64,
    },
    /// Live, through libvirt.
    Libvirt(LibvirtConfig),
}

/// A live host reached through libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibvirtConfig {
    /// Connection URI.
    pub uri: String,
    /// Length of one decision interval.
    pub interval: Duration,
    /// What happens to our changes when the daemon stops.
    pub on_exit: OnExit,
    /// Where the channels come from.
    pub channels: ChannelConfig,
    /// CPUs that no disk may be bound to.
    pub reserved_cpus: CpuSet,
    /// Whether a disk may be bound to CPUs that are dedicated to other guests.
    pub dedicated_cpus: DedicatedCpuRule,
    /// What may be changed on the host's block devices, by kernel name or stable id.
    pub devices: DeviceRules,
    /// When no disk goes over to buffered.
    pub buffered: BufferedLimits,
    /// What no guest's disks may be set beyond.
    pub disks: DiskBounds,
}

/// What happens to our changes when the daemon stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They stay, and are in the journal.
    Keep,
    /// Every knob goes back to what it was.
    Revert,
}

/// What the configuration says of one guest.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GuestConfig {
    /// What may happen to it; the host's mode if it says nothing.
    pub mode: Option<Mode>,
    /// Whether it has opted in; its own metadata decides if this says nothing.
    pub opt_in: Option<bool>,
    /// The knobs that may be turned; without `opt_in` only those that its metadata allows too.
    /// Its own metadata, or all, if this says nothing.
    pub knobs: Option<Vec<Knob>>,
    /// How much it is explored in mode canary or auto; its own metadata decides if this says nothing.
    pub exploration: Option<Exploration>,
    /// Objective of its disks for the p99, microseconds: where it is missed, neighbours may be limited.
    pub p99_objective_us: Option<f64>,
}

/// Where to listen and what to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Where to listen.
    pub listen: Listen,
    /// Where decisions, journal and lock are kept.
    pub data_dir: PathBuf,
    /// Most environments held at once.
    pub max_environments: usize,
    /// Who may call, how often, and what is recorded of it.
    pub access: AccessConfig,
}

/// How policies are trained, where the service can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingConfig {
    /// Most runs at once.
    pub parallel: usize,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            parallel: DEFAULT_PARALLEL as usize,
        }
    }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix(PathBuf),
    /// A loopback address, in the clear.
    Loopback(SocketAddr),
    /// Any address, through TLS.
    Tls(SocketAddr),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => write!(f, "http://{address}"),
            Self::Tls(address) => write!(f, "https://{address}"),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}: give the path of a configuration with --config", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What the parser says, with line and column.
        message: String,
    },
    /// The file says something that cannot be served.
    #[error("{}", lines(file, problems))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Everything that is wrong, in the order of the file's sections.
        problems: Vec<Problem>,
    },
}

fn lines(file: &Path, problems: &[Problem]) -> String {
    let line = |problem: &Problem| format!("{}: {problem}", file.display());
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl Config {
    /// Reads a configuration. Relative paths in it start at the file's directory.
    ///
    /// # Errors
    /// `Read`, `Syntax`, or `Invalid` with everything that is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(file, &Self::text_of(file)?)
    }

    /// The text of a configuration, for [`Config::parse`].
    ///
    /// # Errors
    /// `Read`.
    pub fn text_of(file: &Path) -> Result<String, ConfigError> {
        std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })
    }

    /// As [`Config::load`], of a text that was read from `file`.
    ///
    /// # Errors
    /// `Syntax`, `Invalid`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let table = text
            .parse()
            .map_err(|e: toml::de::Error| ConfigError::Syntax {
                file: file.to_owned(),
                message: e.to_string().trim_end().replace('\n', " "),
            })?;
        let problems = Problems::default();
        let base = file.parent().unwrap_or(Path::new(""));
        let config = read(Section::root(table, &problems), base);
        match (config, problems.take()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError::Invalid {
                file: file.to_owned(),
                problems,
            }),
        }
    }
}

fn read(mut root: Section, base: &Path) -> Option<Config> {
    root.required("version", "write version = 1", Section::integer);
    let guests = guests(&mut root);
    let host = root.required("host", "add [host]", Section::section);
    let mut policy = root.required("policy", "add [policy]", Section::section);
    let promoted = policy
        .as_mut()
        .map(|policy| policy.choice_or_default("promoted", &policies::PROMOTIONS));
    let on_harm = policy
        .as_mut()
        .map(|policy| policy.choice_or_default("on_harm", &policies::WITHDRAWALS));
    let candidate = root.section("candidate");
    let service = root.required("service", "add [service]", Section::section);
    let mut guard = root.section("guard");
    let neighbours = guard.as_mut().and_then(|guard| guard.section("neighbour"));
    let log = root.section("log");
    let reward = root.section("reward");
    let training = root.section("training");
    root.finish();
    // Each is read whatever the others are, so that all problems are found.
    let host = host.and_then(|section| self::host(section, guests, base));
    let policy = policy.and_then(|section| policies::policy(section, base, None));
    let taken = policy.as_ref().and_then(PolicyConfig::bandit);
    let candidate = candidate.and_then(|section| policies::policy(section, base, taken));
    let service = service.and_then(|section| self::service(section, base));
    let guard = guard.map_or_else(GuardConfig::default, self::guard);
    let neighbours = neighbours.map(|section| self::neighbours(section, host.as_ref()));
    let log = log.map_or_else(LogConfig::default, self::log);
    let reward = reward.map_or_else(RewardConfig::default, self::reward);
    let training = training.map_or_else(TrainingConfig::default, self::training);
    Some(Config {
        neighbours,
        host: host?,
        policy: policy?,
        promoted: promoted.unwrap_or_default(),
        on_harm: on_harm.unwrap_or_default(),
        candidate,
        service: service?,
        guard,
        log,
        reward,
        training,
    })
}

#[derive(Clone, Copy)]
enum Backing {
    Simulated,
    Libvirt,
}

fn host(
    mut section: Section,
    guests: BTreeMap<String, GuestConfig>,
    base: &Path,
) -> Option<HostConfig> {
    let name = section.text_or_default("name");
    if !is_resource_id(&name) {
        section.problem(
            "name",
            format!("= \"{name}\" must be 1 to 63 of a-z, 0-9 and -, starting with a letter"),
        );
    }
    let mode = section.choice("mode", &MODES);
    let kind = section.required("kind", "\"simulated\" or \"libvirt\"", |s, key| {
        s.choice(key, &HOST_KINDS)
    });
    let kind = match kind {
        Some(Backing::Simulated) => simulated(&mut section, base),
        Some(Backing::Libvirt) => libvirt(&mut section),
        // Which keys belong here is not known either.
        None => return None,
    };
    section.finish();
    Some(HostConfig {
        name,
        mode: mode.unwrap_or(Mode::Advise),
        kind: kind?,
        guests,
    })
}

/// What is wrong is noted; what stands in its place does not matter then.
fn guard(mut section: Section) -> GuardConfig {
    let mut config = GuardConfig {
        dwell: section.span_or_default("dwell"),
        changes_per_minute: section.count("changes_per_minute"),
        stall_windows: section.count("stall_windows"),
        ..GuardConfig::default()
    };
    let trial = &mut config.trial;
    trial.windows = section.count("trial_windows");
    trial.doubt_windows = section.count("doubt_windows");
    trial.objective_windows = section.count("objective_windows");
    trial.late_windows = section.count("late_windows");
    let backoff = &mut config.backoff;
    backoff.retry = section.span_or_default("retry_undone");
    backoff.longest_retry = section.span_or_default("longest_retry");
    if backoff.longest_retry < backoff.retry {
        let text = humantime::format_duration(backoff.retry);
        section.problem(
            "retry_undone",
            format!("= \"{text}\" must be at most longest_retry"),
        );
    }
    let breaker = &mut config.breaker;
    breaker.failures = section.count("breaker_failures");
    breaker.within = section.span_or_default("breaker_within");
    breaker.pause = section.span_or_default("breaker_pause");
    breaker.longest_pause = breaker.longest_pause.max(breaker.pause);
    config.harm = HarmLimits {
        changes: section.count("harm_limit"),
        within: section.span_or_default("harm_within"),
    };
    config.trial.tolerated_ratio = section.number_or_default("tolerated_ratio");
    config.trial.p99_objective_us = section.number("p99_objective_us");
    section.finish();
    config
}

/// What is wrong is noted; what stands in its place does not matter then. `beta` is how a learner gives credit, and
/// nothing that a service is asked for.
fn reward(mut section: Section) -> RewardConfig {
    let config = RewardConfig {
        beta: RewardConfig::default().beta,
        cpu: section.number_or_default("cpu"),
        page_cache: section.number_or_default("page_cache"),
        writeback: section.number_or_default("writeback"),
        change: section.number_or_default("change"),
        slo: section.number_or_default("slo"),
        slo_p99_us: section.number("slo_p99_us"),
    };
    section.finish();
    config
}

/// What is wrong is noted; what stands in its place does not matter then.
fn neighbours(mut section: Section, host: Option<&HostConfig>) -> NeighbourConfig {
    let mut config = NeighbourConfig {
        windows: section.count("windows"),
        relief_windows: section.count("relief_windows"),
        dominant_share: section.number_or_default("dominant_share"),
        step: section.number_or_default("step"),
        longest: section.span_or_default("longest"),
        pause: section.span_or_default("pause"),
        ..NeighbourConfig::default()
    };
    if let Some(HostKind::Libvirt(libvirt)) = host.map(|host| &host.kind) {
        config.least_iops = libvirt.disks.throttle.least_iops;
        config.least_bytes_per_s = libvirt.disks.throttle.least_bytes_per_s;
    }
    section.finish();
    config
}

fn disks(section: &mut Section) -> DiskBounds {
    let mut bounds = DiskBounds::default();
    if let Some(mut throttle) = section.section("throttle") {
        bounds.throttle = ThrottleBounds {
            least_iops: throttle.integer_or_default("least_iops"),
            least_bytes_per_s: throttle.integer_or_default("least_bytes_per_s"),
        };
        throttle.finish();
    }
    if let Some(mut caches) = section.section("qcow2_cache") {
        let most_mib = caches.integer_or_default("most_mib");
        bounds.qcow2_cache = Qcow2CacheBounds {
            most_bytes: most_mib.saturating_mul(1 << 20),
        };
        caches.finish();
    }
    bounds
}

/// Whether a text may be the last segment of a resource name that we make.
pub(crate) fn is_resource_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(allowed)
}

fn simulated(section: &mut Section, base: &Path) -> Option<HostKind> {
    let wanted = format!("a TOML file, or one of {}", presets::NAMES.join(", "));
    let scenario = section.required("scenario", &wanted, Section::text);
    let scenario = scenario.and_then(|name| self::scenario(section, &name, base));
    let seed = section.integer_or_default("seed");
    let time_scale = section.number_or_default("time_scale");
    Some(HostKind::Simulated {
        scenario: Box::new(scenario?),
        seed,
        time_scale,
    })
}

fn scenario(section: &Section, name: &str, base: &Path) -> Option<Scenario> {
    match scenario_file::load(name, base) {
        Ok(scenario) => Some(scenario),
        Err(error) => {
            for line in error.lines() {
                section.problem("scenario", format!("= \"{name}\": {line}"));
            }
            None
        }
    }
}

fn libvirt(section: &mut Section) -> Option<HostKind> {
    let uri = section.text_or_default("uri");
    if uri.is_empty() {
        section.problem(
            "uri",
            "= \"\" must be a libvirt URI such as \"qemu:///system\"",
        );
    }
    let interval = section.span_or_default("interval");
    let on_exit = section.required("on_exit", "\"keep\" or \"revert\"", |s, key| {
        s.choice(key, &ON_EXITS)
    });
    let reserved_cpus = section.text("reserved_cpus");
    let reserved_cpus = reserved_cpus.and_then(|text| cpus(section, "reserved_cpus", &text));
    let dedicated_cpus = section.choice_or_default("dedicated_cpus", &DEDICATED_RULES);
    let channels = channels(section);
    let devices = devices(section);
    let buffered = buffered(section);
    let disks = disks(section);
    Some(HostKind::Libvirt(LibvirtConfig {
        uri,
        interval,
        on_exit: on_exit?,
        channels,
        reserved_cpus: reserved_cpus.unwrap_or_default(),
        dedicated_cpus,
        devices,
        buffered,
        disks,
    }))
}

fn buffered(section: &mut Section) -> BufferedLimits {
    let mut limits = BufferedLimits::default();
    let Some(mut section) = section.section("buffered") else {
        return limits;
    };
    for (key, limit) in [
        (
            "memory_pressure_percent",
            &mut limits.memory_pressure_percent,
        ),
        (
            "available_memory_percent",
            &mut limits.available_memory_percent,
        ),
        ("group_memory_percent", &mut limits.group_memory_percent),
    ] {
        // The table's range says that it fits.
        *limit = u8::try_from(section.integer_or_default(key)).unwrap_or(u8::MAX);
    }
    section.finish();
    limits
}

/// What a discovered channel is.
#[derive(Clone, Copy)]
enum ChannelKind {
    Core,
    Thread,
    Node,
}

fn devices(section: &mut Section) -> DeviceRules {
    let settings = DeviceKnob::ALL.map(|knob| (knob.name(), knob));
    let mut rules = DeviceRules::new();
    for mut device in section.sections("device") {
        let wanted = "a kernel name such as \"nvme0n1\", or a stable id such as \"wwid:eui.…\" (`blkpilot device list`)";
        let name = device.required("match", wanted, Section::text);
        let knobs = device.required("knobs", "a list of settings", |s, key| {
            s.choices(key, &settings)
        });
        if let Some((name, knobs)) = name.zip(knobs) {
            if rules.contains_key(&name) {
                device.problem("match", format!("= \"{name}\" stands there twice"));
            }
            rules.insert(name, knobs.into_iter().collect());
        }
        device.finish();
    }
    rules
}

fn channels(section: &mut Section) -> ChannelConfig {
    let kind = section.choice("channel_per", &CHANNEL_KINDS);
    if kind.is_some() && section.has("channel") {
        section.problem(
            "channel_per",
            "stands beside host.channel: discover the channels or give them",
        );
    }
    let mut given = vec![];
    for mut channel in section.sections("channel") {
        let name = channel.required("name", "a name such as \"core-3\"", Section::text);
        let cpus = channel.required("cpus", "host CPUs such as \"2-3\"", Section::text);
        let cpus = cpus.and_then(|text| self::cpus(&channel, "cpus", &text));
        given.extend(name.zip(cpus));
        channel.finish();
    }
    match kind {
        _ if !given.is_empty() => ChannelConfig::Given(given),
        None | Some(ChannelKind::Core) => ChannelConfig::Cores,
        Some(ChannelKind::Thread) => ChannelConfig::Threads,
        Some(ChannelKind::Node) => ChannelConfig::Nodes,
    }
}

fn cpus(section: &Section, key: &str, text: &str) -> Option<CpuSet> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        section.problem(
            key,
            format!("= \"{text}\" must be host CPUs such as \"0-1,4\""),
        );
    }
    parsed
}

fn guests(root: &mut Section) -> BTreeMap<String, GuestConfig> {
    let mut guests = BTreeMap::new();
    for mut section in root.sections("guest") {
        let name = section.required("name", "the guest's libvirt name", Section::text);
        let guest = GuestConfig {
            mode: section.choice("mode", &MODES),
            opt_in: section.flag("opt_in"),
            knobs: section.choices("knobs", &KNOBS),
            exploration: section.section("exploration").and_then(exploration),
            p99_objective_us: section.number("p99_objective_us"),
        };
        if let Some(name) = name {
            if guests.contains_key(&name) {
                section.problem("name", format!("= \"{name}\" stands there twice"));
            }
            guests.insert(name, guest);
        }
        section.finish();
    }
    guests
}

fn exploration(mut section: Section) -> Option<Exploration> {
    let epsilon = section.required("epsilon", "a probability such as 0.05", Section::number);
    let changes = section.required(
        "changes_per_hour",
        "the most changes that exploring may make in an hour, such as 6",
        Section::integer,
    );
    section.finish();
    Some(Exploration {
        epsilon: epsilon?,
        // The table's range says that it fits.
        changes_per_hour: u32::try_from(changes?).unwrap_or(u32::MAX),
    })
}

/// What is wrong is noted; what stands in its place does not matter then.
fn log(mut section: Section) -> LogConfig {
    let segment_mib = section.integer_or_default("segment_mib");
    let max_mib = section.integer_or_default("max_mib");
    // The segment that is written, and a whole one before it.
    let least = 2 * segment_mib;
    if max_mib < least {
        let problem = format!("= {max_mib} must be at least {least}, twice segment_mib");
        section.problem("max_mib", problem);
    }
    let config = LogConfig {
        segment_bytes: segment_mib << 20,
        seal_after: section.span_or_default("seal_after"),
        keep: Keep {
            most_bytes: max_mib << 20,
            most_age: section.span("max_age"),
        },
    };
    section.finish();
    config
}

fn training(mut section: Section) -> TrainingConfig {
    let config = TrainingConfig {
        parallel: section.integer_or_default("parallel") as usize,
    };
    section.finish();
    config
}

fn service(mut section: Section, base: &Path) -> Option<ServiceConfig> {
    let listen = listen(&mut section, base);
    let data_dir = section.required(
        "data_dir",
        "a directory for decisions and journal",
        Section::text,
    );
    let max_environments = section.integer_or_default("max_environments");
    section.moved("max_log_mib", "log.max_mib");
    section.gone(
        "loopback_may_change",
        "whoever sends a token may change over loopback (blkpilot token create)",
    );
    let access = access::access(&mut section, base);
    section.finish();
    Some(ServiceConfig {
        listen: listen?,
        data_dir: base.join(data_dir?),
        max_environments: max_environments as usize,
        access,
    })
}

fn listen(section: &mut Section, base: &Path) -> Option<Listen> {
    let spoken = if section.has("tls") {
        Spoken::Tls
    } else {
        Spoken::Plain
    };
    let text = section.text_or_default("listen");
    match parse_listen(&text, base, spoken) {
        Ok(listen) => Some(listen),
        Err(problem) => {
            section.problem("listen", format!("= \"{text}\" {problem}"));
            None
        }
    }
}

/// What is spoken at an address: whether there is a `[service.tls]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Plain,
    Tls,
}

/// `sun_path` holds 108 bytes with the final 0.
const LONGEST_SOCKET_PATH: usize = 107;

fn parse_listen(text: &str, base: &Path, spoken: Spoken) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return parse_socket(path, base, spoken);
    }
    let (scheme, address) = text.split_once("://").unwrap_or(("", text));
    let address = address.parse::<SocketAddr>();
    let address =
        address.map_err(|_| "must be unix:PATH or an address such as 127.0.0.1:7077".to_owned())?;
    match (scheme, spoken) {
        ("" | "https", Spoken::Tls) => Ok(Listen::Tls(address)),
        ("http", Spoken::Tls) => Err("is in the clear: write https://, or remove [service.tls]".to_owned()),
        ("https", Spoken::Plain) => {
            Err("needs [service.tls] with certificate and key".to_owned())
        }
        ("" | "http", Spoken::Plain) if address.ip().is_loopback() => Ok(Listen::Loopback(address)),
        ("" | "http", Spoken::Plain) => Err(
            "is not a loopback address: without [service.tls] only unix:PATH or a loopback address is served"
                .to_owned(),
        ),
        _ => Err("must be unix:PATH, http://ADDRESS or https://ADDRESS".to_owned()),
    }
}

fn parse_socket(path: &str, base: &Path, spoken: Spoken) -> Result<Listen, String> {
    let path = base.join(path.strip_prefix("//").unwrap_or(path));
    let length = path.as_os_str().len();
    if length > LONGEST_SOCKET_PATH {
        return Err(format!(
            "is {length} bytes long as a path: a Unix socket's has at most {LONGEST_SOCKET_PATH}"
        ));
    }
    if spoken == Spoken::Tls {
        return Err(
            "is a Unix socket, which needs no TLS: name an address, or remove [service.tls]"
                .to_owned(),
        );
    }
    Ok(Listen::Unix(path))
}
