//! Starts the live fixture for people and for the demo.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::mpsc;

use anyhow::{Context as _, bail};
use blkpilot_tests::fixture::{Fixture, FixtureConfig, PRESETS, Stale, clean, preset};
use clap::{Parser, Subcommand};

/// Small QEMU guests under a private libvirtd, to try blkpilot on.
///
/// Nothing of this machine's own libvirt is used or changed. Needs root, and what
/// scripts/setup.sh installs.
#[derive(Parser)]
#[command(name = "blkpilot-fixture", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start guests, print the libvirt URI, and end them on Ctrl-C.
    Up {
        /// The guests, by preset (see `blkpilot-fixture presets`), separated by commas.
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "poor-cache,poor-binding,bystander"
        )]
        guests: Vec<String>,
        /// Leave them running and return at once; `blkpilot-fixture down` ends them.
        #[arg(long)]
        keep: bool,
        /// Print nothing but the URI.
        #[arg(long)]
        quiet: bool,
    },
    /// End what `up --keep` or a crashed run left.
    Down,
    /// List the guests there are.
    Presets,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blkpilot-fixture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> anyhow::Result<()> {
    match action {
        Action::Up {
            guests,
            keep,
            quiet,
        } => up(&guests, keep, quiet),
        Action::Down => {
            down();
            Ok(())
        }
        Action::Presets => {
            for preset in PRESETS {
                println!("{:16} {}", preset.name, preset.about);
            }
            Ok(())
        }
    }
}

fn up(names: &[String], keep: bool, quiet: bool) -> anyhow::Result<()> {
    let mut guests = Vec::new();
    for name in names {
        let Some(guest) = preset(name) else {
            bail!("there is no guest preset `{name}`; `blkpilot-fixture presets` lists them");
        };
        guests.push(guest);
    }
    let (ended, interrupted) = mpsc::channel();
    ctrlc::set_handler(move || {
        let _ = ended.send(());
    })
    .context("handling Ctrl-C")?;
    if !quiet {
        eprintln!("starting {} guests …", guests.len());
    }
    let fixture = Fixture::start(FixtureConfig { guests })?;
    if !quiet {
        for guest in fixture.guests() {
            eprintln!(
                "guest {} (uuid {}, QEMU pid {})",
                guest.spec.name, guest.uuid, guest.pid
            );
        }
        eprintln!("look at them with: virsh -c '{}' list", fixture.uri());
    }
    println!("{}", fixture.uri());
    std::io::stdout().flush().context("writing the URI")?;
    if keep {
        fixture.keep()?;
        if !quiet {
            eprintln!("they keep running; end them with: blkpilot-fixture down");
        }
        return Ok(());
    }
    if !quiet {
        eprintln!("Ctrl-C ends them");
    }
    // An error means that the handler is gone, which only ends the wait.
    let _ = interrupted.recv();
    Ok(())
}

fn down() {
    let removed = clean(Stale::CrashedAndKept);
    println!("{} ended", removed.len());
}
