//! What clients ask for is held to the guard's rate and breaker, through a real server and a real client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::time::Duration;

use blkpilot_proto::v1;
use support::{HOST, Service, Settings, reason, set};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const MINUTE_S: f64 = 60.0;

/// A minute of the host is one of the clock, however slow the machine is.
fn in_real_time() -> Settings {
    Settings {
        host: "kind = \"simulated\"\nscenario = \"mixed\"\ntime_scale = 1".to_owned(),
        ..Settings::default()
    }
}

fn toggled(times: u32) -> v1::ApplyRequest {
    let level = if times.is_multiple_of(2) {
        "buffered"
    } else {
        "direct"
    };
    set(&[("backup/vda", "cache", level)])
}

async fn apply(service: &Service, request: v1::ApplyRequest) -> Result<v1::Decision, Status> {
    let applied = service.tuner().apply(request).await;
    applied.map(tonic::Response::into_inner)
}

/// So many changes as may be made in a minute, and the refusal of one more.
async fn spend(service: &Service) -> Status {
    for times in 0..12 {
        apply(service, toggled(times)).await.unwrap();
    }
    apply(service, toggled(12)).await.unwrap_err()
}

#[tokio::test]
async fn a_loop_of_applies_ends_at_the_rate_and_is_told_when_to_go_on() {
    let service = Service::start(&in_real_time()).await;
    let refused = spend(&service).await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(reason(&refused), "RATE_LIMITED");
    let details = refused.get_error_details();
    let wait = details.retry_info().unwrap().retry_delay.unwrap();
    assert!(
        wait > Duration::ZERO && wait.as_secs_f64() <= MINUTE_S,
        "{wait:?}"
    );
    assert_eq!(service.level("backup/vda", "cache").await, "direct");

    // What changes nothing is not held back, and the way back never is.
    apply(&service, toggled(1)).await.unwrap();
    let request = v1::RollbackRequest {
        name: format!("{HOST}/guests/-"),
        ..v1::RollbackRequest::default()
    };
    service.tuner().rollback(request).await.unwrap();

    // A trial run tells what would happen.
    let asked = v1::ApplyRequest {
        validate_only: true,
        ..toggled(12)
    };
    assert_eq!(
        reason(&apply(&service, asked).await.unwrap_err()),
        "RATE_LIMITED"
    );
}

#[tokio::test]
async fn a_reason_passes_the_guard_by_and_is_recorded() {
    let service = Service::start(&in_real_time()).await;
    spend(&service).await;
    let forced = v1::ApplyRequest {
        force_reason: " the array is on fire ".to_owned(),
        ..toggled(12)
    };
    let done = apply(&service, forced.clone()).await.unwrap();
    assert_eq!(service.level("backup/vda", "cache").await, "buffered");
    let recorded = service.decisions().await.remove(0);
    assert_eq!(recorded.name, done.name);
    assert!(
        recorded
            .reason
            .starts_with("forced although as many changes")
            && recorded.reason.ends_with(": the array is on fire"),
        "{}",
        recorded.reason
    );

    let blank = v1::ApplyRequest {
        force_reason: "  ".to_owned(),
        ..forced
    };
    let refused = apply(&service, blank).await.unwrap_err();
    assert_eq!(support::fields(&refused), ["force_reason"]);
}
