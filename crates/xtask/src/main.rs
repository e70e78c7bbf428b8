//! Builds plugins, runs, tests, checks.
fn main() {}
