//! Resource names: `hosts/*/guests/*/disks/*`, `environments/*`, `decisions/*`.
//!
//! Guests are called what libvirt calls them; a slash or percent sign in such a name is written %2F
//! or %25.

use uuid::Uuid;

use super::status::Failure;

/// A disk or device of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Row {
    /// A virtual disk.
    Disk {
        /// The guest.
        guest: String,
        /// The target, such as `vda`.
        target: String,
    },
    /// A backing device, by its kernel name.
    Device(String),
}

impl Row {
    /// The row of a disk id, `guest/target`. One without a slash (CartPole's) is a guest of its own.
    #[must_use]
    pub fn of_disk_id(id: &str) -> Self {
        let (guest, target) = id.rsplit_once('/').unwrap_or((id, id));
        Self::Disk {
            guest: guest.to_owned(),
            target: target.to_owned(),
        }
    }

    /// Its resource name under a host.
    #[must_use]
    pub fn name(&self, host: &str) -> String {
        match self {
            Self::Disk { guest, target } => {
                format!("{}/disks/{}", guest_name(host, guest), encode(target))
            }
            Self::Device(device) => format!("hosts/{host}/devices/{}", encode(device)),
        }
    }
}

/// The guest part of a disk id, `guest/target`.
#[must_use]
pub fn guest_of(disk_id: &str) -> &str {
    disk_id.rsplit_once('/').map_or(disk_id, |(guest, _)| guest)
}

/// `hosts/{host}`.
#[must_use]
pub fn host_name(host: &str) -> String {
    format!("hosts/{host}")
}

/// `hosts/{host}/guests/{guest}`.
#[must_use]
pub fn guest_name(host: &str, guest: &str) -> String {
    format!("hosts/{host}/guests/{}", encode(guest))
}

fn encode(id: &str) -> String {
    id.replace('%', "%25").replace('/', "%2F")
}

/// The id that a segment of a name stands for.
#[must_use]
pub fn decode(segment: &str) -> String {
    segment.replace("%2F", "/").replace("%25", "%")
}

/// `decisions/{id}`.
#[must_use]
pub fn decision_name(id: Uuid) -> String {
    format!("decisions/{id}")
}

/// `environments/{id}`.
#[must_use]
pub fn environment_name(id: &str) -> String {
    format!("environments/{id}")
}

/// The segments of `name` where `pattern` has `*`. `field` is where the name stood in the request.
///
/// # Errors
/// A violation of `field` that shows the pattern.
pub fn parse<'a, const N: usize>(
    field: &str,
    name: &'a str,
    pattern: &str,
) -> Result<[&'a str; N], Failure> {
    match_pattern(name, pattern)
        .and_then(|segments| segments.try_into().ok())
        .ok_or_else(|| Failure::field(field, format!("\"{name}\" must have the form {pattern}")))
}

fn match_pattern<'a>(name: &'a str, pattern: &str) -> Option<Vec<&'a str>> {
    let (given, wanted) = (name.split('/'), pattern.split('/'));
    if given.clone().count() != wanted.clone().count() {
        return None;
    }
    let mut segments = vec![];
    for (given, wanted) in given.zip(wanted) {
        match wanted {
            "*" if !given.is_empty() => segments.push(given),
            fixed if fixed == given => {}
            _ => return None,
        }
    }
    Some(segments)
}

/// A row's name into its host and row.
///
/// # Errors
/// A violation of `field`.
pub fn parse_row(field: &str, name: &str) -> Result<(String, Row), Failure> {
    if let Some([host, guest, target]) = match_pattern(name, "hosts/*/guests/*/disks/*")
        .and_then(|segments| <[&str; 3]>::try_from(segments).ok())
    {
        let (guest, target) = (decode(guest), decode(target));
        return Ok((host.to_owned(), Row::Disk { guest, target }));
    }
    let [host, device] = parse(field, name, "hosts/*/devices/*").map_err(|_| {
        Failure::field(
            field,
            format!("\"{name}\" must have the form hosts/*/guests/*/disks/* or hosts/*/devices/*"),
        )
    })?;
    Ok((host.to_owned(), Row::Device(decode(device))))
}

/// The id in `decisions/{id}`.
///
/// # Errors
/// A violation of `field`.
pub fn parse_decision(field: &str, name: &str) -> Result<Uuid, Failure> {
    let [id] = parse(field, name, "decisions/*")?;
    id.parse().map_err(|_| {
        Failure::field(
            field,
            format!("\"{name}\" must have the form decisions/UUID"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_names_through_parsing() {
        for row in [
            Row::of_disk_id("a/b %2F 1/vda"),
            Row::Device("nvme0n1".into()),
        ] {
            assert_eq!(
                parse_row("name", &row.name("local")).unwrap(),
                ("local".into(), row)
            );
        }
    }

    #[test]
    fn a_wrong_name_is_refused_with_the_form_it_must_have() {
        for name in ["", "hosts/", "hosts/a/b", "host/a", "hosts//guests/x"] {
            let failure = parse::<1>("parent", name, "hosts/*").unwrap_err();
            assert!(
                failure.message().contains("hosts/*"),
                "{}",
                failure.message()
            );
        }
    }
}
