//! The channels of a host: sets of CPUs that serve disks.

use std::collections::BTreeSet;

use blkpilot_env::spec::Level;

use crate::cpuset::CpuSet;
use crate::error::{HostError, HostResult};
use crate::sysfs::{BackingDevice, Topology};

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
    /// One per physical core; a core whose CPUs are all reserved is left out.
    #[default]
    Cores,
    /// As given: name and CPUs.
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
        let list = match config {
            ChannelConfig::Cores => {
                let cores = (0..).zip(&topology.cores).map(|(number, core): (u32, _)| {
                    channel(
                        format!("core-{number}"),
                        core.iter().filter(|cpu| !reserved.contains(*cpu)).collect(),
                    )
                });
                cores.filter(|channel| !channel.cpus.is_empty()).collect()
            }
            ChannelConfig::Given(given) => {
                check_given(given, topology, reserved)?;
                given
                    .iter()
                    .map(|(id, cpus)| channel(id.clone(), cpus.clone()))
                    .collect()
            }
        };
        Ok(Self {
            list,
            online: topology.online.clone(),
            float: topology
                .online
                .iter()
                .filter(|cpu| !reserved.contains(*cpu))
                .collect(),
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
    /// was a channel; then all CPUs that are not reserved. `None` for a level that does not exist,
    /// and where all CPUs are reserved.
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

    fn topology() -> Topology {
        let cpus = |text: &str| text.parse::<CpuSet>().unwrap();
        Topology {
            online: cpus("0-3"),
            cores: vec![cpus("0,2"), cpus("1,3")],
            nodes: vec![(0, cpus("0-3"))],
        }
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
