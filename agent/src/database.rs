//! The database of the service: one SQLite file in the data directory, for what must survive and is neither
//! decision log nor journal. Policies, operations and training runs have their tables in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

/// Name of the file in the data directory.
const FILE: &str = "service.db";
/// What makes each version of the schema of the one before it; the first makes it of nothing. One that a build has
/// been released with never changes.
const STEPS: [&str; 3] = [
    include_str!("database/1_policies.sql"),
    include_str!("database/2_evaluations.sql"),
    include_str!("database/3_training.sql"),
];
/// The version of the schema, in SQLite's `user_version`.
const VERSION: usize = STEPS.len();
/// How long one process waits for another's transaction.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// SQLite's, with the file.
    #[error("{}: {source}: free room on its file system, or move a damaged file away", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// A later build has written it.
    #[error("{}: version {found}, and this build knows versions up to {VERSION}: use the one that wrote it", path.display())]
    Later {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: usize,
    },
    /// Its directory cannot be used.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// The database, shared by all who use it in this process. What a transaction has returned from survives
/// `kill -9` and a power cut.
#[derive(Debug, Clone)]
pub struct Database {
    path: Arc<PathBuf>,
    connection: Arc<Mutex<Connection>>,
}

impl Database {
    /// Opens the database of a data directory, making both if need be.
    ///
    /// # Errors
    /// `Io`, `Sqlite`, `Later`.
    pub fn open(data_dir: &Path) -> Result<Self, DatabaseError> {
        fs::create_dir_all(data_dir).map_err(io(data_dir, "create"))?;
        let path = data_dir.join(FILE);
        let is_new = !path.exists();
        let connection = Connection::open(&path).map_err(sqlite(&path))?;
        let this = Self::new(path, connection);
        this.prepare()?;
        if is_new {
            // The file's name must outlast a power cut as what is in it does.
            let dir = File::open(data_dir).map_err(io(data_dir, "open"))?;
            dir.sync_all().map_err(io(data_dir, "sync"))?;
        }
        Ok(this)
    }

    /// Opens it only to read, whether or not a service uses it; `None` where there is none.
    ///
    /// # Errors
    /// `Sqlite`, `Later`.
    pub fn open_to_read(data_dir: &Path) -> Result<Option<Self>, DatabaseError> {
        let path = data_dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(sqlite(&path))?;
        let this = Self::new(path, connection);
        this.known_version()?;
        Ok(Some(this))
    }

