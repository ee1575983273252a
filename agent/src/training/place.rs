//! Where runs stand on disk: `DATA_DIR/training/RUN/` with the config as it is trained, the files beside it, what its
//! process said last, and in `run/` all that it writes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use tonic::Code;
use uuid::Uuid;

use crate::wire::status::Failure;

/// Of what a process has said, what is read when it fails.
const LAST_BYTES: u64 = 8 << 10;
/// Lines of it that are told.
const LAST_LINES: usize = 8;

/// The directories of all runs.
#[derive(Debug, Clone)]
pub(super) struct Places {
    root: PathBuf,
}

/// Files of a run that is not there yet; removed when this is dropped, unless they were settled.
#[derive(Debug)]
pub(super) struct Staged {
    dir: PathBuf,
}

impl Places {
    /// Those below a data directory, made if need be.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let root = std::path::absolute(data_dir.join("training"))?;
        fs::create_dir_all(&root)?;
        File::open(data_dir)?.sync_all()?;
        Ok(Self { root })
    }

    pub(super) fn dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// The config as it is trained.
    pub(super) fn config(&self, id: &str) -> PathBuf {
        self.dir(id).join(format!("{id}.toml"))
    }

    /// What a run writes.
    pub(super) fn out(&self, id: &str) -> PathBuf {
        self.dir(id).join("run")
    }

    /// The list of runs that the trainer keeps for itself.
    pub(super) fn list(&self) -> PathBuf {
        self.root.join("runs.db")
    }

    /// What the process of a run says.
    fn words(&self, id: &str) -> PathBuf {
        self.dir(id).join("said.log")
    }

    /// A file for what the process of a run says, empty.
    pub(super) fn words_file(&self, id: &str) -> io::Result<File> {
        File::create(self.words(id))
    }

    /// What the process of a run said last; empty if nothing.
    pub(super) fn last_words(&self, id: &str) -> String {
        let tail = || -> io::Result<String> {
            let mut file = File::open(self.words(id))?;
            let from = file.metadata()?.len().saturating_sub(LAST_BYTES);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = vec![];
            file.take(LAST_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = tail().unwrap_or_default();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// A directory in which files of a run are made.
    pub(super) fn stage(&self) -> io::Result<Staged> {
        let dir = self.root.join(format!(".new-{}", Uuid::new_v4()));
        fs::create_dir_all(&dir)?;
        Ok(Staged { dir })
    }

    /// Puts staged files where they belong, on stable storage. What stands there is of no run, and goes.
    pub(super) fn settle(&self, staged: Staged, id: &str) -> io::Result<()> {
        let dir = self.dir(id);
        remove(&dir)?;
        sync_all(&staged.dir)?;
        fs::rename(&staged.dir, &dir)?;
        // It is not there any more under its first name, so nothing is removed.
        drop(staged);
        File::open(&self.root)?.sync_all()
    }

    /// Removes all that a run wrote.
    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        remove(&self.dir(id))
    }

    /// Removes what a crash has left: directories that no run has. Returns how many.
    pub(super) fn sweep(&self, known: &BTreeSet<String>) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let is_known = known.contains(&*entry.file_name().to_string_lossy());
            if !is_known && entry.file_type()?.is_dir() {
                remove(&entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

impl Staged {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // If it cannot be removed now, the next start does.
        let _ = remove(&self.dir);
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The files in a directory, those in the directories in it, and the directories themselves.
fn sync_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

/// A directory of a run that cannot be used.
pub(super) fn failed(dir: &Path, error: &io::Error) -> Failure {
    let message = format!(
        "{}: {error}: free room there, or let the service write it",
        dir.display()
    );
    Failure::new(Code::Internal, "STORE_FAILED", message)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_was_not_settled_goes_and_what_was_stays() {
        let dir = TempDir::new().unwrap();
        let places = Places::open(dir.path()).unwrap();
        let staged = places.stage().unwrap();
        let at = staged.dir().to_owned();
        drop(staged);
        assert!(!at.exists());
        let staged = places.stage().unwrap();
        fs::write(staged.dir().join("a.toml"), "x = 1").unwrap();
        fs::create_dir(places.dir("a")).unwrap();
        fs::write(places.dir("a").join("left"), "by a crash").unwrap();
        places.settle(staged, "a").unwrap();
        assert_eq!(fs::read_to_string(places.config("a")).unwrap(), "x = 1");
        assert!(!places.dir("a").join("left").exists());
        fs::create_dir(places.dir("b")).unwrap();
        let known = BTreeSet::from(["a".to_owned()]);
        assert_eq!(places.sweep(&known).unwrap(), 1);
        assert!(places.config("a").exists() && !places.dir("b").exists());
    }

    #[test]
    fn of_what_was_said_the_last_lines_are_told_however_much_it_was() {
        let dir = TempDir::new().unwrap();
        let places = Places::open(dir.path()).unwrap();
        assert_eq!(places.last_words("a"), "");
        fs::create_dir(places.dir("a")).unwrap();
        let said: String = (0..10_000).map(|n| format!("line {n}\n\n")).collect();
        fs::write(places.dir("a").join("said.log"), said).unwrap();
        let words = places.last_words("a");
        assert_eq!(words.lines().count(), LAST_LINES);
        assert!(words.ends_with("line 9999"), "{words}");
    }
}
