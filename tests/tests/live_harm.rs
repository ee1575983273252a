//! What the guard makes of the worst on real guests: a policy that always chooses it, and a neighbour that
//! begins together with a change and makes it look bad.
//!
//! `BLKPILOT_HARM_WINDOWS` says for how many windows the policy may try, `BLKPILOT_NEIGHBOURS` how often a
//! neighbour begins; without, few.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkpilot_agent::admission::Choice as Wanted;
use blkpilot_agent::backend::live::LibvirtHost;
use blkpilot_agent::backend::modes::{Modes, Reach};
use blkpilot_agent::backend::{BackendKind, HostBackend};
use blkpilot_agent::config::mode::Mode;
use blkpilot_agent::config::{LibvirtConfig, OnExit};
use blkpilot_agent::decision::chain::{Chain, Loaded};
use blkpilot_agent::decision::history::{LogConfig, Recorder};
use blkpilot_agent::decision::{Decision, PolicyRef, Source};
use blkpilot_agent::environments::hosted::HostedEnvironment;
use blkpilot_agent::owner::handle::{
    ChangeCall, DeviceCall, DeviceRequest, HostHandle, Origin, Request, ShownWindow,
};
use blkpilot_agent::owner::{OwnerConfig, start};
use blkpilot_agent::wire::names::Row;
use blkpilot_env::clock::ManualClock;
use blkpilot_env::features::{CACHE_HEAD, POLLING_HEAD};
use blkpilot_env::guard::GuardConfig;
use blkpilot_env::guard::bound::{Harmful, harmed_windows, windows_per_change};
use blkpilot_env::observation::Validity;
use blkpilot_env::{EnvError, EnvSpec, Environment as _, Level, ResetOptions, Rng, TurnView};
use blkpilot_host::channel::ChannelConfig;
use blkpilot_host::{
    BufferedLimits, CpuSet, DedicatedCpuRule, DeviceKnob, DeviceRules, DiskBounds,
};
use blkpilot_models::baseline::KeepDefault;
use blkpilot_models::{Choice, Policy, PolicyError};
use blkpilot_tests::fixture::{CacheMode, DiskSpec, Fixture, GuestSpec, IoMode, OptIn};
use blkpilot_tests::live;
use tempfile::TempDir;

const INTERVAL: Duration = Duration::from_millis(500);
const FEW_WINDOWS: usize = 100;
const FEW_NEIGHBOURS: usize = 2;
/// Windows before anything is changed.
const CALM: usize = 8;
/// Longer than any wait on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(180);
/// The guard's times are this much shorter than the defaults, so that minutes show what takes hours.
const FASTER: u32 = 100;
/// Direct requests on the device of the first test wait 4/200 s, those that hit the page cache do not.
const IOPS: u32 = 200;
const OBJECTIVE_US: f64 = 10_000.0;
/// Requests that a neighbour keeps in flight on a device that completes 1,000 in a second.
const NEIGHBOUR_DEPTH: usize = 64;
const DIRECT: Level = 0;

/// Chooses direct I/O wherever it may, and otherwise keeps what there is.
#[derive(Debug)]
struct Worst;

impl Policy for Worst {
    fn name(&self) -> &str {
        "worst"
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let levels = (0..view.heads.len()).map(|head| {
            let wanted = if head == CACHE_HEAD { DIRECT } else { 0 };
            let mask = view.head_mask(head);
            let is_open = mask[usize::from(wanted)].is_allowed();
            match view.forced(head) {
                Some(level) => level,
                None if is_open => wanted,
                None => mask.iter().position(|cell| cell.is_allowed()).unwrap() as Level,
            }
        });
        Ok(Choice::certain(levels.collect()))
    }
}

/// The service's owner of a fixture's host, with a policy of ours.
struct Service {
    host: HostHandle,
    spec: EnvSpec,
    seen_us: i64,
    _dir: TempDir,
}

