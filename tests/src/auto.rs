//! The service in mode `auto` with a random policy that changes something nearly all the time, for
//! campaigns in which something else happens to its guests.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blkpilot_host::Knob;
use blkpilot_host::journal::{Journal, Record};
use blkpilot_log::schema::Subject;
use blkpilot_log::{DecisionRow, Horizon, Query, Scan};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::fixture::Fixture;
use crate::reading::{Reading, cache_text, open_images};
use crate::service::Blkpilot;

const INTERVAL: Duration = Duration::from_millis(250);
/// Longer than any wait of the service, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The service and what its guests were at first.
#[derive(Debug)]
pub struct Auto {
    /// The service.
    pub blkpilot: Blkpilot,
    pid: u32,
    originals: Vec<(String, Reading)>,
}

/// When something was so, microseconds since 1970 UTC.
#[derive(Debug, Clone, Copy)]
pub struct Moment(i64);

impl Moment {
    /// Now.
    ///
    /// # Panics
    /// When the clock is not set.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let us = since.expect("the clock is set").as_micros();
        Self(i64::try_from(us).expect("this century"))
    }
}

impl Auto {
    /// Reads the guests and starts the service. `binary`: see [`Blkpilot::new`].
    ///
    /// # Panics
    /// When it does not come up, or a guest cannot be read.
    #[must_use]
    pub fn start(binary: &str, fixture: &Fixture) -> Self {
        let read = |name: &str| Reading::of(fixture, name).expect("a guest can be read");
        let guests = fixture.guests().iter().map(|guest| &guest.spec.name);
        let originals = guests.map(|name| (name.clone(), read(name))).collect();
        let host = format!("interval = \"{}ms\"", INTERVAL.as_millis());
        let tables = "[policy]
baseline = \"random\"
[guard]
dwell = \"250ms\"
changes_per_minute = 6000
stall_windows = 1000
tolerated_ratio = 100
[log]
segment_mib = 2";
        let mut blkpilot = Blkpilot::new(binary, fixture, &host, tables);
        let pid = blkpilot.serve();
        Self {
            blkpilot,
            pid,
            originals,
        }
    }

    /// Checks that the service is the process that was started.
    ///
    /// # Panics
    /// When it is not.
    pub fn check_alive(&mut self) {
        let alive = self.blkpilot.is_running();
        assert!(alive, "the service has ended");
    }

