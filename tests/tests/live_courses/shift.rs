//! A guest whose best setting changes while it runs, in mode auto, against what it was started with and
//! against the best setting that never changes.
//!
//! `BLKPILOT_SHIFT_POLICY` is the policy's directory and `BLKPILOT_SHIFT_ALTERNATIONS` how often each
//! is measured; without, once and in short, with a baseline.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blkpilot_log::{DecisionId, DecisionRow, Event, Reader, Subject};
use blkpilot_models::bootstrap::ci95_of;
use blkpilot_tests::fixture::{CacheMode, DiskSpec, Fixture, GuestSpec, IoMode};
use blkpilot_tests::live;
use blkpilot_tests::service::Blkpilot;

/// The phases of the guest's work, and what is good in each.
const PHASES: [&str; 3] = ["cacheable reads", "noisy neighbour", "CPU-bound"];
const SHORT_PHASE: Duration = Duration::from_secs(4);
const LONG_PHASE: Duration = Duration::from_secs(30);
const INTERVAL: &str = "interval = \"1s\"";
/// Shorter than by default, since a phase is short too.
const GUARD: &str = "[guard]\ndwell = \"10s\"";
const PATIENCE: Duration = Duration::from_secs(120);
const SUBJECT: &str = "shifting";
const CAPPED_IOPS: u32 = 2000;

/// What the guest is started with.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Setting {
    cache: CacheMode,
    /// Host CPUs of the IOThreads; `None` leaves them floating.
    cpus: Option<&'static str>,
}

impl Setting {
    const DEFAULT: Self = Self {
        cache: CacheMode::None,
        cpus: None,
    };
    const CANDIDATES: [Self; 6] = [
        Self::DEFAULT,
        Self::of(CacheMode::None, Some("0")),
        Self::of(CacheMode::None, Some("1")),
        Self::of(CacheMode::Writeback, None),
        Self::of(CacheMode::Writeback, Some("0")),
        Self::of(CacheMode::Writeback, Some("1")),
    ];

    const fn of(cache: CacheMode, cpus: Option<&'static str>) -> Self {
        Self { cache, cpus }
    }

    fn text(self) -> String {
        let cache = match self.cache {
            CacheMode::None => "direct",
            CacheMode::Writeback => "buffered",
        };
        let cpus = self
            .cpus
            .map_or("float".to_owned(), |cpus| format!("CPU {cpus}"));
        format!("{cache}, {cpus}")
    }
}

/// How long it is, and who decides.
struct Plan {
    phase: Duration,
    alternations: usize,
    candidates: Vec<Setting>,
    /// The table `[policy]` of the tuned service.
    policy: String,
}

impl Plan {
    fn from_environment() -> Self {
        let Some(policy) = std::env::var_os("BLKPILOT_SHIFT_POLICY") else {
            return Self {
                phase: SHORT_PHASE,
                alternations: 1,
                candidates: vec![Setting::of(CacheMode::Writeback, None)],
                policy: "[policy]\nbaseline = \"least_loaded\"".into(),
            };
        };
        let policy = PathBuf::from(policy).canonicalize().unwrap();
        let alternations = std::env::var("BLKPILOT_SHIFT_ALTERNATIONS");
        Self {
            phase: LONG_PHASE,
            alternations: alternations.map_or(6, |n| n.parse().unwrap()),
            candidates: Setting::CANDIDATES.to_vec(),
            policy: format!("[policy]\ncheckpoint = \"{}\"", policy.display()),
        }
    }
}

/// Work of the CPU alone, on both vCPUs.
const BURN: &str = "ioengine=cpuio,cpuload=100,numjobs=2";

/// The guest's vCPUs have CPU 0, the neighbour's CPU 1: in the second phase an IOThread is better off on
/// the one, in the third on the other.
fn guests(setting: Setting, phase: Duration) -> Vec<GuestSpec> {
    let seconds = phase.as_secs();
    let reads = |depth: u32, size: &str| {
        format!("rw=randread,bs=4k,iodepth={depth},size={size},runtime={seconds}")
    };
    let idle = format!("idle,runtime={seconds}");
    let burn = format!("{BURN},runtime={seconds}");
    let disk = |phases: [&str; 3]| DiskSpec {
        io: IoMode::IoUring,
        cache: setting.cache,
        ..DiskSpec::direct(&phases.join("/"))
    };
    let (shallow, deep, slow) = (reads(4, "16m"), reads(16, "32m"), reads(4, "32m"));
    let neighbour = GuestSpec {
        vcpu_cpuset: Some("1".into()),
        opt_in: None,
        ..GuestSpec::new("neighbour").with_disk(disk([&idle, &burn, &idle]))
    };
    let subject = GuestSpec {
        vcpu_cpuset: Some("0".into()),
        iothread_cpuset: setting.cpus.map(Into::into),
        ..GuestSpec::new(SUBJECT)
            .with_disk(disk([&shallow, &deep, &slow]).capped(CAPPED_IOPS))
            .with_disk(disk([&idle, &idle, &burn]))
    };
    vec![neighbour, subject]
}

