//! `EvaluationService` over a socket, on the decisions of a policy that explores.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::path::Path;

use blkpilot_proto::longrunning::operation::Result as Ending;
use blkpilot_proto::longrunning::operations_client::OperationsClient;
use blkpilot_proto::longrunning::{CancelOperationRequest, Operation, WaitOperationRequest};
use blkpilot_proto::v1;
use blkpilot_proto::v1::evaluation_service_client::EvaluationServiceClient;
use blkpilot_proto::v1::evaluation_verdict::Word;
use prost::Message as _;
use support::checkpoints::{checkpoint, spec};
use support::{HOST, Service, Settings, fields, reason};
use tonic::transport::Channel;
use tonic::{Code, Status};
use uuid::Uuid;

/// Decisions that a test waits for: enough for a verdict with the options below.
const DECISIONS: usize = 400;

/// A host whose guests are all decided for at random, a hundred times a second.
fn exploring() -> Settings {
    Settings {
        host: "kind = \"simulated\"\nscenario = \"identical_disks\"\ntime_scale = 100\nmode = \"auto\""
            .to_owned(),
        policy: "baseline = \"random\"".to_owned(),
        ..Settings::default()
    }
}

struct Client {
    evaluations: EvaluationServiceClient<Channel>,
    operations: OperationsClient<Channel>,
}

impl Client {
    /// Of a service that has decided often enough.
    async fn of(service: &Service) -> Self {
        let request = v1::WatchDecisionsRequest {
            parent: HOST.to_owned(),
        };
        let mut seen = service
            .tuner()
            .watch_decisions(request)
            .await
            .unwrap()
            .into_inner();
        for _ in 0..DECISIONS {
            seen.message().await.unwrap().unwrap();
        }
        Self {
            evaluations: EvaluationServiceClient::new(service.channel.clone()),
            operations: OperationsClient::new(service.channel.clone()),
        }
    }

    async fn create(&mut self, request: v1::CreateEvaluationRequest) -> Result<Operation, Status> {
        Ok(self
            .evaluations
            .create_evaluation(request)
            .await?
            .into_inner())
    }

    async fn end(&mut self, operation: &Operation) -> Ending {
        let request = WaitOperationRequest {
            name: operation.name.clone(),
            timeout: None,
        };
        let done = self.operations.wait_operation(request).await.unwrap();
        done.into_inner().result.unwrap()
    }

    async fn evaluate(&mut self, request: v1::CreateEvaluationRequest) -> v1::Evaluation {
        let operation = self.create(request).await.unwrap();
        match self.end(&operation).await {
            Ending::Response(response) => v1::Evaluation::decode(&response.value[..]).unwrap(),
            Ending::Error(status) => panic!("{status:?}"),
        }
    }

    async fn list(&mut self, page_size: i32, page_token: &str) -> v1::ListEvaluationsResponse {
        let request = v1::ListEvaluationsRequest {
            page_size,
            page_token: page_token.to_owned(),
        };
        self.evaluations
            .list_evaluations(request)
            .await
            .unwrap()
            .into_inner()
    }
}

fn of(policy: &str) -> v1::CreateEvaluationRequest {
    v1::CreateEvaluationRequest {
        policy: policy.to_owned(),
        options: Some(v1::EvaluationOptions {
            horizon_steps: 1,
            block_s: 1.0,
            replicates: 200,
            least_ess: 1.0,
            ..v1::EvaluationOptions::default()
        }),
        ..v1::CreateEvaluationRequest::default()
    }
}

/// An untrained network as the first version of `policies/net`, sampled.
fn store_network(data_dir: &Path) -> String {
    let store = blkpilot_agent::policies::store::PolicyStore::open(data_dir).unwrap();
    let kept = store.keep(&checkpoint(&spec(), 1)).unwrap();
    let asked = blkpilot_agent::policies::store::Asked {
        actor: "a test".to_owned(),
        at_us: 0,
        reason: String::new(),
    };
    let sampled = blkpilot_models::Selection::Sample;
    let version = store.change(|change| change.upload("net", &kept, sampled, "", &asked));
    version.unwrap().name.to_string()
}

