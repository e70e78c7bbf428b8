//! Tokenizers against other people's: llama.cpp (its ids are written down in
//! `fixtures/tokens.json`, made by `fixtures/make_tokens.py`) and shimmytok.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::{Content, Value};
use common::{GEMMA, QWEN_LARGE, QWEN_SMALL, SMOLLM2};
use llmpick_engine::tokens::{Encode, StreamDecoder, TokenKind, Tokenizer, TokenizerError};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

const MODELS: [&str; 4] = [SMOLLM2, QWEN_SMALL, QWEN_LARGE, GEMMA];

const PLAIN: Encode = Encode {
    add_bos: false,
    parse_special: false,
};

struct Loaded {
    name: &'static str,
    path: PathBuf,
    tokenizer: Tokenizer,
}

/// The tokenizers of the models that are there.
fn loaded() -> impl Iterator<Item = Loaded> {
    MODELS.into_iter().filter_map(|name| {
        let path = common::model(name)?;
        let mut reader = BufReader::new(File::open(&path).unwrap());
        let metadata = Content::read(&mut reader).unwrap().metadata;
        let start = std::time::Instant::now();
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        println!("{name}: tokenizer read in {:?}", start.elapsed());
        Some(Loaded {
            name,
            path,
            tokenizer,
        })
    })
}

fn fixture() -> serde_json::Value {
    serde_json::from_str(include_str!("fixtures/tokens.json")).unwrap()
}

fn text() -> String {
    fixture()["text"].as_str().unwrap().to_owned()
}

/// What of a text the vocabulary can say: SmolLM2 has no tokens for some bytes, and
/// SentencePiece has one character for `▁` and the space.
fn sayable(name: &str, text: &str) -> String {
    let missing = [
        0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2, 0xF5, 0xF6, 0xF7,
    ];
    text.chars()
        .filter(|character| match name {
            SMOLLM2 => {
                let mut buffer = [0; 4];
                let bytes = character.encode_utf8(&mut buffer).as_bytes();
                !bytes.iter().any(|byte| missing.contains(byte))
            }
            GEMMA => *character != '\u{2581}',
            _ => true,
        })
        .collect()
}

/// Decodes at once and token by token, and looks at every prefix on the way.
fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = StreamDecoder::from_start(tokenizer);
    let mut text = String::new();
    for (count, &id) in ids.iter().enumerate() {
        text.extend(stream.push(id));
        if ids.len() < 100 || count % 37 == 0 {
            let whole = tokenizer.decode(&ids[..=count]);
            let rest = stream.clone().finish().unwrap_or_default();
            assert_eq!(format!("{text}{rest}"), whole);
            // Nothing that was shown is ever taken back.
            assert!(!text.ends_with('\u{FFFD}') || whole.starts_with(&text));
        }
    }
    text.extend(stream.finish());
    text
}

