//! Shadow and canary beside auto.

use std::collections::BTreeSet;

use blkpilot_agent::config::mode::Mode;
use blkpilot_agent::decision::{Decision, Source, State};
use blkpilot_agent::owner::handle::HostView;
use blkpilot_env::Level;
use blkpilot_env::features::CHANNEL_HEAD;
use blkpilot_log::{Event, Source as LogSource};
use blkpilot_models::baseline::{LeastLoaded, RandomPolicy};

use crate::setup::{Channel, Setup, four, guest, loaded, rows};

#[tokio::test]
async fn a_shadow_changes_nothing_and_logs_what_the_candidate_would_do() {
    let modes = [Mode::Shadow, Mode::Observe, Mode::Advise, Mode::Off];
    let mut setup = Setup::new(modes, loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", RandomPolicy));
    let case = setup.start();
    let decisions = case.decisions(40).await;
    let mut would_change = 0;
    for decision in &decisions {
        assert_eq!(
            (decision.source, decision.state, decision.durable),
            (Source::Shadow, State::Proposed, true)
        );
        let by = decision.policy.as_ref().unwrap();
        assert_eq!(by.version, "candidate-1");
        assert_eq!(decision.rows.len(), 1);
        for row in &decision.rows {
            assert_eq!(
                (guest(row), row.source, &*row.policy_version),
                ("guest-0", LogSource::Shadow, "candidate-1")
            );
            for head in &row.heads {
                let allowed = head.mask.iter().filter(|m| m.is_allowed()).count();
                assert!(!head.forced && allowed >= 2, "{head:?}");
                assert_eq!(head.propensity, 1.0 / allowed as f64);
                assert_eq!(head.executed, head.previous);
                assert_eq!(head.altered.is_some(), head.requested != head.executed);
                would_change += usize::from(head.altered.is_some());
            }
        }
    }
    assert!(would_change > 0);
    assert_eq!(case.told.lock().unwrap().len(), 0);
    let id = decisions[0].id;
    let mut from_log = vec![];
    for event in case.log().await {
        match event {
            Event::Decision(row) if row.host_step_id.0 == id.as_u128() => from_log.push(*row),
            Event::Decision(_) => {}
            Event::Outcome(outcome) => panic!("nothing came of it: {outcome:?}"),
        }
    }
    let again = Decision::from_log(from_log).unwrap().slim();
    assert_eq!(again, *decisions[0]);
}

#[tokio::test]
async fn a_proposal_for_a_guest_in_the_shadow_is_the_production_policys() {
    let mut setup = Setup::new([Mode::Shadow; 4], loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", Channel(2)));
    let case = setup.start();
    case.view(|view| view.window.is_some()).await;
    let proposal = case.host.propose().await.unwrap();
    assert_eq!(proposal.policy.as_ref().unwrap().name, "production");
    let chosen = proposal
        .rows
        .iter()
        .map(|row| row.heads[CHANNEL_HEAD].requested);
    assert_eq!(chosen.collect::<Vec<_>>(), [1; 4]);
}

#[tokio::test]
async fn canary_and_auto_decide_together_each_by_its_own_policy() {
    let modes = [Mode::Canary, Mode::Auto, Mode::Shadow, Mode::Advise];
    let mut setup = Setup::new(modes, loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", Channel(2)));
    let case = setup.start();
    let decisions = case.decisions(20).await;
    let (shadow, joint): (Vec<_>, Vec<_>) = decisions
        .into_iter()
        .partition(|decision| decision.source == Source::Shadow);
    assert!(shadow.len() >= 9 && joint.len() >= 9);
    for decision in &joint {
        assert_eq!((decision.source, decision.rows.len()), (Source::Auto, 4));
        assert_eq!(decision.policy.as_ref().unwrap().name, "production");
        for row in &decision.rows {
            let want = match guest(row) {
                "guest-0" => (LogSource::Canary, "candidate", "candidate-1"),
                _ => (LogSource::Auto, "production", "production-1"),
            };
            let by = (row.source, &*row.policy, &*row.policy_version);
            assert_eq!(by, want);
        }
    }
    let first = |of| rows(&joint, of).next().unwrap().heads[CHANNEL_HEAD].executed;
    assert_eq!((first("guest-0"), first("guest-1")), (2, 1));
    assert_eq!((first("guest-2"), first("guest-3")), (0, 0));
    let changed = [0, 1, 2, 3].map(|disk| case.was_changed(disk));
    assert_eq!(changed, [true, true, false, false]);
    let shadowed = rows(&shadow, "guest-2").next().unwrap();
    assert_eq!(shadowed.heads[CHANNEL_HEAD].requested, 2);
    // What was decided together is read back as one decision.
    let wanted = joint[0].clone();
    let mut from_log = vec![];
    for event in case.log().await {
        if let Event::Decision(row) = event
            && row.host_step_id.0 == wanted.id.as_u128()
        {
            from_log.push(*row);
        }
    }
    assert_eq!(Decision::from_log(from_log).unwrap().slim(), *wanted);
}

#[tokio::test]
async fn each_disk_sees_the_choices_made_before_it_whoever_made_them() {
    let least_loaded = || LeastLoaded::new(&four()).unwrap();
    let modes = [Mode::Canary, Mode::Auto, Mode::Canary, Mode::Auto];
    let mut setup = Setup::new(modes, loaded("production", least_loaded()));
    setup.candidate = Some(loaded("candidate", least_loaded()));
    let case = setup.start();
    let decisions = case.decisions(1).await;
    let rows = decisions[0].rows.iter();
    let channels: BTreeSet<Level> = rows.map(|row| row.heads[CHANNEL_HEAD].executed).collect();
    // Four equal disks, four channels: one each.
    assert_eq!(channels, BTreeSet::from([1, 2, 3, 4]));
}

#[tokio::test]
async fn without_a_candidate_shadow_and_canary_are_advice_and_say_so() {
    let modes = [Mode::Shadow, Mode::Canary, Mode::Advise, Mode::Advise];
    let case = Setup::new(modes, loaded("production", Channel(1))).start();
    let view = case.view(|view| view.window.is_some()).await;
    for (shown, mode) in view.window.unwrap().guests.iter().zip(modes) {
        assert_eq!(shown.mode, Mode::Advise);
        let notice = shown.notice.clone().unwrap_or_default();
        let is_one = notice.contains(&format!("mode {mode}")) && notice.contains("[candidate]");
        assert_eq!(
            is_one,
            matches!(mode, Mode::Shadow | Mode::Canary),
            "{notice}"
        );
    }
    let mut last = 0;
    for _ in 0..10 {
        let is_next = |view: &HostView| view.window.as_ref().is_some_and(|w| w.at_us > last);
        let view = case.view(is_next).await;
        last = view.window.unwrap().at_us;
    }
    assert_eq!(case.told.lock().unwrap().len(), 0);
}
