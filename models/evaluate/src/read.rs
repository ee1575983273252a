//! From a log to joint decisions with their rewards, in one pass, with what is wrong noted.
//!
//! Memory is two joint decisions per host, and the ids of the episodes.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use arrow_array::Array as _;
use blkpilot_env::{EnvSpec, Head, Level, MaskReason};
use blkpilot_log::{Horizon, LogError, Query, Scan};
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::{Error as WordError, StrDeserializer};

use crate::cells::{COLUMNS, Cells, List, uuid};
use crate::error::EvaluateError;
use crate::facts::{Behaviour, LogFacts};
use crate::options::Options;
use crate::step::{HeadCell, HostStep, Outcome, Part, Row};
use crate::target::forced;

/// How much later than the end of an interval the next decision may be, as a share of the interval.
const GAP_SHARE: f64 = 0.5;
/// How far a propensity may be from what the mask and ε leave possible.
const TOLERANCE: f64 = blkpilot_models::ope::SUM_TOLERANCE;

/// Weightings of the reward that are told apart.
const MOST_WEIGHTINGS: usize = 16;

/// A joint decision with its place in the course of its host.
pub(crate) struct Step<'a> {
    pub(crate) step: &'a HostStep,
    /// It follows the one before of this host within an interval, and that had a reward.
    pub(crate) follows: bool,
}

/// What is done with each joint decision.
pub(crate) trait Sink {
    fn take(&mut self, step: &Step<'_>) -> Result<(), EvaluateError>;
}

/// Reads the log once; `progress` is told how many rows have been read.
pub(crate) fn walk(
    log: &Path,
    options: &Options,
    spec: &EnvSpec,
    progress: &mut dyn FnMut(u64) -> Result<(), EvaluateError>,
    sink: &mut dyn Sink,
) -> Result<LogFacts, EvaluateError> {
    let query = Query {
        columns: COLUMNS.iter().map(|name| (*name).to_owned()).collect(),
        from_us: options.from_us,
        until_us: options.until_us,
        host: options.host.clone(),
        ..Query::default()
    };
    let horizon = options.now_us.map_or(Horizon::Final, Horizon::Now);
    let scan = Scan::open(log, query, horizon).map_err(|source| EvaluateError::Log { source })?;
    let mut reader = Reader {
        spec,
        spec_hash: spec.hash(),
        sink,
        facts: LogFacts::default(),
        hosts: vec![],
        host_numbers: HashMap::new(),
        episodes: HashSet::new(),
        scratch: String::new(),
        last_weights: vec![],
    };
    for batch in scan {
        match batch {
            Ok(batch) => {
                let cells = Cells::of(&batch).map_err(|source| EvaluateError::Log { source })?;
                for row in 0..cells.rows {
                    reader.take(&cells, row)?;
                }
                progress(reader.facts.rows)?;
            }
            // What is behind it can be read, so that all that is wrong is found at once.
            Err(error) => reader.facts.problems.note(None, text_of(&error)),
        }
    }
    reader.finish()
}

fn text_of(error: &LogError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What a row is to an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Policy,
    Intervention,
    NotApplied,
}

impl Role {
    fn of(source: &str) -> Option<Self> {
        Some(match source {
            "simulator" | "auto" | "canary" => Self::Policy,
            "explicit" | "rollback" | "guard" => Self::Intervention,
            "shadow" | "proposal" => Self::NotApplied,
            _ => return None,
        })
    }
}

struct Reader<'a> {
    spec: &'a EnvSpec,
    spec_hash: String,
    sink: &'a mut dyn Sink,
    facts: LogFacts,
    hosts: Vec<Host>,
    host_numbers: HashMap<String, usize>,
    /// Those that have begun, to know one that comes again.
    episodes: HashSet<(usize, u128)>,
    scratch: String,
    last_weights: Vec<(String, f64)>,
}

/// A host's joint decisions under way.
#[derive(Default)]
struct Host {
    /// Its rows are being read.
    building: Option<HostStep>,
    /// It is whole, and interventions may still bring its rewards.
    pending: Option<HostStep>,
    pending_follows: bool,
    spare: Vec<HostStep>,
    episode: Option<u128>,
    subjects: HashMap<String, u32>,
}

