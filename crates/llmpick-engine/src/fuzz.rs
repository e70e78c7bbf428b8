//! What the fuzzers drive: any bytes go in, and a result or a sentence comes out.
//!
//! The targets in `fuzz/` call these, and so does a loop of mutations in
//! `tests/fuzzed.rs`, which needs neither nightly nor cargo-fuzz. A panic is a finding; so
//! is a result that breaks one of the promises asserted here.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use llmpick_core::{GenerateRequest, Message, Prompt, Role, Sampling};

use crate::template::ChatTemplate;
use crate::tokens::{Encode, Tokenizer};
use crate::{EngineOptions, Model};

/// A model file. If it is one, it also answers, with two tokens at most.
pub fn gguf(bytes: &[u8]) {
    let options = EngineOptions {
        threads: Some(1),
        max_context: Some(64),
        memory_limit: Some(256 << 20),
        ..EngineOptions::default()
    };
    let Ok(mut model) = Model::from_bytes(bytes.to_vec(), &options) else {
        return;
    };
    let request = GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(2),
        ..GenerateRequest::new(Prompt::Text("ab <|im_end|> ü".to_owned()))
    };
    // It may refuse, and it may not panic.
    drop(model.generate(&request, &|| false, &mut |_| {}));
    let chat = GenerateRequest {
        prompt: Prompt::Chat(vec![Message::user("ab")]),
        ..request
    };
    drop(model.generate(&chat, &|| false, &mut |_| {}));
}

/// A vocabulary, and a text to encode with it.
///
/// # Panics
/// If an id is outside of the vocabulary.
pub fn tokenizer(bytes: &[u8]) {
    let mut feed = Feed(bytes);
    let metadata = vocabulary(&mut feed);
    let Ok(tokenizer) = Tokenizer::from_gguf(&metadata) else {
        return;
    };
    let text = String::from_utf8_lossy(feed.0).into_owned();
    for parse_special in [false, true] {
        let options = Encode {
            add_bos: parse_special,
            parse_special,
        };
        let Ok(ids) = tokenizer.encode(&text, options) else {
            continue;
        };
        assert!(
            ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()),
            "an id is outside of the vocabulary"
        );
        tokenizer.decode(&ids);
        for id in ids.iter().chain(&[u32::MAX]) {
            tokenizer.piece(*id);
        }
    }
    tokenizer.defuse(&text);
}

/// A chat template and a conversation.
pub fn template(bytes: &[u8]) {
    // Two bytes of zero, or the end, close the template.
    let end = bytes.windows(2).position(|w| w == [0, 0]);
    let (source, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
    let source = String::from_utf8_lossy(source);
    if doubles(&source) {
        return;
    }
    let Ok(template) = ChatTemplate::new(&source, Some("<s>".to_owned()), None) else {
        return;
    };
    let content = String::from_utf8_lossy(rest).into_owned();
    let said = |role, content: &str| Message {
        role,
        content: content.to_owned(),
    };
    let messages = [
        said(Role::System, "be brief"),
        said(Role::User, &content),
        said(Role::Assistant, "yes"),
        said(Role::User, "and?"),
    ];
    for count in 0..=messages.len() {
        for prompt in [false, true] {
            drop(template.render(&messages[..count], prompt));
        }
    }
    let mut feed = Feed(&[]);
    if let Ok(tokenizer) = Tokenizer::from_gguf(&vocabulary(&mut feed)) {
        drop(template.encode(&tokenizer, &messages, true));
    }
}

/// Whether a template may fill the memory within one expression, or through what macros
/// hand each other: the things that are not bounded, see the README of `fuzz/`.
fn doubles(source: &str) -> bool {
    let count = |words: &[&str]| -> usize {
        let each = words.iter().map(|word| source.matches(word).count());
        each.sum()
    };
    let joins = count(&["~", "+", "|", "*"]);
    let powers = count(&["replace", "join", "indent", "format", "center"]);
    let repeats = count(&["macro", "recursive", "call"]);
    powers > 1 || joins > 24 || (count(&["~", "+", "*"]) > 0 && repeats > 0)
}

/// The metadata of a small tokenizer, made of what the bytes say.
fn vocabulary(feed: &mut Feed<'_>) -> HashMap<String, Value> {
    let model = ["gpt2", "llama", "llama", "bert"][usize::from(feed.byte() % 4)];
    let pres = ["default", "qwen2", "llama-bpe", "tekken", "smollm", "none"];
    let pre = pres[usize::from(feed.byte()) % pres.len()];
    let flags = feed.byte();
    let count = usize::from(feed.byte());
    let mut tokens = Vec::new();
    let (mut kinds, mut scores) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let head = feed.byte();
        tokens.push(Value::String(feed.text(usize::from(head % 9))));
        kinds.push(Value::I32(i32::from(head / 9 % 8)));
        scores.push(Value::F32(match head {
            255 => f32::NAN,
            254 => f32::NEG_INFINITY,
            _ => -f32::from(head),
        }));
    }
    let mut merges = Vec::new();
    for _ in 0..feed.byte() % 32 {
        let length = usize::from(feed.byte() % 12);
        merges.push(Value::String(feed.text(length)));
    }
    let id = |feed: &mut Feed<'_>| Value::U32(u32::from(feed.byte()));
    let mut metadata = HashMap::from([
        ("model".to_owned(), Value::String(model.to_owned())),
        ("pre".to_owned(), Value::String(pre.to_owned())),
        ("tokens".to_owned(), Value::Array(tokens)),
    ]);
    let optional = [
        ("token_type", Value::Array(kinds)),
        ("scores", Value::Array(scores)),
        ("merges", Value::Array(merges)),
        ("bos_token_id", id(feed)),
        ("eos_token_id", id(feed)),
        ("unknown_token_id", id(feed)),
        ("add_bos_token", Value::Bool(true)),
        ("add_space_prefix", Value::Bool(false)),
    ];
    for (bit, (key, value)) in optional.into_iter().enumerate() {
        if flags >> bit & 1 == 0 {
            metadata.insert(key.to_owned(), value);
        }
    }
    metadata
        .into_iter()
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
        .collect()
}

/// Bytes taken from the front; zeros once there are none.
struct Feed<'a>(&'a [u8]);

impl Feed<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn text(&mut self, length: usize) -> String {
        let (text, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }
}
