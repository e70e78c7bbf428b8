//! Text to tokens and back, from what the model file itself says.
//!
//! A GGUF carries its vocabulary in one of two kinds: byte-level BPE (`gpt2`: GPT-2,
//! Llama 3, Qwen, SmolLM …) and SentencePiece (`llama`: Llama 2, Mistral, Gemma …). A
//! `tokenizer.json` is brought into the same form (`hub/vocabulary.rs`), but that its
//! SentencePiece has ranked merges in place of scores. All end up behind [`Tokenizer`]. What it promises: a vocabulary it does not know exactly is
//! refused, never guessed; a *control* token (`<|im_end|>`) is made from text only where
//! the caller says so, so nobody can type one into a prompt; and the text of a token list
//! comes back the same whether decoded at once or token by token ([`StreamDecoder`]).
//!
//! Text is taken as it is: no Unicode normalisation, as in llama.cpp (Qwen's own
//! `tokenizer.json` composes to NFC first; ours gives the text back unchanged instead).

mod byte_level;
mod index;
mod merges;
mod metadata;
mod pre;
mod special;
mod spm;
mod stop;
mod stream;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Value;

use byte_level::ByteLevel;
use index::Texts;
use metadata::Metadata;
use special::{Fragment, SpecialTokens};
use spm::{Before, SentencePiece};

pub(crate) use pre::{GPT2, rule_of};
pub(crate) use special::never_strips;
pub use stop::{EmptyStop, StopMatcher, StopStep};
pub use stream::StreamDecoder;

/// How to encode a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encode {
    /// Put the beginning-of-sequence token first, where the vocabulary has one.
    pub add_bos: bool,
    /// Turn the text of control tokens into those tokens. False for anything a user wrote.
    pub parse_special: bool,
}

/// What a vocabulary says a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// Structure, such as `<|im_start|>`: never printed, never made from a user's text.
    Control,
    /// Text that is always one token, such as `<tool_call>`.
    UserDefined,
    /// A place nobody uses.
    Unused,
    /// One raw byte (SentencePiece).
    Byte,
}

/// Why a tokenizer could not be read, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A key is not there.
    #[error("read the tokenizer: the file has no `{0}`")]
    Missing(&'static str),
    /// A key holds something else than it should.
    #[error("read the tokenizer: `{key}` is not {expected}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// Two arrays that describe the same tokens differ in length.
    #[error("read the tokenizer: `{key}` has {found} entries for {expected} tokens")]
    Length {
        /// The key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        expected: usize,
    },
    /// No tokens at all, or more than ids can name.
    #[error("read the tokenizer: a vocabulary of {0} tokens")]
    VocabularySize(usize),
    /// A special token's id is beyond the vocabulary.
    #[error("read the tokenizer: `{key}` is {id}, and there are {vocabulary} tokens")]
    TokenId {
        /// The key.
        key: &'static str,
        /// What it says.
        id: u64,
        /// Tokens in the vocabulary.
        vocabulary: usize,
    },
    /// A kind of vocabulary we do not have.
    #[error(
        "read the tokenizer: vocabularies of kind `{0}` are not supported (`gpt2` and `llama` are)"
    )]
    UnknownModel(String),
    /// A way to split text we do not have. Guessing one would quietly spoil every answer.
    #[error("read the tokenizer: the pre-tokenizer `{0}` is not supported")]
    UnknownPre(String),
    /// A `tokenizer.json` that does what we do not do.
    #[error("read the tokenizer: `tokenizer.json` has {0}, which is not supported")]
    Unknown(String),
    /// A merge rule that cannot be followed.
    #[error("read the tokenizer: merge {number} of `tokenizer.ggml.merges` {why}")]
    Merge {
        /// Its position, from 0.
        number: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A score is not a number.
    #[error("read the tokenizer: the score of token {0} is not a number")]
    Score(usize),
    /// Neither byte tokens nor an unknown token: some text would silently disappear.
    #[error(
        "read the tokenizer: no token stands for the byte 0x{0:02X}, and there is no unknown token"
    )]
    NoByteToken(u8),
    /// The tokenizers library refused the vocabulary.
    #[error("read the tokenizer")]
    Build(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The splitting gave up, as it does on a million spaces in a row.
    #[error("split the text: a run of characters near byte {0} is too long")]
    Split(usize),
    /// The tokenizers library failed on a piece of text.
    #[error("encode the text")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// More text than positions can count.
    #[error("encode the text: {0} bytes are too many")]
    TooLong(usize),
}

