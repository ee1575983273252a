//! Reads what only QEMU's monitor tells, without ever waiting for a guest that does not answer:
//! each guest has a thread, and an answer that comes late is taken in a later window.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::HostResult;
use crate::guest::Guest;
use crate::hypervisor::Hypervisor;
use crate::qmp::{LatencyHistogram, Qmp};

/// What the monitor of one guest told.
#[derive(Debug, Clone, Default)]
pub(crate) struct MonitorReading {
    /// By the disk's QOM path.
    pub(crate) histograms: BTreeMap<String, LatencyHistogram>,
    /// By target, for the disks that were asked for.
    pub(crate) in_flight: BTreeMap<String, u32>,
    /// By target: whether a job runs.
    pub(crate) jobs: BTreeMap<String, bool>,
    /// By the disk's QOM path: writes and flushes that have failed.
    pub(crate) failed_writes: BTreeMap<String, u64>,
    /// Whether the guest is migrating to another host.
    pub(crate) migrates: bool,
}

/// What is asked of a guest.
#[derive(Debug)]
struct Question {
    /// As it is now: disks come and go.
    guest: Guest,
    idle_targets: Vec<String>,
}

/// The thread that reads one guest's monitor. It ends when this is dropped and its last call returns.
#[derive(Debug)]
pub(crate) struct MonitorReader {
    requests: SyncSender<Question>,
    replies: Receiver<HostResult<MonitorReading>>,
    is_outstanding: bool,
    /// Asked since the last look for an answer: only then is one waited for.
    is_fresh: bool,
}

impl MonitorReader {
    /// A reader.
    pub(crate) fn start(hypervisor: Arc<dyn Hypervisor>) -> Self {
        let (requests, incoming) = sync_channel::<Question>(1);
        let (outgoing, replies) = sync_channel(1);
        let serve = move || {
            for question in incoming {
                if outgoing.send(read(&*hypervisor, &question)).is_err() {
                    return;
                }
            }
        };
        // Without the thread the reader looks like a guest that never answers.
        let _ = thread::Builder::new()
            .name("monitor-reader".into())
            .spawn(serve);
        Self {
            requests,
            replies,
            is_outstanding: false,
            is_fresh: false,
        }
    }

    /// Asks a guest that has opted in for a reading, unless the last one has not been answered yet.
    /// `idle_targets`: disks whose requests in flight are wanted, since it costs a command each.
    pub(crate) fn ask(&mut self, guest: &Guest, idle_targets: Vec<String>) {
        if !self.is_outstanding {
            let guest = guest.clone();
            let question = Question {
                guest,
                idle_targets,
            };
            self.is_outstanding = self.requests.try_send(question).is_ok();
            self.is_fresh = self.is_outstanding;
        }
    }

    /// The answer, if it comes before `deadline`; for a question of an earlier sample, if it has come.
    pub(crate) fn answer(&mut self, deadline: Instant) -> Option<HostResult<MonitorReading>> {
        let wait = deadline.saturating_duration_since(Instant::now());
        let wait = if std::mem::take(&mut self.is_fresh) {
            wait
        } else {
            Duration::ZERO
        };
        let reading = self.replies.recv_timeout(wait).ok()?;
        self.is_outstanding = false;
        Some(reading)
    }

    /// Whether a question has not been answered yet.
    pub(crate) fn is_outstanding(&self) -> bool {
        self.is_outstanding
    }
}

fn read(hypervisor: &dyn Hypervisor, question: &Question) -> HostResult<MonitorReading> {
    let Question {
        guest,
        idle_targets,
    } = question;
    let qmp = Qmp::of(hypervisor, guest)?;
    let mut reading = MonitorReading::default();
    for (path, disk) in qmp.disk_readings()? {
        reading.histograms.insert(path.clone(), disk.histogram);
        reading.failed_writes.insert(path, disk.failed_writes);
    }
    for disk in &guest.disks {
        // A guest that cannot tell its jobs is treated as if one ran.
        let job = hypervisor
            .job_runs(&guest.uuid, &disk.target)
            .unwrap_or(true);
        reading.jobs.insert(disk.target.clone(), job);
        if idle_targets.contains(&disk.target) {
            // Before QEMU 7.2, or on another bus: not known, which is no fault.
            if let Ok(count) = qmp.requests_in_flight(disk) {
                reading.in_flight.insert(disk.target.clone(), count);
            }
        }
    }
    // Only a migration is told apart from other jobs, so only where one runs it is asked for.
    let job_runs = reading.jobs.values().any(|runs| *runs);
    reading.migrates = job_runs && hypervisor.migrates(&guest.uuid).unwrap_or(false);
    Ok(reading)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHypervisor;

    #[test]
    fn a_guest_that_hangs_is_not_waited_for_and_answers_later() {
        let host = Arc::new(FakeHypervisor::default());
        let guest = host.running(1).guest;
        let stuck = host.hang();
        let mut reader = MonitorReader::start(host.clone());
        reader.ask(&guest, vec![]);
        assert!(
            reader
                .answer(Instant::now() + Duration::from_millis(5))
                .is_none()
        );
        reader.ask(&guest, vec![]); // Not a second question: the first is outstanding.
        assert!(reader.is_outstanding());
        drop(stuck);
        let mut reading = None;
        while reading.is_none() {
            reading = reader.answer(Instant::now());
            thread::yield_now();
        }
        assert!(!reading.unwrap().unwrap().jobs["vda"]);
        assert!(!reader.is_outstanding());
    }
}
