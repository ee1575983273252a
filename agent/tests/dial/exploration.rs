//! Exploration: the mixture that is logged, its budget, and when there is none.

use blkpilot_agent::config::mode::Mode;
use blkpilot_agent::owner::handle::{HostView, ShownExploration};
use blkpilot_env::guard::GuardConfig;
use blkpilot_env::guard::exploration::Exploration;
use blkpilot_log::DecisionRow;
use blkpilot_models::baseline::KeepDefault;

use crate::setup::{Setup, easy, loaded, rows};

fn exploring(epsilon: f64, changes_per_hour: u32, guard: GuardConfig) -> Setup {
    let modes = [Mode::Auto, Mode::Auto, Mode::Observe, Mode::Observe];
    Setup {
        exploration: Some(Exploration {
            epsilon,
            changes_per_hour,
        }),
        guard,
        ..Setup::new(modes, loaded("production", KeepDefault))
    }
}

/// Explored draws that set another level than the one in force.
fn explored_changes<'a>(rows: impl Iterator<Item = &'a DecisionRow>) -> usize {
    let is_one = |row: &&DecisionRow| {
        let mut heads = row.heads.iter();
        heads.any(|head| head.explored && head.requested != head.previous)
    };
    rows.filter(is_one).count()
}

fn shown(view: &HostView, of: &str) -> Option<ShownExploration> {
    let window = view.window.as_ref().unwrap();
    let guest = window.guests.iter().find(|guest| guest.status.name == of);
    guest.unwrap().exploration.clone()
}

#[tokio::test]
async fn the_mixtures_propensity_is_logged() {
    let epsilon = 0.4;
    let case = exploring(epsilon, 3600, easy()).start();
    let decisions = case.decisions(300).await;
    let view = case.view(|view| view.window.is_some()).await;
    let defaults = view
        .window
        .unwrap()
        .observation
        .default
        .disks
        .row(0)
        .to_vec();
    let (mut explored, mut greedy) = (0, 0);
    for row in rows(&decisions, "guest-0") {
        assert!(row.epsilon == epsilon || row.epsilon == 0.0);
        for (head, default) in row.heads.iter().zip(&defaults) {
            let allowed = head.mask.iter().filter(|m| m.is_allowed()).count() as f64;
            let want = match (head.forced, head.requested == *default) {
                (true, _) => 1.0,
                (false, true) => 1.0 - row.epsilon + row.epsilon / allowed,
                (false, false) => row.epsilon / allowed,
            };
            assert!(
                (head.propensity - want).abs() < 1e-12,
                "{head:?} of {row:?}"
            );
            assert!(!head.explored || row.epsilon > 0.0 && !head.forced);
            explored += usize::from(head.explored);
            greedy += usize::from(!head.explored && !head.forced);
        }
    }
    assert!(explored > 20 && greedy > 20, "{explored} and {greedy}");
    for row in rows(&decisions, "guest-1") {
        assert_eq!(row.epsilon, 0.0);
        assert!(row.heads.iter().all(|head| head.propensity == 1.0));
    }
    assert!(case.was_changed(0) && !case.was_changed(1));
}

#[tokio::test]
async fn an_exhausted_budget_ends_exploring() {
    let case = exploring(0.9, 2, easy()).start();
    let is_used_up = |view: &HostView| {
        view.window.is_some() && shown(view, "guest-0").is_some_and(|e| e.changes_left == 0)
    };
    let view = case.view(is_used_up).await;
    let pause = shown(&view, "guest-0").unwrap().pause.unwrap();
    assert!(pause.contains("budget"), "{pause}");
    let so_far = case.host.history.page("local", None, 10_000).unwrap();
    // Less than an hour on the host's clock, which passes an interval per window.
    let decisions = case.decisions(so_far.decisions.len() + 40).await;
    assert_eq!(explored_changes(rows(&decisions, "guest-0")), 2);
    let of_guest: Vec<&DecisionRow> = rows(&decisions, "guest-0").collect();
    let last = of_guest.iter().rposition(|row| row.epsilon > 0.0).unwrap();
    for row in &of_guest[last + 1..] {
        assert!(
            row.heads.iter().all(|head| head.propensity == 1.0),
            "{row:?}"
        );
    }
    assert!(of_guest.len() - last > 40);
}

#[tokio::test]
async fn a_guest_that_misses_its_objective_is_not_explored() {
    let mut guard = easy();
    guard.trial.p99_objective_us = Some(0.001);
    let case = exploring(0.9, 3600, guard).start();
    let decisions = case.decisions(30).await;
    assert!(rows(&decisions, "guest-0").all(|row| row.epsilon == 0.0));
    let view = case.view(|view| view.window.is_some()).await;
    let shown = shown(&view, "guest-0").unwrap();
    assert_eq!(shown.changes_left, 3600);
    assert!(shown.pause.unwrap().contains("objective"));
    assert_eq!(explored_changes(rows(&decisions, "guest-0")), 0);
}

#[tokio::test]
async fn nothing_is_explored_while_a_change_is_on_trial() {
    let mut guard = easy();
    guard.trial.windows = 5;
    let case = exploring(0.9, 3600, guard).start();
    let decisions = case.decisions(60).await;
    let of_guest: Vec<&DecisionRow> = rows(&decisions, "guest-0").collect();
    let changed = |row: &&DecisionRow| row.heads.iter().any(|h| h.executed != h.previous);
    let changes: Vec<usize> = (0..of_guest.len())
        .filter(|i| changed(&of_guest[*i]))
        .collect();
    assert!(changes.len() >= 3, "{changes:?}");
    for at in changes {
        let after = of_guest[at + 1..].iter().take(4);
        assert!(after.clone().all(|row| row.epsilon == 0.0));
        assert!(after.flat_map(|row| &row.heads).all(|head| head.forced));
    }
}
