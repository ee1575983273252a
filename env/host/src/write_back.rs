//! Dirty pages of images are written back from outside QEMU before their disk goes over to direct: the
//! reopen flushes them first, and the disk stands still until that is done.
//!
//! Each image has a thread of its own that goes through it in rounds while the disk goes on being
//! served. A round writes what was dirty at its beginning, so that for a guest that writes more slowly
//! than its device the rounds get shorter and shorter; one that took no longer than a disk may stand
//! still says that the reopen will not either. A guest that writes as fast as its device is given up.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use blkpilot_env::observation::MaskReason;

use crate::cachestat::{cached_bytes, write_back_range};
use crate::error::HostError;

/// Between two rounds, so that one over a clean image costs no more than it has to.
const PAUSE: Duration = Duration::from_millis(20);
/// A round that ended longer ago says nothing of now.
const FRESH: Duration = Duration::from_secs(1);
/// Written at once: what a thread that is not wanted any more, and so the end of this process, still has to
/// wait for. A disk writes these as single pages in some seconds.
const PIECE_BYTES: u64 = 4 << 20;
/// Of a large image the pieces are larger: each costs a call of about 2 µs, though nothing in it is dirty.
const MOST_PIECES: u64 = 4096;
/// Sentences that nobody has taken.
const MOST_NOTES: usize = 64;

/// How far writing back goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteBackLimits {
    /// Images that are written back at a time, each by a thread.
    pub images: usize,
    /// As long as this a disk may stand still, and a change wait for a first round.
    pub stall: Duration,
    /// Dirty bytes that the reopen may leave to QEMU, where the kernel tells them.
    pub dirty_bytes: u64,
    /// After this time without a short round a guest is given up.
    pub patience: Duration,
    /// For this time after that it is not tried again.
    pub pause: Duration,
    /// For this time an image is kept clean for a change to `direct`.
    pub kept: Duration,
    /// For this time all ways back of one rollback together wait before they reopen all the same.
    pub way_back: Duration,
}

impl Default for WriteBackLimits {
    fn default() -> Self {
        Self {
            images: 2,
            stall: Duration::from_millis(100),
            dirty_bytes: 16 << 20,
            patience: Duration::from_secs(60),
            pause: Duration::from_secs(60),
            kept: Duration::from_secs(10),
            way_back: Duration::from_secs(20),
        }
    }
}

/// Whether a disk can go over to direct without standing still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// There is next to nothing to flush.
    Ready,
    /// What is dirty is being written back.
    Working,
    /// As many other images are as may be.
    Queued,
    /// It gets dirty about as fast as its device takes it; it was given up.
    Outrun,
    /// It cannot be done from here, so that QEMU has to.
    Impossible,
}

/// The images that are being written back. The threads end when this is dropped and their piece is
/// written.
#[derive(Debug)]
pub(crate) struct WriteBacks {
    limits: WriteBackLimits,
    /// How much of an image is dirty; `None` where the kernel does not tell.
    pub(crate) dirty_bytes: fn(&Path) -> Option<u64>,
    images: RefCell<BTreeMap<PathBuf, WriteBack>>,
    /// Each thread has one until it ends: on storage that hangs it may not, though nobody wants it any
    /// more.
    threads: Arc<()>,
    /// Images that the device has not taken back what was written to.
    failed: RefCell<BTreeSet<PathBuf>>,
    /// Images that could not be opened, so that it is said once.
    impossible: RefCell<BTreeSet<PathBuf>>,
    notes: RefCell<Vec<String>>,
}

#[derive(Debug)]
struct WriteBack {
    shared: Arc<Shared>,
    limits: WriteBackLimits,
    dirty_bytes: fn(&Path) -> Option<u64>,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    has_changed: Condvar,
    is_unwanted: AtomicBool,
}

#[derive(Debug, Default)]
struct Progress {
    rounds: u32,
    last: Option<Round>,
    end: Option<(End, Instant)>,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    took: Duration,
    ended: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It was short of dirty pages for long enough, and nobody has used that.
    Kept,
    Outrun,
    Failed(String),
}

