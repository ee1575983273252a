//! What begins runs in their order, so many at once, and attends to their processes: one task for all.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::records::Record;
use super::state::Exit;
use super::{Shared, Task, child, id_of};
use crate::policies::deployment::blocking;
use crate::wire::status::Failure;

/// After which what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Trains what is queued until `stop` is set, and all processes have ended then.
pub(super) async fn work(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut running = JoinSet::new();
    while !*stop.borrow_and_update() {
        let is_room = running.len() < shared.parallel;
        let begun = match is_room {
            true => begin_next(&shared).await,
            false => Ok(None),
        };
        let wait = match begun {
            Ok(Some(record)) => {
                running.spawn(train(Arc::clone(&shared), record, stop.clone()));
                continue;
            }
            Ok(None) => Duration::MAX,
            Err(failure) => {
                let error = failure.message();
                tracing::error!(error, "no training run can be begun");
                RETRY
            }
        };
        tokio::select! {
            Some(_) = running.join_next() => {}
            () = shared.runs.changed.notified() => {}
            changed = stop.changed() => {
                // A sender that is gone means that the service is.
                if changed.is_err() {
                    break;
                }
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
    while running.join_next().await.is_some() {}
}

async fn begin_next(shared: &Arc<Shared>) -> Result<Option<Record>, Failure> {
    let this = Arc::clone(shared);
    blocking(move || this.runs.begin_next()).await?
}

/// Trains one run until its process has ended, and notes how.
async fn train(shared: Arc<Shared>, record: Record, mut stop: watch::Receiver<bool>) {
    let id = id_of(&record.run.name).to_owned();
    tracing::info!(run = record.run.name, "training");
    let ending = async {
        tokio::select! {
            () = shared.runs.ending(&id) => {}
            // A sender that is gone means that the service is.
            _ = stop.wait_for(|is_stopped| *is_stopped) => {}
        }
    };
    let places = &shared.places;
    let task = Task {
        config: &places.config(&id),
        out: &places.out(&id),
        seed: record.run.seed(),
        is_forced: record.is_forced,
        list: &places.list(),
    };
    let exit = child::train(&shared, &task, &id, ending).await;
    while let Err(failure) = left(&shared, &id, exit.clone()).await {
        let error = failure.message();
        tracing::error!(run = id, error, "how it ended is not recorded yet");
        if *stop.borrow() {
            // The next start finds it as one whose process is gone.
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn left(shared: &Arc<Shared>, id: &str, exit: Exit) -> Result<(), Failure> {
    let (this, name) = (Arc::clone(shared), id.to_owned());
    let state = blocking(move || this.runs.left(&name, &exit)).await??;
    tracing::info!(run = id, state = state.as_str_name(), "training ended");
    Ok(())
}
