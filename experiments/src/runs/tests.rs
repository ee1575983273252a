use serde_json::json;

use super::*;
use crate::run_lock::RunLock;

fn beginning(directory: &Path, goes_on: bool) -> Beginning {
    Beginning {
        config_name: "quick".to_owned(),
        config: json!({"version": 1}),
        algorithm: "ppo".to_owned(),
        seed: u64::MAX,
        code_version: "0.1.0+abc".to_owned(),
        steps_planned: 100,
        steps_done: 0,
        directory: directory.to_owned(),
        goes_on,
    }
}

#[test]
fn a_run_is_listed_from_its_start_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out/runs.db");
    let run = dir.path().join("run");
    let mut runs = Runs::open(&file).unwrap();
    let lock = RunLock::take(&run).unwrap();
    let id = runs.begin(&beginning(&run, false)).unwrap();
    let reader = Runs::open_to_read(&file).unwrap();
    let record = reader.get(id).unwrap();
    assert_eq!((record.status, record.seed), (Status::Running, u64::MAX));
    assert_eq!(record.config, json!({"version": 1}));
    runs.progress(id, 40, &json!({"episodic_return": 1.5}))
        .unwrap();
    assert_eq!(reader.get(id).unwrap().steps_done, 40);
    runs.end(id, Status::Done, None, None).unwrap();
    drop(lock);
    let record = reader.get(id).unwrap();
    assert_eq!(record.status, Status::Done);
    assert_eq!(record.figures["episodic_return"], 1.5);
    assert!(record.ended.is_some());
    assert!(matches!(reader.get(id + 1), Err(RunsError::NoRun { .. })));
}

#[test]
fn a_run_whose_process_is_gone_is_lost_and_one_that_goes_on_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (file, run) = (dir.path().join("runs.db"), dir.path().join("run"));
    let mut runs = Runs::open(&file).unwrap();
    let lock = RunLock::take(&run).unwrap();
    let id = runs.begin(&beginning(&run, false)).unwrap();
    assert_eq!(runs.get(id).unwrap().status, Status::Running);
    drop(lock);
    assert_eq!(runs.get(id).unwrap().status, Status::Lost);
    let _lock = RunLock::take(&run).unwrap();
    assert_eq!(runs.begin(&beginning(&run, true)).unwrap(), id);
    assert_eq!(runs.get(id).unwrap().status, Status::Running);
    // One that begins anew in its place is another.
    let other = runs.begin(&beginning(&run, false)).unwrap();
    let (old, new) = (runs.get(id).unwrap(), runs.get(other).unwrap());
    assert_eq!((old.status, old.replaced_by), (Status::Lost, Some(other)));
    assert_eq!((new.status, new.replaced_by), (Status::Running, None));
}

#[test]
fn runs_are_filtered_by_status_config_and_learner() {
    let dir = tempfile::tempdir().unwrap();
    let mut runs = Runs::open(&dir.path().join("runs.db")).unwrap();
    for (name, algorithm, status) in [
        ("quick", "ppo", Status::Done),
        ("quick_dqn", "dqn", Status::Failed),
        ("cart", "dqn", Status::Done),
    ] {
        let run = Beginning {
            config_name: name.to_owned(),
            algorithm: algorithm.to_owned(),
            ..beginning(&dir.path().join(name), false)
        };
        let id = runs.begin(&run).unwrap();
        runs.end(id, status, Some("why"), None).unwrap();
    }
    let names = |filter: Filter| -> Vec<String> {
        let records = runs.list(&filter).unwrap();
        records.into_iter().map(|own| own.config_name).collect()
    };
    assert_eq!(names(Filter::default()).len(), 3);
    let dqn = Filter {
        algorithm: Some("dqn".to_owned()),
        ..Filter::default()
    };
    assert_eq!(names(dqn.clone()), ["quick_dqn", "cart"]);
    let done = Filter {
        status: Some(Status::Done),
        ..dqn
    };
    assert_eq!(names(done), ["cart"]);
    let quick = Filter {
        config: Some("quick".to_owned()),
        ..Filter::default()
    };
    assert_eq!(names(quick), ["quick", "quick_dqn"]);
    let text = table(&runs.list(&Filter::default()).unwrap());
    assert!(
        text.contains("quick_dqn") && text.contains("failed"),
        "{text}"
    );
    assert!(show_text(&runs.get(2).unwrap()).contains("error: why"));
}

/// Each connection opens, begins and ends for itself, on a file that none has made yet.
#[test]
fn many_writers_that_begin_at_once_lose_nothing() {
    const WRITERS: usize = 8;
    const EACH: usize = 5;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("runs.db");
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (file, dir) = (&file, dir.path());
            scope.spawn(move || {
                let mut runs = Runs::open(file).unwrap();
                for number in 0..EACH {
                    let run = dir.join(format!("{writer}-{number}"));
                    let id = runs.begin(&beginning(&run, false)).unwrap();
                    runs.progress(id, 7, &Value::Null).unwrap();
                    runs.end(id, Status::Done, None, None).unwrap();
                }
            });
        }
    });
    let records = Runs::open_to_read(&file)
        .unwrap()
        .list(&Filter::default())
        .unwrap();
    assert_eq!(records.len(), WRITERS * EACH);
    let is_whole = |record: &Record| (record.status, record.steps_done) == (Status::Done, 7);
    assert!(records.iter().all(is_whole));
}

#[test]
fn a_file_of_a_later_version_and_one_that_is_no_database_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("runs.db");
    assert!(matches!(
        Runs::open_to_read(&file),
        Err(RunsError::Missing { .. })
    ));
    let later = Connection::open(&file).unwrap();
    later.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(
        Runs::open(&file),
        Err(RunsError::Version { found: 99, .. })
    ));
    let other = dir.path().join("other.db");
    std::fs::write(
        &other,
        "this is no database, whatever its name says, but a text",
    )
    .unwrap();
    assert!(matches!(Runs::open(&other), Err(RunsError::Sqlite { .. })));
}
