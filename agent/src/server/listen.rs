//! Sockets to listen on.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use crate::config::Listen;

/// Who may connect to the Unix socket: its owner and group.
const SOCKET_MODE: u32 = 0o660;

/// A socket that is bound.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket, removed when this is dropped.
    Unix(UnixListener, SocketFile),
    /// An address.
    Tcp(TcpListener, Listen),
}

/// The file of a Unix socket; removes it when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing can be done about it, and the next start removes a stale one.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another server answers there.
    #[error("{listen}: another server listens there: stop it, or choose another service.listen")]
    InUse {
        /// Where.
        listen: Listen,
    },
    /// There is a file that is no socket.
    #[error("{}: is there and is no socket: move it away, or choose another service.listen", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{listen}: {source}: choose a service.listen that this user may bind")]
    Io {
        /// Where.
        listen: Listen,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Listener {
    /// Binds. A Unix socket that nobody listens on any more is removed first.
    ///
    /// # Errors
    /// `InUse`, `NotASocket`, `Io`.
    pub async fn bind(listen: &Listen) -> Result<Self, ListenError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse {
                listen: listen.clone(),
            },
            _ => ListenError::Io {
                listen: listen.clone(),
                source,
            },
        };
        match listen {
            Listen::Unix(path) => {
                remove_stale(path, listen)?;
                let listener = bind_unix(path).map_err(failed)?;
                Ok(Self::Unix(listener, SocketFile(path.clone())))
            }
            Listen::Loopback(wanted) => {
                let (listener, address) = bind_tcp(*wanted).await.map_err(failed)?;
                Ok(Self::Tcp(listener, Listen::Loopback(address)))
            }
            Listen::Tls(wanted) => {
                let (listener, address) = bind_tcp(*wanted).await.map_err(failed)?;
                Ok(Self::Tcp(listener, Listen::Tls(address)))
            }
        }
    }

    /// Where it listens: with the port that was picked if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> Listen {
        match self {
            Self::Unix(_, file) => Listen::Unix(file.0.clone()),
            Self::Tcp(_, listen) => listen.clone(),
        }
    }
}

async fn bind_tcp(wanted: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(wanted).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn remove_stale(path: &Path, listen: &Listen) -> Result<(), ListenError> {
    let failed = |source| ListenError::Io {
        listen: listen.clone(),
        source,
    };
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !kind.is_socket() {
        return Err(ListenError::NotASocket {
            path: path.to_owned(),
        });
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse {
            listen: listen.clone(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Bound under another name and renamed, so that nobody can connect before the mode is set.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let unborn = path.with_extension(format!("{}", std::process::id()));
    let listener = UnixListener::bind(&unborn)?;
    let publish = std::fs::set_permissions(&unborn, std::fs::Permissions::from_mode(SOCKET_MODE))
        .and_then(|()| std::fs::rename(&unborn, path));
    if let Err(error) = publish {
        std::fs::remove_file(&unborn)?;
        return Err(error);
    }
    Ok(listener)
}
