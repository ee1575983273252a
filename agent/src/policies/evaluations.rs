//! Evaluations that are kept: what was made of the decision log, as it was answered.

use blkpilot_proto::v1;
use prost::Message as _;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, params};

use crate::database::{Database, DatabaseError};

/// Evaluations that are kept.
pub const MOST_EVALUATIONS: i64 = 200;

/// The evaluations of a database. They never change.
#[derive(Debug, Clone)]
pub struct Evaluations {
    database: Database,
}

impl Evaluations {
    /// Those of a database.
    #[must_use]
    pub fn of(database: Database) -> Self {
        Self { database }
    }

    /// Keeps one, and forgets the oldest beyond what is kept.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn keep(&self, evaluation: &v1::Evaluation) -> Result<(), DatabaseError> {
        self.database.write(|transaction| {
            let keep = || {
                transaction.execute(
                    "INSERT INTO evaluation (id, body) VALUES (?1, ?2)",
                    params![evaluation.name, evaluation.encode_to_vec()],
                )?;
                transaction.execute(
                    "DELETE FROM evaluation WHERE sequence <= (SELECT max(sequence) FROM evaluation) - ?1",
                    [MOST_EVALUATIONS],
                )
            };
            keep().map(|_| ()).map_err(self.database.failed())
        })
    }

    /// One by its name; `None` where there is none.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn find(&self, name: &str) -> Result<Option<v1::Evaluation>, DatabaseError> {
        self.database.read(|connection| {
            let sql = "SELECT body FROM evaluation WHERE id = ?1";
            let found = connection.query_row(sql, [name], |row| decode(&row.get::<_, Vec<u8>>(0)?));
            found.optional().map_err(self.database.failed())
        })
    }

    /// All, newest first.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn list(&self) -> Result<Vec<v1::Evaluation>, DatabaseError> {
        self.database.read(|connection| {
            let list = || -> rusqlite::Result<Vec<v1::Evaluation>> {
                let sql = "SELECT body FROM evaluation ORDER BY sequence DESC";
                let mut statement = connection.prepare(sql)?;
                let listed = statement.query_map([], |row| decode(&row.get::<_, Vec<u8>>(0)?))?;
                listed.collect()
            };
            list().map_err(self.database.failed())
        })
    }

    /// Deletes one; whether it was there.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn delete(&self, name: &str) -> Result<bool, DatabaseError> {
        self.database.write(|transaction| {
            let deleted = transaction.execute("DELETE FROM evaluation WHERE id = ?1", [name]);
            let deleted = deleted.map_err(self.database.failed())?;
            Ok(deleted == 1)
        })
    }
}

fn decode(body: &[u8]) -> rusqlite::Result<v1::Evaluation> {
    v1::Evaluation::decode(body)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error)))
}
