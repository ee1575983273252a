//! Logs that cannot be evaluated are refused with the rows, and what is left out is counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use blkpilot_env::{EnvSpec, Head, HeadScope, MaskReason};
use blkpilot_evaluate::{
    EvaluateError, Evaluation, Exposure, LoggedTurn, Mixed, Options, TargetPolicy, UniformTarget,
    evaluate, html, verdict,
};
use blkpilot_log::{
    Config, DecisionId, DecisionRow, Horizon, HostStepId, Keep, OutcomeRow, Source, Stage, Subject,
    Writer,
};
use blkpilot_models::PolicyError;
use common::{GOOD, INTERVAL_US, Size, Target, World, rows, spec, write};
use tempfile::TempDir;

type Rows = Vec<(DecisionRow, OutcomeRow)>;

const WORLD: World = World {
    disks: 2,
    contention: 0.0,
};
const SIZE: Size = Size {
    hosts: 1,
    episodes: 2,
    steps: 30,
};

fn options() -> Options {
    Options {
        horizon: 3,
        replicates: 100,
        ..Options::default()
    }
}

fn evaluated(rows: &Rows, options: &Options) -> Result<Evaluation, EvaluateError> {
    let dir = TempDir::new().unwrap();
    write(dir.path(), rows);
    evaluate(dir.path(), &Target::new(GOOD), None, options)
}

fn changed(change: impl FnOnce(&mut Rows)) -> Rows {
    let mut rows = rows(WORLD, SIZE, 3);
    change(&mut rows);
    rows
}

/// Asserts that a log with this change is refused with its tenth row, and these words.
fn assert_refused(change: impl FnOnce(&mut DecisionRow), words: &str) {
    let rows = changed(|rows| change(&mut rows[10].0));
    let error = evaluated(&rows, &options()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(words), "{text}");
    assert!(text.contains("segment 1, line 10: "), "{text}");
    let EvaluateError::Problems { problems } = error else {
        panic!("{text}")
    };
    assert_eq!(problems.count, 1, "{text}");
}

#[test]
fn a_log_that_is_right_is_evaluated() {
    let found = evaluated(&changed(|_| {}), &options()).unwrap();
    assert_eq!(
        (found.log.rows, found.log.steps, found.log.episodes),
        (120, 60, 2)
    );
    assert_eq!((found.windows.begun, found.windows.whole), (20, 20));
    assert_eq!(found.log.gaps.count, 0);
}

#[test]
fn propensities_that_are_none_are_refused_with_their_row() {
    assert_refused(|row| row.heads[0].propensity = f64::NAN, "cache is missing");
    assert_refused(
        |row| row.heads[1].propensity = 0.0,
        "polling = 0 must be in (0, 1]",
    );
    assert_refused(
        |row| row.heads[0].propensity = 1.5,
        "= 1.5 must be in (0, 1]",
    );
    assert_refused(|row| row.heads[0].propensity = -0.2, "must be in (0, 1]");
}

#[test]
fn propensities_that_are_not_those_under_the_mask_are_refused() {
    let close = |row: &mut DecisionRow, level: usize| row.heads[0].mask[level] = MaskReason::Dwell;
    assert_refused(
        |row| {
            let other = 1 - usize::from(row.heads[0].requested);
            close(row, other);
        },
        "do not sum to 1",
    );
    assert_refused(
        |row| {
            let own = usize::from(row.heads[0].requested);
            close(row, own);
        },
        "the mask leaves only",
    );
    assert_refused(
        |row| {
            row.epsilon = 0.5;
            row.heads[0].propensity = 0.1;
        },
        "do not sum to 1 under the mask",
    );
    assert_refused(|row| row.heads[0].requested = 7, "it has 2 levels");
    assert_refused(|row| row.heads[0].forced = true, "the mask leaves a choice");
    assert_refused(|row| row.seen.disk.push(1.0), "disk_features has 2 values");
    assert_refused(|row| row.heads.truncate(1), "the spec has 2 heads");
}

