//! A log as a dataset of [Minari](https://minari.farama.org), in its Arrow storage.
//!
//! An episode of the dataset is what one disk did between two resets: its observations are the
//! features that the policy saw, one row of `disk`, `device`, `host`, `channel` and `pair` features
//! behind another; its actions the executed levels; its rewards the training rewards. `infos` has
//! what offline learning needs beside: the propensity of each head, the requested levels, whether
//! they were forced or explored, and whether the reward counts.
//!
//! The last observation of an episode is that of the last decision, whose own action is left out
//! unless its outcome is terminal; a terminal state is not seen, so the last observation is repeated
//! there and must not be bootstrapped from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::types::{Float32Type, Float64Type, Int64Type};
use arrow_array::{
    ArrayRef, ArrowPrimitiveType, BooleanArray, FixedSizeListArray, Float64Array, Int64Array,
    PrimitiveArray, RecordBatch, StructArray,
};
use arrow_buffer::ScalarBuffer;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{Field, Schema};
use serde_json::json;

use crate::columns::{LoggedRow, is_applied};
use crate::error::{LogError, failed};
use crate::scan::Scan;
use crate::schema::{OutcomeRow, Subject};

/// The version of Minari whose layout this is.
const MINARI_VERSION: &str = "0.5.4";
/// Steps of an episode; a longer one is cut, so that memory is bounded.
const MOST_STEPS: usize = 10_000;

/// What was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Exported {
    /// Episodes.
    pub episodes: u64,
    /// Steps of them.
    pub steps: u64,
    /// Decisions of devices, or that nobody applied, which were left out.
    pub left_out: u64,
    /// Decisions without an outcome, each of which ends an episode.
    pub without_outcome: u64,
    /// Decisions whose observation ends an episode and whose action is left out.
    pub last: u64,
}

/// Writes the rows of `scan`, which must have all columns, as the dataset `id` to `out/data`, which
/// must not be there.
///
/// # Errors
/// `Io`; `Row` if rows have different numbers of features, heads or levels, which one dataset cannot
/// have; and what the scan cannot read.
pub fn export(scan: Scan, out: &Path, id: &str) -> Result<Exported, LogError> {
    let data = out.join("data");
    fs::create_dir_all(out).map_err(failed("create", out))?;
    fs::create_dir(&data).map_err(failed("create", &data))?;
    let mut dataset = Dataset {
        data,
        shape: None,
        open: BTreeMap::new(),
        done: Exported::default(),
    };
    for batch in scan {
        for row in batch?.rows()? {
            dataset.take(&row)?;
        }
    }
    for (_, episode) in std::mem::take(&mut dataset.open) {
        dataset.finish(episode)?;
    }
    dataset.write_metadata(id)?;
    Ok(dataset.done)
}

/// Whose episode it is: episode, host, guest, disk.
type Key = (u128, Arc<str>, String, String);

/// What all rows of a dataset have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    spec_hash: Arc<str>,
    features: usize,
    /// Levels per head.
    levels: Vec<usize>,
    heads: Vec<String>,
}

impl Shape {
    fn of(row: &LoggedRow) -> Self {
        let heads = &row.decision.heads;
        Self {
            spec_hash: row.decision.spec_hash.clone(),
            features: observation(row).count(),
            levels: heads.iter().map(|head| head.mask.len()).collect(),
            heads: heads.iter().map(|head| head.head.clone()).collect(),
        }
    }
}

struct Dataset {
    data: PathBuf,
    shape: Option<Shape>,
    open: BTreeMap<Key, Episode>,
    done: Exported,
}

#[derive(Debug, Default)]
struct Episode {
    key: Option<Key>,
    observations: Vec<f32>,
    actions: Vec<i64>,
    requested: Vec<i64>,
    propensities: Vec<f64>,
    forced: Vec<bool>,
    explored: Vec<bool>,
    rewards: Vec<f64>,
    terminations: Vec<bool>,
    truncations: Vec<bool>,
    counted: Vec<bool>,
    at_us: Vec<i64>,
}

fn observation(row: &LoggedRow) -> impl Iterator<Item = f32> {
    let seen = &row.decision.seen;
    let tables = [
        &seen.disk,
        &seen.device,
        &seen.host,
        &seen.channels,
        &seen.pairs,
    ];
    tables.into_iter().flatten().copied()
}

