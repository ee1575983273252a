//! The live host: telemetry, knobs and journal over libvirt, QMP, procfs and sysfs.

pub mod cpuset;
mod element;
#[cfg(test)]
mod fake;
pub mod error;
pub mod guest;
pub mod hypervisor;
pub mod inventory;
pub mod journal;
pub mod knob;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod process;
pub mod qmp;
pub mod stats;
pub mod tuner;

pub use cpuset::CpuSet;
pub use error::{HostError, HostResult};
pub use guest::{Guest, GuestDisk, KnobKind, OptIn, TuningMode};
pub use hypervisor::Hypervisor;
#[cfg(feature = "libvirt")]
pub use libvirt::Libvirt;
