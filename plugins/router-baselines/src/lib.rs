//! Router plugin: baselines.
