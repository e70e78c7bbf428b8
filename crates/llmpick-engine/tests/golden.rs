//! The real models against the stock models of candle-transformers: the same text, the same
//! perplexity; and a gemma that fits in memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use common::full::Full;
use common::stock::Stock;
use llmpick_core::{GenerateRequest, Message, Prompt, Sampling};
use llmpick_engine::{EngineOptions, Model};

/// The stock models take up to 3.5 GB each and all threads; one at a time.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Greedy text of one prompt, ours and the stock model's.
fn check_text(name: &str, prompt: Prompt, count: u32) -> Option<String> {
    let path = common::model(name)?;
    let _turn = turn();
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let request = GenerateRequest {
        sampling: Sampling::greedy(),
        max_tokens: Some(count),
        ..GenerateRequest::new(prompt)
    };
    let tokens = model.prompt_tokens(&request.prompt).unwrap();
    let mut ours = String::new();
    let emit = &mut |piece: llmpick_core::TokenPiece| ours.push_str(&piece.text);
    model.generate(&request, &|| false, emit).unwrap();
    let tokenizer = model.tokenizer();
    let ends = tokenizer.end_of_generation();
    let stock = Stock::open(&path).greedy(&tokens, count as usize, ends);
    assert_eq!(ours, tokenizer.decode(&stock), "{name}");
    assert!(ours.trim().len() > 10, "{name}: {ours:?}");
    eprintln!("{name}: {ours:?}");
    Some(ours)
}

fn question() -> Prompt {
    Prompt::Chat(vec![Message::user("What is the capital of France?")])
}

/// A base model's way to be asked; the answer is long enough to drift apart in.
fn beginning() -> Prompt {
    Prompt::Text("def fibonacci(n):\n    ".to_owned())
}

#[test]
fn smollm2_speaks_like_the_stock_model() {
    check_text(common::SMOLLM2, question(), 24);
    check_text(common::SMOLLM2, beginning(), 32);
}

#[test]
fn small_qwen_speaks_like_the_stock_model() {
    check_text(common::QWEN_SMALL, beginning(), 32);
    if let Some(text) = check_text(common::QWEN_SMALL, question(), 24) {
        assert!(text.contains("Paris"), "{text}");
    }
}

#[test]
fn large_qwen_speaks_like_the_stock_model() {
    check_text(common::QWEN_LARGE, beginning(), 32);
    if let Some(text) = check_text(common::QWEN_LARGE, question(), 24) {
        assert!(text.contains("Paris"), "{text}");
    }
}

#[test]
fn gemma_speaks_like_the_stock_model() {
    let prompt = Prompt::Text("The three primary colours are".to_owned());
    check_text(common::GEMMA, prompt, 24);
}

/// Perplexity on eight windows of 512 tokens, the stock model in full precision over the same
/// weights.
fn check_perplexity(name: &str) {
    const CONTEXT: usize = 512;
    let Some(path) = common::model(name) else {
        return;
    };
    let _turn = turn();
    let text = include_str!("data/eighty-days.txt");
    let mut model = Model::open(&path, &EngineOptions::default()).unwrap();
    let tokenizer = model.tokenizer().clone();
    let tokens = model.prompt_tokens(&Prompt::Text(text.to_owned())).unwrap();
    assert!(
        tokens.len() >= 8 * CONTEXT,
        "{name}: {} tokens",
        tokens.len()
    );
    let ours = model.perplexity(text, CONTEXT, &mut |_, _| {}).unwrap();
    drop(model);
    let mut stock = Full::open(&path);
    let mut windows: Vec<Vec<u32>> = tokens.chunks_exact(CONTEXT).map(<[u32]>::to_vec).collect();
    if let (true, Some(bos)) = (tokenizer.adds_bos(), tokenizer.bos()) {
        windows.iter_mut().for_each(|window| window[0] = bos);
    }
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let nll = stock.nll(&windows, CONTEXT / 2 + 1);
    let count = windows.len() * (CONTEXT - CONTEXT / 2 - 1);
    let stock = (nll / count as f64).exp();
    eprintln!(
        "{name}: {:.4} ours, {stock:.4} stock, {count} tokens",
        ours.ppl
    );
    assert_eq!(ours.tokens as usize, count);
    assert!(
        (ours.ppl / stock - 1.0).abs() < 0.01,
        "{name}: {} and {stock}",
        ours.ppl
    );
}

#[test]
fn smollm2_perplexity_is_the_stock_model_s() {
    check_perplexity(common::SMOLLM2);
}

#[test]
fn small_qwen_perplexity_is_the_stock_model_s() {
    check_perplexity(common::QWEN_SMALL);
}

#[test]
fn large_qwen_perplexity_is_the_stock_model_s() {
    check_perplexity(common::QWEN_LARGE);
}

#[test]
fn gemma_perplexity_is_the_stock_model_s() {
    check_perplexity(common::GEMMA);
}
