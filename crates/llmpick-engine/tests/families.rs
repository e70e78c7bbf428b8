//! Every family against the definition, on tiny random files: prompts in pieces, tokens one
//! by one, beyond the window, with every way to scale RoPE and to keep keys and values.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use common::plain::Plain;
use common::tiny::{Tiny, prompt};
use llmpick_core::{ChoicesRequest, GenerateRequest, Prompt, Sampling};
use llmpick_engine::{EngineOptions, KvType, Model};

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

fn argmax(row: &[f64]) -> usize {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0
}

/// A text of 200 tokens at once, and 20 more one by one after 150 of them.
fn check(what: &str, tiny: &Tiny) {
    check_with(what, tiny, &EngineOptions::default(), 2e-4);
}

fn check_with(what: &str, tiny: &Tiny, options: &EngineOptions, tolerance: f64) {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny.write(folder.path());
    let mut model = Model::open(&path, options).unwrap();
    let plain = Plain::open(&path).with_context(f64::from(model.context_tokens()));
    let count = 200;
    let text = text(count);
    let tokens = model.prompt_tokens(&Prompt::Text(text.clone())).unwrap();
    let exact = plain.log_probabilities(&tokens);
    let nll: f64 = (count / 2..count - 1)
        .map(|at| -exact[at][tokens[at + 1] as usize])
        .sum();
    let ours = model.perplexity(&text, count, &mut |_, _| {}).unwrap();
    let difference = (ours.nll - nll).abs() / ours.tokens as f64;
    assert!(
        difference < tolerance,
        "{what}: {} and {nll}, {} tokens",
        ours.nll,
        ours.tokens
    );
    // From the cache of the other text's end, and from an empty one.
    for fresh in [false, true] {
        if fresh {
            model.clear_cache();
        }
        let found = logprobs(&mut model, &greedy(&text[..150], 20));
        assert!(!found.is_empty(), "{what}");
        let mut tokens = tokens[..150].to_vec();
        for ours in found {
            let row = plain.log_probabilities(&tokens).pop().unwrap();
            let next = argmax(&row);
            assert!(
                (f64::from(ours) - row[next]).abs() < tolerance,
                "{what}: {ours} and {} after {} tokens",
                row[next],
                tokens.len()
            );
            tokens.push(next as u32);
        }
    }
}

#[test]
fn mistral_sees_its_window_and_no_more() {
    for window in [8, 64, 100] {
        check(
            "mistral",
            &Tiny {
                window,
                ..Tiny::new("llama")
            },
        );
    }
}

fn gemma2() -> Tiny {
    Tiny {
        layers: 4,
        tied: true,
        // Small enough to bend every score.
        more: vec![
            ("attn_logit_softcapping", Value::F32(2.0)),
            ("final_logit_softcapping", Value::F32(3.0)),
        ],
        ..Tiny::new("gemma2")
    }
}

#[test]
fn gemma2_caps_and_sees_by_turns() {
    check("gemma2", &gemma2());
    check(
        "gemma2, wide",
        &Tiny {
            window: 70,
            ..gemma2()
        },
    );
    check(
        "gemma2 by its own values",
        &Tiny {
            more: Vec::new(),
            ..gemma2()
        },
    );
}

#[test]
fn gemma3_sees_by_sixes() {
    let gemma = Tiny {
        layers: 7,
        tied: true,
        ..Tiny::new("gemma3")
    };
    check("gemma3", &gemma);
}

#[test]
fn smollm3_leaves_every_fourth_layer_unturned() {
    check(
        "smollm3",
        &Tiny {
            layers: 5,
            ..Tiny::new("smollm3")
        },
    );
}

