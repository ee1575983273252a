//! Changes of a domain's XML, as splices of libvirt's own text: whatever is not changed stays byte for
//! byte as it was, and what is new stands where libvirt itself would write it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use quick_xml::escape::escape;
use similar::TextDiff;

use crate::cpuset::CpuSet;
use crate::element::Element;
use crate::error::{HostError, HostResult};
use crate::guest::Guest;

/// Attributes of a disk's `<driver>` in the order in which libvirt writes them
/// (`virDomainDiskDefFormatDriver`).
const DRIVER_ATTRIBUTES: &[&str] = &[
    "name",
    "type",
    "cache",
    "error_policy",
    "rerror_policy",
    "io",
    "ioeventfd",
    "event_idx",
    "copy_on_read",
    "discard",
    "discard_no_unref",
    "iothread",
    "detect_zeroes",
    "queues",
    "queue_size",
];

/// Children of `<domain>` before its IOThreads.
const BEFORE_IOTHREADS: &[&str] = &["name", "uuid", "memory", "currentMemory", "vcpu", "vcpus"];
/// Children of `<domain>` before its `<cputune>`.
const BEFORE_CPUTUNE: &[&str] = &[
    "vcpu",
    "vcpus",
    "iothreads",
    "iothreadids",
    "defaultiothread",
];
/// Children of `<cputune>` before the first `<iothreadpin>`.
const BEFORE_IOTHREADPIN: &[&str] = &[
    "shares",
    "period",
    "quota",
    "global_period",
    "global_quota",
    "emulator_period",
    "emulator_quota",
    "iothread_period",
    "iothread_quota",
    "vcpupin",
    "emulatorpin",
    "iothreadpin",
];
/// Children of `<domain>` before its `<memoryBacking>`.
const BEFORE_MEMORY_BACKING: &[&str] = &[
    "name",
    "uuid",
    "maxMemory",
    "memory",
    "currentMemory",
    "blkiotune",
    "memtune",
];

/// One change of a domain's XML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Sets attributes of a disk's `<driver>`.
    Driver {
        /// Target name of the disk.
        target: String,
        /// Names and values.
        set: Vec<(&'static str, String)>,
    },
    /// Gives a disk an IOThread of its own: one that serves nothing and is pinned nowhere, or else a new
    /// one.
    DedicatedIoThread {
        /// Target name of the disk.
        target: String,
    },
    /// Spreads the queues of a disk over IOThreads of its own, round robin.
    MapQueues {
        /// Target name of the disk.
        target: String,
        /// How many; at least 2.
        iothreads: u32,
        /// Queues to give it, where it has too few.
        queues: Option<u32>,
    },
    /// Pins an IOThread to host CPUs.
    PinIoThread {
        /// Its id.
        iothread: u32,
        /// The CPUs.
        cpus: CpuSet,
    },
    /// Backs the guest's memory with huge pages.
    HugePages {
        /// Size of a page, KiB; `None` for the default of the host.
        page_kib: Option<u64>,
    },
}

impl Edit {
    /// The document with this change.
    ///
    /// # Errors
    /// `Parse`; `Unsupported` where the document has nothing to change.
    pub fn apply(&self, xml: &str) -> HostResult<String> {
        match self {
            Self::Driver { target, set } => set_driver(xml, target, set),
            Self::DedicatedIoThread { target } => dedicate_iothread(xml, target),
            Self::MapQueues {
                target,
                iothreads,
                queues,
            } => {
                let set = queues.iter().map(|queues| ("queues", queues.to_string()));
                let xml = set_driver(xml, target, &set.collect::<Vec<_>>())?;
                map_queues(&xml, target, *iothreads)
            }
            Self::PinIoThread { iothread, cpus } => pin_iothread(xml, *iothread, cpus),
            Self::HugePages { page_kib } => huge_pages(xml, *page_kib),
        }
    }
}

/// The document with all of these changes, in their order.
///
/// # Errors
/// See [`Edit::apply`].
pub fn patched<'a>(xml: &str, edits: impl IntoIterator<Item = &'a Edit>) -> HostResult<String> {
    edits
        .into_iter()
        .try_fold(xml.to_owned(), |xml, edit| edit.apply(&xml))
}

/// A unified diff of a guest's XML, for `patch`.
#[must_use]
pub fn diff(guest: &str, before: &str, after: &str) -> String {
    let (old, new) = (format!("a/{guest}.xml"), format!("b/{guest}.xml"));
    TextDiff::from_lines(before, after)
        .unified_diff()
        .header(&old, &new)
        .to_string()
}

