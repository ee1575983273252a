//! Processor sharing: threads on the CPUs of channels.

use std::collections::BTreeMap;

/// A channel's runnable threads. All of them progress at min(1, C/n), so that one clock of received
/// work serves them all.
#[derive(Debug)]
pub(crate) struct Cpus {
    pub(crate) cpus: f64,
    /// Work that every runnable thread has received since the start, seconds.
    received: f64,
    at: f64,
    /// Received work at which each thread's job ends; infinite for one that spins.
    ends: BTreeMap<usize, f64>,
    /// What the clock showed when each thread started, and what each has got before.
    starts: BTreeMap<usize, f64>,
    got: BTreeMap<usize, f64>,
    /// Changes of the set, to recognise an outdated event.
    pub(crate) version: u64,
    pub(crate) busy_s: f64,
}

impl Cpus {
    pub(crate) fn new(cpus: f64) -> Self {
        Self {
            cpus,
            received: 0.0,
            at: 0.0,
            ends: BTreeMap::new(),
            starts: BTreeMap::new(),
            got: BTreeMap::new(),
            version: 0,
            busy_s: 0.0,
        }
    }

    pub(crate) fn runnable(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn advance(&mut self, now: f64) {
        let threads = self.ends.len() as f64;
        if threads > 0.0 {
            self.received += (now - self.at) * (self.cpus / threads).min(1.0);
            self.busy_s += (now - self.at) * self.cpus.min(threads);
        }
        self.at = now;
    }

    pub(crate) fn start(&mut self, thread: usize, work_s: f64, now: f64) {
        self.advance(now);
        self.ends.insert(thread, self.received + work_s);
        self.starts.insert(thread, self.received);
        self.version += 1;
    }

    pub(crate) fn stop(&mut self, thread: usize, now: f64) {
        self.advance(now);
        self.ends.remove(&thread);
        if let Some(start) = self.starts.remove(&thread) {
            *self.got.entry(thread).or_default() += self.received - start;
        }
        self.version += 1;
    }

    /// CPU that a thread has got here so far, seconds.
    pub(crate) fn received_by(&self, thread: usize) -> f64 {
        let now = self
            .starts
            .get(&thread)
            .map_or(0.0, |start| self.received - start);
        now + self.got.get(&thread).copied().unwrap_or(0.0)
    }

    /// The thread whose job ends next, and when.
    pub(crate) fn next_end(&self) -> Option<(usize, f64)> {
        let (thread, end) = self.ends.iter().min_by(|a, b| a.1.total_cmp(b.1))?;
        let pace = (self.cpus / self.ends.len() as f64).min(1.0);
        end.is_finite()
            .then(|| (*thread, self.at + (end - self.received).max(0.0) / pace))
    }
}
