//! What stands against a certificate.

use std::time::{Duration, SystemTime};

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

use super::TlsFault;

/// Whether a certificate counts at `now`.
pub(super) fn counts(der: &CertificateDer<'_>, now: SystemTime) -> Result<(), TlsFault> {
    let parsed = X509Certificate::from_der(der);
    let (_, certificate) = parsed.map_err(|e| TlsFault::Certificate(e.to_string()))?;
    let subject = certificate.subject().to_string();
    let validity = certificate.validity();
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH);
    let now = since_epoch.map_or(0, |since| since.as_secs() as i64);
    if now < validity.not_before.timestamp() {
        let since = rfc3339(validity.not_before);
        return Err(TlsFault::NotYetValid { subject, since });
    }
    if now > validity.not_after.timestamp() {
        let at = rfc3339(validity.not_after);
        return Err(TlsFault::Expired { subject, at });
    }
    Ok(())
}

fn rfc3339(time: ASN1Time) -> String {
    let since = Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}

/// Whether the key is that of the first certificate of the chain.
pub(super) fn belongs(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<(), TlsFault> {
    let signing = any_supported_type(key).map_err(|e| TlsFault::Refused(e.to_string()))?;
    match CertifiedKey::new(chain.to_vec(), signing).keys_match() {
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(TlsFault::OtherKey),
        // Not every kind of key says which certificate it fits; the handshake will.
        _ => Ok(()),
    }
}
