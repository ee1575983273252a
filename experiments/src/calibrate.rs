//! Calibration: a scenario whose simulated host does what a recorded host did.
//!
//! [`settings`] sums a recording up per setting of the knobs, [`skeleton`] makes a scenario of what
//! can be read off directly, [`parameters`] says what is left to fit, [`fit`] fits it, [`report`]
//! says how far off the fit is on settings that it has not seen.

pub mod fit;
pub mod parameters;
pub mod plot;
mod predict;
pub mod report;
pub mod settings;
pub mod skeleton;

use std::path::{Path, PathBuf};

use blkpilot_env::Rng;
use blkpilot_env::decision::shuffle;
use blkpilot_env::sim::{Scenario, ScenarioErrors};
use blkpilot_log::recording::{Recording, RecordingError};
use rand::SeedableRng as _;
use thiserror::Error;

pub use fit::Effort;
pub use report::Report;
pub use settings::{Measured, Recorded, Setting};

/// What to fit and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Windows after each change of a setting that are left out: caches and queues settle.
    pub settle: usize,
    /// Which settings are held out to tell the error.
    pub holdout: Holdout,
    /// How long to search.
    pub effort: Effort,
    /// Seed of the search.
    pub seed: u64,
    /// Threads that fit at the same time; the result does not depend on it.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            settle: 3,
            holdout: Holdout::Each,
            effort: Effort::default(),
            seed: 0,
            threads: 1,
        }
    }
}

/// Which settings are held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holdout {
    /// None: the error on settings not seen stays unknown.
    None,
    /// Each once, the fit made without it.
    Each,
    /// In this many parts, each held out once; at least 2.
    Parts(usize),
}

impl Holdout {
    /// The parts, as indices of settings. They are drawn: settings next to each other are alike.
    fn parts(self, settings: usize, seed: u64) -> Vec<Vec<usize>> {
        let parts = match self {
            Self::None => return vec![],
            Self::Each => settings,
            Self::Parts(parts) => parts.min(settings),
        };
        let mut order: Vec<usize> = (0..settings).collect();
        shuffle(&mut order, &mut Rng::seed_from_u64(seed));
        let part = |part| order.iter().skip(part).step_by(parts).copied().collect();
        (0..parts).map(part).collect()
    }
}

/// Why a recording gives no scenario.
#[derive(Debug, Error)]
pub enum CalibrateError {
    /// The recording cannot be read.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// Nothing can be fitted to it.
    #[error("{}: {problem}", file.display())]
    Unusable {
        /// The recording.
        file: PathBuf,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// The fitted scenario cannot be simulated: the recording holds values that no host has.
    #[error("the recording describes a host that cannot be simulated: {0}")]
    Scenario(#[from] ScenarioErrors),
    /// The search failed.
    #[error("the search failed: {0}")]
    Search(String),
}

impl CalibrateError {
    /// Whether another recording would help.
    #[must_use]
    pub fn is_about_the_recording(&self) -> bool {
        matches!(
            self,
            Self::Unusable { .. }
                | Self::Recording(RecordingError::Foreign { .. } | RecordingError::Format { .. })
        )
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// The scenario, fitted to all settings.
    pub scenario: Scenario,
    /// How well it does.
    pub report: Report,
}

impl Calibration {
    /// The scenario as a file.
    ///
    /// # Errors
    /// If it cannot be written as TOML, which no scenario that was simulated does.
    pub fn toml(&self) -> Result<String, toml::ser::Error> {
        let Report {
            recording,
            held_out,
            ..
        } = &self.report;
        let name = Path::new(recording).file_name().unwrap_or_default();
        let mut text = format!("# Fitted by `blkpilot-lab calibrate` to {}", name.display());
        if let Some(errors) = held_out {
            text += &format!(
                ".\n# Median error on settings held out: IOPS {:.1} %, mean latency {:.1} %",
                100.0 * errors.iops.median,
                100.0 * errors.latency_us.median
            );
        }
        Ok(text + ".\n" + &toml::to_string(&self.scenario)?)
    }
}

/// Fits a scenario to a recording. `done` is told of each fit: how many are done, and of how many.
///
/// # Errors
/// See [`CalibrateError`].
pub fn calibrate(
    file: &Path,
    options: &Options,
    done: &(dyn Fn(usize, usize) + Sync),
) -> Result<Calibration, CalibrateError> {
    let recorded = Recorded::read(Recording::open(file)?, options.settle)?;
    let unusable = |problem: String| CalibrateError::Unusable {
        file: file.to_owned(),
        problem,
    };
    recorded.check().map_err(unusable)?;
    let all: Vec<usize> = (0..recorded.settings.len()).collect();
    let mut jobs = vec![all];
    jobs.extend(
        options
            .holdout
            .parts(recorded.settings.len(), options.seed)
            .iter()
            .map(|held_out| -> Vec<usize> {
                let is_seen = |i: &usize| !held_out.contains(i);
                (0..recorded.settings.len()).filter(is_seen).collect()
            }),
    );
    let mut fits = fit::all(&recorded, &jobs, options, done)?.into_iter();
    let full = fits
        .next()
        .expect("the first job is the fit to all settings");
    let held_out: Vec<fit::Fitted> = fits.collect();
    let report = report::make(file, &recorded, options, &full, &held_out)?;
    Ok(Calibration {
        scenario: full.scenario,
        report,
    })
}
