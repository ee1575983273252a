//! The binary `blkpilot` for the system tests: cargo tells a test only where the binaries of its own
//! package are.

use std::process::ExitCode;

use blkpilot_agent::cli::{self, Cli, CliError};
use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ CliError::ReaderGone) => error.exit_code(),
        Err(error) => {
            eprintln!("blkpilot: {error}");
            error.exit_code()
        }
    }
}
