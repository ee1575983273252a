//! The binary `blkpilot`: see `blkpilot --help`.

use std::process::ExitCode;

use blkpilot_agent::cli;

#[tokio::main]
async fn main() -> ExitCode {
    cli::log_to_stderr();
    cli::main().await
}
