//! `TrainingService` over a socket, with processes that train.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod setup;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use blkpilot_lab::Config;
use blkpilot_lab::train::{Existing, Run, train};
use blkpilot_models::Checkpoint;
use blkpilot_proto::v1;
use blkpilot_proto::v1::training_run::State;
use tempfile::TempDir;
use tonic::Code;

use setup::{Process, Service, cart, fields, host, next, reason, recorded, request};

/// Longer than a test needs, for what it wants to end itself.
const ENDLESS: u32 = 100_000_000;
/// A thousand updates.
const LONG: u32 = 64_000;
/// As short as the learner takes it.
const SHORT: u32 = 128;

/// What a run without any interruption comes to.
fn uninterrupted(text: &str) -> String {
    let dir = TempDir::new().unwrap();
    let config = Config::parse(Path::new("own.toml"), text).unwrap();
    let run = Run {
        config: &config,
        seed: 3,
        out: &dir.path().join("out"),
        existing: Existing::Refuse,
    };
    let summary = train(&run, &AtomicBool::new(false), &mut |_| ());
    summary.unwrap().policy_sha256
}

fn sha256(run: &v1::TrainingRun) -> &str {
    &run.result.as_ref().unwrap().tensors_sha256
}

#[tokio::test]
async fn a_run_is_watched_to_its_end_and_comes_to_what_the_command_comes_to() {
    let mut service = Service::start().await;
    let text = cart(512);
    let created = service.client.create("first", &text).await;
    assert_eq!(created.name, "trainingRuns/first");
    assert_eq!(created.state(), State::Queued);
    assert_eq!((&created.algorithm[..], created.env_steps), ("ppo", 512));
    let done = service
        .client
        .until_state(&created.name, State::Succeeded)
        .await;
    assert_eq!(sha256(&done), uninterrupted(&text));
    let out = Path::new(&done.output_dir);
    let policy = Checkpoint::load(&out.join("policy")).unwrap();
    assert_eq!(policy.manifest.tensors_sha256, sha256(&done));
    let progress = done.progress.unwrap();
    assert_eq!(
        (progress.env_steps, progress.checkpoint_env_steps),
        (512, 512)
    );
    assert!(progress.figures.contains_key("losses/entropy"));
    assert!(progress.steps_per_s > 0.0);
    assert_eq!(progress.compared_episodes, progress.comparison_episodes);
    let policies = done.result.unwrap().policies;
    assert_eq!(policies[0].policy, "trained");
    assert!(policies.iter().any(|own| own.policy == "random"));
    let got = service.client.get(&created.name).await.unwrap();
    assert_eq!(got.source.unwrap().config, text);
    assert!(got.end_time.is_some());
}

#[tokio::test]
async fn a_run_that_is_paused_and_resumed_has_bit_for_bit_the_policy_of_one_that_is_not() {
    let mut service = Service::start().await;
    let client = &mut service.client;
    let name = client.create("", &cart(LONG)).await.name;
    client.until_saved(&name).await;
    let pausing = client.pause(&name).await.unwrap();
    assert_eq!(pausing.state(), State::Pausing);
    let again = client.pause(&name).await.unwrap();
    let is_so = matches!(again.state(), State::Pausing | State::Paused);
    assert!(is_so, "{again:?}");
    let paused = client.until_state(&name, State::Paused).await;
    let progress = paused.progress.unwrap();
    assert!(progress.env_steps < paused.env_steps);
    assert_eq!(progress.checkpoint_env_steps, progress.env_steps);
    client.resume(&name).await.unwrap();
    // Whether its process has heard of the one before it hears of the other or not.
    client.until_state(&name, State::Running).await;
    client.pause(&name).await.unwrap();
    client.resume(&name).await.unwrap();
    let done = client.until_state(&name, State::Succeeded).await;
    assert_eq!(sha256(&done), uninterrupted(&cart(LONG)));
    let refused = client.pause(&name).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused), "RUN_ENDED");
}

