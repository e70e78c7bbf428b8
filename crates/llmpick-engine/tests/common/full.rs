//! The full-precision models of candle-transformers over the dequantised weights of a file:
//! no rounding of activations, and fast enough to read thousands of tokens.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::smol::smollm3;
use candle_transformers::models::{gemma2, gemma3, mistral, phi3, qwen2};

use super::reference::{Continuation, KEPT};
use super::stock::log_likelihood;

pub enum Full {
    /// The hidden states of every position, and the head to put on them.
    Qwen2(qwen2::Model, Tensor),
    Gemma(gemma3::Model),
}

impl Full {
    /// The model for the file's architecture. A llama is a qwen2 whose biases are zero, and
    /// is run as one: candle's own llama gives the logits of the last position only, which
    /// takes minutes where this takes seconds.
    pub fn open(path: &Path) -> Full {
        let mut file = BufReader::new(File::open(path).unwrap());
        let content = Content::read(&mut file).unwrap();
        match architecture(&content) {
            "gemma3" => Full::Gemma(gemma(&content, &mut file)),
            _ => qwen2(&content, &mut file),
        }
    }

    /// The sums of negative log-likelihoods of `tokens[first..]` of each sequence, all of one
    /// length, each token given all before it.
    pub fn nll(&mut self, sequences: &[&[u32]], first: usize) -> Vec<f64> {
        match self {
            Full::Qwen2(..) => sequences
                .iter()
                .map(|tokens| {
                    let logits = self.logits(&tokens[..tokens.len() - 1], first - 1);
                    surprises(&logits, &tokens[first..]).iter().sum()
                })
                .collect(),
            // Its interface ends in the last position: token by token, side by side.
            Full::Gemma(model) => {
                model.clear_kv_cache();
                let part = |from: usize, to: usize| -> Vec<&[u32]> {
                    sequences.iter().map(|tokens| &tokens[from..to]).collect()
                };
                let mut nll = vec![0.0; sequences.len()];
                let mut logits = model.forward(&input(&part(0, first)), 0).unwrap();
                for position in first..sequences[0].len() {
                    let targets: Vec<u32> = sequences.iter().map(|t| t[position]).collect();
                    let each = surprises(&logits.i((.., 0)).unwrap(), &targets);
                    nll.iter_mut().zip(each).for_each(|(sum, one)| *sum += one);
                    let next = input(&part(position, position + 1));
                    logits = model.forward(&next, position).unwrap();
                }
                nll
            }
        }
    }

    /// How many sequences are best read at once.
    pub fn side_by_side(&self) -> usize {
        match self {
            Full::Qwen2(..) => 1,
            Full::Gemma(_) => 7,
        }
    }

    /// The most likely continuation: `count` tokens, or up to the first of `ends`. `draft`
    /// guesses how a text goes on; a good guess saves passes and cannot change the result.
    pub fn continuation(
        &mut self,
        prompt: &[u32],
        count: usize,
        ends: &[u32],
        draft: &mut dyn FnMut(&[u32], usize) -> Vec<u32>,
    ) -> Continuation {
        let mut found = Continuation {
            prompt: prompt.to_vec(),
            tokens: Vec::new(),
            ties: Vec::new(),
        };
        let last = |tokens: &[u32]| tokens.last().is_some_and(|token| ends.contains(token));
        while found.tokens.len() < count && !last(&found.tokens) {
            let known = [prompt, &found.tokens].concat();
            let guess = match self {
                Full::Qwen2(..) => draft(&known, count - found.tokens.len()),
                Full::Gemma(_) => Vec::new(),
            };
            let asked = [&known[..], &guess[..guess.len().saturating_sub(1)]].concat();
            let rows: Vec<Vec<f32>> = match self {
                Full::Qwen2(..) => self.logits(&asked, known.len() - 1).to_vec2().unwrap(),
                // One token after the other with what it keeps of those before.
                Full::Gemma(model) => {
                    let new = if found.tokens.is_empty() {
                        0
                    } else {
                        asked.len() - 1
                    };
                    if new == 0 {
                        model.clear_kv_cache();
                    }
                    let logits = model.forward(&input(&[&asked[new..]]), new).unwrap();
                    logits.i((.., 0)).unwrap().to_vec2().unwrap()
                }
            };
            for (row, logits) in rows.iter().enumerate() {
                let token = found.push(logits);
                // What follows a wrong guess is the answer to another text.
                if last(&[token]) || guess.get(row) != Some(&token) {
                    break;
                }
            }
        }
        found
    }

