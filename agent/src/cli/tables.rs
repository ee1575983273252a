//! Tables for people.

use std::time::{Duration, SystemTime};

use blkpilot_host::journal::{Life, Record};
use blkpilot_host::tuner::{Outcome, Settlement};
use blkpilot_proto::v1;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::dial;
use crate::trial::{Comparison, Report};

pub(super) const ABSENT: &str = "–";

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

pub(super) fn align_right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// What a trial found: the settings that were tried, then one row per figure.
pub(super) fn trial(report: &Report) -> String {
    let mut table = table(&[
        "OF",
        "FIGURE",
        "DEFAULT",
        "TUNED",
        "CHANGE",
        "95 % INTERVAL",
        "",
    ]);
    for c in &report.comparisons {
        table.add_row([
            c.of.clone(),
            c.quantity.to_owned(),
            figure(c.default),
            figure(c.tuned),
            change(c, c.change),
            format!("{} to {}", change(c, c.ci95.0), change(c, c.ci95.1)),
            if c.beyond_noise { "beyond noise" } else { "" }.to_owned(),
        ]);
    }
    align_right(&mut table, 2..6);
    let settings: Vec<String> = report
        .tuned_settings
        .iter()
        .map(|(disk, head, level)| format!("{disk} {head}={level}"))
        .collect();
    format!(
        "{}\n\nMedians over {} alternations; intervals resample whole alternations.\nTuned at the end: {}",
        table.trim_fmt(),
        report.plan.alternations,
        settings.join(", ")
    )
}

fn change(comparison: &Comparison, change: f64) -> String {
    if comparison.is_ratio {
        format!("×{change:.2}")
    } else {
        format!("{change:+.3}")
    }
}

/// A number with as many digits as are worth reading.
pub(super) fn figure(value: f64) -> String {
    if value.abs() < 100.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

/// One row per disk, with what was measured.
pub(super) fn disks<'a>(disks: impl IntoIterator<Item = (&'a str, &'a v1::DiskState)>) -> String {
    let mut table = table(&["DISK", "QUEUE", "CPU", "HITS", "IOPS", "MEAN µs", "P99 µs"]);
    for (id, state) in disks {
        let mut row = vec![id.to_owned()];
        row.extend(measurements(state));
        table.add_row(row);
    }
    align_right(&mut table, 1..7);
    table.trim_fmt()
}

fn measurements(state: &v1::DiskState) -> [String; 6] {
    let number = |m: &Option<v1::Measurement>, digits| measured(m, |v| format!("{v:.digits$}"));
    let share = |m: &Option<v1::Measurement>| measured(m, |v| format!("{:.0} %", v * 100.0));
    [
        number(&state.queue_depth, 1),
        share(&state.cpu_load),
        share(&state.hit_rate),
        number(&state.iops, 0),
        number(&state.latency_us_mean, 0),
        number(&state.latency_us_p99, 0),
    ]
}

/// The value, or in a word why there is none.
fn measured(measurement: &Option<v1::Measurement>, show: impl Fn(f32) -> String) -> String {
    use v1::Validity;
    let Some(m) = measurement else {
        return ABSENT.to_owned();
    };
    match m.validity() {
        Validity::Valid => show(m.value),
        Validity::Estimated => format!("~{}", show(m.value)),
        Validity::Stale => "stale".to_owned(),
        Validity::Idle => "idle".to_owned(),
        Validity::NotOptedIn => "no opt-in".to_owned(),
        Validity::CounterReset => "reset".to_owned(),
        Validity::Unsupported | Validity::Unspecified => ABSENT.to_owned(),
    }
}

