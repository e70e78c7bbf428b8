//! `config.json` in the words of GGUF.
//!
//! Defaults are those of the configuration classes in transformers
//! (`src/transformers/models/*/configuration_*.py`), for keys that a file leaves out.

use std::collections::HashMap;
use std::f64::consts::TAU;

use candle_core::quantized::gguf_file::Value;

use super::ROPE_HALVES;
use super::json::Json;
use crate::error::LoadErrorKind;

/// What differs between the configurations of the families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    SmolLm3,
}

/// A configuration whose sizes are known to make sense.
pub(super) struct Config {
    /// Of the text part, where there are others.
    json: Json,
    pub family: Family,
    /// There are parts for other things than text, whose tensors are left alone.
    pub multimodal: bool,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_width: usize,
    pub vocab: usize,
    pub tied: bool,
    /// Biases of query, key and value; of the attention's output; of the feed-forward part.
    pub biases: [bool; 3],
    context: usize,
    /// Ids that the configuration gives, where the tokenizer's own files do not.
    pub bos: Vec<u32>,
    pub eos: Vec<u32>,
    rope: Rope,
}

/// How heads are turned.
struct Rope {
    base: f64,
    base_local: f64,
    dim: usize,
    scaling: Option<Json>,
}

impl Config {
    pub fn read(json: &Json) -> Result<Config, LoadErrorKind> {
        if let Some(quantised) = json.object("quantization_config")? {
            let method = quantised.text("quant_method")?.unwrap_or("unknown");
            return Err(LoadErrorKind::Feature(format!(
                "weights quantised by `{method}` (of a hub folder, F32, F16 and BF16 weights are read)"
            )));
        }
        let kind = json
            .text("model_type")?
            .ok_or_else(|| json.missing("model_type"))?;
        let multimodal = kind == "gemma3";
        let family = Family::of(kind).ok_or_else(|| LoadErrorKind::Architecture {
            architecture: kind.to_owned(),
        })?;
        // Of a model that also sees, the part that reads.
        let text = match multimodal {
            true => json.object("text_config")?,
            false => None,
        };
        let both = |key: &str| -> Result<Vec<u32>, LoadErrorKind> {
            match text.as_ref() {
                Some(text) if text.get(key).is_some() && json.get(key).is_none() => ids(text, key),
                _ => ids(json, key),
            }
        };
        let (bos, eos) = (both("bos_token_id")?, both("eos_token_id")?);
        let tied = json.flag("tie_word_embeddings")?;
        let json = text.unwrap_or_else(|| json.clone());
        let gemma3 = family == Family::Gemma3;
        let gemma = gemma3 || family == Family::Gemma2;
        let width = json.required_count("hidden_size")?;
        let or = |key: &str, default: usize| match json.count(key)? {
            // The parts of a larger configuration leave out what is usual.
            None if multimodal => Ok(default),
            None => Err(json.missing(key)),
            Some(count) => Ok(count),
        };
        let heads = or("num_attention_heads", 8)?;
        let kv_heads =
            json.count("num_key_value_heads")?
                .unwrap_or(if multimodal { 4 } else { heads });
        let head_dim = match json.count("head_dim")? {
            Some(length) => length,
            None if gemma => 256,
            None => width / heads,
        };
        let config = Config {
            family,
            multimodal,
            layers: or("num_hidden_layers", 26)?,
            width,
            heads,
            kv_heads,
            head_dim,
            feed_width: or("intermediate_size", 9216)?,
            vocab: or("vocab_size", 262_208)?,
            tied: tied
                .or(json.flag("tie_word_embeddings")?)
                .unwrap_or(gemma || family == Family::SmolLm3),
            biases: biases(&json, family)?,
            context: or("max_position_embeddings", 131_072)?,
            bos,
            eos,
            rope: Rope::read(&json, family, head_dim)?,
            json,
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses what the decoder does not have.
    fn check(&self) -> Result<(), LoadErrorKind> {
        let feature = |what: String| Err(LoadErrorKind::Feature(what));
        let gemma = self.is_gemma();
        let key = match self.json.get("hidden_activation") {
            Some(_) => "hidden_activation",
            None => "hidden_act",
        };
        if let Some(activation) = self.json.text(key)? {
            let known = match gemma {
                true => ["gelu_pytorch_tanh", "gelu_new"].as_slice(),
                false => &["silu", "swish"],
            };
            if !known.contains(&activation) {
                return feature(format!("the activation `{activation}`"));
            }
        }
        if self.json.flag("use_bidirectional_attention")? == Some(true) {
            return feature("attention to later positions".to_owned());
        }
        if self.family == Family::SmolLm3 {
            let turned = |layer: usize| !(layer + 1).is_multiple_of(4);
            let fits = match self.json.list("no_rope_layers")? {
                Some(list) => {
                    list.len() == self.layers
                        && (0..self.layers)
                            .all(|layer| list[layer].as_u64() == Some(turned(layer).into()))
                }
                None => self
                    .json
                    .count("no_rope_layer_interval")?
                    .is_none_or(|n| n == 4),
            };
            if !fits {
                return feature("layers without RoPE other than every fourth".to_owned());
            }
        }
        Ok(())
    }

    fn is_gemma(&self) -> bool {
        matches!(self.family, Family::Gemma2 | Family::Gemma3)
    }

    /// The settings that a GGUF file of this model would have.
    pub fn metadata(&self) -> Result<HashMap<String, Value>, LoadErrorKind> {
        let architecture = self.family.architecture();
        let count = |n: usize| Value::U32(n as u32);
        let mut all = vec![
            ("block_count", count(self.layers)),
            ("context_length", count(self.context)),
            ("embedding_length", count(self.width)),
            ("feed_forward_length", count(self.feed_width)),
            ("attention.head_count", count(self.heads)),
            ("attention.head_count_kv", count(self.kv_heads)),
            ("attention.key_length", count(self.head_dim)),
            ("attention.value_length", count(self.head_dim)),
            ("rope.dimension_count", count(self.rope.dim)),
            ("rope.freq_base", Value::F32(self.rope.base as f32)),
        ];
        let float = |key: &'static str, value: f64| (key, Value::F32(value as f32));
        let epsilon = self.json.float("rms_norm_eps")?.unwrap_or(1e-6);
        all.push(float("attention.layer_norm_rms_epsilon", epsilon));
        if self.is_gemma() {
            let scalar = self.json.float("query_pre_attn_scalar")?.unwrap_or(256.0);
            all.push(float("attention.scale", 1.0 / scalar.sqrt()));
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                match self.json.float(key)? {
                    // Gemma 2 has bounds of its own unless the file says that there are none.
                    None if self.json.names(key) => all.push((key, Value::Bool(false))),
                    None => {}
                    Some(bound) => all.push(float(key, bound)),
                }
            }
        }
        if self.family == Family::Gemma3 {
            all.push(float("rope.local.freq_base", self.rope.base_local));
        }
        all.extend(self.rope.metadata(self)?);
        all.extend(self.windows()?);
        let named = |(key, value): (&str, Value)| (format!("{architecture}.{key}"), value);
        let mut all: HashMap<String, Value> = all.into_iter().map(named).collect();
        let text = Value::String(architecture.to_owned());
        all.insert("general.architecture".to_owned(), text);
        all.insert(ROPE_HALVES.to_owned(), Value::Bool(true));
        Ok(all)
    }

    /// The window, and which layers have it, where the decoder has that pattern.
    fn windows(&self) -> Result<Vec<(&'static str, Value)>, LoadErrorKind> {
        let has = self.layers_with_window()?;
        let window = match self.json.count("sliding_window")? {
            Some(window) => window,
            None if self.is_gemma() => 4096,
            None if has.contains(&true) => return Err(self.json.missing("sliding_window")),
            None => self.context,
        };
        let key = "attention.sliding_window";
        // A window as wide as the context hides nothing.
        if window >= self.context || has.iter().all(|has| !has) {
            return Ok(match self.family {
                // Which has one by default.
                Family::Gemma2 => vec![(key, Value::U32(self.context as u32))],
                _ => Vec::new(),
            });
        }
        let every = |period: usize| {
            let wanted = |layer: usize| !(layer + 1).is_multiple_of(period);
            (0..self.layers).all(|layer| has[layer] == wanted(layer))
        };
        let window = (key, Value::U32(window as u32));
        // A period of one more than there are layers: all of them have the window.
        let period = (2..=self.layers + 1).find(|period| every(*period));
        match (self.family, period) {
            (Family::Gemma2, Some(2)) => Ok(vec![window]),
            (Family::Gemma3, Some(period)) => {
                let pattern = "attention.sliding_window_pattern";
                Ok(vec![window, (pattern, Value::U32(period as u32))])
            }
            (Family::Llama | Family::Mistral | Family::Phi3, _) if has.iter().all(|has| *has) => {
                Ok(vec![window])
            }
            _ => Err(LoadErrorKind::Feature(
                "a window in layers where this architecture has none here".to_owned(),
            )),
        }
    }

    fn layers_with_window(&self) -> Result<Vec<bool>, LoadErrorKind> {
        if let Some(kinds) = self.json.list("layer_types")? {
            let kinds: Option<Vec<bool>> = kinds
                .iter()
                .map(|kind| match kind.as_str()? {
                    "full_attention" => Some(false),
                    "sliding_attention" => Some(true),
                    _ => None,
                })
                .collect();
            return match kinds {
                Some(kinds) if kinds.len() == self.layers => Ok(kinds),
                Some(_) => Err(self
                    .json
                    .wrong("layer_types", "as long as there are layers")),
                None => Err(LoadErrorKind::Feature(
                    "layers other than `full_attention` and `sliding_attention`".to_owned(),
                )),
            };
        }
        let named = self.json.count("sliding_window")?.is_some();
        let used = self.json.flag("use_sliding_window")?.unwrap_or(false);
        let has: Box<dyn Fn(usize) -> bool> = match self.family {
            Family::Llama => Box::new(|_| false),
            Family::Mistral | Family::Phi3 => Box::new(move |_| named),
            Family::SmolLm3 => Box::new(move |_| named && used),
            Family::Qwen2 | Family::Qwen3 => {
                let first = match self.json.get("max_window_layers") {
                    Some(value) => value.as_u64().unwrap_or(0) as usize,
                    None => 28,
                };
                Box::new(move |layer| named && used && layer >= first)
            }
            Family::Gemma2 => Box::new(|layer| layer.is_multiple_of(2)),
            Family::Gemma3 => {
                let own = self.json.count("sliding_window_pattern")?;
                let pattern = own.or(self.json.count("_sliding_window_pattern")?);
                let pattern = pattern.unwrap_or(6);
                Box::new(move |layer| !(layer + 1).is_multiple_of(pattern))
            }
        };
        Ok((0..self.layers).map(has).collect())
    }

    /// Tensors that GGUF has and the hub writes as a formula or a list: RoPE's divisors.
    pub fn rope_factors(&self) -> Result<Vec<(&'static str, Vec<f32>)>, LoadErrorKind> {
        self.rope.factors()
    }
}

impl Family {
    fn of(kind: &str) -> Option<Family> {
        Some(match kind {
            "llama" => Family::Llama,
            "mistral" => Family::Mistral,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gemma2" => Family::Gemma2,
            "gemma3" | "gemma3_text" => Family::Gemma3,
            "phi3" => Family::Phi3,
            "smollm3" => Family::SmolLm3,
            _ => return None,
        })
    }