#[test]
fn a_hard_text_gives_the_ids_that_llama_cpp_gives() {
    let fixture = fixture();
    let text = text();
    assert!(text.chars().count() > 5000);
    for Loaded {
        name, tokenizer, ..
    } in loaded()
    {
        // The two coders share one vocabulary.
        let key = if name == QWEN_LARGE { QWEN_SMALL } else { name };
        let expected: Vec<u32> = serde_json::from_value(fixture["ids"][key].clone()).unwrap();
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        if let Some(at) = (0..ids.len()).find(|&at| ids.get(at) != expected.get(at)) {
            let end = |ids: &[u32]| (at + 6).min(ids.len());
            panic!(
                "{name}: from token {at} {:?}, llama.cpp {:?}",
                ids[at..end(&ids)]
                    .iter()
                    .map(|&id| tokenizer.piece(id))
                    .collect::<Vec<_>>(),
                expected[at..end(&expected)]
                    .iter()
                    .map(|&id| tokenizer.piece(id))
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(ids, expected, "{name}");
        assert_eq!(decode(&tokenizer, &ids), text, "{name}");
    }
}

#[test]
fn any_text_gives_the_ids_that_shimmytok_gives_and_comes_back() {
    for Loaded {
        name,
        path,
        tokenizer,
    } in loaded()
    {
        let other = shimmytok::Tokenizer::from_gguf_file(&path).unwrap();
        let user_defined: Vec<String> = (0..tokenizer.vocab_size() as u32)
            .filter(|&id| tokenizer.kind(id) == Some(TokenKind::UserDefined))
            .filter_map(|id| tokenizer.piece(id))
            .collect();
        let mut random = Pcg64::seed_from_u64(11);
        let mut compared = 0;
        for _ in 0..3000 {
            let text = random_text(&mut random);
            let ids = tokenizer.encode(&text, PLAIN).unwrap();
            assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{text:?}");
            let text = sayable(name, &text);
            let ids = tokenizer.encode(&text, PLAIN).unwrap();
            assert_eq!(decode(&tokenizer, &ids), text, "{name}");
            // shimmytok looks for user-defined tokens only together with control tokens,
            // and takes `Ġ` for a space in SentencePiece vocabularies too.
            let incomparable = user_defined.iter().any(|special| text.contains(special))
                || (name == GEMMA && text.contains('Ġ'));
            if !incomparable {
                compared += 1;
                assert_eq!(ids, other.encode(&text, false).unwrap(), "{name}: {text:?}");
            }
        }
        assert!(
            compared > 1000,
            "{name}: only {compared} texts were compared"
        );
    }
}

fn random_text(random: &mut Pcg64) -> String {
    const PIECES: [&str; 24] = [
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "   \n",
        "the",
        "don't",
        "I'LL",
        "1234567",
        "٣",
        "한국어",
        "값이",
        "日本語",
        "ですね",
        "😀",
        "👩‍👩‍👧",
        "e\u{301}",
        "\u{a0}",
        "\u{3000}",
        "<|im_end|>",
        "<0x0A>",
        "fn x()",
        "!=",
    ];
    let length = random.random_range(0..40);
    (0..length)
        .map(|_| match random.random_range(0..4) {
            0 => random.random::<char>().to_string(),
            1 => char::from(random.random_range(0..128_u8)).to_string(),
            2 => char::from_u32(random.random_range(0..0x3400))
                .unwrap_or('x')
                .to_string(),
            _ => PIECES[random.random_range(0..PIECES.len())].to_owned(),
        })
        .collect()
}

#[test]
fn control_tokens_come_only_where_they_are_asked_for() {
    for Loaded {
        name, tokenizer, ..
    } in loaded()
    {
        let parsed = Encode {
            add_bos: true,
            parse_special: true,
        };
        let mut controls = 0;
        for id in 0..tokenizer.vocab_size() as u32 {
            if !tokenizer.is_control(id) {
                continue;
            }
            controls += 1;
            let text = tokenizer.piece(id).unwrap();
            let plain = tokenizer.encode(&text, PLAIN).unwrap();
            assert!(plain.iter().all(|&id| !tokenizer.is_control(id)), "{text}");
            assert_eq!(tokenizer.decode(&plain), text);
            let defused = tokenizer.defuse(&text);
            let ids = tokenizer.encode(&defused, parsed).unwrap();
            assert!(
                ids[usize::from(tokenizer.bos().is_some())..]
                    .iter()
                    .all(|&id| !tokenizer.is_control(id))
            );
            let mut expected: Vec<u32> = tokenizer.bos().into_iter().collect();
            expected.push(id);
            assert_eq!(tokenizer.encode(&text, parsed).unwrap(), expected, "{name}");
            assert!(tokenizer.bytes(id).is_empty());
        }
        assert!(controls > 10, "{name}");
    }
}

#[test]
fn each_model_says_how_its_texts_begin_and_end() {
    let expected: HashMap<&str, (bool, &str, &[&str])> = HashMap::from([
        (
            SMOLLM2,
            (
                false,
                "<|im_start|>",
                ["<|endoftext|>", "<|im_end|>", "<reponame>"].as_slice(),
            ),
        ),
        (QWEN_SMALL, QWEN),
        (QWEN_LARGE, QWEN),
        (
            GEMMA,
            (true, "<bos>", ["<eos>", "<end_of_turn>"].as_slice()),
        ),
    ]);
    const QWEN: (bool, &str, &[&str]) = (
        false,
        "<|endoftext|>",
        &[
            "<|endoftext|>",
            "<|im_end|>",
            "<|fim_pad|>",
            "<|repo_name|>",
            "<|file_sep|>",
        ],
    );
    for Loaded {
        name, tokenizer, ..
    } in loaded()
    {
        let ends: Vec<String> = tokenizer
            .end_of_generation()
            .iter()
            .map(|&id| tokenizer.piece(id).unwrap())
            .collect();
        let bos = tokenizer.piece(tokenizer.bos().unwrap()).unwrap();
        let ends: Vec<&str> = ends.iter().map(String::as_str).collect();
        assert_eq!(
            (tokenizer.adds_bos(), bos.as_str(), ends.as_slice()),
            expected[name]
        );
        assert!(tokenizer.is_end_of_generation(tokenizer.eos().unwrap()));
        assert_eq!(tokenizer.piece(u32::MAX), None);
        assert_eq!(tokenizer.decode(&[u32::MAX]), "");
    }
}

// Small vocabularies made here.

type Metadata = HashMap<String, Value>;

fn strings(values: &[&str]) -> Value {
    Value::Array(
        values
            .iter()
            .map(|v| Value::String((*v).to_owned()))
            .collect(),
    )
}

fn put(metadata: &mut Metadata, key: &str, value: Value) {
    metadata.insert(format!("tokenizer.ggml.{key}"), value);
}

/// A SentencePiece vocabulary: `(text, score, type)`, after an unknown token and all bytes.
fn sentence_piece(tokens: &[(&str, f32, i32)]) -> Metadata {
    let mut texts = vec!["<unk>".to_owned()];
    let mut scores = vec![Value::F32(0.0)];
    let mut types = vec![Value::I32(2)];
    for byte in 0..=255_u8 {
        texts.push(format!("<0x{byte:02X}>"));
        scores.push(Value::F32(0.0));
        types.push(Value::I32(6));
    }
    for (text, score, kind) in tokens {
        texts.push((*text).to_owned());
        scores.push(Value::F32(*score));
        types.push(Value::I32(*kind));
    }
    let mut metadata = Metadata::new();
    put(&mut metadata, "model", Value::String("llama".to_owned()));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    put(&mut metadata, "tokens", strings(&texts));
    put(&mut metadata, "scores", Value::Array(scores));
    put(&mut metadata, "token_type", Value::Array(types));
    put(&mut metadata, "unknown_token_id", Value::U32(0));
    metadata
}

/// A byte-level vocabulary of ASCII letters, `ab`, `abc` and one control token.
fn byte_level() -> Metadata {
    let mut texts: Vec<String> = ('a'..='z').map(String::from).collect();
    texts.extend(["Ġ", "ab", "abc", "<|end|>"].map(str::to_owned));
    let mut types = vec![Value::I32(1); texts.len()];
    *types.last_mut().unwrap() = Value::I32(3);
    let mut metadata = Metadata::new();
    put(&mut metadata, "model", Value::String("gpt2".to_owned()));
    put(&mut metadata, "pre", Value::String("gpt-2".to_owned()));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    put(&mut metadata, "tokens", strings(&texts));
    put(&mut metadata, "token_type", Value::Array(types));
    put(&mut metadata, "merges", strings(&["a b", "ab c"]));
    put(&mut metadata, "eos_token_id", Value::U32(29));
    metadata
}

fn pieces(tokenizer: &Tokenizer, text: &str, parse_special: bool) -> Vec<String> {
    let options = Encode {
        add_bos: false,
        parse_special,
    };
    let ids = tokenizer.encode(text, options).unwrap();
    ids.iter().map(|&id| tokenizer.piece(id).unwrap()).collect()
}

#[test]
fn sentence_piece_joins_by_score_prefixes_a_space_and_falls_back_to_bytes() {
    let tokens = [
        ("\u{2581}", -1.0, 1),
        ("a", -2.0, 1),
        ("b", -2.0, 1),
        ("c", -2.0, 1),
        ("ab", -5.0, 1),
        ("bc", -4.0, 1),
        ("\u{2581}a", -6.0, 1),
        ("<x>", -3.0, 3),
        ("bb", -1.0, 5),
        ("[u]", -1.0, 4),
    ];
    let tokenizer = Tokenizer::from_gguf(&sentence_piece(&tokens)).unwrap();
    let check = |text: &str, expected: &[&str]| {
        assert_eq!(pieces(&tokenizer, text, true), expected, "{text}");
        let ids = tokenizer.encode(text, PLAIN).unwrap();
        assert_eq!(decode(&tokenizer, &ids), text);
    };
    // `bc` is better than `ab`, and then nothing joins `▁a` with it.
    check("abc", &[" a", "bc"]);
    check("c", &[" ", "c"]);
    check(" a", &[" ", " a"]);
    check("é", &[" ", "<0xC3>", "<0xA9>"]);
    // An unused token is taken apart again.
    check("cbb", &[" ", "c", "b", "b"]);
    // A text after a special token gets a space of its own, and loses it again.
    check("c<x>c", &[" ", "c", "<x>", " ", "c"]);
    check("c[u]c", &[" ", "c", "[u]", " ", "c"]);
    assert_eq!(pieces(&tokenizer, "<x>", false), [" ", "<", "x", ">"]);
    assert_eq!(pieces(&tokenizer, "", true), [""; 0]);

    let mut metadata = sentence_piece(&tokens);
    put(&mut metadata, "add_space_prefix", Value::Bool(false));
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!(pieces(&tokenizer, "c a", true), ["c", " a"]);
}

/// The same rule, said plainly: look at all neighbours, join the best, start again.
fn join_plainly(scores: &HashMap<String, f32>, text: &str) -> Vec<String> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 1..parts.len() {
            if let Some(&score) = scores.get(&parts[at - 1..=at].concat())
                && best.is_none_or(|(highest, _)| score > highest)
            {
                best = Some((score, at));
            }
        }
        let Some((_, at)) = best else {
            return parts;
        };
        let right = parts.remove(at);
        parts[at - 1].push_str(&right);
    }
}

