//! Training runs as rows.

use blkpilot_proto::v1;
use prost::Message as _;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::state::is_ended;

/// A run with what clients are not shown of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    /// Without its source.
    pub(super) run: v1::TrainingRun,
    /// Runs with smaller ones are begun first.
    pub(super) place: i64,
    /// Changes of its state so far.
    pub(super) revision: i64,
    /// Whether it goes on although the code has changed.
    pub(super) is_forced: bool,
}

const COLUMNS: &str = "body, place, revision, is_forced";

pub(super) fn insert(
    transaction: &Transaction<'_>,
    id: &str,
    record: &Record,
    source: &v1::TrainingSource,
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO training_run (id, is_open, place, revision, is_forced, body, source)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            id,
            !is_ended(record.run.state()),
            record.place,
            record.revision,
            record.is_forced,
            record.run.encode_to_vec(),
            source.encode_to_vec(),
        ],
    )?;
    Ok(())
}

pub(super) fn update(
    transaction: &Transaction<'_>,
    id: &str,
    record: &Record,
) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE training_run SET is_open = ?2, place = ?3, revision = ?4, is_forced = ?5, body = ?6 WHERE id = ?1",
        params![
            id,
            !is_ended(record.run.state()),
            record.place,
            record.revision,
            record.is_forced,
            record.run.encode_to_vec(),
        ],
    )?;
    Ok(())
}

pub(super) fn delete(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM training_run WHERE id = ?1", [id])?;
    Ok(())
}

pub(super) fn find(connection: &Connection, id: &str) -> rusqlite::Result<Option<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM training_run WHERE id = ?1");
    connection.query_row(&sql, [id], record).optional()
}

pub(super) fn source(
    connection: &Connection,
    id: &str,
) -> rusqlite::Result<Option<v1::TrainingSource>> {
    let sql = "SELECT source FROM training_run WHERE id = ?1";
    let read = |row: &Row<'_>| decode(row, 0);
    connection.query_row(sql, [id], read).optional()
}

/// All, newest first.
pub(super) fn list(connection: &Connection) -> rusqlite::Result<Vec<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM training_run ORDER BY sequence DESC");
    let mut statement = connection.prepare(&sql)?;
    let listed = statement.query_map([], record)?;
    listed.collect()
}

pub(super) fn count(connection: &Connection) -> rusqlite::Result<usize> {
    let sql = "SELECT count(*) FROM training_run";
    let count = connection.query_row(sql, [], |row| row.get::<_, u32>(0))?;
    Ok(count as usize)
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        run: decode(row, 0)?,
        place: row.get(1)?,
        revision: row.get(2)?,
        is_forced: row.get(3)?,
    })
}

fn decode<T: prost::Message + Default>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let body: Vec<u8> = row.get(column)?;
    T::decode(&body[..]).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error))
    })
}
