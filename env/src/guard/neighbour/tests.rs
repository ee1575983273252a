//! Neighbours of known weight, and all that can happen to a limit.

use proptest::prelude::*;

use super::*;
use crate::observation::Validity;
use crate::sim::{SimHost, presets};
use crate::{Environment as _, sample::Reading};

const WINDOW: Duration = Duration::from_secs(2);
const OBJECTIVE_US: f64 = 1_000.0;
const VICTIM: &str = "victim/vda";
const HEAVY: &str = "heavy/vda";
const LIGHT: &str = "light/vda";

fn config() -> NeighbourConfig {
    NeighbourConfig {
        windows: 3,
        relief_windows: 4,
        longest: Duration::from_secs(200),
        pause: Duration::from_secs(60),
        ..NeighbourConfig::default()
    }
}

/// Three disks of three guests on one device, and a watch over them.
struct Host {
    window: HostWindow,
    facts: Facts,
    watch: NeighbourWatch,
    now: Duration,
}

impl Host {
    fn new() -> Self {
        let mut host = SimHost::fixed(presets::identical_disks(3, 4)).unwrap();
        let obs = host.reset(Some(1), &Default::default()).unwrap();
        let before = host.sample().unwrap().clone();
        host.step(&obs.current).unwrap();
        let mut window = HostWindow::between(&before, host.sample().unwrap());
        for (row, id) in window.disks.iter_mut().zip([VICTIM, HEAVY, LIGHT]) {
            row.id = id.to_owned();
            row.device = 0;
            row.did.hit_rate = Ok(0.0);
            row.did.request_bytes = Ok(4096.0);
        }
        window.devices[0].did.iops = Err(Validity::Unsupported);
        window.devices[0].did.bytes_per_sec = Err(Validity::Unsupported);
        let facts = Facts {
            objectives_us: [(VICTIM.to_owned(), OBJECTIVE_US)].into(),
            may_limit: [HEAVY, LIGHT].map(str::to_owned).into(),
            limited: BTreeSet::new(),
        };
        Self {
            window,
            facts,
            watch: NeighbourWatch::new(config()),
            now: Duration::ZERO,
        }
    }

    /// A window with this p99 of the victim and these rates of all three; what is named is done.
    fn pass(&mut self, p99_us: Reading<f64>, iops: [f64; 3]) -> Vec<Step> {
        self.now += WINDOW;
        for (row, iops) in self.window.disks.iter_mut().zip(iops) {
            row.did.iops = Ok(iops);
            row.in_flight = Ok(1);
        }
        self.window.disks[0].did.latency_us_p99 = p99_us;
        let steps = self.watch.observe(self.now, &self.window, &self.facts);
        for step in &steps {
            match &step.action {
                Action::Limit(..) => self.facts.limited.insert(step.disk.clone()),
                Action::Lift(_) => self.facts.limited.remove(&step.disk),
            };
        }
        steps
    }

    fn missed(&mut self, iops: [f64; 3]) -> Vec<Step> {
        self.pass(Ok(OBJECTIVE_US * 3.0), iops)
    }

    fn met(&mut self, iops: [f64; 3]) -> Vec<Step> {
        self.pass(Ok(OBJECTIVE_US / 3.0), iops)
    }

    /// The heavy one limited to half of its 8,000 requests.
    fn limited() -> Self {
        let mut host = Self::new();
        for _ in 0..2 {
            assert_eq!(host.missed([500.0, 8_000.0, 500.0]), []);
        }
        let steps = host.missed([500.0, 8_000.0, 500.0]);
        assert_eq!(
            limit_of(&steps),
            Some((HEAVY, Some(4_000), Some(16_384_000)))
        );
        host
    }
}

type Named<'a> = (&'a str, Option<u64>, Option<u64>);

fn limit_of(steps: &[Step]) -> Option<Named<'_>> {
    match steps {
        [
            Step {
                disk,
                action: Action::Limit(limit, _),
            },
        ] => Some((disk, limit.iops, limit.bytes_per_s)),
        _ => None,
    }
}

fn lift_of(steps: &[Step]) -> Option<Why> {
    match steps {
        [
            Step {
                action: Action::Lift(why),
                ..
            },
        ] => Some(*why),
        _ => None,
    }
}

#[test]
fn the_heavy_neighbour_is_limited_after_windows_in_a_row_and_the_reason_names_all() {
    let mut host = Host::new();
    host.missed([500.0, 8_000.0, 500.0]);
    host.missed([500.0, 8_000.0, 500.0]);
    // One that is met begins anew.
    host.met([500.0, 8_000.0, 500.0]);
    assert_eq!(host.missed([500.0, 8_000.0, 500.0]), []);
    assert_eq!(host.missed([500.0, 8_000.0, 500.0]), []);
    let steps = host.missed([500.0, 8_000.0, 500.0]);
    let Action::Limit(limit, reason) = &steps[0].action else {
        panic!("{steps:?}");
    };
    assert_eq!(limit.iops, Some(4_000));
    assert_eq!(
        reason.to_string(),
        "victim/vda has missed its p99 of 1000 µs for 3 windows (3000 µs), and this disk makes 89 % of its device's load"
    );
}

