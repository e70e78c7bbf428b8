//! The stories, one file each.

#![allow(clippy::unwrap_used, reason = "a story that cannot be told has failed")]

mod authors;
mod bad_input;
mod chat;
mod client;
mod learning;
mod models;
mod plugins;
mod task;