impl Service {
    fn start(fixture: &Fixture, guard: GuardConfig, policy: Box<dyn Policy>) -> Self {
        Self::with_devices(fixture, guard, policy, DeviceRules::new())
    }

    /// With settings of block devices that may be changed.
    fn with_devices(
        fixture: &Fixture,
        guard: GuardConfig,
        policy: Box<dyn Policy>,
        devices: DeviceRules,
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let libvirt = LibvirtConfig {
            uri: fixture.uri(),
            interval: INTERVAL,
            on_exit: OnExit::Keep,
            channels: ChannelConfig::Cores,
            reserved_cpus: CpuSet::default(),
            dedicated_cpus: DedicatedCpuRule::default(),
            devices,
            buffered: BufferedLimits::default(),
            disks: DiskBounds::default(),
        };
        let spec = blkpilot_host::live::spec(&libvirt.devices);
        let modes = Modes {
            default: Mode::Auto,
            guests: BTreeMap::new(),
            candidate: Reach::Nobody,
        };
        let connect = {
            let data = dir.path().to_owned();
            move |modes: &Modes| {
                let host = LibvirtHost::open(&libvirt, modes, &data)?;
                Ok(Box::new(host) as Box<dyn HostBackend>)
            }
        };
        let loaded = Loaded {
            policy,
            reference: PolicyRef::default(),
        };
        let config = OwnerConfig {
            name: "local".to_owned(),
            kind: BackendKind::Libvirt,
            spec: spec.clone(),
            interval: INTERVAL,
            modes,
            production: Chain::alone(loaded, INTERVAL),
            candidate: None,
            origin: Origin::Configuration,
            configured: None,
            proof: None,
            learners: vec![],
            clock: Box::new(ManualClock::default()),
            seed: 1,
            connect: Box::new(connect),
            recorder: Recorder::open(&dir.path().join("decisions"), &LogConfig::default()).unwrap(),
            guard,
            neighbours: None,
            reward: blkpilot_env::reward::RewardConfig::default(),
        };
        let (host, _) = start(config).unwrap();
        Self {
            host,
            spec,
            seen_us: 0,
            _dir: dir,
        }
    }

    /// The next window, with what the guard has put back after it.
    async fn window(&mut self) -> Arc<ShownWindow> {
        let mut view = self.host.view.clone();
        let wait = async {
            loop {
                let shown = view.borrow_and_update().window.clone();
                if let Some(window) = shown.filter(|window| window.at_us > self.seen_us) {
                    return window;
                }
                view.changed().await.unwrap();
            }
        };
        let window = tokio::time::timeout(PATIENCE, wait).await.unwrap();
        self.seen_us = window.at_us;
        window
    }

    /// The p99 of a disk in a window, microseconds; `None` where it is not known.
    fn p99_us(&self, window: &ShownWindow, disk: &str) -> Option<f64> {
        let obs = &window.observation;
        let row = obs.disk_ids.iter().position(|id| id == disk)?;
        let features = &self.spec.disk_features;
        let column = features
            .iter()
            .position(|f| f.name == "latency_us_p99")
            .unwrap();
        let is_known = matches!(
            obs.disks.validity[[row, column]],
            Validity::Valid | Validity::Estimated
        );
        is_known.then(|| f64::from(obs.disks.values[[row, column]]))
    }

    /// The level in force now.
    fn level(&self, disk: &str, head: usize) -> Option<Level> {
        let window = self.host.view.borrow().window.clone()?;
        let ids = &window.observation.disk_ids;
        let row = ids.iter().position(|id| id == disk)?;
        Some(window.observation.current.disks[[row, head]])
    }

    /// Decisions of the guard, oldest first.
    fn undone(&self) -> Vec<Arc<Decision>> {
        let page = self.host.history.page("local", None, usize::MAX).unwrap();
        let of_guard = page
            .decisions
            .into_iter()
            .filter(|d| d.source == Source::Guard);
        let mut of_guard: Vec<_> = of_guard.collect();
        of_guard.reverse();
        of_guard
    }
}

