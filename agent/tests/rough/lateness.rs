//! How late the owner of the host decides, by the times that its decisions carry.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use blkpilot_proto::v1;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use blkpilot_proto::v1::watch_decisions_response::Event;

use super::daemon::{INTERVAL, Site};

/// How much longer than the interval it took from one decision to the next, ms; 0 where it was shorter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lateness {
    late_ms: Vec<f64>,
    /// Decisions, and over how long.
    decisions: usize,
    spanned: Duration,
}

impl Lateness {
    /// With those of another watch.
    pub(crate) fn add(&mut self, other: Self) {
        self.late_ms.extend(other.late_ms);
        self.decisions += other.decisions;
        self.spanned += other.spanned;
    }

    /// Whether it is late as a rule, and not only where the machine was: half of the time by more than half the
    /// interval.
    pub(crate) fn is_starved(&self) -> bool {
        self.quantile_ms(0.5) > INTERVAL.as_secs_f64() * 1000.0 / 2.0
    }

    fn quantile_ms(&self, share: f64) -> f64 {
        let mut sorted = self.late_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let value = sorted.get((share * last as f64) as usize);
        value.copied().unwrap_or(f64::NAN)
    }

    fn per_second(&self) -> f64 {
        self.decisions as f64 / self.spanned.as_secs_f64()
    }

    fn note(&mut self, gap: Duration) {
        let late = gap.saturating_sub(INTERVAL);
        self.late_ms.push(late.as_secs_f64() * 1000.0);
        self.spanned += gap;
        self.decisions += 1;
    }
}

impl fmt::Display for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, p99, most] = [0.5, 0.99, 1.0].map(|share| self.quantile_ms(share));
        let (count, per_second) = (self.late_ms.len(), self.per_second());
        write!(
            f,
            "late by p50 {median:.2} ms, p99 {p99:.2} ms, max {most:.2} ms; {per_second:.1} per second ({count})"
        )
    }
}

/// A thread of this process that does nothing but tick as the owner does: how late it is, the machine is.
pub(crate) struct Metronome {
    stop: mpsc::Sender<()>,
    ticking: JoinHandle<Lateness>,
}

impl Metronome {
    pub(crate) fn start() -> Self {
        let (stop, stopped) = mpsc::channel();
        let ticking = std::thread::spawn(move || {
            let mut lateness = Lateness::default();
            let (mut before, mut due) = (Instant::now(), Instant::now() + INTERVAL);
            let wait = |due: Instant| due.saturating_duration_since(Instant::now());
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait(due)) {
                let now = Instant::now();
                lateness.note(now - std::mem::replace(&mut before, now));
                due = (due + INTERVAL).max(now);
            }
            lateness
        });
        Self { stop, ticking }
    }

    pub(crate) fn stop(self) -> Lateness {
        drop(self.stop);
        self.ticking.join().unwrap()
    }
}

/// Watches the decisions of the host for so long.
pub(crate) async fn watch(site: &Site, length: Duration) -> Lateness {
    let connection = site.target(&site.token()).connect().await.unwrap();
    let request = v1::WatchDecisionsRequest {
        parent: "hosts/local".to_owned(),
    };
    let mut client = TunerServiceClient::new(connection);
    let mut events = client.watch_decisions(request).await.unwrap().into_inner();
    let mut lateness = Lateness::default();
    let mut before: Option<SystemTime> = None;
    let watching = async {
        while let Some(answer) = events.message().await.unwrap() {
            match answer.event {
                Some(Event::Decision(decision)) => {
                    let made = SystemTime::try_from(decision.create_time.unwrap()).unwrap();
                    if let Some(before) = before.replace(made) {
                        lateness.note(made.duration_since(before).unwrap_or_default());
                    }
                }
                // Who watches was held up: of the gap nothing is known.
                Some(Event::Missed(_)) => before = None,
                Some(Event::Started(_)) | None => {}
            }
        }
    };
    let ended = tokio::time::timeout(length, watching).await;
    assert!(ended.is_err(), "the service has ended the watch");
    assert!(!lateness.late_ms.is_empty(), "nothing was decided");
    lateness
}
