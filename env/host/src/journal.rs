//! The journal of changes: what every knob was before we touched it, on disk before we do.
//!
//! One row per knob. Guests are keyed by boot, UUID and the start of their QEMU, so that a value
//! never finds its way to another life of a guest; devices by boot and an id that stays theirs,
//! since a kernel name may be another device's tomorrow. A write is journalled as an intent, then
//! applied, read back and settled; after a crash an intent that was not settled is compared with
//! what the host says ([`Journal::records`], [`crate::tuner`]).

mod notes;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};

use crate::error::{HostError, HostResult};
use crate::knob::Knob;

pub use notes::Note;

/// One life of a guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestLife {
    /// The kernel's boot id.
    pub boot_id: String,
    /// UUID of the domain.
    pub uuid: String,
    /// Start of its QEMU, in clock ticks since boot.
    pub qemu_started_ticks: u64,
}

/// One life of a block device: its settings end with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceLife {
    /// The kernel's boot id.
    pub boot_id: String,
    /// Which device, whatever the kernel calls it: see [`crate::device::stable_id`].
    pub id: String,
}

/// Whose knob it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Life {
    /// A guest's.
    Guest(GuestLife),
    /// A block device's.
    Device(DeviceLife),
}

/// Where a knob's record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordState {
    /// Written down, and perhaps applied: a crash came between.
    Intended,
    /// Applied and read back.
    Settled,
    /// Somebody else changed the knob since; it is left alone.
    Frozen,
}

/// What the journal knows of one knob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose it is.
    pub life: Life,
    /// The guest's name or the device's kernel name, for messages.
    pub name: String,
    /// The knob.
    pub knob: Knob,
    /// Its value before we ever changed it.
    pub original: String,
    /// Its value before the last change.
    pub previous: String,
    /// The value of the last change.
    pub value: String,
    /// Where the last change stands.
    pub state: RecordState,
    /// What was found when somebody else's change was noticed; only where it is frozen.
    pub found: Option<String>,
    /// When it last changed its state or value, microseconds since 1970 UTC; `None` in a record of a
    /// version that did not note it.
    pub at_us: Option<i64>,
    /// What it takes to put the original back beside the value itself: for a knob that libvirt has no
    /// call for the monitor command, for a scheduler the settings that the kernel changed with it.
    pub undo: Option<String>,
}

/// A change that is about to be made.
#[derive(Debug, Clone, Copy)]
pub struct Intent<'a> {
    /// Whose knob it is.
    pub life: &'a Life,
    /// The guest's name or the device's kernel name, for messages.
    pub name: &'a str,
    /// The knob.
    pub knob: &'a Knob,
    /// Its value now; the original, if there is no record of the knob yet.
    pub current: &'a str,
    /// Its value afterwards.
    pub value: &'a str,
    /// As [`Record::undo`].
    pub undo: Option<&'a str>,
}

/// The journal in a SQLite file. A change that it has returned from survives a power cut.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    database: Connection,
    version: i64,
    /// What is read of a record: an older file lacks some.
    columns: &'static str,
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS knob (
  sequence     INTEGER PRIMARY KEY AUTOINCREMENT,
  boot_id      TEXT NOT NULL,
  uuid         TEXT NOT NULL,
  qemu_started INTEGER NOT NULL,
  guest        TEXT NOT NULL,
  knob         TEXT NOT NULL,
  original     TEXT NOT NULL,
  previous     TEXT NOT NULL,
  value        TEXT NOT NULL,
  state        TEXT NOT NULL CHECK (state IN ('intended', 'settled', 'frozen')),
  found        TEXT,
  at_us        INTEGER,
  undo         TEXT,
  UNIQUE (boot_id, uuid, qemu_started, knob)
) STRICT;";

// A device's row has its id in `uuid`, its kernel name in `guest` and 0 in `qemu_started`; that it is a
// device's is told by its knob.

/// What version 1 has and version 0 had not.
const TO_VERSION_1: &str = "
ALTER TABLE knob ADD COLUMN found TEXT;
ALTER TABLE knob ADD COLUMN at_us INTEGER;
ALTER TABLE knob ADD COLUMN undo TEXT;";

/// The version of the schema, in SQLite's `user_version`. Version 2 has rows of devices, version 3 of
/// settings of disks: builds that do not know them cannot put them back.
const VERSION: i64 = 3;

