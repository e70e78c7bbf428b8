//! The decoder on another device than the processor: the same network as in `decoder.rs`,
//! in tensors of candle that live there.
//!
//! candle's own models of these families are not used for it: they stop at 4,096 positions,
//! leave RoPE factors and windows out, and its quantised gemma3 bends the gate with another
//! function. What a file means is said once, in [`Shape`]. Numbers are `f32` throughout;
//! weights stay quantised where candle multiplies them so, and are expanded otherwise.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{ops, rotary_emb};
use llmpick_kernels::{Embedding, RopeKind, RopeTable, Rounding};

use crate::decoder::Reader;
use crate::error::{EngineError, LoadErrorKind};
use crate::file::ModelFile;
use crate::shape::{Activation, Shape};
use crate::stock::guarded;

/// Positions by which the room for keys and values grows.
const STEP: usize = 512;

/// Weights, cache and the last hidden states of one sequence, on a device.
pub(crate) struct DeviceDecoder {
    shape: Shape,
    device: Device,
    /// Left in the file; rows are sent over as tokens come.
    embedding: Embedding,
    layers: Vec<Layer>,
    output_norm: Tensor,
    head: QMatMul,
    vocab: usize,
    rope: RopeTable,
    rope_local: Option<RopeTable>,
    caches: Vec<Cache>,
    /// Positions with keys and values; 0 after a failure.
    positions: usize,
    /// Normed states of the rows that are wanted, and which was the first.
    hidden: Option<(usize, Tensor)>,
    logits: Vec<f32>,
    weight_bytes: u64,
}

struct Layer {
    attention_norm: Tensor,
    /// Query, key and value: one product or three.
    qkv: Vec<Linear>,
    query_norm: Option<Tensor>,
    key_norm: Option<Tensor>,
    output: Linear,
    post_attention_norm: Option<Tensor>,
    feed_norm: Tensor,
    /// Gate and up: one product or two.
    gate_up: Vec<Linear>,
    down: Linear,
    post_feed_norm: Option<Tensor>,
}

struct Linear {
    weight: QMatMul,
    bias: Option<Tensor>,
}

impl Linear {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Keys and values of a layer: key heads × room × values of a head.
#[derive(Default)]
struct Cache(Option<(Tensor, Tensor)>);

/// What all layers of a pass share.
struct Pass {
    start: usize,
    count: usize,
    /// Cosines and sines, for all layers and for those with a window.
    turns: (Tensor, Tensor),
    local_turns: Option<(Tensor, Tensor)>,
    /// What is added to the scores, by the window of the layer.
    masks: HashMap<Option<usize>, Option<Tensor>>,
}

impl DeviceDecoder {
    /// Reads all weights of a checked file to `device`, for so many positions at most.
    pub fn load(
        file: &ModelFile,
        shape: Shape,
        device: Device,
        context: usize,
    ) -> std::result::Result<Self, LoadErrorKind> {
        let reader = Reader::new(file, Rounding::default());
        reader.check_names(&shape)?;
        let (embedding, vocab) = reader.embedding(shape.width)?;
        let factors = reader.rope_factors(&shape)?;
        let head = match file.tensor("output.weight") {
            Some(_) => "output.weight",
            None => "token_embd.weight",
        };
        let there = There {
            reader: &reader,
            file,
            device: &device,
        };
        Ok(DeviceDecoder {
            embedding,
            output_norm: there.vector("output_norm.weight", shape.width)?,
            head: there.matrix(head, vocab, shape.width)?,
            vocab,
            layers: (0..shape.layers)
                .map(|layer| there.layer(&shape, layer))
                .collect::<std::result::Result<_, _>>()?,
            rope: shape.rope_table(&factors, context),
            rope_local: shape
                .rope_base_local
                .filter(|_| shape.window.is_some())
                .map(|base| RopeTable::new(shape.rope_dim, base as f32)),
            caches: (0..shape.layers).map(|_| Cache::default()).collect(),
            positions: 0,
            hidden: None,
            logits: Vec::new(),
            weight_bytes: file.size_bytes(),
            shape,
            device,
        })
    }

    /// Tokens in the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Bytes of the weights, as the file has them.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes of keys and values, room included.
    pub fn cache_bytes(&self) -> u64 {
        let bytes = |cache: &Cache| cache.0.as_ref().map_or(0, |(key, _)| 8 * key.elem_count());
        self.caches.iter().map(bytes).sum::<usize>() as u64
    }

    /// Positions for which there are keys and values.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Gives the memory of keys and values back.
    pub fn clear(&mut self) {
        self.positions = 0;
        self.hidden = None;
        self.caches.fill_with(Cache::default);
    }

    /// Whether the sequence can go on from position `at`. Every layer keeps every position.
    pub fn resumes_at(&self, at: usize) -> bool {
        at <= self.positions
    }

