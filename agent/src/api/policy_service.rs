//! `PolicyService` over the policy store: handlers check, change the store, and let the deployment follow.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blkpilot_evaluate::{Admission, Force, gate};
use blkpilot_proto::longrunning::Operation;
use blkpilot_proto::v1;
use blkpilot_proto::v1::policy_service_server::PolicyService;
use prost_types::Any;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status, Streaming};

use super::new_version::refuse_misfit;
use super::paging;
use super::policy_upload::Header;
use super::policy_wire::{
    Filter, Gate, event_to_wire, family_to_wire, goal_from_wire, policy_from_wire,
    version_name_from_wire, version_to_wire,
};
use crate::access::actor::actor;
use crate::config::Promotion;
use crate::decision::now_us;
use crate::operations::{Operations, Pending, Work, any};
use crate::policies::deployment::{Deployment, blocking};
use crate::policies::judging::{Judged, Question, judge, stored};
use crate::policies::loading;
use crate::policies::store::{Asked, Change, Listed, Stage, Version, VersionName};
use crate::requests::Repeatable;
use crate::wire::force_reason_from_wire;
use crate::wire::status::Failure;

/// Uploads at once.
const MOST_UPLOADS: usize = 2;
/// After which a refused upload is worth another try.
const RETRY: Duration = Duration::from_secs(5);

/// `PolicyService`.
#[derive(Debug, Clone)]
pub struct Service {
    deployment: Arc<Deployment>,
    operations: Operations,
    uploads: Arc<Semaphore>,
}

/// A promotion that was checked.
struct Goal {
    name: VersionName,
    stage: Stage,
    etag: String,
    asked: Asked,
    is_forced: bool,
    /// Whether a canary has to pass it, too.
    is_gate_given: bool,
    gate: Gate,
    repeatable: Option<Repeatable>,
}

impl Goal {
    fn is_gated(&self) -> bool {
        let has_gate = match self.stage {
            Stage::Production => true,
            Stage::Canary => self.is_gate_given,
            _ => false,
        };
        has_gate && !self.is_forced
    }
}

/// A promotion that has begun.
struct Begun {
    operation: Operation,
    /// What is to be judged first; `None` where all is done.
    left: Option<(Pending, Goal)>,
}

impl Begun {
    fn done(operation: Operation) -> Self {
        Self {
            operation,
            left: None,
        }
    }
}

impl Service {
    /// A service over a deployment, whose long work is done by these operations.
    #[must_use]
    pub fn new(deployment: Arc<Deployment>, operations: Operations) -> Self {
        Self {
            deployment,
            operations,
            uploads: Arc::new(Semaphore::new(MOST_UPLOADS)),
        }
    }

    fn to_wire(&self, version: &Version) -> v1::PolicyVersion {
        version_to_wire(version, self.deployment.serves(&version.name))
    }

    /// Lets the owner follow. What was changed is changed all the same: it is tried again every few seconds,
    /// and `is_serving` says whether it was.
    async fn follow(&self) {
        if let Err(failure) = self.deployment.follow().await {
            let error = failure.message();
            tracing::error!(error, "what the policy store says is not served");
        }
    }

    async fn upload(
        &self,
        mut stream: Streaming<v1::UploadPolicyVersionRequest>,
        actor: String,
    ) -> Result<v1::PolicyVersion, Status> {
        let _turn = Arc::clone(&self.uploads)
            .try_acquire_owned()
            .map_err(|_| too_many_uploads())?;
        let header = Header::from_wire(stream.message().await?)?;
        let bytes = header.receive(&mut stream).await?;
        let deployment = Arc::clone(&self.deployment);
        let store = move || header.version.store(&deployment, &bytes, actor);
        Ok(blocking(store).await??)
    }

    fn checked(
        &self,
        request: &v1::PromotePolicyVersionRequest,
        actor: String,
    ) -> Result<Goal, Failure> {
        let reason = force_reason_from_wire("force_reason", &request.force_reason)?;
        let now = now_us();
        Ok(Goal {
            name: version_name_from_wire("name", &request.name)?,
            stage: goal_from_wire("stage", request.stage)?,
            etag: request.etag.clone(),
            is_forced: reason.is_some(),
            asked: asked(actor, reason.unwrap_or_default()),
            is_gate_given: request.gate.is_some(),
            gate: Gate::from_wire("gate", request.gate, now, vec![])?,
            repeatable: Repeatable::of("PromotePolicyVersion", &request.request_id, request)?,
        })
    }

