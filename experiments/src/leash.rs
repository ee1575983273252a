//! What holds a process that trains for a service: its standard input. When that ends, because the service closed it or
//! is gone, the run saves where it stands and the process ends; so none goes on that nobody knows of.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long it may take to save. Then the process ends with what was saved before.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sets `stop` once standard input has ended, and ends the process some time after.
#[expect(clippy::disallowed_methods, reason = "what hangs returns to no main")]
pub(crate) fn hold(stop: &Arc<AtomicBool>) {
    hold_by(std::io::stdin(), Arc::clone(stop), PATIENCE, || {
        eprintln!("blkpilot-lab: was told to end, and did not in {PATIENCE:?}");
        std::process::exit(1);
    });
}

fn hold_by(
    mut input: impl Read + Send + 'static,
    stop: Arc<AtomicBool>,
    patience: Duration,
    end: impl FnOnce() + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut said = [0; 64];
        // Whatever is said means nothing; an input that cannot be read is one that has ended.
        while matches!(input.read(&mut said), Ok(1..)) {}
        stop.store(true, Ordering::Relaxed);
        std::thread::sleep(patience);
        end();
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_process_is_told_to_end_when_its_input_does_and_ends_when_it_does_not_follow() {
        let (input, mut held) = std::io::pipe().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, end) = channel();
        let was_told = Arc::clone(&stop);
        let thread = hold_by(
            input,
            Arc::clone(&stop),
            Duration::from_millis(1),
            move || {
                ended.send(was_told.load(Ordering::Relaxed)).unwrap();
            },
        );
        held.write_all(b"nothing").unwrap();
        assert!(!stop.load(Ordering::Relaxed) && end.try_recv().is_err());
        drop(held);
        assert!(end.recv().unwrap(), "it was told before it was ended");
        thread.join().unwrap();
    }
}
