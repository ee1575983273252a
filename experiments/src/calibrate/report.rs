//! How well a fit does: on the settings it has seen, on those it has not, and against a predictor
//! that knows no model.

use std::path::Path;

use blkpilot_log::recording::Tally;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::fit::{Effort, Fitted};
use super::parameters::Parameter;
use super::predict::{DiskPrediction, Prediction, predict};
use super::settings::{Measured, Recorded};
use super::{CalibrateError, Options};

/// What a disk does, as far as it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Requests per second.
    pub iops: f64,
    /// Mean latency, microseconds.
    pub latency_us: f64,
    /// CPU of its IOThread, cores.
    pub iothread_cores: Option<f64>,
}

/// A disk under a setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The setting in words.
    pub setting: String,
    /// The disk.
    pub disk: String,
    /// Windows it was measured in.
    pub windows: usize,
    /// What was measured: medians over the windows.
    pub measured: Figures,
    /// What the fit to all settings says.
    pub fitted: Option<Figures>,
    /// What the fit without this setting says.
    pub held_out: Option<Figures>,
    /// The mean of the other settings.
    pub naive: Option<Figures>,
}

/// Absolute relative errors of one figure over the rows, as shares.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Error {
    /// Median.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// Greatest.
    pub worst: f64,
}

/// The errors of a predictor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Errors {
    /// Rows compared.
    pub rows: usize,
    /// Of the requests per second.
    pub iops: Error,
    /// Of the mean latency.
    pub latency_us: Error,
    /// Of the IOThread's CPU, where it was measured.
    pub iothread_cores: Option<Error>,
}

/// A fitted value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Value {
    /// Which, with its bounds and start.
    #[serde(flatten)]
    pub parameter: Parameter,
    /// The value.
    pub value: f64,
    /// Whether it ended at a bound: the recording does not say what it is.
    pub is_at_bound: bool,
}

/// How well a calibration does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The recording.
    pub recording: String,
    /// What became of its samples.
    pub tally: Tally,
    /// Windows left out because a setting was new.
    pub settling: usize,
    /// Windows left out because the host had other parts than in the last.
    pub other_host: usize,
    /// Settings.
    pub settings: usize,
    /// Standard deviation of log IOPS between windows of one setting.
    pub noise: f64,
    /// Seed of the search.
    pub seed: u64,
    /// How long it searched.
    pub effort: Effort,
    /// What was fitted.
    pub parameters: Vec<Value>,
    /// Each disk under each setting.
    pub rows: Vec<Row>,
    /// Errors on the settings that were fitted to.
    pub fitted: Errors,
    /// Errors on settings that were held out.
    pub held_out: Option<Errors>,
    /// Errors of the mean of the other settings.
    pub naive: Option<Errors>,
}

pub(super) fn make(
    file: &Path,
    recorded: &Recorded,
    options: &Options,
    full: &Fitted,
    held_out: &[Fitted],
) -> Result<Report, CalibrateError> {
    let rows = rows(recorded, full, held_out)?;
    let fitted = errors(&rows, |row| row.fitted);
    let of =
        |f: fn(&Row) -> Option<Figures>| (!held_out.is_empty()).then(|| errors(&rows, f)).flatten();
    Ok(Report {
        recording: file.display().to_string(),
        tally: recorded.tally.clone(),
        settling: recorded.settling,
        other_host: recorded.other_host,
        settings: recorded.settings.len(),
        noise: recorded.noise,
        seed: options.seed,
        effort: options.effort,
        parameters: values(full),
        held_out: of(|row| row.held_out),
        naive: of(|row| row.naive),
        fitted: fitted
            .ok_or_else(|| CalibrateError::Search("the fit predicts nothing".to_owned()))?,
        rows,
    })
}

fn values(fitted: &Fitted) -> Vec<Value> {
    let value = |(parameter, value): (&Parameter, &f64)| Value {
        parameter: parameter.clone(),
        value: *value,
        is_at_bound: parameter.is_at_bound(*value),
    };
    fitted
        .parameters
        .iter()
        .zip(&fitted.values)
        .map(value)
        .collect()
}

fn rows(
    recorded: &Recorded,
    full: &Fitted,
    held_out: &[Fitted],
) -> Result<Vec<Row>, CalibrateError> {
    let ids = recorded.disk_ids();
    let mut rows = vec![];
    for (i, setting) in recorded.settings.iter().enumerate() {
        let ask = |fitted: &Fitted| -> Result<Prediction, CalibrateError> {
            predict(&fitted.scenario, &setting.key)
                .map_err(|e| CalibrateError::Search(e.to_string()))
        };
        let fitted = ask(full)?;
        let without = held_out.iter().find(|f| !f.seen.contains(&i));
        let unseen = without.map(ask).transpose()?;
        for (disk, measured) in setting.disks.iter().enumerate() {
            let Some(measured) = measured else { continue };
            rows.push(Row {
                setting: setting.name(&ids),
                disk: ids[disk].clone(),
                windows: setting.windows,
                measured: of_measured(measured),
                fitted: fitted.disks[disk].map(of_predicted),
                held_out: unseen
                    .as_ref()
                    .and_then(|p| p.disks[disk])
                    .map(of_predicted),
                naive: without.and_then(|f| mean(recorded, &f.seen, disk)),
            });
        }
    }
    Ok(rows)
}

fn of_measured(measured: &Measured) -> Figures {
    Figures {
        iops: measured.iops,
        latency_us: measured.latency_us,
        iothread_cores: measured.iothread_cores,
    }
}

fn of_predicted(predicted: DiskPrediction) -> Figures {
    Figures {
        iops: predicted.iops,
        latency_us: predicted.latency_us,
        iothread_cores: Some(predicted.iothread_cores),
    }
}

