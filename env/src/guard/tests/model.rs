//! The guard against its rules restated slowly, from all that has ever happened, over random windows,
//! changes, failures, gaps, guests that come and go, and leaps of time.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::guard::breaker::BreakerConfig;

const DISKS: usize = 3;
const HEADS: usize = 3;
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
enum Event {
    /// A window, and how much slower than usual each disk is; `None` where it is not there.
    Window([Option<f64>; DISKS], Completes),
    /// The policy changes a disk to this level, if the guard lets it.
    Change(usize, Level),
    Fail,
    Leap(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completes {
    Requests,
    Nothing,
}

/// All that has happened.
#[derive(Debug, Default)]
struct Past {
    changes: Vec<(Duration, usize, Vec<usize>)>,
    failures: Vec<Duration>,
    /// Windows that were judged since the change of a disk, while it is on trial.
    on_trial: [Option<usize>; DISKS],
}

impl Past {
    fn is_breaker_open(&self, now: Duration, rules: &BreakerConfig) -> bool {
        let (mut counted, mut until, mut pause) = (vec![], None, rules.pause);
        for at in &self.failures {
            match until {
                Some(end) if *at < end => {}
                Some(end) if *at - end < rules.within => {
                    pause = (pause * 2).min(rules.longest_pause);
                    until = Some(*at + pause);
                }
                _ => {
                    until = None;
                    counted.push(*at);
                    counted.retain(|earlier| *at - *earlier < rules.within);
                    if counted.len() >= rules.failures as usize {
                        counted.clear();
                        pause = rules.pause;
                        until = Some(*at + pause);
                    }
                }
            }
        }
        until.is_some_and(|end| now < end)
    }

    fn closes(&self, now: Duration, config: &GuardConfig, disk: usize, head: usize) -> MaskReason {
        let in_last_minute = self.changes.iter().filter(|(at, ..)| now - *at < MINUTE);
        let dwells = |(at, changed, heads): &(Duration, usize, Vec<usize>)| {
            *changed == disk && heads.contains(&head) && now - *at < config.dwell
        };
        if self.is_breaker_open(now, &config.breaker) {
            MaskReason::BreakerOpen
        } else if in_last_minute.count() >= config.changes_per_minute as usize {
            MaskReason::RateLimit
        } else if self.on_trial[disk].is_some() || self.changes.iter().any(dwells) {
            MaskReason::Dwell
        } else {
            MaskReason::Allowed
        }
    }
}

struct Course {
    host: Host,
    guard: Guard,
    config: GuardConfig,
    past: Past,
    all: HostWindow,
}

impl Course {
    fn new(config: GuardConfig) -> Self {
        let mut host = Host::new(DISKS, 1);
        host.obs.masks.disks.fill(MaskReason::Allowed);
        let all = host.window.clone();
        Self {
            guard: Guard::new(&config),
            host,
            config,
            past: Past::default(),
            all,
        }
    }

    /// The guard closes what the rules close, and nothing else.
    fn check(&self) {
        let masks = self.host.restricted(&self.guard).masks.disks;
        let channels = self.host.obs.channel_count();
        for disk in 0..DISKS {
            let mut start = 0;
            for (head, spec) in self.host.spec.disk_heads.iter().enumerate() {
                let want = self.past.closes(self.host.now, &self.config, disk, head);
                let end = start + spec.len(channels);
                assert!(
                    (start..end).all(|cell| masks[[disk, cell]] == want),
                    "{disk} {head} {want:?}"
                );
                start = end;
            }
        }
    }

    fn change(&mut self, disk: usize, level: Level) {
        let now = self.host.now;
        let is_same = self.host.obs.current.disks[[disk, CHANNEL_HEAD]] == level;
        let closed = self.past.closes(now, &self.config, disk, CHANNEL_HEAD);
        if is_same || !closed.is_allowed() {
            return;
        }
        self.host.change(&mut self.guard, disk, level);
        self.past.changes.push((now, disk, vec![CHANNEL_HEAD]));
        self.past.on_trial[disk] = Some(0);
    }

    fn window(&mut self, factors: &[Option<f64>; DISKS], completes: Completes) {
        self.host.window = self.all.clone();
        self.host
            .pass(0.02, &factors.map(|factor| factor.unwrap_or(1.0)));
        if completes == Completes::Nothing {
            for row in &mut self.host.window.disks {
                row.did.iops = Ok(0.0);
                row.did.latency_us_mean = Err(Validity::Idle);
                row.did.latency_us_p99 = Err(Validity::Idle);
                row.in_flight = Ok(1);
            }
        }
        let ids = self.host.obs.disk_ids.clone();
        let is_there = |id: &String| {
            ids.iter()
                .zip(factors)
                .any(|(known, f)| known == id && f.is_some())
        };
        self.host.window.disks.retain(|row| is_there(&row.id));
        let named = self.guard.observe(&self.host.window);
        for (disk, factor) in factors.iter().enumerate() {
            let judged = usize::from(completes == Completes::Requests);
            let is_named = named.iter().any(|named| named.disk == ids[disk]);
            let trial = self.past.on_trial[disk].filter(|_| factor.is_some());
            let trial = trial.map(|windows| windows + judged);
            let last = self.config.trial.windows as usize;
            self.past.on_trial[disk] = trial.filter(|windows| *windows < last || is_named);
        }
        for intervention in named {
            assert!(!intervention.harm.to_string().is_empty());
            let disk = ids.iter().position(|id| *id == intervention.disk).unwrap();
            let mine = |(_, changed, _): &(Duration, usize, Vec<usize>)| *changed == disk;
            assert!(
                self.past.changes.iter().any(mine),
                "{intervention:?} was never changed"
            );
            for (head, level) in intervention.levels.iter().enumerate() {
                self.host.obs.current.disks[[disk, head]] = *level;
            }
            let now = self.host.now;
            self.guard.went_back(now, &intervention.disk, HEADS);
            self.past.changes.push((now, disk, (0..HEADS).collect()));
            self.past.failures.push(now);
            self.past.on_trial[disk] = None;
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let factor = prop_oneof![6 => Just(Some(1.0)), 2 => Just(Some(3.0)), 1 => Just(None)];
    let completes = prop_oneof![8 => Just(Completes::Requests), 1 => Just(Completes::Nothing)];
    let factors = [factor.clone(), factor.clone(), factor];
    prop_oneof![
        12 => (factors, completes).prop_map(|(factors, completes)| Event::Window(factors, completes)),
        8 => (0..DISKS, 0..5_u32).prop_map(|(disk, level)| Event::Change(disk, level as Level)),
        1 => Just(Event::Fail),
        2 => (0_u64..900).prop_map(|s| Event::Leap(Duration::from_secs(s))),
    ]
}

/// The same few cases each time; under `BLKPILOT_FULL=1` many, and others.
fn config() -> ProptestConfig {
    let is_full = std::env::var_os("BLKPILOT_FULL").is_some();
    ProptestConfig {
        cases: if is_full { 20_000 } else { 96 },
        rng_seed: if is_full {
            RngSeed::Random
        } else {
            RngSeed::Fixed(7)
        },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn it_closes_what_its_rules_close_and_nothing_else(
        events in prop::collection::vec(event(), 1..120),
        changes_per_minute in 1_u32..8,
    ) {
        let mut course = Course::new(GuardConfig { changes_per_minute, ..calm() });
        for event in events {
            match event {
                Event::Window(factors, completes) => course.window(&factors, completes),
                Event::Change(disk, level) => course.change(disk, level),
                Event::Fail => {
                    course.guard.failed(course.host.now);
                    course.past.failures.push(course.host.now);
                }
                Event::Leap(time) => course.host.now += time,
            }
            course.check();
        }
    }
}
