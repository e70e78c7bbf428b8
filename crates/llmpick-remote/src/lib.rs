//! Remote APIs behind [`Backend`](llmpick_core::Backend).
//!
//! A remote arm is an arm like any other: it streams, it is priced, it can be cancelled by
//! dropping its stream, and whatever goes wrong at the provider arrives as a
//! [`BackendError`](llmpick_core::BackendError) without any key in it.
//!
//! A scheduler on another machine is here too: [`RemoteScheduler`], and the words it speaks in
//! [`schedule`].

mod endpoint;
mod error;
mod openai;
pub mod schedule;
mod scheduler;
mod secret;
mod wire;

pub use error::OpenAiError;
pub use openai::{OpenAi, OpenAiOptions};
pub use scheduler::{RemoteScheduler, RemoteSchedulerOptions};
pub use secret::Secret;
