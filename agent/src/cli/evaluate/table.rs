//! CSV files by column.

use std::collections::HashMap;
use std::path::Path;

use blkpilot_models::ope::Matrix;

use super::EvaluateError;

/// A CSV file with a header row, as text.
pub(super) struct Table {
    file: String,
    columns: HashMap<String, usize>,
    records: Vec<csv::StringRecord>,
}

/// A rectangle of numbers, row by row.
pub(super) struct Block<T> {
    values: Vec<T>,
    columns: usize,
}

impl<T> Block<T> {
    pub(super) fn matrix(&self) -> Result<Matrix<'_, T>, blkpilot_models::ope::OpeError> {
        Matrix::new(&self.values, self.columns)
    }
}

impl Table {
    pub(super) fn read(dir: &Path, file: &str) -> Result<Self, EvaluateError> {
        let problem = |error: csv::Error| EvaluateError::File {
            file: file.to_owned(),
            problem: error.to_string(),
        };
        let mut reader = csv::Reader::from_path(dir.join(file)).map_err(problem)?;
        let header = reader.headers().map_err(problem)?;
        let columns = header.iter().enumerate();
        Ok(Self {
            file: file.to_owned(),
            columns: columns.map(|(i, name)| (name.to_owned(), i)).collect(),
            records: reader
                .records()
                .collect::<Result<_, _>>()
                .map_err(problem)?,
        })
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    fn problem(&self, problem: String) -> EvaluateError {
        EvaluateError::File {
            file: self.file.clone(),
            problem,
        }
    }

    /// A column as text, one entry per row.
    pub(super) fn text(&self, column: &str) -> Result<impl Iterator<Item = &str>, EvaluateError> {
        let index = self.columns.get(column).copied();
        let index = index.ok_or_else(|| self.problem(format!("no column {column}")))?;
        Ok(self
            .records
            .iter()
            .map(move |record| record.get(index).unwrap_or("").trim()))
    }

    fn parsed<T>(
        &self,
        column: &str,
        rule: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, EvaluateError> {
        let cells = self.text(column)?.enumerate();
        cells
            .map(|(row, text)| {
                parse(text).ok_or_else(|| match text {
                    "" => self.problem(format!("row {row}: {column} is missing: {rule}")),
                    _ => self.problem(format!("row {row}: {column} = \"{text}\" {rule}")),
                })
            })
            .collect()
    }

    /// A column of numbers. What is no finite number is left to the check of the log.
    pub(super) fn floats(&self, column: &str) -> Result<Vec<f64>, EvaluateError> {
        self.parsed(column, "must be a number", |text| text.parse().ok())
    }

    pub(super) fn integers(&self, column: &str) -> Result<Vec<i64>, EvaluateError> {
        self.parsed(column, "must be an integer", |text| text.parse().ok())
    }

    /// A column of numbers from 0.
    pub(super) fn counts<T: std::str::FromStr>(
        &self,
        column: &str,
    ) -> Result<Vec<T>, EvaluateError> {
        self.parsed(column, "must be an integer from 0", |text| {
            text.parse().ok()
        })
    }

    pub(super) fn flags(&self, column: &str) -> Result<Vec<bool>, EvaluateError> {
        self.parsed(column, "must be 0 or 1", |text| match text {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        })
    }

    /// How many columns `prefix0`, `prefix1`, … there are.
    pub(super) fn width(&self, prefix: &str) -> usize {
        (0..)
            .take_while(|k| self.columns.contains_key(&format!("{prefix}{k}")))
            .count()
    }

    /// The columns `prefix0`, `prefix1`, … up to `width`.
    pub(super) fn float_block(
        &self,
        prefix: &str,
        width: usize,
    ) -> Result<Block<f64>, EvaluateError> {
        let columns = (0..width).map(|k| self.floats(&format!("{prefix}{k}")));
        Ok(self.block(&columns.collect::<Result<Vec<_>, _>>()?))
    }

    pub(super) fn flag_block(
        &self,
        prefix: &str,
        width: usize,
    ) -> Result<Block<bool>, EvaluateError> {
        let columns = (0..width).map(|k| self.flags(&format!("{prefix}{k}")));
        Ok(self.block(&columns.collect::<Result<Vec<_>, _>>()?))
    }

    fn block<T: Copy>(&self, columns: &[Vec<T>]) -> Block<T> {
        let row = |row: usize| columns.iter().map(move |column| column[row]);
        Block {
            values: (0..self.records.len()).flat_map(row).collect(),
            columns: columns.len(),
        }
    }

    /// Refuses a number that is there twice.
    pub(super) fn check_distinct(&self, column: &str) -> Result<(), EvaluateError> {
        let mut seen = HashMap::new();
        for (row, value) in self.integers(column)?.into_iter().enumerate() {
            if let Some(first) = seen.insert(value, row) {
                return Err(self.problem(format!(
                    "row {row}: {column} = {value} is there twice, first in row {first}: a decision has one row"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn table(text: &str) -> Table {
        let dir = tempfile::TempDir::new().unwrap();
        fs::write(dir.path().join("log.csv"), text).unwrap();
        Table::read(dir.path(), "log.csv").unwrap()
    }

    #[test]
    fn what_is_missing_or_no_number_is_named_by_row_and_field() {
        let table = table("round,reward\n0,0.5\n1,\n1,x\n");
        let error = table.floats("reward").unwrap_err().to_string();
        assert_eq!(error, "log.csv: row 1: reward is missing: must be a number");
        let error = table.check_distinct("round").unwrap_err().to_string();
        assert!(
            error.starts_with("log.csv: row 2: round = 1 is there twice"),
            "{error}"
        );
        let error = table.floats("pscore").unwrap_err().to_string();
        assert_eq!(error, "log.csv: no column pscore");
    }

    #[test]
    fn blocks_are_row_by_row() {
        let table = table("q0,q1\n1,2\n3,4\n");
        let block = table.float_block("q", table.width("q")).unwrap();
        assert_eq!(block.matrix().unwrap().row(1), [3.0, 4.0]);
    }
}
