//! The mounted file systems, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use procfs::process::MountInfo;

use crate::error::{HostError, HostResult};

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `major:minor` of its super block; the major is 0 where no single block device stands behind it.
    pub(crate) number: String,
    /// The directory of the file system that is mounted; not `/` for a bind mount.
    pub(crate) root: PathBuf,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// Type, such as `ext4` or `cgroup2`.
    pub(crate) kind: String,
    /// What is mounted: a device, a share, a name.
    pub(crate) source: PathBuf,
    options: Vec<(String, Option<PathBuf>)>,
}

/// All of them, in the order in which they were mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Mounts(Vec<Mount>);

impl Mounts {
    /// Those that this process sees. `proc_root` is `/proc`.
    pub(crate) fn read(proc_root: &Path) -> HostResult<Self> {
        let path = proc_root.join("self/mountinfo");
        let text = fs::read(&path).map_err(HostError::io(&path))?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    /// Lines that cannot be understood are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mount = |line: &str| MountInfo::from_line(line).ok().map(Mount::from);
        Self(text.lines().filter_map(mount).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }

    /// The mount that an absolute path without symbolic links lies on. `number` is what stat(2) says
    /// of it: a mount point may be hidden by what was mounted over it.
    pub(crate) fn of(&self, path: &Path, number: &str) -> Option<&Mount> {
        // Of equal ones the last: it lies on top.
        let deepest = self
            .0
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count());
        let same = || self.0.iter().rfind(|mount| mount.number == number);
        // Anonymous numbers do not tell: each subvolume of btrfs has its own.
        let is_anonymous = number.starts_with("0:");
        match deepest {
            Some(mount) if is_anonymous || mount.number == number => Some(mount),
            Some(_) | None => same(),
        }
    }
}

impl Mount {
    /// Whether it has this option of the super block.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|(name, _)| name == option)
    }

    /// The value of an option of the super block.
    pub(crate) fn option(&self, option: &str) -> Option<&Path> {
        self.options
            .iter()
            .find(|(name, _)| name == option)?
            .1
            .as_deref()
    }
}

impl From<MountInfo> for Mount {
    fn from(info: MountInfo) -> Self {
        let option =
            |(name, value): (String, Option<String>)| (name, value.as_deref().map(unescape));
        Self {
            number: info.majmin,
            root: unescape(&info.root),
            point: unescape(&info.mount_point.to_string_lossy()),
            kind: info.fs_type,
            source: unescape(info.mount_source.as_deref().unwrap_or("none")),
            options: info.super_options.into_iter().map(option).collect(),
        }
    }
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut left = text.as_bytes();
    let mut plain = Vec::with_capacity(left.len());
    while let [first, rest @ ..] = left {
        let code = octal(rest.get(..3)).filter(|_| *first == b'\\');
        plain.push(code.unwrap_or(*first));
        left = &rest[if code.is_some() { 3 } else { 0 }..];
    }
    OsString::from_vec(plain).into()
}

fn octal(digits: Option<&[u8]>) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits?).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
28 27 0:40 /vms /srv/my\\040disks rw shared:1 master:2 - btrfs /dev/sda2 rw,subvolid=5,subvol=/vms
29 27 254:0 /var/lib /mnt/bind rw - ext4 /dev/vda rw
nonsense
30 27 8:1 / /mnt/hidden rw - xfs /dev/sda1 rw
31 27 8:2 / /mnt/hidden rw - xfs /dev/sda2 rw
32 27 0:50 / /mnt/over rw - overlay overlay rw,lowerdir=/l1:/l2,upperdir=/u,workdir=/w
";

    fn kind_of(path: &str, number: &str) -> Option<String> {
        let mounts = Mounts::parse(TEXT);
        mounts
            .of(Path::new(path), number)
            .map(|mount| format!("{} {}", mount.kind, mount.source.display()))
    }

    #[test]
    fn a_path_lies_on_the_deepest_mount_and_of_equal_ones_on_the_last() {
        for (path, number, wanted) in [
            ("/a.img", "254:0", "ext4 /dev/vda"),
            ("/srv/my disks/a.img", "0:77", "btrfs /dev/sda2"),
            ("/srv/my disksets/a.img", "254:0", "ext4 /dev/vda"),
            ("/mnt/bind/a.img", "254:0", "ext4 /dev/vda"),
            ("/mnt/hidden/a.img", "8:2", "xfs /dev/sda2"),
        ] {
            assert_eq!(kind_of(path, number).as_deref(), Some(wanted), "{path}");
        }
    }

    #[test]
    fn where_the_numbers_differ_the_device_is_believed_and_not_the_path() {
        assert_eq!(
            kind_of("/a.img", "8:1").as_deref(),
            Some("xfs /dev/sda1"),
            "seen through a descriptor or another root"
        );
        assert_eq!(kind_of("/a.img", "9:9"), None);
    }

    #[test]
    fn options_are_found_and_escapes_undone() {
        let mounts = Mounts::parse(TEXT);
        let overlay = mounts.iter().find(|mount| mount.kind == "overlay").unwrap();
        assert_eq!(overlay.option("upperdir"), Some(Path::new("/u")));
        assert!(overlay.has("rw") && !overlay.has("nothing"));
        assert_eq!(overlay.option("rw"), None);
        for (text, plain) in [
            ("a\\040b\\134", "a b\\"),
            ("\\04", "\\04"),
            ("\\999", "\\999"),
            ("", ""),
        ] {
            assert_eq!(unescape(text), Path::new(plain));
        }
    }
}
