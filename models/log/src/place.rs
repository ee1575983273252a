//! Where Parquet files stand: `host=NAME/day=YYYY-MM-DD/part-NUMBER.parquet`, the layout that Hive,
//! DuckDB, Polars, DataFusion and Spark know partitions by.
//!
//! A segment becomes one file per host and day of its rows, named after its number.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::error::{LogError, failed};
use crate::files::{Files, Kind, is_missing};

/// Longest name of a host in a path; the rest of a longer one is a checksum.
const LONGEST_NAME: usize = 180;
/// What stands for a name that is empty, as in Hive.
const NO_NAME: &str = "__HIVE_DEFAULT_PARTITION__";
const US_PER_DAY: i64 = 86_400_000_000;

/// A partition: a host and a day.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) host: String,
    /// Days since 1970-01-01 UTC.
    pub(crate) day: i64,
}

impl Place {
    pub(crate) fn of(host: &str, at_us: i64) -> Self {
        Self {
            host: host.to_owned(),
            day: at_us.div_euclid(US_PER_DAY),
        }
    }

    /// Its directory below that of the log.
    pub(crate) fn dir(&self, log: &Path) -> PathBuf {
        let day = day_text(self.day);
        log.join(format!("host={}", encode(&self.host)))
            .join(format!("day={day}"))
    }
}

/// A day as YYYY-MM-DD, in the Gregorian calendar. Source: H. Hinnant, `civil_from_days`.
pub(crate) fn day_text(day: i64) -> String {
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

/// A name as part of a path: all but letters, digits, `-`, `_` and `.` is percent-encoded.
fn encode(name: &str) -> String {
    if name.is_empty() {
        return NO_NAME.to_owned();
    }
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to memory does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    if text.len() > LONGEST_NAME {
        let sum = crc32fast::hash(name.as_bytes());
        text.truncate(LONGEST_NAME);
        let _ = write!(text, "~{sum:08x}");
    }
    text
}

/// A Parquet file of the log, by its path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    /// The segment that it was.
    pub(crate) number: u64,
    /// Its path.
    pub(crate) path: PathBuf,
    /// Its day as text.
    pub(crate) day: String,
}

pub(crate) fn file_name(number: u64) -> String {
    format!("part-{number:012}.parquet")
}

/// Name of a file while it is written; readers pass over names that begin with a dot.
pub(crate) fn temporary_name(number: u64) -> String {
    format!(".part-{number:012}.parquet.tmp")
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("part-")?.strip_suffix(".parquet")?;
    let number = digits.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

/// The Parquet files below `dir`, by number; other files are not ours to look at.
pub(crate) fn parts(files: &dyn Files, dir: &Path) -> Result<Vec<Part>, LogError> {
    let mut parts = Vec::new();
    visit(files, dir, &mut |day_dir, day, name| {
        if let Some(number) = number_of(name) {
            parts.push(Part {
                number,
                path: day_dir.join(name),
                day: day.to_owned(),
            });
        }
    })?;
    parts.sort_unstable();
    Ok(parts)
}

/// What was being written when a process ended.
pub(crate) fn leftovers(files: &dyn Files, dir: &Path) -> Result<Vec<PathBuf>, LogError> {
    let mut left = Vec::new();
    visit(files, dir, &mut |day_dir, _, name| {
        if name.starts_with(".part-") && name.ends_with(".tmp") {
            left.push(day_dir.join(name));
        }
    })?;
    Ok(left)
}

fn visit(
    files: &dyn Files,
    dir: &Path,
    seen: &mut dyn FnMut(&Path, &str, &str),
) -> Result<(), LogError> {
    for (_, host_dir) in partitions(files, dir, "host=")? {
        for (day, day_dir) in partitions(files, &host_dir, "day=")? {
            for name in list(files, &day_dir)? {
                if name.kind == Kind::File {
                    seen(&day_dir, &day, &name.name);
                }
            }
        }
    }
    Ok(())
}

fn partitions(
    files: &dyn Files,
    dir: &Path,
    key: &str,
) -> Result<Vec<(String, PathBuf)>, LogError> {
    let names = list(files, dir)?.into_iter();
    let dirs = names.filter(|name| name.kind == Kind::Directory);
    Ok(dirs
        .filter_map(|found| {
            let value = found.name.strip_prefix(key)?.to_owned();
            Some((value, dir.join(&found.name)))
        })
        .collect())
}

/// A directory that is not there, or was removed in the meantime, has no names.
fn list(files: &dyn Files, dir: &Path) -> Result<Vec<crate::files::Name>, LogError> {
    match files.list(dir) {
        Ok(names) => Ok(names),
        Err(error) if is_missing(&error) => Ok(vec![]),
        Err(error) => Err(failed("list", dir)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_named_by_host_and_day() {
        let place = |host: &str, at_us| Place::of(host, at_us).dir(Path::new("log"));
        let noon = 1_700_000_000_000_000;
        assert_eq!(
            place("host-a", noon),
            Path::new("log/host=host-a/day=2023-11-14")
        );
        assert_eq!(
            place("höst \"a\"/..", 0),
            Path::new("log/host=h%C3%B6st%20%22a%22%2F../day=1970-01-01")
        );
        assert_eq!(
            place("", -1),
            Path::new("log/host=__HIVE_DEFAULT_PARTITION__/day=1969-12-31")
        );
        assert_eq!(
            place("", 951_782_400_000_000).file_name().unwrap(),
            "day=2000-02-29"
        );
        let long = encode(&"é".repeat(300));
        assert!(
            long.len() < 200 && long != encode(&"é".repeat(301)),
            "{long}"
        );
    }

    #[test]
    fn only_our_own_names_are_parts() {
        assert_eq!(number_of(&file_name(7)), Some(7));
        for other in [
            "part-7.parquet",
            ".part-000000000007.parquet.tmp",
            "part-x.parquet",
            "a",
        ] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn days_are_those_of_the_calendar(day in 0_i64..100_000) {
            let at = UNIX_EPOCH + Duration::from_secs(day as u64 * 86_400);
            // An independent implementation.
            let wanted = humantime::format_rfc3339_seconds(at).to_string();
            prop_assert_eq!(&day_text(day), &wanted[..10]);
        }
    }
}
