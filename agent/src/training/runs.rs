//! The runs of a service: rows in its database, and for each that has not ended a feed that tells of it. What is
//! told of a change of state is on stable storage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blkpilot_proto::v1;
use blkpilot_proto::v1::training_run::State;
use rusqlite::Transaction;
use tokio::sync::Notify;
use tonic::Code;
use uuid::Uuid;

use super::records::{self, Record};
use super::state::{Exit, Wish, found, heard, is_ended, is_ending, left};
use crate::database::{Database, DatabaseError};
use crate::decision::now_us;
use crate::operations::feed::{Feed, Messages, Stem};
use crate::requests::{Repeatable, answered, once};
use crate::wire::names;
use crate::wire::status::Failure;
use crate::wire::timestamp;

/// Runs that are kept, with all that they wrote.
pub const MOST_RUNS: usize = 200;

/// A call that changes a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    /// Last segment of the run's name.
    pub(crate) id: String,
    /// Not checked if empty.
    pub(crate) etag: String,
    /// Answer as if it had been done, and change nothing.
    pub(crate) validate_only: bool,
    pub(crate) repeatable: Option<Repeatable>,
}

/// What a run is made of.
pub(crate) struct NewRun {
    pub(crate) id: String,
    pub(crate) source: v1::TrainingSource,
    pub(crate) seed: u64,
    pub(crate) algorithm: String,
    pub(crate) env_steps: u64,
    pub(crate) output_dir: String,
    pub(crate) creator: String,
}

/// Whether what changes is to outlast a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    InMemory,
    OnStorage,
}

/// A run that has not ended.
#[derive(Debug)]
struct Open {
    record: Record,
    feed: Arc<Feed<v1::TrainingRun>>,
}

#[derive(Debug, Default)]
struct Board {
    open: BTreeMap<String, Open>,
    /// The number of the last message of each that has ended since the service was started.
    last: BTreeMap<String, u64>,
}

/// The runs of a service.
#[derive(Debug)]
pub(super) struct Runs {
    database: Database,
    /// Tells messages of this run of the service from those of others.
    run: Uuid,
    /// Held from a transaction until its change is told of, so that both have one order.
    board: Mutex<Board>,
    /// Told whenever the state of a run has changed.
    pub(super) changed: Notify,
}

