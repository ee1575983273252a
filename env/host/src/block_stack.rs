//! From an image down to the devices that do its work: file systems, partitions, loop devices,
//! device mapper, md, NVMe multipath. Nothing is opened: only stat(2), procfs and sysfs are asked.

use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::block_device::{DeviceKind, device_dir, kind, nvme_paths};
use crate::layer::{Layer, LayerKind};
use crate::mounts::{Mount, Mounts};
use crate::sysfs::{attribute, last_name, names, target};

/// Layers that are followed towards the hardware: a bound against what no kernel builds.
const MAX_DEPTH: usize = 24;

/// Resolves stacks. What it has read of the mounts holds for as long as it lives.
#[derive(Debug)]
pub struct Resolver {
    sys: PathBuf,
    proc_root: PathBuf,
    mounts: OnceCell<Mounts>,
}

/// Devices that stand on something which sysfs does not show, by the start of their names.
const OPAQUE: [(&str, &str); 6] = [
    ("nbd", "the server behind it is known to its client only"),
    ("rbd", "it is on a Ceph cluster"),
    ("drbd", "what it stands on is known to DRBD only"),
    ("zd", "the devices of its pool are known to ZFS only"),
    ("zram", "it is in memory"),
    ("ram", "it is in memory"),
];

/// The names of what is above a layer, against circles.
type Above<'a> = &'a [String];

impl Resolver {
    /// `sys` is `/sys`, `proc_root` is `/proc`.
    #[must_use]
    pub fn new(sys: &Path, proc_root: &Path) -> Self {
        Self {
            sys: sys.to_owned(),
            proc_root: proc_root.to_owned(),
            mounts: OnceCell::new(),
        }
    }

    /// The stack below an image: a file, or a block device itself. What cannot be found out is a
    /// `problem` of its layer.
    #[must_use]
    pub fn image(&self, path: &Path) -> Layer {
        self.path(path, Path::new("stat"), &[])
    }

    /// The stack from a block device on, by `major:minor`; `None` where sysfs does not know it.
    #[must_use]
    pub fn device(&self, number: &str) -> Option<Layer> {
        let link = self.sys.join("dev/block").join(number);
        Some(self.device_at(&target(&link)?, &link, &[]))
    }