impl WriteBacks {
    pub(crate) fn new(limits: WriteBackLimits) -> Self {
        Self {
            limits,
            dirty_bytes,
            images: RefCell::default(),
            threads: Arc::default(),
            failed: RefCell::default(),
            impossible: RefCell::default(),
            notes: RefCell::default(),
        }
    }

    /// Whether an image is clean enough for a reopen; begins to write it back where it is not. Waits as
    /// long as a disk may stand still, and no longer.
    pub(crate) fn ask(&self, image: &Path) -> Readiness {
        if (self.dirty_bytes)(image) == Some(0) {
            return Readiness::Ready;
        }
        match self.begin(image) {
            Readiness::Working => {}
            other => return other,
        }
        let images = self.images.borrow();
        let Some(running) = images.get(image) else {
            return Readiness::Impossible;
        };
        running.wait_until(Instant::now() + self.limits.stall, |progress| {
            progress.rounds > 0
        });
        running.readiness(image)
    }

    /// Begins to write an image back, unless that has begun.
    pub(crate) fn begin(&self, image: &Path) -> Readiness {
        self.forget_ended();
        let mut images = self.images.borrow_mut();
        if let Some(running) = images.get(image) {
            return match running.readiness(image) {
                Readiness::Ready => Readiness::Working,
                other => other,
            };
        }
        if Arc::strong_count(&self.threads) > self.limits.images {
            return Readiness::Queued;
        }
        let started = File::open(image).and_then(|file| self.start(image, file));
        match started {
            Ok(running) => {
                images.insert(image.to_owned(), running);
                Readiness::Working
            }
            Err(error) => {
                if self.impossible.borrow_mut().insert(image.to_owned()) {
                    self.note(format!(
                        "{}: cannot be written back from outside QEMU ({error}): its disk stands still while QEMU does it, each time that it goes over to direct; CAP_DAC_READ_SEARCH lets the service open images",
                        image.display()
                    ));
                }
                Readiness::Impossible
            }
        }
    }

    /// Waits until an image is clean enough for a reopen, or for `deadline`. What is dirty then is left to
    /// QEMU, and noted.
    pub(crate) fn wait(&self, image: &Path, deadline: Instant) {
        // One that was given up has fewer dirty pages all the same when it is written back until then.
        self.end_if_outrun(image);
        loop {
            let readiness = self.ask(image);
            let is_over = Instant::now() >= deadline;
            match readiness {
                Readiness::Ready | Readiness::Impossible => return,
                Readiness::Working | Readiness::Queued if !is_over => thread::sleep(PAUSE),
                Readiness::Working | Readiness::Queued | Readiness::Outrun => {
                    let dirty = (self.dirty_bytes)(image).map_or("what is".to_owned(), mebibytes);
                    self.note(format!(
                        "{}: its disk goes back to direct with {dirty} dirty, and stands still while QEMU writes that back",
                        image.display()
                    ));
                    return;
                }
            }
        }
    }

    /// Whether a buffered disk may go over to direct now, as far as this is about its dirty pages.
    pub(crate) fn mask(&self, image: &Path) -> MaskReason {
        self.forget_ended();
        let images = self.images.borrow();
        match images.get(image).map(|running| running.readiness(image)) {
            Some(Readiness::Working) => MaskReason::WritingBack,
            Some(Readiness::Outrun) => MaskReason::WritesTooFast,
            _ => MaskReason::Allowed,
        }
    }

    /// Whether writing an image back has failed since this was made.
    pub(crate) fn has_failed(&self, image: &Path) -> bool {
        self.forget_ended();
        self.failed.borrow().contains(image)
    }

    /// Ends the writing back of an image: its disk has gone over to direct, or shall not any more.
    pub(crate) fn end(&self, image: &Path) {
        self.images.borrow_mut().remove(image);
    }

