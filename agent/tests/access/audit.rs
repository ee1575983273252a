//! A line for each call that changes something.

use std::fs;

use blkpilot_agent::access::role::Role;
use blkpilot_agent::client::Target;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use serde_json::{Value, json};
use tonic::Code;

use super::setup::{LIST_HOSTS, ROLLBACK, Service, ask_anew};

/// The records so far. Each is there before the call that it is about is answered.
fn records(service: &Service) -> Vec<Value> {
    let text = fs::read_to_string(service.dir.path().join("data/audit.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn rollback(guest: &str, request_id: &str) -> v1::RollbackRequest {
    v1::RollbackRequest {
        name: format!("hosts/local/guests/{guest}"),
        validate_only: false,
        request_id: request_id.to_owned(),
    }
}

async fn tuner(target: &Target) -> TunerServiceClient<blkpilot_agent::client::Connection> {
    TunerServiceClient::new(target.connect().await.unwrap())
}

#[tokio::test]
async fn each_change_is_recorded_before_it_is_answered() {
    let service = Service::start("unix:s", "").await;
    let mut tuner = tuner(&service.target()).await;
    let id = "0b0c7d6e-35a5-4d46-a8ff-2f6ad7a7e3f5";
    tuner.rollback(rollback("-", id)).await.unwrap();
    let [done] = &records(&service)[..] else {
        panic!("{:#?}", records(&service));
    };
    assert_eq!(done["method"], "/blkpilot.v1.TunerService/Rollback");
    assert_eq!(done["resource"], "hosts/local/guests/-");
    assert_eq!(done["request_id"], id);
    assert_eq!(done["code"], "OK");
    assert_eq!(done["role"], "admin");
    assert_eq!(
        (&done["token"], &done["validate_only"]),
        (&Value::Null, &json!(false))
    );
    let uid = nix::unistd::geteuid();
    let peer = done["peer"].as_str().unwrap();
    assert!(peer.starts_with(&format!("unix:uid={uid},gid=")), "{peer}");
    assert!(
        peer.ends_with(&format!("pid={}", std::process::id())),
        "{peer}"
    );
    humantime::parse_rfc3339(done["time"].as_str().unwrap()).unwrap();

    let missing = tuner.rollback(rollback("nobody", "")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let asked = v1::RollbackRequest {
        validate_only: true,
        ..rollback("-", "")
    };
    tuner.rollback(asked).await.unwrap();
    let records = records(&service);
    let codes: Vec<_> = records
        .iter()
        .map(|r| (&r["code"], &r["validate_only"]))
        .collect();
    let (no, yes) = (&json!(false), &json!(true));
    assert_eq!(
        codes,
        [
            (&json!("OK"), no),
            (&json!("NOT_FOUND"), no),
            (&json!("OK"), yes)
        ]
    );
}

#[tokio::test]
async fn the_id_of_a_token_is_recorded_and_the_token_never() {
    let service = Service::start("127.0.0.1:0", "").await;
    let (operator, secret) = service.token(Role::Operator);
    let (observer, weak) = service.token(Role::Observer);
    let mut allowed = tuner(&service.with_token(&secret)).await;
    allowed.rollback(rollback("-", "")).await.unwrap();
    let mut refused = tuner(&service.with_token(&weak)).await;
    let refused = refused.rollback(rollback("-", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let records = records(&service);
    let seen: Vec<_> = records
        .iter()
        .map(|r| [&r["token"], &r["role"], &r["code"]])
        .collect();
    let done = json!([operator.id, "operator", "OK"]);
    let denied = json!([observer.id, "observer", "PERMISSION_DENIED"]);
    assert_eq!(json!(seen), json!([done, denied]));
    let text = fs::read_to_string(service.dir.path().join("data/audit.jsonl")).unwrap();
    for secret in [secret, weak] {
        let (_, hidden) = secret.expose().rsplit_once('_').unwrap();
        assert!(!text.contains(hidden));
    }
}

#[tokio::test]
async fn neither_reading_nor_what_a_stranger_is_refused_is_recorded() {
    let service = Service::start("127.0.0.1:0", "").await;
    let target = service.target();
    assert_eq!(
        ask_anew(&target, LIST_HOSTS).await.unwrap().code(),
        Code::Ok
    );
    let refused = ask_anew(&target, ROLLBACK).await.unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(records(&service), Vec::<Value>::new());
}

#[tokio::test]
async fn of_an_environment_that_is_no_host_only_making_and_deleting_is_recorded() {
    let service = Service::start("unix:s", "").await;
    let connection = service.target().connect().await.unwrap();
    let mut client = EnvironmentServiceClient::new(connection);
    let request = v1::CreateEnvironmentRequest {
        environment: Some(v1::Environment {
            kind: Some(v1::environment::Kind::CartPole(v1::CartPole {})),
            ..v1::Environment::default()
        }),
        environment_id: "cart".to_owned(),
        ..v1::CreateEnvironmentRequest::default()
    };
    let name = client
        .create_environment(request)
        .await
        .unwrap()
        .into_inner()
        .name;
    let reset = v1::ResetRequest {
        name: name.clone(),
        ..v1::ResetRequest::default()
    };
    client.reset(reset).await.unwrap();
    let delete = v1::DeleteEnvironmentRequest {
        name: name.clone(),
        allow_missing: false,
    };
    client.delete_environment(delete).await.unwrap();
    let records = records(&service);
    let seen: Vec<_> = records
        .iter()
        .map(|r| [&r["method"], &r["resource"]])
        .collect();
    let service = "/blkpilot.v1.EnvironmentService";
    let made = json!([format!("{service}/CreateEnvironment"), "cart"]);
    let deleted = json!([format!("{service}/DeleteEnvironment"), name]);
    assert_eq!(json!(seen), json!([made, deleted]));
}
