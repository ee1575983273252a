//! Bounds on what a log takes: the oldest segments and Parquet files go first, and what has gone is
//! counted in `retention.json` before it goes.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{LogError, failed};
use crate::files::{Files, is_missing};
use crate::join::Log;
use crate::part::read_footer;
use crate::place::{day_text, parts};
use crate::reader::Reader;
use crate::schema::Event;
use crate::segment;

const STATE: &str = "retention.json";
const TEMPORARY: &str = ".retention.json.tmp";
const FORMAT: u32 = 1;

/// What a log may take. The segment that is being written stays whatever it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Bytes of segments and Parquet files.
    pub most_bytes: u64,
    /// Age of the day of a Parquet file, from its end; `None` keeps any age.
    pub most_age: Option<Duration>,
}

/// What retention has dropped since the log began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    pub(crate) format: u32,
    /// All segments up to this number, and the files that were made of them.
    pub through_segment: u64,
    /// Segments and Parquet files.
    pub files: u64,
    /// Their rows, as far as they could be read.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What retention has dropped from the log in `dir`.
///
/// # Errors
/// `Io`; `State` if that cannot be read.
pub(crate) fn dropped(files: &dyn Files, dir: &Path) -> Result<Dropped, LogError> {
    let path = dir.join(STATE);
    let mut text = String::new();
    match files.open(&path) {
        Ok(mut file) => file
            .read_to_string(&mut text)
            .map_err(failed("read", &path))?,
        Err(error) if is_missing(&error) => return Ok(Dropped::default()),
        Err(error) => return Err(failed("open", &path)(error)),
    };
    let read: Result<Dropped, _> = serde_json::from_str(&text);
    let problem = match read {
        Ok(read) if read.format == FORMAT => return Ok(read),
        Ok(read) => format!("format is {}, this build reads {FORMAT}", read.format),
        Err(error) => error.to_string(),
    };
    Err(LogError::State {
        file: path,
        problem,
    })
}

fn write(files: &dyn Files, dir: &Path, dropped: &Dropped) -> Result<(), LogError> {
    let (temporary, path) = (dir.join(TEMPORARY), dir.join(STATE));
    remove(files, &temporary)?;
    let text = serde_json::to_string(dropped).expect("numbers are JSON");
    let mut file = files
        .create(&temporary)
        .map_err(failed("create", &temporary))?;
    file.write_all(text.as_bytes())
        .map_err(failed("write", &temporary))?;
    file.sync().map_err(failed("sync", &temporary))?;
    files
        .rename(&temporary, &path)
        .map_err(failed("rename", &temporary))?;
    segment::sync_dir(files, dir)
}

