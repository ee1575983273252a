//! An operation that is under way: its progress, and who asks it to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blkpilot_proto::longrunning::Operation;
use blkpilot_proto::longrunning::operation::Result as Ending;
use blkpilot_proto::v1;
use prost_types::Any;
use tokio::sync::watch;
use tonic::{Code, Status};

use super::feed::{Feed, News};
use super::{any, interrupted, status_of};
use crate::wire::status::Failure;
use crate::wire::timestamp;

/// How an operation ended.
pub(super) enum End {
    Response(Any),
    Error(Status),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    GoOn,
    Cancel,
    /// The service ends.
    Stop,
}

#[derive(Debug)]
pub(super) struct Live {
    /// Held while it is told of, so that what was told last is what the progress says.
    progress: Mutex<v1::OperationProgress>,
    feed: Arc<Feed<Operation>>,
    wish: watch::Sender<Wish>,
    /// As `wish`, for work that looks at a flag.
    is_to_end: AtomicBool,
}

impl Live {
    pub(super) fn new(name: String, target: &str, at_us: i64) -> Self {
        let progress = v1::OperationProgress {
            create_time: Some(timestamp(at_us)),
            target: target.to_owned(),
            step: "waits for its turn".to_owned(),
            ..v1::OperationProgress::default()
        };
        let operation = Operation {
            name,
            metadata: Some(any("OperationProgress", &progress)),
            done: false,
            result: None,
        };
        Self {
            progress: Mutex::new(progress),
            feed: Feed::new(operation),
            wish: watch::Sender::new(Wish::GoOn),
            is_to_end: AtomicBool::new(false),
        }
    }

    fn told(&self) -> MutexGuard<'_, v1::OperationProgress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn feed(&self) -> Arc<Feed<Operation>> {
        Arc::clone(&self.feed)
    }

    pub(super) fn shown(&self) -> Operation {
        self.feed.shown()
    }

    pub(super) fn news(&self) -> watch::Receiver<News> {
        self.feed.news()
    }

    pub(super) fn cancel(&self) {
        self.wish(Wish::Cancel);
        self.progress(|progress| progress.cancel_requested = true);
    }

    pub(super) fn stop(&self) {
        self.wish(Wish::Stop);
    }

    fn wish(&self, wish: Wish) {
        self.is_to_end.store(true, Ordering::Relaxed);
        self.wish.send_if_modified(|current| {
            let is_first = *current == Wish::GoOn;
            if is_first {
                *current = wish;
            }
            is_first
        });
    }

    /// Ready when it is to end.
    pub(super) async fn cancelled(&self) {
        let mut wish = self.wish.subscribe();
        // The sender lives as long as this does.
        let _ = wish.wait_for(|wish| *wish != Wish::GoOn).await;
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.is_to_end.load(Ordering::Relaxed)
    }

    pub(super) fn cancelled_end(&self) -> End {
        let status = match *self.wish.borrow() {
            Wish::Stop => return End::Error(interrupted_status()),
            Wish::Cancel | Wish::GoOn => {
                let message = "somebody has cancelled it; nothing of it is in force";
                Failure::new(Code::Cancelled, "OPERATION_CANCELLED", message)
            }
        };
        End::Error(status.into())
    }

    /// Changes its progress and tells watchers. Waits for nobody.
    fn progress(&self, change: impl FnOnce(&mut v1::OperationProgress)) {
        let mut progress = self.told();
        let mut operation = self.feed.shown();
        if operation.done {
            return;
        }
        change(&mut progress);
        operation.metadata = Some(any("OperationProgress", &*progress));
        self.feed.tell(operation, false);
    }

    /// It as it will be when this end has been recorded, and the number of that message.
    pub(super) fn ended(&self, end: End, at_us: i64) -> (Operation, u64) {
        let mut progress = self.told().clone();
        progress.end_time = Some(timestamp(at_us));
        let result = match end {
            End::Response(response) => {
                progress.done_ratio = 1.0;
                progress.step = "done".to_owned();
                Ending::Response(response)
            }
            End::Error(status) => Ending::Error(status_of(&status)),
        };
        let operation = Operation {
            metadata: Some(any("OperationProgress", &progress)),
            done: true,
            result: Some(result),
            ..self.feed.shown()
        };
        (operation, self.feed.next_number())
    }

    pub(super) fn tell(&self, operation: Operation) {
        let _progress = self.told();
        let is_done = operation.done;
        self.feed.tell(operation, is_done);
    }
}

fn interrupted_status() -> Status {
    let status = interrupted();
    let details = prost::Message::encode_to_vec(&status);
    Status::with_details(Code::Aborted, status.message, details.into())
}

/// What work is given: where it tells how far it is, and sees whether it is to end.
#[derive(Debug)]
pub struct Work {
    live: Arc<Live>,
}

impl Work {
    pub(super) fn of(live: Arc<Live>) -> Self {
        Self { live }
    }

    /// Says what is being done, and the share of the work that is done, in [0, 1].
    pub fn tell(&self, step: &str, done_ratio: f64) {
        self.live.progress(|progress| {
            step.clone_into(&mut progress.step);
            progress.done_ratio = done_ratio.clamp(0.0, 1.0);
        });
    }

    /// Set when it is to end: work that has not changed anything yet returns an error then, whatever it says.
    #[must_use]
    pub fn is_to_end(&self) -> &AtomicBool {
        &self.live.is_to_end
    }
}
