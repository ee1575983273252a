//! Streams of messages to clients: a bounded number of them, none of which holds up what it follows.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::gate::stopping;
use crate::operations::feed::{Message, Messages};
use crate::wire::status::Failure;

/// What a client that watches is sent.
pub(crate) type Events<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

/// The clients that watch one kind of thing.
#[derive(Debug, Clone)]
pub(crate) struct Watchers {
    most: usize,
    places: Arc<Semaphore>,
    is_stopped: watch::Sender<bool>,
}

impl Watchers {
    /// At most so many at once.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            places: Arc::new(Semaphore::new(most)),
            is_stopped: watch::Sender::new(false),
        }
    }

    /// A place for one more.
    ///
    /// # Errors
    /// `TOO_MANY_WATCHERS`.
    pub(crate) fn place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let most = self.most;
            let message = format!("{most} watchers are connected, which is the limit: end one");
            Failure::new(Code::ResourceExhausted, "TOO_MANY_WATCHERS", message)
        })
    }

    /// The messages as a client is sent them, until the last, or until the service stops.
    pub(crate) fn stream<T, R>(
        &self,
        place: OwnedSemaphorePermit,
        messages: Messages<T>,
        to_wire: fn(Message<T>) -> R,
    ) -> Events<R>
    where
        T: Clone + Send + Sync + 'static,
        R: Send + 'static,
    {
        // One that waits to be sent: a watcher that does not read holds up nobody but itself.
        let (sender, events) = mpsc::channel(1);
        let stopped = self.is_stopped.subscribe();
        tokio::spawn(pass_on(messages, to_wire, sender, stopped, place));
        Box::pin(ReceiverStream::new(events))
    }

    /// Ends all of them, because the service ends.
    pub(crate) fn stop(&self) {
        self.is_stopped.send_replace(true);
    }
}

async fn pass_on<T: Clone, R>(
    mut messages: Messages<T>,
    to_wire: fn(Message<T>) -> R,
    sender: mpsc::Sender<Result<R, Status>>,
    mut stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    loop {
        let message = tokio::select! {
            message = messages.next() => message,
            () = sender.closed() => return,
            () = is_set(&mut stopped) => {
                // One that has gone need not be told.
                let _ = sender.send(Err(stopping().into())).await;
                return;
            }
        };
        let Some(message) = message else { return };
        if sender.send(Ok(to_wire(message))).await.is_err() {
            return;
        }
    }
}

/// Ready when it is set.
async fn is_set(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|is_set| *is_set).await.is_err() {
        // Nobody is left who could set it.
        std::future::pending::<()>().await;
    }
}
