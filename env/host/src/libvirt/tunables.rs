//! Bindings of IOThreads and limits of disks that others change, from libvirt's tunable event
//! (`VIR_DOMAIN_EVENT_ID_TUNABLE`, which names the new values but not who set them).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virt::connect::Connect;
use virt::error::Error;

use super::ffi;
use crate::cpuset::CpuSet;
use crate::disk_setting::DiskSetting;
use crate::hypervisor::TunedByOthers;
use crate::knob::Knob;
use crate::stats::StatValue;
use crate::throttle::Params;

/// What was tuned, kept at most while nobody asks for them.
const MAX_KEPT: usize = 10_000;

/// What has been told and not been asked for yet.
#[derive(Debug, Default)]
struct Told {
    /// Our own changes whose events have not come yet, oldest first.
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
        let on_tuned = move |uuid: &str, tuned: &[(String, StatValue)]| {
            for tuned in changes(uuid, tuned) {
                lock(&noted).note(tuned);
            }
        };
        let id = ffi::watch_tunables(connect, Box::new(on_tuned))?;
        Ok(Self { told, id })
    }

    pub(super) fn unwatch(&self, connect: &Connect) {
        ffi::unwatch_tunables(connect, self.id);
    }

    /// Makes a change of our own, whose event is not told on.
    pub(super) fn tune<E>(
        &self,
        ours: &TunedByOthers,
        make: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        lock(&self.told).ours.push(ours.clone());
        let made = make();
        if made.is_err() {
            lock(&self.told).forget(ours);
        }
        made
    }

    pub(super) fn take(&self) -> Vec<TunedByOthers> {
        std::mem::take(&mut lock(&self.told).others)
    }
}

impl Told {
    fn note(&mut self, tuned: TunedByOthers) {
        if !self.forget(&tuned) && self.others.len() < MAX_KEPT {
            self.others.push(tuned);
        }
    }

    /// Strikes out a change of ours, and those before it of the same knob: events keep their order, so
    /// theirs will not come any more. Returns whether there was one.
    fn forget(&mut self, tuned: &TunedByOthers) -> bool {
        let Some(last) = self.ours.iter().position(|ours| ours == tuned) else {
            return false;
        };
        let mut index = 0;
        self.ours.retain(|ours| {
            let is_past = index <= last && ours.uuid == tuned.uuid && ours.knob == tuned.knob;
            index += 1;
            !is_past
        });
        true
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one event tells: a binding each, or the limits of one disk that were named.
fn changes(uuid: &str, tuned: &[(String, StatValue)]) -> Vec<TunedByOthers> {
    let text = |(name, value): &(String, StatValue)| match value {
        StatValue::Text(text) => Some((name.clone(), text.clone())),
        StatValue::Number(_) => None,
    };
    let texts = tuned.iter().filter_map(text);
    let bindings = texts.filter_map(|(name, value)| binding(uuid, &name, &value));
    bindings.chain(limits(uuid, tuned)).collect()
}

/// Limits of our own, as their event will tell them.
pub(super) fn throttled(uuid: &str, target: &str, params: &Params) -> TunedByOthers {
    let mut params = params.clone();
    params.numbers.sort();
    TunedByOthers {
        uuid: uuid.to_owned(),
        knob: Knob::Disk {
            target: target.to_owned(),
            setting: DiskSetting::Throttle,
        },
        value: params.to_string(),
    }
}

/// `blkdeviotune.disk` set to `vda` beside `blkdeviotune.total_iops_sec` set to 100.
fn limits(uuid: &str, tuned: &[(String, StatValue)]) -> Option<TunedByOthers> {
    let (mut disk, mut params) = (None, Params::default());
    for (name, value) in tuned {
        let name = name.strip_prefix("blkdeviotune.")?;
        match value {
            StatValue::Text(target) if name == "disk" => disk = Some(target),
            StatValue::Text(group) => params.group = Some(group.clone()),
            StatValue::Number(number) => params.numbers.push((name.to_owned(), *number)),
        }
    }
    Some(throttled(uuid, disk?, &params))
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
    fn limits_of_a_disk_are_told_as_they_were_named_and_ours_are_known_by_it() {
        let number = |name: &str, value| (format!("blkdeviotune.{name}"), StatValue::Number(value));
        let text = |name: &str, value: &str| {
            (
                format!("blkdeviotune.{name}"),
                StatValue::Text(value.to_owned()),
            )
        };
        let event = [
            text("disk", "vda"),
            number("total_iops_sec", 7),
            number("read_iops_sec", 0),
            text("group_name", "gold"),
        ];
        let told = changes(UUID, &event);
        let params: Params = "total_iops_sec=7 read_iops_sec=0 group_name=gold"
            .parse()
            .unwrap();
        assert_eq!(told, [throttled(UUID, "vda", &params)]);
        assert_eq!(told[0].knob.to_string(), "disk/vda/throttle");
        assert_eq!(changes(UUID, &event[1..]), []);
        let mut ours = Told {
            ours: told.clone(),
            others: vec![],
        };
        ours.note(told[0].clone());
        assert!(ours.others.is_empty() && ours.ours.is_empty());
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