#[test]
fn a_head_of_another_name_is_refused() {
    assert_refused(
        |row| row.heads[0].head = "scheduler".to_owned(),
        "head_name[0] = scheduler, the spec has cache",
    );
}

#[test]
fn devices_that_choose_are_refused_under_exposure_disk() {
    let mut wide = spec();
    let [cache, _] = &wide.disk_heads[..] else {
        panic!("two heads")
    };
    wide.device_heads = vec![Head {
        scope: HeadScope::Device,
        ..cache.clone()
    }];
    let rows = changed(|rows| {
        let with_device = rows.chunk_by(|(a, _), (b, _)| a.host_step_id == b.host_step_id);
        let with_device = with_device.flat_map(|disks| {
            let (mut decision, mut outcome) = disks[1].clone();
            let id = DecisionId(decision.id.0 | 1 << 100);
            (decision.id, outcome.decision_id) = (id, id);
            decision.subject = Subject::Device {
                name: "nvme0n1".to_owned(),
            };
            decision.order = 2;
            decision.heads.truncate(1);
            decision.heads[0].propensity = 0.5;
            decision.seen.disk.clear();
            disks.iter().cloned().chain([(decision, outcome)])
        });
        let mut with_device: Rows = with_device.collect();
        for (decision, _) in &mut with_device {
            decision.spec_hash = wide.hash().into();
        }
        *rows = with_device;
    });
    let dir = TempDir::new().unwrap();
    write(dir.path(), &rows);
    let policy = UniformTarget::new(wide);
    let of = |exposure| {
        let options = Options {
            exposure,
            ..options()
        };
        evaluate(dir.path(), &policy, None, &options)
    };
    assert_eq!(of(Exposure::Host).unwrap().log.rows, 180);
    let error = of(Exposure::Disk).unwrap_err();
    assert!(matches!(error, EvaluateError::Exposure { .. }), "{error}");
    assert!(
        error.to_string().contains("60 choices of devices"),
        "{error}"
    );
}

/// Wants more than everything.
struct Greedy(Target);

impl TargetPolicy for Greedy {
    fn name(&self) -> &'static str {
        "greedy"
    }
    fn spec(&self) -> &EnvSpec {
        self.0.spec()
    }
    fn probabilities(
        &self,
        turns: &[LoggedTurn<'_>],
        out: &mut [f64],
    ) -> Result<(), (usize, PolicyError)> {
        self.0.probabilities(turns, out)?;
        out.iter_mut().for_each(|p| *p *= 1.2);
        Ok(())
    }
}

