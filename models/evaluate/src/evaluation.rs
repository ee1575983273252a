//! A log, a policy, and what it would have brought.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use blkpilot_log::inventory::{Form, Inventory, inventory};
use serde::{Deserialize, Serialize};

use crate::blocks::Blocks;
use crate::calibration::HeadCalibration;
use crate::diagnostics::Diagnostics;
use crate::error::EvaluateError;
use crate::estimate::{Estimate, Resampling, Value};
use crate::facts::LogFacts;
use crate::features::Features;
use crate::fit::{Fitting, Stride};
use crate::options::{Block, Exposure, Mixed, Options};
use crate::read::{Sink, Step, walk};
use crate::sample::{MOST_HELD_ROWS, Sampling};
use crate::target::TargetPolicy;
use crate::value_model::{Added, ModelEstimate, ValueModel};
use crate::windows::Windows;

/// Version of [`Evaluation`] as JSON.
pub const FORMAT: u32 = 1;

/// Who is evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyLabel {
    /// Its name.
    pub name: String,
    /// Its version: the content hash of a checkpoint.
    pub version: String,
    /// How it chooses, in words.
    pub chooses: String,
}

impl PolicyLabel {
    fn of(policy: &dyn TargetPolicy) -> Self {
        Self {
            name: policy.name().to_owned(),
            version: policy.version().to_owned(),
            chooses: policy.chooses(),
        }
    }
}

/// What a policy would have brought, and what says whether to believe it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// [`FORMAT`].
    pub format: u32,
    /// The policy.
    pub policy: PolicyLabel,
    /// What it is compared with; `None` for the behaviour in the log.
    pub against: Option<PolicyLabel>,
    /// How it was evaluated.
    pub options: Options,
    /// What is estimated, in words.
    pub estimand: String,
    /// What is assumed of who is exposed to whose choice, in words.
    pub exposure: String,
    /// What the log holds.
    pub log: LogFacts,
    /// Windows of the log.
    pub windows: WindowFacts,
    /// One per estimator.
    pub estimates: Vec<Estimate>,
    /// One per model that the caller has added. No verdict looks at them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelEstimate>,
    /// The behaviour as it was, on the same windows.
    pub behaviour: Option<Value>,
    /// Weights of the policy.
    pub diagnostics: Diagnostics,
    /// Weights of what it is compared with.
    pub against_diagnostics: Option<Diagnostics>,
    /// Propensities against what was drawn, per head.
    pub calibration: Vec<HeadCalibration>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

/// How the log was cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowFacts {
    /// Windows that have begun.
    pub begun: u64,
    /// Those of all steps. The others end at a gap, or with their episode, and count up to there.
    pub whole: u64,
    /// Blocks that are resampled.
    pub blocks: usize,
    /// Length of a block in seconds, lengthened where there would be too many; `None` of episodes.
    pub block_s: Option<f64>,
}

/// How far an evaluation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The pass over the log, from 0.
    pub pass: usize,
    /// All passes.
    pub passes: usize,
    /// Rows read in this pass; in that of models which were added, rows that they were fitted to.
    pub rows: u64,
    /// Rows of a pass; `None` where that is not known yet.
    pub of: Option<u64>,
}

/// Who is told how far an evaluation has come, who ends it, and who adds models to it.
pub struct Extras<'a> {
    /// Told about once per thousand rows.
    pub progress: Option<&'a mut dyn FnMut(Progress)>,
    /// Looked at as often: set where it is to end.
    pub stop: Option<&'a AtomicBool>,
    /// Models whose estimates stand beside the others', in [`Evaluation::models`]. With any, the log is read
    /// once more, for a [`Sample`](crate::Sample) of it.
    pub models: Vec<&'a mut dyn ValueModel>,
    /// Rows that are held in memory for them at most; of a longer log a random sample of windows is.
    pub most_held_rows: usize,
}

impl Default for Extras<'_> {
    /// Nobody is told, nothing is added; [`MOST_HELD_ROWS`].
    fn default() -> Self {
        Self {
            progress: None,
            stop: None,
            models: vec![],
            most_held_rows: MOST_HELD_ROWS,
        }
    }
}

/// What `policy` would have brought where the log in `log` was written, against another policy or what was.
///
/// The log is read three times, in batches of columns: once to check it and to learn the scale of the features,
/// once to fit the model, once for the estimates. Memory does not grow with the rows but with hosts, episodes
/// and, up to a bound, blocks.
///
/// # Errors
/// Whatever keeps it from being evaluated: `Problems` names rows.
pub fn evaluate(
    log: &Path,
    policy: &dyn TargetPolicy,
    against: Option<&dyn TargetPolicy>,
    options: &Options,
) -> Result<Evaluation, EvaluateError> {
    evaluate_with(log, policy, against, options, Extras::default())
}

