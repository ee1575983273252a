//! A run made again from its own directory, and whether the same comes of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_models::Checkpoint;
use blkpilot_models::checkpoint::Tensor;
use serde::Serialize;
use serde_json::Value;

use crate::state::{Changed, State, differ};
use crate::train::{Event, Existing, POLICY_DIR, Run, SUMMARY_FILE, Summary, train};
use crate::version::CODE;
use crate::{LabError, json_text};

/// Differences of figures that are told, of however many.
const MOST_TOLD: usize = 20;
/// What a summary says of time, which is another one each time, and of its code.
const NOT_COMPARED: [&str; 4] = ["wall_s", "steps_per_s", "comparison_s", "code_versions"];

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reproduction {
    /// The run that was made again.
    pub run: PathBuf,
    /// Where it was made again.
    pub again: PathBuf,
    /// Whether policy, comparison and learning curve are equal, bit for bit.
    pub equal: bool,
    /// What is not.
    pub differences: Vec<String>,
    /// Values compared in the policy's tensors, the learner's own state among them.
    pub values: usize,
    /// Host-steps trained.
    pub env_steps: u64,
    /// Code that trained the run.
    pub trained_by: Vec<String>,
    /// Code that trained it again.
    pub code_version: &'static str,
}

/// What to make again, and where.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Directory of the run.
    pub run: &'a Path,
    /// Directory to write to.
    pub out: &'a Path,
    /// What to do with what stands there.
    pub existing: Existing,
    /// What to do if other code trained the run.
    pub changed: Changed,
}

/// Trains a run again from the config, scenario and seed in its directory, as far as it came, and compares.
///
/// # Errors
/// `OtherCode` unless the request says to go on all the same; `NotTwice` of a run on a live host; `NotResumable` if the run cannot be read; `Interrupted`;
/// as [`train`].
pub fn reproduce(
    request: &Request<'_>,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Reproduction, LabError> {
    let (state, checkpoint) = State::load(request.run)?;
    state.check_code(request.run, request.changed)?;
    // What was edited since is no matter: the run is what its directory says.
    let config = state.config(request.run, Changed::GoOn)?;
    if config.environment.is_live() {
        return Err(LabError::NotTwice {
            run: request.run.to_owned(),
        });
    }
    let run = Run {
        config: &config,
        seed: state.seed,
        out: request.out,
        existing: request.existing,
    };
    let target = checkpoint.manifest.env_steps;
    let is_there = AtomicBool::new(false);
    let summary = train(&run, &is_there, &mut |event| {
        if let Event::Update {
            env_steps, planned, ..
        } = &event
        {
            // A run that was interrupted is made again as far as it came; one that ended is compared too.
            let has_come_as_far = *env_steps >= target && target < *planned;
            let end = has_come_as_far || stop.load(Ordering::Relaxed);
            is_there.fetch_or(end, Ordering::Relaxed);
        }
        is_there.fetch_or(stop.load(Ordering::Relaxed), Ordering::Relaxed);
        watch(event);
    })?;
    if stop.load(Ordering::Relaxed) {
        return Err(LabError::Interrupted);
    }
    let again = Checkpoint::load(&request.out.join(POLICY_DIR))?;
    let mut differences = tensor_differences(&checkpoint, &again);
    differences.extend(figure_differences(request.run, &summary));
    let (state_again, _) = State::load(request.out)?;
    if state.points != state_again.points {
        differences.push("the learning curves differ".to_owned());
    }
    Ok(Reproduction {
        run: request.run.to_owned(),
        again: request.out.to_owned(),
        equal: differences.is_empty(),
        differences,
        values: checkpoint.tensors.values().map(|own| own.data.len()).sum(),
        env_steps: summary.env_steps,
        trained_by: state.code_versions,
        code_version: CODE,
    })
}

/// A line for each tensor that is not equal in each bit.
fn tensor_differences(was: &Checkpoint, is: &Checkpoint) -> Vec<String> {
    let mut differences = vec![];
    for (name, tensor) in &was.tensors {
        match is.tensors.get(name) {
            Some(other) => differences.extend(
                tensor_difference(tensor, other).map(|text| format!("tensor {name} {text}")),
            ),
            None => differences.push(format!("tensor {name} is missing")),
        }
    }
    let more = is
        .tensors
        .keys()
        .filter(|name| !was.tensors.contains_key(*name));
    differences.extend(more.map(|name| format!("tensor {name} is new")));
    differences
}

fn tensor_difference(was: &Tensor, is: &Tensor) -> Option<String> {
    if was.shape != is.shape {
        return Some(format!("had shape {:?} and has {:?}", was.shape, is.shape));
    }
    let pairs = || was.data.iter().zip(&is.data);
    let count = pairs().filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    let most = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    (count > 0).then(|| {
        format!(
            "differs in {count} of {} values, by {most:e} at most",
            was.data.len()
        )
    })
}

/// A line for each figure of the summary that is another one.
fn figure_differences(run: &Path, summary: &Summary) -> Vec<String> {
    let file = run.join(SUMMARY_FILE);
    let was = fs::read(&file).ok();
    let Some(mut was) = was.and_then(|text| serde_json::from_slice::<Value>(&text).ok()) else {
        // A run that was killed has none, and nothing to compare.
        return vec![];
    };
    let text = json_text(summary);
    let mut is: Value = serde_json::from_str(&text).unwrap_or_default();
    for key in NOT_COMPARED {
        was[key].take();
        is[key].take();
    }
    let mut differences = vec![];
    differ("", &was, &is, &mut differences);
    let more = differences.len().saturating_sub(MOST_TOLD);
    differences.truncate(MOST_TOLD);
    if more > 0 {
        differences.push(format!("and {more} figures more"));
    }
    differences
}

impl Reproduction {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let (run, again) = (self.run.display(), self.again.display());
        let steps = self.env_steps;
        let code = if self.trained_by.iter().all(|own| own == self.code_version) {
            self.code_version.to_owned()
        } else {
            let by = self.trained_by.join(", then ");
            format!("{}, where {by} trained the run", self.code_version)
        };
        if self.equal {
            return format!(
                "equal: {steps} steps from {run} give the same policy ({} values, the learner's state among them), \
                 learning curve and comparison, bit for bit\ncode: {code}; written to {again}\n",
                self.values
            );
        }
        format!(
            "NOT equal: {steps} steps from {run} give something else in {again}:\n  {}\ncode: {code}\n",
            self.differences.join("\n  ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_compared_by_their_bits() {
        let tensor = |data: &[f32]| Tensor {
            shape: vec![data.len()],
            data: data.to_vec(),
        };
        let was = tensor(&[1.0, 2.0, 0.0]);
        assert_eq!(tensor_difference(&was, &was.clone()), None);
        let found = tensor_difference(&was, &tensor(&[1.0, 2.5, -0.0])).unwrap();
        assert_eq!(found, "differs in 2 of 3 values, by 5e-1 at most");
        let found = tensor_difference(&was, &tensor(&[1.0])).unwrap();
        assert!(found.contains("had shape [3] and has [1]"), "{found}");
    }
}
