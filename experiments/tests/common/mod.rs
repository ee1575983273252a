//! Runs that are ended when a test says so, and whether two came to the same.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_lab::Config;
use blkpilot_lab::train::{Event, Existing, Run, Summary, train};
use blkpilot_models::Checkpoint;

pub(crate) fn config(dir: &Path, text: &str) -> Config {
    let file = dir.join("own.toml");
    fs::write(&file, text).unwrap();
    Config::load(&file).unwrap()
}

/// Trains into `out`; `watch` is told the number of each update, and ends the run by giving true.
pub(crate) fn trained(config: &Config, out: &Path, mut watch: impl FnMut(u64) -> bool) -> Summary {
    let run = Run {
        config,
        seed: 3,
        out,
        existing: Existing::Refuse,
    };
    let (stop, mut updates) = (AtomicBool::new(false), 0);
    train(&run, &stop, &mut |event| {
        if let Event::Update { .. } = event {
            updates += 1;
            stop.fetch_or(watch(updates), Ordering::Relaxed);
        }
    })
    .unwrap()
}

/// All that a run came to but for the time it took.
pub(crate) fn assert_same(a: (&Summary, &Path), b: (&Summary, &Path)) {
    let policy = |out: &Path| Checkpoint::load(&out.join("policy")).unwrap();
    let (first, second) = (policy(a.1), policy(b.1));
    assert_eq!(first.tensors, second.tensors);
    assert_eq!(first.manifest, second.manifest);
    let figures = |summary: &Summary| {
        let mut summary = serde_json::to_value(summary).unwrap();
        for time in ["wall_s", "steps_per_s", "comparison_s"] {
            summary[time].take();
        }
        summary
    };
    assert_eq!(figures(a.0), figures(b.0));
}
