//! Who makes a call, in words, for the record.

use tonic::Extensions;

use super::Caller;
use super::peer::Peer;

/// Whoever calls, as the access layer knows it: `token ID` where one was sent, else `uid 1000` over the Unix
/// socket, as the kernel says, the name in a certificate under mutual TLS, and `loopback` for anybody there.
#[must_use]
pub fn actor(extensions: &Extensions) -> String {
    extensions
        .get::<Caller>()
        .map_or_else(|| "unknown".to_owned(), of)
}

fn of(caller: &Caller) -> String {
    match (&caller.token, &caller.peer) {
        (Some(token), _) => format!("token {token}"),
        (None, Peer::Local(credentials)) => format!("uid {}", credentials.uid),
        (None, Peer::Loopback(_)) => "loopback".to_owned(),
        (
            None,
            Peer::Tls {
                certificate: Some(names),
                ..
            },
        ) => format!("certificate of {names}"),
        (None, Peer::Tls { address, .. }) => format!("tls {}", address.ip()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use crate::access::peer::{CertificateNames, Credentials};
    use crate::access::rate::Client;

    fn named(peer: Peer, token: Option<&str>) -> String {
        let mut extensions = Extensions::new();
        extensions.insert(Caller {
            peer,
            client: Client::User(0),
            token: token.map(str::to_owned),
            role: None,
        });
        actor(&extensions)
    }

    #[test]
    fn a_caller_is_named_by_its_token_else_by_what_its_connection_says() {
        let local = || {
            Peer::Local(Credentials {
                uid: 1000,
                gid: 100,
                pid: None,
            })
        };
        let address = SocketAddr::from(([192, 0, 2, 1], 7));
        let names = CertificateNames {
            common_name: Some("ci".to_owned()),
            alternative: vec![],
        };
        let tls = |certificate| Peer::Tls {
            address,
            certificate,
        };
        assert_eq!(named(local(), Some("0123")), "token 0123");
        assert_eq!(named(local(), None), "uid 1000");
        assert_eq!(named(Peer::Loopback(address), None), "loopback");
        let certified = named(tls(Some(Arc::new(names))), None);
        assert_eq!(certified, "certificate of ci");
        assert_eq!(named(tls(None), None), "tls 192.0.2.1");
        assert_eq!(actor(&Extensions::new()), "unknown");
    }
}
