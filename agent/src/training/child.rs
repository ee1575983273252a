//! The process that trains a run.
//!
//! It is held by its standard input: when that ends, because we close it or because the service is gone, however it
//! went, the process saves where it stands and ends. So nothing trains that nobody knows of, and there is one way to
//! end a run.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use tokio::io::BufReader;
use tokio::process::{Child, Command};

use super::hearing::{hear, next_event};
use super::state::Exit;
use super::{Shared, Task};

/// Exit status of a process that was told to end.
const INTERRUPTED: i32 = 130;

/// Trains a run until its process has ended by itself, or was made to once `ending` is ready.
pub(super) async fn train(
    shared: &Arc<Shared>,
    task: &Task<'_>,
    id: &str,
    ending: impl Future<Output = ()>,
) -> Exit {
    let mut child = match start(shared, task, id) {
        Ok(child) => child,
        Err(error) => return Exit::Failed(format!("its process cannot be started: {error}")),
    };
    match attend(&mut child, shared, id, ending).await {
        Ok(status) => exit(status, || shared.places.last_words(id)),
        Err(error) => Exit::Failed(format!("its process cannot be waited for: {error}")),
    }
}

fn start(shared: &Shared, task: &Task<'_>, id: &str) -> std::io::Result<Child> {
    let words = shared.places.words_file(id)?;
    let trainer = &shared.trainer;
    let mut command = Command::from((trainer.command)(&trainer.program, task));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(words)
        // Ctrl-C on a terminal is told to the service, which then closes what holds the process.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

async fn attend(
    child: &mut Child,
    shared: &Arc<Shared>,
    id: &str,
    ending: impl Future<Output = ()>,
) -> std::io::Result<ExitStatus> {
    let leash = child.stdin.take();
    let said = child.stdout.take();
    let patience = {
        let whole = async {
            if let Some(said) = said {
                let mut said = BufReader::new(said);
                while let Some(event) = next_event(&mut said).await {
                    hear(shared, id, event).await;
                }
            }
            child.wait().await
        };
        tokio::pin!(whole);
        tokio::select! {
            status = &mut whole => return status,
            () = ending => {}
        }
        drop(leash);
        tokio::time::timeout(shared.patience, whole).await
    };
    match patience {
        Ok(status) => status,
        Err(_) => {
            let patience = shared.patience;
            tracing::warn!("a training process did not end in {patience:?}, and is killed");
            child.kill().await?;
            // It was told to end, whatever it died of.
            Ok(std::os::unix::process::ExitStatusExt::from_raw(
                INTERRUPTED << 8,
            ))
        }
    }
}

fn exit(status: ExitStatus, last_words: impl FnOnce() -> String) -> Exit {
    match status.code() {
        Some(0) => Exit::Done,
        Some(INTERRUPTED) => Exit::Interrupted,
        _ => Exit::Failed(format!("{status}\n{}", last_words()).trim_end().to_owned()),
    }
}
