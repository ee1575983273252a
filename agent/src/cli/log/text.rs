//! What `blkpilot log` prints for people.

use blkpilot_log::inventory::{Form, Inventory, Stored};
use blkpilot_log::verify::Report;
use blkpilot_log::{HeadRow, LoggedRow, Subject};

use super::super::tables::{ABSENT, align_right, rfc3339, table};

/// Findings that are shown; --json has more.
const MOST_SHOWN: usize = 50;

pub(super) fn inventory(found: &Inventory) -> String {
    let mut table = table(&["FILE", "FORM", "ROWS", "FIRST", "LAST", "BYTES", "VERSION"]);
    for file in &found.files {
        let time = |at: Option<i64>| at.map_or_else(|| ABSENT.to_owned(), rfc3339);
        table.add_row([
            file.file.display().to_string(),
            form(file.form).to_owned(),
            file.rows.to_string(),
            time(file.at_us.map(|(first, _)| first)),
            time(file.at_us.map(|(_, last)| last)),
            file.bytes.to_string(),
            file.version
                .map_or_else(|| ABSENT.to_owned(), |version| version.to_string()),
        ]);
    }
    align_right(&mut table, 2..3);
    align_right(&mut table, 5..7);
    let counted = found
        .files
        .iter()
        .filter(|file| file.form != Form::Unfinished);
    let (rows, bytes) = counted.fold(
        (0, 0),
        |(rows, bytes),
         Stored {
             rows: r, bytes: b, ..
         }| { (rows + r, bytes + b) },
    );
    let mut text = format!(
        "{table}\n{} files, {rows} rows, {bytes} bytes",
        found.files.len()
    );
    let dropped = &found.dropped;
    if dropped.files > 0 {
        text += &format!(
            "\ndropped for age or room: {} files, {} rows, {} bytes",
            dropped.files, dropped.rows, dropped.bytes
        );
    }
    for file in &found.files {
        if let Some(problem) = &file.problem {
            text += &format!("\n{}: {problem}", file.file.display());
        }
    }
    text
}

fn form(form: Form) -> &'static str {
    match form {
        Form::Open => "open",
        Form::Sealed => "sealed",
        Form::Parquet => "parquet",
        Form::Unfinished => "unfinished",
    }
}

pub(super) fn rows<'a>(rows: impl Iterator<Item = &'a LoggedRow>) -> String {
    let mut table = table(&[
        "TIME", "DISK", "SOURCE", "POLICY", "DECISION", "REWARD", "OUTCOME",
    ]);
    for row in rows {
        let decision = &row.decision;
        let heads: Vec<String> = decision.heads.iter().map(head).collect();
        let (reward, outcome) = outcome(row);
        table.add_row([
            rfc3339(decision.at_us),
            subject(&decision.subject),
            format!("{:?}", decision.source).to_lowercase(),
            decision.policy.to_string(),
            heads.join("  "),
            reward,
            outcome,
        ]);
    }
    align_right(&mut table, 5..6);
    format!("{table}\nlevels by number, p: the propensity of what was requested")
}

fn subject(subject: &Subject) -> String {
    match subject {
        Subject::Disk { guest, target } if guest.is_empty() => target.clone(),
        Subject::Disk { guest, target } => format!("{guest}/{target}"),
        Subject::Device { name } => name.clone(),
    }
}

/// `channel 0→2 p=0.31`, with what became of the request where that is something else.
fn head(head: &HeadRow) -> String {
    let HeadRow {
        head: name,
        previous,
        requested,
        executed,
        propensity,
        ..
    } = head;
    let change = if previous == requested {
        previous.to_string()
    } else {
        format!("{previous}→{requested}")
    };
    let chance = if head.forced {
        "forced".to_owned()
    } else {
        format!("p={propensity:.3}")
    };
    let altered = head.altered.as_ref();
    let altered = altered.map_or_else(String::new, |why| format!(" but {executed}: {why}"));
    format!("{name} {change} {chance}{altered}")
}

fn outcome(row: &LoggedRow) -> (String, String) {
    match &row.outcome {
        Ok(found) if found.counted => (format!("{:.4}", found.reward_own), "counted".to_owned()),
        Ok(found) => (
            format!("{:.4}", found.reward_own),
            format!("{:?}", found.validity).to_lowercase(),
        ),
        Err(missing) => (ABSENT.to_owned(), missing.text().replace('_', " ")),
    }
}

pub(super) fn report(report: &Report) -> String {
    let mut text = String::new();
    for finding in report.findings.iter().take(MOST_SHOWN) {
        let row = finding
            .row
            .map_or_else(String::new, |row| format!(" row {row}"));
        text += &format!("{}{row}: {}\n", finding.file.display(), finding.problem);
    }
    let shown = report.findings.len().min(MOST_SHOWN) as u64;
    if report.wrong > shown {
        text += &format!("… and {} more\n", report.wrong - shown);
    }
    text + &format!(
        "{} files, {} rows, {} with an outcome, {} whose outcome is awaited; {} events repeated, {} outcomes without a decision; {} wrong",
        report.files,
        report.rows,
        report.outcomes,
        report.awaited,
        report.repeated,
        report.orphans,
        report.wrong
    )
}
