//! Locks of files that have one writer.
//!
//! `flock(2)` locks the open file, whoever has it, and a child that another thread is starting has it too until it becomes
//! another program. So a lock is given back when it is dropped, and not with the file.

use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{LogError, failed};

/// Takes the lock that the one writer of the log in `dir` holds. The log itself is not looked at.
///
/// # Errors
/// `Locked` if a writer has it, `Io`.
pub fn lock(dir: &Path) -> Result<Flock<File>, LogError> {
    fs::create_dir_all(dir).map_err(failed("create", dir))?;
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(failed("open", &path))?;
    exclusive(file, &path)?.ok_or_else(|| LogError::Locked {
        dir: dir.to_owned(),
    })
}

/// The file with its lock, or `None` if somebody else has that.
pub(crate) fn exclusive(file: File, path: &Path) -> Result<Option<Flock<File>>, LogError> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => Ok(Some(locked)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(failed("lock", path)(errno.into())),
    }
}