    fn new(path: PathBuf, connection: Connection) -> Self {
        Self {
            path: Arc::new(path),
            connection: Arc::new(Mutex::new(connection)),
        }
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What SQLite says, with the file.
    pub(crate) fn failed(&self) -> impl Fn(rusqlite::Error) -> DatabaseError {
        sqlite(&self.path)
    }

    /// Reads, without waiting for anybody who writes.
    pub(crate) fn read<T, E: From<DatabaseError>>(
        &self,
        act: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let connection = self.connection.lock();
        act(&connection.unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes: all that `act` does, on stable storage when this returns, or with an error nothing.
    pub(crate) fn write<T, E: From<DatabaseError>>(
        &self,
        act: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.within(|transaction| {
            let done = act(&transaction)?;
            transaction.commit().map_err(self.failed())?;
            Ok(done)
        })
    }

    /// As [`Database::write`], and then undone: what would come of it.
    pub(crate) fn rehearse<T, E: From<DatabaseError>>(
        &self,
        act: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        // A transaction that is dropped is rolled back.
        self.within(|transaction| act(&transaction))
    }

    fn within<T, E: From<DatabaseError>>(
        &self,
        act: impl FnOnce(Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let connection = self.connection.lock();
        let mut connection = connection.unwrap_or_else(PoisonError::into_inner);
        // Others are kept out from the start, so that what was read still holds when it is written.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        act(transaction.map_err(self.failed())?)
    }

    /// Changes whenever another process, or another handle, has changed something.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn data_version(&self) -> Result<i64, DatabaseError> {
        self.read(|connection| {
            let version = connection.pragma_query_value(None, "data_version", |row| row.get(0));
            version.map_err(self.failed())
        })
    }

    fn known_version(&self) -> Result<usize, DatabaseError> {
        let found = self.read(|connection| version(connection).map_err(self.failed()))?;
        if found > VERSION {
            let path = self.path.to_path_buf();
            return Err(DatabaseError::Later { path, found });
        }
        Ok(found)
    }

    fn prepare(&self) -> Result<(), DatabaseError> {
        self.read(|connection| settle(connection).map_err(self.failed()))?;
        if self.known_version()? == VERSION {
            return Ok(());
        }
        self.write(|transaction| {
            let bring_up = || {
                // Another process may have been faster.
                let found = version(transaction)?;
                for step in STEPS.iter().skip(found) {
                    transaction.execute_batch(step)?;
                }
                transaction.pragma_update(None, "user_version", VERSION as i64)
            };
            bring_up().map_err(self.failed())
        })
    }
}

fn version(connection: &Connection) -> rusqlite::Result<usize> {
    connection.pragma_query_value(None, "user_version", |row| {
        Ok(row.get::<_, u32>(0)? as usize)
    })
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a transaction is on disk before its commit returns.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")
}

fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> DatabaseError + use<> {
    let path = path.to_owned();
    move |source| DatabaseError::Sqlite {
        path: path.clone(),
        source,
    }
}

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> DatabaseError {
    let path = path.to_owned();
    move |source| DatabaseError::Io {
        path,
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn count(database: &Database) -> i64 {
        let count = |connection: &Connection| -> Result<i64, DatabaseError> {
            let count = connection.query_row("SELECT count(*) FROM policy", [], |row| row.get(0));
            count.map_err(database.failed())
        };
        database.read(count).unwrap()
    }

    fn insert(database: &Database, id: &str, fail: bool) -> Result<(), DatabaseError> {
        database.write(|transaction| {
            transaction
                .execute("INSERT INTO policy VALUES (?1, 0, 1, 1)", [id])
                .map_err(database.failed())?;
            if fail {
                return Err(database.failed()(rusqlite::Error::InvalidQuery));
            }
            Ok(())
        })
    }

    #[test]
    fn what_fails_half_way_leaves_nothing_and_others_see_what_was_committed() {
        let dir = TempDir::new().unwrap();
        let [one, other] = [0, 1].map(|_| Database::open(dir.path()).unwrap());
        let before = other.data_version().unwrap();
        assert!(insert(&one, "a", true).is_err());
        assert_eq!(count(&other), 0);
        insert(&one, "a", false).unwrap();
        assert_eq!(count(&other), 1);
        assert_ne!(other.data_version().unwrap(), before);
        let reader = Database::open_to_read(dir.path()).unwrap().unwrap();
        assert_eq!(count(&reader), 1);
        assert!(insert(&reader, "b", false).is_err());
    }

    #[test]
    fn a_file_of_a_later_version_is_refused_by_its_number() {
        let dir = TempDir::new().unwrap();
        assert!(Database::open_to_read(dir.path()).unwrap().is_none());
        let database = Database::open(dir.path()).unwrap();
        let raise = |connection: &Connection| -> Result<(), DatabaseError> {
            let done = connection.pragma_update(None, "user_version", VERSION as i64 + 1);
            done.map_err(database.failed())
        };
        database.read(raise).unwrap();
        let refused = Database::open(dir.path());
        let is_later = |found| found == VERSION + 1;
        assert!(
            matches!(refused, Err(DatabaseError::Later { found, .. }) if is_later(found)),
            "{refused:?}"
        );
    }

    #[test]
    fn a_file_of_an_earlier_version_is_brought_up_and_keeps_what_it_holds() {
        let dir = TempDir::new().unwrap();
        let earlier = Connection::open(dir.path().join(FILE)).unwrap();
        earlier.execute_batch(STEPS[0]).unwrap();
        earlier.pragma_update(None, "user_version", 1).unwrap();
        earlier
            .execute("INSERT INTO policy VALUES ('a', 0, 1, 1)", [])
            .unwrap();
        drop(earlier);
        let database = Database::open(dir.path()).unwrap();
        assert_eq!(count(&database), 1);
        assert_eq!(database.known_version().unwrap(), VERSION);
        let nothing = database.read(|connection| -> Result<i64, DatabaseError> {
            let count =
                "SELECT (SELECT count(*) FROM evaluation) + (SELECT count(*) FROM training_run)";
            let count = connection.query_row(count, [], |row| row.get(0));
            count.map_err(database.failed())
        });
        assert_eq!(nothing.unwrap(), 0);
    }
}
