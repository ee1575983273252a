//! Reads a log from its oldest event to its newest, one at a time.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{LogError, failed};
use crate::files::{Disk, Files, is_missing};
use crate::line::{LONGEST_LINE_BYTES, Piece, check, next_piece};
use crate::schema::Event;
use crate::segment::{self, check_header};

/// An event and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Number of its segment.
    pub segment: u64,
    /// Where its line starts in the segment.
    pub offset: u64,
    /// The event.
    pub event: Event,
}

/// The events of the segments there were when it was opened. A damaged line is an error, after which
/// the next item is the event behind it. A log may be read while it is written: the reader then ends
/// before a line that is not complete.
#[derive(Debug)]
pub struct Reader {
    files: Arc<dyn Files>,
    /// Segments not yet begun, newest first.
    waiting: Vec<(u64, PathBuf)>,
    open: Option<Open>,
    line: Vec<u8>,
    torn_bytes: u64,
}

struct Open {
    number: u64,
    path: PathBuf,
    input: BufReader<Box<dyn Read + Send>>,
    offset: u64,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}", self.path.display(), self.offset)
    }
}

impl Reader {
    /// A reader of the log in `dir`.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        let segments = segment::list(&Disk, dir)?;
        Ok(Self::of(Arc::new(Disk), segments))
    }

    /// A reader of these segments, given by number from the oldest on.
    pub(crate) fn of(files: Arc<dyn Files>, mut segments: Vec<(u64, PathBuf)>) -> Self {
        segments.reverse();
        Self {
            files,
            waiting: segments,
            open: None,
            line: Vec::new(),
            torn_bytes: 0,
        }
    }

    /// A reader of one segment that is open when this returns: whoever removes it afterwards does
    /// not hinder it.
    pub(crate) fn begin(files: Arc<dyn Files>, number: u64, path: &Path) -> Result<Self, LogError> {
        let input = files.open(path).map_err(failed("open", path))?;
        let mut reader = Self::of(files, vec![]);
        reader.open = Some(Open {
            number,
            path: path.to_owned(),
            input: BufReader::new(input),
            offset: 0,
        });
        Ok(reader)
    }

    /// Bytes behind the last complete line, so far: a write under way, or interrupted.
    #[must_use]
    pub fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }

    /// Begins the next segment; `false` at the end of the log.
    fn advance(&mut self) -> Result<bool, LogError> {
        while let Some((number, path)) = self.waiting.pop() {
            match self.files.open(&path) {
                Ok(file) => {
                    let input = BufReader::new(file);
                    self.open = Some(Open {
                        number,
                        path,
                        input,
                        offset: 0,
                    });
                    return Ok(true);
                }
                // It has become Parquet, or retention removed it, in the meantime.
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(failed("open", &path)(error)),
            }
        }
        Ok(false)
    }

    /// The next event of the open segment; `None` at its end.
    fn next_in_segment(&mut self) -> Option<Result<Entry, LogError>> {
        let open = self.open.as_mut()?;
        loop {
            let offset = open.offset;
            let read = next_piece(&mut open.input, &mut self.line);
            let (piece, bytes) = match read.map_err(failed("read", &open.path)) {
                Ok(read) => read,
                Err(error) => {
                    // Reading on would repeat the error for ever.
                    self.open = None;
                    return Some(Err(error));
                }
            };
            open.offset += bytes;
            let event = match piece {
                Piece::End => return None,
                Piece::Tail => {
                    self.torn_bytes += bytes;
                    return None;
                }
                Piece::TooLong => Err(format!("a line of more than {LONGEST_LINE_BYTES} bytes")),
                Piece::Line if offset == 0 => match check_header(&open.path, &self.line) {
                    Ok(()) => continue,
                    Err(error) => return Some(self.refuse_segment(error)),
                },
                Piece::Line => parse(&self.line),
            };
            let (segment, file) = (open.number, open.path.clone());
            return Some(match event {
                Ok(event) => Ok(Entry {
                    segment,
                    offset,
                    event,
                }),
                Err(problem) => Err(LogError::Damaged {
                    file,
                    offset,
                    problem,
                }),
            });
        }
    }

    /// A segment of another format is skipped; one whose header is damaged is read on.
    fn refuse_segment(&mut self, error: LogError) -> Result<Entry, LogError> {
        if let LogError::Format { .. } = error {
            self.open = None;
        }
        Err(error)
    }
}

impl Iterator for Reader {
    type Item = Result<Entry, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.next_in_segment() {
                return Some(item);
            }
            self.open = None;
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Event, String> {
    let json = check(line).map_err(str::to_owned)?;
    serde_json::from_slice(json).map_err(|error| format!("no event: {error}"))
}
