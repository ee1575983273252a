//! The binary `blkpilot-lab` for the system tests: cargo tells a test only where the binaries of its own
//! package are.

use std::process::ExitCode;

use blkpilot_lab::cli::{Cli, error_text};
use clap::Parser as _;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", error_text(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
