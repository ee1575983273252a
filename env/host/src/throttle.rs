//! Limits of a virtual disk: requests and bytes per second, as QEMU enforces them and libvirt sets them
//! (`virDomainSetBlockIoTune`, `<iotune>` of a disk).
//!
//! QEMU counts in a leaky bucket per limit, which takes bursts of `_max` for up to `_max_length`
//! seconds. Names, order and meaning are those of `virsh blkdeviotune`; source: libvirt's domain XML
//! format, QEMU's docs/throttle.txt.

use std::fmt;
use std::str::FromStr;

use crate::element::Element;
use crate::error::{HostError, HostResult};
use crate::size::{self, Unit};

/// The limits without bursts, in the order of `virsh blkdeviotune`.
const BASES: [&str; 6] = [
    "total_bytes_sec",
    "read_bytes_sec",
    "write_bytes_sec",
    "total_iops_sec",
    "read_iops_sec",
    "write_iops_sec",
];
const BURST: &str = "_max";
const BURST_LENGTH: &str = "_max_length";
const REQUEST_SIZE: &str = "size_iops_sec";
const GROUP: &str = "group_name";
/// How a throttle is written that limits nothing.
pub(crate) const NONE: &str = "none";

/// The most that QEMU takes: `THROTTLE_VALUE_MAX`.
const MOST: u64 = 1_000_000_000_000_000;
/// QEMU names the group of a disk that has no named one after its object.
const OWN_GROUP: &str = "/machine/";
/// A length of a burst that says nothing: QEMU's default.
const DEFAULT_BURST_S: u64 = 1;

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Rate {
    /// Per second; 0 for no limit.
    per_s: u64,
    /// Per second in a burst; 0 for QEMU's own, a tenth of a second's worth.
    burst_per_s: u64,
    /// How long a burst may last, seconds; 0 and 1 are the same.
    burst_s: u64,
}

/// The limits of a disk. [`fmt::Display`] writes them in canonical form: `none`, or what is not 0 as
/// `NAME=VALUE`, bases first, then bursts, the size of a request, lengths of bursts and the group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Throttle {
    /// In the order of [`BASES`].
    rates: [Rate; 6],
    /// Bytes that count as one request; 0 where each request counts once.
    request_bytes: u64,
    /// Group whose members share the limits; `None` where the disk has its own.
    group: Option<String>,
}

/// What no limit may go below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThrottleBounds {
    /// Requests per second, ≥ 1.
    pub least_iops: u64,
    /// Bytes per second, ≥ 1.
    pub least_bytes_per_s: u64,
}

impl Default for ThrottleBounds {
    fn default() -> Self {
        Self {
            least_iops: 100,
            least_bytes_per_s: 1 << 20,
        }
    }
}

/// Some of the parameters, by name, as libvirt's calls and events have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Params {
    /// In the order of [`names`].
    pub(crate) numbers: Vec<(String, u64)>,
    pub(crate) group: Option<String>,
}

/// The names of all parameters that are numbers, in the order of `virsh blkdeviotune`.
pub(crate) fn names() -> impl Iterator<Item = String> {
    let with = |suffix: &'static str| BASES.map(|base| format!("{base}{suffix}"));
    let plain = with("").into_iter().chain(with(BURST));
    let size = std::iter::once(REQUEST_SIZE.to_owned());
    plain.chain(size).chain(with(BURST_LENGTH))
}