impl Reader<'_> {
    fn take(&mut self, cells: &Cells<'_>, row: usize) -> Result<(), EvaluateError> {
        let place = cells.place(row);
        self.facts.rows += 1;
        let source = cells.source.value(row);
        LogFacts::count(&mut self.facts.rows_by_source, source);
        let Some(role) = Role::of(source) else {
            let what = format!("source = {source}: this build does not know it");
            self.facts.problem(place, what);
            return Ok(());
        };
        if role == Role::NotApplied {
            return Ok(());
        }
        let host = self.host(cells.host_name.value(row));
        let subject = self.subject(cells, row, host);
        let outcome = self.outcome(cells, row, place);
        if role == Role::Intervention {
            self.close(host)?;
            self.intervene(host, subject, outcome);
            return Ok(());
        }
        let ids = [cells.host_step_id, cells.episode_id, cells.decision_id]
            .map(|column| uuid(column.value(row)));
        let [Some(step_id), Some(episode), Some(id)] = ids else {
            let what = "host_step_id, episode_id or decision_id is no UUID";
            self.facts.problem(place, what);
            return Ok(());
        };
        let at_us = cells.at.value(row);
        let is_next = |step: &HostStep| step.id != step_id;
        if self.hosts[host].building.as_ref().is_none_or(is_next) {
            self.close(host)?;
            self.begin(host, step_id, episode, at_us, place);
        }
        self.note_behaviour(cells, row);
        self.add(host, cells, row, subject, id, outcome);
        Ok(())
    }

    fn host(&mut self, name: &str) -> usize {
        if let Some(number) = self.host_numbers.get(name) {
            return *number;
        }
        let number = self.hosts.len();
        self.hosts.push(Host::default());
        self.host_numbers.insert(name.to_owned(), number);
        number
    }

    fn subject(&mut self, cells: &Cells<'_>, row: usize, host: usize) -> (u32, bool) {
        let is_disk = cells.subject.value(row) != "device";
        self.scratch.clear();
        if is_disk {
            let guest = if cells.guest.is_null(row) {
                ""
            } else {
                cells.guest.value(row)
            };
            self.scratch.push_str(guest);
            self.scratch.push('/');
        }
        self.scratch.push_str(cells.target.value(row));
        let subjects = &mut self.hosts[host].subjects;
        let number = match subjects.get(&self.scratch) {
            Some(number) => *number,
            None => {
                let number = subjects.len() as u32;
                subjects.insert(self.scratch.clone(), number);
                number
            }
        };
        (number, is_disk)
    }

    fn outcome(&mut self, cells: &Cells<'_>, row: usize, place: (u64, u64)) -> Option<Outcome> {
        if cells.outcome_missing.is_valid(row) || cells.outcome_at.is_null(row) {
            return None;
        }
        let counted = cells.counted.is_valid(row) && cells.counted.value(row);
        let own = cells.reward_own;
        if own.is_null(row) || !own.value(row).is_finite() {
            let what = "reward_own is missing or not finite: an outcome must say its reward";
            self.facts.problem(place, what);
            return None;
        }
        let validity = cells.reward_validity.value(row);
        if counted && !matches!(validity, "valid" | "estimated") {
            self.facts.rewards_not_valid.note(place);
        }
        Some(Outcome {
            own: f64::from(own.value(row)),
            total: if cells.reward_total.is_null(row) {
                f64::NAN
            } else {
                f64::from(cells.reward_total.value(row))
            },
            counted,
            end_us: cells.outcome_at.value(row),
            interval_s: if cells.interval_s.is_null(row) {
                0.0
            } else {
                cells.interval_s.value(row)
            },
            terminated: cells.terminated.is_valid(row) && cells.terminated.value(row),
        })
    }

    /// What an intervention brought within the interval of a decision is that decision's reward too.
    fn intervene(&mut self, host: usize, (subject, _): (u32, bool), outcome: Option<Outcome>) {
        let Some(pending) = &mut self.hosts[host].pending else {
            return;
        };
        let mut rows = pending.rows.iter_mut();
        if let Some(row) = rows.find(|row| row.subject == subject && row.outcome.is_none())
            && outcome.is_some()
        {
            row.outcome = outcome;
            self.facts.rewards_of_interventions.note(row.place);
        }
    }

    fn note_behaviour(&mut self, cells: &Cells<'_>, row: usize) {
        let stage = cells.stage.value(row);
        LogFacts::count(&mut self.facts.rows_by_stage, stage);
        let hash = cells.spec_hash.value(row);
        if hash != self.spec_hash && self.facts.foreign_spec.is_none() {
            self.facts.foreign_spec = Some(hash.to_owned());
        }
        self.note_weights(cells, row);
        if stage != "policy" {
            return;
        }
        let (name, version) = (cells.policy.value(row), cells.policy_version.value(row));
        let epsilon = number(cells.epsilon.is_valid(row), cells.epsilon.value(row));
        let known = self.facts.behaviours.iter_mut();
        let mut known = known.filter(|known| known.policy == name && known.version == version);
        match known.next() {
            Some(known) => {
                known.rows += 1;
                known.epsilon.0 = known.epsilon.0.min(epsilon);
                known.epsilon.1 = known.epsilon.1.max(epsilon);
            }
            None => self.facts.behaviours.push(Behaviour {
                policy: name.to_owned(),
                version: version.to_owned(),
                rows: 1,
                epsilon: (epsilon, epsilon),
            }),
        }
    }

    fn note_weights(&mut self, cells: &Cells<'_>, row: usize) {
        let (names, weights) = (&cells.reward_weight_name, &cells.reward_weight);
        let own = || {
            let pairs = names.range(row).zip(weights.range(row));
            pairs.map(|(name, weight)| (names.values.value(name), weights.values.value(weight)))
        };
        let mut last = self.last_weights.iter();
        let is_last = |(name, weight): (&str, f64)| {
            let last = last.next();
            last.is_some_and(|last| last.0 == name && last.1 == weight)
        };
        // As those of the row before, nearly always.
        if own().count() == self.last_weights.len() && own().all(is_last) {
            return;
        }
        let text: Vec<String> = own()
            .map(|(name, weight)| format!("{name}={weight}"))
            .collect();
        let text = text.join(" ");
        self.last_weights = own()
            .map(|(name, weight)| (name.to_owned(), weight))
            .collect();
        let known = &mut self.facts.reward_weights;
        if known.len() < MOST_WEIGHTINGS && !known.contains(&text) {
            known.push(text);
        }
    }

    fn begin(&mut self, host: usize, id: u128, episode: u128, at_us: i64, place: (u64, u64)) {
        let state = &mut self.hosts[host];
        let mut step = state.spare.pop().unwrap_or_default();
        step.clear();
        (step.host, step.id, step.episode, step.at_us) = (host, id, episode, at_us);
        let before = state.pending.as_ref();
        let before = before.filter(|before| before.episode == episode);
        let what = match before {
            Some(before) if before.id == id => Some(
                "goes on with a joint decision that had ended: rows are there twice, or mixed up",
            ),
            Some(before) if before.at_us > at_us => Some(
                "was decided before the row above it in its episode: rows are there twice, or mixed up",
            ),
            _ => None,
        };
        state.building = Some(step);
        if state.episode != Some(episode) {
            state.episode = Some(episode);
            if !self.episodes.insert((host, episode)) {
                let what = "goes on with an episode after another of its host had begun: rows are there twice, or mixed up";
                self.facts.problem(place, what);
            }
        }
        if let Some(what) = what {
            self.facts.problem(place, what);
        }
        let facts = &mut self.facts;
        facts.from_us = Some(facts.from_us.map_or(at_us, |from| from.min(at_us)));
        facts.until_us = Some(facts.until_us.map_or(at_us, |until| until.max(at_us)));
    }

    /// The joint decision whose rows were read is whole.
    fn close(&mut self, host: usize) -> Result<(), EvaluateError> {
        let Some(built) = self.hosts[host].building.take() else {
            return Ok(());
        };
        self.check_order(&built);
        self.hand_on(host, Some(&built))?;
        self.hosts[host].pending = Some(built);
        Ok(())
    }

    /// Gives the decision before `next` away, which is known to be whole now.
    fn hand_on(&mut self, host: usize, next: Option<&HostStep>) -> Result<(), EvaluateError> {
        let state = &mut self.hosts[host];
        let Some(step) = state.pending.take() else {
            state.pending_follows = false;
            return Ok(());
        };
        let follows = state.pending_follows;
        self.facts.steps += 1;
        let reward = step.reward();
        match reward {
            None => self.facts.steps_without_reward.note(step.rows[0].place),
            Some(reward) => {
                self.facts.rewards.0 += reward;
                self.facts.rewards.1 += 1;
                self.facts.steps_idle += u64::from(step.counted().0 == 0);
            }
        }
        let next = next.filter(|next| next.episode == step.episode);
        let next = next.filter(|_| reward.is_some() && !step.has_terminated());
        let is_near = match (next, step.end()) {
            (Some(next), Some((end_us, interval_s))) => {
                self.facts.interval_sum_s += interval_s;
                let late_s = (next.at_us - end_us) as f64 / 1e6;
                let is_near = late_s <= GAP_SHARE * interval_s;
                if !is_near {
                    self.facts.gaps.note(next.rows[0].place);
                }
                is_near
            }
            (None, Some((_, interval_s))) => {
                self.facts.interval_sum_s += interval_s;
                false
            }
            _ => false,
        };
        state.pending_follows = is_near;
        let taken = Step {
            step: &step,
            follows,
        };
        let done = self.sink.take(&taken);
        self.hosts[host].spare.push(step);
        done
    }

    /// The rows of a joint decision are numbered from 0, and each disk is there once.
    fn check_order(&mut self, step: &HostStep) {
        for (i, row) in step.rows.iter().enumerate() {
            let mut others = step.rows[..i].iter();
            let what = if others.any(|other| other.id == row.id || other.subject == row.subject) {
                "is there twice: its disk or device has a row in this joint decision already"
                    .to_owned()
            } else if row.order != i as i64 {
                format!(
                    "step_order = {} where {i} must follow: rows of this joint decision are missing or mixed up",
                    row.order
                )
            } else {
                continue;
            };
            self.facts.problem(row.place, what);
        }
    }

    fn add(
        &mut self,
        host: usize,
        cells: &Cells<'_>,
        at: usize,
        (subject, is_disk): (u32, bool),
        id: u128,
        outcome: Option<Outcome>,
    ) {
        let place = cells.place(at);
        let mut taken = self.hosts[host].building.take();
        let Some(step) = &mut taken else { return };
        let count = number(
            cells.channel_count.is_valid(at),
            cells.channel_count.value(at),
        );
        let count = usize::try_from(count).unwrap_or(0);
        let facts = &mut self.facts;
        let mut part = |list: &List<'_, _>| copy(list, at, &mut step.values, facts);
        let mut row = Row {
            place,
            id,
            subject,
            is_disk,
            order: i64::from(cells.step_order.value(at)),
            epsilon: number(cells.epsilon.is_valid(at), cells.epsilon.value(at)),
            heads: Part::default(),
            mask: Part::default(),
            disk: part(&cells.disk_features),
            device: part(&cells.device_features),
            host: part(&cells.host_features),
            channel_count: count,
            channels: part(&cells.channel_features),
            pairs: part(&cells.pair_features),
            outcome,
        };
        if outcome.is_none() {
            let missing = cells.outcome_missing;
            let why = if missing.is_valid(at) {
                missing.value(at)
            } else {
                "neither an outcome nor why there is none"
            };
            LogFacts::count(&mut facts.rows_without_outcome, why);
        }
        let checked = self
            .check_shape(&row)
            .and_then(|()| self.add_heads(cells, at, &mut row, step));
        match checked {
            Ok(()) => step.rows.push(row),
            Err(what) => {
                self.facts.problem(place, what);
                // So that the rows behind it are not all said to be out of order.
                step.rows.push(Row {
                    heads: Part::default(),
                    mask: Part::default(),
                    ..row
                });
            }
        }
        self.hosts[host].building = taken;
    }

    fn check_shape(&self, row: &Row) -> Result<(), String> {
        let spec = self.spec;
        let (disk, pairs) = if row.is_disk {
            (spec.disk_features.len(), spec.pair_features.len())
        } else {
            (0, 0)
        };
        let lengths = [
            ("disk_features", row.disk.len(), disk),
            ("host_features", row.host.len(), spec.host_features.len()),
            (
                "channel_features",
                row.channels.len(),
                row.channel_count * spec.channel_features.len(),
            ),
            ("pair_features", row.pairs.len(), row.channel_count * pairs),
        ];
        for (name, found, wanted) in lengths {
            if found != wanted {
                return Err(format!(
                    "{name} has {found} values, the spec and channel_count need {wanted}"
                ));
            }
        }
        match row.device.len() {
            0 => Ok(()),
            found if found == spec.device_features.len() => Ok(()),
            found => Err(format!(
                "device_features has {found} values, the spec has {}",
                spec.device_features.len()
            )),
        }
    }

    fn add_heads(
        &mut self,
        cells: &Cells<'_>,
        at: usize,
        row: &mut Row,
        step: &mut HostStep,
    ) -> Result<(), String> {
        let heads = if row.is_disk {
            &self.spec.disk_heads
        } else {
            &self.spec.device_heads
        };
        let names = cells.head_name.range(at);
        let lengths = [
            names.len(),
            cells.head_previous.range(at).len(),
            cells.head_requested.range(at).len(),
            cells.head_executed.range(at).len(),
            cells.head_propensity.range(at).len(),
            cells.head_explored.range(at).len(),
            cells.head_forced.range(at).len(),
            cells.head_mask.range(at).len(),
        ];
        if lengths.iter().any(|length| *length != heads.len()) {
            return Err(format!(
                "the lists head_… have {lengths:?} elements, the spec has {} heads",
                heads.len()
            ));
        }
        let (first_head, first_mask) = (step.heads.len(), step.masks.len());
        let added = heads
            .iter()
            .enumerate()
            .try_for_each(|(i, head)| self.add_head(cells, at, (i, head), row, step));
        if let Err(what) = added {
            step.heads.truncate(first_head);
            step.previous.truncate(first_head);
            step.masks.truncate(first_mask);
            return Err(what);
        }
        row.heads = Part::new(first_head, step.heads.len());
        row.mask = Part::new(first_mask, step.masks.len());
        Ok(())
    }

    fn add_head(
        &mut self,
        cells: &Cells<'_>,
        at: usize,
        (i, head): (usize, &Head),
        row: &Row,
        step: &mut HostStep,
    ) -> Result<(), String> {
        let name = cells
            .head_name
            .values
            .value(cells.head_name.range(at).start + i);
        if name != head.name {
            return Err(format!(
                "head_name[{i}] = {name}, the spec has {}",
                head.name
            ));
        }
        let mask = add_mask(cells, at, i, step)?;
        let levels = head.len(row.channel_count);
        if mask.len() != levels {
            return Err(format!(
                "head_mask of {name} has {} levels, the spec {levels}",
                mask.len()
            ));
        }
        let level = |list: &List<'_, arrow_array::Int32Array>, column: &str| {
            let value = list.values.value(list.range(at).start + i);
            let level = Level::try_from(value).ok();
            let level = level.filter(|level| usize::from(*level) < levels);
            level.ok_or_else(|| format!("{column} of {name} = {value}: it has {levels} levels"))
        };
        let previous = level(&cells.head_previous, "head_previous")?;
        let requested = level(&cells.head_requested, "head_requested")?;
        let executed = level(&cells.head_executed, "head_executed")?;
        let propensities = &cells.head_propensity;
        let cell = propensities.range(at).start + i;
        let propensity = number(
            propensities.values.is_valid(cell),
            propensities.values.value(cell),
        );
        let is_given = propensities.values.is_valid(cell);
        let flag = |list: &List<'_, arrow_array::BooleanArray>| {
            let cell = list.range(at).start + i;
            list.values.is_valid(cell) && list.values.value(cell)
        };
        let own = &step.masks[mask.range()];
        let drawn = Drawn {
            name,
            mask: own,
            previous,
            requested,
            propensity: is_given.then_some(propensity),
            explored: flag(&cells.head_explored),
            is_forced: flag(&cells.head_forced),
            epsilon: row.epsilon,
        };
        drawn.check()?;
        let is_free = forced(own, previous).is_none();
        self.facts.choices += u64::from(is_free);
        self.facts.forced += u64::from(!is_free);
        if executed != requested {
            self.facts.altered.note(row.place);
        }
        step.heads.push(HeadCell {
            requested,
            propensity,
            explored: drawn.explored,
            is_free,
            mask,
        });
        step.previous.push(previous);
        Ok(())
    }

    fn finish(mut self) -> Result<LogFacts, EvaluateError> {
        for host in 0..self.hosts.len() {
            self.close(host)?;
            self.hand_on(host, None)?;
        }
        let mut facts = self.facts;
        facts.hosts = self.hosts.len() as u64;
        facts.episodes = self.episodes.len() as u64;
        let with_reward = facts.rewards.1.max(1) as f64;
        facts.interval_s = facts.interval_sum_s / with_reward;
        facts.reward_mean = facts.rewards.0 / with_reward;
        Ok(facts)
    }
}