/// What one cycle of the phases has shown.
#[derive(Debug, Clone, Copy, Default)]
struct Cycle {
    /// Mean own reward of the disk per interval, by phase.
    reward: [f64; PHASES.len()],
    /// Requests per second, by phase.
    iops: [f64; PHASES.len()],
    /// Settings changed.
    changes: usize,
}

impl Cycle {
    fn mean_reward(&self) -> f64 {
        self.reward.iter().sum::<f64>() / PHASES.len() as f64
    }

    fn mean_iops(&self) -> f64 {
        self.iops.iter().sum::<f64>() / PHASES.len() as f64
    }
}

/// Requests that the first disk of the guest has completed.
fn requests(fixture: &Fixture) -> f64 {
    let stats = fixture.virsh(&["domstats", "--block", SUBJECT]).unwrap();
    let counts = stats.lines().filter_map(|line| {
        let (key, count) = line.trim().split_once('=')?;
        ["block.0.rd.reqs", "block.0.wr.reqs"]
            .contains(&key)
            .then(|| count.parse::<f64>().unwrap())
    });
    counts.sum()
}

/// The guests through one cycle, served by a service in mode auto, from its first outcome on.
fn run(setting: Setting, policy: &str, phase: Duration) -> Option<Cycle> {
    let fixture = live::fixture("live_shift", guests(setting, phase))?;
    let (ready, ready_us) = (Instant::now(), unix_us());
    let tables = format!("{policy}\n{GUARD}");
    let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
    let mut blkpilot = Blkpilot::new(binary, &fixture, INTERVAL, &tables);
    blkpilot.serve();
    let log = blkpilot.dir().join("data/decisions");
    while !has_outcome(&log) {
        assert!(blkpilot.is_running(), "the service has ended");
        assert!(ready.elapsed() < PATIENCE, "there is no outcome");
        sleep(Duration::from_millis(100));
    }

    let mut cycle = Cycle {
        iops: measure(&fixture, ready, phase),
        ..Cycle::default()
    };
    assert!(blkpilot.is_running(), "the service has ended");
    blkpilot.kill();
    read_log(&log, ready_us, phase, &mut cycle);
    Some(cycle)
}

fn unix_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_micros() as i64
}

fn has_outcome(log: &Path) -> bool {
    let Ok(mut entries) = Reader::open(log) else {
        return false;
    };
    entries.any(|entry| matches!(entry.unwrap().event, Event::Outcome(_)))
}

/// Requests per second by phase, over one cycle from now on. It may begin amid a phase, and ends then
/// amid the same one.
fn measure(fixture: &Fixture, ready: Instant, phase: Duration) -> [f64; PHASES.len()] {
    let (mut completed, mut seconds) = ([0.0; PHASES.len()], [0.0; PHASES.len()]);
    let end = ready.elapsed() + phase * PHASES.len() as u32;
    let (mut done, mut since) = (requests(fixture), ready.elapsed());
    while since < end {
        let nth = (since.as_nanos() / phase.as_nanos()) as u32;
        sleep((phase * (nth + 1)).min(end).saturating_sub(ready.elapsed()));
        let (now, at) = (requests(fixture), ready.elapsed());
        completed[nth as usize % PHASES.len()] += now - done;
        seconds[nth as usize % PHASES.len()] += (at - since).as_secs_f64();
        (done, since) = (now, at);
    }
    std::array::from_fn(|n| completed[n] / seconds[n])
}

