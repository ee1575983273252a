//! The host as a whole from procfs: CPU time, memory, pressure, and the counters of devices.

use std::collections::BTreeMap;
use std::path::Path;

use blkpilot_env::observation::Validity;
use blkpilot_env::sample::{HostGauges, OpCounters, Reading};
use procfs::{
    CpuPressure, CpuTime, DiskStats, FromRead, FromReadSI as _, IoPressure, KernelStats,
    LocalSystemInfo, Meminfo, MemoryPressure, ProcError,
};

use crate::error::{HostError, HostResult};

/// The kernel counts sectors of this size whatever the device's own is.
const SECTOR_BYTES: u64 = 512;
const NS_PER_MS: u64 = 1_000_000;

/// CPU time of one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTimes {
    /// Anything but idle, nanoseconds.
    pub busy_ns: u64,
    /// Running vCPUs of KVM, nanoseconds.
    pub guest_ns: u64,
}

/// Counters of one block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceCounters {
    /// Completed reads.
    pub reads: OpCounters,
    /// Completed writes.
    pub writes: OpCounters,
    /// Time with at least one request in flight, nanoseconds.
    pub busy_ns: u64,
}

/// CPU time by CPU.
///
/// # Errors
/// `Io`.
pub fn cpu_times(proc_root: &Path) -> HostResult<Vec<CpuTimes>> {
    let stat = read(proc_root, "stat", |path| {
        KernelStats::from_file(path, &LocalSystemInfo)
    })?;
    Ok(stat.cpu_time.iter().map(times_of).collect())
}

fn times_of(cpu: &CpuTime) -> CpuTimes {
    // `user` and `nice` contain the guest time.
    let busy = cpu.user_duration() + cpu.nice_duration() + cpu.system_duration();
    let interrupts =
        cpu.irq_duration().unwrap_or_default() + cpu.softirq_duration().unwrap_or_default();
    let busy = busy + interrupts + cpu.steal_duration().unwrap_or_default();
    let guest =
        cpu.guest_duration().unwrap_or_default() + cpu.guest_nice_duration().unwrap_or_default();
    CpuTimes {
        busy_ns: busy.as_nanos() as u64,
        guest_ns: guest.as_nanos() as u64,
    }
}

/// Counters by kernel name of the device.
///
/// # Errors
/// `Io`.
pub fn device_counters(proc_root: &Path) -> HostResult<BTreeMap<String, DeviceCounters>> {
    let DiskStats(stats) = read(proc_root, "diskstats", |path| DiskStats::from_file(path))?;
    let counters = |requests, sectors: u64, ms: u64| OpCounters {
        requests,
        bytes: sectors * SECTOR_BYTES,
        time_ns: ms * NS_PER_MS,
    };
    let device = |stat: procfs::DiskStat| {
        let counters = DeviceCounters {
            reads: counters(stat.reads, stat.sectors_read, stat.time_reading),
            writes: counters(stat.writes, stat.sectors_written, stat.time_writing),
            busy_ns: stat.time_in_progress * NS_PER_MS,
        };
        (stat.name, counters)
    };
    Ok(stats.into_iter().map(device).collect())
}

/// Memory, pressure and CPU time of the host.
///
/// # Errors
/// `Io`.
pub fn host_gauges(proc_root: &Path, cpus: &[CpuTimes]) -> HostResult<HostGauges> {
    let memory = read(proc_root, "meminfo", |path| Meminfo::from_file(path))?;
    Ok(HostGauges {
        cpus: cpus.len() as u32,
        cpu_busy_ns: cpus.iter().map(|cpu| cpu.busy_ns).sum(),
        mem_total_bytes: memory.mem_total,
        mem_available_bytes: memory.mem_available.unwrap_or(memory.mem_free),
        dirty_bytes: memory.dirty,
        dirty_limit_bytes: dirty_limit_bytes(proc_root)?,
        psi_cpu: pressure(proc_root, "cpu", |CpuPressure { some, .. }| some.avg10),
        psi_io: pressure(proc_root, "io", |IoPressure { some, .. }| some.avg10),
        psi_memory: pressure(proc_root, "memory", |MemoryPressure { some, .. }| {
            some.avg10
        }),
    })
}

/// Where the kernel throttles writers: `vm.dirty_ratio` of what it counts as dirtyable.
fn dirty_limit_bytes(proc_root: &Path) -> HostResult<u64> {
    let path = proc_root.join("vmstat");
    let text = std::fs::read_to_string(&path).map_err(HostError::io(&path))?;
    let pages = text.lines().find_map(|line| {
        line.strip_prefix("nr_dirty_threshold ")?
            .parse::<u64>()
            .ok()
    });
    pages
        .map(|pages| pages * procfs::page_size())
        .ok_or_else(|| HostError::parse("nr_dirty_threshold of vmstat", &text))
}

/// A pressure as a share; `Unsupported` where the kernel was started without PSI.
fn pressure<T: FromRead>(
    proc_root: &Path,
    resource: &str,
    percent: impl Fn(T) -> f32,
) -> Reading<f32> {
    let read = T::from_file(proc_root.join("pressure").join(resource));
    read.map(|pressure| percent(pressure) / 100.0)
        .map_err(|_| Validity::Unsupported)
}

fn read<T>(
    proc_root: &Path,
    file: &str,
    parse: impl FnOnce(&Path) -> Result<T, ProcError>,
) -> HostResult<T> {
    let path = proc_root.join(file);
    parse(&path).map_err(|error| HostError::Io {
        path,
        source: std::io::Error::other(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_hosts_own_files_are_understood() {
        let proc_root = Path::new("/proc");
        let cpus = cpu_times(proc_root).unwrap();
        let gauges = host_gauges(proc_root, &cpus).unwrap();
        assert!(!cpus.is_empty() && gauges.mem_total_bytes >= gauges.mem_available_bytes);
        assert!(gauges.dirty_limit_bytes > 0);
    }

    #[test]
    fn sectors_and_milliseconds_become_bytes_and_nanoseconds() {
        let root = tempfile::tempdir().unwrap();
        let line = " 259 0 nvme0n1 10 1 16 4 20 2 32 6 0 9 10 0 0 0 0\n";
        fs::write(root.path().join("diskstats"), line).unwrap();
        let device = device_counters(root.path()).unwrap()["nvme0n1"];
        assert_eq!(
            device.reads,
            OpCounters {
                requests: 10,
                bytes: 8_192,
                time_ns: 4_000_000
            }
        );
        assert_eq!((device.writes.requests, device.busy_ns), (20, 9_000_000));
    }

    #[test]
    fn missing_pressure_is_unsupported() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(
            pressure(root.path(), "cpu", |CpuPressure { some, .. }| some.avg10),
            Err(Validity::Unsupported)
        );
    }
}
