//! Sets of host CPUs in the kernel's list format (`0-2,5`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::error::HostError;

/// More CPUs than any host has: a bound against nonsense in a file.
const MAX_CPUS: u32 = 1 << 16;

/// A set of host CPUs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// The CPUs, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// Whether the CPU is in the set.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    /// Number of CPUs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no CPU in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The CPUs in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// The CPUs in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }

    /// The CPUs that are not in the other set.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    /// A bitmap as libvirt wants it: CPU n is bit n % 8 of byte n / 8.
    #[must_use]
    pub fn to_bitmap(&self) -> Vec<u8> {
        let bytes = self.0.last().map_or(1, |last| last / 8 + 1);
        let mut bitmap = vec![0; bytes as usize];
        for cpu in self.iter() {
            bitmap[(cpu / 8) as usize] |= 1 << (cpu % 8);
        }
        bitmap
    }

    /// The set that a bitmap of libvirt stands for.
    #[must_use]
    pub fn from_bitmap(bitmap: &[u8]) -> Self {
        let bits = (0_u32..).zip(
            bitmap
                .iter()
                .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)),
        );
        bits.filter(|(_, set)| *set).map(|(cpu, _)| cpu).collect()
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        Self(cpus.into_iter().collect())
    }
}

/// Parses a kernel list: `0-2,5`, also with spaces after commas (`mq/N/cpu_list`) or empty.
/// libvirt's exclusions (`0-3,^2`) are understood too.
impl FromStr for CpuSet {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let error = || HostError::parse("CPU list", text);
        let number = |text: &str| {
            text.parse()
                .ok()
                .filter(|cpu| *cpu < MAX_CPUS)
                .ok_or_else(error)
        };
        let mut cpus = BTreeSet::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            if let Some(excluded) = part.strip_prefix('^') {
                cpus.remove(&number(excluded)?);
            } else if let Some((first, last)) = part.split_once('-') {
                cpus.extend(number(first)?..=number(last)?);
            } else {
                cpus.insert(number(part)?);
            }
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_in_the_kernels_form() {
        for (text, canonical) in [
            ("0-2,5", "0-2,5"),
            ("0, 1\n", "0-1"),
            ("", ""),
            ("7,3,5,4", "3-5,7"),
            ("0-3,^2", "0-1,3"),
        ] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), canonical);
        }
        assert!("0-x".parse::<CpuSet>().is_err());
        assert!("99999999".parse::<CpuSet>().is_err());
    }

    #[test]
    fn a_bitmap_holds_the_same_cpus() {
        let set: CpuSet = "0,9,15".parse().unwrap();
        assert_eq!(set.to_bitmap(), [1, 0b1000_0010]);
        assert_eq!(CpuSet::from_bitmap(&set.to_bitmap()), set);
    }
}
