//! What a shell and `man` are told of a command line, from its own definition.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::CliError;
use super::output::print;

/// Of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory that the pages are written to; it is made if need be
    dir: PathBuf,
}

pub(super) const COMPLETIONS_HELP: &str = "\
Examples:
  blkpilot completions bash > ~/.local/share/bash-completion/completions/blkpilot
  blkpilot completions zsh > ~/.zfunc/_blkpilot
  blkpilot completions fish > ~/.config/fish/completions/blkpilot.fish";

/// Prints what the shell completes the command line by.
///
/// # Errors
/// Those of standard output.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<(), CliError> {
    let name = command.get_name().to_owned();
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

/// Writes a page for the command and each of its own: `NAME.1`, `NAME-SUBCOMMAND.1`.
///
/// # Errors
/// `Failed` where they cannot be written.
pub fn man(args: &ManArgs, command: Command) -> Result<(), CliError> {
    pages(command, &args.dir)
}

fn pages(command: Command, dir: &Path) -> Result<(), CliError> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(command, dir))
        .map_err(|error| {
            let dir = dir.display();
            CliError::Failed(format!(
                "{dir}: {error}: choose a directory that can be written"
            ))
        })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::Cli;
    use super::*;

    #[test]
    fn there_is_a_page_for_every_command_and_each_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        pages(Cli::command(), dir.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(page("blkpilot.1").contains("retunes running KVM guests"));
        assert!(page("blkpilot-serve.1").contains("\\-\\-config"));
        assert!(page("blkpilot-device-set.1").contains("NAME"));
        let shown = Cli::command();
        for command in shown.get_subcommands() {
            assert!(!page(&format!("blkpilot-{}.1", command.get_name())).is_empty());
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = pages(Cli::command(), &file.path().join("man")).unwrap_err();
        assert!(error.to_string().contains("choose a directory"), "{error}");
    }
}
