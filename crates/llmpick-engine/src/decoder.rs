//! The decoder: tokens in, hidden states and logits out, keys and values kept.
//!
//! One pass serves all architectures; [`Shape`] and the presence of optional tensors decide
//! what it does. Everything between the matrix products works on plain rows of `f32` in
//! buffers that live as long as the model. No row's result depends on how many rows run
//! with it, so a prompt may be cut into pieces anywhere.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use llmpick_kernels::{
    AttentionSpec, Embedding, KvCache, KvType, Matrix, Pool, RopeTable, attention, ops, rope,
};
use parking_lot::Mutex;

use crate::device::Device;
use crate::error::{EngineError, LoadErrorKind};
use crate::gguf::{Gguf, TensorView};
use crate::memory;
use crate::shape::{Activation, Shape};

/// Most positions that one [`Decoder::forward`] takes.
pub(crate) const CHUNK: usize = 128;

/// Weights, cache and buffers of one sequence.
pub(crate) struct Decoder {
    shape: Shape,
    device: Arc<Device>,
    memory_limit: Option<u64>,
    embedding: Embedding,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    head: Matrix,
    rope: RopeTable,
    rope_local: RopeTable,
    caches: Vec<KvCache>,
    scratch: Scratch,
}

/// The weights of one layer. Optional parts are those that only some architectures have.
struct Layer {
    attention_norm: Vec<f32>,
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    output: Linear,
    post_attention_norm: Option<Vec<f32>>,
    feed_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_feed_norm: Option<Vec<f32>>,
}

/// A product with an optional bias.
struct Linear {
    weight: Matrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    fn apply(&self, pool: &Pool, x: &[f32], m: usize, y: &mut [f32]) {
        self.weight.matmul(pool, x, m, y);
        if let Some(bias) = &self.bias {
            ops::add_assign(y, bias);
        }
    }
}

/// Buffers of a pass; each grows to the largest pass and stays.
#[derive(Default)]
struct Scratch {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    logits: Vec<f32>,
}

