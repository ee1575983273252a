//! Reads what the rules need: definitions and statistics from libvirt, the rest from procfs and sysfs.
//! Nothing is written, and no guest's monitor is used by us.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::facts::{DeviceFacts, Storage};
use super::{HostFacts, Subject, SubjectDisk, Version};
use crate::backing_device::BackingDevice;
use crate::block_stack::Resolver;
use crate::error::{HostError, HostResult};
use crate::hypervisor::Hypervisor;
use crate::libvirt::Libvirt;
use crate::process::find_qemus;
use crate::stats::GuestStats;
use crate::stats_reader::StatsReader;
use crate::tuning_daemon::tuning_daemons;

/// Blocks of stat(2) have this size whatever the file system's own is.
const STAT_BLOCK_BYTES: u64 = 512;

/// All that the rules need.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// All guests that could be read, running or not, by name.
    pub guests: Vec<Subject>,
    /// The host.
    pub host: HostFacts,
    /// Names of guests that could not be read, with the reason.
    pub unreadable: Vec<(String, String)>,
}

/// Surveys the host of a libvirt connection, which is opened read-only; running guests are measured for
/// `window`. Blocks for as long.
///
/// # Errors
/// `Unsupported` for a libvirt on another machine; `Disconnected`; `Late` when guests hang; `Io` for
/// procfs and sysfs.
pub fn survey(uri: &str, window: Duration) -> HostResult<Survey> {
    if let Some(machine) = machine_of(uri) {
        return Err(HostError::Unsupported {
            what: format!("advice about another machine ({uri})"),
            reason: format!("procfs, sysfs and the images are looked at here: run it on {machine}"),
        });
    }
    let libvirt = Libvirt::connect_read_only(uri)?;
    let version = Version::from_libvirt;
    let (qemu, own) = (
        version(libvirt.qemu_version()?),
        version(libvirt.libvirt_version()?),
    );
    let (proc, sys) = (Path::new("/proc"), Path::new("/sys"));
    let mut host = HostFacts::read(proc, sys, qemu, own)?;
    let (definitions, mut unreadable) = libvirt.definitions()?;
    let mut guests = Vec::new();
    for (name, definition) in definitions {
        match Subject::from_definition(&definition) {
            Ok(guest) => guests.push(guest),
            Err(error) => unreadable.push((name, error.to_string())),
        }
    }
    host.daemons = tuning_daemons(proc, Path::new("/"));
    let mut qemus = find_qemus(proc)?;
    for guest in &mut guests {
        let own = qemus.remove(&guest.guest.uuid).unwrap_or_default();
        guest.qemu_pid = own.first().map(|process| process.pid);
    }
    measure(uri, window, &mut guests)?;
    let resolver = Resolver::new(sys, proc);
    for disk in guests.iter_mut().flat_map(|guest| &mut guest.disks) {
        look_at_image(&resolver, disk, &mut host);
    }
    Ok(Survey {
        guests,
        host,
        unreadable,
    })
}

/// The machine that a URI names: what stands between `//` and the path.
fn machine_of(uri: &str) -> Option<&str> {
    let machine = uri.split_once("://")?.1.split('/').next()?;
    (!machine.is_empty()).then_some(machine)
}

fn measure(uri: &str, window: Duration, guests: &mut [Subject]) -> HostResult<()> {
    if !guests.iter().any(|guest| guest.is_running) {
        return Ok(());
    }
    let connect = || Ok(Arc::new(Libvirt::connect_read_only(uri)?) as Arc<dyn Hypervisor>);
    let mut reader = StatsReader::default();
    let before = reader.read(&connect)?;
    let start = Instant::now();
    thread::sleep(window);
    let after = reader.read(&connect)?;
    let span_s = start.elapsed().as_secs_f64();
    for guest in guests {
        let of = |stats: &[GuestStats]| {
            let mut stats = stats.iter();
            stats.find(|stats| stats.uuid == guest.guest.uuid).cloned()
        };
        if let (Some(before), Some(after)) = (of(&before), of(&after)) {
            guest.measure(&before, &after, span_s);
        }
    }
    Ok(())
}

fn look_at_image(resolver: &Resolver, disk: &mut SubjectDisk, host: &mut HostFacts) {
    let Some(image) = &disk.disk.source else {
        return;
    };
    disk.storage = Storage::of_image(image);
    disk.has_holes = has_holes(image);
    disk.device = BackingDevice::of_image(resolver, image).ok();
    for leaf in disk.device.iter().flat_map(|device| &device.leaves) {
        let known = host.devices.entry(leaf.clone());
        known.or_insert_with(|| DeviceFacts::read(resolver.sys(), leaf));
    }
}

fn has_holes(image: &Path) -> Option<bool> {
    let metadata = fs::metadata(image).ok()?;
    let is_device = metadata.file_type().is_block_device();
    Some(!is_device && metadata.blocks() * STAT_BLOCK_BYTES < metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_that_names_a_machine_is_refused() {
        assert_eq!(
            machine_of("qemu+ssh://root@node7/system"),
            Some("root@node7")
        );
        assert_eq!(machine_of("qemu:///system"), None);
        assert_eq!(machine_of("qemu+unix:///system?socket=/run/x"), None);
        let error = survey("qemu+ssh://node7/system", Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("run it on node7"), "{error}");
    }
}
