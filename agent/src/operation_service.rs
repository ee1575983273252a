//! `google.longrunning.Operations` and `OperationService` over the operations of a service.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blkpilot_proto::longrunning::operations_server::Operations as LongRunning;
use blkpilot_proto::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, Operation, WaitOperationRequest,
};
use blkpilot_proto::v1;
use blkpilot_proto::v1::operation_service_server::OperationService;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::deployment::blocking;
use crate::operations::{Message, Messages, Operations};
use crate::paging;
use crate::span::span_from_wire;
use crate::status::Failure;

/// Watchers at once.
const MOST_WATCHERS: usize = 64;
/// Longest wait for an operation's end in one call.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// `google.longrunning.Operations` and `OperationService`.
#[derive(Debug, Clone)]
pub struct Service {
    operations: Operations,
    watchers: Arc<Semaphore>,
}

impl Service {
    /// A service over these operations.
    #[must_use]
    pub fn new(operations: Operations) -> Self {
        Self {
            operations,
            watchers: Arc::new(Semaphore::new(MOST_WATCHERS)),
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

type Events = Pin<Box<dyn Stream<Item = Result<v1::WatchOperationResponse, Status>> + Send>>;

#[tonic::async_trait]
impl OperationService for Service {
    type WatchOperationStream = Events;

    async fn watch_operation(
        &self,
        request: Request<v1::WatchOperationRequest>,
    ) -> Result<Response<Events>, Status> {
        let request = request.into_inner();
        let watcher = Arc::clone(&self.watchers).try_acquire_owned();
        let watcher = watcher.map_err(|_| too_many_watchers())?;
        let messages = self
            .ask(move |operations| operations.follow(&request.name, &request.resume_token))
            .await?
            .into_inner();
        // One that waits to be sent: a watcher that does not read holds up nobody but itself.
        let (sender, events) = mpsc::channel(1);
        tokio::spawn(pass_on(messages, sender, watcher));
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }
}

async fn pass_on(
    mut messages: Messages,
    sender: mpsc::Sender<Result<v1::WatchOperationResponse, Status>>,
    _watcher: OwnedSemaphorePermit,
) {
    loop {
        let message = tokio::select! {
            message = messages.next() => message,
            () = sender.closed() => return,
        };
        let Some(message) = message else { return };
        if sender.send(Ok(to_wire(message))).await.is_err() {
            return;
        }
    }
}

fn to_wire(message: Message) -> v1::WatchOperationResponse {
    v1::WatchOperationResponse {
        operation: Some(message.operation),
        resume_token: message.token,
        missed: message.missed,
    }
}

fn too_many_watchers() -> Failure {
    let message = format!("{MOST_WATCHERS} watchers are connected, which is the limit: end one");
    Failure::new(Code::ResourceExhausted, "TOO_MANY_WATCHERS", message)
}
