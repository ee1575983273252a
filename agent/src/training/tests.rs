use std::fs;

use tempfile::TempDir;

use super::state::Exit;
use super::*;
use crate::database::Database;
use crate::requests::Repeatable;

fn open(dir: &TempDir) -> Runs {
    Runs::open(Database::open(dir.path()).unwrap()).unwrap()
}

fn create(runs: &Runs, id: &str) -> Result<v1::TrainingRun, Failure> {
    let new = NewRun {
        id: id.to_owned(),
        source: v1::TrainingSource::default(),
        seed: 1,
        algorithm: "ppo".to_owned(),
        env_steps: 100,
        output_dir: String::new(),
        creator: "test".to_owned(),
    };
    runs.create(&new, &Call::default(), || Ok(()))
}

fn call(id: &str) -> Call {
    Call {
        id: id.to_owned(),
        ..Call::default()
    }
}

fn state(runs: &Runs, id: &str) -> State {
    runs.get(id).unwrap().state()
}

fn begun(runs: &Runs) -> Option<String> {
    let begun = runs.begin_next().unwrap();
    begun.map(|record| id_of(&record.run.name).to_owned())
}

#[test]
fn what_was_asked_for_before_a_crash_is_so_after_it_and_the_order_is_kept() {
    let dir = TempDir::new().unwrap();
    let runs = open(&dir);
    for id in ["a", "b", "c", "d"] {
        create(&runs, id).unwrap();
    }
    assert_eq!(
        [begun(&runs), begun(&runs), begun(&runs)],
        ["a", "b", "c"].map(|id| Some(id.to_owned()))
    );
    runs.wish(&call("b"), Wish::Pause, false).unwrap();
    runs.wish(&call("c"), Wish::Cancel, false).unwrap();
    // Another process, as after `kill -9`.
    let runs = open(&dir);
    let found = ["a", "b", "c", "d"].map(|id| state(&runs, id));
    assert_eq!(
        found,
        [
            State::Queued,
            State::Paused,
            State::Cancelled,
            State::Queued
        ]
    );
    // One that is resumed goes behind those that wait.
    runs.wish(&call("b"), Wish::Resume, false).unwrap();
    let order = std::iter::from_fn(|| begun(&runs));
    assert_eq!(order.collect::<Vec<_>>(), ["a", "d", "b"]);
}

#[test]
fn what_is_only_checked_changes_nothing_and_an_etag_that_is_old_is_refused() {
    let dir = TempDir::new().unwrap();
    let runs = open(&dir);
    let created = create(&runs, "a").unwrap();
    let checked = Call {
        validate_only: true,
        ..call("a")
    };
    let paused = runs.wish(&checked, Wish::Pause, false).unwrap();
    assert_eq!(paused.state(), State::Paused);
    assert_eq!(state(&runs, "a"), State::Queued);
    let checked_by_etag = Call {
        etag: created.etag,
        ..call("a")
    };
    runs.wish(&checked_by_etag, Wish::Pause, false).unwrap();
    let refused = runs
        .wish(&checked_by_etag, Wish::Cancel, false)
        .unwrap_err();
    assert_eq!(refused.reason(), "ETAG_MISMATCH");
    assert_eq!(create(&runs, "a").unwrap_err().reason(), "ALREADY_EXISTS");
    assert_eq!(
        runs.delete(&call("a"), false).unwrap_err().reason(),
        "RUN_OPEN"
    );
    assert!(!runs.delete(&call("b"), true).unwrap());
}

#[test]
fn a_call_that_is_repeated_has_the_first_answer_and_changes_nothing_again() {
    let dir = TempDir::new().unwrap();
    let runs = open(&dir);
    create(&runs, "a").unwrap();
    let request = v1::PauseTrainingRunRequest {
        request_id: "3f2504e0-4f89-41d3-9a0c-0305e82c3301".to_owned(),
        ..v1::PauseTrainingRunRequest::default()
    };
    let repeatable = Repeatable::of("PauseTrainingRun", &request.request_id, &request);
    let once = Call {
        repeatable: repeatable.unwrap(),
        ..call("a")
    };
    let first = runs.wish(&once, Wish::Pause, false).unwrap();
    runs.wish(&call("a"), Wish::Resume, false).unwrap();
    // Over a restart too.
    let runs = open(&dir);
    assert_eq!(runs.wish(&once, Wish::Pause, false), Ok(first));
    assert_eq!(state(&runs, "a"), State::Queued);
}

#[tokio::test]
async fn who_follows_a_run_that_fails_and_is_tried_again_goes_on_behind_its_token() {
    let dir = TempDir::new().unwrap();
    let runs = open(&dir);
    create(&runs, "a").unwrap();
    let mut following = runs.follow("a", "").unwrap();
    let token = following.next().await.unwrap().token;
    begun(&runs);
    let failed = Exit::Failed("no room".to_owned());
    runs.left("a", &failed).unwrap();
    let mut states = vec![];
    let mut last = token;
    while let Some(message) = following.next().await {
        states.push(message.value.state());
        last = message.token;
    }
    assert_eq!(states, [State::Running, State::Failed]);
    runs.wish(&call("a"), Wish::Resume, false).unwrap();
    let again = runs.follow("a", &last).unwrap().next().await.unwrap();
    assert_eq!(
        (again.value.state(), again.missed, &again.value.error[..]),
        (State::Queued, 0, "")
    );
}

