//! `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` in the words of
//! GGUF: tokens, kinds, merges, the rule that cuts text, special ids, the chat template.
//!
//! A `tokenizer.json` is a small program. The two kinds that the families of the decoder
//! use are recognised exactly (byte-level BPE behind a rule that is known by name, and BPE
//! over SentencePiece's characters); anything else is refused, never guessed. What GGUF
//! has no key for is said by keys of our own, `tokenizer.llmpick.*`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::Value as Gguf;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::config::{Config, ids};
use super::json::{self, Json};
use crate::error::LoadErrorKind;
use crate::tokens::{self, TokenizerError};

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    #[serde(borrow)]
    model: &'a RawValue,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Bpe {
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// Older files write a merge as one text, newer ones as two.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

/// The keys of the folder's tokenizer and chat template.
pub(super) fn read(folder: &Path, config: &Config) -> Result<Vec<(String, Gguf)>, LoadErrorKind> {
    let name = "tokenizer.json";
    let bytes = super::map(folder, name)?.ok_or_else(|| super::missing(name))?;
    let file: File = json::parse(name, super::text(name, &bytes)?)?;
    let mut all = Keys::default();
    let by_text = vocabulary(&file, config, &mut all)?;
    let own = "tokenizer_config.json";
    let own = Json::read(folder, own)?.unwrap_or_else(|| Json::none(own));
    special_ids(folder, &file, &own, config, &by_text, &mut all)?;
    if let Some(template) = template(folder, &own)? {
        let key = "tokenizer.chat_template".to_owned();
        all.0.push((key, Gguf::String(template)));
    }
    Ok(all.0)
}

/// Keys under `tokenizer.`.
#[derive(Default)]
struct Keys(Vec<(String, Gguf)>);

impl Keys {
    fn set(&mut self, key: &str, value: Gguf) {
        self.0.push((format!("tokenizer.{key}"), value));
    }
}

/// A `tokenizer.json` that does something else than is known here.
fn unknown(what: &str) -> LoadErrorKind {
    LoadErrorKind::Tokenizer(TokenizerError::Unknown(what.to_owned()))
}

/// Tokens, kinds and merges, and how text is prepared. Gives the ids by text.
fn vocabulary(
    file: &File,
    config: &Config,
    all: &mut Keys,
) -> Result<HashMap<String, u32>, LoadErrorKind> {
    let name = "tokenizer.json";
    let kind: Kind = json::parse(name, file.model.get())?;
    match kind.kind.as_deref() {
        // The oldest files do not say.
        Some("BPE") | None => {}
        Some(other) => return Err(unknown(&format!("the model `{other}`"))),
    }
    let model: Bpe = json::parse(name, file.model.get())?;
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if model.dropout.is_some_and(|share| share != 0.0)
        || is_set(&model.continuing_subword_prefix)
        || is_set(&model.end_of_word_suffix)
    {
        return Err(unknown("BPE with dropout, prefixes or suffixes"));
    }
    let pieces = match cut(file)? {
        Cut::Bytes(expressions) => {
            let rule = tokens::rule_of(&expressions).ok_or_else(|| {
                let expression = expressions.last().cloned().unwrap_or_default();
                unknown(&format!("the way to cut text `{expression}`"))
            })?;
            all.set("ggml.model", Gguf::String("gpt2".to_owned()));
            all.set("ggml.pre", Gguf::String(rule.to_owned()));
            false
        }
        Cut::Pieces(prefix) => {
            if !model.byte_fallback {
                return Err(unknown("SentencePiece's characters without bytes"));
            }
            all.set("ggml.model", Gguf::String("llama".to_owned()));
            all.set("ggml.add_space_prefix", Gguf::Bool(prefix != "never"));
            all.set("llmpick.space_prefix", Gguf::String(prefix.to_owned()));
            true
        }
    };
    all.set("llmpick.ignore_merges", Gguf::Bool(model.ignore_merges));
    let by_text = tokens_and_kinds(file, &model, pieces, config, all)?;
    let merges = model.merges.into_iter().map(|merge| match merge {
        Merge::Joined(merge) => Gguf::String(merge),
        Merge::Pair(left, right) => Gguf::String(format!("{left} {right}")),
    });
    all.set("ggml.merges", Gguf::Array(merges.collect()));
    Ok(by_text)
}