    /// GGUF's name; Mistral's files say `llama` there.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
            Family::Phi3 => "phi3",
            Family::SmolLm3 => "smollm3",
        }
    }
}

/// Which products have a bias: query, key and value; attention's output; feed-forward.
fn biases(json: &Json, family: Family) -> Result<[bool; 3], LoadErrorKind> {
    let flag = |key: &str| Ok::<_, LoadErrorKind>(json.flag(key)?.unwrap_or(false));
    Ok(match family {
        Family::Qwen2 => [true, false, false],
        Family::Mistral | Family::Phi3 => [false; 3],
        Family::Qwen3 | Family::Gemma2 | Family::Gemma3 => {
            let attention = flag("attention_bias")?;
            [attention, attention, false]
        }
        Family::Llama | Family::SmolLm3 => {
            let attention = flag("attention_bias")?;
            [attention, attention, flag("mlp_bias")?]
        }
    })
}

/// One id, a list of them, or none.
pub(super) fn ids(json: &Json, key: &str) -> Result<Vec<u32>, LoadErrorKind> {
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match json.get(key) {
        None => return Ok(Vec::new()),
        Some(serde_json::Value::Array(list)) => list.iter().map(id).collect(),
        Some(one) => id(one).map(|id| vec![id]),
    };
    ids.ok_or_else(|| json.wrong(key, "a token's id, or a list of them"))
}

