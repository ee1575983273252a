//! Bearer tokens: 256 random bits that are shown once and kept as a hash.

mod file;
mod keeper;

use std::fmt;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub use self::file::{TokenError, TokenFile};
pub use self::keeper::TokenKeeper;
use super::role::Role;

/// What each token begins with, so that scanners for leaked secrets find it.
const PREFIX: &str = "blkpilot_";
/// Bytes of an id, which names a token and proves nothing.
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
/// Longest name of a token, bytes.
pub const LONGEST_NAME: usize = 100;

/// A token, without what it is proved by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is called in lists and records: 16 hexadecimal digits.
    pub id: String,
    /// What it is for, in its maker's words.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// When it was made.
    pub created: SystemTime,
    /// From when on it is not taken any more; `None` for never.
    pub expires: Option<SystemTime>,
    /// When it was revoked, if it was.
    pub revoked: Option<SystemTime>,
    /// SHA-256 of the whole text of the token.
    hash: [u8; 32],
}

/// What a token is asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What it is for: 1 to [`LONGEST_NAME`] bytes without control characters.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// How long it is taken; `None` for ever.
    pub lifetime: Option<Duration>,
}

/// The text of a token, as its holder sends it. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for whoever has to show or send it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is none of ours.
    Unknown,
    /// It was ours, but its time is over.
    Expired,
    /// It was ours, but was revoked.
    Revoked,
}

impl Token {
    /// A new one from random bytes: `id` and then the secret.
    fn new(
        random: &[u8; ID_BYTES + SECRET_BYTES],
        wanted: Wanted,
        now: SystemTime,
    ) -> (Self, Secret) {
        let (id, secret) = random.split_at(ID_BYTES);
        let id = hex(id);
        let secret = Secret(format!("{PREFIX}{id}_{}", hex(secret)));
        let token = Self {
            hash: hash(&secret.0),
            id,
            name: wanted.name,
            role: wanted.role,
            created: now,
            expires: wanted
                .lifetime
                .and_then(|lifetime| now.checked_add(lifetime)),
            revoked: None,
        };
        (token, secret)
    }

    /// What stands against it at `now`.
    ///
    /// # Errors
    /// `Revoked`, `Expired`.
    pub fn check(&self, now: SystemTime) -> Result<(), Refusal> {
        if self.revoked.is_some() {
            return Err(Refusal::Revoked);
        }
        match self.expires {
            Some(expires) if expires <= now => Err(Refusal::Expired),
            _ => Ok(()),
        }
    }
}

/// The token among `tokens` that `presented` is, if it is taken at `now`. Whose it could be is found by its id,
/// which is no secret; whether it is, in constant time.
///
/// # Errors
/// `Unknown`; `Expired` and `Revoked` only for whoever has held it.
pub fn verify<'a>(
    tokens: &'a [Token],
    presented: &str,
    now: SystemTime,
) -> Result<&'a Token, Refusal> {
    let id = presented
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('_'))
        .map(|(id, _)| id)
        .ok_or(Refusal::Unknown)?;
    let token = tokens.iter().find(|token| token.id == id);
    let token = token.ok_or(Refusal::Unknown)?;
    if !bool::from(token.hash.ct_eq(&hash(presented))) {
        return Err(Refusal::Unknown);
    }
    token.check(now).map(|()| token)
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn token(first: u8, lifetime: Option<Duration>) -> (Token, Secret) {
        let wanted = Wanted {
            name: "ci".to_owned(),
            role: Role::Operator,
            lifetime,
        };
        let mut random = [7; ID_BYTES + SECRET_BYTES];
        random[0] = first;
        Token::new(&random, wanted, NOW)
    }

    #[test]
    fn a_token_is_known_by_its_hash_and_by_nothing_less() {
        let ((one, secret), (two, other)) = (token(1, None), token(2, None));
        let tokens = [one.clone(), two.clone()];
        assert_eq!(verify(&tokens, secret.expose(), NOW), Ok(&one));
        assert_eq!(verify(&tokens, other.expose(), NOW), Ok(&two));
        let text = secret.expose();
        let other_end = format!("{}0", &text[..text.len() - 1]);
        // The id of one with the secret of none.
        let other_id = text.replace(&one.id, "ffffffffffffffff");
        for wrong in [
            "",
            "x",
            PREFIX,
            "blkpilot_1_2",
            &text[1..],
            &other_end,
            &other_id,
        ] {
            assert_eq!(
                verify(&tokens, wrong, NOW),
                Err(Refusal::Unknown),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_token_is_taken_until_it_expires_or_is_revoked() {
        let (mut made, secret) = token(1, Some(Duration::from_secs(60)));
        let at = |seconds| NOW + Duration::from_secs(seconds);
        let taken = |token: &Token, now| {
            verify(std::slice::from_ref(token), secret.expose(), now).map(|_| ())
        };
        assert_eq!(taken(&made, at(59)), Ok(()));
        assert_eq!(taken(&made, at(60)), Err(Refusal::Expired));
        made.revoked = Some(NOW);
        assert_eq!(taken(&made, at(59)), Err(Refusal::Revoked));
    }

    #[test]
    fn neither_a_token_nor_its_secret_shows_the_secret() {
        let (made, secret) = token(1, None);
        let shown = format!("{made:?} {secret:?}");
        assert!(
            !shown.contains(&secret.expose()[PREFIX.len() + 17..]),
            "{shown}"
        );
    }

    #[test]
    fn a_hash_is_read_back_from_hexadecimal_digits_only() {
        let bytes = hash("x");
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        let signed = format!("+1{}", "0".repeat(62));
        for wrong in ["", "00", &"0".repeat(65), &"é".repeat(32), &signed] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}
