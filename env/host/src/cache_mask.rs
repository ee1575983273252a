//! Which cache strategies of a disk may be chosen now, and why not the others.

use blkpilot_env::observation::MaskReason;
use blkpilot_env::sample::{Cache, HostGauges};

use crate::layer::{Layer, LayerKind};

/// File systems that other hosts mount too, or that a server of its own has cached. By type and not by
/// the magic number of statfs(2): under FUSE that is one for all, and the call may hang with the server.
const SHARED_FILE_SYSTEMS: [&str; 16] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "fuse.ceph",
    "fuse.glusterfs",
    "glusterfs",
    "ocfs2",
    "gfs2",
    "lustre",
    "gpfs",
    "beegfs",
    "9p",
    "virtiofs",
    "fuse.sshfs",
];

/// When no disk goes over to buffered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferedLimits {
    /// Greatest share of time, in percent, in which something waits for memory (`/proc/pressure/memory`,
    /// `some`, mean of 10 s).
    pub memory_pressure_percent: u8,
    /// Least share of the host's memory, in percent, that is available (`MemAvailable`).
    pub available_memory_percent: u8,
    /// Greatest share, in percent, of the memory limit of the guest's control group that is taken by what
    /// cannot be dropped.
    pub group_memory_percent: u8,
}

impl Default for BufferedLimits {
    fn default() -> Self {
        Self {
            memory_pressure_percent: 10,
            available_memory_percent: 10,
            group_memory_percent: 90,
        }
    }
}

/// What the masks of a disk's cache strategy depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheFacts<'a> {
    /// Whether its XML alone bars a change.
    pub(crate) is_barred: bool,
    /// Whether a job runs on it; `None` where its guest does not answer.
    pub(crate) job_runs: Option<bool>,
    /// Whether its block nodes are known.
    pub(crate) has_nodes: bool,
    /// Whether it runs `aio=native`.
    pub(crate) is_native: bool,
    /// What is in force.
    pub(crate) current: Cache,
    /// What would be in force without us.
    pub(crate) default: Cache,
    /// What its dirty pages say of a change to `direct`.
    pub(crate) direct: MaskReason,
    /// Whether other hosts use its storage too.
    pub(crate) is_shared: bool,
    /// Whether a write of it has failed in this life of its guest.
    pub(crate) has_write_errors: bool,
    /// How much of the memory that its guest's control group may have is taken, 0 to 1; `None` without a
    /// limit.
    pub(crate) group_memory: Option<f32>,
    /// The host's memory.
    pub(crate) host: &'a HostGauges,
}

/// Direct, buffered.
pub(crate) fn cache_mask(facts: &CacheFacts<'_>, limits: &BufferedLimits) -> [MaskReason; 2] {
    let both = match facts.job_runs {
        _ if facts.is_barred => MaskReason::Unsupported,
        // A guest whose monitor does not answer now would not take the change either.
        None => MaskReason::Unresponsive,
        Some(true) => MaskReason::JobRunning,
        Some(false) if !facts.has_nodes && !facts.is_native => MaskReason::Unsupported,
        Some(false) => MaskReason::Allowed,
    };
    if both.is_allowed() {
        [direct(facts), buffered(facts, limits)]
    } else {
        [both; 2]
    }
}

fn direct(facts: &CacheFacts<'_>) -> MaskReason {
    match facts.current {
        Cache::Direct => MaskReason::Allowed,
        Cache::Buffered => facts.direct,
    }
}

fn buffered(facts: &CacheFacts<'_>, limits: &BufferedLimits) -> MaskReason {
    if facts.is_native {
        MaskReason::AioNative
    } else if facts.default == Cache::Buffered {
        // What the operator has chosen is not ours to bar.
        MaskReason::Allowed
    } else if facts.is_shared {
        MaskReason::SharedStorage
    } else if facts.has_write_errors {
        MaskReason::WriteErrors
    } else if facts.current == Cache::Buffered {
        // The kernel takes clean pages back by itself, and a flush of the others would not help now.
        MaskReason::Allowed
    } else if is_above(facts.group_memory, limits.group_memory_percent) {
        MaskReason::MemoryLimit
    } else if is_short(facts.host, limits) {
        MaskReason::MemoryPressure
    } else {
        MaskReason::Allowed
    }
}

