//! Spans of time as clients give them.

use std::time::Duration;

/// A span of time; `None` where it is negative.
pub(crate) fn span_from_wire(wire: prost_types::Duration) -> Option<Duration> {
    // prost-types negates what is negative, and of the least number of seconds there is no negative.
    if wire.seconds < 0 {
        return None;
    }
    Duration::try_from(wire).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_what_it_says_and_none_is_negative() {
        let span = |seconds, nanos| span_from_wire(prost_types::Duration { seconds, nanos });
        assert_eq!(span(1, 500_000_000), Some(Duration::from_millis(1500)));
        assert_eq!(span(0, 0), Some(Duration::ZERO));
        assert_eq!(span(1, -1), Some(Duration::new(0, 999_999_999)));
        let longest = Duration::new(i64::MAX as u64, 999_999_999);
        assert_eq!(span(i64::MAX, i32::MAX), Some(longest));
        for (seconds, nanos) in [
            (0, -1),
            (0, i32::MIN),
            (-1, i32::MAX),
            (i64::MIN, 0),
            (i64::MIN, i32::MIN),
        ] {
            assert_eq!(span(seconds, nanos), None, "{seconds} {nanos}");
        }
    }
}
