//! How a service is reached, and what it is shown.

use std::env;
use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::client::{Target, token_in};
use crate::config::DEFAULT_SOCKET;

/// Holds a token; not an option, since those are seen in lists of processes.
const TOKEN: &str = "BLKPILOT_TOKEN";

#[derive(Debug, Args)]
pub(super) struct ConnectionArgs {
    /// The service: unix:PATH, http://ADDRESS on this machine, or https://HOST:PORT
    #[arg(long, value_name = "SERVER", env = "BLKPILOT_SERVER", default_value_t = format!("unix:{DEFAULT_SOCKET}"))]
    pub(super) server: String,
    /// CAs of the service's certificate, for https://; those that this machine trusts, if not given
    #[arg(long, value_name = "FILE", env = "BLKPILOT_CA")]
    ca: Option<PathBuf>,
    /// Certificate to show, where the service asks for one
    #[arg(long, value_name = "FILE", env = "BLKPILOT_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of --cert
    #[arg(long, value_name = "FILE", env = "BLKPILOT_KEY", requires = "cert")]
    key: Option<PathBuf>,
    /// File with a token, as `blkpilot token create` prints it; the environment variable BLKPILOT_TOKEN, which
    /// holds the token itself, if not given
    #[arg(long, value_name = "FILE", env = "BLKPILOT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl ConnectionArgs {
    /// The service, and what it is shown.
    pub(super) fn target(&self) -> Result<Target, CliError> {
        let given = env::var(TOKEN).ok().filter(|token| !token.is_empty());
        let token = match &self.token_file {
            Some(file) => Some(token_in(file)?),
            None => given.map(Into::into),
        };
        Ok(Target {
            server: self.server.clone(),
            ca: self.ca.clone(),
            identity: self.cert.clone().zip(self.key.clone()),
            token,
        })
    }
}