fn wanted(variable: &str, few: usize) -> usize {
    std::env::var(variable).map_or(few, |n| n.parse().unwrap())
}

fn guest(name: &str, knobs: &str, disk: DiskSpec) -> GuestSpec {
    GuestSpec {
        opt_in: Some(OptIn {
            mode: "auto".to_owned(),
            knobs: knobs.to_owned(),
        }),
        ..GuestSpec::new(name).with_disk(disk)
    }
}

/// The defaults, but quicker.
fn hasty() -> GuardConfig {
    let default = GuardConfig::default();
    let mut config = default;
    config.dwell = default.dwell / FASTER;
    config.breaker.within = default.breaker.within / FASTER;
    config.breaker.pause = default.breaker.pause / FASTER;
    config.breaker.longest_pause = default.breaker.longest_pause / FASTER;
    config.backoff.retry = default.backoff.retry / FASTER;
    config.backoff.longest_retry = default.backoff.longest_retry / FASTER;
    config.trial.p99_objective_us = Some(OBJECTIVE_US);
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_always_chooses_the_worst_keeps_no_guest_down_for_longer_than_the_bound() {
    let disk = DiskSpec {
        cache: CacheMode::Writeback,
        io: IoMode::Threads,
        ..DiskSpec::direct("rw=randread,bs=4k,iodepth=4,size=16m").capped(IOPS)
    };
    let guests = vec![guest("harmed", "cache", disk)];
    let Some(fixture) = live::fixture("live_harm_policy", guests) else {
        return;
    };
    // What is not in the page cache yet waits for the device: that is nobody's harm.
    fill_cache(&fixture.guest("harmed").images[0]);
    let config = hasty();
    let mut service = Service::start(&fixture, config, Box::new(Worst));
    let disk = "harmed/vda";
    let wanted = wanted("BLKPILOT_HARM_WINDOWS", FEW_WINDOWS);
    let begun = Instant::now();
    let (mut windows, mut harmed, mut by_itself) = (0, 0_u64, 0_u64);
    let (mut in_a_row, mut longest) = (0, 0);
    // In force while the window lasted, and before it.
    let mut was_direct = [false; 2];
    while windows < wanted {
        let window = service.window().await;
        windows += 1;
        let is_missed = service
            .p99_us(&window, disk)
            .is_some_and(|us| us > OBJECTIVE_US);
        // A window that begins with the way back has requests of before.
        let is_ours = was_direct.contains(&true);
        was_direct = [
            service.level(disk, CACHE_HEAD) == Some(DIRECT),
            was_direct[0],
        ];
        harmed += u64::from(is_missed && is_ours);
        by_itself += u64::from(is_missed && !is_ours);
        in_a_row = if is_missed { in_a_row + 1 } else { 0 };
        longest = longest.max(in_a_row);
    }
    let undone = service.undone();
    let lasted = begun.elapsed();
    // The defaults would have taken so many times longer.
    let horizon = lasted;
    let per_change = u64::from(windows_per_change(&config, Harmful::Itself));
    let bound = harmed_windows(&config, 1, horizon, Harmful::Itself);
    let share = |windows: u64| 100.0 * windows as f64 / wanted as f64;
    println!(
        "{wanted} windows of {INTERVAL:?} ({:.0} s, which are {:.1} h at the default times): the worst was \
         chosen and undone {} times; p99 above the objective of {OBJECTIVE_US} µs in {harmed} windows \
         ({:.2} %) of these changes, {longest} in a row at most, and in {by_itself} others ({:.2} %); bound: \
         {bound} windows, {per_change} in a row, and one each time in which it goes back",
        lasted.as_secs_f64(),
        (lasted * FASTER).as_secs_f64() / 3600.0,
        undone.len(),
        share(harmed),
        share(by_itself),
    );
    for decision in &undone {
        println!("{}", decision.reason.as_deref().unwrap_or_default());
    }
    assert!(undone.len() >= 2, "it was let try, and again");
    let ways_back = undone.len() as u64;
    assert!(
        harmed <= bound + ways_back,
        "{harmed} windows of {bound} + {ways_back}"
    );
    if by_itself == 0 {
        assert!(longest <= per_change + 1, "{longest} in a row");
    }
}

fn fill_cache(image: &Path) {
    let file = File::open(image).unwrap();
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    while let Ok(read @ 1..) = file.read_at(&mut block, at) {
        at += read as u64;
    }
}

/// Somebody who reads from devices as fast as they let him, until this is dropped.
struct Neighbour {
    stop: Arc<AtomicBool>,
    readers: Vec<JoinHandle<()>>,
}

impl Neighbour {
    fn start(devices: &[PathBuf]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let reader = |device: PathBuf, number: usize| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || read_until(&stop, &device, number as u64))
        };
        let readers = devices
            .iter()
            .flat_map(|device| (0..NEIGHBOUR_DEPTH).map(|number| reader(device.clone(), number)))
            .collect();
        Self { stop, readers }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
    }
}

