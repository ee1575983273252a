//! The report for people.

use blkpilot_env::observation::Validity;
use blkpilot_env::sample::DeviceClass;
use blkpilot_host::CpuSet;
use blkpilot_host::block_device::BlockDevice;
use blkpilot_host::hardware_queue::{HardwareQueue, QueueKind};
use comfy_table::Table;

use super::super::tables::{ABSENT, align_right, table};
use super::{Device, Report};

pub(super) fn report(report: &Report, with_queues: bool) -> String {
    let mut parts = vec![cpus(report), channels(report), devices(report)];
    if with_queues {
        parts.push(queues(report));
    }
    if !report.disks.is_empty() {
        parts.push(disks(report));
    }
    if !report.daemons.is_empty() {
        parts.push(daemons(report));
    }
    for (uuid, problem) in &report.unreadable {
        parts.push(format!("guest {uuid}: {problem}"));
    }
    parts.join("\n\n")
}

fn shown(cpus: &CpuSet) -> String {
    if cpus.is_empty() {
        ABSENT.to_owned()
    } else {
        cpus.to_string()
    }
}

fn cpus(report: &Report) -> String {
    let topology = &report.topology;
    let nodes = topology
        .nodes
        .iter()
        .map(|(node, cpus)| format!("node {node}: {cpus}"));
    let mut table = table(&["CPUS", "", ""]);
    let online = format!(
        "{} cores, {} hardware threads",
        topology.cores.len(),
        topology.online.len()
    );
    table.add_row(["online".to_owned(), shown(&topology.online), online]);
    table.add_row(["NUMA", &nodes.collect::<Vec<_>>().join(", "), ""]);
    table.add_row([
        "isolated",
        &shown(&topology.isolated),
        "in no channel unless given",
    ]);
    table.add_row(["nohz_full", &shown(&topology.nohz_full), ""]);
    table.add_row([
        "reserved",
        &shown(&report.reserved),
        "by the configuration: in no channel",
    ]);
    let (cpuset, source) = match &topology.group {
        Some(group) => (shown(&group.cpus), group.source.display().to_string()),
        None => (ABSENT.to_owned(), String::new()),
    };
    table.add_row(["cpuset".to_owned(), cpuset, source]);
    table.trim_fmt()
}

fn channels(report: &Report) -> String {
    let mut table = table(&["CHANNEL", "CPUS", "NUMA", "QUEUES"]);
    for channel in report.channels.list() {
        let queues = report.queues_of(&channel.cpus).map(|(device, queues)| {
            let queues: CpuSet = queues.into_iter().collect();
            format!("{device}: {queues}")
        });
        table.add_row([
            channel.id.clone(),
            channel.cpus.to_string(),
            channel.numa.to_string(),
            queues.collect::<Vec<_>>().join("; "),
        ]);
    }
    or_nothing(
        &table,
        "no channel: every CPU is isolated, reserved or outside the cpuset",
    )
}

fn devices(report: &Report) -> String {
    let mut table = table(&[
        "DEVICE",
        "KIND",
        "SIZE",
        "NUMA",
        "SCHEDULER",
        "REQUESTS",
        "QUEUES",
        "MODEL",
        "STANDS ON",
    ]);
    for device in &report.devices {
        let facts = &device.facts;
        let text = |known: &Option<String>| known.clone().unwrap_or_else(|| ABSENT.to_owned());
        let scheduler = facts
            .scheduler
            .as_ref()
            .map(|scheduler| scheduler.current.clone());
        table.add_row([
            facts.name.clone(),
            kind(device),
            size(facts.size_bytes),
            text(&facts.numa.map(|node| node.to_string())),
            text(&scheduler),
            text(&facts.nr_requests.map(|requests| requests.to_string())),
            queue_counts(facts),
            text(&model(facts)),
            stands_on(device),
        ]);
    }
    align_right(&mut table, 2..3);
    or_nothing(&table, "no block devices")
}

/// `device-mapper, LVM vg-data`.
fn kind(device: &Device) -> String {
    let facts = &device.facts;
    let detail = device
        .stack
        .as_ref()
        .map_or("", |stack| stack.detail.as_str());
    let rotates = if facts.class() == DeviceClass::Hdd {
        "rotating"
    } else {
        ""
    };
    let parts = [facts.kind.name(), detail, rotates].into_iter();
    parts
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}

