//! Recordings of a simulated host, whole, cut, damaged and foreign.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use blkpilot_env::sample::HostSample;
use blkpilot_env::sim::{SimHost, presets};
use blkpilot_env::{Environment as _, ResetOptions, Validity};

use super::*;
use crate::line::encode;

fn source() -> Source {
    Source {
        name: "poor_binding".to_owned(),
        is_simulated: true,
        interval_s: 1.0,
    }
}

/// Samples of a simulated host, one per second of its clock.
fn samples(count: usize) -> Vec<HostSample> {
    let mut host = SimHost::fixed(presets::poor_binding()).unwrap();
    let keep = host.reset(Some(1), &ResetOptions::new()).unwrap().current;
    let next = |_| {
        host.step(&keep).unwrap();
        host.sample().unwrap().clone()
    };
    (0..count).map(next).collect()
}

fn record(path: &Path, samples: &[HostSample]) {
    let mut recorder = Recorder::append(path, source()).unwrap();
    for sample in samples {
        recorder.record(sample).unwrap();
    }
    assert_eq!(recorder.finish().unwrap(), samples.len() as u64);
}

fn read(path: &Path) -> (Vec<RecordedWindow>, Tally) {
    let mut windows = Windows::of(Recording::open(path).unwrap());
    let used = windows.by_ref().map(Result::unwrap).collect();
    (used, windows.tally().clone())
}

/// What becomes of one pair of samples after `change` to the second, on a live host's clock where
/// the wall clock gains `wall_s`.
fn verdict(wall_s: f64, change: impl FnOnce(&mut HostSample)) -> Option<SkipReason> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    let mut pair = samples(2);
    change(&mut pair[1]);
    let mut text = Vec::new();
    encode(&Line::Recording(Header { format: FORMAT }), &mut text);
    let live = Source {
        is_simulated: false,
        ..source()
    };
    let session = Session {
        source: live,
        unix_us: 0,
    };
    encode(&Line::Session(session), &mut text);
    for (host, wall_s) in pair.into_iter().zip([0.0, wall_s]) {
        let unix_us = 1_700_000_000_000_000 + (wall_s * 1e6) as u64;
        encode(
            &Line::Sample(Box::new(RecordedSample { unix_us, host })),
            &mut text,
        );
    }
    fs::write(&path, text).unwrap();
    let (used, tally) = read(&path);
    assert_eq!(used.len() + tally.skipped.values().sum::<u64>() as usize, 1);
    tally.skipped.keys().next().copied()
}

#[test]
fn what_was_recorded_is_read_back_and_sessions_do_not_touch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    let all = samples(7);
    record(&path, &all[..4]);
    record(&path, &all[4..]);
    let read_back: Vec<HostSample> = Recording::open(&path)
        .unwrap()
        .filter_map(|item| match item.unwrap() {
            Item::Sample(sample) => Some(sample.host),
            _ => None,
        })
        .collect();
    assert_eq!(read_back, all);
    let (windows, tally) = read(&path);
    let sessions: Vec<usize> = windows.iter().map(|w| w.session).collect();
    assert_eq!(sessions, [0, 0, 0, 1, 1]);
    assert_eq!((tally.sessions, tally.samples, tally.used), (2, 7, 5));
    assert!(tally.skipped.is_empty() && tally.torn_bytes == 0);
    assert!((windows[0].window.span_s - 1.0).abs() < 1e-9);
}

#[test]
fn a_cut_last_line_is_tolerated_and_cut_off_by_the_next_session() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    let all = samples(5);
    record(&path, &all[..3]);
    let length = fs::metadata(&path).unwrap().len();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(length - 40)
        .unwrap();
    let (windows, tally) = read(&path);
    assert_eq!((windows.len(), tally.samples), (1, 2));
    assert!(tally.torn_bytes > 0 && tally.damaged_lines == 0);
    record(&path, &all[3..]);
    let (windows, tally) = read(&path);
    assert_eq!((windows.len(), tally.samples, tally.torn_bytes), (2, 4, 0));
}

