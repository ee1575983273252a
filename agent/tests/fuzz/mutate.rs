//! Changes to bytes and texts that were good.

use blkpilot_env::Rng;
use rand::{Rng as _, RngExt as _};

/// Changes at most so many at once.
const MOST_CHANGES: u32 = 6;
/// Values that configurations do not expect.
const VALUES: &[&str] = &[
    "-1",
    "0",
    "1",
    "99999999999999999999",
    "1e308",
    "nan",
    "inf",
    "\"\"",
    "\"x\"",
    "\"1s\"",
    "\"99999999999999999999s\"",
    "\"-1s\"",
    "\"0-4294967295\"",
    "\"0\"",
    "[]",
    "[[]]",
    "[1, 2]",
    "[\"a\"]",
    "{}",
    "{ a = 1 }",
    "true",
    "1979-05-27T07:32:00Z",
    "\"unix:\"",
    "\"https://0.0.0.0:0\"",
    "\"\\u0000\"",
    "'''\n'''",
];

/// Some bytes changed, left out, doubled, put in from elsewhere, or cut off.
pub(crate) fn bytes(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..rng.random_range(0..MOST_CHANGES) {
        change(rng, bytes, other);
    }
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = rng.random_range(0..=bytes.len());
    let end = rng.random_range(at..=bytes.len().min(at + 16));
    match rng.random_range(0..7) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 => drop(bytes.splice(at..at, [0xff; 10])),
        3 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        4 => {
            let from = rng.random_range(0..=other.len());
            let to = rng.random_range(from..=other.len());
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        _ if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        _ => bytes.push(rng.next_u32() as u8),
    }
}

/// A text with some of its bytes changed, as far as it is one then.
pub(crate) fn text(rng: &mut Rng, text: &str) -> String {
    let mut changed = text.as_bytes().to_vec();
    bytes(rng, &mut changed, b"/=\"[]{}.\n");
    String::from_utf8_lossy(&changed).into_owned()
}

/// A file of keys with some lines left out, doubled, moved, or with other values.
pub(crate) fn lines(rng: &mut Rng, text: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..rng.random_range(1..=MOST_CHANGES) {
        if lines.is_empty() {
            break;
        }
        let (at, to) = (
            rng.random_range(0..lines.len()),
            rng.random_range(0..lines.len()),
        );
        match rng.random_range(0..6) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(to, lines[at].clone()),
            2 => lines.swap(at, to),
            3 => lines[at] = self::text(rng, &lines[at]),
            _ => lines[at] = revalued(rng, &lines[at]),
        }
    }
    lines.join("\n")
}

fn revalued(rng: &mut Rng, line: &str) -> String {
    let key = line.split('=').next().unwrap_or_default();
    format!("{key}= {}", VALUES[rng.random_range(0..VALUES.len())])
}

/// A value that a key may not expect.
pub(crate) fn value(rng: &mut Rng) -> &'static str {
    VALUES[rng.random_range(0..VALUES.len())]
}
