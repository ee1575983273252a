//! One rollout: requests in, packed answers out, in order.
//!
//! The answers are a stream that works when it is polled: what a client does not read is not computed, and when it
//! goes the stream is dropped and the work ends. Requests that have come are worked off together on a thread that
//! may be kept busy, up to a bound of requests and of bytes.

mod deadline;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use blkpilot_env::Level;
use blkpilot_proto::v1;
use blkpilot_proto::v1::rollout_request::Request as Asked;
use futures_util::FutureExt as _;
use futures_util::stream::{Stream, try_unfold};
use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};

use self::deadline::Deadline;
use crate::environments::packed::{After, Packing, View, read_levels};
use crate::environments::resetting::Resetting;
use crate::environments::{Claim, Environments, Held, Running};
use crate::wire::names;
use crate::wire::status::Failure;

/// Requests that are worked off together.
const MOST_REQUESTS: usize = 16;
/// Bytes of requests, and of answers, after which those that are left wait.
const MOST_BYTES: usize = 1 << 20;

/// The answers to a client's requests. They begin with that to the first, which opens the rollout.
pub(crate) fn answers(
    environments: Arc<Environments>,
    metadata: &MetadataMap,
    requests: Streaming<v1::RolloutRequest>,
) -> impl Stream<Item = Result<v1::RolloutResponse, Status>> + use<> {
    let unopened = Unopened {
        environments,
        deadline: Deadline::of(metadata),
        requests,
    };
    // The stream opens when it is polled, so that a client has its headers before it has sent anything.
    try_unfold(State::Unopened(Box::new(unopened)), |state| async {
        let mut rollout = match state {
            State::Unopened(unopened) => Box::new(unopened.open().await?),
            State::Open(rollout) => rollout,
        };
        let answer = rollout.next().await?;
        Ok(answer.map(|answer| (answer, State::Open(rollout))))
    })
}

enum State {
    Unopened(Box<Unopened>),
    Open(Box<Rollout>),
}

struct Unopened {
    environments: Arc<Environments>,
    deadline: Deadline,
    requests: Streaming<v1::RolloutRequest>,
}

impl Unopened {
    async fn open(mut self) -> Result<Rollout, Status> {
        let first = tokio::select! {
            first = self.deadline.bound(self.requests.message()) => first??,
            () = self.environments.stopped() => return Err(stopping().into()),
        };
        let (held, view) = self
            .understand(first)
            .map_err(|failure| failure.of_request(0))?;
        Ok(Rollout {
            environments: self.environments,
            claim: Claim::of(&held),
            requests: self.requests,
            deadline: self.deadline,
            work: Work::of_opening(view),
            end: None,
            is_cancelled: Arc::default(),
        })
    }

    fn understand(&self, first: Option<v1::RolloutRequest>) -> Result<(Arc<Held>, View), Failure> {
        let (name, view) = opening(first)?;
        let [id] = names::parse("open.name", &name, "environments/*")?;
        let held = self.environments.get_acting(id, Instant::now())?;
        Ok((held, view))
    }
}

fn opening(first: Option<v1::RolloutRequest>) -> Result<(String, View), Failure> {
    let Some(Asked::Open(open)) = first.and_then(|first| first.request) else {
        let problem = "is missing: the first request opens the stream";
        return Err(Failure::field("open", problem));
    };
    let view = match v1::RolloutView::try_from(open.view) {
        Ok(v1::RolloutView::Unspecified | v1::RolloutView::Basic) => View::Basic,
        Ok(v1::RolloutView::Full) => View::Full,
        Err(_) => {
            let problem = format!("{} is not a value of this enum", open.view);
            return Err(Failure::field("open.view", problem));
        }
    };
    Ok((open.name, view))
}

struct Rollout {
    environments: Arc<Environments>,
    claim: Claim,
    requests: Streaming<v1::RolloutRequest>,
    deadline: Deadline,
    work: Work,
    /// How the requests have ended, once they have.
    end: Option<Result<(), Status>>,
    is_cancelled: Arc<AtomicBool>,
}

impl Drop for Rollout {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }
}

impl Rollout {
    /// The next answer; `None` when the client has ended its requests and all are answered.
    async fn next(&mut self) -> Result<Option<v1::RolloutResponse>, Status> {
        loop {
            if let Some(answer) = self.work.answers.pop_front() {
                return Ok(Some(answer));
            }
            if let Some(failure) = self.work.failure.take() {
                return Err(failure.into());
            }
            if self.work.waiting.is_empty() && !self.gather().await? {
                return Ok(None);
            }
            self.work_off().await?;
        }
    }

