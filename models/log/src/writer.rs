//! Appends events, and makes them durable.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::Flock;

use crate::compact::Compactor;
use crate::error::{LogError, failed};
use crate::files::{Disk, Files, Handle};
use crate::line::{LONGEST_LINE_BYTES, encode};
use crate::lock::lock;
use crate::retain::{self, Keep};
use crate::schema::Event;
use crate::segment::{self, path_of};

/// More appended bytes than this are handed to the operating system before `commit`.
const MOST_PENDING_BYTES: usize = 8 << 20;

/// When a segment is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// A segment of this size is sealed by the next commit.
    pub segment_bytes: u64,
}

impl Default for Config {
    /// 64 MiB.
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
        }
    }
}

/// What opening a log found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Bytes cut off the newest segment: a write that a crash interrupted. None of it had been
    /// acknowledged.
    pub torn_bytes: u64,
    /// Lines of the newest segment that are damaged but followed by good ones; they were left.
    pub damaged_lines: u64,
}

/// The only writer of a log. Dropping it loses what was appended and not committed.
#[derive(Debug)]
pub struct Writer {
    files: Arc<dyn Files>,
    dir: PathBuf,
    config: Config,
    /// Held for as long as the writer lives; a simulated disk has none.
    _lock: Option<Flock<File>>,
    segment: Segment,
    /// Lines that have not been handed to the operating system.
    pending: Vec<u8>,
    state: State,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: Box<dyn Handle>,
    /// Bytes handed to the operating system.
    length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// All that was handed over has been synced.
    Synced,
    /// Something was handed over and has not been synced.
    Written,
    /// A write or sync failed. The page cache may claim that data is clean which never reached the
    /// disk, so trying again in the same file proves nothing.
    Failed,
}

impl Writer {
    /// Opens the log in `dir`, making it if need be, and cuts off a torn tail.
    ///
    /// # Errors
    /// `Locked` if another writer has it open, `Format` if its newest segment is of another
    /// version, `Io`.
    pub fn open(dir: &Path, config: Config) -> Result<(Self, Recovery), LogError> {
        let lock = lock(dir)?;
        Self::open_on(Arc::new(Disk), Some(lock), dir, config)
    }

    /// As [`Writer::open`], of a log on other files whose directory is there and locked.
    pub(crate) fn open_on(
        files: Arc<dyn Files>,
        lock: Option<Flock<File>>,
        dir: &Path,
        config: Config,
    ) -> Result<(Self, Recovery), LogError> {
        let (segment, recovery) = newest(files.as_ref(), dir)?;
        let (dir, pending) = (dir.to_owned(), Vec::new());
        let mut writer = Self {
            files,
            dir,
            config,
            _lock: lock,
            segment,
            pending,
            state: State::Synced,
        };
        writer.seal_if_full()?;
        Ok((writer, recovery))
    }

    /// Takes an event. It is durable when a later [`Writer::commit`] has returned.
    ///
    /// # Errors
    /// `TooLarge`, after which the log goes on as before; `Failed`; `Io`.
    pub fn append(&mut self, event: &Event) -> Result<(), LogError> {
        self.check_state()?;
        let start = self.pending.len();
        let bytes = encode(event, &mut self.pending);
        if bytes > LONGEST_LINE_BYTES {
            self.pending.truncate(start);
            return Err(LogError::TooLarge {
                bytes,
                most: LONGEST_LINE_BYTES,
            });
        }
        if self.pending.len() > MOST_PENDING_BYTES {
            self.write_pending()
        } else {
            Ok(())
        }
    }

    /// Makes all that was appended durable, with one flush. Seals the segment if it is full.
    ///
    /// # Errors
    /// `Io`, after which nothing is known of what was appended since the commit before, and the
    /// writer must be [recovered](Writer::recover); `Failed` if it has not been.
    pub fn commit(&mut self) -> Result<(), LogError> {
        self.check_state()?;
        self.write_pending()?;
        if self.state == State::Written {
            let synced = self.segment.file.sync();
            self.note(synced, "sync")?;
            self.state = State::Synced;
        }
        self.seal_if_full()
    }

    /// Commits, then seals the segment whatever its size; an empty one stays.
    ///
    /// # Errors
    /// As [`Writer::commit`].
    pub fn seal(&mut self) -> Result<(), LogError> {
        self.commit()?;
        if self.segment.length > segment::header_bytes(self.segment.number) {
            self.start_segment()?;
        }
        Ok(())
    }