impl Throttle {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.rates == [Rate::default(); 6]
    }

    /// The group whose members share the limits; `None` where the disk has its own.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// `<iotune>` of a disk.
    pub(crate) fn from_disk(disk: &Element) -> Self {
        let Some(tune) = disk.child("iotune") else {
            return Self::default();
        };
        let text = |name: &str| tune.child(name).map(|child| child.text.clone());
        let number = |name: String| Some((name.clone(), text(&name)?.parse().ok()?));
        Self::default().replaced(&Params {
            numbers: names().filter_map(number).collect(),
            group: text(GROUP),
        })
    }

    /// All parameters, with 0 for what is not limited: what is left out of a call keeps its value.
    pub(crate) fn params(&self) -> Params {
        Params {
            numbers: names()
                .map(|name| (name.clone(), self.number(&name)))
                .collect(),
            group: self.group.clone(),
        }
    }

    /// These limits with some parameters set, without any of libvirt's rules for those that are not.
    pub(crate) fn replaced(mut self, params: &Params) -> Self {
        for (name, value) in &params.numbers {
            if let Some(number) = self.number_mut(name) {
                *number = *value;
            }
        }
        if let Some(group) = &params.group {
            let is_named = !group.is_empty() && !group.starts_with(OWN_GROUP);
            self.group = is_named.then(|| group.clone());
        }
        self.canonical()
    }

    /// What libvirt makes of these limits when somebody sets some parameters: of each family that is
    /// named (limits of bytes, of requests, bursts of each) what is not named is lifted.
    pub(crate) fn after(mut self, told: &Params) -> Self {
        for family in [0..3, 3..6] {
            for suffix in ["", BURST] {
                let of_family: Vec<String> = family
                    .clone()
                    .map(|index| format!("{}{suffix}", BASES[index]))
                    .collect();
                let is_named = |name: &String| told.numbers.iter().any(|(told, _)| told == name);
                if of_family.iter().any(is_named) {
                    for name in &of_family {
                        self.number_mut(name).into_iter().for_each(|n| *n = 0);
                    }
                }
            }
        }
        self.replaced(told)
    }

    /// These limits with what an operator names, as `NAME=VALUE`: a limit that is named replaces its
    /// burst too, `total_…` and `read_…`/`write_…` replace each other, and 0 lifts a limit. Bytes may have
    /// a unit (`10MiB`).
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn with(&self, named: &[(String, String)]) -> Result<Self, String> {
        let mut throttle = self.clone();
        for (name, _) in named {
            if let Some(index) = BASES.iter().position(|base| base == name) {
                throttle.make_way(index);
            }
        }
        for (name, text) in named {
            let unit = if name.contains("bytes") || name == REQUEST_SIZE {
                Unit::Bytes
            } else {
                Unit::One
            };
            let value = size::parse(text, unit).map_err(|problem| format!("{name} {problem}"))?;
            let number = throttle.number_mut(name);
            *number.ok_or_else(|| format!("{name} is no limit of a disk"))? = value;
        }
        let throttle = throttle.canonical();
        throttle.check()?;
        Ok(throttle)
    }

    /// What QEMU and libvirt take.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (rate, base) in self.rates.iter().zip(BASES) {
            if [rate.per_s, rate.burst_per_s, rate.burst_s]
                .iter()
                .any(|value| *value > MOST)
                || rate.burst_per_s.saturating_mul(rate.burst_s) > MOST
            {
                return Err(format!(
                    "{base}, its burst and its length have to be at most {MOST} together"
                ));
            }
            if rate.burst_per_s > 0 && rate.burst_per_s < rate.per_s.max(1) {
                return Err(format!(
                    "{base}{BURST} = {} must be at least {base}",
                    rate.burst_per_s
                ));
            }
            if rate.burst_per_s > 0 && rate.per_s == 0 {
                return Err(format!("{base}{BURST} needs {base}"));
            }
            if rate.burst_s > 0 && rate.burst_per_s == 0 {
                return Err(format!("{base}{BURST_LENGTH} needs {base}{BURST}"));
            }
        }
        for family in self.rates.chunks(3).zip(BASES.chunks(3)) {
            let ([total, read, write], names) = (family.0, family.1) else {
                continue;
            };
            if total.per_s > 0 && (read.per_s > 0 || write.per_s > 0) {
                return Err(format!(
                    "{} stands beside {} or {}: keep one of them",
                    names[0], names[1], names[2]
                ));
            }
        }
        if self.request_bytes > 0 && self.rates[3..].iter().all(|rate| rate.per_s == 0) {
            return Err(format!("{REQUEST_SIZE} needs a limit of requests"));
        }
        Ok(())
    }

    /// Whether no limit goes below what is configured.
    ///
    /// # Errors
    /// What does, in words.
    pub(crate) fn check_bounds(&self, bounds: &ThrottleBounds) -> Result<(), String> {
        for (index, rate) in self.rates.iter().enumerate() {
            let (least, key) = if index < 3 {
                (bounds.least_bytes_per_s, "least_bytes_per_s")
            } else {
                (bounds.least_iops, "least_iops")
            };
            if rate.per_s > 0 && rate.per_s < least {
                return Err(format!(
                    "{} = {} must be at least {least}, which host.throttle.{key} of the service's configuration says",
                    BASES[index], rate.per_s
                ));
            }
        }
        Ok(())
    }

    /// What is to be unlimited before a limit is set: its burst, and those that cannot stand beside it.
    fn make_way(&mut self, index: usize) {
        let (family, is_total) = (index / 3 * 3, index.is_multiple_of(3));
        self.rates[index] = Rate::default();
        if is_total {
            self.rates[family + 1] = Rate::default();
            self.rates[family + 2] = Rate::default();
        } else {
            self.rates[family] = Rate::default();
        }
    }

    /// Without what means nothing: the length of no burst, the group and request size of no limit.
    fn canonical(mut self) -> Self {
        for rate in &mut self.rates {
            if rate.burst_s <= DEFAULT_BURST_S && rate.burst_per_s > 0 {
                rate.burst_s = 0;
            }
        }
        if self.is_none() {
            return Self::default();
        }
        if self.rates[3..].iter().all(|rate| *rate == Rate::default()) {
            self.request_bytes = 0;
        }
        self
    }

    fn number(&self, name: &str) -> u64 {
        self.clone().number_mut(name).map_or(0, |number| *number)
    }

    fn number_mut(&mut self, name: &str) -> Option<&mut u64> {
        if name == REQUEST_SIZE {
            return Some(&mut self.request_bytes);
        }
        let index = BASES.iter().position(|base| name.starts_with(base))?;
        let rate = &mut self.rates[index];
        match &name[BASES[index].len()..] {
            "" => Some(&mut rate.per_s),
            BURST => Some(&mut rate.burst_per_s),
            BURST_LENGTH => Some(&mut rate.burst_s),
            _ => None,
        }
    }

    /// The words after `virsh blkdeviotune GUEST DISK` that set it.
    pub(crate) fn virsh_words(&self) -> Vec<String> {
        let Params { numbers, group } = self.params();
        let option = |name: &str| format!("--{}", name.replace('_', "-"));
        let mut words: Vec<String> = numbers
            .iter()
            .flat_map(|(name, value)| [option(name), value.to_string()])
            .collect();
        words.extend(group.into_iter().flat_map(|group| [option(GROUP), group]));
        words
    }
}

