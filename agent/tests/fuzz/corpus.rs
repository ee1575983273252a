//! Calls that were answered like none before, one a line: method, messages in hexadecimal digits, answer.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;

use super::target::Answer;

const KEPT: &str = include_str!("corpus.txt");
/// Bytes of a call that is worth a line.
const LONGEST: usize = 400;

/// A call in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) path: String,
    pub(crate) messages: Vec<Vec<u8>>,
}

/// Calls to begin from, and what they were answered.
#[derive(Debug, Default)]
pub(crate) struct Corpus {
    pub(crate) cases: Vec<Case>,
    seen: BTreeSet<(String, Answer)>,
}

impl Corpus {
    /// The cases of the repository.
    pub(crate) fn kept() -> Self {
        let cases = KEPT.lines().map(|line| {
            let mut parts = line.split('\t');
            let (path, messages) = (parts.next().unwrap(), parts.next().unwrap());
            Case {
                path: path.to_owned(),
                messages: messages.split(',').map(unhex).collect(),
            }
        });
        Self {
            cases: cases.collect(),
            ..Self::default()
        }
    }

    /// Notes what a case was answered. Whether nothing was answered so before.
    pub(crate) fn note(&mut self, path: &str, answer: &Answer) -> bool {
        self.seen.insert((path.to_owned(), answer.clone()))
    }

    /// Kinds of answers that were seen.
    pub(crate) fn answers(&self) -> usize {
        self.seen.len()
    }

    /// A case to begin from from now on, and in later runs if they are to be kept.
    pub(crate) fn add(&mut self, case: Case, answer: &Answer) {
        if case.messages.iter().map(Vec::len).sum::<usize>() > LONGEST {
            return;
        }
        if let Some(file) = std::env::var_os("BLKPILOT_FUZZ_KEEP") {
            let messages: Vec<String> = case.messages.iter().map(|m| hex(m)).collect();
            let Answer {
                code,
                reason,
                field,
            } = answer;
            let (path, messages) = (&case.path, messages.join(","));
            let field = field.escape_default();
            let mut file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(file)
                .unwrap();
            writeln!(file, "{path}\t{messages}\t{code} {reason} {field}").unwrap();
        }
        self.cases.push(case);
    }
}

/// As a line has it, to be found again.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.map(byte).collect()
}