fn number<T: Default>(is_valid: bool, value: T) -> T {
    if is_valid { value } else { T::default() }
}

fn copy(
    list: &List<'_, arrow_array::Float32Array>,
    row: usize,
    out: &mut Vec<f32>,
    facts: &mut LogFacts,
) -> Part {
    let (start, range) = (out.len(), list.range(row));
    out.extend_from_slice(&list.values.values()[range.clone()]);
    if list.values.null_count() > 0 {
        for (to, from) in (start..).zip(range) {
            if list.values.is_null(from) {
                out[to] = f32::NAN;
                facts.values_not_finite += 1;
            }
        }
    }
    Part::new(start, out.len())
}

fn add_mask(
    cells: &Cells<'_>,
    at: usize,
    head: usize,
    step: &mut HostStep,
) -> Result<Part, String> {
    let list = cells.head_mask.range(at).start + head;
    let offsets = cells.head_mask.values.value_offsets();
    let start = step.masks.len();
    for word in offsets[list] as usize..offsets[list + 1] as usize {
        step.masks.push(reason(cells.mask_words.value(word))?);
    }
    Ok(Part::new(start, step.masks.len()))
}

fn reason(word: &str) -> Result<MaskReason, String> {
    if word == "allowed" {
        return Ok(MaskReason::Allowed);
    }
    let word_of: StrDeserializer<'_, WordError> = word.into_deserializer();
    MaskReason::deserialize(word_of).map_err(|_| format!("head_mask = {word} is not known"))
}

