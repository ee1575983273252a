//! The audit: a line of JSON for each call that changes something, in `audit.jsonl` in the data directory.
//!
//! Lines are handed to the operating system before the call is answered, so that they outlive a kill of the
//! service; a power failure may take the last of them. What was changed, and to what, is in the decision log and
//! the journal, which are on stable storage.

mod rotation;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tonic::Code;

use self::rotation::Rotation;
use super::role::Role;

/// Records on their way to the file.
const MOST_WAITING: usize = 1024;
/// How long an answer waits for its record, at most: a disk that hangs must not keep a way back from being known.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditConfig {
    /// Size of one file, MiB: 1 to 1024.
    pub file_mib: u32,
    /// Files, with the one that is written to: 2 to 100.
    pub files: u32,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            file_mib: 16,
            files: 8,
        }
    }
}

/// What is recorded of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When its answer was known.
    pub time: SystemTime,
    /// Who was at the other end.
    pub peer: String,
    /// The best-known name of the certificate that was shown, if one was.
    pub certificate: Option<String>,
    /// The id of the token that was sent, if one was.
    pub token: Option<String>,
    /// What the caller may do; `None` for nothing.
    pub role: Option<Role>,
    /// Path of the method.
    pub method: &'static str,
    /// What it was to change, as the request names it; empty if that was not understood.
    pub resource: String,
    /// The request's own id; empty if it has none.
    pub request_id: String,
    /// Whether it was only to be checked.
    pub validate_only: bool,
    /// The code of the answer, such as `OK`; `CANCELLED` where the caller did not wait for it.
    pub code: &'static str,
}

impl Record {
    fn json(&self) -> Value {
        json!({
            "time": humantime::format_rfc3339_micros(self.time).to_string(),
            "peer": self.peer,
            "certificate": self.certificate,
            "token": self.token,
            "role": self.role.map(Role::name),
            "method": self.method,
            "resource": self.resource,
            "request_id": self.request_id,
            "validate_only": self.validate_only,
            "code": self.code,
        })
    }
}

/// Where records go. The file has one owner, a thread of its own, which ends with this.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    lines: mpsc::Sender<Line>,
}

#[derive(Debug)]
struct Line {
    text: String,
    written: Option<oneshot::Sender<io::Result<()>>>,
}

impl Audit {
    /// Opens the file in a data directory, or makes it.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(data_dir: &Path, config: AuditConfig) -> io::Result<Self> {
        let path = data_dir.join("audit.jsonl");
        let mut rotation = Rotation::open(&path, config)?;
        let (lines, mut waiting) = mpsc::channel::<Line>(MOST_WAITING);
        let write = move || {
            while let Some(line) = waiting.blocking_recv() {
                let result = rotation.write(&line.text);
                // Whoever waited for it may have given up, and has said so.
                let _ = line.written.map(|written| written.send(result));
            }
        };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(write)?;
        Ok(Self { path, lines })
    }

    /// Writes a record. What is done is done: where it cannot be written, the service's log gets it.
    pub async fn record(&self, record: &Record) {
        let text = record.json().to_string();
        let written = tokio::time::timeout(PATIENCE, self.write(text.clone())).await;
        let problem = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not written in {PATIENCE:?}"),
        };
        self.lost(&text, &problem);
    }

    async fn write(&self, text: String) -> io::Result<()> {
        let (written, done) = oneshot::channel();
        let line = Line {
            text,
            written: Some(written),
        };
        let ended = || io::Error::other("its writer has ended, which is our bug");
        self.lines.send(line).await.map_err(|_| ended())?;
        done.await.unwrap_or_else(|_| Err(ended()))
    }

    /// As [`Audit::record`], for a caller that has gone and waits for nothing.
    pub fn record_later(&self, record: &Record) {
        let text = record.json().to_string();
        let line = Line {
            text: text.clone(),
            written: None,
        };
        if let Err(error) = self.lines.try_send(line) {
            self.lost(&text, &error.to_string());
        }
    }

    fn lost(&self, record: &str, problem: &str) {
        let path = self.path.display();
        tracing::error!(
            record,
            "{path}: a record of the audit was not written: {problem}"
        );
    }
}

/// As google.rpc.Code names it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
