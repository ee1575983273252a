//! What can go wrong on a live host, by the decision that a caller can take.

use std::io;
use std::path::{Path, PathBuf};

/// Why something could not be read from or written to the host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// libvirtd cannot be reached; connect again later.
    #[error(
        "libvirt at {uri} cannot be reached: {message}; is libvirtd running, and may this user connect?"
    )]
    Disconnected {
        /// The connection URI.
        uri: String,
        /// What libvirt says.
        message: String,
    },
    /// The guest is not running (any more): an ordinary event.
    #[error("guest {guest} is not running")]
    GuestGone {
        /// Name or UUID of the guest.
        guest: String,
    },
    /// Guests hang, and their calls with them.
    #[error(
        "{what}: no answer in time, because guests hang; look for a QEMU that is stopped or stuck on its storage"
    )]
    Late {
        /// What was asked for.
        what: String,
    },
    /// A libvirt call failed for another reason.
    #[error("{action}: libvirt refused: {message}")]
    Libvirt {
        /// What was tried, on which guest.
        action: String,
        /// What libvirt says.
        message: String,
    },
    /// QEMU refused a command of its monitor.
    #[error("guest {guest}: QEMU refused {command}: {message}")]
    Qmp {
        /// UUID of the guest.
        guest: String,
        /// The command's name.
        command: String,
        /// What QEMU says.
        message: String,
    },
    /// The guest, host or disk does not offer this.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// The knob or signal, and whose.
        what: String,
        /// Why not, and the way out.
        reason: String,
    },
    /// The guest has not opted in, so nothing of it is changed and its monitor is not used.
    #[error(
        "guest {guest} has not opted in to {what}: add the blkpilot element to its metadata or name it in the configuration"
    )]
    NotOptedIn {
        /// Name of the guest.
        guest: String,
        /// The knob, or `its monitor`.
        what: String,
    },
    /// A device's setting is in no rule, so it is not changed.
    #[error(
        "device {device}: {knob} is not enabled: add it to the knobs of a [[host.device]] that matches it in the service's configuration"
    )]
    DeviceNotEnabled {
        /// Kernel name of the device.
        device: String,
        /// The setting.
        knob: String,
    },
    /// The kernel refused a device's setting.
    #[error("device {device}: the kernel refused {knob} = {value}: {source}: {way_out}")]
    DeviceRefused {
        /// Kernel name of the device.
        device: String,
        /// The setting.
        knob: String,
        /// The value.
        value: String,
        /// What to do.
        way_out: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// A block or libvirt job runs, and meanwhile the disk's image is not reopened.
    #[error(
        "guest {guest}, disk {disk}: reopening its image is not supported while a block or libvirt job is running; try again after it"
    )]
    JobRuns {
        /// Name of the guest.
        guest: String,
        /// Target of the disk.
        disk: String,
    },
    /// A snapshot or a job has put another image in the place of a disk's while its cache was to be changed.
    #[error(
        "guest {guest}, disk {disk}: a snapshot or job has just put another image in its place; try again"
    )]
    ImageReplaced {
        /// Name of the guest.
        guest: String,
        /// Target of the disk.
        disk: String,
    },
    /// A disk's dirty pages are written back before it goes over to direct; it is buffered meanwhile.
    #[error(
        "{owner}: {knob}: {dirty} are written back first, so that the disk does not stand still; it stays buffered until then: try again in a moment"
    )]
    WritingBack {
        /// Whose it is: `guest web`.
        owner: String,
        /// The knob.
        knob: String,
        /// How much is dirty, in words.
        dirty: String,
    },
    /// As many disks are being written back as may be.
    #[error(
        "{owner}: {knob}: its dirty pages are written back first, and other disks are before it; it stays buffered: try again in a moment"
    )]
    WriteBackQueued {
        /// Whose it is: `guest web`.
        owner: String,
        /// The knob.
        knob: String,
    },
    /// A guest writes about as fast as its device, so that its dirty pages never get few.
    #[error(
        "{owner}: {knob}: {dirty} are dirty though they were written back for {} s: the guest writes about as fast as its device, so the disk stays buffered; a rollback goes to direct all the same, and lets it stand still meanwhile",
        patience.as_secs()
    )]
    WritesTooFast {
        /// Whose it is: `guest web`.
        owner: String,
        /// The knob.
        knob: String,
        /// How much is dirty, in words.
        dirty: String,
        /// For how long that was tried.
        patience: std::time::Duration,
    },
    /// Somebody else changed the knob; it is left alone until an operator unfreezes it.
    #[error(
        "{owner}: {knob} is frozen: we set {ours}, somebody else set {theirs}, which stays until `blkpilot unfreeze` (of a device `blkpilot device unfreeze`) lets it be tuned again"
    )]
    Frozen {
        /// Whose it is: `guest web`, `device nvme0n1`.
        owner: String,
        /// The knob.
        knob: String,
        /// Our last value.
        ours: String,
        /// What was found.
        theirs: String,
    },
    /// A value was written, and another one was read back.
    #[error("{owner}: {knob} was set to {wanted}, but reads {found}")]
    ReadBack {
        /// Whose it is: `guest web`, `device nvme0n1`.
        owner: String,
        /// The knob.
        knob: String,
        /// What was written.
        wanted: String,
        /// What was read.
        found: String,
    },
    /// A text had an unexpected form.
    #[error("{what}: cannot understand `{text}`")]
    Parse {
        /// Where the text is from.
        what: String,
        /// The text, or its start.
        text: String,
    },
    /// The journal of changes cannot be read or written; without it nothing is changed.
    #[error("journal {}: {source}; nothing is changed without it", path.display())]
    Journal {
        /// Its file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// There is no room for the journal; what is changed already goes back all the same.
    #[error(
        "journal {}: {source}; nothing is changed until there is room on its file system: make room, or put everything back (`blkpilot rollback --all`), which needs none",
        path.display()
    )]
    JournalFull {
        /// Its file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// There is no journal to read.
    #[error(
        "there is no journal {}: name the data directory of the service that tunes this host (service.data_dir in its configuration)",
        path.display()
    )]
    JournalMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The journal's file is damaged.
    #[error(
        "journal {} is damaged: {problem}; our settings end with a guest's QEMU, so shut each tuned guest down and start it again, then move the file away (`sqlite3 COPY .recover` may show what a copy of it still holds)",
        path.display()
    )]
    JournalDamaged {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of procfs, sysfs or an image could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Result of everything that touches the host.
pub type HostResult<T> = Result<T, HostError>;

impl HostError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn parse(what: &str, text: &str) -> Self {
        Self::Parse {
            what: what.to_owned(),
            text: text.chars().take(80).collect(),
        }
    }

    /// Whether it is an ordinary event on a host that has nothing to do with what was tried: a guest or
    /// libvirt has gone, a job runs, or dirty pages are being written back.
    #[must_use]
    pub fn is_ordinary(&self) -> bool {
        matches!(
            self,
            Self::GuestGone { .. }
                | Self::JobRuns { .. }
                | Self::ImageReplaced { .. }
                | Self::Disconnected { .. }
                | Self::WritingBack { .. }
                | Self::WriteBackQueued { .. }
                | Self::WritesTooFast { .. }
        )
    }

    /// Whether the guest has gone, which ends what was tried without being a fault.
    #[must_use]
    pub fn is_guest_gone(&self) -> bool {
        matches!(self, Self::GuestGone { .. })
    }
}
