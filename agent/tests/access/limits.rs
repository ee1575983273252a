//! Bounds on what clients may ask for at once.

use std::time::Duration;

use blkpilot_agent::access::role::Role;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use super::setup::{CHECK, LIST_HOSTS, Service, ask, ask_anew, reason};

fn limits(line: &str) -> String {
    format!("[service.limits]\n{line}")
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused() {
    let service = Service::start("unix:s", &limits("message_mib = 1")).await;
    let mut client = EnvironmentServiceClient::new(service.target().connect().await.unwrap());
    let scenario = v1::sim_host::Scenario::ScenarioToml("#".repeat(2 << 20));
    let sim = v1::SimHost {
        scenario: Some(scenario),
    };
    let request = v1::CreateEnvironmentRequest {
        environment: Some(v1::Environment {
            kind: Some(v1::environment::Kind::SimHost(sim)),
            ..v1::Environment::default()
        }),
        ..v1::CreateEnvironmentRequest::default()
    };
    let refused = client.create_environment(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    let connection = service.target().connect().await.unwrap();
    assert_eq!(ask(&connection, LIST_HOSTS).await.code(), Code::Ok);
}

#[tokio::test]
async fn whoever_calls_too_often_is_told_when_to_call_again_and_holds_up_nobody_else() {
    let tables = limits("calls_per_second = 3\nunknown_calls_per_second = 2");
    let service = Service::start("127.0.0.1:0", &tables).await;
    let [one, other] = [(); 2].map(|()| service.token(Role::Observer).1);
    let refused_after = async |target: blkpilot_agent::client::Target| {
        let connection = target.connect().await.unwrap();
        for taken in 0..1000 {
            let status = ask(&connection, LIST_HOSTS).await;
            if status.code() != Code::Ok {
                return (taken, status);
            }
        }
        panic!("1000 calls were taken");
    };
    // A slow machine may let a few more through, as time goes on.
    let (taken, refused) = refused_after(service.with_token(&one)).await;
    assert!(taken >= 3, "{taken}");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(reason(&refused), "RATE_EXCEEDED");
    let details = refused.get_error_details();
    let retry = details.retry_info().unwrap().retry_delay.unwrap();
    assert_eq!(retry, Duration::from_secs(1));
    let (taken, _) = refused_after(service.with_token(&other)).await;
    assert!(taken >= 3, "another token has calls of its own: {taken}");
    let (taken, _) = refused_after(service.target()).await;
    assert!(taken >= 2, "and so has the address: {taken}");
}

#[tokio::test]
async fn whoever_guesses_tokens_is_held_to_the_rate_of_a_stranger() {
    let service = Service::start("127.0.0.1:0", &limits("unknown_calls_per_second = 2")).await;
    let connection = service
        .with_token(&"guess".to_owned().into())
        .connect()
        .await
        .unwrap();
    let mut codes = vec![];
    while codes.last() != Some(&Code::ResourceExhausted) {
        assert!(codes.len() < 1000, "1000 guesses were taken");
        codes.push(ask(&connection, CHECK).await.code());
    }
    assert!(codes.len() > 2);
    assert!(
        codes[..codes.len() - 1]
            .iter()
            .all(|code| *code == Code::Unauthenticated)
    );
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_until_one_ends() {
    let service = Service::start("unix:s", &limits("connections = 2")).await;
    let target = service.target();
    let one = target.connect().await.unwrap();
    let two = target.connect().await.unwrap();
    for connection in [&one, &two] {
        assert_eq!(ask(connection, CHECK).await.code(), Code::Ok);
    }
    let is_served = async || {
        let answer = ask_anew(&target, CHECK).await;
        answer.is_ok_and(|status| status.code() == Code::Ok)
    };
    assert!(!is_served().await, "a third");
    drop(two);
    let again = async { while !is_served().await {} };
    tokio::time::timeout(Duration::from_secs(20), again)
        .await
        .unwrap();
    assert_eq!(ask(&one, CHECK).await.code(), Code::Ok);
}

#[tokio::test]
async fn a_stream_beyond_the_bound_of_a_connection_waits_until_another_has_ended() {
    let service = Service::start("unix:s", &limits("streams_per_connection = 1")).await;
    let connection = service.target().connect().await.unwrap();
    let mut health = HealthClient::new(connection.clone());
    let watching = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut next = Box::pin(ask(&connection, CHECK));
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut next).await;
    assert!(waits.is_err(), "{waits:?}");
    drop(watching);
    assert_eq!(next.await.code(), Code::Ok);
}
