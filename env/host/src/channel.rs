//! The channels of a host: sets of CPUs that serve disks.

use std::collections::BTreeSet;

use blkpilot_env::spec::Level;

use crate::backing_device::BackingDevice;
use crate::cpuset::CpuSet;
use crate::error::{HostError, HostResult};
use crate::topology::Topology;

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Name, such as `core-3`.
    pub id: String,
    /// Its CPUs; never empty.
    pub cpus: CpuSet,
    /// NUMA node of its first CPU.
    pub numa: u16,
}

/// Where the channels come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ChannelConfig {
    /// One per physical core, of its CPUs that are usable ([`Topology::usable`]) and not reserved; a
    /// core without is left out.
    #[default]
    Cores,
    /// One per hardware thread that is usable and not reserved.
    Threads,
    /// One per NUMA node, of its CPUs that are usable and not reserved.
    Nodes,
    /// As given: name and CPUs. Isolated ones too, and those outside the cpuset of this process: the
    /// guests have one of their own.
    Given(Vec<(String, CpuSet)>),
}

/// The channels, and what level of the channel head stands for which CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channels {
    list: Vec<Channel>,
    online: CpuSet,
    /// Where an IOThread that is bound to no channel may run.
    float: CpuSet,
}

impl Channels {
    /// The channels of a host. `reserved`: CPUs that no disk may be bound to.
    ///
    /// # Errors
    /// `Unsupported` for a given channel that is empty, has CPUs that are not online or are
    /// reserved, or repeats a name or the CPUs of another.
    pub fn new(config: &ChannelConfig, topology: &Topology, reserved: &CpuSet) -> HostResult<Self> {
        let channel = |id: String, cpus: CpuSet| Channel {
            id,
            numa: topology.node_of(&cpus),
            cpus,
        };
        let free = topology.usable().without(reserved);
        let named = |kind: &str, number: u32, cpus: &CpuSet| {
            channel(format!("{kind}-{number}"), cpus.intersection(&free))
        };
        let mut list: Vec<Channel> = match config {
            ChannelConfig::Cores => (0..)
                .zip(&topology.cores)
                .map(|(number, cpus)| named("core", number, cpus))
                .collect(),
            ChannelConfig::Threads => free
                .iter()
                .map(|cpu| named("cpu", cpu, &CpuSet::from_iter([cpu])))
                .collect(),
            ChannelConfig::Nodes => topology
                .nodes
                .iter()
                .map(|(node, cpus)| named("node", (*node).into(), cpus))
                .collect(),
            ChannelConfig::Given(given) => {
                check_given(given, topology, reserved)?;
                given
                    .iter()
                    .map(|(id, cpus)| channel(id.clone(), cpus.clone()))
                    .collect()
            }
        };
        list.retain(|channel| !channel.cpus.is_empty());
        Ok(Self {
            list,
            online: topology.online.clone(),
            float: free,
        })
    }

    /// The channels, by level − 1.
    #[must_use]
    pub fn list(&self) -> &[Channel] {
        &self.list
    }

    /// The level that a set of CPUs stands for: that of the channel with exactly these, else 0.
    #[must_use]
    pub fn level_of(&self, cpus: &CpuSet) -> Level {
        let found = (1..)
            .zip(&self.list)
            .find(|(_, channel)| channel.cpus == *cpus);
        found.map_or(0, |(level, _)| level)
    }

    /// The CPUs that a level stands for. Level 0 is what the IOThread had before us, unless that
    /// was a channel; then all CPUs that are usable and not reserved. `None` for a level that does not
    /// exist, and where there is no such CPU.
    #[must_use]
    pub fn cpus_of(&self, level: Level, original: &CpuSet) -> Option<CpuSet> {
        match usize::from(level).checked_sub(1) {
            Some(channel) => self.list.get(channel).map(|channel| channel.cpus.clone()),
            None if self.level_of(original) == 0 => Some(original.clone()),
            None => Some(self.float.clone()).filter(|cpus| !cpus.is_empty()),
        }
    }

    /// For each channel, the share of vCPUs that may run there, given the CPUs of each vCPU; `None`
    /// stands for all CPUs.
    #[must_use]
    pub fn vcpu_share(&self, vcpus: &[Option<&CpuSet>]) -> Vec<f32> {
        let share_of = |channel: &Channel| {
            let shares = vcpus.iter().map(|cpus| {
                let cpus = cpus.unwrap_or(&self.online);
                channel.cpus.intersection(cpus).len() as f32 / cpus.len().max(1) as f32
            });
            shares.sum::<f32>() / vcpus.len().max(1) as f32
        };
        self.list.iter().map(share_of).collect()
    }

    /// For each channel, the hardware queues mapped to its CPUs.
    #[must_use]
    pub fn hw_queues<'a>(&self, devices: impl Iterator<Item = &'a BackingDevice>) -> Vec<u16> {
        let queues: Vec<&CpuSet> = devices.flat_map(|device| &device.queues).collect();
        let count = |channel: &Channel| {
            queues
                .iter()
                .filter(|queue| !queue.intersection(&channel.cpus).is_empty())
                .count()
        };
        self.list
            .iter()
            .map(|channel| u16::try_from(count(channel)).unwrap_or(u16::MAX))
            .collect()
    }
}