/// Past the page cache, a block after the other.
fn read_until(stop: &AtomicBool, device: &Path, number: u64) {
    const BLOCK: usize = 4096;
    let mut options = File::options();
    let direct = nix::fcntl::OFlag::O_DIRECT.bits();
    let file = options
        .read(true)
        .custom_flags(direct)
        .open(device)
        .unwrap();
    // O_DIRECT wants whole blocks: one lies somewhere in two.
    let mut room = vec![0_u8; 2 * BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    let block = &mut room[start..start + BLOCK];
    let mut at = number * (1 << 18);
    while !stop.load(Ordering::Relaxed) {
        file.read_exact_at(block, at % (32 << 20)).unwrap();
        at += 1 << 16;
    }
}

/// Waits until a disk has met its objective for a while.
async fn calm(service: &mut Service, disks: &[&str], objective_us: f64) {
    let deadline = Instant::now() + PATIENCE;
    let mut met = 0;
    while met < CALM {
        assert!(Instant::now() < deadline, "the objective is never met");
        let window = service.window().await;
        let is_met = |disk: &&str| {
            service
                .p99_us(&window, disk)
                .is_some_and(|us| us <= objective_us)
        };
        met = if disks.iter().all(is_met) { met + 1 } else { 0 };
    }
}

/// Above what a disk waits that the neighbour leaves alone.
const NEIGHBOUR_OBJECTIVE_US: f64 = 25_000.0;

/// Two guests that ask little of a device each.
fn two_guests() -> Vec<GuestSpec> {
    let disk = || DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randread,bs=4k,iodepth=1,rate_iops=100,size=32m").capped(1_000)
    };
    let guest = |name| guest(name, "polling", disk());
    vec![guest("changed"), guest("control")]
}

