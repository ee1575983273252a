//! `google.longrunning.Operations` and `OperationService` over the operations of a service.

use std::time::Duration;

use blkpilot_proto::longrunning::operations_server::Operations as LongRunning;
use blkpilot_proto::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, Operation, WaitOperationRequest,
};
use blkpilot_proto::v1;
use blkpilot_proto::v1::operation_service_server::OperationService;
use tonic::{Request, Response, Status};

use super::paging;
use super::span::span_from_wire;
use super::watchers::{Events, Watchers};
use crate::operations::Operations;
use crate::operations::feed::Message;
use crate::policies::deployment::blocking;
use crate::wire::status::Failure;

/// Watchers at once.
const MOST_WATCHERS: usize = 64;
/// Longest wait for an operation's end in one call.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// `google.longrunning.Operations` and `OperationService`.
#[derive(Debug, Clone)]
pub struct Service {
    operations: Operations,
    watchers: Watchers,
}

impl Service {
    /// A service over these operations.
    #[must_use]
    pub fn new(operations: Operations) -> Self {
        Self {
            operations,
            watchers: Watchers::new(MOST_WATCHERS),
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Operations) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let operations = self.operations.clone();
        Ok(Response::new(blocking(move || act(&operations)).await??))
    }
}

fn list(
    operations: &Operations,
    request: &ListOperationsRequest,
) -> Result<ListOperationsResponse, Failure> {
    if !matches!(&request.name[..], "" | "operations") {
        let problem = format!("\"{}\" must be empty, or `operations`", request.name);
        return Err(Failure::field("name", problem));
    }
    let wanted = wanted(&request.filter)?;
    let listed = operations.list()?.into_iter();
    let listed = listed.filter(|operation| wanted.is_none_or(|wanted| operation.done == wanted));
    let (operations, next_page_token) = paging::page_behind(
        listed,
        |operation| operation.name.clone(),
        request.page_size,
        &request.page_token,
    )?;
    Ok(ListOperationsResponse {
        operations,
        next_page_token,
        ..ListOperationsResponse::default()
    })
}

/// Which operations a filter admits: those that are done, those that are not, or `None` for all.
fn wanted(filter: &str) -> Result<Option<bool>, Failure> {
    let text: String = filter.chars().filter(|c| !c.is_whitespace()).collect();
    match &text[..] {
        "" => Ok(None),
        "done=true" | "done" => Ok(Some(true)),
        "done=false" => Ok(Some(false)),
        _ => {
            let problem = format!("\"{filter}\" must be `done = true`, `done = false`, or empty");
            Err(Failure::field("filter", problem))
        }
    }
}

#[tonic::async_trait]
impl LongRunning for Service {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |operations| list(operations, &request)).await
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let name = request.into_inner().name;
        self.ask(move |operations| operations.get(&name)).await
    }

    async fn delete_operation(
        &self,
        request: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.ask(move |operations| operations.delete(&name)).await
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.ask(move |operations| operations.cancel(&name)).await
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let request = request.into_inner();
        let limit = request.timeout.and_then(span_from_wire);
        let limit = limit.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
        let operation = self.operations.wait(&request.name, limit).await?;
        Ok(Response::new(operation))
    }
}

#[tonic::async_trait]
impl OperationService for Service {
    type WatchOperationStream = Events<v1::WatchOperationResponse>;

    async fn watch_operation(
        &self,
        request: Request<v1::WatchOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        let request = request.into_inner();
        let place = self.watchers.place()?;
        let messages = self
            .ask(move |operations| operations.follow(&request.name, &request.resume_token))
            .await?
            .into_inner();
        let events = self.watchers.stream(place, messages, to_wire);
        Ok(Response::new(events))
    }
}

fn to_wire(message: Message<Operation>) -> v1::WatchOperationResponse {
    v1::WatchOperationResponse {
        operation: Some(message.value),
        resume_token: message.token,
        missed: message.missed,
    }
}