fn set_driver(xml: &str, target: &str, set: &[(&'static str, String)]) -> HostResult<String> {
    let root = Element::parse(xml)?;
    let driver = driver_of(&root, target)?;
    let mut attributes = driver.attributes().to_vec();
    for (name, value) in set {
        put_attribute(&mut attributes, name, value);
    }
    Ok(with_attributes(xml, driver, &attributes))
}

fn dedicate_iothread(xml: &str, target: &str) -> HostResult<String> {
    let (xml, id) = free_iothread(xml)?;
    set_driver(&xml, target, &[("iothread", id.to_string())])
}

fn map_queues(xml: &str, target: &str, count: u32) -> HostResult<String> {
    let root = Element::parse(xml)?;
    let own = driver_of(&root, target)?
        .attribute("iothread")
        .and_then(|id| id.parse().ok())
        .filter(|id| users(&root).get(id) == Some(&1));
    let mut xml = without_iothread(xml, target)?;
    // The old IOThread is free now, and is found again; each new one is taken by being listed.
    let mut ids: BTreeSet<u32> = own.into_iter().collect();
    while ids.len() < count as usize {
        let (next, id) = free_iothread_beside(&xml, &ids)?;
        (xml, _) = (next, ids.insert(id));
    }
    let listed = ids.iter().map(|id| format!("  <iothread id='{id}'/>"));
    let lines: Vec<String> = std::iter::once("<iothreads>".to_owned())
        .chain(listed)
        .chain(["</iothreads>".to_owned()])
        .collect();
    let root = Element::parse(&xml)?;
    Ok(insert(&xml, driver_of(&root, target)?, &[], &lines))
}

fn pin_iothread(xml: &str, iothread: u32, cpus: &CpuSet) -> HostResult<String> {
    let root = Element::parse(xml)?;
    let Some(cputune) = root.child("cputune") else {
        let lines = ["<cputune>", "</cputune>"].map(str::to_owned);
        return pin_iothread(&insert(xml, &root, BEFORE_CPUTUNE, &lines), iothread, cpus);
    };
    let id = iothread.to_string();
    let existing = cputune
        .children("iothreadpin")
        .find(|pin| pin.attribute("iothread") == Some(&id));
    Ok(match existing {
        Some(pin) => {
            let mut attributes = pin.attributes().to_vec();
            for (name, value) in &mut attributes {
                if name == "cpuset" {
                    *value = cpus.to_string();
                }
            }
            with_attributes(xml, pin, &attributes)
        }
        None => {
            let line = format!("<iothreadpin iothread='{iothread}' cpuset='{cpus}'/>");
            insert(xml, cputune, BEFORE_IOTHREADPIN, &[line])
        }
    })
}

fn huge_pages(xml: &str, page_kib: Option<u64>) -> HostResult<String> {
    let root = Element::parse(xml)?;
    let Some(backing) = root.child("memoryBacking") else {
        let lines = ["<memoryBacking>", "</memoryBacking>"].map(str::to_owned);
        return huge_pages(&insert(xml, &root, BEFORE_MEMORY_BACKING, &lines), page_kib);
    };
    let lines = match page_kib {
        None => vec!["<hugepages/>".to_owned()],
        Some(size) => vec![
            "<hugepages>".to_owned(),
            format!("  <page size='{size}' unit='KiB'/>"),
            "</hugepages>".to_owned(),
        ],
    };
    Ok(insert(xml, backing, &[], &lines))
}

/// The document in which an IOThread is free for a disk, and its id: as it was, or with one more.
fn free_iothread(xml: &str) -> HostResult<(String, u32)> {
    free_iothread_beside(xml, &BTreeSet::new())
}

fn free_iothread_beside(xml: &str, taken: &BTreeSet<u32>) -> HostResult<(String, u32)> {
    let root = Element::parse(xml)?;
    let ids = Guest::from_xml(xml)?.iothreads;
    let users = users(&root);
    let pinned = pinned_iothreads(&root);
    let is_free =
        |id: &&u32| !users.contains_key(*id) && !taken.contains(*id) && !pinned.contains(*id);
    if let Some(id) = ids.iter().find(is_free) {
        return Ok((xml.to_owned(), *id));
    }
    let id = (1..).find(|id| !ids.contains(id)).unwrap_or(u32::MAX);
    let count = ids.len() + 1;
    let counted = match root.child("iothreads") {
        Some(element) => {
            let line = format!("<iothreads>{count}</iothreads>");
            splice(xml, element.tag.start..element.end, &line)
        }
        None => insert(
            xml,
            &root,
            BEFORE_IOTHREADS,
            &[format!("<iothreads>{count}</iothreads>")],
        ),
    };
    let root = Element::parse(&counted)?;
    let listed = match root.child("iothreadids") {
        Some(list) => insert(
            &counted,
            list,
            &["iothread"],
            &[format!("<iothread id='{id}'/>")],
        ),
        None => counted,
    };
    Ok((listed, id))
}

/// How many devices each IOThread serves: disks by attribute or mapping, and SCSI controllers.
pub(super) fn users(root: &Element) -> BTreeMap<u32, usize> {
    let mut users = BTreeMap::new();
    let devices = root.child("devices").map(|devices| &devices.children);
    for driver in devices
        .into_iter()
        .flatten()
        .filter_map(|d| d.child("driver"))
    {
        for id in iothreads_of(driver) {
            *users.entry(id).or_default() += 1;
        }
    }
    users
}

/// IOThreads that somebody has pinned, and so has plans for.
fn pinned_iothreads(root: &Element) -> BTreeSet<u32> {
    let pins = root
        .child("cputune")
        .into_iter()
        .flat_map(|cputune| cputune.children("iothreadpin"));
    pins.filter_map(|pin| pin.attribute("iothread")?.parse().ok())
        .collect()
}

/// The IOThreads that a `<driver>` names.
pub(super) fn iothreads_of(driver: &Element) -> BTreeSet<u32> {
    let mapped = driver
        .child("iothreads")
        .map(|map| map.children("iothread"));
    let mapped = mapped.into_iter().flatten().map(|one| one.attribute("id"));
    let named = mapped.chain([driver.attribute("iothread")]);
    named.flatten().filter_map(|id| id.parse().ok()).collect()
}

fn without_iothread(xml: &str, target: &str) -> HostResult<String> {
    let root = Element::parse(xml)?;
    let driver = driver_of(&root, target)?;
    let mut attributes = driver.attributes().to_vec();
    attributes.retain(|(name, _)| name != "iothread");
    Ok(with_attributes(xml, driver, &attributes))
}

fn driver_of<'a>(root: &'a Element, target: &str) -> HostResult<&'a Element> {
    let mut disks = root
        .child("devices")
        .into_iter()
        .flat_map(|d| d.children("disk"));
    let is_it =
        |disk: &&Element| disk.child("target").and_then(|t| t.attribute("dev")) == Some(target);
    disks
        .find(is_it)
        .and_then(|disk| disk.child("driver"))
        .ok_or_else(|| HostError::Unsupported {
            what: format!("changing disk {target}"),
            reason: "the domain's XML has no <driver> of it".into(),
        })
}