impl Rope {
    fn read(json: &Json, family: Family, head_dim: usize) -> Result<Rope, LoadErrorKind> {
        // Since its version 5, transformers writes all of it under one key, and for models
        // with two kinds of layers once for each kind.
        let parameters = json.object("rope_parameters")?;
        let (full, local) = match &parameters {
            Some(both) if both.get("full_attention").is_some() => (
                both.object("full_attention")?,
                both.object("sliding_attention")?,
            ),
            _ => (parameters, None),
        };
        let scaling = match full {
            Some(full) => Some(full),
            None => json.object("rope_scaling")?,
        };
        let inside = |key: &str, from: &Option<Json>| match from {
            Some(from) => from.float(key),
            None => Ok(None),
        };
        if let Some(local) = &local
            && !matches!(local.text("rope_type")?, None | Some("default"))
        {
            return Err(LoadErrorKind::Feature(
                "scaled RoPE in layers with a window".to_owned(),
            ));
        }
        let share = inside("partial_rotary_factor", &scaling)?
            .or(json.float("partial_rotary_factor")?)
            .unwrap_or(1.0);
        if !(share > 0.0 && share <= 1.0) {
            return Err(json.wrong("partial_rotary_factor", "a share, above 0 and up to 1"));
        }
        Ok(Rope {
            base: inside("rope_theta", &scaling)?
                .or(json.float("rope_theta")?)
                .unwrap_or(match family {
                    Family::Gemma3 => 1e6,
                    Family::SmolLm3 => 2e6,
                    _ => 1e4,
                }),
            base_local: inside("rope_theta", &local)?
                .or(json.float("rope_local_base_freq")?)
                .unwrap_or(1e4),
            dim: (head_dim as f64 * share) as usize,
            scaling,
        })
    }

