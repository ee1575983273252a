use std::sync::mpsc;

use blkpilot_proto::longrunning::operation::Result as Ending;
use tempfile::TempDir;

use super::feed::MOST_MESSAGES;
use super::*;

fn open(dir: &TempDir) -> Operations {
    Operations::open(Database::open(dir.path()).unwrap()).unwrap()
}

/// Begins an operation and returns its name.
fn begin(
    operations: &Operations,
    work: impl FnOnce(&Work) -> Result<Any, Failure> + Send + 'static,
) -> String {
    let pending = operations.prepare("policies/net/versions/1").unwrap();
    let database = &operations.0.database;
    let entered =
        database.write(|transaction| pending.enter(transaction).map_err(database.failed()));
    let name = entered.unwrap().name;
    operations.begin(pending, work);
    name
}

fn nothing() -> Result<Any, Failure> {
    Ok(Any::default())
}

fn code(operation: &Operation) -> i32 {
    match &operation.result {
        Some(Ending::Error(status)) => status.code,
        _ => 0,
    }
}

async fn end(operations: &Operations, name: &str) -> Operation {
    let limit = Duration::from_secs(60);
    let operation = operations.wait(name, limit).await.unwrap();
    assert!(operation.done, "{operation:?}");
    operation
}

/// Work that ends when it is told to, or when it is to end.
fn held() -> (mpsc::Sender<()>, impl FnOnce(&Work) -> Result<Any, Failure>) {
    let (release, released) = mpsc::channel::<()>();
    let work = move |work: &Work| {
        while !work.is_to_end().load(std::sync::atomic::Ordering::Relaxed) {
            match released.recv_timeout(Duration::from_millis(1)) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                _ => return nothing(),
            }
        }
        Err(Failure::new(Code::Unknown, "ENDED", "it was told to end"))
    };
    (release, work)
}

#[tokio::test]
async fn an_operation_is_listed_until_it_is_deleted_and_over_restarts() {
    let dir = TempDir::new().unwrap();
    let operations = open(&dir);
    let (release, work) = held();
    let name = begin(&operations, work);
    assert!(!operations.get(&name).unwrap().done);
    assert_eq!(
        operations.delete(&name).unwrap_err().reason(),
        "OPERATION_OPEN"
    );
    drop(release);
    let done = end(&operations, &name).await;
    let again = open(&dir);
    assert_eq!(again.get(&name).unwrap(), done);
    assert_eq!(again.list().unwrap(), [done]);
    again.delete(&name).unwrap();
    assert_eq!(again.get(&name).unwrap_err().reason(), "NOT_FOUND");
    assert!(
        again
            .get("operations/x")
            .unwrap_err()
            .message()
            .contains("UUID")
    );
}

#[tokio::test]
async fn what_was_under_way_when_the_service_died_is_aborted_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    let operations = open(&dir);
    let (_release, work) = held();
    let name = begin(&operations, work);
    // Another process, as after `kill -9`.
    let again = open(&dir);
    let aborted = again.get(&name).unwrap();
    assert_eq!(code(&aborted), i32::from(Code::Aborted));
    let Some(Ending::Error(status)) = &aborted.result else {
        panic!("{aborted:?}");
    };
    assert!(status.message.contains("start it again"), "{status:?}");
    let watched = again.follow(&name, "").unwrap().next().await.unwrap();
    assert_eq!(watched.value, aborted);
    operations.stop().await;
}

#[tokio::test]
async fn cancelling_ends_the_work_whether_it_runs_or_waits() {
    let dir = TempDir::new().unwrap();
    let operations = open(&dir);
    let (_release, work) = held();
    let runs = begin(&operations, work);
    let waits = begin(&operations, |_| nothing());
    for name in [&waits, &runs] {
        operations.cancel(name).unwrap();
        let done = end(&operations, name).await;
        assert_eq!(code(&done), i32::from(Code::Cancelled));
    }
    // Nobody minds.
    operations.cancel(&runs).unwrap();
}

#[tokio::test]
async fn more_than_a_bounded_number_is_refused_with_when_to_try_again() {
    let dir = TempDir::new().unwrap();
    let operations = open(&dir);
    let (release, work) = held();
    begin(&operations, work);
    let names: Vec<String> = (1..MOST_OPEN)
        .map(|_| begin(&operations, |_| nothing()))
        .collect();
    let refused = operations.prepare("x").unwrap_err();
    assert_eq!(refused.reason(), "TOO_MANY_OPERATIONS");
    drop(release);
    end(&operations, names.last().unwrap()).await;
    operations.prepare("x").unwrap();
}

#[tokio::test]
async fn a_slow_watcher_holds_nothing_up_and_is_told_what_it_missed() {
    let dir = TempDir::new().unwrap();
    let operations = open(&dir);
    let (begun, go) = mpsc::channel::<()>();
    let told = MOST_MESSAGES as u64 + 100;
    let name = begin(&operations, move |work| {
        go.recv().unwrap();
        for step in 0..told {
            work.tell("counts", step as f64 / told as f64);
        }
        nothing()
    });
    let mut slow = operations.follow(&name, "").unwrap();
    let first = slow.next().await.unwrap();
    assert_eq!((first.missed, first.value.done), (0, false));
    begun.send(()).unwrap();
    end(&operations, &name).await;
    let second = slow.next().await.unwrap();
    // All that was told and the end, less what is kept.
    assert_eq!(second.missed, told + 1 - MOST_MESSAGES as u64);
    let mut last = second.clone();
    let mut count = 1;
    while let Some(message) = slow.next().await {
        assert_eq!(message.missed, 0);
        (last, count) = (message, count + 1);
    }
    assert!(last.value.done);
    assert_eq!(count, MOST_MESSAGES);

    // What is done has its end only, and says how much came before it.
    let mut resumed = operations.follow(&name, &second.token).unwrap();
    let rest = resumed.next().await.unwrap();
    assert_eq!(rest.missed, MOST_MESSAGES as u64 - 2);
    assert_eq!(rest.value, last.value);
    assert_eq!(resumed.next().await, None);
    let again = open(&dir);
    let fresh = again.follow(&name, &second.token).unwrap().next().await;
    assert_eq!(fresh.unwrap().value, last.value);
    let other = begin(&again, |_| nothing());
    for token in [second.token.as_str(), "x", "a.b.c"] {
        let refused = again.follow(&other, token).unwrap_err();
        assert!(refused.message().contains("resume_token"), "{token}");
    }
}

#[tokio::test]
async fn a_stream_that_was_cut_goes_on_behind_its_token() {
    let dir = TempDir::new().unwrap();
    let operations = open(&dir);
    let (step, steps) = mpsc::channel::<f64>();
    let name = begin(&operations, move |work| {
        for ratio in steps {
            work.tell("goes on", ratio);
        }
        nothing()
    });
    let mut watcher = operations.follow(&name, "").unwrap();
    let token = watcher.next().await.unwrap().token;
    step.send(0.25).unwrap();
    let seen = watcher.next().await.unwrap();
    let mut other = operations.follow(&name, &token).unwrap();
    assert_eq!(other.next().await.unwrap(), seen);
    drop(step);
    assert!(other.next().await.unwrap().value.done);
    assert_eq!(other.next().await, None);
}

#[tokio::test]
async fn a_service_that_ends_aborts_what_is_under_way() {
    let dir = TempDir::new().unwrap();
    let operations = open(&dir);
    let (_release, work) = held();
    let name = begin(&operations, work);
    operations.stop().await;
    assert_eq!(
        code(&open(&dir).get(&name).unwrap()),
        i32::from(Code::Aborted)
    );
}
