//! An operation that is under way: its progress, who asks it to end, and the messages that tell of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blkpilot_proto::longrunning::Operation;
use blkpilot_proto::longrunning::operation::Result as Ending;
use blkpilot_proto::v1;
use prost_types::Any;
use tokio::sync::watch;
use tonic::{Code, Status};
use uuid::Uuid;

use super::{any, interrupted, status_of};
use crate::status::Failure;
use crate::tuner_wire::timestamp;

/// Messages that are kept for watchers who are slow, or come back.
pub(super) const MOST_MESSAGES: usize = 256;

/// How an operation ended.
pub(super) enum End {
    Response(Any),
    Error(Status),
}

/// The number of the last message, and whether it is the last of all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct News {
    pub(super) number: u64,
    pub(super) is_done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    GoOn,
    Cancel,
    /// The service ends.
    Stop,
}

#[derive(Debug)]
struct State {
    operation: Operation,
    progress: v1::OperationProgress,
    messages: VecDeque<(u64, Operation)>,
}

#[derive(Debug)]
pub(super) struct Live {
    state: Mutex<State>,
    news: watch::Sender<News>,
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
        Self::of(operation, progress, VecDeque::new(), News::default())
    }

    /// One that was done long ago, after so many messages.
    pub(super) fn done(operation: Operation, number: u64) -> Self {
        let messages = VecDeque::from([(number, operation.clone())]);
        let news = News {
            number,
            is_done: true,
        };
        Self::of(operation, v1::OperationProgress::default(), messages, news)
    }

    fn of(
        operation: Operation,
        progress: v1::OperationProgress,
        messages: VecDeque<(u64, Operation)>,
        news: News,
    ) -> Self {
        Self {
            state: Mutex::new(State {
                operation,
                progress,
                messages,
            }),
            news: watch::Sender::new(news),
            wish: watch::Sender::new(Wish::GoOn),
            is_to_end: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shown(&self) -> Operation {
        self.state().operation.clone()
    }

    pub(super) fn news(&self) -> watch::Receiver<News> {
        self.news.subscribe()
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
        let mut state = self.state();
        if state.operation.done {
            return;
        }
        change(&mut state.progress);
        let mut operation = state.operation.clone();
        operation.metadata = Some(any("OperationProgress", &state.progress));
        self.push(state, operation);
    }

    /// It as it will be when this end has been recorded, and the number of that message.
    pub(super) fn ended(&self, end: End, at_us: i64) -> (Operation, u64) {
        let state = self.state();
        let mut progress = state.progress.clone();
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
            ..state.operation.clone()
        };
        (operation, self.news.borrow().number + 1)
    }

    pub(super) fn tell(&self, operation: Operation) {
        self.push(self.state(), operation);
    }

    fn push(&self, mut state: MutexGuard<'_, State>, operation: Operation) {
        let news = News {
            number: self.news.borrow().number + 1,
            is_done: operation.done,
        };
        if state.messages.len() == MOST_MESSAGES {
            state.messages.pop_front();
        }
        state.messages.push_back((news.number, operation.clone()));
        state.operation = operation;
        // Under the lock, so that numbers and messages go together.
        self.news.send_replace(news);
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

/// A message of an operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// It, as it was then.
    pub operation: Operation,
    /// Goes on behind this message.
    pub token: String,
    /// Messages before it that are lost to this watcher.
    pub missed: u64,
}

/// The messages of an operation, for one watcher.
#[derive(Debug)]
pub struct Messages {
    live: Arc<Live>,
    /// The last that was taken; `None` before the first, which is how it stands.
    after: Option<u64>,
    run: Uuid,
}

impl Messages {
    pub(super) fn of(live: Arc<Live>, after: Option<u64>, run: Uuid) -> Self {
        Self { live, after, run }
    }

    /// The next message, once there is one; `None` behind the last.
    pub async fn next(&mut self) -> Option<Message> {
        let mut news = self.live.news();
        loop {
            let is_done = news.borrow_and_update().is_done;
            if let Some(message) = self.take() {
                return Some(message);
            }
            if is_done || news.changed().await.is_err() {
                return None;
            }
        }
    }

    fn take(&mut self) -> Option<Message> {
        let state = self.live.state();
        let (number, operation, missed) = match self.after {
            None => (self.live.news.borrow().number, state.operation.clone(), 0),
            Some(after) => {
                let mut messages = state.messages.iter();
                let (number, operation) = messages.find(|(number, _)| *number > after)?;
                (*number, operation.clone(), number - after - 1)
            }
        };
        drop(state);
        self.after = Some(number);
        let id = operation.name.trim_start_matches("operations/");
        Some(Message {
            token: format!("{id}.{}.{number}", self.run),
            operation,
            missed,
        })
    }
}
