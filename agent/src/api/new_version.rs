//! A checkpoint on its way into the policy store, whoever brings it.

use blkpilot_models::{CheckpointBytes, CheckpointError, Selection};
use blkpilot_proto::v1;
use tonic::Code;

use super::policy_wire::version_to_wire;
use crate::config::is_resource_id;
use crate::decision::now_us;
use crate::policies::deployment::Deployment;
use crate::policies::store::{Asked, Change, Kept};
use crate::requests::Repeatable;
use crate::wire::status::Failure;

/// Characters of a description.
const MOST_DESCRIPTION: usize = 1000;

/// What a checkpoint is to be a version of, and what is said of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NewVersion {
    pub(crate) policy: String,
    pub(crate) selection: Selection,
    pub(crate) description: String,
    pub(crate) validate_only: bool,
    pub(crate) repeatable: Option<Repeatable>,
}

/// What is wrong with the name of a policy that need not be there yet.
pub(crate) fn parent_problem(parent: &str) -> Option<String> {
    let is_name = parent.strip_prefix("policies/").is_some_and(is_resource_id);
    (!is_name).then(|| {
        format!(
            "\"{parent}\" must be policies/ and 1 to 63 of a-z, 0-9 and -, starting with a letter"
        )
    })
}

/// What is wrong with what is said of a version.
pub(crate) fn description_problem(description: &str) -> Option<String> {
    let length = description.chars().count();
    (length > MOST_DESCRIPTION)
        .then(|| format!("{length} characters are more than {MOST_DESCRIPTION}"))
}

impl NewVersion {
    /// Stores a checkpoint as this version, or only says what would come of it. What the policy has already is returned
    /// as it is.
    ///
    /// # Errors
    /// `CHECKPOINT_REFUSED`, `SPEC_MISMATCH`, `STORE_FULL`; a violation of `request_id`.
    pub(crate) fn store(
        &self,
        deployment: &Deployment,
        bytes: &CheckpointBytes,
        actor: String,
    ) -> Result<v1::PolicyVersion, Failure> {
        let store = deployment.store();
        let examined = store.examine(bytes)?;
        refuse_misfit(examined.checkpoint.check_fits(deployment.spec()))?;
        let asked = Asked {
            actor,
            at_us: now_us(),
            reason: String::new(),
        };
        let upload = |kept: &Kept| {
            let change = |change: &Change<'_>| {
                change.once(self.repeatable.as_ref(), || {
                    let (policy, described) = (&self.policy, &self.description);
                    let version = change.upload(policy, kept, self.selection, described, &asked)?;
                    let is_serving = deployment.serves(&version.name);
                    Ok(version_to_wire(&version, is_serving))
                })
            };
            if self.validate_only {
                store.rehearse(change)
            } else {
                store.change(change)
            }
        };
        if self.validate_only {
            return Ok(upload(&examined)?);
        }
        drop(examined);
        Ok(upload(&store.keep(bytes)?)?)
    }
}

/// Says in what a checkpoint differs from what the host needs.
pub(crate) fn refuse_misfit(fits: Result<(), CheckpointError>) -> Result<(), Failure> {
    fits.map_err(|error| {
        let failure = Failure::new(Code::FailedPrecondition, "SPEC_MISMATCH", error.to_string());
        match &error {
            CheckpointError::DoesNotFit { difference, .. } => {
                failure.with("difference", difference)
            }
            _ => failure,
        }
    })
}