    /// As [`Resolver::device`], by kernel name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Layer> {
        let dir = device_dir(&self.sys, name)?;
        Some(self.device_at(&dir, &self.sys.join("block").join(name), &[]))
    }

    pub(crate) fn sys(&self) -> &Path {
        &self.sys
    }

    fn mounts(&self) -> &Mounts {
        self.mounts
            .get_or_init(|| Mounts::read(&self.proc_root).unwrap_or_default())
    }

    fn path(&self, path: &Path, source: &Path, above: Above<'_>) -> Layer {
        let file = Layer::new(LayerKind::File, path.display().to_string(), source);
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return file.ending(error.to_string()),
        };
        if metadata.file_type().is_block_device() {
            let number = number_text(metadata.rdev());
            let link = self.sys.join("dev/block").join(&number);
            return match target(&link) {
                Some(dir) => self.device_at(&dir, &link, above),
                None => file.ending(format!("sysfs has no block device {number}")),
            };
        }
        if !metadata.is_file() {
            return file.ending("it is neither a file nor a block device".into());
        }
        match extended(above, &file.name) {
            Ok(above) => {
                let below = self.file_system(path, &number_text(metadata.dev()), &above);
                file.on(vec![below])
            }
            Err(problem) => file.ending(problem),
        }
    }

    /// The file system of a file, whose device number is `number`.
    fn file_system(&self, path: &Path, number: &str, above: Above<'_>) -> Layer {
        let real = target(path).unwrap_or_else(|| path.to_owned());
        let mount = self.mounts().of(&real, number);
        let kind = mount.map_or("file system", |mount| mount.kind.as_str());
        let layer = Layer::new(
            LayerKind::FileSystem,
            kind.to_owned(),
            &self.proc_root.join("self/mountinfo"),
        );
        // Where a single device stands behind a file system, stat(2) has named it.
        if !number.starts_with("0:") {
            let link = self.sys.join("dev/block").join(number);
            return match target(&link) {
                Some(dir) => {
                    let device = self.device_at(&dir, &link, above);
                    layer.on(vec![device])
                }
                None => layer.ending(format!("sysfs has no block device {number}")),
            };
        }
        match mount {
            Some(mount) => self.anonymous(layer, mount, &real, above),
            None => layer.ending(format!("no mount has device number {number}")),
        }
    }

    /// A file system that has no device number of its own.
    fn anonymous(&self, layer: Layer, mount: &Mount, file: &Path, above: Above<'_>) -> Layer {
        let from = mount.source.display();
        match mount.kind.as_str() {
            "btrfs" => self.btrfs(layer, mount, above),
            "overlay" => self.overlay(layer, mount, file, above),
            "tmpfs" | "ramfs" | "hugetlbfs" | "devtmpfs" => layer.ending("it is in memory".into()),
            "zfs" => layer.ending(format!(
                "the devices of pool dataset {from} are known to ZFS only"
            )),
            _ => match self.mounted(&mount.source, above) {
                Some(device) => layer.on(vec![device]),
                None => layer.ending(format!("{from} is not a block device of this host")),
            },
        }
    }

    /// btrfs lists all its devices in sysfs, the mount names one of them.
    fn btrfs(&self, layer: Layer, mount: &Mount, above: Above<'_>) -> Layer {
        let one = target(&mount.source).unwrap_or_else(|| mount.source.clone());
        let systems = self.sys.join("fs/btrfs");
        let lists = names(&systems)
            .into_iter()
            .map(|id| systems.join(id).join("devices"));
        let mut lists = lists.filter(|list| list.join(last_name(&one)).exists());
        let Some(list) = lists.next() else {
            let from = mount.source.display();
            return layer.ending(format!("{}: no file system with {from}", systems.display()));
        };
        let devices = names(&list).into_iter().map(|name| {
            let dir = device_dir(&self.sys, &name);
            dir.map(|dir| self.device_at(&dir, &list, above))
        });
        match devices.collect() {
            Some(devices) => layer.on(devices),
            None => layer.ending(format!(
                "{}: a device of it is not in sysfs",
                list.display()
            )),
        }
    }

    /// The first layer of an overlay that has the file holds its data.
    fn overlay(&self, layer: Layer, mount: &Mount, file: &Path, above: Above<'_>) -> Layer {
        let below = file.strip_prefix(&mount.point).unwrap_or(file);
        let inside = mount.root.join(below);
        let inside = inside.strip_prefix("/").unwrap_or(&inside);
        let lower = mount
            .option("lowerdir")
            .map(|dirs| dirs.display().to_string());
        let lower = lower.unwrap_or_default();
        let dirs = mount
            .option("upperdir")
            .into_iter()
            .chain(lower.split(':').map(Path::new));
        // Relative ones are relative to wherever the mount was made.
        let candidates = dirs
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(inside));
        match candidates.into_iter().find(|path| path.is_file()) {
            Some(path) => layer.on(vec![self.path(
                &path,
                &self.proc_root.join("self/mountinfo"),
                above,
            )]),
            None => layer.ending("none of its layers is visible here".into()),
        }
    }

    /// The device that a mount names by its path.
    fn mounted(&self, source: &Path, above: Above<'_>) -> Option<Layer> {
        let device = source.starts_with("/dev").then(|| target(source))??;
        let dir = device_dir(&self.sys, &last_name(&device))?;
        Some(self.device_at(&dir, &self.proc_root.join("self/mountinfo"), above))
    }

    /// `dir` is that of the device, without links.
    fn device_at(&self, dir: &Path, source: &Path, above: Above<'_>) -> Layer {
        let name = last_name(dir);
        let kind = kind(dir);
        let mut layer = Layer::new(LayerKind::Device(kind), name, source);
        layer.detail = detail(dir, kind);
        layer.passes_on = match kind {
            DeviceKind::Loop => is_direct(dir),
            DeviceKind::NvmeMultipath => false,
            _ => true,
        };
        let above = match extended(above, &layer.name) {
            Ok(above) => above,
            Err(problem) => return layer.ending(problem),
        };
        match kind {
            DeviceKind::Partition => match dir.parent() {
                Some(whole) => {
                    let below = self.device_at(whole, &dir.join("partition"), &above);
                    layer.on(vec![below])
                }
                None => layer,
            },
            DeviceKind::Loop => self.loop_file(layer, dir, &above),
            DeviceKind::NvmeMultipath => {
                let paths = nvme_paths(&self.sys, &layer.name);
                let paths = paths.iter().filter_map(|path| device_dir(&self.sys, path));
                let below =
                    paths.map(|path| self.device_at(&path, &self.sys.join("block"), &above));
                layer.on(below.collect())
            }
            _ => self.slaves(layer, dir, &above),
        }
    }

    fn loop_file(&self, layer: Layer, dir: &Path, above: Above<'_>) -> Layer {
        let source = dir.join("loop/backing_file");
        let Some(file) = attribute(dir, "loop/backing_file") else {
            return layer.ending("no file is attached".into());
        };
        // The kernel marks a file that was removed while it is in use.
        if let Some(file) = file.strip_suffix(" (deleted)") {
            return layer.ending(format!("its file {file} was deleted"));
        }
        let below = self.path(Path::new(&file), &source, above);
        layer.on(vec![below])
    }

    /// Device mapper, md and others that stack name what they stand on there.
    fn slaves(&self, layer: Layer, dir: &Path, above: Above<'_>) -> Layer {
        let source = dir.join("slaves");
        let slaves = names(&source);
        let stacks = matches!(
            layer.kind,
            LayerKind::Device(DeviceKind::DeviceMapper | DeviceKind::Md)
        );
        if slaves.is_empty() && stacks {
            return layer
                .ending("it stands on no device (an error or zero target, or not set up)".into());
        }
        let opaque = OPAQUE
            .iter()
            .find(|(start, _)| layer.name.starts_with(start));
        if let (true, Some((_, reason))) = (slaves.is_empty(), opaque) {
            return layer.ending((*reason).into());
        }
        let mut layer = layer;
        for name in slaves {
            match target(&source.join(&name)) {
                Some(dir) => layer.below.push(self.device_at(&dir, &source, above)),
                None => layer.problem = Some(format!("{name} below it is not in sysfs")),
            }
        }
        layer
    }
}

