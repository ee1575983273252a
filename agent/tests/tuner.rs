//! `TunerService` against a simulated host, through a real server and a real client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::time::Duration;

use blkpilot_proto::v1;
use blkpilot_proto::v1::decision::{Source, State};
use blkpilot_proto::v1::watch_decisions_response::Event;
use support::{HOST, Service, Settings, disk_name, fields, reason, set};
use tonic::Code;

const CLUSTER: &str = "
[[guest]]
name = \"trading\"
opt_in = false
[[guest]]
name = \"builds\"
mode = \"observe\"
[[guest]]
name = \"backup\"
knobs = [\"channel\"]
";

fn propose() -> v1::ProposeRequest {
    v1::ProposeRequest {
        host: HOST.to_owned(),
    }
}

fn apply(decision: &v1::Decision) -> v1::ApplyRequest {
    v1::ApplyRequest {
        host: HOST.to_owned(),
        action: Some(v1::apply_request::Action::Decision(decision.name.clone())),
        ..v1::ApplyRequest::default()
    }
}

fn rollback(guest: &str) -> v1::RollbackRequest {
    v1::RollbackRequest {
        name: format!("{HOST}/guests/{guest}"),
        ..v1::RollbackRequest::default()
    }
}

fn unfreeze(name: &str, head: &str) -> v1::UnfreezeRequest {
    v1::UnfreezeRequest {
        name: format!("{HOST}/{name}"),
        head: head.to_owned(),
        ..v1::UnfreezeRequest::default()
    }
}

fn head<'a>(decision: &'a v1::Decision, disk: &str, head: &str) -> &'a v1::HeadDecision {
    let row = decision
        .rows
        .iter()
        .find(|row| row.name == disk_name(disk))
        .unwrap();
    row.heads.iter().find(|h| h.head == head).unwrap()
}

