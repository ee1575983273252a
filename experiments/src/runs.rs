//! Training runs in a database: what was run, with which config and code, how it stands and what came of it.
//!
//! One SQLite file per output root, by default `out/runs.db`, written by as many processes as train at once. It is a list
//! for people and scripts: what a run needs to go on is in the directory of the run, and no run dies because the
//! list cannot be written ([`Recorder`]).

mod recorder;
mod table;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, TransactionBehavior, params};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use crate::run_lock::is_held;

pub use recorder::Recorder;
pub use table::{show_text, table};

/// Where the database is, unless `--runs` or [`VARIABLE`] says otherwise.
pub const DEFAULT_FILE: &str = "out/runs.db";
/// Environment variable that names another file.
pub const VARIABLE: &str = "BLKPILOT_RUNS";

/// Time that a writer waits for the others.
const PATIENCE: Duration = Duration::from_secs(5);
/// Version of the schema, in SQLite's `user_version`.
const VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS run (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  config_name   TEXT NOT NULL,
  config        TEXT NOT NULL,
  algorithm     TEXT NOT NULL,
  seed          INTEGER NOT NULL,
  code_version  TEXT NOT NULL,
  status        TEXT NOT NULL CHECK (status IN ('running', 'done', 'interrupted', 'failed', 'lost')),
  error         TEXT,
  started       TEXT NOT NULL,
  ended         TEXT,
  steps_planned INTEGER NOT NULL,
  steps_done    INTEGER NOT NULL,
  figures       TEXT,
  directory     TEXT NOT NULL,
  replaced_by   INTEGER REFERENCES run (id)
) STRICT;
CREATE INDEX IF NOT EXISTS run_directory ON run (directory) WHERE replaced_by IS NULL;";

const COLUMNS: &str = "id, config_name, config, algorithm, seed, code_version, status, error, started, ended, \
                       steps_planned, steps_done, figures, directory, replaced_by";

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// A process is at it.
    Running,
    /// It was trained to its end and compared.
    Done,
    /// Somebody ended it; `resume` goes on with it.
    Interrupted,
    /// It ended with an error.
    Failed,
    /// Its process is gone without a word: killed, or the machine went down.
    Lost,
}

impl Status {
    /// As it stands in the database and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }

    fn of(name: &str) -> Option<Self> {
        let all = Self::value_variants().iter().copied();
        all.into_iter().find(|status| status.name() == name)
    }
}

/// A run that begins, or goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Beginning {
    /// Name of its config.
    pub config_name: String,
    /// The config as it was written.
    pub config: Value,
    /// Name of the learner.
    pub algorithm: String,
    /// Seed of the run.
    pub seed: u64,
    /// [`crate::version::CODE`].
    pub code_version: String,
    /// Host-steps that the config asks for.
    pub steps_planned: u64,
    /// Host-steps played so far.
    pub steps_done: u64,
    /// Its directory, absolute.
    pub directory: PathBuf,
    /// Whether it goes on, as the run that the directory holds already.
    pub goes_on: bool,
}

/// What the database knows of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// Its number in this database.
    pub id: i64,
    /// Name of its config.
    pub config_name: String,
    /// Name of the learner.
    pub algorithm: String,
    /// Seed of the run.
    pub seed: u64,
    /// Code that trained it, last.
    pub code_version: String,
    /// How it stands.
    pub status: Status,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was begun, RFC 3339 in UTC.
    pub started: String,
    /// When it ended last.
    pub ended: Option<String>,
    /// Host-steps that the config asks for.
    pub steps_planned: u64,
    /// Host-steps played by its last checkpoint.
    pub steps_done: u64,
    /// What it came to so far: as in its summary.
    pub figures: Value,
    /// Its directory.
    pub directory: PathBuf,
    /// The run that has taken its place in the directory.
    pub replaced_by: Option<i64>,
    /// The config as it was written.
    pub config: Value,
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those that stand so.
    pub status: Option<Status>,
    /// Only those of configs with this in their name.
    pub config: Option<String>,
    /// Only those of this learner.
    pub algorithm: Option<String>,
}

