//! From where changes are taken, and until when calls are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tonic::service::Interceptor;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Extensions, Request, Status};

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

/// Whether calls are taken: until the service stops, which its clones hear of at once. Put before each service
/// but health, which tells that it stops.
#[derive(Debug, Clone, Default)]
pub struct Intake(Arc<AtomicBool>);

impl Intake {
    /// From now on none is taken.
    pub fn close(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Interceptor for Intake {
    /// Errors: `SERVICE_STOPPING`.
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if !self.0.load(Ordering::Acquire) {
            return Ok(request);
        }
        let message = "the service is stopping: try again when it runs";
        Err(Failure::new(Code::Unavailable, "SERVICE_STOPPING", message).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intake_that_is_closed_refuses_whatever_its_clones_are_asked() {
        let intake = Intake::default();
        let mut before_a_service = intake.clone();
        assert!(before_a_service.call(Request::new(())).is_ok());
        intake.close();
        let refused = before_a_service.call(Request::new(())).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
    }
}