/// The mean of what a disk did under some settings.
fn mean(recorded: &Recorded, seen: &[usize], disk: usize) -> Option<Figures> {
    let settings = seen.iter().map(|i| &recorded.settings[*i]);
    let measured: Vec<&Measured> = settings.filter_map(|s| s.disks[disk].as_ref()).collect();
    let mean = |values: Vec<f64>| {
        let n = values.len() as f64;
        (n > 0.0).then(|| values.iter().sum::<f64>() / n)
    };
    Some(Figures {
        iops: mean(measured.iter().map(|m| m.iops).collect())?,
        latency_us: mean(measured.iter().map(|m| m.latency_us).collect())?,
        iothread_cores: mean(measured.iter().filter_map(|m| m.iothread_cores).collect()),
    })
}

/// Errors of a predictor; `None` where it says nothing. A row without a prediction, of a predictor
/// that has others, counts as an error of 100 %.
fn errors(rows: &[Row], predicted: impl Fn(&Row) -> Option<Figures>) -> Option<Errors> {
    rows.iter()
        .any(|row| predicted(row).is_some())
        .then_some(())?;
    let relative = |f: &dyn Fn(&Figures) -> Option<f64>| -> Vec<f64> {
        let one = |row: &Row| {
            let measured = f(&row.measured)?;
            let predicted = predicted(row).map_or(Some(0.0), |p| f(&p))?;
            Some((predicted / measured - 1.0).abs())
        };
        rows.iter()
            .filter_map(one)
            .filter(|e| e.is_finite())
            .collect()
    };
    Some(Errors {
        rows: rows.len(),
        iops: quantiles(relative(&|f| Some(f.iops)))?,
        latency_us: quantiles(relative(&|f| Some(f.latency_us)))?,
        iothread_cores: quantiles(relative(&|f| f.iothread_cores)),
    })
}

fn quantiles(mut errors: Vec<f64>) -> Option<Error> {
    errors.sort_by(f64::total_cmp);
    let last = errors.len().checked_sub(1)?;
    let at = |q: f64| errors[(q * last as f64).ceil() as usize];
    Some(Error {
        median: f64::midpoint(errors[last / 2], errors[last.div_ceil(2)]),
        p90: at(0.9),
        worst: errors[last],
    })
}

impl Report {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.tally);
        text += &format!(
            "{} windows left out behind changes of settings; {} settings, {:.1} % noise between windows\n\n",
            self.settling,
            self.settings,
            100.0 * self.noise
        );
        text += &format!(
            "{}\n\n{}\n\n{}\n",
            self.rows_table(),
            self.values_table(),
            self.errors_table()
        );
        text
    }

    fn rows_table(&self) -> String {
        let mut table = table(&[
            "SETTING", "OF", "IOPS", "FITTED", "HELD OUT", "MEAN µs", "FITTED", "HELD OUT",
        ]);
        let figure = |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.0}"));
        for row in &self.rows {
            table.add_row([
                row.setting.clone(),
                row.disk.clone(),
                figure(Some(row.measured.iops)),
                figure(row.fitted.map(|f| f.iops)),
                figure(row.held_out.map(|f| f.iops)),
                figure(Some(row.measured.latency_us)),
                figure(row.fitted.map(|f| f.latency_us)),
                figure(row.held_out.map(|f| f.latency_us)),
            ]);
        }
        aligned(table, 2)
    }

    fn values_table(&self) -> String {
        let mut table = table(&["PARAMETER", "VALUE", "START", ""]);
        for value in &self.parameters {
            table.add_row([
                value.parameter.name.clone(),
                format!("{:.4}", value.value),
                format!("{:.4}", value.parameter.start),
                if value.is_at_bound {
                    "at its bound"
                } else {
                    ""
                }
                .to_owned(),
            ]);
        }
        aligned(table, 1)
    }

    fn errors_table(&self) -> String {
        let mut table = table(&["ABSOLUTE RELATIVE ERROR", "MEDIAN", "P90", "WORST"]);
        let predictors = [
            ("held out", self.held_out),
            ("mean of the other settings", self.naive),
            ("fitted to all", Some(self.fitted)),
        ];
        for (name, errors) in predictors {
            let Some(errors) = errors else { continue };
            let figures = [
                ("IOPS", Some(errors.iops)),
                ("mean latency", Some(errors.latency_us)),
                ("IOThread CPU", errors.iothread_cores),
            ];
            for (figure, error) in figures {
                let Some(error) = error else { continue };
                let percent = |share: f64| format!("{:.1} %", 100.0 * share);
                table.add_row([
                    format!("{name}: {figure}"),
                    percent(error.median),
                    percent(error.p90),
                    percent(error.worst),
                ]);
            }
        }
        aligned(table, 1)
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

fn aligned(mut table: Table, from: usize) -> String {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(measured: f64, held_out: Option<f64>) -> Row {
        let figures = |iops| Figures {
            iops,
            latency_us: 1.0,
            iothread_cores: None,
        };
        Row {
            setting: String::new(),
            disk: String::new(),
            windows: 1,
            measured: figures(measured),
            fitted: None,
            held_out: held_out.map(figures),
            naive: None,
        }
    }

    #[test]
    fn errors_are_relative_to_what_was_measured_and_silence_is_a_miss() {
        let rows = [
            row(100.0, Some(110.0)),
            row(100.0, Some(50.0)),
            row(10.0, Some(12.0)),
            row(10.0, None),
        ];
        let errors = errors(&rows, |row| row.held_out).unwrap();
        let of = errors.iops;
        assert!((of.median - 0.35).abs() < 1e-9 && of.worst == 1.0, "{of:?}");
        assert_eq!(errors.latency_us.worst, 1.0);
        assert_eq!(super::errors(&rows, |row| row.naive), None);
    }
}
