//! Windows of a recording: two consecutive samples each, where they can be relied on.

use std::collections::BTreeMap;
use std::fmt;

use blkpilot_env::Validity;
use blkpilot_env::sample::{DiskSample, HostSample, Reading};
use blkpilot_env::window::HostWindow;
use serde::Serialize;

use super::{Item, RecordedSample, Recording, RecordingError, Source};

/// Windows this many times longer than intended are gaps: samples are missing.
const LONGEST_SPAN: f64 = 2.5;
/// Windows shorter than this part of the interval are too short to divide counters by.
const SHORTEST_SPAN: f64 = 0.5;
/// How far the wall clock may run away from the host's own within a window: this, and a tenth.
const CLOCK_DISAGREEMENT_S: f64 = 0.2;

/// Two consecutive samples between which nothing happened that spoils their difference: the same
/// disks and devices, the same settings at both ends, no counter that went back.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedWindow {
    /// Number of its session in the recording, from 0.
    pub session: usize,
    /// What the host did.
    pub window: HostWindow,
}

/// Why two consecutive samples make no window. Where several hold, the first of these counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// A line between them is damaged.
    Damaged,
    /// The host's clock went back, or ran away from the wall clock.
    ClockJump,
    /// Too far apart: samples are missing.
    Gap,
    /// A guest, disk or device came or went.
    GuestsChanged,
    /// A knob was turned.
    SettingsChanged,
    /// A counter went back.
    CounterReset,
    /// Too close together.
    TooShort,
    /// A reading is old: its guest hangs.
    Stale,
}

impl SkipReason {
    /// In words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Damaged => "a damaged line between the samples",
            Self::ClockJump => "clock jump",
            Self::Gap => "gap",
            Self::TooShort => "too short",
            Self::GuestsChanged => "guests, disks or devices came or went",
            Self::SettingsChanged => "settings changed",
            Self::CounterReset => "counter reset",
            Self::Stale => "stale readings",
        }
    }
}

/// What became of the pairs of samples.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// Sessions.
    pub sessions: usize,
    /// Samples.
    pub samples: u64,
    /// Windows that can be used.
    pub used: u64,
    /// Pairs of samples that cannot, by reason.
    pub skipped: BTreeMap<SkipReason, u64>,
    /// Lines that are not what was written.
    pub damaged_lines: u64,
    /// Bytes behind the last complete line.
    pub torn_bytes: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} samples in {} sessions: {} windows used",
            self.samples, self.sessions, self.used
        )?;
        for (reason, count) in &self.skipped {
            write!(f, ", {count} not ({})", reason.text())?;
        }
        if self.torn_bytes > 0 {
            write!(f, "; the last line is cut ({} bytes)", self.torn_bytes)?;
        }
        Ok(())
    }
}

/// The windows of a recording, in order, counting what it leaves out.
#[derive(Debug)]
pub struct Windows {
    recording: Recording,
    tally: Tally,
    source: Option<Source>,
    before: Option<RecordedSample>,
    /// Whether a damaged line came behind `before`.
    is_interrupted: bool,
}

impl Windows {
    /// The windows of `recording`, which has not been read from.
    #[must_use]
    pub fn of(recording: Recording) -> Self {
        Self {
            recording,
            tally: Tally::default(),
            source: None,
            before: None,
            is_interrupted: false,
        }
    }

    /// The count so far; complete once there are no more windows.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The window that ends with `after`, if there is one.
    fn take(&mut self, after: RecordedSample) -> Option<RecordedWindow> {
        self.tally.samples += 1;
        let is_interrupted = std::mem::take(&mut self.is_interrupted);
        let before = self.before.take();
        let verdict = before.map(|before| match &self.source {
            Some(source) if !is_interrupted => judge(&before, &after, source),
            // The line that begins the session may be the damaged one.
            _ => Err(SkipReason::Damaged),
        });
        self.before = Some(after);
        match verdict? {
            Ok(window) => {
                self.tally.used += 1;
                Some(RecordedWindow {
                    session: self.tally.sessions.saturating_sub(1),
                    window,
                })
            }
            Err(reason) => {
                *self.tally.skipped.entry(reason).or_default() += 1;
                None
            }
        }
    }
}

