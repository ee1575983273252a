//! Another policy takes the place of one that decides, between two intervals.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blkpilot_agent::backend::modes::Reach;
use blkpilot_agent::config::mode::Mode;
use blkpilot_agent::decision::Decision;
use blkpilot_agent::decision::chain::Chain;
use blkpilot_agent::owner::handle::{Origin, Production, Succession};
use blkpilot_env::features::CHANNEL_HEAD;
use blkpilot_log::{DecisionRow, Event, Source as LogSource};
use blkpilot_models::baseline::RandomPolicy;

use crate::setup::{Channel, LIMIT, Setup, four, guest, loaded};

fn promoted(name: &str) -> Succession {
    let chain = Chain::with_fallbacks(loaded(name, RandomPolicy), None, &four(), LIMIT);
    let production = Production { chain, proof: None };
    Succession::Production(Box::new(production), Origin::Store)
}

/// Per joint decision of the log, in order: its rows.
fn joint(events: Vec<Event>) -> Vec<Vec<DecisionRow>> {
    let mut joint: Vec<Vec<DecisionRow>> = vec![];
    for event in events {
        let Event::Decision(row) = event else {
            continue;
        };
        match joint.last_mut() {
            Some(rows) if rows[0].host_step_id == row.host_step_id => rows.push(*row),
            _ => joint.push(vec![*row]),
        }
    }
    joint
}

#[tokio::test]
async fn a_policy_that_is_promoted_under_way_decides_from_the_next_interval_on_and_none_is_missed()
{
    let case = Setup::new([Mode::Auto; 4], loaded("first", Channel(1))).start();
    let windows = Arc::clone(&case.windows);
    case.decisions(20).await;
    case.host.seat(promoted("second")).await.unwrap();
    assert_eq!(case.host.view.borrow().policy.name, "second");
    // The answer comes between two decisions, so the next that is made is the second's.
    case.view(|_| {
        let page = case.host.history.page("local", None, 20).unwrap();
        let by = |decision: &Decision| decision.policy.as_ref().map(|by| by.version.clone());
        let is_second = |version: Option<String>| version.as_deref() == Some("second-1");
        page.decisions
            .iter()
            .all(|decision| is_second(by(decision)))
    })
    .await;
    let episodes = joint(case.log().await);
    let switch = episodes
        .iter()
        .position(|rows| &*rows[0].policy_version == "second-1")
        .unwrap();
    assert!(switch >= 20);
    for (step, rows) in episodes.iter().enumerate() {
        assert_eq!(rows.len(), 4, "each interval has its whole decision");
        let (version, is_drawn) = if step < switch {
            ("first-1", false)
        } else {
            ("second-1", true)
        };
        for row in rows {
            assert_eq!(&*row.policy_version, version, "interval {step}");
            let head = &row.heads[CHANNEL_HEAD];
            let allowed = head.mask.iter().filter(|mask| mask.is_allowed()).count();
            let wanted = if is_drawn { 1.0 / allowed as f64 } else { 1.0 };
            assert_eq!(head.propensity, wanted, "interval {step}");
        }
    }
    assert_eq!(episodes.len(), windows.load(Ordering::Relaxed));
}

#[tokio::test]
async fn the_configurations_policy_is_kept_and_comes_back() {
    let case = Setup::new([Mode::Auto; 4], loaded("configured", Channel(1))).start();
    case.decisions(3).await;
    case.host.seat(promoted("second")).await.unwrap();
    case.host.seat(promoted("third")).await.unwrap();
    case.host.seat(Succession::Configured).await.unwrap();
    let view = case.view(|view| view.policy.name == "configured").await;
    assert_eq!(view.policy.version, "configured-1");
    // It decides already: nothing happens.
    case.host.seat(Succession::Configured).await.unwrap();
}

#[tokio::test]
async fn what_was_never_there_cannot_come_back() {
    let mut setup = Setup::new([Mode::Auto; 4], loaded("promoted", Channel(1)));
    setup.origin = Origin::Store;
    let case = setup.start();
    let refused = case.host.seat(Succession::Configured).await.unwrap_err();
    assert_eq!(refused.reason(), "NOT_LOADED");
}

#[tokio::test]
async fn a_candidate_of_the_shadow_leaves_guests_in_mode_canary_alone() {
    let modes = [Mode::Shadow, Mode::Canary, Mode::Observe, Mode::Observe];
    let case = Setup::new(modes, loaded("production", Channel(1))).start();
    let view = case.view(|view| view.window.is_some()).await;
    assert_eq!(view.candidate, None);
    let candidate = |reach| {
        let chain = Chain::alone(loaded("candidate", Channel(2)), LIMIT);
        Succession::Candidate(Box::new(chain), reach)
    };
    case.host.seat(candidate(Reach::Shadow)).await.unwrap();
    let decisions = case.decisions(5).await;
    for row in decisions.iter().flat_map(|decision| &decision.rows) {
        assert_eq!((guest(row), row.source), ("guest-0", LogSource::Shadow));
    }
    assert!(!case.was_changed(1));

    case.host.seat(candidate(Reach::Canary)).await.unwrap();
    let is_canary = |row: &DecisionRow| guest(row) == "guest-1" && row.source == LogSource::Canary;
    let mut view = case.host.view.clone();
    let seen = view.wait_for(|_| {
        let page = case.host.history.page("local", None, 4).unwrap();
        page.decisions.iter().any(|d| d.rows.iter().any(is_canary))
    });
    assert_eq!(
        seen.await.unwrap().candidate.as_ref().unwrap().name,
        "candidate"
    );
    case.host
        .seat(Succession::ConfiguredCandidate)
        .await
        .unwrap();
    assert_eq!(case.host.view.borrow().candidate, None);
}
