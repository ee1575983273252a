//! Long-running operations: work that outlasts a call. An operation is on stable storage before it is named to
//! anybody, and again when it is done; what was under way when the service died is found done at the next
//! start, as aborted. One at a time is worked on, and a bounded number waits.
//!
//! Progress is told to watchers through a ring of messages per operation: the work never waits for a watcher,
//! and one that is slow learns how many it has missed.

pub(crate) mod feed;
mod live;
mod records;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blkpilot_proto::longrunning::Operation;
use prost::Message as _;
use prost_types::Any;
use rusqlite::Transaction;
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Status};
use uuid::Uuid;

use self::feed::{Feed, Messages, News, Stem};
use crate::database::{Database, DatabaseError};
use crate::decision::now_us;
use crate::wire::names;
use crate::wire::status::Failure;

pub use live::Work;
use live::{End, Live};

/// Operations that are worked on at once.
const MOST_RUNNING: usize = 1;
/// Operations that are under way or wait.
pub const MOST_OPEN: usize = 16;
/// Operations that are kept once they are done.
pub const MOST_DONE: i64 = 1000;
/// After which a refused operation is worth another try.
const RETRY: Duration = Duration::from_secs(10);

/// The operations of a service.
#[derive(Debug, Clone)]
pub struct Operations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: Database,
    /// Tells messages of this run of the service from those of others.
    run: Uuid,
    live: Mutex<BTreeMap<Uuid, Arc<Live>>>,
    turns: Arc<Semaphore>,
}

/// An operation that is there, and has not been begun.
#[derive(Debug)]
pub struct Pending {
    id: Uuid,
    live: Arc<Live>,
}

