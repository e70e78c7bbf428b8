//! What kind of decoder a file describes: its metadata, parsed once and checked.
//!
//! One struct serves every architecture; what differs between them is a value here
//! (a RoPE kind, a window, an activation) or a tensor that is there or not. Keys and
//! defaults follow llama.cpp's `llama-model.cpp`, which is what writers of GGUF test with.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use llmpick_kernels::{KvType, RopeKind, RopeTable};

use crate::decoder::CHUNK;
use crate::error::LoadErrorKind;
use crate::hub::ROPE_HALVES;

/// How the gate of the feed-forward part is bent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    GeluTanh,
}

/// The decoder's fixed numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub architecture: String,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Values between gate and down, where the file says so.
    pub feed_width: Option<usize>,
    /// Positions the model was trained for.
    pub context: usize,
    /// Added under the root of every norm.
    pub epsilon: f32,
    pub rope_kind: RopeKind,
    /// How many values of a head are rotated; the rest pass.
    pub rope_dim: usize,
    /// RoPE base of layers that see everything.
    pub rope_base: f64,
    /// RoPE base of layers with a window, which then are not scaled; none: all layers
    /// are turned alike.
    pub rope_base_local: Option<f64>,
    /// How positions beyond those of the training are told apart.
    pub rope_scaling: RopeScaling,
    /// Every so-manieth layer is not turned at all.
    pub rope_skip: Option<usize>,
    /// Layers with a window see so many last positions, their own included.
    pub window: Option<usize>,
    /// With a window: every so-manieth layer sees everything; none: no layer does.
    pub window_period: Option<usize>,
    /// Embeddings are multiplied by it.
    pub embedding_scale: f32,
    /// Products of queries and keys are multiplied by it.
    pub attention_scale: f32,
    /// Scores are bounded to ± this.
    pub attention_cap: Option<f32>,
    /// Logits are bounded to ± this.
    pub logit_cap: Option<f32>,
    pub activation: Activation,
    /// Queries and keys are normalised per head.
    pub qk_norms: bool,
    /// The outputs of attention and feed-forward are normalised before they are added.
    pub post_norms: bool,
    /// Query, key and value are one tensor, gate and up another.
    pub fused: bool,
}

/// What is done to the angles of RoPE for a longer context than that of the training.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RopeScaling {
    /// All positions are divided by a number; 1 is no scaling.
    Linear { divisor: f64 },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.4): slow turns are divided,
    /// fast ones are not, and those between are mixed.
    Yarn {
        divisor: f64,
        /// Positions of the training.
        original: f64,
        /// Turns within the training's context from which on a pair is not divided.
        beta_fast: f64,
        /// Turns up to which a pair is divided fully.
        beta_slow: f64,
        /// Share of the undivided angle in the mixture; 1 in the paper.
        extrapolation: f64,
        /// The sines and cosines are multiplied by it.
        magnitude: f64,
    },
    /// LongRoPE (Ding et al. 2024, arXiv 2402.13753): a divisor for each pair, from one
    /// of two tensors: the second serves contexts longer than the training's.
    Long { original: usize, magnitude: f64 },
}

/// The divisors of each pair's angle that a file may have.
#[derive(Default)]
pub(crate) struct RopeFactors {
    /// For every context (llama 3).
    pub all: Option<Vec<f32>>,
    /// For contexts up to the training's (LongRoPE).
    pub short: Option<Vec<f32>>,
    /// For longer ones.
    pub long: Option<Vec<f32>>,
}

