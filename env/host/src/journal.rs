//! The journal of changes: what every knob was before we touched it, on disk before we do.
//!
//! One row per knob. Guests are keyed by boot, UUID and the start of their QEMU, so that a value
//! never finds its way to another life of a guest. A write is journalled as an intent, then
//! applied, read back and settled; after a crash an intent that was not settled is compared with
//! what the host says ([`Journal::records`], [`crate::tuner`]).

use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{HostError, HostResult};
use crate::knob::Knob;

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
    /// The guest's life.
    pub life: GuestLife,
    /// The guest's name, for messages.
    pub guest: String,
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
}

/// The journal in a SQLite file. A change that it has returned from survives a power cut.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    database: Connection,
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
  UNIQUE (boot_id, uuid, qemu_started, knob)
) STRICT;";

const COLUMNS: &str = "boot_id, uuid, qemu_started, guest, knob, original, previous, value, state";
const KEY: &str = "boot_id = ?1 AND uuid = ?2 AND qemu_started = ?3 AND knob = ?4";

impl Journal {
    /// Opens the journal, and makes it when it is not there.
    ///
    /// # Errors
    /// `Journal`.
    pub fn open(path: &Path) -> HostResult<Self> {
        let error = |source| HostError::Journal {
            path: path.to_owned(),
            source,
        };
        let database = Connection::open(path).map_err(error)?;
        database
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(error)?;
        // FULL: a transaction is on disk before its commit returns.
        database
            .pragma_update(None, "synchronous", "FULL")
            .map_err(error)?;
        database.execute_batch(SCHEMA).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            database,
        })
    }

    /// Writes down that a knob is about to change from `current` to `value`. The first such call
    /// for a knob keeps `current` as its original.
    ///
    /// # Errors
    /// `Journal`: then the change must not be made.
    pub fn intend(
        &self,
        life: &GuestLife,
        guest: &str,
        knob: &Knob,
        current: &str,
        value: &str,
    ) -> HostResult<()> {
        let sql = format!(
            "INSERT INTO knob ({COLUMNS}) VALUES (?1, ?2, ?3, ?5, ?4, ?6, ?6, ?7, 'intended')
             ON CONFLICT (boot_id, uuid, qemu_started, knob)
             DO UPDATE SET previous = ?6, value = ?7, state = 'intended', guest = ?5"
        );
        let ticks = life.qemu_started_ticks.cast_signed();
        self.execute(
            &sql,
            params![
                life.boot_id,
                life.uuid,
                ticks,
                knob.to_string(),
                guest,
                current,
                value
            ],
        )
    }

    /// Writes down that a knob stands at `value`, read back.
    ///
    /// # Errors
    /// `Journal`.
    pub fn settle(&self, life: &GuestLife, knob: &Knob, value: &str) -> HostResult<()> {
        let sql = format!("UPDATE knob SET value = ?5, state = 'settled' WHERE {KEY}");
        let ticks = life.qemu_started_ticks.cast_signed();
        self.execute(
            &sql,
            params![life.boot_id, life.uuid, ticks, knob.to_string(), value],
        )
    }

    /// Writes down that somebody else changed a knob.
    ///
    /// # Errors
    /// `Journal`.
    pub fn freeze(&self, life: &GuestLife, knob: &Knob) -> HostResult<()> {
        let sql = format!("UPDATE knob SET state = 'frozen' WHERE {KEY}");
        self.execute(
            &sql,
            params![
                life.boot_id,
                life.uuid,
                life.qemu_started_ticks.cast_signed(),
                knob.to_string()
            ],
        )
    }

    /// Drops a record: its original value was restored and read back, or its guest's life is over.
    ///
    /// # Errors
    /// `Journal`.
    pub fn drop_record(&self, life: &GuestLife, knob: &Knob) -> HostResult<()> {
        let sql = format!("DELETE FROM knob WHERE {KEY}");
        self.execute(
            &sql,
            params![
                life.boot_id,
                life.uuid,
                life.qemu_started_ticks.cast_signed(),
                knob.to_string()
            ],
        )
    }

    /// The record of a knob, if there is one.
    ///
    /// # Errors
    /// `Journal`.
    pub fn record(&self, life: &GuestLife, knob: &Knob) -> HostResult<Option<Record>> {
        let sql = format!("SELECT {COLUMNS} FROM knob WHERE {KEY}");
        let ticks = life.qemu_started_ticks.cast_signed();
        let key = params![life.boot_id, life.uuid, ticks, knob.to_string()];
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
        let sql = format!("SELECT {COLUMNS} FROM knob ORDER BY sequence DESC");
        let mut statement = self.database.prepare(&sql).map_err(self.error())?;
        let rows = statement.query_map([], read_record).map_err(self.error())?;
        let rows: Vec<HostResult<Record>> = rows.collect::<Result<_, _>>().map_err(self.error())?;
        rows.into_iter().collect()
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> HostResult<()> {
        self.database
            .execute(sql, values)
            .map(drop)
            .map_err(self.error())
    }

    fn error(&self) -> impl FnOnce(rusqlite::Error) -> HostError + '_ {
        |source| HostError::Journal {
            path: self.path.clone(),
            source,
        }
    }
}

fn read_record(row: &Row<'_>) -> rusqlite::Result<HostResult<Record>> {
    let (knob, state): (String, String) = (row.get(4)?, row.get(8)?);
    let (life, guest) = (
        GuestLife {
            boot_id: row.get(0)?,
            uuid: row.get(1)?,
            qemu_started_ticks: row.get::<_, i64>(2)?.cast_unsigned(),
        },
        row.get(3)?,
    );
    let (original, previous, value) = (row.get(5)?, row.get(6)?, row.get(7)?);
    let state = match state.as_str() {
        "intended" => RecordState::Intended,
        "settled" => RecordState::Settled,
        _ => RecordState::Frozen,
    };
    Ok(knob.parse().map(|knob| Record {
        life,
        guest,
        knob,
        original,
        previous,
        value,
        state,
    }))
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

    fn life() -> GuestLife {
        GuestLife {
            boot_id: "b".into(),
            uuid: "u".into(),
            qemu_started_ticks: 7,
        }
    }

    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal.db")).unwrap();
        (dir, journal)
    }

    #[test]
    fn the_original_is_kept_over_later_changes() {
        let (_dir, journal) = journal();
        let knob = Knob::Polling { iothread: 1 };
        journal.intend(&life(), "g", &knob, "32768", "0").unwrap();
        journal.settle(&life(), &knob, "0").unwrap();
        journal.intend(&life(), "g", &knob, "0", "16384").unwrap();
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
            journal.intend(&life(), "g", knob, "old", "new").unwrap();
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
        journal.intend(&life(), "g", &knob, "0-1", "1").unwrap();
        let next = GuestLife {
            qemu_started_ticks: 8,
            ..life()
        };
        assert_eq!(journal.record(&next, &knob).unwrap(), None);
        journal.drop_record(&life(), &knob).unwrap();
        assert_eq!(journal.records().unwrap(), []);
    }
}
