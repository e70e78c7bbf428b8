//! Models of other architectures, run by candle-transformers as it has them.
//!
//! They serve what our decoder does not describe, and are slower: candle expands the
//! embeddings, copies keys and values for every token, and computes with threads of its
//! own. A stock model keeps its sequence inside. It can be gone on with or begun anew, and
//! it shows the logits of the last token only; [`Stock::piece`] cuts a sequence so that
//! these are the ones that are wanted.
//!
//! candle trusts a file's settings. Here every tensor is held against them first, and what
//! still goes wrong inside, a panic included, becomes an error of this model.

use std::collections::{HashMap, HashSet};
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value, VersionedMagic};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::{quantized_glm4, quantized_lfm2, quantized_llama, quantized_phi};

use crate::decoder::CHUNK;
use crate::error::{EngineError, LoadErrorKind, STOCK};
use crate::file::{ModelFile, TensorView};
use crate::memory;
use crate::shape::{Keys, text, whole};

/// Positions for which candle's phi2 and llama have RoPE tables.
const TABLES: usize = 4096;

/// The most tokens that lfm2 reads at once; its memory grows with their square.
const LFM2_PIECE: usize = 1024;

/// What a file for a stock model is like.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StockShape {
    kind: Kind,
    pub architecture: String,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    /// Of the layers that have keys and values.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Positions that the model was trained for and candle can run.
    pub context: usize,
    /// Key and value heads of each layer; 0 for one without.
    kv_heads_of: Vec<usize>,
    feed_width: usize,
    rope_dim: usize,
    rope_base: f32,
    epsilon: f32,
    /// Positions that a convolution sees (lfm2).
    convolved: usize,
    /// Experts in all and for one token (llama).
    experts: (usize, usize),
}

/// The models of candle-transformers that read GGUF's own names and do what llama.cpp does.
///
/// Not among them: `quantized_qwen3_moe`, whose experts compute on a GPU only and whose
/// cache cannot be emptied; `quantized_{mistral, mixformer, mpt, recurrent_gemma, rwkv_v5,
/// rwkv_v6, stable_lm, t5}`, which want files that candle made itself, without settings
/// and without a tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Glm4,
    Lfm2,
    /// A llama with experts: Mixtral, in the first layout of its files.
    Llama,
    Phi2,
}

impl StockShape {
    /// The shape of a file that a stock model runs; `None` for all other files.
    ///
    /// # Errors
    /// If the file is for a stock model, and its settings or tensors are not what that
    /// model takes them for.
    pub fn of(file: &ModelFile) -> Result<Option<StockShape>, LoadErrorKind> {
        let metadata = file.metadata();
        let Some(architecture) = text(metadata, "general.architecture") else {
            return Ok(None);
        };
        let keys = Keys {
            metadata,
            architecture,
        };
        let kind = match architecture {
            "glm4" => Kind::Glm4,
            "lfm2" => Kind::Lfm2,
            "phi2" => Kind::Phi2,
            "llama" if keys.optional_count("expert_count")?.is_some_and(|n| n > 1) => Kind::Llama,
            _ => return Ok(None),
        };
        debug_assert!(kind == Kind::Llama || STOCK.contains(&architecture));
        let shape = Self::read(kind, &keys)?;
        shape.check(&keys)?;
        shape.check_tensors(file)?;
        Ok(Some(shape))
    }