/// Removes a file that may have gone already.
pub(crate) fn remove(files: &dyn Files, path: &Path) -> Result<(), LogError> {
    match files.remove(path) {
        Err(error) if !is_missing(&error) => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The highest number that a segment of the log has had, as far as it has left a trace.
pub(crate) fn highest_number(files: &dyn Files, dir: &Path) -> Result<u64, LogError> {
    let segment = segment::list(files, dir)?
        .last()
        .map_or(0, |(number, _)| *number);
    let part = parts(files, dir)?.last().map_or(0, |part| part.number);
    Ok(segment.max(part).max(dropped(files, dir)?.through_segment))
}

/// All that stands under one number: a segment, or the files that it has become.
#[derive(Debug)]
struct Unit {
    number: u64,
    files: Vec<(PathBuf, u64)>,
    /// Of Parquet files: the latest day, as text.
    day: Option<String>,
    is_segment: bool,
}

/// Drops what is too old or too much, oldest first. Returns what has been dropped now.
pub(crate) fn retain(log: &Log, keep: Keep, now_us: i64) -> Result<Dropped, LogError> {
    let files = log.files.as_ref();
    let mut state = dropped(files, &log.dir)?;
    let before = state;
    let (mut units, mut total) = units(log)?;
    // What was counted when the process ended before it was removed.
    let counted = units
        .iter()
        .take_while(|unit| unit.number <= state.through_segment)
        .count();
    for unit in units.drain(..counted) {
        total -= bytes(&unit);
        remove_unit(log, &unit)?;
    }
    let oldest_day = keep.most_age.map(|age| {
        let age_us = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        day_text(now_us.saturating_sub(age_us).div_euclid(86_400_000_000))
    });
    for unit in units {
        let is_old = unit
            .day
            .as_ref()
            .zip(oldest_day.as_ref())
            .is_some_and(|(day, oldest)| day < oldest);
        if !is_old && total <= keep.most_bytes {
            break;
        }
        state = Dropped {
            format: FORMAT,
            through_segment: unit.number,
            files: state.files + unit.files.len() as u64,
            rows: state.rows + rows(log, &unit),
            bytes: state.bytes + bytes(&unit),
        };
        write(files, &log.dir, &state)?;
        remove_unit(log, &unit)?;
        total -= bytes(&unit);
    }
    Ok(Dropped {
        files: state.files - before.files,
        rows: state.rows - before.rows,
        bytes: state.bytes - before.bytes,
        ..state
    })
}

/// What can be dropped, oldest first, and the bytes of it and of the segment that is being written.
fn units(log: &Log) -> Result<(Vec<Unit>, u64), LogError> {
    let files = log.files.as_ref();
    let size = |path: &Path| match files.length(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if is_missing(&error) => Ok(0),
        Err(error) => Err(failed("read", path)(error)),
    };
    let mut segments = log.segments()?;
    let open = segments.pop().map(|(_, path)| size(&path)).transpose()?;
    let mut units: Vec<Unit> = Vec::new();
    for (number, path) in segments {
        let bytes = size(&path)?;
        units.push(Unit {
            number,
            files: vec![(path, bytes)],
            day: None,
            is_segment: true,
        });
    }
    for part in parts(files, &log.dir)? {
        let file = (part.path.clone(), size(&part.path)?);
        match units.iter_mut().find(|unit| unit.number == part.number) {
            Some(unit) => {
                unit.files.push(file);
                unit.day = unit.day.take().max(Some(part.day));
            }
            None => units.push(Unit {
                number: part.number,
                files: vec![file],
                day: Some(part.day),
                is_segment: false,
            }),
        }
    }
    units.sort_by_key(|unit| unit.number);
    let total = open.unwrap_or(0) + units.iter().map(bytes).sum::<u64>();
    Ok((units, total))
}

fn bytes(unit: &Unit) -> u64 {
    unit.files.iter().map(|(_, bytes)| bytes).sum()
}

/// Rows of a unit; what cannot be read has none.
fn rows(log: &Log, unit: &Unit) -> u64 {
    let files = log.files.as_ref();
    if !unit.is_segment {
        let footers = unit
            .files
            .iter()
            .filter_map(|(path, _)| read_footer(files, path).ok());
        return footers.map(|(_, footer)| footer.rows).sum();
    }
    let path = segment::path_of(&log.dir, unit.number);
    let Ok(reader) = Reader::begin(log.files.clone(), unit.number, &path) else {
        return 0;
    };
    let events = reader.filter_map(|entry| entry.ok().map(|entry| entry.event));
    events
        .filter(|event| matches!(event, Event::Decision(_)))
        .count() as u64
}

fn remove_unit(log: &Log, unit: &Unit) -> Result<(), LogError> {
    let files = log.files.as_ref();
    for (path, _) in &unit.files {
        remove(files, path)?;
        let day_dir = path.parent().expect("a file stands in a directory");
        segment::sync_dir(files, day_dir)?;
        if day_dir != log.dir {
            // Whatever else stands there keeps it.
            let _ = files.remove_dir(day_dir);
            let _ = day_dir.parent().map(|host_dir| files.remove_dir(host_dir));
        }
    }
    Ok(())
}