/// One row per disk, with what is in force; below it what else is to be known of guests and policies.
pub(super) fn guests(host: Option<&v1::Host>, guests: &[v1::Guest]) -> String {
    let mut table = table(&[
        "DISK", "MODE", "OPT-IN", "IN FORCE", "QUEUE", "CPU", "HITS", "IOPS", "MEAN µs", "P99 µs",
        "PROBLEM",
    ]);
    for guest in guests {
        let mode = guest
            .mode()
            .as_str_name()
            .trim_start_matches("MODE_")
            .to_lowercase();
        let opted_in = if guest.opted_in { "yes" } else { "no" };
        for disk in &guest.disks {
            let heads = disk.heads.iter().map(in_force);
            let in_force = heads.collect::<Vec<_>>().join(", ");
            let mut row = vec![
                short(&disk.name),
                mode.clone(),
                opted_in.to_owned(),
                in_force,
            ];
            row.extend(measurements(&disk.state.unwrap_or_default()));
            row.push(guest.problem.clone());
            table.add_row(row);
        }
        if guest.disks.is_empty() {
            let mut row = vec![short(&guest.name), mode, opted_in.to_owned()];
            row.extend(std::iter::repeat_n(String::new(), 7));
            row.push(guest.problem.clone());
            table.add_row(row);
        }
    }
    align_right(&mut table, 4..10);
    let frozen = guests.iter().flat_map(|guest| {
        let line = |knob| frozen(&short(&guest.name), knob);
        guest.frozen.iter().map(line)
    });
    std::iter::once(table.trim_fmt())
        .chain(frozen)
        .chain(guests.iter().filter_map(dial::notice))
        .chain(guests.iter().filter_map(dial::exploration))
        .chain(host.into_iter().flat_map(dial::policies))
        .chain(host.into_iter().flat_map(dial::tuning_daemons))
        .collect::<Vec<_>>()
        .join("\n")
}

fn in_force(head: &v1::HeadState) -> String {
    let is_frozen = |level: &v1::LevelState| level.mask() == v1::MaskReason::Frozen;
    if head.levels.iter().any(is_frozen) {
        format!("{} (frozen)", head.current)
    } else {
        head.current.clone()
    }
}

fn frozen(guest: &str, knob: &v1::FrozenKnob) -> String {
    let only = match knob.head.as_str() {
        "" => String::new(),
        head => format!(" --knob {head}"),
    };
    format!(
        "frozen: {guest}: {}: blkpilot set {}, somebody else set {} (before both it was {}): `blkpilot unfreeze {guest}{only}` lets it be tuned again",
        knob.knob, knob.set, knob.found, knob.original
    )
}

/// One row per setting of each device.
pub(super) fn devices(devices: &[v1::Device]) -> String {
    let mut table = table(&[
        "DEVICE", "SETTING", "IN FORCE", "ORIGINAL", "ENABLED", "VALUES", "ID",
    ]);
    for device in devices {
        for setting in &device.settings {
            let frozen = if setting.frozen { " (frozen)" } else { "" };
            let original = match &setting.original[..] {
                "" => ABSENT,
                original => original,
            };
            table.add_row([
                short(&device.name),
                setting.setting.clone(),
                format!("{}{frozen}", setting.current),
                original.to_owned(),
                if setting.enabled { "yes" } else { "no" }.to_owned(),
                setting.values.clone(),
                device.stable_id.clone(),
            ]);
        }
    }
    table.trim_fmt()
}

/// One row per setting of each disk, and why the guard has set it.
pub(super) fn disk_settings(disks: &[v1::DiskSettings]) -> String {
    let is_planned = |disk: &v1::DiskSettings| disk.settings.iter().any(|s| !s.planned.is_empty());
    let is_planned = disks.iter().any(is_planned);
    let mut header = vec![
        "DISK", "SETTING", "IN FORCE", "ORIGINAL", "ENABLED", "VALUES",
    ];
    if is_planned {
        header.insert(3, "WOULD BE");
    }
    let mut table = table(&header);
    let or_absent = |text: &str| if text.is_empty() { ABSENT } else { text }.to_owned();
    let mut reasons = vec![];
    for disk in disks {
        for setting in &disk.settings {
            let mark = match (setting.frozen, setting.guard_reason.is_empty()) {
                (true, _) => " (frozen)",
                (false, false) => " (by the guard)",
                (false, true) => "",
            };
            let current = if setting.problem.is_empty() {
                format!("{}{mark}", setting.current)
            } else {
                setting.problem.clone()
            };
            let mut row = vec![
                short(&disk.name),
                setting.setting.clone(),
                current,
                or_absent(&setting.original),
                if setting.enabled { "yes" } else { "no" }.to_owned(),
                setting.values.clone(),
            ];
            if is_planned {
                row.insert(3, or_absent(&setting.planned));
            }
            table.add_row(row);
            if !setting.guard_reason.is_empty() {
                reasons.push(format!("{}: {}", short(&disk.name), setting.guard_reason));
            }
        }
    }
    std::iter::once(table.trim_fmt())
        .chain(reasons)
        .collect::<Vec<_>>()
        .join("\n")
}

