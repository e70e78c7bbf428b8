//! The models of candle-transformers, as they are, over the same files.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    gemma3, quantized_gemma3, quantized_llama, quantized_qwen2, quantized_qwen3,
};

pub enum Stock {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
    Gemma(gemma3::Model),
    QuantisedGemma(quantized_gemma3::ModelWeights),
}

impl Stock {
    /// The stock model for the file's architecture.
    ///
    /// For gemma3 that is `gemma3::Model` over the dequantised weights and not
    /// `quantized_gemma3`: the latter bends the gate with SiLU where the architecture has
    /// GELU (tanh), so it is a different function of the same weights.
    pub fn open(path: &Path) -> Stock {
        let mut file = BufReader::new(File::open(path).unwrap());
        let content = Content::read(&mut file).unwrap();
        let architecture = content.metadata["general.architecture"]
            .to_string()
            .unwrap()
            .clone();
        let device = Device::Cpu;
        match architecture.as_str() {
            "llama" => Stock::Llama(
                quantized_llama::ModelWeights::from_gguf(content, &mut file, &device).unwrap(),
            ),
            "qwen2" => Stock::Qwen2(
                quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &device).unwrap(),
            ),
            "qwen3" => Stock::Qwen3(
                quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &device).unwrap(),
            ),
            "gemma3" => Stock::Gemma(full_gemma(&content, &mut file)),
            other => panic!("no stock model for {other}"),
        }
    }

    /// candle's quantised gemma, with its SiLU.
    pub fn open_quantised_gemma(path: &Path) -> Stock {
        let mut file = BufReader::new(File::open(path).unwrap());
        let content = Content::read(&mut file).unwrap();
        Stock::QuantisedGemma(
            quantized_gemma3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap(),
        )
    }

    /// Logits after the last of `tokens`, which stand at the positions from `start` on.
    pub fn logits(&mut self, tokens: &[u32], start: usize) -> Vec<f32> {
        self.batch_logits(&[tokens], start).remove(0)
    }

    /// The same for several sequences of one length.
    fn batch_logits(&mut self, sequences: &[&[u32]], start: usize) -> Vec<Vec<f32>> {
        let shape = (sequences.len(), sequences[0].len());
        let input = Tensor::from_vec(sequences.concat(), shape, &Device::Cpu).unwrap();
        if start == 0 {
            self.clear();
        }
        let logits = match self {
            Stock::Llama(model) => model.forward(&input, start),
            Stock::Qwen2(model) => model.forward(&input, start),
            Stock::Qwen3(model) => model.forward(&input, start),
            Stock::Gemma(model) => model.forward(&input, start).and_then(|l| l.i((.., 0))),
            Stock::QuantisedGemma(model) => model.forward(&input, start),
        };
        logits.unwrap().to_vec2().unwrap()
    }

    /// The most likely continuation, without the end token.
    pub fn greedy(&mut self, prompt: &[u32], count: usize, ends: &[u32]) -> Vec<u32> {
        let mut logits = self.logits(prompt, 0);
        let mut tokens = Vec::new();
        loop {
            let next = argmax(&logits);
            if ends.contains(&next) {
                return tokens;
            }
            tokens.push(next);
            if tokens.len() == count {
                return tokens;
            }
            logits = self.logits(&[next], prompt.len() + tokens.len() - 1);
        }
    }

    /// The sum of negative log-likelihoods of `tokens[first..]`, each given all before it.
    pub fn nll(&mut self, tokens: &[u32], first: usize) -> f64 {
        self.batch_nll(&[tokens], first)
    }

    /// The same for several sequences of one length, added up. They are read together and
    /// token by token: stock models tell the logits of the last position only, and the
    /// quantised ones cannot take the last position of several sequences of more than one.
    pub fn batch_nll(&mut self, sequences: &[&[u32]], first: usize) -> f64 {
        let mut nll = 0.0;
        for position in 0..sequences[0].len() - 1 {
            let tokens: Vec<&[u32]> = sequences.iter().map(|s| &s[position..=position]).collect();
            let logits = self.batch_logits(&tokens, position);
            if position + 1 >= first {
                for (logits, tokens) in logits.iter().zip(sequences) {
                    nll -= log_likelihood(logits, tokens[position + 1]);
                }
            }
        }
        nll
    }

    fn clear(&mut self) {
        match self {
            Stock::Gemma(model) => model.clear_kv_cache(),
            Stock::Qwen3(model) => model.clear_kv_cache(),
            // The others begin anew at position 0.
            _ => {}
        }
    }
}

pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as u32
}

pub fn log_likelihood(logits: &[f32], target: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    f64::from(logits[target as usize] - max) - sum.ln()
}

fn full_gemma(content: &Content, file: &mut BufReader<File>) -> gemma3::Model {
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(file, name, &Device::Cpu).unwrap();
        let mut tensor = tensor.dequantize(&Device::Cpu).unwrap();
        if name.ends_with("norm.weight") {
            // GGUF stores what a norm multiplies by; candle's gemma adds the 1 itself.
            tensor = (tensor - 1.0).unwrap();
        }
        tensors.insert(gemma_name(name), tensor);
    }
    let number = |key: &str| content.metadata.get(&format!("gemma3.{key}"));
    let count = |key: &str| number(key).unwrap().to_u64().unwrap() as usize;
    let float = |key: &str, default: f64| match number(key) {
        Some(Value::F32(value)) => f64::from(*value),
        _ => default,
    };
    let config = gemma3::Config {
        attention_bias: false,
        head_dim: count("attention.key_length"),
        hidden_activation: candle_nn::Activation::GeluPytorchTanh,
        hidden_size: count("embedding_length"),
        intermediate_size: count("feed_forward_length"),
        num_attention_heads: count("attention.head_count"),
        num_hidden_layers: count("block_count"),
        num_key_value_heads: count("attention.head_count_kv"),
        rms_norm_eps: float("attention.layer_norm_rms_epsilon", f64::NAN),
        rope_theta: float("rope.freq_base", 1e6),
        rope_local_base_freq: 1e4,
        vocab_size: tensors["model.embed_tokens.weight"].dim(0).unwrap(),
        final_logit_softcapping: None,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: count("attention.key_length"),
        sliding_window: count("attention.sliding_window"),
        sliding_window_pattern: 6,
        // The length of its RoPE tables; the tests stay below it.
        max_position_embeddings: 2048,
    };
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    gemma3::Model::new(false, &config, weights).unwrap()
}

/// A tensor's name in the safetensors files of the family.
fn gemma_name(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => return "model.norm.weight".to_owned(),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.").unwrap().split_once('.').unwrap();
    let part = match part.strip_suffix(".weight").unwrap() {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "post_attention_norm" => "post_attention_layernorm",
        "ffn_norm" => "pre_feedforward_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("unknown tensor {other}"),
    };
    format!("model.layers.{layer}.{part}.weight")
}
