//! The tensors that a configuration asks for, found, checked, and given GGUF's names.

use candle_core::quantized::GgmlDType;
use llmpick_kernels::Embedding;

use super::config::{Config, Family};
use super::shards::{Found, Stored};
use crate::error::LoadErrorKind;
use crate::file::{Bytes, ModelFile, TensorView};

/// A tensor that has to be there.
struct Wanted {
    /// Its name on the hub.
    hub: String,
    /// Its name in a GGUF file.
    gguf: String,
    dims: Vec<usize>,
    /// What a norm multiplies by is 1 more than what the file holds.
    less_one: bool,
}

/// Adds what the decoder reads to `file`.
pub(super) fn add(
    file: &mut ModelFile,
    config: &Config,
    mut found: Found,
) -> Result<(), LoadErrorKind> {
    let prefix = prefix(&found);
    let mut made = Made::default();
    // Checked first: each layer asks for several.
    if config.layers > found.len() {
        return Err(LoadErrorKind::Malformed(format!(
            "it has {} layers and fewer tensors",
            config.layers
        )));
    }
    for wanted in wanted(config, prefix) {
        let stored = found.remove(&wanted.hub).ok_or_else(|| {
            LoadErrorKind::Malformed(format!("the tensor `{}` is missing", wanted.hub))
        })?;
        let view = view(&wanted, stored)?;
        file.label(&wanted.gguf, &wanted.hub);
        match wanted.less_one {
            true => made.push(wanted.gguf, &plus_one(file, &wanted.hub, &view)?),
            false => file.add_tensor(wanted.gguf, view),
        }
    }
    for (name, factors) in config.rope_factors()? {
        made.push(name.to_owned(), &factors);
    }
    made.add_to(file);
    match found.keys().find(|name| !is_ignored(name, config)) {
        None => Ok(()),
        Some(name) => Err(LoadErrorKind::Feature(format!(
            "the tensor `{name}`, which `{}` models do not have here",
            config.family.architecture()
        ))),
    }
}

/// What stands before the names of the text part.
fn prefix(found: &Found) -> &'static str {
    ["model.", "language_model.model.", "model.language_model."]
        .into_iter()
        .find(|prefix| found.contains_key(&format!("{prefix}embed_tokens.weight")))
        .unwrap_or("model.")
}

/// Tensors that nothing is lost without.
fn is_ignored(name: &str, config: &Config) -> bool {
    let other_senses = [
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ];
    // Old files have the RoPE frequencies, which follow from the base.
    name.ends_with(".rotary_emb.inv_freq")
        // A copy of the embeddings, which are used instead.
        || config.tied && (name == "lm_head.weight" || name == "language_model.lm_head.weight")
        || config.multimodal && other_senses.iter().any(|start| name.starts_with(start))
}