/// Rewards and changes of the first disk, from the decision log.
fn read_log(log: &Path, ready_us: i64, phase: Duration, cycle: &mut Cycle) {
    let is_ours = |row: &DecisionRow| matches!(&row.subject, Subject::Disk { guest, target } if guest == SUBJECT && target == "vda");
    let mut ours: Vec<DecisionId> = vec![];
    let mut rewards: [Vec<f64>; PHASES.len()] = Default::default();
    for entry in Reader::open(log).unwrap() {
        match entry.unwrap().event {
            Event::Decision(row) if is_ours(&row) => {
                let heads = row.heads.iter();
                cycle.changes += heads.filter(|head| head.executed != head.previous).count();
                ours.push(row.id);
            }
            Event::Outcome(row) if ours.contains(&row.decision_id) => {
                let since_us = (row.at_us - ready_us).max(0) as u128;
                let nth = (since_us / phase.as_micros()) as usize;
                rewards[nth % PHASES.len()].push(f64::from(row.reward_own));
            }
            _ => {}
        }
    }
    for ((mean, rewards), phase) in cycle.reward.iter_mut().zip(&rewards).zip(PHASES) {
        assert!(!rewards.is_empty(), "no outcome in the phase of {phase}");
        *mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 {
        values[half]
    } else {
        f64::midpoint(values[half - 1], values[half])
    }
}

/// Median over the alternations and its 95 % interval; whole alternations are resampled.
fn print_change(what: &str, changes: &[f64]) -> f64 {
    let [low, high] = ci95_of(&[changes.len()], |drawn| {
        median(drawn[0].iter().map(|i| changes[*i]).collect())
    });
    let middle = median(changes.to_vec());
    println!("{what}: {middle:+.3} ({low:+.3} to {high:+.3})");
    middle
}

fn print_arm(name: &str, cycles: &[Cycle]) {
    let of = |figure: &dyn Fn(&Cycle) -> f64| median(cycles.iter().map(figure).collect());
    let phases = (0..PHASES.len())
        .map(|n| format!("{:+.3} / {:.0}", of(&|c| c.reward[n]), of(&|c| c.iops[n])));
    println!(
        "{name:<32} {:+.3} / {:.0} | {} | {:.0} changes",
        of(&Cycle::mean_reward),
        of(&Cycle::mean_iops),
        phases.collect::<Vec<_>>().join(" | "),
        of(&|c| c.changes as f64),
    );
}

#[test]
fn a_guest_whose_best_setting_changes_is_tuned_as_it_goes() {
    let plan = Plan::from_environment();
    let keep = "[policy]\nbaseline = \"keep_default\"";
    let mut best: Option<(Setting, f64)> = None;
    for candidate in &plan.candidates {
        let Some(cycle) = run(*candidate, keep, plan.phase) else {
            return;
        };
        println!(
            "static {}: reward {:+.3}, {:.0} IOPS",
            candidate.text(),
            cycle.mean_reward(),
            cycle.mean_iops()
        );
        if best.is_none_or(|(_, reward)| reward < cycle.mean_reward()) {
            best = Some((*candidate, cycle.mean_reward()));
        }
    }
    let best = best.unwrap().0;

    let [mut default, mut fixed, mut tuned] = [const { Vec::<Cycle>::new() }; 3];
    for alternation in 0..plan.alternations {
        // Turned each time, so that what drifts on the machine weighs on all alike.
        for arm in (0..3).map(|arm| (arm + alternation) % 3) {
            let (cycles, setting, policy) = match arm {
                0 => (&mut default, Setting::DEFAULT, keep),
                1 => (&mut fixed, best, keep),
                _ => (&mut tuned, Setting::DEFAULT, plan.policy.as_str()),
            };
            cycles.push(run(setting, policy, plan.phase).unwrap());
        }
    }
    println!(
        "\nmedians over {} cycles of {:?} a phase: reward / IOPS; {}",
        plan.alternations,
        plan.phase,
        PHASES.join(" | ")
    );
    print_arm("default (direct, float)", &default);
    print_arm(&format!("best static ({})", best.text()), &fixed);
    print_arm("auto", &tuned);
    let against = |others: &[Cycle]| -> Vec<f64> {
        let pairs = tuned.iter().zip(others);
        pairs
            .map(|(tuned, other)| tuned.mean_reward() - other.mean_reward())
            .collect()
    };
    let gain = print_change("reward, auto − default", &against(&default));
    print_change("reward, auto − best static", &against(&fixed));
    let kept = default.iter().chain(&fixed);
    assert_eq!(kept.map(|cycle| cycle.changes).sum::<usize>(), 0);
    // One short cycle with a baseline shows only that all of it works.
    assert!(gain > 0.0 || plan.alternations == 1, "{gain}");
}
