//! The one way to read a log: Parquet files and live segments together, in order, in batches of
//! columns.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{ArrowPrimitiveType, BooleanArray, PrimitiveArray, RecordBatch};
use arrow_array::{ListArray, StringArray};
use arrow_select::filter::filter_record_batch;
use arrow_select::interleave::interleave_record_batch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::columns::{COLUMNS, Column, LoggedRow, Rows, all, rows_of};
use crate::error::{LogError, failed};
use crate::files::{Disk, Files, is_missing};
use crate::join::{Gathered, Horizon, Joined, Log};
use crate::part::{ROW_GROUP_ROWS, footer_of, read_footer, row_group_times};
use crate::place::{Part, parts};
use crate::retain;
use crate::schema::{DecisionId, Subject};

/// Rows of a batch at most.
const BATCH_ROWS: usize = ROW_GROUP_ROWS;
/// Rows of a batch of a live segment, which are held as rows first.
const LIVE_BATCH_ROWS: usize = 1024;

/// What is wanted of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Names of the columns, in the order in which they shall stand; all if there are none.
    pub columns: Vec<String>,
    /// The earliest `at`, in microseconds since 1970 UTC.
    pub from_us: Option<i64>,
    /// The earliest `at` that is too late.
    pub until_us: Option<i64>,
    /// Only rows with this `host_name`.
    pub host: Option<String>,
    /// Only rows with this `guest`.
    pub guest: Option<String>,
    /// Only rows with this `target`.
    pub target: Option<String>,
    /// Only rows with this `policy`.
    pub policy: Option<String>,
}

/// Reads a log from its oldest row to its newest. Memory is bounded by a row group of each file of
/// one segment and, in what is not Parquet yet, by the outcomes of one segment. A file that cannot be
/// read is an error, after which the rows behind it follow. A log may be read while it is written and
/// compacted: the rows are those that were there when their segment was begun.
#[derive(Debug)]
pub struct Scan {
    log: Log,
    wanted: Wanted,
    horizon: Horizon,
    waiting: VecDeque<Unit>,
    open: Open,
    problems: VecDeque<LogError>,
    before: Before,
}

/// What stands under one number.
#[derive(Debug)]
enum Unit {
    Segment(u64),
    Parts(Vec<Part>),
}

#[derive(Debug)]
enum Open {
    Nothing,
    Segment(Box<Joined>),
    Parts(Merge),
}

/// Where the ids of the rows before the next segment are.
#[derive(Debug)]
enum Before {
    Ids(HashSet<u128>),
    Parts(Vec<Part>),
}

/// A query whose columns are known.
#[derive(Debug)]
struct Wanted {
    query: Query,
    columns: Vec<&'static Column>,
    /// Indices in [`COLUMNS`] of all that has to be read.
    read: Vec<usize>,
}

impl Scan {
    /// Begins to read the log in `dir`, with its Parquet files and segments as they are now.
    ///
    /// # Errors
    /// `UnknownColumn`, `Io`, `State`.
    pub fn open(dir: &Path, query: Query, horizon: Horizon) -> Result<Self, LogError> {
        Self::open_on(Arc::new(Disk), dir, query, horizon)
    }

    pub(crate) fn open_on(
        files: Arc<dyn Files>,
        dir: &Path,
        query: Query,
        horizon: Horizon,
    ) -> Result<Self, LogError> {
        let log = Log::new(files, dir);
        Ok(Self {
            wanted: Wanted::new(query)?,
            horizon,
            waiting: units(&log)?.into(),
            log,
            open: Open::Nothing,
            problems: VecDeque::new(),
            before: Before::Ids(HashSet::new()),
        })
    }

