//! Other daemons that tune the host: irqbalance, tuned and numad. They are read, never written: what they
//! do, and where it meets what blkpilot may change.
//!
//! A process counts as one of them if it has its name, belongs to root and, where the kernel lets us
//! see that, runs its program. Configuration is read as the daemon itself sees it (`/proc/PID/root`), since
//! it may run in a container; where that may not be looked at, as this process sees it.

mod irqbalance;
mod numad;
mod processes;
mod tuned;

use std::fmt;
use std::path::Path;

use crate::device::DeviceKnob;
use processes::{Process, processes};

pub use tuned::{DevicePattern, QueueClaim};

/// A daemon that tunes the host too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TuningDaemon {
    /// Which.
    pub kind: DaemonKind,
    /// Its process.
    pub pid: i32,
    /// How it is set, in words, such as `profile virtual-host`.
    pub settings: Vec<String>,
    /// What it changes of what blkpilot could change too.
    pub claims: Vec<Claim>,
}

/// The daemons that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DaemonKind {
    /// Moves interrupts between CPUs. Those of NVMe queues are the kernel's own and stay.
    Irqbalance,
    /// Applies a profile of settings when it starts, when a device comes and when the profile changes,
    /// and takes them back when it ends.
    Tuned,
    /// Moves busy processes, QEMU among them, to NUMA nodes: CPUs of all their threads, and memory.
    Numad,
}

/// What a daemon changes of what blkpilot could change too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// A setting of devices' request queues.
    Queue(QueueClaim),
    /// The CPUs of QEMU's threads, and so the binding of IOThreads.
    Binding {
        /// What says so.
        source: String,
        /// Only of these processes; of any if empty.
        pids: Vec<i32>,
    },
}

/// The daemons that run now, by process id. Nothing is an error: what cannot be read is not known.
/// `proc` is `/proc`, `root` is `/`.
#[must_use]
pub fn tuning_daemons(proc: &Path, root: &Path) -> Vec<TuningDaemon> {
    let found = processes(proc).into_iter();
    found
        .map(|process| process.kind.read(&process, root))
        .collect()
}

impl DaemonKind {
    /// The name of its program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Irqbalance => "irqbalance",
            Self::Tuned => "tuned",
            Self::Numad => "numad",
        }
    }

    fn read(self, process: &Process, root: &Path) -> TuningDaemon {
        match self {
            Self::Irqbalance => irqbalance::read(process, root),
            Self::Tuned => tuned::read(process, root),
            Self::Numad => numad::read(process),
        }
    }
}

impl TuningDaemon {
    /// What says that it sets this setting of this device, by kernel name.
    #[must_use]
    pub fn sets(&self, device: &str, knob: DeviceKnob) -> Option<&QueueClaim> {
        self.claims.iter().find_map(|claim| match claim {
            Claim::Queue(claim) if claim.knobs.contains(&knob) && claim.devices.has(device) => {
                Some(claim)
            }
            _ => None,
        })
    }

    /// What says that it moves the threads of this process.
    #[must_use]
    pub fn moves(&self, qemu_pid: i32) -> Option<&str> {
        self.claims.iter().find_map(|claim| match claim {
            Claim::Binding { source, pids } if pids.is_empty() || pids.contains(&qemu_pid) => {
                Some(source.as_str())
            }
            _ => None,
        })
    }

    /// What it means for blkpilot, and the way out where there has to be one.
    #[must_use]
    pub fn meaning(&self) -> &'static str {
        match self.kind {
            DaemonKind::Irqbalance => {
                "it moves interrupts, but none of NVMe queues, which the kernel places itself: nothing that blkpilot changes"
            }
            DaemonKind::Tuned if self.claims.is_empty() => {
                "its profile sets nothing that blkpilot could change"
            }
            DaemonKind::Tuned => {
                "what it sets after blkpilot freezes that knob: leave the setting to one of the two"
            }
            DaemonKind::Numad if self.claims.is_empty() => "it is told to leave QEMU alone",
            DaemonKind::Numad => {
                "where it moves a guest, the binding of its IOThreads freezes: exclude the guest's QEMU with `numad -x PID`, or keep the knob `channel` out of its opt-in"
            }
        }
    }
}

impl fmt::Display for DaemonKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(claim) => claim.fmt(f),
            Self::Binding { source, pids } if pids.is_empty() => {
                write!(f, "CPUs of every guest's threads ({source})")
            }
            Self::Binding { source, pids } => {
                let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "CPUs of the threads of processes {} ({source})",
                    pids.join(", ")
                )
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