#[test]
fn nobody_is_limited_where_nobody_dominates_or_consents_or_the_load_is_not_the_guests() {
    let mut even = Host::new();
    let mut unwilling = Host::new();
    unwilling.facts.may_limit.remove(HEAVY);
    let mut outside = Host::new();
    outside.window.devices[0].did.iops = Ok(100_000.0);
    outside.window.devices[0].did.bytes_per_sec = Ok(1e10);
    let mut cached = Host::new();
    cached.window.disks[1].did.hit_rate = Ok(0.99);
    cached.window.disks[1].did.read_share = Ok(1.0);
    let mut same_guest = Host::new();
    same_guest.window.disks[1].id = "victim/vdb".to_owned();
    same_guest.facts.may_limit.insert("victim/vdb".to_owned());
    let mut elsewhere = Host::new();
    let other = elsewhere.window.devices[0].clone();
    elsewhere.window.devices.push(other);
    elsewhere.window.disks[1].device = 1;
    for _ in 0..20 {
        assert_eq!(even.missed([500.0, 400.0, 500.0]), []);
        for host in [
            &mut unwilling,
            &mut outside,
            &mut cached,
            &mut same_guest,
            &mut elsewhere,
        ] {
            assert_eq!(host.missed([500.0, 8_000.0, 400.0]), []);
        }
    }
}

#[test]
fn a_limit_is_tightened_while_the_objective_is_missed_and_never_below_the_floor() {
    let mut host = Host::limited();
    let mut limits = vec![];
    for _ in 0..60 {
        let steps = host.missed([500.0, 2_000.0, 500.0]);
        limits.extend(limit_of(&steps).and_then(|(_, iops, _)| iops));
        if let Some(why) = lift_of(&steps) {
            assert_eq!(why, Why::DidNotHelp);
            break;
        }
    }
    assert_eq!(limits, [2_000, 1_000, 500, 250, 125, 100]);
    // And not again for a while, nor the light one, which is not heavy.
    for _ in 0..25 {
        assert_eq!(host.missed([500.0, 8_000.0, 500.0]), []);
    }
}

#[test]
fn a_limit_is_loosened_step_by_step_and_more_slowly_after_each_time_that_was_too_early() {
    let mut host = Host::limited();
    for _ in 0..3 {
        assert_eq!(host.met([900.0, 4_000.0, 500.0]), []);
    }
    // Loosened to what it did before is none.
    assert_eq!(
        lift_of(&host.met([900.0, 4_000.0, 500.0])),
        Some(Why::Relieved)
    );

    let mut host = Host::limited();
    for _ in 0..2 {
        host.missed([500.0, 4_000.0, 500.0]);
    }
    assert_eq!(
        limit_of(&host.missed([500.0, 4_000.0, 500.0])).unwrap().1,
        Some(2_000)
    );
    let mut waited = vec![];
    for _ in 0..3 {
        let mut windows = 1;
        while host.met([900.0, 2_000.0, 500.0]).is_empty() {
            windows += 1;
        }
        waited.push(windows);
        let tightened = (0..3).map(|_| host.missed([500.0, 4_000.0, 500.0])).last();
        assert_eq!(limit_of(&tightened.unwrap()).unwrap().1, Some(2_000));
    }
    assert_eq!(waited, [4, 8, 16]);
}

#[test]
fn a_limit_that_does_not_bind_is_lifted_at_once() {
    let mut host = Host::limited();
    let steps: Vec<_> = (0..4)
        .map(|_| host.pass(Err(Validity::Unsupported), [900.0, 1_500.0, 500.0]))
        .collect();
    assert_eq!(steps[..3], [vec![], vec![], vec![]]);
    assert_eq!(lift_of(&steps[3]), Some(Why::NotNeeded));
}

#[test]
fn no_disk_is_limited_for_longer_than_may_be() {
    let mut host = Host::limited();
    let began = host.now;
    let lifted = loop {
        // It is hard to tell, so that neither is counted.
        let steps = host.pass(Err(Validity::Unsupported), [500.0, 4_000.0, 500.0]);
        if let Some(why) = lift_of(&steps) {
            break why;
        }
        assert!(host.now - began <= config().longest);
    };
    assert_eq!(lifted, Why::TimeIsUp);
}

