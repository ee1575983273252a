//! From where changes are taken.

use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Extensions};

use crate::status::Failure;

/// Whether changes are taken over a loopback address, which every local user can reach. A Unix
/// socket's mode says who can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopbackChanges {
    /// They are.
    Taken,
    /// They are refused.
    Refused,
}

impl LoopbackChanges {
    /// Whether the call with these extensions may change a host.
    ///
    /// # Errors
    /// `UNIX_SOCKET_ONLY`.
    pub fn admit(self, extensions: &Extensions) -> Result<(), Failure> {
        if self == Self::Taken || extensions.get::<TcpConnectInfo>().is_none() {
            return Ok(());
        }
        Err(Failure::new(
            Code::PermissionDenied,
            "UNIX_SOCKET_ONLY",
            "changes are not taken over a loopback address, which every local user can reach: use the Unix socket, or set service.loopback_may_change = true",
        ))
    }
}