impl Dataset {
    fn take(&mut self, row: &LoggedRow) -> Result<(), LogError> {
        let decision = &row.decision;
        let Subject::Disk { guest, target } = &decision.subject else {
            self.done.left_out += 1;
            return Ok(());
        };
        if !is_applied(decision.source) {
            self.done.left_out += 1;
            return Ok(());
        }
        self.check_shape(row)?;
        let key = (
            decision.episode_id.0,
            decision.host.clone(),
            guest.clone(),
            target.clone(),
        );
        let mut episode = self.open.remove(&key).unwrap_or_default();
        episode.key = Some(key.clone());
        let is_over = match &row.outcome {
            Ok(outcome) => episode.push(row, outcome),
            Err(_) => {
                self.done.without_outcome += 1;
                episode.observations.extend(observation(row));
                true
            }
        };
        if is_over || episode.rewards.len() > MOST_STEPS {
            self.finish(episode)
        } else {
            self.open.insert(key, episode);
            Ok(())
        }
    }

    fn check_shape(&mut self, row: &LoggedRow) -> Result<(), LogError> {
        let shape = Shape::of(row);
        let wanted = self.shape.get_or_insert_with(|| shape.clone());
        if *wanted == shape {
            return Ok(());
        }
        let problem = format!(
            "segment {} line {} has {} features, levels {:?} and spec {}; the rows before it have {}, {:?} and {}: choose rows of one host and time with one number of channels",
            row.segment,
            row.line,
            shape.features,
            shape.levels,
            shape.spec_hash,
            wanted.features,
            wanted.levels,
            wanted.spec_hash
        );
        Err(LogError::Row { problem })
    }

    fn finish(&mut self, mut episode: Episode) -> Result<(), LogError> {
        let shape = self.shape.clone().expect("there are rows");
        let observed = episode.observations.len() / shape.features.max(1);
        if episode.terminations.last() == Some(&true) && observed == episode.rewards.len() {
            let last = episode.observations.len() - shape.features;
            episode.observations.extend_from_within(last..);
        } else if observed == episode.rewards.len() {
            episode.drop_last_step(shape.heads.len());
            self.done.last += 1;
        }
        let steps = episode.rewards.len();
        if steps == 0 {
            return Ok(());
        }
        if episode.terminations.last() == Some(&false)
            && let Some(truncation) = episode.truncations.last_mut()
        {
            *truncation = true;
        }
        let number = self.done.episodes;
        self.done.episodes += 1;
        self.done.steps += steps as u64;
        let (episode_id, host, guest, target) = episode.key.clone().expect("it has had a row");
        let metadata = json!({
            "id": number,
            "total_steps": steps,
            "episode_id": crate::schema::EpisodeId(episode_id).to_string(),
            "host": host,
            "guest": guest,
            "disk": target,
        });
        let dir = self.data.join(number.to_string());
        fs::create_dir(&dir).map_err(failed("create", &dir))?;
        write_json(&dir.join("metadata.json"), &metadata)?;
        write_arrow(&dir.join("part-0.arrow"), &episode.batch(&shape))
    }

    fn write_metadata(&self, id: &str) -> Result<(), LogError> {
        let shape = self.shape.clone().ok_or_else(|| LogError::Row {
            problem: "no row of a disk with an outcome is among them: nothing to export".to_owned(),
        })?;
        let (low, high) = (f32::MIN, f32::MAX);
        let box_space = json!({
            "type": "Box",
            "dtype": "float32",
            "shape": [shape.features],
            "low": vec![low; shape.features],
            "high": vec![high; shape.features],
        });
        let action_space = json!({
            "type": "MultiDiscrete",
            "dtype": "int64",
            "nvec": shape.levels,
            "start": vec![0; shape.levels.len()],
        });
        let metadata = json!({
            "dataset_id": id,
            "minari_version": MINARI_VERSION,
            "data_format": "arrow",
            "jpeg_encoding": false,
            "total_episodes": self.done.episodes,
            "total_steps": self.done.steps,
            "observation_space": box_space.to_string(),
            "action_space": action_space.to_string(),
            "description": "Decisions of blkpilot, one episode per disk. infos/propensity is the probability of each requested level, infos/forced marks heads without a choice.",
            "blkpilot_heads": shape.heads,
            "blkpilot_spec_hash": shape.spec_hash,
        });
        write_json(&self.data.join("metadata.json"), &metadata)
    }
}

