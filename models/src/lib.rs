//! Policies in pure Rust: the network, baselines and checkpoints.
