//! Router plugin: pickllm.
