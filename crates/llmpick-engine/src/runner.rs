//! What runs a model: our decoder, or a stock model of candle-transformers.
//!
//! Which of them is decided from the header alone. Both take tokens at positions and show
//! logits; what they can go on from, and how a sequence is cut for them, differs.

use std::ops::Range;
use std::sync::Arc;

use llmpick_kernels::{KvType, Rounding};
use serde::{Deserialize, Serialize};

use crate::decoder::{CHUNK, Decoder, DecoderOptions};
use crate::device::Device;
use crate::device_decoder::DeviceDecoder;
use crate::error::{EngineError, LoadErrorKind};
use crate::file::ModelFile;
use crate::gpu::Place;
use crate::shape::Shape;
use crate::stock::{Stock, StockShape};

/// Whose code runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunBy {
    /// Our decoder.
    #[default]
    #[serde(rename = "own decoder")]
    Own,
    /// candle-transformers' own model of the architecture, which is slower.
    #[serde(rename = "stock candle model: slower")]
    Stock,
}

/// What a checked header asks for.
pub(crate) enum Plan {
    Own(Shape),
    Stock(StockShape),
}

impl Plan {
    /// Reads and checks the settings of a file.
    pub fn of(file: &ModelFile) -> Result<Plan, LoadErrorKind> {
        match StockShape::of(file)? {
            Some(shape) => Ok(Plan::Stock(shape)),
            None => Shape::from_metadata(file.metadata()).map(Plan::Own),
        }
    }

    /// The numbers that a model's description shows.
    pub fn facts(&self) -> Facts<'_> {
        match self {
            Plan::Own(shape) => Facts {
                run_by: RunBy::Own,
                architecture: &shape.architecture,
                context: shape.context,
                layers: shape.layers,
                width: shape.width,
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
            },
            Plan::Stock(shape) => Facts {
                run_by: RunBy::Stock,
                architecture: &shape.architecture,
                context: shape.context,
                layers: shape.layers,
                width: shape.width,
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
            },
        }
    }

    /// Bytes of keys and values for so many positions. Stock models keep them as `f32`.
    pub fn cache_bytes(&self, kind: KvType, positions: usize) -> u64 {
        match self {
            Plan::Own(shape) => shape.cache_bytes(kind, positions),
            Plan::Stock(shape) => shape.cache_bytes(positions),
        }
    }

    /// Bytes of the weights once they are loaded.
    pub fn weight_bytes(&self, file: &ModelFile) -> u64 {
        match self {
            // Repacked weights are as large as the file's.
            Plan::Own(_) => file.size_bytes(),
            Plan::Stock(shape) => shape.weight_bytes(file),
        }
    }

    /// Reads the weights.
    pub fn load(
        self,
        file: &ModelFile,
        device: &Arc<Device>,
        options: &DecoderOptions,
        place: &Place,
    ) -> Result<Runner, LoadErrorKind> {
        match self {
            Plan::Own(shape) => {
                if let Place::Candle(there) = place {
                    say_what_is_left_out(options);
                    let there = there.clone();
                    let decoder = DeviceDecoder::load(file, shape, there, options.context)?;
                    return Ok(Runner::Device(Box::new(decoder)));
                }
                let decoder = Decoder::load(file, shape, Arc::clone(device), options)?;
                Ok(Runner::Own(Box::new(decoder)))
            }
            Plan::Stock(shape) => {
                say_what_stock_means(&shape, device, options);
                let device = match place {
                    Place::Cpu => candle_core::Device::Cpu,
                    Place::Candle(device) => device.clone(),
                };
                let stock =
                    Stock::load(file, shape, device, options.context, options.memory_limit)?;
                Ok(Runner::Stock(Box::new(stock)))
            }
        }
    }
}

/// What somebody who set the engine up should know of a stock model.
fn say_what_stock_means(shape: &StockShape, device: &Device, options: &DecoderOptions) {
    let architecture = &shape.architecture;
    let threads = candle_core::utils::get_num_threads();
    tracing::info!(%architecture, threads, "stock candle model: slower than our decoder, and rounds activations to eight bits");
    if threads != device.pool().threads() {
        tracing::warn!(
            %architecture,
            threads,
            "stock candle model: takes its threads from RAYON_NUM_THREADS, not from compute.threads"
        );
    }
    if options.kv_type != KvType::F32 {
        tracing::warn!(
            %architecture,
            "stock candle model: keeps keys and values as f32, whatever compute.kv_cache says"
        );
    }
    if options.rounding != Rounding::default() {
        tracing::warn!(
            %architecture,
            "stock candle model: rounds in its own way, whatever compute.activations says"
        );
    }
}

