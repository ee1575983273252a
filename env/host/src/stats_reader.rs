//! Bulk statistics that no hanging guest can keep back. libvirt skips guests that are busy with
//! another call, but waits for a QEMU that hangs: a call that is late keeps its guest busy, so the
//! same call on another connection skips that guest and answers.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{HostError, HostResult};
use crate::hypervisor::Hypervisor;
use crate::stats::GuestStats;

/// After this time without an answer the same is asked on another connection. A call takes a few
/// milliseconds when no guest hangs, and some hundred on a host without an idle CPU.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(800);
/// How long one reading may take in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections, and calls that wait for hanging guests, at a time.
const MAX_WORKERS: usize = 8;

/// Reads bulk statistics on threads and connections of its own.
#[derive(Debug)]
pub(crate) struct StatsReader {
    workers: Vec<Worker>,
    next_id: u64,
    replies: (SyncSender<Reply>, Receiver<Reply>),
}

#[derive(Debug)]
struct Worker {
    id: u64,
    requests: SyncSender<()>,
    /// When it was asked what it has not answered yet.
    asked_at: Option<Instant>,
}

#[derive(Debug)]
struct Reply {
    worker: u64,
    stats: HostResult<Vec<GuestStats>>,
}

impl Default for StatsReader {
    fn default() -> Self {
        Self {
            workers: Vec::new(),
            next_id: 0,
            replies: sync_channel(MAX_WORKERS),
        }
    }
}

impl StatsReader {
    /// The statistics of all running guests; those of a guest that hangs are incomplete.
    ///
    /// # Errors
    /// `Disconnected`, after which the next call connects again; `Late` when too many guests hang.
    pub(crate) fn read(
        &mut self,
        connect: &dyn Fn() -> HostResult<Arc<dyn Hypervisor>>,
    ) -> HostResult<Vec<GuestStats>> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            self.ask(connect)?;
            let asked = Instant::now();
            while let Some(reply) = self.reply_before(asked + ASK_AGAIN_AFTER) {
                // An answer to an earlier reading was held up by a guest that hung: it is old.
                if self
                    .settle(reply.worker)
                    .is_none_or(|asked_at| asked_at < start)
                {
                    continue;
                }
                if matches!(reply.stats, Err(HostError::Disconnected { .. })) {
                    self.forget();
                }
                return reply.stats;
            }
        }
        Err(late())
    }

    /// Drops all connections; calls that hang end with theirs.
    fn forget(&mut self) {
        *self = Self::default();
    }

    /// Asks a worker that is free, or a new one while there are not too many.
    fn ask(&mut self, connect: &dyn Fn() -> HostResult<Arc<dyn Hypervisor>>) -> HostResult<()> {
        let is_full = self.workers.len() >= MAX_WORKERS;
        if self.workers.iter().all(|worker| worker.asked_at.is_some()) && !is_full {
            self.start(connect()?)?;
        }
        if let Some(worker) = self
            .workers
            .iter_mut()
            .find(|worker| worker.asked_at.is_none())
        {
            worker.requests.try_send(()).map_err(|_| late())?;
            worker.asked_at = Some(Instant::now());
        }
        Ok(())
    }

    fn reply_before(&self, deadline: Instant) -> Option<Reply> {
        let wait = deadline.saturating_duration_since(Instant::now());
        self.replies.1.recv_timeout(wait).ok()
    }

    /// Makes a worker free again; returns when it was asked what it has answered.
    fn settle(&mut self, id: u64) -> Option<Instant> {
        let worker = self.workers.iter_mut().find(|worker| worker.id == id)?;
        worker.asked_at.take()
    }

    fn start(&mut self, hypervisor: Arc<dyn Hypervisor>) -> HostResult<()> {
        let (requests, incoming) = sync_channel::<()>(1);
        let (id, replies) = (self.next_id, self.replies.0.clone());
        let serve = move || {
            for () in incoming {
                if replies
                    .send(Reply {
                        worker: id,
                        stats: hypervisor.guest_stats(),
                    })
                    .is_err()
                {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("bulk-stats".into())
            .spawn(serve)
            .map_err(|_| late())?;
        self.workers.push(Worker {
            id,
            requests,
            asked_at: None,
        });
        self.next_id += 1;
        Ok(())
    }
}

fn late() -> HostError {
    HostError::Late {
        what: "bulk statistics".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHypervisor;

    #[test]
    fn a_call_that_hangs_is_left_behind_and_the_next_connection_answers() {
        let (stuck, fine) = (
            Arc::new(FakeHypervisor::default()),
            Arc::new(FakeHypervisor::default()),
        );
        let hang = stuck.hang_stats();
        let connections = std::sync::Mutex::new(vec![fine, Arc::clone(&stuck)]);
        let connect = || {
            let next = connections
                .lock()
                .unwrap()
                .pop()
                .expect("only two connections are needed");
            Ok(next as Arc<dyn Hypervisor>)
        };
        let mut reader = StatsReader::default();
        assert_eq!(reader.read(&connect).unwrap().len(), 1);
        assert_eq!(
            reader.read(&connect).unwrap().len(),
            1,
            "the good connection is kept"
        );
        drop(hang);
        while reader
            .workers
            .iter()
            .any(|worker| worker.asked_at.is_some())
        {
            reader.read(&connect).unwrap();
        }
    }

    #[test]
    fn a_call_that_is_only_slow_is_answered() {
        let host = Arc::new(FakeHypervisor::default());
        let connect = || Ok(Arc::clone(&host) as Arc<dyn Hypervisor>);
        let hang = host.hang_stats();
        let mut reader = StatsReader::default();
        let stats = thread::scope(|scope| {
            let reading = scope.spawn(|| reader.read(&connect));
            thread::sleep(ASK_AGAIN_AFTER * 2);
            drop(hang);
            reading.join().unwrap()
        });
        assert_eq!(stats.unwrap().len(), 1);
    }
}
