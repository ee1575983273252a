//! The whole daemon, killed while it tunes guests and a client uploads and promotes policies: what was acknowledged
//! is there after the restart, and what decides is what the store says.
//!
//! `BLKPILOT_KILLS` is the number of kills.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blkpilot_agent::client::connect;
use blkpilot_env::Rng;
use blkpilot_proto::v1;
use blkpilot_proto::v1::PolicyStage;
use blkpilot_proto::v1::policy_service_client::PolicyServiceClient;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use blkpilot_proto::v1::watch_decisions_response::Event;
use rand::{RngExt as _, SeedableRng as _};
use support::checkpoints::{checkpoint, header, messages, spec};
use support::daemon::Daemon;
use support::{HOST, Settings, socket};
use tempfile::TempDir;
use tonic::transport::Channel;

const FEW_KILLS: u32 = 6;
/// Kills of one data directory: a store holds 1000 versions.
const KILLS_PER_DIRECTORY: u32 = 40;
/// The latest moment of a kill, after the first call, milliseconds.
const LATEST_MS: u64 = 700;
/// Decisions that are looked for after a kill.
const MOST_SEEN: usize = 50;

fn tuning() -> Settings {
    Settings {
        host:
            "kind = \"simulated\"\nscenario = \"identical_disks\"\ntime_scale = 50\nmode = \"auto\""
                .to_owned(),
        policy: "baseline = \"random\"\non_harm = \"keep\"".to_owned(),
        ..Settings::default()
    }
}

/// What a client was told, and what it has asked for and not been told of.
#[derive(Debug, Default)]
struct Known {
    /// Names and hashes of versions.
    versions: Vec<(String, String)>,
    /// The version that was promoted last.
    production: Option<String>,
    /// One that was to be promoted, and may have been.
    asked: Option<String>,
    /// Decisions, by name.
    decisions: Vec<String>,
}

type Shared = Arc<Mutex<Known>>;

/// Uploads and promotes until the daemon is gone.
async fn promote_for_ever(channel: Channel, known: Shared, first_seed: u64) {
    let mut client = PolicyServiceClient::new(channel);
    for seed in first_seed.. {
        let bytes = checkpoint(&spec(), seed);
        let sent = messages(header("net", &bytes), &bytes);
        let Ok(sent) = client.upload_policy_version(tokio_stream::iter(sent)).await else {
            return;
        };
        let version = sent.into_inner();
        let name = version.name.clone();
        {
            let mut now = known.lock().unwrap();
            now.versions.push((name.clone(), version.sha256));
            now.asked = Some(name.clone());
        }
        let request = v1::PromotePolicyVersionRequest {
            name: name.clone(),
            stage: PolicyStage::Production.into(),
            force_reason: "a test".to_owned(),
            ..v1::PromotePolicyVersionRequest::default()
        };
        if client.promote_policy_version(request).await.is_err() {
            return;
        }
        let mut now = known.lock().unwrap();
        now.production = now.asked.take();
    }
}

/// Notes what is decided until the daemon is gone.
async fn watch_for_ever(channel: Channel, known: Shared) {
    let request = v1::WatchDecisionsRequest {
        parent: HOST.to_owned(),
    };
    let Ok(seen) = TunerServiceClient::new(channel)
        .watch_decisions(request)
        .await
    else {
        return;
    };
    let mut seen = seen.into_inner();
    while let Ok(Some(message)) = seen.message().await {
        if let Some(Event::Decision(decision)) = message.event {
            known.lock().unwrap().decisions.push(decision.name);
        }
    }
}

async fn channel(dir: &Path) -> Channel {
    connect(&format!("unix:{}", socket(dir).display()))
        .await
        .unwrap()
}

