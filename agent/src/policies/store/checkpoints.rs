//! Checkpoints as files, named by their content.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use blkpilot_models::{Checkpoint, CheckpointBytes};
use nix::fcntl::{Flock, FlockArg};

use super::StoreError;

/// The directory of all checkpoints.
#[derive(Debug, Clone)]
pub(super) struct Checkpoints {
    dir: PathBuf,
}

/// A checkpoint that is on stable storage, and stays there while this is held.
#[derive(Debug)]
pub struct Kept {
    /// What [`CheckpointBytes::sha256`] says of it.
    pub sha256: String,
    /// Size of both files.
    pub size_bytes: u64,
    /// It.
    pub checkpoint: Checkpoint,
    /// Keeps others from removing what no row names yet; `None` of one that was only looked at.
    _lock: Option<Flock<File>>,
}

impl Checkpoints {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("checkpoints"),
        }
    }

    pub(super) fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let this = Self::of(data_dir);
        fs::create_dir_all(&this.dir).map_err(io(&this.dir, "create"))?;
        sync(data_dir)?;
        Ok(this)
    }

    pub(super) fn dir_of(&self, sha256: &str) -> PathBuf {
        self.dir.join(sha256)
    }

    pub(super) fn examine(&self, bytes: &CheckpointBytes) -> Result<Kept, StoreError> {
        let sha256 = bytes.sha256();
        let checkpoint = bytes.verify(&self.dir_of(&sha256))?;
        Ok(Kept {
            sha256,
            size_bytes: (bytes.manifest.len() + bytes.tensors.len()) as u64,
            checkpoint,
            _lock: None,
        })
    }

    pub(super) fn keep(&self, bytes: &CheckpointBytes) -> Result<Kept, StoreError> {
        let examined = self.examine(bytes)?;
        let dir = self.dir_of(&examined.sha256);
        let lock = self.lock(FlockArg::LockShared)?;
        // What is there under this name and is not this is damaged.
        if self.load(&examined.sha256).is_err() {
            remove(&dir)?;
            bytes.save(&dir)?;
        }
        Ok(Kept {
            _lock: Some(lock),
            ..examined
        })
    }

    pub(super) fn load(&self, sha256: &str) -> Result<Checkpoint, StoreError> {
        let dir = self.dir_of(sha256);
        let bytes = CheckpointBytes::read(&dir)?;
        let found = bytes.sha256();
        if found != sha256 {
            return Err(StoreError::Mixed { dir, found });
        }
        Ok(bytes.verify(&dir)?)
    }

    /// Removes what is not in `named`, which is asked for once nobody stores a checkpoint. Returns how many.
    pub(super) fn sweep(
        &self,
        named: impl FnOnce() -> Result<BTreeSet<String>, StoreError>,
    ) -> Result<usize, StoreError> {
        let _lock = match self.lock(FlockArg::LockExclusiveNonblock) {
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => {
                return Ok(0);
            }
            other => other?,
        };
        let (named, mut removed) = (named()?, 0);
        let entries = fs::read_dir(&self.dir).map_err(io(&self.dir, "list"))?;
        for entry in entries {
            let entry = entry.map_err(io(&self.dir, "list"))?;
            let is_named = named.contains(&*entry.file_name().to_string_lossy());
            if !is_named && entry.path().is_dir() {
                remove(&entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn lock(&self, how: FlockArg) -> Result<Flock<File>, StoreError> {
        let path = self.dir.join("lock");
        let file = File::create(&path).map_err(io(&path, "open"))?;
        Flock::lock(file, how)
            .map_err(|(_, errno)| io(&self.dir, "lock the checkpoints in")(errno.into()))
    }
}

fn remove(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(dir, "remove")(error)),
        _ => Ok(()),
    }
}

pub(super) fn sync(dir: &Path) -> Result<(), StoreError> {
    let opened = File::open(dir).map_err(io(dir, "open"))?;
    opened.sync_all().map_err(io(dir, "sync"))
}

pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        path,
        action,
        source,
    }
}
