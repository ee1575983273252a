//! The rollout over which a remote environment is reset and stepped.

use crate::client::Connection;
use blkpilot_env::{ActionError, EnvSpec, JointAction};
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::rollout_request::Request;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::environments::packed;
use crate::environments::packed::rows::Rows;
use crate::wire::WireError;

/// A rollout of one environment, one request under way at a time.
#[derive(Debug)]
pub(super) struct Rollout {
    requests: mpsc::Sender<v1::RolloutRequest>,
    answers: Streaming<v1::RolloutResponse>,
    /// As the last answer had them.
    rows: Rows,
}

impl Rollout {
    /// Opens a rollout of the environment with this name.
    pub(super) async fn open(
        client: &mut EnvironmentServiceClient<Connection>,
        name: &str,
    ) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(1);
        let answers = client.rollout(ReceiverStream::new(outgoing)).await?;
        let mut rollout = Self {
            requests,
            answers: answers.into_inner(),
            rows: Rows::default(),
        };
        let open = v1::RolloutOpen {
            name: name.to_owned(),
            view: v1::RolloutView::Full.into(),
        };
        let first = rollout.ask(Request::Open(open)).await?;
        rollout
            .see(first.layout)
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(rollout)
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask(&mut self, request: Request) -> Result<v1::RolloutResponse, Status> {
        let request = v1::RolloutRequest {
            request: Some(request),
        };
        // Where the stream has ended, it is the answer that says why.
        let _ = self.requests.send(request).await;
        let answer = self.answers.message().await?;
        answer.ok_or_else(|| Status::unavailable("the server has ended the rollout"))
    }

    /// Takes the rows of an answer that has others; those before then.
    pub(super) fn see(
        &mut self,
        layout: Option<v1::RolloutLayout>,
    ) -> Result<Option<Rows>, WireError> {
        let Some(layout) = layout else {
            return Ok(None);
        };
        let rows = Rows::from_wire(layout)?;
        Ok(Some(std::mem::replace(&mut self.rows, rows)))
    }

    /// The rows of the last answer.
    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Whether an action has the rows and heads of the last answer; any has before the first reset.
    pub(super) fn check_shape(
        &self,
        spec: &EnvSpec,
        action: &JointAction,
    ) -> Result<(), ActionError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        packed::check_shape(spec, self.rows.disks_and_devices(), action)
    }
}