    /// Leaves out the oldest Parquet files, but keeps so many that at least `rows` rows follow, if
    /// there are as many.
    ///
    /// # Errors
    /// None by itself: files that cannot be read are reported when they are reached.
    #[must_use]
    pub fn from_last(mut self, rows: u64) -> Self {
        let (mut kept, mut found) = (VecDeque::new(), 0);
        while let Some(unit) = self.waiting.pop_back() {
            if found >= rows {
                if let Unit::Parts(parts) = unit {
                    self.before = Before::Parts(parts);
                }
                break;
            }
            if let Unit::Parts(parts) = &unit {
                let footers = parts.iter().filter_map(|part| {
                    Some(read_footer(self.log.files.as_ref(), &part.path).ok()?.1)
                });
                found += footers.map(|footer| footer.rows).sum::<u64>();
            }
            kept.push_front(unit);
        }
        self.waiting = kept;
        self
    }

    /// Opens the next unit; `false` at the end of the log.
    fn advance(&mut self) -> Result<bool, LogError> {
        let Some(unit) = self.waiting.pop_front() else {
            return Ok(false);
        };
        self.open = match unit {
            Unit::Parts(parts) => {
                let open = Open::Parts(self.open_parts(&parts));
                self.before = Before::Parts(parts);
                open
            }
            Unit::Segment(number) => match self.open_segment(number) {
                Ok(joined) => Open::Segment(Box::new(joined)),
                // It has become Parquet in the meantime, or retention has dropped it.
                Err(LogError::Io { source, .. }) if is_missing(&source) => {
                    let mut parts = parts(self.log.files.as_ref(), &self.log.dir)?;
                    parts.retain(|part| part.number == number);
                    let open = Open::Parts(self.open_parts(&parts));
                    if !parts.is_empty() {
                        self.before = Before::Parts(parts);
                    }
                    open
                }
                Err(error) => return Err(error),
            },
        };
        Ok(true)
    }

    fn open_segment(&mut self, number: u64) -> Result<Joined, LogError> {
        if let Before::Parts(parts) = &self.before {
            let ids = ids_of_parts(self.log.files.as_ref(), parts)?;
            self.before = Before::Ids(ids);
        }
        let Before::Ids(before) = &self.before else {
            unreachable!("they have just been read")
        };
        let gathered = Gathered::from(&self.log, number, before, self.horizon)?;
        if !gathered.ids.is_empty() {
            self.before = Before::Ids(gathered.ids.clone());
        }
        Joined::open(&self.log, number, gathered)
    }

    fn open_parts(&mut self, parts: &[Part]) -> Merge {
        let mut inputs = Vec::new();
        for part in parts {
            match Input::open(self.log.files.as_ref(), &part.path, &self.wanted) {
                Ok(input) => inputs.push(input),
                Err(LogError::Io { source, .. }) if is_missing(&source) => {}
                Err(error) => self.problems.push_back(error),
            }
        }
        Merge { inputs }
    }

    /// The next rows of the open unit; `None` at its end.
    fn next_batch(&mut self) -> Result<Option<RecordBatch>, LogError> {
        match &mut self.open {
            Open::Nothing => Ok(None),
            Open::Parts(merge) => merge
                .next()?
                .map(|batch| self.wanted.pick(&batch))
                .transpose(),
            Open::Segment(joined) => {
                let mut rows = Rows::new(&self.wanted.columns);
                for row in joined {
                    let row = row?;
                    if self.wanted.takes(&row) {
                        rows.push(&row);
                        if rows.len() == LIVE_BATCH_ROWS {
                            break;
                        }
                    }
                }
                Ok((!rows.is_empty()).then(|| rows.take()))
            }
        }
    }
}

