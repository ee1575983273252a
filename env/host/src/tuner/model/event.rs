//! What may happen, and what may go wrong meanwhile.

use proptest::prelude::*;

use super::world::{GUESTS, KNOBS, Sight};
use crate::fake::Fault;

/// Values that we set, and that others set, by knob in the order of `knobs`.
pub(super) const OURS: [&[&str]; KNOBS] = [
    &["0", "1", "0-3"],
    &["0", "16384"],
    &["buffered", "direct"],
    &["counting"],
    &["total_iops_sec=200", "none", "write_bytes_sec=2097152"],
];
pub(super) const THEIRS: [&[&str]; KNOBS] = [
    &["2", "2-3", "0-3"],
    &["5000", "32768"],
    &["direct", "buffered"],
    &["foreign", "absent"],
    &["read_iops_sec=500 group_name=gold", "none"],
];

/// All CPUs, and the one that [`Fault::AppliedThenTaken`] binds to.
pub(super) const ALL: &str = "0-3";
pub(super) const TAKEN: &str = "3";

#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) what: What,
    pub(super) mishap: Mishap,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Apply(usize, usize, usize),
    SomebodyElse(usize, usize, usize),
    /// A sample that saw what is in force, or in place of it one of the values that we set: perhaps
    /// from before our last change.
    Watch(Option<usize>),
    Reconcile,
    Rollback(Extent),
    Unfreeze(usize, usize),
    Look(usize, Sight),
    OptOut(usize, bool),
    Job(usize, bool),
    RestartGuest(usize),
    /// It is saved and restored, which libvirt does with the settings that it has saved of ours.
    RestoreGuest(usize),
    RestartHost,
    /// Somebody else binds an IOThread, which a write of ours overwrites in the same moment; libvirt tells
    /// of it before the next sample.
    Overtaken(usize, usize),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Extent {
    Host,
    Settings,
    Guest(usize),
    Knob(usize, usize),
}

/// What goes wrong meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mishap {
    None,
    /// The first write to each guest fails.
    Write(Fault),
    /// No guest can be reached.
    Unreachable,
    /// After so many commits the journal takes no more, as on a full disk.
    NoRoom(u32),
    /// The process dies after so many effects.
    Dies(u32),
}

impl What {
    pub(super) fn binds_to_all(&self) -> bool {
        matches!(*self, Self::Apply(_, 0, value) if OURS[0][value] == ALL)
    }
}

fn what() -> impl Strategy<Value = What> {
    let place = || (0..GUESTS, 0..KNOBS);
    let valued = |values: [&'static [&'static str]; KNOBS]| {
        place().prop_flat_map(move |(guest, knob)| (Just(guest), Just(knob), 0..values[knob].len()))
    };
    let sight = prop_oneof![
        Just(Sight::Seen),
        Just(Sight::Hangs),
        Just(Sight::Unlisted),
        Just(Sight::Off)
    ];
    let extent = prop_oneof![
        4 => Just(Extent::Host),
        1 => Just(Extent::Settings),
        1 => (0..GUESTS).prop_map(Extent::Guest),
        1 => place().prop_map(|(guest, knob)| Extent::Knob(guest, knob)),
    ];
    prop_oneof![
        12 => valued(OURS).prop_map(|(guest, knob, value)| What::Apply(guest, knob, value)),
        4 => valued(THEIRS).prop_map(|(guest, knob, value)| What::SomebodyElse(guest, knob, value)),
        4 => prop::option::weighted(0.4, 0..3_usize).prop_map(What::Watch),
        2 => Just(What::Reconcile),
        4 => extent.prop_map(What::Rollback),
        2 => place().prop_map(|(guest, knob)| What::Unfreeze(guest, knob)),
        2 => (0..GUESTS, sight).prop_map(|(guest, sight)| What::Look(guest, sight)),
        2 => (0..GUESTS, any::<bool>()).prop_map(|(guest, out)| What::OptOut(guest, out)),
        1 => (0..GUESTS, any::<bool>()).prop_map(|(guest, runs)| What::Job(guest, runs)),
        1 => (0..GUESTS).prop_map(What::RestartGuest),
        1 => (0..GUESTS).prop_map(What::RestoreGuest),
        2 => (0..GUESTS, 0..THEIRS[0].len()).prop_map(|(guest, value)| What::Overtaken(guest, value)),
        1 => Just(What::RestartHost),
    ]
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let mishap = prop_oneof![
        8 => Just(Mishap::None),
        1 => Just(Mishap::Write(Fault::Refused)),
        1 => Just(Mishap::Write(Fault::Ignored)),
        1 => Just(Mishap::Write(Fault::AppliedThenLost)),
        1 => Just(Mishap::Write(Fault::AppliedThenTaken)),
        1 => Just(Mishap::Unreachable),
        2 => (0_u32..4).prop_map(Mishap::NoRoom),
        4 => (0_u32..7).prop_map(Mishap::Dies),
    ];
    (what(), mishap).prop_map(|(what, mishap)| Event { what, mishap })
}
