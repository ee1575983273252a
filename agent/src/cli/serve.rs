//! `blkpilot serve`.

use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use super::output::print;
use super::{CliError, ServeArgs};
use crate::config::Config;
use crate::server::{Server, check};

pub(super) async fn run(args: &ServeArgs) -> Result<(), CliError> {
    let config = Config::load(&args.config)?;
    if args.check {
        check(&config)?;
        print(format_args!("{}: can be served", args.config.display()))?;
        return Ok(());
    }
    // Before anything is opened: a signal during the start must end in order too.
    let stop = interrupted()?;
    let server = Server::start(config).await?;
    // It serves whether or not anybody reads this.
    if let Err(error) = print(format_args!("listening on {}", server.address())) {
        warn!("{error}");
    }
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
