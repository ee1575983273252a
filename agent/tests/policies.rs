//! `PolicyService` and long-running operations over a socket.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use blkpilot_agent::access::role::Role;
use blkpilot_agent::decision::PolicyRef;
use blkpilot_env::cartpole::CartPole;
use blkpilot_env::{Environment as _, Rng};
use blkpilot_models::{Architecture, Checkpoint, CheckpointBytes};
use blkpilot_proto::longrunning::operation::Result as Ending;
use blkpilot_proto::longrunning::operations_client::OperationsClient;
use blkpilot_proto::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    Operation, WaitOperationRequest,
};
use blkpilot_proto::v1;
use blkpilot_proto::v1::PolicyStage;
use blkpilot_proto::v1::operation_service_client::OperationServiceClient;
use blkpilot_proto::v1::policy_service_client::PolicyServiceClient;
use prost::Message as _;
use rand::SeedableRng as _;
use support::checkpoints::{checkpoint, header, messages, spec};
use support::{HOST, Service, Settings, fields, reason};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A host whose guests are in mode auto, looked at a hundred times a second.
fn auto() -> Settings {
    Settings {
        host: "kind = \"simulated\"\nscenario = \"identical_disks\"\ntime_scale = 100\nmode = \"auto\""
            .to_owned(),
        // Untrained networks may do harm, which is not what these tests are about.
        policy: "baseline = \"least_loaded\"\non_harm = \"keep\"".to_owned(),
        ..Settings::default()
    }
}

struct Client {
    policies: PolicyServiceClient<Channel>,
    operations: OperationsClient<Channel>,
    watch: OperationServiceClient<Channel>,
}

impl Client {
    fn of(service: &Service) -> Self {
        Self {
            policies: PolicyServiceClient::new(service.channel.clone()),
            operations: OperationsClient::new(service.channel.clone()),
            watch: OperationServiceClient::new(service.channel.clone()),
        }
    }

    async fn send(
        &mut self,
        header: v1::UploadHeader,
        bytes: &CheckpointBytes,
    ) -> Result<v1::PolicyVersion, Status> {
        let messages = messages(header, bytes);
        let sent = self
            .policies
            .upload_policy_version(tokio_stream::iter(messages));
        Ok(sent.await?.into_inner())
    }

    async fn upload(&mut self, policy: &str, seed: u64) -> v1::PolicyVersion {
        let bytes = checkpoint(&spec(), seed);
        self.send(header(policy, &bytes), &bytes).await.unwrap()
    }

    async fn promote(
        &mut self,
        request: v1::PromotePolicyVersionRequest,
    ) -> Result<Operation, Status> {
        Ok(self
            .policies
            .promote_policy_version(request)
            .await?
            .into_inner())
    }

    async fn end(&mut self, name: &str) -> Operation {
        let request = WaitOperationRequest {
            name: name.to_owned(),
            timeout: None,
        };
        let done = self.operations.wait_operation(request).await.unwrap();
        let done = done.into_inner();
        assert!(done.done, "{done:?}");
        done
    }

