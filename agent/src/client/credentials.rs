//! What a client shows a server, and trusts it by, as it is given: by files and environment variables.

use std::path::{Path, PathBuf};

use super::{ConnectError, Target, read};
use crate::access::tokens::Secret;

/// Holds a token itself; not an option of a command, since those are seen in lists of processes.
pub const TOKEN_VARIABLE: &str = "BLKPILOT_TOKEN";
/// Names the file with a token.
pub const TOKEN_FILE_VARIABLE: &str = "BLKPILOT_TOKEN_FILE";
/// Names the file with the CAs of the server's certificate.
pub const CA_VARIABLE: &str = "BLKPILOT_CA";
/// Names the file with the client's certificate.
pub const CERT_VARIABLE: &str = "BLKPILOT_CERT";
/// Names the file with its private key.
pub const KEY_VARIABLE: &str = "BLKPILOT_KEY";

/// The files that a client shows a server, and trusts it by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// CAs that the server's certificate must be of, in PEM.
    pub ca: Option<PathBuf>,
    /// Certificate and private key of the client, in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A token.
    pub token_file: Option<PathBuf>,
}

impl Credentials {
    /// With the files that variables name in place of those that are not given.
    #[must_use]
    pub fn or_by(self, variable: impl Fn(&str) -> Option<String>) -> Self {
        let file = |name| variable(name).map(PathBuf::from);
        let identity = || file(CERT_VARIABLE).zip(file(KEY_VARIABLE));
        Self {
            ca: self.ca.or_else(|| file(CA_VARIABLE)),
            identity: self.identity.or_else(identity),
            token_file: self.token_file.or_else(|| file(TOKEN_FILE_VARIABLE)),
        }
    }

    /// The server, to be shown them. `token` counts where no file is named.
    ///
    /// # Errors
    /// `File` where that with the token cannot be read.
    pub fn target(&self, server: &str, token: Option<Secret>) -> Result<Target, ConnectError> {
        let of_file = self.token_file.as_deref().map(token_in).transpose()?;
        Ok(Target {
            server: server.to_owned(),
            ca: self.ca.clone(),
            identity: self.identity.clone(),
            token: of_file.or(token),
        })
    }
}

/// The token in a file: its only line.
fn token_in(path: &Path) -> Result<Secret, ConnectError> {
    let text = read(path, "token")?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_counts_before_variables_and_a_pair_is_never_mixed() {
        let variable = |name: &str| Some(format!("by-{name}"));
        let by_variables = Credentials::default().or_by(variable);
        assert_eq!(by_variables.ca, Some("by-BLKPILOT_CA".into()));
        let pair = ("by-BLKPILOT_CERT".into(), "by-BLKPILOT_KEY".into());
        assert_eq!(by_variables.identity, Some(pair));
        let given = Credentials {
            ca: Some("ca".into()),
            identity: Some(("cert".into(), "key".into())),
            token_file: Some("token".into()),
        };
        assert_eq!(given.clone().or_by(variable), given);
        let half = |name: &str| (name == CERT_VARIABLE).then(|| "cert".to_owned());
        assert_eq!(Credentials::default().or_by(half), Credentials::default());
    }

    #[test]
    fn a_file_with_a_token_counts_before_a_token_and_one_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "of the file\n").unwrap();
        let given = || Some(Secret::from("itself".to_owned()));
        let token = |token_file: Option<PathBuf>| {
            let credentials = Credentials {
                token_file,
                ..Credentials::default()
            };
            credentials.target("unix:s", given())
        };
        let of = |target: Target| target.token.unwrap().expose().to_owned();
        assert_eq!(of(token(Some(file)).unwrap()), "of the file");
        assert_eq!(of(token(None).unwrap()), "itself");
        let error = token(Some(dir.path().join("none")))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("none: ") && error.ends_with("the token"),
            "{error}"
        );
    }
}
