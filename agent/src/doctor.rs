//! What of a host, a configuration and its surroundings would keep the service from working, or keep it from
//! seeing or tuning what it could, and how to repair it. Nothing is changed.

mod clock;
mod files;
mod kernel;
mod libvirt;
mod settings;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::{Config, HostKind};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is well.
    Ok,
    /// The service works, but sees or tunes less than it could.
    Warning,
    /// The service does not start, or does not reach what it needs.
    Failed,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        })
    }
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// How to repair it; `None` where there is nothing to.
    pub repair: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            found: found.into(),
            repair: None,
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, repair: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Warning,
            found: found.into(),
            repair: Some(repair.into()),
        }
    }

    fn failed(check: &'static str, found: impl Into<String>, repair: impl Into<String>) -> Self {
        Self {
            level: Level::Failed,
            ..Self::warning(check, found, repair)
        }
    }
}

/// The machine that is looked at: its file systems, from this directory on, and its clock.
#[derive(Debug, Clone)]
pub struct Machine {
    /// `/`, but in tests.
    pub root: PathBuf,
    /// The wall clock.
    pub now: SystemTime,
}

impl Machine {
    /// This one, now.
    #[must_use]
    pub fn this() -> Self {
        Self {
            root: PathBuf::from("/"),
            now: SystemTime::now(),
        }
    }

    /// The text of a file of it.
    fn read(&self, path: &str) -> std::io::Result<String> {
        std::fs::read_to_string(self.root.join(path))
    }
}

/// Looks at everything, whatever of it is wrong. A libvirt that does not answer is waited for, for 15 s at most.
#[must_use]
pub fn examine(file: &Path, machine: &Machine) -> Vec<Finding> {
    let (config, mut findings) = settings::load(file);
    if let Some(config) = &config {
        findings.extend(settings::policies(config));
        findings.extend(settings::exploration(config));
        findings.extend(files::data_dir(&config.service.data_dir, &config.log));
        findings.push(files::socket(&config.service.listen));
        findings.push(clock::order(&config.service.data_dir, machine.now));
    }
    findings.push(clock::synchronised(machine));
    findings.extend(kernel::check(machine));
    findings.extend(of_host(config.as_ref()));
    findings
}

fn of_host(config: Option<&Config>) -> Vec<Finding> {
    match config.map(|config| &config.host.kind) {
        Some(HostKind::Simulated { .. }) => {
            vec![Finding::ok("libvirt", "not needed: the host is simulated")]
        }
        Some(HostKind::Libvirt(libvirt)) => libvirt::judge(&libvirt::reach(&libvirt.uri)),
        None => libvirt::judge(&libvirt::reach(crate::config::DEFAULT_URI)),
    }
}

/// The worst of them.
#[must_use]
pub fn worst(findings: &[Finding]) -> Level {
    let levels = findings.iter().map(|finding| finding.level);
    levels.max().unwrap_or(Level::Ok)
}