fn number_text(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

fn extended(above: Above<'_>, name: &str) -> Result<Vec<String>, String> {
    if above.iter().any(|known| known == name) {
        return Err(format!("{name} stands on itself"));
    }
    if above.len() >= MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} layers"));
    }
    Ok(above.iter().cloned().chain([name.to_owned()]).collect())
}

fn detail(dir: &Path, kind: DeviceKind) -> String {
    match kind {
        DeviceKind::DeviceMapper => {
            let name = attribute(dir, "dm/name").unwrap_or_default();
            let uuid = attribute(dir, "dm/uuid").unwrap_or_default();
            mapping(&name, &uuid)
        }
        DeviceKind::Md => attribute(dir, "md/level").unwrap_or_default(),
        DeviceKind::NvmeMultipath => "multipath".into(),
        DeviceKind::Loop if is_direct(dir) => "direct I/O".into(),
        DeviceKind::Loop => "through the page cache".into(),
        _ => String::new(),
    }
}

/// Whether a loop device reads and writes its file past the page cache.
fn is_direct(dir: &Path) -> bool {
    attribute(dir, "loop/dio").as_deref() == Some("1")
}

/// Whoever makes a mapping writes its kind in front of the UUID: LVM2, cryptsetup, multipath-tools.
fn mapping(name: &str, uuid: &str) -> String {
    let kind = match uuid.split_once('-') {
        Some(("LVM", rest)) if rest.ends_with("-tpool") || rest.ends_with("-pool") => {
            "LVM thin pool"
        }
        Some(("LVM", _)) => "LVM",
        Some(("CRYPT", _)) => "crypt",
        Some(("mpath", _)) => "multipath",
        Some((part, _)) if part.starts_with("part") => "partition",
        _ => "device mapper",
    };
    format!("{kind} {name}").trim_end().to_owned()
}

#[cfg(test)]
mod tests;
