//! What people had to say when they passed the guard by.

use rusqlite::params;

use super::{Journal, failed, now_us};
use crate::error::HostResult;

/// Notes that are kept; the oldest go first.
const MOST_NOTES: i64 = 1000;

// Beside the versions of the schema: builds that do not know the table leave it alone.
const TABLE: &str = "
CREATE TABLE IF NOT EXISTS note (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  at_us    INTEGER NOT NULL,
  text     TEXT NOT NULL
) STRICT;";

/// A note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// When it was made, microseconds since 1970 UTC.
    pub at_us: i64,
    /// What it says.
    pub text: String,
}

impl Journal {
    /// Adds a note, which is on stable storage when this returns.
    ///
    /// # Errors
    /// `Journal`.
    pub fn note(&self, text: &str) -> HostResult<()> {
        let table = self.database.execute_batch(TABLE);
        table.map_err(self.error())?;
        self.execute(
            "INSERT INTO note (at_us, text) VALUES (?1, ?2)",
            params![now_us(), text],
        )?;
        let last = self.database.last_insert_rowid();
        self.execute(
            "DELETE FROM note WHERE sequence <= ?1",
            params![last - MOST_NOTES],
        )
    }

    /// All notes, newest first.
    ///
    /// # Errors
    /// `Journal`.
    pub fn notes(&self) -> HostResult<Vec<Note>> {
        let has_table = self.database.table_exists(None, "note");
        if !has_table.map_err(failed(&self.path))? {
            return Ok(vec![]);
        }
        let read = || -> rusqlite::Result<Vec<Note>> {
            let sql = "SELECT at_us, text FROM note ORDER BY sequence DESC";
            let mut query = self.database.prepare(sql)?;
            let note = |row: &rusqlite::Row<'_>| {
                Ok(Note {
                    at_us: row.get(0)?,
                    text: row.get(1)?,
                })
            };
            query.query_map([], note)?.collect()
        };
        read().map_err(failed(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_survive_reopening_come_newest_first_and_do_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        let journal = Journal::open(&path).unwrap();
        journal.skip_syncs();
        assert_eq!(journal.notes().unwrap(), []);
        for i in 0..MOST_NOTES + 5 {
            journal.note(&format!("reason {i}")).unwrap();
        }
        drop(journal);
        let notes = Journal::open_to_read(&path).unwrap().notes().unwrap();
        assert_eq!(notes.len() as i64, MOST_NOTES);
        assert_eq!(notes[0].text, format!("reason {}", MOST_NOTES + 4));
        assert!(notes[0].at_us > 0 && notes[0].at_us >= notes[1].at_us);
    }
}
