//! Appends to a recording.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use blkpilot_env::sample::HostSample;
use nix::fcntl::Flock;
use serde::Serialize;

use super::{
    FORMAT, Header, Line, RecordedSample, RecordingError, Session, Source, check_header,
    check_magic,
};
use crate::error::failed;
use crate::line::{LONGEST_LINE_BYTES, Piece, encode, next_piece};
use crate::lock::exclusive;

/// The only writer of a recording.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: Flock<File>,
    line: Vec<u8>,
    samples: u64,
}

impl Recorder {
    /// Begins a session in `path`: a new file, or a recording, whose torn tail is cut off.
    ///
    /// # Errors
    /// `Foreign`, `Format` for a file that is something else, which is not touched; `Busy`; `Log`.
    pub fn append(path: &Path, source: Source) -> Result<Self, RecordingError> {
        let file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(path)
            .map_err(failed("open", path))?;
        let mut recorder = Self {
            path: path.to_owned(),
            file: exclusive(file, path)?.ok_or_else(|| RecordingError::Busy {
                file: path.to_owned(),
            })?,
            line: Vec::new(),
            samples: 0,
        };
        let length = recorder
            .file
            .metadata()
            .map_err(failed("read", path))?
            .len();
        if length == 0 {
            recorder.write(&Line::Recording(Header { format: FORMAT }))?;
        } else {
            let whole = whole_lines(path)?;
            if whole < length {
                recorder.file.set_len(whole).map_err(failed("cut", path))?;
            }
        }
        recorder.write(&Line::Session(Session {
            source,
            unix_us: unix_us(),
        }))?;
        Ok(recorder)
    }

    /// Appends a sample. It survives the process once this has returned.
    ///
    /// # Errors
    /// `TooLarge`, after which the recording goes on as before; `Log`.
    pub fn record(&mut self, sample: &HostSample) -> Result<(), RecordingError> {
        self.write(&Line::Sample(Box::new(RecordedSample {
            unix_us: unix_us(),
            host: sample.clone(),
        })))?;
        self.samples += 1;
        Ok(())
    }

    /// Samples appended so far.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// `Log`.
    pub fn finish(self) -> Result<u64, RecordingError> {
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        Ok(self.samples)
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), RecordingError> {
        self.line.clear();
        let bytes = encode(line, &mut self.line);
        if bytes > LONGEST_LINE_BYTES {
            return Err(RecordingError::TooLarge {
                file: self.path.clone(),
                bytes,
            });
        }
        let written = self.file.write_all(&self.line);
        Ok(written.map_err(failed("write", &self.path))?)
    }
}

/// Checks that a file is a recording of ours; returns where its last complete line ends.
fn whole_lines(path: &Path) -> Result<u64, RecordingError> {
    check_magic(path)?;
    let mut input = BufReader::new(File::open(path).map_err(failed("open", path))?);
    let (mut end, mut line) = (0, Vec::new());
    loop {
        let (piece, bytes) = next_piece(&mut input, &mut line).map_err(failed("read", path))?;
        if end == 0 {
            check_header(path, (piece == Piece::Line).then_some(&line[..]))?;
        }
        match piece {
            Piece::End | Piece::Tail => return Ok(end),
            Piece::Line | Piece::TooLong => end += bytes,
        }
    }
}

fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}
