//! Who may call, how often, and what is recorded of it: tables `service.socket`, `service.tls`, `service.limits` and
//! `service.audit`.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::SystemTime;

use crate::access::Limits;
use crate::access::audit::AuditConfig;
use crate::access::role::Role;
use crate::access::rules::{CertificateName, LocalName, Rules};
use crate::access::tls::{self, TlsFiles};
use crate::toml_reader::Section;

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

const ROLES: [(&str, Role); 3] = [
    ("observer", Role::Observer),
    ("operator", Role::Operator),
    ("admin", Role::Admin),
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
    let mut choices: Vec<(&str, Option<Role>)> = vec![("none", None)];
    choices.extend(ROLES.map(|(name, role)| (name, Some(role))));
    if let Some(role) = section.choice("role", &choices) {
        rules.socket = role;
    }
    for caller in section.sections("caller") {
        rules.local.extend(local(caller));
    }
    section.finish();
}

fn local(mut section: Section) -> Option<(LocalName, Role)> {
    let id = |section: &mut Section, key| {
        let id = section.integer(key)?;
        let fits = u32::try_from(id).ok();
        if fits.is_none() {
            section.problem(key, format!("= {id} must be in [0, {}]", u32::MAX));
        }
        fits
    };
    let is_one = section.has("uid") != section.has("gid");
    let uid = id(&mut section, "uid").map(LocalName::User);
    let gid = id(&mut section, "gid").map(LocalName::Group);
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
    let default = Limits::default();
    let mut read = |key, default, range| count(&mut section, key, default, range);
    let limits = Limits {
        message_mib: read("message_mib", default.message_mib, 1..=256),
        streams_per_connection: read(
            "streams_per_connection",
            default.streams_per_connection,
            1..=65_536,
        ),
        connections: read("connections", default.connections, 1..=65_536),
        calls_per_second: read("calls_per_second", default.calls_per_second, 1..=1_000_000),
        unknown_calls_per_second: read(
            "unknown_calls_per_second",
            default.unknown_calls_per_second,
            1..=1_000_000,
        ),
    };
    section.finish();
    limits
}

fn audit(mut section: Section) -> AuditConfig {
    let default = AuditConfig::default();
    let audit = AuditConfig {
        file_mib: count(&mut section, "file_mib", default.file_mib, 1..=1024),
        files: count(&mut section, "files", default.files, 2..=100),
    };
    section.finish();
    audit
}

fn count(
    section: &mut Section,
    key: &'static str,
    default: u32,
    range: RangeInclusive<u32>,
) -> u32 {
    let Some(count) = section.integer(key) else {
        return default;
    };
    let fits = u32::try_from(count)
        .ok()
        .filter(|count| range.contains(count));
    fits.unwrap_or_else(|| {
        let (low, high) = (range.start(), range.end());
        section.problem(key, format!("= {count} must be in [{low}, {high}]"));
        default
    })
}
