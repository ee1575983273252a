//! Events for the tests of this crate.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use blkpilot_env::{MaskReason, Validity};
use blkpilot_models::TableName;

use crate::reader::Reader;
use crate::schema::{
    DecisionId, DecisionRow, EpisodeId, Event, Flaw, HeadRow, HostStepId, OutcomeRow, Seen, Source,
    Stage, Subject,
};

/// Decision number `number`, with one head and a few features.
pub(crate) fn decision(number: u128) -> Event {
    Event::Decision(Box::new(DecisionRow {
        id: DecisionId(number),
        host_step_id: HostStepId(7),
        episode_id: EpisodeId(8),
        at_us: 1_700_000_000_000_000,
        host: "höst \"a\"\n".into(),
        subject: Subject::Disk {
            guest: "vm-1".to_owned(),
            target: "vda".to_owned(),
        },
        order: 3,
        source: Source::Auto,
        reason: None,
        stage: Stage::LastGood,
        epsilon: 0.05,
        policy: "ppo".into(),
        policy_version: "4".into(),
        spec_hash: "ab".into(),
        seen: Seen {
            disk: vec![0.1, f32::MIN_POSITIVE, -0.0, 16_777_217.0, f32::MAX],
            device: vec![],
            host: vec![1.0 / 3.0],
            channel_count: 1,
            channels: vec![2.5],
            pairs: vec![],
            flaws: vec![Flaw {
                table: TableName::Disk,
                row: 0,
                column: 2,
                validity: Validity::Idle,
            }],
        },
        heads: vec![HeadRow {
            head: "channel".to_owned(),
            previous: 0,
            requested: 1,
            executed: 0,
            propensity: 0.1 + 0.2,
            explored: true,
            forced: false,
            altered: Some("dwell".to_owned()),
            mask: vec![MaskReason::Allowed, MaskReason::Allowed],
        }],
        novel: vec!["disk.iops".to_owned()],
        reward_weights: Arc::new(BTreeMap::from([("beta".to_owned(), 0.1)])),
    }))
}

/// The outcome of decision number `number`.
pub(crate) fn outcome(number: u128) -> Event {
    Event::Outcome(OutcomeRow {
        decision_id: DecisionId(number),
        at_us: 1_700_000_010_000_000,
        interval_s: 10.000_1,
        reward_total: -0.3,
        reward_own: -0.1,
        reward_terms: BTreeMap::from([("cpu".to_owned(), -0.1)]),
        counted: true,
        validity: Validity::Valid,
        terminated: false,
        truncated: false,
    })
}

/// All events of a log without damage.
pub(crate) fn events(dir: &Path) -> Vec<Event> {
    Reader::open(dir)
        .unwrap()
        .map(|entry| entry.unwrap().event)
        .collect()
}

/// What tells decisions of the tests below apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Of {
    pub(crate) number: u128,
    pub(crate) host: &'static str,
    pub(crate) at_us: i64,
    pub(crate) episode: u128,
}

/// A decision of a disk that somebody applied.
pub(crate) fn decision_of(of: Of) -> DecisionRow {
    let Event::Decision(mut row) = decision(of.number) else {
        unreachable!()
    };
    row.host = of.host.into();
    row.at_us = of.at_us;
    row.episode_id = EpisodeId(of.episode);
    row.host_step_id = HostStepId(of.number / 2);
    *row
}

/// Its outcome, ten seconds later.
pub(crate) fn outcome_of(of: Of) -> OutcomeRow {
    let Event::Outcome(mut row) = outcome(of.number) else {
        unreachable!()
    };
    row.at_us = of.at_us + 10_000_000;
    row
}
