//! Which role a peer has that sends no token.

use super::Caller;
use super::peer::{CertificateNames, Credentials, Peer};
use super::rate::Client;
use super::role::Role;

/// Which role a peer has that sends no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Of whoever can open the Unix socket and is not named in `local`; `None` for no role.
    pub socket: Option<Role>,
    /// Of single users and groups. A user's counts before a group's, and the first before those after it.
    pub local: Vec<(LocalName, Role)>,
    /// Of holders of certificates, the first that fits; an observer's of one that none fits.
    pub certificates: Vec<(CertificateName, Role)>,
}

impl Default for Rules {
    /// The mode of the socket says who may do everything.
    fn default() -> Self {
        Self {
            socket: Some(Role::Admin),
            local: vec![],
            certificates: vec![],
        }
    }
}

/// Whose processes a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalName {
    /// Of this user.
    User(u32),
    /// Of this primary group.
    Group(u32),
}

/// Whose certificates a rule is about. Names are compared as they are, with no wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateName {
    /// The common name of the subject.
    Common(String),
    /// A DNS name, URI or mail address among the alternative names.
    Alternative(String),
}

impl Rules {
    /// Who calls without a token.
    pub(super) fn caller(&self, peer: &Peer) -> Caller {
        let (client, role) = match peer {
            Peer::Local(credentials) => (Client::User(credentials.uid), self.local(*credentials)),
            // Every user of the machine can open it: that is enough to look.
            Peer::Loopback(address) => (Client::of_address(address.ip()), Some(Role::Observer)),
            Peer::Tls {
                certificate: Some(names),
                ..
            } => {
                let name = names.to_string();
                (
                    Client::Certificate(name.into()),
                    Some(self.certificate(names)),
                )
            }
            Peer::Tls { address, .. } => (Client::of_address(address.ip()), None),
        };
        Caller {
            peer: peer.clone(),
            client,
            token: None,
            role,
        }
    }

    fn local(&self, of: Credentials) -> Option<Role> {
        let role = |name| {
            let rule = self.local.iter().find(|(named, _)| *named == name);
            rule.map(|(_, role)| *role)
        };
        role(LocalName::User(of.uid))
            .or_else(|| role(LocalName::Group(of.gid)))
            .or(self.socket)
    }

    fn certificate(&self, names: &CertificateNames) -> Role {
        let fits = |name: &CertificateName| match name {
            CertificateName::Common(name) => names.common_name.as_ref() == Some(name),
            CertificateName::Alternative(name) => names.alternative.contains(name),
        };
        let rule = self.certificates.iter().find(|(name, _)| fits(name));
        rule.map_or(Role::Observer, |(_, role)| *role)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_user_s_rule_counts_before_a_group_s_and_both_before_the_socket_s() {
        let rules = Rules {
            socket: None,
            local: vec![
                (LocalName::Group(20), Role::Admin),
                (LocalName::User(10), Role::Observer),
            ],
            ..Rules::default()
        };
        let role = |uid, gid| {
            let pid = None;
            rules
                .caller(&Peer::Local(Credentials { uid, gid, pid }))
                .role
        };
        assert_eq!(role(10, 20), Some(Role::Observer));
        assert_eq!(role(11, 20), Some(Role::Admin));
        assert_eq!(role(11, 21), None);
        let anybody = Credentials {
            uid: 11,
            gid: 21,
            pid: None,
        };
        let by_default = Rules::default().caller(&Peer::Local(anybody)).role;
        assert_eq!(by_default, Some(Role::Admin));
    }

    #[test]
    fn a_certificate_has_the_role_of_its_name_and_else_an_observer_s() {
        let rules = Rules {
            certificates: vec![
                (
                    CertificateName::Alternative("ops.example".into()),
                    Role::Admin,
                ),
                (CertificateName::Common("ci".into()), Role::Operator),
            ],
            ..Rules::default()
        };
        let role = |common: &str, alternative: &[&str]| {
            let names = CertificateNames {
                common_name: Some(common.to_owned()),
                alternative: alternative.iter().map(|name| (*name).to_owned()).collect(),
            };
            let peer = Peer::Tls {
                address: "192.0.2.1:5".parse().unwrap(),
                certificate: Some(Arc::new(names)),
            };
            rules.caller(&peer).role
        };
        assert_eq!(role("ci", &["ops.example"]), Some(Role::Admin));
        assert_eq!(role("ci", &[]), Some(Role::Operator));
        // A name in the other place is another name.
        assert_eq!(role("ops.example", &["ci"]), Some(Role::Observer));
    }

    #[test]
    fn loopback_may_look_and_a_stranger_through_tls_may_not() {
        let address = "127.0.0.1:5".parse().unwrap();
        let role = |peer| Rules::default().caller(&peer).role;
        assert_eq!(role(Peer::Loopback(address)), Some(Role::Observer));
        let certificate = None;
        assert_eq!(
            role(Peer::Tls {
                address,
                certificate
            }),
            None
        );
    }
}