    /// Makes a writer that has failed usable again, in a new segment. What was appended and not
    /// committed is dropped, or may be found to have been written.
    ///
    /// # Errors
    /// As [`Writer::open`].
    pub fn recover(&mut self) -> Result<Recovery, LogError> {
        self.pending.clear();
        let (last, recovery) = newest(self.files.as_ref(), &self.dir)?;
        self.start_segment()?;
        self.state = State::Synced;
        self.remove_if_empty(last.number);
        Ok(recovery)
    }

    /// Removes a segment without events that another has followed. One that cannot be removed does no harm.
    fn remove_if_empty(&self, number: u64) {
        let path = path_of(&self.dir, number);
        let length = self.files.length(&path);
        if length.is_ok_and(|length| length <= segment::header_bytes(number)) {
            let _ = self.files.remove(&path);
        }
    }

    /// Whether a write has failed and [`Writer::recover`] is due.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// The segments that will not change again, oldest first.
    ///
    /// # Errors
    /// `Io`.
    pub fn sealed(&self) -> Result<Vec<PathBuf>, LogError> {
        let segments = segment::list(self.files.as_ref(), &self.dir)?.into_iter();
        Ok(segments
            .filter(|(n, _)| *n < self.segment.number)
            .map(|(_, path)| path)
            .collect())
    }

    /// Number of the segment that is being written; those before it will not change again.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.segment.number
    }

    /// What turns this log's sealed segments into Parquet files and keeps its size within bounds.
    /// There should be one at a time, and none without the writer: nobody else may change the log.
    #[must_use]
    pub fn compactor(&self, keep: Keep) -> Compactor {
        Compactor::new(Arc::clone(&self.files), &self.dir, keep)
    }

    fn check_state(&self) -> Result<(), LogError> {
        if self.has_failed() {
            Err(LogError::Failed)
        } else {
            Ok(())
        }
    }

    fn write_pending(&mut self) -> Result<(), LogError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.segment.file.write_all(&self.pending);
        self.note(written, "write")?;
        self.segment.length += self.pending.len() as u64;
        self.pending.clear();
        self.state = State::Written;
        Ok(())
    }

    fn seal_if_full(&mut self) -> Result<(), LogError> {
        if self.segment.length < self.config.segment_bytes {
            Ok(())
        } else {
            self.start_segment()
        }
    }

    fn start_segment(&mut self) -> Result<(), LogError> {
        let last = segment::list(self.files.as_ref(), &self.dir)?
            .last()
            .map_or(0, |(number, _)| *number);
        let number = last.max(self.segment.number) + 1;
        let created = segment::create(self.files.as_ref(), &self.dir, number);
        if created.is_err() {
            self.state = State::Failed;
        }
        let (file, length) = created?;
        self.segment = Segment {
            number,
            file,
            length,
        };
        Ok(())
    }

    fn note(&mut self, result: std::io::Result<()>, action: &'static str) -> Result<(), LogError> {
        if result.is_err() {
            self.state = State::Failed;
        }
        result.map_err(failed(action, &self.path()))
    }

    fn path(&self) -> PathBuf {
        path_of(&self.dir, self.segment.number)
    }
}