const COLUMNS: &str = "boot_id, uuid, qemu_started, guest, knob, original, previous, value, state, found, at_us, undo";
/// Read from a file of version 0, which is not to be changed.
const COLUMNS_OF_VERSION_0: &str =
    "boot_id, uuid, qemu_started, guest, knob, original, previous, value, state, NULL, NULL, NULL";
const KEY: &str = "boot_id = ?1 AND uuid = ?2 AND qemu_started = ?3 AND knob = ?4";

impl Journal {
    /// Opens the journal, and makes it when it is not there.
    ///
    /// # Errors
    /// `Journal`, `JournalDamaged`; `Unsupported` when a later version wrote it.
    pub fn open(path: &Path) -> HostResult<Self> {
        let database = Connection::open(path).map_err(failed(path))?;
        let journal = Self::new(path, database)?;
        journal.prepare().map_err(failed(path))?;
        Ok(Self {
            version: VERSION,
            columns: COLUMNS,
            ..journal
        })
    }

    /// Opens a journal only to read it, whether or not its owner runs.
    ///
    /// # Errors
    /// `JournalMissing`, `JournalDamaged`, `Journal`; `Unsupported` when a later version wrote it.
    pub fn open_to_read(path: &Path) -> HostResult<Self> {
        if !path.exists() {
            return Err(HostError::JournalMissing {
                path: path.to_owned(),
            });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags).map_err(failed(path))?;
        let journal = Self::new(path, database)?;
        journal.check()?;
        Ok(journal)
    }