fn wanted(config: &Config, prefix: &str) -> Vec<Wanted> {
    let gemma = matches!(config.family, Family::Gemma2 | Family::Gemma3);
    let (width, wide) = (config.width, config.feed_width);
    let (q, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let mut all = Vec::new();
    let mut push = |hub: String, gguf: String, dims: &[usize]| {
        let is_norm = hub.ends_with("norm.weight");
        all.push(Wanted {
            hub,
            gguf,
            dims: dims.to_vec(),
            less_one: gemma && is_norm,
        });
    };
    let own = |name: &str| format!("{prefix}{name}.weight");
    let table = [config.vocab, width];
    push(own("embed_tokens"), "token_embd.weight".to_owned(), &table);
    if !config.tied {
        let name = match prefix {
            "language_model.model." => "language_model.lm_head.weight",
            _ => "lm_head.weight",
        };
        push(name.to_owned(), "output.weight".to_owned(), &table);
    }
    push(own("norm"), "output_norm.weight".to_owned(), &[width]);
    let [qkv_bias, out_bias, feed_bias] = config.biases;
    let linears: &[(&str, &str, usize, usize, bool)] = match config.family {
        Family::Phi3 => &[
            ("self_attn.qkv_proj", "attn_qkv", q + 2 * kv, width, false),
            ("self_attn.o_proj", "attn_output", width, q, false),
            ("mlp.gate_up_proj", "ffn_up", 2 * wide, width, false),
            ("mlp.down_proj", "ffn_down", width, wide, false),
        ],
        _ => &[
            ("self_attn.q_proj", "attn_q", q, width, qkv_bias),
            ("self_attn.k_proj", "attn_k", kv, width, qkv_bias),
            ("self_attn.v_proj", "attn_v", kv, width, qkv_bias),
            ("self_attn.o_proj", "attn_output", width, q, out_bias),
            ("mlp.gate_proj", "ffn_gate", wide, width, feed_bias),
            ("mlp.up_proj", "ffn_up", wide, width, feed_bias),
            ("mlp.down_proj", "ffn_down", width, wide, feed_bias),
        ],
    };
    let mut norms = match gemma {
        true => vec![
            ("input_layernorm", "attn_norm", width),
            ("post_attention_layernorm", "post_attention_norm", width),
            ("pre_feedforward_layernorm", "ffn_norm", width),
            ("post_feedforward_layernorm", "post_ffw_norm", width),
        ],
        false => vec![
            ("input_layernorm", "attn_norm", width),
            ("post_attention_layernorm", "ffn_norm", width),
        ],
    };
    if matches!(config.family, Family::Qwen3 | Family::Gemma3) {
        norms.push(("self_attn.q_norm", "attn_q_norm", config.head_dim));
        norms.push(("self_attn.k_norm", "attn_k_norm", config.head_dim));
    }
    for layer in 0..config.layers {
        let hub = |name: &str, kind: &str| format!("{prefix}layers.{layer}.{name}.{kind}");
        let gguf = |name: &str, kind: &str| format!("blk.{layer}.{name}.{kind}");
        for (from, to, rows, cols, bias) in linears {
            push(hub(from, "weight"), gguf(to, "weight"), &[*rows, *cols]);
            if *bias {
                push(hub(from, "bias"), gguf(to, "bias"), &[*rows]);
            }
        }
        for (from, to, len) in &norms {
            push(hub(from, "weight"), gguf(to, "weight"), &[*len]);
        }
    }
    all
}

/// Checks type and shape. That the bytes are as many was checked with the header.
fn view(wanted: &Wanted, stored: Stored) -> Result<TensorView, LoadErrorKind> {
    if stored.dims != wanted.dims {
        return Err(LoadErrorKind::Malformed(format!(
            "the tensor `{}` has the shape {:?} and not {:?}",
            wanted.hub, stored.dims, wanted.dims
        )));
    }
    let Some(dtype) = stored.dtype else {
        return Err(LoadErrorKind::Quantisation {
            tensor: wanted.hub.clone(),
            quantisation: stored.label,
        });
    };
    Ok(TensorView {
        dtype,
        dims: stored.dims,
        part: stored.part,
        range: stored.range,
    })
}

/// A norm's weights and 1, in the precision that GGUF keeps them in.
fn plus_one(file: &ModelFile, name: &str, view: &TensorView) -> Result<Vec<f32>, LoadErrorKind> {
    let mut values = vec![0.0; view.elements() as usize];
    Embedding::from_ggml(
        view.dtype,
        1,
        values.len(),
        file.part(view),
        view.range.clone(),
    )
    .and_then(|table| table.row(0, &mut values))
    .map_err(|source| LoadErrorKind::tensor(name, source))?;
    for value in &mut values {
        *value += 1.0;
    }
    Ok(values)
}

/// Vectors that are in no file as they are needed.
#[derive(Default)]
struct Made {
    bytes: Vec<u8>,
    tensors: Vec<(String, usize, usize)>,
}

impl Made {
    fn push(&mut self, name: String, values: &[f32]) {
        self.tensors.push((name, self.bytes.len(), values.len()));
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn add_to(self, file: &mut ModelFile) {
        if self.tensors.is_empty() {
            return;
        }
        let part = file.add_part(Bytes::Memory(self.bytes));
        for (name, start, len) in self.tensors {
            let view = TensorView {
                dtype: GgmlDType::F32,
                dims: vec![len],
                part,
                range: start..start + 4 * len,
            };
            file.add_tensor(name, view);
        }
    }
}
