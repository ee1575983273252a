//! Which block devices there are, whatever the kernel calls them, and which may be changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::DeviceKnob;
use super::queue::{Queue, Writer};
use crate::error::{HostError, HostResult};
use crate::journal::DeviceLife;
use crate::knob::Purpose;

/// What may be changed, by kernel name or stable id of the device. What is not named is never written.
pub type DeviceRules = BTreeMap<String, BTreeSet<DeviceKnob>>;

/// A block device as it is called now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Kernel name, such as `nvme0n1`; after a reboot it may be another device's.
    pub name: String,
    /// See [`stable_id`].
    pub id: String,
}

/// The block devices of this host.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    sys: PathBuf,
    rules: DeviceRules,
    writer: Writer,
}

impl Devices {
    /// Those below this root of sysfs, under these rules.
    #[must_use]
    pub fn new(sys: &Path, rules: DeviceRules) -> Self {
        Self {
            sys: sys.to_owned(),
            rules,
            writer: Writer::default(),
        }
    }

    /// As they are, but written by other means.
    #[cfg(test)]
    pub(crate) fn written_by(self, writer: Writer) -> Self {
        Self { writer, ..self }
    }

    /// Whether a setting may be changed on any device at all.
    #[must_use]
    pub fn enables(&self, knob: DeviceKnob) -> bool {
        self.rules.values().any(|knobs| knobs.contains(&knob))
    }

    /// What may be changed on a device.
    #[must_use]
    pub fn enabled(&self, device: &Device) -> BTreeSet<DeviceKnob> {
        let rules = [&device.name, &device.id].map(|key| self.rules.get(key));
        rules.into_iter().flatten().flatten().copied().collect()
    }

    /// Devices on which something may be changed, by kernel name.
    ///
    /// # Errors
    /// `Io` when sysfs cannot be read.
    pub fn changeable(&self) -> HostResult<Vec<Device>> {
        if self.rules.is_empty() {
            return Ok(vec![]);
        }
        let devices = self.names()?.into_iter().filter_map(|name| {
            let id = stable_id(&self.directory(&name))?;
            Some(Device { name, id })
        });
        Ok(devices
            .filter(|device| !self.enabled(device).is_empty())
            .collect())
    }

    /// The device of this kernel name.
    ///
    /// # Errors
    /// `Unsupported` when there is none, when nothing tells it from others for good, or when another
    /// one has the same id (paths to one disk): a way back could not be told from another's. `Io`
    /// when sysfs cannot be read.
    pub fn device(&self, name: &str) -> HostResult<Device> {
        let refused = |reason: &str| HostError::Unsupported {
            what: format!("device {name}"),
            reason: reason.to_owned(),
        };
        if !self.names()?.iter().any(|known| known == name) {
            return Err(refused("there is none of this name in /sys/block"));
        }
        let id = stable_id(&self.directory(name)).ok_or_else(|| {
            refused("it has no WWID, serial number, dm or md UUID or backing file, so that after a rename a way back could hit another device")
        })?;
        self.only(&id)?.ok_or_else(|| refused("it has just gone"))
    }

    /// The device of a journalled life, first sought under the name that it had then; `None` when
    /// that life is over.
    ///
    /// # Errors
    /// As [`Devices::device`].
    pub(crate) fn find(
        &self,
        life: &DeviceLife,
        name: &str,
        boot_id: &str,
    ) -> HostResult<Option<Device>> {
        if life.boot_id != boot_id {
            return Ok(None);
        }
        let is_it = stable_id(&self.directory(name)).is_some_and(|id| id == life.id);
        if is_it {
            let (name, id) = (name.to_owned(), life.id.clone());
            return Ok(Some(Device { name, id }));
        }
        self.only(&life.id)
    }

    /// The settings of a device.
    pub(crate) fn queue(&self, device: &Device, purpose: Purpose) -> Queue<'_> {
        Queue {
            directory: self.directory(&device.name).join("queue"),
            device: device.name.clone(),
            enabled: match purpose {
                Purpose::Tune => Some(self.enabled(device)),
                Purpose::Restore => None,
            },
            writer: &self.writer,
        }
    }

    fn only(&self, id: &str) -> HostResult<Option<Device>> {
        let mut names = self.names()?;
        names.retain(|name| stable_id(&self.directory(name)).is_some_and(|of| of == id));
        match &names[..] {
            [] => Ok(None),
            [name] => Ok(Some(Device {
                name: name.clone(),
                id: id.to_owned(),
            })),
            several => Err(HostError::Unsupported {
                what: format!("device {id}"),
                reason: format!(
                    "{} all have this id: use the multipath device above them",
                    several.join(", ")
                ),
            }),
        }
    }

    fn names(&self) -> HostResult<Vec<String>> {
        let directory = self.sys.join("block");
        let entries = fs::read_dir(&directory).map_err(HostError::io(&directory))?;
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(names)
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.sys.join("block").join(name)
    }
}

/// What tells a device from all others for as long as the host runs, by its directory in
/// `/sys/block`: `wwid:…` (NVMe namespace, SCSI), `dm:…` and `md:…` (UUID), `loop:…` (file behind it),
/// `serial:…` (with the namespace, if it has one). `None` where there is nothing of the kind.
#[must_use]
pub fn stable_id(directory: &Path) -> Option<String> {
    let text = |file: &str| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let sources = [
        ("wwid", "wwid"),
        ("wwid", "device/wwid"),
        ("dm", "dm/uuid"),
        ("md", "md/uuid"),
        ("loop", "loop/backing_file"),
        ("serial", "serial"),
    ];
    let mut known = sources.into_iter().filter_map(|(kind, file)| {
        let text = text(file)?;
        // The kernel appends this to a file that was deleted while it is in use.
        Some(format!("{kind}:{}", text.trim_end_matches(" (deleted)")))
    });
    known.next().or_else(|| {
        let serial = text("device/serial")?;
        Some(match text("nsid") {
            Some(namespace) => format!("serial:{serial}/{namespace}"),
            None => format!("serial:{serial}"),
        })
    })
}
