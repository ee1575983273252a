//! What holds a process that trains for a service: its standard input. When that ends, because the service closed it or
//! is gone, the run saves where it stands and the process ends; so none goes on that nobody knows of.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long it may take to save. Then the process ends with what was saved before.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sets `stop` once standard input has ended, and ends the process some time after.
#[expect(clippy::disallowed_methods, reason = "what hangs returns to no main")]
pub(crate) fn hold(stop: &Arc<AtomicBool>) {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut said = [0; 64];
        // Whatever is said means nothing; an input that cannot be read is one that has ended.
        while matches!(std::io::stdin().read(&mut said), Ok(1..)) {}
        stop.store(true, Ordering::Relaxed);
        std::thread::sleep(PATIENCE);
        eprintln!("blkpilot-lab: was told to end, and did not in {PATIENCE:?}");
        std::process::exit(1);
    });
}
