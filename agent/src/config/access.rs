//! Who may call, how often, and what is recorded of it: tables `service.socket`, `service.tls`, `service.limits` and
//! `service.audit`.

use std::path::Path;
use std::time::SystemTime;

use super::toml_reader::Section;
use crate::access::Limits;
use crate::access::audit::AuditConfig;
use crate::access::role::Role;
use crate::access::rules::{CertificateName, LocalName, Rules};
use crate::access::tls::{self, TlsFiles};

/// Who may call, how often, and what is recorded of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessConfig {
    /// Roles of those who send no token.
    pub rules: Rules,
    /// What the service proves itself by at an address that is not loopback; the files were good when they were
    /// read.
    pub tls: Option<TlsFiles>,
    /// What may be asked for at once.
    pub limits: Limits,
    /// How much of the audit is kept.
    pub audit: AuditConfig,
}

pub(super) const ROLES: [(&str, Role); 3] = [
    ("observer", Role::Observer),
    ("operator", Role::Operator),
    ("admin", Role::Admin),
];
pub(super) const SOCKET_ROLES: [(&str, Option<Role>); 4] = [
    ("none", None),
    ("observer", Some(Role::Observer)),
    ("operator", Some(Role::Operator)),
    ("admin", Some(Role::Admin)),
];

/// Reads the tables below `service`. What is wrong is noted; what stands in its place does not matter then.
pub(super) fn access(service: &mut Section, base: &Path) -> AccessConfig {
    let mut access = AccessConfig::default();
    if let Some(section) = service.section("socket") {
        socket(section, &mut access.rules);
    }
    if let Some(section) = service.section("tls") {
        access.tls = tls(section, base, &mut access.rules);
    }
    if let Some(section) = service.section("limits") {
        access.limits = limits(section);
    }
    if let Some(section) = service.section("audit") {
        access.audit = audit(section);
    }
    access
}

fn socket(mut section: Section, rules: &mut Rules) {
    rules.socket = section.choice_or_default("role", &SOCKET_ROLES);
    for caller in section.sections("caller") {
        rules.local.extend(local(caller));
    }
    section.finish();
}

fn local(mut section: Section) -> Option<(LocalName, Role)> {
    let is_one = section.has("uid") != section.has("gid");
    let id = |id: u64| u32::try_from(id).ok();
    let uid = section.integer("uid").and_then(id).map(LocalName::User);
    let gid = section.integer("gid").and_then(id).map(LocalName::Group);
    if !is_one {
        section.problem("uid", "or gid, one of them, must say whose role this is");
    }
    let role = role(&mut section);
    section.finish();
    Some((uid.or(gid)?, role?))
}

fn role(section: &mut Section) -> Option<Role> {
    section.required("role", "observer, operator or admin", |s, key| {
        s.choice(key, &ROLES)
    })
}

fn tls(mut section: Section, base: &Path, rules: &mut Rules) -> Option<TlsFiles> {
    let wanted = "the path of a PEM file";
    let certificate = section.required("certificate", wanted, Section::text);
    let key = section.required("key", wanted, Section::text);
    let has_ca = section.has("client_ca");
    let client_ca = section.text("client_ca");
    for client in section.sections("client") {
        if !has_ca {
            client.problem(
                "role",
                "is given to nobody without service.tls.client_ca: add it, or remove this",
            );
        }
        rules.certificates.extend(certificate_rule(client));
    }
    let files = certificate.zip(key).map(|(certificate, key)| TlsFiles {
        certificate: base.join(certificate),
        key: base.join(key),
        client_ca: client_ca.map(|path| base.join(path)),
    });
    if let Some(Err(problems)) = files
        .as_ref()
        .map(|files| tls::load(files, SystemTime::now()))
    {
        for problem in problems {
            section.problem(problem.key, problem.to_string());
        }
    }
    section.finish();
    files
}

fn certificate_rule(mut section: Section) -> Option<(CertificateName, Role)> {
    let is_one = section.has("common_name") != section.has("alternative_name");
    let common = section.text("common_name").map(CertificateName::Common);
    let alternative = section.text("alternative_name");
    let alternative = alternative.map(CertificateName::Alternative);
    if !is_one {
        let problem = "or common_name, one of them, must say whose role this is";
        section.problem("alternative_name", problem);
    }
    let role = role(&mut section);
    section.finish();
    Some((common.or(alternative)?, role?))
}

fn limits(mut section: Section) -> Limits {
    let limits = Limits {
        message_mib: section.count("message_mib"),
        streams_per_connection: section.count("streams_per_connection"),
        connections: section.count("connections"),
        calls_per_second: section.count("calls_per_second"),
        unknown_calls_per_second: section.count("unknown_calls_per_second"),
    };
    section.finish();
    limits
}

fn audit(mut section: Section) -> AuditConfig {
    let audit = AuditConfig {
        file_mib: section.count("file_mib"),
        files: section.count("files"),
    };
    section.finish();
    audit
}
