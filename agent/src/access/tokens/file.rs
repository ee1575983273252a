//! The file of the tokens, `tokens.json` in the data directory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ID_BYTES, LONGEST_NAME, SECRET_BYTES, Secret, Token, Wanted, hex, unhex};
use crate::durable;

/// Tokens that are kept; where there are as many, those that expired or were revoked go.
const MOST_TOKENS: usize = 1000;
const VERSION: u32 = 1;

/// Why the tokens could not be read or changed.
#[derive(Debug, Error)]
pub enum TokenError {
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}: run it as the user of the service, or as root", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not what this writes.
    #[error("{}: {problem}: repair it, or move it away and make new tokens", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A name cannot be kept.
    #[error(
        "the name of a token must have 1 to {LONGEST_NAME} bytes and no control characters: choose another"
    )]
    Name,
    /// There are too many.
    #[error(
        "there are {MOST_TOKENS} tokens, which is the limit: revoke some (`blkpilot token ls`)"
    )]
    TooMany,
    /// No token has the id.
    #[error("{0}: no token has this id: `blkpilot token ls` shows those there are")]
    NotFound(String),
    /// The operating system gave no random numbers.
    #[error("the operating system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// The file of the tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    dir: PathBuf,
    path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    version: u32,
    tokens: Vec<RawToken>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    id: String,
    name: String,
    role: String,
    sha256: String,
    created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<String>,
}

impl TokenFile {
    /// That of a data directory.
    #[must_use]
    pub fn in_dir(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.to_owned(),
            path: data_dir.join("tokens.json"),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens, oldest first; none where there is no file.
    ///
    /// # Errors
    /// `Io`, `Format`.
    pub fn load(&self) -> Result<Vec<Token>, TokenError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(source) => return Err(self.failed("read it", source)),
        };
        let raw = serde_json::from_str(&text).map_err(|e| self.wrong(e.to_string()))?;
        tokens(raw).map_err(|problem| self.wrong(problem))
    }

    /// Makes a token, and returns what is shown only now.
    ///
    /// # Errors
    /// `Name`, `TooMany`, `Random`, `Io`, `Format`.
    pub fn create(&self, wanted: Wanted, now: SystemTime) -> Result<(Token, Secret), TokenError> {
        check_name(&wanted.name)?;
        let mut random = [0; ID_BYTES + SECRET_BYTES];
        getrandom::fill(&mut random).map_err(TokenError::Random)?;
        let (token, secret) = Token::new(&random, wanted, now);
        self.change(|tokens| {
            make_room(tokens, now)?;
            tokens.push(token.clone());
            Ok(())
        })?;
        Ok((token, secret))
    }

    /// Revokes a token; one that was revoked before keeps its time.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Format`.
    pub fn revoke(&self, id: &str, now: SystemTime) -> Result<Token, TokenError> {
        self.change(|tokens| {
            let token = tokens.iter_mut().find(|token| token.id == id);
            let token = token.ok_or_else(|| TokenError::NotFound(id.to_owned()))?;
            token.revoked.get_or_insert(now);
            Ok(token.clone())
        })
    }

    /// Reads, changes and replaces the file while nobody else does.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Vec<Token>) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        let dir = File::open(&self.dir).map_err(|e| self.failed("open its directory", e))?;
        dir.lock()
            .map_err(|e| self.failed("lock its directory", e))?;
        let mut tokens = self.load()?;
        let changed = change(&mut tokens)?;
        let text = serde_json::to_string_pretty(&raw(&tokens)).expect("a list of texts is JSON");
        durable::replace_private(&self.path, text.as_bytes())
            .map_err(|e| self.failed("write it", e))?;
        Ok(changed)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> TokenError {
        TokenError::Io {
            path: self.path.clone(),
            action,
            source,
        }
    }

    fn wrong(&self, problem: String) -> TokenError {
        TokenError::Format {
            path: self.path.clone(),
            problem,
        }
    }
}

fn check_name(name: &str) -> Result<(), TokenError> {
    let fits = (1..=LONGEST_NAME).contains(&name.len()) && !name.contains(char::is_control);
    if fits { Ok(()) } else { Err(TokenError::Name) }
}

fn make_room(tokens: &mut Vec<Token>, now: SystemTime) -> Result<(), TokenError> {
    if tokens.len() >= MOST_TOKENS {
        tokens.retain(|token| token.check(now).is_ok());
    }
    if tokens.len() >= MOST_TOKENS {
        return Err(TokenError::TooMany);
    }
    Ok(())
}

fn tokens(raw: RawFile) -> Result<Vec<Token>, String> {
    if raw.version != VERSION {
        return Err(format!("version = {} must be {VERSION}", raw.version));
    }
    let mut problems = vec![];
    let mut tokens = vec![];
    for (i, raw) in raw.tokens.into_iter().enumerate() {
        match token(raw) {
            Ok(token) => tokens.push(token),
            Err(problem) => problems.push(format!("tokens[{i}].{problem}")),
        }
    }
    if problems.is_empty() {
        Ok(tokens)
    } else {
        Err(problems.join("; "))
    }
}

