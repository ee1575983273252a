//! Requests, configurations and token files that are drawn, broken and sent: nothing of ours may panic or hang, and
//! each call is answered with a status that fits.
//!
//! Messages are drawn from the descriptors of every method, with names, filters and tensors that could be meant, and
//! then bytes of them are changed. Those whose answer was like none before are kept in `corpus.txt` and sent again each
//! time. `BLKPILOT_FUZZ_SECONDS` is for how long, 4 by default (`scripts/verify.sh fuzz`: ten minutes);
//! `BLKPILOT_FUZZ_SEED` is another seed than 1; `BLKPILOT_FUZZ_KEEP` a file that new cases are added to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod calls;
mod corpus;
mod draw;
mod good;
mod mutate;
mod panics;
mod target;
mod texts;
mod words;

use std::time::Duration;

use blkpilot_env::Rng;
use rand::SeedableRng as _;

fn length() -> Duration {
    let seconds = std::env::var("BLKPILOT_FUZZ_SECONDS").ok();
    Duration::from_secs(seconds.map_or(4, |seconds| seconds.parse().unwrap()))
}

fn rng() -> Rng {
    let seed = std::env::var("BLKPILOT_FUZZ_SEED").ok();
    let seed: u64 = seed.map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    Rng::seed_from_u64(seed)
}
