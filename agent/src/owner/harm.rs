//! Whose changes the guard has had to put back. A policy of which it was too many is shown, so that it can be
//! taken out of use: the guard bounds what each change does, and this what a policy goes on doing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use blkpilot_env::guard::breaker::BreakerConfig;
use blkpilot_log::{DecisionRow, Source, Subject};

/// What was put back of one policy's changes, since it took its seat.
#[derive(Debug, Default)]
struct Record {
    /// When, within the time that counts.
    at: VecDeque<Duration>,
    /// Why it is too much; `None` if it is not.
    verdict: Option<String>,
}

impl Record {
    fn note(&mut self, now: Duration, limits: &BreakerConfig, what: &str) {
        self.at.push_back(now);
        let is_old = |at: &Duration| now.saturating_sub(*at) > limits.within;
        while self.at.front().is_some_and(is_old) {
            self.at.pop_front();
        }
        if self.at.len() >= limits.failures as usize {
            let (count, within) = (self.at.len(), limits.within.as_secs_f64());
            self.verdict = Some(format!(
                "the guard put back {count} of its changes within {within} s, the last on {what}"
            ));
            self.at.clear();
        }
    }
}

/// What was put back, by whose changes they were.
#[derive(Debug, Default)]
pub(super) struct HarmWatch {
    /// Who made the last change of each disk that there is.
    authors: BTreeMap<String, Source>,
    production: Record,
    candidate: Record,
}

impl HarmWatch {
    /// Notes who has changed which disks.
    pub(super) fn note_changes(&mut self, rows: &[DecisionRow]) {
        let mut seen = BTreeMap::new();
        for row in rows {
            let Subject::Disk { guest, target } = &row.subject else {
                continue;
            };
            let disk = format!("{guest}/{target}");
            let has_changed = row.heads.iter().any(|head| head.executed != head.previous);
            let before = self.authors.remove(&disk);
            let author = if has_changed {
                Some(row.source)
            } else {
                before
            };
            if let Some(author) = author {
                seen.insert(disk, author);
            }
        }
        self.authors = seen;
    }

    /// Who has made the last change of a disk.
    pub(super) fn author_of(&self, disk: &str) -> Option<Source> {
        self.authors.get(disk).copied()
    }

    /// Notes that the guard has put back what `author` had changed; `limits` say how often is too often.
    pub(super) fn note_put_back(
        &mut self,
        author: Option<Source>,
        now: Duration,
        limits: &BreakerConfig,
        what: &str,
    ) {
        match author {
            Some(Source::Auto) => self.production.note(now, limits, what),
            Some(Source::Canary) => self.candidate.note(now, limits, what),
            _ => {}
        }
    }

    /// Another policy decides in production.
    pub(super) fn production_changed(&mut self) {
        self.production = Record::default();
    }

    /// Another candidate decides.
    pub(super) fn candidate_changed(&mut self) {
        self.candidate = Record::default();
    }

    /// Why the production policy is to be taken out of use.
    pub(super) fn of_production(&self) -> Option<String> {
        self.production.verdict.clone()
    }

    /// Why the candidate is to be taken out of use.
    pub(super) fn of_candidate(&self) -> Option<String> {
        self.candidate.verdict.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn limits() -> BreakerConfig {
        BreakerConfig {
            failures: 2,
            within: s(10),
            ..BreakerConfig::default()
        }
    }

    #[test]
    fn a_policy_is_named_once_too_many_of_its_changes_were_put_back_within_the_time() {
        let mut watch = HarmWatch::default();
        let put_back = |watch: &mut HarmWatch, author, at| {
            watch.note_put_back(Some(author), s(at), &limits(), "vm/vda: slower");
        };
        put_back(&mut watch, Source::Auto, 0);
        put_back(&mut watch, Source::Auto, 20);
        put_back(&mut watch, Source::Canary, 20);
        put_back(&mut watch, Source::Explicit, 21);
        assert_eq!((watch.of_production(), watch.of_candidate()), (None, None));
        put_back(&mut watch, Source::Auto, 29);
        let verdict = watch.of_production().unwrap();
        assert!(
            verdict.contains("2 of its changes within 10 s"),
            "{verdict}"
        );
        assert!(verdict.ends_with("vm/vda: slower"), "{verdict}");
        watch.candidate_changed();
        assert!(watch.of_production().is_some());
        watch.production_changed();
        put_back(&mut watch, Source::Auto, 30);
        assert_eq!(watch.of_production(), None, "the next policy begins anew");
    }
}
