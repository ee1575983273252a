//! The few operations on files that the log is built on.
//!
//! There are two kinds: [`Disk`], the operating system's, and in the tests one in memory that loses
//! what was not synced, in any order, when the power fails. What it may lose is what POSIX allows:
//! written bytes are there for certain after the file's [`Handle::sync`], names (made, renamed or
//! removed) after [`Files::sync_dir`] of the directory that they stand in.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The last part of its path.
    pub name: String,
    /// What stands under it.
    pub kind: Kind,
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file, or anything else.
    File,
}

/// Operations on files.
pub trait Files: Send + Sync + fmt::Debug {
    /// Makes a directory and those above it that are missing. Their names are durable once the
    /// directories above them have been synced.
    ///
    /// # Errors
    /// The operating system's, here and below.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The names in a directory, in any order. Those that are not UTF-8 are left out.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<Name>>;

    /// Makes a file and opens it for writing.
    ///
    /// # Errors
    /// `AlreadyExists`.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Handle>>;

    /// Opens a file for writing at its end.
    ///
    /// # Errors
    /// `NotFound`.
    fn append(&self, path: &Path) -> io::Result<Box<dyn Handle>>;

    /// Opens a file for reading from its start.
    ///
    /// # Errors
    /// `NotFound`.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;

    /// Opens a file for reading here and there.
    ///
    /// # Errors
    /// `NotFound`.
    fn source(&self, path: &Path) -> io::Result<Source>;

    /// Length of a file in bytes.
    ///
    /// # Errors
    /// `NotFound`.
    fn length(&self, path: &Path) -> io::Result<u64>;

    /// Gives a file another name in the same directory, in place of the file that has it.
    ///
    /// # Errors
    /// `NotFound`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// `NotFound`.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory that is empty.
    ///
    /// # Errors
    /// If it is not.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// `NotFound`.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub trait Handle: Write + Send + fmt::Debug {
    /// Makes what was written durable, with the file's length.
    ///
    /// # Errors
    /// The operating system's; nothing is known of what was written then.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// The operating system's.
    fn set_length(&mut self, bytes: u64) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Files for Disk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            let kind = if is_dir { Kind::Directory } else { Kind::File };
            let name = entry.file_name().into_string().ok();
            names.extend(name.map(|name| Name { name, kind }));
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        let file = File::options().append(true).create_new(true).open(path)?;
        Ok(Box::new(file))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(File::options().append(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(path)?))
    }

    fn source(&self, path: &Path) -> io::Result<Source> {
        Ok(Source::File(File::open(path)?))
    }

    fn length(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

impl Handle for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_length(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

/// A file that is read here and there.
#[derive(Debug)]
pub enum Source {
    /// The operating system's.
    File(File),
    /// In memory.
    Memory(Bytes),
}

impl Length for Source {
    fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.metadata().map_or(0, |found| found.len()),
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }
}

impl ChunkReader for Source {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        match self {
            Self::File(file) => {
                let mut file = file.try_clone()?;
                file.seek(SeekFrom::Start(start))?;
                Ok(Box::new(io::BufReader::new(file)))
            }
            Self::Memory(bytes) => Ok(Box::new(bytes.get_read(start)?)),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        match self {
            Self::File(file) => file.get_bytes(start, length),
            Self::Memory(bytes) => bytes.get_bytes(start, length),
        }
    }
}

/// Whether an error says that the file is not there (any more).
pub(crate) fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
pub(crate) mod simulated;