#[tokio::test]
async fn runs_are_begun_one_after_another_in_the_order_in_which_they_were_queued() {
    let mut service = Service::start().await;
    let client = &mut service.client;
    let first = client.create("first", &cart(ENDLESS)).await.name;
    client.until_state(&first, State::Running).await;
    for id in ["second", "third", "fourth"] {
        client.create(id, &cart(SHORT)).await;
    }
    let waiting = client.list("state = QUEUED").await;
    let named = |id: &str| format!("trainingRuns/{id}");
    assert_eq!(waiting, ["fourth", "third", "second"].map(named));
    // One that is paused loses its turn, and one that is cancelled ends at once.
    let second = named("second");
    assert_eq!(client.pause(&second).await.unwrap().state(), State::Paused);
    assert_eq!(client.resume(&second).await.unwrap().state(), State::Queued);
    let fourth = client.cancel(&named("fourth")).await.unwrap();
    assert_eq!(fourth.state(), State::Cancelled);
    let open = client.delete(&first).await.unwrap_err();
    assert_eq!(reason(&open), "RUN_OPEN");
    assert_eq!(
        client.cancel(&first).await.unwrap().state(),
        State::Cancelling
    );
    client.until_state(&first, State::Cancelled).await;
    let third = client.until_state(&named("third"), State::Succeeded).await;
    let second = client.until_state(&second, State::Succeeded).await;
    let started = |run: &v1::TrainingRun| {
        let at = run.start_time.unwrap();
        (at.seconds, at.nanos)
    };
    assert!(started(&third) < started(&second));
    client.delete(&first).await.unwrap();
    assert_eq!(client.get(&first).await.unwrap_err().code(), Code::NotFound);
    assert!(!service.data_dir().join("training/first").exists());
    assert!(service.data_dir().join("training/third").exists());
}

