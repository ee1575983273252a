//! What may be changed, by whom and when: pure, no locks, no host.
//!
//! The backend's masks say what the host can do; here modes are laid over them, and what a caller
//! asks for is turned into a joint action that is checked whole before anything is touched.

use std::collections::{BTreeMap, HashSet};

use blkpilot_env::decision::check_action;
use blkpilot_env::observation::head_columns;
use blkpilot_env::{EnvSpec, Head, HeadScope, JointAction, Level, MaskReason, Observation};
use ndarray::s;
use tonic::Code;

use crate::backend::GuestStatus;
use crate::backend::modes::Modes;
use crate::config::mode::Mode;
use crate::wire::names::{Row, guest_name, guest_of};
use crate::wire::status::Failure;

/// For whom masks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody will look at the choice and may ask for it.
    Advice,
    /// The choice is logged, and that is all.
    Shadow,
    /// The choice is applied without anybody looking at it.
    Auto,
}

impl Purpose {
    fn admits(self, mode: Mode) -> bool {
        match self {
            Self::Advice => mode.allows_changes(),
            Self::Shadow => mode == Mode::Shadow,
            Self::Auto => mode.is_automatic(),
        }
    }
}

/// The observation with everything closed that modes forbid for this purpose, and what the guests say is frozen: their word
/// may be younger than the masks.
#[must_use]
pub fn restrict(
    spec: &EnvSpec,
    observation: &Observation,
    guests: &[GuestStatus],
    modes: &Modes,
    purpose: Purpose,
) -> Observation {
    let mut restricted = observation.clone();
    for guest in guests {
        freeze(spec, &mut restricted, guest);
    }
    let open = guests.iter().filter(|g| purpose.admits(modes.of(g)));
    let open: HashSet<&str> = open.map(|g| g.name.as_str()).collect();
    for (row, id) in observation.disk_ids.iter().enumerate() {
        if !open.contains(guest_of(id)) {
            let mut row = restricted.masks.disks.row_mut(row);
            row.map_inplace(|reason| close(reason, MaskReason::NotEnabled));
        }
    }
    // A host's own knobs are no guest's, so no candidate's either; and the guard judges disks alone, so that
    // nothing is changed on a device without anybody asking.
    if purpose != Purpose::Advice || !modes.default.allows_changes() {
        let devices = &mut restricted.masks.devices;
        devices.map_inplace(|reason| close(reason, MaskReason::NotEnabled));
    }
    restricted
}

fn freeze(spec: &EnvSpec, observation: &mut Observation, guest: &GuestStatus) {
    let channels = observation.channel_count();
    for frozen in &guest.frozen {
        let turns = |head: &Head| frozen.head.is_some_and(|knob| head.name == knob.name());
        let Some(head) = spec.disk_heads.iter().position(turns) else {
            continue;
        };
        let columns = head_columns(&spec.disk_heads, channels, head);
        let is_its = |id: &str| match Row::of_disk_id(id) {
            Row::Disk { guest: of, target } => of == guest.name && frozen.targets.contains(&target),
            Row::Device(_) => false,
        };
        for (row, id) in observation.disk_ids.iter().enumerate() {
            if is_its(id) {
                let mut row = observation.masks.disks.row_mut(row);
                let mut levels = row.slice_mut(s![columns.clone()]);
                levels.map_inplace(|reason| close(reason, MaskReason::Frozen));
            }
        }
    }
}

/// Keeps the reason of a level that was closed already.
fn close(level: &mut MaskReason, reason: MaskReason) {
    if level.is_allowed() {
        *level = reason;
    }
}

/// One level that a caller asks for, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The disk or device.
    pub row: Row,
    /// Name of the head.
    pub head: String,
    /// Name of the level.
    pub level: String,
}

