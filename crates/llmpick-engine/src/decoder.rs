//! The decoder: tokens in, hidden states and logits out, keys and values kept.
//!
//! One pass serves all architectures; [`Shape`] and the presence of optional tensors decide
//! what it does. Everything between the matrix products works on plain rows of `f32` in
//! buffers that live as long as the model. No row's result depends on how many rows run
//! with it, so a prompt may be cut into pieces anywhere.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use llmpick_kernels::{
    AttentionSpec, Embedding, KernelError, KvCache, KvType, Matrix, Packer, Pool, RopeTable,
    Rounding, attention, by_rows, matmul_ready, ops, rope,
};

use crate::device::Device;
use crate::error::{EngineError, LoadErrorKind};
use crate::file::{ModelFile, TensorView};
use crate::memory;
use crate::shape::{Activation, RopeFactors, RopeScaling, Shape};

/// Most positions that one [`Decoder::forward`] takes.
pub(crate) const CHUNK: usize = 256;

/// Rows of the embedding table, 64 kB of the file or more with each, that may be in memory.
const ROWS_KEPT: usize = 16;

/// What a decoder is told beside the file.
pub(crate) struct DecoderOptions {
    /// Positions it will run, at most.
    pub context: usize,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// How finely quantised weights meet what is multiplied with them.
    pub rounding: Rounding,
    /// Most bytes of weights and cache.
    pub memory_limit: Option<u64>,
}

/// Weights, cache and buffers of one sequence.
pub(crate) struct Decoder {
    shape: Shape,
    device: Arc<Device>,
    memory_limit: Option<u64>,
    embedding: Embedding,
    /// Rows of it that were read since its memory was given back.
    rows_read: usize,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    head: Matrix,
    rope: RopeTable,
    /// Of layers with a window, where they are turned otherwise.
    rope_local: Option<RopeTable>,
    kv_type: KvType,
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
        self.add_bias(y);
    }

    /// Adds the bias, if there is one, to rows of the product.
    fn add_bias(&self, y: &mut [f32]) {
        if let Some(bias) = &self.bias {
            ops::add_assign(y, bias);
        }
    }
}