/// As [`evaluate`], with what the caller adds. A model that fails has the reason in the place of its estimate.
///
/// # Errors
/// As [`evaluate`]; `Stopped`.
pub fn evaluate_with(
    log: &Path,
    policy: &dyn TargetPolicy,
    against: Option<&dyn TargetPolicy>,
    options: &Options,
    extras: Extras<'_>,
) -> Result<Evaluation, EvaluateError> {
    options.check()?;
    let Extras {
        mut progress,
        stop,
        mut models,
        most_held_rows,
    } = extras;
    let has_added = !models.is_empty();
    let spec = policy.spec();
    let policies: Vec<&dyn TargetPolicy> = [policy].into_iter().chain(against).collect();
    let mut at = |pass: usize, of: Option<u64>, rows: u64| {
        if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(EvaluateError::Stopped);
        }
        if let Some(progress) = &mut progress {
            progress(Progress {
                pass,
                passes: if has_added { 5 } else { 3 },
                rows,
                of,
            });
        }
        Ok(())
    };
    let stored = inventory(log).map_err(|source| EvaluateError::Log { source })?;
    let rows: u64 = stored.files.iter().map(|file| file.rows).sum();
    let is_whole = options.from_us.is_none() && options.host.is_none();
    let first = is_whole.then_some(rows);
    let mut survey = Survey {
        features: Features::new(spec),
        blocks: Blocks::new(options.block, options.horizon),
        device_choices: 0,
        steps: 0,
        rows: 0,
    };
    let mut facts = walk(
        log,
        options,
        spec,
        &mut |rows| at(0, first, rows),
        &mut survey,
    )?;
    check(&facts, &policies, options, survey.device_choices)?;
    let Survey {
        mut features,
        mut blocks,
        steps,
        rows,
        ..
    } = survey;
    facts.damaged = damaged(&stored);
    let steps = match options.exposure {
        Exposure::Host => steps,
        Exposure::Disk => rows,
    };
    features.settle();
    let (rows, stride) = (Some(facts.rows), Stride::of(steps));
    let mut fitting = Fitting::new(spec, &policies, &features, &mut blocks, stride, options)?;
    walk(
        log,
        options,
        spec,
        &mut |done| at(1, rows, done),
        &mut fitting,
    )?;
    let fits = fitting.models(options);
    drop(fitting);
    let no_model = fits
        .iter()
        .map(|model| model.as_ref().err().map(ToString::to_string))
        .collect();
    let fits = fits.into_iter().map(Result::ok).collect();
    let sample = if has_added {
        let most_rows = most_held_rows;
        let mut sampling = Sampling::new(&policies, &features, &mut blocks, most_rows, options);
        let mut tick = |done| at(2, rows, done);
        walk(log, options, spec, &mut tick, &mut sampling)?;
        Some(sampling.done())
    } else {
        None
    };
    let mut windows = Windows::new(
        spec,
        &policies,
        fits,
        &features,
        &mut blocks,
        stride,
        options,
    );
    walk(
        log,
        options,
        spec,
        &mut |done| at(if has_added { 3 } else { 2 }, rows, done),
        &mut windows,
    )?;
    let mut evaluation = finish(&windows, &policies, facts, no_model, options)?;
    if let Some(sample) = sample {
        let behaviour = Resampling::new(&windows.sums, vec![], options).behaviour_by_fold();
        drop(windows);
        let added = Added {
            sample,
            policies: policies.len(),
            behaviour,
            confidence: options.confidence,
        };
        let mut last = Ok(());
        let mut tick = |done, of| last = at(4, Some(of), done);
        let by = |model: &mut &mut dyn ValueModel| added.estimate(*model, &mut tick);
        evaluation.models = models.iter_mut().map(by).collect();
        last?;
        let notes = evaluation.models.iter().flat_map(|model| &model.notes);
        evaluation.notes.extend(notes.cloned());
    }
    Ok(evaluation)
}

/// Segments with damaged lines. A Parquet file that cannot be read is refused when it is reached.
fn damaged(stored: &Inventory) -> Vec<String> {
    let segments = stored
        .files
        .iter()
        .filter(|file| matches!(file.form, Form::Open | Form::Sealed));
    let damaged = segments.filter_map(|file| {
        let problem = file.problem.as_ref()?;
        Some(format!("{}: {problem}", file.file.display()))
    });
    damaged.collect()
}

fn finish(
    windows: &Windows<'_>,
    policies: &[&dyn TargetPolicy],
    facts: LogFacts,
    no_model: Vec<Option<String>>,
    options: &Options,
) -> Result<Evaluation, EvaluateError> {
    if windows.counts.longest < options.horizon {
        return Err(EvaluateError::Option {
            what: "horizon",
            value: options.horizon as f64,
            rule: "must not be longer than the longest run of steps without a gap in the log: shorten it",
        });
    }
    let resampling = Resampling::new(&windows.sums, no_model, options);
    let (estimates, behaviour) = resampling.estimates();
    let weights = windows.weights();
    let done = |policy: usize| weights[policy].done(&windows.sums, policy);
    let window_facts = WindowFacts {
        begun: windows.counts.begun,
        whole: windows.counts.whole,
        blocks: resampling.blocks(),
        block_s: windows.block_s(),
    };
    Ok(Evaluation {
        format: FORMAT,
        policy: PolicyLabel::of(policies[0]),
        against: policies.get(1).map(|policy| PolicyLabel::of(*policy)),
        estimand: estimand(options),
        exposure: options.exposure.text().to_owned(),
        notes: notes(&facts, &window_facts, options),
        options: options.clone(),
        log: facts,
        windows: window_facts,
        estimates,
        models: vec![],
        behaviour,
        diagnostics: done(0),
        against_diagnostics: (policies.len() > 1).then(|| done(1)),
        calibration: windows.calibrating.done(),
    })
}

