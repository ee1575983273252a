//! Calls that repeat one: the same request id with the same request has the same answer.

use std::collections::VecDeque;

use prost::Message;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::wire::status::Failure;

/// How a call is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Repeat {
    id: Uuid,
    /// Of the method and the request: a request may be large.
    digest: [u8; 32],
}

impl Repeat {
    /// How this call is known again; `None` if its `request_id` is empty. The request must encode in one way, so
    /// its maps must be ordered.
    ///
    /// # Errors
    /// A violation of `request_id` if it is not a UUID.
    pub(crate) fn of(
        method: &str,
        request_id: &str,
        request: &impl Message,
    ) -> Result<Option<Self>, Failure> {
        let digest = |id| {
            let mut hash = Sha256::new_with_prefix(method);
            hash.update([0]);
            hash.update(request.encode_to_vec());
            let digest = hash.finalize().into();
            Self { id, digest }
        };
        Ok(parse_request_id(request_id)?.map(digest))
    }

    /// The request's own id.
    pub(crate) fn id(&self) -> Uuid {
        self.id
    }

    /// The digest in hex, as it is kept on stable storage.
    pub(crate) fn digest(&self) -> String {
        self.digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// A request id off the wire; empty for none.
pub(crate) fn parse_request_id(text: &str) -> Result<Option<Uuid>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = text.parse();
    id.map(Some)
        .map_err(|_| Failure::field("request_id", format!("\"{text}\" must be a UUID")))
}

/// The last answers to calls that may be repeated.
#[derive(Debug)]
pub(crate) struct Remembered<T> {
    most: usize,
    answers: VecDeque<(Repeat, T)>,
}

impl<T: Clone> Remembered<T> {
    /// Remembers `most` answers.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            answers: VecDeque::new(),
        }
    }

    /// The answer that the call had before; `None` if it is new, or forgotten.
    ///
    /// # Errors
    /// A violation of `request_id` that was used for another request.
    pub(crate) fn find(&self, repeat: Option<Repeat>) -> Result<Option<T>, Failure> {
        let Some(repeat) = repeat else {
            return Ok(None);
        };
        let known = self.answers.iter().find(|(known, _)| known.id == repeat.id);
        match known {
            Some((known, _)) if *known != repeat => Err(used_otherwise(repeat)),
            known => Ok(known.map(|(_, answer)| answer.clone())),
        }
    }

    /// Notes an answer, and forgets the oldest beyond the bound.
    pub(crate) fn note(&mut self, repeat: Option<Repeat>, answer: impl FnOnce() -> T) {
        let Some(repeat) = repeat else {
            return;
        };
        if self.answers.len() == self.most {
            self.answers.pop_front();
        }
        self.answers.push_back((repeat, answer()));
    }
}

fn used_otherwise(repeat: Repeat) -> Failure {
    let problem = format!("{} was used for another request: make a new one", repeat.id);
    Failure::field("request_id", problem)
}

#[cfg(test)]
mod tests {
    use blkpilot_proto::v1::ResetRequest;

    use super::*;

    fn call(id: u128, method: &str, seed: u64) -> Option<Repeat> {
        let request = ResetRequest {
            seed: Some(seed),
            ..ResetRequest::default()
        };
        Repeat::of(method, &Uuid::from_u128(id).to_string(), &request).unwrap()
    }

    #[test]
    fn the_same_call_has_the_same_answer_and_another_one_is_refused() {
        let mut answers = Remembered::new(2);
        assert_eq!(answers.find(call(1, "Reset", 1)), Ok(None));
        answers.note(call(1, "Reset", 1), || "first");
        assert_eq!(answers.find(call(1, "Reset", 1)), Ok(Some("first")));
        for other in [call(1, "Reset", 2), call(1, "Step", 1)] {
            let refused = answers.find(other).unwrap_err();
            assert!(refused.message().contains("request_id"));
        }
    }

    #[test]
    fn no_more_answers_are_kept_than_the_bound_and_none_without_an_id() {
        let mut answers = Remembered::new(2);
        let nameless = Repeat::of("Reset", "", &ResetRequest::default()).unwrap();
        answers.note(nameless, || 0);
        for id in 1..=3 {
            answers.note(call(id, "Reset", 1), || id);
        }
        let known = [1, 2, 3].map(|id| answers.find(call(id, "Reset", 1)).unwrap());
        assert_eq!(known, [None, Some(2), Some(3)]);
    }

    #[test]
    fn what_is_no_uuid_is_refused() {
        let refused = Repeat::of("Reset", "1", &ResetRequest::default()).unwrap_err();
        assert!(refused.message().contains("UUID"));
    }
}
