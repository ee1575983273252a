//! The layer through which every call goes before a service sees it.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use http::header::AUTHORIZATION;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

use super::entitled::{self, Entitlement};
use super::methods::{Effect, Method};
use super::peer::Peer;
use super::rate::Client;
use super::recorded::{self, Pending};
use super::{Access, Caller, Now, admit, methods, unknown_method};
use crate::wire::status::Failure;

/// Mark of an answer to a call that has changed no host, and of which there may be thousands a second: it is not
/// recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHostChanged;

/// Puts [`Access`] before services.
#[derive(Debug, Clone)]
pub struct AccessLayer(pub Arc<Access>);

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        let access = Arc::clone(&self.0);
        Guarded { inner, access }
    }
}

/// A service that only those reach who may.
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    inner: S,
    access: Arc<Access>,
}

type Request = http::Request<Body>;
type Response = http::Response<Body>;
type Answer = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

impl<S> Service<Request> for Guarded<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Answer {
        let (caller, method) = match identified(&self.access, &request) {
            Ok(known) => known,
            Err(failure) => return refuse(failure),
        };
        let named_by = match method.effect {
            Effect::Reads => None,
            Effect::Changes(named_by) => Some(named_by),
        };
        let is_stranger = matches!(caller.client, Client::Address(_));
        // What a connection itself says of its caller does not change.
        let may_change = caller.token.is_some();
        let entitlement = may_change.then(|| Entitlement::new(&self.access, &caller, method));
        match (admit(&caller, method), named_by) {
            (Ok(()), None) => {
                request.extensions_mut().insert(caller);
                self.serve(request, entitlement)
            }
            (Ok(()), Some(named_by)) => {
                let pending = Pending::new(&self.access, &caller, method, named_by);
                request.extensions_mut().insert(caller);
                let (request, pending) = pending.watch(request, self.access.limits.message_mib);
                Box::pin(recorded::answer(self.serve(request, entitlement), pending))
            }
            (Err(failure), Some(named_by)) if !is_stranger => {
                let pending = Pending::new(&self.access, &caller, method, named_by);
                refuse_recorded(failure, pending)
            }
            // What strangers are refused is not recorded: it could push out the records of what was done.
            (Err(failure), _) => refuse(failure),
        }
    }
}

impl<S> Guarded<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    fn serve(&mut self, request: Request, entitlement: Option<Entitlement>) -> Answer {
        let call = self.inner.call(request);
        match entitlement {
            Some(entitlement) => Box::pin(entitled::answer(call, entitlement)),
            None => Box::pin(call),
        }
    }
}

fn identified(access: &Access, request: &Request) -> Result<(Caller, &'static Method), Failure> {
    let peer = request.extensions().get::<Peer>().ok_or_else(no_peer)?;
    let sent = request.headers().get(AUTHORIZATION);
    let now = Now {
        wall: SystemTime::now(),
        monotonic: Instant::now(),
    };
    let caller = access.identify(peer, sent.map(http::HeaderValue::as_bytes), now)?;
    let path = request.uri().path();
    let method = methods::find(path).ok_or_else(|| unknown_method(path))?;
    Ok((caller, method))
}

fn no_peer() -> Failure {
    let message = "the connection does not say who is at its other end, which is our bug";
    Failure::new(Code::Internal, "NO_PEER", message)
}

fn refuse(failure: Failure) -> Answer {
    Box::pin(ready(Ok(Status::from(failure).into_http())))
}

fn refuse_recorded(failure: Failure, pending: Pending) -> Answer {
    let status = Status::from(failure);
    Box::pin(async move {
        pending.finish(status.code()).await;
        Ok(status.into_http())
    })
}
