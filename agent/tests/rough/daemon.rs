//! The service as a process, and what it takes of the machine.

use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use blkpilot_agent::access::role::Role;
use blkpilot_agent::access::tokens::{Secret, TokenFile, Wanted};
use blkpilot_agent::client::Target;
use tempfile::TempDir;

/// Between two decisions of the host's owner.
pub(crate) const INTERVAL: Duration = Duration::from_millis(50);
/// A line of it, and what it is where many watch.
const TIME_SCALE: &str = "time_scale = 20";
const SLOWER: &str = "time_scale = 4";
/// Segments become Parquet often, so that what that takes is in each long round.
pub(crate) const CONFIG: &str = "version = 1
[host]
kind = \"simulated\"
scenario = \"mixed\"
time_scale = 20
mode = \"auto\"
[policy]
baseline = \"random\"
[service]
listen = \"127.0.0.1:0\"
data_dir = \"data\"
max_environments = 64
[log]
segment_mib = 4
";

/// A daemon at a loopback port; killed when this is dropped.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) site: Site,
    _dir: TempDir,
}

/// Where a service is, and how it is called.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    tokens: TokenFile,
}

impl Site {
    /// Of a service that listens at `http://ADDRESS` and has its data there.
    pub(crate) fn new(listens: &str, data: &Path) -> Self {
        let address = listens.trim().rsplit('/').next().unwrap().parse();
        Self {
            address: address.unwrap_or_else(|_| panic!("{listens}")),
            tokens: TokenFile::in_dir(data),
        }
    }

    /// A new token of an operator: a client of its own to the limits.
    pub(crate) fn token(&self) -> Secret {
        let wanted = Wanted {
            name: "a test".to_owned(),
            role: Role::Operator,
            lifetime: None,
        };
        self.tokens.create(wanted, SystemTime::now()).unwrap().1
    }

    /// The service, for a client with this token.
    pub(crate) fn target(&self, token: &Secret) -> Target {
        Target {
            token: Some(token.clone()),
            ..Target::from(&format!("http://{}", self.address))
        }
    }
}

/// What a process takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// Without what is mapped of files, such as its own text.
    pub(crate) memory_mib: f64,
    pub(crate) descriptors: usize,
    pub(crate) threads: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            memory_mib,
            descriptors,
            threads,
        } = self;
        write!(
            f,
            "{memory_mib:.1} MiB, {descriptors} descriptors, {threads} threads"
        )
    }
}

impl Daemon {
    /// Starts one and waits until it listens.
    pub(crate) fn start() -> Self {
        Self::start_with(CONFIG)
    }

    /// One whose decisions are five times as far apart.
    pub(crate) fn start_slower() -> Self {
        Self::start_with(&CONFIG.replace(TIME_SCALE, SLOWER))
    }

    fn start_with(config: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("blkpilot.toml");
        fs::write(&file, config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_blkpilot"))
            .args(["serve", "--config"])
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        Self {
            child,
            site: Site::new(&line, &dir.path().join("data")),
            _dir: dir,
        }
    }

    /// What it takes now.
    pub(crate) fn figures(&self) -> Figures {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(process.join("status")).unwrap();
        let number = |key: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Figures {
            memory_mib: number("RssAnon:") as f64 / 1024.0,
            descriptors: fs::read_dir(process.join("fd")).unwrap().count(),
            threads: number("Threads:"),
        }
    }

    /// What it takes once it has no more descriptors than these, or `patience` is over.
    pub(crate) async fn settle(&self, descriptors: usize, patience: Duration) -> Figures {
        let deadline = Instant::now() + patience;
        let mut looks = tokio::time::interval(INTERVAL);
        loop {
            looks.tick().await;
            let figures = self.figures();
            if figures.descriptors <= descriptors || Instant::now() >= deadline {
                return figures;
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