#[test]
fn a_limit_goes_with_its_consent_with_those_it_protects_and_with_the_guard() {
    let mut host = Host::limited();
    host.facts.may_limit.remove(HEAVY);
    assert_eq!(
        lift_of(&host.missed([500.0, 4_000.0, 500.0])),
        Some(Why::NotAllowed)
    );
    let mut host = Host::limited();
    host.facts.objectives_us.clear();
    assert_eq!(
        lift_of(&host.missed([500.0, 4_000.0, 500.0])),
        Some(Why::NobodyToProtect)
    );
    let mut host = Host::limited();
    let limited = host.facts.limited.clone();
    assert_eq!(lift_of(&host.watch.leave(&limited)), Some(Why::Leaving));
    // Of a guard before this one.
    let mut host = Host::new();
    host.facts.limited.insert(LIGHT.to_owned());
    assert_eq!(
        lift_of(&host.met([500.0, 500.0, 500.0])),
        Some(Why::Forgotten)
    );
}

#[test]
fn what_could_not_be_lifted_is_named_again_and_what_could_not_be_set_is_not_believed() {
    let mut host = Host::limited();
    host.facts.may_limit.clear();
    for _ in 0..3 {
        assert_eq!(
            lift_of(&host.missed([500.0, 4_000.0, 500.0])),
            Some(Why::NotAllowed)
        );
        host.facts.limited.insert(HEAVY.to_owned());
    }
    let mut host = Host::limited();
    host.facts.limited.clear();
    let mut windows = 1;
    while host.missed([500.0, 8_000.0, 500.0]).is_empty() {
        windows += 1;
    }
    assert_eq!(
        WINDOW * windows,
        RETRY + WINDOW,
        "it is tried again after a while"
    );
}

#[test]
fn a_silent_victim_misses_its_objective_and_an_idle_one_meets_it() {
    let mut host = Host::new();
    for _ in 0..2 {
        host.pass(Err(Validity::Idle), [0.0, 8_000.0, 500.0]);
    }
    let steps = host.pass(Err(Validity::Idle), [0.0, 8_000.0, 500.0]);
    assert!(limit_of(&steps).is_some(), "{steps:?}");
    host.window.disks[0].in_flight = Ok(0);
    let row = &host.window.disks[0];
    assert!(!misses(row, OBJECTIVE_US) && meets(row, OBJECTIVE_US));
}

#[derive(Debug, Clone)]
struct Event {
    p99_us: Reading<f64>,
    iops: [f64; 3],
    consents: bool,
    is_set: bool,
}

fn event() -> impl Strategy<Value = Event> {
    let p99 = prop_oneof![
        3 => Just(Ok(OBJECTIVE_US * 2.0)),
        2 => Just(Ok(OBJECTIVE_US / 2.0)),
        1 => Just(Err(Validity::Unsupported)),
    ];
    let rate = prop_oneof![Just(0.0), 10.0..20_000.0_f64];
    let rates = [rate.clone(), rate.clone(), rate];
    let event = (
        p99,
        rates,
        prop::bool::weighted(0.95),
        prop::bool::weighted(0.95),
    );
    event.prop_map(|(p99_us, iops, consents, is_set)| Event {
        p99_us,
        iops,
        consents,
        is_set,
    })
}

proptest! {
    #[test]
    fn whatever_happens_nobody_is_limited_without_consent_below_the_floor_or_for_longer_than_may_be(
        events in prop::collection::vec(event(), 1..300),
    ) {
        let mut host = Host::new();
        let config = config();
        let mut since: Option<Duration> = None;
        let mut missed = 0_u32;
        for event in events {
            if event.consents {
                host.facts.may_limit.insert(HEAVY.to_owned());
            } else {
                host.facts.may_limit.remove(HEAVY);
            }
            let was_limited = host.facts.limited.clone();
            let is_missed = event.p99_us.is_ok_and(|us| us > OBJECTIVE_US)
                || event.iops[0] == 0.0;
            missed = if is_missed { missed + 1 } else { 0 };
            let steps = host.pass(event.p99_us, event.iops);
            prop_assert!(steps.len() <= 1, "one step per device: {steps:?}");
            for step in &steps {
                match &step.action {
                    Action::Limit(limit, reason) => {
                        prop_assert!(host.facts.may_limit.contains(&step.disk));
                        prop_assert!(limit.iops.is_none_or(|n| n >= config.least_iops));
                        prop_assert!(limit.bytes_per_s.is_none_or(|n| n >= config.least_bytes_per_s));
                        prop_assert!(limit.iops.is_some() || limit.bytes_per_s.is_some());
                        let is_new = was_limited.is_empty();
                        if is_new || matches!(reason, Reason::Missed { .. }) {
                            prop_assert!(missed >= config.windows);
                        }
                        if is_new && !event.is_set {
                            host.facts.limited.clear();
                        }
                    }
                    Action::Lift(_) => prop_assert!(was_limited.contains(&step.disk)),
                }
            }
            since = match (host.facts.limited.is_empty(), since) {
                (true, _) => None,
                (false, None) => Some(host.now),
                (false, since) => since,
            };
            if let Some(since) = since {
                prop_assert!(host.now - since < config.longest);
            }
        }
        // And it is over in the end.
        for _ in 0..200 {
            host.met([500.0, 3_000.0, 500.0]);
        }
        prop_assert!(host.facts.limited.is_empty());
    }
}