    /// Logits after each position from `first` on.
    fn logits(&mut self, tokens: &[u32], first: usize) -> Tensor {
        let Full::Qwen2(model, head) = self else {
            panic!("this model gives the last position only");
        };
        model.clear_kv_cache();
        let hidden = model.forward(&input(&[tokens]), 0, None).unwrap();
        let asked = hidden.i((0, first..tokens.len())).unwrap();
        asked.matmul(&head.t().unwrap()).unwrap()
    }
}

impl Continuation {
    /// Adds the most likely token, and those nearly as likely as ties.
    fn push(&mut self, logits: &[f32]) -> u32 {
        let best = super::stock::argmax(logits);
        let top = logits[best as usize];
        for (token, logit) in logits.iter().enumerate() {
            let gap = f64::from(top - logit);
            if gap <= KEPT && token != best as usize {
                let gap = (gap * 1e5).round() / 1e5;
                self.ties.push((self.tokens.len(), token as u32, gap));
            }
        }
        self.tokens.push(best);
        best
    }
}

/// The file again with every weight as `f32`, in `folder`: products with such weights take
/// activations as they are.
pub fn widened(path: &Path, folder: &Path) -> PathBuf {
    let mut file = BufReader::new(File::open(path).unwrap());
    let content = Content::read(&mut file).unwrap();
    let mut tensors = Vec::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
        let tensor = tensor.dequantize(&Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
        tensors.push((name.as_str(), tensor));
    }
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (*k, v)).collect();
    let settings = content.metadata.iter().map(|(k, v)| (k.as_str(), v));
    let settings: Vec<(&str, &Value)> = settings.collect();
    let wide = folder.join("wide.gguf");
    let mut to = BufWriter::new(File::create(&wide).unwrap());
    gguf_file::write(&mut to, &settings, &tensors).unwrap();
    wide
}

fn input(sequences: &[&[u32]]) -> Tensor {
    let shape = (sequences.len(), sequences[0].len());
    Tensor::from_vec(sequences.concat(), shape, &Device::Cpu).unwrap()
}

/// The negative log-likelihood of one target per row.
fn surprises(logits: &Tensor, targets: &[u32]) -> Vec<f64> {
    let rows: Vec<Vec<f32>> = logits.to_vec2().unwrap();
    assert_eq!(rows.len(), targets.len());
    let each = rows.iter().zip(targets);
    each.map(|(row, target)| -log_likelihood(row, *target))
        .collect()
}

fn architecture(content: &Content) -> &str {
    content.metadata["general.architecture"]
        .to_string()
        .unwrap()
}

fn count(content: &Content, key: &str) -> Option<usize> {
    let key = format!("{}.{key}", architecture(content));
    let value = content.metadata.get(&key)?;
    Some(value.to_u64().unwrap() as usize)
}

fn float(content: &Content, key: &str, default: f64) -> f64 {
    let key = format!("{}.{key}", architecture(content));
    match content.metadata.get(&key) {
        Some(Value::F32(value)) => f64::from(*value),
        _ => default,
    }
}

fn qwen2(content: &Content, file: &mut BufReader<File>) -> Full {
    let number = |key: &str| count(content, key).unwrap();
    let heads = number("attention.head_count");
    let kv_heads = number("attention.head_count_kv");
    let width = number("embedding_length");
    let head_dim = width / heads;
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(file, name, &Device::Cpu).unwrap();
        let mut tensor = tensor.dequantize(&Device::Cpu).unwrap();
        if architecture(content) == "llama" {
            // GGUF stores the two halves of a rotated pair side by side.
            if name.ends_with("attn_q.weight") {
                tensor = halves(&tensor, heads);
            } else if name.ends_with("attn_k.weight") {
                tensor = halves(&tensor, kv_heads);
            }
        }
        tensors.insert(hub_name(name, "post_attention_layernorm"), tensor);
    }
    for layer in 0..number("block_count") {
        for (part, len) in [("q", heads), ("k", kv_heads), ("v", kv_heads)] {
            let name = format!("model.layers.{layer}.self_attn.{part}_proj.bias");
            let zero = || Tensor::zeros(len * head_dim, DType::F32, &Device::Cpu).unwrap();
            tensors.entry(name).or_insert_with(zero);
        }
    }
    let embedding = tensors["model.embed_tokens.weight"].clone();
    let head = tensors.get("lm_head.weight").unwrap_or(&embedding).clone();
    let config = qwen2::Config {
        vocab_size: embedding.dim(0).unwrap(),
        hidden_size: width,
        intermediate_size: number("feed_forward_length"),
        num_hidden_layers: number("block_count"),
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        max_position_embeddings: 2048,
        sliding_window: 2048,
        max_window_layers: 0,
        tie_word_embeddings: false,
        rope_theta: float(content, "rope.freq_base", 1e4),
        rms_norm_eps: float(content, "attention.layer_norm_rms_epsilon", f64::NAN),
        use_sliding_window: false,
        hidden_act: candle_nn::Activation::Silu,
    };
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    Full::Qwen2(qwen2::Model::new(&config, weights).unwrap(), head)
}

