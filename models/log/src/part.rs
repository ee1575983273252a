//! One Parquet file: written under another name, synced, renamed; and its footer.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::Statistics;

use crate::columns::{LoggedRow, Rows, SCHEMA_VERSION, all, schema};
use crate::error::{LogError, failed};
use crate::files::{Files, Handle, Source};
use crate::place::{Place, file_name, temporary_name};

/// Rows of a row group, which is what a reader holds in memory.
pub(crate) const ROW_GROUP_ROWS: usize = 8192;
/// Rows that are turned into columns at once.
const BATCH_ROWS: usize = 512;
const ZSTD_LEVEL: i32 = 3;

/// Prefix of our entries in a footer.
const KEY: &str = "blkpilot.";

/// What a file's footer says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Version of the columns.
    pub schema_version: u32,
    /// Version of the program that wrote it.
    pub writer: String,
    /// The segment that it was made of.
    pub segment: u64,
    /// Rows of that segment, in all files that were made of it.
    pub segment_rows: u64,
    /// Files that were made of it.
    pub segment_parts: u64,
    /// The segment before it that has rows; 0 for the first.
    pub previous_segment: u64,
    /// Lines of the segment that could not be read.
    pub damaged_lines: u64,
    /// Bytes before the footer.
    pub data_bytes: u64,
    /// CRC-32 of those bytes.
    pub data_crc32: u32,
    /// Rows of this file.
    pub rows: u64,
    /// Row groups of this file.
    pub row_groups: usize,
    /// When its first and its last row were decided, in microseconds since 1970 UTC.
    pub at_us: Option<(i64, i64)>,
}

/// What all files of a segment say of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentFacts {
    pub(crate) number: u64,
    pub(crate) rows: u64,
    pub(crate) parts: u64,
    pub(crate) previous: u64,
    pub(crate) damaged_lines: u64,
}

/// A file that is being written. One that is dropped leaves its temporary file behind.
pub(crate) struct PartWriter {
    pub(crate) path: PathBuf,
    temporary: PathBuf,
    writer: ArrowWriter<Sink>,
    rows: Rows,
    count: u64,
}

impl PartWriter {
    pub(crate) fn create(
        files: &dyn Files,
        log: &Path,
        place: &Place,
        facts: &SegmentFacts,
    ) -> Result<Self, LogError> {
        let dir = place.dir(log);
        files.create_dir_all(&dir).map_err(failed("create", &dir))?;
        let temporary = dir.join(temporary_name(facts.number));
        let path = dir.join(file_name(facts.number));
        let file = files
            .create(&temporary)
            .map_err(failed("create", &temporary))?;
        let sink = Sink {
            file,
            hasher: crc32fast::Hasher::new(),
            bytes: 0,
        };
        let writer = ArrowWriter::try_new(sink, schema(), Some(properties(place, facts)));
        Ok(Self {
            writer: writer.map_err(|error| LogError::parquet(&temporary, error))?,
            path,
            temporary,
            rows: Rows::new(&all()),
            count: 0,
        })
    }

    pub(crate) fn push(&mut self, row: &LoggedRow) -> Result<(), LogError> {
        self.rows.push(row);
        self.count += 1;
        if self.rows.len() < BATCH_ROWS {
            return Ok(());
        }
        self.write_batch()
    }

    fn write_batch(&mut self) -> Result<(), LogError> {
        let batch = self.rows.take();
        self.writer
            .write(&batch)
            .map_err(|error| LogError::parquet(&self.temporary, error))
    }

    /// Writes the footer, makes the file durable, reads its footer back and gives it its name, which
    /// is durable once its directory has been synced.
    pub(crate) fn finish(mut self, files: &dyn Files) -> Result<PathBuf, LogError> {
        let count = self.count;
        if !self.rows.is_empty() {
            self.write_batch()?;
        }
        let (temporary, path) = (self.temporary, self.path);
        let mut writer = self.writer;
        let broken = |error| LogError::parquet(&temporary, error);
        writer.flush().map_err(broken)?;
        writer.sync().map_err(failed("write", &temporary))?;
        let (bytes, crc32) = (
            writer.inner().bytes,
            writer.inner().hasher.clone().finalize(),
        );
        writer.append_key_value_metadata(entry("data_bytes", &bytes));
        writer.append_key_value_metadata(entry("data_crc32", &crc32));
        let mut sink = writer.into_inner().map_err(broken)?;
        sink.flush().map_err(failed("write", &temporary))?;
        sink.file.sync().map_err(failed("sync", &temporary))?;
        let footer = read_footer(files, &temporary)?.1;
        if footer.rows != count {
            let problem = format!("{count} rows were written, its footer says {}", footer.rows);
            return Err(LogError::Parquet {
                file: temporary,
                problem,
            });
        }
        files
            .rename(&temporary, &path)
            .map_err(failed("rename", &temporary))?;
        Ok(path)
    }
}