impl Iterator for Scan {
    type Item = Result<Batch, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(problem) = self.problems.pop_front() {
                return Some(Err(problem));
            }
            match self.next_batch() {
                Ok(Some(batch)) if batch.num_rows() > 0 => return Some(Ok(Batch(batch))),
                Ok(Some(_)) => {}
                Ok(None) => {
                    self.open = Open::Nothing;
                    match self.advance() {
                        Ok(true) => {}
                        Ok(false) => return self.problems.pop_front().map(Err),
                        Err(error) => return Some(Err(error)),
                    }
                }
                Err(error) => {
                    self.open = Open::Nothing;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// What there is, in order. A segment counts before the files that it is about to become; and is
/// looked for first, so that none that becomes files meanwhile is missed.
fn units(log: &Log) -> Result<Vec<Unit>, LogError> {
    let files = log.files.as_ref();
    let segments = log.segments()?;
    let parts = parts(files, &log.dir)?;
    let dropped = retain::dropped(files, &log.dir)?.through_segment;
    let mut units: Vec<(u64, Unit)> = segments
        .iter()
        .map(|(number, _)| (*number, Unit::Segment(*number)))
        .collect();
    let is_segment = |number: u64| segments.iter().any(|(known, _)| *known == number);
    for same in parts.chunk_by(|one, next| one.number == next.number) {
        if !is_segment(same[0].number) {
            units.push((same[0].number, Unit::Parts(same.to_vec())));
        }
    }
    units.retain(|(number, _)| *number > dropped);
    units.sort_by_key(|(number, _)| *number);
    Ok(units.into_iter().map(|(_, unit)| unit).collect())
}

/// Ids of all rows of some files.
pub(crate) fn ids_of_parts<'a>(
    files: &dyn Files,
    parts: impl IntoIterator<Item = &'a Part>,
) -> Result<HashSet<u128>, LogError> {
    let query = Query {
        columns: vec!["decision_id".to_owned()],
        ..Query::default()
    };
    let wanted = Wanted::new(query)?;
    let mut ids = HashSet::new();
    for part in parts {
        let mut input = match Input::open(files, &part.path, &wanted) {
            // It says so itself when it is read.
            Err(LogError::Parquet { .. } | LogError::Schema { .. }) => continue,
            Err(LogError::Io { source, .. }) if is_missing(&source) => continue,
            opened => opened?,
        };
        while input.fill()? {
            let batch = input.batch.take().expect("it has been filled");
            let texts = Batch(batch);
            let texts = texts.texts("decision_id")?.iter().flatten();
            ids.extend(texts.filter_map(|text| Some(text.parse::<DecisionId>().ok()?.0)));
        }
    }
    Ok(ids)
}

impl Wanted {
    fn new(query: Query) -> Result<Self, LogError> {
        let find = |name: &String| {
            Column::find(name).ok_or_else(|| LogError::UnknownColumn { name: name.clone() })
        };
        let columns = match query.columns.as_slice() {
            [] => all(),
            names => names.iter().map(find).collect::<Result<_, _>>()?,
        };
        let mut read: Vec<&str> = columns.iter().map(|column| column.name).collect();
        read.push("line");
        let filters = [
            ("at", query.from_us.is_some() || query.until_us.is_some()),
            ("host_name", query.host.is_some()),
            ("guest", query.guest.is_some()),
            ("target", query.target.is_some()),
            ("policy", query.policy.is_some()),
        ];
        read.extend(
            filters
                .iter()
                .filter(|(_, used)| *used)
                .map(|(name, _)| *name),
        );
        let all = COLUMNS.iter().enumerate();
        let read = all
            .filter(|(_, column)| read.contains(&column.name))
            .map(|(i, _)| i)
            .collect();
        Ok(Self {
            query,
            columns,
            read,
        })
    }

    fn is_in_time(&self, at_us: i64) -> bool {
        self.query.from_us.is_none_or(|from| at_us >= from)
            && self.query.until_us.is_none_or(|until| at_us < until)
    }

    /// Whether a row group with these times may hold a row that is wanted.
    fn overlaps(&self, times: Option<(i64, i64)>) -> bool {
        times.is_none_or(|(first, last)| {
            self.query.from_us.is_none_or(|from| last >= from)
                && self.query.until_us.is_none_or(|until| first < until)
        })
    }

    fn takes(&self, row: &LoggedRow) -> bool {
        let decision = &row.decision;
        let (guest, target) = match &decision.subject {
            Subject::Disk { guest, target } => (Some(guest), target),
            Subject::Device { name } => (None, name),
        };
        let Query {
            host: wanted_host,
            guest: wanted_guest,
            target: wanted_target,
            policy,
            ..
        } = &self.query;
        self.is_in_time(decision.at_us)
            && wanted_host
                .as_ref()
                .is_none_or(|name| **name == *decision.host)
            && wanted_guest.as_ref().is_none_or(|name| Some(name) == guest)
            && wanted_target.as_ref().is_none_or(|name| name == target)
            && policy
                .as_ref()
                .is_none_or(|name| **name == *decision.policy)
    }

    /// The rows and columns of a batch that are wanted.
    fn pick(&self, batch: &RecordBatch) -> Result<RecordBatch, LogError> {
        let mut keep = vec![true; batch.num_rows()];
        if self.query.from_us.is_some() || self.query.until_us.is_some() {
            let times = batch["at"].as_primitive::<TimestampMicrosecondType>();
            for (keep, at_us) in keep.iter_mut().zip(times) {
                *keep &= at_us.is_some_and(|at_us| self.is_in_time(at_us));
            }
        }
        let filters = [
            ("host_name", &self.query.host),
            ("guest", &self.query.guest),
            ("target", &self.query.target),
            ("policy", &self.query.policy),
        ];
        for (name, wanted) in filters {
            let Some(wanted) = wanted else { continue };
            for (keep, text) in keep.iter_mut().zip(batch[name].as_string::<i32>()) {
                *keep &= text == Some(wanted);
            }
        }
        let indices: Vec<usize> = self
            .columns
            .iter()
            .map(|column| batch.schema().index_of(column.name).expect("it was read"))
            .collect();
        let picked = batch.project(&indices).expect("the indices are its own");
        if keep.iter().all(|keep| *keep) {
            return Ok(picked);
        }
        Ok(filter_record_batch(&picked, &BooleanArray::from(keep))
            .expect("there is one flag per row"))
    }
}

/// The files of one segment, merged by line.
#[derive(Debug)]
struct Merge {
    inputs: Vec<Input>,
}

struct Input {
    path: PathBuf,
    reader: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    /// The next row of `batch`.
    row: usize,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at row {} of a batch", self.path.display(), self.row)
    }
}

impl Input {
    fn open(files: &dyn Files, path: &Path, wanted: &Wanted) -> Result<Self, LogError> {
        let source = files.source(path).map_err(failed("open", path))?;
        let (metadata, _) = footer_of(&source, path)?;
        let groups = (0..metadata.metadata().num_row_groups())
            .filter(|group| wanted.overlaps(row_group_times(metadata.metadata(), *group)))
            .collect();
        let mask = ProjectionMask::roots(metadata.parquet_schema(), wanted.read.iter().copied());
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(source, metadata)
            .with_projection(mask)
            .with_row_groups(groups)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| LogError::parquet(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            reader,
            batch: None,
            row: 0,
        })
    }