/// Rows of each head from interleaved pairs to two halves.
pub fn halves(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, cols) = weight.dims2().unwrap();
    let pairs = weight.reshape((heads, rows / heads / 2, 2, cols)).unwrap();
    let halves = pairs.transpose(1, 2).unwrap().contiguous().unwrap();
    halves.reshape((rows, cols)).unwrap()
}

pub fn gemma(content: &Content, file: &mut BufReader<File>) -> gemma3::Model {
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(file, name, &Device::Cpu).unwrap();
        let mut tensor = tensor.dequantize(&Device::Cpu).unwrap();
        if name.ends_with("norm.weight") {
            // GGUF stores what a norm multiplies by; candle's gemma adds the 1 itself.
            tensor = (tensor - 1.0).unwrap();
        }
        tensors.insert(hub_name(name, "pre_feedforward_layernorm"), tensor);
    }
    let number = |key: &str| count(content, key).unwrap();
    let config = gemma3::Config {
        attention_bias: false,
        head_dim: number("attention.key_length"),
        hidden_activation: candle_nn::Activation::GeluPytorchTanh,
        hidden_size: number("embedding_length"),
        intermediate_size: number("feed_forward_length"),
        num_attention_heads: number("attention.head_count"),
        num_hidden_layers: number("block_count"),
        num_key_value_heads: number("attention.head_count_kv"),
        rms_norm_eps: float(content, "attention.layer_norm_rms_epsilon", f64::NAN),
        rope_theta: float(content, "rope.freq_base", 1e6),
        rope_local_base_freq: 1e4,
        vocab_size: tensors["model.embed_tokens.weight"].dim(0).unwrap(),
        final_logit_softcapping: None,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: number("attention.key_length"),
        sliding_window: number("attention.sliding_window"),
        sliding_window_pattern: 6,
        // The length of its RoPE tables; the tests stay below it.
        max_position_embeddings: 2048,
    };
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    gemma3::Model::new(false, &config, weights).unwrap()
}

/// All tensors under the names of the safetensors files, dequantised.
///
/// `add_one`: candle's norms of this family add the 1 that GGUF's weights hold already.
/// `interleaved`: GGUF stores the two halves of a rotated pair side by side.
fn weights(
    content: &Content,
    file: &mut BufReader<File>,
    feed_norm: &str,
    add_one: bool,
    interleaved: bool,
) -> (VarBuilder<'static>, usize) {
    let number = |key: &str| count(content, key).unwrap();
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(file, name, &Device::Cpu).unwrap();
        let mut tensor = tensor.dequantize(&Device::Cpu).unwrap();
        if add_one && name.ends_with("norm.weight") {
            tensor = (tensor - 1.0).unwrap();
        }
        if interleaved && name.ends_with("attn_q.weight") {
            tensor = halves(&tensor, number("attention.head_count"));
        }
        if interleaved && name.ends_with("attn_k.weight") {
            tensor = halves(&tensor, number("attention.head_count_kv"));
        }
        tensors.insert(hub_name(name, feed_norm), tensor);
    }
    let vocab = tensors["model.embed_tokens.weight"].dim(0).unwrap();
    let builder = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    (builder, vocab)
}

pub fn gemma2(content: &Content, file: &mut BufReader<File>) -> gemma2::Model {
    let (weights, vocab) = weights(content, file, "pre_feedforward_layernorm", true, false);
    let number = |key: &str| count(content, key).unwrap();
    let config = gemma2::Config {
        attention_bias: false,
        head_dim: number("attention.key_length"),
        hidden_activation: candle_nn::Activation::GeluPytorchTanh,
        hidden_size: number("embedding_length"),
        intermediate_size: number("feed_forward_length"),
        num_attention_heads: number("attention.head_count"),
        num_hidden_layers: number("block_count"),
        num_key_value_heads: number("attention.head_count_kv"),
        rms_norm_eps: float(content, "attention.layer_norm_rms_epsilon", f64::NAN),
        rope_theta: float(content, "rope.freq_base", f64::NAN),
        vocab_size: vocab,
        final_logit_softcapping: Some(float(content, "final_logit_softcapping", 30.0)),
        attn_logit_softcapping: Some(float(content, "attn_logit_softcapping", 50.0)),
        query_pre_attn_scalar: number("attention.key_length"),
        // Its own window is not that of the model: the tests stay inside.
        sliding_window: None,
        max_position_embeddings: 2048,
    };
    gemma2::Model::new(false, &config, weights).unwrap()
}

