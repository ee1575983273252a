//! The binary `blkpilot`: see `blkpilot --help`.

use std::io::{IsTerminal as _, stderr};
use std::process::ExitCode;

use blkpilot_agent::cli;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("BLKPILOT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    cli::main().await
}
