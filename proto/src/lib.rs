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
mod tests {
    use prost::Message as _;
    use prost_types::{FileDescriptorProto, FileDescriptorSet};

    use super::v1::FILE_DESCRIPTOR_SET;

    fn our_files() -> Vec<FileDescriptorProto> {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        set.file
            .into_iter()
            .filter(|file| file.package() == "blkpilot.v1")
            .collect()
    }

    #[test]
    fn every_message_service_method_and_enum_is_explained() {
        for file in our_files() {
            let info = file.source_code_info.as_ref().unwrap();
            let is_explained = |path: &[i32]| {
                info.location
                    .iter()
                    .any(|l| l.path == path && l.leading_comments.is_some())
            };
            for (s, service) in file.service.iter().enumerate() {
                assert!(is_explained(&[6, s as i32]), "{}", service.name());
                for (m, method) in service.method.iter().enumerate() {
                    assert!(
                        is_explained(&[6, s as i32, 2, m as i32]),
                        "{}",
                        method.name()
                    );
                }
            }
            for (e, kind) in file.enum_type.iter().enumerate() {
                assert!(is_explained(&[5, e as i32]), "{}", kind.name());
            }
            let is_of_a_method =
                |name: &str| name.ends_with("Request") || name.ends_with("Response");
            for (m, message) in file.message_type.iter().enumerate() {
                assert!(
                    is_of_a_method(message.name()) || is_explained(&[4, m as i32]),
                    "{}",
                    message.name()
                );
            }
        }
    }

    #[test]
    fn the_first_value_of_an_enum_means_unspecified() {
        for file in our_files() {
            let nested = file
                .message_type
                .iter()
                .flat_map(|message| &message.enum_type);
            for kind in file.enum_type.iter().chain(nested) {
                assert!(
                    kind.value[0].name().ends_with("UNSPECIFIED"),
                    "{}",
                    kind.name()
                );
            }
        }
    }
}
