//! The power fails at any operation, and what was not synced is lost in any order: whatever was
//! acknowledged is there afterwards, once, as it was written, and every file can be read.

use std::collections::BTreeMap;

use blkpilot_env::Rng;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rand::SeedableRng as _;

use super::*;
use crate::columns::LoggedRow;
use crate::files::simulated::Simulated;
use crate::fixture::{Of, decision_of, outcome_of};
use crate::scan::{Query, Scan};
use crate::schema::Event;
use crate::writer::{Config, Writer};

/// Two of the decisions of the fixture and their outcomes fill one.
const SEGMENT: Config = Config {
    segment_bytes: 4000,
};

/// What one start of the service does before its power fails.
#[derive(Debug, Clone)]
struct Run {
    /// Per commit: decisions, and whether the outcomes of those before it come with them.
    commits: Vec<(u8, bool)>,
    /// Sealed segments become Parquet after each so many commits.
    compact_every: usize,
    /// Operations that succeed.
    fail_after: u64,
    seed: u64,
}

fn run() -> impl Strategy<Value = Run> {
    let commits = prop::collection::vec((0_u8..4, any::<bool>()), 1..12);
    (commits, 1_usize..5, 0_u64..400, any::<u64>()).prop_map(
        |(commits, compact_every, fail_after, seed)| Run {
            commits,
            compact_every,
            fail_after,
            seed,
        },
    )
}

fn of(number: u128, episode: u128) -> Of {
    Of {
        number,
        host: if number.is_multiple_of(5) { "b" } else { "a" },
        // From shortly before midnight on.
        at_us: 1_700_006_250_000_000 + number as i64 * 10_000_000,
        episode,
    }
}

/// What was written, by number: the episode, and what was acknowledged.
#[derive(Debug, Default)]
struct World {
    written: BTreeMap<u128, Made>,
    next: u128,
}

#[derive(Debug, Clone, Copy)]
struct Made {
    episode: u128,
    is_acknowledged: bool,
    is_outcome_acknowledged: bool,
}