    /// Runs `tokens` at the positions from `start` on, as the other decoder does.
    pub fn forward(
        &mut self,
        tokens: &[u32],
        start: usize,
        wanted: usize,
    ) -> std::result::Result<(), EngineError> {
        let width = self.shape.width;
        let mut rows = vec![0.0; tokens.len() * width];
        for (token, row) in tokens.iter().zip(rows.chunks_exact_mut(width)) {
            self.embedding
                .row(*token as usize, row)
                .map_err(|error| EngineError::Fault(format!("token {token}: {error}")))?;
            for x in row.iter_mut() {
                *x *= self.shape.embedding_scale;
            }
        }
        // Nobody knows what a failure leaves behind.
        self.positions = 0;
        self.hidden = None;
        let hidden = guarded(|| self.run(rows, start, tokens.len(), wanted));
        self.hidden = hidden.map_err(EngineError::Fault)?.map(|h| (wanted, h));
        self.positions = start + tokens.len();
        Ok(())
    }

    /// Logits of rows of the last [`forward`](Self::forward), one after the other.
    pub fn logits(&mut self, rows: Range<usize>) -> std::result::Result<&mut [f32], EngineError> {
        let Some((first, hidden)) = &self.hidden else {
            return Err(EngineError::Fault("no logits were asked for".to_owned()));
        };
        let logits = guarded(|| {
            let hidden = hidden.narrow(0, rows.start - first, rows.len())?;
            let logits = self.head.forward(&hidden.contiguous()?)?;
            capped(logits, self.shape.logit_cap)?
                .flatten_all()?
                .to_vec1()
        });
        self.logits = logits.map_err(EngineError::Fault)?;
        Ok(&mut self.logits)
    }

    /// The normed states of the rows from `wanted` on.
    fn run(
        &mut self,
        rows: Vec<f32>,
        start: usize,
        count: usize,
        wanted: usize,
    ) -> Result<Option<Tensor>> {
        let mut hidden = Tensor::from_vec(rows, (count, self.shape.width), &self.device)?;
        let pass = self.pass(start, count)?;
        for index in 0..self.layers.len() {
            let part = self.attend(index, &hidden, &pass)?;
            hidden = (hidden + part)?;
            let part = self.feed(index, &hidden)?;
            hidden = (hidden + part)?;
        }
        if wanted == count {
            return Ok(None);
        }
        let hidden = hidden.narrow(0, wanted, count - wanted)?.contiguous()?;
        self.norm(&hidden, &self.output_norm).map(Some)
    }

    fn pass(&self, start: usize, count: usize) -> Result<Pass> {
        let turns = |table: &RopeTable| -> Result<(Tensor, Tensor)> {
            let (cos, sin) = table.cos_sin(start..start + count);
            let pairs = cos.len() / count;
            Ok((
                Tensor::from_vec(cos, (count, pairs), &self.device)?,
                Tensor::from_vec(sin, (count, pairs), &self.device)?,
            ))
        };
        let mut masks = HashMap::new();
        for layer in 0..self.layers.len() {
            let window = self.shape.window_of(layer);
            if let Entry::Vacant(slot) = masks.entry(window) {
                slot.insert(self.mask(start, count, window)?);
            }
        }
        Ok(Pass {
            start,
            count,
            turns: turns(&self.rope)?,
            local_turns: self.rope_local.as_ref().map(turns).transpose()?,
            masks,
        })
    }

    /// Minus infinity where a row does not see a position, from [`first_seen`] on; none
    /// where a single row sees them all.
    fn mask(&self, start: usize, count: usize, window: Option<usize>) -> Result<Option<Tensor>> {
        if count == 1 {
            return Ok(None);
        }
        let first = first_seen(start, window);
        let end = start + count;
        let mut mask = Vec::with_capacity(count * (end - first));
        for row in start..end {
            let seen = first_seen(row, window)..row + 1;
            mask.extend((first..end).map(|at| match seen.contains(&at) {
                true => 0.0,
                false => f32::NEG_INFINITY,
            }));
        }
        Tensor::from_vec(mask, (1, count, end - first), &self.device).map(Some)
    }