fn is_short(host: &HostGauges, limits: &BufferedLimits) -> bool {
    let total = host.mem_total_bytes.max(1) as f32;
    let available = host.mem_available_bytes as f32 / total;
    let least = f32::from(limits.available_memory_percent) / 100.0;
    available < least || is_above(host.psi_memory.ok(), limits.memory_pressure_percent)
}

fn is_above(share: Option<f32>, percent: u8) -> bool {
    share.is_some_and(|share| share > f32::from(percent) / 100.0)
}

/// Whether an image lies on a file system that other hosts may use too.
pub(crate) fn is_on_shared_storage(stack: &Layer) -> bool {
    let is_shared =
        stack.kind == LayerKind::FileSystem && SHARED_FILE_SYSTEMS.contains(&stack.name.as_str());
    is_shared || stack.below.iter().any(is_on_shared_storage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const HOST: HostGauges = HostGauges {
        cpus: 2,
        cpu_busy_ns: 0,
        mem_total_bytes: 100,
        mem_available_bytes: 50,
        dirty_bytes: 0,
        dirty_limit_bytes: 20,
        psi_cpu: Ok(0.0),
        psi_io: Ok(0.0),
        psi_memory: Ok(0.02),
    };

    const FACTS: CacheFacts<'static> = CacheFacts {
        is_barred: false,
        job_runs: Some(false),
        has_nodes: true,
        is_native: false,
        current: Cache::Direct,
        default: Cache::Direct,
        direct: MaskReason::Allowed,
        is_shared: false,
        has_write_errors: false,
        group_memory: Some(0.5),
        host: &HOST,
    };

    fn masks(facts: &CacheFacts<'_>) -> [MaskReason; 2] {
        cache_mask(facts, &BufferedLimits::default())
    }

    fn buffered_of(facts: &CacheFacts<'_>) -> MaskReason {
        let [direct, buffered] = masks(facts);
        assert_eq!(direct, MaskReason::Allowed);
        buffered
    }

    #[test]
    fn a_healthy_disk_has_both() {
        assert_eq!(masks(&FACTS), [MaskReason::Allowed; 2]);
    }

    #[test]
    fn what_bars_every_change_bars_both() {
        let both = |facts: CacheFacts<'_>| {
            let [direct, buffered] = masks(&facts);
            assert_eq!(direct, buffered);
            direct
        };
        let changed = CacheFacts {
            is_barred: true,
            ..FACTS
        };
        assert_eq!(both(changed), MaskReason::Unsupported);
        let changed = CacheFacts {
            job_runs: None,
            ..FACTS
        };
        assert_eq!(both(changed), MaskReason::Unresponsive);
        let changed = CacheFacts {
            job_runs: Some(true),
            ..FACTS
        };
        assert_eq!(both(changed), MaskReason::JobRunning);
        let changed = CacheFacts {
            has_nodes: false,
            ..FACTS
        };
        assert_eq!(both(changed), MaskReason::Unsupported);
    }

    #[test]
    fn what_makes_buffered_unsafe_closes_it_whether_it_is_in_force_or_not() {
        for current in [Cache::Direct, Cache::Buffered] {
            let facts = CacheFacts { current, ..FACTS };
            let native = CacheFacts {
                is_native: true,
                ..facts
            };
            assert_eq!(buffered_of(&native), MaskReason::AioNative);
            let shared = CacheFacts {
                is_shared: true,
                ..facts
            };
            assert_eq!(buffered_of(&shared), MaskReason::SharedStorage);
            let failed = CacheFacts {
                has_write_errors: true,
                ..facts
            };
            assert_eq!(buffered_of(&failed), MaskReason::WriteErrors);
        }
    }

    #[test]
    fn lack_of_memory_closes_the_way_in_and_throws_nobody_out() {
        let is_allowed_when_buffered = |facts: CacheFacts<'_>| {
            let inside = CacheFacts {
                current: Cache::Buffered,
                ..facts
            };
            assert_eq!(buffered_of(&inside), MaskReason::Allowed);
        };
        for (share, reason) in [
            (Some(0.90), MaskReason::Allowed),
            (Some(0.91), MaskReason::MemoryLimit),
            (None, MaskReason::Allowed),
        ] {
            let facts = CacheFacts {
                group_memory: share,
                ..FACTS
            };
            assert_eq!(buffered_of(&facts), reason, "{share:?}");
            is_allowed_when_buffered(facts);
        }
        let gauges = |available, pressure| HostGauges {
            mem_available_bytes: available,
            psi_memory: pressure,
            ..HOST
        };
        use blkpilot_env::observation::Validity;
        for (host, reason) in [
            (gauges(10, Ok(0.10)), MaskReason::Allowed),
            (gauges(9, Ok(0.0)), MaskReason::MemoryPressure),
            (gauges(50, Ok(0.11)), MaskReason::MemoryPressure),
            (gauges(50, Err(Validity::Unsupported)), MaskReason::Allowed),
        ] {
            let facts = CacheFacts {
                host: &host,
                ..FACTS
            };
            assert_eq!(buffered_of(&facts), reason, "{host:?}");
            is_allowed_when_buffered(facts);
        }
    }

    #[test]
    fn limits_are_those_of_the_configuration() {
        let none = BufferedLimits {
            memory_pressure_percent: 100,
            available_memory_percent: 0,
            group_memory_percent: 100,
        };
        let host = HostGauges {
            mem_available_bytes: 0,
            psi_memory: Ok(1.0),
            ..HOST
        };
        let facts = CacheFacts {
            host: &host,
            group_memory: Some(1.0),
            ..FACTS
        };
        assert_eq!(cache_mask(&facts, &none), [MaskReason::Allowed; 2]);
    }

    #[test]
    fn what_the_guest_was_booted_with_is_never_barred() {
        let facts = CacheFacts {
            default: Cache::Buffered,
            is_shared: true,
            has_write_errors: true,
            group_memory: Some(1.0),
            ..FACTS
        };
        assert_eq!(buffered_of(&facts), MaskReason::Allowed);
    }

    #[test]
    fn dirty_pages_close_direct_to_a_buffered_disk_alone() {
        let facts = CacheFacts {
            direct: MaskReason::WritingBack,
            ..FACTS
        };
        assert_eq!(masks(&facts), [MaskReason::Allowed; 2]);
        let inside = CacheFacts {
            current: Cache::Buffered,
            ..facts
        };
        assert_eq!(
            masks(&inside),
            [MaskReason::WritingBack, MaskReason::Allowed]
        );
    }

    #[test]
    fn file_systems_of_several_hosts_are_known_wherever_they_are_in_the_stack() {
        let layer = |kind, name: &str| Layer::new(kind, name.to_owned(), Path::new("/"));
        let on = |kind: &str| {
            let below = layer(LayerKind::FileSystem, kind);
            layer(LayerKind::File, "/i.img").on(vec![below])
        };
        for kind in ["nfs4", "ceph", "ocfs2", "gfs2", "fuse.glusterfs"] {
            assert!(is_on_shared_storage(&on(kind)), "{kind}");
        }
        for kind in ["ext4", "xfs", "btrfs", "fuse"] {
            assert!(!is_on_shared_storage(&on(kind)), "{kind}");
        }
        let file_called_so = layer(LayerKind::File, "nfs");
        assert!(!is_on_shared_storage(&file_called_so));
    }
}
