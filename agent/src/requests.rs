//! Calls that may be repeated: the answer to each is kept with what it changed, in the same transaction, so that
//! a repeated call gets the first one's answer, whenever the service was killed between.

pub(crate) mod repeat;

use prost::Message;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use uuid::Uuid;

use self::repeat::Repeat;
use crate::database::Database;
use crate::wire::status::Failure;

/// Answers that are kept.
const MOST_ANSWERS: i64 = 1000;

/// A call that may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeatable(Repeat);

/// Another request under an id that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reused(pub Uuid);

impl From<Reused> for Failure {
    fn from(Reused(id): Reused) -> Self {
        let problem = format!("{id} was used for another request: make a new one");
        Self::field("request_id", problem)
    }
}

/// Does something once: where the same call has been answered, the answer is that one, and nothing is done.
///
/// # Errors
/// [`Reused`], what `failed` makes of the database's, and those of `act`.
pub(crate) fn once<T: Message + Default, E: From<Reused>>(
    repeatable: Option<&Repeatable>,
    transaction: &Transaction<'_>,
    failed: impl Fn(rusqlite::Error) -> E,
    act: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let Some(repeatable) = repeatable else {
        return act();
    };
    match repeatable.answered(transaction).map_err(&failed)? {
        Some(answer) => Ok(answer?),
        None => {
            let answer = act()?;
            repeatable.answer(transaction, &answer).map_err(&failed)?;
            Ok(answer)
        }
    }
}

/// The answer of the first call where there was one: for what has much to do before it comes to [`once`].
///
/// # Errors
/// A violation of `request_id`; the database's.
pub(crate) fn answered<T: Message + Default>(
    repeatable: Option<&Repeatable>,
    database: &Database,
) -> Result<Option<T>, Failure> {
    let Some(repeatable) = repeatable else {
        return Ok(None);
    };
    let answer = database.read(|connection| {
        let answered = repeatable.answered(connection);
        answered.map_err(|error| Failure::from(database.failed()(error)))
    })?;
    Ok(answer.transpose()?)
}

impl Repeatable {
    /// A call of a method; `None` where the request has no id. `request` is what makes it another request.
    ///
    /// # Errors
    /// A violation of `request_id` that is no UUID.
    pub fn of(
        method: &str,
        request_id: &str,
        request: &impl Message,
    ) -> Result<Option<Self>, Failure> {
        Ok(Repeat::of(method, request_id, request)?.map(Self))
    }

    /// Whether a call with this id has been answered.
    pub(crate) fn is_known(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let sql = "SELECT count(*) FROM request WHERE id = ?1";
        connection.query_row(sql, [self.0.id().to_string()], |row| row.get(0))
    }

    /// The answer of the first call; `None` if this is the first.
    pub(crate) fn answered<T: Message + Default>(
        &self,
        connection: &Connection,
    ) -> rusqlite::Result<Option<Result<T, Reused>>> {
        let known = connection
            .query_row(
                "SELECT digest, answer FROM request WHERE id = ?1",
                [self.0.id().to_string()],
                |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)),
            )
            .optional()?;
        Ok(known.map(|(digest, answer)| {
            if digest != self.0.digest() {
                return Err(Reused(self.0.id()));
            }
            T::decode(&answer[..]).map_err(|_| Reused(self.0.id()))
        }))
    }

    /// Keeps the answer of the first call.
    fn answer(&self, transaction: &Transaction<'_>, answer: &impl Message) -> rusqlite::Result<()> {
        transaction.execute(
            "INSERT INTO request (id, digest, answer) VALUES (?1, ?2, ?3)",
            params![
                self.0.id().to_string(),
                self.0.digest(),
                answer.encode_to_vec()
            ],
        )?;
        transaction.execute(
            "DELETE FROM request WHERE sequence <= (SELECT max(sequence) FROM request) - ?1",
            [MOST_ANSWERS],
        )?;
        Ok(())
    }
}
