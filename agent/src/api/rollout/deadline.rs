//! Until when a client waits. The transport honours that up to the first answer; a stream has to itself.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::wire::status::Failure;

/// The end of a client's patience; `None` if it has none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// What the header `grpc-timeout` says, counted from now.
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        let header = metadata.get("grpc-timeout");
        let timeout = header.and_then(|value| parse(value.to_str().ok()?));
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// What comes of something, unless it comes too late.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED`.
    pub(super) async fn bound<T>(&self, what: impl Future<Output = T>) -> Result<T, Failure> {
        let Some(end) = self.0 else {
            return Ok(what.await);
        };
        tokio::time::timeout_at(end, what).await.map_err(|_| {
            let message = "the client's deadline has passed: give the stream a later one, or none";
            Failure::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message)
        })
    }
}

/// At most eight digits and a unit, by the gRPC protocol over HTTP/2.
fn parse(text: &str) -> Option<Duration> {
    let (at, unit) = text.char_indices().next_back()?;
    let digits = &text[..at];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count * 3600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_as_the_protocol_writes_it() {
        let read = ["2H", "3M", "4S", "5m", "6u", "99999999n"].map(|text| parse(text).unwrap());
        let seconds = [7200.0, 180.0, 4.0, 0.005, 6e-6, 0.099_999_999];
        assert_eq!(read.map(|timeout| timeout.as_secs_f64()), seconds);
        for wrong in ["", "S", "1", "1s", "-1S", "123456789S", "1 S", "é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_comes_too_late_is_given_up() {
        let deadline = |timeout: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", timeout.parse().unwrap());
            Deadline::of(&metadata)
        };
        assert_eq!(deadline("1H").bound(async { 1 }).await, Ok(1));
        let late = deadline("0m")
            .bound(std::future::pending::<()>())
            .await
            .unwrap_err();
        assert_eq!(late.reason(), "DEADLINE_EXCEEDED");
        let none = Deadline::of(&MetadataMap::new());
        assert_eq!(none.bound(async { 2 }).await, Ok(2));
    }
}
