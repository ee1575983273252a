//! The lease of a remote environment, renewed while its client thinks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::client::Connection;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use tonic::Code;

/// Between two calls: a client that is silent for longer hangs, and its environment is let go.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

/// Since when a client has not called; `None` while it does.
#[derive(Debug)]
pub(super) struct Silence(Mutex<Option<Instant>>);

impl Default for Silence {
    fn default() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }
}

impl Silence {
    pub(super) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn begin(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Whether nobody can be at work any more.
    fn is_too_long(&self, now: Instant) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| now.saturating_duration_since(since) > LONGEST_SILENCE)
    }
}

/// Renews a lease until the environment has gone, or its client is silent for too long.
pub(super) async fn renew(
    mut client: EnvironmentServiceClient<Connection>,
    name: String,
    every: Duration,
    silence: Arc<Silence>,
) {
    loop {
        tokio::time::sleep(every).await;
        if silence.is_too_long(Instant::now()) {
            tracing::warn!(name, "silent for too long: its lease is let run out");
            return;
        }
        let request = v1::GetEnvironmentRequest { name: name.clone() };
        // Whatever else fails may be better the next time; the client's own calls say what it was.
        if let Err(status) = client.get_environment(request).await
            && status.code() == Code::NotFound
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_at_work_is_not_silent_and_one_that_hangs_is() {
        let silence = Silence::default();
        let start = Instant::now();
        silence.begin(start);
        assert!(!silence.is_too_long(start + LONGEST_SILENCE));
        let late = start + LONGEST_SILENCE + Duration::from_secs(1);
        assert!(silence.is_too_long(late));
        // A call may last as long as its interval does.
        silence.end();
        assert!(!silence.is_too_long(late));
        silence.begin(late);
        assert!(!silence.is_too_long(late));
    }
}
