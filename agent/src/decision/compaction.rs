//! Makes Parquet of the decision log's sealed segments and keeps the log within bounds, on a thread of
//! its own: nothing that decides waits for it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blkpilot_log::{Compactor, Horizon, Keep, LogError};

use super::now_us;

/// How often it looks by itself: for outcomes that have come, and for files that have become too old.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The thread; it ends when this is dropped, between two rows.
#[derive(Debug)]
pub(crate) struct Compaction {
    wake: Option<SyncSender<()>>,
    stop: Arc<AtomicBool>,
    keep: Arc<Mutex<Keep>>,
    thread: Option<JoinHandle<()>>,
}

impl Compaction {
    /// `dir` is the log's, of which so much is kept.
    pub(crate) fn start(compactor: Compactor, dir: &Path, keep: Keep) -> Result<Self, LogError> {
        let (wake, woken) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let keep = Arc::new(Mutex::new(keep));
        let kept = Arc::clone(&keep);
        let thread = thread::Builder::new()
            .name("log-compaction".to_owned())
            .spawn(move || run(compactor, &woken, &asked, &kept));
        let thread = thread.map_err(|source| LogError::Io {
            file: dir.to_owned(),
            action: "start a thread for",
            source,
        })?;
        Ok(Self {
            wake: Some(wake),
            stop,
            keep,
            thread: Some(thread),
        })
    }

    /// From now on so much is kept; what is more goes soon.
    pub(crate) fn set_keep(&self, keep: Keep) {
        *self.keep.lock().unwrap_or_else(PoisonError::into_inner) = keep;
        self.wake();
    }

    /// Says that a segment has been sealed.
    pub(crate) fn wake(&self) {
        // If it has been told already it will look anyway.
        let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
    }
}

impl Drop for Compaction {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.wake.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that compacts the decision log panicked, which is our bug");
        }
    }
}

fn run(mut compactor: Compactor, woken: &Receiver<()>, stop: &AtomicBool, keep: &Mutex<Keep>) {
    loop {
        compactor.set_keep(*keep.lock().unwrap_or_else(PoisonError::into_inner));
        look(&mut compactor, stop);
        if let Err(RecvTimeoutError::Disconnected) = woken.recv_timeout(LOOK_EVERY) {
            return;
        }
    }
}

/// Whatever goes wrong is tried again with the next look: the segments are there still.
fn look(compactor: &mut Compactor, stop: &AtomicBool) {
    match compactor.compact(Horizon::Now(now_us()), stop) {
        Ok(done) if done.damaged_lines > 0 || done.orphans > 0 || done.refused > 0 => {
            tracing::warn!(?done, "part of the decision log did not become Parquet");
        }
        Ok(done) if done.segments > 0 => {
            tracing::info!(?done, "made Parquet of the decision log");
        }
        Ok(_) => {}
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "the decision log was not compacted");
        }
    }
    // Also when that failed, perhaps for lack of room.
    match compactor.retain(now_us()) {
        Ok(dropped) if dropped.files > 0 => {
            tracing::info!(?dropped, "dropped the oldest of the decision log");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the decision log was not shortened"),
    }
}
