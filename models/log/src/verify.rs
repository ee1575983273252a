//! Whether a log is what was written: checksums, footers, gaps, repeated rows, joins, propensities.

use std::collections::{BTreeSet, HashSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;

use crate::columns::{LoggedRow, Missing, is_applied, rows_of};
use crate::error::{LogError, failed};
use crate::files::{Disk, Files as _, is_missing};
use crate::join::{Gathered, Horizon, Joined, Log};
use crate::part::{Footer, footer_of};
use crate::place::{Part, Place, parts};
use crate::reader::Reader;
use crate::retain;
use crate::schema::{DecisionRow, HeadRow};
use crate::segment;

/// Findings that are kept; more are counted.
const MOST_FINDINGS: usize = 1000;
/// Bytes that are read at once for a checksum.
const CHUNK_BYTES: usize = 1 << 16;

/// What was found.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Report {
    /// Files that were read.
    pub files: u64,
    /// Rows that were checked.
    pub rows: u64,
    /// Rows with an outcome.
    pub outcomes: u64,
    /// Rows whose outcome may still come.
    pub awaited: u64,
    /// Events that are there twice, of which readers take the first.
    pub repeated: u64,
    /// Outcomes whose decision is nowhere.
    pub orphans: u64,
    /// What is wrong, in the order of the files; at most a thousand.
    pub findings: Vec<Finding>,
    /// All that is wrong, with what is not listed.
    pub wrong: u64,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, below the log's directory.
    pub file: PathBuf,
    /// The row in the file, from 0; of a segment, the row among its decisions.
    pub row: Option<u64>,
    /// What is wrong with it.
    pub problem: String,
}

/// Checks the log in `dir`, while it is written to or not.
///
/// Rows are repeated if their id stands twice in the files of one segment or in those of two that
/// follow each other: that is as far as a writer repeats itself.
///
/// # Errors
/// `Io` if the directory cannot be read; `State`. What is wrong with a file is a finding.
pub fn verify(dir: &Path, horizon: Horizon) -> Result<Report, LogError> {
    let log = Log::new(Arc::new(Disk), dir);
    let mut check = Check {
        report: Report::default(),
        before: HashSet::new(),
        previous: retain::dropped(&Disk, dir)?.through_segment,
        log,
    };
    let dropped = check.previous;
    let segments = check.log.segments()?;
    let parts = parts(&Disk, dir)?;
    let mut numbers: BTreeSet<u64> = segments.iter().map(|(number, _)| *number).collect();
    numbers.extend(parts.iter().map(|part| part.number));
    numbers.retain(|number| *number > dropped);
    for number in numbers {
        let own: Vec<Part> = parts
            .iter()
            .filter(|part| part.number == number)
            .cloned()
            .collect();
        match segments.iter().find(|(known, _)| *known == number) {
            Some((_, path)) => check.segment(number, path, horizon),
            None => check.parts(number, &own),
        }
    }
    Ok(check.report)
}

struct Check {
    log: Log,
    report: Report,
    /// Ids of the rows of the segment before.
    before: HashSet<u128>,
    /// The last segment that has rows.
    previous: u64,
}

impl Check {
    fn wrong(&mut self, file: &Path, row: Option<u64>, problem: impl Into<String>) {
        self.report.wrong += 1;
        if self.report.findings.len() < MOST_FINDINGS {
            self.report.findings.push(Finding {
                file: file.strip_prefix(&self.log.dir).unwrap_or(file).to_owned(),
                row,
                problem: problem.into(),
            });
        }
    }

    fn failed(&mut self, file: &Path, error: &LogError) {
        let problem = match error {
            LogError::Parquet { problem, .. } => problem.clone(),
            LogError::Io { action, source, .. } => format!("cannot {action}: {source}"),
            other => other.to_string(),
        };
        self.wrong(file, None, problem);
    }

    // Segments.

    fn segment(&mut self, number: u64, path: &Path, horizon: Horizon) {
        self.report.files += 1;
        match self.try_segment(number, path, horizon) {
            Ok(()) => {}
            // It has become Parquet in the meantime.
            Err(LogError::Io { source, .. }) if is_missing(&source) => {
                self.report.files -= 1;
                match parts(&Disk, &self.log.dir) {
                    Ok(mut parts) => {
                        parts.retain(|part| part.number == number);
                        self.parts(number, &parts);
                    }
                    Err(error) => self.failed(path, &error),
                }
            }
            Err(error) => self.failed(path, &error),
        }
    }

