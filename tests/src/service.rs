//! The binary `blkpilot` in a directory of its own, as an operator runs it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::fixture::Fixture;

/// How long a guest may leave a change unanswered.
const PATIENCE: Duration = Duration::from_secs(60);

/// A configuration, its data, and the service while it runs; killed when this is dropped.
#[derive(Debug)]
pub struct Blkpilot {
    binary: PathBuf,
    dir: TempDir,
    service: Option<Child>,
}

impl Blkpilot {
    /// For the libvirt of a fixture, with these lines of `[host]` and these tables. `binary` is what
    /// runs: `env!("CARGO_BIN_EXE_blkpilot-under-test")`.
    ///
    /// # Panics
    /// When the configuration cannot be written.
    #[must_use]
    pub fn new(binary: &str, fixture: &Fixture, host: &str, tables: &str) -> Self {
        let dir = TempDir::new().expect("a directory can be made");
        let text = format!(
            "version = 1
[host]
kind = \"libvirt\"
uri = \"{}\"
on_exit = \"keep\"
{host}
[service]
listen = \"unix:blkpilot.sock\"
data_dir = \"data\"
{tables}
",
            fixture.uri()
        );
        fs::write(dir.path().join("blkpilot.toml"), text).expect("it can be written to");
        Self {
            binary: binary.into(),
            dir,
            service: None,
        }
    }

    /// Where the configuration (`blkpilot.toml`) and the data (`data`) are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A command of it, told where the service is.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        let socket = self.dir().join("blkpilot.sock");
        command
            .args(args)
            .env("BLKPILOT_SERVER", format!("unix:{}", socket.display()))
            .current_dir(self.dir());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the binary runs")
    }

    /// Sets a level, `GUEST/DISK:HEAD=LEVEL`: again where the guest did not answer in time, which happens
    /// on a machine that is busy enough.
    ///
    /// # Panics
    /// When it is refused, or the guest does not answer for a minute.
    pub fn set(&self, level: &str) {
        self.apply(level, &[]);
    }

    /// As [`Blkpilot::set`], past rate and breaker.
    ///
    /// # Panics
    /// As [`Blkpilot::set`].
    pub fn force(&self, level: &str, reason: &str) {
        self.apply(level, &["--force", reason]);
    }

    fn apply(&self, level: &str, more: &[&str]) {
        let set = self.run_patiently(&[&["apply", "--set", level], more].concat());
        let refusal = String::from_utf8_lossy(&set.stderr);
        assert!(set.status.success(), "{level}: {refusal}");
    }

    /// As [`Blkpilot::run`], and again while a guest or the service does not answer in time, which is so on a
    /// machine that is busy.
    ///
    /// # Panics
    /// As `run`.
    #[must_use]
    pub fn run_patiently(&self, args: &[&str]) -> Output {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.run(args);
            let said = String::from_utf8_lossy(&output.stderr);
            let is_late = ["did not answer in time", "no answer in time"]
                .iter()
                .any(|late| said.contains(late));
            if output.status.success() || !is_late || Instant::now() >= deadline {
                return output;
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Starts the service and returns its process id when it listens: it has reconciled then.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn serve(&mut self) -> u32 {
        let mut service = self
            .command(&["serve", "--config", "blkpilot.toml"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        let out = service.stdout.take().expect("it is piped");
        let read = BufReader::new(out).read_line(&mut line);
        assert!(read.is_ok() && line.contains("listening"), "{line}");
        self.service.insert(service).id()
    }

    /// Whether the service that was started last runs.
    pub fn is_running(&mut self) -> bool {
        let ended = self.service.as_mut().map(Child::try_wait);
        matches!(ended, Some(Ok(None)))
    }

    /// Kills the service as a crash would.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn kill(&mut self) {
        if let Some(mut service) = self.service.take() {
            service.kill().expect("it is ours");
            service.wait().expect("it is our child");
        }
    }
}

impl Drop for Blkpilot {
    fn drop(&mut self) {
        self.kill();
    }
}
