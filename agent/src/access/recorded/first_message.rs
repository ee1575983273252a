//! The first message of a request, copied as its frames go by, and what of it belongs in a record.

use std::sync::LazyLock;

use blkpilot_proto::v1::FILE_DESCRIPTOR_SET;
use bytes::{Bytes, BytesMut};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use crate::access::methods::Method;

/// Of a message in a gRPC body: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;
/// Longest text of a request that goes into a record, bytes. The rest is cut off.
const LONGEST_TEXT: usize = 512;

#[derive(Debug, Default)]
pub(super) struct FirstMessage {
    bytes: BytesMut,
    most_bytes: usize,
}

/// What a record says of a request; empty what it does not say, or is not known of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Asked {
    pub(super) resource: String,
    pub(super) request_id: String,
    pub(super) validate_only: bool,
}

impl FirstMessage {
    pub(super) fn set_bound(&mut self, most_bytes: usize) {
        self.most_bytes = most_bytes;
    }

    /// Takes of the next bytes what belongs to the message. Of one that is too long only the head is kept; the
    /// service refuses it.
    pub(super) fn push(&mut self, data: &Bytes) {
        let mut data = &data[..];
        if self.bytes.len() < HEAD_BYTES {
            let (head, rest) = data.split_at(data.len().min(HEAD_BYTES - self.bytes.len()));
            self.bytes.extend_from_slice(head);
            data = rest;
        }
        let missing = self
            .length()
            .map_or(0, |length| HEAD_BYTES + length - self.bytes.len());
        self.bytes
            .extend_from_slice(&data[..data.len().min(missing)]);
    }

    /// Of the message, if its head is there, it is not compressed, and it is not too long.
    fn length(&self) -> Option<usize> {
        let head: &[u8; HEAD_BYTES] = self.bytes.first_chunk()?;
        let [compressed, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        (compressed == 0 && length <= self.most_bytes).then_some(length)
    }

    /// What a record says of it.
    pub(super) fn asked(&self, method: &Method, named_by: &[&str]) -> Asked {
        self.message(method).map_or_else(Asked::default, |message| {
            let texts = named_by.iter().map(|path| text(&message, path));
            let resource = texts.into_iter().find(|text| !text.is_empty());
            let message = head(message);
            let flag = message.get_field_by_name("validate_only");
            Asked {
                resource: resource.unwrap_or_default(),
                request_id: text(&message, "request_id"),
                validate_only: flag.and_then(|flag| flag.as_bool()).unwrap_or(false),
            }
        })
    }

    fn message(&self, method: &Method) -> Option<DynamicMessage> {
        let length = self.length()?;
        let bytes = self.bytes.get(HEAD_BYTES..HEAD_BYTES + length)?;
        DynamicMessage::decode(input(method.path)?, bytes).ok()
    }
}

fn input(path: &str) -> Option<MessageDescriptor> {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET)
            .expect("the build has checked the descriptor set")
    });
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let service = POOL.get_service_by_name(service)?;
    let method = service.methods().find(|known| known.name() == method)?;
    Some(method.input())
}

/// The part of a message that says what is asked: of a stream that begins with a header, that.
fn head(message: DynamicMessage) -> DynamicMessage {
    let header = message.get_field_by_name("header");
    let header = header.and_then(|header| header.as_message().cloned());
    header.unwrap_or(message)
}