    /// Whether a version can be promoted, but for the gate; nothing is changed.
    fn examine(&self, promotion: &Goal) -> Result<Version, Failure> {
        let store = self.deployment.store();
        let version = store.version(&promotion.name)?;
        version.check_etag(&promotion.etag)?;
        if promotion.stage == Stage::Production && self.deployment.promotion() == Promotion::Ignore
        {
            let message = "the service serves its configuration's policy whatever is promoted: take out policy.promoted = \"ignore\"";
            return Err(Failure::new(
                Code::FailedPrecondition,
                "PROMOTION_IGNORED",
                message,
            ));
        }
        refuse_misfit(
            store
                .checkpoint(&version)?
                .check_fits(self.deployment.spec()),
        )?;
        loading::stored(store, &version, self.deployment.spec())?;
        Ok(version)
    }

    async fn promote(
        &self,
        request: v1::PromotePolicyVersionRequest,
        actor: String,
    ) -> Result<Operation, Failure> {
        let promotion = self.checked(&request, actor)?;
        let this = self.clone();
        let validate_only = request.validate_only;
        let begun = blocking(move || this.begin_promotion(promotion, validate_only)).await??;
        let Begun { operation, left } = begun;
        match left {
            Some((pending, promotion)) => {
                let (this, handle) = (self.clone(), Handle::current());
                self.operations.begin(pending, move |work| {
                    this.promote_through_gate(&promotion, work, &handle)
                });
            }
            None if !validate_only => self.follow().await,
            None => {}
        }
        // A repeated call may find it further than the first did.
        let operations = self.operations.clone();
        blocking(move || operations.get(&operation.name).unwrap_or(operation)).await
    }

    fn begin_promotion(&self, promotion: Goal, validate_only: bool) -> Result<Begun, Failure> {
        if !self.is_repeated(&promotion)? {
            let version = self.examine(&promotion)?;
            let is_gated = promotion.is_gated() && version.stage != promotion.stage;
            if is_gated && validate_only {
                let version = any("PolicyVersion", &self.to_wire(&version));
                let target = promotion.name.to_string();
                return Ok(Begun::done(Operations::done_at_once(&target, version)));
            }
            if is_gated {
                return self.enter_gated(promotion);
            }
        }
        let operation = self.promote_at_once(&promotion, validate_only)?;
        Ok(Begun::done(operation))
    }

    /// Whether the same call has been answered, whatever has become of the version since.
    fn is_repeated(&self, promotion: &Goal) -> Result<bool, Failure> {
        let Some(repeatable) = &promotion.repeatable else {
            return Ok(false);
        };
        let database = self.deployment.store().database();
        Ok(database
            .read(|connection| repeatable.is_known(connection).map_err(database.failed()))?)
    }