    fn try_segment(&mut self, number: u64, path: &Path, horizon: Horizon) -> Result<(), LogError> {
        let lines = Reader::begin(Arc::clone(&self.log.files), number, path)?;
        let damaged: Vec<LogError> = lines.filter_map(Result::err).collect();
        for error in damaged {
            match error {
                LogError::Damaged {
                    offset, problem, ..
                } => {
                    self.wrong(path, None, format!("damaged at byte {offset}: {problem}"));
                }
                // Said by what follows.
                LogError::Format { .. } => {}
                other => return Err(other),
            }
        }
        let gathered = Gathered::from(&self.log, number, &self.before, horizon)?;
        self.report.repeated += gathered.duplicates;
        self.report.orphans += gathered.orphans;
        if !gathered.ids.is_empty() {
            self.before.clone_from(&gathered.ids);
            self.previous = number;
        }
        for row in Joined::open(&self.log, number, gathered)? {
            let row = row?;
            self.row(path, row.line, &row);
        }
        Ok(())
    }

    // Parquet files.

    fn parts(&mut self, number: u64, parts: &[Part]) {
        let (mut lines, mut ids) = (BTreeSet::new(), HashSet::new());
        let (mut whole, mut all_read) = (None, true);
        for part in parts {
            self.report.files += 1;
            match self.part(part, &mut lines, &mut ids) {
                Ok(footer) => whole = whole.or(Some(footer)),
                Err(error) => {
                    all_read = false;
                    self.failed(&part.path, &error);
                }
            }
        }
        if !parts.is_empty() && whole.is_none() {
            self.previous = number;
        }
        let Some(footer) = whole else { return };
        let first = &parts[0].path;
        if footer.segment_parts != parts.len() as u64 {
            let problem = format!(
                "segment {number} became {} files, {} are there: the others are lost",
                footer.segment_parts,
                parts.len()
            );
            self.wrong(first, None, problem);
        }
        let missing = (0..footer.segment_rows).filter(|line| !lines.contains(line));
        let missing: Vec<u64> = missing.take(3).collect();
        if all_read && !missing.is_empty() {
            let problem = format!(
                "segment {number} had {} rows, {} are there; lost are lines {missing:?} …",
                footer.segment_rows,
                lines.len()
            );
            self.wrong(first, None, problem);
        }
        if footer.previous_segment > self.previous {
            let problem = format!(
                "the rows of segment {} stand before it and are lost; those before it are of segment {}",
                footer.previous_segment, self.previous
            );
            self.wrong(first, None, problem);
        }
        if footer.damaged_lines > 0 {
            let problem = format!(
                "{} lines of its segment could not be read",
                footer.damaged_lines
            );
            self.wrong(first, None, problem);
        }
        self.previous = number;
        self.before = ids;
    }

    fn part(
        &mut self,
        part: &Part,
        lines: &mut BTreeSet<u64>,
        ids: &mut HashSet<u128>,
    ) -> Result<Footer, LogError> {
        let source = Disk
            .source(&part.path)
            .map_err(failed("open", &part.path))?;
        let (metadata, footer) = footer_of(&source, &part.path)?;
        if footer.segment != part.number {
            let problem = format!("its footer says that it is of segment {}", footer.segment);
            self.wrong(&part.path, None, problem);
        }
        check_sum(&part.path, &footer)?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(source, metadata)
            .build()
            .map_err(|error| LogError::parquet(&part.path, error))?;
        let mut number = 0;
        for batch in reader {
            let batch = batch.map_err(|error| LogError::parquet(&part.path, error))?;
            match rows_of(&batch) {
                Ok(rows) => {
                    for row in rows {
                        self.part_row(part, number, &row, lines, ids);
                        number += 1;
                    }
                }
                Err(problem) => {
                    self.wrong(&part.path, Some(number), format!("from here on: {problem}"));
                    number += batch.num_rows() as u64;
                }
            }
        }
        Ok(footer)
    }