impl Episode {
    /// Takes a step; `true` if the episode ends with it.
    fn push(&mut self, row: &LoggedRow, outcome: &OutcomeRow) -> bool {
        self.observations.extend(observation(row));
        for head in &row.decision.heads {
            self.actions.push(head.executed.into());
            self.requested.push(head.requested.into());
            self.propensities.push(head.propensity);
            self.forced.push(head.forced);
            self.explored.push(head.explored);
        }
        self.rewards.push(outcome.reward_total.into());
        self.terminations.push(outcome.terminated);
        self.truncations.push(outcome.truncated);
        self.counted.push(outcome.counted);
        self.at_us.push(row.decision.at_us);
        outcome.terminated || outcome.truncated
    }

    fn drop_last_step(&mut self, heads: usize) {
        let steps = self.rewards.len().saturating_sub(1);
        for list in [&mut self.actions, &mut self.requested] {
            list.truncate(steps * heads);
        }
        self.propensities.truncate(steps * heads);
        for list in [&mut self.forced, &mut self.explored] {
            list.truncate(steps * heads);
        }
        self.rewards.truncate(steps);
        self.at_us.truncate(steps);
        for list in [
            &mut self.terminations,
            &mut self.truncations,
            &mut self.counted,
        ] {
            list.truncate(steps);
        }
    }

    /// One row per observation: what belongs to a step is padded by one, as Minari does.
    fn batch(self, shape: &Shape) -> RecordBatch {
        let rows = self.rewards.len() + 1;
        let heads = shape.heads.len();
        let per_head_flags = |mut flags: Vec<bool>| {
            flags.resize(rows * heads, false);
            list(Arc::new(BooleanArray::from(flags)), heads)
        };
        let flags = |mut flags: Vec<bool>| -> ArrayRef {
            flags.resize(rows, false);
            Arc::new(BooleanArray::from(flags))
        };
        let levels = |mut levels: Vec<i64>| {
            levels.resize(rows * heads, 0);
            list(primitive::<Int64Type>(levels), heads)
        };
        let mut propensities = self.propensities;
        propensities.resize(rows * heads, 1.0);
        let mut rewards = self.rewards;
        rewards.resize(rows, 0.0);
        let mut at_us = self.at_us;
        at_us.resize(rows, 0);
        let per_head = heads.to_string();
        let infos = [
            (
                "propensity",
                list(primitive::<Float64Type>(propensities), heads),
                true,
            ),
            ("requested", levels(self.requested), true),
            ("forced", per_head_flags(self.forced), true),
            ("explored", per_head_flags(self.explored), true),
            ("counted", flags(self.counted), false),
            (
                "at_us",
                Arc::new(Int64Array::from(at_us)) as ArrayRef,
                false,
            ),
        ];
        let infos: Vec<(Arc<Field>, ArrayRef)> = infos
            .into_iter()
            .map(|(name, array, is_per_head)| {
                let field = Field::new(name, array.data_type().clone(), true);
                let shape = is_per_head.then(|| ("shape".to_owned(), per_head.clone()));
                (
                    Arc::new(field.with_metadata(shape.into_iter().collect())),
                    array,
                )
            })
            .collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            (
                "observations",
                list(primitive::<Float32Type>(self.observations), shape.features),
            ),
            ("actions", levels(self.actions)),
            ("rewards", Arc::new(Float64Array::from(rewards))),
            ("terminations", flags(self.terminations)),
            ("truncations", flags(self.truncations)),
            ("infos", Arc::new(StructArray::from(infos))),
        ];
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
            .expect("each column has one value per observation")
    }
}

fn primitive<T: ArrowPrimitiveType>(values: Vec<T::Native>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(values), None))
}

fn list(values: ArrayRef, size: usize) -> ArrayRef {
    let field = Arc::new(Field::new("item", values.data_type().clone(), true));
    let size = i32::try_from(size).expect("features and heads are few");
    Arc::new(FixedSizeListArray::new(field, size, values, None))
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), LogError> {
    fs::write(path, format!("{value:#}\n")).map_err(failed("write", path))
}

fn write_arrow(path: &Path, batch: &RecordBatch) -> Result<(), LogError> {
    let file = File::create(path).map_err(failed("create", path))?;
    let broken = |error: arrow_schema::ArrowError| LogError::Io {
        file: path.to_owned(),
        action: "write",
        source: std::io::Error::other(error),
    };
    let mut writer = FileWriter::try_new(file, &batch.schema()).map_err(broken)?;
    writer.write(batch).map_err(broken)?;
    writer.finish().map_err(broken)
}

#[cfg(test)]
mod tests;
