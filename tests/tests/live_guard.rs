//! The guard on real guests: what it lets pass when nothing was changed, and how soon it undoes a
//! harmful change.
//!
//! `BLKPILOT_AA_WINDOWS` says how many windows are recorded for the false alarms, `BLKPILOT_HARMS` how
//! many harmful changes are made; without, a few.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_env::Environment as _;
use blkpilot_env::features::{CHANNEL_HEAD, Terms, observe};
use blkpilot_env::guard::{Guard, GuardConfig};
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::spec::EnvSpec;
use blkpilot_env::window::HostWindow;
use blkpilot_host::{BootClock, Hypervisor, Libvirt, LiveHost, LiveHostConfig};
use blkpilot_log::schema::Source;
use blkpilot_log::{DecisionRow, Event, Reader};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, IoMode, OptIn, preset};
use blkpilot_tests::live;
use blkpilot_tests::reading::Reading;
use blkpilot_tests::service::Blkpilot;

const INTERVAL: Duration = Duration::from_millis(500);
const FEW_WINDOWS: usize = 40;
/// Windows that the guard has seen of a disk before it is told of a change, and that it judges after.
const BEFORE: usize = 12;
/// Until the guard, by its defaults, has no doubt left.
const AFTER: usize = 13;
/// Windows from one trial to the next, which overlap.
const STRIDE: usize = 4;
/// Trials from which on their share of false alarms is worth more than an alarm.
const MANY_TRIALS: usize = 200;
const MOST_FALSE: f64 = 0.05;
const FEW_HARMS: usize = 2;
/// Windows by which the guard has judged a change of the cache, by its defaults: one that is left out,
/// since a cache has to warm up, and twelve while chance explains what it sees.
const TRIAL_WINDOWS: usize = 13;
const PATIENCE: Duration = Duration::from_secs(90);

fn steady(name: &str, workload: &str) -> GuestSpec {
    let disk = DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct(workload)
    };
    GuestSpec::new(name).with_disk(disk)
}

/// So many windows of a host on which nothing is changed.
fn record(fixture: &Fixture, dir: &Path, windows: usize) -> (EnvSpec, Vec<HostWindow>) {
    let uri = fixture.uri();
    let connector = move || Ok(Arc::new(Libvirt::connect(&uri)?) as Arc<dyn Hypervisor>);
    let config = LiveHostConfig {
        interval: INTERVAL,
        ..LiveHostConfig::new(dir.join("journal.db"))
    };
    let (mut host, _) = LiveHost::open(config, Box::new(connector), Box::new(BootClock)).unwrap();
    let mut before = host.sample().unwrap();
    let mut recorded = vec![];
    while recorded.len() < windows {
        sleep(INTERVAL);
        let after = host.sample().unwrap();
        recorded.push(HostWindow::between(&before, &after));
        before = after;
    }
    (host.spec().clone(), recorded)
}

/// Whether the guard would undo a change of a disk that was not made.
fn is_undone(spec: &EnvSpec, windows: &[HostWindow], disk: usize) -> bool {
    let mut guard = Guard::new(&GuardConfig::default());
    for window in &windows[..BEFORE] {
        guard.observe(window);
    }
    let terms = Terms {
        interval: INTERVAL,
        reward: &RewardConfig::default(),
    };
    let obs = observe(spec, &windows[BEFORE - 1], terms);
    let mut executed = obs.current.clone();
    executed.disks[[disk, CHANNEL_HEAD]] = 1 - executed.disks[[disk, CHANNEL_HEAD]].min(1);
    guard.changed(INTERVAL, &obs, &executed);
    windows[BEFORE..]
        .iter()
        .any(|window| !guard.observe(window).is_empty())
}

#[test]
fn what_was_not_changed_is_hardly_ever_undone() {
    let guests = vec![
        steady(
            "reads",
            "rw=randread,bs=4k,iodepth=4,rate_iops=1000,size=16m",
        ),
        steady(
            "writes",
            "rw=randwrite,bs=8k,iodepth=2,rate_iops=300,size=16m",
        ),
        steady("eager", "rw=randrw,bs=4k,iodepth=2,size=16m"),
    ];
    let disks = guests.len();
    let Some(fixture) = live::fixture("live_guard_aa", guests) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let wanted = std::env::var("BLKPILOT_AA_WINDOWS").map_or(FEW_WINDOWS, |n| n.parse().unwrap());
    let (spec, windows) = record(&fixture, dir.path(), wanted);
    assert!(windows.iter().all(|window| window.disks.len() == disks));

    let spans = windows.windows(BEFORE + AFTER).step_by(STRIDE);
    let trials = spans.flat_map(|span| (0..disks).map(move |disk| (span, disk)));
    let undone: Vec<bool> = trials
        .map(|(span, disk)| is_undone(&spec, span, disk))
        .collect();
    let false_alarms = undone.iter().filter(|undone| **undone).count();
    let share = false_alarms as f64 / undone.len() as f64;
    println!(
        "{false_alarms} of {} changes that were not made would have been undone ({:.1} %)",
        undone.len(),
        100.0 * share
    );
    assert!(share <= MOST_FALSE || undone.len() < MANY_TRIALS && false_alarms <= 3);
}

