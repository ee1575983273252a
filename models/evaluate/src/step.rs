//! One joint decision of a host, as it was logged, in arrays that are used again.

use std::ops::Range;

use blkpilot_env::{EnvSpec, Level, MaskReason, Turn};

use crate::target::LoggedTurn;

/// A part of one of the arrays of a [`HostStep`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Part {
    start: u32,
    end: u32,
}

impl Part {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    pub(crate) fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// The same part where what began at `from` begins at `to`.
    fn moved(self, from: u32, to: usize) -> Self {
        let start = (self.start - from) as usize + to;
        Self::new(start, start + self.len())
    }
}

/// One head of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadCell {
    pub(crate) requested: Level,
    pub(crate) propensity: f64,
    /// It was drawn from all that is allowed.
    pub(crate) explored: bool,
    /// It had a choice.
    pub(crate) is_free: bool,
    /// Its levels in [`HostStep::masks`].
    pub(crate) mask: Part,
}

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) own: f64,
    /// With its part of the host mean; NaN where that is missing, which only learners mind.
    pub(crate) total: f64,
    pub(crate) counted: bool,
    pub(crate) end_us: i64,
    pub(crate) interval_s: f64,
    pub(crate) terminated: bool,
}

/// A row of a joint decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) place: (u64, u64),
    pub(crate) id: u128,
    /// Number of the disk or device on its host.
    pub(crate) subject: u32,
    pub(crate) is_disk: bool,
    pub(crate) order: i64,
    pub(crate) epsilon: f64,
    /// In `heads` and `previous`.
    pub(crate) heads: Part,
    pub(crate) mask: Part,
    pub(crate) disk: Part,
    pub(crate) device: Part,
    pub(crate) host: Part,
    pub(crate) channel_count: usize,
    pub(crate) channels: Part,
    pub(crate) pairs: Part,
    pub(crate) outcome: Option<Outcome>,
}

/// A joint decision.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostStep {
    pub(crate) host: usize,
    pub(crate) id: u128,
    pub(crate) episode: u128,
    pub(crate) at_us: i64,
    pub(crate) rows: Vec<Row>,
    pub(crate) heads: Vec<HeadCell>,
    pub(crate) previous: Vec<Level>,
    pub(crate) masks: Vec<MaskReason>,
    pub(crate) values: Vec<f32>,
}

impl HostStep {
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.heads.clear();
        self.previous.clear();
        self.masks.clear();
        self.values.clear();
    }

    /// As `clone_from`, which for a struct makes new arrays; these are kept.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        let ids = (other.host, other.id, other.episode, other.at_us);
        (self.host, self.id, self.episode, self.at_us) = ids;
        self.rows.clone_from(&other.rows);
        self.heads.clone_from(&other.heads);
        self.previous.clone_from(&other.previous);
        self.masks.clone_from(&other.masks);
        self.values.clone_from(&other.values);
    }

    /// A copy that holds these rows and what belongs to them, and no more.
    pub(crate) fn only(&self, rows: Range<usize>) -> Self {
        let mut own = Self {
            host: self.host,
            id: self.id,
            episode: self.episode,
            at_us: self.at_us,
            ..Self::default()
        };
        for row in &self.rows[rows] {
            let (first_head, first_mask) = (own.heads.len(), own.masks.len());
            own.masks.extend_from_slice(&self.masks[row.mask.range()]);
            let previous = &self.previous[row.heads.range()];
            own.previous.extend_from_slice(previous);
            for cell in self.heads_of(row) {
                let mask = cell.mask.moved(row.mask.start, first_mask);
                own.heads.push(HeadCell { mask, ..*cell });
            }
            let mut part = |of: Part| {
                let start = own.values.len();
                own.values.extend_from_slice(self.values_of(of));
                Part::new(start, own.values.len())
            };
            let row = Row {
                disk: part(row.disk),
                device: part(row.device),
                host: part(row.host),
                channels: part(row.channels),
                pairs: part(row.pairs),
                ..*row
            };
            own.rows.push(Row {
                heads: Part::new(first_head, own.heads.len()),
                mask: Part::new(first_mask, own.masks.len()),
                ..row
            });
        }
        own
    }

    pub(crate) fn heads_of(&self, row: &Row) -> &[HeadCell] {
        &self.heads[row.heads.range()]
    }

    pub(crate) fn values_of(&self, part: Part) -> &[f32] {
        &self.values[part.range()]
    }

    /// What row number `i` saw.
    pub(crate) fn turn<'a>(&'a self, i: usize, spec: &'a EnvSpec) -> LoggedTurn<'a> {
        let row = &self.rows[i];
        let (turn, heads) = if row.is_disk {
            (Turn::Disk(i), &spec.disk_heads)
        } else {
            (Turn::Device(i), &spec.device_heads)
        };
        LoggedTurn {
            turn,
            heads,
            disk: self.values_of(row.disk),
            device: self.values_of(row.device),
            host: self.values_of(row.host),
            channel_count: row.channel_count,
            channels: self.values_of(row.channels),
            pairs: self.values_of(row.pairs),
            previous: &self.previous[row.heads.range()],
            mask: &self.masks[row.mask.range()],
        }
    }

    /// Mean own reward over the disks that count and whose outcome is known: 0 where none counts, `None`
    /// where no outcome is known.
    pub(crate) fn reward(&self) -> Option<f64> {
        let (mut sum, mut counted, mut known) = (0.0, 0_u32, 0_u32);
        for outcome in self.disk_outcomes() {
            known += 1;
            if outcome.counted {
                sum += outcome.own;
                counted += 1;
            }
        }
        (known > 0).then(|| sum / f64::from(counted.max(1)))
    }

    /// Outcomes of disks that count, and of all.
    pub(crate) fn counted(&self) -> (u32, u32) {
        self.disk_outcomes()
            .fold((0, 0), |(counted, known), outcome| {
                (counted + u32::from(outcome.counted), known + 1)
            })
    }

    fn disk_outcomes(&self) -> impl Iterator<Item = &Outcome> {
        let disks = self.rows.iter().filter(|row| row.is_disk);
        disks.filter_map(|row| row.outcome.as_ref())
    }

    /// When the interval ended, and how long it was; `None` without an outcome.
    pub(crate) fn end(&self) -> Option<(i64, f64)> {
        let outcomes = self.rows.iter().filter_map(|row| row.outcome.as_ref());
        outcomes
            .map(|outcome| (outcome.end_us, outcome.interval_s))
            .max_by_key(|(end_us, _)| *end_us)
    }

    pub(crate) fn has_terminated(&self) -> bool {
        let mut outcomes = self.rows.iter().filter_map(|row| row.outcome.as_ref());
        outcomes.any(|outcome| outcome.terminated)
    }
}
