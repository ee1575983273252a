//! Bulk statistics of libvirt, from names and values to a typed struct.

use std::collections::BTreeMap;

/// One value as libvirt gives it.
#[cfg_attr(
    not(feature = "libvirt"),
    allow(dead_code, reason = "only libvirt makes them")
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StatValue {
    Number(u64),
    Text(String),
}

/// One domain's statistics as libvirt gives them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct StatsRecord {
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) values: BTreeMap<String, StatValue>,
}

/// Statistics of one running guest, cumulative since its QEMU started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestStats {
    /// UUID of the domain.
    pub uuid: String,
    /// Name of the domain.
    pub name: String,
    /// `virDomainState`: 1 is running, 3 paused.
    pub state: u64,
    /// The reason of the state, such as `virDomainPausedReason`.
    pub state_reason: u64,
    /// Disks in libvirt's order. A layer below the top one is left out.
    pub disks: Vec<DiskStats>,
    /// `poll-max-ns` by IOThread id. Empty when the guest was busy.
    pub poll_max_ns: BTreeMap<u32, u64>,
    /// Virtual CPUs with the CPU time of each, nanoseconds.
    pub vcpu_time_ns: BTreeMap<u32, u64>,
}

/// Statistics of one disk, cumulative since its QEMU started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskStats {
    /// Target name, such as `vda`.
    pub target: String,
    /// Its image: that of the top layer.
    pub source: Option<String>,
    /// What it did; `None` when the guest was busy or hung, and so could not be asked.
    pub counters: Option<DiskCounters>,
}

/// What a disk did since its QEMU started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskCounters {
    /// Reads.
    pub reads: IoCounters,
    /// Writes.
    pub writes: IoCounters,
    /// Flushes completed.
    pub flushes: u64,
    /// Size as the guest sees it, bytes.
    pub capacity_bytes: u64,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoCounters {
    /// Requests completed.
    pub requests: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Time from submission to completion, summed, nanoseconds.
    pub time_ns: u64,
}

impl GuestStats {
    /// Whether QEMU has paused the guest because of an I/O error: `VIR_DOMAIN_PAUSED_IOERROR`.
    #[must_use]
    pub fn is_paused_on_error(&self) -> bool {
        const PAUSED: u64 = 3;
        const IO_ERROR: u64 = 5;
        (self.state, self.state_reason) == (PAUSED, IO_ERROR)
    }
}

impl StatsRecord {
    fn number(&self, key: &str) -> Option<u64> {
        match self.values.get(key)? {
            StatValue::Number(number) => Some(*number),
            StatValue::Text(_) => None,
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key)? {
            StatValue::Number(_) => None,
            StatValue::Text(text) => Some(text),
        }
    }

    fn counters(&self, disk: u64, direction: &str) -> IoCounters {
        let number = |field: &str| {
            self.number(&format!("block.{disk}.{direction}.{field}"))
                .unwrap_or_default()
        };
        IoCounters {
            requests: number("reqs"),
            bytes: number("bytes"),
            time_ns: number("times"),
        }
    }

    fn disk(&self, index: u64) -> Option<DiskStats> {
        // Backing layers are reported only on demand, with a backing index > 0.
        let target = self.text(&format!("block.{index}.name"))?.to_owned();
        let is_known = self.number(&format!("block.{index}.rd.reqs")).is_some();
        let number = |field: &str| {
            self.number(&format!("block.{index}.{field}"))
                .unwrap_or_default()
        };
        let counters = is_known.then(|| DiskCounters {
            reads: self.counters(index, "rd"),
            writes: self.counters(index, "wr"),
            flushes: number("fl.reqs"),
            capacity_bytes: number("capacity"),
        });
        Some(DiskStats {
            target,
            source: self.text(&format!("block.{index}.path")).map(str::to_owned),
            counters,
        })
    }

    /// `PREFIX.N.SUFFIX` for all N.
    fn numbered(&self, prefix: &str, suffix: &str) -> BTreeMap<u32, u64> {
        let entry = |key: &str| {
            let (number, rest) = key
                .strip_prefix(prefix)?
                .strip_prefix('.')?
                .split_once('.')?;
            if rest == suffix {
                Some((number.parse().ok()?, self.number(key)?))
            } else {
                None
            }
        };
        self.values.keys().filter_map(|key| entry(key)).collect()
    }
}

impl From<&StatsRecord> for GuestStats {
    fn from(record: &StatsRecord) -> Self {
        let disks = (0..record.number("block.count").unwrap_or_default())
            .filter_map(|index| record.disk(index));
        Self {
            uuid: record.uuid.clone(),
            name: record.name.clone(),
            state: record.number("state.state").unwrap_or_default(),
            state_reason: record.number("state.reason").unwrap_or_default(),
            disks: disks.collect(),
            poll_max_ns: record.numbered("iothread", "poll-max-ns"),
            vcpu_time_ns: record.numbered("vcpu", "time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_iothreads_and_vcpus_are_read_from_names() {
        let mut record = StatsRecord {
            uuid: "u".into(),
            name: "n".into(),
            ..StatsRecord::default()
        };
        for (key, value) in [
            ("state.state", 3),
            ("state.reason", 5),
            ("block.count", 1),
            ("block.0.rd.reqs", 7),
            ("block.0.rd.bytes", 28_672),
            ("block.0.rd.times", 900),
            ("block.0.fl.reqs", 2),
            ("block.0.capacity", 1 << 20),
            ("iothread.count", 1),
            ("iothread.3.poll-max-ns", 32_768),
            ("vcpu.0.time", 5),
            ("vcpu.1.time", 6),
            ("vcpu.1.wait", 9),
        ] {
            record.values.insert(key.into(), StatValue::Number(value));
        }
        record
            .values
            .insert("block.0.name".into(), StatValue::Text("vda".into()));
        record
            .values
            .insert("block.0.path".into(), StatValue::Text("/i.img".into()));
        let stats = GuestStats::from(&record);
        let expected = DiskCounters {
            reads: IoCounters {
                requests: 7,
                bytes: 28_672,
                time_ns: 900,
            },
            flushes: 2,
            capacity_bytes: 1 << 20,
            ..DiskCounters::default()
        };
        assert_eq!(
            stats.disks[0],
            DiskStats {
                target: "vda".into(),
                source: Some("/i.img".into()),
                counters: Some(expected)
            }
        );
        assert!(stats.is_paused_on_error());
        assert_eq!(stats.poll_max_ns, BTreeMap::from([(3, 32_768)]));
        assert_eq!(stats.vcpu_time_ns, BTreeMap::from([(0, 5), (1, 6)]));
    }

    #[test]
    fn a_guest_that_hangs_has_names_but_no_counters() {
        let mut record = StatsRecord::default();
        record
            .values
            .insert("block.count".into(), StatValue::Number(1));
        record
            .values
            .insert("block.0.name".into(), StatValue::Text("vda".into()));
        let stats = GuestStats::from(&record);
        assert_eq!(
            stats.disks,
            [DiskStats {
                target: "vda".into(),
                source: None,
                counters: None
            }]
        );
    }
}
