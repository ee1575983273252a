//! Advice for the next boot: what cannot be changed on a running guest, or only at its peril.
//!
//! The rules are pure: guests as libvirt defines them, facts of the host and what was measured go in,
//! [`Advice`] comes out. Nothing is ever applied from here. What a rule says once, it no longer says
//! when it has been followed.

mod binding;
mod cache;
mod daemon;
pub mod edit;
pub mod facts;
mod huge_pages;
mod io;
mod iothread;
mod pins;
mod queues;
mod scheduler;
mod sriov;
pub mod subject;
#[cfg(feature = "libvirt")]
pub mod survey;
mod vhost_user;
mod vq_mapping;

use std::fmt;
use std::path::PathBuf;

pub use edit::{Edit, diff, patched};
pub use facts::{HostFacts, Version};
pub use pins::{Crowd, Pins};
pub use subject::{Definition, Subject, SubjectDisk};
#[cfg(feature = "libvirt")]
pub use survey::{Survey, survey};

/// A rule, and with it the family that an advice belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `cache=` of a disk, with the `io=` that goes with it.
    Cache,
    /// `io=` of a disk.
    Io,
    /// `queues=` of a disk.
    Queues,
    /// An IOThread of its own for a disk.
    IoThread,
    /// The queues of a disk spread over several IOThreads.
    VqMapping,
    /// Host CPUs of an IOThread.
    Binding,
    /// Memory of a guest in huge pages.
    HugePages,
    /// A virtual function of the device in place of a disk.
    Sriov,
    /// vhost-user-blk in place of a disk.
    VhostUser,
    /// I/O scheduler of a device of the host.
    Scheduler,
    /// Another daemon that moves the threads of a tuned guest.
    Daemon,
}

/// Something that a next boot can bring.
#[derive(Debug, Clone, PartialEq)]
pub struct Advice {
    /// The same on each run and each host: `next-boot/KIND/UUID/DISK`, and for a device of the host
    /// `next-boot/scheduler/DEVICE` by the name that its hardware has.
    pub id: String,
    /// The rule.
    pub kind: Kind,
    /// The guest; `None` for a device of the host.
    pub guest: Option<GuestName>,
    /// What it is about: a disk's target, `memory`, a device, or another daemon.
    pub subject: String,
    /// What to do.
    pub summary: String,
    /// Why.
    pub reason: String,
    /// What that is known from.
    pub evidence: Vec<Evidence>,
    /// What it may bring.
    pub gain: Gain,
    /// What it needs.
    pub requires: Vec<Requirement>,
    /// What it costs or rules out.
    pub cautions: Vec<String>,
    /// How it is done.
    pub remedy: Remedy,
}

/// A guest by both its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestName {
    /// UUID of the domain.
    pub uuid: String,
    /// Name of the domain.
    pub name: String,
}

/// A named value.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// What it is of.
    pub name: &'static str,
    /// The value.
    pub value: Value,
    /// Its unit; empty for a text or a plain count.
    pub unit: &'static str,
}

/// A value of [`Evidence`].
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// What an advice may bring, and who says so. None is a promise for this guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gain {
    /// We have measured it, elsewhere.
    Measured {
        /// What came of it.
        text: &'static str,
        /// Where that is written down.
        source: &'static str,
    },
    /// Its makers say so.
    Documented {
        /// What they say.
        text: &'static str,
        /// Where.
        source: &'static str,
    },
    /// Nobody whom we would cite has measured it.
    NotMeasured {
        /// What it is expected to do.
        text: &'static str,
    },
}

/// Something that an advice needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// What, with the least version.
    pub what: String,
    /// What there is.
    pub found: String,
    /// Whether that is enough; `None` where it cannot be told from here.
    pub is_met: Option<bool>,
}

/// How an advice is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// A change of the guest's definition.
    Xml(Edit),
    /// A file on the host.
    File {
        /// Where it goes.
        path: PathBuf,
        /// All of it.
        content: String,
        /// What makes it count.
        then: &'static str,
    },
    /// Steps that nobody can take but the operator, since data has to be moved.
    Steps(Vec<String>),
}

