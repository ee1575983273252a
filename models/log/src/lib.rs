//! The decision log: what was seen, decided, executed and earned.