    fn attend(&mut self, index: usize, hidden: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (shape, layer) = (&self.shape, &self.layers[index]);
        let (heads, kv_heads, dim) = (shape.heads, shape.kv_heads, shape.head_dim);
        let count = pass.count;
        let x = self.norm(hidden, &layer.attention_norm)?;
        let widths = [heads * dim, kv_heads * dim, kv_heads * dim];
        let [query, key, value] = split(&layer.qkv, &x, widths)?;
        let window = shape.window_of(index);
        let turns = match &pass.local_turns {
            Some(local) if window.is_some() => local,
            _ => &pass.turns,
        };
        let turns = Some(turns).filter(|_| shape.is_turned(index));
        let query = self.place(query, heads, layer.query_norm.as_ref(), turns)?;
        let key = self.place(key, kv_heads, layer.key_norm.as_ref(), turns)?;
        let value = self.place(value, kv_heads, None, None)?;
        let (keys, values) = self.caches[index].write(pass.start, &key, &value)?;
        // Query heads that share a key head lie one behind the other, so they are more
        // rows of one product, and keys are not copied.
        let first = first_seen(pass.start, window);
        let seen = pass.start + count - first;
        let keys = keys.narrow(1, first, seen)?;
        let values = values.narrow(1, first, seen)?;
        let shared = heads / kv_heads * count;
        let scale = f64::from(self.shape.attention_scale);
        let query = (query.reshape((kv_heads, shared, dim))? * scale)?;
        let scores = query.matmul(&keys.transpose(1, 2)?)?;
        let scores = capped(scores, self.shape.attention_cap)?.reshape((heads, count, seen))?;
        let scores = match pass.masks.get(&window) {
            Some(Some(mask)) => scores.broadcast_add(mask)?,
            _ => scores,
        };
        let weights = ops::softmax_last_dim(&scores)?.reshape((kv_heads, shared, seen))?;
        let attended = weights.matmul(&values)?;
        let attended = attended.reshape((heads, count, dim))?.transpose(0, 1)?;
        let attended = attended.reshape((count, heads * dim))?.contiguous()?;
        let layer = &self.layers[index];
        let part = layer.output.apply(&attended)?;
        self.post(part, layer.post_attention_norm.as_ref())
    }

    /// Rows as heads × rows × values of a head, normed and turned.
    fn place(
        &self,
        rows: Tensor,
        heads: usize,
        norm: Option<&Tensor>,
        turns: Option<&(Tensor, Tensor)>,
    ) -> Result<Tensor> {
        let (count, dim) = (rows.dim(0)?, self.shape.head_dim);
        let mut rows = rows.contiguous()?.reshape((count, heads, dim))?;
        if let Some(norm) = norm {
            rows = self.norm(&rows, norm)?;
        }
        let rows = rows.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
        let Some((cos, sin)) = turns else {
            return rows.squeeze(0);
        };
        let turned = self.shape.rope_dim;
        let part = rows.narrow(3, 0, turned)?.contiguous()?;
        let part = match self.shape.rope_kind {
            RopeKind::Norm => rotary_emb::rope_i(&part, cos, sin)?,
            RopeKind::Neox => rotary_emb::rope(&part, cos, sin)?,
        };
        let rows = match turned == dim {
            true => part,
            false => Tensor::cat(&[part, rows.narrow(3, turned, dim - turned)?], 3)?,
        };
        rows.squeeze(0)?.contiguous()
    }

    fn feed(&self, index: usize, hidden: &Tensor) -> Result<Tensor> {
        let layer = &self.layers[index];
        let x = self.norm(hidden, &layer.feed_norm)?;
        let [gate, up] = match layer.gate_up.as_slice() {
            [both] => {
                let both = both.apply(&x)?;
                let wide = both.dim(1)? / 2;
                [both.narrow(1, 0, wide)?, both.narrow(1, wide, wide)?]
            }
            several => split_each(several, &x)?,
        };
        let gate = match self.shape.activation {
            Activation::Silu => gate.contiguous()?.silu()?,
            // candle's `gelu` is the one with the hyperbolic tangent.
            Activation::GeluTanh => gate.contiguous()?.gelu()?,
        };
        let part = layer.down.apply(&(gate * up)?)?;
        self.post(part, layer.post_feed_norm.as_ref())
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, weight, self.shape.epsilon)
    }

    fn post(&self, part: Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        match norm {
            Some(norm) => self.norm(&part, norm),
            None => Ok(part),
        }
    }
}

impl Cache {
    /// Puts keys and values at the positions from `start` on; gives all of them.
    fn write(&mut self, start: usize, key: &Tensor, value: &Tensor) -> Result<(&Tensor, &Tensor)> {
        let (heads, count, dim) = key.dims3()?;
        let end = start + count;
        let room = self.0.as_ref().map_or(Ok(0), |(keys, _)| keys.dim(1))?;
        if room < end {
            let shape = (heads, end.max(room + room / 2).next_multiple_of(STEP), dim);
            let grown = |old: Option<&Tensor>| -> Result<Tensor> {
                let new = Tensor::zeros(shape, DType::F32, key.device())?;
                if let Some(old) = old {
                    new.slice_set(old, 1, 0)?;
                }
                Ok(new)
            };
            let keys = grown(self.0.as_ref().map(|(keys, _)| keys))?;
            let values = grown(self.0.as_ref().map(|(_, values)| values))?;
            self.0 = Some((keys, values));
        }
        let Some((keys, values)) = &self.0 else {
            candle_core::bail!("a cache without room");
        };
        keys.slice_set(key, 1, start)?;
        values.slice_set(value, 1, start)?;
        Ok((keys, values))
    }
}