/// What a setting asks for and a GPU does not do.
fn say_what_is_left_out(options: &DecoderOptions) {
    if options.kv_type != KvType::F32 {
        tracing::warn!("the GPU keeps keys and values as f32, whatever compute.kv_cache says");
    }
    if options.rounding != Rounding::default() {
        tracing::warn!("the GPU rounds in its own way, whatever compute.activations says");
    }
}

/// See [`Plan::facts`].
pub(crate) struct Facts<'a> {
    pub run_by: RunBy,
    pub architecture: &'a str,
    pub context: usize,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// A loaded model with one sequence.
pub(crate) enum Runner {
    Own(Box<Decoder>),
    /// Our decoder in candle's tensors, on another device than the processor.
    Device(Box<DeviceDecoder>),
    Stock(Box<Stock>),
}

impl Runner {
    /// Tokens in the vocabulary.
    pub fn vocab(&self) -> usize {
        match self {
            Runner::Own(decoder) => decoder.vocab(),
            Runner::Device(decoder) => decoder.vocab(),
            Runner::Stock(stock) => stock.vocab(),
        }
    }

    /// Threads that compute, where those of `device` are at hand.
    pub fn threads(&self, device: &Device) -> usize {
        match self {
            Runner::Own(_) => device.pool().threads(),
            // One hands the work over.
            Runner::Device(_) => 1,
            Runner::Stock(_) => candle_core::utils::get_num_threads(),
        }
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> u64 {
        match self {
            Runner::Own(decoder) => decoder.weight_bytes(),
            Runner::Device(decoder) => decoder.weight_bytes(),
            Runner::Stock(stock) => stock.weight_bytes(),
        }
    }

    /// Bytes of keys and values held.
    pub fn cache_bytes(&self) -> u64 {
        match self {
            Runner::Own(decoder) => decoder.cache_bytes(),
            Runner::Device(decoder) => decoder.cache_bytes(),
            Runner::Stock(stock) => stock.cache_bytes(),
        }
    }

    /// Gives the memory of keys and values back.
    pub fn clear(&mut self) {
        match self {
            Runner::Own(decoder) => decoder.clear(),
            Runner::Device(decoder) => decoder.clear(),
            Runner::Stock(stock) => stock.clear(),
        }
    }

    /// Positions for which there are keys and values.
    pub fn positions(&self) -> usize {
        match self {
            Runner::Own(decoder) => decoder.positions(),
            Runner::Device(decoder) => decoder.positions(),
            Runner::Stock(stock) => stock.positions(),
        }
    }

    /// Whether the sequence can go on from position `at`.
    pub fn resumes_at(&self, at: usize) -> bool {
        match self {
            Runner::Own(decoder) => decoder.resumes_at(at),
            Runner::Device(decoder) => decoder.resumes_at(at),
            Runner::Stock(stock) => stock.resumes_at(at),
        }
    }

    /// Where the piece ends that is to be run from `start` on, of `total` tokens whose
    /// logits are wanted from `wanted` on.
    pub fn piece(&self, start: usize, wanted: usize, total: usize) -> usize {
        match self {
            Runner::Own(_) | Runner::Device(_) => {
                // Even pieces: a short one at the end would unpack the weights for few rows.
                let left = total - start;
                start + left.div_ceil(left.div_ceil(CHUNK))
            }
            Runner::Stock(stock) => stock.piece(start, wanted, total),
        }
    }

    /// Runs one [`piece`](Self::piece) of tokens at the positions from `start` on. What
    /// the cache held from `start` on is replaced. Afterwards [`logits`](Self::logits)
    /// serves the rows from `wanted` on, counted from `start`.
    pub fn forward(
        &mut self,
        tokens: &[u32],
        start: usize,
        wanted: usize,
    ) -> Result<(), EngineError> {
        match self {
            Runner::Own(decoder) => decoder.forward(tokens, start, wanted),
            Runner::Device(decoder) => decoder.forward(tokens, start, wanted),
            Runner::Stock(stock) => stock.forward(tokens, start),
        }
    }

    /// Logits of rows of the last [`forward`](Self::forward), one after the other.
    pub fn logits(&mut self, rows: Range<usize>) -> Result<&mut [f32], EngineError> {
        match self {
            Runner::Own(decoder) => Ok(decoder.logits(rows)),
            Runner::Device(decoder) => decoder.logits(rows),
            Runner::Stock(stock) => {
                debug_assert_eq!(rows.len(), 1, "only the last token's are there");
                Ok(stock.logits())
            }
        }
    }
}
