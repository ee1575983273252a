//! A call that changes something on its way to a service and back: what it asks for is seen as it goes by, and its
//! record is written before its answer has ended.

mod answer;
mod first_message;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

pub(super) use self::answer::answer;
use self::first_message::{Asked, FirstMessage};
use super::audit::{Record, code_name};
use super::methods::Method;
use super::peer::Peer;
use super::{Access, Caller};

/// A record that is not written yet. Where it is dropped the caller has gone before its answer.
#[derive(Debug)]
pub(super) struct Pending(Option<Open>);

#[derive(Debug)]
struct Open {
    access: Arc<Access>,
    caller: Caller,
    method: &'static Method,
    named_by: &'static [&'static str],
    request: Arc<Mutex<FirstMessage>>,
}

impl Pending {
    pub(super) fn new(
        access: &Arc<Access>,
        caller: &Caller,
        method: &'static Method,
        named_by: &'static [&'static str],
    ) -> Self {
        Self(Some(Open {
            access: Arc::clone(access),
            caller: caller.clone(),
            method,
            named_by,
            request: Arc::default(),
        }))
    }

    /// The request with its first message seen as it goes by, of at most so many MiB.
    pub(super) fn watch(
        self,
        request: http::Request<Body>,
        most_mib: u32,
    ) -> (http::Request<Body>, Self) {
        let Some(open) = &self.0 else {
            return (request, self);
        };
        let seen = Arc::clone(&open.request);
        lock(&seen).set_bound((most_mib as usize) << 20);
        let request = request.map(|body| Body::new(Watched { body, seen }));
        (request, self)
    }

    /// Writes the record.
    pub(super) async fn finish(mut self, code: Code) {
        if let Some(open) = self.0.take() {
            open.access.audit.record(&open.record(code)).await;
        }
    }

    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            open.access
                .audit
                .record_later(&open.record(Code::Cancelled));
        }
    }
}

impl Open {
    fn record(&self, code: Code) -> Record {
        let Asked {
            resource,
            request_id,
            validate_only,
        } = lock(&self.request).asked(self.method, self.named_by);
        let peer = &self.caller.peer;
        let certificate = match peer {
            Peer::Tls { certificate, .. } => certificate.as_ref().map(ToString::to_string),
            _ => None,
        };
        Record {
            time: SystemTime::now(),
            peer: peer.to_string(),
            certificate,
            token: self.caller.token.clone(),
            role: self.caller.role,
            method: self.method.path,
            resource,
            request_id,
            validate_only,
            code: code_name(code),
        }
    }
}

fn lock(seen: &Mutex<FirstMessage>) -> std::sync::MutexGuard<'_, FirstMessage> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's body, whose first message is seen.
struct Watched {
    body: Body,
    seen: Arc<Mutex<FirstMessage>>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            lock(&self.seen).push(data);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
