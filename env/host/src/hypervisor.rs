//! What blkpilot needs from a hypervisor, so that knobs and telemetry can be tested without one.

use std::sync::Arc;

use crate::cpuset::CpuSet;
use crate::error::HostResult;
use crate::knob::Knob;
use crate::stats::GuestStats;
use crate::throttle::Throttle;

/// A change of a knob that somebody else has made, as the hypervisor tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunedByOthers {
    /// UUID of the guest.
    pub uuid: String,
    /// The knob.
    pub knob: Knob,
    /// Its value then, in canonical form; of a throttle the parameters that were named, see
    /// [`Throttle`].
    pub value: String,
}

/// Called when there may be something to see; from any thread, often, and without time to lose.
pub type Ring = Arc<dyn Fn() + Send + Sync>;

/// A connection to a hypervisor. Guests are named by UUID; all calls may block.
///
/// Every method can fail with `Disconnected`, and those with a guest with `GuestGone`.
pub trait Hypervisor: Send + Sync {
    /// Statistics of all running guests; one that is busy has fewer of them, none is waited for.
    ///
    /// # Errors
    /// See the trait.
    fn guest_stats(&self) -> HostResult<Vec<GuestStats>>;

    /// The domain XML of a running guest.
    ///
    /// # Errors
    /// See the trait.
    fn guest_xml(&self, uuid: &str) -> HostResult<String>;

    /// The IOThreads of a running guest with the CPUs on which each may run now.
    ///
    /// # Errors
    /// See the trait.
    fn iothread_cpus(&self, uuid: &str) -> HostResult<Vec<(u32, CpuSet)>>;

    /// Binds an IOThread to host CPUs, on the running guest only.
    ///
    /// # Errors
    /// See the trait; `Libvirt` for CPUs that do not exist.
    fn pin_iothread(&self, uuid: &str, iothread: u32, cpus: &CpuSet) -> HostResult<()>;

    /// How long an IOThread of a running guest polls at most; `None` when there is no such IOThread.
    ///
    /// # Errors
    /// See the trait.
    fn poll_max_ns(&self, uuid: &str, iothread: u32) -> HostResult<Option<u64>>;

    /// Sets how long an IOThread polls at most, on the running guest only; 0 switches polling off.
    ///
    /// # Errors
    /// See the trait.
    fn set_poll_max_ns(&self, uuid: &str, iothread: u32, poll_max_ns: u64) -> HostResult<()>;

    /// The limits of a disk of a running guest.
    ///
    /// # Errors
    /// See the trait; `Libvirt` where there is no such disk.
    fn throttle(&self, uuid: &str, target: &str) -> HostResult<Throttle>;

    /// Sets all limits of a disk, on the running guest only.
    ///
    /// # Errors
    /// See the trait; `Libvirt` for limits that libvirt or QEMU does not take.
    fn set_throttle(&self, uuid: &str, target: &str, throttle: &Throttle) -> HostResult<()>;

    /// Runs a command of QEMU's monitor (JSON) and returns its reply (JSON). It marks the guest as
    /// tampered with, so it is only for guests that opted in.
    ///
    /// # Errors
    /// See the trait. A refusal by QEMU is a reply, not an error.
    fn monitor(&self, uuid: &str, command: &str) -> HostResult<String>;

    /// Whether a block job runs on the disk, or a libvirt job (save, migration, backup) on the guest.
    ///
    /// # Errors
    /// See the trait.
    fn job_runs(&self, uuid: &str, target: &str) -> HostResult<bool>;

    /// Whether a running guest is migrating to another host. Told without waiting for the migration.
    ///
    /// # Errors
    /// See the trait.
    fn migrates(&self, uuid: &str) -> HostResult<bool>;

    /// What others have changed since this was last called, oldest first; from the first call on, and
    /// only of knobs that the hypervisor tells of. Our own changes through this connection are not
    /// among them. One that is on its way yet is in the next answer.
    fn tuned_by_others(&self) -> Vec<TunedByOthers>;

    /// Lets `ring` be called, for as long as the connection is held, whenever guests may be others than
    /// before: one has come or gone, got or lost a device, its metadata has changed, a job has ended, or
    /// the connection was lost, after which no more is told. Only the first call of a connection counts.
    /// A hypervisor that cannot tell does not call.
    fn watch_guests(&self, ring: &Ring);
}
