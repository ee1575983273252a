//! Sealed segments become Parquet files.
//!
//! The files of a segment are named after its number, so that doing it again after a crash gives the
//! same names; **as long as the segment is there, it counts and they do not**; and it is removed only
//! once all of them, and their names, are on the disk. A row is therefore never there twice and never
//! lost, whatever the instant of a crash.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{LogError, failed};
use crate::files::Files;
use crate::join::{Gathered, Horizon, Joined, Log};
use crate::part::{PartWriter, SegmentFacts};
use crate::place::{Part, Place, leftovers, parts};
use crate::retain::{self, Dropped, Keep};
use crate::scan::ids_of_parts;
use crate::segment;

/// Files that are written at once; a segment of more hosts and days is gone through several times.
const MOST_OPEN: usize = 64;

/// Turns the sealed segments of a log into Parquet files, and keeps the whole within bounds.
#[derive(Debug)]
pub struct Compactor {
    log: Log,
    keep: Keep,
    /// Nobody else writes, so what is there at first was left behind.
    is_swept: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compacted {
    /// Segments that have become Parquet files.
    pub segments: u64,
    /// Rows in them.
    pub rows: u64,
    /// The files.
    pub files: u64,
    /// Events that the writer had repeated.
    pub duplicates: u64,
    /// Outcomes whose decision is nowhere.
    pub orphans: u64,
    /// Lines that could not be read, and are lost with their segment.
    pub damaged_lines: u64,
    /// Segments of another format, which were left as they are.
    pub refused: u64,
}

impl Compactor {
    pub(crate) fn new(files: Arc<dyn Files>, dir: &Path, keep: Keep) -> Self {
        Self {
            log: Log::new(files, dir),
            keep,
            is_swept: false,
        }
    }

    /// Compacts the segments that are sealed and whose outcomes are there, or will not come, from the
    /// oldest on. Ends early, between two rows, when `stop` is set.
    ///
    /// # Errors
    /// `Io`, `Parquet`; the segment is still there then, and will be compacted by the next call.
    pub fn compact(&mut self, horizon: Horizon, stop: &AtomicBool) -> Result<Compacted, LogError> {
        self.sweep()?;
        let mut done = Compacted::default();
        let mut sealed = self.log.segments()?;
        sealed.pop();
        for (number, path) in sealed {
            match self.compact_segment(number, &path, horizon, stop, &mut done) {
                Ok(Progress::Done) => {}
                Ok(Progress::Waits) => break,
                // It stays, and those behind it need not wait for it.
                Err(LogError::Format { .. }) => done.refused += 1,
                Err(error) => {
                    // A full disk is not to be kept full by what will be written anew.
                    let _ = self.remove_leftovers();
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    /// From now on so much is kept.
    pub fn set_keep(&mut self, keep: Keep) {
        self.keep = keep;
    }

    /// Drops what is too much or too old, oldest first, whether it has been compacted or not, and
    /// returns what that was.
    ///
    /// # Errors
    /// `Io`, `State`.
    pub fn retain(&self, now_us: i64) -> Result<Dropped, LogError> {
        retain::retain(&self.log, self.keep, now_us)
    }

    fn sweep(&mut self) -> Result<(), LogError> {
        if !self.is_swept {
            self.remove_leftovers()?;
            self.is_swept = true;
        }
        Ok(())
    }

    fn remove_leftovers(&self) -> Result<(), LogError> {
        let files = self.log.files.as_ref();
        let left = leftovers(files, &self.log.dir)?;
        left.iter().try_for_each(|path| retain::remove(files, path))
    }

    fn compact_segment(
        &self,
        number: u64,
        path: &Path,
        horizon: Horizon,
        stop: &AtomicBool,
        done: &mut Compacted,
    ) -> Result<Progress, LogError> {
        let known = parts(self.log.files.as_ref(), &self.log.dir)?;
        let (previous, before) = self.rows_before(number, &known)?;
        let gathered = Gathered::from(&self.log, number, &before, horizon)?;
        if !gathered.is_settled() || stop.load(Ordering::Relaxed) {
            return Ok(Progress::Waits);
        }
        let facts = SegmentFacts {
            number,
            rows: gathered.ids.len() as u64,
            parts: gathered.places.len() as u64,
            previous,
            damaged_lines: gathered.damaged,
        };
        done.duplicates += gathered.duplicates;
        done.orphans += gathered.orphans;
        done.damaged_lines += gathered.damaged;
        let places: Vec<Place> = gathered.places.keys().cloned().collect();
        let mut written = HashSet::new();
        let mut gathered = Some(gathered);
        for some in places.chunks(MOST_OPEN) {
            let gathered = match gathered.take() {
                Some(gathered) => gathered,
                None => Gathered::from(&self.log, number, &before, horizon)?,
            };
            let rows = Joined::open(&self.log, number, gathered)?;
            if let Progress::Waits = self.write_parts(rows, some, &facts, stop, &mut written)? {
                self.remove_leftovers()?;
                return Ok(Progress::Waits);
            }
        }
        // An earlier attempt may have had others.
        for part in known.iter().filter(|part| part.number == number) {
            if !written.contains(&part.path) {
                retain::remove(self.log.files.as_ref(), &part.path)?;
            }
        }
        self.make_durable(&places)?;
        let files = self.log.files.as_ref();
        files.remove(path).map_err(failed("remove", path))?;
        segment::sync_dir(files, &self.log.dir)?;
        done.segments += 1;
        done.rows += facts.rows;
        done.files += facts.parts;
        Ok(Progress::Done)
    }

    /// The last segment before this one that has rows, and their ids.
    fn rows_before(&self, number: u64, known: &[Part]) -> Result<(u64, HashSet<u128>), LogError> {
        let files = self.log.files.as_ref();
        let Some(previous) = known.iter().rev().find(|part| part.number < number) else {
            let dropped = retain::dropped(files, &self.log.dir)?;
            return Ok((dropped.through_segment.min(number - 1), HashSet::new()));
        };
        let parts = known.iter().filter(|part| part.number == previous.number);
        Ok((previous.number, ids_of_parts(files, parts)?))
    }

    fn write_parts(
        &self,
        rows: Joined,
        places: &[Place],
        facts: &SegmentFacts,
        stop: &AtomicBool,
        written: &mut HashSet<PathBuf>,
    ) -> Result<Progress, LogError> {
        let files = self.log.files.as_ref();
        let mut writers: BTreeMap<&Place, PartWriter> = BTreeMap::new();
        for place in places {
            writers.insert(
                place,
                PartWriter::create(files, &self.log.dir, place, facts)?,
            );
        }
        for row in rows {
            let row = row?;
            let place = Place::of(&row.decision.host, row.decision.at_us);
            if let Some(writer) = writers.get_mut(&place) {
                writer.push(&row)?;
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(Progress::Waits);
            }
        }
        for writer in writers.into_values() {
            written.insert(writer.finish(files)?);
        }
        Ok(Progress::Done)
    }

    /// Makes the names of the files, and of the directories that they stand in, durable.
    fn make_durable(&self, places: &[Place]) -> Result<(), LogError> {
        let files = self.log.files.as_ref();
        for place in places {
            let day = place.dir(&self.log.dir);
            segment::sync_dir(files, &day)?;
            segment::sync_dir(files, day.parent().expect("a day stands in a host"))?;
        }
        segment::sync_dir(files, &self.log.dir)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    Waits,
}

#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod tests;