    fn read(kind: Kind, keys: &Keys<'_>) -> Result<StockShape, LoadErrorKind> {
        let layers = keys.count("block_count")?;
        let width = keys.count("embedding_length")?;
        let heads = keys.count("attention.head_count")?;
        let head_dim = match keys.optional_count("attention.key_length")? {
            Some(length) => length,
            None => width / heads,
        };
        let kv_heads_of = match kind {
            Kind::Lfm2 => kv_heads_of(keys, layers)?,
            _ => {
                let all = keys.optional_count("attention.head_count_kv")?;
                vec![all.unwrap_or(heads); layers.min(1 << 16)]
            }
        };
        let context = keys.count("context_length")?;
        let epsilon = match kind {
            Kind::Phi2 => "attention.layer_norm_epsilon",
            _ => "attention.layer_norm_rms_epsilon",
        };
        let base = match kind {
            Kind::Lfm2 => 1e6,
            _ => 1e4,
        };
        Ok(StockShape {
            kind,
            architecture: keys.architecture.to_owned(),
            layers,
            width,
            heads,
            kv_heads: kv_heads_of.iter().copied().max().unwrap_or(0),
            head_dim,
            context: match kind {
                Kind::Llama | Kind::Phi2 => context.min(TABLES),
                Kind::Glm4 | Kind::Lfm2 => context,
            },
            kv_heads_of,
            feed_width: keys.count("feed_forward_length")?,
            rope_dim: match (keys.optional_count("rope.dimension_count")?, kind) {
                (Some(dim), _) => dim,
                (None, Kind::Glm4) => head_dim / 2,
                (None, _) => head_dim,
            },
            rope_base: keys.float("rope.freq_base")?.unwrap_or(base) as f32,
            epsilon: keys.required_float(epsilon)? as f32,
            convolved: match kind {
                Kind::Lfm2 => keys.count("shortconv.l_cache")?,
                _ => 0,
            },
            experts: match kind {
                Kind::Llama => (
                    keys.count("expert_count")?,
                    keys.count("expert_used_count")?,
                ),
                _ => (0, 0),
            },
        })
    }

    /// Bytes of keys and values for so many positions.
    pub fn cache_bytes(&self, positions: usize) -> u64 {
        let heads: u64 = self.kv_heads_of.iter().map(|n| *n as u64).sum();
        let each = heads * self.head_dim as u64 * 2 * 4;
        each.saturating_mul(positions as u64)
    }

    /// Bytes that a file takes as a stock model: what is not quantised is expanded to
    /// `f32`, and the embeddings are there twice.
    pub fn weight_bytes(&self, file: &ModelFile) -> u64 {
        let expanded = |dtype| matches!(dtype, GgmlDType::F16 | GgmlDType::BF16);
        let weights = file.tensors().map(|(name, view)| {
            let held = match expanded(view.dtype) {
                true => 4 * view.elements(),
                false => view.range.len() as u64,
            };
            match name.as_str() {
                "token_embd.weight" => held + 4 * view.elements(),
                _ => held,
            }
        });
        weights.sum()
    }