#[test]
fn a_policy_whose_probabilities_are_none_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &changed(|_| {}));
    let greedy = Greedy(Target::new(GOOD));
    let error = evaluate(dir.path(), &greedy, None, &options()).unwrap_err();
    assert!(matches!(error, EvaluateError::Improper { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("greedy") && text.contains("must sum to 1"),
        "{text}"
    );
}

#[test]
fn all_that_is_wrong_is_said_at_once_and_counted() {
    let rows = changed(|rows| {
        for (row, _) in rows.iter_mut() {
            row.heads[0].propensity = 0.0;
        }
    });
    let text = evaluated(&rows, &options()).unwrap_err().to_string();
    assert!(text.starts_with("120 things of this log"), "{text}");
    assert!(
        text.contains("line 0") && text.contains("line 19"),
        "{text}"
    );
    assert!(text.ends_with("and 100 more"), "{text}");
}

#[test]
fn a_row_that_is_missing_from_a_joint_decision_is_found() {
    let rows = changed(|rows| drop(rows.remove(10)));
    let text = evaluated(&rows, &options()).unwrap_err().to_string();
    assert!(
        text.contains("step_order = 1 where 0 must follow"),
        "{text}"
    );
}

#[test]
fn a_joint_decision_that_is_there_twice_is_found() {
    let again = |rows: &mut Rows, at: std::ops::Range<usize>| {
        // With ids of their own, as of a file that was copied by hand.
        let copies: Rows = rows[at.clone()]
            .iter()
            .cloned()
            .map(|(mut row, mut outcome)| {
                row.id = DecisionId(row.id.0 + 1_000_000);
                outcome.decision_id = row.id;
                (row, outcome)
            })
            .collect();
        rows.splice(at.end..at.end, copies);
    };
    for (at, words) in [
        (10..12, "already"),
        (10..20, "was decided before the row above it"),
        (0..60, "was decided before"),
        (0..120, "goes on with an episode"),
    ] {
        let rows = changed(|rows| again(rows, at.clone()));
        let text = evaluated(&rows, &options()).unwrap_err().to_string();
        assert!(text.contains(words), "{at:?}: {text}");
    }
}

#[test]
fn steps_that_are_missing_cut_a_window_and_are_counted() {
    let rows = changed(|rows| drop(rows.drain(20..22)));
    let found = evaluated(&rows, &options()).unwrap();
    assert_eq!(found.log.gaps.count, 1);
    assert_eq!(found.log.gaps.first, [(1, 20)]);
    // 10 steps, 19 and 30: three, one partial; six, one partial; ten.
    assert_eq!((found.windows.begun, found.windows.whole), (21, 19));
}

#[test]
fn several_policies_or_rewards_in_one_log_are_refused_unless_admitted() {
    let other = |rows: &mut Rows| {
        for (row, _) in &mut rows[60..] {
            row.policy = "other".into();
        }
    };
    let rows = changed(other);
    let text = evaluated(&rows, &options()).unwrap_err().to_string();
    assert!(
        text.contains("`behaviour` and `other`") && text.contains("--mixed"),
        "{text}"
    );
    let mixed = Options {
        mixed: Mixed::Admitted,
        ..options()
    };
    let found = evaluated(&rows, &mixed).unwrap();
    assert_eq!(found.log.behaviours.len(), 2);
    assert!(found.notes.iter().any(|note| note.contains("2 policies")));
    let rows = changed(|rows| {
        Arc::make_mut(&mut rows[60].0.reward_weights).insert("beta".to_owned(), 0.7);
    });
    let text = evaluated(&rows, &options()).unwrap_err().to_string();
    assert!(text.contains("`beta=0` and `beta=0.7`"), "{text}");
}

#[test]
fn what_stood_in_for_the_policy_is_counted_and_is_no_other_policy() {
    let rows = changed(|rows| {
        rows[10].0.stage = Stage::Heuristic;
        rows[10].0.policy = "least_loaded".into();
    });
    let found = evaluated(&rows, &options()).unwrap();
    assert_eq!(found.log.rows_by_stage["heuristic"], 1);
    assert_eq!(found.log.behaviours.len(), 1);
}

#[test]
fn an_empty_log_or_one_of_shadows_is_refused() {
    let text = evaluated(&vec![], &options()).unwrap_err().to_string();
    assert!(text.contains("no decision of a policy"), "{text}");
    let rows = changed(|rows| {
        for (row, _) in rows.iter_mut() {
            row.source = Source::Shadow;
        }
    });
    let text = evaluated(&rows, &options()).unwrap_err().to_string();
    assert!(text.contains("120 rows, 120 of them shadows"), "{text}");
    let missing = Path::new("/nowhere/at/all");
    assert!(evaluate(missing, &Target::new(GOOD), None, &options()).is_err());
}

#[test]
fn a_log_of_another_spec_is_refused_by_its_hash() {
    let rows = changed(|rows| {
        for (row, _) in rows.iter_mut() {
            row.spec_hash = "abc".into();
        }
    });
    let text = evaluated(&rows, &options()).unwrap_err().to_string();
    assert!(text.contains("`good`") && text.contains("abc"), "{text}");
}

#[test]
fn a_reward_that_is_no_number_is_refused() {
    let rows = changed(|rows| rows[10].1.reward_own = f32::INFINITY);
    let text = evaluated(&rows, &options()).unwrap_err().to_string();
    assert!(
        text.contains("segment 1, line 10: reward_own is missing"),
        "{text}"
    );
}

#[test]
fn interventions_are_of_the_environment_and_bring_the_reward_of_their_interval() {
    let plain = evaluated(&changed(|_| {}), &options()).unwrap();
    // A guard puts back what disk 0 chose within the interval of its sixth decision.
    let rows = changed(|rows| {
        let (mut row, mut outcome) = rows[10].clone();
        row.id = DecisionId(1_000_000);
        row.host_step_id = HostStepId(1_000_000);
        row.at_us += INTERVAL_US / 2;
        row.source = Source::Guard;
        row.reason = Some("harm".to_owned());
        row.policy = "".into();
        row.heads[0].propensity = 1.0;
        outcome.decision_id = row.id;
        // That of the decision never comes: its id is another's.
        rows[10].1.decision_id = DecisionId(2_000_000);
        rows.insert(12, (row, outcome));
    });
    let found = evaluated(&rows, &options()).unwrap();
    assert_eq!(found.log.interventions(), 1);
    assert_eq!(found.log.rewards_of_interventions.first, [(1, 10)]);
    assert_eq!(found.estimates, plain.estimates);
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.contains("1 rows of guard"))
    );
}

