//! Whole pulls: against a local hub that speaks the hub's protocol, against a pip that fails
//! on purpose, and, where there is a package index, against the real one.

mod cache;
mod hub;
mod support;
mod wheels;