/// The first `len` numbers of a buffer, made longer where needed.
fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Decoder {
    /// Reads all weights of a checked file.
    pub fn load(
        gguf: &Gguf,
        shape: Shape,
        device: Arc<Device>,
        memory_limit: Option<u64>,
    ) -> Result<Self, LoadErrorKind> {
        let reader = Reader { gguf };
        reader.check_names(&shape)?;
        let (embedding, vocab) = reader.embedding(shape.width)?;
        // The head first: it is the largest tensor, and while it is repacked its pages
        // are resident twice.
        let head_name = match gguf.tensor("output.weight") {
            Some(_) => "output.weight",
            None => "token_embd.weight",
        };
        let head = reader.matrix(head_name, vocab, shape.width)?;
        let factors = reader.rope_factors(shape.rope_dim)?;
        let caches = (0..shape.layers)
            .map(|_| KvCache::new(shape.kv_heads, shape.head_dim, KvType::F32))
            .collect();
        Ok(Self {
            embedding,
            output_norm: reader.vector("output_norm.weight", shape.width)?,
            head,
            layers: reader.layers(&shape, device.pool())?,
            rope: RopeTable::scaled(
                shape.rope_dim,
                shape.rope_base as f32,
                (1.0 / shape.rope_divisor) as f32,
                &factors,
            ),
            rope_local: RopeTable::new(shape.rope_dim, shape.rope_base_local as f32),
            caches,
            scratch: Scratch::default(),
            shape,
            device,
            memory_limit,
        })
    }

    /// Tokens in the vocabulary.
    pub fn vocab(&self) -> usize {
        self.head.rows()
    }

    /// Bytes of the repacked weights.
    pub fn weight_bytes(&self) -> u64 {
        let layer = |l: &Layer| {
            [
                &l.query, &l.key, &l.value, &l.output, &l.gate, &l.up, &l.down,
            ]
            .iter()
            .map(|linear| linear.weight.size_bytes())
            .sum::<usize>()
        };
        let layers: usize = self.layers.iter().map(layer).sum();
        (layers + self.head.size_bytes()) as u64
    }

    /// Bytes of keys and values held, room included.
    pub fn cache_bytes(&self) -> u64 {
        self.caches.iter().map(|c| c.size_bytes() as u64).sum()
    }

    /// Gives the memory of keys and values back.
    pub fn clear(&mut self) {
        for cache in &mut self.caches {
            *cache = KvCache::new(self.shape.kv_heads, self.shape.head_dim, KvType::F32);
        }
    }

    /// Runs `tokens`, at most [`CHUNK`], at the positions from `start` on. What the cache
    /// held from `start` on is replaced. Afterwards [`logits`](Self::logits) serves any of
    /// these rows.
    pub fn forward(&mut self, tokens: &[u32], start: usize) -> Result<(), EngineError> {
        let m = tokens.len();
        debug_assert!(m <= CHUNK);
        self.make_room(start + m)?;
        let width = self.shape.width;
        let hidden = room(&mut self.scratch.hidden, m * width);
        for (token, row) in tokens.iter().zip(hidden.chunks_exact_mut(width)) {
            self.embedding
                .row(*token as usize, row)
                .map_err(|error| EngineError::Fault(error.to_string()))?;
        }
        if self.shape.embedding_scale != 1.0 {
            ops::scale(hidden, self.shape.embedding_scale);
        }
        for layer in 0..self.layers.len() {
            self.attend(layer, m, start);
            self.feed(layer, m);
        }
        Ok(())
    }

    /// Logits of rows of the last [`forward`](Self::forward), one after the other.
    pub fn logits(&mut self, rows: Range<usize>) -> &mut [f32] {
        let width = self.shape.width;
        let m = rows.len();
        let hidden = &self.scratch.hidden[rows.start * width..rows.end * width];
        let normed = room(&mut self.scratch.normed, m * width);
        ops::rms_norm(hidden, &self.output_norm, self.shape.epsilon, normed);
        let logits = room(&mut self.scratch.logits, m * self.head.rows());
        self.head.matmul(self.device.pool(), normed, m, logits);
        logits
    }

    /// `hidden += attention(norm(hidden))`.
    fn attend(&mut self, index: usize, m: usize, start: usize) {
        let shape = &self.shape;
        let layer = &self.layers[index];
        let pool = self.device.pool();
        let hidden = &mut self.scratch.hidden[..m * shape.width];
        let normed = room(&mut self.scratch.normed, m * shape.width);
        ops::rms_norm(hidden, &layer.attention_norm, shape.epsilon, normed);
        let query = room(&mut self.scratch.query, m * shape.query_width());
        let key = room(&mut self.scratch.key, m * shape.kv_width());
        let value = room(&mut self.scratch.value, m * shape.kv_width());
        layer.query.apply(pool, normed, m, query);
        layer.key.apply(pool, normed, m, key);
        layer.value.apply(pool, normed, m, value);
        if let Some(norm) = &layer.query_norm {
            ops::rms_norm_in_place(query, norm, shape.epsilon);
        }
        if let Some(norm) = &layer.key_norm {
            ops::rms_norm_in_place(key, norm, shape.epsilon);
        }
        let local = shape.is_local(index);
        let table = if local { &self.rope_local } else { &self.rope };
        for (rows, heads) in [(&mut *query, shape.heads), (&mut *key, shape.kv_heads)] {
            let row_width = heads * shape.head_dim;
            for (row, position) in rows.chunks_exact_mut(row_width).zip(start..) {
                rope(row, heads, shape.head_dim, position, table, shape.rope_kind);
            }
        }
        let cache = &mut self.caches[index];
        cache.write(start, key, value);
        let spec = AttentionSpec {
            heads: shape.heads,
            scale: shape.attention_scale,
            window: shape.window.filter(|_| local),
            softcap: None,
        };
        let attended = room(&mut self.scratch.attended, query.len());
        attention(pool, &spec, query, start, cache, attended);
        layer.output.apply(pool, attended, m, normed);
        if let Some(norm) = &layer.post_attention_norm {
            ops::rms_norm_in_place(normed, norm, shape.epsilon);
        }
        ops::add_assign(hidden, normed);
    }

    /// `hidden += feed_forward(norm(hidden))`.
    fn feed(&mut self, index: usize, m: usize) {
        let shape = &self.shape;
        let layer = &self.layers[index];
        let pool = self.device.pool();
        let hidden = &mut self.scratch.hidden[..m * shape.width];
        let normed = room(&mut self.scratch.normed, m * shape.width);
        ops::rms_norm(hidden, &layer.feed_norm, shape.epsilon, normed);
        let wide = layer.gate.weight.rows();
        let gate = room(&mut self.scratch.gate, m * wide);
        let up = room(&mut self.scratch.up, m * wide);
        layer.gate.apply(pool, normed, m, gate);
        layer.up.apply(pool, normed, m, up);
        let activation = match shape.activation {
            Activation::Silu => ops::silu_mul,
            Activation::GeluTanh => ops::gelu_tanh_mul,
        };
        by_parts(pool, gate, up, activation);
        layer.down.apply(pool, gate, m, normed);
        if let Some(norm) = &layer.post_feed_norm {
            ops::rms_norm_in_place(normed, norm, shape.epsilon);
        }
        ops::add_assign(hidden, normed);
    }

    /// Grows cache and RoPE tables, after a look at the memory there is.
    fn make_room(&mut self, positions: usize) -> Result<(), EngineError> {
        self.rope.reserve(positions);
        if self.shape.window.is_some() {
            self.rope_local.reserve(positions);
        }
        let held = self.cache_bytes();
        let wanted = self.shape.cache_bytes(positions);
        if wanted <= held {
            return Ok(());
        }
        // A cache doubles when it grows; an eighth more covers the copy of one layer.
        let grown = wanted.max(2 * held);
        let needed = grown - held + grown / 8;
        let limit = self
            .memory_limit
            .map(|limit| limit.saturating_sub(self.weight_bytes() + held));
        let free = [memory::available(), limit].into_iter().flatten().min();
        if let Some(available) = free.filter(|free| *free < needed) {
            return Err(EngineError::Memory {
                needed,
                available,
                tokens: positions as u32,
            });
        }
        for cache in &mut self.caches {
            cache.reserve(positions);
        }
        Ok(())
    }
}

