//! The process that tunes a world's guests, and dies.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::*;

/// How many effects a process has left before it dies: writes to guests and commits of its journal.
/// From then on nothing that it does has any effect, as after kill -9.
#[derive(Debug, Clone, Default)]
pub(super) struct Lifeline(Arc<Mutex<Option<u32>>>);

impl Lifeline {
    /// `None`: it lives for ever.
    pub(super) fn set(&self, effects: Option<u32>) {
        *self.0.lock().unwrap() = effects;
    }

    /// Whether an effect takes place.
    pub(super) fn spend(&self) -> bool {
        match &mut *self.0.lock().unwrap() {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        *self.0.lock().unwrap() == Some(0)
    }
}

pub(super) struct Daemon {
    pub(super) tuner: Tuner,
    pub(super) lifeline: Lifeline,
    /// Whether the journal takes commits: so many more, or all.
    pub(super) room: Lifeline,
    dir: tempfile::TempDir,
    journals: u32,
}

impl Daemon {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (lifeline, room) = (Lifeline::default(), Lifeline::default());
        Self {
            tuner: open(&path(&dir, 0), &lifeline, &room),
            lifeline,
            room,
            dir,
            journals: 0,
        }
    }

    /// The process ends as by kill -9: the next one finds what is on the disk, and no connection has
    /// tidied up.
    pub(super) fn start_anew(&mut self) {
        let old = path(&self.dir, self.journals);
        self.journals += 1;
        let new = path(&self.dir, self.journals);
        for suffix in ["", "-wal"] {
            let file = |path: &PathBuf| PathBuf::from(format!("{}{suffix}", path.display()));
            if file(&old).exists() {
                std::fs::copy(file(&old), file(&new)).unwrap();
            }
        }
        self.lifeline.set(None);
        self.room.set(None);
        self.tuner = open(&new, &self.lifeline, &self.room);
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.tuner.records().unwrap()
    }
}

fn path(dir: &tempfile::TempDir, journals: u32) -> PathBuf {
    dir.path().join(format!("{journals}.db"))
}

fn open(path: &std::path::Path, lifeline: &Lifeline, room: &Lifeline) -> Tuner {
    let journal = Journal::open(path).unwrap();
    journal.skip_syncs();
    let (lifeline, room) = (lifeline.clone(), room.clone());
    journal.ask_before_commits(move || room.spend() && lifeline.spend());
    Tuner::new(journal)
}