#[test]
fn sentence_piece_joins_as_the_plain_rule_does() {
    let mut random = Pcg64::seed_from_u64(5);
    for _ in 0..300 {
        let mut scores = HashMap::new();
        for letter in ["a", "b", "c"] {
            scores.insert(letter.to_owned(), -9.0);
        }
        for _ in 0..30 {
            let length = random.random_range(2..6);
            let text: String = (0..length)
                .map(|_| char::from(b'a' + random.random_range(0..3_u8)))
                .collect();
            // Few values, so that the leftmost of equals matters.
            scores.insert(text, -(random.random_range(0..4) as f32));
        }
        let tokens: Vec<(&str, f32, i32)> = scores
            .iter()
            .map(|(text, score)| (text.as_str(), *score, 1))
            .collect();
        let mut metadata = sentence_piece(&tokens);
        put(&mut metadata, "add_space_prefix", Value::Bool(false));
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        for _ in 0..20 {
            let length = random.random_range(0..40);
            let text: String = (0..length)
                .map(|_| char::from(b'a' + random.random_range(0..3_u8)))
                .collect();
            assert_eq!(
                pieces(&tokenizer, &text, false),
                join_plainly(&scores, &text)
            );
        }
    }
}

#[test]
fn byte_level_merges_cut_words_only() {
    let tokenizer = Tokenizer::from_gguf(&byte_level()).unwrap();
    assert_eq!(
        pieces(&tokenizer, "abcab abd", true),
        ["abc", "ab", " ", "ab", "d"]
    );
    assert_eq!(
        pieces(&tokenizer, "ab<|end|>c", true),
        ["ab", "<|end|>", "c"]
    );
    // `<`, `|` and `>` have no tokens here: they are left out, and nothing is invented.
    assert_eq!(
        pieces(&tokenizer, "ab<|end|>c", false),
        ["ab", "e", "n", "d", "c"]
    );
    assert!(!tokenizer.adds_bos());
    assert_eq!(tokenizer.end_of_generation(), [29]);
}