impl Shape {
    /// Reads and checks the metadata of a file.
    pub fn from_metadata(metadata: &HashMap<String, Value>) -> Result<Self, LoadErrorKind> {
        let architecture = text(metadata, "general.architecture").ok_or_else(|| {
            LoadErrorKind::Malformed("it does not say its architecture".to_owned())
        })?;
        if !crate::error::SUPPORTED.contains(&architecture) {
            return Err(LoadErrorKind::Architecture {
                architecture: architecture.to_owned(),
            });
        }
        let keys = Keys {
            metadata,
            architecture,
        };
        let family = Family::of(architecture);
        let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
        let layers = keys.count("block_count")?;
        let width = keys.count("embedding_length")?;
        let heads = keys.count("attention.head_count")?;
        let kv_heads = keys
            .optional_count("attention.head_count_kv")?
            .unwrap_or(heads);
        let head_dim = match keys.optional_count("attention.key_length")? {
            Some(length) => length,
            None => width / heads,
        };
        let context = keys.count("context_length")?;
        let cap = |key: &str, usual: Option<f64>| match metadata.get(&keys.name(key)) {
            // How a folder of the hub says that it has not the family's own.
            Some(Value::Bool(false)) => Ok(None),
            _ => Ok::<_, LoadErrorKind>(keys.float(key)?.or(usual).map(|cap| cap as f32)),
        };
        let gemma2 = |bound: f64| (family == Family::Gemma2).then_some(bound);
        let shape = Shape {
            layers,
            width,
            heads,
            kv_heads,
            head_dim,
            feed_width: keys.optional_count("feed_forward_length")?,
            context,
            epsilon: keys.required_float("attention.layer_norm_rms_epsilon")? as f32,
            rope_kind: match family {
                Family::Llama | Family::SmolLm3 if !turns_halves(metadata) => RopeKind::Norm,
                _ => RopeKind::Neox,
            },
            rope_dim: keys
                .optional_count("rope.dimension_count")?
                .unwrap_or(head_dim),
            rope_base: keys.float("rope.freq_base")?.unwrap_or(match family {
                Family::Gemma3 => 1e6,
                _ => 1e4,
            }),
            rope_base_local: match family {
                Family::Gemma3 => Some(
                    keys.float("rope.local.freq_base")?
                        .or(keys.float("rope.freq_base_swa")?)
                        .unwrap_or(1e4),
                ),
                _ => None,
            },
            rope_scaling: rope_scaling(&keys, context)?,
            rope_skip: match family {
                // No file says so; llama.cpp and candle have it as a constant too.
                Family::SmolLm3 => Some(4),
                _ => None,
            },
            window: window(&keys, family)?,
            window_period: match family {
                Family::Gemma2 => Some(2),
                Family::Gemma3 => Some(
                    keys.optional_count("attention.sliding_window_pattern")?
                        .unwrap_or(6),
                ),
                _ => None,
            },
            embedding_scale: if gemma { (width as f32).sqrt() } else { 1.0 },
            attention_scale: match keys.float("attention.scale")? {
                Some(scale) => scale as f32,
                // The 27B of both, known by their layers, scale by another size than that
                // of their heads, and their files do not say so (llama.cpp,
                // `llama-model.cpp`).
                None if matches!(
                    (family, layers),
                    (Family::Gemma2, 46) | (Family::Gemma3, 62)
                ) =>
                {
                    1.0 / ((width / heads) as f32).sqrt()
                }
                None => 1.0 / (head_dim as f32).sqrt(),
            },
            attention_cap: cap("attn_logit_softcapping", gemma2(50.0))?,
            logit_cap: cap("final_logit_softcapping", gemma2(30.0))?,
            activation: match gemma {
                true => Activation::GeluTanh,
                false => Activation::Silu,
            },
            qk_norms: matches!(family, Family::Qwen3 | Family::Gemma3),
            post_norms: gemma,
            fused: family == Family::Phi3,
            architecture: architecture.to_owned(),
        };
        shape.check(&keys)?;
        Ok(shape)
    }

