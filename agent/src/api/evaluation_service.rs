//! `EvaluationService`: policies judged on the service's own decision log, one at a time, as operations.

use std::path::Path;
use std::sync::Arc;

use blkpilot_evaluate::{TargetPolicy, UniformTarget};
use blkpilot_proto::longrunning::Operation;
use blkpilot_proto::v1;
use blkpilot_proto::v1::evaluation_service_server::EvaluationService;
use prost_types::Any;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::evaluation_wire::{Manner, Subject, evaluation_to_wire};
use super::paging;
use super::policy_wire::version_name_from_wire;
use crate::decision::now_us;
use crate::operations::{Operations, Pending, Work, any};
use crate::policies::deployment::{Deployment, blocking};
use crate::policies::evaluations::{Evaluations, MOST_EVALUATIONS};
use crate::policies::judging::{self, Question, judge};
use crate::policies::store::{Version, VersionName};
use crate::requests::Repeatable;
use crate::wire::names;
use crate::wire::status::Failure;

/// The policy whose probabilities follow from the mask alone.
const RANDOM: &str = "random";

/// `EvaluationService`.
#[derive(Debug, Clone)]
pub struct Service {
    deployment: Arc<Deployment>,
    evaluations: Evaluations,
    operations: Operations,
}

/// Who is evaluated.
#[derive(Debug, Clone, PartialEq)]
enum Named {
    Random,
    Version(Box<Version>),
}

/// An evaluation that was checked.
struct Asked {
    request: v1::CreateEvaluationRequest,
    policy: Named,
    against: Option<Named>,
    manner: Manner,
}

/// An evaluation that has begun.
struct Begun {
    operation: Operation,
    /// What is to be done; `None` where nothing is left.
    left: Option<(Pending, Asked)>,
}

impl Service {
    /// A service over a deployment's log and policies, whose work is done by these operations.
    #[must_use]
    pub fn new(deployment: Arc<Deployment>, operations: Operations) -> Self {
        Self {
            evaluations: Evaluations::of(deployment.store().database().clone()),
            deployment,
            operations,
        }
    }

    fn named(&self, field: &str, name: &str) -> Result<Named, Failure> {
        if name == RANDOM {
            return Ok(Named::Random);
        }
        let name: VersionName = version_name_from_wire(field, name)?;
        let version = self.deployment.store().version(&name)?;
        Ok(Named::Version(Box::new(version)))
    }

    fn checked(&self, request: v1::CreateEvaluationRequest) -> Result<Asked, Failure> {
        let manner = Manner::from_wire(request.options.as_ref(), now_us())?;
        let policy = self.named("policy", &request.policy)?;
        let against = match &request.against[..] {
            "" => None,
            name => Some(self.named("against", name)?),
        };
        Ok(Asked {
            request,
            policy,
            against,
            manner,
        })
    }

    async fn create(&self, request: v1::CreateEvaluationRequest) -> Result<Operation, Failure> {
        let this = self.clone();
        let Begun { operation, left } = blocking(move || this.begin(request)).await??;
        if let Some((pending, asked)) = left {
            let this = self.clone();
            self.operations
                .begin(pending, move |work| this.evaluate(&asked, work));
        }
        // A repeated call may find it further than the first did.
        let operations = self.operations.clone();
        blocking(move || operations.get(&operation.name).unwrap_or(operation)).await
    }

    fn begin(&self, request: v1::CreateEvaluationRequest) -> Result<Begun, Failure> {
        let repeatable = Repeatable::of("CreateEvaluation", &request.request_id, &request)?;
        let asked = self.checked(request)?;
        let target = &asked.request.policy;
        if asked.request.validate_only {
            let nothing = any("Evaluation", &v1::Evaluation::default());
            let operation = Operations::done_at_once(target, nothing);
            return Ok(Begun {
                operation,
                left: None,
            });
        }
        let entered = self
            .deployment
            .enter(&self.operations, target, repeatable.as_ref());
        let (operation, pending) = entered?;
        let left = pending.map(|pending| (pending, asked));
        Ok(Begun { operation, left })
    }

