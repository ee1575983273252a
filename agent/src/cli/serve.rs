//! `blkpilot serve`, and the same with training.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::CliError;
use super::output::print;
use crate::access::tls::TlsKeeper;
use crate::config::Config;
use crate::server::reload::{Reloader, Report};
use crate::server::supervisor;
use crate::server::{Server, check, look_at_tls};
use crate::training::Trainer;

/// What `serve` is told.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The configuration; see agent/configs for examples
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and the policy, then stop
    #[arg(long)]
    check: bool,
}

/// Serves until SIGINT or SIGTERM, and trains policies if there is what trains them.
///
/// # Errors
/// What ends it before it is done.
pub async fn run(args: &ServeArgs, trainer: Option<Trainer>) -> Result<(), CliError> {
    let text = Config::text_of(&args.config)?;
    let config = Config::parse(&args.config, &text)?;
    if args.check {
        check(&config)?;
        print(format_args!("{}: can be served", args.config.display()))?;
        return Ok(());
    }
    // Before anything is opened: a signal during the start must end in order too.
    let (stop, hurry) = stops()?;
    let hang_ups = listen(SignalKind::hangup())?;
    let reward = config.reward;
    let server = Server::start_with(config, trainer).await?;
    // It serves whether or not anybody reads this.
    if let Err(error) = print(format_args!("listening on {}", server.address())) {
        warn!("{error}");
    }
    let host = server.host();
    let (name, view) = (host.info.name.clone(), host.view.clone());
    let telling = tokio::spawn(supervisor::follow_status(name, view));
    let feeding = tokio::spawn(supervisor::feed_watchdog(host.pulse.clone()));
    supervisor::ready();
    let reloader = Reloader::new(&args.config, text, reward, host.clone());
    let reloading = tokio::spawn(reload_when_told(hang_ups, reloader, server.tls()));
    let shutdown = async {
        // A sender that has gone is a bug that must not keep it from ending.
        let _ = stop.await;
        telling.abort();
        reloading.abort();
        supervisor::stopping();
    };
    let hurry = async {
        let _ = hurry.await;
    };
    let ended = server.run_until(shutdown, hurry).await;
    feeding.abort();
    Ok(ended?)
}

/// Takes what can be taken of the configuration, and the files of TLS, at each SIGHUP; what is wrong changes nothing.
async fn reload_when_told(
    mut hang_ups: Signal,
    mut reloader: Reloader,
    tls: Option<Arc<TlsKeeper>>,
) {
    while hang_ups.recv().await.is_some() {
        supervisor::reloading();
        if let Some(tls) = &tls {
            look_at_tls(tls);
        }
        match reloader.reload().await {
            Ok(report) => tell(&report),
            Err(error) => {
                error!("the configuration was not reloaded, the one before holds: {error}");
            }
        }
        supervisor::ready();
    }
}

fn tell(report: &Report) {
    let Report {
        taken,
        need_restart,
        left,
    } = report;
    info!("configuration reloaded; taken: {}", listed(taken));
    if !need_restart.is_empty() {
        let keys = listed(need_restart);
        warn!("left as they are until the service is restarted: {keys}");
    }
    for problem in left {
        warn!("not taken: {problem}");
    }
}

fn listed(keys: &[String]) -> String {
    match keys {
        [] => "nothing, for nothing has changed that could be".to_owned(),
        keys => keys.join(", "),
    }
}

/// Told of the first SIGINT or SIGTERM, and of the second. Both are counted as they come: two that wait to be
/// looked at are one.
fn stops() -> Result<(oneshot::Receiver<()>, oneshot::Receiver<()>), CliError> {
    let mut stops = Stops::listen()?;
    let (first, stop) = oneshot::channel();
    let (second, hurry) = oneshot::channel();
    tokio::spawn(async move {
        for told in [first, second] {
            stops.next().await;
            // Whoever has ended already need not be told.
            let _ = told.send(());
        }
        std::future::pending::<()>().await;
    });
    Ok((stop, hurry))
}

/// SIGINT and SIGTERM as they come.
struct Stops {
    interrupt: Signal,
    terminate: Signal,
}

impl Stops {
    /// From now on they end nothing by themselves.
    fn listen() -> Result<Self, CliError> {
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, CliError> {
    signal(kind).map_err(|e| CliError::Failed(format!("cannot listen for signals: {e}")))
}

/// Ready at the first SIGINT or SIGTERM.
pub(super) fn interrupted() -> Result<impl Future<Output = ()>, CliError> {
    let mut stops = Stops::listen()?;
    Ok(async move { stops.next().await })
}