fn properties(place: &Place, facts: &SegmentFacts) -> WriterProperties {
    let entries = vec![
        entry("schema_version", &SCHEMA_VERSION),
        entry("writer", &env!("CARGO_PKG_VERSION")),
        entry("host", &place.host),
        entry("segment", &facts.number),
        entry("segment_rows", &facts.rows),
        entry("segment_parts", &facts.parts),
        entry("previous_segment", &facts.previous),
        entry("damaged_lines", &facts.damaged_lines),
    ];
    let level = ZstdLevel::try_new(ZSTD_LEVEL).expect("zstd has this level");
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by(concat!("blkpilot ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(entries))
        .build()
}

fn entry(key: &str, value: &dyn ToString) -> KeyValue {
    KeyValue::new(format!("{KEY}{key}"), value.to_string())
}

/// A file that sums up what goes through it.
struct Sink {
    file: Box<dyn Handle>,
    hasher: crc32fast::Hasher,
    bytes: u64,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        self.hasher.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Opens a file and reads its footer.
///
/// # Errors
/// `Io`; `Parquet` if it is none, or torn; `Schema` if it is of another version, or not ours.
pub(crate) fn read_footer(
    files: &dyn Files,
    path: &Path,
) -> Result<(ArrowReaderMetadata, Footer), LogError> {
    let source = files.source(path).map_err(failed("open", path))?;
    footer_of(&source, path)
}

/// As [`read_footer`], of a file that is open.
pub(crate) fn footer_of(
    source: &Source,
    path: &Path,
) -> Result<(ArrowReaderMetadata, Footer), LogError> {
    let metadata = ArrowReaderMetadata::load(source, ArrowReaderOptions::new())
        .map_err(|error| LogError::parquet(path, error))?;
    let footer = footer(metadata.metadata(), path)?;
    if metadata.schema().fields() == schema().fields() {
        Ok((metadata, footer))
    } else {
        Err(LogError::Parquet {
            file: path.to_owned(),
            problem: format!("its columns are not those of schema version {SCHEMA_VERSION}"),
        })
    }
}

fn footer(metadata: &Arc<ParquetMetaData>, path: &Path) -> Result<Footer, LogError> {
    let entries = metadata.file_metadata().key_value_metadata();
    let value = |key: &str| -> Option<&str> {
        let mut entries = entries?.iter();
        let found = entries.find(|entry| entry.key.strip_prefix(KEY) == Some(key))?;
        found.value.as_deref()
    };
    let version = value("schema_version").and_then(|text| text.parse().ok());
    if version != Some(SCHEMA_VERSION) {
        return Err(LogError::Schema {
            file: path.to_owned(),
            found: version,
            known: SCHEMA_VERSION,
        });
    }
    let number = |key: &str| -> Result<u64, LogError> {
        let read = value(key).and_then(|text| text.parse().ok());
        read.ok_or_else(|| LogError::Parquet {
            file: path.to_owned(),
            problem: format!("its footer does not say {KEY}{key}"),
        })
    };
    Ok(Footer {
        schema_version: SCHEMA_VERSION,
        writer: value("writer").unwrap_or_default().to_owned(),
        segment: number("segment")?,
        segment_rows: number("segment_rows")?,
        segment_parts: number("segment_parts")?,
        previous_segment: number("previous_segment")?,
        damaged_lines: number("damaged_lines")?,
        data_bytes: number("data_bytes")?,
        data_crc32: number("data_crc32")? as u32,
        rows: metadata.file_metadata().num_rows() as u64,
        row_groups: metadata.num_row_groups(),
        at_us: (0..metadata.num_row_groups())
            .filter_map(|group| row_group_times(metadata, group))
            .reduce(|all, one| (all.0.min(one.0), all.1.max(one.1))),
    })
}

/// The earliest and latest time of a row group, from its statistics.
pub(crate) fn row_group_times(metadata: &ParquetMetaData, group: usize) -> Option<(i64, i64)> {
    let mut columns = metadata.row_group(group).columns().iter();
    let at = columns.find(|column| column.column_path().string() == "at")?;
    match at.statistics()? {
        Statistics::Int64(times) => Some((*times.min_opt()?, *times.max_opt()?)),
        _ => None,
    }
}
