//! Why a log could not be written or read.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a log could not be written or read.
#[derive(Debug, Error)]
pub enum LogError {
    /// The operating system refused.
    #[error("{}: cannot {action}", file.display())]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Somebody else writes to the directory.
    #[error("{}: another process writes this log: stop it, or give this one its own directory", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// A segment of another version.
    #[error("{}: format is {found}, this build reads {known}: use the build that wrote it, or move the file away", file.display())]
    Format {
        /// The segment.
        file: PathBuf,
        /// Its format.
        found: u32,
        /// The format this build knows.
        known: u32,
    },
    /// An event that would make a line too long to be read back.
    #[error("an event of {bytes} bytes, but at most {most} fit in a line of the log")]
    TooLarge {
        /// Size of the line.
        bytes: usize,
        /// The greatest size.
        most: usize,
    },
    /// An earlier write failed, so it is not known what is on the disk.
    #[error(
        "the log failed before and has not been recovered: recover it, what was acknowledged is safe"
    )]
    Failed,
    /// A Parquet file that cannot be read: torn, damaged, or none.
    #[error("{}: cannot be read as Parquet of this log: {problem}; the other files can be", file.display())]
    Parquet {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A Parquet file of another schema.
    #[error("{}: {}, this build reads schema version {known}: use the build that wrote it, or move the file away", file.display(), schema_text(*.found))]
    Schema {
        /// The file.
        file: PathBuf,
        /// Its version; `None` if it says none.
        found: Option<u32>,
        /// The version that this build knows.
        known: u32,
    },
    /// A column that there is not.
    #[error("`{name}` is no column here: docs/decision_log.md lists them")]
    UnknownColumn {
        /// Its name.
        name: String,
    },
    /// Columns that do not make rows.
    #[error("the log's columns do not make rows: {problem}")]
    Row {
        /// What is wrong, and where.
        problem: String,
    },
    /// What retention remembers cannot be read.
    #[error("{}: {problem}: move it away; what has been dropped is not known then", file.display())]
    State {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A line that is not what was written.
    #[error("{}: damaged at byte {offset}: {problem}; the events around it can still be read", file.display())]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where the line starts.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
}

impl LogError {
    pub(crate) fn parquet(file: &Path, error: impl std::fmt::Display) -> Self {
        Self::Parquet {
            file: file.to_owned(),
            problem: error.to_string(),
        }
    }
}

fn schema_text(found: Option<u32>) -> String {
    found.map_or_else(
        || "it names no schema version of blkpilot".to_owned(),
        |version| format!("its schema version is {version}"),
    )
}

pub(crate) fn failed(action: &'static str, file: &Path) -> impl FnOnce(io::Error) -> LogError {
    let file = file.to_owned();
    move |source| LogError::Io {
        file,
        action,
        source,
    }
}
