//! Group commit: many senders, one writer, one flush for all that wait.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use crate::error::LogError;
use crate::schema::Event;
use crate::writer::Writer;

/// Batches that share one flush at most; a batch is one call of `submit`.
const MOST_BATCHES: usize = 1024;

/// Told when a batch is durable, or why it may not be. Runs on the queue's thread: it must be short,
/// such as sending on a channel.
type Done = Box<dyn FnOnce(Result<(), Arc<LogError>>) + Send>;

struct Batch {
    events: Vec<Event>,
    done: Done,
}

/// A queue in front of a [`Writer`] on a thread of its own. After a failure it recovers the writer
/// with the next batch.
#[derive(Debug)]
pub struct CommitQueue {
    sender: SyncSender<Batch>,
    thread: JoinHandle<Writer>,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full: the disk is too slow, or stuck. The events come back.
    #[error("the decision log's queue is full: its disk does not keep up")]
    Full(Vec<Event>),
    /// The queue's thread has ended, which only a panic does.
    #[error("the decision log's thread has ended: restart the service")]
    Closed(Vec<Event>),
}

impl CommitQueue {
    /// Starts the thread. `depth` is the number of batches that may wait.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(writer: Writer, depth: usize) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(depth);
        let run = move || run(writer, &receiver);
        let thread = thread::Builder::new()
            .name("decision-log".to_owned())
            .spawn(run)?;
        Ok(Self { sender, thread })
    }

    /// Hands over events that belong together; does not wait. `done` is called once, when they are
    /// durable or have failed.
    ///
    /// # Errors
    /// `Full`, `Closed`; `done` is not called then.
    pub fn submit(
        &self,
        events: Vec<Event>,
        done: impl FnOnce(Result<(), Arc<LogError>>) + Send + 'static,
    ) -> Result<(), SubmitError> {
        let batch = Batch {
            events,
            done: Box::new(done),
        };
        self.sender.try_send(batch).map_err(|error| match error {
            TrySendError::Full(batch) => SubmitError::Full(batch.events),
            TrySendError::Disconnected(batch) => SubmitError::Closed(batch.events),
        })
    }

    /// Ends the thread once all that was submitted is durable or has failed, and gives the writer
    /// back; `None` if the thread panicked.
    #[must_use]
    pub fn close(self) -> Option<Writer> {
        drop(self.sender);
        self.thread.join().ok()
    }
}

fn run(mut writer: Writer, receiver: &Receiver<Batch>) -> Writer {
    while let Ok(first) = receiver.recv() {
        let mut batches = vec![first];
        batches.extend(receiver.try_iter().take(MOST_BATCHES - 1));
        commit(&mut writer, batches);
    }
    writer
}

fn commit(writer: &mut Writer, batches: Vec<Batch>) {
    let recovered = if writer.has_failed() {
        writer.recover().map(drop)
    } else {
        Ok(())
    };
    let recovered = recovered.map_err(Arc::new);
    let mut waiting = Vec::with_capacity(batches.len());
    for Batch { events, done } in batches {
        let taken = recovered.clone().and_then(|()| append(writer, &events));
        match taken {
            Ok(()) => waiting.push(done),
            Err(error) => done(Err(error)),
        }
    }
    let committed = if waiting.is_empty() {
        Ok(())
    } else {
        writer.commit().map_err(Arc::new)
    };
    for done in waiting {
        done(committed.clone());
    }
}

fn append(writer: &mut Writer, events: &[Event]) -> Result<(), Arc<LogError>> {
    events
        .iter()
        .try_for_each(|event| writer.append(event))
        .map_err(Arc::new)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::fixture::{decision, events, outcome};
    use crate::writer::Config;

    fn start(dir: &std::path::Path, depth: usize) -> CommitQueue {
        let (writer, _) = Writer::open(dir, Config::default()).unwrap();
        CommitQueue::start(writer, depth).unwrap()
    }

    #[test]
    fn senders_on_many_threads_are_each_told_when_their_events_are_durable() {
        let dir = tempfile::tempdir().unwrap();
        let queue = start(dir.path(), 1000);
        thread::scope(|scope| {
            for sender in 0..8_u128 {
                let (queue, dir) = (&queue, dir.path());
                scope.spawn(move || {
                    for i in 0..5 {
                        let number = sender * 100 + i;
                        let (told, wait) = mpsc::channel();
                        let batch = vec![decision(number), outcome(number)];
                        queue
                            .submit(batch, move |result| told.send(result).unwrap())
                            .unwrap();
                        wait.recv().unwrap().unwrap();
                        assert!(events(dir).contains(&outcome(number)));
                    }
                });
            }
        });
        queue.close().unwrap();
        assert_eq!(events(dir.path()).len(), 80);
    }

    #[test]
    fn batches_that_wait_are_committed_in_order_before_it_closes() {
        let dir = tempfile::tempdir().unwrap();
        let queue = start(dir.path(), 100);
        for number in 0..50 {
            queue
                .submit(vec![decision(number)], |result| result.unwrap())
                .unwrap();
        }
        queue.close().unwrap();
        let wanted: Vec<Event> = (0..50).map(decision).collect();
        assert_eq!(events(dir.path()), wanted);
    }

    #[test]
    fn a_full_queue_gives_the_events_back() {
        let dir = tempfile::tempdir().unwrap();
        let queue = start(dir.path(), 1);
        let (entered, wait_entered) = mpsc::channel();
        let (release, wait_release) = mpsc::channel::<()>();
        let hold = move |_: Result<(), Arc<LogError>>| {
            entered.send(()).unwrap();
            wait_release.recv().unwrap();
        };
        queue.submit(vec![], hold).unwrap();
        wait_entered.recv().unwrap();
        queue
            .submit(vec![decision(1)], |result| result.unwrap())
            .unwrap();
        let refused = queue
            .submit(vec![decision(2)], |_| panic!("not taken"))
            .unwrap_err();
        assert!(matches!(refused, SubmitError::Full(events) if events == [decision(2)]));
        release.send(()).unwrap();
        queue.close().unwrap();
        assert_eq!(events(dir.path()), [decision(1)]);
    }

    #[test]
    fn one_bad_batch_does_not_fail_those_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::open(dir.path(), Config::default()).unwrap();
        let Event::Decision(mut row) = decision(1) else {
            unreachable!()
        };
        row.host = "x".repeat(crate::line::LONGEST_LINE_BYTES).into();
        let (told, wait) = mpsc::channel();
        let batch = |events| {
            let told = told.clone();
            Batch {
                events,
                done: Box::new(move |result| told.send(result.is_ok()).unwrap()),
            }
        };
        commit(
            &mut writer,
            vec![batch(vec![Event::Decision(row)]), batch(vec![outcome(2)])],
        );
        assert_eq!(wait.try_iter().collect::<Vec<_>>(), [false, true]);
        assert_eq!(events(dir.path()), [outcome(2)]);
    }
}
