//! A GGUF file written as the hub would have it: `config.json`, `tokenizer.json` and
//! safetensors, by the conventions of transformers and its converters.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value as Json, json};

use super::full::{halves, hub_name};

/// How a folder is written.
pub struct Hub {
    /// The type of the weights; norms and biases are F32 always.
    pub dtype: DType,
    /// Files of weights, at least one.
    pub shards: usize,
    /// Changes to `config.json`; `null` takes a key out.
    pub config: Vec<(&'static str, Json)>,
}

impl Default for Hub {
    fn default() -> Hub {
        Hub {
            dtype: DType::F32,
            shards: 1,
            config: Vec::new(),
        }
    }
}

impl Hub {
    /// Writes the model in `gguf` to a folder beside it and gives that folder.
    pub fn write(&self, gguf: &Path) -> PathBuf {
        self.write_to(gguf, &gguf.with_extension("hub"))
    }

    pub fn write_to(&self, gguf: &Path, folder: &Path) -> PathBuf {
        let mut file = BufReader::new(File::open(gguf).unwrap());
        let content = Content::read(&mut file).unwrap();
        fs::create_dir_all(folder).unwrap();
        let tensors = self.tensors(&content, &mut file);
        self.shard(folder, tensors);
        let mut config = config(&content);
        for (key, value) in &self.config {
            config[key] = value.clone();
        }
        save(folder, "config.json", &config);
        save_tokenizer(folder, &content.metadata);
        folder.to_path_buf()
    }

    fn tensors(&self, content: &Content, file: &mut BufReader<File>) -> BTreeMap<String, Tensor> {
        let architecture = text(&content.metadata, "general.architecture").unwrap();
        let interleaved = ["llama", "smollm3"].contains(&architecture);
        let feed_norm = match architecture {
            "phi3" => "phi3",
            name if name.starts_with("gemma") => "pre_feedforward_layernorm",
            _ => "post_attention_layernorm",
        };
        let mut all = BTreeMap::new();
        for name in content.tensor_infos.keys() {
            // These are settings on the hub.
            if name.starts_with("rope_") {
                continue;
            }
            let tensor = content.tensor(file, name, &Device::Cpu).unwrap();
            let mut tensor = tensor.dequantize(&Device::Cpu).unwrap();
            if architecture.starts_with("gemma") && name.ends_with("norm.weight") {
                tensor = (tensor - 1.0).unwrap();
            }
            for (end, key) in [
                ("attn_q.weight", "attention.head_count"),
                ("attn_k.weight", "attention.head_count_kv"),
            ] {
                if interleaved && name.ends_with(end) {
                    tensor = halves(&tensor, number(content, key).unwrap() as usize);
                }
            }
            if tensor.dims().len() == 2 {
                tensor = tensor.to_dtype(self.dtype).unwrap();
            }
            all.insert(hub_name(name, feed_norm), tensor);
        }
        all
    }

    fn shard(&self, folder: &Path, tensors: BTreeMap<String, Tensor>) {
        if self.shards == 1 {
            let tensors: HashMap<String, Tensor> = tensors.into_iter().collect();
            candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
            return;
        }
        let mut parts = vec![HashMap::new(); self.shards];
        let mut map = serde_json::Map::new();
        for (number, (name, tensor)) in tensors.into_iter().enumerate() {
            let part = number % self.shards;
            map.insert(name.clone(), json!(self.shard_name(part)));
            parts[part].insert(name, tensor);
        }
        for (part, tensors) in parts.iter().enumerate() {
            candle_core::safetensors::save(tensors, folder.join(self.shard_name(part))).unwrap();
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        save(folder, "model.safetensors.index.json", &index);
    }

    fn shard_name(&self, part: usize) -> String {
        format!("model-{:05}-of-{:05}.safetensors", part + 1, self.shards)
    }
}

pub fn save(folder: &Path, name: &str, value: &Json) {
    fs::write(folder.join(name), serde_json::to_vec(value).unwrap()).unwrap();
}

/// Writes what a file's metadata says about tokens.
pub fn save_tokenizer(folder: &Path, metadata: &HashMap<String, Value>) {
    save(folder, "tokenizer.json", &tokenizer(metadata));
    save(folder, "tokenizer_config.json", &tokenizer_config(metadata));
}

fn text<'a>(metadata: &'a HashMap<String, Value>, key: &str) -> Option<&'a str> {
    metadata.get(key).map(|v| v.to_string().unwrap().as_str())
}