#[tokio::test]
async fn guests_are_listed_with_what_is_measured_and_what_may_be_chosen() {
    let service = Service::start(&Settings {
        guests: CLUSTER.to_owned(),
        ..Settings::default()
    })
    .await;
    let hosts = service
        .tuner()
        .list_hosts(v1::ListHostsRequest::default())
        .await
        .unwrap();
    let host = &hosts.get_ref().hosts[0];
    assert_eq!(host.name, HOST);
    assert_eq!(host.policy.as_ref().unwrap().name, "least_loaded");

    let guests = service.guests().await;
    let names: Vec<&str> = guests
        .iter()
        .map(|g| g.name.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(names, ["backup", "builds", "ingestion", "trading"]);
    let [backup, builds, ingestion, trading] = &guests[..] else {
        unreachable!()
    };
    assert!(!trading.opted_in && ingestion.opted_in);
    assert_eq!(builds.mode(), v1::Mode::Observe);
    let iops = ingestion.disks[0]
        .state
        .as_ref()
        .unwrap()
        .iops
        .as_ref()
        .unwrap();
    assert_eq!(iops.validity(), v1::Validity::Valid);
    let mask = |guest: &v1::Guest, head: usize| guest.disks[0].heads[head].levels[1].mask();
    assert_eq!(mask(trading, 0), v1::MaskReason::NotOptedIn);
    assert_eq!(mask(builds, 0), v1::MaskReason::NotEnabled);
    assert_eq!(mask(backup, 0), v1::MaskReason::Allowed);
    assert_eq!(mask(backup, 1), v1::MaskReason::NotEnabled);
}

#[tokio::test]
async fn the_dial_is_shown_with_the_candidate_and_what_is_left_to_explore() {
    let guests = "
[[guest]]
name = \"trading\"
mode = \"canary\"
exploration = { epsilon = 0.25, changes_per_hour = 3 }
[[guest]]
name = \"builds\"
mode = \"shadow\"
exploration = { epsilon = 0.25, changes_per_hour = 3 }
";
    let policies = "baseline = \"least_loaded\"\n[candidate]\nbaseline = \"round_robin\"";
    let service = Service::start(&Settings {
        guests: guests.to_owned(),
        policy: policies.to_owned(),
        ..Settings::default()
    })
    .await;
    let of = |source: Source, decisions: &[v1::Decision]| {
        let found = decisions.iter().find(|d| d.source() == source);
        found.cloned()
    };
    let (canary, shadow) = loop {
        let decisions = service.decisions().await;
        let both = of(Source::Canary, &decisions).zip(of(Source::Shadow, &decisions));
        match both {
            Some(both) => break both,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!(canary.policy.as_ref().unwrap().name, "round_robin");
    let row = canary
        .rows
        .iter()
        .find(|row| row.name == disk_name("trading/vda"));
    let row = row.unwrap();
    assert_eq!(
        (
            row.source(),
            row.stage(),
            row.policy.as_ref().unwrap().name.as_str()
        ),
        (Source::Canary, v1::Stage::Policy, "round_robin")
    );
    assert!(shadow.durable && shadow.state() == State::Proposed);
    let names: Vec<&str> = shadow.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, [disk_name("builds/vda")]);
    for head in &shadow.rows[0].heads {
        assert_eq!(head.executed, head.previous);
        assert_eq!(head.altered.is_empty(), head.requested == head.executed);
    }

    let hosts = v1::ListHostsRequest::default();
    let hosts = service.tuner().list_hosts(hosts).await.unwrap();
    let host = &hosts.get_ref().hosts[0];
    assert_eq!(host.candidate.as_ref().unwrap().name, "round_robin");
    assert_eq!(host.fallbacks, Some(v1::FallbackCounts::default()));
    let guests = service.guests().await;
    let guest = |name: &str| {
        let name = format!("{HOST}/guests/{name}");
        guests.iter().find(|guest| guest.name == name).unwrap()
    };
    assert_eq!(guest("trading").mode(), v1::Mode::Canary);
    assert_eq!(guest("builds").mode(), v1::Mode::Shadow);
    let exploration = guest("trading").exploration.clone().unwrap();
    assert_eq!(
        (exploration.epsilon, exploration.changes_per_hour),
        (0.25, 3)
    );
    assert!(exploration.changes_left <= 3);
    let paused = guest("builds").exploration.clone().unwrap();
    assert!(paused.pause_reason.contains("mode shadow"), "{paused:?}");
    assert_eq!(guest("backup").exploration, None);
}

#[tokio::test]
async fn pages_of_guests_together_hold_each_once() {
    let service = Service::start(&Settings::default()).await;
    let (mut names, mut page_token) = (vec![], String::new());
    loop {
        let request = v1::ListGuestsRequest {
            parent: HOST.to_owned(),
            page_size: 3,
            page_token,
        };
        let page = service
            .tuner()
            .list_guests(request)
            .await
            .unwrap()
            .into_inner();
        names.extend(page.guests.into_iter().map(|guest| guest.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names.len(), 4);
    names.dedup();
    assert_eq!(names.len(), 4);
}

#[tokio::test]
async fn a_proposal_changes_nothing_until_it_is_applied() {
    let service = Service::start(&Settings::default()).await;
    let proposal = service
        .tuner()
        .propose(propose())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(proposal.state(), State::Proposed);
    assert!(!proposal.durable && proposal.expire_time.is_some());
    let chosen = head(&proposal, "ingestion/vda", "channel");
    assert_ne!(chosen.requested, chosen.previous);
    assert_eq!(chosen.propensity, Some(1.0));
    assert_eq!(chosen.levels.len(), 5);
    assert_eq!(
        service.level("ingestion/vda", "channel").await,
        chosen.previous
    );
    assert!(service.decisions().await.is_empty());

    let name = proposal.name.clone();
    let found = service
        .tuner()
        .get_decision(v1::GetDecisionRequest { name })
        .await
        .unwrap();
    assert_eq!(found.get_ref(), &proposal);

    let applied = service
        .tuner()
        .apply(apply(&proposal))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (applied.state(), applied.source()),
        (State::Applied, Source::Proposal)
    );
    assert!(applied.durable);
    assert_eq!(applied.name, proposal.name);
    assert_eq!(
        head(&applied, "ingestion/vda", "channel").executed,
        chosen.requested
    );
    assert_eq!(
        service.level("ingestion/vda", "channel").await,
        chosen.requested
    );
    assert_eq!(service.decisions().await, [applied]);
}

#[tokio::test]
async fn a_proposal_made_before_another_change_is_stale() {
    let service = Service::start(&Settings::default()).await;
    let proposal = service
        .tuner()
        .propose(propose())
        .await
        .unwrap()
        .into_inner();
    let change = set(&[("backup/vda", "cache", "buffered")]);
    service.tuner().apply(change).await.unwrap();
    let refused = service.tuner().apply(apply(&proposal)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused), "PROPOSAL_STALE");
}

#[tokio::test]
async fn explicit_levels_are_applied_and_taken_back() {
    let service = Service::start(&Settings::default()).await;
    let before = service.level("backup/vda", "channel").await;
    let change = set(&[
        ("backup/vda", "channel", "channel-2"),
        ("builds/vda", "cache", "buffered"),
    ]);
    let applied = service.tuner().apply(change).await.unwrap().into_inner();
    let moved = head(&applied, "backup/vda", "channel");
    assert_eq!(
        (moved.requested.as_str(), moved.executed.as_str()),
        ("channel-2", "channel-2")
    );
    assert_eq!(moved.propensity, None);

    let back = service
        .tuner()
        .rollback(rollback("backup"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(back.source(), Source::Rollback);
    assert_eq!(service.level("backup/vda", "channel").await, before);
    assert_eq!(service.level("builds/vda", "cache").await, "buffered");
    service.tuner().rollback(rollback("-")).await.unwrap();
    assert_eq!(service.level("builds/vda", "cache").await, "direct");
    assert_eq!(service.decisions().await.len(), 3);
}

#[tokio::test]
async fn what_is_refused_changes_nothing_and_says_why() {
    let service = Service::start(&Settings {
        guests: CLUSTER.to_owned(),
        ..Settings::default()
    })
    .await;
    let good = ("ingestion/vda", "cache", "buffered");
    let cases = [
        (
            ("nobody/vda", "channel", "float"),
            Code::NotFound,
            "NOT_FOUND",
            "guests/nobody",
        ),
        (
            ("backup/vdz", "channel", "float"),
            Code::NotFound,
            "NOT_FOUND",
            "disks/vdz",
        ),
        (
            ("trading/vda", "channel", "float"),
            Code::FailedPrecondition,
            "GUEST_NOT_OPTED_IN",
            "guests/trading",
        ),
        (
            ("builds/vda", "channel", "channel-1"),
            Code::FailedPrecondition,
            "MODE_FORBIDS",
            "observe",
        ),
        (
            ("backup/vda", "cache", "buffered"),
            Code::InvalidArgument,
            "ACTION_MASKED",
            "not enabled",
        ),
        (
            ("backup/vda", "channel", "channel-77"),
            Code::InvalidArgument,
            "ACTION_NO_SUCH_LEVEL",
            "channel-3",
        ),
        (
            ("backup/vda", "colour", "red"),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "polling",
        ),
    ];
    for (bad, code, why, named) in cases {
        // Together with a level that is fine: it must not be applied either.
        let refused = service.tuner().apply(set(&[good, bad])).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (code, why),
            "{bad:?}"
        );
        assert!(refused.message().contains(named), "{}", refused.message());
    }
    let twice = set(&[good, good]);
    let refused = service.tuner().apply(twice).await.unwrap_err();
    assert_eq!(fields(&refused), ["levels.choices[1]"]);
    let refused = service.tuner().apply(set(&[])).await.unwrap_err();
    assert_eq!(fields(&refused), ["levels.choices"]);
    assert_eq!(service.level("ingestion/vda", "cache").await, "direct");
    assert!(service.decisions().await.is_empty());
}

#[tokio::test]
async fn wrong_names_are_refused_with_their_form() {
    let service = Service::start(&Settings::default()).await;
    let mut tuner = service.tuner();
    let wrong = v1::ListGuestsRequest {
        parent: "local".to_owned(),
        ..v1::ListGuestsRequest::default()
    };
    let refused = tuner.list_guests(wrong).await.unwrap_err();
    assert_eq!(fields(&refused), ["parent"]);
    assert!(refused.message().contains("hosts/*"));
    let host = "hosts/elsewhere".to_owned();
    let refused = tuner
        .propose(v1::ProposeRequest { host })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = tuner.rollback(rollback("nobody")).await.unwrap_err();
    assert!(refused.message().contains("hosts/local/guests/nobody"));
    let name = "hosts/local/guests/nobody".to_owned();
    let refused = tuner
        .get_guest(v1::GetGuestRequest { name })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let name = "decisions/6ba7b810-9dad-41d1-80b4-00c04fd430c8".to_owned();
    let refused = tuner
        .get_decision(v1::GetDecisionRequest { name })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let foreign = v1::ListDecisionsRequest {
        parent: HOST.to_owned(),
        page_size: 0,
        page_token: "x".to_owned(),
    };
    assert_eq!(
        fields(&tuner.list_decisions(foreign).await.unwrap_err()),
        ["page_token"]
    );
}

#[tokio::test]
async fn validate_only_answers_and_changes_nothing() {
    let service = Service::start(&Settings::default()).await;
    let request = v1::ApplyRequest {
        validate_only: true,
        ..set(&[("backup/vda", "cache", "buffered")])
    };
    let would = service.tuner().apply(request).await.unwrap().into_inner();
    assert_eq!(head(&would, "backup/vda", "cache").executed, "buffered");
    assert!(!would.durable);
    assert_eq!(service.level("backup/vda", "cache").await, "direct");
    assert!(service.decisions().await.is_empty());
}

#[tokio::test]
async fn a_repeated_request_is_answered_and_not_repeated() {
    let service = Service::start(&Settings::default()).await;
    let request = v1::ApplyRequest {
        request_id: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".to_owned(),
        ..set(&[("backup/vda", "cache", "buffered")])
    };
    let first = service
        .tuner()
        .apply(request.clone())
        .await
        .unwrap()
        .into_inner();
    let second = service
        .tuner()
        .apply(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.name, second.name);
    assert_eq!(service.decisions().await.len(), 1);
    let other = v1::ApplyRequest {
        request_id: request.request_id,
        ..set(&[("backup/vda", "cache", "direct")])
    };
    let refused = service.tuner().apply(other).await.unwrap_err();
    assert_eq!(fields(&refused), ["request_id"]);
}

#[tokio::test]
async fn a_watcher_sees_what_is_applied() {
    let service = Service::start(&Settings::default()).await;
    let parent = HOST.to_owned();
    let request = v1::WatchDecisionsRequest { parent };
    let mut events = service
        .tuner()
        .watch_decisions(request)
        .await
        .unwrap()
        .into_inner();
    let started = events.message().await.unwrap().unwrap();
    assert!(matches!(started.event, Some(Event::Started(_))));
    let change = set(&[("backup/vda", "cache", "buffered")]);
    let applied = service.tuner().apply(change).await.unwrap().into_inner();
    let seen = events.message().await.unwrap().unwrap();
    assert_eq!(seen.event, Some(Event::Decision(applied)));
    // The stream ends with the service.
    service.stop().await;
    assert!(!matches!(events.message().await, Ok(Some(_))));
}

#[tokio::test]
async fn in_mode_auto_the_policy_decides_for_those_guests_only() {
    let auto = "[[guest]]\nname = \"ingestion\"\nmode = \"auto\"";
    let service = Service::start(&Settings {
        guests: auto.to_owned(),
        ..Settings::default()
    })
    .await;
    let parent = HOST.to_owned();
    let request = v1::WatchDecisionsRequest { parent };
    let mut events = service
        .tuner()
        .watch_decisions(request)
        .await
        .unwrap()
        .into_inner();
    let decision = loop {
        let event = events.message().await.unwrap().unwrap();
        if let Some(Event::Decision(decision)) = event.event {
            break decision;
        }
    };
    assert_eq!(decision.source(), Source::Auto);
    assert!(head(&decision, "backup/vda", "channel").forced);
    assert_eq!(service.level("backup/vda", "channel").await, "float");
    assert_ne!(service.level("ingestion/vda", "channel").await, "float");
}

#[tokio::test]
async fn pages_of_decisions_run_from_newest_to_oldest() {
    let service = Service::start(&Settings::default()).await;
    for level in ["buffered", "direct", "buffered", "direct", "buffered"] {
        let change = set(&[("backup/vda", "cache", level)]);
        service.tuner().apply(change).await.unwrap();
    }
    let all = service.decisions().await;
    assert_eq!(all.len(), 5);
    let (mut paged, mut page_token) = (vec![], String::new());
    loop {
        let request = v1::ListDecisionsRequest {
            parent: HOST.to_owned(),
            page_size: 2,
            page_token,
        };
        let page = service
            .tuner()
            .list_decisions(request)
            .await
            .unwrap()
            .into_inner();
        paged.extend(page.decisions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all);
    let times = |d: &v1::Decision| d.create_time.map(|t| (t.seconds, t.nanos));
    assert!(all.windows(2).all(|pair| times(&pair[0]) > times(&pair[1])));
}

#[tokio::test]
async fn decisions_survive_a_restart() {
    let service = Service::start(&Settings::default()).await;
    let change = set(&[("backup/vda", "cache", "buffered")]);
    service.tuner().apply(change).await.unwrap();
    let before = service.decisions().await;
    let dir = service.stop().await;
    let service = Service::start_in(dir, &Settings::default()).await.unwrap();
    assert_eq!(service.decisions().await, before);
}

#[tokio::test]
async fn unfreezing_what_is_not_frozen_does_nothing_and_what_is_not_there_is_refused() {
    let service = Service::start(&Settings::default()).await;
    let ask = async |name, head| service.tuner().unfreeze(unfreeze(name, head)).await;
    let nothing = ask("guests/backup/disks/vda", "cache").await;
    assert_eq!(nothing.unwrap().into_inner().knobs, []);
    for name in ["guests/nobody", "guests/backup/disks/vdz"] {
        let refused = ask(name, "").await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{name}");
        assert!(refused.message().contains(name), "{}", refused.message());
    }
    for (name, head, field) in [
        ("guests/backup", "colour", "head"),
        ("devices/nvme0n1", "", "name"),
        ("guests/-/disks", "", "name"),
    ] {
        let refused = ask(name, head).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name} {head}");
        assert_eq!(fields(&refused), [field]);
    }
    let refused = ask("guests/backup", "colour").await;
    let problem = refused.unwrap_err();
    assert!(
        problem.message().contains("channel, cache, polling"),
        "{}",
        problem.message()
    );
}

#[tokio::test]
async fn a_libvirt_that_does_not_answer_makes_only_its_host_unavailable() {
    let service = Service::start(&Settings {
        host: "kind = \"libvirt\"\nuri = \"qemu+unix:///system?socket=/nonexistent/libvirt-sock\"\non_exit = \"revert\"".to_owned(),
        ..Settings::default()
    })
    .await;
    let parent = HOST.to_owned();
    let request = v1::ListGuestsRequest {
        parent,
        ..v1::ListGuestsRequest::default()
    };
    let refused = service.tuner().list_guests(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(reason(&refused), "HOST_UNAVAILABLE");
    assert!(
        refused.message().contains("libvirtd"),
        "{}",
        refused.message()
    );
    let refused = service.tuner().rollback(rollback("-")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let hosts = service
        .tuner()
        .list_hosts(v1::ListHostsRequest::default())
        .await
        .unwrap();
    assert_eq!(hosts.get_ref().hosts[0].state(), v1::HostState::Unavailable);
    let stopped = tokio::time::timeout(Duration::from_secs(5), service.stop());
    stopped
        .await
        .expect("a host that is away does not keep the service from ending");
}
