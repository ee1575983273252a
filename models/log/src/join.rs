//! Decisions of one segment with what came of them.
//!
//! Outcomes come an interval after their decision, so that they may stand in a later segment. One
//! pass over the segment and what follows gathers them, a second one over the segment makes the
//! rows; only the outcomes of one segment are held in memory.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::columns::{LoggedRow, Missing, is_applied};
use crate::error::LogError;
use crate::files::Files;
use crate::place::Place;
use crate::reader::Reader;
use crate::schema::{DecisionRow, EpisodeId, Event, OutcomeRow, Subject};
use crate::segment;

/// An interval is an hour at most, so an outcome that is not there after two will not come.
pub(crate) const PATIENCE_US: i64 = 2 * 3_600_000_000;

/// How often, in the log's time, a look ahead asks whom nothing will come for any more.
const CHECK_EVERY_US: i64 = 60_000_000;

/// A log's directory and the files that it stands on.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) dir: PathBuf,
}

impl Log {
    pub(crate) fn new(files: Arc<dyn Files>, dir: &Path) -> Self {
        let dir = dir.to_owned();
        Self { files, dir }
    }

    pub(crate) fn segments(&self) -> Result<Vec<(u64, PathBuf)>, LogError> {
        segment::list(self.files.as_ref(), &self.dir)
    }
}

/// Until when outcomes are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Horizon {
    /// The log is being written, and this is the time, in microseconds since 1970 UTC.
    Now(i64),
    /// Nothing will come any more.
    Final,
}

/// What one pass over a segment and what follows has found.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// Decisions of the segment that have not been seen before.
    pub(crate) ids: HashSet<u128>,
    /// Rows by host and day.
    pub(crate) places: BTreeMap<Place, u64>,
    /// Events of the segment that had been there before: the writer repeats what it does not know to
    /// be on the disk.
    pub(crate) duplicates: u64,
    /// Outcomes of the segment whose decision is nowhere: retention has dropped it, or it is damaged.
    pub(crate) orphans: u64,
    /// Lines of the segment that cannot be read.
    pub(crate) damaged: u64,
    outcomes: HashMap<u128, OutcomeRow>,
    awaited: HashMap<u128, Awaited>,
    /// Whose decision it is, and the how manieth of all.
    decisions: HashMap<u128, (usize, u64)>,
    /// Host, guest and disk, by number.
    disks: HashMap<(Arc<str>, String, String), usize>,
    ended: HashSet<u128>,
    /// The episode under way on each host.
    episodes: HashMap<Arc<str>, EpisodeId>,
    /// Those that came too long ago are looked for again from here on.
    next_check_us: i64,
}

#[derive(Debug)]
struct Awaited {
    disk: usize,
    /// The how manieth decision.
    nth: u64,
    host: Arc<str>,
    episode: EpisodeId,
    at_us: i64,
}

impl Gathered {
    /// Reads segment `number` and, as far as its outcomes go, those after it. `before`: ids of the
    /// rows that stand before it.
    ///
    /// # Errors
    /// `Io`, with `NotFound` if the segment is not there (any more); `Format`.
    pub(crate) fn from(
        log: &Log,
        number: u64,
        before: &HashSet<u128>,
        horizon: Horizon,
    ) -> Result<Self, LogError> {
        let mut later = log.segments()?;
        let path = segment::path_of(&log.dir, number);
        let own = Reader::begin(Arc::clone(&log.files), number, &path)?;
        let mut gathered = Self::default();
        for entry in own {
            match entry.map(|entry| entry.event) {
                Ok(Event::Decision(row)) => gathered.take_decision(&row, before),
                Ok(Event::Outcome(row)) => gathered.take_outcome(row, before),
                Err(LogError::Damaged { .. }) => gathered.damaged += 1,
                Err(error) => return Err(error),
            }
        }
        later.retain(|(other, _)| *other > number);
        if !gathered.awaited.is_empty() {
            gathered.look_ahead(Reader::of(Arc::clone(&log.files), later))?;
        }
        match horizon {
            Horizon::Final => gathered.awaited.clear(),
            Horizon::Now(now_us) => gathered.give_up(now_us),
        }
        Ok(gathered)
    }

    /// Whether an outcome may still come.
    pub(crate) fn is_settled(&self) -> bool {
        self.awaited.is_empty()
    }

    fn take_decision(&mut self, row: &DecisionRow, before: &HashSet<u128>) {
        self.note_episode(row);
        if before.contains(&row.id.0) || !self.ids.insert(row.id.0) {
            self.duplicates += 1;
            return;
        }
        *self
            .places
            .entry(Place::of(&row.host, row.at_us))
            .or_default() += 1;
        if let Some((disk, nth)) = self.note_disk(row) {
            let awaited = Awaited {
                disk,
                nth,
                host: row.host.clone(),
                episode: row.episode_id,
                at_us: row.at_us,
            };
            self.awaited.insert(row.id.0, awaited);
        }
    }