    /// What candle takes for granted, or has as a constant where a file may differ.
    fn check(&self, keys: &Keys<'_>) -> Result<(), LoadErrorKind> {
        let malformed = |what: String| Err(LoadErrorKind::Malformed(what));
        if self.layers > 1 << 16 {
            return malformed(format!("it has {} layers", self.layers));
        }
        let shared = |n: &usize| *n == 0 || self.heads.is_multiple_of(*n);
        if self.kv_heads == 0 || !self.kv_heads_of.iter().all(shared) {
            return malformed(format!(
                "{} query heads do not share the key heads of every layer",
                self.heads
            ));
        }
        if !self.rope_dim.is_multiple_of(2) || self.rope_dim > self.head_dim || self.rope_dim == 0 {
            return malformed(format!(
                "RoPE turns {} of {} values",
                self.rope_dim, self.head_dim
            ));
        }
        for (what, value) in [
            ("norm epsilon", self.epsilon),
            ("RoPE base", self.rope_base),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return malformed(format!("its {what} is {value}"));
            }
        }
        let feature = |what: &str| Err(LoadErrorKind::Feature(what.to_owned()));
        if keys
            .float("rope.scaling.factor")?
            .is_some_and(|factor| factor != 1.0)
        {
            return feature("RoPE scaling in a model that candle runs without");
        }
        let narrow = self.heads.checked_mul(self.head_dim) != Some(self.width);
        match self.kind {
            Kind::Glm4 if 2 * self.rope_dim != self.head_dim => {
                feature("RoPE of another share of a head than a half")
            }
            Kind::Glm4 => Ok(()),
            _ if narrow => feature("heads that are not as wide as the model"),
            Kind::Phi2 if self.rope_base != 1e4 => feature("another RoPE base than 10,000"),
            Kind::Phi2 if self.kv_heads != self.heads => feature("shared key heads in phi2"),
            Kind::Lfm2 | Kind::Llama if self.rope_dim != self.head_dim => {
                feature("RoPE of a part of a head")
            }
            Kind::Llama if keys.optional_count("attention.sliding_window")?.is_some() => {
                feature("experts beside a sliding window")
            }
            Kind::Llama if self.experts.1 > self.experts.0 => malformed(format!(
                "it uses {} of {} experts",
                self.experts.1, self.experts.0
            )),
            _ => Ok(()),
        }
    }

    /// Holds every tensor of the file against the settings. A tensor that the model would
    /// not read is refused: a part of a network left out gives fluent nonsense.
    fn check_tensors(&self, file: &ModelFile) -> Result<(), LoadErrorKind> {
        // Each layer has several; and candle makes room for all before it misses one.
        if self.layers > file.tensors().len() {
            return Err(LoadErrorKind::Malformed(format!(
                "it has {} layers and fewer tensors",
                self.layers
            )));
        }
        if self.kind == Kind::Llama && file.tensor("blk.0.ffn_gate_exps.weight").is_some() {
            return Err(LoadErrorKind::Feature(
                "a mixture of experts in one tensor".to_owned(),
            ));
        }
        let mut tensors = Tensors {
            file,
            read: HashSet::new(),
        };
        let vocab = tensors.rows("token_embd.weight", self.width)?;
        self.check_ends(&mut tensors, vocab)?;
        for (layer, kv_heads) in self.kv_heads_of.iter().enumerate() {
            self.check_layer(&mut tensors, layer, *kv_heads)?;
        }
        tensors.check_rest(&self.architecture)
    }

    fn check_ends(&self, tensors: &mut Tensors<'_>, vocab: usize) -> Result<(), LoadErrorKind> {
        let width = self.width;
        match self.kind {
            Kind::Phi2 => {
                tensors.matrix("output", vocab, width, Bias::Wanted)?;
                tensors.norm("output_norm", width, Bias::Wanted)
            }
            Kind::Lfm2 => {
                tensors.tied_output(vocab, width)?;
                // llama.cpp's name for it, and candle's.
                match tensors.file.tensor("token_embd_norm.weight") {
                    Some(_) => tensors.norm("token_embd_norm", width, Bias::None),
                    None => tensors.norm("output_norm", width, Bias::None),
                }
            }
            Kind::Glm4 | Kind::Llama => {
                tensors.tied_output(vocab, width)?;
                tensors.norm("output_norm", width, Bias::None)
            }
        }
    }

    fn check_layer(
        &self,
        tensors: &mut Tensors<'_>,
        layer: usize,
        kv_heads: usize,
    ) -> Result<(), LoadErrorKind> {
        let (width, wide) = (self.width, self.feed_width);
        let (q, kv) = (self.heads * self.head_dim, kv_heads * self.head_dim);
        let name = |part: &str| format!("blk.{layer}.{part}");
        match self.kind {
            Kind::Phi2 => {
                tensors.norm(&name("attn_norm"), width, Bias::Wanted)?;
                tensors.matrix(&name("attn_qkv"), 3 * width, width, Bias::Wanted)?;
                tensors.matrix(&name("attn_output"), width, width, Bias::Wanted)?;
                tensors.matrix(&name("ffn_up"), wide, width, Bias::Wanted)?;
                return tensors.matrix(&name("ffn_down"), width, wide, Bias::Wanted);
            }
            Kind::Lfm2 if kv_heads == 0 => {
                tensors.matrix(&name("shortconv.in_proj"), 3 * width, width, Bias::None)?;
                tensors.matrix(&name("shortconv.out_proj"), width, width, Bias::None)?;
                tensors.matrix(&name("shortconv.conv"), width, self.convolved, Bias::None)?;
            }
            kind => {
                let bias = match kind {
                    Kind::Glm4 => Bias::Possible,
                    _ => Bias::None,
                };
                tensors.matrix(&name("attn_q"), q, width, bias)?;
                tensors.matrix(&name("attn_k"), kv, width, bias)?;
                tensors.matrix(&name("attn_v"), kv, width, bias)?;
                tensors.matrix(&name("attn_output"), width, q, Bias::None)?;
                if kind == Kind::Lfm2 {
                    tensors.norm(&name("attn_q_norm"), self.head_dim, Bias::None)?;
                    tensors.norm(&name("attn_k_norm"), self.head_dim, Bias::None)?;
                }
            }
        }
        tensors.norm(&name("attn_norm"), width, Bias::None)?;
        tensors.norm(&name("ffn_norm"), width, Bias::None)?;
        match self.kind {
            Kind::Glm4 => {
                tensors.norm(&name("post_attention_norm"), width, Bias::None)?;
                tensors.norm(&name("post_ffw_norm"), width, Bias::None)?;
                tensors.matrix(&name("ffn_up"), 2 * wide, width, Bias::None)?;
                tensors.matrix(&name("ffn_down"), width, wide, Bias::None)
            }
            Kind::Llama => {
                tensors.matrix(&name("ffn_gate_inp"), self.experts.0, width, Bias::None)?;
                for expert in 0..self.experts.0 {
                    let name = |part: &str| name(&format!("{part}.{expert}"));
                    tensors.matrix(&name("ffn_gate"), wide, width, Bias::None)?;
                    tensors.matrix(&name("ffn_up"), wide, width, Bias::None)?;
                    tensors.matrix(&name("ffn_down"), width, wide, Bias::None)?;
                }
                Ok(())
            }
            _ => {
                tensors.matrix(&name("ffn_gate"), wide, width, Bias::None)?;
                tensors.matrix(&name("ffn_up"), wide, width, Bias::None)?;
                tensors.matrix(&name("ffn_down"), width, wide, Bias::None)
            }
        }
    }

    /// The settings as candle's models ask for them, with the types they take.
    fn settings(&self, context: usize) -> HashMap<String, Value> {
        let count = |n: usize| Value::U32(n as u32);
        let epsilon = Value::F32(self.epsilon);
        let kv_heads = match self.kind {
            Kind::Lfm2 => Value::Array(self.kv_heads_of.iter().map(|n| count(*n)).collect()),
            _ => count(self.kv_heads),
        };
        let own = [
            ("block_count", count(self.layers)),
            ("context_length", count(context)),
            ("embedding_length", count(self.width)),
            ("attention.head_count", count(self.heads)),
            ("attention.head_count_kv", kv_heads),
            ("attention.key_length", count(self.head_dim)),
            ("attention.layer_norm_epsilon", epsilon.clone()),
            ("attention.layer_norm_rms_epsilon", epsilon),
            ("rope.dimension_count", count(self.rope_dim)),
            ("rope.freq_base", Value::F32(self.rope_base)),
            ("shortconv.l_cache", count(self.convolved)),
            ("expert_count", count(self.experts.0)),
            ("expert_used_count", count(self.experts.1)),
        ];
        let name = |key: &str| format!("{}.{key}", self.architecture);
        let mut all: HashMap<_, _> = own.into_iter().map(|(k, v)| (name(k), v)).collect();
        let architecture = Value::String(self.architecture.clone());
        all.insert("general.architecture".to_owned(), architecture);
        all
    }
}