#[test]
fn shadows_leave_the_estimates_as_they_are() {
    let plain = evaluated(&changed(|_| {}), &options()).unwrap();
    let rows = changed(|rows| {
        let mut shadow = rows[10].clone();
        shadow.0.id = DecisionId(1_000_000);
        shadow.0.host_step_id = HostStepId(1_000_000);
        shadow.0.source = Source::Shadow;
        shadow.0.heads[0].propensity = f64::NAN;
        rows.insert(12, shadow);
    });
    let found = evaluated(&rows, &options()).unwrap();
    assert_eq!(found.log.not_applied(), 1);
    assert_eq!(found.estimates, plain.estimates);
}

#[test]
fn what_the_guard_altered_is_weighted_by_what_was_drawn() {
    let plain = evaluated(&changed(|_| {}), &options()).unwrap();
    let rows = changed(|rows| {
        let head = &mut rows[10].0.heads[0];
        head.executed = 1 - head.requested;
        head.altered = Some("dwell".to_owned());
    });
    let found = evaluated(&rows, &options()).unwrap();
    assert_eq!(found.log.altered.first, [(1, 10)]);
    assert_eq!(found.estimates, plain.estimates);
}

#[test]
fn rows_without_an_outcome_are_counted_and_a_step_without_any_cuts_the_window() {
    let rows = changed(|rows| {
        for at in [10, 11, 30] {
            rows[at].1.decision_id = DecisionId(2_000_000 + at as u128);
        }
    });
    let found = evaluated(&rows, &options()).unwrap();
    assert_eq!(found.log.rows_without_outcome["not_recorded"], 3);
    assert_eq!(found.log.steps_without_reward.first, [(1, 10)]);
    // 5 steps, 24 and 30: two, one partial; eight; ten.
    assert_eq!((found.windows.begun, found.windows.whole), (20, 19));
    let by_disk = Options {
        exposure: Exposure::Disk,
        ..options()
    };
    // Disk 1 as above; disk 0 is cut again, 9 and 14 steps: two, three, five; ten.
    let windows = evaluated(&rows, &by_disk).unwrap().windows;
    assert_eq!((windows.begun, windows.whole), (40, 37));
}

#[test]
fn a_disk_that_does_not_count_is_left_out_of_the_mean_of_its_host() {
    let rows = changed(|rows| {
        for (i, (_, outcome)) in rows.iter_mut().enumerate() {
            outcome.reward_own = if i % 2 == 0 { -1.0 } else { 0.0 };
            outcome.counted = i % 2 == 0;
        }
    });
    for exposure in [Exposure::Host, Exposure::Disk] {
        let options = Options {
            exposure,
            ..options()
        };
        let found = evaluated(&rows, &options).unwrap();
        let behaviour = found.behaviour.unwrap().estimate;
        assert!((behaviour + 1.0).abs() < 1e-6, "{exposure:?}: {behaviour}");
    }
}

#[test]
fn a_horizon_beyond_the_log_is_refused() {
    let options = Options {
        horizon: 31,
        ..options()
    };
    let text = evaluated(&changed(|_| {}), &options)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("horizon = 31") && text.contains("shorten"),
        "{text}"
    );
}