fn tokens_and_kinds(
    file: &File,
    model: &Bpe,
    pieces: bool,
    config: &Config,
    all: &mut Keys,
) -> Result<HashMap<String, u32>, LoadErrorKind> {
    let malformed = |what: String| Err(LoadErrorKind::Malformed(what));
    let added = file.added_tokens.iter().map(|token| token.id);
    let count = model.vocab.values().copied().chain(added).max();
    let count = count.map_or(0, |last| last as usize + 1);
    // Also what bounds the memory that a file can ask for.
    if count == 0 || count > config.vocab {
        return malformed(format!(
            "it has {count} tokens and embeddings for {}",
            config.vocab
        ));
    }
    let mut texts: Vec<Option<(String, i32)>> = vec![None; count];
    for (text, id) in &model.vocab {
        let is_byte = pieces && model.byte_fallback && tokens::is_byte(text);
        let kind = match () {
            () if model.unk_token.as_ref() == Some(text) => 2,
            () if is_byte => 6,
            () => 1,
        };
        let place = &mut texts[*id as usize];
        if let Some((other, _)) = place {
            return malformed(format!(
                "the tokens `{other}` and `{text}` share the id {id}"
            ));
        }
        *place = Some((text.clone(), kind));
    }
    let mut strips = false;
    for token in &file.added_tokens {
        if token.single_word || token.lstrip {
            return Err(unknown(&format!(
                "the token `{}`, which looks at what stands before it",
                token.content
            )));
        }
        strips |= token.rstrip && !tokens::never_strips(&token.content);
        let place = &mut texts[token.id as usize];
        if let Some((other, _)) = place.as_ref().filter(|(text, _)| *text != token.content) {
            return malformed(format!(
                "the tokens `{other}` and `{}` share the id {}",
                token.content, token.id
            ));
        }
        // Looked for after spaces are written as `▁`, or before.
        let text = match pieces && token.normalized {
            true => token.content.replace(SPACE, " "),
            false => token.content.clone(),
        };
        let kind = match place {
            Some((_, 2)) => 2,
            _ if token.special => 3,
            _ => 4,
        };
        *place = Some((text, kind));
    }
    let mut by_text = HashMap::with_capacity(count);
    let (mut all_texts, mut kinds) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for (id, place) in texts.into_iter().enumerate() {
        // Ids that nothing is said of are places that nobody uses.
        let (text, kind) = place.unwrap_or_else(|| (format!("[PAD{id}]"), 5));
        by_text.insert(text.clone(), id as u32);
        all_texts.push(Gguf::String(text));
        kinds.push(Gguf::I32(kind));
    }
    all.set("ggml.tokens", Gguf::Array(all_texts));
    all.set("ggml.token_type", Gguf::Array(kinds));
    all.set("llmpick.strips_after_special", Gguf::Bool(strips));
    Ok(by_text)
}

/// How text is cut before anything is merged.
enum Cut {
    /// By expressions, one after the other; bytes are characters.
    Bytes(Vec<String>),
    /// Not at all; a space is `▁`, and one may be put before a text.
    Pieces(&'static str),
}

/// The steps of a part of the program, sequences taken apart.
fn steps(part: &Option<Value>) -> Vec<&Value> {
    let mut open: Vec<&Value> = part.iter().filter(|part| !part.is_null()).collect();
    let mut steps = Vec::new();
    while let Some(step) = open.pop() {
        let lists = ["normalizers", "pretokenizers", "processors"];
        match lists.iter().find_map(|key| step.get(key)?.as_array()) {
            Some(inner) if kind_of(step) == "Sequence" => open.extend(inner.iter().rev()),
            _ => steps.push(step),
        }
    }
    steps
}

fn kind_of(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn flag_of(step: &Value, key: &str) -> Option<bool> {
    step.get(key).and_then(Value::as_bool)
}

fn text_of<'a>(step: &'a Value, key: &str) -> Option<&'a str> {
    step.get(key).and_then(Value::as_str)
}

fn cut(file: &File) -> Result<Cut, LoadErrorKind> {
    let normalisers = steps(&file.normalizer);
    let cuts = steps(&file.pre_tokenizer);
    if cuts.last().is_some_and(|step| kind_of(step) == "ByteLevel") {
        // Text is taken as it is: see `tokens`.
        if let Some(step) = normalisers.iter().find(|step| kind_of(step) != "NFC") {
            return Err(unknown(&format!("the normaliser `{}`", kind_of(step))));
        }
        return Ok(Cut::Bytes(expressions(&cuts)?));
    }
    let (mut spaces, mut prefix) = (false, "never");
    for step in normalisers {
        match kind_of(step) {
            "Prepend" if text_of(step, "prepend") == Some(SPACE) => prefix = "segment",
            "Replace"
                if step.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
                    && text_of(step, "content") == Some(SPACE) =>
            {
                spaces = true;
            }
            other => return Err(unknown(&format!("the normaliser `{other}`"))),
        }
    }
    for step in cuts {
        match kind_of(step) {
            // There is none left to split at.
            "Split"
                if spaces
                    && step.pointer("/pattern/String").and_then(Value::as_str) == Some(" ") => {}
            "Metaspace"
                if text_of(step, "replacement") == Some(SPACE)
                    && flag_of(step, "split") == Some(false) =>
            {
                spaces = true;
                prefix = match text_of(step, "prepend_scheme") {
                    Some("first") => "first",
                    Some("never") => "never",
                    _ => "always",
                };
            }
            other => return Err(unknown(&format!("the pre-tokenizer `{other}`"))),
        }
    }
    match spaces {
        true => Ok(Cut::Pieces(prefix)),
        false => Err(unknown("a text whose spaces stay spaces")),
    }
}

