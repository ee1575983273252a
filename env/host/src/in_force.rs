//! What is in force, as far as it can be seen without asking a guest: from the kernel, and from the
//! statistics that a sample has anyway.

use crate::disk_setting::DiskSetting;
use crate::inventory::RunningGuest;
use crate::knob::{BUFFERED, DIRECT, Knob};
use crate::stats::GuestStats;

/// The value of a knob in its canonical form; `None` where it cannot be seen so. It may be older
/// than our last change, so it is reason to ask and no more.
pub(crate) fn seen(stats: &[GuestStats], running: &RunningGuest, knob: &Knob) -> Option<String> {
    match knob {
        Knob::Channel { iothread } => {
            let process = running.process.as_ref()?;
            let threads = process.threads().ok()?;
            let cpus = process.affinity(*threads.iothreads.get(iothread)?);
            cpus.ok().map(|cpus| cpus.to_string())
        }
        Knob::Polling { iothread } => {
            let uuid = &running.guest.uuid;
            let stats = stats.iter().find(|stats| stats.uuid == *uuid)?;
            stats.poll_max_ns.get(iothread).map(u64::to_string)
        }
        Knob::Cache { target } => {
            let image = running.guest.disk(target)?.source.as_ref()?;
            let is_direct = running.process.as_ref()?.is_direct(image)?;
            Some(if is_direct { DIRECT } else { BUFFERED }.to_owned())
        }
        Knob::Disk { target, setting } => match setting {
            // The XML is read again every few seconds; libvirt's event is faster.
            DiskSetting::Throttle => Some(running.guest.disk(target)?.throttle.to_string()),
            DiskSetting::Qcow2Cache => None,
        },
        Knob::Histogram { .. } | Knob::Device(_) => None,
    }
}
