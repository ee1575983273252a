//! Kills a writing process again and again and checks that what it acknowledged is there.
//!
//! Without a test harness: the process starts itself again as the writer.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use blkpilot_env::Validity;
use blkpilot_log::{Config, DecisionId, Event, OutcomeRow, Reader, Writer};

const WRITER: &str = "--write-to";
const ROUNDS: u32 = 12;

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(WRITER) {
        write_for_ever(Path::new(&args.next().expect("a directory follows")));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        acknowledged = acknowledged.max(kill_a_writer(dir.path(), round));
        let found = read(dir.path());
        assert!(
            found >= acknowledged,
            "{acknowledged} were acknowledged, {found} found"
        );
    }
    assert!(
        acknowledged > 0,
        "no round got as far as one acknowledgement"
    );
    println!("{ROUNDS} kills, {acknowledged} events acknowledged, none lost");
    // The line that scripts/test.sh counts.
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

/// Starts a writer, kills it after some acknowledgements, and returns the last of them.
fn kill_a_writer(dir: &Path, round: u32) -> u64 {
    let program = std::env::current_exe().expect("the test knows its own path");
    let mut child = Command::new(program)
        .arg(WRITER)
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the writer starts");
    let output = BufReader::new(child.stdout.take().expect("its output is piped"));
    let mut lines = output.lines().map_while(Result::ok);
    let nth = (round * 7) as usize;
    let first = lines.nth(nth).expect("the writer acknowledges events");
    // SIGKILL on Unix.
    child.kill().expect("the writer can be killed");
    child.wait().expect("the writer ends");
    let last = lines.last().unwrap_or(first);
    last.parse().expect("acknowledgements are numbers")
}

/// Appends events with numbers that go on from what is there; acknowledges each batch of three by
/// the last number in it.
fn write_for_ever(dir: &Path) -> ! {
    let (mut writer, _) = Writer::open(
        dir,
        Config {
            segment_bytes: 20_000,
        },
    )
    .expect("opens");
    let mut number = read(dir);
    let mut out = std::io::stdout();
    loop {
        for _ in 0..3 {
            number += 1;
            writer.append(&event(number)).expect("appends");
        }
        writer.commit().expect("commits");
        writeln!(out, "{number}").expect("acknowledges");
        out.flush().expect("acknowledges");
    }
}

/// The number of the last event, after checking that none before it is missing.
fn read(dir: &Path) -> u64 {
    let mut last = 0;
    for entry in Reader::open(dir).expect("opens") {
        let Event::Outcome(row) = entry.expect("nothing is damaged").event else {
            panic!("only outcomes are written")
        };
        last += 1;
        assert_eq!(row.decision_id, DecisionId(u128::from(last)));
    }
    last
}

fn event(number: u64) -> Event {
    Event::Outcome(OutcomeRow {
        decision_id: DecisionId(u128::from(number)),
        at_us: 0,
        interval_s: 10.0,
        reward_total: -0.1,
        reward_own: -0.1,
        reward_terms: BTreeMap::from([("contention".to_owned(), -0.1)]),
        counted: true,
        validity: Validity::Valid,
        terminated: false,
        truncated: false,
    })
}
