//! Architectures that candle's stock models run: our pieces, cache and refusals around them
//! give what the models give by themselves.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::Range;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use common::stock::{Stock, argmax, log_likelihood};
use common::tiny::{Tiny, prompt};
use futures::StreamExt;
use llmpick_core::{
    Backend, ChoicesRequest, Event, FinishReason, GenerateRequest, Message, Prompt, Sampling,
};
use llmpick_engine::{EngineError, EngineOptions, KvType, LocalModel, Model, RunBy, read_info};

/// Longer than the last, shorter, a single token after others, another text.
const RANGES: &[Range<usize>] = &[0..100, 0..180, 0..1, 0..70, 0..2, 30..170, 5..6];

const ALL: [&str; 4] = ["glm4", "lfm2", "phi2", "llama"];

fn text(count: usize) -> String {
    let letters = prompt(count)
        .into_iter()
        .map(|t| char::from(b' ' + (t % 95) as u8));
    letters.collect()
}

fn greedy(prompt: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        logprobs: true,
        ..GenerateRequest::new(Prompt::Text(prompt.to_owned()))
    }
}

fn logprobs(model: &mut Model, request: &GenerateRequest) -> Vec<f32> {
    let mut all = Vec::new();
    model
        .generate(request, &|| false, &mut |piece| all.extend(piece.logprobs))
        .unwrap();
    all
}

/// Prompts of lengths that are cut differently, warm and cold, against candle's model that
/// reads each of them whole.
fn check(tiny: &Tiny, ranges: &[Range<usize>]) {
    let what = tiny.architecture;
    let folder = tempfile::tempdir().unwrap();
    let path = tiny.write(folder.path());
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let text = text(180);
    let tokens = model.prompt_tokens(&Prompt::Text(text.clone())).unwrap();
    // A longer text that begins as the last did, a shorter one, one that differs.
    for range in ranges {
        let found = logprobs(&mut model, &greedy(&text[range.clone()], 3));
        assert!(!found.is_empty(), "{what}");
        let mut history = tokens[range.clone()].to_vec();
        for ours in found {
            let logits = Stock::open(&path).logits(&history, 0);
            let next = argmax(&logits);
            let theirs = log_likelihood(&logits, next);
            assert!(
                (f64::from(ours) - theirs).abs() < 1e-3,
                "{what}, {range:?}: {ours} and {theirs} after {} tokens",
                history.len()
            );
            history.push(next);
        }
    }
    let text = &text[..80];
    let found = model.perplexity(text, 40, &mut |_, _| {}).unwrap();
    let theirs: f64 = tokens
        .chunks_exact(40)
        .take(2)
        .map(|window| {
            (21..40)
                .map(|at| {
                    let logits = Stock::open(&path).logits(&window[..at], 0);
                    -log_likelihood(&logits, window[at])
                })
                .sum::<f64>()
        })
        .sum();
    assert_eq!(found.tokens, 2 * 19);
    assert!(
        (found.nll - theirs).abs() / 38.0 < 1e-3,
        "{what}: {} and {theirs}",
        found.nll
    );
}

#[test]
fn glm4_runs() {
    check(&Tiny::stock("glm4"), RANGES);
}

#[test]
fn lfm2_runs() {
    check(&Tiny::stock("lfm2"), RANGES);
}

#[test]
fn phi2_runs() {
    check(&Tiny::stock("phi2"), RANGES);
}

#[test]
fn a_llama_with_experts_runs() {
    check(&Tiny::stock("llama"), RANGES);
}

#[test]
fn quantised_weights_run() {
    for architecture in ALL {
        let tiny = Tiny {
            dtype: GgmlDType::Q8_0,
            ..Tiny::stock(architecture)
        };
        check(&tiny, &[0..70, 0..90]);
    }
}

#[test]
fn choices_are_weighed() {
    let folder = tempfile::tempdir().unwrap();
    for architecture in ALL {
        let path = Tiny::stock(architecture).write(folder.path());
        let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
        let request = ChoicesRequest {
            prompt: Prompt::Text("The sky is".to_owned()),
            choices: vec![" blue".to_owned(), " a".to_owned()],
        };
        let found = model.choices(&request, &|| false).unwrap();
        for (choice, found) in request.choices.iter().zip(found) {
            let all = Prompt::Text(format!("The sky is{choice}"));
            let tokens = model.prompt_tokens(&all).unwrap();
            let theirs = Stock::open(&path).nll(&tokens, 10);
            assert!(
                (found.logprob + theirs).abs() < 1e-3,
                "{architecture}: {} and {theirs}",
                found.logprob
            );
        }
    }
}

#[test]
fn the_description_says_that_it_is_a_stock_model() {
    let folder = tempfile::tempdir().unwrap();
    for architecture in ALL {
        let tiny = Tiny {
            context: 9000,
            ..Tiny::stock(architecture)
        };
        let path = tiny.write(folder.path());
        let info = read_info(&path).unwrap();
        assert_eq!(info.run_by, RunBy::Stock);
        assert_eq!((info.layers, info.width), (3, 64));
        // candle's tables of these two end there.
        let limited = ["phi2", "llama"].contains(&architecture);
        assert_eq!(info.context_tokens, if limited { 4096 } else { 9000 });
    }
    let path = Tiny::new("qwen2").write(folder.path());
    assert_eq!(read_info(&path).unwrap().run_by, RunBy::Own);
}

