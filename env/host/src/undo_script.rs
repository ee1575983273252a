//! The way back without blkpilot: a POSIX shell script that undoes what the journal holds with
//! nothing but `virsh`, and on block devices with nothing at all.
//!
//! Whatever comes from the journal is quoted where the shell sees it and escaped in comments: a
//! guest's name may hold anything.

use std::fmt::Write as _;

use serde_json::Value;

use crate::device::{DeviceKnob, SideEffects};
use crate::disk_setting::DiskSetting;
use crate::journal::{DeviceLife, GuestLife, Life, Record, RecordState};
use crate::knob::Knob;
use crate::qmp::{boundaries_ns, reopened_file};
use crate::throttle::Throttle;

/// What the steps call; it says what each does.
const FUNCTIONS: &str = include_str!("undo_script.sh");
/// What the steps on block devices call.
const DEVICE_FUNCTIONS: &str = include_str!("undo_script_device.sh");
/// What is checked before the first step on a guest.
const CONNECT: &str = include_str!("undo_script_connect.sh");

const ABOUT: &str = "\
#!/bin/sh
# Undoes what blkpilot has changed on running guests and block devices, with nothing but sh and virsh,
# as the journal had it when this was written. Run it while no blkpilot service tunes this host:
#
#   sh THIS_FILE [LIBVIRT_URI]
#
# Each step is tried whatever became of those before it. A value goes back only where what is in force
# is what blkpilot set; what somebody else has set since is left alone and named. The journal is not
# touched: a service that starts later finds the values as they were and forgets its records.
# virsh cannot tell one QEMU of a guest from the next. Where the QEMU is seen in /proc its start is
# compared with the journal; where it is not, that is said, and the step is tried all the same.
#
# Exit status: 0 when everything is as it was, 1 when something is not.
";

/// The script that undoes these records, in their order. `uri`: where virsh connects to unless the
/// script's first argument says otherwise; virsh's own default if `None`.
#[must_use]
pub fn undo_script(records: &[Record], uri: Option<&str>) -> String {
    let default = quoted(uri.unwrap_or_default());
    let mut script =
        format!("{ABOUT}\nuri={default}\nif [ $# -gt 0 ]; then uri=$1; fi\n\n{FUNCTIONS}");
    let of_device = |record: &&Record| record.life.device().is_some();
    let (devices, guests): (Vec<_>, Vec<_>) = records.iter().partition(of_device);
    // First of all, since they need no libvirt.
    if !devices.is_empty() {
        script.push_str(DEVICE_FUNCTIONS);
    }
    devices.iter().for_each(|record| add(&mut script, record));
    if devices.is_empty() || !guests.is_empty() {
        script.push('\n');
        script.push_str(CONNECT);
    }
    guests.iter().for_each(|record| add(&mut script, record));
    script.push_str(
        "\nprintf '%s undone, %s ended with their guests, %s not undone\\n' \"$undone\" \"$moot\" \"$failed\"\n[ \"$failed\" -eq 0 ]\n",
    );
    script
}

fn add(script: &mut String, record: &Record) {
    let what = quoted(&format!("{}: {}", record.name, record.knob));
    let begin = match &record.life {
        Life::Guest(GuestLife {
            boot_id,
            uuid,
            qemu_started_ticks,
        }) => format!(
            "begin {} {} {}",
            quoted(uuid),
            quoted(boot_id),
            quoted(&qemu_started_ticks.to_string())
        ),
        Life::Device(DeviceLife { boot_id, id }) => {
            format!("begin_device {} {}", quoted(id), quoted(boot_id))
        }
    };
    // A string may hold anything, so that writing to it cannot fail.
    let _ = write!(
        script,
        "\n{}\n{begin} {what} &&\n    {}\n",
        comment(record),
        step(record),
    );
}

fn comment(record: &Record) -> String {
    let Record {
        name,
        knob,
        original,
        value,
        state,
        ..
    } = record;
    let text = format!("{name}: {knob}: was {original}, set to {value}, {state}");
    let cannot = undoing(record).err();
    let cannot = cannot.map_or_else(String::new, |reason| {
        format!("; cannot be undone here: {reason}")
    });
    format!("# {}", (text + &cannot).escape_debug())
}

fn step(record: &Record) -> String {
    undoing(record).unwrap_or_else(|reason| format!("fail {}", quoted(&reason)))
}