#[tokio::test]
async fn the_policy_of_the_log_is_as_good_as_its_behaviour_and_the_evaluation_is_kept() {
    let service = Service::start(&exploring()).await;
    let mut client = Client::of(&service).await;
    let same = client.evaluate(of("random")).await;
    assert_eq!(same.policy, "random");
    let verdict = same.verdict.clone().unwrap();
    assert_eq!(verdict.word(), Word::CannotTell, "{verdict:?}");
    let weights = same.diagnostics.unwrap();
    assert!((weights.mean - 1.0).abs() < 1e-9, "{weights:?}");
    assert!(
        same.rows > 0 && same.windows > 0 && same.blocks > 1,
        "{same:?}"
    );
    let names: Vec<&str> = same.estimates.iter().map(|it| &it.estimator[..]).collect();
    assert_eq!(names, ["SNPDIS", "WDR", "FQE"]);
    let own = same.estimates[0].value.unwrap();
    let behaviour = same.behaviour.unwrap();
    assert!((own.estimate - behaviour.estimate).abs() < 1e-9);

    let version = store_network(&service.dir.path().join("data"));
    let other = client.evaluate(v1::CreateEvaluationRequest {
        against: "random".to_owned(),
        ..of(&version)
    });
    let other = other.await;
    assert_eq!((&other.policy, &other.against[..]), (&version, "random"));
    assert!(other.against_diagnostics.is_some());
    let whole: serde_json::Value = serde_json::from_str(&other.json).unwrap();
    assert_eq!(
        whole["verdict"]["text"],
        other.verdict.clone().unwrap().text
    );

    let first = client.list(1, "").await;
    assert_eq!(first.evaluations[0].name, other.name, "newest first");
    assert!(first.evaluations[0].json.is_empty());
    let last = client.list(1, &first.next_page_token).await;
    assert_eq!(
        (&last.evaluations[0].name, last.next_page_token),
        (&same.name, String::new())
    );

    let service = Service::start_in(service.stop().await, &exploring())
        .await
        .unwrap();
    let mut client = EvaluationServiceClient::new(service.channel.clone());
    let name = other.name.clone();
    let request = v1::GetEvaluationRequest { name: name.clone() };
    let kept = client
        .get_evaluation(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(kept, other, "over a restart");
    let delete = v1::DeleteEvaluationRequest { name };
    client.delete_evaluation(delete.clone()).await.unwrap();
    let missing = client.get_evaluation(request).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let missing = client.delete_evaluation(delete).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn a_repeated_call_has_one_evaluation_and_a_rehearsed_one_none() {
    let service = Service::start(&exploring()).await;
    let mut client = Client::of(&service).await;
    let request = v1::CreateEvaluationRequest {
        request_id: Uuid::new_v4().to_string(),
        ..of("random")
    };
    let first = client.create(request.clone()).await.unwrap();
    let again = client.create(request.clone()).await.unwrap();
    assert_eq!(first.name, again.name);
    client.end(&first).await;
    assert_eq!(client.list(0, "").await.evaluations.len(), 1);
    let other = v1::CreateEvaluationRequest {
        against: "random".to_owned(),
        ..request
    };
    let refused = client.create(other).await.unwrap_err();
    assert_eq!(fields(&refused), ["request_id"]);

    let rehearsed = v1::CreateEvaluationRequest {
        validate_only: true,
        ..of("random")
    };
    assert!(client.create(rehearsed).await.unwrap().done);
    assert_eq!(client.list(0, "").await.evaluations.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_evaluated_is_refused_with_all_that_is_wrong() {
    let decided = Settings {
        policy: "baseline = \"least_loaded\"".to_owned(),
        ..exploring()
    };
    let service = Service::start(&decided).await;
    let mut client = Client::of(&service).await;
    let wrong = v1::CreateEvaluationRequest {
        options: Some(v1::EvaluationOptions {
            max_age_s: -1.0,
            gamma: Some(2.0),
            horizon_steps: -3,
            confidence: f64::NAN,
            ..v1::EvaluationOptions::default()
        }),
        ..of("random")
    };
    let refused = client.create(wrong).await.unwrap_err();
    let named = [
        "options.gamma",
        "options.max_age_s",
        "options.confidence",
        "options.horizon_steps",
    ];
    assert_eq!(fields(&refused), named);
    let missing = client
        .create(of("policies/net/versions/1"))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    for name in ["", "net/1", "policies/net"] {
        let refused = client.create(of(name)).await.unwrap_err();
        assert_eq!(fields(&refused), ["policy"], "{name}");
    }
    let young = v1::CreateEvaluationRequest {
        options: Some(v1::EvaluationOptions {
            max_age_s: 1e-6,
            ..v1::EvaluationOptions::default()
        }),
        ..of("random")
    };
    let operation = client.create(young).await.unwrap();
    let Ending::Error(status) = client.end(&operation).await else {
        panic!("no row is so young");
    };
    assert_eq!(
        status.code,
        i32::from(Code::FailedPrecondition),
        "{status:?}"
    );
    assert_eq!(client.list(0, "").await.evaluations, []);
}

#[tokio::test]
async fn one_that_is_cancelled_keeps_nothing() {
    let service = Service::start(&exploring()).await;
    let mut client = Client::of(&service).await;
    let long = v1::CreateEvaluationRequest {
        options: Some(v1::EvaluationOptions {
            replicates: 100_000,
            ..of("random").options.unwrap()
        }),
        ..of("random")
    };
    // The first is worked on while the second waits, so that this one's cancellation cannot come too late.
    let first = client.create(long.clone()).await.unwrap();
    let second = client.create(long).await.unwrap();
    for operation in [&second, &first] {
        let request = CancelOperationRequest {
            name: operation.name.clone(),
        };
        client.operations.cancel_operation(request).await.unwrap();
    }
    let Ending::Error(status) = client.end(&second).await else {
        panic!("it was cancelled before its turn");
    };
    assert_eq!(status.code, i32::from(Code::Cancelled));
    let kept = match client.end(&first).await {
        Ending::Response(_) => 1,
        Ending::Error(_) => 0,
    };
    assert_eq!(client.list(0, "").await.evaluations.len(), kept);
    let nothing = client
        .create(of("policies/net/versions/7"))
        .await
        .unwrap_err();
    assert_eq!(reason(&nothing), "NOT_FOUND");
}