pub fn phi3(content: &Content, file: &mut BufReader<File>) -> phi3::Model {
    let (weights, vocab) = weights(content, file, "phi3", false, false);
    let number = |key: &str| count(content, key).unwrap();
    let width = number("embedding_length");
    let head_dim = width / number("attention.head_count");
    let rotary = number("rope.dimension_count") as f64 / head_dim as f64;
    let config = phi3::Config {
        vocab_size: vocab,
        hidden_act: candle_nn::Activation::Silu,
        hidden_size: width,
        intermediate_size: number("feed_forward_length"),
        num_hidden_layers: number("block_count"),
        num_attention_heads: number("attention.head_count"),
        num_key_value_heads: number("attention.head_count_kv"),
        rms_norm_eps: float(content, "attention.layer_norm_rms_epsilon", f64::NAN),
        rope_theta: float(content, "rope.freq_base", f64::NAN),
        bos_token_id: None,
        eos_token_id: None,
        // candle multiplies by the factors where the paper divides.
        rope_scaling: None,
        max_position_embeddings: 2048,
        original_max_position_embeddings: None,
        partial_rotary_factor: Some(rotary).filter(|r| *r < 1.0),
        tie_word_embeddings: false,
    };
    phi3::Model::new(&config, weights).unwrap()
}

pub fn smollm3(content: &Content, file: &mut BufReader<File>) -> smollm3::ModelForCausalLM {
    let (weights, vocab) = weights(content, file, "post_attention_layernorm", false, true);
    let number = |key: &str| count(content, key).unwrap();
    let config = smollm3::Config {
        vocab_size: vocab,
        hidden_size: number("embedding_length"),
        intermediate_size: number("feed_forward_length"),
        num_hidden_layers: number("block_count"),
        num_attention_heads: number("attention.head_count"),
        num_key_value_heads: number("attention.head_count_kv"),
        max_position_embeddings: 2048,
        tie_word_embeddings: false,
        rope_theta: float(content, "rope.freq_base", f64::NAN),
        rms_norm_eps: float(content, "attention.layer_norm_rms_epsilon", f64::NAN),
        hidden_act: candle_nn::Activation::Silu,
        attention_bias: None,
        attention_dropout: None,
        mlp_bias: None,
        sliding_window: None,
        use_sliding_window: None,
        rope_scaling: None,
        bos_token_id: None,
        eos_token_id: None,
        pad_token_id: None,
        max_window_layers: None,
        no_rope_layers: None,
        no_rope_layer_interval: Some(4),
    };
    smollm3::ModelForCausalLM::new(&config, weights).unwrap()
}

pub fn mistral(content: &Content, file: &mut BufReader<File>) -> mistral::Model {
    let (weights, vocab) = weights(content, file, "post_attention_layernorm", false, true);
    let number = |key: &str| count(content, key).unwrap();
    let config = mistral::Config {
        vocab_size: vocab,
        hidden_size: number("embedding_length"),
        intermediate_size: number("feed_forward_length"),
        num_hidden_layers: number("block_count"),
        num_attention_heads: number("attention.head_count"),
        head_dim: count(content, "attention.key_length"),
        num_key_value_heads: number("attention.head_count_kv"),
        hidden_act: candle_nn::Activation::Silu,
        max_position_embeddings: 2048,
        rms_norm_eps: float(content, "attention.layer_norm_rms_epsilon", f64::NAN),
        rope_theta: float(content, "rope.freq_base", f64::NAN),
        // It forgets its window once it reads token by token: the tests stay inside.
        sliding_window: None,
        use_flash_attn: false,
    };
    mistral::Model::new(&config, weights).unwrap()
}

/// A tensor's name in the safetensors files of the families. The norm before the
/// feed-forward part is called `feed_norm`: the families differ in it.
pub fn hub_name(name: &str, feed_norm: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => return "model.norm.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.").unwrap().split_once('.').unwrap();
    let (part, kind) = part.rsplit_once('.').unwrap();
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "post_attention_norm" => "post_attention_layernorm",
        "ffn_norm" if feed_norm == "phi3" => "post_attention_layernorm",
        "ffn_norm" => feed_norm,
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        // Phi-3's holds gate and up.
        "ffn_up" if feed_norm == "phi3" => "mlp.gate_up_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("unknown tensor {other}"),
    };
    format!("model.layers.{layer}.{part}.{kind}")
}
