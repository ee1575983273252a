//! Until when calls are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use crate::wire::status::Failure;

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
        Err(stopping().into())
    }
}

/// What is said to those who come too late, and to those who would wait for longer than the service lives.
pub(crate) fn stopping() -> Failure {
    let message = "the service is stopping: try again when it runs";
    Failure::new(Code::Unavailable, "SERVICE_STOPPING", message)
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
