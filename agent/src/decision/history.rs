//! The decision log as the service uses it: written by the owner, listed by anybody.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use blkpilot_log::columns::COLUMNS;
use blkpilot_log::{
    Config, DecisionRow, Event, Horizon, Keep, LogError, OutcomeRow, Query, Scan, Writer,
};
use uuid::Uuid;

use super::Decision;
use super::compaction::Compaction;

/// Rows of recent decisions that can be listed; older ones stand in the log's files only.
const MOST_ROWS: usize = 10_000;

/// When segments of the decision log are sealed, and how much of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// A segment of this size is sealed.
    pub segment_bytes: u64,
    /// A segment of this age is sealed too, so that its rows become Parquet.
    pub seal_after: Duration,
    /// What may be kept.
    pub keep: Keep,
}

impl Default for LogConfig {
    /// Segments of 64 MiB or an hour; 1 GiB of any age.
    fn default() -> Self {
        Self {
            segment_bytes: Config::default().segment_bytes,
            seal_after: Duration::from_secs(3600),
            keep: Keep {
                most_bytes: 1 << 30,
                most_age: None,
            },
        }
    }
}

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
    // Ends before the writer gives its lock up.
    compaction: Compaction,
    writer: Writer,
    history: History,
    seal_after: Duration,
    /// The segment that is being written, and since when.
    segment: (u64, Instant),
}

impl Recorder {
    /// Opens the log in `dir`, reads what can be listed of it, and begins to compact it.
    ///
    /// # Errors
    /// `Locked` when another process writes it, `Format`, `Io`, `State`.
    pub fn open(dir: &Path, config: &LogConfig) -> Result<Self, LogError> {
        let segment_bytes = config.segment_bytes;
        let (writer, recovery) = Writer::open(dir, Config { segment_bytes })?;
        if recovery.torn_bytes > 0 || recovery.damaged_lines > 0 {
            tracing::warn!(?recovery, dir = %dir.display(), "recovered the decision log");
        }
        let history = History::default();
        read(dir, &history)?;
        Ok(Self {
            compaction: Compaction::start(writer.compactor(config.keep), dir, config.keep)?,
            segment: (writer.number(), Instant::now()),
            writer,
            history,
            seal_after: config.seal_after,
        })
    }

    /// The reading end.
    #[must_use]
    pub fn history(&self) -> History {
        self.history.clone()
    }

    /// From now on so much is kept, and a segment of this age sealed. The size of segments stays.
    pub fn set_config(&mut self, config: &LogConfig) {
        self.seal_after = config.seal_after;
        self.compaction.set_keep(config.keep);
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
        self.seal_if_old();
        decision.durable = true;
        Ok(self.history.push(decision))
    }

    /// Seals a segment that has been written to for long, and has one that was sealed compacted. One
    /// that cannot be sealed is gone on with.
    fn seal_if_old(&mut self) {
        if self.segment.1.elapsed() >= self.seal_after
            && let Err(error) = self.writer.seal()
        {
            tracing::warn!(%error, "a segment of the decision log was not sealed");
        }
        if self.writer.number() != self.segment.0 {
            self.segment = (self.writer.number(), Instant::now());
            self.compaction.wake();
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

/// Joins the newest rows to decisions again. Files that cannot be read are passed over with a warning:
/// what is around them is still good.
fn read(dir: &Path, history: &History) -> Result<(), LogError> {
    let query = Query {
        columns: listed_columns(),
        ..Query::default()
    };
    let scan = Scan::open(dir, query, Horizon::Final)?.from_last(MOST_ROWS as u64);
    let mut rows: Vec<DecisionRow> = vec![];
    for batch in scan {
        let found = match batch.and_then(|batch| batch.rows()) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "part of the decision log cannot be read");
                continue;
            }
        };
        for row in found.into_iter().map(|row| row.decision) {
            let is_next = |first: &DecisionRow| first.host_step_id != row.host_step_id;
            if rows.first().is_some_and(is_next) {
                take(&mut rows, history);
            }
            rows.push(row);
        }
    }
    take(&mut rows, history);
    Ok(())
}

/// All but what the policy saw and what came of it, which is most of a row; see [`Decision::slim`].
fn listed_columns() -> Vec<String> {
    let names = COLUMNS.iter().map(|column| column.name);
    let listed = names.filter(|name| {
        let is_seen = name.ends_with("_features") || name.starts_with("flaw_") || *name == "novel";
        let is_reward = name.starts_with("reward_") || name.starts_with("outcome_");
        !is_seen && !is_reward
    });
    listed.map(str::to_owned).collect()
}

fn take(rows: &mut Vec<DecisionRow>, history: &History) {
    if let Some(decision) = Decision::from_log(std::mem::take(rows)) {
        history.push(decision);
    }
}
