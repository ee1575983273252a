//! Calls per second of each client: token buckets, without a clock of their own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Clients that are remembered; beyond that the one that has been silent longest is forgotten.
const MOST_CLIENTS: usize = 4096;
/// Leading bits of an IPv6 address that are one client: whoever has one address of a /64 has all of them.
const IPV6_CLIENT_BITS: u32 = 64;

/// Whose calls are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Client {
    /// Those that sent this token, by its id.
    Token(Arc<str>),
    /// Those of this user of the machine.
    User(u32),
    /// Those with a certificate of this name.
    Certificate(Arc<str>),
    /// Those from this address that are nobody else's.
    Address(IpAddr),
}

impl Client {
    /// Of an address without a credential.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        match address {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => {
                let network = u128::from(v6) & (u128::MAX << (128 - IPV6_CLIENT_BITS));
                Self::Address(IpAddr::V6(network.into()))
            }
            other => Self::Address(other.to_canonical()),
        }
    }
}

/// A bucket for each client. One that is full lets a second's worth of calls through at once.
#[derive(Debug, Default)]
pub struct Buckets(HashMap<Client, Bucket>);

#[derive(Debug)]
struct Bucket {
    /// Calls that it may make now, at most `per_second`.
    left: f64,
    at: Instant,
}

impl Buckets {
    /// Takes one call of a client that may make `per_second`, at least 1.
    ///
    /// # Errors
    /// After which time it may make the next, if it may make none now.
    pub fn take(&mut self, client: &Client, per_second: u32, now: Instant) -> Result<(), Duration> {
        let most = f64::from(per_second);
        if let Some(bucket) = self.0.get_mut(client) {
            return bucket.take(most, now);
        }
        if self.0.len() >= MOST_CLIENTS {
            self.forget_one();
        }
        let mut bucket = Bucket {
            left: most,
            at: now,
        };
        let taken = bucket.take(most, now);
        self.0.insert(client.clone(), bucket);
        taken
    }

    fn forget_one(&mut self) {
        let silent = self.0.iter().min_by_key(|(_, bucket)| bucket.at);
        if let Some(client) = silent.map(|(client, _)| client.clone()) {
            self.0.remove(&client);
        }
    }
}

impl Bucket {
    fn take(&mut self, most: f64, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.at);
        self.left = (self.left + since.as_secs_f64() * most).min(most);
        self.at = self.at.max(now);
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / most));
        }
        self.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(last: u32) -> Client {
        Client::of_address(IpAddr::V4((0x0a00_0000 + last).into()))
    }

    #[test]
    fn a_client_that_has_made_a_second_s_calls_waits_for_the_next() {
        let (mut buckets, start) = (Buckets::default(), Instant::now());
        let client = address(1);
        for _ in 0..4 {
            buckets.take(&client, 4, start).unwrap();
        }
        let wait = buckets.take(&client, 4, start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(250));
        buckets.take(&client, 4, start + wait).unwrap();
        buckets.take(&client, 4, start + wait).unwrap_err();
        // The others are not held up by it.
        buckets.take(&address(2), 4, start + wait).unwrap();
    }

    #[test]
    fn one_that_was_silent_for_long_may_make_no_more_than_a_second_s_calls_at_once() {
        let (mut buckets, start) = (Buckets::default(), Instant::now());
        let later = start + Duration::from_secs(3600);
        buckets.take(&address(1), 2, start).unwrap();
        buckets.take(&address(1), 2, later).unwrap();
        buckets.take(&address(1), 2, later).unwrap();
        buckets.take(&address(1), 2, later).unwrap_err();
    }

    #[test]
    fn no_more_clients_are_remembered_than_the_bound_and_the_most_silent_goes_first() {
        let (mut buckets, start) = (Buckets::default(), Instant::now());
        for i in 0..=MOST_CLIENTS as u32 {
            let now = start + Duration::from_millis(i.into());
            buckets.take(&address(i), 1, now).unwrap();
        }
        assert_eq!(buckets.0.len(), MOST_CLIENTS);
        assert!(!buckets.0.contains_key(&address(0)));
        assert!(buckets.0.contains_key(&address(1)));
    }

    #[test]
    fn the_addresses_of_an_ipv6_network_and_of_a_mapped_one_are_one_client() {
        let client = |text: &str| Client::of_address(text.parse().unwrap());
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:1"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:10.0.0.1"), client("10.0.0.1"));
    }

    proptest! {
        #[test]
        fn in_no_span_are_more_calls_taken_than_its_rate_and_one_burst(
            per_second in 1u32..50, gaps_ms in proptest::collection::vec(0u64..400, 1..300)
        ) {
            let (mut buckets, start) = (Buckets::default(), Instant::now());
            let (mut now, mut taken) = (start, 0u32);
            for gap in gaps_ms {
                now += Duration::from_millis(gap);
                taken += u32::from(buckets.take(&address(1), per_second, now).is_ok());
            }
            let most = f64::from(per_second) * (1.0 + (now - start).as_secs_f64());
            prop_assert!(f64::from(taken) <= most + 1e-6, "{taken} of {most}");
        }
    }
}
