//! The CPUs that this process's control group leaves it: cgroup v1, v2, and both at once.
//! Source: the kernel's `admin-guide/cgroup-v1/cpusets.rst` and `admin-guide/cgroup-v2.rst`.

use std::path::{Path, PathBuf};

use procfs::{FromRead as _, ProcessCGroup, ProcessCGroups};

use crate::cpuset::CpuSet;
use crate::error::HostResult;
use crate::mounts::{Mount, Mounts};
use crate::sysfs::read_text;

/// The cpuset of a control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupCpus {
    /// Its CPUs, offline ones left out by the kernel.
    pub cpus: CpuSet,
    /// The file that says so.
    pub source: PathBuf,
}

/// Files with the effective CPUs in version 1: the first is newer, the second is as configured.
const V1_FILES: [&str; 2] = ["cpuset.effective_cpus", "cpuset.cpus"];
const V2_FILE: &str = "cpuset.cpus.effective";
/// CPUs in isolated partitions; in the root group since Linux 6.8.
const ISOLATED_FILE: &str = "cpuset.cpus.isolated";

/// The cpuset of the group of this process; `None` where no cpuset controller is at work, and all
/// CPUs may be used then. `proc_root` is `/proc`.
///
/// # Errors
/// `Parse` for a file whose content is no CPU list.
pub(crate) fn own_cpus(proc_root: &Path, mounts: &Mounts) -> HostResult<Option<GroupCpus>> {
    let Ok(ProcessCGroups(groups)) = ProcessCGroups::from_file(proc_root.join("self/cgroup"))
    else {
        return Ok(None);
    };
    // Where both versions are mounted, a controller is in one of them only.
    let files = v1_files(&groups, mounts).or_else(|| v2_files(&groups, mounts));
    for file in files.unwrap_or_default() {
        // An empty list is a group that has not been set up.
        if let Ok(text) = read_text(&file)
            && !text.is_empty()
        {
            return Ok(Some(GroupCpus {
                cpus: text.parse()?,
                source: file,
            }));
        }
    }
    Ok(None)
}

/// CPUs that cpuset partitions have isolated from the scheduler; empty where there are none.
///
/// # Errors
/// `Parse`.
pub(crate) fn isolated_cpus(mounts: &Mounts) -> HostResult<CpuSet> {
    let root = mounts.iter().find(|mount| mount.kind == "cgroup2");
    let text = root.and_then(|root| read_text(&root.point.join(ISOLATED_FILE)).ok());
    text.unwrap_or_default().parse()
}

fn v1_files(groups: &[ProcessCGroup], mounts: &Mounts) -> Option<Vec<PathBuf>> {
    let has_cpuset = |group: &&ProcessCGroup| group.controllers.iter().any(|name| name == "cpuset");
    let group = groups.iter().find(has_cpuset)?;
    let mount = mounts
        .iter()
        .find(|mount| mount.kind == "cgroup" && mount.has("cpuset"))?;
    let dir = directory(mount, group)?;
    Some(V1_FILES.map(|file| dir.join(file)).into())
}

/// The nearest group upwards in which the controller is enabled decides.
fn v2_files(groups: &[ProcessCGroup], mounts: &Mounts) -> Option<Vec<PathBuf>> {
    let group = groups.iter().find(|group| group.hierarchy == 0)?;
    let mount = mounts.iter().find(|mount| mount.kind == "cgroup2")?;
    let dir = directory(mount, group)?;
    let up = dir
        .ancestors()
        .take_while(|dir| dir.starts_with(&mount.point));
    Some(up.map(|dir| dir.join(V2_FILE)).collect())
}

/// Where a group is mounted: in a container often only the part below its own group.
pub(crate) fn directory(mount: &Mount, group: &ProcessCGroup) -> Option<PathBuf> {
    let below = Path::new(&group.pathname).strip_prefix(&mount.root).ok()?;
    Some(mount.point.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A `/proc` with this `self/cgroup`, group files below, and mounts of them.
    fn own(
        cgroup: &str,
        mounts: &str,
        files: &[(&str, &str)],
    ) -> HostResult<Option<(String, String)>> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [("proc/self/cgroup", cgroup)].iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mounts = Mounts::parse(&mounts.replace("ROOT", &root.path().display().to_string()));
        let own = own_cpus(&root.path().join("proc"), &mounts)?;
        let short = |group: GroupCpus| {
            let source = group.source.strip_prefix(root.path()).unwrap();
            (group.cpus.to_string(), source.display().to_string())
        };
        Ok(own.map(short))
    }

    const V1: &str = "34 31 0:31 / ROOT/cg/cpuset rw - cgroup cgroup rw,cpuset\n";
    const V2: &str = "41 31 0:38 / ROOT/cg/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn version_1_gives_the_effective_cpus_of_the_group() {
        let group = "3:cpuset:/a\n0::/b\n";
        let files = [
            ("cg/cpuset/a/cpuset.cpus", "0-7\n"),
            ("cg/cpuset/a/cpuset.effective_cpus", "0-3\n"),
            ("cg/unified/b/cpuset.cpus.effective", "9\n"),
        ];
        // Hybrid: the controller is in version 1.
        let found = own(group, &format!("{V1}{V2}"), &files).unwrap().unwrap();
        assert_eq!(
            found,
            ("0-3".into(), "cg/cpuset/a/cpuset.effective_cpus".into())
        );
        let found = own(group, V1, &files[..1]).unwrap().unwrap();
        assert_eq!(found.0, "0-7");
    }

    #[test]
    fn version_2_is_decided_by_the_nearest_group_with_the_controller() {
        let files = [("cg/unified/a/cpuset.cpus.effective", "2-3\n")];
        let found = own("0::/a/b/c\n", V2, &files).unwrap().unwrap();
        assert_eq!(
            found,
            ("2-3".into(), "cg/unified/a/cpuset.cpus.effective".into())
        );
    }

    #[test]
    fn a_group_that_is_mounted_alone_is_found_below_its_own_root() {
        let mounts = "41 31 0:38 /docker/x ROOT/cg rw - cgroup2 cgroup2 rw\n";
        let files = [("cg/cpuset.cpus.effective", "1\n")];
        assert_eq!(
            own("0::/docker/x\n", mounts, &files).unwrap().unwrap().0,
            "1"
        );
        assert_eq!(own("0::/elsewhere\n", mounts, &files).unwrap(), None);
    }

    #[test]
    fn without_the_controller_nothing_is_left_out_and_garbage_is_an_error() {
        assert_eq!(own("0::/a\n", V2, &[]).unwrap(), None);
        assert_eq!(own("", "", &[]).unwrap(), None);
        let files = [("cg/unified/a/cpuset.cpus.effective", "zero\n")];
        assert!(own("0::/a\n", V2, &files).is_err());
    }
}
