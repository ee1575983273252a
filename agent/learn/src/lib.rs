//! Learners on libtorch: networks and PPO.
