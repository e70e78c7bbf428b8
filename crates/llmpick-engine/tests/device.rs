//! What a GPU would compute, in the same tensors on the processor, against our kernels:
//! every family, warm and cold, beyond the window.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use common::tiny::{Tiny, prompt};
use llmpick_core::{GenerateRequest, Prompt, Sampling};
use llmpick_engine::{DeviceChoice, EngineOptions, KvType, Model};

fn text(count: usize) -> String {
    let letters = prompt(count)
        .into_iter()
        .map(|t| char::from(b' ' + (t % 95) as u8));
    letters.collect()
}

fn answer(model: &mut Model, prompt: &str) -> (String, Vec<f32>, u32) {
    let request = GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(12),
        logprobs: true,
        ..GenerateRequest::new(Prompt::Text(prompt.to_owned()))
    };
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    let finish = model.generate(&request, &|| false, &mut |piece| {
        text.push_str(&piece.text);
        logprobs.extend(piece.logprobs);
    });
    (text, logprobs, finish.unwrap().usage.cached_tokens)
}

/// candle multiplies quantised weights with activations of 8 bits, ours of 15, and candle
/// has blocks of another size: `tolerance` is for that.
fn check(what: &str, tiny: &Tiny, tolerance: f64) {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny.write(folder.path());
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        ..EngineOptions::default()
    };
    let mut own = Model::open(&path, &options).unwrap();
    let mut there = Model::open_as_on_gpu(&path, &options).unwrap();
    let text = text(220);
    let nll = |model: &mut Model| {
        let found = model.perplexity(&text, 200, &mut |_, _| {}).unwrap();
        found.nll / found.tokens as f64
    };
    let (ours, theirs) = (nll(&mut own), nll(&mut there));
    assert!(
        (ours - theirs).abs() < tolerance,
        "{what}: {ours} and {theirs}"
    );
    // Longer by a little, back by a little, back by much, another text.
    for range in [0..150, 0..190, 0..180, 0..20, 5..200, 0..1] {
        let (ours, expected, _) = answer(&mut own, &text[range.clone()]);
        let (theirs, found, _) = answer(&mut there, &text[range.clone()]);
        // Rounded differently, they part where two tokens are about as good.
        let exact = tolerance < 1e-3;
        let compared = if exact { expected.len() } else { 1 };
        let both = expected.iter().zip(found).take(compared);
        for (token, (expected, found)) in both.enumerate() {
            assert!(
                f64::from((expected - found).abs()) < 5.0 * tolerance,
                "{what}, {range:?}, token {token}: {expected} and {found}"
            );
        }
        if exact {
            assert_eq!(ours, theirs, "{what}, {range:?}");
        }
    }
}

#[test]
fn every_family_is_the_same_there() {
    for architecture in llmpick_engine::SUPPORTED {
        let tiny = Tiny {
            layers: 7,
            window: 20,
            ..Tiny::new(architecture)
        };
        check(architecture, &tiny, 2e-4);
    }
}

#[test]
fn heads_that_are_tied_and_bounded_are_the_same_there() {
    for architecture in ["gemma2", "gemma3", "llama"] {
        let tiny = Tiny {
            tied: true,
            more: vec![
                ("attn_logit_softcapping", Value::F32(2.0)),
                ("final_logit_softcapping", Value::F32(3.0)),
            ],
            ..Tiny::new(architecture)
        };
        check(architecture, &tiny, 2e-4);
    }
}

#[test]
fn rope_is_the_same_there() {
    let factors = |from: f32, by: f32| (0..8).map(|i| from + by * i as f32).collect();
    let long = Tiny {
        more: vec![
            ("rope.scaling.original_context_length", Value::U32(128)),
            ("rope.scaling.attn_factor", Value::F32(1.19)),
        ],
        vectors: vec![
            ("rope_factors_short.weight", factors(1.0, 0.1)),
            ("rope_factors_long.weight", factors(1.5, 0.7)),
        ],
        ..Tiny::new("phi3")
    };
    check("phi3 with factors", &long, 2e-4);
    let part = Tiny {
        more: vec![("rope.dimension_count", Value::U32(8))],
        ..Tiny::new("qwen2")
    };
    check("a part of a head", &part, 2e-4);
    let yarn = Tiny {
        more: vec![
            ("rope.scaling.type", Value::String("yarn".to_owned())),
            ("rope.scaling.factor", Value::F32(4.0)),
            ("rope.scaling.original_context_length", Value::U32(64)),
        ],
        ..Tiny::new("qwen3")
    };
    check("yarn", &yarn, 2e-4);
}

#[test]
fn formats_are_the_same_there() {
    for (dtype, tolerance) in [
        (GgmlDType::F16, 2e-4),
        (GgmlDType::BF16, 2e-4),
        (GgmlDType::Q8_0, 0.02),
        (GgmlDType::Q4_1, 0.02),
        (GgmlDType::Q5_0, 0.02),
    ] {
        let tiny = Tiny {
            dtype,
            ..Tiny::new("qwen2")
        };
        check(&format!("{dtype:?}"), &tiny, tolerance);
    }
}

#[test]
fn what_is_cached_is_not_computed_again_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("gemma3").write(folder.path());
    let options = EngineOptions {
        kv_type: KvType::F16,
        ..EngineOptions::default()
    };
    let mut model = Model::open_as_on_gpu(&path, &options).unwrap();
    let text = text(200);
    let empty = model.resident_bytes();
    assert_eq!(answer(&mut model, &text[..150]).2, 0);
    assert_eq!(answer(&mut model, &text).2, 150);
    assert_eq!(answer(&mut model, &text[..40]).2, 39);
    assert!(model.resident_bytes() > empty);
    model.clear_cache();
    assert_eq!(model.resident_bytes(), empty);
    assert_eq!(answer(&mut model, &text[..40]).2, 0);
}

#[test]
fn a_device_that_is_not_there_leaves_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &Tiny::new("llama").write(folder.path());
    for device in [DeviceChoice::Cpu, DeviceChoice::Cuda(4096)] {
        let options = EngineOptions {
            device,
            ..EngineOptions::default()
        };
        let mut model = Model::open(path, &options).unwrap();
        assert_eq!(model.device(), "cpu");
        assert!(!answer(&mut model, "Good morning").1.is_empty());
    }
}
