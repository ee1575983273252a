//! `blkpilot journal`.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use blkpilot_host::journal::{DeviceLife, GuestLife, Journal, Note, Record};
use clap::Args;
use serde_json::{Value, json};

use super::CliError;
use super::data_dir::Place;
use super::output::print;
use super::tables::{self, rfc3339};
use crate::backend::live::journal_of;

#[derive(Debug, Args)]
pub(super) struct JournalArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct PlaceArgs {
    /// The configuration of the service, which names its data directory
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory of the service
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(super) fn run(args: &JournalArgs) -> Result<(), CliError> {
    let PlaceArgs { config, data_dir } = &args.place;
    let place = Place::find(config.as_deref(), data_dir.as_deref(), None)?;
    let file = journal_of(&place.data_dir);
    let records = read(&file)?;
    let notes = Journal::open_to_read(&file)?.notes()?;
    if args.json {
        let records: Vec<Value> = records.iter().map(to_json).collect();
        print(format_args!(
            "{:#}",
            json!({ "journal": file, "records": records, "notes": notes.iter().map(note_to_json).collect::<Vec<_>>() })
        ))?;
    } else if records.is_empty() {
        print(format_args!(
            "nothing is changed: {} holds no record",
            file.display()
        ))?;
    } else {
        print(tables::journal(&records))?;
    }
    if !args.json && !notes.is_empty() {
        let line = |note: &Note| format!("{} {}", rfc3339(note.at_us), note.text);
        let lines: Vec<String> = notes.iter().map(line).collect();
        print(format_args!("\nnotes, newest first:\n{}", lines.join("\n")))?;
    }
    Ok(())
}

/// The records, newest first.
fn read(file: &Path) -> Result<Vec<Record>, CliError> {
    let mut records = Journal::open_to_read(file)?.records()?;
    // Stable: those without a time stay in the order of their first changes.
    records.sort_by_key(|record| Reverse(record.at_us));
    Ok(records)
}

fn note_to_json(note: &Note) -> Value {
    json!({ "time": rfc3339(note.at_us), "text": note.text })
}

fn to_json(record: &Record) -> Value {
    let (guest, device) = (record.life.guest(), record.life.device());
    json!({
        "time": record.at_us.map(rfc3339),
        "guest": guest.map(|_| &record.name),
        "uuid": guest.map(|life: &GuestLife| &life.uuid),
        "device": device.map(|_| &record.name),
        "device_id": device.map(|life: &DeviceLife| &life.id),
        "knob": record.knob.to_string(),
        "original": record.original,
        "previous": record.previous,
        "value": record.value,
        "found": record.found,
        "state": record.state.to_string(),
        "boot_id": record.life.boot_id(),
        "qemu_started_ticks": guest.map(|life| life.qemu_started_ticks),
    })
}
