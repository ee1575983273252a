//! The daemon killed at random moments while it changes settings on a real guest whose workload checks
//! what it reads: every setting is as it was or journalled, all of it goes back, and no byte is lost.
//!
//! `BLKPILOT_KILLS` says how many kills; without, a few.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use blkpilot_env::Rng;
use blkpilot_host::Knob;
use blkpilot_host::journal::{Journal, Record, RecordState};
use blkpilot_tests::fixture::{Fixture, GuestSpec};
use blkpilot_tests::reading::Reading;
use blkpilot_tests::service::Blkpilot;
use blkpilot_tests::{checked, live};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

const GUEST: &str = "checked";
const FEW: u32 = 4;
/// Longest time from the daemon's first word to its end, milliseconds.
const LONGEST_MS: u64 = 1_200;
const SETTINGS: [(&str, &[&str]); 3] = [
    ("channel", &["float", "channel-0", "channel-1"]),
    ("cache", &["direct", "buffered"]),
    ("polling", &["off", "adaptive"]),
];

fn guest() -> GuestSpec {
    GuestSpec::new(GUEST).with_disk(checked::disk())
}

struct Campaign<'a> {
    fixture: &'a Fixture,
    blkpilot: Blkpilot,
    original: Reading,
}

impl<'a> Campaign<'a> {
    fn new(fixture: &'a Fixture) -> Self {
        let host = "interval = \"500ms\"\nmode = \"advise\"";
        let policy = "[policy]\nbaseline = \"keep_default\"";
        let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
        Self {
            fixture,
            blkpilot: Blkpilot::new(binary, fixture, host, policy),
            original: Reading::of(fixture, GUEST).unwrap(),
        }
    }

    /// One daemon's life: it is told to change settings without a pause, and killed `after`.
    /// Returns how many changes it has acknowledged.
    fn live_and_die(&mut self, after: Duration, rng: &mut Rng) -> u32 {
        let daemon = Pid::from_raw(self.blkpilot.serve().cast_signed());
        let (is_over, done) = (AtomicBool::new(false), AtomicU32::new(0));
        scope(|threads| {
            threads.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let is_done = self.apply_any(rng);
                    done.fetch_add(u32::from(is_done), Ordering::Relaxed);
                }
            });
            sleep(after);
            kill(daemon, Signal::SIGKILL).unwrap();
            is_over.store(true, Ordering::Relaxed);
        });
        self.blkpilot.kill();
        done.into_inner()
    }

    /// Sets all settings at random; whether it was acknowledged.
    fn apply_any(&self, rng: &mut Rng) -> bool {
        let mut args = vec!["apply".to_owned()];
        for (head, levels) in SETTINGS {
            let level = levels[rng.random_range(0..levels.len())];
            args.extend(["--set".to_owned(), format!("{GUEST}/vda:{head}={level}")]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.blkpilot.run(&args).status.success()
    }

    fn records(&self) -> Vec<Record> {
        Journal::open_to_read(&self.blkpilot.dir().join("data/journal.db"))
            .unwrap()
            .records()
            .unwrap()
    }

    /// Each setting is as it was at first, or the journal knows what it was.
    fn check_journalled(&self, records: &[Record]) {
        let now = Reading::of(self.fixture, GUEST).unwrap();
        let (was, iothread) = (&self.original, 1);
        let target = "vda".to_owned();
        let settings = [
            (Knob::Channel { iothread }, &*now.cpus, &*was.cpus),
            (Knob::Cache { target }, now.cache, was.cache),
            (
                Knob::Polling { iothread },
                &*now.poll_max_ns,
                &*was.poll_max_ns,
            ),
        ];
        for (knob, now, was) in settings {
            let record = records.iter().find(|record| record.knob == knob);
            let original = record.map(|record| record.original.as_str());
            assert!(
                now == was || original == Some(was),
                "{knob:?} is {now}, was {was}, and the journal says {record:?}"
            );
        }
    }

    /// A new daemon rolls back all, and every setting is as it was.
    fn roll_back(&mut self) {
        self.blkpilot.serve();
        let output = self
            .blkpilot
            .run_patiently(&["rollback", "--all", "--json"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        let decision: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(decision["error"].as_str().unwrap_or(""), "", "{decision}");
        assert_eq!(Reading::of(self.fixture, GUEST).unwrap(), self.original);
        self.blkpilot.kill();
    }
}

#[test]
fn a_daemon_killed_at_any_moment_leaves_nothing_that_cannot_be_put_back() {
    let Some(fixture) = live::fixture("live_kills", vec![guest()]) else {
        return;
    };
    let mut campaign = Campaign::new(&fixture);
    let kills = std::env::var("BLKPILOT_KILLS").map_or(FEW, |n| n.parse().unwrap());
    let mut rng = Rng::seed_from_u64(1);
    let (mut changes, mut intents, mut moved) = (0, 0, 0);
    // Until something was changed at a kill, on however slow a machine: else it would prove nothing.
    let mut kill = 0;
    while kill < kills || ((changes == 0 || moved == 0) && kill < 10 * kills) {
        kill += 1;
        let after = Duration::from_millis(rng.random_range(0..LONGEST_MS));
        changes += campaign.live_and_die(after, &mut rng);
        let records = campaign.records();
        campaign.check_journalled(&records);
        let is_intent = |record: &&Record| record.state == RecordState::Intended;
        intents += records.iter().filter(is_intent).count();
        moved += u32::from(Reading::of(&fixture, GUEST).unwrap() != campaign.original);
        if kill % 10 == 0 || kill >= kills {
            campaign.roll_back();
        }
    }
    checked::check(&fixture, GUEST);
    println!(
        "{kill} kills: {changes} changes acknowledged, {intents} intents left open, {moved} times \
         something was changed at the kill; all was journalled and went back"
    );
    assert!(changes > 0 && moved > 0);
}
