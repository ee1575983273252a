//! A policy that means to do harm, against the bound that the rules promise: whatever it chooses, on
//! hosts where any level of any disk may harm it or another, at once or later.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::guard::bound::{Harmful, harmed_windows, windows_in_a_row};
use crate::observation::head_slice;

const DISKS: usize = 3;
/// The usual p99 is 300 µs.
const OBJECTIVE_US: f64 = 330.0;
/// What is harmed is so much slower: too little to tell from chance, and plain to see.
const HARMED: [f64; 2] = [1.2, 4.0];

/// What a level of a disk does.
#[derive(Debug, Clone, Copy)]
struct Hurt {
    disk: usize,
    head: usize,
    level: Level,
    victim: usize,
    /// Windows for which it does no harm.
    delay: u32,
}

/// How the policy chooses among what is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Malice {
    /// All the harm that there is, as soon as it may.
    Worst,
    /// Harm, now and then, and whatever else may hide it.
    Sly,
}

struct Attack {
    host: Host,
    guard: Guard,
    config: GuardConfig,
    hurts: Vec<Hurt>,
    /// Windows for which each disk has had each of its levels.
    held: Vec<Vec<u32>>,
    harmed: Vec<u64>,
    in_a_row: Vec<u32>,
    longest: Vec<u32>,
    changes: u64,
}

impl Attack {
    fn new(hurts: Vec<Hurt>, seed: u64) -> Self {
        let mut config = calm();
        config.trial.p99_objective_us = Some(OBJECTIVE_US);
        let host = Host::new(DISKS, seed);
        let heads = host.spec.disk_heads.len();
        let default = &host.obs.default;
        let is_default = |hurt: &Hurt| default.disks[[hurt.disk, hurt.head]] == hurt.level;
        let hurts = hurts.into_iter().filter(|hurt| !is_default(hurt)).collect();
        let mut attack = Self {
            guard: Guard::new(&config),
            hurts,
            held: vec![vec![0; heads]; DISKS],
            harmed: vec![0; DISKS],
            in_a_row: vec![0; DISKS],
            longest: vec![0; DISKS],
            changes: 0,
            config,
            host,
        };
        attack.host.obs.masks.disks.fill(MaskReason::Allowed);
        for _ in 0..8 {
            attack.window();
        }
        attack
    }

    fn is_active(&self, hurt: &Hurt) -> bool {
        self.host.obs.current.disks[[hurt.disk, hurt.head]] == hurt.level
            && self.held[hurt.disk][hurt.head] >= hurt.delay
    }

    /// One window, and what the guard puts back after it.
    fn window(&mut self) {
        let mut factors = [1.0; DISKS];
        for hurt in self.hurts.iter().filter(|hurt| self.is_active(hurt)) {
            factors[hurt.victim] = HARMED[hurt.disk % 2];
        }
        self.host.pass(0.02, &factors);
        for (disk, factor) in factors.iter().enumerate() {
            let is_harmed = *factor > 1.0;
            self.harmed[disk] += u64::from(is_harmed);
            self.in_a_row[disk] = if is_harmed {
                self.in_a_row[disk] + 1
            } else {
                0
            };
            self.longest[disk] = self.longest[disk].max(self.in_a_row[disk]);
        }
        for held in self.held.iter_mut().flatten() {
            *held += 1;
        }
        for named in self.guard.observe(&self.host.window) {
            let was = self.host.obs.current.clone();
            self.host.undo(&mut self.guard, &named);
            self.note_held(&was);
        }
    }

    fn note_held(&mut self, was: &JointAction) {
        for ((disk, head), level) in was.disks.indexed_iter() {
            if self.host.obs.current.disks[[disk, head]] != *level {
                self.held[disk][head] = 0;
            }
        }
    }

    fn does_harm(&self, disk: usize, head: usize, level: Level) -> bool {
        let mut hurts = self.hurts.iter();
        hurts.any(|hurt| (hurt.disk, hurt.head, hurt.level) == (disk, head, level))
    }