#[test]
fn two_ranges_of_user_text_are_kept_apart_from_the_rest() {
    let tokenizer = Tokenizer::from_gguf(&byte_level()).unwrap();
    let text = "<|end|>a<|end|>b<|end|>";
    let ends = |user: &[std::ops::Range<usize>]| {
        let ids = tokenizer.encode_mixed(text, false, user).unwrap();
        ids.iter().filter(|&&id| tokenizer.is_control(id)).count()
    };
    assert_eq!(ends(&[]), 3);
    assert_eq!(ends(&[7..8, 8..15]), 2);
    assert_eq!(ends(&[16..23, 0..1]), 1);
    // Half of a control token in a user's text is no control token.
    assert_eq!(ends(&[0..3, 10..11, 22..23]), 0);
}

#[test]
fn metadata_that_makes_no_sense_is_refused_with_a_reason() {
    let check = |base: &dyn Fn() -> Metadata, change: &dyn Fn(&mut Metadata), expected: &str| {
        let mut metadata = base();
        change(&mut metadata);
        let error = Tokenizer::from_gguf(&metadata).unwrap_err();
        assert_eq!(error.to_string(), format!("read the tokenizer: {expected}"));
    };
    let set = |key: &'static str, value: Value| {
        move |metadata: &mut Metadata| put(metadata, key, value.clone())
    };
    let remove = |key: &'static str| {
        move |metadata: &mut Metadata| {
            metadata.remove(&format!("tokenizer.ggml.{key}"));
        }
    };
    let spm = || sentence_piece(&[("a", 0.0, 1)]);
    let word = |text: &str| Value::String(text.to_owned());

    check(
        &byte_level,
        &remove("model"),
        "the file has no `tokenizer.ggml.model`",
    );
    check(
        &byte_level,
        &remove("tokens"),
        "the file has no `tokenizer.ggml.tokens`",
    );
    check(
        &byte_level,
        &remove("merges"),
        "the file has no `tokenizer.ggml.merges`",
    );
    check(
        &spm,
        &remove("scores"),
        "the file has no `tokenizer.ggml.scores`",
    );
    check(
        &byte_level,
        &set("model", Value::U32(1)),
        "`tokenizer.ggml.model` is not a string",
    );
    check(
        &byte_level,
        &set("model", word("t5")),
        "vocabularies of kind `t5` are not supported (`gpt2` and `llama` are)",
    );
    check(
        &byte_level,
        &set("pre", word("qwen99")),
        "the pre-tokenizer `qwen99` is not supported",
    );
    check(
        &byte_level,
        &set("tokens", word("x")),
        "`tokenizer.ggml.tokens` is not an array",
    );
    check(
        &byte_level,
        &set("tokens", Value::Array(vec![Value::U8(1)])),
        "`tokenizer.ggml.tokens` is not an array of strings",
    );
    check(
        &byte_level,
        &set("tokens", strings(&[])),
        "a vocabulary of 0 tokens",
    );
    check(
        &byte_level,
        &set("token_type", Value::Array(vec![Value::I32(1)])),
        "`tokenizer.ggml.token_type` has 1 entries for 30 tokens",
    );
    check(
        &byte_level,
        &set("token_type", Value::Array(vec![Value::I32(77); 30])),
        "`tokenizer.ggml.token_type` is not an array of token types, 0 to 6",
    );
    check(
        &byte_level,
        &set("eos_token_id", Value::U32(30)),
        "`tokenizer.ggml.eos_token_id` is 30, and there are 30 tokens",
    );
    check(
        &byte_level,
        &set("add_bos_token", Value::U8(1)),
        "`tokenizer.ggml.add_bos_token` is not true or false",
    );
    for (merge, why) in [
        ("ab", "is not two texts with a space between"),
        (" ab", "is not two texts with a space between"),
        ("a b c", "is not two texts with a space between"),
        ("a ", "is not two texts with a space between"),
        ("a é", "names a text that is no token"),
        ("x y", "names a text that is no token"),
        (
            "abc abcabcabcabcabcabcabcabcabc",
            "names a text that is no token",
        ),
    ] {
        check(
            &byte_level,
            &set("merges", strings(&["a b", merge])),
            &format!("merge 1 of `tokenizer.ggml.merges` {why}"),
        );
    }
    check(
        &spm,
        &set("scores", Value::Array(vec![Value::F32(f32::NAN); 258])),
        "the score of token 0 is not a number",
    );
    check(
        &spm,
        &set("scores", Value::Array(vec![Value::U8(0); 258])),
        "`tokenizer.ggml.scores` is not an array of 32-bit floats",
    );
    let bare = || {
        let mut metadata = Metadata::new();
        put(&mut metadata, "model", Value::String("llama".to_owned()));
        put(&mut metadata, "tokens", strings(&["a"]));
        put(&mut metadata, "scores", Value::Array(vec![Value::F32(0.0)]));
        metadata
    };
    check(
        &bare,
        &|_| (),
        "no token stands for the byte 0x00, and there is no unknown token",
    );
}

#[test]
fn merges_that_touch_control_tokens_are_never_followed() {
    let mut metadata = byte_level();
    put(&mut metadata, "tokens", strings(&["a", "b", "ab"]));
    put(
        &mut metadata,
        "token_type",
        Value::Array(vec![Value::I32(1), Value::I32(1), Value::I32(3)]),
    );
    put(&mut metadata, "merges", strings(&["a b"]));
    metadata.remove("tokenizer.ggml.eos_token_id");
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!(pieces(&tokenizer, "ab", false), ["a", "b"]);
    assert_eq!(pieces(&tokenizer, "ab", true), ["ab"]);
}

#[test]
fn a_run_that_is_too_long_to_split_is_an_error_or_whole() {
    let tokenizer = Tokenizer::from_gguf(&byte_level()).unwrap();
    let text = format!("a{}b", " ".repeat(3_000_000));
    match tokenizer.encode(&text, PLAIN) {
        Ok(ids) => assert_eq!(tokenizer.decode(&ids), text),
        Err(error) => assert!(matches!(error, TokenizerError::Split(_)), "{error}"),
    }
}
