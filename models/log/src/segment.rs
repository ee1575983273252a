//! The files of a log.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use crate::error::{LogError, failed};
use crate::files::{Files, Handle};
use crate::line::{Header, HeaderLine, Piece, check, encode, next_piece};

/// Version of the lines' content.
pub(crate) const FORMAT: u32 = 1;

/// Path of segment `number` in `dir`.
pub(crate) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:012}.log"))
}

/// The segments in `dir` by number; other files are not ours to look at.
pub(crate) fn list(files: &dyn Files, dir: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let names = files.list(dir).map_err(failed("list", dir))?.into_iter();
    let segment = |name: String| {
        let number = name.strip_suffix(".log")?.parse().ok()?;
        let path = dir.join(name);
        (path == path_of(dir, number)).then_some((number, path))
    };
    let mut segments: Vec<_> = names.filter_map(|found| segment(found.name)).collect();
    segments.sort_unstable();
    Ok(segments)
}

/// Makes a segment with its header; it is on the disk when this returns.
pub(crate) fn create(
    files: &dyn Files,
    dir: &Path,
    number: u64,
) -> Result<(Box<dyn Handle>, u64), LogError> {
    let path = path_of(dir, number);
    let mut file = files.create(&path).map_err(failed("create", &path))?;
    let made = write_header(file.as_mut(), &path, number).and_then(|length| {
        sync_dir(files, dir)?;
        Ok(length)
    });
    if made.is_err() {
        // On a full disk the name may have found room where the header did not. One that stays behind all
        // the same is empty, and a reader passes it over.
        let _ = files.remove(&path);
    }
    Ok((file, made?))
}

/// Writes the header to an empty segment.
pub(crate) fn write_header(
    file: &mut dyn Handle,
    path: &Path,
    number: u64,
) -> Result<u64, LogError> {
    let line = header(number);
    file.write_all(&line).map_err(failed("write", path))?;
    file.sync().map_err(failed("sync", path))?;
    Ok(line.len() as u64)
}

/// Length of a segment without events.
pub(crate) fn header_bytes(number: u64) -> u64 {
    header(number).len() as u64
}

fn header(number: u64) -> Vec<u8> {
    let mut line = Vec::new();
    encode(
        &HeaderLine::Segment(Header {
            format: FORMAT,
            number,
        }),
        &mut line,
    );
    line
}

/// Checks the first line of a segment.
pub(crate) fn check_header(path: &Path, line: &[u8]) -> Result<(), LogError> {
    let damaged = |problem: String| LogError::Damaged {
        file: path.to_owned(),
        offset: 0,
        problem,
    };
    let json = check(line).map_err(|problem| damaged(problem.to_owned()))?;
    let header = serde_json::from_slice(json);
    let HeaderLine::Segment(header) =
        header.map_err(|e| damaged(format!("no segment header: {e}")))?;
    if header.format == FORMAT {
        return Ok(());
    }
    Err(LogError::Format {
        file: path.to_owned(),
        found: header.format,
        known: FORMAT,
    })
}

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Scan {
    /// End of the last line whose checksum fits; what follows was never acknowledged.
    pub(crate) good_end: u64,
    /// Length of the file.
    pub(crate) length: u64,
    /// Lines before `good_end` whose checksum does not fit.
    pub(crate) damaged: u64,
}

/// Reads a segment through.
pub(crate) fn scan(files: &dyn Files, path: &Path) -> Result<Scan, LogError> {
    let mut input = BufReader::new(files.open(path).map_err(failed("open", path))?);
    let (mut scan, mut bad, mut line) = (Scan::default(), 0, Vec::new());
    loop {
        let (piece, bytes) = next_piece(&mut input, &mut line).map_err(failed("read", path))?;
        let is_first = scan.length == 0;
        scan.length += bytes;
        match piece {
            Piece::End => return Ok(scan),
            Piece::Line if check(&line).is_ok() => {
                if is_first {
                    check_header(path, &line)?;
                }
                scan.good_end = scan.length;
                scan.damaged += std::mem::take(&mut bad);
            }
            Piece::Line | Piece::TooLong => bad += 1,
            Piece::Tail => {}
        }
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(files: &dyn Files, dir: &Path) -> Result<(), LogError> {
    files.sync_dir(dir).map_err(failed("sync", dir))
}
