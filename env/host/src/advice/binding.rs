//! Host CPUs of an IOThread: not those that the guest's own vCPUs take.

use super::{Advice, Edit, Evidence, Gain, HostFacts, Kind, Remedy, Subject};
use crate::cpuset::CpuSet;

/// Advice for each IOThread of a guest that serves something.
pub(super) fn advise(guest: &Subject, guests: &[Subject], host: &HostFacts) -> Vec<Advice> {
    let serving = guest.iothread_users.keys();
    serving
        .filter_map(|id| advise_one(guest, *id, guests, host))
        .collect()
}

fn advise_one(
    guest: &Subject,
    iothread: u32,
    guests: &[Subject],
    host: &HostFacts,
) -> Option<Advice> {
    let crowd = guest.pins.crowd(iothread)?;
    let better = free_cpus(guests, &crowd.cpus, host)?;
    let disks = guest
        .disks
        .iter()
        .filter(|disk| disk.iothreads.contains(&iothread));
    let disks: Vec<&str> = disks.map(|disk| disk.disk.target.as_str()).collect();
    let advice = Advice {
        summary: format!("pin IOThread {iothread} to CPUs {better}"),
        reason:
            "the IOThread may run only where the guest's own vCPUs run: while they are busy its \
                 requests wait for a CPU"
                .to_owned(),
        evidence: vec![
            Evidence::text("CPUs of the IOThread", crowd.cpus.to_string()),
            Evidence::number("vCPUs that may run only there", crowd.vcpus as f64, ""),
            Evidence::text("disks that it serves", disks.join(", ")),
        ],
        gain: Gain::Measured {
            text: "IOPS ×1.35 (95 %: ×1.22 to ×1.43) and 99th percentile of latency ×0.53, on a guest with \
                   two vCPUs and its IOThread on one CPU",
            source: "docs/verification/trial-poor-binding.md",
        },
        remedy: Remedy::Xml(Edit::PinIoThread {
            iothread,
            cpus: better,
        }),
        ..Advice::of_guest(Kind::Binding, guest, &format!("iothread{iothread}"))
    };
    Some(advice)
}

/// CPUs that no vCPU of any guest is pinned to, those of the NUMA node of `beside` where there are any. Not
/// isolated ones: they were set apart for something else, and the scheduler leaves what is pinned to several
/// of them on the first.
fn free_cpus(guests: &[Subject], beside: &CpuSet, host: &HostFacts) -> Option<CpuSet> {
    let pinned = |cpu: &u32| guests.iter().any(|guest| guest.pins.has_vcpu_on(*cpu));
    let free: CpuSet = host
        .topology
        .online
        .iter()
        .filter(|cpu| !pinned(cpu) && !host.topology.isolated.contains(*cpu))
        .collect();
    let node = host.topology.node_of(beside);
    let near = host
        .topology
        .nodes
        .iter()
        .find(|(number, _)| *number == node);
    let near = near
        .map(|(_, cpus)| free.intersection(cpus))
        .unwrap_or_default();
    let chosen = if near.is_empty() { free } else { near };
    let is_better = chosen.intersection(beside).is_empty();
    (!chosen.is_empty() && is_better).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, host};
    use super::*;
    use crate::advice::subject::tests::{subject_of, xml};

    fn pinned(vcpus: &str, iothread: &str) -> Subject {
        let pins: String = vcpus
            .split(';')
            .enumerate()
            .map(|(n, cpus)| format!("<vcpupin vcpu='{n}' cpuset='{cpus}'/>"))
            .collect();
        let tune = format!(
            "<iothreads>1</iothreads><cputune>{pins}<iothreadpin iothread='1' cpuset='{iothread}'/></cputune>"
        );
        subject_of(&xml(" iothread='1'", &tune))
    }

    fn better(guest: &Subject) -> Option<String> {
        let advice = advice_of(Kind::Binding, guest, &host())?;
        assert_eq!(
            advice.id,
            format!("next-boot/binding/{}/iothread1", guest.guest.uuid)
        );
        match advice.remedy {
            Remedy::Xml(Edit::PinIoThread { cpus, .. }) => Some(cpus.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_iothread_leaves_the_cpus_of_its_vcpus_and_stays_on_its_node() {
        // CPUs 0 to 3 are node 0, 4 to 7 node 1.
        assert_eq!(better(&pinned("0;0;0;0", "0")).unwrap(), "1-3");
        assert_eq!(better(&pinned("0;1;2;3", "0-3")).unwrap(), "4-7");
        assert_eq!(better(&pinned("4;5;4;5", "4")).unwrap(), "6-7");
    }

    #[test]
    fn an_iothread_is_not_sent_to_isolated_cpus() {
        let on = |isolated: &str| {
            let mut host = host();
            host.topology.isolated = isolated.parse().unwrap();
            let advice = advice_of(Kind::Binding, &pinned("0;0;0;0", "0"), &host)?;
            Some(advice.summary)
        };
        assert_eq!(on("1-2").unwrap(), "pin IOThread 1 to CPUs 3");
        assert_eq!(on("1-3").unwrap(), "pin IOThread 1 to CPUs 4-7");
        assert_eq!(on("1-7"), None);
    }

    #[test]
    fn an_iothread_with_a_cpu_of_its_own_stays() {
        assert_eq!(better(&pinned("0;0;0;0", "0-4")), None);
        assert_eq!(better(&pinned("0;0;0;0", "1")), None);
        assert_eq!(
            better(&pinned("0-1;2-3;4-5;6-7", "0")),
            None,
            "there is no other"
        );
    }
}