/// Key and value heads of each layer, said for all or one by one.
fn kv_heads_of(keys: &Keys<'_>, layers: usize) -> Result<Vec<usize>, LoadErrorKind> {
    let key = "attention.head_count_kv";
    let Some(Value::Array(all)) = keys.metadata.get(&keys.name(key)) else {
        return Ok(vec![keys.count(key)?; layers.min(1 << 16)]);
    };
    let counts: Option<Vec<usize>> = all
        .iter()
        .map(|n| whole(n).filter(|n| *n < 1 << 16).map(|n| n as usize))
        .collect();
    counts.filter(|all| all.len() == layers).ok_or_else(|| {
        LoadErrorKind::Malformed(format!(
            "the setting `{}` has {} values for {layers} layers",
            keys.name(key),
            all.len()
        ))
    })
}

/// Whether a matrix or a norm has a bias beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bias {
    None,
    Possible,
    Wanted,
}

/// The tensors of a file, and the names of those that the model reads.
struct Tensors<'a> {
    file: &'a ModelFile,
    read: HashSet<String>,
}

impl Tensors<'_> {
    /// Rows of a table of so many columns.
    fn rows(&mut self, name: &str, cols: usize) -> Result<usize, LoadErrorKind> {
        let rows = match self.file.tensor(name).map(|view| view.dims.as_slice()) {
            Some(&[rows, _]) => rows,
            _ => 0,
        };
        self.expect(name.to_owned(), &[rows, cols])?;
        Ok(rows)
    }

    fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
        bias: Bias,
    ) -> Result<(), LoadErrorKind> {
        self.expect(format!("{name}.weight"), &[rows, cols])?;
        self.bias(name, rows, bias)
    }

    fn norm(&mut self, name: &str, len: usize, bias: Bias) -> Result<(), LoadErrorKind> {
        self.expect(format!("{name}.weight"), &[len])?;
        self.bias(name, len, bias)
    }

    fn bias(&mut self, name: &str, len: usize, bias: Bias) -> Result<(), LoadErrorKind> {
        let name = format!("{name}.bias");
        let there = self.file.tensor(&name).is_some();
        match bias == Bias::Wanted || (bias == Bias::Possible && there) {
            true => self.expect(name, &[len]),
            false => Ok(()),
        }
    }

    /// The output head, where it is not the embeddings.
    fn tied_output(&mut self, vocab: usize, width: usize) -> Result<(), LoadErrorKind> {
        match self.file.tensor("output.weight") {
            Some(_) => self.matrix("output", vocab, width, Bias::None),
            None => Ok(()),
        }
    }

    fn expect(&mut self, name: String, wanted: &[usize]) -> Result<(), LoadErrorKind> {
        let Some(view) = self.file.tensor(&name) else {
            return Err(LoadErrorKind::Malformed(format!(
                "the tensor `{name}` is missing"
            )));
        };
        if view.dims != wanted {
            return Err(LoadErrorKind::Malformed(format!(
                "the tensor `{name}` has the shape {:?} and not {wanted:?}",
                view.dims
            )));
        }
        self.read.insert(name);
        Ok(())
    }

    fn check_rest(&self, architecture: &str) -> Result<(), LoadErrorKind> {
        let mut names: Vec<&String> = self.file.tensors().map(|(name, _)| name).collect();
        names.sort();
        match names.into_iter().find(|name| !self.read.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(LoadErrorKind::Feature(format!(
                "the tensor `{name}`, which `{architecture}` models do not have here"
            ))),
        }
    }
}

