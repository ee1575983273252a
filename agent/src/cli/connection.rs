//! How a service is reached, and what it is shown.

use std::env;
use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::client::{
    CA_VARIABLE, CERT_VARIABLE, Connection, Credentials, KEY_VARIABLE, TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE, Target,
};
use crate::config::DEFAULT_SOCKET;

#[derive(Debug, Args)]
pub(super) struct ConnectionArgs {
    /// The service: unix:PATH, http://ADDRESS on this machine, or https://HOST:PORT
    #[arg(long, value_name = "SERVER", env = "BLKPILOT_SERVER", default_value_t = format!("unix:{DEFAULT_SOCKET}"))]
    pub(super) server: String,
    /// CAs of the service's certificate, for https://; those that this machine trusts, if not given
    #[arg(long, value_name = "FILE", env = CA_VARIABLE)]
    ca: Option<PathBuf>,
    /// Certificate to show, where the service asks for one
    #[arg(long, value_name = "FILE", env = CERT_VARIABLE, requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of --cert
    #[arg(long, value_name = "FILE", env = KEY_VARIABLE, requires = "cert")]
    key: Option<PathBuf>,
    /// File with a token, as `blkpilot token create` prints it; the environment variable BLKPILOT_TOKEN, which
    /// holds the token itself, if not given
    #[arg(long, value_name = "FILE", env = TOKEN_FILE_VARIABLE)]
    token_file: Option<PathBuf>,
}

impl ConnectionArgs {
    /// The service, and what it is shown.
    pub(super) fn target(&self) -> Result<Target, CliError> {
        let token = env::var(TOKEN_VARIABLE).ok();
        let token = token.filter(|token| !token.is_empty());
        let credentials = Credentials {
            ca: self.ca.clone(),
            identity: self.cert.clone().zip(self.key.clone()),
            token_file: self.token_file.clone(),
        };
        Ok(credentials.target(&self.server, token.map(Into::into))?)
    }
}

/// Which service, and how its answer is printed.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl ServerArgs {
    pub(super) async fn connect(&self) -> Result<Connection, CliError> {
        Ok(self.connection.target()?.connect().await?)
    }
}
