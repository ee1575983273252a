//! Who may call what: one layer before every service.
//!
//! Reading order: [`role`], [`methods`] (the table), [`peer`] (who the connection says it is), [`tokens`], [`rules`]
//! (which role a peer has without a token), [`rate`], [`audit`], then [`layer`], through which every call goes, [`entitled`]
//! (calls that last), and [`tls`], which new connections are taken with.

pub mod actor;
pub mod audit;
pub mod entitled;
pub mod layer;
pub mod methods;
pub mod peer;
pub mod rate;
mod recorded;
pub mod role;
pub mod rules;
mod stamp;
pub mod tls;
pub mod tokens;

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use tonic::Code;

use self::audit::Audit;
use self::methods::{Method, Need};
use self::peer::Peer;
use self::rate::{Buckets, Client};
use self::role::Role;
use self::rules::Rules;
use self::tokens::{Refusal, TokenKeeper};
use crate::wire::status::Failure;

/// Bounds on what clients may ask for at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest message of a request, MiB: 1 to 256.
    pub message_mib: u32,
    /// Calls and streams of one connection at once: 1 to 65,536.
    pub streams_per_connection: u32,
    /// Connections at once: 1 to 65,536.
    pub connections: u32,
    /// Calls per second of a client that is known (a token, a user of this machine, a certificate), with as many at
    /// once: 1 to 1,000,000.
    pub calls_per_second: u32,
    /// Those of an address whose callers are not: 1 to 1,000,000.
    pub unknown_calls_per_second: u32,
}

impl Default for Limits {
    /// Of a known client more than a training run makes: this is against one that runs wild.
    fn default() -> Self {
        Self {
            message_mib: 4,
            streams_per_connection: 1024,
            connections: 1024,
            calls_per_second: 20_000,
            unknown_calls_per_second: 200,
        }
    }
}

/// Who calls, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The other end of the connection.
    pub peer: Peer,
    /// Whose calls are counted together with this one.
    pub client: Client,
    /// The id of the token that was sent, if one was.
    pub token: Option<String>,
    /// What it may do; `None` for nothing but what needs no role.
    pub role: Option<Role>,
}

/// Decides on calls.
#[derive(Debug)]
pub struct Access {
    rules: Rules,
    tokens: TokenKeeper,
    limits: Limits,
    buckets: Mutex<Buckets>,
    audit: Audit,
}

/// The times of a call.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For what has a date: tokens.
    pub wall: SystemTime,
    /// For what has a rate.
    pub monotonic: Instant,
}

impl Access {
    /// Decides by these rules.
    #[must_use]
    pub fn new(rules: Rules, tokens: TokenKeeper, limits: Limits, audit: Audit) -> Self {
        Self {
            rules,
            tokens,
            limits,
            buckets: Mutex::default(),
            audit,
        }
    }

    /// Who calls. A token that is sent counts, whatever else the peer could show, and one that is not taken is
    /// refused, whatever else it could do. Its rate is taken from.
    ///
    /// # Errors
    /// `TOKEN_UNKNOWN`, `TOKEN_EXPIRED`, `TOKEN_REVOKED`, `RATE_EXCEEDED`.
    pub fn identify(&self, peer: &Peer, sent: Option<&[u8]>, now: Now) -> Result<Caller, Failure> {
        let caller = match sent {
            None => Ok(self.rules.caller(peer)),
            Some(header) => self.by_token(peer, header, now.wall),
        };
        match caller {
            Ok(caller) => self.count(&caller.client, now.monotonic).map(|()| caller),
            // Whoever guesses is held to the rate of a stranger.
            Err(refusal) => {
                self.count(&stranger(peer), now.monotonic)?;
                Err(refusal)
            }
        }
    }

    fn by_token(&self, peer: &Peer, header: &[u8], now: SystemTime) -> Result<Caller, Failure> {
        let presented = bearer(header).ok_or_else(|| refused(Refusal::Unknown))?;
        let token = self.tokens.verify(presented, now).map_err(refused)?;
        Ok(Caller {
            peer: peer.clone(),
            client: Client::Token(token.id.as_str().into()),
            token: Some(token.id),
            role: Some(token.role),
        })
    }

    /// Whether a caller whose call was taken before may still make it at `now`: a token may have been revoked, have
    /// expired, or have another role.
    ///
    /// # Errors
    /// Those of another call of the same caller, but for its rate.
    pub fn admit_still(
        &self,
        caller: &Caller,
        method: &Method,
        now: SystemTime,
    ) -> Result<(), Failure> {
        let Some(id) = &caller.token else {
            return Ok(());
        };
        let token = self.tokens.current(id, now).map_err(refused)?;
        let caller = Caller {
            role: Some(token.role),
            ..caller.clone()
        };
        admit(&caller, method)
    }

    fn count(&self, client: &Client, now: Instant) -> Result<(), Failure> {
        let per_second = match client {
            Client::Address(_) => self.limits.unknown_calls_per_second,
            _ => self.limits.calls_per_second,
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.take(client, per_second, now).map_err(|wait| {
            let message = format!(
                "more than {per_second} calls per second: call less often, or raise service.limits"
            );
            Failure::new(Code::ResourceExhausted, "RATE_EXCEEDED", message).retry_after(wait)
        })
    }
}

/// Whether a caller may call a method.
///
/// # Errors
/// `CREDENTIALS_MISSING` where it has shown nothing and a token would help, `ROLE_TOO_LOW`.
pub fn admit(caller: &Caller, method: &Method) -> Result<(), Failure> {
    let Need::Role(least) = method.need else {
        return Ok(());
    };
    if caller.role.is_some_and(|role| role >= least) {
        return Ok(());
    }
    let has = caller.role.map_or("none", Role::name);
    let failure = if let Client::Address(_) = caller.client {
        let message = format!(
            "this needs the role {least}: send a token (`blkpilot token create`, then --token-file or BLKPILOT_TOKEN), or use the Unix socket"
        );
        Failure::new(Code::Unauthenticated, "CREDENTIALS_MISSING", message)
    } else {
        let message =
            format!("this needs the role {least}, and yours is {has}: ask for a greater one");
        Failure::new(Code::PermissionDenied, "ROLE_TOO_LOW", message)
    };
    let failure = failure.with("needs", least).with("role", has);
    Err(failure.with("method", method.path))
}

/// Every method that is not in the table.
fn unknown_method(path: &str) -> Failure {
    let message = format!("{path} is not served: server reflection names what is");
    Failure::new(Code::Unimplemented, "UNKNOWN_METHOD", message)
}

fn refused(refusal: Refusal) -> Failure {
    let (reason, what) = match refusal {
        Refusal::Unknown => ("TOKEN_UNKNOWN", "is not known"),
        Refusal::Expired => ("TOKEN_EXPIRED", "has expired"),
        Refusal::Revoked => ("TOKEN_REVOKED", "was revoked"),
    };
    let message = format!("the token {what}: make one with `blkpilot token create`");
    Failure::new(Code::Unauthenticated, reason, message)
}

fn stranger(peer: &Peer) -> Client {
    match peer {
        Peer::Local(credentials) => Client::User(credentials.uid),
        Peer::Loopback(address) | Peer::Tls { address, .. } => Client::of_address(address.ip()),
    }
}

/// The token in `Bearer TOKEN`.
fn bearer(header: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
