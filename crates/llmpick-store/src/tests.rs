//! Whole pulls, against a local hub, a local pip and the real one.