    /// How many positions a layer sees, its own included; none: all before it.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        let sees_all = self
            .window_period
            .is_some_and(|period| (layer + 1).is_multiple_of(period));
        self.window.filter(|_| !sees_all)
    }

    /// True for layers whose queries and keys are turned.
    pub fn is_turned(&self, layer: usize) -> bool {
        self.rope_skip
            .is_none_or(|period| !(layer + 1).is_multiple_of(period))
    }

    /// The angles of layers that see everything, for a model run with so many positions
    /// of context.
    pub fn rope_table(&self, factors: &RopeFactors, context: usize) -> RopeTable {
        let pairs = self.rope_dim / 2;
        let factors = match (&factors.all, &self.rope_scaling) {
            (Some(all), _) => Some(all),
            // One choice for the model's whole life: keys turned by one set of factors
            // say nothing to queries turned by the other.
            (None, RopeScaling::Long { original, .. }) if context > *original => {
                factors.long.as_ref()
            }
            (None, _) => factors.short.as_ref(),
        };
        let angle = |pair: usize| {
            let exponent = -2.0 * pair as f64 / self.rope_dim as f64;
            let factor = factors.map_or(1.0, |f| f64::from(f[pair]));
            self.rope_base.powf(exponent) / factor
        };
        match self.rope_scaling {
            RopeScaling::Linear { divisor } => {
                let angles = (0..pairs).map(|pair| angle(pair) / divisor);
                RopeTable::with_frequencies(angles.collect(), 1.0)
            }
            RopeScaling::Long { magnitude, .. } => {
                RopeTable::with_frequencies((0..pairs).map(angle).collect(), magnitude)
            }
            RopeScaling::Yarn {
                divisor,
                original,
                beta_fast,
                beta_slow,
                extrapolation,
                magnitude,
            } => {
                // The pair that makes so many turns within the training's context.
                let pair_of = |turns: f64| {
                    let whole = original / (turns * std::f64::consts::TAU);
                    self.rope_dim as f64 * whole.ln() / (2.0 * self.rope_base.ln())
                };
                let low = pair_of(beta_fast).floor().max(0.0);
                let high = pair_of(beta_slow).ceil().min(self.rope_dim as f64 - 1.0);
                let angles = (0..pairs).map(|pair| {
                    let ramp = (pair as f64 - low) / (high - low).max(0.001);
                    let undivided = (1.0 - ramp.clamp(0.0, 1.0)) * extrapolation;
                    angle(pair) * (undivided + (1.0 - undivided) / divisor)
                });
                RopeTable::with_frequencies(angles.collect(), magnitude)
            }
        }
    }

    /// Values of all query heads of one position.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of all key (or value) heads of one position.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes of keys and values for so many positions.
    pub fn cache_bytes(&self, kind: KvType, positions: usize) -> u64 {
        let each = kind.position_bytes(self.kv_heads, self.head_dim) as u64;
        (0..self.layers)
            .map(|layer| {
                let kept = self.kept_of(layer).unwrap_or(positions).min(positions);
                each.saturating_mul(kept as u64)
            })
            // Asked before it is known that the file has these layers.
            .fold(0, u64::saturating_add)
    }

    /// The positions that a layer's cache keeps; none: all.
    pub fn kept_of(&self, layer: usize) -> Option<usize> {
        // A piece of a prompt is written before its first position is read. As much again
        // lets the last tokens be taken back, as every choice of a question is.
        self.window_of(layer).map(|window| window + 2 * CHUNK)
    }

    fn check(&self, keys: &Keys<'_>) -> Result<(), LoadErrorKind> {
        let malformed = |what: String| Err(LoadErrorKind::Malformed(what));
        if self.head_dim == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return malformed(format!(
                "{} query heads do not share {} key heads of {} values",
                self.heads, self.kv_heads, self.head_dim
            ));
        }
        if !self.rope_dim.is_multiple_of(2) || self.rope_dim > self.head_dim {
            return malformed(format!(
                "RoPE turns {} of {} values",
                self.rope_dim, self.head_dim
            ));
        }
        if keys
            .optional_count("attention.value_length")?
            .is_some_and(|length| length != self.head_dim)
        {
            return Err(LoadErrorKind::Feature(
                "keys and values of different sizes".to_owned(),
            ));
        }
        if keys
            .optional_count("expert_count")
            .ok()
            .flatten()
            .is_some_and(|n| n > 1)
        {
            return Err(LoadErrorKind::Feature("a mixture of experts".to_owned()));
        }
        let one = |value: Option<f32>| value.map_or(1.0, f64::from);
        let mut positive = vec![
            ("norm epsilon", f64::from(self.epsilon)),
            ("RoPE base", self.rope_base),
            ("local RoPE base", self.rope_base_local.unwrap_or(1.0)),
            ("attention scale", f64::from(self.attention_scale)),
            ("bound of attention scores", one(self.attention_cap)),
            ("bound of logits", one(self.logit_cap)),
        ];
        match self.rope_scaling {
            RopeScaling::Linear { divisor } => positive.push(("RoPE scaling factor", divisor)),
            RopeScaling::Long { magnitude, .. } => {
                positive.push(("RoPE attention factor", magnitude));
            }
            RopeScaling::Yarn {
                divisor,
                original,
                beta_fast,
                beta_slow,
                magnitude,
                // A share, which may be 0.
                extrapolation: _,
            } => positive.extend([
                ("RoPE scaling factor", divisor),
                ("RoPE original context", original),
                ("RoPE beta_fast", beta_fast),
                ("RoPE beta_slow", beta_slow),
                ("RoPE attention factor", magnitude),
            ]),
        }
        for (what, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return malformed(format!("its {what} is {value}"));
            }
        }
        Ok(())
    }
}

/// Architectures that differ in more than their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Mistral's files are of this architecture too.
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    SmolLm3,
}

