//! Reaching a server.

use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

/// A server that cannot be reached.
#[derive(Debug, Error)]
#[error(
    "no service answers at {server}: {problem}; start one with `blkpilot serve`, or name another with --server"
)]
pub struct ConnectError {
    /// Where it should be.
    pub server: String,
    /// What went wrong.
    pub problem: String,
}

/// Connects to `unix:PATH`, a bare path, or `http://ADDRESS`.
///
/// # Errors
/// If no server answers there.
pub async fn connect(server: &str) -> Result<Channel, ConnectError> {
    let failed = |problem: String| ConnectError {
        server: server.to_owned(),
        problem,
    };
    let endpoint = Endpoint::from_shared(uri(server)).map_err(|e| failed(innermost(&e)))?;
    endpoint.connect().await.map_err(|e| failed(innermost(&e)))
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
    }
}
