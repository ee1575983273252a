//! What builds without a store had promoted: files in `DATA_DIR/promoted`.
//!
//! ```text
//! policy/           the checkpoint that was served
//! policy.previous/  the one before it; alone after a crash between two renames, and served then
//! record.jsonl      one JSON line per event
//! ```
//!
//! They are taken over once, in one transaction, and then set aside as `promoted.taken-over`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use blkpilot_evaluate::Admission;
use blkpilot_models::{Checkpoint, CheckpointBytes, Selection};
use serde::Deserialize;

use super::checkpoints::{io, sync};
use super::{Action, Asked, Event, Outcome, PolicyStore, Stage, StoreError, policy_id};
use crate::decision::now_us;

const TAKEN_OVER: &str = "promotions taken over";

/// Key of [`Label`] in the manifest of a checkpoint that such a build had promoted.
const LABEL: &str = "promotion";

#[derive(Debug, Deserialize)]
struct Label {
    name: String,
    selection: Chosen,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Chosen {
    Greedy,
    Sample,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Began {
    Refused,
    Begun,
    Done,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Did {
    Promote,
    Undo,
}

/// A line of the record.
#[derive(Debug, Deserialize)]
struct Line {
    id: String,
    at_us: i64,
    action: Did,
    stage: Began,
    policy: String,
    version: String,
    admission: Option<Admission>,
    verdict: Option<String>,
}

/// A checkpoint that a build without a store had promoted.
#[derive(Debug)]
pub struct Older {
    /// Name of its policy.
    pub policy: String,
    /// How it chooses.
    pub selection: Selection,
    /// It.
    pub checkpoint: Checkpoint,
}

/// What a build without a store had promoted here, if that was not taken over yet.
///
/// # Errors
/// `Older`.
pub fn promoted_before(data_dir: &Path) -> Result<Option<Older>, StoreError> {
    let dir = data_dir.join("promoted");
    let Some(place) = places(&dir).pop() else {
        return Ok(None);
    };
    let older = read(&place).map(|(_, older)| Some(older));
    older.map_err(in_dir(&dir))
}

pub(super) fn take_over(store: &PolicyStore, data_dir: &Path) -> Result<(), StoreError> {
    let dir = data_dir.join("promoted");
    if !dir.is_dir() {
        return Ok(());
    }
    install(store, &dir).map_err(in_dir(&dir))?;
    let aside = data_dir.join("promoted.taken-over");
    match fs::rename(&dir, &aside) {
        // Another process was faster.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io(&dir, "set aside")(error)),
        Ok(()) => sync(data_dir)?,
    }
    tracing::info!(from = %aside.display(), "what was promoted is in the policy store now");
    Ok(())
}

fn install(store: &PolicyStore, dir: &Path) -> Result<(), StoreError> {
    let mut kept = vec![];
    for place in places(dir) {
        let (bytes, older) = read(&place)?;
        kept.push((store.keep(&bytes)?, older));
    }
    let events = record(&dir.join("record.jsonl"))?;
    let asked = Asked {
        actor: "an older build".to_owned(),
        at_us: now_us(),
        reason: "promoted before there was a store".to_owned(),
    };
    store.change(|change| {
        if !change.is_first(TAKEN_OVER)? {
            return Ok(());
        }
        for event in &events {
            change.record(event)?;
        }
        for (kept, older) in &kept {
            let version = change.upload(&older.policy, kept, older.selection, "", &asked)?;
            change.install(&version.name, asked.at_us)?;
        }
        Ok(())
    })
}

/// Checkpoints that are there, in the order in which they were promoted.
fn places(dir: &Path) -> Vec<PathBuf> {
    let places = ["policy.previous", "policy"].map(|name| dir.join(name));
    places.into_iter().filter(|place| place.is_dir()).collect()
}

fn read(place: &Path) -> Result<(CheckpointBytes, Older), StoreError> {
    let bytes = CheckpointBytes::read(place)?;
    let checkpoint = bytes.verify(place)?;
    let label = checkpoint.manifest.extra.get(LABEL).cloned();
    let label = label.and_then(|label| serde_json::from_value::<Label>(label).ok());
    let older = Older {
        policy: policy_id(label.as_ref().map_or("promoted", |label| &label.name)),
        selection: match label.map(|label| label.selection) {
            Some(Chosen::Sample) => Selection::Sample,
            Some(Chosen::Greedy) | None => Selection::Greedy,
        },
        checkpoint,
    };
    Ok((bytes, older))
}

fn record(path: &Path) -> Result<Vec<Event>, StoreError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(io(path, "read")(error)),
    };
    let (mut lines, count) = (vec![], text.lines().count());
    for (i, line) in text.lines().enumerate() {
        match serde_json::from_str::<Line>(line) {
            Ok(line) => lines.push(line),
            // A crash has cut it off.
            Err(error) if i + 1 == count && error.is_eof() => {}
            Err(error) => {
                return Err(StoreError::Record {
                    path: path.to_owned(),
                    line: i + 1,
                    problem: error.to_string(),
                });
            }
        }
    }
    let is_ended = |line: &Line| {
        lines
            .iter()
            .any(|l| l.id == line.id && l.stage == Began::Done)
    };
    let is_whole = |line: &&Line| line.stage != Began::Begun || !is_ended(line);
    Ok(lines.iter().filter(is_whole).map(event).collect())
}

fn event(line: &Line) -> Event {
    let reason = match &line.admission {
        Some(Admission::Forced { reason, .. }) => reason.clone(),
        _ => String::new(),
    };
    Event {
        id: line.id.clone(),
        at_us: line.at_us,
        actor: "an older build".to_owned(),
        action: match line.action {
            Did::Promote => Action::Promote,
            Did::Undo => Action::Rollback,
        },
        outcome: match line.stage {
            Began::Refused => Outcome::Refused,
            Began::Begun => Outcome::Interrupted,
            Began::Done => Outcome::Done,
        },
        policy: line.policy.clone(),
        number: None,
        tensors_sha256: line.version.clone(),
        stage: Stage::Production,
        reason,
        admission: line.admission.clone(),
        verdict: line.verdict.clone(),
    }
}

fn in_dir(dir: &Path) -> impl Fn(StoreError) -> StoreError {
    let dir = dir.to_owned();
    move |source| match source {
        // Nothing of it is wrong with what was promoted.
        other @ (StoreError::Database(_) | StoreError::Full { .. }) => other,
        source => StoreError::Older {
            dir: dir.clone(),
            source: Box::new(source),
        },
    }
}
