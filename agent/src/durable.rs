//! Files that are replaced as a whole: after a crash there is the old one or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

/// Replaces a file, or makes it, in a directory that there is: when this returns the new one is on stable storage.
///
/// # Errors
/// The file system's; the old file is there still.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let open = |temporary: &Path| File::create(temporary);
    publish(path, bytes, open)
}

/// As [`replace`], for the owner of the directory alone (0600), whoever of those that may do so writes it.
///
/// # Errors
/// As [`replace`].
pub fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let open = |temporary: &Path| {
        // One that a crash has left behind may have another mode.
        match fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600);
        let file = file.open(temporary)?;
        give_to_owner_of(path.parent().unwrap_or(Path::new(".")), &file)?;
        Ok(file)
    };
    publish(path, bytes, open)
}

/// What root writes into the directory of a service, the service has to be able to read.
fn give_to_owner_of(dir: &Path, file: &File) -> io::Result<()> {
    let (owner, made) = (fs::metadata(dir)?, file.metadata()?);
    if owner.uid() == made.uid() {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

fn publish(
    path: &Path,
    bytes: &[u8],
    open: impl FnOnce(&Path) -> io::Result<File>,
) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let written = open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written {
        // On a full disk what was written of it is only in the way.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}
