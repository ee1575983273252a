//! Kills a process that uploads, promotes and rolls back again and again, and checks that what it
//! acknowledged is there, that nothing stands half-way, and that every checkpoint can be served.
//!
//! Without a test harness: the process starts itself again as the writer. `BLKPILOT_KILLS` is the number of
//! kills.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blkpilot_agent::policies::store::{Asked, Change, Listed, PolicyStore, Stage, VersionName};
use blkpilot_env::Environment as _;
use blkpilot_env::Rng;
use blkpilot_env::cartpole::CartPole;
use blkpilot_models::{Architecture, Checkpoint, CheckpointBytes, Selection};
use rand::SeedableRng as _;

const WRITER: &str = "--write-to";
const FEW_KILLS: u32 = 12;
/// Kills of one store; a new one is begun then, since a store holds so many versions only.
const KILLS_PER_STORE: u32 = 20;

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(WRITER) {
        write_for_ever(Path::new(&args.next().expect("a directory follows")));
    }
    let kills = std::env::var("BLKPILOT_KILLS");
    let kills = kills.map_or(FEW_KILLS, |n| {
        n.parse().expect("BLKPILOT_KILLS is a number")
    });
    let mut total = Tally::default();
    for first in (0..kills).step_by(KILLS_PER_STORE as usize) {
        total.add(&kill_a_store(first..kills.min(first + KILLS_PER_STORE)));
    }
    assert!(total.acknowledged > 0, "no round got as far as one answer");
    assert!(
        kills < 100 || total.orphans > 0,
        "no kill hit a checkpoint that no version named yet"
    );
    println!(
        "{kills} kills, {} of them behind a checkpoint that no version named yet; {} changes acknowledged, none lost, none half done; each of {} checkpoints could be served",
        total.orphans, total.acknowledged, total.served
    );
    // The line that scripts/test.sh counts.
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

#[derive(Debug, Default)]
struct Tally {
    acknowledged: usize,
    orphans: usize,
    served: usize,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.orphans += other.orphans;
        self.served += other.served;
    }
}

/// What is done, one after the other; the order never changes, so that a number says all.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    Upload(u32),
    Promote(u32, Stage),
    Rollback,
}

fn deeds() -> impl Iterator<Item = Deed> {
    (1..).flat_map(|number| {
        let mut deeds = vec![
            Deed::Upload(number),
            Deed::Promote(number, Stage::Candidate),
            Deed::Promote(number, Stage::Canary),
            Deed::Promote(number, Stage::Production),
        ];
        if number % 3 == 0 {
            deeds.push(Deed::Rollback);
        }
        deeds
    })
}

/// What must stand after so many deeds: versions, production, canary.
fn model(done: usize) -> (u32, Option<u32>, Option<u32>) {
    let (mut versions, mut tenures, mut canary) = (0, vec![], None);
    for deed in deeds().take(done) {
        match deed {
            Deed::Upload(number) => versions = number,
            Deed::Promote(number, Stage::Canary) => canary = Some(number),
            Deed::Promote(number, Stage::Production) => {
                tenures.push(number);
                canary = None;
            }
            Deed::Promote(..) => {}
            Deed::Rollback => drop(tenures.pop()),
        }
    }
    (versions, tenures.last().copied(), canary)
}

fn kill_a_store(rounds: Range<u32>) -> Tally {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut tally = Tally::default();
    for round in rounds {
        tally.acknowledged = tally.acknowledged.max(kill_a_writer(dir.path(), round));
        let store = PolicyStore::open(dir.path()).expect("the store opens");
        let done = store.events().expect("events can be read").len();
        assert!(
            done == tally.acknowledged || done == tally.acknowledged + 1,
            "{} were acknowledged, {done} found",
            tally.acknowledged
        );
        tally.acknowledged = done;
        let standing = store.standing().expect("stages can be read");
        let number = |version: Option<blkpilot_agent::policies::store::Version>| {
            version.map(|version| version.name.number)
        };
        let versions = store.versions(Listed::All).expect("versions can be read");
        let found = (
            versions.len() as u32,
            number(standing.production),
            number(standing.canary),
        );
        assert_eq!(found, model(done), "after {done} deeds");
        for version in &versions {
            store.checkpoint(version).expect("it can be served");
        }
        tally.served = versions.len();
        tally.orphans += usize::from(store.sweep().expect("the store is swept") > 0);
        assert_eq!(store.sweep().expect("the store is swept"), 0);
    }
    tally
}

/// Starts a writer, kills it after some answers and a while, and returns the last number it answered with.
fn kill_a_writer(dir: &Path, round: u32) -> usize {
    let program = std::env::current_exe().expect("the test knows its own path");
    let mut child = Command::new(program)
        .arg(WRITER)
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the writer starts");
    let output = BufReader::new(child.stdout.take().expect("its output is piped"));
    let mut lines = output.lines().map_while(Result::ok);
    let nth = (round * 7 % 23) as usize;
    let first = lines.nth(nth).expect("the writer answers");
    // The moment of the kill is to be any: nothing waits for it.
    let while_us = u64::from(round.wrapping_mul(2_654_435_761) % 8_000);
    let started = Instant::now();
    while started.elapsed() < Duration::from_micros(while_us) {
        std::hint::spin_loop();
    }
    // SIGKILL on Unix.
    child.kill().expect("the writer can be killed");
    child.wait().expect("the writer ends");
    let last = lines.last().unwrap_or(first);
    last.parse().expect("answers are numbers")
}

/// Does what is to be done next, for ever, and acknowledges each by how many are done.
fn write_for_ever(dir: &Path) -> ! {
    let store = PolicyStore::open(dir).expect("opens");
    let mut done = store.events().expect("events can be read").len();
    let spec = CartPole::new(0).spec().clone();
    let mut rng = Rng::seed_from_u64(1);
    let mut checkpoint = Checkpoint::untrained(&spec, Architecture::default(), &mut rng);
    let mut out = std::io::stdout();
    for deed in deeds().skip(done) {
        match deed {
            Deed::Upload(number) => upload(&store, dir, &mut checkpoint, number),
            Deed::Promote(number, stage) => {
                change(&store, |c| c.promote(&name(number), stage, &asked(), None));
            }
            Deed::Rollback => change(&store, |c| c.rollback("", &asked())),
        }
        done += 1;
        writeln!(out, "{done}").expect("acknowledges");
        out.flush().expect("acknowledges");
    }
    unreachable!("there is always more to do")
}

fn upload(store: &PolicyStore, dir: &Path, checkpoint: &mut Checkpoint, number: u32) {
    // Each version has a content of its own.
    checkpoint.manifest.seed = number.into();
    let made = dir.join("made");
    checkpoint.replace(&made).expect("is made");
    let kept = store
        .keep(&CheckpointBytes::read(&made).expect("is whole"))
        .expect("is kept");
    change(store, |change| {
        change.upload("net", &kept, Selection::Greedy, "", &asked())
    });
}

fn change<T>(
    store: &PolicyStore,
    act: impl FnOnce(&Change<'_>) -> Result<T, blkpilot_agent::policies::store::StoreError>,
) {
    store.change(act).expect("is done");
}

fn name(number: u32) -> VersionName {
    VersionName {
        policy: "net".to_owned(),
        number,
    }
}

fn asked() -> Asked {
    Asked {
        actor: "test".to_owned(),
        at_us: 1,
        reason: String::new(),
    }
}
