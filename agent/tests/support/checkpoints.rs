//! Checkpoints of simulated hosts, and how they are uploaded.

use blkpilot_env::features::kvm_host_spec;
use blkpilot_env::sim::presets;
use blkpilot_env::{EnvSpec, Rng};
use blkpilot_models::{Architecture, Checkpoint, CheckpointBytes};
use blkpilot_proto::v1;
use blkpilot_proto::v1::PolicySelection;
use blkpilot_proto::v1::upload_policy_version_request::Content;
use rand::SeedableRng as _;
use tempfile::TempDir;

pub(crate) fn spec() -> EnvSpec {
    blkpilot_agent::backend::simulated::spec(&presets::identical_disks(4, 4))
        .unwrap_or_else(|| kvm_host_spec(&[]))
}

pub(crate) fn checkpoint(spec: &EnvSpec, seed: u64) -> CheckpointBytes {
    let dir = TempDir::new().unwrap();
    let mut rng = Rng::seed_from_u64(seed);
    let policy = dir.path().join("policy");
    Checkpoint::untrained(spec, Architecture::default(), &mut rng)
        .save(&policy)
        .unwrap();
    CheckpointBytes::read(&policy).unwrap()
}

pub(crate) fn messages(
    header: v1::UploadHeader,
    bytes: &CheckpointBytes,
) -> Vec<v1::UploadPolicyVersionRequest> {
    let all = [&bytes.manifest[..], &bytes.tensors].concat();
    let chunks: Vec<Vec<u8>> = all.chunks(60_000).map(<[u8]>::to_vec).collect();
    let contents =
        std::iter::once(Content::Header(header)).chain(chunks.into_iter().map(Content::Chunk));
    contents
        .map(|content| v1::UploadPolicyVersionRequest {
            content: Some(content),
        })
        .collect()
}

pub(crate) fn header(policy: &str, bytes: &CheckpointBytes) -> v1::UploadHeader {
    v1::UploadHeader {
        parent: format!("policies/{policy}"),
        sha256: bytes.sha256(),
        manifest_bytes: bytes.manifest.len() as i64,
        tensors_bytes: bytes.tensors.len() as i64,
        selection: PolicySelection::Sample.into(),
        ..v1::UploadHeader::default()
    }
}
