//! One joint decision of two policies: the production policy for guests in mode auto, the candidate
//! for guests in mode canary. Their disks take turns in one random order, so that each sees the
//! channels as they stand after the choices made before it, whoever made them.

use std::collections::BTreeMap;

use blkpilot_env::{EnvSpec, Rng, Turn, TurnView};
use blkpilot_log::{DecisionRow, Source as LogSource, Stage};
use blkpilot_models::{Choice, Outlier, Policy, PolicyError};

use crate::config::mode::Mode;
use crate::decision::chain::{Chain, Situation, Turned};
use crate::wire::names::guest_of;

/// What a guest may be explored in one joint decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Allowance {
    /// Probability with which a head explores.
    pub(crate) epsilon: f64,
    /// Changes that explored draws may still make.
    pub(crate) changes_left: u32,
}

/// Who chose in a turn.
struct Author {
    source: LogSource,
    turned: Turned,
}

/// The policies of one joint decision. Each turn is passed to the policy whose it is.
pub(crate) struct Panel<'a> {
    at: Situation<'a>,
    production: &'a mut Chain,
    candidate: Option<&'a mut Chain>,
    /// Per disk: whose turn it is.
    sources: Vec<LogSource>,
    allowances: BTreeMap<String, Allowance>,
    authors: Vec<Author>,
    /// Guests that explored draws have changed, once per change.
    changed: Vec<String>,
}

impl<'a> Panel<'a> {
    /// `modes`: of the guests, by name. Disks that are in neither mode have no choice; their rows stand
    /// in the name of the policy that decides otherwise.
    pub(crate) fn new(
        at: Situation<'a>,
        production: &'a mut Chain,
        candidate: Option<&'a mut Chain>,
        modes: &BTreeMap<String, Mode>,
        allowances: BTreeMap<String, Allowance>,
    ) -> Self {
        let mut candidate = candidate;
        production.begin();
        if let Some(candidate) = &mut candidate {
            candidate.begin();
        }
        let is_auto = modes.values().any(|mode| *mode == Mode::Auto);
        let source = |id: &String| match modes.get(guest_of(id)) {
            Some(Mode::Canary) => LogSource::Canary,
            Some(Mode::Auto) => LogSource::Auto,
            _ if is_auto || candidate.is_none() => LogSource::Auto,
            _ => LogSource::Canary,
        };
        Self {
            sources: at.observation.disk_ids.iter().map(source).collect(),
            at,
            production,
            candidate,
            allowances,
            authors: vec![],
            changed: vec![],
        }
    }

    fn source(&self, turn: Turn) -> LogSource {
        match turn {
            Turn::Disk(disk) => self.sources[disk],
            Turn::Device(_) => LogSource::Auto,
        }
    }

    fn guest(&self, turn: Turn) -> Option<&'a str> {
        match turn {
            Turn::Disk(disk) => Some(guest_of(&self.at.observation.disk_ids[disk])),
            Turn::Device(_) => None,
        }
    }

    fn turn(
        &mut self,
        source: LogSource,
        view: &TurnView<'_>,
        epsilon: f64,
        rng: &mut Rng,
    ) -> Turned {
        let candidate = match (source, &mut self.candidate) {
            (LogSource::Canary, Some(candidate)) => candidate,
            _ => return self.production.choose_or_keep(self.at, view, epsilon, rng),
        };
        candidate
            .choose(self.at, view, epsilon, rng)
            .unwrap_or_else(|_| {
                // To a candidate the production policy is the last one known to be good.
                let mut turned = self.production.choose_or_keep(self.at, view, 0.0, rng);
                turned.stage = turned.stage.max(Stage::LastGood);
                candidate.count(turned.stage);
                turned
            })
    }

    fn note_exploration(&mut self, guest: Option<&str>, view: &TurnView<'_>, turned: &Turned) {
        let Some((guest, allowance)) =
            guest.and_then(|guest| Some((guest, self.allowances.get_mut(guest)?)))
        else {
            return;
        };
        let drawn = turned.explored.explored.iter().enumerate();
        let mut drawn = drawn.filter(|(_, explored)| **explored);
        let levels = &turned.explored.choice.levels;
        if drawn.any(|(head, _)| levels[head] != view.current[head]) {
            allowance.changes_left = allowance.changes_left.saturating_sub(1);
            self.changed.push(guest.to_owned());
        }
    }

    /// Says in each row who chose it, and returns the guests that explored draws would change, once
    /// per change.
    pub(crate) fn sign(self, rows: &mut [DecisionRow]) -> Vec<String> {
        for (row, Author { source, turned }) in rows.iter_mut().zip(self.authors) {
            row.source = source;
            row.stage = turned.stage;
            row.policy = turned.policy.name.into();
            row.policy_version = turned.policy.version.into();
            row.epsilon = turned.epsilon;
            for (head, explored) in row.heads.iter_mut().zip(turned.explored.explored) {
                head.explored = explored;
            }
        }
        self.changed
    }
}

impl Policy for Panel<'_> {
    fn name(&self) -> &str {
        &self.production.reference().name
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let (source, guest) = (self.source(view.turn), self.guest(view.turn));
        let allowance = guest.and_then(|guest| self.allowances.get(guest));
        let allowance = allowance.filter(|allowance| allowance.changes_left > 0);
        let epsilon = allowance.map_or(0.0, |allowance| allowance.epsilon);
        let turned = self.turn(source, view, epsilon, rng);
        self.note_exploration(guest, view, &turned);
        let choice = turned.explored.choice.clone();
        self.authors.push(Author { source, turned });
        Ok(choice)
    }

    fn novelty(&self, view: &TurnView<'_>) -> Vec<Outlier> {
        let Some(Author { source, turned }) = self.authors.last() else {
            return vec![];
        };
        match (source, turned.stage, &self.candidate) {
            (LogSource::Canary, Stage::Policy, Some(candidate)) => candidate.novelty(view),
            (_, Stage::Keep, _) => vec![],
            _ => self.production.novelty(view),
        }
    }
}

/// A candidate that decides alone, to be logged and not applied.
pub(crate) struct Shadow<'a> {
    at: Situation<'a>,
    candidate: &'a mut Chain,
}

impl<'a> Shadow<'a> {
    pub(crate) fn new(at: Situation<'a>, candidate: &'a mut Chain) -> Self {
        candidate.begin();
        Self { at, candidate }
    }
}

impl Policy for Shadow<'_> {
    fn name(&self) -> &str {
        &self.candidate.reference().name
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let turned = self.candidate.choose(self.at, view, 0.0, rng)?;
        Ok(turned.explored.choice)
    }

    fn novelty(&self, view: &TurnView<'_>) -> Vec<Outlier> {
        self.candidate.novelty(view)
    }
}
