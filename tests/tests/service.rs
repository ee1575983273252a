//! The service on real guests: calls, a guest that vanishes, libvirtd that dies and comes back,
//! leaving. What is checked is read by other means than the service uses. (How the service answers
//! on simulated hosts is tested beside the crate, where cargo hands out the path of its binary.)

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::path::Path;
use std::time::Duration;

use blkpilot_agent::client::connect;
use blkpilot_agent::config::Config;
use blkpilot_agent::server::{ServeError, Server};
use blkpilot_proto::v1;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, IoMode, IoThreads, OptIn};
use blkpilot_tests::live;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const HOST: &str = "hosts/local";
const WORKLOAD: &str = "rw=randread,bs=4k,iodepth=4,size=16m";
/// Longer than any backoff of the service and any wait of libvirt's.
const PATIENCE: Duration = Duration::from_secs(60);

fn advise() -> OptIn {
    OptIn {
        mode: "advise".to_owned(),
        ..OptIn::auto()
    }
}

fn guest(name: &str, opt_in: Option<OptIn>) -> GuestSpec {
    let disk = DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct(WORKLOAD)
    };
    GuestSpec {
        opt_in,
        ..GuestSpec::new(name).with_disk(disk)
    }
}

fn paired() -> GuestSpec {
    GuestSpec {
        iothreads: IoThreads::Shared,
        ..guest("paired", Some(advise())).with_disk(DiskSpec::direct(WORKLOAD))
    }
}

