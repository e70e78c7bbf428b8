//! The models of candle-transformers, as they are, over the same files.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::full;
use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_transformers::models::smol::smollm3;
use candle_transformers::models::{
    gemma2, gemma3, mistral, phi3, quantized_glm4, quantized_lfm2, quantized_llama, quantized_phi,
    quantized_qwen2, quantized_qwen3,
};

pub enum Stock {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
    Gemma(gemma3::Model),
    Gemma2(gemma2::Model),
    Phi3(phi3::Model),
    SmolLm3(smollm3::ModelForCausalLM),
    Mistral(mistral::Model),
    Glm4(quantized_glm4::ModelWeights),
    Lfm2(quantized_lfm2::ModelWeights),
    Phi2(quantized_phi::ModelWeights),
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
            "qwen2" => Stock::Qwen2(
                quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &device).unwrap(),
            ),
            "qwen3" => Stock::Qwen3(
                quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &device).unwrap(),
            ),
            "gemma3" => Stock::Gemma(full::gemma(&content, &mut file)),
            "gemma2" => Stock::Gemma2(full::gemma2(&content, &mut file)),
            "phi3" => Stock::Phi3(full::phi3(&content, &mut file)),
            "smollm3" => Stock::SmolLm3(full::smollm3(&content, &mut file)),
            // Among the files that say llama, Mistral's have a window.
            "llama"
                if content
                    .metadata
                    .contains_key("llama.attention.sliding_window") =>
            {
                Stock::Mistral(full::mistral(&content, &mut file))
            }
            "llama" => Stock::Llama(
                quantized_llama::ModelWeights::from_gguf(content, &mut file, &device).unwrap(),
            ),
            "glm4" => Stock::Glm4(
                quantized_glm4::ModelWeights::from_gguf(content, &mut file, &device, DType::F32)
                    .unwrap(),
            ),
            "lfm2" => Stock::Lfm2(
                quantized_lfm2::ModelWeights::from_gguf(content, &mut file, &device).unwrap(),
            ),
            "phi2" => Stock::Phi2(
                quantized_phi::ModelWeights::from_gguf(content, &mut file, &device).unwrap(),
            ),
            other => panic!("no stock model for {other}"),
        }
    }

    /// Logits after the last of `tokens`, which stand at the positions from `start` on.
    pub fn logits(&mut self, tokens: &[u32], start: usize) -> Vec<f32> {
        let input = Tensor::new(tokens, &Device::Cpu).unwrap();
        let input = input.unsqueeze(0).unwrap();
        if start == 0 {
            self.clear();
        }
        let logits = match self {
            Stock::Llama(model) => model.forward(&input, start),
            Stock::Qwen2(model) => model.forward(&input, start),
            Stock::Qwen3(model) => model.forward(&input, start),
            Stock::Glm4(model) => model.forward(&input, start),
            Stock::Lfm2(model) => model.forward(&input, start),
            Stock::Phi2(model) => model.forward(&input, start),
            Stock::Gemma(model) => model.forward(&input, start).and_then(|l| l.i((.., 0))),
            Stock::Gemma2(model) => model.forward(&input, start).and_then(|l| l.i((.., 0))),
            Stock::Phi3(model) => model.forward(&input, start).and_then(|l| l.i((.., 0))),
            Stock::SmolLm3(model) => model.forward(&input, start).and_then(|l| l.i((.., 0))),
            Stock::Mistral(model) => model.forward(&input, start).and_then(|l| l.i((.., 0))),
        };
        logits.unwrap().squeeze(0).unwrap().to_vec1().unwrap()
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
        let mut logits = self.logits(&tokens[..first], 0);
        let mut nll = 0.0;
        for (position, target) in tokens.iter().enumerate().skip(first) {
            nll -= log_likelihood(&logits, *target);
            if position + 1 < tokens.len() {
                logits = self.logits(&[*target], position);
            }
        }
        nll
    }

    fn clear(&mut self) {
        match self {
            Stock::Gemma(model) => model.clear_kv_cache(),
            Stock::Qwen3(model) => model.clear_kv_cache(),
            Stock::Gemma2(model) => model.clear_kv_cache(),
            Stock::Phi3(model) => model.clear_kv_cache(),
            Stock::SmolLm3(model) => model.clear_kv_cache(),
            Stock::Mistral(model) => model.clear_kv_cache(),
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