    fn evaluate(&self, asked: &Asked, work: &Work) -> Result<Any, Failure> {
        let (policy, gamma) = self.target(&asked.policy)?;
        let against = asked.against.as_ref().map(|named| self.target(named));
        let against = against.transpose()?;
        let mut options = asked.manner.options.clone();
        options.gamma = asked.manner.gamma.or(gamma).unwrap_or(options.gamma);
        let log = self.deployment.log();
        let question = Question {
            log: Path::new(&log),
            policy: &*policy,
            against: against.as_ref().map(|(against, _)| &**against),
            options: &options,
            rule: &asked.manner.verdict,
        };
        let judged = judge(question, work).map_err(|error| {
            Failure::new(Code::FailedPrecondition, "NOT_EVALUATED", error.to_string())
        })?;
        let subject = Subject {
            name: format!("evaluations/{}", Uuid::new_v4()),
            at_us: now_us(),
            policy: &asked.request.policy,
            against: &asked.request.against,
        };
        let evaluation = evaluation_to_wire(subject, &judged);
        self.evaluations.keep(&evaluation)?;
        Ok(any("Evaluation", &evaluation))
    }

    /// A policy that can be evaluated, and the discount that it was trained with.
    fn target(&self, named: &Named) -> Result<(Box<dyn TargetPolicy>, Option<f64>), Failure> {
        let Named::Version(version) = named else {
            let policy = UniformTarget::new(self.deployment.spec().clone());
            return Ok((Box::new(policy), None));
        };
        let (policy, gamma) = judging::stored(self.deployment.store(), version)?;
        Ok((Box::new(policy), gamma))
    }

    async fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Evaluations) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let evaluations = self.evaluations.clone();
        Ok(Response::new(blocking(move || act(&evaluations)).await??))
    }
}

fn missing(name: &str) -> Failure {
    let way_out = format!("ListEvaluations names those there are; the last {MOST_EVALUATIONS}");
    Failure::not_found(name, &way_out)
}

fn list(
    evaluations: &Evaluations,
    request: &v1::ListEvaluationsRequest,
) -> Result<v1::ListEvaluationsResponse, Failure> {
    let listed = evaluations.list()?.into_iter();
    let listed = listed.map(|evaluation| v1::Evaluation {
        json: String::new(),
        ..evaluation
    });
    let (evaluations, next_page_token) = paging::page_behind(
        listed,
        |evaluation| evaluation.name.clone(),
        request.page_size,
        &request.page_token,
    )?;
    Ok(v1::ListEvaluationsResponse {
        evaluations,
        next_page_token,
    })
}

#[tonic::async_trait]
impl EvaluationService for Service {
    async fn create_evaluation(
        &self,
        request: Request<v1::CreateEvaluationRequest>,
    ) -> Result<Response<Operation>, Status> {
        Ok(Response::new(self.create(request.into_inner()).await?))
    }

    async fn get_evaluation(
        &self,
        request: Request<v1::GetEvaluationRequest>,
    ) -> Result<Response<v1::Evaluation>, Status> {
        let name = request.into_inner().name;
        self.read(move |evaluations| {
            let [_] = names::parse("name", &name, "evaluations/*")?;
            evaluations.find(&name)?.ok_or_else(|| missing(&name))
        })
        .await
    }

    async fn list_evaluations(
        &self,
        request: Request<v1::ListEvaluationsRequest>,
    ) -> Result<Response<v1::ListEvaluationsResponse>, Status> {
        let request = request.into_inner();
        self.read(move |evaluations| list(evaluations, &request))
            .await
    }

    async fn delete_evaluation(
        &self,
        request: Request<v1::DeleteEvaluationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.read(move |evaluations| {
            let [_] = names::parse("name", &name, "evaluations/*")?;
            let was_there = evaluations.delete(&name)?;
            was_there.then_some(()).ok_or_else(|| missing(&name))
        })
        .await
    }
}