/// Buffers of a pass; each grows to the largest pass and stays.
#[derive(Default)]
struct Scratch {
    hidden: Vec<f32>,
    /// What goes into a product; after a layer's part, what it adds to `hidden`.
    work: Vec<f32>,
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
        file: &ModelFile,
        shape: Shape,
        device: Arc<Device>,
        options: &DecoderOptions,
    ) -> Result<Self, LoadErrorKind> {
        // Of the header nothing is read again.
        file.release_all();
        let reader = Reader::new(file, options.rounding);
        reader.check_names(&shape)?;
        let (embedding, vocab) = reader.embedding(shape.width)?;
        let head_name = match file.tensor("output.weight") {
            Some(_) => "output.weight",
            None => "token_embd.weight",
        };
        let head = reader.matrix(head_name, vocab, shape.width)?;
        let factors = reader.rope_factors(&shape)?;
        let mut decoder = Self {
            embedding,
            output_norm: reader.vector("output_norm.weight", shape.width)?,
            head,
            layers: (0..shape.layers)
                .map(|index| reader.layer(&shape, index))
                .collect::<Result<_, _>>()?,
            rope: shape.rope_table(&factors, options.context),
            rope_local: shape
                .rope_base_local
                .filter(|_| shape.window.is_some())
                .map(|base| RopeTable::new(shape.rope_dim, base as f32)),
            kv_type: options.kv_type,
            caches: Vec::new(),
            scratch: Scratch::default(),
            shape,
            device,
            memory_limit: options.memory_limit,
            rows_read: 0,
        };
        reader.pack(decoder.device.pool())?;
        decoder.clear();
        Ok(decoder)
    }

    /// Tokens in the vocabulary.
    pub fn vocab(&self) -> usize {
        self.head.rows()
    }

    /// Bytes of the repacked weights.
    pub fn weight_bytes(&self) -> u64 {
        self.packed().iter().map(|part| part.len() as u64).sum()
    }

    /// The repacked weights, in the order in which a token reads them.
    pub fn packed(&self) -> Vec<&[u8]> {
        fn of(layer: &Layer) -> [&[u8]; 7] {
            let Layer {
                query,
                key,
                value,
                output,
                gate,
                up,
                down,
                ..
            } = layer;
            [query, key, value, output, gate, up, down].map(|linear| linear.weight.packed())
        }
        let layers = self.layers.iter().flat_map(of);
        layers.chain([self.head.packed()]).collect()
    }

    /// Bytes of keys and values held, room included.
    pub fn cache_bytes(&self) -> u64 {
        self.caches.iter().map(|c| c.size_bytes() as u64).sum()
    }

    /// Gives the memory of keys and values back.
    pub fn clear(&mut self) {
        let Shape {
            kv_heads, head_dim, ..
        } = self.shape;
        let cache = |layer| match self.shape.kept_of(layer) {
            Some(kept) => KvCache::ring(kv_heads, head_dim, self.kv_type, kept),
            None => KvCache::new(kv_heads, head_dim, self.kv_type),
        };
        self.caches = (0..self.shape.layers).map(cache).collect();
    }

    /// Positions for which there are keys and values.
    pub fn positions(&self) -> usize {
        self.caches.iter().map(KvCache::len).min().unwrap_or(0)
    }

    /// Whether the sequence can go on from position `at`: layers with a window keep only
    /// the last positions, and may have dropped what those from `at` on see.
    pub fn resumes_at(&self, at: usize) -> bool {
        let layers = self.caches.iter().enumerate();
        layers
            .into_iter()
            .all(|(layer, cache)| cache.resumes_at(at, self.shape.window_of(layer)))
    }

    /// Runs `tokens`, at most [`CHUNK`], at the positions from `start` on. What the cache
    /// held from `start` on is replaced. Afterwards [`logits`](Self::logits) serves the
    /// rows from `wanted` on.
    pub fn forward(
        &mut self,
        tokens: &[u32],
        start: usize,
        wanted: usize,
    ) -> Result<(), EngineError> {
        let m = tokens.len();
        debug_assert!(m <= CHUNK && wanted <= m);
        self.make_room(start + m)?;
        let width = self.shape.width;
        let hidden = room(&mut self.scratch.hidden, m * width);
        for (token, row) in tokens.iter().zip(hidden.chunks_exact_mut(width)) {
            self.embedding
                .row(*token as usize, row)
                .map_err(|error| EngineError::Fault(format!("token {token}: {error}")))?;
            self.rows_read += 1;
            if self.rows_read == ROWS_KEPT {
                self.embedding.release();
                self.rows_read = 0;
            }
        }
        if self.shape.embedding_scale != 1.0 {
            ops::scale(hidden, self.shape.embedding_scale);
        }
        let last = self.layers.len() - 1;
        for layer in 0..last {
            self.attend(layer, m, start, 0);
            self.feed(layer, 0..m);
        }
        // Of the last layer nobody reads more than the rows that are wanted.
        self.attend(last, m, start, wanted);
        if wanted < m {
            self.feed(last, wanted..m);
            self.finish(wanted..m);
        }
        Ok(())
    }

    /// Logits of rows of the last [`forward`](Self::forward), one after the other.
    pub fn logits(&mut self, rows: Range<usize>) -> &mut [f32] {
        let (pool, shape) = (self.device.pool(), &self.shape);
        let m = rows.len();
        let hidden = &mut self.scratch.hidden[rows.start * shape.width..rows.end * shape.width];
        let work = room(&mut self.scratch.work, m * shape.width);
        let logits = room(&mut self.scratch.logits, m * self.head.rows());
        let ready = |work: &mut [f32], hidden: &mut [f32]| {
            ops::rms_norm(hidden, &self.output_norm, shape.epsilon, work);
        };
        let products = &mut [(&self.head, &mut *logits)];
        matmul_ready(pool, work, hidden, m, &ready, products);
        if let Some(cap) = shape.logit_cap {
            // A vocabulary of hyperbolic tangents is worth sharing.
            let count = logits.len();
            by_rows(pool, 8192, count, logits, &mut [], &|_, part, _| {
                ops::softcap(part, cap);
            });
        }
        logits
    }

    /// `work = attention(norm(hidden))`, after what the layer before left in `work` is
    /// added to `hidden`. Keys and values of all `m` rows are kept; the rest is done for
    /// the rows from `wanted` on.
    fn attend(&mut self, index: usize, m: usize, start: usize, wanted: usize) {
        let shape = &self.shape;
        let layer = &self.layers[index];
        let pool = self.device.pool();
        let hidden = &mut self.scratch.hidden[..m * shape.width];
        let work = room(&mut self.scratch.work, m * shape.width);
        let query = room(&mut self.scratch.query, m * shape.query_width());
        let key = room(&mut self.scratch.key, m * shape.kv_width());
        let value = room(&mut self.scratch.value, m * shape.kv_width());
        let before = index.checked_sub(1).map(|i| &self.layers[i]);
        let ready = |work: &mut [f32], hidden: &mut [f32]| {
            if let Some(before) = before {
                add_part(
                    hidden,
                    work,
                    before.post_feed_norm.as_deref(),
                    shape.epsilon,
                );
            }
            ops::rms_norm(hidden, &layer.attention_norm, shape.epsilon, work);
        };
        let products = &mut [
            (&layer.query.weight, &mut *query),
            (&layer.key.weight, &mut *key),
            (&layer.value.weight, &mut *value),
        ];
        matmul_ready(pool, work, hidden, m, &ready, products);
        layer.value.add_bias(value);
        let window = shape.window_of(index);
        let table = match &self.rope_local {
            Some(local) if window.is_some() => local,
            _ => &self.rope,
        };
        let table = Some(table).filter(|_| shape.is_turned(index));
        let turn = |first: usize, key: &mut [f32], query: &mut [f32]| {
            layer.place(
                query,
                &layer.query,
                &layer.query_norm,
                shape,
                table,
                start + first,
            );
            layer.place(
                key,
                &layer.key,
                &layer.key_norm,
                shape,
                table,
                start + first,
            );
        };
        let cache = &mut self.caches[index];
        cache.write_ready(pool, start, key, value, query, &turn);
        if wanted == m {
            return;
        }
        let rows = m - wanted;
        let spec = AttentionSpec {
            heads: shape.heads,
            scale: shape.attention_scale,
            window,
            softcap: shape.attention_cap,
        };
        let query = &query[wanted * shape.query_width()..];
        let attended = room(&mut self.scratch.attended, query.len());
        attention(pool, &spec, query, start + wanted, cache, attended);
        let work = &mut work[..rows * shape.width];
        layer.output.apply(pool, attended, rows, work);
    }

    /// `work = feed_forward(norm(hidden))` for some rows of `hidden`, after what attention
    /// left in `work` is added to them.
    fn feed(&mut self, index: usize, rows: Range<usize>) {
        let shape = &self.shape;
        let layer = &self.layers[index];
        let pool = self.device.pool();
        let m = rows.len();
        let hidden = &mut self.scratch.hidden[rows.start * shape.width..rows.end * shape.width];
        let work = room(&mut self.scratch.work, m * shape.width);
        let wide = layer.gate.weight.rows();
        let gate = room(&mut self.scratch.gate, m * wide);
        let up = room(&mut self.scratch.up, m * wide);
        let ready = |work: &mut [f32], hidden: &mut [f32]| {
            add_part(
                hidden,
                work,
                layer.post_attention_norm.as_deref(),
                shape.epsilon,
            );
            ops::rms_norm(hidden, &layer.feed_norm, shape.epsilon, work);
        };
        let products = &mut [
            (&layer.gate.weight, &mut *gate),
            (&layer.up.weight, &mut *up),
        ];
        matmul_ready(pool, work, hidden, m, &ready, products);
        let activation = match shape.activation {
            Activation::Silu => ops::silu_mul,
            Activation::GeluTanh => ops::gelu_tanh_mul,
        };
        let bend = |gate: &mut [f32], up: &mut [f32]| {
            layer.gate.add_bias(gate);
            layer.up.add_bias(up);
            activation(gate, up);
        };
        let products = &mut [(&layer.down.weight, &mut *work)];
        matmul_ready(pool, gate, up, m, &bend, products);
        layer.down.add_bias(work);
    }

    /// Adds what the last layer left in `work` to some rows of `hidden`.
    fn finish(&mut self, rows: Range<usize>) {
        let shape = &self.shape;
        let norm = self.layers.last().and_then(|l| l.post_feed_norm.as_deref());
        let hidden = &mut self.scratch.hidden[rows.start * shape.width..rows.end * shape.width];
        let work = room(&mut self.scratch.work, hidden.len());
        by_rows(
            self.device.pool(),
            16,
            rows.len(),
            hidden,
            work,
            &|_, hidden, work| {
                add_part(hidden, work, norm, shape.epsilon);
            },
        );
    }

    /// Grows cache and RoPE tables, after a look at the memory there is.
    fn make_room(&mut self, positions: usize) -> Result<(), EngineError> {
        self.rope.reserve(positions);
        if let Some(local) = &mut self.rope_local {
            local.reserve(positions);
        }
        let held = self.cache_bytes();
        let bytes = |cache: &KvCache| cache.bytes_for(positions) as u64;
        let grown: u64 = self.caches.iter().map(bytes).sum();
        if grown <= held {
            return Ok(());
        }
        // One layer is copied at a time, and its old room given back.
        let copied = self.caches.iter().map(KvCache::size_bytes).max();
        let needed = grown - held + copied.unwrap_or(0) as u64;
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

impl Layer {
    /// Makes rows of queries or keys ready for attention: bias, norm of each head, turn.
    fn place(
        &self,
        rows: &mut [f32],
        linear: &Linear,
        norm: &Option<Vec<f32>>,
        shape: &Shape,
        table: Option<&RopeTable>,
        first: usize,
    ) {
        linear.add_bias(rows);
        if let Some(norm) = norm {
            ops::rms_norm_in_place(rows, norm, shape.epsilon);
        }
        let Some(table) = table else { return };
        let width = linear.weight.rows();
        let heads = width / shape.head_dim;
        for (row, position) in rows.chunks_exact_mut(width).zip(first..) {
            rope(row, heads, shape.head_dim, position, table, shape.rope_kind);
        }
    }
}

/// `hidden += part`, the part normed first where the architecture does so.
fn add_part(hidden: &mut [f32], part: &mut [f32], norm: Option<&[f32]>, epsilon: f32) {
    if let Some(norm) = norm {
        ops::rms_norm_in_place(part, norm, epsilon);
    }
    ops::add_assign(hidden, part);
}

/// Takes tensors out of a checked file, with their shapes checked. Matrices are only
/// planned until [`pack`](Reader::pack).
pub(crate) struct Reader<'a> {
    pub file: &'a ModelFile,
    packer: RefCell<Packer<'a>>,
    rounding: Rounding,
    /// Of the tensors in the packer.
    names: RefCell<Vec<String>>,
}