impl Runs {
    /// Those of a database. What was under way when the service ended is queued, paused or cancelled, as was asked
    /// for.
    pub(super) fn open(database: Database) -> Result<Self, DatabaseError> {
        let records: Vec<Record> = database.write(|transaction| {
            let records = records::list(transaction).map_err(database.failed())?;
            let open = records
                .into_iter()
                .filter(|record| !is_ended(record.run.state()));
            open.map(|record| settle(record, transaction).map_err(database.failed()))
                .collect::<Result<_, DatabaseError>>()
        })?;
        let open = records
            .into_iter()
            .filter(|record| !is_ended(record.run.state()));
        let open = open.map(|record| {
            let feed = Feed::new(record.run.clone());
            (id_of(&record.run.name).to_owned(), Open { record, feed })
        });
        let board = Board {
            open: open.collect(),
            last: BTreeMap::new(),
        };
        Ok(Self {
            database,
            run: Uuid::new_v4(),
            board: Mutex::new(board),
            changed: Notify::new(),
        })
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> Failure {
        let failed = self.database.failed();
        move |error| failed(error).into()
    }

    fn within<T>(
        &self,
        validate_only: bool,
        act: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if validate_only {
            self.database.rehearse(act)
        } else {
            self.database.write(act)
        }
    }

    /// Queues a run. `prepare` puts its files where they belong, before a row names them.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`, `TOO_MANY_RUNS`, a violation of `request_id`; those of `prepare`.
    pub(super) fn create(
        &self,
        new: &NewRun,
        call: &Call,
        prepare: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<v1::TrainingRun, Failure> {
        let mut board = self.board();
        let mut made = None;
        let act = |transaction: &Transaction<'_>| {
            once(call.repeatable.as_ref(), transaction, self.failed(), || {
                self.refuse_taken(transaction, &new.id)?;
                if !call.validate_only {
                    prepare()?;
                }
                let record = new_record(new, next_place(&board));
                records::insert(transaction, &new.id, &record, &new.source)
                    .map_err(self.failed())?;
                let run = record.run.clone();
                made = Some(record);
                Ok(with_source(run, new.source.clone()))
            })
        };
        let answer = self.within(call.validate_only, act)?;
        if let Some(record) = made.filter(|_| !call.validate_only) {
            self.show(&mut board, record);
        }
        Ok(answer)
    }

    /// What the same call was answered before; `None` if this is the first.
    pub(super) fn answered(&self, call: &Call) -> Result<Option<v1::TrainingRun>, Failure> {
        answered(call.repeatable.as_ref(), &self.database)
    }

    /// The last segments of all names.
    pub(super) fn ids(&self) -> Result<BTreeSet<String>, DatabaseError> {
        let records = self.database.read(|connection| {
            let records = records::list(connection);
            records.map_err(self.database.failed())
        })?;
        let ids = records
            .iter()
            .map(|record| id_of(&record.run.name).to_owned());
        Ok(ids.collect())
    }

    fn refuse_taken(&self, transaction: &Transaction<'_>, id: &str) -> Result<(), Failure> {
        let known = records::find(transaction, id).map_err(self.failed())?;
        if known.is_some() {
            let message = format!("{} exists: choose another id", name_of(id));
            return Err(Failure::new(Code::AlreadyExists, "ALREADY_EXISTS", message));
        }
        if records::count(transaction).map_err(self.failed())? >= MOST_RUNS {
            let message =
                format!("{MOST_RUNS} training runs are kept, which is the limit: delete some");
            return Err(Failure::new(
                Code::ResourceExhausted,
                "TOO_MANY_RUNS",
                message,
            ));
        }
        Ok(())
    }

    /// Changes how a run stands, as somebody wishes.
    ///
    /// # Errors
    /// `NOT_FOUND`, `ETAG_MISMATCH`, `RUN_ENDED`, a violation of `request_id`.
    pub(super) fn wish(
        &self,
        call: &Call,
        wish: Wish,
        is_forced: bool,
    ) -> Result<v1::TrainingRun, Failure> {
        let mut board = self.board();
        let place = next_place(&board);
        let how = |record: &mut Record| {
            let before = record.run.state();
            let after = heard(&record.run.name, before, wish)?;
            if after == State::Queued && before != after {
                record.place = place;
                record.run.error.clear();
            }
            record.is_forced |= is_forced;
            record.run.set_state(after);
            Ok(())
        };
        self.change(&mut board, call, how)
    }

    /// Notes that the process of a run has ended.
    pub(super) fn left(&self, id: &str, exit: &Exit) -> Result<State, Failure> {
        let call = Call {
            id: id.to_owned(),
            ..Call::default()
        };
        let how = |record: &mut Record| {
            let after = left(record.run.state(), exit);
            if let (State::Failed, Exit::Failed(words)) = (after, exit) {
                record.run.error.clone_from(words);
            }
            record.run.set_state(after);
            Ok(())
        };
        let run = self.change(&mut self.board(), &call, how)?;
        Ok(run.state())
    }

    /// Begins the run whose turn it is; `None` if none is queued.
    pub(super) fn begin_next(&self) -> Result<Option<Record>, Failure> {
        let mut board = self.board();
        let queued = board
            .open
            .iter()
            .filter(|(_, open)| open.record.run.state() == State::Queued);
        let next = queued.min_by_key(|(_, open)| open.record.place);
        let Some(id) = next.map(|(id, _)| id.clone()) else {
            return Ok(None);
        };
        let call = Call {
            id: id.clone(),
            ..Call::default()
        };
        let begin = |record: &mut Record| {
            record.run.set_state(State::Running);
            record.run.start_time = Some(timestamp(now_us()));
            Ok(())
        };
        self.change(&mut board, &call, begin)?;
        Ok(board.open.get(&id).map(|open| open.record.clone()))
    }

    fn change(
        &self,
        board: &mut Board,
        call: &Call,
        how: impl FnOnce(&mut Record) -> Result<(), Failure>,
    ) -> Result<v1::TrainingRun, Failure> {
        let mut changed = None;
        let act = |transaction: &Transaction<'_>| {
            once(call.repeatable.as_ref(), transaction, self.failed(), || {
                let before = self.find(board, transaction, &call.id)?;
                check_etag(&before, &call.etag)?;
                let mut record = before.clone();
                how(&mut record)?;
                if record != before {
                    stamp(&mut record);
                    records::update(transaction, &call.id, &record).map_err(self.failed())?;
                    changed = Some(record.clone());
                }
                Ok(record.run)
            })
        };
        let answer = self.within(call.validate_only, act)?;
        if let Some(record) = changed.filter(|_| !call.validate_only) {
            self.show(board, record);
        }
        Ok(answer)
    }