    fn promote_at_once(&self, promotion: &Goal, validate_only: bool) -> Result<Operation, Failure> {
        let store = self.deployment.store();
        let Goal {
            name,
            stage,
            asked,
            etag,
            ..
        } = promotion;
        let admission = promotion.is_forced.then(|| Admission::Forced {
            reason: asked.reason.clone(),
            objections: vec![NOT_EVALUATED.to_owned()],
        });
        let has_gate = *stage == Stage::Production || promotion.is_gate_given;
        let gate = admission.filter(|_| has_gate);
        let change = |change: &Change<'_>| {
            change.once(promotion.repeatable.as_ref(), || {
                change.version(name)?.check_etag(etag)?;
                let version = change.promote(name, *stage, asked, gate.map(|gate| (gate, None)))?;
                let response = any("PolicyVersion", &self.to_wire(&version));
                let operation = Operations::done_at_once(&name.to_string(), response);
                change.enter_done(&operation)?;
                Ok(operation)
            })
        };
        Ok(if validate_only {
            store.rehearse(change)?
        } else {
            store.change(change)?
        })
    }

    fn enter_gated(&self, promotion: Goal) -> Result<Begun, Failure> {
        let target = promotion.name.to_string();
        let repeatable = promotion.repeatable.as_ref();
        let entered = self.deployment.enter(&self.operations, &target, repeatable);
        let (operation, pending) = entered?;
        let left = pending.map(|pending| (pending, promotion));
        Ok(Begun { operation, left })
    }

    /// The work of a promotion through the gate: judged on the service's own decisions, then let through or not.
    fn promote_through_gate(
        &self,
        promotion: &Goal,
        work: &Work,
        handle: &Handle,
    ) -> Result<Any, Failure> {
        let store = self.deployment.store();
        let version = store.version(&promotion.name)?;
        let judged = self.judge(&version, &promotion.gate, work);
        let of = judged
            .as_ref()
            .map(|judged| (&judged.evaluation, &judged.verdict))
            .map_err(|why| &why[..]);
        let admission = gate(of, &promotion.gate.rule, now_us(), None::<&Force>);
        let verdict = judged
            .as_ref()
            .ok()
            .map(|judged| judged.verdict.text.clone());
        if work.is_to_end().load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Failure::new(
                Code::Cancelled,
                "OPERATION_CANCELLED",
                "it was cancelled",
            ));
        }
        if let Admission::Refused { objections } = &admission {
            let failure = refused(&promotion.name, objections);
            store.change(|change| {
                change.refuse(
                    &promotion.name,
                    promotion.stage,
                    &promotion.asked,
                    admission.clone(),
                    verdict,
                )
            })?;
            return Err(failure);
        }
        let gate = Some((admission, verdict));
        let promoted = store.change(|change| {
            // Nobody has changed it since it was judged.
            change
                .version(&promotion.name)?
                .check_etag(&version.etag())?;
            change.promote(&promotion.name, promotion.stage, &promotion.asked, gate)
        })?;
        work.tell("lets it decide", 1.0);
        handle.block_on(self.follow());
        Ok(any("PolicyVersion", &self.to_wire(&promoted)))
    }

    fn judge(&self, version: &Version, gate: &Gate, work: &Work) -> Result<Judged, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let (policy, gamma) =
            stored(self.deployment.store(), version).map_err(|error| text(&error))?;
        let mut options = gate.options.clone();
        options.gamma = gamma.unwrap_or(options.gamma);
        let log = self.deployment.log();
        let question = Question {
            log: Path::new(&log),
            policy: &policy,
            against: None,
            options: &options,
            rule: &gate.verdict,
        };
        judge(question, work).map_err(|error| text(&error))
    }

    async fn rollback(
        &self,
        request: v1::RollbackProductionRequest,
        actor: String,
    ) -> Result<v1::RollbackProductionResponse, Failure> {
        let repeatable = Repeatable::of("RollbackProduction", &request.request_id, &request)?;
        let (this, validate_only) = (self.clone(), request.validate_only);
        let answer = blocking(move || {
            let asked = asked(actor, request.reason);
            let store = this.deployment.store();
            let change = |change: &Change<'_>| {
                change.once(repeatable.as_ref(), || {
                    let done = change.rollback(&request.etag, &asked)?;
                    Ok(v1::RollbackProductionResponse {
                        production: done.production.as_ref().map(|it| this.to_wire(it)),
                        withdrawn: Some(this.to_wire(&done.withdrawn)),
                    })
                })
            };
            if validate_only {
                store.rehearse(change)
            } else {
                store.change(change)
            }
        });
        let answer = answer.await??;
        if !validate_only {
            self.follow().await;
        }
        Ok(answer)
    }

    async fn archive(
        &self,
        request: v1::ArchivePolicyVersionRequest,
        actor: String,
    ) -> Result<v1::PolicyVersion, Failure> {
        let name = version_name_from_wire("name", &request.name)?;
        let repeatable = Repeatable::of("ArchivePolicyVersion", &request.request_id, &request)?;
        let (this, validate_only) = (self.clone(), request.validate_only);
        let answer = blocking(move || {
            let asked = asked(actor, String::new());
            let store = this.deployment.store();
            let change = |change: &Change<'_>| {
                change.once(repeatable.as_ref(), || {
                    change.version(&name)?.check_etag(&request.etag)?;
                    Ok(this.to_wire(&change.archive(&name, &asked)?))
                })
            };
            if validate_only {
                store.rehearse(change)
            } else {
                store.change(change)
            }
        });
        let answer = answer.await??;
        if !validate_only {
            self.follow().await;
        }
        Ok(answer)
    }

    async fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let this = self.clone();
        Ok(Response::new(blocking(move || act(&this)).await??))
    }

    fn list_versions(
        &self,
        request: &v1::ListPolicyVersionsRequest,
    ) -> Result<v1::ListPolicyVersionsResponse, Failure> {
        let filter = Filter::from_wire("filter", &request.filter)?;
        let of = match policy_from_wire("parent", &request.parent)? {
            "-" => Listed::All,
            policy => Listed::Of(policy),
        };
        let versions = self.deployment.store().versions(of)?;
        let versions = versions
            .into_iter()
            .filter(|version| filter.admits(version.stage));
        let (page, next_page_token) = paging::page_behind(
            versions,
            |version| version.name.to_string(),
            request.page_size,
            &request.page_token,
        )?;
        Ok(v1::ListPolicyVersionsResponse {
            versions: page.iter().map(|version| self.to_wire(version)).collect(),
            next_page_token,
        })
    }

    fn list_events(
        &self,
        request: &v1::ListPolicyEventsRequest,
    ) -> Result<v1::ListPolicyEventsResponse, Failure> {
        let events = self.deployment.store().events()?.into_iter().rev();
        let (page, next_page_token) = paging::page_behind(
            events,
            |event| event.id.clone(),
            request.page_size,
            &request.page_token,
        )?;
        Ok(v1::ListPolicyEventsResponse {
            events: page.iter().map(event_to_wire).collect(),
            next_page_token,
        })
    }
}