impl Advice {
    /// Whether it can be followed by a change of the guest's definition, on this host, now.
    #[must_use]
    pub fn edit(&self) -> Option<&Edit> {
        let is_possible = self
            .requires
            .iter()
            .all(|needed| needed.is_met == Some(true));
        match &self.remedy {
            Remedy::Xml(edit) if is_possible => Some(edit),
            _ => None,
        }
    }

    fn of_disk(kind: Kind, guest: &Subject, disk: &SubjectDisk) -> Self {
        Self::of_guest(kind, guest, &disk.disk.target)
    }

    /// An advice that says nothing yet.
    fn of_guest(kind: Kind, guest: &Subject, subject: &str) -> Self {
        let name = GuestName {
            uuid: guest.guest.uuid.clone(),
            name: guest.guest.name.clone(),
        };
        let mut cautions = Vec::new();
        if !guest.is_persistent {
            cautions.push(
                "libvirt does not keep this guest's definition: change it where the guest is started from"
                    .to_owned(),
            );
        }
        if guest.snapshots > 0 {
            cautions.push(
                "the guest has snapshots: going back to one brings its old definition back"
                    .to_owned(),
            );
        }
        Self {
            id: format!("next-boot/{kind}/{}/{subject}", name.uuid),
            kind,
            guest: Some(name),
            subject: subject.to_owned(),
            summary: String::new(),
            reason: String::new(),
            evidence: Vec::new(),
            gain: Gain::NotMeasured { text: "" },
            requires: Vec::new(),
            cautions,
            remedy: Remedy::Steps(Vec::new()),
        }
    }
}

impl Evidence {
    fn number(name: &'static str, value: f64, unit: &'static str) -> Self {
        let value = Value::Number(value);
        Self { name, value, unit }
    }

    fn text(name: &'static str, value: impl Into<String>) -> Self {
        let value = Value::Text(value.into());
        let unit = "";
        Self { name, value, unit }
    }
}

impl Requirement {
    fn version(what: &str, least: Version, found: Version) -> Self {
        Self {
            what: format!("{what} ≥ {}.{}", least.0, least.1),
            found: found.to_string(),
            is_met: Some(found >= least),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cache => "cache",
            Self::Io => "io",
            Self::Queues => "queues",
            Self::IoThread => "iothread",
            Self::VqMapping => "iothread-vq-mapping",
            Self::Binding => "binding",
            Self::HugePages => "hugepages",
            Self::Sriov => "sriov",
            Self::VhostUser => "vhost-user-blk",
            Self::Scheduler => "scheduler",
            Self::Daemon => "daemon",
        })
    }
}

/// What is left of the host's memory for advice that needs some. Guests are served in their order.
#[derive(Debug, Clone, PartialEq)]
struct Budget {
    page_cache_bytes: u64,
    huge_pages: Vec<facts::HugePages>,
}

impl Budget {
    fn of(guests: &[Subject], host: &HostFacts) -> Self {
        Self {
            page_cache_bytes: cache::budget_bytes(guests, host),
            huge_pages: huge_pages::budget(guests, host),
        }
    }
}

/// All advice for the guests of a host, which must be all that it has: memory is divided among them.
#[must_use]
pub fn advise(guests: &[Subject], host: &HostFacts) -> Vec<Advice> {
    let mut budget = Budget::of(guests, host);
    let mut advice = Vec::new();
    for guest in guests {
        for disk in &guest.disks {
            let caching = cache::advise(guest, disk, host, &mut budget);
            let is_kept = caching.is_none();
            advice.extend(caching);
            advice.extend(is_kept.then(|| io::advise(guest, disk, host)).flatten());
            advice.extend(queues::advise(guest, disk));
            advice.extend(iothread::advise(guest, disk));
            advice.extend(vq_mapping::advise(guest, disk, host));
            advice.extend(sriov::advise(guest, disk, host));
            advice.extend(vhost_user::advise(guest, disk, host));
        }
        advice.extend(binding::advise(guest, guests, host));
        advice.extend(huge_pages::advise(guest, host, &mut budget));
        advice.extend(daemon::advise(guest, host));
    }
    advice.extend(scheduler::advise(guests, host));
    advice
}

#[cfg(test)]
mod tests;
