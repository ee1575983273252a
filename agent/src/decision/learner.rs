//! Policies that learn while they serve, and how what they have learned outlives the process.
//!
//! The decision log holds everything that a bandit learns from, and it is on stable storage before anything is learned
//! from it. So what is written down of a bandit may be older than what it knows: at the start it goes on from there with
//! the outcomes that the log has had since. One of which nothing is written down learns from the whole log, and so from
//! other policies' decisions, too: a model of rewards does not ask who has chosen.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blkpilot_env::{EnvSpec, Level, MaskReason, Rng, Turn, TurnView};
use blkpilot_evaluate::LoggedTurn;
use blkpilot_log::{DecisionRow, Horizon, LogError, LoggedRow, OutcomeRow, Query, Scan, Subject};
use blkpilot_models::bandit::{Bandit, BanditConfig, BanditError, Learned};
use blkpilot_models::{Choice, Policy, PolicyError};
use serde::{Deserialize, Serialize};

use crate::durable;

/// What is written down is at most so old, unless it cannot be written.
const KEEP_EVERY: Duration = Duration::from_secs(10);
/// An interval is an hour at most, so a decision whose outcome is new is not older than this.
const LONGEST_INTERVAL_US: i64 = 3_600_000_000;
const FORMAT: u32 = 1;

/// Why there is no learner.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    /// The bandit's own reason.
    #[error("{0}")]
    Bandit(#[from] BanditError),
    /// What was written down is of no use.
    #[error("{}: {why}; move it away to begin anew", path.display())]
    Written {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What is written down.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    /// The latest outcome that it has learned from, in microseconds since 1970 UTC.
    until_us: i64,
    learned: Learned,
}

/// A bandit that serves, and what keeps it learning.
#[derive(Debug)]
pub struct Learner {
    shared: Shared,
    spec: EnvSpec,
    path: PathBuf,
    until_us: i64,
    /// When it was last written down by this process.
    kept: Option<Instant>,
    has_news: bool,
}

impl Learner {
    /// The bandit of a service with this data directory, as it was written down, or one that knows nothing.
    ///
    /// # Errors
    /// `Bandit`, `Written`.
    pub fn open(
        data_dir: &Path,
        spec: &EnvSpec,
        config: BanditConfig,
    ) -> Result<Self, LearnerError> {
        let name = config.algorithm.name();
        let path = data_dir.join("bandits").join(format!("{name}.json"));
        let unusable = |why: String| LearnerError::Written {
            path: path.clone(),
            why,
        };
        let (bandit, until_us) = match fs::read(&path) {
            Ok(bytes) => {
                let written: Written =
                    serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
                if written.format != FORMAT {
                    let found = written.format;
                    return Err(unusable(format!("it has format {found}, this is {FORMAT}")));
                }
                let bandit = Bandit::resume(spec, config, written.learned);
                let bandit = bandit.map_err(|error| unusable(error.to_string()))?;
                (bandit, written.until_us)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (Bandit::new(spec, config)?, i64::MIN)
            }
            Err(error) => return Err(unusable(error.to_string())),
        };
        Ok(Self {
            shared: Shared {
                name: name.to_owned(),
                bandit: Arc::new(Mutex::new(bandit)),
            },
            spec: spec.clone(),
            path,
            until_us,
            kept: None,
            has_news: false,
        })
    }

    /// The policy that decides by what this learns.
    #[must_use]
    pub fn policy(&self) -> Box<dyn Policy> {
        Box::new(self.shared.clone())
    }

    /// Rewards it has learned from.
    #[must_use]
    pub fn rewards(&self) -> u64 {
        self.bandit().rewards()
    }

    /// Learns what a host's log has had since it was last written down, and writes that down. Of what cannot be read
    /// there is a warning: a service without it is better than none.
    pub fn catch_up(&mut self, log: &Path, host: &str) {
        let query = Query {
            from_us: Some(self.until_us.saturating_sub(LONGEST_INTERVAL_US)),
            host: Some(host.to_owned()),
            ..Query::default()
        };
        let known = self.until_us;
        match Scan::open(log, query, Horizon::Final) {
            Ok(batches) => {
                for batch in batches {
                    let rows = batch.and_then(|batch| batch.rows());
                    self.take_logged(rows, known);
                }
            }
            Err(error) => self.take_logged(Err(error), known),
        }
        if self.has_news {
            tracing::info!(
                policy = self.shared.name,
                rewards = self.rewards(),
                "learned from the decision log"
            );
        }
        self.keep();
    }

    fn take_logged(&mut self, rows: Result<Vec<LoggedRow>, LogError>, known_us: i64) {
        let rows = rows.unwrap_or_else(|error| {
            tracing::warn!(%error, "a part of the decision log cannot be learned from");
            vec![]
        });
        for row in rows {
            let Ok(outcome) = row.outcome else { continue };
            if outcome.at_us > known_us {
                self.take(&row.decision, &outcome);
                self.until_us = self.until_us.max(outcome.at_us);
            }
        }
    }

    /// Learns what came of decisions; all of them ended together.
    pub(crate) fn learn<'a>(
        &mut self,
        ended: impl IntoIterator<Item = (&'a DecisionRow, &'a OutcomeRow)>,
    ) {
        for (decision, outcome) in ended {
            self.take(decision, outcome);
            self.until_us = self.until_us.max(outcome.at_us);
        }
        if self.kept.is_none_or(|kept| kept.elapsed() >= KEEP_EVERY) {
            self.keep();
        }
    }

    /// Writes down what it has learned. Where that fails it goes on: the log still has it.
    pub(crate) fn keep(&mut self) {
        if !self.has_news {
            return;
        }
        let written = Written {
            format: FORMAT,
            until_us: self.until_us,
            learned: self.bandit().learned(),
        };
        let bytes = serde_json::to_vec(&written).expect("numbers and text");
        self.kept = Some(Instant::now());
        let dir = self.path.parent().expect("a file in `bandits`");
        match fs::create_dir_all(dir).and_then(|()| durable::replace(&self.path, &bytes)) {
            Ok(()) => self.has_news = false,
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "what was learned is not written down; the log still has it");
            }
        }
    }

    fn take(&mut self, decision: &DecisionRow, outcome: &OutcomeRow) {
        let is_telling = outcome.counted && outcome.validity.is_usable();
        let is_disk = matches!(decision.subject, Subject::Disk { .. });
        let is_known = &*decision.spec_hash == self.bandit().spec_hash();
        if !is_telling || !is_disk || !is_known || !fits(&self.spec, decision) {
            return;
        }
        let previous: Vec<Level> = decision.heads.iter().map(|head| head.previous).collect();
        // What came of it came of what was done.
        let executed: Vec<Level> = decision.heads.iter().map(|head| head.executed).collect();
        let masks = decision.heads.iter().flat_map(|head| &head.mask);
        let mask: Vec<MaskReason> = masks.copied().collect();
        let seen = &decision.seen;
        let turn = LoggedTurn {
            turn: Turn::Disk(0),
            heads: &self.spec.disk_heads,
            disk: &seen.disk,
            device: &seen.device,
            host: &seen.host,
            channel_count: seen.channel_count,
            channels: &seen.channels,
            pairs: &seen.pairs,
            previous: &previous,
            mask: &mask,
        };
        let reward = f64::from(outcome.reward_total);
        self.bandit().learn(&turn.view(), &executed, reward);
        self.has_news = true;
    }

    fn bandit(&self) -> MutexGuard<'_, Bandit> {
        self.shared.bandit()
    }
}

