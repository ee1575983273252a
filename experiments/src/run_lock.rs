//! One process per run: whoever trains into a directory holds a lock there for as long as it lives.
//!
//! That is also how it is known whether a run that is said to be under way still is: the kernel drops the lock with the
//! process, whatever ended it. A process id would be a guess, since numbers are used again and other containers count
//! their own.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::LabError;

/// File of the lock within the directory of a run; it stays there.
pub const LOCK_FILE: &str = "lock";

/// Time between two looks at a lock that is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// Held until it is dropped.
#[derive(Debug)]
pub(crate) struct RunLock {
    file: File,
}

/// Closing the file would not do: a child that another thread is starting has it too until it becomes another program, and
/// the lock is that of the open file, whoever has it.
impl Drop for RunLock {
    fn drop(&mut self) {
        // Where it is refused, the lock ends with the last who has the file, as it would without this.
        let _ = fcntl(
            &self.file,
            FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)),
        );
    }
}

impl RunLock {
    /// Takes the lock of a directory, which is made if it is not there.
    ///
    /// # Errors
    /// `InUse` if another process holds it, `Write`.
    pub(crate) fn take(dir: &Path) -> Result<Self, LabError> {
        let path = dir.join(LOCK_FILE);
        let failed = |source| LabError::Write {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(dir).map_err(failed)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => Ok(Self { file }),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(LabError::InUse {
                dir: dir.to_owned(),
            }),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

/// Whether a process holds the lock of a directory. Asking takes no lock, so nobody is kept from theirs.
///
/// # Errors
/// The file system's; a lock that is not there is not held.
pub fn is_held(dir: &Path) -> io::Result<bool> {
    let file = match File::open(dir.join(LOCK_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut found = whole_file(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(found.l_type != libc::F_UNLCK as libc::c_short)
}

/// Waits until no process holds the lock of a directory, but no longer than `patience`: whoever still trains there is about
/// to end.
///
/// # Errors
/// `Interrupted` once `stop` is set; `Write` if it cannot be asked.
pub(crate) fn wait_until_free(
    dir: &Path,
    patience: Duration,
    stop: &AtomicBool,
) -> Result<(), LabError> {
    let begun = Instant::now();
    let failed = |source| LabError::Write {
        path: dir.join(LOCK_FILE),
        source,
    };
    while is_held(dir).map_err(failed)? && begun.elapsed() < patience {
        if stop.load(Ordering::Relaxed) {
            return Err(LabError::Interrupted);
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_until_it_is_free_and_not_after_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RunLock::take(dir.path()).unwrap();
        let (none, stop) = (Duration::ZERO, AtomicBool::new(true));
        let stopped = wait_until_free(dir.path(), Duration::MAX, &stop);
        assert!(matches!(stopped, Err(LabError::Interrupted)));
        wait_until_free(dir.path(), none, &AtomicBool::new(false)).unwrap();
        drop(lock);
        wait_until_free(dir.path(), Duration::MAX, &stop).unwrap();
    }

    #[test]
    fn a_dropped_lock_is_free_even_while_a_child_that_is_being_started_has_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RunLock::take(dir.path()).unwrap();
        let of_the_child = lock.file.try_clone().unwrap();
        drop(lock);
        assert!(!is_held(dir.path()).unwrap());
        RunLock::take(dir.path()).unwrap();
        drop(of_the_child);
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped_and_asking_takes_none() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert!(!is_held(&run).unwrap());
        let lock = RunLock::take(&run).unwrap();
        assert!(is_held(&run).unwrap());
        assert!(matches!(RunLock::take(&run), Err(LabError::InUse { .. })));
        drop(lock);
        assert!(!is_held(&run).unwrap());
        RunLock::take(&run).unwrap();
    }
}
