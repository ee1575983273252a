//! Calls that are good, in an order in which each is: what others are made from by changes reaches further so.

use blkpilot_proto::v1;
use prost::Message;
use sha2::{Digest as _, Sha256};
use v1::environment::Kind;
use v1::rollout_request::Request as Asked;
use v1::upload_policy_version_request::Content;

use super::corpus::Case;
use super::words::{CART, CARTS, HOST};

const ENVIRONMENTS: &str = "/blkpilot.v1.EnvironmentService";
const TUNER: &str = "/blkpilot.v1.TunerService";
const POLICIES: &str = "/blkpilot.v1.PolicyService";
const MANIFEST: &[u8] = include_bytes!("../../configs/policies/default/manifest.json");
const TENSORS: &[u8] = include_bytes!("../../configs/policies/default/policy.safetensors");
/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;

/// Each is answered OK where the one before was.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = environments();
    cases.extend(tuner());
    cases.extend(policies());
    cases
}

fn case(path: String, messages: &[impl Message]) -> Case {
    let messages = messages.iter().map(Message::encode_to_vec).collect();
    Case { path, messages }
}

fn name(id: &str) -> String {
    format!("environments/{id}")
}

fn environments() -> Vec<Case> {
    let reset = |id: &str| v1::ResetRequest {
        name: name(id),
        seed: Some(1),
        ..v1::ResetRequest::default()
    };
    let push = |rows| v1::JointAction {
        disks: Some(v1::LevelTable {
            rows,
            heads: 1,
            levels: vec![1],
        }),
        ..v1::JointAction::default()
    };
    let step = v1::StepRequest {
        name: name(CART),
        action: Some(push(1)),
        ..v1::StepRequest::default()
    };
    let steps = v1::StepRequest {
        name: name(CARTS),
        actions: vec![push(1); 4],
        ..v1::StepRequest::default()
    };
    let fork = v1::ForkEnvironmentRequest {
        name: name(HOST),
        ..v1::ForkEnvironmentRequest::default()
    };
    let toml = include_str!("../../../env/scenarios/mixed.toml").to_owned();
    let create = v1::CreateEnvironmentRequest {
        environment: Some(v1::Environment {
            kind: Some(Kind::SimHost(v1::SimHost {
                scenario: Some(v1::sim_host::Scenario::ScenarioToml(toml)),
            })),
            ..v1::Environment::default()
        }),
        validate_only: true,
        ..v1::CreateEnvironmentRequest::default()
    };
    let of = |method: &str| format!("{ENVIRONMENTS}/{method}");
    vec![
        case(of("Reset"), &[reset(CART)]),
        case(of("Reset"), &[reset(CARTS)]),
        case(of("Reset"), &[reset(HOST)]),
        case(of("Step"), &[step]),
        case(of("Step"), &[steps]),
        case(of("ForkEnvironment"), &[fork]),
        case(of("CreateEnvironment"), &[create]),
        case(of("Rollout"), &rollout()),
    ]
}

fn rollout() -> Vec<v1::RolloutRequest> {
    let open = v1::RolloutOpen {
        name: name(CARTS),
        view: v1::RolloutView::Full.into(),
    };
    let masked = v1::RolloutReset {
        seeds: vec![1, 2, 3, 4],
        mask: vec![true, true, false, true],
        ..v1::RolloutReset::default()
    };
    let requests = [
        Asked::Open(open),
        Asked::Reset(v1::RolloutReset::default()),
        Asked::Actions(vec![1, 0, 0, 0, 1, 0, 0, 0].into()),
        Asked::Reset(masked),
        Asked::Actions(vec![0; 8].into()),
    ];
    let request = |request| v1::RolloutRequest {
        request: Some(request),
    };
    requests.map(request).to_vec()
}

fn tuner() -> Vec<Case> {
    let choice = v1::LevelChoice {
        name: "hosts/local/guests/backup/disks/vda".to_owned(),
        head: "cache".to_owned(),
        level: "buffered".to_owned(),
    };
    let levels = v1::ExplicitLevels {
        choices: vec![choice],
    };
    let apply = v1::ApplyRequest {
        host: "hosts/local".to_owned(),
        action: Some(v1::apply_request::Action::Levels(levels)),
        validate_only: true,
        ..v1::ApplyRequest::default()
    };
    let rollback = v1::RollbackRequest {
        name: "hosts/local/guests/-".to_owned(),
        ..v1::RollbackRequest::default()
    };
    let weights = v1::SetRewardWeightsRequest {
        name: "hosts/local".to_owned(),
        validate_only: true,
        ..v1::SetRewardWeightsRequest::default()
    };
    let of = |method: &str| format!("{TUNER}/{method}");
    vec![
        case(of("Apply"), &[apply]),
        case(of("Rollback"), &[rollback]),
        case(of("SetRewardWeights"), &[weights]),
    ]
}

fn policies() -> Vec<Case> {
    let all = [MANIFEST, TENSORS].concat();
    let digest = Sha256::digest(&all);
    let header = v1::UploadHeader {
        parent: "policies/default".to_owned(),
        sha256: super::corpus::hex(&digest),
        manifest_bytes: MANIFEST.len() as i64,
        tensors_bytes: TENSORS.len() as i64,
        ..v1::UploadHeader::default()
    };
    let chunks = all
        .chunks(CHUNK)
        .map(|chunk| Content::Chunk(chunk.to_vec()));
    let contents = std::iter::once(Content::Header(header)).chain(chunks);
    let message = |content| v1::UploadPolicyVersionRequest {
        content: Some(content),
    };
    let upload: Vec<_> = contents.map(message).collect();
    let get = v1::GetPolicyVersionRequest {
        name: "policies/default/versions/1".to_owned(),
    };
    let promote = v1::PromotePolicyVersionRequest {
        name: "policies/default/versions/1".to_owned(),
        stage: v1::PolicyStage::Candidate.into(),
        validate_only: true,
        ..v1::PromotePolicyVersionRequest::default()
    };
    let of = |method: &str| format!("{POLICIES}/{method}");
    vec![
        case(of("UploadPolicyVersion"), &upload),
        case(of("GetPolicyVersion"), &[get]),
        case(of("PromotePolicyVersion"), &[promote]),
    ]
}