    fn take_outcome(&mut self, row: OutcomeRow, before: &HashSet<u128>) {
        let id = row.decision_id.0;
        if !self.ids.contains(&id) {
            // One of a row before it was found when that was joined.
            self.orphans += u64::from(!before.contains(&id));
            return;
        }
        self.settle(id);
        match self.outcomes.entry(id) {
            Entry::Occupied(_) => self.duplicates += 1,
            Entry::Vacant(place) => {
                place.insert(row);
            }
        }
    }

    /// Notes a decision of which something may come, and returns its disk and the how manieth it is.
    fn note_disk(&mut self, row: &DecisionRow) -> Option<(usize, u64)> {
        let Subject::Disk { guest, target } = &row.subject else {
            return None;
        };
        if !is_applied(row.source) {
            return None;
        }
        let number = self.disks.len();
        let key = (row.host.clone(), guest.clone(), target.clone());
        let disk = *self.disks.entry(key).or_insert(number);
        let nth = self.decisions.len() as u64;
        self.decisions.insert(row.id.0, (disk, nth));
        Some((disk, nth))
    }

    /// An outcome has come, so nothing comes any more of what was decided for the same disk before:
    /// another decision replaced it within its interval.
    fn settle(&mut self, id: u128) {
        let Some(&(disk, nth)) = self.decisions.get(&id) else {
            return;
        };
        self.awaited
            .retain(|_, known| known.disk != disk || known.nth > nth);
    }

    /// In another episode of a host nothing comes of the one before it.
    fn note_episode(&mut self, row: &DecisionRow) {
        let known = self.episodes.get_mut(&row.host);
        if known
            .as_ref()
            .is_some_and(|known| **known == row.episode_id)
        {
            return;
        }
        match known {
            Some(known) => *known = row.episode_id,
            None => drop(self.episodes.insert(row.host.clone(), row.episode_id)),
        }
        let Self { awaited, ended, .. } = self;
        awaited.retain(|id, known| {
            let is_over = known.episode != row.episode_id && known.host == row.host;
            if is_over {
                ended.insert(*id);
            }
            !is_over
        });
    }

    fn look_ahead(&mut self, later: Reader) -> Result<(), LogError> {
        for entry in later {
            match entry.map(|entry| entry.event) {
                Ok(Event::Decision(row)) => {
                    self.note_episode(&row);
                    self.note_disk(&row);
                    if row.at_us >= self.next_check_us {
                        self.give_up(row.at_us);
                        self.next_check_us = row.at_us.saturating_add(CHECK_EVERY_US);
                    }
                }
                Ok(Event::Outcome(row)) => {
                    let id = row.decision_id.0;
                    if self.awaited.contains_key(&id) {
                        self.outcomes.insert(id, row);
                    }
                    self.settle(id);
                }
                // What is behind it can be read still.
                Err(LogError::Damaged { .. } | LogError::Format { .. }) => {}
                Err(error) => return Err(error),
            }
            if self.awaited.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn give_up(&mut self, now_us: i64) {
        self.awaited
            .retain(|_, known| now_us.saturating_sub(known.at_us) < PATIENCE_US);
    }

    fn outcome(&mut self, row: &DecisionRow) -> Result<OutcomeRow, Missing> {
        let id = row.id.0;
        if let Some(found) = self.outcomes.remove(&id) {
            return Ok(found);
        }
        Err(if !is_applied(row.source) {
            Missing::NotApplied
        } else if self.ended.contains(&id) {
            Missing::EpisodeEnded
        } else if self.awaited.contains_key(&id) {
            Missing::Awaited
        } else {
            Missing::NotRecorded
        })
    }
}

/// The rows of a segment, in order. Rows that were appended after they were gathered are left out.
#[derive(Debug)]
pub(crate) struct Joined {
    reader: Reader,
    gathered: Gathered,
    number: u64,
    line: u64,
}

impl Joined {
    /// # Errors
    /// As [`Gathered::from`].
    pub(crate) fn open(log: &Log, number: u64, gathered: Gathered) -> Result<Self, LogError> {
        let path = segment::path_of(&log.dir, number);
        Ok(Self {
            reader: Reader::begin(Arc::clone(&log.files), number, &path)?,
            gathered,
            number,
            line: 0,
        })
    }
}

impl Iterator for Joined {
    type Item = Result<LoggedRow, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let decision = match self.reader.next()?.map(|entry| entry.event) {
                Ok(Event::Decision(row)) => row,
                Ok(Event::Outcome(_)) | Err(LogError::Damaged { .. }) => continue,
                Err(error) => return Some(Err(error)),
            };
            if !self.gathered.ids.remove(&decision.id.0) {
                continue;
            }
            let line = self.line;
            self.line += 1;
            let outcome = self.gathered.outcome(&decision);
            return Some(Ok(LoggedRow {
                segment: self.number,
                line,
                decision: *decision,
                outcome,
            }));
        }
    }
}