/// What explicit levels are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// Name of the host.
    pub host: &'a str,
    /// What can be done there.
    pub spec: &'a EnvSpec,
    /// What is in force and may be chosen, restricted for [`Purpose::Advice`].
    pub observation: &'a Observation,
    /// Its guests.
    pub guests: &'a [GuestStatus],
    /// Their modes.
    pub modes: &'a Modes,
}

/// The joint action that explicit levels stand for; whatever is not named keeps what it has. A level
/// of a head that an IOThread's disks share holds for all of them.
///
/// # Errors
/// The first thing that is wrong, with the path of the field: nothing is half-accepted.
pub fn explicit(at: Situation<'_>, choices: &[Choice]) -> Result<JointAction, Failure> {
    if choices.is_empty() {
        return Err(Failure::field(
            "levels.choices",
            "is empty: name at least one level",
        ));
    }
    let mut action = at.observation.current.clone();
    let mut taken: BTreeMap<(bool, usize, usize), usize> = BTreeMap::new();
    for (i, choice) in choices.iter().enumerate() {
        let field = format!("levels.choices[{i}]");
        let cell = at.locate(&field, choice)?;
        let key = (cell.is_disk, cell.row, cell.head);
        if let Some(first) = taken.insert(key, i) {
            return Err(Failure::field(
                field,
                format!("names the same head as levels.choices[{first}]"),
            ));
        }
        if cell.is_disk {
            action.disks[[cell.row, cell.head]] = cell.level;
        } else {
            action.devices[[cell.row, cell.head]] = cell.level;
        }
    }
    tie(at, &mut action, &taken);
    check_action(at.spec, at.observation, &action)?;
    Ok(action)
}

/// Lets the disks that were not named follow the one on their IOThread that was.
fn tie(at: Situation<'_>, action: &mut JointAction, taken: &BTreeMap<(bool, usize, usize), usize>) {
    for &(is_disk, row, head) in taken.keys() {
        if !is_disk || at.spec.disk_heads[head].scope != HeadScope::IoThread {
            continue;
        }
        let Some(group) = at.observation.disk_group[row] else {
            continue;
        };
        for other in 0..at.observation.disk_count() {
            let follows = at.observation.disk_group[other] == Some(group);
            if follows && !taken.contains_key(&(true, other, head)) {
                action.disks[[other, head]] = action.disks[[row, head]];
            }
        }
    }
}

struct Cell {
    is_disk: bool,
    row: usize,
    head: usize,
    level: Level,
}

impl Situation<'_> {
    fn locate(&self, field: &str, choice: &Choice) -> Result<Cell, Failure> {
        let (is_disk, row, heads) = match &choice.row {
            Row::Disk { guest, target } => {
                self.admit(guest)?;
                let id = format!("{guest}/{target}");
                let row = self.observation.disk_ids.iter().position(|d| *d == id);
                (true, row, &self.spec.disk_heads)
            }
            Row::Device(device) => {
                let row = self.observation.device_ids.iter().position(|d| d == device);
                (false, row, &self.spec.device_heads)
            }
        };
        let row = row.ok_or_else(|| {
            Failure::not_found(
                &choice.row.name(self.host),
                "ListGuests names what there is",
            )
        })?;
        let head = heads
            .iter()
            .position(|head| head.name == choice.head)
            .ok_or_else(|| unknown_head(field, &choice.head, heads))?;
        let level = self.level(field, &heads[head], &choice.level)?;
        Ok(Cell {
            is_disk,
            row,
            head,
            level,
        })
    }

    fn level(&self, field: &str, head: &Head, name: &str) -> Result<Level, Failure> {
        let count = head.len(self.observation.channel_count());
        let names = || (0..count).map(|level| head.level_name(level as Level));
        let found = names().position(|known| known == name);
        found.map(|level| level as Level).ok_or_else(|| {
            let known: Vec<String> = names().collect();
            let problem = format!(
                "{} has no level \"{name}\": use one of {}",
                head.name,
                known.join(", ")
            );
            Failure::new(
                Code::InvalidArgument,
                "ACTION_NO_SUCH_LEVEL",
                problem.clone(),
            )
            .with("head", &head.name)
            .with("level", name)
            .violating(format!("{field}.level"), problem)
        })
    }

    /// Whether a guest may be changed because somebody asks for it.
    ///
    /// # Errors
    /// `NOT_FOUND`, `GUEST_NOT_OPTED_IN` or `MODE_FORBIDS`, which name it.
    pub fn admit(&self, guest: &str) -> Result<(), Failure> {
        let name = guest_name(self.host, guest);
        let Some(status) = self.guests.iter().find(|g| g.name == guest) else {
            return Err(Failure::not_found(
                &name,
                "it is not running; ListGuests names those that are",
            ));
        };
        let refuse = |reason, problem: String| {
            Err(Failure::new(
                Code::FailedPrecondition,
                reason,
                format!("{name} {problem}"),
            )
            .with("guest", guest))
        };
        if !status.opted_in {
            return refuse(
                "GUEST_NOT_OPTED_IN",
                "has not opted in: add the blkpilot element to its metadata, or opt_in = true to its [[guest]] in the configuration".to_owned(),
            );
        }
        let mode = self.modes.of(status);
        if !mode.allows_changes() {
            return refuse(
                "MODE_FORBIDS",
                format!(
                    "is in mode {mode}, which forbids changes: set mode = \"advise\" or \"auto\" for it"
                ),
            );
        }
        Ok(())
    }
}