/// The step that undoes a record, or why there is none.
fn undoing(record: &Record) -> Result<String, String> {
    let Record {
        original,
        value,
        previous,
        ..
    } = record;
    let previous = match record.state {
        RecordState::Frozen => return Err(frozen(record)),
        RecordState::Intended => previous,
        RecordState::Settled => value,
    };
    let uuid = record
        .life
        .guest()
        .map_or_else(String::new, |life| quoted(&life.uuid));
    let values = [original, value, previous]
        .map(|text| quoted(text))
        .join(" ");
    let undo = || {
        let missing = "the version that changed it has not journalled how: use `blkpilot rollback --all --offline`";
        record.undo.as_deref().ok_or_else(|| missing.to_owned())
    };
    Ok(match &record.knob {
        Knob::Channel { iothread } => format!("pin {uuid} {iothread} {values}"),
        Knob::Polling { iothread } => format!("polling {uuid} {iothread} {values}"),
        Knob::Cache { .. } => {
            let undo = undo()?;
            let node = quoted(&node_name(undo)?);
            let file = reopened_file(undo).unwrap_or_default();
            let (undo, file) = (quoted(undo), quoted(&file.display().to_string()));
            format!("cache {uuid} {node} {values} {undo} {file}")
        }
        Knob::Histogram { .. } => {
            let undo = undo()?;
            let (qdev, buckets) = (quoted(&device_path(undo)?), quoted(&our_buckets()));
            format!("histogram {uuid} {qdev} {buckets} {}", quoted(undo))
        }
        Knob::Disk { target, setting } => match setting {
            DiskSetting::Throttle => throttle(&uuid, target, &values, original)?,
            DiskSetting::Qcow2Cache => {
                let original = quoted(original);
                format!("qcow2_cache {uuid} {original} {}", quoted(undo()?))
            }
        },
        Knob::Device(knob) => device(*knob, &values, record.undo.as_deref()),
    })
}

/// All limits are named: what is left out would stay.
fn throttle(uuid: &str, target: &str, values: &str, original: &str) -> Result<String, String> {
    let original: Throttle = original
        .parse()
        .map_err(|_| format!("its journalled original is not understood: {original}"))?;
    let words = original.virsh_words();
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    Ok(format!(
        "throttle {uuid} {} {values} {}",
        quoted(target),
        words.join(" ")
    ))
}

fn device(knob: DeviceKnob, values: &str, undo: Option<&str>) -> String {
    let mut step = format!("device {knob} {values}");
    for effect in SideEffects::of(undo).0 {
        let after = effect.after.unwrap_or_default();
        let (before, after) = (quoted(&effect.before), quoted(&after));
        // A string may hold anything, so that writing to it cannot fail.
        let _ = write!(step, " {} {before} {after}", effect.knob);
    }
    step
}

fn frozen(record: &Record) -> String {
    let found = record.found.as_deref().unwrap_or("another value");
    format!(
        "somebody else set it to {found}, which is left alone (blkpilot set {}, before that it was {})",
        record.value, record.original
    )
}

/// The node that a reopen is about; it goes into a command of QEMU's human monitor, so it must be
/// what QEMU calls a well-formed id.
fn node_name(undo: &str) -> Result<String, String> {
    let command: Option<Value> = serde_json::from_str(undo).ok();
    let node = command.and_then(|command| {
        let name = &command["arguments"]["options"][0]["node-name"];
        name.as_str().map(str::to_owned)
    });
    let is_id = |name: &String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        !name.is_empty() && name.chars().all(is_plain)
    };
    node.filter(is_id)
        .ok_or_else(|| format!("its journalled command names no node: {undo}"))
}

/// The device whose histogram a command ends, as QEMU calls it; it is looked for in QEMU's answer, so it
/// must be what stands there as it is.
fn device_path(undo: &str) -> Result<String, String> {
    let command: Option<Value> = serde_json::from_str(undo).ok();
    let path = command.and_then(|command| command["arguments"]["id"].as_str().map(str::to_owned));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-._".contains(c);
    path.filter(|path| !path.is_empty() && path.chars().all(is_plain))
        .ok_or_else(|| format!("its journalled command names no device: {undo}"))
}

/// The bounds that tell our histograms from those of others, nanoseconds, as they stand in JSON.
fn our_buckets() -> String {
    let bounds: Vec<String> = boundaries_ns().map(|ns| ns.to_string()).collect();
    bounds.join(",")
}

/// A text as one word of the shell.
fn quoted(text: &str) -> String {
    // What no shell takes cannot be in a word either.
    format!("'{}'", text.replace('\0', "").replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests;
