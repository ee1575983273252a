//! The binary `blkpilot`: see `blkpilot --help`.

use std::io::{IsTerminal as _, stderr};
use std::process::ExitCode;

use blkpilot_agent::cli::{self, Cli, CliError};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("BLKPILOT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    match cli::run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ CliError::ReaderGone) => error.exit_code(),
        Err(error) => {
            eprintln!("blkpilot: {error}");
            error.exit_code()
        }
    }
}
