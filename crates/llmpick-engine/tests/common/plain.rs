//! A decoder written down as the papers have it: `f64`, no cache, no threads, every
//! position from the start. It reads the same files and shares no code with the engine.

use std::collections::HashMap;
use std::f64::consts::{PI, TAU};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};

/// Rows of numbers.
type Rows = Vec<Vec<f64>>;

pub struct Plain {
    content: Content,
    tensors: HashMap<String, Rows>,
    architecture: String,
    /// The context the model is run with; LongRoPE looks at it.
    context: f64,
}

impl Plain {
    pub fn open(path: &Path) -> Plain {
        let mut file = BufReader::new(File::open(path).unwrap());
        let content = Content::read(&mut file).unwrap();
        let mut tensors = HashMap::new();
        for name in content.tensor_infos.keys() {
            let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
            let tensor = tensor.dequantize(&Device::Cpu).unwrap();
            let cols = *tensor.dims().last().unwrap();
            let all: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            let rows = all.chunks(cols);
            let rows = rows.map(|row| row.iter().map(|x| f64::from(*x)).collect());
            tensors.insert(name.clone(), rows.collect());
        }
        let architecture = content.metadata["general.architecture"]
            .to_string()
            .unwrap()
            .clone();
        let mut plain = Plain {
            content,
            tensors,
            architecture,
            context: 0.0,
        };
        plain.context = plain.number("context_length").unwrap();
        plain
    }

    pub fn with_context(self, context: f64) -> Plain {
        Plain { context, ..self }
    }

    fn number(&self, key: &str) -> Option<f64> {
        let key = format!("{}.{key}", self.architecture);
        match self.content.metadata.get(&key)? {
            Value::F32(x) => Some(f64::from(*x)),
            Value::U32(n) => Some(f64::from(*n)),
            other => panic!("{key}: {other:?}"),
        }
    }

    fn vector(&self, name: &str) -> &[f64] {
        &self.tensors[name][0]
    }

    fn is_gemma(&self) -> bool {
        self.architecture.starts_with("gemma")
    }

    /// Log-probabilities of the token after each position.
    pub fn log_probabilities(&self, tokens: &[u32]) -> Rows {
        let width = self.number("embedding_length").unwrap();
        let mut hidden: Rows = tokens
            .iter()
            .map(|t| self.tensors["token_embd.weight"][*t as usize].clone())
            .collect();
        if self.is_gemma() {
            // The model multiplies by the root as its own precision has it.
            let root = f64::from((width as f32).sqrt());
            hidden.iter_mut().flatten().for_each(|x| *x *= root);
        }
        for layer in 0..self.number("block_count").unwrap() as usize {
            self.layer(layer, &mut hidden);
        }
        let head = match self.tensors.get("output.weight") {
            Some(head) => head,
            None => &self.tensors["token_embd.weight"],
        };
        let cap = self.cap("final_logit_softcapping", 30.0);
        hidden
            .iter()
            .map(|row| {
                let row = self.norm(row, "output_norm.weight");
                let logits: Vec<f64> = head.iter().map(|w| cap(dot(w, &row))).collect();
                let sum: f64 = logits.iter().map(|x| x.exp()).sum();
                logits.iter().map(|x| x - sum.ln()).collect()
            })
            .collect()
    }

    fn layer(&self, layer: usize, hidden: &mut Rows) {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let attended = self.attention(layer, hidden);
        for (row, part) in hidden.iter_mut().zip(attended) {
            let part = self.linear(&name("attn_output"), &part);
            add(row, &self.post(&name("post_attention_norm.weight"), part));
            let normed = self.norm(row, &name("ffn_norm.weight"));
            let up = self.linear(&name("ffn_up"), &normed);
            let (gate, up) = match self.architecture.as_str() {
                "phi3" => {
                    let (gate, up) = up.split_at(up.len() / 2);
                    (gate.to_vec(), up.to_vec())
                }
                _ => (self.linear(&name("ffn_gate"), &normed), up),
            };
            let bend = |x: f64| match self.is_gemma() {
                true => 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
                false => x / (1.0 + (-x).exp()),
            };
            let bent: Vec<f64> = gate.iter().zip(up).map(|(g, u)| bend(*g) * u).collect();
            let part = self.linear(&name("ffn_down"), &bent);
            add(row, &self.post(&name("post_ffw_norm.weight"), part));
        }
    }

