//! The few QEMU monitor commands that libvirt has no call for, typed.
//!
//! Each of them marks the guest as tampered with (libvirt's `custom-monitor` taint), so they are
//! only for guests that opted in; [`Qmp::of`] is the gate. The one way past it is
//! [`Qmp::to_put_back`], for what we changed before a guest opted out.

pub(crate) mod format_node;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use blkpilot_env::sample::{LATENCY_BOUNDS_US, LATENCY_BUCKETS};

use crate::error::{HostError, HostResult};
use crate::guest::{Guest, GuestDisk};
use crate::hypervisor::Hypervisor;

/// Longest chain from a device's top node to its protocol node that is followed.
const MAX_LAYERS: usize = 16;
/// More queues than any virtio disk is given; a bound for the loop that counts them.
const MAX_QUEUES: u32 = 64;
const NS_PER_US: u64 = 1_000;

/// The options of each block node as QEMU was started with, by node name.
pub type NodeOptions = BTreeMap<String, Value>;

/// The monitor of one guest.
pub struct Qmp<'a> {
    hypervisor: &'a dyn Hypervisor,
    guest: &'a Guest,
}

/// The block node of a disk that talks to the host: the one whose cache mode matters.
#[derive(Debug, Clone, PartialEq)]
pub struct ProtocolNode {
    /// Its name.
    pub node_name: String,
    /// Whether it bypasses the host page cache now.
    pub is_direct: bool,
    /// All its options, which a reopen has to repeat: what is left out falls back to a default.
    options: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NamedNode {
    node_name: Option<String>,
    drv: String,
    file: String,
    cache: NodeCache,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NodeCache {
    direct: bool,
    no_flush: bool,
}

#[derive(Deserialize)]
struct BlockDevice {
    qdev: Option<String>,
    inserted: Option<Inserted>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    node_name: Option<String>,
}

#[derive(Deserialize)]
struct BlockStats {
    qdev: Option<String>,
    stats: Histograms,
}

#[derive(Deserialize)]
struct Histograms {
    #[serde(default)]
    failed_wr_operations: u64,
    #[serde(default)]
    failed_flush_operations: u64,
    rd_latency_histogram: Option<Histogram>,
    wr_latency_histogram: Option<Histogram>,
}

#[derive(Deserialize)]
struct Histogram {
    boundaries: Vec<u64>,
    bins: Vec<u64>,
}

/// Where a protocol node that was once a disk's own is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// It is the disk's protocol node.
    InUse,
    /// A snapshot has put another image above it.
    Below {
        /// Whether it bypasses the host page cache now.
        is_direct: bool,
    },
    /// It has been closed.
    Closed,
}

/// What QEMU counts of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReading {
    /// Its latencies.
    pub histogram: LatencyHistogram,
    /// Writes and flushes that have failed since QEMU was started.
    pub failed_writes: u64,
}

/// What the latency histogram of a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LatencyHistogram {
    /// There is none.
    Absent,
    /// Reads and writes in our buckets ([`LATENCY_BOUNDS_US`]), cumulative.
    Ours(Box<[u64; LATENCY_BUCKETS]>),
    /// Somebody else set one with other buckets; it is left alone.
    Foreign,
}

impl<'a> Qmp<'a> {
    /// The monitor of a guest.
    ///
    /// # Errors
    /// `NotOptedIn`.
    pub fn of(hypervisor: &'a dyn Hypervisor, guest: &'a Guest) -> HostResult<Self> {
        if guest.allows_monitor() {
            Ok(Self { hypervisor, guest })
        } else {
            Err(HostError::NotOptedIn {
                guest: guest.name.clone(),
                what: "its monitor".into(),
            })
        }
    }

    /// The monitor of a guest that may have opted out since we changed something that only the
    /// monitor can put back. Only for a knob that is journalled as ours.
    pub(crate) fn to_put_back(hypervisor: &'a dyn Hypervisor, guest: &'a Guest) -> Self {
        Self { hypervisor, guest }
    }

