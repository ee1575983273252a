//! The live host: telemetry, knobs and journal over libvirt, QMP, procfs and sysfs.

pub mod advice;
pub mod backing_device;
pub mod block_device;
pub mod block_stack;
pub mod cachestat;
pub mod cgroup;
pub mod channel;
pub mod cpuset;
pub mod device;
pub mod disk_setting;
mod element;
pub mod error;
#[cfg(test)]
mod fake;
pub mod guest;
pub mod hardware_queue;
pub mod hypervisor;
pub mod image_chain;
mod in_force;
pub mod interrupts;
pub mod inventory;
pub mod journal;
pub mod knob;
pub mod layer;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod live;
mod monitor_reader;
mod mounts;
pub mod process;
pub mod procfs_host;
pub mod qcow2;
pub mod qcow2_cache;
pub mod qmp;
mod settable;
mod size;
pub mod stats;
mod stats_reader;
mod sysfs;
mod telemetry;
pub mod throttle;
pub mod topology;
pub mod tuner;
pub mod undo_script;

pub use backing_device::BackingDevice;
pub use block_stack::Resolver;
pub use channel::{Channel, ChannelConfig, Channels};
pub use cpuset::CpuSet;
pub use device::{DeviceChange, DeviceKnob, DeviceRules, Devices};
pub use disk_setting::{DiskBounds, DiskChange, DiskSetting, DiskState};
pub use error::{HostError, HostResult};
pub use guest::{Guest, GuestDisk, GuestOverride, KnobKind, OptIn, TuningMode};
pub use hypervisor::{Hypervisor, TunedByOthers};
pub use inventory::{Inventory, RunningGuest};
pub use knob::{Change, Knob};
#[cfg(feature = "libvirt")]
pub use libvirt::Libvirt;
pub use live::{BootClock, Connector, Execution, LiveHost, LiveHostConfig};
pub use telemetry::default_reference;
pub use topology::Topology;
pub use tuner::{Applied, Outcome, Scope, Settlement, Tuner, Way};
