//! What a guest of the fixture is set to, by other means than the code under test uses: virsh, the
//! kernel's `/proc` and QEMU's own answer.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fixture::{Fixture, FixtureError};

/// The settings of a guest's first IOThread and first disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Host CPUs of the IOThread, as the kernel tells: `0-1`.
    pub cpus: String,
    /// Its longest poll, nanoseconds.
    pub poll_max_ns: String,
    /// `direct` or `buffered`: whether QEMU opened the disk's image with O_DIRECT.
    pub cache: &'static str,
}

impl Reading {
    /// Reads all three.
    ///
    /// # Errors
    /// A command that failed.
    ///
    /// # Panics
    /// When the guest has no IOThread or no disk.
    pub fn of(fixture: &Fixture, guest: &str) -> Result<Self, FixtureError> {
        let (cpus, poll_max_ns) = Self::threads(fixture, guest)?;
        Ok(Self {
            cpus,
            poll_max_ns,
            cache: cache_text(is_direct(fixture, guest)?),
        })
    }

    /// Reads the first two, in this order.
    ///
    /// # Errors
    /// A command that failed.
    ///
    /// # Panics
    /// When the guest has no IOThread.
    pub fn threads(fixture: &Fixture, guest: &str) -> Result<(String, String), FixtureError> {
        let cpus = affinity(fixture.guest(guest).pid, "IO iothread1");
        Ok((cpus, poll_max_ns(fixture, guest)?))
    }
}

/// `direct` or `buffered`.
#[must_use]
pub fn cache_text(is_direct: bool) -> &'static str {
    if is_direct { "direct" } else { "buffered" }
}

/// Host CPUs of the thread of this name.
///
/// # Panics
/// When the process has no such thread.
#[must_use]
pub fn affinity(pid: u32, thread: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let is_it =
        |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == thread);
    let path = tasks
        .flatten()
        .map(|task| task.path())
        .find(|path| is_it(path))
        .unwrap_or_else(|| panic!("process {pid} has no thread {thread}"));
    let status = fs::read_to_string(path.join("status")).expect("the thread runs");
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.expect("Linux says so").trim().to_owned()
}

/// Whether QEMU itself says that the first disk's protocol node bypasses the page cache.
///
/// # Errors
/// A command that failed.
///
/// # Panics
/// When the guest has no disk, or QEMU's answer is not understood.
pub fn is_direct(fixture: &Fixture, guest: &str) -> Result<bool, FixtureError> {
    let image = &fixture.guest(guest).images[0];
    let nodes = open_images(fixture, guest)?;
    let node = nodes.into_iter().find(|(file, _)| file == image);
    Ok(node.expect("a node of the first image").1)
}

/// The images that QEMU itself says it has open, also below a snapshot, and whether each bypasses the
/// page cache.
///
/// # Errors
/// A command that failed.
///
/// # Panics
/// When QEMU's answer is not understood.
pub fn open_images(fixture: &Fixture, guest: &str) -> Result<Vec<(PathBuf, bool)>, FixtureError> {
    let query = r#"{"execute":"query-named-block-nodes"}"#;
    let reply = fixture.virsh(&["qemu-monitor-command", guest, query])?;
    let reply: Value = serde_json::from_str(&reply).expect("QMP answers in JSON");
    let nodes = reply["return"].as_array().expect("a list of nodes");
    let is_protocol = |node: &&Value| node["drv"] == "host_device" || node["drv"] == "file";
    let image = |node: &Value| {
        let file = node["file"].as_str().expect("a path").into();
        (
            file,
            node["cache"]["direct"].as_bool().expect("a truth value"),
        )
    };
    Ok(nodes.iter().filter(is_protocol).map(image).collect())
}

/// Longest poll of the first IOThread, nanoseconds.
///
/// # Errors
/// A command that failed.
///
/// # Panics
/// When the guest has no IOThread.
pub fn poll_max_ns(fixture: &Fixture, guest: &str) -> Result<String, FixtureError> {
    let stats = fixture.virsh(&["domstats", "--iothread", guest])?;
    let value = stats
        .lines()
        .find_map(|line| line.trim().strip_prefix("iothread.1.poll-max-ns="));
    Ok(value.expect("the guest has an IOThread").to_owned())
}