fn number(content: &Content, key: &str) -> Option<f64> {
    let architecture = text(&content.metadata, "general.architecture").unwrap();
    match content.metadata.get(&format!("{architecture}.{key}"))? {
        // As a person would write it: 1e-6 and not 9.999999974752427e-7.
        Value::F32(x) => Some(x.to_string().parse().unwrap()),
        Value::U32(n) => Some(f64::from(*n)),
        _ => None,
    }
}

fn config(content: &Content) -> Json {
    let architecture = text(&content.metadata, "general.architecture").unwrap();
    let number = |key: &str| number(content, key);
    let count = |key: &str| number(key).map(|n| n as u64);
    let window = count("attention.sliding_window");
    let gemma = architecture.starts_with("gemma");
    let heads = count("attention.head_count").unwrap();
    let width = count("embedding_length").unwrap();
    let head_dim = count("attention.key_length").unwrap_or(width / heads);
    let base = if architecture == "gemma3" { 1e6 } else { 1e4 };
    let mut config = json!({
        "model_type": match architecture {
            "llama" if window.is_some() => "mistral",
            "gemma3" => "gemma3_text",
            other => other,
        },
        "hidden_size": width,
        "intermediate_size": count("feed_forward_length").unwrap(),
        "num_hidden_layers": count("block_count").unwrap(),
        "num_attention_heads": heads,
        "num_key_value_heads": count("attention.head_count_kv").unwrap(),
        "head_dim": head_dim,
        "max_position_embeddings": count("context_length").unwrap(),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon").unwrap(),
        "rope_theta": number("rope.freq_base").unwrap_or(base),
        "vocab_size": content.tensor_infos["token_embd.weight"].shape.dims()[0],
        "tie_word_embeddings": !content.tensor_infos.contains_key("output.weight"),
        "sliding_window": window,
        "eos_token_id": content.metadata.get("tokenizer.ggml.eos_token_id").map(id),
        "bos_token_id": content.metadata.get("tokenizer.ggml.bos_token_id").map(id),
    });
    if gemma {
        config["hidden_activation"] = json!("gelu_pytorch_tanh");
        config["query_pre_attn_scalar"] = json!(head_dim);
        config["attention_bias"] = json!(false);
        let caps = match architecture {
            "gemma2" => (50.0, 30.0),
            _ => (f64::NAN, f64::NAN),
        };
        for (key, usual) in [
            ("attn_logit_softcapping", caps.0),
            ("final_logit_softcapping", caps.1),
        ] {
            // NaN becomes null.
            config[key] = json!(number(key).unwrap_or(usual));
        }
    } else {
        config["hidden_act"] = json!("silu");
    }
    if architecture == "gemma3" {
        config["rope_local_base_freq"] = json!(1e4);
        config["sliding_window_pattern"] = json!(6);
    }
    if architecture.starts_with("qwen") {
        // Named by the file, and not used by the model.
        config["sliding_window"] = json!(32768);
        config["use_sliding_window"] = json!(false);
        config["max_window_layers"] = json!(0);
        config["attention_bias"] = json!(false);
    }
    if architecture == "smollm3" {
        config["no_rope_layer_interval"] = json!(4);
    }
    config
}

fn id(value: &Value) -> u64 {
    match value {
        Value::U32(id) => u64::from(*id),
        other => panic!("{other:?}"),
    }
}

fn strings(metadata: &HashMap<String, Value>, key: &str) -> Vec<String> {
    match metadata.get(key) {
        Some(Value::Array(all)) => all.iter().map(|v| v.to_string().unwrap().clone()).collect(),
        _ => Vec::new(),
    }
}