impl<'a> Reader<'a> {
    /// Over a checked file; no matrices yet.
    pub fn new(file: &'a ModelFile, rounding: Rounding) -> Self {
        Reader {
            file,
            rounding,
            packer: RefCell::default(),
            names: RefCell::default(),
        }
    }

    /// Fills the matrices that were planned, by as many threads as there are.
    fn pack(self, pool: &Pool) -> Result<(), LoadErrorKind> {
        let names = self.names.take();
        self.packer
            .take()
            .run(pool, &|bytes| self.file.release_bytes(bytes))
            .map_err(|error| {
                let name = names.get(error.tensor).map_or("", String::as_str);
                self.refused(name, error.source)
            })?;
        self.file.release_all();
        Ok(())
    }

    /// Where a tensor lies that must be there.
    pub fn view(&self, name: &str) -> Result<&TensorView, LoadErrorKind> {
        self.file
            .tensor(name)
            .ok_or_else(|| LoadErrorKind::Malformed(format!("the tensor `{name}` is missing")))
    }

    /// A tensor of the wrong shape is damage, whatever its values.
    pub fn expect(
        &self,
        name: &str,
        view: &TensorView,
        wanted: &[usize],
    ) -> Result<(), LoadErrorKind> {
        if view.dims == wanted {
            return Ok(());
        }
        Err(LoadErrorKind::Malformed(format!(
            "the tensor `{name}` has the shape {:?} and not {wanted:?}",
            view.dims
        )))
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadErrorKind> {
        let [matrix] = self.matrices(name, [rows], cols)?;
        Ok(matrix)
    }

    /// A tensor taken apart into matrices of so many rows each.
    fn matrices<const N: usize>(
        &self,
        name: &str,
        rows: [usize; N],
        cols: usize,
    ) -> Result<[Matrix; N], LoadErrorKind> {
        let view = self.view(name)?;
        let all: usize = rows.iter().sum();
        self.expect(name, view, &[all, cols])?;
        let mut bytes = self.file.bytes(view)?;
        let row_bytes = bytes.len() / all.max(1);
        let mut parts = Vec::with_capacity(N);
        for rows in rows {
            let (part, rest) = bytes.split_at(rows * row_bytes);
            bytes = rest;
            let matrix = self
                .packer
                .borrow_mut()
                .add(view.dtype, rows, cols, part)
                .map_err(|source| self.refused(name, source))?;
            self.names.borrow_mut().push(name.to_owned());
            parts.push(matrix.rounding(self.rounding));
        }
        // As many parts as rows were asked for.
        parts
            .try_into()
            .map_err(|_| LoadErrorKind::Malformed(format!("the tensor `{name}` has no parts")))
    }

    fn refused(&self, name: &str, source: KernelError) -> LoadErrorKind {
        LoadErrorKind::tensor(self.file.label_of(name), source)
    }

    /// The embedding table, left in the file, and its number of rows.
    pub fn embedding(&self, width: usize) -> Result<(Embedding, usize), LoadErrorKind> {
        let name = "token_embd.weight";
        let view = self.view(name)?;
        let &[vocab, _] = view.dims.as_slice() else {
            return Err(LoadErrorKind::Malformed(format!(
                "the tensor `{name}` is no table"
            )));
        };
        self.expect(name, view, &[vocab, width])?;
        let map = self.file.part(view);
        let table = Embedding::from_ggml(view.dtype, vocab, width, map, view.range.clone())
            .map_err(|source| self.refused(name, source))?;
        Ok((table, vocab))
    }

    /// A norm's weights or a bias, expanded.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadErrorKind> {
        let view = self.view(name)?;
        self.expect(name, view, &[len])?;
        let mut values = vec![0.0; len];
        let map = self.file.part(view);
        Embedding::from_ggml(view.dtype, 1, len, map, view.range.clone())
            .and_then(|table| table.row(0, &mut values))
            .map_err(|source| self.refused(name, source))?;
        Ok(values)
    }

    fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, LoadErrorKind> {
        match self.file.tensor(name) {
            None => Ok(None),
            Some(_) => self.vector(name, len).map(Some),
        }
    }

    /// Products that the file has as one.
    fn linears<const N: usize>(
        &self,
        name: &str,
        rows: [usize; N],
        cols: usize,
    ) -> Result<[Linear; N], LoadErrorKind> {
        let bias = self.optional_vector(&format!("{name}.bias"), rows.iter().sum())?;
        let mut at = 0;
        let weights = self.matrices(&format!("{name}.weight"), rows, cols)?;
        Ok(weights.map(|weight| {
            let first = at;
            at += weight.rows();
            Linear {
                bias: bias.as_ref().map(|bias| bias[first..at].to_vec()),
                weight,
            }
        }))
    }

    fn linear(&self, name: &str, rows: usize, cols: usize) -> Result<Linear, LoadErrorKind> {
        Ok(Linear {
            weight: self.matrix(&format!("{name}.weight"), rows, cols)?,
            bias: self.optional_vector(&format!("{name}.bias"), rows)?,
        })
    }

    /// Divisors of the RoPE angles, as llama 3.1 and phi3 have them; none in most files.
    pub fn rope_factors(&self, shape: &Shape) -> Result<RopeFactors, LoadErrorKind> {
        let read = |name: &str| {
            let factors = self.optional_vector(name, shape.rope_dim / 2)?;
            match factors.iter().flatten().all(|f| f.is_finite() && *f > 0.0) {
                true => Ok(factors),
                false => Err(LoadErrorKind::Malformed(
                    "a RoPE factor is not positive".to_owned(),
                )),
            }
        };
        let factors = RopeFactors {
            all: read("rope_freqs.weight")?,
            short: read("rope_factors_short.weight")?,
            long: read("rope_factors_long.weight")?,
        };
        if factors.short.is_some() != factors.long.is_some() {
            return Err(LoadErrorKind::Malformed(
                "it has RoPE factors for short or long contexts and not for both".to_owned(),
            ));
        }
        if factors.short.is_some() && !matches!(shape.rope_scaling, RopeScaling::Long { .. }) {
            return Err(LoadErrorKind::Feature(
                "RoPE factors for short and long contexts beside another scaling".to_owned(),
            ));
        }
        Ok(factors)
    }

