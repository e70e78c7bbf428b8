//! Fast quantised matmul and attention loops, each beside its plain version.
//!
//! Numbers first: the order of every floating-point operation that makes one
//! output row is fixed by this crate and depends neither on how many rows are
//! computed together, nor on the number of threads, nor on which instruction
//! set ran. A prompt therefore gives the same bits in one piece, in chunks, and
//! token by token.
//!
//! The entry points: [`Matrix`] (weights, `y = x Wᵀ`) made by a [`Packer`], [`Embedding`] (rows read
//! on demand), [`KvCache`] with [`attention`], [`RopeTable`] with [`rope`], the
//! element-wise loops of [`ops`], and the [`Pool`] they run on.
#![allow(unsafe_code)]

pub use activations::Rounding;
pub use attention::{AttentionSpec, attention};
pub use cache::{KeyWork, KvCache, KvType};
pub use embedding::Embedding;
pub use error::KernelError;
pub use format::Format;
pub use lanes::Level;
pub use matrix::{Matrix, matmul_many, matmul_ready};
pub use ops::{
    add_assign, gelu_tanh_mul, log_softmax, logsumexp, rms_norm, scale, silu_mul, softcap,
};
pub use packer::{PackError, Packer};
pub use pool::Pool;
pub use rope::{RopeKind, RopeTable, rope};
pub use rows::{RowWork, by_rows};
pub use stream::stream_read;

mod activations;
mod attention;
mod cache;
#[cfg(feature = "cuda")]
pub mod cuda;
mod embedding;
mod error;
mod format;
mod lanes;
mod lines;
pub mod map;
mod matrix;
pub mod ops;
mod pack;
mod packer;
pub mod page_cache;
mod pool;
mod product;
mod rope;
mod rows;
mod slab;
mod stream;
#[doc(hidden)]
pub mod testing;
mod tiles;
