//! What kind of decoder a file describes: its metadata, parsed once and checked.
//!
//! One struct serves every architecture; what differs between them is a value here
//! (a RoPE kind, a window, an activation) or a tensor that is there or not. Keys and
//! defaults follow llama.cpp's `llama-model.cpp`, which is what writers of GGUF test with.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use llmpick_kernels::RopeKind;

use crate::error::LoadErrorKind;

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
    /// Positions the model was trained for.
    pub context: usize,
    /// Added under the root of every norm.
    pub epsilon: f32,
    pub rope_kind: RopeKind,
    /// How many values of a head are rotated; the rest pass.
    pub rope_dim: usize,
    /// RoPE base of layers that see everything.
    pub rope_base: f64,
    /// RoPE base of layers with a window.
    pub rope_base_local: f64,
    /// Positions are divided by it in layers that see everything (linear scaling).
    pub rope_divisor: f64,
    /// Layers with a window see so many last positions, their own included.
    pub window: Option<usize>,
    /// With a window: every so-manieth layer sees everything.
    pub window_period: usize,
    /// Embeddings are multiplied by it.
    pub embedding_scale: f32,
    /// Products of queries and keys are multiplied by it.
    pub attention_scale: f32,
    pub activation: Activation,
    /// Queries and keys are normalised per head.
    pub qk_norms: bool,
    /// The outputs of attention and feed-forward are normalised before they are added.
    pub post_norms: bool,
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
        let gemma = architecture == "gemma3";
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
        let shape = Shape {
            layers,
            width,
            heads,
            kv_heads,
            head_dim,
            context: keys.count("context_length")?,
            epsilon: keys.required_float("attention.layer_norm_rms_epsilon")? as f32,
            rope_kind: match architecture {
                "llama" => RopeKind::Norm,
                _ => RopeKind::Neox,
            },
            rope_dim: keys
                .optional_count("rope.dimension_count")?
                .unwrap_or(head_dim),
            rope_base: keys
                .float("rope.freq_base")?
                .unwrap_or(if gemma { 1e6 } else { 1e4 }),
            rope_base_local: keys
                .float("rope.local.freq_base")?
                .or(keys.float("rope.freq_base_swa")?)
                .unwrap_or(1e4),
            rope_divisor: rope_divisor(&keys)?,
            window: match gemma {
                true => keys.optional_count("attention.sliding_window")?,
                false => None,
            },
            window_period: keys
                .optional_count("attention.sliding_window_pattern")?
                .unwrap_or(6),
            embedding_scale: if gemma { (width as f32).sqrt() } else { 1.0 },
            attention_scale: match keys.float("attention.scale")? {
                Some(scale) => scale as f32,
                // gemma3 27B, known by its layers, scales by another size than its heads',
                // and its files do not say so (llama.cpp, `llama-model.cpp`).
                None if gemma && layers == 62 => 1.0 / ((width / heads) as f32).sqrt(),
                None => 1.0 / (head_dim as f32).sqrt(),
            },
            activation: match gemma {
                true => Activation::GeluTanh,
                false => Activation::Silu,
            },
            qk_norms: matches!(architecture, "qwen3" | "gemma3"),
            post_norms: gemma,
            architecture: architecture.to_owned(),
        };
        shape.check(&keys)?;
        Ok(shape)
    }

    /// True for layers that see only the last `window` positions.
    pub fn is_local(&self, layer: usize) -> bool {
        self.window.is_some() && !(layer + 1).is_multiple_of(self.window_period)
    }

    /// Values of all query heads of one position.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of all key (or value) heads of one position.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes of keys and values for so many positions, kept as f32.
    pub fn cache_bytes(&self, positions: usize) -> u64 {
        self.layers as u64 * 2 * self.kv_width() as u64 * 4 * positions as u64
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
        let positive = [
            ("norm epsilon", f64::from(self.epsilon)),
            ("RoPE base", self.rope_base),
            ("local RoPE base", self.rope_base_local),
            ("RoPE scaling factor", self.rope_divisor),
            ("attention scale", f64::from(self.attention_scale)),
        ];
        for (what, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return malformed(format!("its {what} is {value}"));
            }
        }
        Ok(())
    }
}

/// The divisor of positions: 1 without scaling, the factor with linear scaling.
fn rope_divisor(keys: &Keys<'_>) -> Result<f64, LoadErrorKind> {
    let factor = keys.float("rope.scaling.factor")?;
    match text(keys.metadata, &keys.name("rope.scaling.type")) {
        Some("none") => Ok(1.0),
        None => Ok(factor.unwrap_or(1.0)),
        Some("linear") => Ok(factor.or(keys.float("rope.scale_linear")?).unwrap_or(1.0)),
        Some(other) => Err(LoadErrorKind::Feature(format!("RoPE scaling `{other}`"))),
    }
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
struct Keys<'a> {
    metadata: &'a HashMap<String, Value>,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A number that must be there, 1 to 2²⁴.
    fn count(&self, key: &str) -> Result<usize, LoadErrorKind> {
        self.optional_count(key)?.ok_or_else(|| {
            LoadErrorKind::Malformed(format!("the setting `{}` is missing", self.name(key)))
        })
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>, LoadErrorKind> {
        let name = self.name(key);
        let Some(value) = self.metadata.get(&name) else {
            return Ok(None);
        };
        match whole(value) {
            // A file without experts may well say 0 of them.
            Some(0) if key == "expert_count" => Ok(None),
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

    fn required_float(&self, key: &str) -> Result<f64, LoadErrorKind> {
        self.float(key)?.ok_or_else(|| {
            LoadErrorKind::Malformed(format!("the setting `{}` is missing", self.name(key)))
        })
    }

    fn float(&self, key: &str) -> Result<Option<f64>, LoadErrorKind> {
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
        let local: Vec<bool> = (0..12).map(|layer| shape.is_local(layer)).collect();
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
                Value::String("yarn".to_owned()),
                "yarn",
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