    /// What somebody should hear, since this was last called.
    pub(crate) fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.borrow_mut())
    }

    /// Why a change to `direct` is not made now; `None` where it may be.
    pub(crate) fn refusal(&self, image: &Path, owner: &str, knob: &str) -> Option<HostError> {
        let (owner, knob) = (owner.to_owned(), knob.to_owned());
        let dirty = (self.dirty_bytes)(image).map_or("its dirty pages".to_owned(), mebibytes);
        match self.ask(image) {
            Readiness::Ready | Readiness::Impossible => None,
            Readiness::Working => Some(HostError::WritingBack { owner, knob, dirty }),
            Readiness::Queued => Some(HostError::WriteBackQueued { owner, knob }),
            Readiness::Outrun => Some(HostError::WritesTooFast {
                owner,
                knob,
                dirty,
                patience: self.limits.patience,
            }),
        }
    }

    /// How long the ways back of one rollback wait together.
    pub(crate) fn way_back(&self) -> Duration {
        self.limits.way_back
    }

    fn start(&self, image: &Path, file: File) -> io::Result<WriteBack> {
        let (limits, dirty_bytes) = (self.limits, self.dirty_bytes);
        let shared = Arc::new(Shared::default());
        let (theirs, image) = (Arc::clone(&shared), image.to_owned());
        let thread = Arc::clone(&self.threads);
        let run = move || {
            let _thread = thread;
            let round = || write_back(&file, &theirs.is_unwanted);
            let end = rounds(&limits, &theirs, round, || dirty_bytes(&image));
            theirs.update(|progress| progress.end = Some((end, Instant::now())));
        };
        let builder = thread::Builder::new().name("write-back".into());
        builder.spawn(run)?;
        Ok(WriteBack {
            shared,
            limits,
            dirty_bytes,
        })
    }

    fn end_if_outrun(&self, image: &Path) {
        let is_outrun = |running: &WriteBack| running.readiness(image) == Readiness::Outrun;
        if self.images.borrow().get(image).is_some_and(is_outrun) {
            self.end(image);
        }
    }

    fn forget_ended(&self) {
        let mut failed = Vec::new();
        self.images.borrow_mut().retain(|image, running| {
            let progress = running.shared.lock();
            match &progress.end {
                None => true,
                Some((End::Kept, _)) => false,
                Some((End::Outrun, at)) => at.elapsed() < running.limits.pause,
                Some((End::Failed(reason), _)) => {
                    failed.push((image.clone(), reason.clone()));
                    false
                }
            }
        });
        for (image, reason) in failed {
            self.note(format!(
                "{}: its dirty pages could not be written back: {reason}; what its guest has written may be lost",
                image.display()
            ));
            self.failed.borrow_mut().insert(image);
        }
    }

    fn note(&self, note: String) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() < MOST_NOTES {
            notes.push(note);
        }
    }
}

impl WriteBack {
    fn readiness(&self, image: &Path) -> Readiness {
        let progress = self.shared.lock();
        match (&progress.end, progress.last) {
            (Some((End::Outrun, _)), _) => Readiness::Outrun,
            // QEMU's own flush says what is wrong.
            (Some((End::Failed(_), _)), _) => Readiness::Impossible,
            (_, Some(last)) if last.ended.elapsed() < FRESH => {
                if is_clean(&self.limits, last.took, (self.dirty_bytes)(image)) {
                    Readiness::Ready
                } else {
                    Readiness::Working
                }
            }
            _ => Readiness::Working,
        }
    }

    fn wait_until(&self, deadline: Instant, is_it: impl Fn(&Progress) -> bool) {
        let mut progress = self.shared.lock();
        while progress.end.is_none() && !is_it(&progress) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            progress = self.shared.wait(progress, left);
        }
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.shared.is_unwanted.store(true, Ordering::Relaxed);
        self.shared.has_changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.has_changed.notify_all();
    }

    fn wait<'a>(
        &self,
        progress: MutexGuard<'a, Progress>,
        longest: Duration,
    ) -> MutexGuard<'a, Progress> {
        let waited = self.has_changed.wait_timeout(progress, longest);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Round after round, until nobody wants it any more.
