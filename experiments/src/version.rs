//! Which code this is.

/// Version of the crate and, where it was built in a git repository, the last commit that touched the code, with
/// `-dirty-<hash>` where there were changes that are in no commit. Equal versions train equal policies, on one machine
/// with one libtorch.
pub const CODE: &str = env!("BLKPILOT_CODE_VERSION");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_begins_with_that_of_the_crate() {
        let crates = env!("CARGO_PKG_VERSION");
        let rest = CODE.strip_prefix(crates).unwrap();
        assert!(rest.is_empty() || rest.starts_with('+'), "{CODE}");
    }
}