/// A text of a message, by its path; empty if it has none.
fn text(message: &DynamicMessage, path: &str) -> String {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let Some(value) = message.get_field_by_name(first) else {
        return String::new();
    };
    if let Some(inner) = value.as_message().filter(|_| !rest.is_empty()) {
        return text(inner, rest);
    }
    cut(value.as_str().unwrap_or_default()).to_owned()
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use blkpilot_proto::v1;

    use super::*;
    use crate::access::methods::{Effect, find};

    fn framed(message: &impl prost::Message) -> Vec<u8> {
        let body = message.encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&(body.len() as u32).to_be_bytes());
        framed.extend_from_slice(&body);
        framed
    }

    fn asked(path: &str, bytes: &[u8], chunk: usize, most_bytes: usize) -> Asked {
        let method = find(path).unwrap();
        let Effect::Changes(named_by) = method.effect else {
            panic!("{path} changes nothing");
        };
        let mut first = FirstMessage::default();
        first.set_bound(most_bytes);
        for part in bytes.chunks(chunk) {
            first.push(&Bytes::copy_from_slice(part));
        }
        assert!(first.bytes.len() <= HEAD_BYTES + most_bytes);
        first.asked(method, named_by)
    }

    const ROLLBACK: &str = "/blkpilot.v1.TunerService/Rollback";

    #[test]
    fn what_a_request_asks_for_is_seen_however_its_frames_are_cut() {
        let request = v1::RollbackRequest {
            name: "hosts/local/guests/db".to_owned(),
            validate_only: true,
            request_id: "r-1".to_owned(),
        };
        let mut bytes = framed(&request);
        bytes.extend(framed(&v1::RollbackRequest::default()));
        for chunk in 1..bytes.len() {
            let seen = asked(ROLLBACK, &bytes, chunk, 1 << 20);
            let wanted = Asked {
                resource: request.name.clone(),
                request_id: "r-1".to_owned(),
                validate_only: true,
            };
            assert_eq!(seen, wanted, "in chunks of {chunk}");
        }
    }

    #[test]
    fn of_what_is_too_long_or_torn_or_rubbish_nothing_is_said() {
        let request = v1::RollbackRequest {
            name: "x".repeat(100),
            ..v1::RollbackRequest::default()
        };
        let bytes = framed(&request);
        assert_eq!(asked(ROLLBACK, &bytes, 7, 50), Asked::default());
        let torn = &bytes[..bytes.len() - 1];
        assert_eq!(asked(ROLLBACK, torn, 7, 1000), Asked::default());
        assert_eq!(
            asked(ROLLBACK, &[0, 0, 0, 0, 2, 255, 255], 7, 1000),
            Asked::default()
        );
        assert_eq!(asked(ROLLBACK, &[1, 0, 0, 0, 0], 7, 1000), Asked::default());
        let long = v1::RollbackRequest {
            name: "é".repeat(400),
            ..v1::RollbackRequest::default()
        };
        assert_eq!(
            asked(ROLLBACK, &framed(&long), 7, 1000).resource.len(),
            LONGEST_TEXT
        );
    }

    #[test]
    fn of_an_upload_the_header_says_what_is_asked() {
        use v1::upload_policy_version_request::Content;
        let header = v1::UploadHeader {
            parent: "policies/default".to_owned(),
            validate_only: true,
            request_id: "r-2".to_owned(),
            ..v1::UploadHeader::default()
        };
        let request = v1::UploadPolicyVersionRequest {
            content: Some(Content::Header(header)),
        };
        let path = "/blkpilot.v1.PolicyService/UploadPolicyVersion";
        let wanted = Asked {
            resource: "policies/default".to_owned(),
            request_id: "r-2".to_owned(),
            validate_only: true,
        };
        assert_eq!(asked(path, &framed(&request), 9, 1000), wanted);
    }

    #[test]
    fn what_is_asked_of_an_operation_is_seen() {
        let request = blkpilot_proto::longrunning::CancelOperationRequest {
            name: "operations/1".to_owned(),
        };
        let path = "/google.longrunning.Operations/CancelOperation";
        let seen = asked(path, &framed(&request), 9, 1000);
        assert_eq!(seen.resource, "operations/1");
    }

    #[test]
    fn a_host_that_is_taken_over_as_an_environment_is_named() {
        use v1::environment::Kind;
        let managed = v1::ManagedHost {
            host: "hosts/local".to_owned(),
            ..v1::ManagedHost::default()
        };
        let environment = v1::Environment {
            kind: Some(Kind::ManagedHost(managed)),
            ..v1::Environment::default()
        };
        let mut request = v1::CreateEnvironmentRequest {
            environment: Some(environment),
            environment_id: "mine".to_owned(),
            ..v1::CreateEnvironmentRequest::default()
        };
        let path = "/blkpilot.v1.EnvironmentService/CreateEnvironment";
        assert_eq!(
            asked(path, &framed(&request), 9, 1000).resource,
            "hosts/local"
        );
        request.environment = None;
        assert_eq!(asked(path, &framed(&request), 9, 1000).resource, "mine");
    }
}
