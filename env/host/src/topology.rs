//! The host's CPUs: cores, hardware threads, NUMA nodes, and which of them are set apart.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::cgroup::{GroupCpus, isolated_cpus, own_cpus};
use crate::cpuset::CpuSet;
use crate::error::HostResult;
use crate::mounts::Mounts;
use crate::sysfs::{attribute, read_text};

/// The CPUs of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// CPUs that are online.
    pub online: CpuSet,
    /// Physical cores with their hardware threads that are online, in ascending order.
    pub cores: Vec<CpuSet>,
    /// CPUs by NUMA node; one node 0 with all CPUs where the kernel has no NUMA.
    pub nodes: Vec<(u16, CpuSet)>,
    /// CPUs that the scheduler leaves alone: `isolcpus=` and isolated cpuset partitions. What is bound
    /// to several of them is not balanced between them.
    pub isolated: CpuSet,
    /// CPUs without a periodic tick: `nohz_full=`.
    pub nohz_full: CpuSet,
    /// The cpuset of this process; `None` where there is none, and all CPUs may be used.
    pub group: Option<GroupCpus>,
}

impl Topology {
    /// Reads `devices/system/cpu` and `devices/system/node` of `sys`, and the cpuset of this process.
    /// `proc_root` is `/proc`.
    ///
    /// # Errors
    /// `Io` when the CPUs cannot be read, `Parse` for a list of CPUs that is none.
    pub fn read(sys: &Path, proc_root: &Path) -> HostResult<Self> {
        let cpu_dir = sys.join("devices/system/cpu");
        let online: CpuSet = read_text(&cpu_dir.join("online"))?.parse()?;
        let mut cores = BTreeSet::new();
        for cpu in online.iter() {
            let siblings =
                read_text(&cpu_dir.join(format!("cpu{cpu}/topology/thread_siblings_list")))?;
            cores.insert(siblings.parse::<CpuSet>()?.intersection(&online));
        }
        let mounts = Mounts::read(proc_root).unwrap_or_default();
        let isolated = optional_list(&cpu_dir, "isolated")?.union(&isolated_cpus(&mounts)?);
        Ok(Self {
            nodes: numa_nodes(sys, &online)?,
            cores: cores.into_iter().collect(),
            isolated,
            nohz_full: optional_list(&cpu_dir, "nohz_full")?,
            group: own_cpus(proc_root, &mounts)?,
            online,
        })
    }

    /// The NUMA node of a set of CPUs, by its first.
    #[must_use]
    pub fn node_of(&self, cpus: &CpuSet) -> u16 {
        let first = cpus.iter().next();
        let holds = |set: &CpuSet| first.is_some_and(|cpu| set.contains(cpu));
        self.nodes
            .iter()
            .find(|(_, set)| holds(set))
            .map_or(0, |(node, _)| *node)
    }

    /// CPUs on which disks may be served unless an operator says otherwise: online, in the cpuset of
    /// this process, and not isolated.
    #[must_use]
    pub fn usable(&self) -> CpuSet {
        let group = self
            .group
            .as_ref()
            .map_or(&self.online, |group| &group.cpus);
        self.online.intersection(group).without(&self.isolated)
    }
}

/// A list that older kernels do not have. Kernels before 6.6 write `(null)` for no CPU.
fn optional_list(dir: &Path, name: &str) -> HostResult<CpuSet> {
    let text = attribute(dir, name).filter(|text| text != "(null)");
    text.unwrap_or_default().parse()
}

fn numa_nodes(sys: &Path, online: &CpuSet) -> HostResult<Vec<(u16, CpuSet)>> {
    let entries = fs::read_dir(sys.join("devices/system/node"))
        .into_iter()
        .flatten()
        .flatten();
    let mut nodes = Vec::new();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name
            .strip_prefix("node")
            .and_then(|number| number.parse().ok())
        else {
            continue;
        };
        nodes.push((number, read_text(&entry.path().join("cpulist"))?.parse()?));
    }
    nodes.sort();
    if nodes.is_empty() {
        nodes.push((0, online.clone()));
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tests::tree;

    const CPU: &str = "sys/devices/system/cpu";

    /// Two cores of two threads, with these files besides.
    fn read(files: &[(&str, &str)]) -> HostResult<Topology> {
        let siblings = |cpu| format!("{CPU}/cpu{cpu}/topology/thread_siblings_list");
        let mut all: Vec<(String, &str)> = vec![(format!("{CPU}/online"), "0-3\n")];
        all.extend((0..4).map(|cpu| (siblings(cpu), ["0,2\n", "1,3\n"][cpu % 2])));
        all.extend(files.iter().map(|(path, text)| ((*path).to_owned(), *text)));
        let all: Vec<(&str, &str)> = all
            .iter()
            .map(|(path, text)| (path.as_str(), *text))
            .collect();
        let root = tree(&all);
        Topology::read(&root.path().join("sys"), &root.path().join("proc"))
    }

    #[test]
    fn cores_hold_their_hardware_threads() {
        let topology = read(&[
            ("sys/devices/system/node/node0/cpulist", "0,2\n"),
            ("sys/devices/system/node/node1/cpulist", "1,3\n"),
        ]);
        let topology = topology.unwrap();
        let cores: Vec<String> = topology.cores.iter().map(CpuSet::to_string).collect();
        assert_eq!(cores, ["0,2", "1,3"]);
        assert_eq!(topology.node_of(&topology.cores[1]), 1);
        assert_eq!(topology.usable().to_string(), "0-3");
    }

    #[test]
    fn isolated_cpus_and_those_outside_the_cpuset_are_not_usable() {
        let topology = read(&[
            ("sys/devices/system/cpu/isolated", "3\n"),
            ("sys/devices/system/cpu/nohz_full", "(null)\n"),
            ("proc/self/cgroup", "0::/\n"),
            (
                "proc/self/mountinfo",
                "1 1 0:9 / ROOT/cg rw - cgroup2 cgroup2 rw\n",
            ),
            ("cg/cpuset.cpus.effective", "1-3\n"),
            ("cg/cpuset.cpus.isolated", "2\n"),
        ]);
        let topology = topology.unwrap();
        assert_eq!(topology.isolated.to_string(), "2-3");
        assert!(topology.nohz_full.is_empty());
        assert_eq!(topology.group.as_ref().unwrap().cpus.to_string(), "1-3");
        assert_eq!(topology.usable().to_string(), "1");
    }

    #[test]
    fn a_missing_or_broken_list_of_online_cpus_is_an_error_that_names_it() {
        let root = tree(&[]);
        let error = Topology::read(root.path(), root.path()).unwrap_err();
        assert!(error.to_string().contains("cpu/online"), "{error}");
        let error = read(&[("sys/devices/system/cpu/isolated", "most\n")]).unwrap_err();
        assert!(error.to_string().contains("most"), "{error}");
    }
}