/// The first position that `row` sees.
fn first_seen(row: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (row + 1).saturating_sub(window))
}

fn capped(x: Tensor, cap: Option<f32>) -> Result<Tensor> {
    match cap.map(f64::from) {
        Some(cap) => (x / cap)?.tanh()? * cap,
        None => Ok(x),
    }
}

/// Query, key and value of these widths, from one product or three.
fn split(linears: &[Linear], x: &Tensor, widths: [usize; 3]) -> Result<[Tensor; 3]> {
    let [linear] = linears else {
        return split_each(linears, x);
    };
    let all = linear.apply(x)?;
    let [q, k, v] = widths;
    Ok([
        all.narrow(1, 0, q)?,
        all.narrow(1, q, k)?,
        all.narrow(1, q + k, v)?,
    ])
}

fn split_each<const N: usize>(linears: &[Linear], x: &Tensor) -> Result<[Tensor; N]> {
    let all: Vec<Tensor> = linears.iter().map(|l| l.apply(x)).collect::<Result<_>>()?;
    all.try_into()
        .map_err(|_| candle_core::Error::msg("a layer without its products"))
}

/// Sends checked tensors to the device.
struct There<'a> {
    reader: &'a Reader<'a>,
    file: &'a ModelFile,
    device: &'a Device,
}

impl There<'_> {
    fn matrix(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> std::result::Result<QMatMul, LoadErrorKind> {
        let view = self.reader.view(name)?;
        self.reader.expect(name, view, &[rows, cols])?;
        let bytes = self.file.bytes(view)?;
        let weight = guarded(|| {
            let storage = QStorage::from_data(bytes.into(), self.device, view.dtype)?;
            let tensor = QTensor::new(storage, (rows, cols))?;
            QMatMul::from_arc(Arc::new(tensor))
        });
        self.file.release(view);
        weight.map_err(|error| LoadErrorKind::Device(format!("the tensor `{name}`: {error}")))
    }

    fn vector(&self, name: &str, len: usize) -> std::result::Result<Tensor, LoadErrorKind> {
        let values = self.reader.vector(name, len)?;
        guarded(|| Tensor::from_vec(values, len, self.device))
            .map_err(|error| LoadErrorKind::Device(format!("the tensor `{name}`: {error}")))
    }

    fn linear(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> std::result::Result<Linear, LoadErrorKind> {
        let bias = format!("{name}.bias");
        Ok(Linear {
            weight: self.matrix(&format!("{name}.weight"), rows, cols)?,
            bias: match self.file.tensor(&bias) {
                Some(_) => Some(self.vector(&bias, rows)?),
                None => None,
            },
        })
    }

    fn layer(&self, shape: &Shape, index: usize) -> std::result::Result<Layer, LoadErrorKind> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let norm = |part: &str, len: usize, wanted: bool| match wanted {
            true => self.vector(&name(part), len).map(Some),
            false => Ok(None),
        };
        let width = shape.width;
        let down = self.reader.view(&name("ffn_down.weight"))?;
        let wide = shape
            .feed_width
            .or(down.dims.last().copied())
            .unwrap_or_default();
        let (q, kv) = (shape.query_width(), shape.kv_width());
        let linears = |parts: &[(&str, usize)]| -> std::result::Result<Vec<Linear>, LoadErrorKind> {
            let linear = |(part, rows): &(&str, usize)| self.linear(&name(part), *rows, width);
            parts.iter().map(linear).collect()
        };
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm.weight"), width)?,
            qkv: match shape.fused {
                true => linears(&[("attn_qkv", q + 2 * kv)])?,
                false => linears(&[("attn_q", q), ("attn_k", kv), ("attn_v", kv)])?,
            },
            query_norm: norm("attn_q_norm.weight", shape.head_dim, shape.qk_norms)?,
            key_norm: norm("attn_k_norm.weight", shape.head_dim, shape.qk_norms)?,
            output: self.linear(&name("attn_output"), width, q)?,
            post_attention_norm: norm("post_attention_norm.weight", width, shape.post_norms)?,
            feed_norm: self.vector(&name("ffn_norm.weight"), width)?,
            gate_up: match shape.fused {
                true => linears(&[("ffn_up", 2 * wide)])?,
                false => linears(&[("ffn_gate", wide), ("ffn_up", wide)])?,
            },
            down: self.linear(&name("ffn_down"), width, wide)?,
            post_feed_norm: norm("post_ffw_norm.weight", width, shape.post_norms)?,
        })
    }
}