    fn part_row(
        &mut self,
        part: &Part,
        number: u64,
        row: &LoggedRow,
        lines: &mut BTreeSet<u64>,
        ids: &mut HashSet<u128>,
    ) {
        let id = row.decision.id;
        if self.before.contains(&id.0) || !ids.insert(id.0) {
            self.wrong(
                &part.path,
                Some(number),
                format!("decision {id} is there twice"),
            );
        }
        if row.segment != part.number {
            let problem = format!("segment = {}, the file's is {}", row.segment, part.number);
            self.wrong(&part.path, Some(number), problem);
        }
        if !lines.insert(row.line) {
            let problem = format!("line {} of its segment is there twice", row.line);
            self.wrong(&part.path, Some(number), problem);
        }
        let place = Place::of(&row.decision.host, row.decision.at_us).dir(&self.log.dir);
        if part.path.parent() != Some(place.as_path()) {
            let place = place
                .strip_prefix(&self.log.dir)
                .unwrap_or(&place)
                .display()
                .to_string();
            self.wrong(&part.path, Some(number), format!("it belongs to {place}"));
        }
        if row.outcome == Err(Missing::Awaited) {
            let problem = "outcome_missing = awaited, but nothing more will come";
            self.wrong(&part.path, Some(number), problem);
        }
        self.row(&part.path, number, row);
    }

    // Rows.

    fn row(&mut self, file: &Path, number: u64, row: &LoggedRow) {
        self.report.rows += 1;
        match &row.outcome {
            Ok(_) => self.report.outcomes += 1,
            Err(Missing::Awaited) => self.report.awaited += 1,
            Err(_) => {}
        }
        for problem in problems(row) {
            self.wrong(file, Some(number), problem);
        }
    }
}

/// Fails where the rows cannot be relied on.
fn check_sum(path: &Path, footer: &Footer) -> Result<(), LogError> {
    let file = Disk.open(path).map_err(failed("open", path))?;
    let mut data = file.take(footer.data_bytes);
    let (mut hasher, mut chunk) = (crc32fast::Hasher::new(), vec![0; CHUNK_BYTES]);
    let mut length = 0;
    loop {
        let read = data.read(&mut chunk).map_err(failed("read", path))?;
        if read == 0 {
            break;
        }
        hasher.update(&chunk[..read]);
        length += read as u64;
    }
    let sum = hasher.finalize();
    if length == footer.data_bytes && sum == footer.data_crc32 {
        return Ok(());
    }
    Err(LogError::Parquet {
        file: path.to_owned(),
        problem: format!(
            "its checksum is {sum:08x}, its footer says {:08x}: it has been damaged since it was written",
            footer.data_crc32
        ),
    })
}

/// What is wrong with a row by itself.
fn problems(row: &LoggedRow) -> Vec<String> {
    let decision = &row.decision;
    let mut found = vec![];
    if !(0.0..=1.0).contains(&decision.epsilon) {
        found.push(format!("epsilon = {} must be in [0, 1]", decision.epsilon));
    }
    for head in &decision.heads {
        found.extend(head_problems(head));
    }
    found.extend(outcome_problem(row, decision));
    found
}

fn head_problems(head: &HeadRow) -> impl Iterator<Item = String> {
    let HeadRow {
        head: name,
        requested,
        executed,
        propensity,
        forced,
        mask,
        ..
    } = head;
    let levels = mask.len();
    let is_probability = *propensity > 0.0 && *propensity <= 1.0;
    [
        (!is_probability)
            .then(|| format!("head_propensity of {name} = {propensity} must be in (0, 1]")),
        (is_probability && *forced && *propensity != 1.0)
            .then(|| format!("head_propensity of {name} = {propensity} must be 1 where forced")),
        (usize::from(*requested) >= levels || usize::from(*executed) >= levels).then(|| {
            format!("{name} has {levels} levels, requested is {requested} and executed {executed}")
        }),
        (*executed != *requested && head.altered.is_none()).then(|| {
            format!("{name} was requested {requested} and executed {executed}, and head_altered does not say why")
        }),
    ]
    .into_iter()
    .flatten()
}

fn outcome_problem(row: &LoggedRow, decision: &DecisionRow) -> Option<String> {
    let Ok(outcome) = &row.outcome else {
        return None;
    };
    if !is_applied(decision.source) {
        return Some("it has an outcome, but nobody applied it".to_owned());
    }
    if outcome.at_us < decision.at_us {
        return Some("its outcome is from before it was decided".to_owned());
    }
    let is_length = outcome.interval_s > 0.0;
    (!is_length).then(|| format!("interval_s = {} must be > 0", outcome.interval_s))
}

/// Whether a directory holds a log at all.
///
/// # Errors
/// `Io` if it cannot be read.
pub fn is_log(dir: &Path) -> Result<bool, LogError> {
    Ok(!segment::list(&Disk, dir)?.is_empty() || !parts(&Disk, dir)?.is_empty())
}

#[cfg(test)]
mod tests;
