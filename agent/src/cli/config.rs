//! `blkpilot config`.

use clap::Subcommand;

use super::CliError;
use super::output::print;
use crate::config::reference;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every key with its unit, range, default and meaning, as Markdown
    Reference,
}

pub(super) fn run(command: &ConfigCommand) -> Result<(), CliError> {
    match command {
        ConfigCommand::Reference => print(format_args!("{}", reference::markdown().trim_end())),
    }
}
