//! Whose changes the guard has had to put back. A policy of which it was too many is shown, so that it can be
//! taken out of use: the guard bounds what each change does, and this what a policy goes on doing.

use std::collections::BTreeMap;
use std::time::Duration;

use blkpilot_env::guard::harm::{HarmLimits, HarmRecord};
use blkpilot_log::{DecisionRow, Source, Subject};

/// What was put back, by whose changes they were.
#[derive(Debug, Default)]
pub(super) struct HarmWatch {
    /// Who made the last change of each disk that there is.
    authors: BTreeMap<String, Source>,
    production: HarmRecord,
    candidate: HarmRecord,
}

impl HarmWatch {
    /// Notes who has changed which disks.
    pub(super) fn note_changes(&mut self, rows: &[DecisionRow]) {
        let mut authors = BTreeMap::new();
        for row in rows {
            let Subject::Disk { guest, target } = &row.subject else {
                continue;
            };
            let disk = format!("{guest}/{target}");
            let has_changed = row.heads.iter().any(|head| head.executed != head.previous);
            let before = self.author_of(&disk);
            if let Some(author) = Some(row.source).filter(|_| has_changed).or(before) {
                authors.insert(disk, author);
            }
        }
        self.authors = authors;
    }

    /// Who has made the last change of a disk.
    pub(super) fn author_of(&self, disk: &str) -> Option<Source> {
        self.authors.get(disk).copied()
    }

    /// Notes that the guard has put back what `author` had changed: `what` says where, and why.
    pub(super) fn note_put_back(
        &mut self,
        author: Option<Source>,
        now: Duration,
        limits: &HarmLimits,
        what: &str,
    ) {
        match author {
            Some(Source::Auto) => self.production.note(now, limits, what),
            Some(Source::Canary) => self.candidate.note(now, limits, what),
            // What somebody asked for is nobody's policy.
            _ => {}
        }
    }

    /// Another policy decides in production.
    pub(super) fn production_changed(&mut self) {
        self.production = HarmRecord::default();
    }

    /// Another candidate decides.
    pub(super) fn candidate_changed(&mut self) {
        self.candidate = HarmRecord::default();
    }

    /// Why the production policy is to be taken out of use.
    pub(super) fn of_production(&self) -> Option<String> {
        self.production.verdict().map(str::to_owned)
    }

    /// Why the candidate is to be taken out of use.
    pub(super) fn of_candidate(&self) -> Option<String> {
        self.candidate.verdict().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_counts_for_the_policy_whose_change_it_was() {
        let limits = HarmLimits {
            changes: 1,
            ..HarmLimits::default()
        };
        let mut watch = HarmWatch::default();
        let mut put_back = |author| {
            watch.note_put_back(author, Duration::ZERO, &limits, "vm/vda: slower");
            (
                watch.of_production().is_some(),
                watch.of_candidate().is_some(),
            )
        };
        assert_eq!(put_back(None), (false, false));
        assert_eq!(put_back(Some(Source::Explicit)), (false, false));
        assert_eq!(put_back(Some(Source::Canary)), (false, true));
        assert_eq!(put_back(Some(Source::Auto)), (true, true));
        watch.candidate_changed();
        assert!(watch.of_production().is_some() && watch.of_candidate().is_none());
        watch.production_changed();
        assert_eq!(watch.of_production(), None);
    }
}