    fn new(path: &Path, database: Connection) -> HostResult<Self> {
        let version = database.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        let version = version.map_err(failed(path))?;
        if version > VERSION {
            return Err(HostError::Unsupported {
                what: format!("journal {}: version {version}", path.display()),
                reason: format!(
                    "this build knows versions up to {VERSION}: use the one that wrote it"
                ),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            database,
            version,
            columns: if version == 0 {
                COLUMNS_OF_VERSION_0
            } else {
                COLUMNS
            },
        })
    }

    /// Makes a new or older file what this version needs.
    fn prepare(&self) -> rusqlite::Result<()> {
        let database = &self.database;
        database.pragma_update(None, "journal_mode", "WAL")?;
        // FULL: a transaction is on disk before its commit returns.
        database.pragma_update(None, "synchronous", "FULL")?;
        if self.version == VERSION {
            return Ok(());
        }
        let change = match self.version {
            _ if !database.table_exists(None, "knob")? => SCHEMA,
            0 => TO_VERSION_1,
            _ => "",
        };
        database.execute_batch(&format!(
            "BEGIN IMMEDIATE;{change}PRAGMA user_version = {VERSION};COMMIT;"
        ))
    }

    /// Whether the whole file can be read: a damaged one must not look like an empty one.
    fn check(&self) -> HostResult<()> {
        let verdict = self
            .database
            .query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
            .map_err(failed(&self.path))?;
        let has_table = self.database.table_exists(None, "knob");
        let problem = match has_table.map_err(failed(&self.path))? {
            _ if verdict != "ok" => verdict,
            false => "it has no table `knob`".to_owned(),
            true => return Ok(()),
        };
        Err(HostError::JournalDamaged {
            path: self.path.clone(),
            problem,
        })
    }

    /// Writes down that a knob is about to change. The first such call for a knob keeps `current` as
    /// its original.
    ///
    /// # Errors
    /// `Journal`: then the change must not be made.
    pub fn intend(&self, intent: &Intent<'_>) -> HostResult<()> {
        let sql = format!(
            "INSERT INTO knob ({COLUMNS}) VALUES (?1, ?2, ?3, ?5, ?4, ?6, ?6, ?7, 'intended', NULL, ?8, ?9)
             ON CONFLICT (boot_id, uuid, qemu_started, knob)
             DO UPDATE SET previous = ?6, value = ?7, state = 'intended', guest = ?5, found = NULL,
                           at_us = ?8, undo = ?9"
        );
        let (boot_id, id, started) = intent.life.key();
        self.execute(
            &sql,
            params![
                boot_id,
                id,
                started,
                intent.knob.to_string(),
                intent.name,
                intent.current,
                intent.value,
                now_us(),
                intent.undo,
            ],
        )
    }

    /// Writes down that a knob stands at `value`, read back.
    ///
    /// # Errors
    /// `Journal`.
    pub fn settle(&self, life: &Life, knob: &Knob, value: &str) -> HostResult<()> {
        let sql = format!(
            "UPDATE knob SET value = ?5, state = 'settled', found = NULL, at_us = ?6 WHERE {KEY}"
        );
        self.update(&sql, life, knob, value)
    }

    /// Writes down what else it takes to put a knob back, now that its change has been made.
    ///
    /// # Errors
    /// `Journal`.
    pub fn note_undo(&self, life: &Life, knob: &Knob, undo: &str) -> HostResult<()> {
        let sql = format!("UPDATE knob SET undo = ?5, at_us = ?6 WHERE {KEY}");
        self.update(&sql, life, knob, undo)
    }

    /// Writes down that somebody else changed a knob to `found`.
    ///
    /// # Errors
    /// `Journal`.
    pub fn freeze(&self, life: &Life, knob: &Knob, found: &str) -> HostResult<()> {
        let sql = format!("UPDATE knob SET state = 'frozen', found = ?5, at_us = ?6 WHERE {KEY}");
        self.update(&sql, life, knob, found)
    }

    fn update(&self, sql: &str, life: &Life, knob: &Knob, value: &str) -> HostResult<()> {
        let (boot_id, id, started) = life.key();
        let knob = knob.to_string();
        self.execute(sql, params![boot_id, id, started, knob, value, now_us()])
    }

    /// Hands a record on to the life that goes on with its guest.
    ///
    /// # Errors
    /// `Journal`.
    pub fn hand_on(&self, life: &Life, knob: &Knob, next: &Life) -> HostResult<()> {
        let sql = format!(
            "UPDATE OR REPLACE knob SET boot_id = ?5, uuid = ?6, qemu_started = ?7 WHERE {KEY}"
        );
        let (boot_id, id, started) = life.key();
        let (next_boot_id, next_id, next_started) = next.key();
        let knob = knob.to_string();
        self.execute(
            &sql,
            params![
                boot_id,
                id,
                started,
                knob,
                next_boot_id,
                next_id,
                next_started
            ],
        )
    }

    /// Drops a record: its original value was restored and read back, or its owner's life is over.
    ///
    /// # Errors
    /// `Journal`.
    pub fn drop_record(&self, life: &Life, knob: &Knob) -> HostResult<()> {
        let sql = format!("DELETE FROM knob WHERE {KEY}");
        let (boot_id, id, started) = life.key();
        self.execute(&sql, params![boot_id, id, started, knob.to_string()])
    }

    /// The record of a knob, if there is one.
    ///
    /// # Errors
    /// `Journal`.
    pub fn record(&self, life: &Life, knob: &Knob) -> HostResult<Option<Record>> {
        let sql = format!("SELECT {} FROM knob WHERE {KEY}", self.columns);
        let (boot_id, id, started) = life.key();
        let key = params![boot_id, id, started, knob.to_string()];
        self.database
            .query_row(&sql, key, read_record)
            .optional()
            .map_err(self.error())?
            .transpose()
    }

    /// All records, those of the latest first changes first: the order of a rollback.
    ///
    /// # Errors
    /// `Journal`; `Parse` for a knob that this version does not know.
    pub fn records(&self) -> HostResult<Vec<Record>> {
        let sql = format!("SELECT {} FROM knob ORDER BY sequence DESC", self.columns);
        let mut statement = self.database.prepare(&sql).map_err(self.error())?;
        let rows = statement.query_map([], read_record).map_err(self.error())?;
        let rows: Vec<HostResult<Record>> = rows.collect::<Result<_, _>>().map_err(self.error())?;
        rows.into_iter().collect()
    }

    /// Asks `may` before each commit, which fails when it says no.
    #[cfg(test)]
    pub(crate) fn ask_before_commits(&self, mut may: impl FnMut() -> bool + Send + 'static) {
        let hooked = self.database.commit_hook(Some(move || !may()));
        hooked.expect("the connection is this journal's own");
    }

    /// Leaves out what only a power cut would need: the death of a process does not.
    #[cfg(test)]
    pub(crate) fn skip_syncs(&self) {
        let set = self.database.pragma_update(None, "synchronous", "OFF");
        set.expect("SQLite takes the pragma");
    }

    /// Lets the file grow no more, as on a file system that is full.
    #[cfg(test)]
    pub(crate) fn fill_up(&self) {
        let pages = "PRAGMA page_count";
        let pages = self
            .database
            .query_row(pages, [], |row| row.get::<_, i64>(0));
        let most = pages.and_then(|pages| {
            let limit = format!("PRAGMA max_page_count = {pages}");
            self.database
                .query_row(&limit, [], |row| row.get::<_, i64>(0))
        });
        most.expect("SQLite says how many pages there are");
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> HostResult<()> {
        self.database
            .execute(sql, values)
            .map(drop)
            .map_err(self.error())
    }

    fn error(&self) -> impl FnOnce(rusqlite::Error) -> HostError + '_ {
        failed(&self.path)
    }
}

fn failed(path: &Path) -> impl FnOnce(rusqlite::Error) -> HostError + '_ {
    |source| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => HostError::JournalDamaged {
            path: path.to_owned(),
            problem: source.to_string(),
        },
        Some(ErrorCode::DiskFull) => HostError::JournalFull {
            path: path.to_owned(),
            source,
        },
        _ => HostError::Journal {
            path: path.to_owned(),
            source,
        },
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or_default().as_micros();
    i64::try_from(since).unwrap_or(i64::MAX)
}