/// Why the database cannot be used.
#[derive(Debug, Error)]
pub enum RunsError {
    /// There is none.
    #[error("{}: no runs are recorded there: train something, or give the file with --runs", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A later version wrote it.
    #[error("{}: has version {found}, this build reads {VERSION}: use the blkpilot-lab that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// No such run.
    #[error("run {id}: {} has none of this number: `blkpilot-lab runs` lists them", path.display())]
    NoRun {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        id: i64,
    },
    /// A directory that cannot be made.
    #[error("{}: cannot make the directory of the database", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// SQLite failed.
    #[error("{}: the database of runs cannot be used", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
}

/// The database.
#[derive(Debug)]
pub struct Runs {
    path: PathBuf,
    database: Connection,
}

impl Runs {
    /// Opens the database, and makes it when it is not there.
    ///
    /// # Errors
    /// `Directory`, `Version`, `Sqlite`.
    pub fn open(path: &Path) -> Result<Self, RunsError> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|source| RunsError::Directory {
                path: dir.to_owned(),
                source,
            })?;
        }
        let mut runs = Self::checked(path, Connection::open(path))?;
        runs.prepare().map_err(failed(path))?;
        Ok(runs)
    }

    /// Opens a database only to read it.
    ///
    /// # Errors
    /// `Missing`, `Version`, `Sqlite`.
    pub fn open_to_read(path: &Path) -> Result<Self, RunsError> {
        if !path.exists() {
            return Err(RunsError::Missing {
                path: path.to_owned(),
            });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self::checked(path, Connection::open_with_flags(path, flags))
    }

    fn checked(path: &Path, opened: rusqlite::Result<Connection>) -> Result<Self, RunsError> {
        let database = opened.map_err(failed(path))?;
        database.busy_timeout(PATIENCE).map_err(failed(path))?;
        let version = database.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        let found = version.map_err(failed(path))?;
        if found > VERSION {
            return Err(RunsError::Version {
                path: path.to_owned(),
                found,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            database,
        })
    }

    /// Makes a new file what this version needs. Two processes may do so at once: the second finds it done.
    fn prepare(&mut self) -> rusqlite::Result<()> {
        let begin = TransactionBehavior::Immediate;
        let transaction = self.database.transaction_with_behavior(begin)?;
        transaction.execute_batch(&format!("{SCHEMA} PRAGMA user_version = {VERSION};"))?;
        transaction.commit()?;
        let database = &self.database;
        // Those that open it at the same time keep each other from changing the mode; one of them succeeds, and the
        // mode stays with the file.
        let _ = database.pragma_update(None, "journal_mode", "WAL");
        database.pragma_update(None, "synchronous", "NORMAL")
    }

    /// Records that a run begins or goes on; its number. What stood in its directory before is said to be replaced.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn begin(&mut self, run: &Beginning) -> Result<i64, RunsError> {
        let fault = failed(&self.path);
        let immediate = TransactionBehavior::Immediate;
        let transaction = self.database.transaction_with_behavior(immediate);
        let transaction = transaction.map_err(&fault)?;
        let id = begin_in(&transaction, run).map_err(&fault)?;
        transaction.commit().map_err(&fault)?;
        Ok(id)
    }

    /// Records how far a run is.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn progress(&self, id: i64, steps_done: u64, figures: &Value) -> Result<(), RunsError> {
        self.execute(
            "UPDATE run SET steps_done = ?2, figures = ?3 WHERE id = ?1",
            params![id, sql(steps_done), figures.to_string()],
        )
    }

    /// Records that a run has ended, with its figures if there are any, or why it failed.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn end(
        &self,
        id: i64,
        status: Status,
        error: Option<&str>,
        figures: Option<&Value>,
    ) -> Result<(), RunsError> {
        self.execute(
            "UPDATE run SET status = ?2, error = ?3, ended = ?4, figures = coalesce(?5, figures) WHERE id = ?1",
            params![id, status.name(), error, now(), figures.map(Value::to_string)],
        )
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<(), RunsError> {
        let done = self.database.execute(sql, values);
        done.map(|_| ()).map_err(failed(&self.path))
    }

    /// Runs, oldest first. Which of those under way are lost is looked up now.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Record>, RunsError> {
        let read = || -> rusqlite::Result<Vec<Record>> {
            let mut query = self.database.prepare(&format!(
                "SELECT {COLUMNS} FROM run WHERE (?1 IS NULL OR instr(config_name, ?1) > 0) \
                 AND (?2 IS NULL OR algorithm = ?2) ORDER BY id"
            ))?;
            let rows = query.query_map(params![filter.config, filter.algorithm], record)?;
            rows.collect()
        };
        let mut records = read().map_err(failed(&self.path))?;
        records.retain(|record| filter.status.is_none_or(|status| record.status == status));
        Ok(records)
    }

    /// Host-steps of the run that a directory holds, by its last checkpoint.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn steps_done(&self, directory: &Path) -> Result<Option<u64>, RunsError> {
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        let steps: rusqlite::Result<Option<i64>> = self
            .database
            .query_row(
                "SELECT steps_done FROM run WHERE directory = ?1 AND replaced_by IS NULL",
                [directory.to_string_lossy()],
                |row| row.get(0),
            )
            .optional();
        Ok(steps.map_err(failed(&self.path))?.map(i64::cast_unsigned))
    }

    /// One run.
    ///
    /// # Errors
    /// `NoRun`, `Sqlite`.
    pub fn get(&self, id: i64) -> Result<Record, RunsError> {
        let sql = format!("SELECT {COLUMNS} FROM run WHERE id = ?1");
        let found = self.database.query_row(&sql, [id], record).optional();
        let found = found.map_err(failed(&self.path))?;
        found.ok_or_else(|| RunsError::NoRun {
            path: self.path.clone(),
            id,
        })
    }
}

