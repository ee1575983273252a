//! An upload: a header, then the bytes of a checkpoint in chunks, held in memory until they are known to be what
//! the header says.

use blkpilot_models::CheckpointBytes;
use blkpilot_proto::v1;
use blkpilot_proto::v1::upload_policy_version_request::Content;
use tonic::{Code, Status, Streaming};

use super::new_version::{NewVersion, description_problem, parent_problem};
use super::policy_wire::{policy_from_wire, selection_from_wire};
use crate::requests::Repeatable;
use crate::wire::status::Failure;

/// Greatest size of both files of a checkpoint that is uploaded.
const MOST_BYTES: u64 = 64 << 20;
/// Greatest size of one chunk.
const MOST_CHUNK_BYTES: usize = 1 << 20;

/// What a header says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    pub(crate) version: NewVersion,
    sha256: String,
    manifest_bytes: usize,
    tensors_bytes: usize,
}

impl Header {
    /// All that is wrong with the first message of an upload is named at once.
    pub(crate) fn from_wire(
        first: Option<v1::UploadPolicyVersionRequest>,
    ) -> Result<Self, Failure> {
        let Some(Content::Header(header)) = first.and_then(|first| first.content) else {
            return Err(Failure::field("header", "must be the first message"));
        };
        let wrong = problems(&header);
        let mut wrong = wrong.into_iter();
        if let Some((field, problem)) = wrong.next() {
            let first = Failure::field(field, problem);
            return Err(wrong.fold(first, |failure, (field, problem)| {
                failure.violating(field, problem)
            }));
        }
        let size = header.manifest_bytes.saturating_add(header.tensors_bytes);
        if size.unsigned_abs() > MOST_BYTES {
            let message = format!(
                "a checkpoint of {size} bytes is larger than {MOST_BYTES}, the most that is taken: `blkpilot-lab export` leaves out what only its learner needs"
            );
            return Err(Failure::new(
                Code::ResourceExhausted,
                "UPLOAD_TOO_LARGE",
                message,
            ));
        }
        let repeatable = Repeatable::of("UploadPolicyVersion", &header.request_id, &header)?;
        Ok(Self {
            version: NewVersion {
                policy: policy_from_wire("header.parent", &header.parent)?.to_owned(),
                selection: selection_from_wire("header.selection", header.selection)?,
                description: header.description,
                validate_only: header.validate_only,
                repeatable,
            },
            sha256: header.sha256,
            manifest_bytes: header.manifest_bytes as usize,
            tensors_bytes: header.tensors_bytes as usize,
        })
    }

    /// Takes the chunks.
    pub(crate) async fn receive(
        &self,
        stream: &mut Streaming<v1::UploadPolicyVersionRequest>,
    ) -> Result<CheckpointBytes, Status> {
        let wanted = self.manifest_bytes + self.tensors_bytes;
        let mut bytes = Vec::with_capacity(wanted);
        while let Some(message) = stream.message().await? {
            let Some(Content::Chunk(chunk)) = message.content else {
                return Err(
                    Failure::field("chunk", "must be in all messages but the first").into(),
                );
            };
            if chunk.len() > MOST_CHUNK_BYTES {
                let problem = format!(
                    "{} bytes are more than {MOST_CHUNK_BYTES}: send smaller ones",
                    chunk.len()
                );
                return Err(Failure::field("chunk", problem).into());
            }
            if bytes.len() + chunk.len() > wanted {
                let problem = format!("more than the {wanted} bytes that the header says");
                return Err(damaged(problem).into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(self.check(bytes)?)
    }

    fn check(&self, mut bytes: Vec<u8>) -> Result<CheckpointBytes, Failure> {
        let wanted = self.manifest_bytes + self.tensors_bytes;
        if bytes.len() < wanted {
            let problem = format!("{} of {wanted} bytes", bytes.len());
            return Err(damaged(problem));
        }
        let tensors = bytes.split_off(self.manifest_bytes);
        let bytes = CheckpointBytes {
            manifest: bytes,
            tensors,
        };
        let found = bytes.sha256();
        if found != self.sha256 {
            let problem = format!("SHA-256 is {found}, and {} was announced", self.sha256);
            return Err(damaged(problem).with("sha256", found));
        }
        Ok(bytes)
    }
}

fn problems(header: &v1::UploadHeader) -> Vec<(&'static str, String)> {
    let mut wrong = vec![];
    let parent = parent_problem(&header.parent);
    wrong.extend(parent.map(|problem| ("header.parent", problem)));
    let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    if header.sha256.len() != 64 || !header.sha256.chars().all(is_hex) {
        let problem = format!("\"{}\" must be 64 of 0-9 and a-f", header.sha256);
        wrong.push(("header.sha256", problem));
    }
    let sizes = [
        ("header.manifest_bytes", header.manifest_bytes),
        ("header.tensors_bytes", header.tensors_bytes),
    ];
    for (field, size) in sizes {
        if size < 1 {
            wrong.push((field, format!("{size} must be at least 1")));
        }
    }
    let description = description_problem(&header.description);
    wrong.extend(description.map(|problem| ("header.description", problem)));
    wrong
}

fn damaged(problem: String) -> Failure {
    let message =
        format!("what was uploaded is not what was announced: {problem}; upload it again");
    Failure::new(Code::InvalidArgument, "UPLOAD_DAMAGED", message).violating("chunk", problem)
}