fn rounds(
    limits: &WriteBackLimits,
    shared: &Shared,
    mut round: impl FnMut() -> io::Result<()>,
    dirty: impl Fn() -> Option<u64>,
) -> End {
    let started = Instant::now();
    let mut clean_since = None;
    while !shared.is_unwanted.load(Ordering::Relaxed) {
        let began = Instant::now();
        if let Err(error) = round() {
            return End::Failed(error.to_string());
        }
        let (took, ended) = (began.elapsed(), Instant::now());
        shared.update(|progress| {
            progress.rounds += 1;
            progress.last = Some(Round { took, ended });
        });
        if is_clean(limits, took, dirty()) {
            clean_since.get_or_insert(ended);
        }
        match clean_since {
            Some(since) if since.elapsed() >= limits.kept => return End::Kept,
            None if started.elapsed() >= limits.patience => return End::Outrun,
            _ => drop(shared.wait(shared.lock(), PAUSE)),
        }
    }
    End::Kept
}

/// Whether a round that took so long leaves a reopen next to nothing to flush.
fn is_clean(limits: &WriteBackLimits, took: Duration, dirty: Option<u64>) -> bool {
    took <= limits.stall && dirty.is_none_or(|bytes| bytes <= limits.dirty_bytes)
}

/// Writes back what is dirty now, piece by piece, so that the device has time for others in between and
/// this can end.
fn write_back(file: &File, is_unwanted: &AtomicBool) -> io::Result<()> {
    let end = length(file)?;
    let piece = PIECE_BYTES.max(end.div_ceil(MOST_PIECES));
    let mut offset = 0;
    while offset < end && !is_unwanted.load(Ordering::Relaxed) {
        write_back_range(file, offset, piece)?;
        offset += piece;
    }
    // What the file system knows of it, and what the device has in its own cache.
    file.sync_data()
}

