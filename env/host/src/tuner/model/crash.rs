//! A crash between any two steps.

use super::event::{Event, Extent, Mishap, What};
use super::world::GUESTS;
use super::{Trial, is_full};

/// Everything is set, set to something else, and rolled back.
fn all_there_is() -> Vec<What> {
    let apply = |knob, value| (0..GUESTS).map(move |guest| What::Apply(guest, knob, value));
    let mut whats: Vec<What> = (0..4).flat_map(|knob| apply(knob, 0)).collect();
    whats.extend((0..2).flat_map(|knob| apply(knob, 1)));
    whats.push(What::Rollback(Extent::Guest(1)));
    whats.push(What::Rollback(Extent::Host));
    whats
}

/// Does all that, and dies after so many effects; the next process reconciles, rolls back, and dies too.
/// Returns whether the first one died.
fn die_twice(first: u32, second: u32) -> bool {
    let mut trial = Trial::new();
    let mut is_dead = false;
    trial.daemon.lifeline.set(Some(first));
    for what in all_there_is() {
        trial.act(&what);
        trial.judge_writes(&what);
        is_dead |= trial.daemon.lifeline.is_dead();
        if is_dead {
            break;
        }
    }
    trial.daemon.start_anew();
    let what = What::Rollback(Extent::Host);
    for (what, mishap) in [
        (What::Reconcile, Mishap::None),
        (what, Mishap::Dies(second)),
    ] {
        trial.happen(&Event { what, mishap });
    }
    trial.end();
    is_dead
}

#[test]
fn a_crash_between_any_two_steps_and_another_on_the_way_back_lose_nothing() {
    let mut deaths = 0;
    // All pairs, or of each first one a few, others each time.
    let step = if is_full() { 1 } else { 6 };
    for first in 0.. {
        let seconds = (first % step..26).step_by(step as usize);
        let died = seconds.filter(|second| die_twice(first, *second)).count();
        deaths += died;
        if died == 0 {
            println!(
                "{first} steps to die between, {deaths} deaths and as many again on the way back"
            );
            break;
        }
    }
    assert!(deaths > 4 * 60, "{deaths}");
}
