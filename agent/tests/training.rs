//! `TrainingService` of the light daemon, which does not train.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use blkpilot_proto::v1;
use blkpilot_proto::v1::training_service_client::TrainingServiceClient;
use support::{Service, Settings, reason};
use tonic::Code;

#[tokio::test]
async fn a_service_without_a_trainer_says_why_and_names_the_way_out() {
    let service = Service::start(&Settings::default()).await;
    let mut client = TrainingServiceClient::new(service.channel.clone());
    let request = v1::CreateTrainingRunRequest::default();
    let created = client.create_training_run(request).await.unwrap_err();
    let request = v1::ListTrainingRunsRequest::default();
    let listed = client.list_training_runs(request).await.unwrap_err();
    for refused in [created, listed] {
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(reason(&refused), "TRAINING_UNAVAILABLE");
        assert!(refused.message().contains("blkpilot-lab serve"));
    }
}