/// A model's vocabulary. Cheap to clone: clones share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    texts: Texts,
    kinds: Vec<TokenKind>,
    model: Model,
    special: SpecialTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    end_of_generation: Vec<u32>,
    adds_bos: bool,
}

enum Model {
    ByteLevel(Box<ByteLevel>),
    SentencePiece(SentencePiece),
}

/// True for the text of a token that is one byte, `<0x0A>`.
pub(crate) fn is_byte(text: &str) -> bool {
    spm::byte_of(text).is_some()
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("kind", &self.kind_name())
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer out of a GGUF file's metadata.
    ///
    /// # Errors
    /// When something is missing, of the wrong type, inconsistent, or of a kind that we
    /// cannot follow exactly.
    pub fn from_gguf(metadata: &HashMap<String, Value>) -> Result<Self, TokenizerError> {
        let metadata = Metadata(metadata);
        let texts = Texts::read(&metadata)?;
        let mut kinds = metadata.token_kinds(texts.len())?;
        let ids = metadata.special_ids(texts.len())?;
        let ends = metadata.more_ends(texts.len())?;
        if !metadata.has("tokenizer.ggml.token_type") {
            // A file this old does not tell text from structure; its ids do.
            for id in ids.all() {
                kinds[id as usize] = TokenKind::Control;
            }
        }
        special::correct_kinds(&texts, &mut kinds);
        let (model, adds_bos_by_default) = match metadata.string("tokenizer.ggml.model")? {
            "gpt2" => {
                let pre = pre::PreTokenizer::read(&metadata)?;
                let adds_bos = pre.adds_bos();
                let model = ByteLevel::read(&metadata, &texts, &kinds, pre)?;
                (Model::ByteLevel(Box::new(model)), adds_bos)
            }
            "llama" => {
                let model = SentencePiece::read(&metadata, &texts, &kinds, ids.unknown)?;
                (Model::SentencePiece(model), true)
            }
            other => return Err(TokenizerError::UnknownModel(other.to_owned())),
        };
        let adds_bos = metadata
            .flag("tokenizer.ggml.add_bos_token")?
            .unwrap_or(adds_bos_by_default);
        Ok(Self(Arc::new(Inner {
            special: SpecialTokens::new(&texts, &kinds, metadata.strips_after_special()),
            end_of_generation: special::end_of_generation(&texts, &kinds, &ids, ends),
            bos: ids.bos,
            eos: ids.eos,
            adds_bos: adds_bos && ids.bos.is_some(),
            texts,
            kinds,
            model,
        })))
    }

    /// Encodes `text`.
    ///
    /// User-defined tokens are always found in it, control tokens only with
    /// [`Encode::parse_special`]. A character that the vocabulary cannot express at all is
    /// left out, as the reference implementations do (SmolLM2 lacks a few control bytes
    /// and the unassigned planes).
    ///
    /// # Errors
    /// Only for a text of several gigabytes, or one with a run so long that splitting gives up.
    pub fn encode(&self, text: &str, options: Encode) -> Result<Vec<u32>, TokenizerError> {
        let user_text = if options.parse_special {
            0..0
        } else {
            0..text.len()
        };
        self.encode_mixed(text, options.add_bos, std::slice::from_ref(&user_text))
    }

    /// Encodes a text of which some byte ranges were written by a user: control tokens are
    /// found only outside of them. Everything else is as if the text were one, so where no
    /// range holds the text of a control token the result is exactly that of
    /// [`encode`](Self::encode) with `parse_special`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_mixed(
        &self,
        text: &str,
        add_bos: bool,
        user_text: &[Range<usize>],
    ) -> Result<Vec<u32>, TokenizerError> {
        if u32::try_from(text.len()).is_err() {
            return Err(TokenizerError::TooLong(text.len()));
        }
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if add_bos {
            ids.extend(self.0.bos);
        }
        let mut before = Before::Nothing;
        for fragment in self.0.special.split(text, &self.0.kinds, user_text) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    before = Before::Special;
                }
                Fragment::Text(text) => {
                    match &self.0.model {
                        Model::ByteLevel(model) => {
                            model.encode(&self.0.texts, &self.0.kinds, text, &mut ids)?;
                        }
                        Model::SentencePiece(model) => {
                            model.encode(&self.0.texts, text, before, &mut ids)?;
                        }
                    }
                    before = Before::Text;
                }
            }
        }
        Ok(ids)
    }

    /// The text of `ids`, control tokens left out, bytes that are no UTF-8 as U+FFFD.
    /// The space that some vocabularies put before a text is taken off again.
    /// Ids beyond the vocabulary say nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = StreamDecoder::from_start(self);
        let mut text = String::new();
        for &id in ids {
            text.extend(stream.push(id));
        }
        text.extend(stream.finish());
        text
    }

    /// How to show one token: control tokens by name, bytes that are no text as `<0xE2>`.
    pub fn piece(&self, id: u32) -> Option<String> {
        let kind = self.kind(id)?;
        if !matches!(kind, TokenKind::Normal | TokenKind::Byte) {
            return self.0.texts.get(id).map(str::to_owned);
        }
        let bytes = self.bytes(id);
        Some(match std::str::from_utf8(&bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().map(|byte| format!("<0x{byte:02X}>")).collect(),
        })
    }

    /// What `id` adds to a text, in bytes: nothing for control, unknown and unused tokens.
    pub fn bytes(&self, id: u32) -> Cow<'_, [u8]> {
        let (Some(kind), Some(text)) = (self.kind(id), self.0.texts.get(id)) else {
            return Cow::Borrowed(&[]);
        };
        match (kind, &self.0.model) {
            (TokenKind::Control | TokenKind::Unknown | TokenKind::Unused, _) => Cow::Borrowed(&[]),
            (TokenKind::UserDefined, Model::SentencePiece(model)) if model.is_ranked() => {
                spm::unescape(text)
            }
            (TokenKind::UserDefined, _) => Cow::Borrowed(text.as_bytes()),
            (_, Model::ByteLevel(_)) => Cow::Owned(byte_level::bytes_of(text)),
            (TokenKind::Byte, Model::SentencePiece(_)) => spm::byte_of(text)
                .map_or(Cow::Borrowed(text.as_bytes()), |byte| {
                    Cow::Owned(vec![byte])
                }),
            (TokenKind::Normal, Model::SentencePiece(_)) => spm::unescape(text),
        }
    }

    /// What kind of token `id` is; `None` beyond the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.0.kinds.get(id as usize).copied()
    }

    /// True for structure such as `<|im_end|>`.
    pub fn is_control(&self, id: u32) -> bool {
        self.kind(id) == Some(TokenKind::Control)
    }

    /// The id of the token with exactly this text in the vocabulary, control tokens included.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.0.texts.find(text)
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// The end-of-sequence token that the file names.
    pub fn eos(&self) -> Option<u32> {
        self.0.eos
    }

    /// Every token that ends an answer, in ascending order: the end of sequence, of turn and
    /// of message that the file names, and those known by their text (`<|im_end|>`,
    /// `<end_of_turn>` …).
    pub fn end_of_generation(&self) -> &[u32] {
        &self.0.end_of_generation
    }

    /// True when `id` ends an answer.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.0.end_of_generation.binary_search(&id).is_ok()
    }

    /// True when a prompt should begin with [`bos`](Self::bos).
    pub fn adds_bos(&self) -> bool {
        self.0.adds_bos
    }

    /// Tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.0.texts.len()
    }

    /// `byte-level BPE` or `SentencePiece`.
    pub fn kind_name(&self) -> &'static str {
        match self.0.model {
            Model::ByteLevel(_) => "byte-level BPE",
            Model::SentencePiece(_) => "SentencePiece",
        }
    }

    /// Breaks the text of every control token in `text` with a zero-width space, so that it
    /// can be put where control tokens are looked for. A last resort: prefer
    /// [`encode_mixed`](Self::encode_mixed).
    pub fn defuse<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.0.special.defuse(text, &self.0.kinds)
    }

    fn adds_space_prefix(&self) -> bool {
        matches!(&self.0.model, Model::SentencePiece(model) if model.adds_space_prefix())
    }
}
