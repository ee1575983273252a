//! A borrowed table, row by row.

use std::ops::Range;

use super::error::OpeError;

/// Rows of equal length, one after another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix<'a, T> {
    values: &'a [T],
    columns: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A table of this many columns.
    ///
    /// # Errors
    /// `Setting` where there are no columns, `Length` where the last row is not full.
    pub fn new(values: &'a [T], columns: usize) -> Result<Self, OpeError> {
        if columns == 0 {
            return Err(OpeError::Setting {
                what: "columns of a table",
                value: 0.0,
                rule: "must be at least 1",
            });
        }
        let full = values.len().div_ceil(columns) * columns;
        super::error::check_length("a table", values.len(), full)?;
        Ok(Self { values, columns })
    }

    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// How many columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// A row.
    ///
    /// # Panics
    /// When there is no such row.
    #[inline]
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [T] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// The values of some rows, one row after another.
    ///
    /// # Panics
    /// When there are no such rows.
    #[inline]
    #[must_use]
    pub fn rows_of(&self, rows: Range<usize>) -> &'a [T] {
        &self.values[rows.start * self.columns..rows.end * self.columns]
    }
}