impl Iterator for Windows {
    type Item = Result<RecordedWindow, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(item) = self.recording.next() else {
                self.tally.torn_bytes = self.recording.torn_bytes();
                return None;
            };
            match item {
                Err(error) => return Some(Err(error)),
                Ok(Item::Session(session)) => {
                    self.tally.sessions += 1;
                    self.source = Some(session.source);
                    self.before = None;
                    self.is_interrupted = false;
                }
                Ok(Item::Damaged { .. }) => {
                    self.tally.damaged_lines += 1;
                    self.is_interrupted = true;
                }
                Ok(Item::Sample(sample)) => {
                    if let Some(window) = self.take(*sample) {
                        return Some(Ok(window));
                    }
                }
            }
        }
    }
}

fn span_s(before: &HostSample, after: &HostSample) -> f64 {
    after.at.as_secs_f64() - before.at.as_secs_f64()
}

/// The window that two consecutive samples make.
fn judge(
    before: &RecordedSample,
    after: &RecordedSample,
    source: &Source,
) -> Result<HostWindow, SkipReason> {
    let (was, is) = (&before.host, &after.host);
    let span = span_s(was, is);
    let refuse_if = |is_so: bool, reason| if is_so { Err(reason) } else { Ok(()) };
    let ran_away = !source.is_simulated && clocks_disagree(before, after);
    refuse_if(span <= 0.0 || ran_away, SkipReason::ClockJump)?;
    refuse_if(span > LONGEST_SPAN * source.interval_s, SkipReason::Gap)?;
    refuse_if(names(was) != names(is), SkipReason::GuestsChanged)?;
    refuse_if(cpus_went_back(was, is), SkipReason::CounterReset)?;
    let window = HostWindow::between(was, is);
    refuse_if(settings_changed(&window), SkipReason::SettingsChanged)?;
    refuse_if(counters_went_back(&window), SkipReason::CounterReset)?;
    refuse_if(
        span < SHORTEST_SPAN * source.interval_s,
        SkipReason::TooShort,
    )?;
    refuse_if(is.disks.iter().any(is_stale), SkipReason::Stale)?;
    Ok(window)
}

/// Whether the wall clock and the host's own tell different spans: one of them was set, or a
/// virtual machine that is itself the host stood still.
fn clocks_disagree(before: &RecordedSample, after: &RecordedSample) -> bool {
    let span = span_s(&before.host, &after.host);
    let wall = (after.unix_us as f64 - before.unix_us as f64) * 1e-6;
    (wall - span).abs() > CLOCK_DISAGREEMENT_S + 0.1 * span
}

fn names(sample: &HostSample) -> (Vec<(&str, usize)>, Vec<&str>, usize) {
    let disks = sample.disks.iter().map(|d| (d.id.as_str(), d.device));
    let devices = sample.devices.iter().map(|d| d.id.as_str());
    (disks.collect(), devices.collect(), sample.channels.len())
}

fn settings_changed(window: &HostWindow) -> bool {
    let mut disks = window.disks.iter();
    let mut devices = window.devices.iter();
    disks.any(|d| d.settings != d.settings_before)
        || devices.any(|d| d.scheduler != d.scheduler_before)
}

/// A window shows loads as shares, which hide this.
fn cpus_went_back(was: &HostSample, is: &HostSample) -> bool {
    let mut channels = was.channels.iter().zip(&is.channels);
    channels.any(|(a, b)| b.busy_ns < a.busy_ns) || is.host.cpu_busy_ns < was.host.cpu_busy_ns
}

fn counters_went_back(window: &HostWindow) -> bool {
    let went_back = |reading: &Reading<f64>| *reading == Err(Validity::CounterReset);
    let disks = window.disks.iter().map(|d| &d.did);
    let devices = window.devices.iter().map(|d| &d.did);
    disks
        .flat_map(|d| [&d.iops, &d.iothread_cores, &d.run_delay])
        .any(went_back)
        || devices
            .flat_map(|d| [&d.iops, &d.utilisation, &d.queue_depth])
            .any(went_back)
}

fn is_stale(disk: &DiskSample) -> bool {
    let stale = Some(Validity::Stale);
    disk.iothread_cpu_ns.err() == stale
        || disk.in_flight.err() == stale
        || disk.device_read_bytes.err() == stale
        || disk.latency_counts.err() == stale
}