    /// Finds the protocol node of a disk, anew each time: a snapshot or mirror replaces it.
    ///
    /// # Errors
    /// `Unsupported` when it is neither a file nor a host device, or its options cannot be told; `Qmp`,
    /// `Disconnected`, `GuestGone`.
    pub fn protocol_node(&self, disk: &GuestDisk, known: &NodeOptions) -> HostResult<ProtocolNode> {
        let unsupported = |reason: String| HostError::Unsupported {
            what: format!(
                "guest {}, disk {}: changing its cache strategy",
                self.guest.name, disk.target
            ),
            reason,
        };
        let top = self
            .top_node(disk)?
            .ok_or_else(|| unsupported("QEMU has no such device".into()))?;
        let nodes: Vec<NamedNode> = self.query("query-named-block-nodes")?;
        let options = if known.contains_key(&top) {
            follow_to_protocol(&top, known).cloned()
        } else {
            added_node(&top, &nodes, disk)
        };
        let options = options.map_err(&unsupported)?;
        let name = text(&options, "node-name").unwrap_or_default();
        let node = nodes
            .into_iter()
            .find(|node| node.node_name.as_deref() == Some(name));
        let node =
            node.ok_or_else(|| unsupported(format!("its node {name} is not there any more")))?;
        if text(&options, "driver") != Some(node.drv.as_str()) {
            return Err(unsupported(format!(
                "its node {name} is a {} now",
                node.drv
            )));
        }
        if node.cache.no_flush {
            return Err(unsupported("it ignores flushes (cache=unsafe)".into()));
        }
        Ok(ProtocolNode {
            node_name: name.to_owned(),
            is_direct: node.cache.direct,
            options,
        })
    }

