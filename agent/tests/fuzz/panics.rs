//! Panics of any thread of this process, those of handlers too, which a client sees only as a stream that breaks off.

use std::panic;
use std::sync::{Mutex, Once, PoisonError};

static SEEN: Mutex<Vec<String>> = Mutex::new(vec![]);

/// From now on they are noted, and shown as before.
pub(crate) fn note() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(panicked.to_string());
            drop(seen);
            before(panicked);
        }));
    });
}

/// Those that were noted.
pub(crate) fn seen() -> Vec<String> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