    /// How the angles are scaled, by the configuration's name for it.
    fn kind(&self) -> Result<&str, LoadErrorKind> {
        let Some(scaling) = &self.scaling else {
            return Ok("default");
        };
        let kind = scaling.text("rope_type")?.or(scaling.text("type")?);
        Ok(kind.unwrap_or("default"))
    }

    fn metadata(&self, config: &Config) -> Result<Vec<(&'static str, Value)>, LoadErrorKind> {
        let fraction = |n: f64| Value::F32(n as f32);
        let kind = |kind: &str| ("rope.scaling.type", Value::String(kind.to_owned()));
        let (Some(scaling), name) = (&self.scaling, self.kind()?) else {
            return Ok(vec![kind("none")]);
        };
        let original_key = "original_max_position_embeddings";
        let original = scaling
            .count(original_key)?
            .or(config.json.count(original_key)?);
        let length = original.unwrap_or(config.context);
        let mut all = vec![(
            "rope.scaling.original_context_length",
            Value::U32(length as u32),
        )];
        match name {
            // Llama 3's is a list of divisors, see `factors`.
            "default" | "llama3" => return Ok(vec![kind("none")]),
            "linear" => {
                let factor = fraction(scaling.required_float("factor")?);
                return Ok(vec![kind("linear"), ("rope.scaling.factor", factor)]);
            }
            "yarn" => {
                if scaling.flag("truncate")? == Some(false) {
                    return Err(LoadErrorKind::Feature("YaRN that cuts no range".to_owned()));
                }
                let factor = match scaling.float("factor")? {
                    Some(factor) => factor,
                    None => config.context as f64 / length as f64,
                };
                all.extend([kind("yarn"), ("rope.scaling.factor", fraction(factor))]);
                for (from, to) in [
                    ("beta_fast", "rope.scaling.yarn_beta_fast"),
                    ("beta_slow", "rope.scaling.yarn_beta_slow"),
                ] {
                    let value = scaling.float(from)?;
                    all.extend(value.map(|value| (to, fraction(value))));
                }
                // What GGUF has is multiplied by the paper's own factor.
                let paper = |mscale: f64| match factor > 1.0 {
                    true => 0.1 * mscale * factor.ln() + 1.0,
                    false => 1.0,
                };
                let both = (scaling.float("mscale")?, scaling.float("mscale_all_dim")?);
                let attention = match (scaling.float("attention_factor")?, both) {
                    (Some(attention), _) => Some(attention),
                    (None, (Some(one), Some(other))) if one != 0.0 && other != 0.0 => {
                        Some(paper(one) / paper(other))
                    }
                    _ => None,
                };
                let attention = attention.map(|a| fraction(a / paper(1.0)));
                all.extend(attention.map(|a| ("rope.scaling.attn_factor", a)));
            }
            "longrope" | "su" => {
                for key in ["short_mscale", "long_mscale"] {
                    if scaling.get(key).is_some() {
                        return Err(LoadErrorKind::Feature(format!("`{key}` of LongRoPE")));
                    }
                }
                let stretch = match original {
                    Some(original) => config.context as f64 / original as f64,
                    None => scaling.required_float("factor")?,
                };
                let attention = match scaling.float("attention_factor")? {
                    Some(attention) => attention,
                    None if stretch <= 1.0 => 1.0,
                    None => (1.0 + stretch.ln() / (length as f64).ln()).sqrt(),
                };
                all.extend([
                    kind("longrope"),
                    ("rope.scaling.attn_factor", fraction(attention)),
                ]);
            }
            other => return Err(LoadErrorKind::Feature(format!("RoPE scaling `{other}`"))),
        }
        Ok(all)
    }

