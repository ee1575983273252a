//! The promoted policy: what the gate has let through, kept in the data directory, and the record of it.
//!
//! ```text
//! DATA_DIR/promoted/
//!   policy/            the checkpoint that the service serves in place of its configuration's [policy]
//!   policy.previous/   the one before it, to go back to
//!   policy.withdrawn/  what was taken back where none was before it
//!   record.jsonl       one JSON line per event, each on stable storage before the next begins
//!   lock               held while a promotion is under way
//! ```
//!
//! A checkpoint appears whole or not at all; a crash between the two renames of a replacement leaves
//! `policy.previous` alone, which is served then. An event that has begun and is not `done` was interrupted.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use blkpilot_evaluate::Admission;
use blkpilot_models::{Checkpoint, CheckpointError, Selection};
use serde::{Deserialize, Serialize};

const POLICY: &str = "policy";
const PREVIOUS: &str = "policy.previous";
const WITHDRAWN: &str = "policy.withdrawn";
const RECORD: &str = "record.jsonl";
/// Key of [`Label`] in the manifest of a promoted checkpoint.
const LABEL: &str = "promotion";

/// What a promoted checkpoint says of itself, beside what it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Label {
    name: String,
    selection: Chosen,
}

/// How a promoted network's scores become a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chosen {
    /// The best allowed level.
    Greedy,
    /// Drawn by the policy's probabilities.
    Sample,
}

impl From<Chosen> for Selection {
    fn from(chosen: Chosen) -> Self {
        match chosen {
            Chosen::Greedy => Self::Greedy,
            Chosen::Sample => Self::Sample,
        }
    }
}

/// What was done, or wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A policy was to be promoted.
    Promote,
    /// The one before it was to come back.
    Undo,
}

/// How far it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The gate refused it.
    Refused,
    /// It was begun; without a `done` after it, it was interrupted.
    Begun,
    /// It is done.
    Done,
}

/// A line of the record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The promotion that it belongs to, a UUID.
    pub id: String,
    /// When, in microseconds since 1970 UTC.
    pub at_us: i64,
    /// What.
    pub action: Action,
    /// How far.
    pub stage: Stage,
    /// Name of the policy; empty where the configuration's came back.
    pub policy: String,
    /// Its version: the content hash of the checkpoint.
    pub version: String,
    /// What the gate said, with the reason of one that was forced.
    pub admission: Option<Admission>,
    /// The verdict in words.
    pub verdict: Option<String>,
}

/// Why a promotion failed.
#[derive(Debug, thiserror::Error)]
pub enum PromotionError {
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another promotion is under way.
    #[error("{}: another promotion is under way: wait for it", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// A line of the record is none.
    #[error("{}: line {line}: {problem}: repair it, or move the file away", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The checkpoint cannot be installed or served.
    #[error("{source}")]
    Checkpoint {
        /// What is wrong with it.
        #[source]
        source: CheckpointError,
    },
    /// There is nothing to go back from.
    #[error("no policy is promoted: there is nothing to take back")]
    Nothing,
}

