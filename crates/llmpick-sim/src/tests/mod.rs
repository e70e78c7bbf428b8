//! Simulation and replay against closed forms, reference figures and real plugins.
#![allow(clippy::unwrap_used)]

mod logged;
mod native;
mod plugins;
mod proof;
mod replaying;
mod simulating;