/// The segment to go on with, without its torn tail; the first one of a new log. Numbers are never
/// used again, whatever has become of their segments.
fn newest(files: &dyn Files, dir: &Path) -> Result<(Segment, Recovery), LogError> {
    let Some((number, path)) = segment::list(files, dir)?.pop() else {
        let number = retain::highest_number(files, dir)? + 1;
        let (file, length) = segment::create(files, dir, number)?;
        return Ok((
            Segment {
                number,
                file,
                length,
            },
            Recovery::default(),
        ));
    };
    let scan = segment::scan(files, &path)?;
    let mut file = files.append(&path).map_err(failed("open", &path))?;
    let torn_bytes = scan.length - scan.good_end;
    if torn_bytes > 0 {
        file.set_length(scan.good_end)
            .map_err(failed("cut the torn tail of", &path))?;
        file.sync().map_err(failed("sync", &path))?;
    }
    let mut length = scan.good_end;
    if length == 0 {
        length = segment::write_header(file.as_mut(), &path, number)?;
        segment::sync_dir(files, dir)?;
    }
    Ok((
        Segment {
            number,
            file,
            length,
        },
        Recovery {
            torn_bytes,
            damaged_lines: scan.damaged,
        },
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{decision, events, outcome};
    use crate::reader::Reader;

    fn open(dir: &Path) -> (Writer, Recovery) {
        Writer::open(dir, Config::default()).unwrap()
    }

    fn write(writer: &mut Writer, events: &[Event]) {
        events
            .iter()
            .for_each(|event| writer.append(event).unwrap());
        writer.commit().unwrap();
    }

    #[test]
    fn what_is_committed_is_read_back_in_order_and_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = [decision(1), decision(2), outcome(1), outcome(2)];
        let (mut writer, recovery) = open(dir.path());
        assert_eq!(recovery, Recovery::default());
        write(&mut writer, &wanted[..2]);
        write(&mut writer, &wanted[2..]);
        assert_eq!(events(dir.path()), wanted);
        drop(writer);
        let (mut writer, recovery) = open(dir.path());
        assert_eq!(recovery, Recovery::default());
        write(&mut writer, &[decision(3)]);
        assert_eq!(events(dir.path()).len(), 5);
    }

    #[test]
    fn numbers_that_are_not_finite_come_back_as_nan() {
        let dir = tempfile::tempdir().unwrap();
        let Event::Decision(mut row) = decision(1) else {
            unreachable!()
        };
        row.seen.disk[1] = f32::INFINITY;
        let Event::Outcome(mut result) = outcome(1) else {
            unreachable!()
        };
        result.reward_terms.insert("cpu".to_owned(), f32::NAN);
        write(
            &mut open(dir.path()).0,
            &[Event::Decision(row), Event::Outcome(result)],
        );
        let read = events(dir.path());
        let Event::Decision(row) = &read[0] else {
            panic!()
        };
        assert!(row.seen.disk[1].is_nan() && row.seen.disk[0] == 0.1);
        let Event::Outcome(result) = &read[1] else {
            panic!()
        };
        assert!(result.reward_terms["cpu"].is_nan());
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_cut_and_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        write(
            &mut open(dir.path()).0,
            &[decision(1), outcome(1), decision(2)],
        );
        let path = path_of(dir.path(), 1);
        let whole = fs::read(&path).unwrap();
        let ends: Vec<usize> = (1..=whole.len())
            .filter(|end| whole[end - 1] == b'\n')
            .collect();
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let lines = ends.iter().filter(|end| **end <= length).count();
            let (mut writer, recovery) = open(dir.path());
            let good = if lines == 0 { 0 } else { ends[lines - 1] };
            assert_eq!(
                recovery.torn_bytes as usize,
                length - good,
                "cut to {length}"
            );
            write(&mut writer, &[outcome(9)]);
            let mut wanted = vec![decision(1), outcome(1), decision(2)];
            wanted.truncate(lines.saturating_sub(1));
            wanted.push(outcome(9));
            assert_eq!(events(dir.path()), wanted, "cut to {length}");
        }
    }

    #[test]
    fn a_reader_beside_a_torn_tail_ends_before_it() {
        let dir = tempfile::tempdir().unwrap();
        write(&mut open(dir.path()).0, &[decision(1), outcome(1)]);
        let path = path_of(dir.path(), 1);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let mut reader = Reader::open(dir.path()).unwrap();
        assert_eq!(
            reader
                .by_ref()
                .map(|entry| entry.unwrap().event)
                .collect::<Vec<_>>(),
            [decision(1)]
        );
        assert!(reader.torn_bytes() > 0);
    }

    #[test]
    fn a_page_of_zeros_after_a_crash_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        write(&mut open(dir.path()).0, &[decision(1)]);
        let path = path_of(dir.path(), 1);
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(&[0; 4096])
            .unwrap();
        let (_, recovery) = open(dir.path());
        assert_eq!(recovery.torn_bytes, 4096);
        assert_eq!(events(dir.path()), [decision(1)]);
    }

    #[test]
    fn damage_before_good_lines_is_kept_reported_and_read_around() {
        let dir = tempfile::tempdir().unwrap();
        write(
            &mut open(dir.path()).0,
            &[decision(1), outcome(1), decision(2)],
        );
        let path = path_of(dir.path(), 1);
        let mut bytes = fs::read(&path).unwrap();
        let second = bytes
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'\n')
            .nth(1)
            .unwrap()
            .0
            + 1;
        bytes[second + 20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (_writer, recovery) = open(dir.path());
        assert_eq!(
            recovery,
            Recovery {
                torn_bytes: 0,
                damaged_lines: 1
            }
        );
        let items: Vec<_> = Reader::open(dir.path()).unwrap().collect();
        assert_eq!(items.len(), 3);
        assert_eq!(items[0].as_ref().unwrap().event, decision(1));
        let error = items[1].as_ref().unwrap_err();
        assert!(
            matches!(error, LogError::Damaged { offset, .. } if *offset == second as u64),
            "{error}"
        );
        assert_eq!(items[2].as_ref().unwrap().event, decision(2));
    }

    #[test]
    fn full_segments_are_sealed_and_empty_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::open(
            dir.path(),
            Config {
                segment_bytes: 2000,
            },
        )
        .unwrap();
        for number in 0..12 {
            write(&mut writer, &[decision(number), outcome(number)]);
        }
        let sealed = writer.sealed().unwrap();
        assert!(sealed.len() >= 5, "{sealed:?}");
        assert_eq!(events(dir.path()).len(), 24);
        writer.seal().unwrap();
        let sealed = writer.sealed().unwrap().len();
        writer.seal().unwrap();
        assert_eq!(
            writer.sealed().unwrap().len(),
            sealed,
            "an empty segment is not sealed"
        );
    }

    #[test]
    fn only_one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        let error = Writer::open(dir.path(), Config::default()).unwrap_err();
        assert!(matches!(error, LogError::Locked { .. }), "{error}");
        let lock = first.0._lock.as_ref().unwrap();
        let of_a_child_that_is_being_started = lock.try_clone().unwrap();
        drop(first);
        open(dir.path());
        drop(of_a_child_that_is_being_started);
    }

    #[test]
    fn a_log_of_another_format_is_refused_by_writer_and_reader() {
        let dir = tempfile::tempdir().unwrap();
        let mut line = Vec::new();
        encode(
            &serde_json::json!({ "segment": { "format": 2, "number": 1 } }),
            &mut line,
        );
        fs::write(path_of(dir.path(), 1), &line).unwrap();
        let error = Writer::open(dir.path(), Config::default()).unwrap_err();
        assert!(
            matches!(
                error,
                LogError::Format {
                    found: 2,
                    known: 1,
                    ..
                }
            ),
            "{error}"
        );
        let items: Vec<_> = Reader::open(dir.path()).unwrap().collect();
        assert!(matches!(items[..], [Err(LogError::Format { .. })]));
    }

    #[test]
    fn an_event_that_is_too_large_is_refused_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = open(dir.path());
        let Event::Decision(mut row) = decision(1) else {
            unreachable!()
        };
        row.seen.channels = vec![0.123; LONGEST_LINE_BYTES / 4];
        let refused = writer.append(&Event::Decision(row)).unwrap_err();
        assert!(matches!(refused, LogError::TooLarge { .. }), "{refused}");
        write(&mut writer, &[decision(2)]);
        assert_eq!(events(dir.path()), [decision(2)]);
    }

    #[test]
    fn a_failed_write_fails_until_recovered_and_loses_nothing_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = open(dir.path());
        write(&mut writer, &[decision(1)]);
        // A file that cannot be written stands in for a full or broken disk.
        writer.segment.file = Box::new(File::open(path_of(dir.path(), 1)).unwrap());
        writer.append(&decision(2)).unwrap();
        assert!(matches!(
            writer.commit(),
            Err(LogError::Io {
                action: "write",
                ..
            })
        ));
        assert!(matches!(writer.append(&decision(3)), Err(LogError::Failed)));
        assert!(matches!(writer.commit(), Err(LogError::Failed)));
        writer.recover().unwrap();
        write(&mut writer, &[decision(4)]);
        assert_eq!(events(dir.path()), [decision(1), decision(4)]);
        assert_eq!(writer.sealed().unwrap().len(), 1);
    }

    proptest! {
        /// Writers opened, torn and opened again: what was committed stays, in order.
        #[test]
        fn committed_events_survive_any_series_of_crashes(
            runs in prop::collection::vec((0_usize..6, 0_usize..4, 0_usize..40), 1..6),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (mut number, mut committed) = (0, Vec::new());
            for (good, torn, junk) in runs {
                let (mut writer, _) = Writer::open(dir.path(), Config { segment_bytes: 3000 }).unwrap();
                for _ in 0..good {
                    number += 1;
                    write(&mut writer, &[decision(number)]);
                    committed.push(decision(number));
                }
                // An unfinished write: pieces of lines that nobody was told about.
                let mut tail = Vec::new();
                encode(&outcome(0), &mut tail);
                tail.truncate(torn * tail.len() / 5);
                tail.extend(vec![b'#'; junk]);
                writer.segment.file.write_all(&tail).unwrap();
            }
            drop(Writer::open(dir.path(), Config::default()).unwrap());
            prop_assert_eq!(events(dir.path()), committed);
        }
    }
}
