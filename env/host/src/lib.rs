//! The live host: telemetry, knobs and journal over libvirt, QMP, procfs and sysfs.

pub mod cachestat;
pub mod channel;
pub mod cpuset;
pub mod device;
mod element;
pub mod error;
#[cfg(test)]
mod fake;
pub mod guest;
pub mod hypervisor;
mod in_force;
pub mod inventory;
pub mod journal;
pub mod knob;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod live;
mod monitor_reader;
pub mod process;
pub mod procfs_host;
pub mod qmp;
mod settable;
pub mod stats;
mod stats_reader;
pub mod sysfs;
mod telemetry;
pub mod tuner;
pub mod undo_script;

pub use channel::{Channel, ChannelConfig, Channels};
pub use cpuset::CpuSet;
pub use device::{DeviceChange, DeviceKnob, DeviceRules, Devices};
pub use error::{HostError, HostResult};
pub use guest::{Guest, GuestDisk, GuestOverride, KnobKind, OptIn, TuningMode};
pub use hypervisor::Hypervisor;
pub use inventory::{Inventory, RunningGuest};
pub use knob::{Change, Knob};
#[cfg(feature = "libvirt")]
pub use libvirt::Libvirt;
pub use live::{BootClock, Connector, Execution, LiveHost, LiveHostConfig};
pub use telemetry::default_reference;
pub use tuner::{Applied, Outcome, Scope, Settlement, Tuner};
