//! The binary `blkpilot` for the system tests: cargo tells a test only where the binaries of its own
//! package are.

use std::process::ExitCode;

use blkpilot_agent::cli;

#[tokio::main]
async fn main() -> ExitCode {
    cli::main().await
}