/// One row per knob that the journal holds.
pub(super) fn journal(records: &[Record]) -> String {
    let mut table = table(&[
        "TIME",
        "OF",
        "KNOB",
        "ORIGINAL",
        "SET TO",
        "STATE",
        "FOUND",
        "ID",
        "BOOT",
        "QEMU STARTED",
    ]);
    for record in records {
        let (id, started) = match &record.life {
            Life::Guest(life) => (&life.uuid, format!("tick {}", life.qemu_started_ticks)),
            Life::Device(life) => (&life.id, ABSENT.to_owned()),
        };
        table.add_row([
            record.at_us.map_or(ABSENT.to_owned(), rfc3339),
            record.name.clone(),
            record.knob.to_string(),
            record.original.clone(),
            record.value.clone(),
            record.state.to_string(),
            record.found.clone().unwrap_or(ABSENT.to_owned()),
            id.clone(),
            record.life.boot_id().to_owned(),
            started,
        ]);
    }
    table.trim_fmt()
}

/// One row per knob of a rollback without a service.
pub(super) fn outcomes(outcomes: &[Outcome]) -> String {
    let mut table = table(&["OF", "KNOB", "RESULT", ""]);
    for outcome in outcomes {
        let (result, text) = settlement(&outcome.result);
        let knob = outcome.knob.to_string();
        table.add_row([outcome.name.clone(), knob, result.to_owned(), text]);
    }
    table.trim_fmt()
}

/// What became of a knob, in a word for scripts and in words.
pub(super) fn settlement(settlement: &Settlement) -> (&'static str, String) {
    match settlement {
        Settlement::Restored { original } => ("restored", format!("is {original} again")),
        Settlement::Unrecorded { original, reason } => (
            "unrecorded",
            format!("is {original} again, but its record stays: {reason}"),
        ),
        Settlement::Moot => (
            "moot",
            "the setting ended with the guest's QEMU, or with the device".to_owned(),
        ),
        Settlement::Kept { value } => ("kept", format!("is {value} still")),
        Settlement::Frozen { found, .. } => (
            "frozen",
            format!("somebody else set it to {found}, which is left alone"),
        ),
        Settlement::Failed { reason } => ("failed", reason.clone()),
    }
}

/// One row per head of each disk; of a decision that was applied, only what it changed.
pub(super) fn decision(decision: &v1::Decision) -> String {
    let is_proposed = decision.state() == v1::decision::State::Proposed
        && decision.source() != v1::decision::Source::Shadow;
    let last = if is_proposed { "NOTE" } else { "IN FORCE" };
    let mut table = table(&["DISK", "HEAD", "BEFORE", "CHOSEN", "PROPENSITY", last, "BY"]);
    let is_shown = |head: &&v1::HeadDecision| {
        is_proposed || head.previous != head.requested || head.requested != head.executed
    };
    for row in &decision.rows {
        for head in row.heads.iter().filter(is_shown) {
            let propensity = head
                .propensity
                .map_or(ABSENT.to_owned(), |p| format!("{p:.3}"));
            let explored = if head.explored { " explored" } else { "" };
            table.add_row(vec![
                short(&row.name),
                head.head.clone(),
                head.previous.clone(),
                head.requested.clone(),
                format!("{propensity}{explored}"),
                if is_proposed {
                    note(head)
                } else {
                    dial::in_force(head)
                },
                dial::chooser(decision, row),
            ]);
        }
    }
    align_right(&mut table, 4..5);
    let rows = if table.is_empty() {
        "nothing changed".to_owned()
    } else {
        table.trim_fmt()
    };
    format!("{}\n{rows}", heading(decision))
}

