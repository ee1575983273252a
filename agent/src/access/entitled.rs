//! A call that lasts: its caller's token is looked at again while it does, for it may be revoked, or its time be over.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::Status;
use tonic::body::Body;

use super::methods::Method;
use super::{Access, Caller};

/// How long a call may go on that would not be taken any more.
pub const LOOK: Duration = Duration::from_secs(2);

/// Whether a call that was taken still would be.
pub(super) struct Entitlement {
    access: Arc<Access>,
    caller: Caller,
    method: &'static Method,
    /// From the moment on at which the call has to wait for something: most are over before.
    looks: Option<Interval>,
}

impl Entitlement {
    pub(super) fn new(access: &Arc<Access>, caller: &Caller, method: &'static Method) -> Self {
        Self {
            access: Arc::clone(access),
            caller: caller.clone(),
            method,
            looks: None,
        }
    }

    /// Ready once the call would be refused, with what it would be refused with.
    fn poll_refused(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        let looks = self.looks.get_or_insert_with(looks);
        loop {
            ready!(looks.poll_tick(context));
            let admitted = self
                .access
                .admit_still(&self.caller, self.method, SystemTime::now());
            if let Err(failure) = admitted {
                return Poll::Ready(failure.into());
            }
        }
    }
}

fn looks() -> Interval {
    let mut looks = interval_at(Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// The answer to a call; a refusal in its place, or at its end, once the caller may not make it any more. What works
/// on it is dropped then.
pub(super) async fn answer(
    call: impl Future<Output = Result<http::Response<Body>, Infallible>>,
    mut entitlement: Entitlement,
) -> Result<http::Response<Body>, Infallible> {
    let mut call = pin!(call);
    let response = std::future::poll_fn(|context| {
        if let Poll::Ready(Ok(response)) = call.as_mut().poll(context) {
            return Poll::Ready(Ok(response));
        }
        entitlement.poll_refused(context).map(Err)
    });
    Ok(match response.await {
        Ok(response) => response.map(|body| Body::new(Entitled::Answering { body, entitlement })),
        Err(status) => status.into_http(),
    })
}

/// An answer's body, which ends where its caller may not have it any more.
enum Entitled {
    Answering {
        body: Body,
        entitlement: Entitlement,
    },
    Ended,
}

impl http_body::Body for Entitled {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self::Answering { body, entitlement } = &mut *self else {
            return Poll::Ready(None);
        };
        // Looked at first, or a stream that is never at rest would go on.
        if entitlement.looks.is_some()
            && let Poll::Ready(status) = entitlement.poll_refused(context)
        {
            *self = Self::Ended;
            return Poll::Ready(Some(trailers(&status)));
        }
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let status = ready!(entitlement.poll_refused(context));
        *self = Self::Ended;
        Poll::Ready(Some(trailers(&status)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Answering { body, .. } => body.is_end_stream(),
            Self::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Answering { body, .. } => body.size_hint(),
            Self::Ended => SizeHint::with_exact(0),
        }
    }
}

fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}