fn check_given(
    given: &[(String, CpuSet)],
    topology: &Topology,
    reserved: &CpuSet,
) -> HostResult<()> {
    let mut seen = (BTreeSet::new(), BTreeSet::new());
    for (id, cpus) in given {
        let offline = cpus.iter().find(|cpu| !topology.online.contains(*cpu));
        let problem = if cpus.is_empty() {
            "it has no CPUs".to_owned()
        } else if let Some(cpu) = offline {
            format!("CPU {cpu} is not online (online: {})", topology.online)
        } else if let Some(cpu) = cpus.iter().find(|cpu| reserved.contains(*cpu)) {
            format!("CPU {cpu} is reserved")
        } else if !seen.0.insert(id) {
            "its name is given twice".to_owned()
        } else if !seen.1.insert(cpus) {
            "another channel has the same CPUs".to_owned()
        } else {
            continue;
        };
        return Err(HostError::Unsupported {
            what: format!("channel {id} = {cpus}"),
            reason: problem,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::GroupCpus;

    fn topology() -> Topology {
        let cpus = |text: &str| text.parse::<CpuSet>().unwrap();
        Topology {
            online: cpus("0-3"),
            cores: vec![cpus("0,2"), cpus("1,3")],
            nodes: vec![(0, cpus("0-3"))],
            ..Topology::default()
        }
    }

    fn discovered(config: &ChannelConfig, topology: &Topology, reserved: &str) -> Vec<String> {
        let reserved = reserved.parse().unwrap();
        let channels = Channels::new(config, topology, &reserved).unwrap();
        let named = |channel: &Channel| format!("{} {}", channel.id, channel.cpus);
        channels.list().iter().map(named).collect()
    }

    #[test]
    fn isolated_cpus_and_those_outside_the_cpuset_are_in_no_discovered_channel() {
        let topology = Topology {
            isolated: "3".parse().unwrap(),
            group: Some(GroupCpus {
                cpus: "1-3".parse().unwrap(),
                source: "cpuset.cpus".into(),
            }),
            ..topology()
        };
        assert_eq!(
            discovered(&ChannelConfig::Cores, &topology, ""),
            ["core-0 2", "core-1 1"]
        );
        assert_eq!(
            discovered(&ChannelConfig::Threads, &topology, "1"),
            ["cpu-2 2"]
        );
        let channels = Channels::new(&ChannelConfig::Cores, &topology, &CpuSet::default()).unwrap();
        let core = "1".parse().unwrap();
        assert_eq!(channels.cpus_of(0, &core).unwrap().to_string(), "1-2");
        let given = ChannelConfig::Given(vec![("set-apart".into(), "3".parse().unwrap())]);
        assert_eq!(discovered(&given, &topology, ""), ["set-apart 3"]);
    }

    #[test]
    fn channels_may_be_threads_or_nodes() {
        let mut topology = topology();
        topology.nodes = vec![(0, "0,2".parse().unwrap()), (1, "1,3".parse().unwrap())];
        let threads = ["cpu-0 0", "cpu-1 1", "cpu-2 2", "cpu-3 3"];
        assert_eq!(discovered(&ChannelConfig::Threads, &topology, ""), threads);
        assert_eq!(
            discovered(&ChannelConfig::Nodes, &topology, "1,3"),
            ["node-0 0,2"]
        );
    }

    fn channels() -> Channels {
        Channels::new(&ChannelConfig::Cores, &topology(), &CpuSet::default()).unwrap()
    }

    #[test]
    fn level_zero_is_what_the_iothread_had_unless_that_is_a_channel() {
        let channels = channels();
        let (float, core, odd): (CpuSet, CpuSet, CpuSet) = (
            "0-3".parse().unwrap(),
            "1,3".parse().unwrap(),
            "0-1".parse().unwrap(),
        );
        assert_eq!(
            (
                channels.level_of(&float),
                channels.level_of(&core),
                channels.level_of(&odd)
            ),
            (0, 2, 0)
        );
        assert_eq!(channels.cpus_of(0, &odd).unwrap(), odd);
        assert_eq!(channels.cpus_of(0, &core).unwrap(), float);
        assert_eq!(channels.cpus_of(2, &float).unwrap(), core);
        assert_eq!(channels.cpus_of(3, &float), None);
    }

    #[test]
    fn pinned_vcpus_count_where_they_are_and_floating_ones_everywhere() {
        let cpu0 = "0".parse().unwrap();
        assert_eq!(channels().vcpu_share(&[Some(&cpu0), None]), [0.75, 0.25]);
    }

    #[test]
    fn reserved_cpus_are_in_no_channel() {
        let reserved = "0,2".parse().unwrap();
        let channels = Channels::new(&ChannelConfig::Cores, &topology(), &reserved).unwrap();
        assert_eq!(channels.list().len(), 1);
        assert_eq!(channels.list()[0].id, "core-1");
        let core = "1,3".parse().unwrap();
        assert_eq!(channels.cpus_of(0, &core), Some(core));
        let given = ChannelConfig::Given(vec![("a".into(), "0".parse().unwrap())]);
        assert!(Channels::new(&given, &topology(), &reserved).is_err());
    }
}
