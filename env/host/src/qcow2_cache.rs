//! The caches that QEMU keeps of a qcow2 image's tables, per image: a table that is not cached costs a
//! request more. Source: QEMU's docs/qcow2-cache.txt, block/qcow2.c.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::error::{HostError, HostResult};
use crate::size::{self, Unit};

pub(crate) const L2: &str = "l2-cache-size";
pub(crate) const REFCOUNT: &str = "refcount-cache-size";
pub(crate) const CLEAN: &str = "cache-clean-interval";
/// The parts, as QEMU calls them.
pub(crate) const PARTS: [&str; 3] = [L2, REFCOUNT, CLEAN];
/// Both caches together, which QEMU takes only beside one of them.
const BOTH: &str = "cache-size";
/// As QEMU was started.
pub(crate) const AS_BOOTED: &str = "as-booted";

/// `MIN_L2_CACHE_SIZE` and `MIN_REFCOUNT_CACHE_SIZE`, clusters. QEMU takes less, and makes this of it.
const LEAST_L2_CLUSTERS: u64 = 2;
const LEAST_REFCOUNT_CLUSTERS: u64 = 4;
/// A table that was not used for a day is not missed.
const MOST_CLEAN_S: u64 = 86_400;

/// What is set of the caches in place of what QEMU was started with. [`fmt::Display`] writes it in
/// canonical form: `as-booted`, or what is set as `NAME=VALUE`, in bytes and seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Qcow2Cache {
    /// In the order of [`PARTS`].
    parts: [Option<u64>; 3],
}

/// The most that may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qcow2CacheBounds {
    /// Memory of the caches of one disk, bytes.
    pub most_bytes: u64,
}

impl Default for Qcow2CacheBounds {
    fn default() -> Self {
        Self {
            most_bytes: 64 << 20,
        }
    }
}

/// How large an image's tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
    /// Bytes of all its L2 tables, in whole clusters: a cache of this size misses nothing.
    pub l2_bytes: u64,
}

impl Tables {
    /// Of an image of this size. An entry of a table is of 8 bytes, with subclusters (`extended_l2`) of 16.
    pub(crate) fn new(virtual_bytes: u64, cluster_bytes: u64, has_subclusters: bool) -> Self {
        let entry_bytes = if has_subclusters { 16 } else { 8 };
        let entries = virtual_bytes.div_ceil(cluster_bytes.max(1));
        Self {
            cluster_bytes,
            l2_bytes: (entries * entry_bytes).next_multiple_of(cluster_bytes.max(1)),
        }
    }
}

impl Qcow2Cache {
    /// This with what an operator names, as `NAME=VALUE`; sizes may have a unit.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn with(mut self, named: &[(String, String)]) -> Result<Self, String> {
        for (name, text) in named {
            let at = PARTS.iter().position(|part| part == name);
            let at = at.ok_or_else(|| format!("{name} is no part of it"))?;
            let unit = if name == CLEAN {
                Unit::One
            } else {
                Unit::Bytes
            };
            let value = size::parse(text, unit).map_err(|problem| format!("{name} {problem}"))?;
            self.parts[at] = Some(value);
        }
        Ok(self)
    }

    /// What makes sense for an image: QEMU would silently make another size of the rest.
    ///
    /// # Errors
    /// What does not, in words.
    pub(crate) fn check(&self, tables: &Tables) -> Result<(), String> {
        let cluster = tables.cluster_bytes;
        let [l2, refcount, clean] = self.parts;
        let least_l2 = LEAST_L2_CLUSTERS * cluster;
        let most_l2 = tables.l2_bytes.max(least_l2);
        if let Some(l2) = l2.filter(|l2| !(least_l2..=most_l2).contains(l2)) {
            return Err(format!(
                "{L2} = {l2} must be in [{least_l2}, {most_l2}]: two clusters, and the whole L2 table of the image"
            ));
        }
        let least = LEAST_REFCOUNT_CLUSTERS * cluster;
        if let Some(refcount) = refcount.filter(|refcount| *refcount < least) {
            return Err(format!(
                "{REFCOUNT} = {refcount} must be at least {least}: four clusters"
            ));
        }
        match clean.filter(|clean| *clean > MOST_CLEAN_S) {
            Some(clean) => Err(format!(
                "{CLEAN} = {clean} must be in [0, {MOST_CLEAN_S}] seconds"
            )),
            None => Ok(()),
        }
    }

    /// Whether it takes no more memory than is configured.
    ///
    /// # Errors
    /// That it does, in words.
    pub(crate) fn check_bounds(&self, bounds: &Qcow2CacheBounds) -> Result<(), String> {
        let [l2, refcount, _] = self.parts;
        let bytes = l2.unwrap_or(0).saturating_add(refcount.unwrap_or(0));
        if bytes <= bounds.most_bytes {
            return Ok(());
        }
        Err(format!(
            "{bytes} bytes of caches must be at most {}, which host.qcow2_cache.most_mib of the service's configuration says",
            bounds.most_bytes
        ))
    }

    /// Puts it into the options of a node that QEMU was started with.
    pub(crate) fn set_in(&self, options: &mut Value) {
        for (part, value) in PARTS.into_iter().zip(self.parts) {
            if let Some(value) = value {
                options[part] = value.into();
            }
        }
        let [l2, refcount, _] = self.parts;
        // QEMU refuses all three sizes at once, and of two it would make the third.
        if (l2.is_some() || refcount.is_some())
            && let Some(options) = options.as_object_mut()
        {
            options.remove(BOTH);
        }
    }
}