/// A loaded stock model and its sequence.
pub(crate) struct Stock {
    shape: StockShape,
    source: Source,
    device: Device,
    model: Box<StockModel>,
    /// The model as it was loaded; none for one that cannot be copied.
    fresh: Option<Box<StockModel>>,
    /// Positions of the sequence; 0 after a failure, when nobody knows.
    positions: usize,
    logits: Vec<f32>,
    vocab: usize,
    weight_bytes: u64,
    memory_limit: Option<u64>,
}

enum StockModel {
    Glm4(quantized_glm4::ModelWeights),
    Lfm2(quantized_lfm2::ModelWeights),
    Llama(quantized_llama::ModelWeights),
    Phi2(quantized_phi::ModelWeights),
}

impl StockModel {
    /// Another of the same weights, where that can be had without reading them again.
    fn copy(&self) -> Option<StockModel> {
        match self {
            StockModel::Glm4(model) => Some(StockModel::Glm4(model.clone())),
            StockModel::Lfm2(_) => None,
            StockModel::Llama(model) => Some(StockModel::Llama(model.clone())),
            StockModel::Phi2(model) => Some(StockModel::Phi2(model.clone())),
        }
    }

    fn forward(&mut self, tokens: &Tensor, start: usize) -> candle_core::Result<Tensor> {
        match self {
            StockModel::Glm4(model) => model.forward(tokens, start),
            StockModel::Lfm2(model) => model.forward(tokens, start),
            StockModel::Llama(model) => model.forward(tokens, start),
            StockModel::Phi2(model) => model.forward(tokens, start),
        }
    }
}

