//! The binary as a daemon.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Settings;

pub(crate) const BLKPILOT: &str = env!("CARGO_BIN_EXE_blkpilot");

/// A daemon; killed when this is dropped.
pub(crate) struct Daemon(pub(crate) Child);

impl Daemon {
    /// Starts one and waits until it listens.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, |_| {})
    }

    /// As `start`; `prepare` is done to its command before.
    pub(crate) fn start_with(dir: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        Self::start_as(dir, &Settings::default(), prepare)
    }

    /// As `start_with`, with a configuration.
    pub(crate) fn start_as(
        dir: &Path,
        settings: &Settings,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let file = dir.join("blkpilot.toml");
        std::fs::write(&file, settings.toml(dir)).unwrap();
        let mut command = Command::new(BLKPILOT);
        command
            .args(["serve", "--config"])
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let line = first_line(&mut child);
        assert!(line.contains("listening on unix:"), "{line}");
        Self(child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    /// Ends it as a power cut of the process would.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    line
}