impl Operations {
    /// The operations of a database. Those that were under way when the service ended are done from now on,
    /// aborted.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn open(database: Database) -> Result<Self, DatabaseError> {
        let aborted = database.write(|transaction| {
            records::abort_open(transaction, &interrupted()).map_err(database.failed())
        })?;
        if aborted > 0 {
            tracing::warn!(aborted, "operations were under way when the service ended");
        }
        Ok(Self(Arc::new(Shared {
            database,
            run: Uuid::new_v4(),
            live: Mutex::default(),
            turns: Arc::new(Semaphore::new(MOST_RUNNING)),
        })))
    }

    /// Makes a place for an operation on `target`, which is to be entered with [`Pending::enter`] and then
    /// begun.
    ///
    /// # Errors
    /// `TOO_MANY_OPERATIONS`.
    pub fn prepare(&self, target: &str) -> Result<Pending, Failure> {
        let mut live = self.live();
        if live.len() >= MOST_OPEN {
            let message = format!(
                "{MOST_OPEN} operations are under way or wait, which is the limit: try again, or cancel one"
            );
            let failure = Failure::new(Code::ResourceExhausted, "TOO_MANY_OPERATIONS", message);
            return Err(failure.retry_after(RETRY));
        }
        let id = Uuid::new_v4();
        let this = Arc::new(Live::new(name(id), target, now_us()));
        live.insert(id, Arc::clone(&this));
        Ok(Pending { id, live: this })
    }

    /// Forgets an operation that could not be entered.
    pub fn give_up(&self, pending: &Pending) {
        self.live().remove(&pending.id);
    }

    /// Begins an operation that has been entered: `work` is done on a thread that may block, in its turn.
    pub fn begin(
        &self,
        pending: Pending,
        work: impl FnOnce(&Work) -> Result<Any, Failure> + Send + 'static,
    ) {
        let this = self.clone();
        tokio::spawn(async move {
            let Pending { id, live } = pending;
            let end = this.take_turn(&live, work).await;
            this.end(id, &live, end).await;
        });
    }

    async fn take_turn(
        &self,
        live: &Arc<Live>,
        work: impl FnOnce(&Work) -> Result<Any, Failure> + Send + 'static,
    ) -> End {
        let turn = tokio::select! {
            turn = Arc::clone(&self.0.turns).acquire_owned() => turn,
            () = live.cancelled() => return live.cancelled_end(),
        };
        let at = Work::of(Arc::clone(live));
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&at)
        });
        match done.await {
            // What was done before it saw the wish is done.
            Ok(Ok(response)) => End::Response(response),
            Ok(Err(_)) if live.is_cancelled() => live.cancelled_end(),
            Ok(Err(failure)) => End::Error(Status::from(failure)),
            Err(_) => {
                let message = "its task ended by itself, which is our bug: see the service's log";
                End::Error(Failure::new(Code::Internal, "INTERNAL", message).into())
            }
        }
    }

    async fn end(&self, id: Uuid, live: &Arc<Live>, end: End) {
        let (operation, messages) = live.ended(end, now_us());
        let shared = Arc::clone(&self.0);
        let stored = operation.clone();
        let written = tokio::task::spawn_blocking(move || {
            let database = &shared.database;
            database.write(|transaction| {
                records::finish(transaction, &stored, messages).map_err(database.failed())
            })
        });
        // It is told to be done only when that would outlast a crash.
        if let Ok(Err(error)) = written.await {
            tracing::error!(operation = operation.name, %error, "the end of an operation was not recorded");
        }
        live.tell(operation);
        self.live().remove(&id);
    }

    /// An operation that was done within the call that asked for it.
    #[must_use]
    pub fn done_at_once(target: &str, response: Any) -> Operation {
        let live = Live::new(name(Uuid::new_v4()), target, now_us());
        live.ended(End::Response(response), now_us()).0
    }

    /// Keeps such an operation.
    pub(crate) fn enter(
        transaction: &Transaction<'_>,
        operation: &Operation,
    ) -> rusqlite::Result<()> {
        records::insert(transaction, operation)
    }

    /// As it stands.
    ///
    /// # Errors
    /// `NOT_FOUND`; a violation of `name`.
    pub fn get(&self, name: &str) -> Result<Operation, Failure> {
        let id = parse(name)?;
        if let Some(live) = self.find(id) {
            return Ok(live.shown());
        }
        let database = &self.0.database;
        let found = database
            .read(|connection| records::find(connection, name).map_err(database.failed()))?;
        found
            .map(|(operation, _)| operation)
            .ok_or_else(|| missing(name))
    }

    /// All that are kept, newest first.
    ///
    /// # Errors
    /// The database's.
    pub fn list(&self) -> Result<Vec<Operation>, Failure> {
        let database = &self.0.database;
        let listed =
            database.read(|connection| records::list(connection).map_err(database.failed()))?;
        let live = self.live();
        let shown = |operation: Operation| {
            let id = parse(&operation.name).ok();
            let live = id.and_then(|id| live.get(&id));
            live.map_or(operation, |live| live.shown())
        };
        Ok(listed.into_iter().map(shown).collect())
    }

    /// Asks for its cancellation; one that is done stays as it is.
    ///
    /// # Errors
    /// As [`Operations::get`].
    pub fn cancel(&self, name: &str) -> Result<(), Failure> {
        match self.find(parse(name)?) {
            Some(live) => live.cancel(),
            None => drop(self.get(name)?),
        }
        Ok(())
    }

    /// Forgets one that is done.
    ///
    /// # Errors
    /// As [`Operations::get`]; `OPERATION_OPEN`.
    pub fn delete(&self, name: &str) -> Result<(), Failure> {
        if !self.get(name)?.done {
            let message = format!("{name} is under way: cancel it first, or wait for its end");
            let failure = Failure::new(Code::FailedPrecondition, "OPERATION_OPEN", message);
            return Err(failure.with("name", name));
        }
        let database = &self.0.database;
        Ok(database
            .write(|transaction| records::delete(transaction, name).map_err(database.failed()))?)
    }

    /// Waits for its end, or until the deadline, and says how it stands then.
    ///
    /// # Errors
    /// As [`Operations::get`].
    pub async fn wait(&self, name: &str, limit: Duration) -> Result<Operation, Failure> {
        if let Some(live) = self.find(parse(name)?) {
            let mut news = live.news();
            // A limit that is over is no error: the state below says how it stands.
            let _ = tokio::time::timeout(limit, news.wait_for(|news| news.is_done)).await;
            return Ok(live.shown());
        }
        self.get(name)
    }

    /// Its messages behind a token; an empty one stands for what comes from now on.
    ///
    /// # Errors
    /// As [`Operations::get`]; a violation of `resume_token`.
    pub fn follow(&self, name: &str, token: &str) -> Result<Messages<Operation>, Failure> {
        let id = parse(name)?;
        let stem = Stem {
            id: id.to_string(),
            run: self.0.run,
        };
        if let Some(live) = self.find(id) {
            return Messages::behind(live.feed(), stem, token);
        }
        let database = &self.0.database;
        let found = database
            .read(|connection| records::find(connection, name).map_err(database.failed()))?;
        let (operation, messages) = found.ok_or_else(|| missing(name))?;
        Messages::behind(Feed::done(operation, messages), stem, token)
    }

    /// Cancels what is under way, because the service ends, and waits for its end.
    pub async fn stop(&self) {
        let open: Vec<Arc<Live>> = self.live().values().cloned().collect();
        for live in &open {
            live.stop();
        }
        for live in open {
            let mut news: watch::Receiver<News> = live.news();
            // Its end cannot fail to come but by a panic, after which nobody waits.
            let _ = news.wait_for(|news| news.is_done).await;
        }
    }

    fn find(&self, id: Uuid) -> Option<Arc<Live>> {
        self.live().get(&id).cloned()
    }

    fn live(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uuid, Arc<Live>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// Its name, `operations/UUID`.
    #[must_use]
    pub fn name(&self) -> String {
        name(self.id)
    }

    /// Puts the operation on record, along with what else is changed in the transaction. Returns it.
    pub(crate) fn enter(&self, transaction: &Transaction<'_>) -> rusqlite::Result<Operation> {
        let operation = self.live.shown();
        records::insert(transaction, &operation)?;
        Ok(operation)
    }
}

fn name(id: Uuid) -> String {
    format!("operations/{id}")
}

fn parse(name: &str) -> Result<Uuid, Failure> {
    let [id] = names::parse("name", name, "operations/*")?;
    id.parse().map_err(|_| {
        let problem = format!("\"{name}\" must have the form operations/UUID");
        Failure::field("name", problem)
    })
}

fn missing(name: &str) -> Failure {
    let way_out =
        format!("ListOperations names those there are; of done ones the last {MOST_DONE}");
    Failure::not_found(name, &way_out)
}

fn interrupted() -> tonic_types::Status {
    let message = "the service ended while it was under way: look whether what it was about is done, and else start it again";
    status_of(&Failure::new(Code::Aborted, "OPERATION_INTERRUPTED", message).into())
}

/// As `google.rpc.Status`, with its details.
pub(crate) fn status_of(status: &Status) -> tonic_types::Status {
    tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: vec![],
    })
}

/// A message in an envelope that says what it is; `name` is the message's without its package.
pub(crate) fn any(name: &str, message: &impl prost::Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/blkpilot.v1.{name}"),
        value: message.encode_to_vec(),
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        Self::new(Code::Internal, "STORE_FAILED", error.to_string())
    }
}

#[cfg(test)]
mod tests;
