//! Recordings: what a host reported, sample by sample, for calibration and for looking back.
//!
//! One file of checksummed lines in the format of the decision log (`cut -c10- FILE | jq .`):
//!
//! ```text
//! 3f1a90c2 {"recording":{"format":1}}
//! 9be1d06a {"session":{"source":{"name":"qemu:///system",…},"unix_us":…}}
//! 71c0ffee {"sample":{"unix_us":…,"host":{"at":…,"disks":[…],…}}}
//! ```
//!
//! Each run that appends begins a session, so that no window spans the time between two. Each line
//! is handed to the operating system as it is written: what was recorded survives the process,
//! however it ends, and a line cut by a crash is cut off by the next one that appends. Only
//! [`Recorder::finish`] flushes to the disk, since a flush per sample would be load on the host that
//! is being measured.
//!
//! [`Windows`] pairs consecutive samples and counts by reason what it cannot use.

mod recorder;
#[cfg(test)]
mod tests;
mod windows;

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use blkpilot_env::sample::HostSample;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::{LogError, failed};
use crate::line::{LONGEST_LINE_BYTES, Piece, check, next_piece};

pub use recorder::Recorder;
pub use windows::{RecordedWindow, SkipReason, Tally, Windows};

/// Version of the lines' content.
const FORMAT: u32 = 1;
/// How every recording begins, behind the checksum of its first line.
const MAGIC: &[u8] = b"{\"recording\":";

/// Where samples come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The libvirt connection, such as `qemu:///system`, or the name of a scenario.
    pub name: String,
    /// Whether the host is simulated, so that its clock has nothing to do with the wall's.
    pub is_simulated: bool,
    /// Time between two samples on the host's clock, as intended, seconds.
    pub interval_s: f64,
}

/// What a run that records says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Where its samples come from.
    pub source: Source,
    /// When it began: wall clock, microseconds since 1970.
    pub unix_us: u64,
}

/// A sample in a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedSample {
    /// When: wall clock, microseconds since 1970. The host's own clock is in the sample.
    pub unix_us: u64,
    /// The sample.
    pub host: HostSample,
}

/// The content of a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Recording(Header),
    Session(Session),
    Sample(Box<RecordedSample>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    format: u32,
}

/// What the next readable line of a recording is.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A run began to record.
    Session(Session),
    /// A sample.
    Sample(Box<RecordedSample>),
    /// A line that is not what was written; where it starts, and what is wrong.
    Damaged {
        /// Byte at which it starts.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
}

/// Why a recording could not be written or read.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// The operating system refused.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A file that is no recording.
    #[error("{}: is not a recording of blkpilot: name another file, or a new one", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// A recording of another version.
    #[error("{}: format is {found}, this build reads {FORMAT}: use the build that wrote it", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Somebody else appends to the file.
    #[error("{}: another process records to this file: stop it, or name another file", file.display())]
    Busy {
        /// The file.
        file: PathBuf,
    },
    /// A sample that would not be read back.
    #[error("{}: a sample of {bytes} bytes, but at most {LONGEST_LINE_BYTES} fit in a line", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Size of the line.
        bytes: usize,
    },
}

/// Reads a recording from its first sample to its last, also while it is written.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    input: BufReader<File>,
    line: Vec<u8>,
    offset: u64,
    torn_bytes: u64,
}

impl Recording {
    /// Opens a recording.
    ///
    /// # Errors
    /// `Log`, `Foreign`, `Format`.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        check_magic(path)?;
        let file = File::open(path).map_err(failed("open", path))?;
        let mut recording = Self {
            path: path.to_owned(),
            input: BufReader::new(file),
            line: Vec::new(),
            offset: 0,
            torn_bytes: 0,
        };
        let read = next_piece(&mut recording.input, &mut recording.line);
        let (piece, bytes) = read.map_err(failed("read", path))?;
        recording.offset = bytes;
        check_header(path, (piece == Piece::Line).then_some(&recording.line[..]))?;
        Ok(recording)
    }

    /// Bytes behind the last complete line, known once everything else has been read: a write
    /// under way, or interrupted.
    #[must_use]
    pub fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }
}

impl Iterator for Recording {
    type Item = Result<Item, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let read = next_piece(&mut self.input, &mut self.line);
        let (piece, bytes) = match read.map_err(failed("read", &self.path)) {
            Ok(read) => read,
            Err(error) => return Some(Err(error.into())),
        };
        self.offset += bytes;
        let line = match piece {
            Piece::End => return None,
            Piece::Tail => {
                self.torn_bytes += bytes;
                return None;
            }
            Piece::TooLong => Err(format!("a line of more than {LONGEST_LINE_BYTES} bytes")),
            Piece::Line => parse(&self.line),
        };
        Some(Ok(match line {
            Ok(Line::Session(session)) => Item::Session(session),
            Ok(Line::Sample(sample)) => Item::Sample(sample),
            Ok(Line::Recording(_)) => damaged(offset, "a second header"),
            Err(problem) => damaged(offset, problem),
        }))
    }
}

fn damaged(offset: u64, problem: impl Into<String>) -> Item {
    Item::Damaged {
        offset,
        problem: problem.into(),
    }
}

fn parse(line: &[u8]) -> Result<Line, String> {
    let json = check(line).map_err(str::to_owned)?;
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

/// Looks at the first bytes before anything else is read or written.
fn check_magic(path: &Path) -> Result<(), RecordingError> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(failed("open", path))?;
    let longest = 9 + MAGIC.len() as u64;
    let read = file.take(longest).read_to_end(&mut start);
    read.map_err(failed("read", path))?;
    if start.get(9..) == Some(MAGIC) {
        return Ok(());
    }
    Err(RecordingError::Foreign {
        file: path.to_owned(),
    })
}

/// Checks the first line; `None` if it is not complete.
fn check_header(path: &Path, line: Option<&[u8]>) -> Result<(), RecordingError> {
    let file = path.to_owned();
    match line.map(parse) {
        Some(Ok(Line::Recording(Header { format: FORMAT }))) => Ok(()),
        Some(Ok(Line::Recording(Header { format }))) => Err(RecordingError::Format {
            file,
            found: format,
        }),
        _ => Err(RecordingError::Foreign { file }),
    }
}
