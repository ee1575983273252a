//! Compiles the .proto files without protoc.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 6] = [
    "blkpilot/v1/spec.proto",
    "blkpilot/v1/observation.proto",
    "blkpilot/v1/host.proto",
    "blkpilot/v1/decision.proto",
    "blkpilot/v1/environment_service.proto",
    "blkpilot/v1/tuner_service.proto",
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
        .compile_fds(descriptors)?;
    Ok(())
}
