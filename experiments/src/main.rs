//! `blkpilot-lab`: see the library for what it does.

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