/// Whether a row has the shape that its spec says; one of a log need not.
fn fits(spec: &EnvSpec, decision: &DecisionRow) -> bool {
    let (seen, channels) = (&decision.seen, decision.seen.channel_count);
    let heads = decision.heads.iter().zip(&spec.disk_heads);
    let mut levels = heads.map(|(row, head)| {
        let levels = head.len(channels);
        row.mask.len() == levels && usize::from(row.executed.max(row.previous)) < levels
    });
    seen.disk.len() == spec.disk_features.len()
        && seen.host.len() == spec.host_features.len()
        && [0, spec.device_features.len()].contains(&seen.device.len())
        && seen.channels.len() == channels * spec.channel_features.len()
        && seen.pairs.len() == channels * spec.pair_features.len()
        && decision.heads.len() == spec.disk_heads.len()
        && levels.all(|is_one| is_one)
}

/// The bandit as a policy.
#[derive(Debug, Clone)]
struct Shared {
    name: String,
    bandit: Arc<Mutex<Bandit>>,
}

impl Shared {
    fn bandit(&self) -> MutexGuard<'_, Bandit> {
        self.bandit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Policy for Shared {
    fn name(&self) -> &str {
        &self.name
    }

    fn choose(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        self.bandit().choose(spec, view, rng)
    }

    fn distribution(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
    ) -> Result<Vec<Vec<f64>>, PolicyError> {
        self.bandit().distribution(spec, view)
    }
}
