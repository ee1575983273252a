//! The answer to a call that changes something: its end waits for the record.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tonic::body::Body;
use tonic::{Code, Status};

use super::Pending;
use crate::access::layer::NoHostChanged;

/// The answer to a call, with its record written before it has ended.
pub(in crate::access) async fn answer(
    call: impl Future<Output = Result<http::Response<Body>, Infallible>>,
    pending: Pending,
) -> Result<http::Response<Body>, Infallible> {
    let response = call.await?;
    if response.extensions().get::<NoHostChanged>().is_some() {
        pending.forget();
        return Ok(response);
    }
    if let Some(code) = code(response.headers()) {
        pending.finish(code).await;
        return Ok(response);
    }
    // Its code comes in the trailers.
    let body = |body| {
        Body::new(Recorded {
            body,
            state: State::Answering(pending),
        })
    };
    Ok(response.map(body))
}

fn code(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}

/// An answer's body, whose trailers wait for the record. No caller takes a call for done before they are there.
struct Recorded {
    body: Body,
    state: State,
}

enum State {
    Answering(Pending),
    Writing {
        writing: Pin<Box<dyn Future<Output = ()> + Send>>,
        trailers: Option<Frame<Bytes>>,
    },
    Ended,
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            match &mut self.state {
                State::Writing { writing, trailers } => {
                    ready!(writing.as_mut().poll(context));
                    let trailers = trailers.take();
                    self.state = State::Ended;
                    return Poll::Ready(trailers.map(Ok));
                }
                State::Ended => return Poll::Ready(None),
                State::Answering(_) => {}
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) if frame.trailers_ref().is_none() => {
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(error)) => {
                    self.begin_writing(error.code(), None);
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(trailers)) => {
                    let code = trailers.trailers_ref().and_then(code);
                    self.begin_writing(code.unwrap_or(Code::Unknown), Some(trailers));
                }
                None => self.begin_writing(Code::Unknown, None),
            }
        }
    }
}

impl Recorded {
    fn begin_writing(&mut self, code: Code, trailers: Option<Frame<Bytes>>) {
        if let State::Answering(pending) = std::mem::replace(&mut self.state, State::Ended) {
            let writing = Box::pin(pending.finish(code));
            self.state = State::Writing { writing, trailers };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;
    use crate::access::audit::{Audit, AuditConfig};
    use crate::access::methods::find;
    use crate::access::peer::{Credentials, Peer};
    use crate::access::rules::Rules;
    use crate::access::tokens::{TokenFile, TokenKeeper};
    use crate::access::{Access, Limits};

    fn access(dir: &Path) -> Arc<Access> {
        let tokens = TokenKeeper::open(TokenFile::in_dir(dir)).unwrap();
        let audit = Audit::open(dir, AuditConfig::default()).unwrap();
        Arc::new(Access::new(
            Rules::default(),
            tokens,
            Limits::default(),
            audit,
        ))
    }

    fn pending(access: &Arc<Access>) -> Pending {
        let peer = Peer::Local(Credentials {
            uid: 1,
            gid: 1,
            pid: None,
        });
        let method = find("/blkpilot.v1.TunerService/Apply").unwrap();
        Pending::new(access, &access.rules.caller(&peer), method, &["host"])
    }

    fn codes(dir: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(dir.join("audit.jsonl")).unwrap();
        let code = |line| serde_json::from_str::<Value>(line).unwrap()["code"].take();
        text.lines().map(code).collect()
    }

    #[tokio::test]
    async fn a_call_whose_caller_does_not_wait_is_recorded_as_cancelled() {
        let dir = TempDir::new().unwrap();
        let access = access(dir.path());
        let call = answer(std::future::pending(), pending(&access));
        drop(call);
        // One after another: with this one the one before it is there.
        pending(&access).finish(Code::Ok).await;
        assert_eq!(codes(dir.path()), ["CANCELLED", "OK"]);
    }

    #[tokio::test]
    async fn the_trailers_of_an_answer_wait_for_its_record() {
        let dir = TempDir::new().unwrap();
        let access = access(dir.path());
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "9".parse().unwrap());
        let body = Body::new(Answering(Some(trailers)));
        let call = std::future::ready(Ok(http::Response::new(body)));
        let mut body = answer(call, pending(&access)).await.unwrap().into_body();
        assert_eq!(codes(dir.path()), Vec::<Value>::new());
        let mut next = async || {
            let frame =
                std::future::poll_fn(|c| http_body::Body::poll_frame(Pin::new(&mut body), c));
            frame.await.transpose().unwrap()
        };
        let frame = next().await.unwrap();
        assert_eq!(codes(dir.path()), ["FAILED_PRECONDITION"]);
        assert_eq!(frame.trailers_ref().unwrap()["grpc-status"], "9");
        assert!(next().await.is_none());
        assert_eq!(codes(dir.path()).len(), 1);
    }

    /// A body of trailers.
    struct Answering(Option<HeaderMap>);

    impl http_body::Body for Answering {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.take().map(|trailers| Ok(Frame::trailers(trailers))))
        }
    }
}