impl Family {
    /// The family of one of [`SUPPORTED`](crate::error::SUPPORTED).
    fn of(architecture: &str) -> Family {
        match architecture {
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gemma2" => Family::Gemma2,
            "gemma3" => Family::Gemma3,
            "phi3" => Family::Phi3,
            "smollm3" => Family::SmolLm3,
            _ => Family::Llama,
        }
    }
}

/// The window of layers that have one.
///
/// qwen2 and qwen3 files may name one that the model does not use.
fn window(keys: &Keys<'_>, family: Family) -> Result<Option<usize>, LoadErrorKind> {
    let window = match family {
        Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => return Ok(None),
        _ => keys.optional_count("attention.sliding_window")?,
    };
    Ok(match family {
        Family::Gemma2 => window.or(Some(4096)),
        _ => window,
    })
}

/// How angles are scaled. Values that YaRN's files leave out are those of the paper.
fn rope_scaling(keys: &Keys<'_>, context: usize) -> Result<RopeScaling, LoadErrorKind> {
    let factor = keys.float("rope.scaling.factor")?;
    let divisor = factor.or(keys.float("rope.scale_linear")?).unwrap_or(1.0);
    let original = keys
        .optional_count("rope.scaling.original_context_length")?
        .unwrap_or(context);
    let attention = keys.float("rope.scaling.attn_factor")?;
    match text(keys.metadata, &keys.name("rope.scaling.type")) {
        Some("none") => Ok(RopeScaling::Linear { divisor: 1.0 }),
        Some("longrope") => Ok(RopeScaling::Long {
            original,
            magnitude: attention.unwrap_or_else(|| {
                let log = (original as f64).ln();
                (1.0 + divisor.max(1.0).ln() / log.max(f64::MIN_POSITIVE)).sqrt()
            }),
        }),
        Some("yarn") => {
            let float = |key: &str, default: f64| {
                let value = keys.float(&format!("rope.scaling.yarn_{key}"))?;
                Ok::<_, LoadErrorKind>(value.unwrap_or(default))
            };
            if keys.float("rope.scaling.yarn_log_multiplier")?.is_some() {
                return Err(LoadErrorKind::Feature(
                    "YaRN with a log multiplier".to_owned(),
                ));
            }
            Ok(RopeScaling::Yarn {
                divisor,
                original: original as f64,
                beta_fast: float("beta_fast", 32.0)?,
                beta_slow: float("beta_slow", 1.0)?,
                extrapolation: float("ext_factor", 1.0)?.clamp(0.0, 1.0),
                magnitude: float("attn_factor", 1.0)?
                    * attention.unwrap_or(1.0)
                    * (1.0 + 0.1 * divisor.max(1.0).ln()),
            })
        }
        _ if attention.is_some_and(|a| a != 1.0) && keys.architecture != "phi3" => Err(
            LoadErrorKind::Feature("a RoPE attention factor without YaRN or LongRoPE".to_owned()),
        ),
        // Phi-3's files have the factors and say no type; without factors in the file
        // this is no scaling at all.
        None if keys.architecture == "phi3" && factor.is_none() => Ok(RopeScaling::Long {
            original,
            magnitude: attention.unwrap_or(1.0),
        }),
        None | Some("linear") => Ok(RopeScaling::Linear { divisor }),
        Some(other) => Err(LoadErrorKind::Feature(format!("RoPE scaling `{other}`"))),
    }
}

/// True for weights that are not stored in GGUF's order of a head's values.
fn turns_halves(metadata: &HashMap<String, Value>) -> bool {
    matches!(metadata.get(ROPE_HALVES), Some(Value::Bool(true)))
}

/// A text value of the metadata.
pub(crate) fn text<'a>(metadata: &'a HashMap<String, Value>, key: &str) -> Option<&'a str> {
    match metadata.get(key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// A whole number of the metadata, of whatever width.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(n) => Some(n.into()),
        Value::U16(n) => Some(n.into()),
        Value::U32(n) => Some(n.into()),
        Value::U64(n) => Some(n),
        Value::I8(n) => n.try_into().ok(),
        Value::I16(n) => n.try_into().ok(),
        Value::I32(n) => n.try_into().ok(),
        Value::I64(n) => n.try_into().ok(),
        _ => None,
    }
}

/// The keys of one architecture.
pub(crate) struct Keys<'a> {
    pub metadata: &'a HashMap<String, Value>,
    pub architecture: &'a str,
}