#[test]
fn a_damaged_line_is_counted_and_no_window_spans_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    record(&path, &samples(5));
    let mut text = fs::read(&path).unwrap();
    let feeds = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    // Lines: header, session, five samples; the fourth sample is hit.
    let at = feeds.map(|(at, _)| at).nth(4).unwrap() + 100;
    text[at] ^= 1;
    fs::write(&path, text).unwrap();
    let (windows, tally) = read(&path);
    assert_eq!(
        (windows.len(), tally.samples, tally.damaged_lines),
        (2, 4, 1)
    );
    assert_eq!(tally.skipped[&SkipReason::Damaged], 1);
}

#[test]
fn a_foreign_file_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    for text in [
        "",
        "notes\n",
        "3f1a90c2 {\"segment\":{\"format\":1,\"number\":1}}\n",
    ] {
        fs::write(&path, text).unwrap();
        assert!(matches!(
            Recording::open(&path),
            Err(RecordingError::Foreign { .. })
        ));
        if !text.is_empty() {
            let refused = Recorder::append(&path, source()).unwrap_err();
            assert!(
                matches!(refused, RecordingError::Foreign { .. })
                    && refused.to_string().contains("notes.txt"),
                "{refused}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
    let mut other = Vec::new();
    encode(&Line::Recording(Header { format: 9 }), &mut other);
    fs::write(&path, other).unwrap();
    assert!(matches!(
        Recorder::append(&path, source()),
        Err(RecordingError::Format { found: 9, .. })
    ));
}

#[test]
fn two_recorders_do_not_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    let first = Recorder::append(&path, source()).unwrap();
    assert!(matches!(
        Recorder::append(&path, source()),
        Err(RecordingError::Busy { .. })
    ));
    drop(first);
    Recorder::append(&path, source()).unwrap();
}

#[test]
fn a_process_that_ends_without_a_word_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    let mut recorder = Recorder::append(&path, source()).unwrap();
    for sample in &samples(3) {
        recorder.record(sample).unwrap();
    }
    std::mem::forget(recorder);
    assert_eq!(read(&path).1.samples, 3);
}

#[test]
fn each_thing_that_spoils_a_window_is_counted_by_its_name() {
    use SkipReason::*;
    assert_eq!(verdict(1.0, |_| ()), None);
    assert_eq!(verdict(1.0, |s| s.at = Duration::ZERO), Some(ClockJump));
    assert_eq!(verdict(3600.0, |_| ()), Some(ClockJump));
    assert_eq!(verdict(-5.0, |_| ()), Some(ClockJump));
    assert_eq!(verdict(10.0, |s| s.at += Duration::from_secs(9)), Some(Gap));
    assert_eq!(
        verdict(0.1, |s| s.at -= Duration::from_millis(900)),
        Some(TooShort)
    );
    assert_eq!(verdict(1.0, |s| drop(s.disks.pop())), Some(GuestsChanged));
    assert_eq!(
        verdict(1.0, |s| s.disks[0].settings.channel = 3),
        Some(SettingsChanged)
    );
    assert_eq!(
        verdict(1.0, |s| s.devices[0].scheduler = 1),
        Some(SettingsChanged)
    );
    assert_eq!(
        verdict(1.0, |s| s.disks[1].reads.requests = 0),
        Some(CounterReset)
    );
    assert_eq!(
        verdict(1.0, |s| s.disks[1].iothread_cpu_ns = Ok(0)),
        Some(CounterReset)
    );
    assert_eq!(
        verdict(1.0, |s| s.devices[0].reads.time_ns = 0),
        Some(CounterReset)
    );
    let stale = |s: &mut HostSample| s.disks[0].latency_counts = Err(Validity::Stale);
    assert_eq!(verdict(1.0, stale), Some(Stale));
}

#[test]
fn a_recording_is_read_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    let all = samples(3);
    record(&path, &all);
    let mut line = Vec::new();
    let sample = RecordedSample {
        unix_us: 1,
        host: all[0].clone(),
    };
    encode(&Line::Sample(Box::new(sample)), &mut line);
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(&line[..line.len() / 2]).unwrap();
    assert_eq!(read(&path).1.samples, 3);
}