    /// What has become of a node that was this disk's protocol node.
    ///
    /// # Errors
    /// `Qmp`, `Disconnected`, `GuestGone`.
    pub(crate) fn whereabouts(
        &self,
        node: &str,
        disk: &GuestDisk,
        known: &NodeOptions,
    ) -> HostResult<Whereabouts> {
        match self.protocol_node(disk, known) {
            Ok(used) if used.node_name == node => return Ok(Whereabouts::InUse),
            // The one in use need not be one that can be changed.
            Ok(_) | Err(HostError::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
        let nodes: Vec<NamedNode> = self.query("query-named-block-nodes")?;
        let found = nodes
            .into_iter()
            .find(|other| other.node_name.as_deref() == Some(node));
        Ok(match found {
            Some(NamedNode { cache, .. }) => Whereabouts::Below {
                is_direct: cache.direct,
            },
            None => Whereabouts::Closed,
        })
    }

    /// Sends a command that [`ProtocolNode::reopen_command`] has made.
    ///
    /// # Errors
    /// `Qmp`, `Disconnected`, `GuestGone`; `Parse` when it is none.
    pub(crate) fn repeat(&self, command: &str) -> HostResult<()> {
        let request = serde_json::from_str(command)
            .map_err(|_| HostError::parse("journalled monitor command", command))?;
        self.send(&request).map(drop)
    }

    /// Reopens a protocol node with or without O_DIRECT; everything else stays as it is, flushes of
    /// the guest are honoured in both. Towards direct, QEMU writes dirty pages back first.
    ///
    /// # Errors
    /// `Qmp`, `Disconnected`, `GuestGone`.
    pub fn reopen(&self, node: &ProtocolNode, direct: bool) -> HostResult<()> {
        self.send(&node.reopen_command(direct)).map(drop)
    }

    /// The latency histogram of a disk.
    ///
    /// # Errors
    /// `Qmp`, `Disconnected`, `GuestGone`.
    pub fn latency_histogram(&self, disk: &GuestDisk) -> HostResult<LatencyHistogram> {
        Ok(self
            .disk_readings()?
            .remove(&disk.qom_path())
            .map_or(LatencyHistogram::Absent, |reading| reading.histogram))
    }

    /// What QEMU counts of all disks, by QOM path.
    ///
    /// # Errors
    /// `Qmp`, `Disconnected`, `GuestGone`.
    pub fn disk_readings(&self) -> HostResult<BTreeMap<String, DiskReading>> {
        let devices: Vec<BlockStats> = self.query("query-blockstats")?;
        let reading = |stats: Histograms| DiskReading {
            histogram: stats.merge(),
            failed_writes: stats.failed_wr_operations + stats.failed_flush_operations,
        };
        Ok(devices
            .into_iter()
            .filter_map(|device| Some((device.qdev?, reading(device.stats))))
            .collect())
    }

    /// Starts counting a disk's latencies in our buckets, from zero.
    ///
    /// # Errors
    /// `Qmp`, `Disconnected`, `GuestGone`.
    pub fn start_histogram(&self, disk: &GuestDisk) -> HostResult<()> {
        let boundaries: Vec<u64> = boundaries_ns().collect();
        let arguments = json!({ "id": disk.qom_path(), "boundaries": boundaries });
        self.run("block-latency-histogram-set", Some(arguments))
            .map(drop)
    }

    /// Removes a disk's latency histogram.
    ///
    /// # Errors
    /// `Qmp`, `Disconnected`, `GuestGone`.
    pub fn stop_histogram(&self, disk: &GuestDisk) -> HostResult<()> {
        self.send(&stop_histogram_command(disk)).map(drop)
    }

    /// Requests of a virtio disk that QEMU has taken and not finished.
    ///
    /// # Errors
    /// `Qmp` before QEMU 7.2 and for other buses, `Disconnected`, `GuestGone`.
    pub fn requests_in_flight(&self, disk: &GuestDisk) -> HostResult<u32> {
        let mut total = 0;
        for queue in 0..MAX_QUEUES {
            let arguments = json!({ "path": disk.qom_path(), "queue": queue });
            match self.run("x-query-virtio-queue-status", Some(arguments)) {
                Ok(status) => {
                    total += status["inuse"]
                        .as_u64()
                        .and_then(|n| u32::try_from(n).ok())
                        .unwrap_or(0);
                }
                // Past the last queue.
                Err(HostError::Qmp { .. }) if queue > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn top_node(&self, disk: &GuestDisk) -> HostResult<Option<String>> {
        let devices: Vec<BlockDevice> = self.query("query-block")?;
        let path = disk.qom_path();
        let is_disk = |qdev: &str| qdev == path || qdev == disk.alias;
        let device = devices
            .into_iter()
            .find(|device| device.qdev.as_deref().is_some_and(is_disk));
        Ok(device
            .and_then(|device| device.inserted)
            .and_then(|inserted| inserted.node_name))
    }

    fn query<T: for<'de> Deserialize<'de>>(&self, command: &str) -> HostResult<T> {
        let reply = self.run(command, None)?;
        T::deserialize(&reply)
            .map_err(|error| HostError::parse(&format!("reply to {command}"), &error.to_string()))
    }

    fn run(&self, command: &str, arguments: Option<Value>) -> HostResult<Value> {
        let mut request = json!({ "execute": command });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        self.send(&request)
    }

    fn send(&self, request: &Value) -> HostResult<Value> {
        let command = text(request, "execute").unwrap_or_default();
        let reply = self
            .hypervisor
            .monitor(&self.guest.uuid, &request.to_string())?;
        let mut reply: Value = serde_json::from_str(&reply)
            .map_err(|_| HostError::parse(&format!("reply to {command}"), &reply))?;
        if let Some(error) = reply.get("error") {
            return Err(HostError::Qmp {
                guest: self.guest.name.clone(),
                command: command.to_owned(),
                message: text(error, "desc").unwrap_or("no reason given").to_owned(),
            });
        }
        Ok(reply["return"].take())
    }
}

impl ProtocolNode {
    /// The command that reopens it with or without O_DIRECT, see [`Qmp::reopen`].
    pub(crate) fn reopen_command(&self, direct: bool) -> Value {
        let mut options = self.options.clone();
        options["cache"] = json!({ "direct": direct, "no-flush": false });
        json!({ "execute": "blockdev-reopen", "arguments": { "options": [options] } })
    }
}

/// The name of the node that a command of [`ProtocolNode::reopen_command`] is about.
pub(crate) fn reopened_node(command: &str) -> Option<String> {
    let command: Value = serde_json::from_str(command).ok()?;
    text(&command["arguments"]["options"][0], "node-name").map(str::to_owned)
}

/// The file of the node that such a command is about.
pub(crate) fn reopened_file(command: &str) -> Option<PathBuf> {
    let command: Value = serde_json::from_str(command).ok()?;
    text(&command["arguments"]["options"][0], "filename").map(PathBuf::from)
}

/// The command that removes a disk's latency histogram.
pub(crate) fn stop_histogram_command(disk: &GuestDisk) -> Value {
    json!({ "execute": "block-latency-histogram-set", "arguments": { "id": disk.qom_path() } })
}

impl Histograms {
    fn merge(&self) -> LatencyHistogram {
        let mut counts = [0; LATENCY_BUCKETS];
        let present = [&self.rd_latency_histogram, &self.wr_latency_histogram];
        if present.iter().all(|histogram| histogram.is_none()) {
            return LatencyHistogram::Absent;
        }
        for histogram in present.into_iter().flatten() {
            if !histogram.boundaries.iter().copied().eq(boundaries_ns())
                || histogram.bins.len() != LATENCY_BUCKETS
            {
                return LatencyHistogram::Foreign;
            }
            for (count, bin) in counts.iter_mut().zip(&histogram.bins) {
                *count += bin;
            }
        }
        LatencyHistogram::Ours(Box::new(counts))
    }
}

/// The bounds of our latency histograms, by which they are told from those of others.
pub(crate) fn boundaries_ns() -> impl Iterator<Item = u64> {
    LATENCY_BOUNDS_US
        .iter()
        .map(|us| u64::from(*us) * NS_PER_US)
}

/// Reads the block nodes from QEMU's command line (`/proc/PID/cmdline`, NUL-separated): the only
/// place that has all options of a node.
#[must_use]
pub fn node_options(command_line: &[u8]) -> NodeOptions {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let values = words
        .windows(2)
        .filter(|pair| pair[0] == b"-blockdev")
        .map(|pair| pair[1]);
    let nodes = values.filter_map(|text| serde_json::from_slice::<Value>(text).ok());
    nodes
        .filter_map(|node| Some((text(&node, "node-name")?.to_owned(), node)))
        .collect()
}

/// From a disk's top node through filters and formats to the node that opens a file or device.
fn follow_to_protocol<'a>(top: &str, known: &'a NodeOptions) -> Result<&'a Value, String> {
    let mut name = top;
    for _ in 0..MAX_LAYERS {
        let node = known.get(name).ok_or_else(|| {
            format!("its node {name} is not one that QEMU was started with; restart the guest")
        })?;
        match text(node, "driver") {
            Some("file" | "host_device") => return Ok(node),
            driver => {
                name = text(node, "file").ok_or_else(|| {
                    format!(
                        "its node {name} ({}) is neither a file nor a host device",
                        driver.unwrap_or("no driver")
                    )
                })?;
            }
        }
    }
    Err(format!(
        "more than {MAX_LAYERS} block nodes lie on top of each other"
    ))
}

/// The options of the protocol node below a top node that libvirt has added to a running QEMU: of a
/// snapshot's overlay, of a copy, of a disk that was plugged in.
///
/// QEMU does not tell the options of a node; libvirt makes them from the disk's `<driver>`
/// (`qemuBlockStorageSourceGetBackendProps`). QEMU refuses a reopen with another `aio` or file than the
/// node has; what it would take (`auto-read-only`, `discard`) libvirt gives every such node alike.
fn added_node(top: &str, nodes: &[NamedNode], disk: &GuestDisk) -> Result<Value, String> {
    let is_top = |node: &&NamedNode| node.node_name.as_deref() == Some(top);
    let is_protocol = |node: &&NamedNode| matches!(&*node.drv, "file" | "host_device");
    let top_node = nodes.iter().find(is_top);
    let top_node = top_node.ok_or_else(|| format!("its node {top} is not there any more"))?;
    if is_protocol(&top_node) {
        return Err(format!(
            "its node {top} was added after QEMU started and has no format above it, so its options are not known; restart the guest"
        ));
    }
    let mut below = nodes.iter().filter(is_protocol);
    let node = below.find(|node| node.file == top_node.file);
    let node = node.ok_or_else(|| {
        format!(
            "its node {top} ({}) is neither a file nor a host device",
            top_node.drv
        )
    })?;
    let mut options = json!({
        "driver": node.drv,
        "filename": node.file,
        "node-name": node.node_name,
        "auto-read-only": true,
        "discard": "unmap",
    });
    if let Some(aio) = disk.aio() {
        options["aio"] = aio.into();
    }
    Ok(options)
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND_LINE: &[u8] = b"/usr/bin/qemu-system-x86_64\0-blockdev\0{\"driver\":\"file\",\"filename\":\"/i.img\",\"aio\":\"io_uring\",\"node-name\":\"libvirt-1-storage\",\"cache\":{\"direct\":true,\"no-flush\":false},\"auto-read-only\":true,\"discard\":\"unmap\"}\0-blockdev\0{\"node-name\":\"libvirt-1-format\",\"driver\":\"qcow2\",\"file\":\"libvirt-1-storage\"}\0-blockdev\0{\"node-name\":\"nbd0\",\"driver\":\"nbd\",\"server\":{}}\0-device\0{\"driver\":\"virtio-blk-pci\"}\0";

    #[test]
    fn the_protocol_node_is_found_through_the_format() {
        let nodes = node_options(COMMAND_LINE);
        assert_eq!(nodes.len(), 3);
        let node = follow_to_protocol("libvirt-1-format", &nodes).unwrap();
        assert_eq!(
            (text(node, "node-name"), text(node, "aio")),
            (Some("libvirt-1-storage"), Some("io_uring"))
        );
    }

    #[test]
    fn network_nodes_are_refused_with_the_reason() {
        let nodes = node_options(COMMAND_LINE);
        assert!(
            follow_to_protocol("nbd0", &nodes)
                .unwrap_err()
                .contains("nbd")
        );
    }

    fn named(name: &str, drv: &str, file: &str) -> NamedNode {
        NamedNode {
            node_name: Some(name.into()),
            drv: drv.into(),
            file: file.into(),
            cache: NodeCache {
                direct: true,
                no_flush: false,
            },
        }
    }

    #[test]
    fn a_node_that_was_added_later_has_the_options_that_libvirt_gives() {
        let guest = Guest::from_xml(crate::guest::tests::XML).unwrap();
        let disk = guest.disk("vda").unwrap();
        let nodes = [
            named("libvirt-2-format", "qcow2", "/overlay"),
            named("libvirt-2-storage", "file", "/overlay"),
            named("libvirt-1-format", "qcow2", "/i.img"),
            named("libvirt-1-storage", "file", "/i.img"),
        ];
        let options = added_node("libvirt-2-format", &nodes, disk).unwrap();
        let expected = json!({
            "driver": "file", "filename": "/overlay", "node-name": "libvirt-2-storage",
            "aio": "io_uring", "auto-read-only": true, "discard": "unmap",
        });
        assert_eq!(options, expected);
        // A disk without `io=` has no `aio`, and QEMU would refuse one.
        let options = added_node("libvirt-2-format", &nodes, &guest.disks[1]).unwrap();
        assert_eq!(options.get("aio"), None);
    }

    #[test]
    fn a_node_that_was_added_later_without_a_format_is_refused() {
        let guest = Guest::from_xml(crate::guest::tests::XML).unwrap();
        let disk = guest.disk("vda").unwrap();
        for nodes in [
            vec![named("top", "file", "/i.img")],
            vec![named("top", "raw", "nbd://x"), named("n", "nbd", "nbd://x")],
            vec![],
        ] {
            assert!(added_node("top", &nodes, disk).is_err());
        }
    }

    #[test]
    fn a_circle_of_nodes_ends() {
        let nodes =
            node_options(b"-blockdev\0{\"node-name\":\"a\",\"driver\":\"raw\",\"file\":\"a\"}\0");
        assert!(follow_to_protocol("a", &nodes).is_err());
    }

    #[test]
    fn histograms_of_others_are_recognised() {
        let boundaries: Vec<u64> = boundaries_ns().collect();
        let ours = || {
            Some(Histogram {
                boundaries: boundaries.clone(),
                bins: vec![2; LATENCY_BUCKETS],
            })
        };
        let both = Histograms {
            failed_wr_operations: 0,
            failed_flush_operations: 0,
            rd_latency_histogram: ours(),
            wr_latency_histogram: ours(),
        };
        assert_eq!(
            both.merge(),
            LatencyHistogram::Ours(Box::new([4; LATENCY_BUCKETS]))
        );
        let foreign = Some(Histogram {
            boundaries: vec![10, 20],
            bins: vec![0; 3],
        });
        assert_eq!(
            Histograms {
                failed_wr_operations: 0,
                failed_flush_operations: 0,
                rd_latency_histogram: ours(),
                wr_latency_histogram: foreign
            }
            .merge(),
            LatencyHistogram::Foreign
        );
        assert_eq!(
            Histograms {
                failed_wr_operations: 0,
                failed_flush_operations: 0,
                rd_latency_histogram: None,
                wr_latency_histogram: None
            }
            .merge(),
            LatencyHistogram::Absent
        );
    }
}