/// `2 default, 1 poll`; `~` where the kinds are derived.
fn queue_counts(facts: &BlockDevice) -> String {
    let list = &facts.queues.list;
    let counts = [QueueKind::Default, QueueKind::Read, QueueKind::Poll].map(|kind| {
        let count = list.iter().filter(|queue| queue.kind == kind).count();
        (count > 0).then(|| format!("{count} {}", kind.name()))
    });
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    let is_derived = facts.queues.kinds != Validity::Valid && counts.len() > 1;
    match (counts.is_empty(), is_derived) {
        (true, _) => ABSENT.to_owned(),
        (false, true) => format!("~{}", counts.join(", ")),
        (false, false) => counts.join(", "),
    }
}

fn model(facts: &BlockDevice) -> Option<String> {
    let firmware = facts
        .firmware
        .iter()
        .map(|firmware| format!("firmware {firmware}"));
    let controllers = facts
        .controllers
        .iter()
        .map(|controller| controller.name.clone());
    let parts: Vec<String> = facts
        .model
        .iter()
        .cloned()
        .chain(firmware)
        .chain(controllers)
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn stands_on(device: &Device) -> String {
    let Some(stack) = &device.stack else {
        return String::new();
    };
    let below = stack.below.iter().map(ToString::to_string);
    let problem = stack.problem.iter().map(|problem| format!("? ({problem})"));
    below.chain(problem).collect::<Vec<_>>().join(", ")
}

fn queues(report: &Report) -> String {
    let mut table = table(&[
        "DEVICE",
        "QUEUE",
        "KIND",
        "CPUS",
        "TAGS",
        "INTERRUPT",
        "TO CPUS",
    ]);
    for Device { facts, .. } in &report.devices {
        for queue in &facts.queues.list {
            let interrupt = interrupt_of(facts, queue);
            let name = |interrupt: &blkpilot_host::interrupts::Interrupt| {
                format!("{} {}", interrupt.number, interrupt.handlers.join(", "))
            };
            table.add_row([
                facts.name.clone(),
                queue.index.to_string(),
                queue.kind.name().to_owned(),
                shown(&queue.cpus),
                queue
                    .tags
                    .map_or(ABSENT.to_owned(), |tags| tags.to_string()),
                interrupt.map_or(ABSENT.to_owned(), name),
                interrupt.map_or(ABSENT.to_owned(), |interrupt| shown(&interrupt.cpus)),
            ]);
        }
    }
    or_nothing(&table, "no hardware queues")
}

/// NVMe calls the interrupt of its queue N, of which 0 is the controller's own, `nvme0qN`, virtio that
/// of request queue N `virtio0-req.N`.
fn interrupt_of<'a>(
    facts: &'a BlockDevice,
    queue: &HardwareQueue,
) -> Option<&'a blkpilot_host::interrupts::Interrupt> {
    let ends = [
        format!("q{}", queue.index + 1),
        format!("-req.{}", queue.index),
    ];
    let is_its = |name: &String| match name.strip_prefix("nvme") {
        Some(rest) => rest.trim_start_matches(|c: char| c.is_ascii_digit()) == ends[0],
        None => name.ends_with(&ends[1]),
    };
    if queue.kind == QueueKind::Poll {
        return None;
    }
    let mut interrupts = facts.interrupts.iter();
    interrupts.find(|interrupt| interrupt.handlers.iter().any(is_its))
}

fn disks(report: &Report) -> String {
    let mut table = table(&["DISK", "WORKS ON", "STACK"]);
    for disk in &report.disks {
        let worker = disk.worker.as_ref().map(|device| device.name.clone());
        table.add_row([
            disk.id.clone(),
            worker.unwrap_or_else(|| ABSENT.to_owned()),
            disk.chain.to_string(),
        ]);
    }
    table.trim_fmt()
}

/// Other daemons that tune the host, with what they set that blkpilot could set.
fn daemons(report: &Report) -> String {
    let mut table = table(&["DAEMON", "PID", "SET TO", "SETS TOO", ""]);
    for daemon in &report.daemons {
        let claims: Vec<String> = daemon.claims.iter().map(ToString::to_string).collect();
        table.add_row([
            daemon.kind.to_string(),
            daemon.pid.to_string(),
            daemon.settings.join("; "),
            or_absent(claims.join("; ")),
            daemon.meaning().to_owned(),
        ]);
    }
    table.trim_fmt()
}

fn or_absent(text: String) -> String {
    if text.is_empty() {
        ABSENT.to_owned()
    } else {
        text
    }
}

fn or_nothing(table: &Table, nothing: &str) -> String {
    if table.is_empty() {
        nothing.to_owned()
    } else {
        table.trim_fmt()
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_binary_units() {
        for (bytes, text) in [
            (512, "512 B"),
            (1536, "1.5 KiB"),
            (256 << 30, "256 GiB"),
            (4 << 50, "4096 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