fn token(raw: RawToken) -> Result<Token, String> {
    let time = |key: &str, text: String| {
        let time = humantime::parse_rfc3339(&text);
        time.map_err(|e| format!("{key} = \"{text}\": {e}"))
    };
    let hash = unhex(&raw.sha256).ok_or("sha256 must be 64 hexadecimal digits")?;
    Ok(Token {
        role: raw.role.parse().map_err(|e| format!("role = {e}"))?,
        created: time("created", raw.created)?,
        expires: raw.expires.map(|text| time("expires", text)).transpose()?,
        revoked: raw.revoked.map(|text| time("revoked", text)).transpose()?,
        id: raw.id,
        name: raw.name,
        hash,
    })
}

fn raw(tokens: &[Token]) -> RawFile {
    let time = |time: SystemTime| humantime::format_rfc3339_nanos(time).to_string();
    let raw = |token: &Token| RawToken {
        id: token.id.clone(),
        name: token.name.clone(),
        role: token.role.name().to_owned(),
        sha256: hex(&token.hash),
        created: time(token.created),
        expires: token.expires.map(time),
        revoked: token.revoked.map(time),
    };
    RawFile {
        version: VERSION,
        tokens: tokens.iter().map(raw).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::super::{Refusal, verify};
    use super::*;
    use crate::access::role::Role;

    fn wanted(name: &str) -> Wanted {
        Wanted {
            name: name.to_owned(),
            role: Role::Observer,
            lifetime: Some(Duration::from_secs(3600)),
        }
    }

    #[test]
    fn tokens_are_read_back_as_they_were_made_and_the_file_is_its_owner_s_alone() {
        let dir = TempDir::new().unwrap();
        let (file, now) = (TokenFile::in_dir(dir.path()), SystemTime::now());
        assert_eq!(file.load().unwrap(), []);
        let (one, secret) = file.create(wanted("one"), now).unwrap();
        let (two, _) = file.create(wanted("two"), now).unwrap();
        assert_eq!(file.load().unwrap(), [one.clone(), two]);
        let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.contains(&one.id) && !text.contains(secret.expose()));
        assert!(!text.contains(&secret.expose()[26..]), "{text}");
    }

    #[test]
    fn a_revoked_token_stays_in_the_list_and_is_not_taken() {
        let dir = TempDir::new().unwrap();
        let (file, now) = (TokenFile::in_dir(dir.path()), SystemTime::now());
        let (token, secret) = file.create(wanted("one"), now).unwrap();
        file.revoke(&token.id, now).unwrap();
        let again = file
            .revoke(&token.id, now + Duration::from_secs(5))
            .unwrap();
        assert_eq!(again.revoked, Some(now));
        let tokens = file.load().unwrap();
        assert_eq!(verify(&tokens, secret.expose(), now), Err(Refusal::Revoked));
        let error = file.revoke("0123", now).unwrap_err();
        assert!(
            matches!(&error, TokenError::NotFound(id) if id == "0123"),
            "{error}"
        );
    }

    #[test]
    fn makers_at_the_same_time_lose_no_token() {
        let dir = TempDir::new().unwrap();
        let file = TokenFile::in_dir(dir.path());
        std::thread::scope(|scope| {
            for i in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    file.create(wanted(&format!("t{i}")), SystemTime::now())
                        .unwrap()
                });
            }
        });
        assert_eq!(file.load().unwrap().len(), 8);
    }

    #[test]
    fn where_there_are_too_many_those_that_are_not_taken_any_more_make_room() {
        let dir = TempDir::new().unwrap();
        let now = SystemTime::now();
        let later = now + Duration::from_secs(7200);
        let mut tokens = vec![];
        for _ in 0..MOST_TOKENS {
            let random = [1; ID_BYTES + SECRET_BYTES];
            tokens.push(Token::new(&random, wanted("x"), now).0);
        }
        assert!(matches!(
            make_room(&mut tokens, now),
            Err(TokenError::TooMany)
        ));
        make_room(&mut tokens, later).unwrap();
        assert!(tokens.is_empty());
        let error = TokenFile::in_dir(dir.path()).create(wanted("\n"), now);
        assert!(matches!(error, Err(TokenError::Name)));
    }

    #[test]
    fn every_problem_of_a_broken_file_is_named_with_the_file() {
        let dir = TempDir::new().unwrap();
        let file = TokenFile::in_dir(dir.path());
        let token = |role: &str, hash: &str| {
            format!(
                r#"{{"id":"a","name":"n","role":"{role}","sha256":"{hash}","created":"2026-01-01T00:00:00Z"}}"#
            )
        };
        let tokens = [token("king", &"0".repeat(64)), token("admin", "0")].join(",");
        std::fs::write(
            file.path(),
            format!(r#"{{"version":1,"tokens":[{tokens}]}}"#),
        )
        .unwrap();
        let error = file.load().unwrap_err().to_string();
        for part in [
            "tokens.json",
            "tokens[0].role = \"king\"",
            "tokens[1].sha256",
            "move it away",
        ] {
            assert!(error.contains(part), "no {part} in {error}");
        }
        std::fs::write(file.path(), r#"{"version":2,"tokens":[]}"#).unwrap();
        let error = file.load().unwrap_err().to_string();
        assert!(error.contains("version = 2 must be 1"), "{error}");
    }
}
