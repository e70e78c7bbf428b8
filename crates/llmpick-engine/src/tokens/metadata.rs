//! Typed reading of the `tokenizer.*` keys.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;

use super::{TokenKind, TokenizerError};

/// A GGUF file's metadata.
pub(super) struct Metadata<'a>(pub(super) &'a HashMap<String, Value>);

/// The ids that a file names for their role.
#[derive(Default)]
pub(super) struct SpecialIds {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) end_of_turn: Option<u32>,
    pub(super) end_of_message: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) padding: Option<u32>,
}

impl SpecialIds {
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        [
            self.bos,
            self.eos,
            self.end_of_turn,
            self.end_of_message,
            self.unknown,
            self.padding,
        ]
        .into_iter()
        .flatten()
    }
}

impl Metadata<'_> {
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub(super) fn string(&self, key: &'static str) -> Result<&str, TokenizerError> {
        self.optional_string(key)?
            .ok_or(TokenizerError::Missing(key))
    }

    pub(super) fn optional_string(
        &self,
        key: &'static str,
    ) -> Result<Option<&str>, TokenizerError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(TokenizerError::WrongType {
                key,
                expected: "a string",
            }),
        }
    }

    pub(super) fn array(&self, key: &'static str) -> Result<&[Value], TokenizerError> {
        match self.0.get(key) {
            None => Err(TokenizerError::Missing(key)),
            Some(Value::Array(values)) => Ok(values),
            Some(_) => Err(TokenizerError::WrongType {
                key,
                expected: "an array",
            }),
        }
    }

    pub(super) fn flag(&self, key: &'static str) -> Result<Option<bool>, TokenizerError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(TokenizerError::WrongType {
                key,
                expected: "true or false",
            }),
        }
    }

    /// One kind for each token; all normal where the file has none.
    pub(super) fn token_kinds(&self, tokens: usize) -> Result<Vec<TokenKind>, TokenizerError> {
        const KEY: &str = "tokenizer.ggml.token_type";
        if !self.has(KEY) {
            return Ok(vec![TokenKind::Normal; tokens]);
        }
        let values = self.array(KEY)?;
        check_length(KEY, values.len(), tokens)?;
        values
            .iter()
            .map(|value| {
                Ok(match integer(value) {
                    Some(1) => TokenKind::Normal,
                    Some(2) => TokenKind::Unknown,
                    Some(3) => TokenKind::Control,
                    Some(4) => TokenKind::UserDefined,
                    // 0 is "undefined": nothing to print, nothing to match.
                    Some(0 | 5) => TokenKind::Unused,
                    Some(6) => TokenKind::Byte,
                    _ => {
                        return Err(TokenizerError::WrongType {
                            key: KEY,
                            expected: "an array of token types, 0 to 6",
                        });
                    }
                })
            })
            .collect()
    }

    /// One finite-or-infinite score for each token.
    pub(super) fn scores(&self, tokens: usize) -> Result<Vec<f32>, TokenizerError> {
        const KEY: &str = "tokenizer.ggml.scores";
        let values = self.array(KEY)?;
        check_length(KEY, values.len(), tokens)?;
        values
            .iter()
            .enumerate()
            .map(|(id, value)| match value {
                Value::F32(score) if score.is_nan() => Err(TokenizerError::Score(id)),
                Value::F32(score) => Ok(*score),
                _ => Err(TokenizerError::WrongType {
                    key: KEY,
                    expected: "an array of 32-bit floats",
                }),
            })
            .collect()
    }

    pub(super) fn special_ids(&self, tokens: usize) -> Result<SpecialIds, TokenizerError> {
        Ok(SpecialIds {
            bos: self.token_id("tokenizer.ggml.bos_token_id", tokens)?,
            eos: self.token_id("tokenizer.ggml.eos_token_id", tokens)?,
            end_of_turn: self.token_id("tokenizer.ggml.eot_token_id", tokens)?,
            end_of_message: self.token_id("tokenizer.ggml.eom_token_id", tokens)?,
            unknown: self.token_id("tokenizer.ggml.unknown_token_id", tokens)?,
            padding: self.token_id("tokenizer.ggml.padding_token_id", tokens)?,
        })
    }

    /// Ids that end an answer beside those with a role, by a key of ours.
    pub(super) fn more_ends(&self, tokens: usize) -> Result<Vec<u32>, TokenizerError> {
        const KEY: &str = "tokenizer.llmpick.end_token_ids";
        if !self.has(KEY) {
            return Ok(Vec::new());
        }
        let expected = "an array of token ids";
        let ids = self.array(KEY)?.iter().map(|value| match integer(value) {
            Some(id) if (0..tokens as i64).contains(&id) => Ok(id as u32),
            Some(id) => Err(TokenizerError::TokenId {
                key: KEY,
                id: id as u64,
                vocabulary: tokens,
            }),
            None => Err(TokenizerError::WrongType { key: KEY, expected }),
        });
        ids.collect()
    }

    /// Phi-3's special tokens swallow the white space after them. GGUF has no field for
    /// that: as in llama.cpp, the model's name is what tells, unless a key of ours does.
    pub(super) fn strips_after_special(&self) -> bool {
        if let Ok(Some(strips)) = self.flag("tokenizer.llmpick.strips_after_special") {
            return strips;
        }
        match self.0.get("general.name") {
            Some(Value::String(name)) => {
                let name = name.to_lowercase();
                name.contains("phi-3") || name.contains("phi3")
            }
            _ => false,
        }
    }

    fn token_id(&self, key: &'static str, tokens: usize) -> Result<Option<u32>, TokenizerError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let id = integer(value).ok_or(TokenizerError::WrongType {
            key,
            expected: "a whole number",
        })?;
        // Files say "none" as -1, in either width and sign.
        if id == -1 || id == i64::from(u32::MAX) {
            return Ok(None);
        }
        match u32::try_from(id) {
            Ok(id) if (id as usize) < tokens => Ok(Some(id)),
            _ => Err(TokenizerError::TokenId {
                key,
                id: id as u64,
                vocabulary: tokens,
            }),
        }
    }
}

fn check_length(key: &'static str, found: usize, expected: usize) -> Result<(), TokenizerError> {
    if found == expected {
        Ok(())
    } else {
        Err(TokenizerError::Length {
            key,
            found,
            expected,
        })
    }
}

fn integer(value: &Value) -> Option<i64> {
    match *value {
        Value::U8(v) => Some(v.into()),
        Value::I8(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::I16(v) => Some(v.into()),
        Value::U32(v) => Some(v.into()),
        Value::I32(v) => Some(v.into()),
        Value::U64(v) => i64::try_from(v).ok(),
        Value::I64(v) => Some(v),
        _ => None,
    }
}
