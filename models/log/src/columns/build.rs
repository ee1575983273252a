//! Rows into columns.

use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Float32Builder, Float64Builder, Int32Builder, Int64Builder, ListBuilder,
    StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;

use super::{Column, LoggedRow, Pick, schema_of};

/// Rows that become a batch of columns.
#[derive(Debug)]
pub struct Rows {
    columns: Vec<&'static Column>,
    schema: SchemaRef,
    cells: Vec<Cells>,
    count: usize,
}

#[derive(Debug)]
enum Cells {
    Text(StringBuilder),
    Time(TimestampMicrosecondBuilder),
    F64(Float64Builder),
    F32(Float32Builder),
    I64(Int64Builder),
    I32(Int32Builder),
    Bool(BooleanBuilder),
    Texts(ListBuilder<StringBuilder>),
    F64s(ListBuilder<Float64Builder>),
    F32s(ListBuilder<Float32Builder>),
    I32s(ListBuilder<Int32Builder>),
    Bools(ListBuilder<BooleanBuilder>),
    TextLists(ListBuilder<ListBuilder<StringBuilder>>),
}

impl Rows {
    /// No rows yet, of these columns.
    #[must_use]
    pub fn new(columns: &[&'static Column]) -> Self {
        Self {
            columns: columns.to_vec(),
            schema: schema_of(columns),
            cells: columns
                .iter()
                .map(|column| Cells::of(&column.pick))
                .collect(),
            count: 0,
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a row.
    pub fn push(&mut self, row: &LoggedRow) {
        for (column, cells) in self.columns.iter().zip(&mut self.cells) {
            cells.push(&column.pick, row);
        }
        self.count += 1;
    }

    /// The rows as columns; none are left.
    pub fn take(&mut self) -> RecordBatch {
        let arrays = self.cells.iter_mut().map(Cells::take).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.count));
        self.count = 0;
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .expect("each column has one cell per row, of its own type")
    }
}

impl Cells {
    fn of(pick: &Pick) -> Self {
        match pick {
            Pick::Text(_) => Self::Text(StringBuilder::new()),
            Pick::Time(_) => Self::Time(TimestampMicrosecondBuilder::new().with_timezone("UTC")),
            Pick::F64(_) => Self::F64(Float64Builder::new()),
            Pick::F32(_) => Self::F32(Float32Builder::new()),
            Pick::I64(_) => Self::I64(Int64Builder::new()),
            Pick::I32(_) => Self::I32(Int32Builder::new()),
            Pick::Bool(_) => Self::Bool(BooleanBuilder::new()),
            Pick::Texts(_) => Self::Texts(ListBuilder::default()),
            Pick::F64s(_) => Self::F64s(ListBuilder::default()),
            Pick::F32s(_) => Self::F32s(ListBuilder::default()),
            Pick::I32s(_) => Self::I32s(ListBuilder::default()),
            Pick::Bools(_) => Self::Bools(ListBuilder::default()),
            Pick::TextLists(_) => Self::TextLists(ListBuilder::default()),
        }
    }

    fn push(&mut self, pick: &Pick, row: &LoggedRow) {
        match (self, pick) {
            (Self::Text(cells), Pick::Text(pick)) => pick(row, cells),
            (Self::Time(cells), Pick::Time(pick)) => cells.append_option(pick(row)),
            (Self::F64(cells), Pick::F64(pick)) => cells.append_option(pick(row)),
            (Self::F32(cells), Pick::F32(pick)) => cells.append_option(pick(row)),
            (Self::I64(cells), Pick::I64(pick)) => cells.append_value(pick(row)),
            (Self::I32(cells), Pick::I32(pick)) => cells.append_value(pick(row)),
            (Self::Bool(cells), Pick::Bool(pick)) => cells.append_option(pick(row)),
            (Self::Texts(cells), Pick::Texts(pick)) => {
                let is_there = pick(row, cells.values());
                cells.append(is_there);
            }
            (Self::F64s(cells), Pick::F64s(pick)) => {
                let is_there = pick(row, cells.values());
                cells.append(is_there);
            }
            (Self::F32s(cells), Pick::F32s(pick)) => {
                let is_there = pick(row, cells.values());
                cells.append(is_there);
            }
            (Self::I32s(cells), Pick::I32s(pick)) => {
                let is_there = pick(row, cells.values());
                cells.append(is_there);
            }
            (Self::Bools(cells), Pick::Bools(pick)) => {
                let is_there = pick(row, cells.values());
                cells.append(is_there);
            }
            (Self::TextLists(cells), Pick::TextLists(pick)) => {
                let is_there = pick(row, cells.values());
                cells.append(is_there);
            }
            (cells, pick) => unreachable!("{cells:?} were made for {pick:?}"),
        }
    }

    fn take(&mut self) -> ArrayRef {
        match self {
            Self::Text(cells) => Arc::new(cells.finish()),
            Self::Time(cells) => Arc::new(cells.finish()),
            Self::F64(cells) => Arc::new(cells.finish()),
            Self::F32(cells) => Arc::new(cells.finish()),
            Self::I64(cells) => Arc::new(cells.finish()),
            Self::I32(cells) => Arc::new(cells.finish()),
            Self::Bool(cells) => Arc::new(cells.finish()),
            Self::Texts(cells) => Arc::new(cells.finish()),
            Self::F64s(cells) => Arc::new(cells.finish()),
            Self::F32s(cells) => Arc::new(cells.finish()),
            Self::I32s(cells) => Arc::new(cells.finish()),
            Self::Bools(cells) => Arc::new(cells.finish()),
            Self::TextLists(cells) => Arc::new(cells.finish()),
        }
    }
}