    fn factors(&self) -> Result<Vec<(&'static str, Vec<f32>)>, LoadErrorKind> {
        let Some(scaling) = &self.scaling else {
            return Ok(Vec::new());
        };
        let pairs = self.dim / 2;
        match self.kind()? {
            "llama3" => Ok(vec![("rope_freqs.weight", self.llama3(scaling)?)]),
            "longrope" | "su" => [
                ("short_factor", "rope_factors_short.weight"),
                ("long_factor", "rope_factors_long.weight"),
            ]
            .into_iter()
            .map(|(key, name)| {
                let factors = scaling.floats(key)?.ok_or_else(|| scaling.missing(key))?;
                match factors.len() == pairs {
                    true => Ok((name, factors)),
                    false => Err(scaling.wrong(key, &format!("a list of {pairs} numbers"))),
                }
            })
            .collect(),
            _ => Ok(Vec::new()),
        }
    }

    /// Llama 3.1's divisors: none for fast turns, all of it for slow ones, a mixture
    /// between (transformers, `modeling_rope_utils.py`, `_compute_llama3_parameters`).
    fn llama3(&self, scaling: &Json) -> Result<Vec<f32>, LoadErrorKind> {
        let number = |key: &str| scaling.required_float(key);
        let factor = number("factor")?;
        let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
        let original = number("original_max_position_embeddings")?;
        if !(factor > 0.0 && low > 0.0 && high > low && original > 0.0) {
            return Err(scaling.wrong("low_freq_factor", "below `high_freq_factor`, all above 0"));
        }
        let divisor = |pair: usize| {
            let angle = self.base.powf(-2.0 * pair as f64 / self.dim as f64);
            let turns = original * angle / TAU;
            let mixed = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - mixed) / factor + mixed)) as f32
        };
        Ok((0..self.dim / 2).map(divisor).collect())
    }
}