impl Qcow2CacheBounds {
    /// What may be set on an image, in words.
    pub(crate) fn within(&self, tables: &Tables) -> String {
        let least = LEAST_L2_CLUSTERS * tables.cluster_bytes;
        let most = tables.l2_bytes.max(least).min(self.most_bytes);
        format!(
            "{L2} {least} to {most} (the whole table has {}), {REFCOUNT} from {} on, {} together at most",
            tables.l2_bytes,
            LEAST_REFCOUNT_CLUSTERS * tables.cluster_bytes,
            self.most_bytes
        )
    }
}

/// Whether it is the name of a part.
pub(crate) fn is_part(name: &str) -> bool {
    PARTS.contains(&name)
}

impl fmt::Display for Qcow2Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = PARTS.into_iter().zip(self.parts);
        let set = set.filter_map(|(part, value)| Some(format!("{part}={}", value?)));
        let set: Vec<String> = set.collect();
        if set.is_empty() {
            return f.write_str(AS_BOOTED);
        }
        f.write_str(&set.join(" "))
    }
}

impl FromStr for Qcow2Cache {
    type Err = HostError;

    fn from_str(text: &str) -> HostResult<Self> {
        if text == AS_BOOTED {
            return Ok(Self::default());
        }
        let pair = |word: &str| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        let named: Option<Vec<_>> = text.split_whitespace().map(pair).collect();
        let cache = named.and_then(|named| Self::default().with(&named).ok());
        cache.ok_or_else(|| HostError::parse("qcow2 caches", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// 64 GiB in clusters of 4 KiB.
    fn tables() -> Tables {
        Tables::new(64 << 30, 4096, false)
    }

    fn cache(text: &str) -> Qcow2Cache {
        text.parse().unwrap()
    }

    #[test]
    fn the_whole_table_is_eight_bytes_per_cluster_in_whole_clusters() {
        assert_eq!(tables().l2_bytes, 128 << 20);
        assert_eq!(Tables::new(64 << 30, 4096, true).l2_bytes, 256 << 20);
        assert_eq!(Tables::new(1, 65_536, false).l2_bytes, 65_536);
    }

    #[test]
    fn it_is_written_in_one_form_and_read_back() {
        for text in [
            "as-booted",
            "l2-cache-size=8192",
            "l2-cache-size=8192 refcount-cache-size=16384 cache-clean-interval=600",
        ] {
            assert_eq!(cache(text).to_string(), text);
        }
        let named = [("l2-cache-size".to_owned(), "1MiB".to_owned())];
        let changed = cache("cache-clean-interval=600").with(&named).unwrap();
        assert_eq!(
            changed.to_string(),
            "l2-cache-size=1048576 cache-clean-interval=600"
        );
        assert!("cache-size=1".parse::<Qcow2Cache>().is_err());
    }

    #[test]
    fn what_qemu_would_make_something_else_of_is_refused() {
        for (text, problem) in [
            ("l2-cache-size=4096", "[8192, 134217728]"),
            ("l2-cache-size=134217729", "[8192, 134217728]"),
            ("refcount-cache-size=16383", "at least 16384"),
            ("cache-clean-interval=86401", "[0, 86400]"),
        ] {
            let refused = cache(text).check(&tables()).unwrap_err();
            assert!(refused.contains(problem), "{refused}");
        }
        let whole = "l2-cache-size=134217728 refcount-cache-size=16384 cache-clean-interval=0";
        assert_eq!(cache(whole).check(&tables()), Ok(()));
        // The table of a small image is smaller than the least that QEMU has.
        let small = Tables::new(1 << 20, 65_536, false);
        assert_eq!(cache("l2-cache-size=131072").check(&small), Ok(()));
    }

    #[test]
    fn the_memory_of_both_caches_is_bounded() {
        let bounds = Qcow2CacheBounds {
            most_bytes: 100_000,
        };
        let both = cache("l2-cache-size=60000 refcount-cache-size=40001");
        assert!(both.check_bounds(&bounds).unwrap_err().contains("most_mib"));
        let less = cache("l2-cache-size=60000 refcount-cache-size=40000");
        assert_eq!(less.check_bounds(&bounds), Ok(()));
    }

    #[test]
    fn both_sizes_together_give_way_to_one() {
        let mut options = json!({ "node-name": "f", "cache-size": 7 });
        cache("as-booted").set_in(&mut options);
        assert_eq!(options, json!({ "node-name": "f", "cache-size": 7 }));
        cache("cache-clean-interval=9").set_in(&mut options);
        assert_eq!(options["cache-size"], 7);
        cache("l2-cache-size=8192").set_in(&mut options);
        assert_eq!(
            options,
            json!({ "node-name": "f", "cache-clean-interval": 9, "l2-cache-size": 8192 })
        );
    }
}
