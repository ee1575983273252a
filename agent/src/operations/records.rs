//! Operations as rows.

use blkpilot_proto::longrunning::Operation;
use blkpilot_proto::longrunning::operation::Result as Ending;
use blkpilot_proto::v1;
use prost::Message as _;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{MOST_DONE, any};
use crate::decision::now_us;
use crate::wire::timestamp;

pub(super) fn insert(transaction: &Transaction<'_>, operation: &Operation) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO operation (id, done, messages, body) VALUES (?1, ?2, 0, ?3)",
        params![operation.name, operation.done, operation.encode_to_vec()],
    )?;
    prune(transaction)
}

pub(super) fn finish(
    transaction: &Transaction<'_>,
    operation: &Operation,
    messages: u64,
) -> rusqlite::Result<()> {
    let messages = i64::try_from(messages).unwrap_or(i64::MAX);
    transaction.execute(
        "UPDATE operation SET done = 1, messages = ?2, body = ?3 WHERE id = ?1",
        params![operation.name, messages, operation.encode_to_vec()],
    )?;
    prune(transaction)
}

fn prune(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute(
        "DELETE FROM operation WHERE done = 1 AND sequence NOT IN
         (SELECT sequence FROM operation WHERE done = 1 ORDER BY sequence DESC LIMIT ?1)",
        [MOST_DONE],
    )?;
    Ok(())
}

pub(super) fn find(
    connection: &Connection,
    name: &str,
) -> rusqlite::Result<Option<(Operation, u64)>> {
    connection
        .query_row(
            "SELECT body, messages FROM operation WHERE id = ?1",
            [name],
            |row| {
                let messages: i64 = row.get(1)?;
                Ok((decode(&row.get::<_, Vec<u8>>(0)?)?, messages.unsigned_abs()))
            },
        )
        .optional()
}

pub(super) fn list(connection: &Connection) -> rusqlite::Result<Vec<Operation>> {
    let mut statement = connection.prepare("SELECT body FROM operation ORDER BY sequence DESC")?;
    let listed = statement.query_map([], |row| decode(&row.get::<_, Vec<u8>>(0)?))?;
    listed.collect()
}

pub(super) fn delete(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM operation WHERE id = ?1", [name])?;
    Ok(())
}

/// Ends what was under way, and returns how many that were.
pub(super) fn abort_open(
    transaction: &Transaction<'_>,
    status: &tonic_types::Status,
) -> rusqlite::Result<usize> {
    let open: Vec<Operation> = list(transaction)?
        .into_iter()
        .filter(|operation| !operation.done)
        .collect();
    for operation in &open {
        let metadata = operation.metadata.clone().unwrap_or_default();
        let progress = v1::OperationProgress::decode(&metadata.value[..]);
        let progress = v1::OperationProgress {
            end_time: Some(timestamp(now_us())),
            ..progress.unwrap_or_default()
        };
        let aborted = Operation {
            metadata: Some(any("OperationProgress", &progress)),
            done: true,
            result: Some(Ending::Error(status.clone())),
            ..operation.clone()
        };
        finish(transaction, &aborted, 1)?;
    }
    Ok(open.len())
}

fn decode(body: &[u8]) -> rusqlite::Result<Operation> {
    Operation::decode(body)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error)))
}