/// What was drawn of a head.
struct Drawn<'a> {
    name: &'a str,
    mask: &'a [MaskReason],
    previous: Level,
    requested: Level,
    propensity: Option<f64>,
    explored: bool,
    is_forced: bool,
    epsilon: f64,
}

impl Drawn<'_> {
    /// A propensity is one of the level that was drawn, under the mask that applied.
    fn check(&self) -> Result<(), String> {
        let name = self.name;
        let Some(propensity) = self.propensity else {
            return Err(format!(
                "head_propensity of {name} is missing: without it the row says nothing of another policy"
            ));
        };
        if !(propensity > 0.0 && propensity <= 1.0) {
            return Err(format!(
                "head_propensity of {name} = {propensity} must be in (0, 1]: the probability with which the level was drawn"
            ));
        }
        let is_certain = (propensity - 1.0).abs() <= TOLERANCE;
        match forced(self.mask, self.previous) {
            Some(level) if level != self.requested => Err(format!(
                "head_requested of {name} = {}, but the mask leaves only {level}",
                self.requested
            )),
            Some(_) if !is_certain => Err(format!(
                "head_propensity of {name} = {propensity}, but the mask leaves one level: the probabilities under it do not sum to 1"
            )),
            Some(_) => Ok(()),
            None => self.check_choice(propensity),
        }
    }

    fn check_choice(&self, propensity: f64) -> Result<(), String> {
        let name = self.name;
        if !self.mask[usize::from(self.requested)].is_allowed() {
            return Err(format!(
                "head_requested of {name} = {}, which the mask forbids",
                self.requested
            ));
        }
        if self.is_forced {
            return Err(format!(
                "head_forced of {name}, but the mask leaves a choice: the propensity is not one under it"
            ));
        }
        let allowed = self
            .mask
            .iter()
            .filter(|reason| reason.is_allowed())
            .count();
        let by_chance = self.epsilon / allowed as f64;
        if propensity < by_chance - TOLERANCE {
            return Err(format!(
                "head_propensity of {name} = {propensity} is below {by_chance}, with which epsilon = {} alone draws it: the probabilities do not sum to 1 under the mask",
                self.epsilon
            ));
        }
        Ok(())
    }
}