    async fn version(&mut self, name: &str) -> v1::PolicyVersion {
        let request = v1::GetPolicyVersionRequest {
            name: name.to_owned(),
        };
        self.policies
            .get_policy_version(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn events(&mut self) -> Vec<v1::PolicyEvent> {
        let request = v1::ListPolicyEventsRequest::default();
        let events = self.policies.list_policy_events(request).await.unwrap();
        events.into_inner().events
    }
}

fn to(version: &v1::PolicyVersion, stage: PolicyStage) -> v1::PromotePolicyVersionRequest {
    v1::PromotePolicyVersionRequest {
        name: version.name.clone(),
        stage: stage.into(),
        ..v1::PromotePolicyVersionRequest::default()
    }
}

fn forced(version: &v1::PolicyVersion) -> v1::PromotePolicyVersionRequest {
    v1::PromotePolicyVersionRequest {
        force_reason: "a test".to_owned(),
        ..to(version, PolicyStage::Production)
    }
}

fn promoted(operation: &Operation) -> v1::PolicyVersion {
    let Some(Ending::Response(response)) = &operation.result else {
        panic!("{operation:?}");
    };
    v1::PolicyVersion::decode(&response.value[..]).unwrap()
}

fn stage(version: &v1::PolicyVersion) -> PolicyStage {
    version.stage()
}

/// Versions that have decided, in the order of their first decision.
fn deciders(decisions: &[v1::Decision]) -> Vec<PolicyRef> {
    let mut deciders: Vec<PolicyRef> = vec![];
    // Those of the guard have none.
    for policy in decisions
        .iter()
        .rev()
        .filter_map(|decision| decision.policy.as_ref())
    {
        let by = PolicyRef {
            name: policy.name.clone(),
            version: policy.version.clone(),
        };
        if deciders.last() != Some(&by) {
            deciders.push(by);
        }
    }
    deciders
}

#[tokio::test]
async fn what_is_uploaded_is_a_version_and_the_same_again_is_the_same_version() {
    let service = Service::start(&Settings::default()).await;
    let mut client = Client::of(&service);
    let first = client.upload("net", 1).await;
    assert_eq!(first.name, "policies/net/versions/1");
    assert_eq!(stage(&first), PolicyStage::Stored);
    assert_eq!(client.upload("net", 1).await, first);
    let second = client.upload("net", 2).await;
    client.upload("other", 1).await;
    let request = v1::ListPolicyVersionsRequest {
        parent: "policies/-".to_owned(),
        page_size: 2,
        filter: "stage = STORED".to_owned(),
        ..v1::ListPolicyVersionsRequest::default()
    };
    let page = client.policies.list_policy_versions(request.clone()).await;
    let page = page.unwrap().into_inner();
    let names: Vec<&str> = page.versions.iter().map(|v| &v.name[..]).collect();
    assert_eq!(names, [&second.name[..], &first.name]);
    let request = v1::ListPolicyVersionsRequest {
        page_token: page.next_page_token,
        ..request
    };
    let page = client.policies.list_policy_versions(request).await.unwrap();
    let page = page.into_inner();
    assert_eq!(page.versions[0].name, "policies/other/versions/1");
    assert_eq!(page.next_page_token, "");
    let request = v1::ListPoliciesRequest::default();
    let listed = client.policies.list_policies(request).await.unwrap();
    let listed = listed.into_inner().policies;
    let listed: Vec<_> = listed
        .iter()
        .map(|p| (&p.name[..], p.versions, &p.latest_version[..]))
        .collect();
    assert_eq!(
        listed,
        [
            ("policies/net", 2, "policies/net/versions/2"),
            ("policies/other", 1, "policies/other/versions/1"),
        ]
    );
}

#[tokio::test]
async fn a_damaged_large_or_foreign_upload_is_refused_with_what_is_wrong() {
    let service = Service::start(&Settings::default()).await;
    let mut client = Client::of(&service);
    let bytes = checkpoint(&spec(), 1);
    let good = header("net", &bytes);
    let wrong = v1::UploadHeader {
        parent: "policies/Net".to_owned(),
        sha256: "abc".to_owned(),
        tensors_bytes: 0,
        ..good.clone()
    };
    let refused = client.send(wrong, &bytes).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let named = ["header.parent", "header.sha256", "header.tensors_bytes"];
    assert_eq!(fields(&refused), named);

    let mut torn = bytes.clone();
    torn.tensors[100] ^= 1;
    let refused = client.send(good.clone(), &torn).await.unwrap_err();
    assert_eq!(reason(&refused), "UPLOAD_DAMAGED");
    torn.tensors.pop();
    let refused = client.send(good.clone(), &torn).await.unwrap_err();
    assert!(refused.message().contains("bytes"), "{refused}");
    // The announced hash, of what is no checkpoint.
    torn.tensors.push(0);
    let refused = client.send(header("net", &torn), &torn).await.unwrap_err();
    assert_eq!(reason(&refused), "CHECKPOINT_REFUSED");

    let large = v1::UploadHeader {
        tensors_bytes: 100 << 20,
        ..good.clone()
    };
    let refused = client.send(large, &bytes).await.unwrap_err();
    assert_eq!(reason(&refused), "UPLOAD_TOO_LARGE");
    let foreign = checkpoint(&CartPole::new(0).spec().clone(), 1);
    let sent = client.send(header("net", &foreign), &foreign).await;
    let refused = sent.unwrap_err();
    assert_eq!(
        (refused.code(), &reason(&refused)[..]),
        (Code::FailedPrecondition, "SPEC_MISMATCH")
    );
    assert!(refused.message().contains("does not fit"), "{refused}");
    let rehearsed = v1::UploadHeader {
        validate_only: true,
        ..good
    };
    let would_be = client.send(rehearsed, &bytes).await.unwrap();
    assert_eq!(would_be.name, "policies/net/versions/1");
    let request = v1::GetPolicyRequest {
        name: "policies/net".to_owned(),
    };
    let missing = client.policies.get_policy(request).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(client.events().await.is_empty());
}

#[tokio::test]
async fn a_promotion_under_way_is_followed_by_the_owner_and_a_rollback_too() {
    let service = Service::start(&auto()).await;
    let mut client = Client::of(&service);
    let [first, second] = [client.upload("net", 1).await, client.upload("net", 2).await];
    let done = client.promote(forced(&first)).await.unwrap();
    assert!(done.done);
    assert_eq!(stage(&promoted(&done)), PolicyStage::Production);
    let served = client.version(&first.name).await;
    assert!(served.is_serving);
    client.promote(forced(&second)).await.unwrap();
    assert_eq!(
        stage(&client.version(&first.name).await),
        PolicyStage::Stored
    );
    // Until each of them has decided.
    let mut watch = service
        .tuner()
        .watch_decisions(v1::WatchDecisionsRequest {
            parent: HOST.to_owned(),
        })
        .await
        .unwrap()
        .into_inner();
    let mut next_of = async |version: &str| loop {
        use v1::watch_decisions_response::Event;
        let event = watch.next().await.unwrap().unwrap().event;
        let Some(Event::Decision(decision)) = event else {
            continue;
        };
        // The guard's have none.
        if decision.policy.is_some_and(|by| by.version == version) {
            return;
        }
    };
    next_of(&second.tensors_sha256).await;
    let request = v1::RollbackProductionRequest {
        reason: "slower".to_owned(),
        ..v1::RollbackProductionRequest::default()
    };
    let back = client.policies.rollback_production(request.clone()).await;
    let back = back.unwrap().into_inner();
    assert_eq!(back.production.unwrap().name, first.name);
    assert_eq!(back.withdrawn.unwrap().name, second.name);
    next_of(&first.tensors_sha256).await;
    let back = client.policies.rollback_production(request.clone()).await;
    assert_eq!(back.unwrap().into_inner().production, None);
    next_of("").await;
    let refused = client.policies.rollback_production(request).await;
    assert_eq!(reason(&refused.unwrap_err()), "NOTHING_PROMOTED");
    // In the log nothing comes back but by the rollbacks.
    let deciders = deciders(&service.decisions().await);
    let versions: Vec<&str> = deciders.iter().map(|by| &by.version[..]).collect();
    let [a, b] = [&first.tensors_sha256[..], &second.tensors_sha256[..]];
    let ends = |all: &[&str]| versions.ends_with(all);
    assert!(ends(&[a, b, a, ""]) || ends(&[b, a, ""]), "{versions:?}");
    let reasons: Vec<_> = client
        .events()
        .await
        .into_iter()
        .map(|event| (event.action(), event.reason, event.actor.contains("uid")))
        .collect();
    let rollback = (
        v1::policy_event::Action::Rollback,
        "slower".to_owned(),
        true,
    );
    assert_eq!(reasons[0], rollback);
    assert_eq!(reasons[2].1, "a test");
}

/// Puts every disk on one channel where `crowds`; else leaves them where they are.
fn constant(crowds: bool) -> CheckpointBytes {
    let dir = TempDir::new().unwrap();
    let policy = dir.path().join("policy");
    let mut rng = Rng::seed_from_u64(1);
    let mut checkpoint = Checkpoint::untrained(&spec(), Architecture::default(), &mut rng);
    for (name, tensor) in &mut checkpoint.tensors {
        let is_wanted = match &name[..] {
            "actor.head.channel.score.bias" => crowds,
            "actor.head.channel.zero.bias" => !crowds,
            _ => false,
        };
        tensor.data.fill(if is_wanted { 10.0 } else { 0.0 });
    }
    checkpoint.save(&policy).unwrap();
    CheckpointBytes::read(&policy).unwrap()
}

/// Waits for an event of the guard's, and says what it was done for.
async fn withdrawn_by_guard(client: &mut Client, service: &Service) -> v1::PolicyEvent {
    let request = v1::WatchDecisionsRequest {
        parent: HOST.to_owned(),
    };
    let mut decisions = service
        .tuner()
        .watch_decisions(request)
        .await
        .unwrap()
        .into_inner();
    for _ in 0..5_000 {
        decisions.next().await.unwrap().unwrap();
        let newest = client.events().await.remove(0);
        if newest.actor == "guard" {
            return newest;
        }
    }
    panic!("the guard has let it be");
}

#[tokio::test]
async fn what_the_guard_puts_back_too_often_is_rolled_back_by_itself() {
    use v1::policy_event::Action;
    let settings = Settings {
        policy: "baseline = \"keep_default\"".to_owned(),
        ..auto()
    };
    let service = Service::start(&settings).await;
    let mut client = Client::of(&service);
    let [harmless, harmful] = [constant(false), constant(true)];
    let good = client
        .send(header("good", &harmless), &harmless)
        .await
        .unwrap();
    client.promote(forced(&good)).await.unwrap();
    let bad = client
        .send(header("bad", &harmful), &harmful)
        .await
        .unwrap();
    client.promote(forced(&bad)).await.unwrap();
    let event = withdrawn_by_guard(&mut client, &service).await;
    assert_eq!(
        (event.action(), &event.version),
        (Action::Rollback, &good.name)
    );
    assert!(
        event.reason.contains("the guard put back 3 of its changes"),
        "{event:?}"
    );
    assert_eq!(stage(&client.version(&bad.name).await), PolicyStage::Stored);
    let good = client.version(&good.name).await;
    assert_eq!(stage(&good), PolicyStage::Production);
    let again = client.events().await;
    let rollbacks = again
        .iter()
        .filter(|event| event.action() == Action::Rollback);
    assert_eq!(rollbacks.count(), 1);
}

#[tokio::test]
async fn a_canary_of_which_the_guard_puts_back_too_much_is_archived() {
    let settings = Settings {
        host: auto().host.replace("mode = \"auto\"", "mode = \"canary\""),
        policy: "baseline = \"keep_default\"\n[candidate]\nbaseline = \"keep_default\"".to_owned(),
        ..auto()
    };
    let service = Service::start(&settings).await;
    let mut client = Client::of(&service);
    let harmful = constant(true);
    let bad = client
        .send(header("bad", &harmful), &harmful)
        .await
        .unwrap();
    client.promote(to(&bad, PolicyStage::Canary)).await.unwrap();
    let event = withdrawn_by_guard(&mut client, &service).await;
    assert_eq!(event.action(), v1::policy_event::Action::Archive);
    assert_eq!(
        stage(&client.version(&bad.name).await),
        PolicyStage::Archived
    );
}

#[tokio::test]
async fn candidate_and_canary_are_seated_and_archived() {
    let service = Service::start(&Settings::default()).await;
    let mut client = Client::of(&service);
    let [first, second] = [client.upload("net", 1).await, client.upload("net", 2).await];
    let candidate = async |service: &Service| {
        let request = v1::ListHostsRequest::default();
        let hosts = service.tuner().list_hosts(request).await.unwrap();
        let host = hosts.into_inner().hosts.remove(0);
        host.candidate.map(|policy| policy.version)
    };
    assert_eq!(candidate(&service).await, None);
    client
        .promote(to(&first, PolicyStage::Candidate))
        .await
        .unwrap();
    assert_eq!(
        candidate(&service).await.as_ref(),
        Some(&first.tensors_sha256)
    );
    client
        .promote(to(&second, PolicyStage::Canary))
        .await
        .unwrap();
    assert_eq!(
        candidate(&service).await.as_ref(),
        Some(&second.tensors_sha256)
    );
    let archive = |version: &v1::PolicyVersion| v1::ArchivePolicyVersionRequest {
        name: version.name.clone(),
        ..v1::ArchivePolicyVersionRequest::default()
    };
    let archived = client
        .policies
        .archive_policy_version(archive(&second))
        .await;
    assert_eq!(
        stage(&archived.unwrap().into_inner()),
        PolicyStage::Archived
    );
    assert_eq!(
        candidate(&service).await.as_ref(),
        Some(&first.tensors_sha256)
    );
    client.promote(forced(&first)).await.unwrap();
    assert_eq!(candidate(&service).await, None);
    let refused = client
        .policies
        .archive_policy_version(archive(&first))
        .await;
    assert_eq!(reason(&refused.unwrap_err()), "IN_PRODUCTION");
    let refused = client
        .promote(to(&first, PolicyStage::Archived))
        .await
        .unwrap_err();
    assert_eq!(fields(&refused), ["stage"]);
}

#[tokio::test]
async fn a_repeated_call_gets_the_first_answer_and_a_stale_etag_is_refused() {
    let service = Service::start(&Settings::default()).await;
    let mut client = Client::of(&service);
    let version = client.upload("net", 1).await;
    let request = v1::PromotePolicyVersionRequest {
        request_id: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".to_owned(),
        etag: version.etag.clone(),
        ..to(&version, PolicyStage::Canary)
    };
    let first = client.promote(request.clone()).await.unwrap();
    // The etag is stale by now, and yet the answer is the first one's, over a restart too.
    assert_eq!(client.promote(request.clone()).await.unwrap(), first);
    let dir = service.stop().await;
    let service = Service::start_in(dir, &Settings::default()).await.unwrap();
    let mut client = Client::of(&service);
    assert_eq!(client.promote(request.clone()).await.unwrap(), first);
    let other = v1::PromotePolicyVersionRequest {
        stage: PolicyStage::Candidate.into(),
        ..request.clone()
    };
    let refused = client.promote(other).await.unwrap_err();
    assert_eq!(fields(&refused), ["request_id"]);
    let stale = v1::PromotePolicyVersionRequest {
        request_id: String::new(),
        ..request
    };
    let refused = client.promote(stale).await.unwrap_err();
    assert_eq!(
        (refused.code(), &reason(&refused)[..]),
        (Code::Aborted, "ETAG_MISMATCH")
    );
    let rehearsed = v1::PromotePolicyVersionRequest {
        validate_only: true,
        ..forced(&version)
    };
    let would_be = client.promote(rehearsed).await.unwrap();
    assert_eq!(stage(&promoted(&would_be)), PolicyStage::Production);
    assert_eq!(
        stage(&client.version(&version.name).await),
        PolicyStage::Canary
    );
    let request = GetOperationRequest {
        name: would_be.name,
    };
    let missing = client.operations.get_operation(request).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn production_is_behind_the_gate_and_what_it_refused_is_recorded() {
    let service = Service::start(&auto()).await;
    let mut client = Client::of(&service);
    let version = client.upload("net", 1).await;
    let request = to(&version, PolicyStage::Production);
    let operation = client.promote(request).await.unwrap();
    let watch = v1::WatchOperationRequest {
        name: operation.name.clone(),
        resume_token: String::new(),
    };
    let mut seen = client
        .watch
        .watch_operation(watch)
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(message) = seen.next().await {
        last = message.unwrap().operation;
    }
    let last = last.unwrap();
    assert_eq!(client.end(&operation.name).await, last);
    let Some(Ending::Error(status)) = &last.result else {
        panic!("the policy of this log never explored: {last:?}");
    };
    assert_eq!(status.code, i32::from(Code::FailedPrecondition));
    assert!(status.message.contains("is not promoted"), "{status:?}");
    let progress = v1::OperationProgress::decode(&last.metadata.unwrap().value[..]).unwrap();
    assert_eq!(progress.target, version.name);
    assert!(progress.end_time.is_some());
    let event = client.events().await.remove(0);
    assert_eq!(event.result(), v1::policy_event::Result::Refused);
    assert!(!event.objections.is_empty());
    assert_eq!(
        stage(&client.version(&version.name).await),
        PolicyStage::Stored
    );
    let behind_gate = v1::PromotePolicyVersionRequest {
        gate: Some(v1::PromotionGate::default()),
        ..to(&version, PolicyStage::Canary)
    };
    let operation_of_canary = client.promote(behind_gate).await.unwrap();
    let end = client.end(&operation_of_canary.name).await;
    assert!(
        matches!(end.result, Some(Ending::Error(_))),
        "a canary that was put behind it"
    );
    let event = client.events().await.remove(0);
    assert_eq!(
        (event.result(), event.stage()),
        (v1::policy_event::Result::Refused, PolicyStage::Canary)
    );
    let wrong = v1::PromotePolicyVersionRequest {
        gate: Some(v1::PromotionGate {
            margin: -1.0,
            replicates: 3,
            ..v1::PromotionGate::default()
        }),
        ..to(&version, PolicyStage::Production)
    };
    let refused = client.promote(wrong).await.unwrap_err();
    assert_eq!(fields(&refused), ["gate.margin", "gate.replicates"]);

    let request = ListOperationsRequest {
        filter: "done = true".to_owned(),
        ..ListOperationsRequest::default()
    };
    let listed = client.operations.list_operations(request).await.unwrap();
    let listed = listed.into_inner().operations;
    assert_eq!(listed.len(), 2);
    let name = operation.name.clone();
    let cancel = CancelOperationRequest { name: name.clone() };
    client.operations.cancel_operation(cancel).await.unwrap();
    let delete = DeleteOperationRequest { name: name.clone() };
    client.operations.delete_operation(delete).await.unwrap();
    let request = GetOperationRequest { name };
    let missing = client.operations.get_operation(request).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn what_was_promoted_is_served_after_a_restart_unless_the_configuration_ignores_it() {
    let service = Service::start(&Settings::default()).await;
    let mut client = Client::of(&service);
    let version = client.upload("net", 1).await;
    client.promote(forced(&version)).await.unwrap();
    let decides = async |service: &Service| {
        let request = v1::ListHostsRequest::default();
        let hosts = service.tuner().list_hosts(request).await.unwrap();
        hosts.into_inner().hosts.remove(0).policy.unwrap().name
    };
    let dir = service.stop().await;
    let service = Service::start_in(dir, &Settings::default()).await.unwrap();
    assert_eq!(decides(&service).await, "net");
    let mut client = Client::of(&service);
    let request = v1::RollbackProductionRequest::default();
    client.policies.rollback_production(request).await.unwrap();
    assert_eq!(decides(&service).await, "least_loaded");
    client.promote(forced(&version)).await.unwrap();
    let dir = service.stop().await;
    let ignoring = Settings {
        policy: "promoted = \"ignore\"\nbaseline = \"least_loaded\"".to_owned(),
        ..Settings::default()
    };
    let service = Service::start_in(dir, &ignoring).await.unwrap();
    assert_eq!(decides(&service).await, "least_loaded");
    let mut client = Client::of(&service);
    let other = client.upload("net", 2).await;
    let refused = client.promote(forced(&other)).await.unwrap_err();
    assert_eq!(reason(&refused), "PROMOTION_IGNORED");
}

#[tokio::test]
async fn over_a_loopback_address_nothing_is_changed_without_a_token() {
    let settings = Settings {
        on_tcp: true,
        ..Settings::default()
    };
    let service = Service::start(&settings).await;
    let mut client = Client::of(&service);
    let bytes = checkpoint(&spec(), 1);
    let sent = client.send(header("net", &bytes), &bytes).await;
    assert_eq!(reason(&sent.unwrap_err()), "CREDENTIALS_MISSING");
    let request = v1::RollbackProductionRequest::default();
    let refused = client.policies.rollback_production(request.clone()).await;
    assert_eq!(reason(&refused.unwrap_err()), "CREDENTIALS_MISSING");
    let listed = v1::ListPoliciesRequest::default();
    let listed = client.policies.list_policies(listed).await.unwrap();
    assert!(listed.into_inner().policies.is_empty());

    let operator = service.with_token(Role::Operator).connect().await.unwrap();
    let mut operator = PolicyServiceClient::new(operator);
    let messages = messages(header("net", &bytes), &bytes);
    let sent = operator
        .upload_policy_version(tokio_stream::iter(messages))
        .await;
    assert_eq!(sent.unwrap().into_inner().name, "policies/net/versions/1");
    let event = client.events().await.remove(0);
    assert!(event.actor.starts_with("token "), "{}", event.actor);
    let refused = operator.rollback_production(request).await;
    assert_eq!(reason(&refused.unwrap_err()), "ROLE_TOO_LOW");
}