/// The expressions of a byte-level vocabulary, in the order in which they are applied.
fn expressions(cuts: &[&Value]) -> Result<Vec<String>, LoadErrorKind> {
    let mut expressions = Vec::new();
    for step in cuts {
        match kind_of(step) {
            "ByteLevel" if flag_of(step, "add_prefix_space") == Some(true) => {
                return Err(unknown("a space put before byte-level text"));
            }
            "ByteLevel" => {
                if flag_of(step, "use_regex").unwrap_or(true) {
                    expressions.push(tokens::GPT2.to_owned());
                }
            }
            "Digits" => expressions.push(
                match flag_of(step, "individual_digits") {
                    Some(true) => r"\p{N}",
                    _ => r"\p{N}+",
                }
                .to_owned(),
            ),
            "Split" => {
                let pattern = step.pointer("/pattern/Regex").and_then(Value::as_str);
                let (behaviour, invert) = (text_of(step, "behavior"), flag_of(step, "invert"));
                match (pattern, behaviour, invert.unwrap_or(false)) {
                    // Keeping what matches and dropping the rest is the same: the rules
                    // that are known leave no rest.
                    (Some(pattern), Some("Isolated"), false)
                    | (Some(pattern), Some("Removed"), true) => {
                        expressions.push(pattern.to_owned());
                    }
                    _ => return Err(unknown("a split that removes text")),
                }
            }
            other => return Err(unknown(&format!("the pre-tokenizer `{other}`"))),
        }
    }
    Ok(expressions)
}

/// The tokens that begin, end and fill, and whether the first is put before a prompt.
fn special_ids(
    folder: &Path,
    file: &File,
    own: &Json,
    config: &Config,
    by_text: &HashMap<String, u32>,
    all: &mut Keys,
) -> Result<(), LoadErrorKind> {
    let named = |key: &str| -> Result<Option<u32>, LoadErrorKind> {
        let text = match own.get(key) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(token) => text_of(token, "content").ok_or_else(|| own.wrong(key, "a token"))?,
        };
        match by_text.get(text) {
            Some(id) => Ok(Some(*id)),
            None => Err(own.wrong(key, "a token of `tokenizer.json`")),
        }
    };
    let first = beginning(file).and_then(|text| by_text.get(text).copied());
    let bos = match named("bos_token")? {
        None if !own.names("bos_token") => first.or(config.bos.first().copied()),
        named => named,
    };
    let generation = "generation_config.json";
    let generation = Json::read(folder, generation)?.unwrap_or_else(|| Json::none(generation));
    let mut ends = ids(&generation, "eos_token_id")?;
    ends.extend(&config.eos);
    let eos = named("eos_token")?.or(ends.first().copied());
    for (key, id) in [
        ("ggml.bos_token_id", bos),
        ("ggml.eos_token_id", eos),
        ("ggml.unknown_token_id", named("unk_token")?),
        ("ggml.padding_token_id", named("pad_token")?),
    ] {
        if let Some(id) = id {
            all.set(key, Gguf::U32(id));
        }
    }
    let ends = ends.into_iter().map(Gguf::U32).collect();
    all.set("llmpick.end_token_ids", Gguf::Array(ends));
    // These classes of transformers put it there themselves.
    let class = own.text("tokenizer_class")?.unwrap_or_default();
    let by_class = ["LlamaTokenizer", "GemmaTokenizer"]
        .iter()
        .any(|name| class.starts_with(name));
    let adds = own.flag("add_bos_token")?;
    let adds = adds.unwrap_or(first.is_some() || by_class);
    all.set("ggml.add_bos_token", Gguf::Bool(adds));
    Ok(())
}

/// The token that the post-processor puts before every text.
fn beginning<'a>(file: &'a File<'_>) -> Option<&'a str> {
    steps(&file.post_processor)
        .into_iter()
        .filter(|step| kind_of(step) == "TemplateProcessing")
        .find_map(|step| step.pointer("/single/0/SpecialToken/id")?.as_str())
}

/// The chat template, wherever it is.
fn template(folder: &Path, own: &Json) -> Result<Option<String>, LoadErrorKind> {
    let name = "chat_template.jinja";
    if let Some(bytes) = super::map(folder, name)? {
        return Ok(Some(super::text(name, &bytes)?.to_owned()));
    }
    let key = "chat_template";
    let name = "chat_template.json";
    let beside = Json::read(folder, name)?.unwrap_or_else(|| Json::none(name));
    let from = match beside.get(key) {
        Some(_) => &beside,
        None => own,
    };
    match from.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        // Several by name, such as `default` and `tool_use`.
        Some(Value::Array(list)) => {
            let called = |name| list.iter().find(|one| text_of(one, "name") == Some(name));
            let text = called("default").and_then(|one| text_of(one, "template"));
            match text {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(from.wrong(key, "a list with a template called `default`")),
            }
        }
        Some(_) => Err(from.wrong(key, "a text, or a list of them")),
    }
}
