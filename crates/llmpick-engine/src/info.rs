//! What a model file says about itself, without its weights.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use llmpick_kernels::KvType;
use serde::{Deserialize, Serialize};

use crate::error::{LoadError, LoadErrorKind};
use crate::file::ModelFile;
use crate::runner::{Plan, RunBy};
use crate::shape::{text, whole};
use crate::tokens::Tokenizer;

/// A model's own description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `general.name`, or the file's name.
    pub name: String,
    /// `general.architecture`, for example `qwen2`.
    pub architecture: String,
    /// Whose code runs it.
    #[serde(default)]
    pub run_by: RunBy,
    /// The file type and the tensor types that make up its bytes, for example
    /// `Q4_K_M (Q5_0 62 %, Q8_0 35 %)`.
    pub quantisation: String,
    /// Weights in all.
    pub parameters: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// Positions the model was trained for.
    pub context_tokens: u32,
    /// Tokens in the vocabulary.
    pub vocab: u32,
    /// Layers.
    pub layers: u32,
    /// Values of a hidden state.
    pub width: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Values of one head.
    pub head_dim: u32,
    /// Bytes of keys and values for each token of context, kept as `f32`; layers with a
    /// window stop taking them once it is full.
    pub cache_bytes_per_token: u64,
    /// The file has a chat template.
    pub chat_template: bool,
    /// The model was tuned to follow instructions; a base model continues text.
    pub instruct: bool,
    /// `general.license`, where given.
    pub license: Option<String>,
}

/// Reads the tokenizer of the model in `path`, and none of its weights.
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer, LoadError> {
    ModelFile::open_settings(path)
        .and_then(|file| Tokenizer::from_gguf(file.metadata()).map_err(LoadErrorKind::Tokenizer))
        .map_err(|kind| LoadError::new(path, kind))
}

/// Reads the description of the model in `path`. Takes milliseconds and no memory to speak of.
pub fn read_info(path: &Path) -> Result<ModelInfo, LoadError> {
    ModelFile::open(path)
        .and_then(|file| {
            let plan = Plan::of(&file)?;
            describe(path, &file, &plan)
        })
        .map_err(|kind| LoadError::new(path, kind))
}

pub(crate) fn describe(
    path: &Path,
    file: &ModelFile,
    plan: &Plan,
) -> Result<ModelInfo, LoadErrorKind> {
    let (metadata, facts) = (file.metadata(), plan.facts());
    let string = |key: &str| text(metadata, key).map(str::to_owned);
    let file_name = path.file_stem().unwrap_or_default().to_string_lossy();
    let vocab = file
        .tensor("token_embd.weight")
        .and_then(|view| view.dims.first().copied())
        .ok_or_else(|| {
            LoadErrorKind::Malformed("the tensor `token_embd.weight` is missing".to_owned())
        })?;
    let tensors = file.tensors();
    Ok(ModelInfo {
        name: string("general.name").unwrap_or_else(|| file_name.into_owned()),
        architecture: facts.architecture.to_owned(),
        run_by: facts.run_by,
        quantisation: quantisation(file),
        parameters: tensors.map(|(_, view)| view.elements()).sum(),
        file_bytes: file.size_bytes(),
        context_tokens: facts.context as u32,
        vocab: vocab.try_into().unwrap_or(u32::MAX),
        layers: facts.layers as u32,
        width: facts.width as u32,
        heads: facts.heads as u32,
        kv_heads: facts.kv_heads as u32,
        head_dim: facts.head_dim as u32,
        cache_bytes_per_token: plan.cache_bytes(KvType::F32, 1),
        chat_template: metadata.contains_key("tokenizer.chat_template"),
        instruct: is_instruct(metadata),
        license: string("general.license"),
    })
}

/// A template is proof; without one the names decide, as publishers write them.
fn is_instruct(metadata: &HashMap<String, Value>) -> bool {
    if metadata.contains_key("tokenizer.chat_template") {
        return true;
    }
    let named = ["general.name", "general.finetune", "general.basename"]
        .into_iter()
        .filter_map(|key| text(metadata, key))
        .any(|name| {
            name.to_lowercase()
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| matches!(word, "instruct" | "it" | "chat" | "sft" | "dpo"))
        });
    let tagged = match metadata.get("general.tags") {
        Some(Value::Array(tags)) => tags.iter().any(
            |tag| matches!(tag, Value::String(tag) if tag == "conversational" || tag == "chat"),
        ),
        _ => false,
    };
    named || tagged
}

/// The name of the file type, with the types that hold most of the bytes.
fn quantisation(file: &ModelFile) -> String {
    let mut bytes: Vec<(&'static str, u64)> = Vec::new();
    for (_, view) in file.tensors() {
        let kind = type_name(view.dtype);
        let size = view.range.len() as u64;
        match bytes.iter_mut().find(|(name, _)| *name == kind) {
            Some((_, total)) => *total += size,
            None => bytes.push((kind, size)),
        }
    }
    bytes.sort_by_key(|(name, size)| (std::cmp::Reverse(*size), *name));
    let total: u64 = bytes.iter().map(|(_, size)| size).sum();
    let shares: Vec<String> = bytes
        .iter()
        .map(|(name, size)| (name, (*size as f64 / total.max(1) as f64 * 100.0).round()))
        .filter(|(_, share)| *share >= 1.0)
        .map(|(name, share)| format!("{name} {share} %"))
        .collect();
    let label = file
        .metadata()
        .get("general.file_type")
        .and_then(whole)
        .and_then(file_type);
    match label {
        Some(label) => format!("{label} ({})", shares.join(", ")),
        None => shares.join(", "),
    }
}

/// llama.cpp's `llama_ftype`.
fn file_type(id: u64) -> Option<&'static str> {
    Some(match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        32 => "BF16",
        _ => return None,
    })
}

fn type_name(dtype: GgmlDType) -> &'static str {
    match dtype {
        GgmlDType::F32 => "F32",
        GgmlDType::F16 => "F16",
        GgmlDType::BF16 => "BF16",
        GgmlDType::Q4_0 => "Q4_0",
        GgmlDType::Q4_1 => "Q4_1",
        GgmlDType::Q5_0 => "Q5_0",
        GgmlDType::Q5_1 => "Q5_1",
        GgmlDType::Q8_0 => "Q8_0",
        GgmlDType::Q8_1 => "Q8_1",
        GgmlDType::Q2K => "Q2_K",
        GgmlDType::Q3K => "Q3_K",
        GgmlDType::Q4K => "Q4_K",
        GgmlDType::Q5K => "Q5_K",
        GgmlDType::Q6K => "Q6_K",
        GgmlDType::Q8K => "Q8_K",
    }
}