impl World {
    /// Ends with the error of a power loss, or when all is done.
    fn live(
        &mut self,
        disk: &Simulated,
        dir: &Path,
        run: &Run,
        episode: u128,
    ) -> Result<(), LogError> {
        let files: Arc<dyn Files> = Arc::new(disk.clone());
        let (mut writer, _) = Writer::open_on(files, None, dir, SEGMENT)?;
        let keep = Keep {
            most_bytes: u64::MAX,
            most_age: None,
        };
        let mut compactor = writer.compactor(keep);
        let go_on = AtomicBool::new(false);
        let mut before = vec![];
        for (i, (decisions, with_outcomes)) in run.commits.iter().enumerate() {
            let own: Vec<u128> = (self.next..self.next + u128::from(*decisions)).collect();
            self.next += u128::from(*decisions);
            let settled = if *with_outcomes {
                std::mem::take(&mut before)
            } else {
                vec![]
            };
            for number in &settled {
                writer.append(&Event::Outcome(outcome_of(of(*number, episode))))?;
            }
            for number in &own {
                let made = Made {
                    episode,
                    is_acknowledged: false,
                    is_outcome_acknowledged: false,
                };
                self.written.insert(*number, made);
                writer.append(&Event::Decision(Box::new(decision_of(of(
                    *number, episode,
                )))))?;
            }
            writer.commit()?;
            self.acknowledge(&own, &settled);
            before.extend(own);
            if i % run.compact_every == 0 {
                compactor.compact(Horizon::Now(0), &go_on)?;
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self, decisions: &[u128], outcomes: &[u128]) {
        for number in decisions {
            self.written.get_mut(number).unwrap().is_acknowledged = true;
        }
        for number in outcomes {
            self.written
                .get_mut(number)
                .unwrap()
                .is_outcome_acknowledged = true;
        }
    }

    fn check(&self, disk: &Simulated, dir: &Path) -> Result<(), TestCaseError> {
        let files: Arc<dyn Files> = Arc::new(disk.clone());
        let scan = Scan::open_on(files, dir, Query::default(), Horizon::Final);
        let mut rows: Vec<LoggedRow> = vec![];
        for batch in scan.map_err(failure)? {
            rows.extend(batch.map_err(failure)?.rows().map_err(failure)?);
        }
        let numbers: Vec<u128> = rows.iter().map(|row| row.decision.id.0).collect();
        prop_assert!(
            numbers.is_sorted_by(|a, b| a < b),
            "in order, and once: {:?}",
            numbers
        );
        for row in &rows {
            let number = row.decision.id.0;
            let made = self.written.get(&number).copied();
            prop_assert!(made.is_some(), "{} was never written", number);
            let of = of(number, made.unwrap().episode);
            prop_assert_eq!(&row.decision, &decision_of(of));
            if let Ok(outcome) = &row.outcome {
                prop_assert_eq!(outcome, &outcome_of(of));
            }
        }
        for (number, made) in &self.written {
            let row = rows.iter().find(|row| row.decision.id.0 == *number);
            prop_assert!(row.is_some() || !made.is_acknowledged, "{} is lost", number);
            let has_outcome = row.is_some_and(|row| row.outcome.is_ok());
            prop_assert!(
                has_outcome || !made.is_outcome_acknowledged,
                "outcome of {}",
                number
            );
        }
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn failure(error: LogError) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

fn live_and_die(runs: &[Run]) -> Result<u64, TestCaseError> {
    let dir = Path::new("/log");
    let disk = Simulated::with_dir(dir);
    let mut world = World::default();
    for (episode, run) in runs.iter().enumerate() {
        disk.fail_after(run.fail_after);
        let lived = world.live(&disk, dir, run, episode as u128);
        if let Err(error) = &lived {
            let is_power =
                std::error::Error::source(error).is_some_and(|e| e.to_string().contains("power"));
            let is_power = is_power || error.to_string().contains("power");
            prop_assert!(is_power, "{} ({:?})", error, error);
        }
        disk.restart(&mut Rng::seed_from_u64(run.seed));
        world.check(&disk, dir)?;
    }
    // All that is left becomes Parquet, and is the same.
    let (writer, _) =
        Writer::open_on(Arc::new(disk.clone()), None, dir, SEGMENT).map_err(failure)?;
    let mut writer = writer;
    writer.seal().map_err(failure)?;
    let keep = Keep {
        most_bytes: u64::MAX,
        most_age: None,
    };
    let go_on = AtomicBool::new(false);
    writer
        .compactor(keep)
        .compact(Horizon::Final, &go_on)
        .map_err(failure)?;
    world.check(&disk, dir)?;
    let segments = segment::list(&disk, dir).map_err(failure)?;
    prop_assert_eq!(segments.len(), 1);
    Ok(disk.operations())
}

/// `BLKPILOT_FULL=1` asks for the large number.
fn cases() -> u32 {
    let is_full = std::env::var_os("BLKPILOT_FULL").is_some_and(|value| value == "1");
    if is_full { 5000 } else { 16 }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_fails() {
    // By the name of this file the failures of earlier days are found, and tried first.
    let mut runner = TestRunner::new(ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::with_cases(cases())
    });
    let courses = prop::collection::vec(run(), 1..5);
    let result = runner.run(&courses, |runs| live_and_die(&runs).map(|_| ()));
    assert!(result.is_ok(), "{}", result.unwrap_err());
    println!(
        "{} random courses of up to four lives: nothing lost",
        cases()
    );
}

/// Every operation of one life is the last one once.
#[test]
fn the_power_may_fail_at_each_operation_of_a_compaction() {
    let run = Run {
        commits: vec![(3, true), (3, true), (2, true), (2, false), (3, true)],
        compact_every: 2,
        fail_after: u64::MAX,
        seed: 7,
    };
    let operations = live_and_die(std::slice::from_ref(&run)).unwrap();
    let step = if cases() > 1000 { 1 } else { 13 };
    for fail_after in (0..operations).step_by(step) {
        let dying = Run {
            fail_after,
            ..run.clone()
        };
        if let Err(error) = live_and_die(&[dying, run.clone()]) {
            panic!("when operation {fail_after} fails: {error}");
        }
    }
    let losses = operations.div_ceil(step as u64);
    println!("power lost at {losses} of the {operations} operations of one life: nothing lost");
}