#[tokio::test]
async fn what_is_only_checked_or_repeated_queues_nothing_and_what_is_wrong_is_named() {
    let mut service = Service::start().await;
    let client = &mut service.client;
    let checked = v1::CreateTrainingRunRequest {
        validate_only: true,
        ..request("checked", &cart(SHORT))
    };
    assert_eq!(
        client.try_create(checked).await.unwrap().state(),
        State::Queued
    );
    assert!(client.list("").await.is_empty());
    let once = v1::CreateTrainingRunRequest {
        request_id: "3f2504e0-4f89-41d3-9a0c-0305e82c3301".to_owned(),
        ..request("", &cart(SHORT))
    };
    let first = client.try_create(once.clone()).await.unwrap();
    client.until_state(&first.name, State::Succeeded).await;
    assert_eq!(client.try_create(once.clone()).await.unwrap(), first);
    assert_eq!(client.list("").await, std::slice::from_ref(&first.name));
    let other = v1::CreateTrainingRunRequest {
        request_id: once.request_id,
        ..request("other", &cart(SHORT + 64))
    };
    let refused = client.try_create(other).await.unwrap_err();
    assert_eq!(fields(&refused), ["request_id"]);
    let id = first.name.trim_start_matches("trainingRuns/");
    let taken = client
        .try_create(request(id, &cart(SHORT)))
        .await
        .unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    let wrong = cart(SHORT).replace("clip = 0.2", "clip = -1.0\nstart_from = \"/etc\"");
    let refused = client.try_create(request("", &wrong)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    // A policy to begin from has a network of its own, too.
    let keys = ["training.start_from", "training.clip", "network"];
    let fields_of = keys.map(|key| format!("training_run.source.config.{key}"));
    assert_eq!(fields(&refused), fields_of);
    let stale = v1::CancelTrainingRunRequest {
        name: first.name.clone(),
        etag: first.etag,
        ..v1::CancelTrainingRunRequest::default()
    };
    let refused = client.0.cancel_training_run(stale).await.unwrap_err();
    assert_eq!(reason(&refused), "ETAG_MISMATCH");
    // Nothing is left of what was refused or only checked.
    let kept = std::fs::read_dir(service.data_dir().join("training")).unwrap();
    let kept = kept.filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(kept.count(), 1);
}

#[tokio::test]
async fn a_run_that_fails_says_why_and_can_be_tried_again() {
    let mut service = Service::start().await;
    let blocker = service.client.create("blocker", &cart(ENDLESS)).await.name;
    service.client.create("fails", &cart(SHORT)).await;
    // A directory where the curve must go.
    let in_the_way = service.data_dir().join("training/fails/run/curve.svg");
    std::fs::create_dir_all(&in_the_way).unwrap();
    let client = &mut service.client;
    client.cancel(&blocker).await.unwrap();
    let name = "trainingRuns/fails";
    let failed = client.until_state(name, State::Failed).await;
    assert!(failed.error.contains("curve.svg"), "{failed:?}");
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(client.resume(name).await.unwrap().error, "");
    let done = client.until_state(name, State::Succeeded).await;
    assert_eq!(sha256(&done), uninterrupted(&cart(SHORT)));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_holds_nothing_up_and_one_that_was_cut_goes_on() {
    let service = Service::start().await;
    let client = &mut service.client.clone();
    let name = client.create("long", &cart(LONG)).await.name;
    let mut slow = service.narrow().await.watch(&name, "").await;
    let mut cut = client.watch(&name, "").await;
    let token = next(&mut cut).await.resume_token;
    let second = next(&mut cut).await;
    drop(cut);
    let again = next(&mut client.watch(&name, &token).await).await;
    assert_eq!(again, second);
    let done = client.until_state(&name, State::Succeeded).await;
    let (mut missed, mut last) = (0, None);
    while let Some(message) = slow.message().await.unwrap() {
        missed += message.missed;
        last = message.training_run;
    }
    assert!(missed > 0, "it was told what it missed");
    assert_eq!(last.as_ref(), Some(&done));
    // What has ended has its end, whichever message was the last that was seen.
    for token in ["", &second.resume_token] {
        let end = next(&mut client.watch(&name, token).await).await;
        assert_eq!(end.training_run.as_ref(), Some(&done));
    }
    let other = client.create("other", &cart(SHORT)).await.name;
    let foreign = v1::WatchTrainingRunRequest {
        name: other,
        resume_token: second.resume_token,
    };
    let refused = client.0.watch_training_run(foreign).await.unwrap_err();
    assert_eq!(fields(&refused), ["resume_token"]);
}

#[tokio::test]
async fn a_service_that_ends_in_order_lets_its_runs_save_and_goes_on_with_them() {
    let mut service = Service::start().await;
    let name = service.client.create("on", &cart(LONG)).await.name;
    let rests = service.client.create("rests", &cart(SHORT)).await.name;
    service.client.pause(&rests).await.unwrap();
    service.client.until_saved(&name).await;
    let mut watching = service.client.watch(&name, "").await;
    let dir = service.stop().await;
    let ended = loop {
        match watching.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it did not end"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "SERVICE_STOPPING");
    let mut service = Service::start_in(dir).await;
    let done = service.client.until_state(&name, State::Succeeded).await;
    assert_eq!(sha256(&done), uninterrupted(&cart(LONG)));
    let rested = service.client.get(&rests).await.unwrap();
    assert_eq!(rested.state(), State::Paused);
}

#[tokio::test]
async fn a_service_that_is_killed_while_it_trains_loses_nothing_that_it_answered() {
    let dir = TempDir::new().unwrap();
    let mut service = Process::start(dir.path()).await;
    let name = service.client.create("on", &cart(LONG)).await.name;
    let waits = service.client.create("waits", &cart(SHORT)).await.name;
    let rests = service.client.create("rests", &cart(SHORT)).await.name;
    service.client.pause(&rests).await.unwrap();
    service.client.until_saved(&name).await;
    service.kill();
    let mut service = Process::start(dir.path()).await;
    let done = service.client.until_state(&name, State::Succeeded).await;
    assert_eq!(sha256(&done), uninterrupted(&cart(LONG)));
    let waited = service.client.until_state(&waits, State::Succeeded).await;
    assert_eq!(sha256(&waited), uninterrupted(&cart(SHORT)));
    let rested = service.client.get(&rests).await.unwrap();
    assert_eq!(rested.state(), State::Paused);
}

#[tokio::test]
async fn what_was_trained_is_published_as_a_version_and_training_goes_on_from_there() {
    let mut service = Service::start().await;
    let client = &mut service.client;
    let endless = client.create("endless", &cart(ENDLESS)).await.name;
    let waits = client.create("waits", &host()).await.name;
    for early in [&endless, &waits] {
        let refused = client.publish(early, "own").await.unwrap_err();
        assert_eq!(reason(&refused), "RUN_NOT_DONE");
    }
    client.cancel(&endless).await.unwrap();
    let done = client.until_state(&waits, State::Succeeded).await;
    let version = client.publish(&waits, "own").await.unwrap();
    assert_eq!(version.name, "policies/own/versions/1");
    assert_eq!(version.tensors_sha256, sha256(&done));
    assert_eq!(version.stage(), v1::PolicyStage::Stored);
    assert_eq!(version.description, "trained by trainingRuns/waits");
    assert_eq!(client.publish(&waits, "own").await.unwrap(), version);
    let refused = client.publish(&waits, "Own").await.unwrap_err();
    assert_eq!(fields(&refused), ["parent"]);
    let nobody = client.publish("trainingRuns/nobody", "own").await;
    assert_eq!(nobody.unwrap_err().code(), Code::NotFound);

    let key = format!("[training]\nstart_from = \"{}\"", version.name);
    let onward = host().replace("[training]", &key);
    let onward = onward.replace("[network]\nhidden = 8\n", "");
    let tuned = client.create("tuned", &onward).await.name;
    let tuned = client.until_state(&tuned, State::Succeeded).await;
    assert_ne!(sha256(&tuned), sha256(&done));
    // A cart's policy decides nothing here.
    let cart = client.create("cart", &cart(SHORT)).await.name;
    client.until_state(&cart, State::Succeeded).await;
    let refused = client.publish(&cart, "own").await.unwrap_err();
    assert_eq!(reason(&refused), "SPEC_MISMATCH");

    let tensors = service.data_dir();
    let tensors = tensors.join("training/waits/run/policy/policy.safetensors");
    let mut bytes = std::fs::read(&tensors).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&tensors, bytes).unwrap();
    let client = &mut service.client;
    let refused = client.publish(&waits, "own").await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss);
    assert_eq!(reason(&refused), "CHECKPOINT_DAMAGED");
}

#[tokio::test]
async fn a_repeated_publication_has_the_first_answer_after_its_run_has_gone_too() {
    let mut service = Service::start().await;
    let client = &mut service.client;
    let run = client.create("goes", &host()).await.name;
    client.until_state(&run, State::Succeeded).await;
    let request = v1::PublishTrainingRunRequest {
        name: run.clone(),
        parent: "policies/own".to_owned(),
        request_id: "3f2504e0-4f89-41d3-9a0c-0305e82c3301".to_owned(),
        ..v1::PublishTrainingRunRequest::default()
    };
    let first = client.0.publish_training_run(request.clone()).await;
    client.delete(&run).await.unwrap();
    let again = client.0.publish_training_run(request.clone()).await;
    assert_eq!(again.unwrap().into_inner(), first.unwrap().into_inner());
    let other = v1::PublishTrainingRunRequest {
        parent: "policies/other".to_owned(),
        ..request
    };
    let refused = client.0.publish_training_run(other).await.unwrap_err();
    assert_eq!(fields(&refused), ["request_id"]);
}

#[tokio::test]
async fn a_learner_from_a_log_learns_from_what_the_service_has_recorded() {
    let mut service = Service::start_recorded(20).await;
    let client = &mut service.client;
    let run = client.create("learns", &recorded()).await;
    assert_eq!((&run.algorithm[..], run.env_steps), ("cql", 20));
    let done = client.until_state(&run.name, State::Succeeded).await;
    let version = client.publish(&done.name, "learned").await.unwrap();
    assert_eq!(version.algorithm, "cql");
    assert_eq!(version.tensors_sha256, sha256(&done));
}
