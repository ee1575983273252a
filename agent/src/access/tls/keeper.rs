//! Certificate, key and client CA as a running service sees them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;

use super::{TlsFiles, TlsProblem, load};
use crate::access::stamp::Stamp;

/// What new connections are taken with, as the files say.
#[derive(Debug)]
pub struct TlsKeeper {
    files: TlsFiles,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    seen: Vec<Option<Stamp>>,
    config: Arc<ServerConfig>,
}

/// What came of another look at the files.
#[derive(Debug)]
pub enum Refreshed {
    /// They are as they were.
    Unchanged,
    /// New connections are taken with what they hold now.
    Taken,
    /// They cannot be served with; what was in force stays.
    Refused(Vec<TlsProblem>),
}

impl TlsKeeper {
    /// Reads the files.
    ///
    /// # Errors
    /// As [`load`].
    pub fn open(files: TlsFiles, now: SystemTime) -> Result<Self, Vec<TlsProblem>> {
        let seen = stamps(&files);
        let config = load(&files, now)?;
        let state = Mutex::new(State { seen, config });
        Ok(Self { files, state })
    }

    /// What a connection is to be taken with now.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.config)
    }

    /// Takes what the files hold now, if they have changed since they were last looked at. Connections that there
    /// are go on with what they were taken with.
    pub fn refresh(&self, now: SystemTime) -> Refreshed {
        // Before they are read: what changes in between is read once more.
        let seen = stamps(&self.files);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.seen == seen {
            return Refreshed::Unchanged;
        }
        state.seen = seen;
        match load(&self.files, now) {
            Ok(config) => {
                state.config = config;
                Refreshed::Taken
            }
            Err(problems) => Refreshed::Refused(problems),
        }
    }
}

fn stamps(files: &TlsFiles) -> Vec<Option<Stamp>> {
    let paths = [&files.certificate, &files.key];
    let paths = paths.into_iter().chain(&files.client_ca);
    paths.map(|path| Stamp::of(path)).collect()
}