fn begin_in(database: &Connection, run: &Beginning) -> rusqlite::Result<i64> {
    let directory = run.directory.to_string_lossy();
    let standing: Option<i64> = database
        .query_row(
            "SELECT id FROM run WHERE directory = ?1 AND replaced_by IS NULL ORDER BY id DESC",
            [&directory],
            |row| row.get(0),
        )
        .optional()?;
    let (planned, done) = (sql(run.steps_planned), sql(run.steps_done));
    if let Some(id) = standing.filter(|_| run.goes_on) {
        database.execute(
            "UPDATE run SET status = 'running', error = NULL, ended = NULL, code_version = ?2, \
             steps_planned = ?3, steps_done = ?4 WHERE id = ?1",
            params![id, run.code_version, planned, done],
        )?;
        return Ok(id);
    }
    database.execute(
        "INSERT INTO run (config_name, config, algorithm, seed, code_version, status, started, \
         steps_planned, steps_done, directory) VALUES (?1, ?2, ?3, ?4, ?5, 'running', ?6, ?7, ?8, ?9)",
        params![
            run.config_name,
            run.config.to_string(),
            run.algorithm,
            // Bit for bit: SQLite's integers have a sign.
            run.seed.cast_signed(),
            run.code_version,
            now(),
            planned,
            done,
            directory,
        ],
    )?;
    let id = database.last_insert_rowid();
    // Whatever process the earlier ones belonged to, it holds the lock of the directory no longer.
    database.execute(
        "UPDATE run SET replaced_by = ?1, status = iif(status = 'running', 'lost', status) \
         WHERE directory = ?2 AND id <> ?1 AND replaced_by IS NULL",
        params![id, directory],
    )?;
    Ok(id)
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let directory = PathBuf::from(row.get::<_, String>(13)?);
    let json = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok());
    let status: String = row.get(6)?;
    Ok(Record {
        id: row.get(0)?,
        config_name: row.get(1)?,
        config: json(row.get(2)?).unwrap_or_default(),
        algorithm: row.get(3)?,
        seed: row.get::<_, i64>(4)?.cast_unsigned(),
        code_version: row.get(5)?,
        status: standing(Status::of(&status).unwrap_or(Status::Lost), &directory),
        error: row.get(7)?,
        started: row.get(8)?,
        ended: row.get(9)?,
        steps_planned: row.get::<_, i64>(10)?.cast_unsigned(),
        steps_done: row.get::<_, i64>(11)?.cast_unsigned(),
        figures: json(row.get(12)?).unwrap_or_default(),
        directory,
        replaced_by: row.get(14)?,
    })
}

/// A run that was under way when it was last heard of is lost if nobody holds its lock.
fn standing(recorded: Status, directory: &Path) -> Status {
    match recorded {
        Status::Running if matches!(is_held(directory), Ok(false)) => Status::Lost,
        other => other,
    }
}

/// Counts of steps are far below SQLite's greatest integer.
fn sql(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

fn failed(path: &Path) -> impl Fn(rusqlite::Error) -> RunsError + use<> {
    let path = path.to_owned();
    move |source| RunsError::Sqlite {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