#[test]
fn what_a_stock_model_takes_for_granted_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    for (architecture, key, value, said) in [
        (
            "phi2",
            "attention.head_count_kv",
            Value::U32(2),
            "shared key heads",
        ),
        ("phi2", "rope.freq_base", Value::F32(5e4), "10,000"),
        ("phi2", "attention.head_count", Value::U32(0), "head_count"),
        ("phi2", "feed_forward_length", Value::U32(7), "ffn_up"),
        ("glm4", "rope.dimension_count", Value::U32(16), "a half"),
        ("glm4", "rope.freq_base", Value::F32(f32::NAN), "RoPE base"),
        ("glm4", "block_count", Value::U32(1 << 23), "layers"),
        ("glm4", "block_count", Value::U32(4), "blk.3"),
        ("glm4", "block_count", Value::U32(2), "blk.2"),
        ("lfm2", "shortconv.l_cache", Value::U32(4), "conv"),
        (
            "lfm2",
            "attention.head_count_kv",
            Value::Array(vec![Value::U32(2)]),
            "3 layers",
        ),
        ("lfm2", "attention.head_count_kv", Value::U32(2), "attn_q"),
        ("llama", "expert_used_count", Value::U32(9), "9 of 4"),
        ("llama", "expert_count", Value::U32(5), "ffn_gate_inp"),
        (
            "llama",
            "rope.dimension_count",
            Value::U32(8),
            "a part of a head",
        ),
    ] {
        let mut tiny = Tiny::stock(architecture);
        tiny.more.push((key, value));
        let path = tiny.write(folder.path());
        let refused = Model::open(&path, &EngineOptions::default()).err();
        let sentence = refused.map(|error| error.kind.to_string());
        assert!(
            sentence.as_ref().is_some_and(|s| s.contains(said)),
            "{architecture}, {key}: {sentence:?}"
        );
    }
    let tiny = Tiny {
        vectors: vec![("blk.0.attn_gate.weight", vec![1.0; 64])],
        ..Tiny::stock("glm4")
    };
    let refused = Model::open(&tiny.write(folder.path()), &EngineOptions::default());
    let sentence = refused.err().unwrap().kind.to_string();
    assert!(sentence.contains("attn_gate"), "{sentence}");
}

#[test]
fn a_cancelled_sequence_leaves_nothing_wrong() {
    let folder = tempfile::tempdir().unwrap();
    for architecture in ALL {
        let path = Tiny::stock(architecture).write(folder.path());
        let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
        let request = greedy(&text(150), 4);
        let right = logprobs(&mut model, &request);
        model.clear_cache();
        let asked = std::cell::Cell::new(0);
        let cancelled = || asked.replace(asked.get() + 1) > 0;
        let stopped = model.generate(&request, &cancelled, &mut |_| {});
        assert!(
            matches!(stopped, Err(EngineError::Cancelled)),
            "{architecture}"
        );
        let again = logprobs(&mut model, &request);
        assert_eq!(right.len(), again.len());
        for (right, again) in right.iter().zip(again) {
            assert!(
                (right - again).abs() < 1e-3,
                "{architecture}: {right} {again}"
            );
        }
    }
}

#[tokio::test]
async fn a_chat_goes_through_the_backend() {
    const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
        {{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
    let folder = tempfile::tempdir().unwrap();
    for architecture in ALL {
        let tiny = Tiny {
            template: Some(CHATML),
            ..Tiny::stock(architecture)
        };
        // What a stock model cannot do, it is not asked to.
        let options = EngineOptions {
            kv_type: KvType::F16,
            ..EngineOptions::default()
        };
        let model = LocalModel::new(common::arm("tiny"), tiny.write(folder.path()), options);
        let mut cached = Vec::new();
        let mut messages = vec![Message::user("Good morning.")];
        for _ in 0..2 {
            let request = GenerateRequest {
                prompt: Prompt::Chat(messages.clone()),
                ..greedy("", 8)
            };
            let mut stream = model.generate(request).await.unwrap();
            let (mut answer, mut finish) = (String::new(), None);
            while let Some(event) = stream.next().await {
                match event.unwrap() {
                    Event::Token(piece) => answer.push_str(&piece.text),
                    Event::Finish(end) => finish = Some(end),
                }
            }
            let finish = finish.unwrap();
            assert!(matches!(
                finish.reason,
                FinishReason::Stop | FinishReason::Length
            ));
            assert!(finish.usage.prompt_tokens > 20);
            cached.push(finish.usage.cached_tokens);
            messages.push(Message::assistant(answer));
            messages.push(Message::user("And?"));
        }
        assert_eq!(cached[0], 0, "{architecture}");
        assert!(model.state().resident_bytes > 0);
        assert!(model.unload().await);
    }
}