fn phi3() -> Tiny {
    let factors = |from: f32, by: f32| (0..8).map(|i| from + by * i as f32).collect();
    Tiny {
        more: vec![
            ("rope.scaling.original_context_length", Value::U32(128)),
            ("rope.scaling.attn_factor", Value::F32(1.19)),
        ],
        vectors: vec![
            ("rope_factors_short.weight", factors(1.0, 0.1)),
            ("rope_factors_long.weight", factors(1.5, 0.7)),
        ],
        ..Tiny::new("phi3")
    }
}

#[test]
fn phi3_is_taken_apart() {
    check("phi3", &Tiny::new("phi3"));
    check(
        "phi3 with a window",
        &Tiny {
            window: 50,
            ..Tiny::new("phi3")
        },
    );
}

#[test]
fn long_factors_serve_long_contexts_and_short_ones_short() {
    check("phi3, long", &phi3());
    let mut short = phi3();
    short.more[0].1 = Value::U32(256);
    check("phi3, short", &short);
    // The context in use decides, not the file's.
    let mut cut = phi3();
    cut.context = 4096;
    cut.more[0].1 = Value::U32(240);
    let options = EngineOptions {
        max_context: Some(240),
        ..EngineOptions::default()
    };
    check_with("phi3, cut", &cut, &options, 2e-4);
}

#[test]
fn rope_is_scaled_in_every_way() {
    let scaled = |kind: &str, more: &[(&'static str, Value)]| Tiny {
        more: [("rope.scaling.type", Value::String(kind.to_owned()))]
            .iter()
            .chain(more)
            .cloned()
            .collect(),
        ..Tiny::new("qwen2")
    };
    let factor = ("rope.scaling.factor", Value::F32(4.0));
    let original = ("rope.scaling.original_context_length", Value::U32(64));
    check("linear", &scaled("linear", std::slice::from_ref(&factor)));
    check("yarn", &scaled("yarn", &[factor.clone(), original]));
    let llama3 = Tiny {
        vectors: vec![(
            "rope_freqs.weight",
            vec![1.0, 1.0, 1.0, 1.3, 2.0, 4.0, 8.0, 8.0],
        )],
        ..Tiny::new("llama")
    };
    check("llama 3", &llama3);
    // A model whose whole turns are fewer than its pairs: no pair is left undivided.
    let long = ("rope.scaling.original_context_length", Value::U32(4));
    check("yarn, short", &scaled("yarn", &[factor, long]));
}

/// The arithmetic of a row never depends on how many rows run with it.
#[test]
fn pieces_of_a_prompt_change_nothing_in_any_family() {
    let formats = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::Q8_0,
        GgmlDType::Q4_1,
    ];
    for (number, architecture) in llmpick_engine::SUPPORTED.iter().enumerate() {
        for kv_type in [KvType::F32, KvType::F16, KvType::Int8] {
            let tiny = Tiny {
                dtype: formats[number % formats.len()],
                layers: 5,
                window: 20,
                ..Tiny::new(architecture)
            };
            let folder = tempfile::tempdir().unwrap();
            let path = tiny.write(folder.path());
            let options = EngineOptions {
                kv_type,
                ..EngineOptions::default()
            };
            let mut model = Model::open(&path, &options).unwrap();
            let long = text(200);
            let whole = logprobs(&mut model, &greedy(&long, 8));
            assert!(!whole.is_empty());
            for pieces in [vec![1, 2, 7, 19, 64, 130, 199], (1..200).collect()] {
                model.clear_cache();
                for part in pieces {
                    logprobs(&mut model, &greedy(&long[..part], 1));
                }
                let again = logprobs(&mut model, &greedy(&long, 8));
                assert_eq!(whole, again, "{architecture} {kv_type:?}");
            }
            // Nor on how many threads there are.
            let alone = EngineOptions {
                threads: Some(1),
                ..options
            };
            let mut alone = Model::open(&path, &alone).unwrap();
            assert_eq!(whole, logprobs(&mut alone, &greedy(&long, 8)));
        }
    }
}