/// The settings that an operator may name.
pub(crate) fn is_limit(name: &str) -> bool {
    Throttle::default().number_mut(name).is_some()
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for (name, value) in &self.numbers {
            write!(f, "{space}{name}={value}")?;
            space = " ";
        }
        match &self.group {
            Some(group) => write!(f, "{space}{GROUP}={group}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Params {
    type Err = HostError;

    fn from_str(text: &str) -> HostResult<Self> {
        let error = || HostError::parse("limits of a disk", text);
        // A group's name may hold anything, so that it is last.
        let marker = format!("{GROUP}=");
        let (numbers, group) = match text.find(&marker) {
            Some(at) => (&text[..at], Some(text[at + marker.len()..].to_owned())),
            None => (text, None),
        };
        let number = |word: &str| {
            let (name, value) = word.split_once('=').ok_or_else(error)?;
            let known = names().any(|known| known == name);
            let value = value.parse().ok().filter(|_| known).ok_or_else(error)?;
            Ok((name.to_owned(), value))
        };
        Ok(Self {
            numbers: numbers
                .split_whitespace()
                .map(number)
                .collect::<HostResult<_>>()?,
            group,
        })
    }
}

impl fmt::Display for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str(NONE);
        }
        let Params { mut numbers, group } = self.params();
        numbers.retain(|(_, value)| *value > 0);
        Params { numbers, group }.fmt(f)
    }
}

impl fmt::Display for ThrottleBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (iops, bytes) = (self.least_iops, self.least_bytes_per_s);
        write!(
            f,
            "none, or from {iops} requests and {bytes} bytes per second on"
        )
    }
}

impl FromStr for Throttle {
    type Err = HostError;

    fn from_str(text: &str) -> HostResult<Self> {
        if text == NONE {
            return Ok(Self::default());
        }
        Ok(Self::default().replaced(&text.parse()?))
    }
}

#[cfg(test)]
mod tests;