/// `f(a, b)` over equal parts of both at once; short ones on this thread alone.
fn by_parts(pool: &Pool, a: &mut [f32], b: &[f32], f: fn(&mut [f32], &[f32])) {
    // Waking a thread costs a few microseconds, as long as some thousand values take.
    const PART: usize = 8192;
    if a.len() <= PART {
        return f(a, b);
    }
    let parts: Vec<_> = a
        .chunks_mut(PART)
        .zip(b.chunks(PART))
        .map(Mutex::new)
        .collect();
    pool.run(parts.len(), &|task| {
        let (a, b) = &mut *parts[task].lock();
        f(a, b);
    });
}

/// Takes tensors out of a checked file, with their shapes checked.
struct Reader<'a> {
    gguf: &'a Gguf,
}

impl Reader<'_> {
    fn view(&self, name: &str) -> Result<TensorView, LoadErrorKind> {
        self.gguf
            .tensor(name)
            .ok_or_else(|| LoadErrorKind::Malformed(format!("the tensor `{name}` is missing")))
    }

    /// A tensor of the wrong shape is damage, whatever its values.
    fn expect(&self, name: &str, view: &TensorView, wanted: &[usize]) -> Result<(), LoadErrorKind> {
        if view.dims == wanted {
            return Ok(());
        }
        Err(LoadErrorKind::Malformed(format!(
            "the tensor `{name}` has the shape {:?} and not {wanted:?}",
            view.dims
        )))
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadErrorKind> {
        let view = self.view(name)?;
        self.expect(name, &view, &[rows, cols])?;
        let bytes = self.gguf.bytes(&view)?;
        let matrix = Matrix::from_ggml(view.dtype, rows, cols, bytes).map_err(|source| {
            LoadErrorKind::Matrix {
                tensor: name.to_owned(),
                source,
            }
        })?;
        self.gguf.map.release(view.range);
        Ok(matrix)
    }

    /// The embedding table, left in the file, and its number of rows.
    fn embedding(&self, width: usize) -> Result<(Embedding, usize), LoadErrorKind> {
        let name = "token_embd.weight";
        let view = self.view(name)?;
        let &[vocab, _] = view.dims.as_slice() else {
            return Err(LoadErrorKind::Malformed(format!(
                "the tensor `{name}` is no table"
            )));
        };
        self.expect(name, &view, &[vocab, width])?;
        let map = Arc::clone(&self.gguf.map) as Arc<dyn AsRef<[u8]> + Send + Sync>;
        let table =
            Embedding::from_ggml(view.dtype, vocab, width, map, view.range).map_err(|source| {
                LoadErrorKind::Matrix {
                    tensor: name.to_owned(),
                    source,
                }
            })?;
        Ok((table, vocab))
    }

    /// A norm's weights or a bias, expanded.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadErrorKind> {
        let view = self.view(name)?;
        self.expect(name, &view, &[len])?;
        let mut values = vec![0.0; len];
        let map = Arc::clone(&self.gguf.map) as Arc<dyn AsRef<[u8]> + Send + Sync>;
        Embedding::from_ggml(view.dtype, 1, len, map, view.range)
            .and_then(|table| table.row(0, &mut values))
            .map_err(|source| LoadErrorKind::Matrix {
                tensor: name.to_owned(),
                source,
            })?;
        Ok(values)
    }

    fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, LoadErrorKind> {
        match self.gguf.tensor(name) {
            None => Ok(None),
            Some(_) => self.vector(name, len).map(Some),
        }
    }

    fn linear(&self, name: &str, rows: usize, cols: usize) -> Result<Linear, LoadErrorKind> {
        Ok(Linear {
            weight: self.matrix(&format!("{name}.weight"), rows, cols)?,
            bias: self.optional_vector(&format!("{name}.bias"), rows)?,
        })
    }

    /// Divisors of the RoPE frequencies, as llama 3.1 has them; none in most files.
    fn rope_factors(&self, rope_dim: usize) -> Result<Vec<f32>, LoadErrorKind> {
        let factors = self
            .optional_vector("rope_freqs.weight", rope_dim / 2)?
            .unwrap_or_default();
        match factors.iter().all(|f| f.is_finite() && *f > 0.0) {
            true => Ok(factors),
            false => Err(LoadErrorKind::Malformed(
                "a RoPE factor is not positive".to_owned(),
            )),
        }
    }

    /// All layers, repacked by as many threads as there are.
    fn layers(&self, shape: &Shape, pool: &Pool) -> Result<Vec<Layer>, LoadErrorKind> {
        let slots: Vec<OnceLock<Result<Layer, LoadErrorKind>>> =
            (0..shape.layers).map(|_| OnceLock::new()).collect();
        pool.run(slots.len(), &|task| {
            // Each task is called once, so the slot is empty.
            let _ = slots[task].set(self.layer(shape, task));
        });
        slots
            .into_iter()
            .map(|slot| {
                slot.into_inner().unwrap_or_else(|| {
                    Err(LoadErrorKind::Malformed("a layer was not read".to_owned()))
                })
            })
            .collect()
    }

    fn layer(&self, shape: &Shape, index: usize) -> Result<Layer, LoadErrorKind> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let norm = |part: &str, len: usize, wanted: bool| match wanted {
            true => self.vector(&name(part), len).map(Some),
            false => Ok(None),
        };
        let width = shape.width;
        let gate = self.view(&name("ffn_gate.weight"))?;
        let wide = gate.dims.first().copied().unwrap_or_default();
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm.weight"), width)?,
            query: self.linear(&name("attn_q"), shape.query_width(), width)?,
            key: self.linear(&name("attn_k"), shape.kv_width(), width)?,
            value: self.linear(&name("attn_v"), shape.kv_width(), width)?,
            query_norm: norm("attn_q_norm.weight", shape.head_dim, shape.qk_norms)?,
            key_norm: norm("attn_k_norm.weight", shape.head_dim, shape.qk_norms)?,
            output: self.linear(&name("attn_output"), width, shape.query_width())?,
            post_attention_norm: norm("post_attention_norm.weight", width, shape.post_norms)?,
            feed_norm: self.vector(&name("ffn_norm.weight"), width)?,
            gate: self.linear(&name("ffn_gate"), wide, width)?,
            up: self.linear(&name("ffn_up"), wide, width)?,
            down: self.linear(&name("ffn_down"), width, wide)?,
            post_feed_norm: norm("post_ffw_norm.weight", width, shape.post_norms)?,
        })
    }

    /// Refuses a file with a tensor that [`layer`](Self::layer) would not use: leaving a
    /// part of a network out gives fluent nonsense, which is worse than a refusal.
    fn check_names(&self, shape: &Shape) -> Result<(), LoadErrorKind> {
        // Checked here because each layer costs a slot before its tensors are missed.
        if shape.layers > self.gguf.content.tensor_infos.len() {
            return Err(LoadErrorKind::Malformed(format!(
                "it has {} layers and fewer tensors",
                shape.layers
            )));
        }
        let mut names: Vec<&String> = self.gguf.content.tensor_infos.keys().collect();
        names.sort();
        match names.into_iter().find(|name| !is_used(name, shape)) {
            None => Ok(()),
            Some(name) => Err(LoadErrorKind::Feature(format!(
                "the tensor `{name}`, which `{}` models do not have here",
                shape.architecture
            ))),
        }
    }
}

/// True for the names of tensors that the decoder reads.
fn is_used(name: &str, shape: &Shape) -> bool {
    if let Some(rest) = name.strip_prefix("blk.") {
        let Some((index, part)) = rest.split_once('.') else {
            return false;
        };
        if !index.parse::<usize>().is_ok_and(|i| i < shape.layers) {
            return false;
        }
        return match part {
            "attn_norm.weight" | "ffn_norm.weight" => true,
            "attn_q_norm.weight" | "attn_k_norm.weight" => shape.qk_norms,
            "post_attention_norm.weight" | "post_ffw_norm.weight" => shape.post_norms,
            // Old converters wrote the RoPE frequencies, which follow from the base.
            "attn_rot_embd.weight" | "attn_rot_embd" => true,
            _ => part
                .strip_suffix(".weight")
                .or(part.strip_suffix(".bias"))
                .is_some_and(|linear| {
                    [
                        "attn_q",
                        "attn_k",
                        "attn_v",
                        "attn_output",
                        "ffn_gate",
                        "ffn_up",
                        "ffn_down",
                    ]
                    .contains(&linear)
                }),
        };
    }
    matches!(
        name,
        "token_embd.weight" | "output.weight" | "output_norm.weight" | "rope_freqs.weight"
    )
}
