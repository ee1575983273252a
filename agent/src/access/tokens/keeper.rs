//! The tokens as a running service sees them: read again when the file has changed.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use super::{Refusal, Token, TokenError, TokenFile, verify};
use crate::access::stamp::Stamp;

/// The tokens of a file that is looked at on each call, so that a token is taken, or not any more, from the
/// moment on at which the command that made or revoked it has ended.
#[derive(Debug)]
pub struct TokenKeeper {
    file: TokenFile,
    seen: RwLock<Seen>,
}

#[derive(Debug)]
struct Seen {
    stamp: Option<Stamp>,
    tokens: Arc<[Token]>,
}

impl TokenKeeper {
    /// Reads the file.
    ///
    /// # Errors
    /// `Io`, `Format`.
    pub fn open(file: TokenFile) -> Result<Self, TokenError> {
        // Before the file is read: what changes in between is read once more.
        let stamp = Stamp::of(file.path());
        let tokens = file.load()?.into();
        let seen = RwLock::new(Seen { stamp, tokens });
        Ok(Self { file, seen })
    }

    /// The token that `presented` is, if it is taken at `now`.
    ///
    /// # Errors
    /// As [`verify`]; a file that cannot be read holds no tokens.
    pub fn verify(&self, presented: &str, now: SystemTime) -> Result<Token, Refusal> {
        let tokens = self.tokens();
        verify(&tokens, presented, now).cloned()
    }

    /// The token with this id, whose holder was known before, if it is still taken at `now`.
    ///
    /// # Errors
    /// `Unknown`, `Expired`, `Revoked`.
    pub fn current(&self, id: &str, now: SystemTime) -> Result<Token, Refusal> {
        let tokens = self.tokens();
        let token = tokens.iter().find(|token| token.id == id);
        let token = token.ok_or(Refusal::Unknown)?;
        token.check(now).map(|()| token.clone())
    }

    fn tokens(&self) -> Arc<[Token]> {
        let stamp = Stamp::of(self.file.path());
        {
            let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
            if seen.stamp == stamp {
                return Arc::clone(&seen.tokens);
            }
        }
        self.read(stamp)
    }

    /// Whom a file admits that cannot be read is not known, so it admits nobody: the last one read might hold a
    /// token that was revoked since.
    fn read(&self, stamp: Option<Stamp>) -> Arc<[Token]> {
        let tokens: Arc<[Token]> = match self.file.load() {
            Ok(tokens) => tokens.into(),
            Err(error) => {
                tracing::error!("no token is taken: {error}");
                Arc::default()
            }
        };
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        *seen = Seen {
            stamp,
            tokens: Arc::clone(&tokens),
        };
        tokens
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::Wanted;
    use super::*;
    use crate::access::role::Role;

    #[test]
    fn what_another_process_makes_or_revokes_is_seen_at_the_next_call() {
        let dir = TempDir::new().unwrap();
        let (file, now) = (TokenFile::in_dir(dir.path()), SystemTime::now());
        let keeper = TokenKeeper::open(file.clone()).unwrap();
        let wanted = Wanted {
            name: "late".to_owned(),
            role: Role::Admin,
            lifetime: None,
        };
        let (token, secret) = file.create(wanted, now).unwrap();
        assert_eq!(keeper.verify(secret.expose(), now), Ok(token.clone()));
        assert_eq!(keeper.current(&token.id, now), Ok(token.clone()));
        file.revoke(&token.id, now).unwrap();
        assert_eq!(keeper.verify(secret.expose(), now), Err(Refusal::Revoked));
        assert_eq!(keeper.current(&token.id, now), Err(Refusal::Revoked));
        assert_eq!(keeper.current("another", now), Err(Refusal::Unknown));
    }

    #[test]
    fn a_file_that_is_broken_while_the_service_runs_admits_nobody_until_it_is_repaired() {
        let dir = TempDir::new().unwrap();
        let (file, now) = (TokenFile::in_dir(dir.path()), SystemTime::now());
        let wanted = Wanted {
            name: "x".to_owned(),
            role: Role::Admin,
            lifetime: None,
        };
        let (token, secret) = file.create(wanted, now).unwrap();
        let keeper = TokenKeeper::open(file.clone()).unwrap();
        let good = std::fs::read(file.path()).unwrap();
        std::fs::write(file.path(), "{").unwrap();
        assert_eq!(keeper.verify(secret.expose(), now), Err(Refusal::Unknown));
        std::fs::write(file.path(), good).unwrap();
        assert_eq!(keeper.verify(secret.expose(), now), Ok(token));
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(keeper.verify(secret.expose(), now), Err(Refusal::Unknown));
        assert!(TokenKeeper::open(file).is_ok());
    }
}
