//! The decision log as the service uses it: written by the owner, listed by anybody.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use blkpilot_log::{Config, DecisionRow, Event, LogError, OutcomeRow, Reader, Writer};
use uuid::Uuid;

use crate::decision::Decision;

/// Rows of recent decisions that can be listed; older ones stand in the log's files only.
const MOST_ROWS: usize = 10_000;

/// Decisions between two looks at the size of the log.
const RETENTION_EVERY: u32 = 1000;

/// Recent recorded decisions, oldest first.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<Recent>>);

#[derive(Debug, Default)]
struct Recent {
    decisions: VecDeque<Arc<Decision>>,
    rows: usize,
}

/// One page of decisions, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The decisions.
    pub decisions: Vec<Arc<Decision>>,
    /// The last of them if there are more.
    pub next: Option<Uuid>,
}

impl History {
    fn with<T>(&self, act: impl FnOnce(&mut Recent) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, decision: Decision) -> Arc<Decision> {
        let decision = Arc::new(decision.slim());
        self.with(|recent| {
            recent.rows += decision.rows.len();
            recent.decisions.push_back(Arc::clone(&decision));
            while recent.rows > MOST_ROWS && recent.decisions.len() > 1 {
                let oldest = recent.decisions.pop_front().expect("there are two or more");
                recent.rows -= oldest.rows.len();
            }
        });
        decision
    }

    /// A recorded decision.
    #[must_use]
    pub fn find(&self, id: Uuid) -> Option<Arc<Decision>> {
        self.with(|recent| recent.decisions.iter().rev().find(|d| d.id == id).cloned())
    }

    /// The decisions of a host behind `after`, or from the newest; `None` if `after` is not known
    /// (any more).
    #[must_use]
    pub fn page(&self, host: &str, after: Option<Uuid>, size: usize) -> Option<Page> {
        self.with(|recent| {
            let mut newest_first = recent.decisions.iter().rev().filter(|d| d.host == host);
            if let Some(after) = after {
                newest_first.find(|d| d.id == after)?;
            }
            let decisions: Vec<_> = newest_first.by_ref().take(size).cloned().collect();
            let next = newest_first
                .next()
                .and(decisions.last())
                .map(|last| last.id);
            Some(Page { decisions, next })
        })
    }
}

/// The writing end.
#[derive(Debug)]
pub struct Recorder {
    writer: Writer,
    history: History,
    most_bytes: u64,
    until_retention: u32,
}

impl Recorder {
    /// Opens the log in `dir`, lets it take at most `most_bytes`, and reads what can be listed of
    /// it.
    ///
    /// # Errors
    /// `Locked` when another process writes it, `Format`, `Io`.
    pub fn open(dir: &Path, most_bytes: u64) -> Result<Self, LogError> {
        let (mut writer, recovery) = Writer::open(dir, Config::default())?;
        if recovery.torn_bytes > 0 || recovery.damaged_lines > 0 {
            tracing::warn!(?recovery, dir = %dir.display(), "recovered the decision log");
        }
        writer.retain(most_bytes)?;
        let history = History::default();
        read(dir, &history)?;
        Ok(Self {
            writer,
            history,
            most_bytes,
            until_retention: RETENTION_EVERY,
        })
    }

    /// The reading end.
    #[must_use]
    pub fn history(&self) -> History {
        self.history.clone()
    }

    /// Makes sure that the log takes events, after a failure too.
    ///
    /// # Errors
    /// `Io`, `Format`.
    pub fn make_ready(&mut self) -> Result<(), LogError> {
        if self.writer.has_failed() {
            self.writer.recover()?;
        }
        Ok(())
    }

    /// Records a decision: it is on stable storage when this returns.
    ///
    /// # Errors
    /// `Io` or `Failed`; it may or may not be found in the log then.
    pub fn record(&mut self, mut decision: Decision) -> Result<Arc<Decision>, LogError> {
        for row in &decision.rows {
            self.writer
                .append(&Event::Decision(Box::new(row.clone())))?;
        }
        self.writer.commit()?;
        self.retain();
        decision.durable = true;
        Ok(self.history.push(decision))
    }

    /// Removes the oldest segments now and then. A log that cannot be shortened is still a log.
    fn retain(&mut self) {
        self.until_retention -= 1;
        if self.until_retention > 0 {
            return;
        }
        self.until_retention = RETENTION_EVERY;
        match self.writer.retain(self.most_bytes) {
            Ok(0) => {}
            Ok(removed) => {
                tracing::info!(removed, "removed the oldest segments of the decision log");
            }
            Err(error) => tracing::warn!(%error, "the decision log was not shortened"),
        }
    }

    /// Appends outcomes; they become durable with the next decision or [`Recorder::flush`].
    ///
    /// # Errors
    /// `Io`, `Failed`.
    pub fn append_outcomes(&mut self, outcomes: Vec<OutcomeRow>) -> Result<(), LogError> {
        outcomes
            .into_iter()
            .try_for_each(|outcome| self.writer.append(&Event::Outcome(outcome)))
    }

    /// Makes all that was appended durable.
    ///
    /// # Errors
    /// `Io`, `Failed`.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.writer.commit()
    }
}

/// Joins rows to decisions again. Damaged lines are passed over with a warning: what is around them
/// is still good.
fn read(dir: &Path, history: &History) -> Result<(), LogError> {
    let mut rows: Vec<DecisionRow> = vec![];
    for entry in Reader::open(dir)? {
        let row = match entry.map(|entry| entry.event) {
            Ok(Event::Decision(row)) => row,
            Ok(Event::Outcome(_)) => continue,
            Err(error) => {
                tracing::warn!(%error, "part of the decision log cannot be read");
                continue;
            }
        };
        if rows
            .first()
            .is_some_and(|first| first.host_step_id != row.host_step_id)
        {
            take(&mut rows, history);
        }
        // A commit that failed may have reached the disk and been repeated.
        if rows.iter().all(|known| known.id != row.id) {
            rows.push(*row);
        }
    }
    take(&mut rows, history);
    Ok(())
}

fn take(rows: &mut Vec<DecisionRow>, history: &History) {
    if let Some(decision) = Decision::from_log(std::mem::take(rows)) {
        history.push(decision);
    }
}