impl From<CheckpointError> for PromotionError {
    fn from(source: CheckpointError) -> Self {
        Self::Checkpoint { source }
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> PromotionError {
    let path = path.to_owned();
    move |source| PromotionError::Io {
        path,
        action,
        source,
    }
}

/// The promoted checkpoint of a service, to be served.
#[derive(Debug)]
pub struct Promoted {
    /// Name of the policy.
    pub name: String,
    /// How it chooses.
    pub selection: Chosen,
    /// It.
    pub checkpoint: Checkpoint,
}

/// What a service with this data directory serves in place of its configuration's policy; `None` where
/// nothing is promoted.
///
/// # Errors
/// `Checkpoint` where it cannot be loaded: nothing else is served in its place.
pub fn load(data_dir: &Path) -> Result<Option<Promoted>, PromotionError> {
    let dir = dir_in(data_dir);
    let Some(place) = [POLICY, PREVIOUS]
        .map(|name| dir.join(name))
        .into_iter()
        .find(|place| place.is_dir())
    else {
        return Ok(None);
    };
    let checkpoint = Checkpoint::load(&place)?;
    let label = checkpoint.manifest.extra.get(LABEL).cloned();
    let label = label.and_then(|label| serde_json::from_value(label).ok());
    let Label { name, selection } = label.unwrap_or(Label {
        name: "promoted".to_owned(),
        selection: Chosen::Greedy,
    });
    Ok(Some(Promoted {
        name,
        selection,
        checkpoint,
    }))
}

fn dir_in(data_dir: &Path) -> PathBuf {
    data_dir.join("promoted")
}

/// The promotions of one data directory, held so that no other changes them.
#[derive(Debug)]
pub struct Promotions {
    dir: PathBuf,
    _lock: File,
}

impl Promotions {
    /// Takes the lock, making the directory if need be.
    ///
    /// # Errors
    /// `Locked`, `Io`.
    pub fn open(data_dir: &Path) -> Result<Self, PromotionError> {
        let dir = dir_in(data_dir);
        fs::create_dir_all(&dir).map_err(failed(&dir, "create"))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(failed(&path, "open"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(PromotionError::Locked { path }),
            Err(fs::TryLockError::Error(source)) => Err(failed(&path, "lock")(source)),
        }
    }

    /// Notes a promotion that the gate refused.
    ///
    /// # Errors
    /// `Io`.
    pub fn refuse(&self, event: &Event) -> Result<(), PromotionError> {
        self.note(event, Stage::Refused)
    }

    /// Makes a checkpoint the one that is served, and keeps the one before it.
    ///
    /// # Errors
    /// `Io`, `Checkpoint`; what was served is served still, unless the record alone could not be ended.
    pub fn promote(
        &self,
        event: &Event,
        mut checkpoint: Checkpoint,
        selection: Chosen,
    ) -> Result<(), PromotionError> {
        let label = Label {
            name: event.policy.clone(),
            selection,
        };
        let label = serde_json::to_value(label).expect("names are text");
        checkpoint.manifest.extra.insert(LABEL.to_owned(), label);
        self.note(event, Stage::Begun)?;
        checkpoint.replace(&self.dir.join(POLICY))?;
        self.note(event, Stage::Done)
    }

    /// Puts back the policy before the promoted one: its checkpoint, or the configuration's. Returns its name
    /// and version, empty for the configuration's.
    ///
    /// # Errors
    /// `Nothing`, `Io`, `Checkpoint`.
    pub fn undo(&self, id: String, at_us: i64) -> Result<(String, String), PromotionError> {
        let [policy, previous, withdrawn] =
            [POLICY, PREVIOUS, WITHDRAWN].map(|name| self.dir.join(name));
        if !policy.is_dir() {
            return Err(PromotionError::Nothing);
        }
        let mut back = if previous.is_dir() {
            Some(Checkpoint::load(&previous)?)
        } else {
            None
        };
        let version = back
            .as_ref()
            .map(|back| back.manifest.tensors_sha256.clone());
        let name = back.as_ref().and_then(|back| {
            let name = back.manifest.extra.get(LABEL)?.get("name")?;
            Some(name.as_str()?.to_owned())
        });
        let event = Event {
            id,
            at_us,
            action: Action::Undo,
            stage: Stage::Begun,
            policy: name.unwrap_or_default(),
            version: version.unwrap_or_default(),
            admission: None,
            verdict: None,
        };
        self.note(&event, Stage::Begun)?;
        match &mut back {
            Some(back) => back.replace(&policy)?,
            None => {
                if withdrawn.exists() {
                    fs::remove_dir_all(&withdrawn).map_err(failed(&withdrawn, "remove"))?;
                }
                fs::rename(&policy, &withdrawn).map_err(failed(&policy, "take back"))?;
                self.sync()?;
            }
        }
        self.note(&event, Stage::Done)?;
        Ok((event.policy, event.version))
    }

    fn note(&self, event: &Event, stage: Stage) -> Result<(), PromotionError> {
        let path = self.dir.join(RECORD);
        let is_new = !path.exists();
        let event = Event {
            stage,
            ..event.clone()
        };
        let mut line = serde_json::to_vec(&event).expect("an event has string keys");
        line.push(b'\n');
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut file = file.map_err(failed(&path, "open"))?;
        file.write_all(&line).map_err(failed(&path, "write"))?;
        file.sync_all().map_err(failed(&path, "sync"))?;
        if is_new { self.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), PromotionError> {
        let dir = File::open(&self.dir).map_err(failed(&self.dir, "open"))?;
        dir.sync_all().map_err(failed(&self.dir, "sync"))
    }
}

/// All events of a data directory, oldest first; none where nothing was ever promoted. A last line that a
/// crash has cut off is left out.
///
/// # Errors
/// `Io`, `Record`.
pub fn record(data_dir: &Path) -> Result<Vec<Event>, PromotionError> {
    let path = dir_in(data_dir).join(RECORD);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(failed(&path, "open")(error)),
    };
    let mut events = vec![];
    let lines: Result<Vec<String>, _> = BufReader::new(file).lines().collect();
    let lines = lines.map_err(failed(&path, "read"))?;
    for (i, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(event) => events.push(event),
            Err(error) if i + 1 == lines.len() && error.is_eof() => {}
            Err(error) => {
                return Err(PromotionError::Record {
                    path,
                    line: i + 1,
                    problem: error.to_string(),
                });
            }
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use blkpilot_env::Rng;
    use blkpilot_env::features::kvm_host_spec;
    use blkpilot_models::Architecture;
    use rand::SeedableRng as _;
    use tempfile::TempDir;

    use super::*;

    fn checkpoint(seed: u64) -> Checkpoint {
        let mut rng = Rng::seed_from_u64(seed);
        Checkpoint::untrained(&kvm_host_spec(&[]), Architecture::default(), &mut rng)
    }

    fn event(name: &str) -> Event {
        Event {
            id: uuid::Uuid::new_v4().to_string(),
            at_us: 1,
            action: Action::Promote,
            stage: Stage::Begun,
            policy: name.to_owned(),
            version: String::new(),
            admission: Some(Admission::Admitted),
            verdict: None,
        }
    }

    fn served(dir: &TempDir) -> Option<String> {
        load(dir.path()).unwrap().map(|promoted| promoted.name)
    }

    #[test]
    fn what_is_promoted_is_served_and_undo_goes_back_step_by_step() {
        let dir = TempDir::new().unwrap();
        assert_eq!(served(&dir), None);
        let promotions = Promotions::open(dir.path()).unwrap();
        let undo = || promotions.undo(uuid::Uuid::new_v4().to_string(), 2);
        assert!(matches!(undo(), Err(PromotionError::Nothing)));
        promotions
            .promote(&event("first"), checkpoint(1), Chosen::Sample)
            .unwrap();
        let first = load(dir.path()).unwrap().unwrap();
        assert_eq!(
            (first.name.as_str(), first.selection),
            ("first", Chosen::Sample)
        );
        promotions
            .promote(&event("second"), checkpoint(2), Chosen::Greedy)
            .unwrap();
        assert_eq!(served(&dir).as_deref(), Some("second"));
        assert_eq!(undo().unwrap().0, "first");
        assert_eq!(served(&dir).as_deref(), Some("first"));
        let stages: Vec<_> = record(dir.path())
            .unwrap()
            .iter()
            .map(|e| e.stage)
            .collect();
        assert_eq!(stages, [Stage::Begun, Stage::Done].repeat(3));
    }

    #[test]
    fn the_only_promotion_can_be_taken_back_and_the_configuration_counts_again() {
        let dir = TempDir::new().unwrap();
        let promotions = Promotions::open(dir.path()).unwrap();
        promotions
            .promote(&event("first"), checkpoint(1), Chosen::Sample)
            .unwrap();
        let back = promotions
            .undo(uuid::Uuid::new_v4().to_string(), 2)
            .unwrap();
        assert_eq!((back, served(&dir)), ((String::new(), String::new()), None));
    }

    #[test]
    fn a_crash_between_the_two_renames_leaves_the_one_before() {
        let dir = TempDir::new().unwrap();
        let promotions = Promotions::open(dir.path()).unwrap();
        promotions
            .promote(&event("first"), checkpoint(1), Chosen::Sample)
            .unwrap();
        let place = dir.path().join("promoted");
        fs::rename(place.join(POLICY), place.join(PREVIOUS)).unwrap();
        assert_eq!(served(&dir).as_deref(), Some("first"));
    }

    #[test]
    fn a_promoted_policy_that_is_damaged_is_an_error_and_not_left_out() {
        let dir = TempDir::new().unwrap();
        let promotions = Promotions::open(dir.path()).unwrap();
        promotions
            .promote(&event("first"), checkpoint(1), Chosen::Sample)
            .unwrap();
        let tensors = dir.path().join("promoted/policy/policy.safetensors");
        fs::write(&tensors, b"torn").unwrap();
        assert!(load(dir.path()).is_err());
    }

    #[test]
    fn two_promotions_at_once_are_refused_and_a_torn_last_line_is_left_out() {
        let dir = TempDir::new().unwrap();
        let promotions = Promotions::open(dir.path()).unwrap();
        let second = Promotions::open(dir.path());
        assert!(matches!(second, Err(PromotionError::Locked { .. })));
        promotions.refuse(&event("first")).unwrap();
        let path = dir.path().join("promoted").join(RECORD);
        let mut bytes = fs::read(&path).unwrap();
        let whole = bytes.clone();
        bytes.extend_from_slice(&whole[..whole.len() / 2]);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(record(dir.path()).unwrap().len(), 1);
        bytes.extend_from_slice(b"\n");
        bytes.extend_from_slice(&whole);
        fs::write(&path, &bytes).unwrap();
        let torn = record(dir.path());
        assert!(matches!(torn, Err(PromotionError::Record { line: 2, .. })));
    }
}