/// A log whose first part is Parquet.
fn compacted(dir: &Path) -> PathBuf {
    write(dir, &changed(|_| {}));
    let (mut writer, _) = Writer::open(dir, Config::default()).unwrap();
    writer.seal().unwrap();
    let keep = Keep {
        most_bytes: u64::MAX,
        most_age: None,
    };
    let mut compactor = writer.compactor(keep);
    let done = compactor
        .compact(Horizon::Final, &AtomicBool::new(false))
        .unwrap();
    assert_eq!(done.rows, 120);
    let mut files = vec![dir.to_owned()];
    while let Some(path) = files.pop() {
        if path
            .extension()
            .is_some_and(|extension| extension == "parquet")
        {
            return path;
        }
        if path.is_dir() {
            files.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    panic!("no Parquet file was written")
}

#[test]
fn parquet_and_segments_give_the_same_and_a_truncated_file_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let file = compacted(dir.path());
    let plain = evaluated(&changed(|_| {}), &options()).unwrap();
    let run = || evaluate(dir.path(), &Target::new(GOOD), None, &options());
    assert_eq!(run().unwrap().estimates, plain.estimates);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let text = run().unwrap_err().to_string();
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(
        text.contains(name) && text.contains("cannot be read"),
        "{text}"
    );
}

#[test]
fn a_file_of_another_schema_version_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let file = compacted(dir.path());
    let mut bytes = fs::read(&file).unwrap();
    // The version stands in the footer as text; a checksum of the footer there is none.
    let key = b"blkpilot.schema_version";
    let at = bytes
        .windows(key.len())
        .rposition(|window| window == key)
        .unwrap();
    let one = bytes[at + key.len()..]
        .iter()
        .position(|byte| *byte == b'1')
        .unwrap();
    bytes[at + key.len() + one] = b'2';
    fs::write(&file, bytes).unwrap();
    let error = evaluate(dir.path(), &Target::new(GOOD), None, &options()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("schema version is 2"), "{text}");
}

#[test]
fn a_policy_that_only_needs_the_mask_has_the_weights_of_its_level_counts() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &changed(|_| {}));
    let uniform = UniformTarget::new(spec());
    let found = evaluate(dir.path(), &uniform, None, &options()).unwrap();
    assert!(found.diagnostics.ess > 5.0);
    assert!(
        found
            .calibration
            .iter()
            .all(|head| (head.coverage - 1.0).abs() < 0.2)
    );
}

#[test]
fn the_page_is_whole_and_fetches_nothing() {
    let rows = changed(|rows| {
        for (row, _) in rows.iter_mut() {
            row.policy = "<b>&\"behaviour\"".into();
        }
    });
    let found = evaluated(&rows, &options()).unwrap();
    let page = html(&found, &verdict(&found, &Default::default()));
    assert!(page.contains("cannot tell") && page.ends_with("</body></html>\n"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(page.matches("<svg").count() >= 4, "{page}");
    assert!(page.contains("&lt;b&gt;&amp;"));
    for forbidden in ["<script", "http", "url(", "<b>", "NaN", "inf", "src="] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn a_damaged_line_of_a_segment_is_named_and_what_it_leaves_is_counted() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &changed(|_| {}));
    let file = dir.path().join("000000000001.log");
    let mut lines: Vec<String> = fs::read_to_string(&file)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    // The header, two decisions and two outcomes per step: the outcomes of the sixth step.
    for line in &mut lines[5 * 4 + 3..5 * 4 + 5] {
        assert!(line.contains("outcome"));
        *line = line.replace("reward", "REWARD");
    }
    fs::write(&file, lines.join("\n") + "\n").unwrap();
    let found = evaluate(dir.path(), &Target::new(GOOD), None, &options()).unwrap();
    assert_eq!(found.log.damaged, ["000000000001.log: 2 lines are damaged"]);
    assert_eq!(found.log.steps_without_reward.first, [(1, 10)]);
    assert!(found.notes.iter().any(|note| note.contains("log verify")));
}
