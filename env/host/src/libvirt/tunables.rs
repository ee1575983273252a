//! Bindings of IOThreads that others change, from libvirt's tunable event
//! (`VIR_DOMAIN_EVENT_ID_TUNABLE`, which names the new value but not who set it).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virt::connect::Connect;
use virt::error::Error;

use super::ffi;
use crate::cpuset::CpuSet;
use crate::hypervisor::TunedByOthers;
use crate::knob::Knob;

/// Bindings kept at most while nobody asks for them.
const MAX_KEPT: usize = 10_000;

/// What has been told and not been asked for yet.
#[derive(Debug, Default)]
struct Told {
    /// Our own bindings whose events have not come yet, oldest first.
    ours: Vec<TunedByOthers>,
    others: Vec<TunedByOthers>,
}

/// A subscription to the tunable events of one connection.
#[derive(Debug)]
pub(super) struct Tunables {
    told: Arc<Mutex<Told>>,
    id: i32,
}

impl Tunables {
    pub(super) fn watch(connect: &Connect) -> Result<Self, Error> {
        let told = Arc::<Mutex<Told>>::default();
        let noted = Arc::clone(&told);
        let on_tuned = move |uuid: &str, tunable: &str, value: &str| {
            if let Some(binding) = binding(uuid, tunable, value) {
                lock(&noted).note(binding);
            }
        };
        let id = ffi::watch_tunables(connect, Box::new(on_tuned))?;
        Ok(Self { told, id })
    }

    pub(super) fn unwatch(&self, connect: &Connect) {
        ffi::unwatch_tunables(connect, self.id);
    }

    /// Makes a binding of our own, whose event is not told on.
    pub(super) fn bind<E>(
        &self,
        uuid: &str,
        iothread: u32,
        cpus: &CpuSet,
        bind: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let ours = TunedByOthers {
            uuid: uuid.to_owned(),
            knob: Knob::Channel { iothread },
            value: cpus.to_string(),
        };
        lock(&self.told).ours.push(ours.clone());
        let bound = bind();
        if bound.is_err() {
            lock(&self.told).forget(&ours);
        }
        bound
    }

    pub(super) fn take(&self) -> Vec<TunedByOthers> {
        std::mem::take(&mut lock(&self.told).others)
    }
}

impl Told {
    fn note(&mut self, binding: TunedByOthers) {
        if !self.forget(&binding) && self.others.len() < MAX_KEPT {
            self.others.push(binding);
        }
    }

    /// Strikes out a binding of ours, and those before it of the same knob: events keep their order, so
    /// theirs will not come any more. Returns whether there was one.
    fn forget(&mut self, binding: &TunedByOthers) -> bool {
        let Some(last) = self.ours.iter().position(|ours| ours == binding) else {
            return false;
        };
        let mut index = 0;
        self.ours.retain(|ours| {
            let is_past = index <= last && ours.uuid == binding.uuid && ours.knob == binding.knob;
            index += 1;
            !is_past
        });
        true
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `cputune.iothreadpin3` set to `0-1` is a binding.
fn binding(uuid: &str, tunable: &str, value: &str) -> Option<TunedByOthers> {
    let iothread = tunable.strip_prefix("cputune.iothreadpin")?.parse().ok()?;
    let cpus: CpuSet = value.parse().ok()?;
    Some(TunedByOthers {
        uuid: uuid.to_owned(),
        knob: Knob::Channel { iothread },
        value: cpus.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "ee81b14e-982c-47f4-ac22-70486068cb15";

    fn pinned(value: &str) -> TunedByOthers {
        binding(UUID, "cputune.iothreadpin1", value).unwrap()
    }

    #[test]
    fn only_bindings_of_iothreads_are_told() {
        assert_eq!(pinned("0,1,2").value, "0-2");
        assert_eq!(binding(UUID, "cputune.vcpupin1", "0"), None);
        assert_eq!(binding(UUID, "cputune.iothreadpin", "0"), None);
        assert_eq!(binding(UUID, "cputune.iothreadpin1", "x"), None);
    }

    #[test]
    fn ours_are_struck_out_in_order_and_those_of_others_are_kept() {
        let mut told = Told {
            ours: vec![pinned("0"), pinned("1"), pinned("0")],
            others: vec![],
        };
        told.note(pinned("0"));
        told.note(pinned("2-3"));
        told.note(pinned("1"));
        assert_eq!(told.others, [pinned("2-3")]);
        assert_eq!(told.ours, [pinned("0")]);
        // The event of one was lost: a later one of ours is recognised all the same.
        told.ours = vec![pinned("1"), pinned("2")];
        told.note(pinned("2"));
        assert_eq!((told.ours.len(), told.others.len()), (0, 1));
        told.note(pinned("2"));
        assert_eq!(told.others.last(), Some(&pinned("2")));
    }
}