#[test]
fn no_more_runs_are_kept_than_there_may_be() {
    let dir = TempDir::new().unwrap();
    let runs = open(&dir);
    for n in 0..MOST_RUNS {
        create(&runs, &format!("r-{n}")).unwrap();
    }
    assert_eq!(create(&runs, "more").unwrap_err().reason(), "TOO_MANY_RUNS");
    runs.wish(&call("r-0"), Wish::Cancel, false).unwrap();
    assert!(runs.delete(&call("r-0"), false).unwrap());
    create(&runs, "more").unwrap();
}

/// A crew whose processes are shells that do what the file of their config says.
struct Shells {
    _dir: TempDir,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    crew: JoinHandle<()>,
}

impl Shells {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let trainer = Trainer {
            program: PathBuf::from("sh"),
            admit: |_| Err(vec![]),
            command: |program, task| {
                let mut command = Command::new(program);
                command.arg(task.config);
                command
            },
        };
        let shared = Arc::new(Shared {
            trainer,
            runs: open(&dir),
            places: Places::open(dir.path()).unwrap(),
            parallel: 1,
            patience: Duration::from_millis(200),
        });
        let stop = watch::Sender::new(false);
        let crew = tokio::spawn(crew::work(Arc::clone(&shared), stop.subscribe()));
        Self {
            _dir: dir,
            shared,
            stop,
            crew,
        }
    }

    fn queue(&self, id: &str, script: &str) {
        fs::create_dir_all(self.shared.places.dir(id)).unwrap();
        fs::write(self.shared.places.config(id), script).unwrap();
        create(&self.shared.runs, id).unwrap();
    }

    async fn until(&self, id: &str, is_so: impl Fn(&v1::TrainingRun) -> bool) -> v1::TrainingRun {
        let mut following = self.shared.runs.follow(id, "").unwrap();
        loop {
            let run = following.next().await.unwrap().value;
            if is_so(&run) {
                return run;
            }
        }
    }

    fn wish(&self, id: &str, wish: Wish) {
        self.shared.runs.wish(&call(id), wish, false).unwrap();
    }
}

/// Saves, and ends when its input does.
const HELD: &str = "echo '{\"event\":\"saved\",\"env_steps\":5}'; read nothing; exit 130";

fn has_saved(run: &v1::TrainingRun) -> bool {
    let saved = |progress: &v1::TrainingProgress| progress.checkpoint_env_steps == 5;
    run.progress.as_ref().is_some_and(saved)
}

#[tokio::test]
async fn a_process_ends_with_its_input_when_its_run_is_paused_cancelled_or_the_service_stops() {
    let shells = Shells::start();
    shells.queue("a", HELD);
    shells.until("a", has_saved).await;
    shells.wish("a", Wish::Pause);
    shells.until("a", |run| run.state() == State::Paused).await;
    shells.wish("a", Wish::Resume);
    shells.until("a", |run| run.state() == State::Running).await;
    shells.wish("a", Wish::Cancel);
    shells
        .until("a", |run| run.state() == State::Cancelled)
        .await;
    shells.queue("b", HELD);
    shells.until("b", has_saved).await;
    shells.stop.send_replace(true);
    shells.crew.await.unwrap();
    assert_eq!(state(&shells.shared.runs, "b"), State::Queued);
}

#[tokio::test]
async fn a_process_that_fails_leaves_its_last_words_and_makes_room_for_the_next() {
    let shells = Shells::start();
    shells.queue("fails", "echo 'no room on the disk' >&2; exit 3");
    shells.queue("done", "echo rubbish; exit 0");
    let failed = shells
        .until("fails", |run| run.state() == State::Failed)
        .await;
    assert!(failed.error.contains("exit status: 3"), "{failed:?}");
    assert!(failed.error.contains("no room on the disk"), "{failed:?}");
    shells
        .until("done", |run| run.state() == State::Succeeded)
        .await;
}

/// Saves, and ends neither when its input does nor when it is asked to.
const STUCK: &str =
    "trap '' TERM INT; echo '{\"event\":\"saved\",\"env_steps\":5}'; while true; do sleep 1; done";

#[tokio::test]
async fn a_process_that_does_not_end_is_killed_and_its_run_is_what_was_asked_for() {
    let shells = Shells::start();
    shells.queue("hangs", STUCK);
    shells.until("hangs", has_saved).await;
    shells.wish("hangs", Wish::Pause);
    let paused = shells.until("hangs", |run| run.state() == State::Paused);
    assert!(has_saved(&paused.await), "it goes on from its checkpoint");
    shells.wish("hangs", Wish::Resume);
    let is_running = |run: &v1::TrainingRun| run.state() == State::Running;
    shells.until("hangs", is_running).await;
    shells.wish("hangs", Wish::Cancel);
    let is_cancelled = |run: &v1::TrainingRun| run.state() == State::Cancelled;
    shells.until("hangs", is_cancelled).await;
    // Nor does it hold the service up.
    shells.queue("on", STUCK);
    shells.until("on", has_saved).await;
    shells.stop.send_replace(true);
    shells.crew.await.unwrap();
    assert_eq!(state(&shells.shared.runs, "on"), State::Queued);
}