    /// Waits until a decision after `since` has changed a knob of a disk, `GUEST/TARGET`; `head`: this
    /// one. Returns how long after it the decision was made.
    ///
    /// # Panics
    /// When none does.
    pub fn wait_for_change(&mut self, disk: &str, head: Option<&str>, since: Moment) -> Duration {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at_us) = self.first_change(disk, head, since) {
                return Duration::from_micros(at_us.abs_diff(since.0));
            }
            self.check_alive();
            assert!(
                Instant::now() < deadline,
                "nothing of {disk} ({head:?}) is changed any more: {}{:#?}",
                String::from_utf8_lossy(&self.blkpilot.run(&["guests"]).stdout),
                self.masks(disk, since)
            );
            sleep(INTERVAL);
        }
    }

    /// When the first such decision was made.
    fn first_change(&self, disk: &str, head: Option<&str>, since: Moment) -> Option<i64> {
        let is_change = |row: &&DecisionRow| {
            let mut heads = row.heads.iter();
            heads.any(|h| h.executed != h.previous && head.is_none_or(|wanted| h.head == wanted))
        };
        let rows = self.rows(Some(since));
        let mut changes = rows.iter().filter(is_change);
        let first = changes.find(|row| is_about(row, disk))?;
        Some(first.at_us)
    }

    /// What the last decisions about a disk might choose of each head, and did.
    fn masks(&self, disk: &str, since: Moment) -> Vec<String> {
        let rows = self.rows(Some(since));
        let rows = rows.iter().filter(|row| is_about(row, disk)).rev().take(5);
        let heads = rows.flat_map(|row| &row.heads).map(|head| {
            format!(
                "{}: {} -> {}, altered {:?}, mask {:?}",
                head.head, head.previous, head.executed, head.altered, head.mask
            )
        });
        heads.collect()
    }

    /// Settings that have been changed so far.
    #[must_use]
    pub fn changes(&self) -> usize {
        let rows = self.rows(None);
        let heads = rows.iter().flat_map(|row| &row.heads);
        heads.filter(|head| head.executed != head.previous).count()
    }

    /// Why settings were not changed as decided, each reason once.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        let rows = self.rows(None);
        let heads = rows.iter().flat_map(|row| &row.heads);
        let mut reasons: Vec<String> = heads.filter_map(|head| head.altered.clone()).collect();
        reasons.sort();
        reasons.dedup();
        reasons
    }

    /// All decisions, or those after this moment.
    fn rows(&self, since: Option<Moment>) -> Vec<DecisionRow> {
        let log = self.blkpilot.dir().join("data/decisions");
        let query = Query {
            from_us: since.map(|since| since.0 + 1),
            ..Query::default()
        };
        let scan = Scan::open(&log, query, Horizon::Final);
        let batches = scan.expect("the log can be read");
        let rows = batches.map(|batch| batch.and_then(|batch| batch.rows()));
        let rows = rows.flat_map(|rows| rows.expect("the log is whole"));
        rows.map(|row| row.decision).collect()
    }

    /// A guest as the service shows it; `None` when it does not.
    ///
    /// # Panics
    /// When its answer is not understood.
    #[must_use]
    pub fn shown(&self, guest: &str) -> Option<Value> {
        let output = self.blkpilot.run(&["guests", "--json"]);
        let listed: Value = serde_json::from_slice(&output.stdout).ok()?;
        let guests = listed["guests"].as_array().expect("a list of guests");
        let name = format!("hosts/local/guests/{guest}");
        guests.iter().find(|known| known["name"] == name).cloned()
    }

    /// Checks each guest: every setting is as it was at first, or the journal knows what it was. The
    /// service stands still meanwhile.
    ///
    /// # Panics
    /// When one is not.
    pub fn check_journalled(&mut self, fixture: &Fixture) {
        self.check_alive();
        let service = Pid::from_raw(self.pid.cast_signed());
        kill(service, Signal::SIGSTOP).expect("it is ours");
        let found: Vec<(String, String)> = self
            .originals
            .iter()
            .flat_map(|(guest, was)| changed(fixture, guest, was))
            .collect();
        // Read last: whatever is changed stands in it before.
        let journal = self.blkpilot.dir().join("data/journal.db");
        let records = Journal::open_to_read(&journal).and_then(|journal| journal.records());
        kill(service, Signal::SIGCONT).expect("it is ours");
        let records = records.expect("the journal can be read");
        for (what, was) in found {
            assert!(
                records.iter().any(|record| is_record(record, &what, &was)),
                "{what} was {was} and is not journalled: {records:#?}"
            );
        }
    }

    /// Ends the service, rolls everything back without it, and checks that all is as it was. Starts it
    /// again.
    ///
    /// # Panics
    /// When something is not.
    pub fn roll_back(&mut self, fixture: &Fixture) {
        self.check_alive();
        self.blkpilot.kill();
        let offline = [
            "rollback",
            "--all",
            "--offline",
            "--config",
            "blkpilot.toml",
        ];
        let rolled_back = self.blkpilot.run_patiently(&offline);
        let said = String::from_utf8_lossy(&rolled_back.stderr);
        assert!(rolled_back.status.success(), "{said}");
        for (guest, was) in &self.originals {
            let left: Vec<_> = changed(fixture, guest, was).collect();
            assert!(left.is_empty(), "{left:?} is left; {said}");
        }
        self.pid = self.blkpilot.serve();
    }
}

fn is_about(row: &DecisionRow, disk: &str) -> bool {
    match &row.subject {
        Subject::Disk { guest, target } => format!("{guest}/{target}") == disk,
        Subject::Device { .. } => false,
    }
}

/// What of a guest is not as it was: a name, and what it was. Of the cache each open image counts, since
/// the fixture starts all of a guest's disks alike.
fn changed<'a>(
    fixture: &'a Fixture,
    guest: &'a str,
    was: &'a Reading,
) -> impl Iterator<Item = (String, String)> + use<'a> {
    let now = Reading::threads(fixture, guest).expect("a guest can be read");
    let threads = [
        ("iothread/1/cpus", now.0, &was.cpus),
        ("iothread/1/poll_max_ns", now.1, &was.poll_max_ns),
    ];
    let threads = threads
        .into_iter()
        .filter(|(_, now, was)| now != *was)
        .map(move |(knob, _, was)| (format!("{guest} {knob}"), was.clone()));
    let images: Vec<(PathBuf, bool)> = open_images(fixture, guest).expect("a guest can be read");
    let images = images
        .into_iter()
        .filter(|(_, is_direct)| cache_text(*is_direct) != was.cache)
        .map(move |(image, _)| (format!("{guest} {}", image.display()), was.cache.to_owned()));
    threads.chain(images)
}

/// Whether a record is about what [`changed`] has named, and knows what it was.
fn is_record(record: &Record, what: &str, was: &str) -> bool {
    let Some(what) = what.strip_prefix(&format!("{} ", record.name)) else {
        return false;
    };
    let is_it = match &record.knob {
        Knob::Cache { .. } => record.undo.as_ref().is_some_and(|undo| undo.contains(what)),
        knob => knob.to_string() == what,
    };
    is_it && record.original == was
}