const NOT_EVALUATED: &str = "it was not evaluated: the gate was passed by";

fn asked(actor: String, reason: String) -> Asked {
    Asked {
        actor,
        at_us: now_us(),
        reason,
    }
}

fn too_many_uploads() -> Failure {
    let message = format!("{MOST_UPLOADS} uploads are under way, which is the limit: try again");
    Failure::new(Code::ResourceExhausted, "TOO_MANY_UPLOADS", message).retry_after(RETRY)
}

fn refused(name: &VersionName, objections: &[String]) -> Failure {
    let message = format!(
        "{name} is not promoted: {}; force_reason passes the gate by, and is recorded",
        objections.join("; ")
    );
    Failure::new(Code::FailedPrecondition, "GATE_REFUSED", message).with("name", name)
}

#[tonic::async_trait]
impl PolicyService for Service {
    async fn upload_policy_version(
        &self,
        request: Request<Streaming<v1::UploadPolicyVersionRequest>>,
    ) -> Result<Response<v1::PolicyVersion>, Status> {
        let actor = actor(request.extensions());
        let version = self.upload(request.into_inner(), actor).await?;
        Ok(Response::new(version))
    }

    async fn get_policy(
        &self,
        request: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::PolicyFamily>, Status> {
        let name = request.into_inner().name;
        self.read(move |this| {
            let id = policy_from_wire("name", &name)?;
            Ok(family_to_wire(&this.deployment.store().family(id)?))
        })
        .await
    }

    async fn list_policies(
        &self,
        request: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        let request = request.into_inner();
        self.read(move |this| {
            let families = this.deployment.store().families()?;
            let families = families.iter().map(family_to_wire);
            let (policies, next_page_token) = paging::page(
                families,
                |family| &family.name,
                request.page_size,
                &request.page_token,
            )?;
            Ok(v1::ListPoliciesResponse {
                policies,
                next_page_token,
            })
        })
        .await
    }

    async fn get_policy_version(
        &self,
        request: Request<v1::GetPolicyVersionRequest>,
    ) -> Result<Response<v1::PolicyVersion>, Status> {
        let name = version_name_from_wire("name", &request.into_inner().name)?;
        self.read(move |this| Ok(this.to_wire(&this.deployment.store().version(&name)?)))
            .await
    }

    async fn list_policy_versions(
        &self,
        request: Request<v1::ListPolicyVersionsRequest>,
    ) -> Result<Response<v1::ListPolicyVersionsResponse>, Status> {
        let request = request.into_inner();
        self.read(move |this| this.list_versions(&request)).await
    }

    async fn promote_policy_version(
        &self,
        request: Request<v1::PromotePolicyVersionRequest>,
    ) -> Result<Response<Operation>, Status> {
        let actor = actor(request.extensions());
        let operation = self.promote(request.into_inner(), actor).await?;
        Ok(Response::new(operation))
    }

    async fn rollback_production(
        &self,
        request: Request<v1::RollbackProductionRequest>,
    ) -> Result<Response<v1::RollbackProductionResponse>, Status> {
        let actor = actor(request.extensions());
        let done = self.rollback(request.into_inner(), actor).await?;
        Ok(Response::new(done))
    }

    async fn archive_policy_version(
        &self,
        request: Request<v1::ArchivePolicyVersionRequest>,
    ) -> Result<Response<v1::PolicyVersion>, Status> {
        let actor = actor(request.extensions());
        let version = self.archive(request.into_inner(), actor).await?;
        Ok(Response::new(version))
    }

    async fn list_policy_events(
        &self,
        request: Request<v1::ListPolicyEventsRequest>,
    ) -> Result<Response<v1::ListPolicyEventsResponse>, Status> {
        let request = request.into_inner();
        self.read(move |this| this.list_events(&request)).await
    }
}
