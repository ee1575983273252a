//! The binary `blkpilot`.
fn main() {}