struct Service {
    tuner: TunerServiceClient<Channel>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Service {
    async fn start(fixture: &Fixture, dir: &Path, on_exit: &str) -> Self {
        let text = format!(
            "version = 1
[host]
kind = \"libvirt\"
uri = \"{}\"
interval = \"500ms\"
on_exit = \"{on_exit}\"
[policy]
baseline = \"least_loaded\"
[service]
listen = \"unix:blkpilot.sock\"
data_dir = \"data\"
",
            fixture.uri()
        );
        let config = Config::parse(&dir.join("blkpilot.toml"), &text).unwrap();
        let server = Server::start(config).await.unwrap();
        let address = server.address().to_string();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let tuner = TunerServiceClient::new(connect(&address).await.unwrap());
        let service = Self {
            tuner,
            stop,
            serving,
        };
        service.until(|guests| guests.is_ok()).await;
        service
    }

    async fn stop(self) {
        drop(self.stop);
        self.serving.await.unwrap().unwrap();
    }

    async fn guests(&self) -> Result<Vec<v1::Guest>, Status> {
        let request = v1::ListGuestsRequest {
            parent: HOST.to_owned(),
            ..v1::ListGuestsRequest::default()
        };
        let answer = self.tuner.clone().list_guests(request).await?;
        Ok(answer.into_inner().guests)
    }

    /// Waits until the guests are so.
    async fn until(&self, so: impl Fn(&Result<Vec<v1::Guest>, Status>) -> bool) {
        let waiting = async {
            while !so(&self.guests().await) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    }

    /// Sets one level, as an orchestrator does: again where a guest did not answer in time, which
    /// happens on a machine that is busy enough.
    async fn set(&self, disk: &str, head: &str, level: &str) -> Result<v1::Decision, Status> {
        let setting = async {
            loop {
                match self.set_once(disk, head, level).await {
                    Err(status) if is_unresponsive(&status) => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    answer => return answer,
                }
            }
        };
        tokio::time::timeout(PATIENCE, setting).await.unwrap()
    }

    async fn set_once(&self, disk: &str, head: &str, level: &str) -> Result<v1::Decision, Status> {
        let choice = v1::LevelChoice {
            name: disk_name(disk),
            head: head.to_owned(),
            level: level.to_owned(),
        };
        let levels = v1::ExplicitLevels {
            choices: vec![choice],
        };
        let request = v1::ApplyRequest {
            host: HOST.to_owned(),
            action: Some(v1::apply_request::Action::Levels(levels)),
            ..v1::ApplyRequest::default()
        };
        Ok(self.tuner.clone().apply(request).await?.into_inner())
    }

    async fn roll_back(&self, guest: &str) -> v1::Decision {
        let request = v1::RollbackRequest {
            name: format!("{HOST}/guests/{guest}"),
            ..v1::RollbackRequest::default()
        };
        self.tuner
            .clone()
            .rollback(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn decisions(&self) -> Vec<v1::Decision> {
        let request = v1::ListDecisionsRequest {
            parent: HOST.to_owned(),
            ..v1::ListDecisionsRequest::default()
        };
        self.tuner
            .clone()
            .list_decisions(request)
            .await
            .unwrap()
            .into_inner()
            .decisions
    }
}

fn disk_name(disk: &str) -> String {
    let (guest, target) = disk.split_once('/').unwrap();
    format!("{HOST}/guests/{guest}/disks/{target}")
}

fn reason(status: &Status) -> String {
    status
        .get_error_details()
        .error_info()
        .unwrap()
        .reason
        .clone()
}

/// Whether a level was refused because its guest did not answer in time.
fn is_unresponsive(status: &Status) -> bool {
    let details = status.get_error_details();
    details
        .error_info()
        .and_then(|info| info.metadata.get("mask_reason"))
        .is_some_and(|reason| reason == v1::MaskReason::Unresponsive.as_str_name())
}

fn has(guests: &Result<Vec<v1::Guest>, Status>, name: &str) -> bool {
    let name = format!("{HOST}/guests/{name}");
    guests
        .as_ref()
        .is_ok_and(|guests| guests.iter().any(|guest| guest.name == name))
}

/// Host CPUs of the guest's first IOThread, as libvirt tells.
fn iothread_cpus(fixture: &Fixture, guest: &str) -> String {
    let table = fixture.virsh(&["iothreadinfo", guest]).unwrap();
    let row = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("1 "));
    row.unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn real_guests_are_tuned_as_far_as_they_agreed_and_put_back() {
    let guests = vec![
        guest("willing", Some(advise())),
        guest("bystander", None),
        paired(),
    ];
    let Some(fixture) = live::fixture("service_tunes", guests) else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let service = Service::start(&fixture, dir.path(), "revert").await;
    let listed = service.guests().await.unwrap();
    let opted_in: Vec<bool> = listed.iter().map(|guest| guest.opted_in).collect();
    assert_eq!(opted_in, [false, true, true], "bystander, paired, willing");
    let free = iothread_cpus(&fixture, "willing");

    let refused = service
        .set("bystander/vda", "channel", "channel-0")
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "GUEST_NOT_OPTED_IN");
    assert_eq!(iothread_cpus(&fixture, "bystander"), free);

    let host = HOST.to_owned();
    let mut tuner = service.tuner.clone();
    let proposal = tuner.propose(v1::ProposeRequest { host }).await;
    let proposal = proposal.unwrap().into_inner();
    assert!(
        proposal
            .rows
            .iter()
            .all(|row| !row.name.contains("bystander"))
    );
    assert_eq!(iothread_cpus(&fixture, "willing"), free);

    let applied = service
        .set("willing/vda", "channel", "channel-0")
        .await
        .unwrap();
    assert!(applied.durable);
    assert_eq!(iothread_cpus(&fixture, "willing"), "0");
    service
        .set("willing/vda", "cache", "buffered")
        .await
        .unwrap();
    // One of the two disks is named; both follow, for they share the IOThread.
    let tied = service
        .set("paired/vda", "channel", "channel-0")
        .await
        .unwrap();
    let row = |disk: &str| {
        tied.rows
            .iter()
            .find(|row| row.name == disk_name(disk))
            .unwrap()
    };
    assert_eq!(row("paired/vdb").heads[0].executed, "channel-0");
    assert_eq!(iothread_cpus(&fixture, "paired"), "0");

    let back = service.roll_back("paired").await;
    assert_eq!(back.error, "");
    assert_eq!(iothread_cpus(&fixture, "paired"), free);
    assert_eq!(iothread_cpus(&fixture, "willing"), "0");
    assert_eq!(service.decisions().await.len(), 4);
    service.stop().await;
    assert_eq!(iothread_cpus(&fixture, "willing"), free, "on_exit = revert");
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_and_libvirtd_may_go_and_come() {
    let guests = vec![
        guest("stays", Some(advise())),
        guest("goes", Some(advise())),
    ];
    let Some(mut fixture) = live::fixture("service_survives", guests) else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let service = Service::start(&fixture, dir.path(), "keep").await;
    service
        .set("goes/vda", "channel", "channel-0")
        .await
        .unwrap();
    fixture.stop_guest("goes").unwrap();
    service
        .until(|guests| has(guests, "stays") && !has(guests, "goes"))
        .await;
    let refused = service
        .set("goes/vda", "channel", "float")
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        refused.message().contains("guests/goes"),
        "{}",
        refused.message()
    );

    service
        .set("stays/vda", "channel", "channel-0")
        .await
        .unwrap();
    fixture.kill_libvirtd();
    service.until(Result::is_err).await;
    let refused = service
        .set("stays/vda", "channel", "float")
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "HOST_UNAVAILABLE")
    );
    assert!(
        refused.message().contains("libvirtd"),
        "{}",
        refused.message()
    );
    assert_eq!(
        service.decisions().await.len(),
        2,
        "what was decided can still be listed"
    );

    fixture.restart_libvirtd().unwrap();
    service.until(|guests| has(guests, "stays")).await;
    assert_eq!(iothread_cpus(&fixture, "stays"), "0");
    service.set("stays/vda", "channel", "float").await.unwrap();
    assert_ne!(iothread_cpus(&fixture, "stays"), "0");
    service
        .set("stays/vda", "channel", "channel-0")
        .await
        .unwrap();
    service.stop().await;
    assert_eq!(iothread_cpus(&fixture, "stays"), "0", "on_exit = keep");

    // The next one finds what was left, and can take it back.
    let service = Service::start(&fixture, dir.path(), "revert").await;
    assert_eq!(service.decisions().await.len(), 4);
    service.roll_back("-").await;
    assert_ne!(iothread_cpus(&fixture, "stays"), "0");
    service.stop().await;
}
