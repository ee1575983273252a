//! Who is at the other end of a connection, as far as the connection itself tells.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process on this machine, through the Unix socket, as the kernel knew it when it connected.
    Local(Credentials),
    /// Somebody at a loopback address, in the clear: any user of this machine.
    Loopback(SocketAddr),
    /// Somebody through TLS.
    Tls {
        /// Where from.
        address: SocketAddr,
        /// The names in the certificate that was shown and verified, under mutual TLS.
        certificate: Option<Arc<CertificateNames>>,
    },
}

/// What the kernel says of the process that connected (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group; of supplementary groups the kernel says nothing.
    pub gid: u32,
    /// Its process, if it can be seen from here.
    pub pid: Option<i32>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(Credentials { uid, gid, pid }) => {
                write!(f, "unix:uid={uid},gid={gid}")?;
                pid.map_or(Ok(()), |pid| write!(f, ",pid={pid}"))
            }
            Self::Loopback(address) => write!(f, "tcp:{address}"),
            Self::Tls { address, .. } => write!(f, "tls:{address}"),
        }
    }
}

/// The names of a certificate's holder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CertificateNames {
    /// The common name of its subject.
    pub common_name: Option<String>,
    /// Its alternative names that are DNS names, URIs or mail addresses.
    pub alternative: Vec<String>,
}

impl CertificateNames {
    /// Of a certificate in DER; empty where it has none, or cannot be read.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            return Self::default();
        };
        let mut common = certificate.subject().iter_common_name();
        let common_name = common.next().and_then(|name| name.as_str().ok());
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        Self {
            common_name: common_name.map(str::to_owned),
            alternative: names.iter().filter_map(text).collect(),
        }
    }
}

impl fmt::Display for CertificateNames {
    /// The name that it is best known by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.alternative.first().or(self.common_name.as_ref());
        f.write_str(first.map_or("", String::as_str))
    }
}

fn text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
            Some((*name).to_owned())
        }
        _ => None,
    }
}
