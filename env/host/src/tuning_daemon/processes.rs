//! Which processes are daemons that tune the host.

use std::fs;
use std::path::{Path, PathBuf};

use super::DaemonKind;
use crate::sysfs::last_name;

/// tuned is a script of it: `python3`, `python3.11`.
const PYTHON: &str = "python";

/// A daemon's process.
pub(super) struct Process {
    pub(super) kind: DaemonKind,
    pub(super) pid: i32,
    /// Its command line, program first.
    pub(super) words: Vec<String>,
    dir: PathBuf,
}

/// All of them, by process id.
pub(super) fn processes(proc: &Path) -> Vec<Process> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<Process> = pids.filter_map(|pid| process(proc, pid)).collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// Anybody can call a program as these are called: root alone can be one, and only with its program.
fn process(proc: &Path, pid: i32) -> Option<Process> {
    let dir = proc.join(pid.to_string());
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let field = |name: &str| {
        let mut lines = status.lines();
        Some(lines.find_map(|line| line.strip_prefix(name))?.trim())
    };
    let kind = kind(field("Name:")?)?;
    let is_root = field("Uid:")?.split_whitespace().all(|uid| uid == "0");
    // Ended, but not waited for yet.
    let is_zombie = field("State:")?.starts_with('Z');
    if !is_root || is_zombie {
        return None;
    }
    let command_line = fs::read(dir.join("cmdline")).ok()?;
    let words: Vec<String> = command_line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    // Only root may follow it.
    let program = fs::read_link(dir.join("exe")).ok();
    let has_program = program.is_none_or(|program| runs(kind, &program, &words));
    (has_program && !is_errand(kind, &words)).then_some(Process {
        kind,
        pid,
        words,
        dir,
    })
}

fn kind(name: &str) -> Option<DaemonKind> {
    match name {
        "irqbalance" => Some(DaemonKind::Irqbalance),
        "numad" => Some(DaemonKind::Numad),
        "tuned" => Some(DaemonKind::Tuned),
        // Its interpreter's name, where it was not started by its own.
        name if name.starts_with(PYTHON) => Some(DaemonKind::Tuned),
        _ => None,
    }
}

fn runs(kind: DaemonKind, program: &Path, words: &[String]) -> bool {
    // The kernel says so of one that was replaced by an upgrade.
    let program = last_name(program);
    let program = program.trim_end_matches(" (deleted)");
    match kind {
        DaemonKind::Irqbalance | DaemonKind::Numad => program == kind.name(),
        DaemonKind::Tuned => {
            let mut rest = words.iter().skip(1);
            let script = rest.find(|word| !word.starts_with('-'));
            let script = script.map(|script| last_name(Path::new(script)));
            program.starts_with(PYTHON) && script.as_deref() == Some(kind.name())
        }
    }
}

/// `numad -w CPUS:MIB`, with which libvirt asks for advice, answers and ends.
fn is_errand(kind: DaemonKind, words: &[String]) -> bool {
    let asks = |word: &String| word.starts_with("-w");
    kind == DaemonKind::Numad && words.iter().skip(1).any(asks)
}

impl Process {
    /// A file as the daemon sees it, else as we do below `root`.
    pub(super) fn read(&self, root: &Path, path: &str) -> Option<String> {
        let roots = [self.dir.join("root"), root.to_owned()];
        let mut texts = roots
            .iter()
            .map(|root| fs::read_to_string(root.join(path.trim_start_matches('/'))));
        texts.find_map(Result::ok)
    }

    /// A variable of its environment, where that may be read.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let environment = fs::read(self.dir.join("environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        variables.find_map(|variable| {
            let variable = std::str::from_utf8(variable).ok()?;
            let value = variable.strip_prefix(name)?.strip_prefix('=')?;
            Some(value.to_owned())
        })
    }

    /// What follows an option of one letter on its command line, as its own word or not; each time.
    pub(super) fn options(&self, option: &str) -> Vec<&str> {
        let mut words = self.words.iter().skip(1);
        let mut found = Vec::new();
        while let Some(word) = words.next() {
            match word.strip_prefix(option) {
                Some("") => found.extend(words.next().map(String::as_str)),
                Some(value) => found.push(value),
                None => {}
            }
        }
        found
    }
}