#[test]
fn smaller_caches_are_as_exact_as_they_can_be() {
    for (kind, tolerance) in [(KvType::F16, 3e-3), (KvType::Int8, 0.1)] {
        let options = EngineOptions {
            kv_type: kind,
            ..EngineOptions::default()
        };
        for tiny in [Tiny::new("qwen2"), gemma2()] {
            let folder = tempfile::tempdir().unwrap();
            let path = tiny.write(folder.path());
            let mut exact = Model::open(&path, &EngineOptions::default()).unwrap();
            let mut model = Model::open(&path, &options).unwrap();
            let text = text(200);
            let nll = |model: &mut Model| {
                let found = model.perplexity(&text, 200, &mut |_, _| {}).unwrap();
                found.nll / found.tokens as f64
            };
            let difference = (nll(&mut model) - nll(&mut exact)).abs();
            assert!(difference < tolerance, "{kind:?} {difference}");
            assert!(difference > 0.0, "{kind:?} is exact");
            assert!(model.resident_bytes() < exact.resident_bytes());
            // Pieces change nothing here either.
            let whole = logprobs(&mut model, &greedy(&text, 5));
            for part in [1, 40, 150] {
                logprobs(&mut model, &greedy(&text[..part], 1));
            }
            assert_eq!(whole, logprobs(&mut model, &greedy(&text, 5)), "{kind:?}");
        }
    }
}

#[test]
fn a_window_layer_keeps_its_window_and_answers_as_if_it_kept_all() {
    let wide = |context| Tiny {
        context,
        layers: 2,
        window: 16,
        dtype: GgmlDType::Q8_0,
        ..Tiny::new("llama")
    };
    let folder = tempfile::tempdir().unwrap();
    let path = wide(4096).write(folder.path());
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let weights = model.resident_bytes();
    let long = text(3000);
    let whole = logprobs(&mut model, &greedy(&long, 3));
    // Two layers of 16 + 2 · 256 positions, counted in steps of 64: 2 heads of 16, twice.
    assert_eq!(model.resident_bytes() - weights, 2 * 576 * 2 * 32 * 4);
    // Back by a little: what the window needs is still there. Back by much: it is not,
    // and everything is computed again. The answer is the same.
    let cached = |model: &mut Model, text: &str| {
        let finish = model
            .generate(&greedy(text, 1), &|| false, &mut |_| {})
            .unwrap();
        finish.usage.cached_tokens
    };
    assert_eq!(cached(&mut model, &long[..2900]), 2899);
    assert_eq!(cached(&mut model, &long), 2900);
    assert_eq!(cached(&mut model, &long[..2200]), 0);
    assert_eq!(whole, logprobs(&mut model, &greedy(&long, 3)));
    // Several choices take their tokens back each time.
    let request = ChoicesRequest {
        prompt: Prompt::Text(long.clone()),
        choices: ["one", "another", "a third, longer by far than the others"]
            .map(str::to_owned)
            .to_vec(),
    };
    let warm = model.choices(&request, &|| false).unwrap();
    for (choice, warm) in request.choices.iter().zip(warm) {
        model.clear_cache();
        let alone = ChoicesRequest {
            choices: vec![choice.clone()],
            ..request.clone()
        };
        let alone = model.choices(&alone, &|| false).unwrap();
        assert_eq!(alone[0].logprob, warm.logprob);
    }
}

#[test]
fn memory_follows_the_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny {
        context: 8192,
        ..Tiny::new("qwen2")
    };
    let path = tiny.write(folder.path());
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let weights = model.resident_bytes();
    let mut taken = |count: usize| {
        logprobs(&mut model, &greedy(&text(count), 1));
        (model.resident_bytes() - weights) / (3 * 2 * 32 * 4)
    };
    assert_eq!(taken(10), 64);
    assert_eq!(taken(200), 320);
    let long = taken(4000);
    assert!((4000..5100).contains(&long), "{long}");
    // A short sequence after a long one gives the room back.
    assert_eq!(taken(10), 64);
}