    fn layer(&self, shape: &Shape, index: usize) -> Result<Layer, LoadErrorKind> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let norm = |part: &str, len: usize, wanted: bool| match wanted {
            true => self.vector(&name(part), len).map(Some),
            false => Ok(None),
        };
        let width = shape.width;
        let down = self.view(&name("ffn_down.weight"))?;
        let wide = shape
            .feed_width
            .or(down.dims.last().copied())
            .unwrap_or_default();
        let (q, kv) = (shape.query_width(), shape.kv_width());
        let [query, key, value] = match shape.fused {
            true => self.linears(&name("attn_qkv"), [q, kv, kv], width)?,
            false => [
                self.linear(&name("attn_q"), q, width)?,
                self.linear(&name("attn_k"), kv, width)?,
                self.linear(&name("attn_v"), kv, width)?,
            ],
        };
        let [gate, up] = match shape.fused {
            true => self.linears(&name("ffn_up"), [wide, wide], width)?,
            false => [
                self.linear(&name("ffn_gate"), wide, width)?,
                self.linear(&name("ffn_up"), wide, width)?,
            ],
        };
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm.weight"), width)?,
            query,
            key,
            value,
            query_norm: norm("attn_q_norm.weight", shape.head_dim, shape.qk_norms)?,
            key_norm: norm("attn_k_norm.weight", shape.head_dim, shape.qk_norms)?,
            output: self.linear(&name("attn_output"), width, shape.query_width())?,
            post_attention_norm: norm("post_attention_norm.weight", width, shape.post_norms)?,
            feed_norm: self.vector(&name("ffn_norm.weight"), width)?,
            gate,
            up,
            down: self.linear(&name("ffn_down"), width, wide)?,
            post_feed_norm: norm("post_ffw_norm.weight", width, shape.post_norms)?,
        })
    }

    /// Refuses a file with a tensor that [`layer`](Self::layer) would not use: leaving a
    /// part of a network out gives fluent nonsense, which is worse than a refusal.
    pub fn check_names(&self, shape: &Shape) -> Result<(), LoadErrorKind> {
        // Checked here because each layer costs a slot before its tensors are missed.
        if shape.layers > self.file.tensors().len() {
            return Err(LoadErrorKind::Malformed(format!(
                "it has {} layers and fewer tensors",
                shape.layers
            )));
        }
        let mut names: Vec<&String> = self.file.tensors().map(|(name, _)| name).collect();
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
                .is_some_and(|linear| match linear {
                    "attn_output" | "ffn_up" | "ffn_down" => true,
                    "attn_q" | "attn_k" | "attn_v" | "ffn_gate" => !shape.fused,
                    "attn_qkv" => shape.fused,
                    _ => false,
                }),
        };
    }
    matches!(
        name,
        "token_embd.weight"
            | "output.weight"
            | "output_norm.weight"
            | "rope_freqs.weight"
            | "rope_factors_short.weight"
            | "rope_factors_long.weight"
    )
}