impl Stock {
    /// Reads the weights of a checked file, for so many positions at most.
    pub fn load(
        file: &ModelFile,
        shape: StockShape,
        device: Device,
        context: usize,
        memory_limit: Option<u64>,
    ) -> Result<Stock, LoadErrorKind> {
        let source = Source::of(file, shape.settings(context));
        let model = source.model(shape.kind, &device);
        let model = Box::new(model.map_err(LoadErrorKind::Stock)?);
        for (_, view) in file.tensors() {
            file.release(view);
        }
        let vocab = file.tensor("token_embd.weight").map(|view| view.dims[0]);
        Ok(Stock {
            fresh: model.copy().map(Box::new),
            model,
            source,
            device,
            positions: 0,
            logits: Vec::new(),
            vocab: vocab.unwrap_or(0),
            weight_bytes: shape.weight_bytes(file),
            memory_limit,
            shape,
        })
    }

    /// Tokens in the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes of keys and values held.
    pub fn cache_bytes(&self) -> u64 {
        self.shape.cache_bytes(self.positions)
    }

    /// Positions of the sequence.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Forgets the sequence and gives its memory back.
    ///
    /// A model that cannot be copied is left as it is: what it keeps is written over when
    /// it begins anew, or [`forward`](Self::forward) reads it again.
    pub fn clear(&mut self) {
        self.positions = 0;
        if let Some(fresh) = self.fresh.as_ref().and_then(|fresh| fresh.copy()) {
            *self.model = fresh;
        }
    }

    /// Whether the sequence can go on from position `at`: only from its end, or anew.
    pub fn resumes_at(&self, at: usize) -> bool {
        at == 0 || at == self.positions
    }

    /// The end of the piece that begins at `start`, of `total` tokens whose logits are
    /// wanted from `wanted` on.
    pub fn piece(&self, start: usize, wanted: usize, total: usize) -> usize {
        let most = total.min(start.max(wanted) + 1) - start;
        let length = match self.shape.kind {
            // Its convolutions forget what was before a piece of more than one token; and
            // it keeps a mask for every length it has met, so there are not to be many.
            Kind::Lfm2 if start > 0 => 1,
            Kind::Lfm2 if most > 64 => most.min(LFM2_PIECE) / 64 * 64,
            _ => most.min(CHUNK),
        };
        start + length
    }

    /// Runs one [`piece`](Self::piece) of tokens at the positions from `start` on, which
    /// is where the sequence ends, or 0. [`logits`](Self::logits) then has those of the last.
    pub fn forward(&mut self, tokens: &[u32], start: usize) -> Result<(), EngineError> {
        debug_assert!(self.resumes_at(start), "{start} after {}", self.positions);
        let end = start + tokens.len();
        self.check_memory(start, end)?;
        if start == 0 {
            self.begin(tokens.len())?;
        }
        // Nobody knows the state of a model that failed; the next sequence begins anew.
        self.positions = 0;
        let (model, device) = (&mut self.model, &self.device);
        let logits = guarded(|| {
            let input = Tensor::new(tokens, device)?.unsqueeze(0)?;
            let logits = model.forward(&input, start)?;
            logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
        });
        self.logits = logits.map_err(EngineError::Fault)?;
        if self.logits.len() != self.vocab {
            return Err(EngineError::Fault(format!(
                "{} logits for {} tokens",
                self.logits.len(),
                self.vocab
            )));
        }
        self.positions = end;
        Ok(())
    }