    fn attention(&self, layer: usize, hidden: &Rows) -> Rows {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let heads = self.number("attention.head_count").unwrap() as usize;
        let kv_heads = self.number("attention.head_count_kv").unwrap() as usize;
        let dim = self.number("attention.key_length").unwrap() as usize;
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, row) in hidden.iter().enumerate() {
            let row = self.norm(row, &name("attn_norm.weight"));
            let (q, k, v) = match self.architecture.as_str() {
                "phi3" => {
                    let all = self.linear(&name("attn_qkv"), &row);
                    let (q, rest) = all.split_at(heads * dim);
                    let (k, v) = rest.split_at(kv_heads * dim);
                    (q.to_vec(), k.to_vec(), v.to_vec())
                }
                _ => (
                    self.linear(&name("attn_q"), &row),
                    self.linear(&name("attn_k"), &row),
                    self.linear(&name("attn_v"), &row),
                ),
            };
            let place = |all: Vec<f64>, norm: &str| -> Rows {
                all.chunks(dim)
                    .map(|head| {
                        let head = match self.tensors.get(&name(norm)) {
                            Some(_) => self.norm(head, &name(norm)),
                            None => head.to_vec(),
                        };
                        self.turned(layer, head, position)
                    })
                    .collect()
            };
            queries.push(place(q, "attn_q_norm.weight"));
            keys.push(place(k, "attn_k_norm.weight"));
            values.push(v.chunks(dim).map(<[f64]>::to_vec).collect::<Rows>());
        }
        let cap = self.cap("attn_logit_softcapping", 50.0);
        let window = self.window(layer);
        let mut out = Vec::new();
        for (position, query) in queries.iter().enumerate() {
            let mut row = Vec::new();
            for (head, query) in query.iter().enumerate() {
                let kv = head / (heads / kv_heads);
                let seen = (0..=position).filter(|at| position - at < window);
                let scores: Vec<(usize, f64)> = seen
                    .map(|at| {
                        let score = dot(query, &keys[at][kv]) / (dim as f64).sqrt();
                        (at, cap(score).exp())
                    })
                    .collect();
                let sum: f64 = scores.iter().map(|(_, weight)| weight).sum();
                let mut mixed = vec![0.0; dim];
                for (at, weight) in scores {
                    for (m, v) in mixed.iter_mut().zip(&values[at][kv]) {
                        *m += weight / sum * v;
                    }
                }
                row.extend(mixed);
            }
            out.push(row);
        }
        out
    }

    /// Positions that a layer sees, its own included.
    fn window(&self, layer: usize) -> usize {
        let window = self.number("attention.sliding_window").map(|w| w as usize);
        let sees_all = match self.architecture.as_str() {
            "gemma2" => layer % 2 == 1,
            "gemma3" => layer % 6 == 5,
            _ => false,
        };
        window.filter(|_| !sees_all).unwrap_or(usize::MAX)
    }

    /// Rotary embedding: a head of one position.
    fn turned(&self, layer: usize, mut head: Vec<f64>, position: usize) -> Vec<f64> {
        if self.architecture == "smollm3" && layer % 4 == 3 {
            return head;
        }
        let dim = self.number("rope.dimension_count").unwrap() as usize;
        let local = self.architecture == "gemma3" && self.window(layer) < usize::MAX;
        let base = if local {
            1e4
        } else {
            self.number("rope.freq_base").unwrap()
        };
        let (angles, size) = if local {
            let angles = (0..dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim as f64));
            (angles.collect(), 1.0)
        } else {
            self.angles(base, dim)
        };
        for (i, angle) in angles.iter().enumerate() {
            let (sin, cos) = (angle * position as f64).sin_cos();
            let (a, b) = match self.architecture.as_str() {
                "llama" | "smollm3" => (2 * i, 2 * i + 1),
                _ => (i, i + dim / 2),
            };
            let (x, y) = (head[a], head[b]);
            head[a] = (x * cos - y * sin) * size;
            head[b] = (x * sin + y * cos) * size;
        }
        head
    }

    /// Radians per position of each pair, and what sines and cosines are multiplied by,
    /// as transformers' `modeling_rope_utils.py` has them.
    fn angles(&self, base: f64, dim: usize) -> (Vec<f64>, f64) {
        let plain: Vec<f64> = (0..dim / 2)
            .map(|i| 1.0 / base.powf((2 * i) as f64 / dim as f64))
            .collect();
        let by = |factors: &[f64]| plain.iter().zip(factors).map(|(a, f)| a / f).collect();
        if let Some(factors) = self.tensors.get("rope_freqs.weight") {
            return (by(&factors[0]), 1.0);
        }
        let factor = self.number("rope.scaling.factor").unwrap_or(1.0);
        let original = self.number("rope.scaling.original_context_length");
        if self.tensors.contains_key("rope_factors_long.weight") {
            let original = original.unwrap();
            let kind = if self.context > original {
                "long"
            } else {
                "short"
            };
            let factors = self.vector(&format!("rope_factors_{kind}.weight"));
            let size = self.number("rope.scaling.attn_factor").unwrap();
            return (by(factors), size);
        }
        let kind = format!("{}.rope.scaling.type", self.architecture);
        match self
            .content
            .metadata
            .get(&kind)
            .map(|v| v.to_string().unwrap().as_str())
        {
            Some("yarn") => {
                let original = original.unwrap();
                let correction =
                    |turns: f64| dim as f64 * (original / (turns * TAU)).ln() / (2.0 * base.ln());
                let low = correction(32.0).floor().max(0.0);
                let high = correction(1.0).ceil().min(dim as f64 - 1.0);
                let mixed = plain.iter().enumerate().map(|(i, extrapolated)| {
                    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    let interpolated = extrapolated / factor;
                    interpolated * ramp + extrapolated * (1.0 - ramp)
                });
                (mixed.collect(), 0.1 * factor.ln() + 1.0)
            }
            _ => (plain.iter().map(|a| a / factor).collect(), 1.0),
        }
    }

    /// The bound of scores or logits: the setting, or gemma2's own.
    fn cap(&self, key: &str, gemma2: f64) -> impl Fn(f64) -> f64 + use<> {
        let cap = self
            .number(key)
            .or((self.architecture == "gemma2").then_some(gemma2));
        move |x| cap.map_or(x, |cap| cap * (x / cap).tanh())
    }

    fn norm(&self, row: &[f64], name: &str) -> Vec<f64> {
        let epsilon = self.number("attention.layer_norm_rms_epsilon").unwrap();
        let mean = dot(row, row) / row.len() as f64;
        let root = (mean + epsilon).sqrt();
        let weights = self.vector(name);
        row.iter().zip(weights).map(|(x, w)| x / root * w).collect()
    }

    /// What a part of a layer adds, normed where the file has a norm for it.
    fn post(&self, name: &str, part: Vec<f64>) -> Vec<f64> {
        match self.tensors.get(name) {
            Some(_) => self.norm(&part, name),
            None => part,
        }
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = &self.tensors[&format!("{name}.weight")];
        let mut y: Vec<f64> = weight.iter().map(|row| dot(row, x)).collect();
        if let Some(bias) = self.tensors.get(&format!("{name}.bias")) {
            add(&mut y, &bias[0]);
        }
        y
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(row: &mut [f64], part: &[f64]) {
    assert_eq!(row.len(), part.len());
    row.iter_mut().zip(part).for_each(|(x, y)| *x += y);
}
