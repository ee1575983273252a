//! How near a process's control group is to its memory limit: cgroup v1, v2, and both at once. The page
//! cache of a buffered disk counts there.
//! Source: the kernel's `admin-guide/cgroup-v1/memory.rst` and `admin-guide/cgroup-v2.rst`.

use std::path::{Path, PathBuf};

use procfs::{FromRead as _, ProcessCGroup, ProcessCGroups};

use crate::cgroup::directory;
use crate::mounts::Mounts;
use crate::sysfs::read_text;

/// What version 1 shows where no limit is set is the greatest number of whole pages.
const NO_LIMIT: u64 = 1 << 60;

/// The files of one version.
struct Files {
    used: &'static str,
    limits: &'static [&'static str],
    /// What the kernel can drop at once: pages of files that are not dirty.
    dropped: [&'static str; 2],
    dirty: [&'static str; 2],
}

const V1: Files = Files {
    used: "memory.usage_in_bytes",
    limits: &["memory.limit_in_bytes"],
    dropped: ["total_inactive_file", "total_active_file"],
    dirty: ["total_dirty", "total_writeback"],
};
const V2: Files = Files {
    used: "memory.current",
    limits: &["memory.max", "memory.high"],
    dropped: ["inactive_file", "active_file"],
    dirty: ["file_dirty", "file_writeback"],
};

/// The share, 0 to 1, of its memory limit that a process's group has taken by what cannot be dropped at
/// once; of the groups above it, that which is nearest to its limit. `None` without a limit.
pub(crate) fn taken_share(proc_root: &Path, pid: i32, mounts: &Mounts) -> Option<f32> {
    let file = proc_root.join(pid.to_string()).join("cgroup");
    let ProcessCGroups(groups) = ProcessCGroups::from_file(file).ok()?;
    // Where both versions are mounted, a controller is in one of them only.
    let (files, mount, group) = v1(&groups, mounts).or_else(|| v2(&groups, mounts))?;
    let own = directory(mount, group)?;
    let groups = own.ancestors();
    let groups = groups.take_while(|group| group.starts_with(&mount.point));
    let shares = groups.filter_map(|group| share(files, group));
    shares.max_by(f32::total_cmp)
}

type Place<'a> = (&'static Files, &'a crate::mounts::Mount, &'a ProcessCGroup);

fn v1<'a>(groups: &'a [ProcessCGroup], mounts: &'a Mounts) -> Option<Place<'a>> {
    let has_memory = |group: &&ProcessCGroup| group.controllers.iter().any(|name| name == "memory");
    let group = groups.iter().find(has_memory)?;
    let mut mounts = mounts.iter();
    let mount = mounts.find(|mount| mount.kind == "cgroup" && mount.has("memory"))?;
    Some((&V1, mount, group))
}

fn v2<'a>(groups: &'a [ProcessCGroup], mounts: &'a Mounts) -> Option<Place<'a>> {
    let group = groups.iter().find(|group| group.hierarchy == 0)?;
    let mount = mounts.iter().find(|mount| mount.kind == "cgroup2")?;
    Some((&V2, mount, group))
}

fn share(files: &Files, group: &Path) -> Option<f32> {
    let number = |file: PathBuf| read_text(&file).ok()?.parse::<u64>().ok();
    let limits = files.limits.iter();
    let limits = limits.filter_map(|limit| number(group.join(limit)));
    let limit = limits.filter(|limit| *limit < NO_LIMIT).min()?;
    let used = number(group.join(files.used))?;
    let stat = read_text(&group.join("memory.stat")).unwrap_or_default();
    let sum = |keys: [&str; 2]| keys.iter().map(|key| value(&stat, key)).sum::<u64>();
    let dropped = sum(files.dropped).saturating_sub(sum(files.dirty));
    Some(used.saturating_sub(dropped) as f32 / limit.max(1) as f32)
}

/// The value of a line `KEY VALUE`; 0 where there is none.
fn value(stat: &str, key: &str) -> u64 {
    let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
    let line = lines.find(|(name, _)| *name == key);
    line.and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const MOUNT_V1: &str = "34 31 0:31 / ROOT/cg/memory rw - cgroup cgroup rw,memory\n";
    const MOUNT_V2: &str = "41 31 0:38 / ROOT/cg/unified rw - cgroup2 cgroup2 rw\n";

    /// Process 7 in this group, with these files, and mounts of them.
    fn taken(cgroup: &str, mounts: &str, files: &[(&str, &str)]) -> Option<f32> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [("proc/7/cgroup", cgroup)].iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mounts = Mounts::parse(&mounts.replace("ROOT", &root.path().display().to_string()));
        taken_share(&root.path().join("proc"), 7, &mounts)
    }

    #[test]
    fn version_2_counts_what_cannot_be_dropped_against_the_lower_limit() {
        let files = [
            ("cg/unified/vm/memory.max", "1000\n"),
            ("cg/unified/vm/memory.high", "800\n"),
            ("cg/unified/vm/memory.current", "900\n"),
            (
                "cg/unified/vm/memory.stat",
                "anon 400\ninactive_file 300\nactive_file 200\nfile_dirty 60\nfile_writeback 40\n",
            ),
        ];
        // 900 used, of which 500 are of files, and 100 of those dirty.
        assert_eq!(taken("0::/vm\n", MOUNT_V2, &files), Some(500.0 / 800.0));
    }

    #[test]
    fn the_group_that_is_nearest_to_its_limit_decides() {
        let files = [
            ("cg/unified/a/memory.max", "100\n"),
            ("cg/unified/a/memory.current", "95\n"),
            ("cg/unified/a/vm/memory.max", "max\n"),
            ("cg/unified/a/vm/memory.high", "max\n"),
            ("cg/unified/a/vm/memory.current", "10\n"),
        ];
        assert_eq!(taken("0::/a/vm\n", MOUNT_V2, &files), Some(0.95));
    }

    #[test]
    fn where_both_versions_are_mounted_the_one_with_the_controller_counts() {
        let files = [
            ("cg/memory/vm/memory.limit_in_bytes", "1000\n"),
            ("cg/memory/vm/memory.usage_in_bytes", "700\n"),
            (
                "cg/memory/vm/memory.stat",
                "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 100\ntotal_dirty 50\n",
            ),
            ("cg/unified/vm/memory.max", "1\n"),
            ("cg/unified/vm/memory.current", "1\n"),
        ];
        let hybrid = format!("{MOUNT_V1}{MOUNT_V2}");
        let taken = taken("4:memory:/vm\n0::/vm\n", &hybrid, &files).unwrap();
        assert!((taken - 0.55).abs() < 1e-6, "{taken}");
    }

    #[test]
    fn without_a_limit_or_a_controller_there_is_none() {
        let unlimited = [
            (
                "cg/memory/vm/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("cg/memory/vm/memory.usage_in_bytes", "700\n"),
        ];
        assert_eq!(taken("4:memory:/vm\n", MOUNT_V1, &unlimited), None);
        assert_eq!(taken("0::/vm\n", MOUNT_V2, &[]), None);
        assert_eq!(taken("", "", &[]), None);
    }
}