/// Of a block device the metadata tells none.
fn length(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

fn dirty_bytes(image: &Path) -> Option<u64> {
    cached_bytes(image).ok().map(|counts| counts.dirty)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::sync::mpsc::sync_channel;

    const LONG: Duration = Duration::from_secs(3600);

    fn limits() -> WriteBackLimits {
        WriteBackLimits {
            stall: LONG,
            patience: LONG,
            kept: LONG,
            ..WriteBackLimits::default()
        }
    }

    fn image() -> tempfile::NamedTempFile {
        let mut image = tempfile::NamedTempFile::new().unwrap();
        image.write_all(&[1; 1 << 16]).unwrap();
        image
    }

    fn with(limits: WriteBackLimits, dirty_bytes: fn(&Path) -> Option<u64>) -> WriteBacks {
        WriteBacks {
            dirty_bytes,
            ..WriteBacks::new(limits)
        }
    }

    #[test]
    fn without_cachestat_a_short_round_is_enough_and_with_it_few_bytes_are_wanted_too() {
        let image = image();
        let unknown = with(limits(), |_| None);
        assert_eq!(unknown.ask(image.path()), Readiness::Ready);
        let many = with(limits(), |_| Some(17 << 20));
        assert_eq!(many.ask(image.path()), Readiness::Working);
        let few = with(limits(), |_| Some(16 << 20));
        assert_eq!(few.ask(image.path()), Readiness::Ready);
        let no_round_is_short = WriteBackLimits {
            stall: Duration::ZERO,
            ..limits()
        };
        let slow = with(no_round_is_short, |_| Some(1));
        assert_eq!(slow.ask(image.path()), Readiness::Working);
    }

    #[test]
    fn an_image_without_dirty_pages_needs_no_thread() {
        let backs = with(limits(), |_| Some(0));
        assert_eq!(backs.ask(Path::new("/nowhere")), Readiness::Ready);
        assert!(backs.images.borrow().is_empty());
    }

    #[test]
    fn no_more_images_than_allowed_are_written_back_at_a_time() {
        let images = [image(), image(), image()];
        let backs = with(limits(), |_| Some(1 << 40));
        let asked: Vec<_> = images.iter().map(|i| backs.begin(i.path())).collect();
        use Readiness::{Queued, Working};
        assert_eq!(asked, [Working, Working, Queued]);
        // One that nobody wants any more counts until its thread has ended.
        let still_there = Arc::clone(&backs.threads);
        backs.end(images[0].path());
        while Arc::strong_count(&backs.threads) > 3 {
            thread::yield_now();
        }
        assert_eq!(backs.begin(images[2].path()), Queued);
        drop(still_there);
        assert_eq!(backs.begin(images[2].path()), Working);
        assert_eq!(backs.begin(images[1].path()), Working, "not begun twice");
        assert_eq!(backs.images.borrow().len(), 2);
    }

    #[test]
    fn rounds_end_when_nobody_wants_them() {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let (ran, has_run) = sync_channel(0);
        let round = move || ran.send(()).map_err(io::Error::other);
        let thread = thread::spawn(move || rounds(&limits(), &theirs, round, || Some(1 << 40)));
        for _ in 0..3 {
            has_run.recv().unwrap();
        }
        shared.is_unwanted.store(true, Ordering::Relaxed);
        let drain = thread::spawn(move || has_run.iter().count());
        assert_eq!(thread.join().unwrap(), End::Kept);
        assert!(drain.join().unwrap() <= 1, "what had begun");
        assert!(shared.lock().rounds >= 3);
    }

    #[test]
    fn what_is_clean_for_as_long_as_it_is_kept_ends_and_what_never_is_is_given_up() {
        let now = WriteBackLimits {
            patience: Duration::ZERO,
            kept: Duration::ZERO,
            ..limits()
        };
        let end = |dirty| rounds(&now, &Shared::default(), || Ok(()), || dirty);
        assert_eq!(end(Some(0)), End::Kept);
        assert_eq!(end(None), End::Kept);
        assert_eq!(end(Some(1 << 40)), End::Outrun);
    }

    #[test]
    fn a_write_back_that_fails_is_remembered_and_told() {
        let image = image();
        let backs = with(limits(), |_| Some(1 << 40));
        backs.begin(image.path());
        let shared = Arc::clone(&backs.images.borrow()[image.path()].shared);
        let failed = End::Failed("no space left".into());
        shared.update(|progress| progress.end = Some((failed, Instant::now())));
        assert!(backs.has_failed(image.path()));
        assert!(!backs.has_failed(Path::new("/other")));
        let notes = backs.take_notes();
        assert!(notes[0].contains("no space left"), "{notes:?}");
        assert!(backs.take_notes().is_empty());
    }

    #[test]
    fn a_failed_round_ends_with_the_reason() {
        let fail = || Err(io::Error::other("I/O error"));
        let end = rounds(&limits(), &Shared::default(), fail, || None);
        assert_eq!(end, End::Failed("I/O error".into()));
    }

    #[test]
    fn a_guest_that_was_given_up_is_tried_again_after_a_pause_and_by_a_way_back_at_once() {
        let outrun = WriteBackLimits {
            patience: Duration::ZERO,
            stall: Duration::ZERO,
            ..limits()
        };
        let image = image();
        let backs = with(outrun, |_| Some(1 << 40));
        backs.begin(image.path());
        while backs.mask(image.path()) != MaskReason::WritesTooFast {
            thread::yield_now();
        }
        assert_eq!(backs.ask(image.path()), Readiness::Outrun);
        let known = Arc::clone(&backs.images.borrow()[image.path()].shared);
        backs.wait(image.path(), Instant::now());
        let again = Arc::clone(&backs.images.borrow()[image.path()].shared);
        assert!(!Arc::ptr_eq(&known, &again));
    }
}