    fn find(
        &self,
        board: &Board,
        transaction: &Transaction<'_>,
        id: &str,
    ) -> Result<Record, Failure> {
        if let Some(open) = board.open.get(id) {
            return Ok(open.record.clone());
        }
        let found = records::find(transaction, id).map_err(self.failed())?;
        found.ok_or_else(|| missing(id))
    }

    /// Tells of a change that is on stable storage.
    fn show(&self, board: &mut Board, record: Record) {
        let id = id_of(&record.run.name).to_owned();
        let (run, is_done) = (record.run.clone(), is_ended(record.run.state()));
        let feed = match board.open.remove(&id) {
            Some(open) => open.feed,
            None => Feed::behind(board.last.remove(&id).unwrap_or(0), run.clone()),
        };
        feed.tell(run, is_done);
        if is_done {
            board.last.insert(id, feed.next_number() - 1);
        } else {
            board.open.insert(id, Open { record, feed });
        }
        self.changed.notify_one();
    }

    /// Changes what is known of a run that goes on, but for its state; `how` says whether that is to outlast a crash.
    pub(super) fn note(
        &self,
        id: &str,
        how: impl FnOnce(&mut v1::TrainingRun) -> Keep,
    ) -> Result<(), Failure> {
        let mut board = self.board();
        let Some(open) = board.open.get_mut(id) else {
            return Ok(());
        };
        let keep = how(&mut open.record.run);
        open.feed.tell(open.record.run.clone(), false);
        let record = &open.record;
        match keep {
            Keep::InMemory => Ok(()),
            Keep::OnStorage => self.within(false, |transaction| {
                records::update(transaction, id, record).map_err(self.failed())
            }),
        }
    }

    /// Forgets a run that has ended; whether there was one.
    ///
    /// # Errors
    /// `NOT_FOUND` unless it may be missing, `ETAG_MISMATCH`, `RUN_OPEN`.
    pub(super) fn delete(&self, call: &Call, allow_missing: bool) -> Result<bool, Failure> {
        let mut board = self.board();
        let act = |transaction: &Transaction<'_>| {
            let record = match self.find(&board, transaction, &call.id) {
                Err(failure) if allow_missing && failure.reason() == "NOT_FOUND" => {
                    return Ok(false);
                }
                found => found?,
            };
            check_etag(&record, &call.etag)?;
            refuse_open(&record.run)?;
            records::delete(transaction, &call.id).map_err(self.failed())?;
            Ok(true)
        };
        let is_deleted = self.within(call.validate_only, act)?;
        if is_deleted && !call.validate_only {
            board.last.remove(&call.id);
        }
        Ok(is_deleted)
    }

    /// One run, with its source.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub(super) fn get(&self, id: &str) -> Result<v1::TrainingRun, Failure> {
        let board = self.board();
        self.database.read(|connection| {
            let source = records::source(connection, id).map_err(self.failed())?;
            let source = source.ok_or_else(|| missing(id))?;
            let run = match board.open.get(id) {
                Some(open) => open.record.run.clone(),
                None => {
                    let found = records::find(connection, id).map_err(self.failed())?;
                    found.ok_or_else(|| missing(id))?.run
                }
            };
            Ok(with_source(run, source))
        })
    }

    /// All, newest first, without their sources.
    pub(super) fn list(&self) -> Result<Vec<v1::TrainingRun>, Failure> {
        let board = self.board();
        let listed = self
            .database
            .read(|connection| records::list(connection).map_err(self.failed()))?;
        let shown = |record: Record| {
            let open = board.open.get(id_of(&record.run.name));
            open.map_or(record.run, |open| open.record.run.clone())
        };
        Ok(listed.into_iter().map(shown).collect())
    }

    /// The messages of a run behind a token; an empty one stands for what comes from now on.
    ///
    /// # Errors
    /// `NOT_FOUND`; a violation of `resume_token`.
    pub(super) fn follow(
        &self,
        id: &str,
        token: &str,
    ) -> Result<Messages<v1::TrainingRun>, Failure> {
        let stem = Stem {
            id: id.to_owned(),
            run: self.run,
        };
        let board = self.board();
        if let Some(open) = board.open.get(id) {
            return Messages::behind(Arc::clone(&open.feed), stem, token);
        }
        let found = self
            .database
            .read(|connection| records::find(connection, id).map_err(self.failed()))?;
        let run = found.ok_or_else(|| missing(id))?.run;
        let number = board.last.get(id).copied().unwrap_or(1);
        Messages::behind(Feed::done(run, number), stem, token)
    }

    /// Ready when the process of a run is to end.
    pub(super) async fn ending(&self, id: &str) {
        let feed = self.board().open.get(id).map(|open| Arc::clone(&open.feed));
        let Some(feed) = feed else { return };
        let mut news = feed.news();
        // The feed has a sender for as long as it is held here.
        while !is_ending(feed.shown().state()) && news.changed().await.is_ok() {}
    }
}

