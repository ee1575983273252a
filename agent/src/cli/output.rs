//! What the commands print.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _, stdout};

use super::CliError;

/// Prints a line on standard output.
///
/// # Errors
/// `ReaderGone` where whoever read it has ended, as `| head` does; `Failed` where it cannot be written,
/// as on a full disk.
pub(super) fn print(line: impl Display) -> Result<(), CliError> {
    writeln!(stdout().lock(), "{line}").map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CliError::ReaderGone,
        _ => CliError::Failed(format!("standard output: {error}")),
    })
}
