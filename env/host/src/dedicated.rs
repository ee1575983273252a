//! CPUs that are dedicated to one guest's vCPU, which no disk of another guest is bound to.
//!
//! A CPU counts as dedicated when exactly one vCPU of all running guests is pinned to it alone
//! (`<vcpupin vcpu='0' cpuset='4'/>`): so OpenStack's `hw:cpu_policy=dedicated` and KubeVirt's
//! `dedicatedCpuPlacement` place them. Two such vCPUs on one CPU share it already.

use std::collections::BTreeMap;

use crate::cpuset::CpuSet;
use crate::guest::Guest;

/// What CPUs that are dedicated to other guests mean for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DedicatedCpuRule {
    /// It is bound to none of them.
    #[default]
    Avoid,
    /// They are as good as any.
    Share,
}

/// Which guest has which CPU for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DedicatedCpus {
    /// CPU, and the UUID of its guest.
    owners: BTreeMap<u32, String>,
}

impl DedicatedCpus {
    /// Of all guests that run, managed or not.
    pub(crate) fn of<'a>(guests: impl Iterator<Item = &'a Guest>) -> Self {
        let mut alone: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
        for guest in guests {
            for cpu in (0..guest.vcpus).filter_map(|vcpu| only_cpu(guest, vcpu)) {
                alone.entry(cpu).or_default().push(&guest.uuid);
            }
        }
        let owner = |(cpu, guests): (u32, Vec<&str>)| match guests[..] {
            [guest] => Some((cpu, guest.to_owned())),
            _ => None,
        };
        Self {
            owners: alone.into_iter().filter_map(owner).collect(),
        }
    }

    /// Whether one of these CPUs is dedicated to another guest than `uuid`.
    pub(crate) fn are_of_others(&self, cpus: &CpuSet, uuid: &str) -> bool {
        let mut owners = cpus.iter().filter_map(|cpu| self.owners.get(&cpu));
        owners.any(|owner| owner != uuid)
    }
}

/// The CPU that a vCPU is pinned to, where that is one.
fn only_cpu(guest: &Guest, vcpu: u32) -> Option<u32> {
    let cpus = guest.vcpu_pins.get(&vcpu).or(guest.cpuset.as_ref())?;
    let mut cpus = cpus.iter();
    match (cpus.next(), cpus.next()) {
        (Some(cpu), None) => Some(cpu),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(uuid: &str, pins: &[&str]) -> Guest {
        let pins: String = (0..)
            .zip(pins)
            .map(|(vcpu, cpus): (u32, _)| format!("<vcpupin vcpu='{vcpu}' cpuset='{cpus}'/>"))
            .collect();
        let xml = format!(
            "<domain><name>{uuid}</name><uuid>{uuid}</uuid><vcpu>2</vcpu><cputune>{pins}</cputune></domain>"
        );
        Guest::from_xml(&xml).unwrap()
    }

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_cpu_with_one_vcpu_is_its_guests_own() {
        let dedicated = DedicatedCpus::of([guest("a", &["2", "3"])].iter());
        assert!(dedicated.are_of_others(&set("1-2"), "b"));
        assert!(!dedicated.are_of_others(&set("1-2"), "a"));
        assert!(!dedicated.are_of_others(&set("0-1"), "b"));
    }

    #[test]
    fn a_cpu_of_two_vcpus_is_shared() {
        let guests = [
            guest("a", &["2", "2"]),
            guest("b", &["3"]),
            guest("c", &["3"]),
        ];
        assert_eq!(DedicatedCpus::of(guests.iter()), DedicatedCpus::default());
    }

    #[test]
    fn a_vcpu_that_may_run_on_several_cpus_has_none_of_them() {
        let guests = [guest("a", &["2-3"]), guest("b", &[])];
        assert_eq!(DedicatedCpus::of(guests.iter()), DedicatedCpus::default());
    }
}