fn kinds(metadata: &HashMap<String, Value>) -> Vec<i32> {
    let Value::Array(kinds) = &metadata["tokenizer.ggml.token_type"] else {
        panic!("no kinds")
    };
    kinds.iter().map(|kind| kind.to_i32().unwrap()).collect()
}

/// `tokenizer.json` as the converters of transformers write it
/// (`convert_slow_tokenizer.py`).
fn tokenizer(metadata: &HashMap<String, Value>) -> Json {
    let texts = strings(metadata, "tokenizer.ggml.tokens");
    let kinds = kinds(metadata);
    let pieces = text(metadata, "tokenizer.ggml.model") == Some("llama");
    let piece = |id: usize| match pieces {
        // GGUF spells what a user may type; SentencePiece has one token for a tab.
        true if texts[id] == "<0x09>" => "\t".to_owned(),
        true if kinds[id] == 4 => texts[id].replace(' ', "\u{2581}"),
        _ => texts[id].clone(),
    };
    let special = |id: &usize| [3, 4].contains(&kinds[*id]);
    let added: Vec<Json> = (0..texts.len())
        .filter(special)
        .map(|id| {
            json!({
                "id": id, "content": piece(id), "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": kinds[id] == 3,
            })
        })
        .collect();
    let vocab: Vec<(String, usize)> = (0..texts.len())
        .filter(|id| pieces || !special(id))
        .map(|id| (piece(id), id))
        .collect();
    let merges = match pieces {
        true => generated_merges(&vocab, metadata, &kinds),
        false => strings(metadata, "tokenizer.ggml.merges"),
    };
    let vocab: serde_json::Map<String, Json> = vocab
        .into_iter()
        .map(|(text, id)| (text, json!(id)))
        .collect();
    let bytes = |regex: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": regex})
    };
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let cut = match text(metadata, "tokenizer.ggml.pre") {
        _ if pieces => json!({"type": "Split", "pattern": {"String": " "},
            "behavior": "MergedWithPrevious", "invert": false}),
        Some("smollm") => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, bytes(true)]}),
        Some("qwen2") => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": qwen}, "behavior": "Isolated",
                "invert": false},
            bytes(false)]}),
        other => panic!("{other:?}"),
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": match pieces {
            true => json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}),
            false => Json::Null,
        },
        "pre_tokenizer": cut,
        "post_processor": Json::Null,
        "decoder": Json::Null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": pieces.then_some("<unk>"),
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": pieces, "byte_fallback": pieces, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
}

/// Every way to put a token together from two others, by the token's score.
fn generated_merges(
    vocab: &[(String, usize)],
    metadata: &HashMap<String, Value>,
    kinds: &[i32],
) -> Vec<String> {
    let Value::Array(scores) = &metadata["tokenizer.ggml.scores"] else {
        panic!("no scores")
    };
    let ids: HashMap<&str, usize> = vocab
        .iter()
        .map(|(text, id)| (text.as_str(), *id))
        .collect();
    let mut merges = Vec::new();
    for (text, id) in vocab {
        // SentencePiece scores what its users defined 0; GGUF's −1000 is its own.
        let score = match kinds[*id] {
            4 => 0.0,
            _ => scores[*id].to_f32().unwrap(),
        };
        let mut own = Vec::new();
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                own.push((*l, *r, format!("{left} {right}")));
            }
        }
        own.sort();
        merges.extend(own.into_iter().map(|(_, _, merge)| (score, merge)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges.into_iter().map(|(_, merge)| merge).collect()
}

fn tokenizer_config(metadata: &HashMap<String, Value>) -> Json {
    let texts = strings(metadata, "tokenizer.ggml.tokens");
    let token = |key: &str| {
        let value = metadata.get(&format!("tokenizer.ggml.{key}_token_id"));
        value.map(|value| texts[id(value) as usize].clone())
    };
    let adds = metadata.get("tokenizer.ggml.add_bos_token");
    json!({
        "bos_token": token("bos"),
        // A token may be written with what is known of it.
        "eos_token": token("eos").map(|text| json!({"content": text, "lstrip": false})),
        "add_bos_token": adds.map(|adds| adds.to_bool().unwrap()),
        "chat_template": text(metadata, "tokenizer.chat_template"),
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}
