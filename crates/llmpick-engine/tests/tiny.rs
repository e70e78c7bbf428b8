//! The decoder against the stock models, on models of a few thousand random weights: every
//! architecture, every logit, without anything to download.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use common::stock::Stock;
use common::tiny::{Tiny, prompt};
use llmpick_core::{ChoicesRequest, GenerateRequest, Message, Prompt, Sampling};
use llmpick_engine::{EngineError, EngineOptions, Model, bench_prompt, read_info};

fn open(tiny: &Tiny) -> (tempfile::TempDir, std::path::PathBuf, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny.write(folder.path());
    let model = Model::open(&path, &EngineOptions::default()).unwrap();
    (folder, path, model)
}

/// Bytes of a text become tokens of the same number, so any bytes below 128 make a prompt.
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
        ..GenerateRequest::new(Prompt::Text(prompt.to_owned()))
    }
}

/// Log-likelihoods of every token of a text after its first half, ours and the stock
/// model's, which runs token by token.
fn check(tiny: &Tiny, count: usize) {
    let (_folder, path, mut model) = open(tiny);
    let text = text(count);
    let ours = model.perplexity(&text, count, &mut |_, _| {}).unwrap();
    let tokens = model.prompt_tokens(&Prompt::Text(text)).unwrap();
    assert_eq!(tokens.len(), count);
    let mut stock = Stock::open(&path);
    // Token by token from the start: the stock gemma sees one position too many when it
    // reads a prompt longer than its window at once.
    let mut nll = 0.0;
    for (position, pair) in tokens.windows(2).enumerate() {
        let logits = stock.logits(&pair[..1], position);
        if position >= count / 2 {
            nll -= common::stock::log_likelihood(&logits, pair[1]);
        }
    }
    let difference = (ours.nll - nll).abs() / nll;
    assert!(
        difference < 1e-5,
        "{}: {} and {nll}, {} tokens",
        tiny.architecture,
        ours.nll,
        ours.tokens
    );
}

#[test]
fn every_architecture_agrees_with_its_stock_model() {
    for architecture in ["llama", "qwen2", "qwen3"] {
        check(&Tiny::new(architecture), 200);
        check(
            &Tiny {
                tied: true,
                ..Tiny::new(architecture)
            },
            20,
        );
    }
}

/// The families whose stock models have no window, or a wrong one: inside of it.
#[test]
fn more_families_agree_with_their_stock_models() {
    check(&Tiny::new("phi3"), 200);
    for layers in [3, 5] {
        check(
            &Tiny {
                layers,
                ..Tiny::new("smollm3")
            },
            200,
        );
    }
    let mistral = Tiny {
        window: 256,
        ..Tiny::new("llama")
    };
    check(&mistral, 200);
    let gemma2 = Tiny {
        window: 256,
        layers: 4,
        tied: true,
        more: vec![
            ("attn_logit_softcapping", Value::F32(2.0)),
            ("final_logit_softcapping", Value::F32(3.0)),
        ],
        ..Tiny::new("gemma2")
    };
    check(&gemma2, 200);
}

#[test]
fn gemma_agrees_inside_and_beyond_its_window() {
    // Seven layers, so that one of them sees everything; a window of 8 of 200 positions.
    let gemma = Tiny {
        layers: 7,
        tied: true,
        ..Tiny::new("gemma3")
    };
    check(&gemma, 8);
    check(&gemma, 200);
    check(
        &Tiny {
            window: 512,
            ..gemma
        },
        200,
    );
}

#[test]
fn pieces_of_a_prompt_change_nothing() {
    for dtype in [GgmlDType::F32, GgmlDType::Q8_0, GgmlDType::Q5_0] {
        let tiny = Tiny {
            dtype,
            layers: 7,
            ..Tiny::new("gemma3")
        };
        // Rows must be whole blocks of 32: 96 and 64 are.
        let (_folder, _path, mut model) = open(&tiny);
        let long = text(180);
        let whole = generate(&mut model, &greedy(&long, 20));
        model.clear_cache();
        for part in [1, 3, 64, 130, 179] {
            generate(&mut model, &greedy(&long[..part], 1));
        }
        let again = generate(&mut model, &greedy(&long, 20));
        assert_eq!(whole, again, "{dtype:?}");
    }
}

/// The text and the log-probabilities.
fn generate(model: &mut Model, request: &GenerateRequest) -> (String, Vec<f32>) {
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    model
        .generate(request, &|| false, &mut |piece| {
            text.push_str(&piece.text);
            logprobs.extend(piece.logprobs);
        })
        .unwrap();
    (text, logprobs)
}

#[test]
fn what_is_cached_is_counted_and_the_last_token_is_not() {
    let (_folder, _path, mut model) = open(&Tiny::new("llama"));
    let mut usage = |prompt: &str| {
        let finish = model
            .generate(&greedy(prompt, 3), &|| false, &mut |_| {})
            .unwrap();
        (finish.usage.prompt_tokens, finish.usage.cached_tokens)
    };
    assert_eq!(usage("abcdef"), (6, 0));
    assert_eq!(usage("abcdef"), (6, 5));
    assert_eq!(usage("abcxyz"), (6, 3));
    assert_eq!(usage("xyz"), (3, 0));
}