    /// Waits for a request, and takes those that are there already; whether there is one.
    async fn gather(&mut self) -> Result<bool, Status> {
        if let Some(end) = self.end.take() {
            return end.map(|()| false);
        }
        let first = tokio::select! {
            first = self.deadline.bound(self.requests.message()) => first??,
            () = self.environments.stopped() => return Err(stopping().into()),
        };
        let Some(first) = first else {
            return Ok(false);
        };
        let mut bytes = first.encoded_len();
        self.work.waiting.push_back(Some(first));
        while self.work.waiting.len() < MOST_REQUESTS && bytes < MOST_BYTES {
            match self.requests.message().now_or_never() {
                Some(Ok(Some(request))) => {
                    bytes += request.encoded_len();
                    self.work.waiting.push_back(Some(request));
                }
                Some(end) => {
                    self.end = Some(end.map(drop));
                    break;
                }
                None => break,
            }
        }
        Ok(true)
    }

    async fn work_off(&mut self) -> Result<(), Status> {
        let held = self.environments.claimed(&self.claim, Instant::now())?;
        let mut work = self.work.take();
        let is_cancelled = Arc::clone(&self.is_cancelled);
        let done = held.run(move |running| {
            work.off(running, &is_cancelled);
            work
        });
        self.work = self.deadline.bound(done).await??;
        Ok(())
    }
}

/// What goes to the thread that works, and comes back.
struct Work {
    packing: Packing,
    /// Levels of a request; kept.
    levels: Vec<Level>,
    /// `None` for the opening.
    waiting: VecDeque<Option<v1::RolloutRequest>>,
    answers: VecDeque<v1::RolloutResponse>,
    /// Requests that were answered.
    answered: u64,
    failure: Option<Failure>,
}

impl Work {
    /// The opening is answered as requests are, with what is seen.
    fn of_opening(view: View) -> Self {
        Self {
            packing: Packing::new(view),
            levels: vec![],
            waiting: VecDeque::from([None]),
            answers: VecDeque::new(),
            answered: 0,
            failure: None,
        }
    }

    /// All of it, with what nobody asks for in its place.
    fn take(&mut self) -> Self {
        let nothing = Self {
            packing: Packing::new(View::Basic),
            levels: vec![],
            waiting: VecDeque::new(),
            answers: VecDeque::new(),
            answered: 0,
            failure: None,
        };
        std::mem::replace(self, nothing)
    }

    fn off(&mut self, running: &mut Running, is_cancelled: &AtomicBool) {
        let mut bytes = 0;
        while bytes < MOST_BYTES && !is_cancelled.load(Ordering::Relaxed) {
            let Some(request) = self.waiting.pop_front() else {
                return;
            };
            match self.carry_out(request, running) {
                Ok(after) => {
                    let (answer, size) = self.packing.answer(running.vector(), after);
                    self.answers.push_back(answer);
                    self.answered += 1;
                    bytes += size;
                }
                Err(failure) => {
                    self.failure = Some(failure.of_request(self.answered));
                    self.waiting.clear();
                }
            }
        }
    }

    fn carry_out(
        &mut self,
        request: Option<v1::RolloutRequest>,
        running: &mut Running,
    ) -> Result<After, Failure> {
        match request.map(|request| request.request) {
            None => Ok(After::Reset),
            Some(Some(Asked::Actions(packed))) => {
                read_levels(&packed, &mut self.levels).map_err(uneven)?;
                running.step(&self.levels)?;
                Ok(After::Step)
            }
            Some(Some(Asked::Reset(reset))) => {
                running.reset(&Resetting::from_wire(reset)?)?;
                Ok(After::Reset)
            }
            Some(Some(Asked::Open(_))) => {
                let problem = "stands in a later request: the stream is open";
                Err(Failure::field("open", problem))
            }
            Some(None) => {
                let problem = "is missing: give actions or reset";
                Err(Failure::field("request", problem))
            }
        }
    }
}

fn uneven(bytes: usize) -> Failure {
    let message = format!("the packed actions are {bytes} bytes, which are no levels of two each");
    Failure::new(Code::InvalidArgument, "ACTION_LENGTH", message.clone())
        .violating("actions", message)
}

fn stopping() -> Failure {
    let message = "the service is being stopped: try again when it runs";
    Failure::new(Code::Unavailable, "SERVICE_STOPPED", message)
}
