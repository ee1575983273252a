//! `blkpilot serve`.

use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, ServeArgs};
use crate::config::Config;
use crate::server::{Server, check};

pub(super) async fn run(args: &ServeArgs) -> Result<(), CliError> {
    let config = Config::load(&args.config)?;
    if args.check {
        check(&config)?;
        println!("{}: can be served", args.config.display());
        return Ok(());
    }
    // Before anything is opened: a signal during the start must end in order too.
    let stop = interrupted()?;
    let server = Server::start(config).await?;
    println!("listening on {}", server.address());
    server.run(stop).await?;
    Ok(())
}

/// Ready at the first SIGINT or SIGTERM.
pub(super) fn interrupted() -> Result<impl Future<Output = ()>, CliError> {
    let failed = |e: std::io::Error| CliError::Failed(format!("cannot listen for signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