/// The defaults with an objective, and with room for a campaign: each neighbour counts as a failure, and
/// shall not be the last.
fn patient() -> GuardConfig {
    let mut config = GuardConfig::default();
    config.trial.p99_objective_us = Some(NEIGHBOUR_OBJECTIVE_US);
    config.breaker.failures = 1_000;
    config.changes_per_minute = 6_000;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_a_neighbour_makes_look_bad_is_undone_within_two_windows() {
    let Some(fixture) = live::fixture("live_harm_neighbour", two_guests()) else {
        return;
    };
    let device = |guest: &str| fixture.guest(guest).images[0].clone();
    let alone = vec![device("changed")];
    let both = vec![device("changed"), device("control")];
    let mut service = Service::start(&fixture, patient(), Box::new(KeepDefault));
    let disks = ["changed/vda", "control/vda"];
    let count = wanted("BLKPILOT_NEIGHBOURS", FEW_NEIGHBOURS);
    let (mut since_change, mut missed_first) = (vec![], vec![]);
    for number in 0..count {
        calm(&mut service, &disks, NEIGHBOUR_OBJECTIVE_US).await;
        let was = service.level(disks[0], POLLING_HEAD).unwrap();
        let wanted = if was == 0 { "adaptive" } else { "off" };
        let change = ChangeCall {
            request: Request::Levels(vec![Wanted {
                row: Row::of_disk_id(disks[0]),
                head: "polling".to_owned(),
                level: wanted.to_owned(),
            }]),
            validate_only: false,
            request_id: None,
            force_reason: None,
        };
        let devices = if number % 2 == 0 { &alone } else { &both };
        let before = service.undone().len();
        service.host.change(change).await.unwrap();
        let neighbour = Neighbour::start(devices);
        // Windows since the change, and since one showed what the neighbour does.
        let (mut windows, mut missed) = (0_u32, 0_u32);
        let deadline = Instant::now() + PATIENCE;
        while service.undone().len() == before {
            assert!(Instant::now() < deadline, "it is not undone");
            let window = service.window().await;
            windows += 1;
            let is_missed = service
                .p99_us(&window, disks[0])
                .is_some_and(|us| us > NEIGHBOUR_OBJECTIVE_US);
            missed = if is_missed { missed + 1 } else { 0 };
        }
        drop(neighbour);
        let undone = service.undone();
        let reason = undone.last().unwrap().reason.clone().unwrap_or_default();
        let whom = if number % 2 == 0 {
            "the disk"
        } else {
            "the disk and its control"
        };
        println!(
            "neighbour on the device of {whom}: undone after {windows} windows, {missed} missed: {reason}"
        );
        assert_eq!(service.level(disks[0], POLLING_HEAD), Some(was));
        since_change.push(windows);
        missed_first.push(missed);
    }
    let within = |windows: &[u32], most: u32| windows.iter().filter(|n| **n <= most).count();
    println!(
        "{} of {count} changes undone within two windows of {INTERVAL:?} of the change, all within {}; {} of \
         {count} with at most two windows above the objective of {NEIGHBOUR_OBJECTIVE_US} µs, all within {}",
        within(&since_change, 2),
        since_change.iter().max().unwrap(),
        within(&missed_first, 2),
        missed_first.iter().max().unwrap()
    );
    // The guard needs two; the way back may wait for a monitor that is late.
    assert!(
        within(&since_change, 4) == count && within(&missed_first, 4) == count,
        "{since_change:?} {missed_first:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_of_a_device_after_which_its_disk_got_worse_goes_back() {
    let Some(fixture) = live::fixture("live_harm_device", two_guests()) else {
        return;
    };
    let path = fixture.guest("changed").images[0].clone();
    let device = path.file_name().unwrap().to_string_lossy().into_owned();
    let settings = BTreeSet::from([DeviceKnob::ReadAhead, DeviceKnob::RqAffinity]);
    let rules = DeviceRules::from([(device.clone(), settings)]);
    let mut service = Service::with_devices(&fixture, patient(), Box::new(KeepDefault), rules);
    calm(
        &mut service,
        &["changed/vda", "control/vda"],
        NEIGHBOUR_OBJECTIVE_US,
    )
    .await;
    let file = format!("/sys/block/{device}/queue/read_ahead_kb");
    let read = || std::fs::read_to_string(&file).unwrap().trim().to_owned();
    let was = read();
    let set = |knob, value: &str, force_reason: Option<&str>| DeviceCall {
        device: device.clone(),
        action: DeviceRequest::Set {
            knob,
            value: value.to_owned(),
        },
        validate_only: false,
        force_reason: force_reason.map(str::to_owned),
    };
    let value = if was == "256" { "512" } else { "256" };
    let change = set(DeviceKnob::ReadAhead, value, None);
    service.host.change_device(change.clone()).await.unwrap();
    let neighbour = Neighbour::start(std::slice::from_ref(&path));
    assert_eq!(read(), value);
    // While it is judged the device takes nothing else, and then not the same.
    let other = set(DeviceKnob::RqAffinity, "2", None);
    let refused = service.host.change_device(other).await.unwrap_err();
    assert_eq!(refused.reason(), "ON_TRIAL");
    let deadline = Instant::now() + PATIENCE;
    let mut windows = 0;
    while read() != was {
        assert!(Instant::now() < deadline, "it does not go back");
        service.window().await;
        windows += 1;
    }
    drop(neighbour);
    println!("read_ahead_kb {was} -> {value} put back after {windows} windows of {INTERVAL:?}");
    assert!(windows <= 4, "{windows} windows");
    let refused = service.host.change_device(change).await.unwrap_err();
    assert_eq!(refused.reason(), "DWELL");
    let forced = set(DeviceKnob::ReadAhead, value, Some("tried by a test"));
    service.host.change_device(forced).await.unwrap();
    assert_eq!(read(), value);
    service.host.stop(OnExit::Revert).await.unwrap();
    assert_eq!(read(), was);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_environment_does_is_undone_too_and_its_masks_are_closed() {
    let Some(fixture) = live::fixture("live_harm_environment", two_guests()) else {
        return;
    };
    let device = fixture.guest("changed").images[0].clone();
    let mut service = Service::start(&fixture, patient(), Box::new(KeepDefault));
    let disks = ["changed/vda", "control/vda"];
    calm(&mut service, &disks, NEIGHBOUR_OBJECTIVE_US).await;
    let mut environment = HostedEnvironment::attach(service.host.clone(), None)
        .await
        .unwrap();
    let walk = move || {
        let first = environment.reset(None, &ResetOptions::new()).unwrap();
        let ids = &first.disk_ids;
        let row = ids.iter().position(|id| id == "changed/vda").unwrap();
        let mut wanted = first.current.clone();
        wanted.disks[[row, POLLING_HEAD]] = 1 - first.current.disks[[row, POLLING_HEAD]];
        let neighbour = Neighbour::start(&[device]);
        let mut steps = 1;
        let mut step = environment.step(&wanted).unwrap();
        assert_eq!(step.executed, wanted);
        // It stays as it is until it is undone.
        while step.observation.current == wanted && steps < 8 {
            step = environment.step(&step.observation.current).unwrap();
            steps += 1;
        }
        drop(neighbour);
        println!("undone at the end of step {steps} of {INTERVAL:?}");
        assert!(steps <= 3, "{steps} steps");
        assert_eq!(step.executed, wanted);
        assert_eq!(step.observation.current, first.current);
        let refused = environment.step(&wanted).unwrap_err();
        assert!(matches!(refused, EnvError::Action(_)), "{refused}");
    };
    tokio::task::spawn_blocking(walk).await.unwrap();
    assert_eq!(service.undone().len(), 1);

    // Who says why may change at once what has just been undone, and is not undone.
    let reason = Some("tried by a test".to_owned());
    let mut environment = HostedEnvironment::attach(service.host.clone(), reason)
        .await
        .unwrap();
    let device = fixture.guest("changed").images[0].clone();
    let walk = move || {
        let first = environment.reset(None, &ResetOptions::new()).unwrap();
        let ids = &first.disk_ids;
        let row = ids.iter().position(|id| id == "changed/vda").unwrap();
        let mut wanted = first.current.clone();
        wanted.disks[[row, POLLING_HEAD]] = 1 - first.current.disks[[row, POLLING_HEAD]];
        let _neighbour = Neighbour::start(&[device]);
        for _ in 0..5 {
            let step = environment.step(&wanted).unwrap();
            assert_eq!(step.observation.current, wanted);
        }
    };
    tokio::task::spawn_blocking(walk).await.unwrap();
    assert_eq!(service.undone().len(), 1);
    let page = service.host.history.page("local", None, usize::MAX);
    let decisions = page.unwrap().decisions;
    let mut reasons = decisions.iter().filter_map(|d| d.reason.as_deref());
    assert!(reasons.any(|reason| reason == "tried by a test"));
}