fn read_record(row: &Row<'_>) -> rusqlite::Result<HostResult<Record>> {
    let (knob, state): (String, String) = (row.get(4)?, row.get(8)?);
    let (boot_id, id, name) = (row.get(0)?, row.get(1)?, row.get(3)?);
    let started = row.get::<_, i64>(2)?.cast_unsigned();
    let (original, previous, value) = (row.get(5)?, row.get(6)?, row.get(7)?);
    let (found, at_us, undo) = (row.get(9)?, row.get(10)?, row.get(11)?);
    let state = match state.as_str() {
        "intended" => RecordState::Intended,
        "settled" => RecordState::Settled,
        _ => RecordState::Frozen,
    };
    Ok(knob.parse().map(|knob| Record {
        life: Life::of(&knob, boot_id, id, started),
        name,
        knob,
        original,
        previous,
        value,
        state,
        found,
        at_us,
        undo,
    }))
}

impl Life {
    fn of(knob: &Knob, boot_id: String, id: String, started: u64) -> Self {
        match knob {
            Knob::Device(_) => Self::Device(DeviceLife { boot_id, id }),
            _ => Self::Guest(GuestLife {
                boot_id,
                uuid: id,
                qemu_started_ticks: started,
            }),
        }
    }

    /// Boot, id and start, as a row has them.
    fn key(&self) -> (&str, &str, i64) {
        match self {
            Self::Guest(life) => (
                &life.boot_id,
                &life.uuid,
                life.qemu_started_ticks.cast_signed(),
            ),
            Self::Device(life) => (&life.boot_id, &life.id, 0),
        }
    }

    /// The guest's; `None` of a device.
    #[must_use]
    pub fn guest(&self) -> Option<&GuestLife> {
        match self {
            Self::Guest(life) => Some(life),
            Self::Device(_) => None,
        }
    }

    /// The device's; `None` of a guest.
    #[must_use]
    pub fn device(&self) -> Option<&DeviceLife> {
        match self {
            Self::Device(life) => Some(life),
            Self::Guest(_) => None,
        }
    }

    /// The boot it belongs to.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        self.key().0
    }
}

impl From<GuestLife> for Life {
    fn from(life: GuestLife) -> Self {
        Self::Guest(life)
    }
}

impl Record {
    /// Whose knob it is, in words: `guest web`, `device nvme0n1`.
    #[must_use]
    pub fn owner(&self) -> String {
        owner(&self.knob, &self.name)
    }
}

/// Whose knob it is, in words.
pub(crate) fn owner(knob: &Knob, name: &str) -> String {
    let kind = match knob {
        Knob::Device(_) => "device",
        _ => "guest",
    };
    format!("{kind} {name}")
}

impl fmt::Display for RecordState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intended => "intended",
            Self::Settled => "settled",
            Self::Frozen => "frozen",
        })
    }
}

