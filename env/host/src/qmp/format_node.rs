//! The block node that interprets a disk's qcow2 image, whose caches a reopen sets.

use serde_json::{Value, json};

use super::{NodeOptions, Qmp, text};
use crate::error::{HostError, HostResult};
use crate::guest::GuestDisk;
use crate::qcow2_cache::{Qcow2Cache, Tables};

/// Longest chain of backing images that is followed.
const MAX_BACKING: u64 = 200;

/// The top node of a disk with a qcow2 image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FormatNode {
    /// Its name.
    pub(crate) node_name: String,
    /// How large the image's tables are.
    pub(crate) tables: Tables,
    /// All its options, as QEMU was started with: what a reopen leaves out falls back to a default.
    options: Value,
}

impl Qmp<'_> {
    /// Finds the format node of a disk, anew each time.
    ///
    /// # Errors
    /// `Unsupported` where the disk has none of qcow2, or its options cannot be told: a snapshot, copy or
    /// commit since the start has replaced or changed it; `Qmp`, `Disconnected`, `GuestGone`.
    pub(crate) fn format_node(
        &self,
        disk: &GuestDisk,
        known: &NodeOptions,
    ) -> HostResult<FormatNode> {
        let unsupported = |reason: String| HostError::Unsupported {
            what: format!(
                "guest {}, disk {}: its qcow2 caches",
                self.guest.name, disk.target
            ),
            reason,
        };
        let top = self
            .top_node(disk)?
            .ok_or_else(|| unsupported("QEMU has no such device".into()))?;
        let options = known.get(&top).ok_or_else(|| {
            unsupported(format!(
                "its node {top} was added after QEMU started, so that its options are not known; restart the guest"
            ))
        })?;
        if text(options, "driver") != Some("qcow2") {
            return Err(unsupported(format!(
                "its image is {}, which has none",
                text(options, "driver").unwrap_or("of no known format")
            )));
        }
        let nodes = self.run("query-named-block-nodes", Some(json!({ "flat": true })))?;
        let nodes = nodes.as_array().map_or(&[][..], Vec::as_slice);
        let node = nodes
            .iter()
            .find(|node| text(node, "node-name") == Some(&top));
        let node =
            node.ok_or_else(|| unsupported(format!("its node {top} is not there any more")))?;
        // A reopen names the image below: one that a job has taken away would come back.
        if node["backing_file_depth"].as_u64() != Some(backing_depth(options, known)) {
            return Err(unsupported(
                "the images below it have changed since QEMU started; restart the guest".into(),
            ));
        }
        Ok(FormatNode {
            tables: tables(node).ok_or_else(|| {
                unsupported(format!(
                    "QEMU does not tell the cluster size of its node {top}"
                ))
            })?,
            node_name: top,
            options: options.clone(),
        })
    }
}

impl FormatNode {
    /// The command that reopens it with these caches. Nodes below it are named, so that they stay as they
    /// are, also the one that bypasses the page cache or does not.
    pub(crate) fn reopen_command(&self, cache: &Qcow2Cache) -> Value {
        let mut options = self.options.clone();
        cache.set_in(&mut options);
        json!({ "execute": "blockdev-reopen", "arguments": { "options": [options] } })
    }
}

fn backing_depth(options: &Value, known: &NodeOptions) -> u64 {
    let mut options = options;
    for depth in 0..MAX_BACKING {
        let below = text(options, "backing").and_then(|name| known.get(name));
        match below {
            Some(below) => options = below,
            None => return depth,
        }
    }
    MAX_BACKING
}

fn tables(node: &Value) -> Option<Tables> {
    let image = &node["image"];
    let has_subclusters = image["format-specific"]["data"]["extended-l2"] == true;
    Some(Tables::new(
        image["virtual-size"].as_u64()?,
        image["cluster-size"].as_u64().filter(|bytes| *bytes > 0)?,
        has_subclusters,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qmp::node_options;

    #[test]
    fn the_depth_of_a_chain_is_counted_and_a_circle_ends() {
        let nodes = node_options(
            b"-blockdev\0{\"node-name\":\"a\",\"backing\":\"b\"}\0-blockdev\0{\"node-name\":\"b\",\"backing\":null}\0-blockdev\0{\"node-name\":\"c\",\"backing\":\"c\"}\0",
        );
        let depth = |name: &str| backing_depth(&nodes[name], &nodes);
        assert_eq!([depth("a"), depth("b"), depth("c")], [1, 0, MAX_BACKING]);
    }
}
