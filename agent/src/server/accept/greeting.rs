//! How long a new connection may say nothing: it has a place of which there are few, and HTTP/2 asks whether anybody
//! is there only once it has been greeted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Bytes with which a client of HTTP/2 begins: RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;

/// What a connection still has to say before it is one.
#[derive(Debug)]
pub(super) struct Greeting {
    left_bytes: usize,
    within: Duration,
    due: Pin<Box<Sleep>>,
}

impl Greeting {
    /// One that may take so long from `now` on.
    pub(super) fn within(within: Duration, now: Instant) -> Self {
        Self {
            left_bytes: PREFACE_BYTES,
            within,
            due: Box::pin(tokio::time::sleep_until(now + within)),
        }
    }

    /// So many bytes have come. Whether that was all of it.
    pub(super) fn hear(&mut self, bytes: usize) -> bool {
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
        self.left_bytes == 0
    }

    /// Ready once it has taken too long.
    pub(super) fn poll_overdue(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.due.as_mut().poll(context));
        let message = format!("nothing that begins HTTP/2 came in {:?}", self.within);
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, message))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn a_greeting_may_come_in_pieces_and_longer_than_it_is() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let mut greeting = Greeting::within(Duration::from_secs(10), Instant::now());
        assert!(!greeting.hear(0));
        assert!(!greeting.hear(PREFACE_BYTES - 1));
        assert!(greeting.hear(1));
        assert!(greeting.hear(100));
    }

    #[tokio::test]
    async fn who_says_nothing_is_overdue_when_the_time_is_over_and_not_before() {
        let mut early = Greeting::within(Duration::from_secs(3600), Instant::now());
        let asked = poll_fn(|context| Poll::Ready(early.poll_overdue(context).is_ready()));
        assert!(!asked.await);
        let mut late = Greeting::within(Duration::ZERO, Instant::now());
        let error = poll_fn(|context| late.poll_overdue(context)).await;
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
