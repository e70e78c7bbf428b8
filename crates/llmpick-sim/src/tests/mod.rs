//! Simulation and replay against closed forms, reference figures and real plugins.
#![allow(clippy::unwrap_used)]

mod logged;
mod native;
mod plugins;
mod replaying;
mod simulating;
