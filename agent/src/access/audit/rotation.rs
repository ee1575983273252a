//! A file of lines that gives way to a new one when it is full: `x`, then `x.1`, `x.2` and so on, oldest last.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::AuditConfig;

#[derive(Debug)]
pub(super) struct Rotation {
    path: PathBuf,
    file: File,
    length: u64,
    /// The file ends within a line: a write failed, or the power did.
    is_torn: bool,
    most_bytes: u64,
    files: u32,
}

impl Rotation {
    pub(super) fn open(path: &Path, config: AuditConfig) -> io::Result<Self> {
        Self::with_bounds(path, u64::from(config.file_mib) << 20, config.files)
    }

    fn with_bounds(path: &Path, most_bytes: u64, files: u32) -> io::Result<Self> {
        let mut file = append_to(path)?;
        let length = file.metadata()?.len();
        let is_torn = length > 0 && last_byte(&mut file)? != b'\n';
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            is_torn,
            most_bytes,
            files,
        })
    }

    /// Appends a line, to a new file if this one would be too long with it. One that is longer than a file may be
    /// has a file to itself.
    pub(super) fn write(&mut self, line: &str) -> io::Result<()> {
        let needed = line.len() as u64 + 1 + u64::from(self.is_torn);
        if self.length > 0 && self.length + needed > self.most_bytes {
            self.rotate()?;
        }
        let start = if self.is_torn { "\n" } else { "" };
        let text = format!("{start}{line}\n");
        self.is_torn = true;
        self.file.write_all(text.as_bytes())?;
        self.is_torn = false;
        self.length += text.len() as u64;
        Ok(())
    }

    /// The oldest goes. Interrupted, it leaves a gap in the numbers, which the next one closes.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.files).rev() {
            let from = numbered(&self.path, number - 1);
            match fs::rename(from, numbered(&self.path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = append_to(&self.path)?;
        (self.length, self.is_torn) = (0, false);
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options.open(path)
}

fn last_byte(file: &mut File) -> io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn lines(dir: &TempDir, number: u32) -> Vec<String> {
        let text = fs::read_to_string(numbered(&dir.path().join("x"), number)).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_files_hold_the_last_lines_and_no_more_than_the_bound() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x");
        // Two lines of four bytes and their ends fit into a file.
        let mut log = Rotation::with_bounds(&path, 10, 3).unwrap();
        for i in 0..9 {
            log.write(&format!("l {i:02}")).unwrap();
        }
        assert_eq!(lines(&dir, 0), ["l 08"]);
        assert_eq!(lines(&dir, 1), ["l 06", "l 07"]);
        assert_eq!(lines(&dir, 2), ["l 04", "l 05"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_new_start_goes_on_in_the_same_file_and_a_torn_line_spoils_no_other() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x");
        Rotation::with_bounds(&path, 100, 2)
            .unwrap()
            .write("one")
            .unwrap();
        Rotation::with_bounds(&path, 100, 2)
            .unwrap()
            .write("two")
            .unwrap();
        append_to(&path).unwrap().write_all(b"{\"to").unwrap();
        Rotation::with_bounds(&path, 100, 2)
            .unwrap()
            .write("three")
            .unwrap();
        assert_eq!(lines(&dir, 0), ["one", "two", "{\"to", "three"]);
    }

    #[test]
    fn a_line_that_is_longer_than_a_file_may_be_is_kept_alone() {
        let dir = TempDir::new().unwrap();
        let mut log = Rotation::with_bounds(&dir.path().join("x"), 4, 2).unwrap();
        log.write("a long line").unwrap();
        log.write("b").unwrap();
        assert_eq!(
            (lines(&dir, 1), lines(&dir, 0)),
            (vec!["a long line".to_owned()], vec!["b".to_owned()])
        );
    }
}