    /// Makes sure that a row is there; `false` at the end.
    fn fill(&mut self) -> Result<bool, LogError> {
        if self
            .batch
            .as_ref()
            .is_some_and(|batch| self.row < batch.num_rows())
        {
            return Ok(true);
        }
        self.row = 0;
        self.batch = self
            .reader
            .next()
            .transpose()
            .map_err(|error| LogError::parquet(&self.path, error))?;
        match &self.batch {
            Some(batch) if batch.num_rows() == 0 => self.fill(),
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }
}

impl Merge {
    fn next(&mut self) -> Result<Option<RecordBatch>, LogError> {
        let mut at = 0;
        while at < self.inputs.len() {
            match self.inputs[at].fill() {
                Ok(true) => at += 1,
                Ok(false) => drop(self.inputs.remove(at)),
                Err(error) => {
                    // The others can be read on.
                    self.inputs.remove(at);
                    return Err(error);
                }
            }
        }
        match self.inputs.as_mut_slice() {
            [] => Ok(None),
            [only] => {
                let batch = only.batch.take().expect("it has been filled");
                Ok(Some(batch.slice(only.row, batch.num_rows() - only.row)))
            }
            several => Ok(Some(interleave(several))),
        }
    }
}

/// Rows in order, until one of the batches has no more.
fn interleave(inputs: &mut [Input]) -> RecordBatch {
    let mut rows: Vec<usize> = inputs.iter().map(|input| input.row).collect();
    let batches: Vec<&RecordBatch> = inputs
        .iter()
        .map(|input| input.batch.as_ref().expect("it has been filled"))
        .collect();
    let lines: Vec<&[i64]> = batches
        .iter()
        .map(|batch| &batch["line"].as_primitive::<Int64Type>().values()[..])
        .collect();
    let mut picked = Vec::new();
    loop {
        let next = (0..inputs.len()).min_by_key(|input| lines[*input][rows[*input]]);
        let next = next.expect("there are several");
        picked.push((next, rows[next]));
        rows[next] += 1;
        if rows[next] == lines[next].len() {
            break;
        }
    }
    let merged =
        interleave_record_batch(&batches, &picked).expect("batches of one schema, rows of theirs");
    for (input, row) in inputs.iter_mut().zip(rows) {
        input.row = row;
    }
    merged
}

/// Some rows, as columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch(RecordBatch);

/// Lists of numbers, one after another.
#[derive(Debug, Clone, Copy)]
pub struct Lists<'a, T> {
    /// Where each row's list begins in `values`, and where the last ends: one more than rows.
    pub offsets: &'a [i32],
    /// The elements of all rows; those that are null are 0 here.
    pub values: &'a [T],
}

