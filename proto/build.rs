//! Compiles the .proto files without protoc.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const OPERATIONS: &str = "google/longrunning/operations.proto";

const FILES: [&str; 11] = [
    "blkpilot/v1/spec.proto",
    "blkpilot/v1/observation.proto",
    "blkpilot/v1/host.proto",
    "blkpilot/v1/decision.proto",
    "blkpilot/v1/environment_service.proto",
    "blkpilot/v1/tuner_service.proto",
    "blkpilot/v1/operation_service.proto",
    "blkpilot/v1/policy_service.proto",
    "blkpilot/v1/evaluation_service.proto",
    "blkpilot/v1/training_service.proto",
    OPERATIONS,
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("blkpilot_v1.bin"), descriptors.encode_to_vec())?;
    // Tensors are slices of one buffer, and what is compared by its bytes has them in one order.
    tonic_prost_build::configure()
        .bytes(".blkpilot.v1.PackedObservations")
        .bytes(".blkpilot.v1.PackedOutcomes")
        .bytes(".blkpilot.v1.RolloutRequest")
        .btree_map(".blkpilot.v1.ResetRequest.options")
        .btree_map(".blkpilot.v1.RolloutReset.options")
        .btree_map(".blkpilot.v1.TrainingSource.scenario_files")
        .btree_map(".blkpilot.v1.TrainingProgress.figures")
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .extern_path(".google.longrunning", "crate::longrunning")
        .compile_fds(descriptors)?;
    // Google's files by themselves, so that ours can name their module; last, since it is they that count.
    tonic_prost_build::configure()
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        // Their comments hold examples that rustdoc would take for Rust.
        .disable_comments(["."])
        .compile_fds(protox::compile([OPERATIONS], ["proto"])?)?;
    Ok(())
}