/// Rows of the log that changed the guest's cache, and how many windows of the policy had passed by.
fn cache_changes(log: &Path) -> Vec<(usize, DecisionRow)> {
    let mut windows = 0;
    let mut changes = vec![];
    for entry in Reader::open(log).unwrap() {
        let Event::Decision(row) = entry.unwrap().event else {
            continue;
        };
        windows += usize::from(row.source == Source::Auto);
        let mut heads = row.heads.iter();
        if heads.any(|head| head.head == "cache" && head.executed != head.previous) {
            changes.push((windows, *row));
        }
    }
    changes
}

/// What the newest rows of the log say of the cache.
fn last_rows(log: &Path) -> Vec<String> {
    let rows = Reader::open(log).unwrap().filter_map(|entry| {
        let Event::Decision(row) = entry.unwrap().event else {
            return None;
        };
        let cache = row.heads.iter().find(|head| head.head == "cache")?;
        let DecisionRow {
            at_us,
            source,
            reason,
            ..
        } = &*row;
        Some(format!(
            "{at_us} {source:?} {} -> {}, altered {:?}, {reason:?}",
            cache.previous, cache.executed, cache.altered
        ))
    });
    let rows: Vec<String> = rows.collect();
    rows[rows.len().saturating_sub(20)..].to_vec()
}

#[test]
fn what_does_harm_is_undone_within_its_trial() {
    let harmed = GuestSpec {
        opt_in: Some(OptIn::auto()),
        ..preset("well-tuned").unwrap()
    };
    let Some(fixture) = live::fixture("live_guard_harm", vec![harmed]) else {
        return;
    };
    let original = Reading::of(&fixture, "well-tuned").unwrap();
    assert_eq!(original.cache, "buffered");
    let host = format!("interval = \"{}ms\"", INTERVAL.as_millis());
    let tables = "[policy]\nbaseline = \"keep_default\"\n[guard]\ndwell = \"1s\"";
    let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
    let mut blkpilot = Blkpilot::new(binary, &fixture, &host, tables);
    blkpilot.serve();
    sleep(INTERVAL * 16);

    // Somebody asks for the worst there is, again and again; the guard does not ask who.
    let harms = std::env::var("BLKPILOT_HARMS").map_or(FEW_HARMS, |n| n.parse().unwrap());
    let log = blkpilot.dir().join("data/decisions");
    for harm in 1..=harms {
        // After the third the breaker would not let it.
        blkpilot.force(
            "well-tuned/vda:cache=direct",
            "the guard is put to the test",
        );
        let deadline = Instant::now() + PATIENCE;
        while cache_changes(&log).len() < 2 * harm {
            assert!(
                Instant::now() < deadline,
                "change {harm} is not undone: {:#?}",
                last_rows(&log)
            );
            sleep(INTERVAL / 2);
        }
        sleep(INTERVAL * 16);
    }
    let changes = cache_changes(&log);
    let pairs = changes.chunks_exact(2);
    assert_eq!((changes.len(), pairs.len()), (2 * harms, harms));
    let (mut delays, mut soon) = (vec![], 0);
    for pair in pairs {
        let [(made_at, made), (undone_at, undone)] = pair else {
            unreachable!("chunks of two");
        };
        assert_eq!(
            (made.source, undone.source),
            (Source::Explicit, Source::Guard)
        );
        let windows = undone_at - made_at + 1;
        let reason = undone.reason.as_deref().unwrap();
        assert!(windows <= TRIAL_WINDOWS, "{windows}: {reason}");
        soon += usize::from(windows <= 2);
        delays.push((undone.at_us - made.at_us) as f64 * 1e-6);
        println!("undone in window {windows}: {reason}");
    }
    delays.sort_by(f64::total_cmp);
    println!(
        "{soon} of {harms} harmful changes undone within 2 windows of {INTERVAL:?}, all within \
         {TRIAL_WINDOWS}; {:.2} s after the change in the median, {:.2} s at most",
        delays[harms / 2],
        delays[harms - 1]
    );
    assert_eq!(Reading::of(&fixture, "well-tuned").unwrap(), original);
}