    /// The logits of the last token that ran.
    pub fn logits(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    /// Makes the model ready for a sequence that begins with so many tokens at once.
    fn begin(&mut self, tokens: usize) -> Result<(), EngineError> {
        self.clear();
        // Every other way to begin writes over what lfm2's convolutions hold.
        if self.fresh.is_none() && tokens == 1 {
            let model = self.source.model(self.shape.kind, &self.device);
            *self.model = model.map_err(EngineError::Fault)?;
        }
        Ok(())
    }

    /// Refuses to grow beyond the memory there is. Keys and values are copied when they
    /// grow, so for a moment they are there twice.
    fn check_memory(&self, start: usize, end: usize) -> Result<(), EngineError> {
        const STEP: usize = 64;
        // Not at every token: the figures are read from the system's files.
        if start > 0 && start / STEP == end / STEP {
            return Ok(());
        }
        let held = self.shape.cache_bytes(start);
        let needed = 2 * self.shape.cache_bytes(end + STEP) - held;
        let limit = self.memory_limit;
        let limit = limit.map(|limit| limit.saturating_sub(self.weight_bytes + held));
        let free = [memory::available(), limit].into_iter().flatten().min();
        match free.filter(|free| *free < needed) {
            None => Ok(()),
            Some(available) => Err(EngineError::Memory {
                needed,
                available,
                tokens: end as u32,
            }),
        }
    }
}

/// Calls into candle; a failure or a panic there becomes a sentence.
pub(crate) fn guarded<T>(call: impl FnOnce() -> candle_core::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        // With RUST_BACKTRACE the text goes on for pages.
        Ok(Err(error)) => {
            let text = error.to_string();
            Err(text.lines().next().unwrap_or_default().to_owned())
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or(panic.downcast_ref::<&str>().copied());
            Err(text.unwrap_or("a panic without a word").to_owned())
        }
    }
}

/// Bytes of a file.
type Part = Arc<dyn llmpick_kernels::map::Pages>;

/// The settings and tensors of a file in the form that candle reads.
struct Source {
    settings: HashMap<String, Value>,
    tensors: Vec<(String, TensorView, Part)>,
}

impl Source {
    fn of(file: &ModelFile, settings: HashMap<String, Value>) -> Source {
        let tensor =
            |(name, view): (&String, &TensorView)| (name.clone(), view.clone(), file.part(view));
        Source {
            settings,
            tensors: file.tensors().map(tensor).collect(),
        }
    }

    /// The model, read.
    fn model(&self, kind: Kind, device: &Device) -> Result<StockModel, String> {
        let (content, mut reader) = self.content();
        guarded(|| {
            Ok(match kind {
                Kind::Glm4 => StockModel::Glm4(quantized_glm4::ModelWeights::from_gguf(
                    content,
                    &mut reader,
                    device,
                    DType::F32,
                )?),
                Kind::Lfm2 => StockModel::Lfm2(quantized_lfm2::ModelWeights::from_gguf(
                    content,
                    &mut reader,
                    device,
                )?),
                Kind::Llama => StockModel::Llama(quantized_llama::ModelWeights::from_gguf(
                    content,
                    &mut reader,
                    device,
                )?),
                Kind::Phi2 => StockModel::Phi2(quantized_phi::ModelWeights::from_gguf(
                    content,
                    &mut reader,
                    device,
                )?),
            })
        })
    }

    /// A header in which the tensors lie one behind the other, and their bytes.
    fn content(&self) -> (Content, Joined<'_>) {
        let mut joined = Joined {
            tensors: Vec::with_capacity(self.tensors.len()),
            at: 0,
        };
        let mut tensor_infos = HashMap::new();
        let mut offset = 0;
        for (name, view, part) in &self.tensors {
            let info = TensorInfo {
                ggml_dtype: view.dtype,
                shape: view.dims.as_slice().into(),
                offset,
            };
            tensor_infos.insert(name.clone(), info);
            let bytes = (**part).as_ref().get(view.range.clone());
            let bytes = bytes.unwrap_or_default();
            let end = offset + bytes.len() as u64;
            joined.tensors.push((offset..end, bytes));
            offset = end;
        }
        let content = Content {
            magic: VersionedMagic::GgufV3,
            metadata: self.settings.clone(),
            tensor_infos,
            tensor_data_offset: 0,
        };
        (content, joined)
    }
}

/// Tensors as one file.
struct Joined<'a> {
    /// Places in that file, ascending, and what is there.
    tensors: Vec<(Range<u64>, &'a [u8])>,
    at: u64,
}

impl Read for Joined<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let next = self
            .tensors
            .partition_point(|(place, _)| place.end <= self.at);
        let Some((place, bytes)) = self.tensors.get(next) else {
            return Ok(0);
        };
        let rest = &bytes[(self.at - place.start) as usize..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Joined<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let end = self.tensors.last().map_or(0, |(place, _)| place.end);
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => end.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
