//! Local models behind [`Backend`](llmpick_core::Backend).
//!
//! A GGUF file, or a folder of safetensors as the hub has them, becomes a [`Model`]: weights
//! in repacked matrices, a tokenizer and a chat template from the file's own metadata, and
//! one decoder that the metadata describes.
//! [`LocalModel`] puts a model on a thread of its own, behind a queue, and is the arm that
//! the rest of the program sees.

pub mod sample;
pub mod template;
pub mod tokens;

mod bench;
mod decoder;
mod device;
mod device_decoder;
mod error;
mod file;
#[doc(hidden)]
pub mod fuzz;
mod gguf;
mod gpu;
mod hub;
mod info;
mod likelihood;
mod local;
mod memory;
mod model;
mod output;
mod runner;
mod shape;
mod stock;

pub use bench::{BenchRun, Spread, bench_prompt, peak_resident};
pub use error::{EngineError, LoadError, LoadErrorKind, STOCK, SUPPORTED};
pub use gpu::{DeviceChoice, UnknownDevice};
pub use info::{ModelInfo, read_info, read_tokenizer};
pub use llmpick_kernels::{KvType, Rounding, page_cache};
pub use local::LocalModel;
pub use model::{EngineOptions, Model, Perplexity};
pub use runner::RunBy;
