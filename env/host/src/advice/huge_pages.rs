//! Huge pages for the memory of a guest, where the host has set aside enough.

use super::facts::HugePages;
use super::{Advice, Budget, Edit, Evidence, Gain, HostFacts, Kind, Remedy, Requirement, Subject};

/// Free pages of each pool, less what guests need that are defined with huge pages but do not have them
/// now: those that are off, and those that wait for their next boot.
pub(super) fn budget(guests: &[Subject], host: &HostFacts) -> Vec<HugePages> {
    let waiting = guests
        .iter()
        .filter(|guest| guest.wants_huge_pages && !guest.has_huge_pages);
    let promised_kib: u64 = waiting.map(|guest| guest.memory_kib).sum();
    let rest = |pool: &HugePages| HugePages {
        free: pool
            .free
            .saturating_sub(promised_kib.div_ceil(pool.page_kib)),
        ..*pool
    };
    host.huge_pages.iter().map(rest).collect()
}

pub(super) fn advise(guest: &Subject, host: &HostFacts, budget: &mut Budget) -> Option<Advice> {
    // Without KVM there are no page tables of the hardware to shorten; a balloon cannot give huge pages
    // back.
    if !guest.guest.is_kvm || guest.wants_huge_pages || !guest.has_all_memory {
        return None;
    }
    let default = host.default_huge_page_kib;
    let holds = |pool: &&mut HugePages| {
        guest.memory_kib.is_multiple_of(pool.page_kib)
            && pool.free >= guest.memory_kib / pool.page_kib
    };
    let mut fitting: Vec<_> = budget.huge_pages.iter_mut().filter(holds).collect();
    fitting.sort_by_key(|pool| pool.page_kib != default);
    let pool = fitting.into_iter().next()?;
    let needed = guest.memory_kib / pool.page_kib;
    let mut advice = Advice {
        summary: format!("back the guest's memory with huge pages of {} KiB", pool.page_kib),
        reason: "the guest's memory is in small pages, whose two-stage address translation misses the TLB \
                 more often, also while the host moves data for its disks"
            .to_owned(),
        evidence: vec![
            Evidence::number("huge pages needed", needed as f64, ""),
            Evidence::number("huge pages free", pool.free as f64, ""),
            Evidence::number("size of a page", pool.page_kib as f64, "KiB"),
            Evidence::number("memory of the guest", guest.memory_kib as f64 / 1024.0, "MiB"),
        ],
        gain: Gain::NotMeasured {
            text: "less time in address translation, most of all for guests with much memory",
        },
        requires: vec![Requirement {
            what: format!("{needed} free huge pages when the guest starts"),
            found: format!("{} now", pool.free),
            is_met: Some(true),
        }],
        remedy: Remedy::Xml(Edit::HugePages {
            page_kib: (pool.page_kib != default).then_some(pool.page_kib),
        }),
        ..Advice::of_guest(Kind::HugePages, guest, "memory")
    };
    advice.cautions.push(
        "all of it is taken when the guest starts, and neither KSM nor swapping can share or free it"
            .to_owned(),
    );
    if host.topology.nodes.len() > 1 {
        advice.cautions.push(
            "the host has several NUMA nodes: the pages have to be free on those that the guest is bound to"
                .to_owned(),
        );
    }
    pool.free -= needed;
    Some(advice)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, host};
    use super::*;
    use crate::advice::advise as all;
    use crate::advice::subject::tests::{subject_of, xml};

    const WANTS: &str = "<memoryBacking><hugepages/></memoryBacking>";

    fn pool(page_kib: u64, free: u64) -> HugePages {
        HugePages { page_kib, free }
    }

    fn with(pools: &[HugePages]) -> HostFacts {
        HostFacts {
            huge_pages: pools.to_vec(),
            ..host()
        }
    }

    fn page_of(guest: &Subject, host: &HostFacts) -> Option<Option<u64>> {
        match advice_of(Kind::HugePages, guest, host)?.remedy {
            Remedy::Xml(Edit::HugePages { page_kib }) => Some(page_kib),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pool_must_hold_the_whole_guest() {
        // The guest has 1 GiB: 512 pages of 2 MiB.
        let guest = subject_of(&xml("", ""));
        assert_eq!(page_of(&guest, &with(&[pool(2048, 512)])), Some(None));
        assert_eq!(page_of(&guest, &with(&[pool(2048, 511)])), None);
        let gibibyte = [pool(2048, 511), pool(1 << 20, 1)];
        assert_eq!(page_of(&guest, &with(&gibibyte)), Some(Some(1 << 20)));
        assert_eq!(page_of(&guest, &host()), None);
    }

    #[test]
    fn pages_that_another_guest_waits_for_are_not_promised_again() {
        let mut waiting = subject_of(&xml("", WANTS));
        let hopeful = subject_of(&xml("", ""));
        let host = with(&[pool(2048, 1023)]);
        let given = |guests: &[Subject]| {
            let advice = all(guests, &host);
            advice.iter().filter(|a| a.kind == Kind::HugePages).count()
        };
        waiting.has_huge_pages = false;
        assert_eq!(given(&[waiting.clone(), hopeful.clone()]), 0);
        waiting.has_huge_pages = true;
        assert_eq!(given(&[waiting, hopeful.clone()]), 1);
        assert_eq!(
            given(&[hopeful.clone(), hopeful]),
            1,
            "there is enough for one"
        );
    }

    #[test]
    fn a_guest_with_a_balloon_or_without_kvm_gets_none() {
        let host = with(&[pool(2048, 4096)]);
        let balloon = xml("", "").replace(
            "<currentMemory unit='KiB'>1048576",
            "<currentMemory unit='KiB'>524288",
        );
        assert_eq!(page_of(&subject_of(&balloon), &host), None);
        let interpreted = xml("", "").replace("type='kvm'", "type='qemu'");
        assert_eq!(page_of(&subject_of(&interpreted), &host), None);
    }
}
