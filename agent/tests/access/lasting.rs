//! Calls that last longer than what their caller may.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use blkpilot_agent::access::entitled::LOOK;
use blkpilot_agent::access::role::Role;
use blkpilot_agent::access::tokens::Wanted;
use blkpilot_agent::client::Target;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::rollout_request::Request as Asked;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::setup::{Service, reason, wanted};

/// Beyond the bound: a machine may be slow.
const PATIENCE: Duration = Duration::from_secs(20);

type Watch = Streaming<v1::WatchDecisionsResponse>;

/// A watch of the decisions of a host on which none are made, after its first answer.
async fn watch(target: &Target) -> Watch {
    let mut client = TunerServiceClient::new(target.connect().await.unwrap());
    let request = v1::WatchDecisionsRequest {
        parent: "hosts/local".to_owned(),
    };
    let mut watch = client.watch_decisions(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    watch
}

async fn end(watch: &mut Watch) -> Status {
    let ended = tokio::time::timeout(PATIENCE, watch.message());
    ended.await.unwrap().unwrap_err()
}

#[tokio::test]
async fn a_stream_ends_soon_after_its_token_was_revoked_and_those_of_others_go_on() {
    let service = Service::start("unix:s", "").await;
    let (token, secret) = service.token(Role::Observer);
    let (_, other) = service.token(Role::Observer);
    let mut watched = watch(&service.with_token(&secret)).await;
    let mut others = watch(&service.with_token(&other)).await;
    let mut without = watch(&service.target()).await;
    let tokens = service.tokens();
    let (revoked, now) = (Instant::now(), SystemTime::now());
    tokens.revoke(&token.id, now).unwrap();
    let ended = end(&mut watched).await;
    assert!(revoked.elapsed() < LOOK + PATIENCE / 2);
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    assert_eq!(reason(&ended), "TOKEN_REVOKED");
    for going_on in [&mut others, &mut without] {
        let still = tokio::time::timeout(LOOK + LOOK / 4, going_on.message()).await;
        assert!(still.is_err(), "{still:?}");
    }
}

#[tokio::test]
async fn a_stream_ends_soon_after_its_token_has_expired() {
    let service = Service::start("unix:s", "").await;
    let short = Wanted {
        lifetime: Some(Duration::from_secs(1)),
        ..wanted(Role::Observer)
    };
    let (_, secret) = service.tokens().create(short, SystemTime::now()).unwrap();
    let ended = end(&mut watch(&service.with_token(&secret)).await).await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    assert_eq!(reason(&ended), "TOKEN_EXPIRED");
}

#[tokio::test]
async fn a_rollout_ends_soon_after_its_token_may_only_look_and_the_audit_says_so() {
    let service = Service::start("unix:s", "").await;
    let (_, secret) = service.token(Role::Operator);
    let connection = service.with_token(&secret).connect().await.unwrap();
    let mut client = EnvironmentServiceClient::new(connection);
    let cart = v1::Environment {
        kind: Some(v1::environment::Kind::CartPole(v1::CartPole {})),
        ..v1::Environment::default()
    };
    let create = v1::CreateEnvironmentRequest {
        environment: Some(cart),
        ..v1::CreateEnvironmentRequest::default()
    };
    let made = client.create_environment(create).await.unwrap();
    let open = v1::RolloutOpen {
        name: made.into_inner().name,
        ..v1::RolloutOpen::default()
    };
    let (requests, sent) = mpsc::channel(1);
    let request = Some(Asked::Open(open));
    requests.send(v1::RolloutRequest { request }).await.unwrap();
    let answers = client.rollout(ReceiverStream::new(sent)).await.unwrap();
    let mut answers = answers.into_inner();
    answers.message().await.unwrap().unwrap();

    let tokens = service.tokens();
    let text = fs::read_to_string(tokens.path()).unwrap();
    fs::write(tokens.path(), text.replace("\"operator\"", "\"observer\"")).unwrap();
    let ended = tokio::time::timeout(PATIENCE, answers.message());
    let ended = ended.await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
    assert_eq!(reason(&ended), "ROLE_TOO_LOW");
    let audit = fs::read_to_string(service.dir.path().join("data/audit.jsonl")).unwrap();
    let last = audit.lines().last().unwrap();
    assert!(
        last.contains("/Rollout") && last.contains("PERMISSION_DENIED"),
        "{last}"
    );
}
