//! Certificate, key and client CA: checked before anything is served with them, and read again when they change.

mod check;
mod keeper;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;

pub use self::keeper::{Refreshed, TlsKeeper};

/// The files that a service proves itself by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate, then those up to its CA, in PEM.
    pub certificate: PathBuf,
    /// The certificate's private key in PEM, which nobody but its owner may read.
    pub key: PathBuf,
    /// Whoever has no certificate of one of these CAs is not let in; without it no certificate is asked for.
    pub client_ca: Option<PathBuf>,
}

/// Something about one of the files that stands against serving with it.
#[derive(Debug)]
pub struct TlsProblem {
    /// The file's key in the configuration's table: `certificate`, `key` or `client_ca`.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: TlsFault,
}

impl fmt::Display for TlsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "= \"{}\" {}", self.path.display(), self.fault)
    }
}

/// What is wrong with a file.
#[derive(Debug, Error)]
pub enum TlsFault {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Others than its owner may read it.
    #[error(
        "may be read by others than its owner (mode {mode:04o}): chmod 600 it, and make a new key if somebody may have"
    )]
    Mode {
        /// Its permission bits.
        mode: u32,
    },
    /// There is nothing in it that is looked for.
    #[error("holds no {0} in PEM")]
    Missing(&'static str),
    /// A certificate in it cannot be understood.
    #[error("holds a certificate that cannot be read: {0}")]
    Certificate(String),
    /// A certificate in it counts only from later on.
    #[error(
        "holds a certificate ({subject}) that is not valid before {since}: set the clock, or wait"
    )]
    NotYetValid {
        /// Whose.
        subject: String,
        /// From when on it counts.
        since: String,
    },
    /// A certificate in it counts no more.
    #[error("holds a certificate ({subject}) that has expired at {at}: put a new one there")]
    Expired {
        /// Whose.
        subject: String,
        /// Until when it counted.
        at: String,
    },
    /// The key is another certificate's.
    #[error("is not the key of the certificate: put the one there that it was made with")]
    OtherKey,
    /// rustls refuses it.
    #[error("is refused: {0}")]
    Refused(String),
}

/// Reads and checks the files. New connections are to be taken with what is returned.
///
/// # Errors
/// Everything that stands against them at `now`.
pub fn load(files: &TlsFiles, now: SystemTime) -> Result<Arc<ServerConfig>, Vec<TlsProblem>> {
    let mut problems = vec![];
    let mut note = |key: &'static str, path: &Path, faults: Vec<TlsFault>| {
        let path = path.to_owned();
        problems.extend(faults.into_iter().map(|fault| TlsProblem {
            key,
            path: path.clone(),
            fault,
        }));
    };
    let (chain, faults) = certificates(&files.certificate, now);
    note("certificate", &files.certificate, faults);
    let (key, faults) = private_key(&files.key);
    note("key", &files.key, faults);
    let mut roots = None;
    if let Some(path) = &files.client_ca {
        let (cas, faults) = certificates(path, now);
        note("client_ca", path, faults);
        roots = Some(cas);
    }
    if let Some(key) = key.as_ref().filter(|_| !chain.is_empty()) {
        note(
            "key",
            &files.key,
            check::belongs(&chain, key).err().into_iter().collect(),
        );
    }
    match key {
        Some(key) if problems.is_empty() => server_config(files, chain, key, roots),
        _ => Err(problems),
    }
}

fn certificates(path: &Path, now: SystemTime) -> (Vec<CertificateDer<'static>>, Vec<TlsFault>) {
    let pem = match fs::read(path) {
        Ok(pem) => pem,
        Err(error) => return (vec![], vec![error.into()]),
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Err(error) => (vec![], vec![TlsFault::Certificate(error.to_string())]),
        Ok(none) if none.is_empty() => (vec![], vec![TlsFault::Missing("certificate")]),
        Ok(chain) => {
            let faults = chain.iter().filter_map(|der| check::counts(der, now).err());
            let faults = faults.collect();
            (chain, faults)
        }
    }
}

fn private_key(path: &Path) -> (Option<PrivateKeyDer<'static>>, Vec<TlsFault>) {
    let mut faults = vec![];
    match fs::metadata(path).map(|meta| meta.permissions().mode() & 0o7777) {
        Ok(mode) if mode & 0o077 != 0 => faults.push(TlsFault::Mode { mode }),
        Ok(_) => {}
        Err(error) => return (None, vec![error.into()]),
    }
    let pem = match fs::read(path) {
        Ok(pem) => pem,
        Err(error) => {
            faults.push(error.into());
            return (None, faults);
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&pem).ok();
    if key.is_none() {
        faults.push(TlsFault::Missing("private key"));
    }
    (key, faults)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn server_config(
    files: &TlsFiles,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Option<Vec<CertificateDer<'static>>>,
) -> Result<Arc<ServerConfig>, Vec<TlsProblem>> {
    let refused = |key: &'static str, path: &Path, error: String| {
        let (path, fault) = (path.to_owned(), TlsFault::Refused(error));
        vec![TlsProblem { key, path, fault }]
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| refused("certificate", &files.certificate, e.to_string()))?;
    let builder = match (roots, &files.client_ca) {
        (Some(cas), Some(path)) => {
            let verifier = verifier(cas).map_err(|e| refused("client_ca", path, e))?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|e| refused("certificate", &files.certificate, e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn verifier(
    cas: Vec<CertificateDer<'static>>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for ca in cas {
        roots.add(ca).map_err(|e| e.to_string())?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| e.to_string())
}
