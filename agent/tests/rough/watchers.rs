//! What a thousand watchers cost.

use blkpilot_agent::client::Target;
use blkpilot_proto::v1;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use blkpilot_proto::v1::watch_decisions_response::Event;
use tonic::Streaming;

use super::daemon::Daemon;

const WATCHERS: usize = 1000;
/// Watchers that share a connection.
const SHARED: usize = 100;
/// What a watcher may cost.
const MOST_KIB_EACH: f64 = 128.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_see_decisions_and_cost_little() {
    let daemon = Daemon::start_slower();
    let target = daemon.site.target(&daemon.site.token());
    for shared in [SHARED, 1] {
        let before = daemon.figures();
        let mut watchers = vec![];
        for _ in 0..WATCHERS / shared {
            watchers.extend(connect(&target, shared).await);
        }
        for watcher in &mut watchers {
            see_a_decision(watcher).await;
        }
        let watched = daemon.figures();
        let each_kib = (watched.memory_mib - before.memory_mib) * 1024.0 / WATCHERS as f64;
        println!(
            "{WATCHERS} watchers, {shared} to a connection: {before}, then {watched}: {each_kib:.1} KiB each"
        );
        assert!(each_kib < MOST_KIB_EACH, "{each_kib} KiB");
        drop(watchers);
        let after = daemon.settle(before.descriptors, super::PATIENCE).await;
        assert!(after.descriptors <= before.descriptors, "{after}");
    }
}

type Watcher = Streaming<v1::WatchDecisionsResponse>;

async fn connect(target: &Target, count: usize) -> Vec<Watcher> {
    let connection = target.connect().await.unwrap();
    let client = TunerServiceClient::new(connection);
    let mut watchers = vec![];
    for _ in 0..count {
        let request = v1::WatchDecisionsRequest {
            parent: "hosts/local".to_owned(),
        };
        let watch = client.clone().watch_decisions(request).await;
        watchers.push(watch.unwrap().into_inner());
    }
    watchers
}

async fn see_a_decision(watcher: &mut Watcher) {
    loop {
        let answer = watcher.message().await.unwrap().unwrap();
        if let Some(Event::Decision(_)) = answer.event {
            return;
        }
    }
}
