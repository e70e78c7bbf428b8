//! Remote APIs behind [`Backend`](llmpick_core::Backend).
//!
//! A remote arm is an arm like any other: it streams, it is priced, it can be cancelled by
//! dropping its stream, and whatever goes wrong at the provider arrives as a
//! [`BackendError`](llmpick_core::BackendError) without any key in it.

mod endpoint;
mod error;
mod openai;
mod secret;
mod wire;

pub use error::OpenAiError;
pub use openai::{OpenAi, OpenAiOptions};
pub use secret::Secret;