impl fmt::Display for GuestLife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (QEMU started at tick {}, boot {})",
            self.uuid, self.qemu_started_ticks, self.boot_id
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceKnob;

    fn life() -> Life {
        life_since(7)
    }

    fn life_since(qemu_started_ticks: u64) -> Life {
        Life::Guest(GuestLife {
            boot_id: "b".into(),
            uuid: "u".into(),
            qemu_started_ticks,
        })
    }

    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal.db")).unwrap();
        (dir, journal)
    }

    /// Intends `current` → `value`.
    fn intend(journal: &Journal, life: &Life, knob: &Knob, current: &str, value: &str) {
        let intent = Intent {
            life,
            name: "g",
            knob,
            current,
            value,
            undo: None,
        };
        journal.intend(&intent).unwrap();
    }

    #[test]
    fn the_original_is_kept_over_later_changes() {
        let (_dir, journal) = journal();
        let knob = Knob::Polling { iothread: 1 };
        intend(&journal, &life(), &knob, "32768", "0");
        journal.settle(&life(), &knob, "0").unwrap();
        intend(&journal, &life(), &knob, "0", "16384");
        let record = journal.record(&life(), &knob).unwrap().unwrap();
        assert_eq!(
            (
                record.original.as_str(),
                record.previous.as_str(),
                record.value.as_str()
            ),
            ("32768", "0", "16384")
        );
        assert_eq!(record.state, RecordState::Intended);
    }

    #[test]
    fn records_survive_reopening_and_come_newest_first() {
        let (dir, journal) = journal();
        let knobs = [
            Knob::Channel { iothread: 1 },
            Knob::Cache {
                target: "vda".into(),
            },
        ];
        for knob in &knobs {
            intend(&journal, &life(), knob, "old", "new");
        }
        drop(journal);
        let journal = Journal::open(&dir.path().join("journal.db")).unwrap();
        let found: Vec<Knob> = journal
            .records()
            .unwrap()
            .into_iter()
            .map(|record| record.knob)
            .collect();
        assert_eq!(found, [knobs[1].clone(), knobs[0].clone()]);
    }

    #[test]
    fn another_life_of_a_guest_has_no_record() {
        let (_dir, journal) = journal();
        let knob = Knob::Channel { iothread: 1 };
        intend(&journal, &life(), &knob, "0-1", "1");
        let next = life_since(8);
        assert_eq!(journal.record(&next, &knob).unwrap(), None);
        journal.drop_record(&life(), &knob).unwrap();
        assert_eq!(journal.records().unwrap(), []);
    }

    #[test]
    fn what_was_found_and_when_is_kept_until_the_knob_is_ours_again() {
        let (_dir, journal) = journal();
        let (life, knob) = (life(), Knob::Channel { iothread: 1 });
        intend(&journal, &life, &knob, "0-1", "1");
        let intended_at = journal.records().unwrap()[0].at_us.unwrap();
        journal.freeze(&life, &knob, "0").unwrap();
        let frozen = journal.record(&life, &knob).unwrap().unwrap();
        assert_eq!(frozen.state, RecordState::Frozen);
        assert_eq!(
            (frozen.value.as_str(), frozen.found.as_deref()),
            ("1", Some("0"))
        );
        assert!(frozen.at_us.unwrap() >= intended_at);
        journal.settle(&life, &knob, "0").unwrap();
        assert_eq!(journal.records().unwrap()[0].found, None);
    }

    /// A journal as version 0 wrote it.
    fn old_journal(path: &Path) {
        let columns = [
            "found        TEXT,",
            "at_us        INTEGER,",
            "undo         TEXT,",
        ];
        let schema = columns.iter().fold(SCHEMA.to_owned(), |schema, column| {
            schema.replace(&format!("  {column}\n"), "")
        });
        let database = Connection::open(path).unwrap();
        database.execute_batch(&schema).unwrap();
        let row = "INSERT INTO knob VALUES (1, 'b', 'u', 7, 'g', 'iothread/1/cpus', '0-1', '0-1', '1', 'settled')";
        database.execute_batch(row).unwrap();
    }

    #[test]
    fn a_journal_of_the_version_before_is_read_as_it_is_and_brought_up_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        old_journal(&path);
        let before = std::fs::read(&path).unwrap();
        let read = Journal::open_to_read(&path).unwrap().records().unwrap();
        assert_eq!((read[0].original.as_str(), read[0].at_us), ("0-1", None));
        assert_eq!(std::fs::read(&path).unwrap(), before);

        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.records().unwrap(), read);
        journal.freeze(&life(), &read[0].knob, "0").unwrap();
        let read = Journal::open_to_read(&path).unwrap().records().unwrap();
        assert_eq!(read[0].found.as_deref(), Some("0"));
        drop(Journal::open(&path).unwrap());
    }

    #[test]
    fn a_journal_of_version_1_is_brought_up_with_its_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        let version = |database: &Connection| {
            let read =
                database.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
            read.unwrap()
        };
        let journal = Journal::open(&path).unwrap();
        intend(
            &journal,
            &life(),
            &Knob::Channel { iothread: 1 },
            "0-1",
            "1",
        );
        let records = journal.records().unwrap();
        drop(journal);
        // Version 1 differs in nothing but its number.
        let database = Connection::open(&path).unwrap();
        database.pragma_update(None, "user_version", 1).unwrap();
        drop(database);
        let read = Journal::open_to_read(&path).unwrap();
        assert_eq!(read.records().unwrap(), records);
        assert_eq!(version(&read.database), 1);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.records().unwrap(), records);
        assert_eq!(version(&journal.database), VERSION);
    }

    #[test]
    fn a_device_has_records_of_its_own_that_end_with_the_boot() {
        let (_dir, journal) = journal();
        let device = |boot_id: &str| {
            let (boot_id, id) = (boot_id.to_owned(), "wwid:naa.1".to_owned());
            Life::Device(DeviceLife { boot_id, id })
        };
        let knob = Knob::Device(DeviceKnob::Scheduler);
        intend(&journal, &device("b"), &knob, "none", "bfq");
        journal
            .note_undo(&device("b"), &knob, "nr_requests:128:256")
            .unwrap();
        let record = journal.record(&device("b"), &knob).unwrap().unwrap();
        assert_eq!(record.life, device("b"));
        assert_eq!(record.owner(), "device g");
        assert_eq!(record.undo.as_deref(), Some("nr_requests:128:256"));
        assert_eq!(journal.records().unwrap(), [record]);
        assert_eq!(journal.record(&device("c"), &knob).unwrap(), None);
    }

    #[test]
    fn a_journal_is_read_beside_its_owner() {
        let (dir, journal) = journal();
        let reader = Journal::open_to_read(&dir.path().join("journal.db")).unwrap();
        assert_eq!(reader.records().unwrap(), []);
        intend(
            &journal,
            &life(),
            &Knob::Channel { iothread: 1 },
            "0-1",
            "1",
        );
        assert_eq!(reader.records().unwrap(), journal.records().unwrap());
        let written = reader.drop_record(&life(), &Knob::Channel { iothread: 1 });
        assert!(
            matches!(written, Err(HostError::Journal { .. })),
            "{written:?}"
        );
    }

    #[test]
    fn what_cannot_be_read_says_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        let error = |path: &Path| {
            let read = Journal::open_to_read(path).and_then(|journal| journal.records());
            read.unwrap_err().to_string()
        };
        assert!(
            error(&path).contains("service.data_dir"),
            "{}",
            error(&path)
        );
        assert!(!path.exists(), "reading makes no journal");

        for damaged in [&b""[..], b"this is no database, whatever its name says"] {
            std::fs::write(&path, damaged).unwrap();
            assert!(error(&path).contains("is damaged"), "{}", error(&path));
            assert!(error(&path).contains("start it again"), "{}", error(&path));
        }
        std::fs::remove_file(&path).unwrap();

        let journal = Journal::open(&path).unwrap();
        for iothread in 0..200 {
            intend(&journal, &life(), &Knob::Channel { iothread }, "0-1", "1");
        }
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(error(&path).contains("is damaged"), "{}", error(&path));

        std::fs::remove_file(&path).unwrap();
        drop(Journal::open(&path).unwrap());
        let database = Connection::open(&path).unwrap();
        database
            .pragma_update(None, "user_version", VERSION + 1)
            .unwrap();
        assert!(
            error(&path).contains("use the one that wrote it"),
            "{}",
            error(&path)
        );
        assert!(Journal::open(&path).is_err());
    }
}
