//! What files a log has, and what each holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::error::{LogError, failed};
use crate::files::{Disk, Files, is_missing};
use crate::join::Log;
use crate::part::read_footer;
use crate::place::parts;
use crate::reader::Reader;
use crate::retain::{self, Dropped};
use crate::schema::Event;
use crate::segment;

/// What a log's directory holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inventory {
    /// Its files, in the order of their rows.
    pub files: Vec<Stored>,
    /// What retention has dropped.
    pub dropped: Dropped,
}

/// One file of a log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stored {
    /// Its path below the log's directory.
    pub file: PathBuf,
    /// Its form.
    pub form: Form,
    /// The segment that it is, or was made of.
    pub segment: u64,
    /// Its size.
    pub bytes: u64,
    /// Decisions in it.
    pub rows: u64,
    /// Version of the schema, of Parquet; of the lines, of a segment.
    pub version: Option<u32>,
    /// When its first and last decisions were made, in microseconds since 1970 UTC.
    pub at_us: Option<(i64, i64)>,
    /// Why it cannot be read, or not all of it.
    pub problem: Option<String>,
}

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Being written, or left by a writer that has ended.
    Open,
    /// A segment that will not change again.
    Sealed,
    /// A Parquet file.
    Parquet,
    /// A Parquet file of a segment that is still there, which counts instead.
    Unfinished,
}

/// Looks at all files of the log in `dir`, written to or not.
///
/// # Errors
/// `Io` if the directory cannot be read; `State`. A file that cannot be read says so itself.
pub fn inventory(dir: &Path) -> Result<Inventory, LogError> {
    let log = Log::new(Arc::new(Disk), dir);
    let mut files = Vec::new();
    let segments = log.segments()?;
    let newest = segments.last().map(|(number, _)| *number);
    for part in parts(&Disk, dir)? {
        let is_whole = !segments.iter().any(|(number, _)| *number == part.number);
        let form = if is_whole {
            Form::Parquet
        } else {
            Form::Unfinished
        };
        files.extend(of_part(dir, &part.path, part.number, form)?);
    }
    for (number, path) in segments {
        let form = if Some(number) == newest {
            Form::Open
        } else {
            Form::Sealed
        };
        files.extend(of_segment(&log, &path, number, form)?);
    }
    files.sort_by(|a, b| (a.segment, &a.file).cmp(&(b.segment, &b.file)));
    Ok(Inventory {
        files,
        dropped: retain::dropped(&Disk, dir)?,
    })
}

fn stored(dir: &Path, path: &Path, segment: u64, form: Form) -> Result<Option<Stored>, LogError> {
    let bytes = match Disk.length(path) {
        Ok(bytes) => bytes,
        // It has become Parquet, or was dropped, in the meantime.
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    Ok(Some(Stored {
        file: path.strip_prefix(dir).unwrap_or(path).to_owned(),
        form,
        segment,
        bytes,
        rows: 0,
        version: None,
        at_us: None,
        problem: None,
    }))
}

fn of_part(dir: &Path, path: &Path, segment: u64, form: Form) -> Result<Option<Stored>, LogError> {
    let Some(stored) = stored(dir, path, segment, form)? else {
        return Ok(None);
    };
    Ok(Some(match read_footer(&Disk, path) {
        Ok((_, footer)) => Stored {
            rows: footer.rows,
            version: Some(footer.schema_version),
            at_us: footer.at_us,
            ..stored
        },
        Err(error) => Stored {
            problem: Some(error.to_string()),
            version: match error {
                LogError::Schema { found, .. } => found,
                _ => None,
            },
            ..stored
        },
    }))
}

fn of_segment(log: &Log, path: &Path, number: u64, form: Form) -> Result<Option<Stored>, LogError> {
    let Some(mut stored) = stored(&log.dir, path, number, form)? else {
        return Ok(None);
    };
    let Ok(mut reader) = Reader::begin(Arc::clone(&log.files), number, path) else {
        return Ok(None);
    };
    stored.version = Some(segment::FORMAT);
    let mut damaged = 0;
    for entry in reader.by_ref() {
        match entry.map(|entry| entry.event) {
            Ok(Event::Decision(row)) => {
                stored.rows += 1;
                let (first, last) = stored.at_us.unwrap_or((row.at_us, row.at_us));
                stored.at_us = Some((first.min(row.at_us), last.max(row.at_us)));
            }
            Ok(Event::Outcome(_)) => {}
            Err(LogError::Damaged { .. }) => damaged += 1,
            Err(error) => {
                if let LogError::Format { found, .. } = error {
                    stored.version = Some(found);
                }
                stored.problem = Some(error.to_string());
            }
        }
    }
    if damaged > 0 {
        stored.problem = Some(format!("{damaged} lines are damaged"));
    }
    Ok(Some(stored))
}
