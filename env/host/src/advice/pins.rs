//! Where the threads of a guest may run, as its XML says.

use std::collections::BTreeMap;

use crate::cpuset::CpuSet;
use crate::element::Element;
use crate::error::HostResult;
use crate::guest::Guest;

/// Host CPUs of a guest's vCPUs and IOThreads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pins {
    vcpus: u32,
    /// For everything without a pin of its own; `None` is anywhere.
    all: Option<CpuSet>,
    vcpu: BTreeMap<u32, CpuSet>,
    iothread: BTreeMap<u32, CpuSet>,
}

/// An IOThread for which no CPU is left while the vCPUs that are confined to its CPUs are busy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crowd {
    /// CPUs of the IOThread.
    pub cpus: CpuSet,
    /// vCPUs that may run only there.
    pub vcpus: usize,
}

impl Pins {
    /// Those of a domain's XML.
    pub(super) fn of(guest: &Guest, root: &Element) -> HostResult<Self> {
        let pins = root
            .child("cputune")
            .into_iter()
            .flat_map(|cputune| cputune.children("iothreadpin"));
        let pin = |pin: &Element| {
            let iothread = pin.attribute("iothread")?.parse().ok()?;
            Some(
                pin.attribute("cpuset")?
                    .parse()
                    .map(|cpus| (iothread, cpus)),
            )
        };
        Ok(Self {
            vcpus: guest.vcpus,
            all: guest.cpuset.clone(),
            vcpu: guest.vcpu_pins.clone(),
            iothread: pins.filter_map(pin).collect::<HostResult<_>>()?,
        })
    }

    /// Whom an IOThread shares its CPUs with, if that leaves none for it.
    #[must_use]
    pub fn crowd(&self, iothread: u32) -> Option<Crowd> {
        let cpus = self.iothread.get(&iothread).or(self.all.as_ref())?;
        let is_confined = |vcpu: &u32| {
            let own = self.vcpu.get(vcpu).or(self.all.as_ref());
            own.is_some_and(|own| own.intersection(cpus) == *own)
        };
        let vcpus = (0..self.vcpus).filter(is_confined).count();
        (vcpus >= cpus.len()).then(|| Crowd {
            cpus: cpus.clone(),
            vcpus,
        })
    }

    /// Whether a vCPU is pinned to this CPU.
    #[must_use]
    pub fn has_vcpu_on(&self, cpu: u32) -> bool {
        self.vcpu.values().any(|cpus| cpus.contains(cpu))
    }
}
