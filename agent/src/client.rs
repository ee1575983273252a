//! Reaching a server.

mod credentials;
pub mod remote;

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

pub use self::credentials::{
    CA_VARIABLE, CERT_VARIABLE, Credentials, KEY_VARIABLE, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE,
};
use crate::access::tokens::Secret;

/// The CAs that the machine trusts, where none is named.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why a server is not reached.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nobody answers there, or not as it must.
    #[error(
        "no service answers at {server}: {problem}; start one with `blkpilot serve`, or name another with --server"
    )]
    NoAnswer {
        /// Where it should be.
        server: String,
        /// What went wrong.
        problem: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}: name another file with the {holds}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        holds: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// What is given does not go together, or cannot be used.
    #[error("{0}")]
    Credentials(String),
}

/// A server, and what a client shows it.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// `unix:PATH`, a bare path, `http://ADDRESS` or `https://HOST:PORT`.
    pub server: String,
    /// CAs that the server's certificate must be of, in PEM; those that the machine trusts if none is given.
    pub ca: Option<PathBuf>,
    /// Certificate and private key of the client, in PEM, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A token.
    pub token: Option<Secret>,
}

impl From<&str> for Target {
    /// Without any credential.
    fn from(server: &str) -> Self {
        Self {
            server: server.to_owned(),
            ..Self::default()
        }
    }
}

impl From<&Target> for Target {
    fn from(target: &Target) -> Self {
        target.clone()
    }
}

impl From<&String> for Target {
    fn from(server: &String) -> Self {
        server.as_str().into()
    }
}

/// A connection that sends a token with each call, if there is one.
pub type Connection = InterceptedService<Channel, Bearer>;

/// Adds a token to calls.
#[derive(Debug, Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Target {
    /// Connects.
    ///
    /// # Errors
    /// `NoAnswer`, `File`, `Credentials`.
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        let channel = self.channel().await?;
        let bearer = self.token.as_ref().map(bearer).transpose()?;
        Ok(InterceptedService::new(channel, Bearer(bearer)))
    }

    async fn channel(&self) -> Result<Channel, ConnectError> {
        let uri = uri(&self.server);
        self.check(&uri)?;
        let failed = |error: tonic::transport::Error| ConnectError::NoAnswer {
            server: self.server.clone(),
            problem: innermost(&error),
        };
        let mut endpoint = Endpoint::from_shared(uri.clone()).map_err(failed)?;
        if uri.starts_with("https:") {
            endpoint = endpoint.tls_config(self.tls()?).map_err(failed)?;
        }
        endpoint.connect().await.map_err(failed)
    }

    /// What is given is used, or refused; and no token goes over a network in the clear.
    fn check(&self, uri: &str) -> Result<(), ConnectError> {
        let wrong = |problem: String| Err(ConnectError::Credentials(problem));
        let server = &self.server;
        if !uri.starts_with("https:") && (self.ca.is_some() || self.identity.is_some()) {
            return wrong(format!(
                "CAs, certificate and key are for https://, and the service is at {server}"
            ));
        }
        if uri.starts_with("http:") && self.token.is_some() && !is_loopback(uri) {
            return wrong(format!(
                "{server} is not loopback: a token is not sent there in the clear, write https://"
            ));
        }
        Ok(())
    }

    fn tls(&self) -> Result<ClientTlsConfig, ConnectError> {
        let ca = self.ca.as_deref().unwrap_or(Path::new(SYSTEM_CAS));
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca, "CAs")?));
        if let Some((certificate, key)) = &self.identity {
            let identity = Identity::from_pem(read(certificate, "certificate")?, read(key, "key")?);
            tls = tls.identity(identity);
        }
        Ok(tls)
    }
}

/// Connects to `unix:PATH`, a bare path, or `http://ADDRESS`, showing nothing.
///
/// # Errors
/// If no server answers there.
pub async fn connect(server: &str) -> Result<Channel, ConnectError> {
    Target::from(server).channel().await
}

fn bearer(token: &Secret) -> Result<MetadataValue<Ascii>, ConnectError> {
    let header = format!("Bearer {}", token.expose()).parse();
    let mut header: MetadataValue<Ascii> = header.map_err(|_| {
        let problem =
            "the token has characters that no token has: `blkpilot token create` prints one";
        ConnectError::Credentials(problem.to_owned())
    })?;
    // Neither logged nor compressed.
    header.set_sensitive(true);
    Ok(header)
}

fn read(path: &Path, holds: &'static str) -> Result<Vec<u8>, ConnectError> {
    fs::read(path).map_err(|source| ConnectError::File {
        path: path.to_owned(),
        holds,
        source,
    })
}

fn is_loopback(uri: &str) -> bool {
    let uri: Option<http::Uri> = uri.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address: Result<std::net::IpAddr, _> = host.parse();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn uri(server: &str) -> String {
    if server.starts_with("unix:") || server.contains("://") {
        server.to_owned()
    } else if server.contains('/') {
        format!("unix:{server}")
    } else {
        format!("http://{server}")
    }
}

/// tonic says only "transport error"; what the kernel said stands at the end of the chain.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_be_given_as_path_or_address() {
        assert_eq!(uri("/run/x.sock"), "unix:/run/x.sock");
        assert_eq!(uri("unix:/run/x.sock"), "unix:/run/x.sock");
        assert_eq!(uri("127.0.0.1:7077"), "http://127.0.0.1:7077");
        assert_eq!(uri("http://[::1]:7077"), "http://[::1]:7077");
        assert_eq!(uri("https://h.example:7077"), "https://h.example:7077");
    }

    #[test]
    fn a_token_is_sent_in_the_clear_to_this_machine_only() {
        let with_token = |server: &str| {
            let target = Target {
                token: Some("t".to_owned().into()),
                ..Target::from(server)
            };
            target.check(&uri(server)).is_ok()
        };
        for taken in [
            "/run/x.sock",
            "127.0.0.1:1",
            "http://[::1]:1",
            "localhost:1",
            "https://192.0.2.1:1",
        ] {
            assert!(with_token(taken), "{taken}");
        }
        for refused in [
            "192.0.2.1:1",
            "http://[2001:db8::1]:1",
            "http://h.example:1",
            "http://localhost.example:1",
        ] {
            assert!(!with_token(refused), "{refused}");
        }
    }

    #[test]
    fn certificates_are_not_passed_over_where_no_tls_is_spoken() {
        let target = Target {
            ca: Some("ca.pem".into()),
            ..Target::from("unix:/run/x.sock")
        };
        let error = target.check(&uri(&target.server)).unwrap_err();
        assert!(error.to_string().contains("https://"), "{error}");
    }
}