/// Replaces a value, or puts a new attribute where libvirt would write it.
fn put_attribute(attributes: &mut Vec<(String, String)>, name: &str, value: &str) {
    if let Some((_, old)) = attributes.iter_mut().find(|(known, _)| known == name) {
        value.clone_into(old);
        return;
    }
    let rank = |name: &str| {
        let place = DRIVER_ATTRIBUTES.iter().position(|known| *known == name);
        place.unwrap_or(DRIVER_ATTRIBUTES.len())
    };
    let later = |(known, _): &(String, String)| rank(known) > rank(name);
    let place = attributes
        .iter()
        .position(later)
        .unwrap_or(attributes.len());
    attributes.insert(place, (name.to_owned(), value.to_owned()));
}

fn with_attributes(xml: &str, element: &Element, attributes: &[(String, String)]) -> String {
    let written = attributes
        .iter()
        .map(|(name, value)| format!(" {name}='{}'", escape(value.as_str())));
    let close = if xml[element.tag.clone()].ends_with("/>") {
        "/>"
    } else {
        ">"
    };
    let tag = format!("<{}{}{close}", element.name, written.collect::<String>());
    splice(xml, element.tag.clone(), &tag)
}

/// Puts lines below `parent`, after the last child that has one of the names `after`, or else first.
fn insert(xml: &str, parent: &Element, after: &[&str], lines: &[String]) -> String {
    let indent = indent_of(xml, parent.tag.start);
    let block: String = lines
        .iter()
        .map(|line| format!("\n{indent}  {line}"))
        .collect();
    if let Some(open) = xml[parent.tag.clone()].strip_suffix("/>") {
        let whole = format!("{open}>{block}\n{indent}</{}>", parent.name);
        return splice(xml, parent.tag.clone(), &whole);
    }
    let is_before = |child: &&Element| after.contains(&child.name.as_str());
    let last = parent.children.iter().rev().find(is_before);
    let place = last.map_or(parent.tag.end, |child| child.end);
    splice(xml, place..place, &block)
}

/// The white space between the start of a line and `at`.
fn indent_of(xml: &str, at: usize) -> &str {
    let line = xml[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let indent = &xml[line..at];
    if indent.chars().all(char::is_whitespace) {
        indent
    } else {
        ""
    }
}

fn splice(xml: &str, range: Range<usize>, text: &str) -> String {
    format!("{}{text}{}", &xml[..range.start], &xml[range.end..])
}

#[cfg(test)]
mod tests;
