//! Runs for people.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::{Record, Status};

/// One line per run.
#[must_use]
pub fn table(records: &[Record]) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header([
        "run",
        "config",
        "learner",
        "seed",
        "status",
        "steps",
        "reward",
        "started",
        "took",
        "directory",
    ]);
    for column in [0, 3, 5, 6, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for record in records {
        table.add_row([
            record.id.to_string(),
            record.config_name.clone(),
            record.algorithm.clone(),
            record.seed.to_string(),
            record.status.name().to_owned(),
            steps(record),
            reward(record),
            record.started.replace('T', " ").replace('Z', ""),
            took(record),
            directory(record),
        ]);
    }
    format!("{table}\n")
}

fn steps(record: &Record) -> String {
    if record.steps_done >= record.steps_planned {
        return record.steps_done.to_string();
    }
    let share = 100.0 * record.steps_done as f64 / record.steps_planned as f64;
    format!("{} ({share:.0} %)", record.steps_done)
}

/// Of the trained policy where it was compared, else what it earns while it learns.
fn reward(record: &Record) -> String {
    let of = |key: &str| record.figures[key].as_f64();
    match (of("reward_mean"), of("episodic_return")) {
        (Some(reward), _) => format!("{reward:.4}"),
        (None, Some(earned)) => format!("({earned:.2})"),
        (None, None) => "–".to_owned(),
    }
}

/// Training without interruptions between.
fn took(record: &Record) -> String {
    let seconds = record.figures["wall_s"].as_f64();
    seconds.map_or_else(|| "–".to_owned(), |seconds| format!("{seconds:.0} s"))
}

fn directory(record: &Record) -> String {
    let shown = std::env::current_dir()
        .ok()
        .and_then(|here| Some(record.directory.strip_prefix(here).ok()?.to_owned()));
    let shown = shown.as_ref().unwrap_or(&record.directory).display();
    match record.replaced_by {
        Some(id) => format!("{shown} (replaced by {id})"),
        None => shown.to_string(),
    }
}

/// All that is known of one run.
#[must_use]
pub fn show_text(record: &Record) -> String {
    let mut lines = vec![
        format!(
            "run {}: {}, {}, seed {}",
            record.id, record.config_name, record.algorithm, record.seed
        ),
        format!("status: {}", record.status.name()),
        format!("directory: {}", directory(record)),
        format!("code: {}", record.code_version),
        format!("steps: {} of {}", record.steps_done, record.steps_planned),
        format!("started: {}", record.started),
    ];
    lines.extend(record.ended.iter().map(|ended| format!("ended: {ended}")));
    lines.extend(record.error.iter().map(|error| format!("error: {error}")));
    let figures = record.figures.as_object().into_iter().flatten();
    let told = figures.filter(|(_, value)| !value.is_null());
    lines.extend(told.map(|(name, value)| format!("{name}: {value}")));
    let run = record.directory.display();
    lines.extend(match record.status {
        Status::Interrupted | Status::Lost if record.replaced_by.is_none() => {
            Some(format!("go on: blkpilot-lab resume {run}"))
        }
        Status::Done => Some(format!("again: blkpilot-lab reproduce {run}")),
        _ => None,
    });
    let config = toml::to_string(&record.config).unwrap_or_else(|_| record.config.to_string());
    lines.join("\n") + "\n\n" + &config
}