    /// A joint decision within the masks.
    fn decide(&mut self, malice: Malice) {
        let obs = self.host.restricted(&self.guard);
        let mut executed = obs.current.clone();
        for disk in 0..DISKS {
            let row = obs.masks.disks.row(disk).to_vec();
            for head in 0..self.host.spec.disk_heads.len() {
                let cells = head_slice(&self.host.spec.disk_heads, obs.channel_count(), &row, head);
                let open = cells
                    .iter()
                    .enumerate()
                    .filter(|(_, cell)| cell.is_allowed());
                let open: Vec<Level> = open.map(|(level, _)| level as Level).collect();
                let harmful: Vec<Level> = open
                    .iter()
                    .copied()
                    .filter(|level| self.does_harm(disk, head, *level))
                    .collect();
                let from = if malice == Malice::Worst || self.host.rng.random_bool(0.2) {
                    &harmful
                } else if self.host.rng.random_bool(0.2) {
                    &open
                } else {
                    continue;
                };
                if !from.is_empty() {
                    executed.disks[[disk, head]] = from[self.host.rng.random_range(0..from.len())];
                }
            }
        }
        if executed != obs.current {
            self.changes += 1;
            self.guard.changed(self.host.now, &self.host.obs, &executed);
            let was = std::mem::replace(&mut self.host.obs.current, executed);
            self.note_held(&was);
        }
    }

    /// Decisions for so long. Time in which nothing is under way passes faster than by windows.
    fn run(&mut self, malice: Malice, horizon: Duration) {
        while self.host.now < horizon {
            self.decide(malice);
            self.window();
            let is_on_trial = |disk: &String| self.guard.trials.is_on_trial(disk);
            let is_quiet = self.in_a_row.iter().all(|windows| *windows == 0)
                && !self.host.obs.disk_ids.iter().any(is_on_trial)
                && self.hurts.iter().all(|hurt| !self.is_waiting(hurt));
            if is_quiet {
                self.host.now += Duration::from_secs(20);
            }
        }
    }

    /// Whether harm is still to come of what is in force.
    fn is_waiting(&self, hurt: &Hurt) -> bool {
        self.host.obs.current.disks[[hurt.disk, hurt.head]] == hurt.level
    }

    /// No disk was harmed for longer than the rules promise, in a row and in all.
    fn check(&self) {
        for victim in 0..DISKS {
            let mine: Vec<&Hurt> = self.hurts.iter().filter(|h| h.victim == victim).collect();
            let is_own = |hurt: &&Hurt| hurt.disk == victim && hurt.delay == 0;
            let kind = if mine.iter().all(is_own) {
                Harmful::Itself
            } else {
                Harmful::Any
            };
            let bound = harmed_windows(&self.config, mine.len() as u64, self.host.now, kind);
            assert!(
                self.harmed[victim] <= bound,
                "{} windows harmed, {bound} at most: {mine:?}",
                self.harmed[victim]
            );
            let longest = windows_in_a_row(&self.config, kind);
            assert!(
                self.longest[victim] <= longest,
                "{} in a row, {longest} at most: {mine:?}",
                self.longest[victim]
            );
        }
    }
}

fn hurt() -> impl Strategy<Value = Hurt> {
    let delay = prop_oneof![3 => Just(0_u32), 1 => 1_u32..30];
    (0..DISKS, 0..3_usize, 0..5_u32, 0..DISKS, delay).prop_map(
        |(disk, head, level, victim, delay)| Hurt {
            disk,
            head,
            level: if head == CHANNEL_HEAD {
                level as Level
            } else {
                (level % 2) as Level
            },
            victim,
            delay,
        },
    )
}

