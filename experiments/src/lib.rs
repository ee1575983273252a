//! Training and comparison of policies from experiment configs.
