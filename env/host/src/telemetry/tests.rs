//! What a sample says of the cache strategy of a guest that only the monitor and the statistics tell of.

use super::*;
use crate::channel::ChannelConfig;
use crate::fake::{FakeHypervisor, UUID};
use crate::journal::Journal;
use crate::topology::Topology;

struct Bench {
    host: Arc<FakeHypervisor>,
    telemetry: Telemetry,
    tuner: Tuner,
    channels: Channels,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// The fake guest, with an image that lies on a device of this machine.
    fn new() -> Self {
        let mut host = FakeHypervisor::default();
        let image = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        host.xml = host.xml.replace("/i.img", image);
        let dir = tempfile::tempdir().unwrap();
        let (proc_root, sys_root) = (Path::new("/proc"), Path::new("/sys"));
        let topology = Topology::read(sys_root, proc_root).unwrap();
        let cores = ChannelConfig::Cores;
        Self {
            host: Arc::new(host),
            telemetry: Telemetry::new(proc_root, sys_root, BTreeMap::new()),
            tuner: Tuner::new(Journal::open(&dir.path().join("journal.db")).unwrap()),
            channels: Channels::new(&cores, &topology, &CpuSet::default()).unwrap(),
            _dir: dir,
        }
    }

    fn cache_mask(&mut self) -> [MaskReason; 2] {
        self.sample_in(1).disks[0].masks.cache
    }

    /// A sample of the guest in the life that began at `started`, however short the host is of memory.
    fn sample_in(&mut self, started: u64) -> HostSample {
        let hypervisor: Arc<dyn Hypervisor> = self.host.clone();
        let stats = hypervisor.guest_stats().unwrap();
        let unlimited = BufferedLimits {
            memory_pressure_percent: 100,
            available_memory_percent: 0,
            group_memory_percent: 100,
        };
        let sources = Sources {
            hypervisor: &hypervisor,
            inventory: &self.host.inventory(started),
            stats: &stats,
            channels: &self.channels,
            tuner: &self.tuner,
            dedicated: &DedicatedCpus::default(),
            buffered: &unlimited,
            now: Duration::ZERO,
        };
        // A monitor that is late on a busy machine answers at a later sample.
        loop {
            let sample = self.telemetry.sample(&sources).unwrap();
            if sample.disks[0].masks.cache[0] != MaskReason::Unresponsive {
                return sample;
            }
        }
    }
}

#[test]
fn what_the_cache_did_is_remembered_from_sample_to_sample() {
    let mut bench = Bench::new();
    let before = bench.sample_in(1).disks.remove(0);
    assert_eq!(before.last_hits, None);
    // As if it had been buffered until now, and had read.
    let id = before.id.clone();
    let hits = LastHits {
        rate: 0.6,
        cached_bytes: 1e9,
        age: Duration::from_secs(2),
    };
    let last = bench.telemetry.last.get_mut(&id).unwrap();
    last.sample.last_hits = Some(hits);
    assert_eq!(bench.sample_in(1).disks[0].last_hits, Some(hits));
    bench.telemetry.last.clear();
    assert_eq!(bench.sample_in(1).disks[0].last_hits, None);
}

#[test]
fn a_disk_whose_writes_have_failed_is_not_buffered() {
    let mut bench = Bench::new();
    assert_eq!(bench.cache_mask(), [MaskReason::Allowed; 2]);
    bench.host.failed_writes.set(1);
    assert_eq!(
        bench.cache_mask(),
        [MaskReason::Allowed, MaskReason::WriteErrors]
    );
}

#[test]
fn a_pause_on_an_error_is_remembered_for_this_life_of_the_guest() {
    let mut bench = Bench::new();
    bench.host.is_paused_on_error.set(true);
    bench.cache_mask();
    bench.host.is_paused_on_error.set(false);
    assert_eq!(bench.cache_mask()[1], MaskReason::WriteErrors);
    let restarted = bench.sample_in(2);
    assert_eq!(restarted.disks[0].masks.cache[1], MaskReason::Allowed);
}

#[test]
fn a_migration_is_told_from_other_jobs() {
    let mut bench = Bench::new();
    bench.host.job.set(true);
    assert_eq!(bench.cache_mask(), [MaskReason::JobRunning; 2]);
    assert_eq!(bench.telemetry.migrating(), []);
    bench.host.migration.set(true);
    assert_eq!(bench.cache_mask(), [MaskReason::JobRunning; 2]);
    assert_eq!(bench.telemetry.migrating()[0].uuid, UUID);
}