fn full() -> bool {
    std::env::var_os("BLKPILOT_FULL").is_some()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if full() { 20_000 } else { 48 },
        rng_seed: if full() { RngSeed::Random } else { RngSeed::Fixed(11) },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_policy_harms_a_disk_for_longer_than_the_bound(
        hurts in prop::collection::vec(hurt(), 1..12),
        malice in prop_oneof![Just(Malice::Worst), Just(Malice::Sly)],
        seed in 0_u64..1000,
    ) {
        let mut attack = Attack::new(hurts, seed);
        for hours in [1, 6] {
            attack.run(malice, Duration::from_secs(3600 * hours));
            attack.check();
        }
    }
}

/// What hides behind the harm that another disk's own setting does later is found all the same.
#[test]
fn harm_to_a_disk_that_misses_its_objective_already_is_undone_too() {
    let hurt = |disk, head, level, delay| Hurt {
        disk,
        head,
        level,
        victim: 0,
        delay,
    };
    let hurts = vec![hurt(2, 0, 1, 0), hurt(0, 2, 0, 17), hurt(0, 0, 1, 0)];
    for seed in 80..100 {
        let mut attack = Attack::new(hurts.clone(), seed);
        attack.run(Malice::Sly, Duration::from_secs(3600 * 6));
        attack.check();
    }
}

/// A policy that leaves in time, before anything is undone, and comes back as soon as it may.
#[test]
fn leaving_before_it_is_undone_is_no_way_round_the_bound() {
    let hurt = Hurt {
        disk: 1,
        head: CHANNEL_HEAD,
        level: 1,
        victim: 1,
        delay: 13,
    };
    let mut attack = Attack::new(vec![hurt], 87);
    let mut left = 0;
    while attack.host.now < Duration::from_secs(3600 * 6) {
        let is_there = attack.host.obs.current.disks[[1, CHANNEL_HEAD]] == 1;
        let wanted: Level = if is_there && attack.in_a_row[1] == 9 {
            2
        } else {
            1
        };
        let is_open = attack.host.restricted(&attack.guard).masks.disks[[1, usize::from(wanted)]]
            .is_allowed();
        if is_open && (!is_there || wanted == 2) {
            let was = attack.host.obs.current.clone();
            attack.host.change(&mut attack.guard, 1, wanted);
            attack.note_held(&was);
            left += u32::from(wanted == 2);
        }
        attack.window();
    }
    assert!(left >= 3, "it has left {left} times");
    attack.check();
}

/// Every level but the default harms the disk that has it.
fn all_bad() -> Vec<Hurt> {
    let levels = [(0, 5_u16), (1, 2), (2, 2)];
    let cells = levels
        .into_iter()
        .flat_map(|(head, count)| (0..count).map(move |l| (head, l)));
    let cells: Vec<(usize, u16)> = cells.collect();
    let hurt = |disk: usize, (head, level): (usize, u16)| Hurt {
        disk,
        head,
        level: level as Level,
        victim: disk,
        delay: 0,
    };
    (0..DISKS)
        .flat_map(|disk| cells.iter().map(move |cell| hurt(disk, *cell)))
        .collect()
}

#[test]
fn a_policy_that_always_chooses_the_worst_does_next_to_no_harm_in_the_long_run() {
    let mut attack = Attack::new(all_bad(), 5);
    let mut last = f64::INFINITY;
    for hours in [1_u64, 24, 24 * 7] {
        let horizon = Duration::from_secs(3600 * hours);
        attack.run(Malice::Worst, horizon);
        attack.check();
        let worst = attack.harmed.iter().copied().max().unwrap();
        let share = worst as f64 * WINDOW.as_secs_f64() / horizon.as_secs_f64();
        println!(
            "{hours} h: {} changes, {worst} windows of {WINDOW:?} harmed of one disk ({:.4} % of the time), {} in a row",
            attack.changes,
            100.0 * share,
            attack.longest.iter().max().unwrap()
        );
        assert!(share < last, "the share goes down");
        last = share;
    }
    assert!(attack.changes > 20, "it has tried");
    assert!(last < 0.0005, "{last} of a week");
    assert_eq!(attack.longest.iter().max(), Some(&2));
}
