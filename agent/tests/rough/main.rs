//! Clients that are rough beside clients that behave, at the binary: those that stall, cut connections, send rubbish,
//! open what they never use. Nobody else may notice, the owner of the host least of all, and nothing may be left.
//!
//! Of the calls of those that behave none may be refused, with RESOURCE_EXHAUSTED or UNAVAILABLE neither: each has a token,
//! and with that a rate of its own.
//!
//! `BLKPILOT_ROUGH_SECONDS` is for how long they come, 6 by default; `scripts/verify.sh rough-clients` takes ten minutes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod daemon;
mod lateness;
mod polite;
mod raw;
mod rude;
mod tasks;
mod watchers;

use std::time::Duration;

use daemon::{Daemon, Figures};
use lateness::{Lateness, Metronome};

/// Times that all rude clients come and go.
const ROUNDS: u32 = 4;
/// Rounds after which memory has what it needs.
const SETTLED: usize = 2;
/// How long the control loop is watched alone, at most.
const LONGEST_ALONE: Duration = Duration::from_secs(60);
/// What memory may grow by from then on, of what the allocator keeps.
const MOST_GROWTH_MIB: f64 = 24.0;
/// How long what rude clients have opened may be there after they have gone.
const PATIENCE: Duration = Duration::from_secs(30);

fn length() -> Duration {
    let seconds = std::env::var("BLKPILOT_ROUGH_SECONDS").ok();
    Duration::from_secs(seconds.map_or(6, |seconds| seconds.parse().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rough_clients_starve_nobody_and_leave_nothing_behind() {
    let daemon = Daemon::start();
    let length = length();
    let idle = lateness::watch(&daemon.site, (length / 3).min(LONGEST_ALONE)).await;
    let before = daemon.figures();
    let silent = rude::say_nothing(&daemon.site).await;
    println!("before: {before}");
    let metronome = Metronome::start();
    let mut loaded = Lateness::default();
    let mut rounds: Vec<Figures> = vec![];
    for round in 1..=ROUNDS {
        let (served, visits, late) = tokio::join!(
            polite::call(&daemon.site, length / ROUNDS),
            rude::visit_for(&daemon.site, length / ROUNDS),
            lateness::watch(&daemon.site, length / ROUNDS),
        );
        println!("round {round}: {served}; {visits}");
        assert!(served.refusals.is_empty(), "{:#?}", served.refusals);
        assert!(visits.unanswered.is_empty(), "{:#?}", visits.unanswered);
        loaded.add(late);
        let after = daemon.settle(before.descriptors, PATIENCE).await;
        println!("after round {round}: {after}");
        assert!(
            after.descriptors <= before.descriptors,
            "{before} became {after}"
        );
        rounds.push(after);
    }
    println!("the control loop, {:?} apart:", daemon::INTERVAL);
    println!("  alone:               {idle}");
    println!("  with rough clients:  {loaded}");
    println!("  (a bare thread then: {})", metronome.stop());
    let growth_mib = rounds[rounds.len() - 1].memory_mib - rounds[SETTLED - 1].memory_mib;
    assert!(growth_mib < MOST_GROWTH_MIB, "{growth_mib} MiB in memory");
    assert!(!loaded.is_starved(), "the control loop was starved");
    rude::see_them_closed(silent).await;
}