/// A run that nothing trains any more, after the service has ended somehow.
fn settle(mut record: Record, transaction: &Transaction<'_>) -> rusqlite::Result<Record> {
    let after = found(record.run.state());
    if after != record.run.state() {
        record.run.set_state(after);
        stamp(&mut record);
        records::update(transaction, id_of(&record.run.name), &record)?;
    }
    Ok(record)
}

fn new_record(new: &NewRun, place: i64) -> Record {
    let run = v1::TrainingRun {
        name: name_of(&new.id),
        seed: Some(new.seed),
        state: State::Queued.into(),
        algorithm: new.algorithm.clone(),
        env_steps: i64::try_from(new.env_steps).unwrap_or(i64::MAX),
        output_dir: new.output_dir.clone(),
        creator: new.creator.clone(),
        create_time: Some(timestamp(now_us())),
        ..v1::TrainingRun::default()
    };
    let mut record = Record {
        run,
        place,
        revision: 0,
        is_forced: false,
    };
    stamp(&mut record);
    record
}

/// As it is after a change of its state, now.
fn stamp(record: &mut Record) {
    let now = timestamp(now_us());
    record.revision += 1;
    record.run.etag = format!("r{}", record.revision);
    record.run.update_time = Some(now);
    record.run.end_time = is_ended(record.run.state()).then_some(now);
}

/// Behind all that wait.
fn next_place(board: &Board) -> i64 {
    let places = board.open.values().map(|open| open.record.place);
    places.max().unwrap_or(0) + 1
}

fn with_source(run: v1::TrainingRun, source: v1::TrainingSource) -> v1::TrainingRun {
    v1::TrainingRun {
        source: Some(source),
        ..run
    }
}

fn check_etag(record: &Record, etag: &str) -> Result<(), Failure> {
    let run = &record.run;
    if etag.is_empty() || etag == run.etag {
        return Ok(());
    }
    let message = format!(
        "{} has changed since: its etag is {}, not {etag}; read it again, and decide anew",
        run.name, run.etag
    );
    let failure = Failure::new(Code::Aborted, "ETAG_MISMATCH", message);
    Err(failure.with("name", &run.name).with("etag", &run.etag))
}

fn refuse_open(run: &v1::TrainingRun) -> Result<(), Failure> {
    if is_ended(run.state()) {
        return Ok(());
    }
    let stands = run.state().as_str_name();
    let message = format!("{} is {stands}: cancel it first", run.name);
    let failure = Failure::new(Code::FailedPrecondition, "RUN_OPEN", message);
    Err(failure.with("name", &run.name))
}

/// `trainingRuns/{run}`.
fn name_of(id: &str) -> String {
    format!("trainingRuns/{id}")
}

/// The last segment of a name.
pub(super) fn id_of(name: &str) -> &str {
    name.trim_start_matches("trainingRuns/")
}

/// The id in the name of a run.
///
/// # Errors
/// A violation of `name`.
pub(crate) fn parse(name: &str) -> Result<&str, Failure> {
    let [id] = names::parse("name", name, "trainingRuns/*")?;
    Ok(id)
}

fn missing(id: &str) -> Failure {
    Failure::not_found(&name_of(id), "ListTrainingRuns names those there are")
}