fn estimand(options: &Options) -> String {
    let of = match options.exposure {
        Exposure::Host => "host",
        Exposure::Disk => "disk",
    };
    format!(
        "mean own reward per step over {} steps of a {of}, discounted by {} per step and divided by the sum of the discounts, from the states in which the log's policy left it; in each step the mean over disks that count",
        options.horizon, options.gamma
    )
}

fn notes(facts: &LogFacts, windows: &WindowFacts, options: &Options) -> Vec<String> {
    let mut notes = vec![];
    for file in &facts.damaged {
        notes.push(format!(
            "{file}, and what they held is missing: `blkpilot log verify` says where"
        ));
    }
    if options.mixed == Mixed::Admitted && facts.behaviours.len() > 1 {
        notes.push(format!(
            "{} policies have written this log: the behaviour is their mixture, and each row has its own propensity",
            facts.behaviours.len()
        ));
    }
    if facts.interventions() > 0 {
        notes.push(format!(
            "{} rows of guard, rollback and operators are part of the environment: they weigh 1, and what came within an interval is its decision's reward",
            facts.interventions()
        ));
    }
    if facts.altered.count > 0 {
        notes.push(format!(
            "{} heads were altered by guard or host after the draw: weighted by what was drawn, as another policy's would have been altered too",
            facts.altered.count
        ));
    }
    let window_s = facts.interval_s * options.horizon as f64;
    if let (Block::Seconds(_), Some(block_s)) = (options.block, windows.block_s)
        && window_s > block_s
    {
        notes.push(format!(
            "a window of {window_s:.0} s is longer than a block of {block_s:.0} s: blocks that follow each other are not independent; give a longer --block"
        ));
    }
    notes
}

/// What keeps a log that has been read once from being evaluated.
fn check(
    facts: &LogFacts,
    policies: &[&dyn TargetPolicy],
    options: &Options,
    device_choices: u64,
) -> Result<(), EvaluateError> {
    for policy in policies {
        let wanted = policy.spec().hash();
        let of_other = policies[0].spec().hash();
        let foreign = facts.foreign_spec.clone();
        if let Some(found) = foreign.or_else(|| (of_other != wanted).then_some(of_other)) {
            return Err(EvaluateError::Spec {
                policy: policy.name().to_owned(),
                wanted,
                found,
            });
        }
    }
    if !facts.problems.is_empty() {
        let problems = facts.problems.clone();
        return Err(EvaluateError::Problems { problems });
    }
    if facts.rewards.1 == 0 {
        return Err(EvaluateError::Empty {
            rows: facts.rows,
            left_out: facts.not_applied(),
        });
    }
    if options.exposure == Exposure::Disk && device_choices > 0 {
        return Err(EvaluateError::Exposure {
            why: format!("{device_choices} choices of devices act on several disks"),
        });
    }
    if options.mixed == Mixed::Admitted {
        return Ok(());
    }
    let mixed = |what: String| Err(EvaluateError::Mixed { what });
    if let [first, second, ..] = facts.behaviours.as_slice() {
        let name = |of: &crate::facts::Behaviour| format!("{} {}", of.policy, of.version);
        return mixed(format!(
            "{} policies have written this log, such as `{}` and `{}`",
            facts.behaviours.len(),
            name(first).trim(),
            name(second).trim()
        ));
    }
    if let [first, second, ..] = facts.reward_weights.as_slice() {
        return mixed(format!(
            "the reward was weighted in {} ways, such as `{first}` and `{second}`",
            facts.reward_weights.len()
        ));
    }
    Ok(())
}

/// The first pass.
struct Survey {
    features: Features,
    blocks: Blocks,
    device_choices: u64,
    steps: u64,
    rows: u64,
}

impl Sink for Survey {
    fn take(&mut self, step: &Step<'_>) -> Result<(), EvaluateError> {
        let step = step.step;
        self.blocks.number(step.host, step.at_us, step.episode);
        self.steps += 1;
        self.rows += step.rows.len() as u64;
        for row in &step.rows {
            // One that is wrong has no heads, and the log is refused anyway.
            if row.heads.len() > 0 {
                self.features.note(step, row);
            }
            if !row.is_disk {
                let free = step.heads_of(row).iter().filter(|cell| cell.is_free);
                self.device_choices += free.count() as u64;
            }
        }
        Ok(())
    }
}
