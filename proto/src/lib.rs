//! The gRPC interface of blkpilot: the types, clients and servers of the package `blkpilot.v1`.
//!
//! The .proto files under `proto/` are the reference; the comments here are theirs. This crate
//! knows nothing of the rest of the workspace: `blkpilot-agent` converts at the edge.

/// Package `blkpilot.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all, unused_qualifications, reason = "generated")]
    tonic::include_proto!("blkpilot.v1");

    /// The package as an encoded `google.protobuf.FileDescriptorSet`, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("blkpilot_v1");
}

/// Package `google.longrunning`: operations that outlast a call.
pub mod longrunning {
    #![allow(missing_docs, clippy::all, unused_qualifications, reason = "generated")]
    tonic::include_proto!("google.longrunning");
}

/// `ErrorInfo.domain` of every error the service returns.
pub const ERROR_DOMAIN: &str = "blkpilot";

#[cfg(test)]
mod tests;