/// Why there was no choice.
fn note(head: &v1::HeadDecision) -> String {
    let reason = head.levels.iter().find(|level| !level.reason.is_empty());
    match (head.forced, reason) {
        (true, Some(level)) => format!("no choice: {}", level.reason),
        (true, None) => "no choice".to_owned(),
        (false, Some(level)) => format!("not {}: {}", level.level, level.reason),
        (false, None) => String::new(),
    }
}

fn heading(decision: &v1::Decision) -> String {
    let mut parts = vec![decision.name.clone(), source(decision), state(decision)];
    parts.extend(
        decision
            .policy
            .as_ref()
            .map(|policy| format!("by {}", policy.name)),
    );
    if let Some(expires) = &decision.expire_time {
        parts.push(format!("until {}", time(expires)));
    }
    if !decision.error.is_empty() {
        parts.push(decision.error.clone());
    }
    if !decision.reason.is_empty() {
        parts.push(decision.reason.clone());
    }
    parts.join("  ")
}

fn source(decision: &v1::Decision) -> String {
    decision.source().as_str_name().to_lowercase()
}

fn state(decision: &v1::Decision) -> String {
    decision.state().as_str_name().to_lowercase()
}

/// One row per decision.
pub(super) fn decisions(decisions: &[v1::Decision]) -> String {
    let mut table = table(&["TIME", "DECISION", "SOURCE", "STATE", "POLICY", "CHANGES"]);
    for decision in decisions {
        table.add_row(decision_line(decision));
    }
    table.trim_fmt()
}

/// A decision in one line.
pub(super) fn decision_line(decision: &v1::Decision) -> Vec<String> {
    vec![
        decision
            .create_time
            .as_ref()
            .map_or(ABSENT.to_owned(), time),
        decision.name.clone(),
        dial::sources(decision),
        state(decision),
        decision
            .policy
            .as_ref()
            .map_or(ABSENT.to_owned(), |policy| policy.name.clone()),
        changes(decision),
    ]
}

fn changes(decision: &v1::Decision) -> String {
    let changed = decision.rows.iter().flat_map(|row| {
        let moved = row
            .heads
            .iter()
            .filter(|head| head.previous != head.executed || head.requested != head.executed);
        moved.map(|head| format!("{} {}", short(&row.name), dial::change(head)))
    });
    let changed: Vec<String> = changed.collect();
    if changed.is_empty() {
        "none".to_owned()
    } else {
        changed.join("; ")
    }
}

fn time(at: &prost_types::Timestamp) -> String {
    let at = SystemTime::try_from(*at).unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// As a date and time, if there is one.
pub(super) fn moment(at: Option<&prost_types::Timestamp>) -> String {
    at.map_or_else(
        || ABSENT.to_owned(),
        |at| rfc3339(at.seconds * 1_000_000 + i64::from(at.nanos / 1000)),
    )
}

/// Microseconds since 1970 UTC as a date and time.
pub(super) fn rfc3339(at_us: i64) -> String {
    let since = Duration::from_micros(u64::try_from(at_us).unwrap_or(0));
    let at = SystemTime::UNIX_EPOCH + since;
    humantime::format_rfc3339_millis(at).to_string()
}

/// `hosts/h/guests/g/disks/d` as `g/d`, and a device by its name.
pub(super) fn short(name: &str) -> String {
    let segments: Vec<&str> = name.split('/').collect();
    match segments[..] {
        ["hosts", _, "guests", guest, "disks", disk] => format!("{guest}/{disk}"),
        ["hosts", _, "devices", device] => device.to_owned(),
        ["hosts", _, "guests", guest] => guest.to_owned(),
        _ => name.to_owned(),
    }
}