impl Batch {
    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.num_rows()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The columns, for Arrow.
    #[must_use]
    pub fn record_batch(&self) -> &RecordBatch {
        &self.0
    }

    /// The rows, one by one.
    ///
    /// # Errors
    /// `Row`: a cell that no row can have, or a column without which there is none.
    pub fn rows(&self) -> Result<Vec<LoggedRow>, LogError> {
        rows_of(&self.0).map_err(|problem| LogError::Row { problem })
    }

    fn column(&self, name: &str) -> Result<&arrow_array::ArrayRef, LogError> {
        self.0
            .column_by_name(name)
            .ok_or_else(|| LogError::UnknownColumn {
                name: name.to_owned(),
            })
    }

    /// A column of text.
    ///
    /// # Errors
    /// `UnknownColumn` if it was not asked for or is no text.
    pub fn texts(&self, name: &str) -> Result<&StringArray, LogError> {
        self.column(name)?
            .as_string_opt()
            .ok_or_else(|| other_type(name))
    }

    /// A column of numbers or times.
    ///
    /// # Errors
    /// `UnknownColumn` if it was not asked for or is of another type.
    pub fn numbers<T: ArrowPrimitiveType>(
        &self,
        name: &str,
    ) -> Result<&PrimitiveArray<T>, LogError> {
        self.column(name)?
            .as_primitive_opt()
            .ok_or_else(|| other_type(name))
    }

    /// A column of flags.
    ///
    /// # Errors
    /// `UnknownColumn` if it was not asked for or is of another type.
    pub fn flags(&self, name: &str) -> Result<&BooleanArray, LogError> {
        self.column(name)?
            .as_boolean_opt()
            .ok_or_else(|| other_type(name))
    }

    /// A column of lists.
    ///
    /// # Errors
    /// `UnknownColumn` if it was not asked for or is of another type.
    pub fn lists(&self, name: &str) -> Result<&ListArray, LogError> {
        self.column(name)?
            .as_list_opt()
            .ok_or_else(|| other_type(name))
    }

    /// A column of lists of numbers, as two arrays.
    ///
    /// # Errors
    /// `UnknownColumn` if it was not asked for or is of another type.
    pub fn number_lists<T: ArrowPrimitiveType>(
        &self,
        name: &str,
    ) -> Result<Lists<'_, T::Native>, LogError> {
        let lists = self.lists(name)?;
        let values = lists
            .values()
            .as_primitive_opt::<T>()
            .ok_or_else(|| other_type(name))?;
        Ok(Lists {
            offsets: lists.value_offsets(),
            values: values.values(),
        })
    }
}

fn other_type(name: &str) -> LogError {
    LogError::UnknownColumn {
        name: format!("{name}, of this type"),
    }
}