impl Keys<'_> {
    /// A key's full name.
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A number that must be there, 1 to 2²⁴.
    pub fn count(&self, key: &str) -> Result<usize, LoadErrorKind> {
        self.optional_count(key)?.ok_or_else(|| {
            LoadErrorKind::Malformed(format!("the setting `{}` is missing", self.name(key)))
        })
    }

    /// As [`count`](Self::count), where it may be missing.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>, LoadErrorKind> {
        let name = self.name(key);
        let Some(value) = self.metadata.get(&name) else {
            return Ok(None);
        };
        match whole(value) {
            // A file without experts may well say 0 of them.
            Some(0) if key == "expert_count" => Ok(None),
            // Nor a window of 0.
            Some(0) if key == "attention.sliding_window" => Ok(None),
            Some(n @ 1..=0x100_0000) => Ok(Some(n as usize)),
            Some(n) => Err(LoadErrorKind::Malformed(format!(
                "the setting `{name}` is {n}"
            ))),
            None if matches!(value, Value::Array(_)) => Err(LoadErrorKind::Feature(format!(
                "a different `{key}` in each layer"
            ))),
            None => Err(LoadErrorKind::Malformed(format!(
                "the setting `{name}` is no number"
            ))),
        }
    }

    /// A fraction that must be there.
    pub fn required_float(&self, key: &str) -> Result<f64, LoadErrorKind> {
        self.float(key)?.ok_or_else(|| {
            LoadErrorKind::Malformed(format!("the setting `{}` is missing", self.name(key)))
        })
    }

    /// A fraction that may be missing.
    pub fn float(&self, key: &str) -> Result<Option<f64>, LoadErrorKind> {
        let name = self.name(key);
        match self.metadata.get(&name) {
            None => Ok(None),
            Some(Value::F32(value)) => Ok(Some(f64::from(*value))),
            Some(Value::F64(value)) => Ok(Some(*value)),
            Some(_) => Err(LoadErrorKind::Malformed(format!(
                "the setting `{name}` is no fraction"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn metadata(architecture: &str, more: &[(&str, Value)]) -> HashMap<String, Value> {
        let mut map = HashMap::from([(
            "general.architecture".to_owned(),
            Value::String(architecture.to_owned()),
        )]);
        let base = [
            ("block_count", Value::U32(12)),
            ("context_length", Value::U32(2048)),
            ("embedding_length", Value::U32(64)),
            ("attention.head_count", Value::U32(4)),
            ("attention.head_count_kv", Value::U32(2)),
            ("attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ];
        for (key, value) in base.iter().chain(more) {
            map.insert(format!("{architecture}.{key}"), value.clone());
        }
        map
    }

    fn refusal(more: &[(&str, Value)]) -> String {
        Shape::from_metadata(&metadata("llama", more))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn gemma_has_windows_in_five_layers_of_six() {
        let shape = Shape::from_metadata(&metadata(
            "gemma3",
            &[
                ("attention.sliding_window", Value::U32(512)),
                ("attention.key_length", Value::U32(256)),
                ("attention.value_length", Value::U32(256)),
            ],
        ))
        .unwrap();
        let local: Vec<bool> = (0..12)
            .map(|layer| shape.window_of(layer).is_some())
            .collect();
        assert_eq!(local.iter().filter(|l| !**l).count(), 2);
        assert!(!local[5] && !local[11]);
        assert_eq!(shape.embedding_scale, 8.0);
        assert_eq!(shape.attention_scale, 1.0 / 16.0);
        assert_eq!(shape.activation, Activation::GeluTanh);
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for (key, value, said) in [
            ("block_count", Value::U32(0), "block_count"),
            ("attention.head_count_kv", Value::U32(3), "query heads"),
            ("rope.dimension_count", Value::U32(99), "RoPE turns 99"),
            ("rope.freq_base", Value::F32(f32::NAN), "RoPE base"),
            ("attention.head_count", Value::Array(vec![]), "each layer"),
            ("expert_count", Value::U32(8), "experts"),
            (
                "rope.scaling.type",
                Value::String("dynamic".to_owned()),
                "dynamic",
            ),
            ("attention.value_length", Value::U32(8), "different sizes"),
        ] {
            let message = refusal(&[(key, value)]);
            assert!(message.contains(said), "{key}: {message}");
        }
        let unknown = Shape::from_metadata(&metadata("mamba", &[])).unwrap_err();
        assert!(unknown.to_string().contains("`mamba`"), "{unknown}");
    }
}
