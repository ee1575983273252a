//! Directories that appear whole or not at all, and reading with a bound.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use super::CheckpointError;

/// Greater files are refused unread: a policy may come from somebody else.
pub(super) const LARGEST_MANIFEST_BYTES: u64 = 16 << 20;
pub(super) const LARGEST_TENSORS_BYTES: u64 = 1 << 30;
pub(super) const LARGEST_SUMS_BYTES: u64 = 4096;

/// SHA-256 in hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(hex, "{byte:02x}").expect("writing to a String never fails");
    }
    hex
}

/// All of a file, if it has at most `most` bytes.
pub(super) fn read(path: &Path, most: u64) -> Result<Vec<u8>, CheckpointError> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(failed("open", path))?;
    // One byte more than allowed tells a file that is too large, whatever its metadata says.
    file.take(most + 1)
        .read_to_end(&mut content)
        .map_err(failed("read", path))?;
    if content.len() as u64 > most {
        return Err(CheckpointError::TooLarge {
            file: path.to_owned(),
            most,
        });
    }
    Ok(content)
}

/// Writes and syncs files in a new hidden directory beside `dir`, to be [`publish`]ed as `dir`.
/// Only a process that is killed leaves it behind.
pub(super) fn write_beside(
    dir: &Path,
    files: &[(&str, &[u8])],
) -> Result<PathBuf, CheckpointError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!(".{}.{}-{number}.new", name_of(dir), std::process::id());
    let temporary = dir.with_file_name(name);
    remove(&temporary)?;
    let written = write_all(&temporary, files);
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&temporary);
    }
    written.map(|()| temporary)
}

fn write_all(dir: &Path, files: &[(&str, &[u8])]) -> Result<(), CheckpointError> {
    fs::create_dir_all(dir).map_err(failed("create", dir))?;
    for (name, bytes) in files {
        let path = dir.join(name);
        let mut file = File::create_new(&path).map_err(failed("create", &path))?;
        file.write_all(bytes).map_err(failed("write", &path))?;
        file.sync_all().map_err(failed("sync", &path))?;
    }
    sync_dir(dir)
}

/// Gives a finished directory its name.
pub(super) fn publish(temporary: &Path, dir: &Path) -> Result<(), CheckpointError> {
    if let Err(source) = fs::rename(temporary, dir) {
        let _ = fs::remove_dir_all(temporary);
        return Err(failed("rename a finished checkpoint to it", dir)(source));
    }
    sync_dir(parent_of(dir))
}

/// Moves what stands in `dir` to [`previous_of`] it, in place of what is there.
pub(super) fn set_aside(dir: &Path) -> Result<(), CheckpointError> {
    if !dir.exists() {
        return Ok(());
    }
    let previous = previous_of(dir);
    remove(&previous)?;
    fs::rename(dir, &previous).map_err(failed("set aside", dir))?;
    sync_dir(parent_of(dir))
}

/// Where [`set_aside`] puts things.
pub(super) fn previous_of(dir: &Path) -> PathBuf {
    dir.with_file_name(format!("{}.previous", name_of(dir)))
}

fn remove(dir: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    let opened = File::open(dir).map_err(failed("open", dir))?;
    opened.sync_all().map_err(failed("sync", dir))
}

fn failed(action: &'static str, file: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let file = file.to_owned();
    move |source| CheckpointError::Io {
        file,
        action,
        source,
    }
}

fn parent_of(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn name_of(dir: &Path) -> String {
    dir.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