/// What is there after a restart is what the client knows.
async fn check(dir: &Path, known: &mut Known) {
    let channel = channel(dir).await;
    let mut policies = PolicyServiceClient::new(channel.clone());
    let request = v1::ListPolicyVersionsRequest {
        parent: "policies/-".to_owned(),
        page_size: 1000,
        ..v1::ListPolicyVersionsRequest::default()
    };
    let listed = policies.list_policy_versions(request).await.unwrap();
    let listed = listed.into_inner().versions;
    for (name, sha256) in &known.versions {
        let found = listed.iter().find(|version| version.name == *name);
        assert_eq!(
            found.map(|it| &it.sha256),
            Some(sha256),
            "{name} was acknowledged"
        );
    }
    let in_production = listed
        .iter()
        .filter(|it| it.stage() == PolicyStage::Production);
    let in_production: Vec<&v1::PolicyVersion> = in_production.collect();
    assert!(in_production.len() <= 1, "{in_production:?}");
    let production = in_production.first().map(|it| it.name.clone());
    let was_done = production.is_some() && production == known.asked;
    assert!(
        was_done || production == known.production,
        "{production:?} is in production, {:?} was acknowledged, {:?} asked for",
        known.production,
        known.asked
    );
    let expected = in_production.first().map_or("", |it| &it.tensors_sha256);
    assert_eq!(first_decider(channel.clone()).await, expected);

    let mut tuner = TunerServiceClient::new(channel);
    for name in known.decisions.iter().rev().take(MOST_SEEN) {
        let request = v1::GetDecisionRequest { name: name.clone() };
        let found = tuner.get_decision(request).await;
        assert!(found.is_ok(), "{name} was shown: {found:?}");
    }
    known.production = production;
    known.asked = None;
}

/// The version that makes the first decision that is seen.
async fn first_decider(channel: Channel) -> String {
    let request = v1::WatchDecisionsRequest {
        parent: HOST.to_owned(),
    };
    let seen = TunerServiceClient::new(channel)
        .watch_decisions(request)
        .await;
    let mut seen = seen.unwrap().into_inner();
    loop {
        let message = seen.message().await.unwrap().unwrap();
        // The guard's have no policy.
        if let Some(Event::Decision(decision)) = message.event
            && let Some(by) = decision.policy
        {
            return by.version;
        }
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_half_promoted_is_served() {
    let kills = std::env::var("BLKPILOT_KILLS").map_or(FEW_KILLS, |n| n.parse().unwrap());
    let mut rng = Rng::seed_from_u64(1);
    let (mut versions, mut decisions, mut unknown) = (0, 0, 0);
    for first in (0..kills).step_by(KILLS_PER_DIRECTORY as usize) {
        let dir = TempDir::new().unwrap();
        let mut known = Known::default();
        for round in first..kills.min(first + KILLS_PER_DIRECTORY) {
            let daemon = Daemon::start_as(dir.path(), &tuning(), |_| {});
            check(dir.path(), &mut known).await;
            known.decisions.clear();
            let shared = Arc::new(Mutex::new(std::mem::take(&mut known)));
            let channel = channel(dir.path()).await;
            let watching = tokio::spawn(watch_for_ever(channel.clone(), Arc::clone(&shared)));
            let seed = u64::from(round) * 1000;
            let promoting = tokio::spawn(promote_for_ever(channel, Arc::clone(&shared), seed));
            let after = Duration::from_millis(rng.random_range(0..LATEST_MS));
            // The moment of a kill, not something that is waited for.
            tokio::time::sleep(after).await;
            daemon.kill();
            promoting.await.unwrap();
            watching.await.unwrap();
            known = Arc::into_inner(shared).unwrap().into_inner().unwrap();
            decisions += known.decisions.len();
            unknown += usize::from(known.asked.is_some());
        }
        let daemon = Daemon::start_as(dir.path(), &tuning(), |_| {});
        check(dir.path(), &mut known).await;
        drop(daemon);
        versions += known.versions.len();
    }
    assert!(
        versions > 0 && decisions > 0,
        "no round got as far as one answer"
    );
    println!(
        "{kills} kills: {versions} versions acknowledged and {decisions} decisions shown, none lost; {unknown} promotions cut off, each done or not, and served accordingly"
    );
}
