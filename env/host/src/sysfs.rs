//! Reading sysfs. Every function takes the directory, so that tests have their own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{HostError, HostResult};

/// The text of a file, without the space around it.
pub(crate) fn read_text(path: &Path) -> HostResult<String> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(HostError::io(path))
}

/// The text of an attribute that is there and not empty.
pub(crate) fn attribute(dir: &Path, name: &str) -> Option<String> {
    read_text(&dir.join(name))
        .ok()
        .filter(|text| !text.is_empty())
}

/// An attribute that is a number.
pub(crate) fn number<T: std::str::FromStr>(dir: &Path, name: &str) -> Option<T> {
    attribute(dir, name)?.parse().ok()
}

/// The names in a directory, in ascending order; none where it is not there.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The last part of a path, as text.
pub(crate) fn last_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// What a link leads to.
pub(crate) fn target(link: &Path) -> Option<PathBuf> {
    fs::canonicalize(link).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Writes files below a temporary root. `ROOT` in a content stands for it; a content that starts
    /// with `->` makes a link to a path below it.
    pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        add(root.path(), files);
        root
    }

    /// Adds files to such a tree.
    pub(crate) fn add(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("->") {
                Some(target) => symlink(root.join(target), path).unwrap(),
                None => {
                    let content = content.replace("ROOT", &root.display().to_string());
                    fs::write(path, content).unwrap();
                }
            }
        }
    }

    #[test]
    fn what_is_missing_empty_or_no_number_is_none() {
        let root = tree(&[
            ("a/empty", "\n"),
            ("a/number", "7\n"),
            ("a/text", "seven\n"),
        ]);
        let dir = root.path().join("a");
        assert_eq!(attribute(&dir, "empty"), None);
        assert_eq!(number::<u32>(&dir, "number"), Some(7));
        assert_eq!(number::<u32>(&dir, "text"), None);
        assert_eq!(number::<u32>(&dir, "missing"), None);
        assert_eq!(names(&dir), ["empty", "number", "text"]);
        assert!(names(&root.path().join("b")).is_empty());
    }
}