#[test]
fn choices_are_the_likelihoods_of_their_tokens() {
    let (_folder, path, mut model) = open(&Tiny::new("qwen2"));
    let choices: Vec<String> = ["a", " bc", "déf"].map(str::to_owned).to_vec();
    let request = ChoicesRequest {
        prompt: Prompt::Text("which?".to_owned()),
        choices: choices.clone(),
    };
    let rows = model.choices(&request, &|| false).unwrap();
    let mut stock = Stock::open(&path);
    for (row, choice) in rows.iter().zip(&choices) {
        let whole = format!("which?{choice}");
        let tokens = model.prompt_tokens(&Prompt::Text(whole)).unwrap();
        let exact = -stock.nll(&tokens, 6);
        assert!(
            (row.logprob - exact).abs() < 1e-3,
            "{} {exact}",
            row.logprob
        );
        assert_eq!(row.tokens as usize, tokens.len() - 6);
        assert_eq!(row.bytes as usize, choice.len());
        assert_eq!(row.prompt_tokens, 6);
        assert_eq!(row.busy, rows[0].busy);
    }
    let empty = ChoicesRequest {
        choices: vec![String::new()],
        ..request
    };
    let refused = model.choices(&empty, &|| false);
    assert!(matches!(refused, Err(EngineError::InvalidRequest(_))));
}

#[test]
fn a_choice_behind_a_template_begins_the_answer() {
    let template = Some(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    );
    let (_folder, _path, mut model) = open(&Tiny {
        template,
        ..Tiny::new("llama")
    });
    let choices = vec!["yes".to_owned(), "no".to_owned()];
    let chat = ChoicesRequest {
        prompt: Prompt::Chat(vec![Message::user("well?")]),
        choices: choices.clone(),
    };
    let plain = ChoicesRequest {
        prompt: Prompt::Text("[user]well?[assistant]".to_owned()),
        choices,
    };
    let chat = model.choices(&chat, &|| false).unwrap();
    let plain = model.choices(&plain, &|| false).unwrap();
    let logprobs = |rows: &[llmpick_core::ChoiceLikelihood]| -> Vec<f64> {
        rows.iter().map(|row| row.logprob).collect()
    };
    assert_eq!(logprobs(&chat), logprobs(&plain));
}

#[test]
fn a_benchmark_runs_what_it_is_asked_and_fits() {
    let (_folder, _path, mut model) = open(&Tiny::new("llama"));
    let prompt = bench_prompt(model.tokenizer(), 40);
    let long = bench_prompt(model.tokenizer(), 255);
    assert_eq!((prompt.len(), long.len()), (40, 255));
    assert_eq!(prompt, long[..40]);
    let run = model.bench_run(&prompt, 5, &|| false).unwrap();
    assert!(!run.first.is_zero() && !run.rest.is_zero());
    let all = model.resident_bytes();
    assert_eq!(all, model.weight_bytes() + run.kv_bytes);
    let single = model.bench_run(&prompt, 1, &|| false).unwrap();
    assert_eq!(single.kv_bytes, run.kv_bytes);
    assert!(single.rest < single.first);
    assert!(!model.stream_weights().unwrap().is_zero());
    let stopped = model.bench_run(&prompt, 5, &|| true);
    assert!(matches!(stopped, Err(EngineError::Cancelled)));
    for (prompt, gen_tokens) in [(&prompt[..0], 1), (&prompt[..], 0), (&long, 2)] {
        let refused = model.bench_run(prompt, gen_tokens, &|| false);
        assert!(matches!(refused, Err(EngineError::InvalidRequest(_))));
    }
}

#[test]
fn perplexity_wants_a_whole_window() {
    let (_folder, _path, mut model) = open(&Tiny::new("llama"));
    let mut windows = Vec::new();
    let found = model
        .perplexity(&text(70), 32, &mut |done, all| windows.push((done, all)))
        .unwrap();
    assert_eq!(found.tokens, 2 * 15);
    assert_eq!(windows, [(0, 2), (1, 2), (2, 2)]);
    assert!((found.ppl - (found.nll / 30.0).exp()).abs() < 1e-9);
    for (letters, context) in [(31, 32), (70, 3), (70, 257)] {
        let refused = model.perplexity(&text(letters), context, &mut |_, _| {});
        assert!(
            matches!(refused, Err(EngineError::InvalidRequest(_))),
            "{letters} {context}"
        );
    }
}

#[test]
fn the_description_needs_no_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("qwen2").write(folder.path());
    let info = read_info(&path).unwrap();
    assert_eq!((info.layers, info.width, info.context_tokens), (3, 64, 256));
    assert_eq!((info.heads, info.kv_heads, info.head_dim), (4, 2, 16));
    assert_eq!(info.quantisation, "F32 100 %");
    assert!(!info.instruct && !info.chat_template);
    assert_eq!(info.cache_bytes_per_token, 3 * 2 * 32 * 4);
}

#[test]
fn a_model_beyond_the_limit_is_refused_with_the_figures() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("llama").write(folder.path());
    let options = EngineOptions {
        memory_limit: Some(1_000_000),
        ..EngineOptions::default()
    };
    let refused = Model::open(&path, &options).err().unwrap();
    let sentence = refused.kind.to_string();
    assert!(
        sentence.contains("1.0 MB are free") && sentence.contains("smaller model"),
        "{sentence}"
    );
}