fn unknown_head(field: &str, name: &str, heads: &[Head]) -> Failure {
    let known: Vec<&str> = heads.iter().map(|head| head.name.as_str()).collect();
    let problem = if known.is_empty() {
        format!("there is no head \"{name}\": devices have none here")
    } else {
        format!(
            "there is no head \"{name}\": use one of {}",
            known.join(", ")
        )
    };
    Failure::field(format!("{field}.head"), problem)
}

#[cfg(test)]
mod tests {
    use blkpilot_env::observation::head_slice;
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, ResetOptions};
    use proptest::prelude::*;

    use super::*;
    use crate::backend::FrozenKnob;
    use crate::backend::modes::Reach;
    use crate::config::GuestConfig;
    use crate::config::mode::Knob;

    struct Cluster {
        spec: EnvSpec,
        observation: Observation,
        guests: Vec<GuestStatus>,
        modes: Modes,
    }

    /// Guests `trading` (auto), `ingestion` (advise), `builds` (observe) and `backup` (not opted in).
    fn cluster() -> Cluster {
        let mut host = SimHost::fixed(presets::by_name("mixed").unwrap()).unwrap();
        let observation = host.reset(Some(1), &ResetOptions::new()).unwrap();
        let guest = |name: &str| GuestStatus {
            frozen: vec![],
            name: name.to_owned(),
            opted_in: name != "backup",
            mode: (name == "trading").then_some(Mode::Auto),
            targets: vec!["vda".to_owned()],
            problem: None,
            exploration: None,
        };
        let names = observation.disk_ids.iter().map(|id| guest_of(id));
        let observe = GuestConfig {
            mode: Some(Mode::Observe),
            knobs: Some(vec![Knob::Channel]),
            ..GuestConfig::default()
        };
        Cluster {
            spec: host.spec().clone(),
            guests: names.map(guest).collect(),
            observation,
            modes: Modes {
                default: Mode::Advise,
                guests: BTreeMap::from([("builds".to_owned(), observe)]),
                candidate: Reach::Nobody,
            },
        }
    }

    impl Cluster {
        fn row(&self, guest: &str) -> usize {
            let ids = &self.observation.disk_ids;
            ids.iter().position(|id| guest_of(id) == guest).unwrap()
        }

        fn is_open(&self, observation: &Observation, guest: &str) -> bool {
            let row = observation.masks.disks.row(self.row(guest));
            row.iter().any(|reason| reason.is_allowed())
        }

        fn situation(&self) -> Situation<'_> {
            Situation {
                host: "local",
                spec: &self.spec,
                observation: &self.observation,
                guests: &self.guests,
                modes: &self.modes,
            }
        }
    }

    fn choice(disk: &str, head: &str, level: &str) -> Choice {
        Choice {
            row: Row::of_disk_id(disk),
            head: head.to_owned(),
            level: level.to_owned(),
        }
    }

    #[test]
    fn a_mode_opens_a_guest_to_the_purposes_it_admits() {
        let cluster = cluster();
        let open = |purpose, guest| {
            let seen = restrict(
                &cluster.spec,
                &cluster.observation,
                &cluster.guests,
                &cluster.modes,
                purpose,
            );
            cluster.is_open(&seen, guest)
        };
        assert!(open(Purpose::Advice, "trading") && open(Purpose::Auto, "trading"));
        assert!(open(Purpose::Advice, "ingestion") && !open(Purpose::Auto, "ingestion"));
        assert!(!open(Purpose::Advice, "builds") && !open(Purpose::Auto, "builds"));
    }

    #[test]
    fn shadow_and_canary_are_open_to_their_purposes_and_are_advice_without_a_candidate() {
        let mut cluster = cluster();
        cluster.guests.retain(|guest| guest.name != "backup");
        for (guest, mode) in cluster
            .guests
            .iter_mut()
            .zip([Mode::Shadow, Mode::Canary, Mode::Auto])
        {
            guest.mode = Some(mode);
        }
        let open = |cluster: &Cluster, purpose: Purpose| {
            let (guests, modes) = (&cluster.guests, &cluster.modes);
            let seen = restrict(&cluster.spec, &cluster.observation, guests, modes, purpose);
            let names = guests
                .iter()
                .map(|guest| cluster.is_open(&seen, &guest.name));
            names.collect::<Vec<bool>>()
        };
        for (candidate, shadow, auto) in [
            (Reach::Canary, [true, false, false], [false, true, true]),
            (Reach::Shadow, [true, false, false], [false, false, true]),
            (Reach::Nobody, [false; 3], [false, false, true]),
        ] {
            cluster.modes.candidate = candidate;
            assert_eq!(open(&cluster, Purpose::Advice), [true; 3]);
            assert_eq!(open(&cluster, Purpose::Shadow), shadow);
            assert_eq!(open(&cluster, Purpose::Auto), auto);
            let notices = cluster
                .guests
                .iter()
                .map(|guest| cluster.modes.notice(guest));
            let notices: Vec<bool> = notices.map(|notice| notice.is_some()).collect();
            let lacks = |reach| candidate < reach;
            assert_eq!(notices, [lacks(Reach::Shadow), lacks(Reach::Canary), false]);
        }
    }

    #[test]
    fn a_reason_that_stood_before_is_kept() {
        let mut cluster = cluster();
        let row = cluster.row("builds");
        cluster.observation.masks.disks[[row, 0]] = MaskReason::Frozen;
        let seen = restrict(
            &cluster.spec,
            &cluster.observation,
            &cluster.guests,
            &cluster.modes,
            Purpose::Advice,
        );
        assert_eq!(seen.masks.disks[[row, 0]], MaskReason::Frozen);
        assert_eq!(seen.masks.disks[[row, 1]], MaskReason::NotEnabled);
    }

    #[test]
    fn what_a_guest_says_is_frozen_is_closed_although_the_masks_do_not_know_yet() {
        let mut cluster = cluster();
        let row = cluster.row("trading");
        let told = |knob, targets: &[&str]| FrozenKnob {
            knob: "as the journal calls it".to_owned(),
            head: knob,
            targets: targets.iter().map(|&target| target.to_owned()).collect(),
            original: "1".to_owned(),
            set: "2".to_owned(),
            found: "3".to_owned(),
            at_us: None,
        };
        cluster.guests[row].frozen = vec![
            told(Some(Knob::Cache), &["vdb", "vda"]),
            told(Some(Knob::Polling), &["vdb"]),
            told(Some(Knob::Throttle), &["vda"]),
            told(None, &["vda"]),
        ];
        let before = cluster.observation.masks.disks.row(row).to_vec();
        let seen = restrict(
            &cluster.spec,
            &cluster.observation,
            &cluster.guests,
            &cluster.modes,
            Purpose::Advice,
        );
        let (heads, channels) = (&cluster.spec.disk_heads, seen.channel_count());
        let after = seen.masks.disks.row(row).to_vec();
        for (head, of) in heads.iter().enumerate() {
            let (before, after) = (
                head_slice(heads, channels, &before, head),
                head_slice(heads, channels, &after, head),
            );
            assert!(
                before.iter().any(|reason| reason.is_allowed()),
                "{}",
                of.name
            );
            for (before, after) in before.iter().zip(after) {
                let is_closed = of.name == "cache" && before.is_allowed();
                assert_eq!(
                    *after,
                    if is_closed {
                        MaskReason::Frozen
                    } else {
                        *before
                    }
                );
            }
        }
        let other = cluster.row("ingestion");
        assert_eq!(
            seen.masks.disks.row(other),
            cluster.observation.masks.disks.row(other)
        );
    }

    #[test]
    fn a_choice_on_a_shared_iothread_holds_for_all_its_disks() {
        let mut cluster = cluster();
        let (first, second) = (cluster.row("trading"), cluster.row("ingestion"));
        let group = cluster.observation.disk_group[first];
        cluster.observation.disk_group[second] = group;
        let both = cluster.observation.current.disks[[first, 0]];
        cluster.observation.current.disks[[second, 0]] = both;
        let chosen = [
            choice("trading/vda", "channel", "channel-3"),
            choice("trading/vda", "cache", "buffered"),
        ];
        let action = explicit(cluster.situation(), &chosen).unwrap();
        assert_eq!(
            (action.disks[[first, 0]], action.disks[[second, 0]]),
            (4, 4)
        );
        assert_eq!(
            (action.disks[[first, 1]], action.disks[[second, 1]]),
            (1, 0)
        );
        let apart = [
            choice("trading/vda", "channel", "channel-3"),
            choice("ingestion/vda", "channel", "channel-2"),
        ];
        let refused = explicit(cluster.situation(), &apart).unwrap_err();
        assert_eq!(refused.reason(), "ACTION_GROUP_DISAGREES");
    }

    proptest! {
        /// What is admitted changes what was named, to what was named, on guests that allow it.
        #[test]
        fn what_is_admitted_is_what_was_asked_for_and_allowed(
            asked in prop::collection::vec((0_usize..5, 0_usize..4, 0_usize..6), 0..6),
        ) {
            let cluster = cluster();
            let guests = ["trading", "ingestion", "builds", "backup", "nobody"];
            let heads = ["channel", "cache", "polling", "colour"];
            let levels = ["float", "channel-1", "direct", "buffered", "adaptive", "red"];
            let disk = |guest: usize| format!("{}/vda", guests[guest]);
            let choices: Vec<Choice> = asked
                .iter()
                .map(|(g, h, l)| choice(&disk(*g), heads[*h], levels[*l]))
                .collect();
            if let Ok(action) = explicit(cluster.situation(), &choices) {
                for (guest, head, level) in &asked {
                    prop_assert!(*guest < 2, "{} was admitted", guests[*guest]);
                    let set = action.disks[[cluster.row(guests[*guest]), *head]];
                    let name = cluster.spec.disk_heads[*head].level_name(set);
                    prop_assert_eq!(name.as_str(), levels[*level]);
                }
                let changed = action.disks.iter().zip(&cluster.observation.current.disks);
                prop_assert!(changed.filter(|(a, b)| a != b).count() <= asked.len());
            }
        }
    }
}
