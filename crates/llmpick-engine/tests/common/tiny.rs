//! Models of a few thousand random weights, written as real GGUF files.

use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// What a tiny model is like; start from [`Tiny::new`].
pub struct Tiny {
    pub architecture: &'static str,
    pub layers: usize,
    pub context: u32,
    /// Written where it is not 0.
    pub window: u32,
    /// More settings of the architecture.
    pub more: Vec<(&'static str, Value)>,
    /// More vectors: name and values.
    pub vectors: Vec<(&'static str, Vec<f32>)>,
    pub dtype: GgmlDType,
    pub template: Option<&'static str>,
    pub tied: bool,
    pub seed: u64,
}

pub const WIDTH: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const WIDE: usize = 96;
const CONVOLVED: usize = 3;
const EXPERTS: usize = 4;
/// 256 bytes and three control tokens.
pub const VOCAB: usize = 259;

impl Tiny {
    pub fn new(architecture: &'static str) -> Tiny {
        Tiny {
            architecture,
            layers: 3,
            context: 256,
            window: if architecture.starts_with("gemma") {
                8
            } else {
                0
            },
            more: Vec::new(),
            vectors: Vec::new(),
            dtype: GgmlDType::F32,
            template: None,
            tied: false,
            seed: 7,
        }
    }

    /// A model that our decoder leaves to candle's stock models: `glm4`, `lfm2`, `phi2`, or
    /// a `llama` with four experts.
    pub fn stock(architecture: &'static str) -> Tiny {
        let count = |n: usize| Value::U32(n as u32);
        let more = match architecture {
            "glm4" => vec![("rope.dimension_count", count(WIDTH / HEADS / 2))],
            "lfm2" => {
                // The first and the last layer attend, the one between convolves.
                let kv_heads = [KV_HEADS, 0, KV_HEADS].map(count);
                vec![
                    ("attention.head_count_kv", Value::Array(kv_heads.into())),
                    ("shortconv.l_cache", count(CONVOLVED)),
                ]
            }
            "phi2" => vec![
                ("attention.head_count_kv", count(HEADS)),
                ("attention.layer_norm_epsilon", Value::F32(1e-5)),
                ("rope.freq_base", Value::F32(10_000.0)),
                ("rope.dimension_count", count(WIDTH / HEADS / 2)),
            ],
            _ => vec![
                ("expert_count", count(EXPERTS)),
                ("expert_used_count", Value::U32(2)),
            ],
        };
        Tiny {
            more,
            ..Tiny::new(architecture)
        }
    }

    /// Writes the file into `folder`.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.gguf", self.architecture));
        let metadata = self.metadata();
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors = self.tensors();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let mut file = File::create(&path).unwrap();
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
        path
    }

    fn head_dim(&self) -> usize {
        WIDTH / HEADS
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let count = |n: usize| Value::U32(n as u32);
        let mut all = vec![
            (
                "general.architecture".to_owned(),
                Value::String(self.architecture.to_owned()),
            ),
            ("general.name".to_owned(), Value::String("Tiny".to_owned())),
            // The stock qwen3 rounds its RoPE tables to F16 unless the file says F32.
            ("general.dtype".to_owned(), Value::U32(0)),
        ];
        let own = [
            ("block_count", count(self.layers)),
            ("context_length", Value::U32(self.context)),
            ("embedding_length", count(WIDTH)),
            ("feed_forward_length", count(WIDE)),
            ("attention.head_count", count(HEADS)),
            ("attention.head_count_kv", count(KV_HEADS)),
            ("attention.key_length", count(self.head_dim())),
            ("attention.value_length", count(self.head_dim())),
            ("attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
            ("rope.freq_base", Value::F32(50_000.0)),
            ("rope.dimension_count", count(self.head_dim())),
        ];
        let window = ("attention.sliding_window", Value::U32(self.window));
        let window = Some(window).filter(|_| self.window > 0);
        let own = own.into_iter().chain(window).chain(self.more.clone());
        all.extend(own.map(|(key, value)| (format!("{}.{key}", self.architecture), value)));
        let control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
        let tokens = byte_characters().chain(control.map(str::to_owned));
        let kinds = (0..VOCAB).map(|id| Value::I32(if id < 256 { 1 } else { 3 }));
        let tokenizer = [
            ("model", Value::String("gpt2".to_owned())),
            ("pre", Value::String("qwen2".to_owned())),
            ("tokens", Value::Array(tokens.map(Value::String).collect())),
            ("token_type", Value::Array(kinds.collect())),
            ("merges", Value::Array(Vec::new())),
            ("bos_token_id", Value::U32(256)),
            ("eos_token_id", Value::U32(258)),
            ("add_bos_token", Value::Bool(false)),
        ];
        all.extend(tokenizer.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
        if let Some(template) = self.template {
            let template = Value::String(template.to_owned());
            all.push(("tokenizer.chat_template".to_owned(), template));
        }
        // What is said last counts.
        let mut seen = std::collections::HashSet::new();
        all.reverse();
        all.retain(|(key, _)| seen.insert(key.clone()));
        all.reverse();
        all
    }

    /// The tensors of a [`stock`](Self::stock) model, none for another.
    fn stock_tensors(&self) -> Option<Vec<(String, Vec<usize>)>> {
        let (q, kv) = (HEADS * self.head_dim(), KV_HEADS * self.head_dim());
        let experts = self.more.iter().any(|(key, _)| *key == "expert_count");
        let mut all = vec![("token_embd.weight".to_owned(), vec![VOCAB, WIDTH])];
        let mut add = |name: String, dims: &[usize]| all.push((name, dims.to_vec()));
        match self.architecture {
            "phi2" => {
                add("output.weight".to_owned(), &[VOCAB, WIDTH]);
                add("output.bias".to_owned(), &[VOCAB]);
                add("output_norm.weight".to_owned(), &[WIDTH]);
                add("output_norm.bias".to_owned(), &[WIDTH]);
            }
            "lfm2" => add("token_embd_norm.weight".to_owned(), &[WIDTH]),
            "glm4" | "llama" => add("output_norm.weight".to_owned(), &[WIDTH]),
            _ => return None,
        }
        if self.architecture == "llama" && !experts {
            return None;
        }
        for layer in 0..self.layers {
            let mut part = |part: &str, dims: &[usize]| add(format!("blk.{layer}.{part}"), dims);
            part("attn_norm.weight", &[WIDTH]);
            if self.architecture == "phi2" {
                part("attn_norm.bias", &[WIDTH]);
                for (name, rows, cols) in [
                    ("attn_qkv", 3 * WIDTH, WIDTH),
                    ("attn_output", WIDTH, WIDTH),
                    ("ffn_up", WIDE, WIDTH),
                    ("ffn_down", WIDTH, WIDE),
                ] {
                    part(&format!("{name}.weight"), &[rows, cols]);
                    part(&format!("{name}.bias"), &[rows]);
                }
                continue;
            }
            part("ffn_norm.weight", &[WIDTH]);
            if self.architecture == "lfm2" && layer == 1 {
                part("shortconv.in_proj.weight", &[3 * WIDTH, WIDTH]);
                part("shortconv.out_proj.weight", &[WIDTH, WIDTH]);
                part("shortconv.conv.weight", &[WIDTH, CONVOLVED]);
            } else {
                part("attn_q.weight", &[q, WIDTH]);
                part("attn_k.weight", &[kv, WIDTH]);
                part("attn_v.weight", &[kv, WIDTH]);
                part("attn_output.weight", &[WIDTH, q]);
            }
            match self.architecture {
                "glm4" => {
                    part("attn_q.bias", &[q]);
                    part("attn_k.bias", &[kv]);
                    part("attn_v.bias", &[kv]);
                    part("post_attention_norm.weight", &[WIDTH]);
                    part("post_ffw_norm.weight", &[WIDTH]);
                    part("ffn_up.weight", &[2 * WIDE, WIDTH]);
                    part("ffn_down.weight", &[WIDTH, WIDE]);
                }
                "llama" => {
                    part("ffn_gate_inp.weight", &[EXPERTS, WIDTH]);
                    for expert in 0..EXPERTS {
                        part(&format!("ffn_gate.{expert}.weight"), &[WIDE, WIDTH]);
                        part(&format!("ffn_up.{expert}.weight"), &[WIDE, WIDTH]);
                        part(&format!("ffn_down.{expert}.weight"), &[WIDTH, WIDE]);
                    }
                }
                _ => {
                    if layer != 1 {
                        part("attn_q_norm.weight", &[self.head_dim()]);
                        part("attn_k_norm.weight", &[self.head_dim()]);
                    }
                    part("ffn_gate.weight", &[WIDE, WIDTH]);
                    part("ffn_up.weight", &[WIDE, WIDTH]);
                    part("ffn_down.weight", &[WIDTH, WIDE]);
                }
            }
        }
        Some(all)
    }

    fn tensors(&self) -> Vec<(String, QTensor)> {
        let mut random = Pcg64::seed_from_u64(self.seed);
        if let Some(all) = self.stock_tensors() {
            let all = all.into_iter().map(|(name, dims)| {
                let tensor = match *dims.as_slice() {
                    [_, cols] if name.ends_with("conv.weight") => {
                        let values = vector(&mut random, &dims, 0.0, 1.0 / cols as f32);
                        QTensor::quantize(&values, GgmlDType::F32).unwrap()
                    }
                    [_, cols] => self.tensor(&mut random, &dims, 0.0, 2.0 / (cols as f32).sqrt()),
                    _ => {
                        let middle = if name.ends_with("bias") { 0.0 } else { 1.0 };
                        let values = vector(&mut random, &dims, middle, 0.2);
                        QTensor::quantize(&values, GgmlDType::F32).unwrap()
                    }
                };
                (name, tensor)
            });
            return all.chain(self.more_vectors()).collect();
        }
        let (q, kv) = (HEADS * self.head_dim(), KV_HEADS * self.head_dim());
        let mut all = Vec::new();
        let mut matrix = |name: String, rows: usize, cols: usize| {
            let spread = 2.0 / (cols as f32).sqrt();
            all.push((name, self.tensor(&mut random, &[rows, cols], 0.0, spread)));
        };
        matrix("token_embd.weight".to_owned(), VOCAB, WIDTH);
        if !self.tied {
            matrix("output.weight".to_owned(), VOCAB, WIDTH);
        }
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            if self.architecture == "phi3" {
                matrix(name("attn_qkv"), q + 2 * kv, WIDTH);
                matrix(name("attn_output"), WIDTH, q);
                matrix(name("ffn_up"), 2 * WIDE, WIDTH);
            } else {
                matrix(name("attn_q"), q, WIDTH);
                matrix(name("attn_k"), kv, WIDTH);
                matrix(name("attn_v"), kv, WIDTH);
                matrix(name("attn_output"), WIDTH, q);
                matrix(name("ffn_gate"), WIDE, WIDTH);
                matrix(name("ffn_up"), WIDE, WIDTH);
            }
            matrix(name("ffn_down"), WIDTH, WIDE);
        }
        let mut vector = |name: String, len: usize, middle: f32| {
            let values = vector(&mut random, &[len], middle, 0.2);
            all.push((name, QTensor::quantize(&values, GgmlDType::F32).unwrap()));
        };
        vector("output_norm.weight".to_owned(), WIDTH, 1.0);
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            vector(name("attn_norm.weight"), WIDTH, 1.0);
            vector(name("ffn_norm.weight"), WIDTH, 1.0);
            if ["qwen3", "gemma3"].contains(&self.architecture) {
                vector(name("attn_q_norm.weight"), self.head_dim(), 1.0);
                vector(name("attn_k_norm.weight"), self.head_dim(), 1.0);
            }
            if self.architecture.starts_with("gemma") {
                vector(name("post_attention_norm.weight"), WIDTH, 1.0);
                vector(name("post_ffw_norm.weight"), WIDTH, 1.0);
            }
            if self.architecture == "qwen2" {
                vector(name("attn_q.bias"), q, 0.0);
                vector(name("attn_k.bias"), kv, 0.0);
                vector(name("attn_v.bias"), kv, 0.0);
            }
        }
        all.extend(self.more_vectors());
        all
    }

    fn more_vectors(&self) -> impl Iterator<Item = (String, QTensor)> {
        self.vectors.iter().map(|(name, values)| {
            let values = Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
            let tensor = QTensor::quantize(&values, GgmlDType::F32).unwrap();
            ((*name).to_owned(), tensor)
        })
    }

    fn tensor(&self, random: &mut Pcg64, shape: &[usize], middle: f32, spread: f32) -> QTensor {
        QTensor::quantize(&vector(random, shape, middle, spread), self.dtype).unwrap()
    }
}

fn vector(random: &mut Pcg64, shape: &[usize], middle: f32, spread: f32) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| middle + spread * (random.random::<f32>() * 2.0 - 1.0))
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// GPT-2's character for each byte.
fn byte_characters() -> impl Iterator<Item = String> {
    let mut next = 256;
    (0..256u32).map(move |byte| {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap().to_string()
    })
}

/// A prompt of `count` byte tokens in no order.
pub fn prompt(count: usize) -> Vec<u32> {
    let mut random = Pcg64::seed_from_u64(count as u64);
    (0..count).map(|_| random.random_range(0..256)).collect()
}
